package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/sqllock"
)

// call runs the command line in this process.
func call(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	err := app(strings.NewReader(""), &out, &errs).Run(t.Context(), append([]string{"sqllock"}, args...))
	if text := explain(err); text != "" {
		fmt.Fprintln(&errs, "sqllock:", text)
	}
	return out.String(), errs.String(), exitCode(err)
}

// TestUsageErrors wants one line that says what to do.
func TestUsageErrors(t *testing.T) {
	for _, name := range []string{"SQLLOCK_DSN", "SQLLOCK_DSN_FILE", "SQLLOCK_NAMESPACE", "SQLLOCK_TABLE"} {
		t.Setenv(name, "")
	}
	const example = ", as in: sqllock run --name invoices -- php generateInvoices.php"
	for _, c := range []struct {
		args, want string
		code       int
	}{
		{"", "a command is missing; sqllock help lists them", 64},
		{"rnu", "there is no command rnu; did you mean run?; sqllock help lists them", 64},
		{"frobnicate", "there is no command frobnicate; sqllock help lists them", 64},
		{"help frobnicate", "No help topic for 'frobnicate'", 64},
		// A DSN whose flag has become the value of the one before, as in --namespace $EMPTY --dsn $DSN.
		{"--namespace --dsn mysql://app:hush@db/billing list", "there is no command (a DSN, which is not shown); sqllock help lists them", 64},
		{"sweep mysql://app:hush@db/billing", `sqllock sweep takes no arguments, and got "(a DSN, which is not shown)"; see sqllock sweep --help`, 64},
		{"migrate app:hush@tcp(db)/billing", `sqllock migrate takes one of up, down, status and print, and got "(a DSN, which is not shown)"; see sqllock migrate --help`, 64},
		{
			"list --interval mysql://app:hush@db/billing", "invalid value (a DSN, which is not shown) for --interval: time: invalid duration (a DSN, which is not shown); " +
				"a duration has a unit, as in 30s, 10m or 1h30m; see sqllock list --help", 64,
		},
		{"help mysql://app:hush@db/billing", "No help topic for (a DSN, which is not shown)", 64},
		{"list --dsn app@tcp(127.0.0.1:1)/ --connect-timeout 0s", "--connect-timeout has to be more than 0, and is 0s", 64},
		{"--frobnicate", "there is no flag --frobnicate; see sqllock --help", 64},
		{"run", "run needs the name of a lock" + example, 64},
		{"run --name", "--name needs a value; see sqllock run --help", 64},
		{"run --waitt 1s -- true", "there is no flag --waitt; did you mean --wait?; see sqllock run --help", 64},
		{"run --name x", "run needs a command, after --" + example, 64},
		{"run --name x --", "run needs a command, after --" + example, 64},
		{"run --name= -- true", "--name is empty: is a variable not set?", 64},
		{"run --name x --wait 10 -- true", `invalid value "10" for --wait: time: missing unit in duration "10"; a duration has a unit, as in 30s, 10m or 1h30m; see sqllock run --help`, 64},
		{"run --name x --wait -1s -- true", "--wait -1s: it has to be more than nothing", 64},
		{"run --name x --ttl 0s -- true", "--ttl 0s: it has to be more than nothing", 64},
		{"run --name x --keep-alive 1h -- true", "--keep-alive extends a lease, so it needs --ttl, as in: --ttl 1m --keep-alive 6h", 64},
		{
			"run --name x --ttl 11s -- true", "--ttl 11s leaves the command no time: it is told to stop --grace (10s) before it has to be dead, " +
				"a second before the lease ends; make --ttl longer than 11s, or --grace shorter", 64,
		},
		{
			"run --name x --ttl 32s --keep-alive 1h -- true", "--ttl 32s is too short to be kept alive: an extension that fails has to be tried again before " +
				"the command is told to stop, --grace (10s) and a second before the lease ends; make --ttl 33s or more, or --grace shorter", 64,
		},
		{"run --name x --ttl 1m --keep-alive 1m -- true", "--keep-alive 1m0s is the longest that the lock is held, so it has to be longer than --ttl 1m0s", 64},
		{"run --name x --ttl 1m --min-hold 2m -- true", "--min-hold 2m0s is longer than the lock can be held; make --ttl 2m0s or more", 64},
		{"run --name x -- no-such-program", `the command "no-such-program" is not in the PATH`, 127},
		{"run --name x -- true", "no database is named: set SQLLOCK_DSN, or --dsn-file; " + dsnForms, 64},
		{"run --dsn= --name x -- true", "--dsn is empty: is a variable not set? " + dsnForms, 64},
		{"run --dsn x --dsn-file y --name x -- true", "--dsn and --dsn-file are both given: which is meant?", 64},
		{
			"run --dsn app:hush@tcp(127.0.0.1:1)/billing --name x -- true",
			"MySQL at 127.0.0.1:1, database billing can't be reached: dial tcp 127.0.0.1:1: connect: connection refused", 69,
		},
		{
			"run --dsn app:hush@tcp(127.0.0.1:1)/billing --table a-b --ttl 1m --name x -- true",
			`--table: table: WithTable("a-b"): a table is named by letters, digits, _ and $, with a schema and a dot in front if need be`, 64,
		},
	} {
		args0 := os.Args[0]
		out, errs, code := call(t, strings.Fields(c.args)...)
		os.Args[0] = args0
		if out != "" || errs != "sqllock: "+c.want+"\n" || code != c.code {
			t.Errorf("sqllock %s: %d\n%s%swant %d\nsqllock: %s", c.args, code, out, errs, c.code, c.want)
		}
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{&exitError{code: 7}, 7, ""},
		{fmt.Errorf("x: %w", usage("bad %s", "flag")), 64, "x: bad flag"},
		{cli.Exit("what", 3), 64, "what"},
		{&sqllock.OpError{Op: "try lock", Name: "a", Err: sqllock.ErrBusy}, 75, `try lock "a": another session holds the lock`},
		{sqllock.ErrLost, 79, "the lock was lost"},
		{sqllock.ErrInvalidName, 64, "invalid lock name"},
		{fmt.Errorf("two\n\tlines: %w", context.Canceled), 130, "two lines: context canceled"},
		{errors.New("whatever"), 69, "whatever"},
		{errors.New("held by \x1b[2Jme"), 69, "held by _[2Jme"},
		{sqllock.ErrNoTable, 69, "there is no usable lock table; on the command line, sqllock migrate up makes the table"},
	} {
		if code, text := exitCode(c.err), explain(c.err); code != c.code || text != c.text {
			t.Errorf("%v: got %d %q, want %d %q", c.err, code, text, c.code, c.text)
		}
	}
}

// TestManual wants what a manual page has, for every command, in 80 columns.
func TestManual(t *testing.T) {
	for _, args := range [][]string{{"help", "run"}, {"run", "--help"}, {"run", "-h"}} {
		out, errs, code := call(t, args...)
		at := -1
		for _, section := range []string{
			"NAME\n   sqllock run - run a command while a lock is held\n", "SYNOPSIS\n", "DESCRIPTION\n", "OPTIONS\n", "OPTIONS OF ALL COMMANDS\n",
			"EXIT STATUS\n", "ENVIRONMENT\n", "EXAMPLES\n",
		} {
			i := strings.Index("\n"+out, "\n"+section)
			if i <= at {
				t.Errorf("%v: no section %q, or not in its place", args, section)
			}
			at = i
		}
		if errs != "" || code != 0 {
			t.Errorf("%v: %d %s", args, code, errs)
		}
	}
	root, _, _ := call(t, "help")
	for _, section := range []string{"COMMANDS", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "DSN", "COMPLETION"} {
		if !strings.Contains(root, "\n"+section+"\n") {
			t.Errorf("the help has no section %s", section)
		}
	}
	for _, c := range app(nil, io.Discard, io.Discard).Commands {
		if !strings.Contains(root, "\n      "+c.Name) {
			t.Errorf("the help does not list %s", c.Name)
		}
		out, _, _ := call(t, "help", c.Name)
		for line := range strings.Lines(root + out) {
			if len(line) > width+1 && !strings.HasPrefix(line, "     ") {
				t.Errorf("help %s: a line of %d columns: %s", c.Name, len(line)-1, line)
			}
			if strings.HasSuffix(line, " \n") {
				t.Errorf("help %s: spaces at the end of %q", c.Name, line)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	if out, _, code := call(t, "--version"); code != 0 || !strings.HasPrefix(out, "sqllock version ") || len(out) < 18 {
		t.Errorf("got %d %q", code, out)
	}
}

// TestCompletion completes in a real bash, with this binary in the place of sqllock.
func TestCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", dir, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, c := range []struct {
		line    string
		want    []string
		without []string
	}{
		{"sqllock ", []string{"run", "who", "doctor", "completion"}, []string{"--name"}},
		{"sqllock r", []string{"run"}, []string{"who"}},
		{"sqllock run --", []string{"--name", "--ttl", "--keep-alive", "--dsn-file", "--namespace"}, []string{"run"}},
		{"sqllock run --name x --t", []string{"--ttl", "--table"}, []string{"--name"}},
		{"sqllock run --name x -- ls --t", nil, []string{"--ttl"}},
		{"sqllock completion ", []string{"bash", "zsh", "fish"}, nil},
	} {
		script := `source <(sqllock completion bash) || exit
			line=$1; read -ra COMP_WORDS <<<"$line"
			[[ $line == *" " ]] && COMP_WORDS+=("")
			COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$line COMP_POINT=${#line}
			[[ $(complete -p sqllock) == *"-F _sqllock sqllock" ]] && _sqllock sqllock "${COMP_WORDS[COMP_CWORD]}" "" && printf '%s\n' "${COMPREPLY[@]}"`
		cmd := exec.CommandContext(t.Context(), bash, "--norc", "-c", script, "bash", c.line)
		cmd.Env = []string{"PATH=" + dir + string(filepath.ListSeparator) + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%q: %v\n%s", c.line, err, out)
		}
		got := "\n" + string(out)
		for _, word := range c.want {
			if !strings.Contains(got, "\n"+word+"\n") {
				t.Errorf("%q is not completed to %s but to %s", c.line, word, got)
			}
		}
		for _, word := range c.without {
			if strings.Contains(got, "\n"+word+"\n") {
				t.Errorf("%q is completed to %s", c.line, word)
			}
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "pwsh"} {
		if out, errs, code := call(t, "completion", shell); code != 0 || errs != "" || !strings.Contains(out, "sqllock") && shell != "pwsh" {
			t.Errorf("completion %s: %d %s%s", shell, code, out, errs)
		}
	}
	if out, _, _ := call(t, "help", "completion"); !strings.Contains(out, "\n    bash  source <(sqllock completion bash)\n") {
		t.Errorf("the help of completion has no line to copy:\n%s", out)
	}
}
