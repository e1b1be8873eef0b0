package integration

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// A runner runs the command on a database of its own, with the table of leases.
type runner struct {
	binary           string
	dsn              string // with a user and a password
	db               *sql.DB
	pg               bool
	namespace        string
	sessions, leases *sqllock.Locker
}

// runPassword is of the characters that cause trouble.
const runPassword = "p@ss:w/o?r#d%41&=()"

func runOnMySQL(t *testing.T, binary string, s *testdb.Server) *runner {
	t.Helper()
	db := lockTable(t, s, "MyISAM")
	cfg, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	name := database(t, db)
	user := fmt.Sprintf("run%d", rand.Uint32())
	for _, q := range []string{
		fmt.Sprintf("CREATE USER %s IDENTIFIED BY '%s'", user, runPassword),
		fmt.Sprintf("GRANT ALL ON *.* TO %s", user),
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP USER "+user); err != nil {
			t.Error(err)
		}
	})
	u := url.URL{Scheme: "mysql", User: url.UserPassword(user, runPassword), Host: cfg.Addr, Path: "/" + name}
	return &runner{
		binary: binary, dsn: u.String(), db: db, namespace: name,
		sessions: sqllock.New(mysqlnamed.New(), sqllock.WithNamespace(name)),
		leases:   sqllock.New(table.New(time.Hour), sqllock.WithNamespace(name)),
	}
}

func runOnPG(t *testing.T, binary string) *runner {
	t.Helper()
	s := postgres(t)
	db := pgLockTable(t, s)
	name := ask[string](t, db, "SELECT current_database()")
	user := fmt.Sprintf("run%d", rand.Uint32())
	if _, err := db.ExecContext(t.Context(), fmt.Sprintf("CREATE ROLE %s SUPERUSER LOGIN PASSWORD '%s'", user, runPassword)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP ROLE "+user); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.Path = url.UserPassword(user, runPassword), "/"+name
	return &runner{
		binary: binary, dsn: u.String(), db: db, pg: true, namespace: name,
		sessions: sqllock.New(pgadvisory.New(), sqllock.WithNamespace(name)),
		leases:   sqllock.New(pgtable.New(time.Hour), sqllock.WithNamespace(name)),
	}
}

func TestCommandRun(t *testing.T) {
	binary := sqllockBinary(t)
	onEach(t, func(t *testing.T, s *testdb.Server) { runOnMySQL(t, binary, s).all(t) })
}

func TestPGCommandRun(t *testing.T) { runOnPG(t, sqllockBinary(t)).all(t) }

// all runs the tests beside each other: most of their time they wait.
func (r *runner) all(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *runner){
		"once":                       runOnce,
		"busy":                       runBusy,
		"wait":                       runWait,
		"exit codes":                 runExitCodes,
		"signals":                    runSignals,
		"signal while it waits":      runSignalWaiting,
		"loss":                       runLoss,
		"loss, command ignores TERM": runLossIgnored,
		"loss found at the end":      runLossAtEnd,
		"ttl":                        runTTL,
		"keep alive":                 runKeepAlive,
		"min-hold":                   runMinHold,
		"killed":                     runKilled,
		"what is left of the group":  runGroup,
		"environment":                runEnvironment,
		"input and output":           runStreams,
		"list of processes":          runHidden,
		"terminal":                   runTerminal,
		"job control":                runJobControl,
		"documentation":              runDocumentation,
		"taken over":                 runTakeover,
		"no table":                   runNoTable,
		"unknown parameter":          runUnknownParameter,
		"the command's arguments":    runArguments,
		"stopped for too long":       runStoppedForLong,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, r)
		})
	}
}

// A proc is sqllock at work.
type proc struct {
	*exec.Cmd
	t              *testing.T
	stdout, stderr bytes.Buffer
	over           chan struct{}
}

// cmd is sqllock with args, not started.
func (r *runner) cmd(t *testing.T, args ...string) *proc {
	t.Helper()
	p := &proc{Cmd: exec.CommandContext(t.Context(), r.binary, args...), t: t, over: make(chan struct{})}
	p.Env = append(os.Environ(), "SQLLOCK_DSN="+r.dsn, "SQLLOCK_NAMESPACE="+r.namespace)
	p.Stdout, p.Stderr = &p.stdout, &p.stderr
	p.WaitDelay = 10 * time.Second
	return p
}

// start starts sqllock run --name NAME, with options and, after --, a command.
func (r *runner) start(t *testing.T, name string, args ...string) *proc {
	t.Helper()
	return r.cmd(t, append([]string{"run", "--name", name}, args...)...).begin()
}

func (p *proc) begin() *proc {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		defer close(p.over)
		_ = p.Wait() // the state tells
	}()
	p.t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.over
	})
	return p
}

// code waits for the end.
func (p *proc) code() int {
	p.t.Helper()
	select {
	case <-p.over:
		return p.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		p.t.Fatalf("sqllock %s has not ended", strings.Join(p.Args[1:], " "))
		return -1
	}
}

// wants waits for the end, and compares; it returns what was printed on stderr.
func (p *proc) wants(code int, texts ...string) string {
	p.t.Helper()
	got := p.code()
	errs := p.stderr.String()
	if got != code {
		p.t.Errorf("exit code %d, want %d", got, code)
	}
	for _, text := range texts {
		if !strings.Contains(errs, text) {
			p.t.Errorf("it does not say %q", text)
		}
	}
	if len(texts) == 0 && errs != "" {
		p.t.Errorf("it was to say nothing")
	}
	if strings.Contains(errs, "w/o?r") || strings.Contains(errs, "%2Fo") {
		p.t.Errorf("it shows the password")
	}
	if p.t.Failed() {
		p.t.Fatalf("sqllock %s\nprinted: %s\nsaid: %s", strings.Join(p.Args[1:], " "), p.stdout.String(), errs)
	}
	return errs
}

func (p *proc) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// soon waits until f reports true.
func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// file is a path, its content when it is there, and what scripts do with it.
type file string

func tempFile(t *testing.T, name string) file { return file(filepath.Join(t.TempDir(), name)) }

func (f file) text() string {
	b, _ := os.ReadFile(string(f)) // none is no text
	return string(b)
}

func (f file) has(text string) func() bool {
	return func() bool { return strings.Contains(f.text(), text) }
}

func (f file) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(string(f), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

// wait is a script that goes on when the file is there.
func (f file) wait() string { return fmt.Sprintf("while ! [ -e %s ]; do sleep 0.02; done; ", f) }

// add is a script that adds a line to the file.
func (f file) add(text string) string { return "echo \"" + text + "\" >> " + string(f) + "; " }

// pid is the number that is the file's text.
func (f file) pid(t *testing.T) int {
	t.Helper()
	soon(t, "a process id", f.has("\n"))
	pid, err := strconv.Atoi(strings.TrimSpace(f.text()))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// alive reports whether a process runs; one that has ended and was not waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return syscall.Kill(pid, 0) == nil && !errors.Is(err, os.ErrNotExist)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

// holder asks who holds name.
func (r *runner) holder(t *testing.T, locker *sqllock.Locker, name string) (sqllock.Holder, bool) {
	t.Helper()
	h, err := locker.Holder(t.Context(), r.db, name)
	if err != nil && !errors.Is(err, sqllock.ErrNotHeld) {
		t.Fatal(err)
	}
	return h, err == nil
}

// end ends the session that holds name.
func (r *runner) end(t *testing.T, locker *sqllock.Locker, name string) {
	t.Helper()
	h, held := r.holder(t, locker, name)
	if !held {
		t.Fatalf("%s is not held", name)
	}
	q := fmt.Sprintf("KILL %d", h.Session)
	if r.pg {
		q = fmt.Sprintf("SELECT pg_terminate_backend(%d)", h.Session)
	}
	if _, err := r.db.ExecContext(t.Context(), q); err != nil {
		t.Fatal(err)
	}
}

func TestCommandRunControl(t *testing.T) {
	if got := threeHosts(t, func(script string) *proc {
		p := &proc{Cmd: exec.CommandContext(t.Context(), "sh", "-c", script), t: t, over: make(chan struct{})}
		return p.begin()
	}, func(ran file, _ []*proc) bool { return strings.Count(ran.text(), "ran") == 3 }); got != "ran\nran\nran\n" {
		t.Errorf("without sqllock it ran %q, want three times", got)
	}
}

// threeHosts starts a job three times at once, and has it go on when ready reports true.
func threeHosts(t *testing.T, start func(script string) *proc, ready func(ran file, all []*proc) bool) string {
	t.Helper()
	ran, goOn := tempFile(t, "ran"), tempFile(t, "go")
	var all []*proc
	for range 3 {
		all = append(all, start(ran.add("ran")+goOn.wait()))
	}
	soon(t, "the jobs", func() bool { return ready(ran, all) })
	goOn.write(t, "")
	for _, p := range all {
		p.code()
	}
	return ran.text()
}

func runOnce(t *testing.T, r *runner) {
	for _, options := range [][]string{nil, {"--ttl", "1m"}} {
		got := threeHosts(t, func(script string) *proc {
			return r.start(t, "once", append(options, "--", "sh", "-c", script)...)
		}, func(ran file, all []*proc) bool {
			over := 0
			for _, p := range all {
				select {
				case <-p.over:
					if code := p.code(); code != 75 {
						t.Fatalf("exit code %d, want 75: %s", code, p.stderr.String())
					}
					over++
				default:
				}
			}
			return over == 2 && ran.text() != ""
		})
		if got != "ran\n" {
			t.Errorf("it ran %q, want once", got)
		}
	}
}

func runBusy(t *testing.T, r *runner) {
	for kind, options := range map[string][]string{"session": nil, "lease": {"--ttl", "1h"}} {
		name := "busy " + kind
		goOn, up := tempFile(t, "go"), tempFile(t, "up")
		p := r.start(t, name, append(options, "--", "sh", "-c", up.add("up")+goOn.wait())...)
		soon(t, "the command", up.has("up"))
		who := fmt.Sprintf("%s: the lock is held by ", name)
		said := r.start(t, name, append(options, "--", "true")...).wants(75, who, ", session ")
		if kind == "lease" {
			if host, _ := os.Hostname(); !strings.Contains(said, fmt.Sprintf("%s/%d sh, session ", host, p.Process.Pid)) {
				t.Errorf("it does not say who: %s", said)
			}
			if !regexp.MustCompile(`, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d, for another 1h0m\d+s unless`).MatchString(said) && !strings.Contains(said, "for another 59m") {
				t.Errorf("it does not say since when and how long: %s", said)
			}
		} else if r.pg && !strings.Contains(said, fmt.Sprintf("/%d sh, session ", p.Process.Pid)) {
			t.Errorf("it does not say who: %s", said)
		}
		if strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "sqllock: ") {
			t.Errorf("it is not one line of sqllock: %s", said)
		}
		r.start(t, name, append(options, "--skip-ok", "--", "true")...).wants(0, who)
		r.start(t, name, append(options, "--skip-ok", "--quiet", "--", "true")...).wants(0)
		r.start(t, name, append(options, "--quiet", "--", "true")...).wants(75)
		r.start(t, name, append(options, "--wait", "1s", "--", "true")...).wants(75, name+": after 1s of waiting: the lock is held by ")
		// The two kinds exclude each other.
		if kind == "session" {
			r.start(t, name, "--ttl", "1h", "--", "true").wants(75, who)
		} else {
			r.start(t, name, "--", "true").wants(75, who)
		}
		goOn.write(t, "")
		p.wants(0)
		r.start(t, name, append(options, "--", "true")...).wants(0)
	}
}

// waiting waits until a session waits for name.
func (r *runner) waiting(t *testing.T, name string) {
	t.Helper()
	q := fmt.Sprintf("SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User lock' AND info LIKE '%%%x%%'", r.namespace+":"+name)
	if r.pg {
		q = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND " +
			"(classid::bigint << 32 | objid::bigint) = hashtextextended('" + r.namespace + ":" + name + "', 0)"
	}
	soon(t, "a session that waits", func() bool { return ask[int](t, r.db, q) > 0 })
}

func runWait(t *testing.T, r *runner) {
	goOn, up, order := tempFile(t, "go"), tempFile(t, "up"), tempFile(t, "order")
	first := r.start(t, "wait", "--", "sh", "-c", up.add("up")+goOn.wait()+order.add("first"))
	soon(t, "the command", up.has("up"))
	second := r.start(t, "wait", "--wait", "1m", "--", "sh", "-c", order.add("second"))
	r.waiting(t, "wait")
	goOn.write(t, "")
	first.wants(0)
	second.wants(0)
	if got := order.text(); got != "first\nsecond\n" {
		t.Errorf("they ran in the order %q", got)
	}
}

func runExitCodes(t *testing.T, r *runner) {
	script, noInterpreter, plain := tempFile(t, "script"), tempFile(t, "interpreter"), tempFile(t, "plain")
	script.write(t, "exit 3\n")
	noInterpreter.write(t, "#!/no/such/thing\n")
	plain.write(t, "x")
	if err := os.Chmod(string(plain), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		command []string
		code    int
		texts   []string
	}{
		{[]string{"true"}, 0, nil},
		{[]string{"sh", "-c", "exit 7"}, 7, nil},
		{[]string{"sh", "-c", "exit 255"}, 255, nil},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, nil},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137, nil},
		{[]string{"no-such-program"}, 127, []string{`the command "no-such-program" is not in the PATH`}},
		{[]string{"/no/such/program"}, 127, []string{`the command "/no/such/program" does not exist`}},
		{[]string{"echo hello"}, 127, []string{`a whole command line is run by: sh -c`}},
		{[]string{string(plain)}, 126, []string{"can't be executed: permission denied"}},
		{[]string{t.TempDir()}, 126, []string{"can't be executed: is a directory"}},
		{[]string{string(script)}, 126, []string{"exec format error; a script begins with a line such as #!/bin/sh"}},
		{[]string{string(noInterpreter)}, 127, []string{"the program that its first line (#!) names does not exist"}},
	} {
		// Each has released the lock for the next one.
		r.start(t, "codes", append([]string{"--min-hold", "1ms", "--"}, c.command...)...).wants(c.code, c.texts...)
	}
}

func runSignals(t *testing.T, r *runner) {
	got := tempFile(t, "got")
	script := "exec 2>/dev/null; trap 'exit 3' TERM; " // the shell tells of its sleeps that end
	signals := map[string]syscall.Signal{
		"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT,
		"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "WINCH": syscall.SIGWINCH,
	}
	for name := range signals {
		script += fmt.Sprintf("trap '%s' %s; ", got.add(name), name)
	}
	heard := make(chan os.Signal, 1) // or these tests may have been told to ignore them, as by nohup, and sqllock with them
	signal.Notify(heard, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
	defer signal.Stop(heard)
	p := r.start(t, "signals", "--", "sh", "-c", script+got.add("up")+"while :; do sleep 0.02; done")
	soon(t, "the command", got.has("up"))
	for name, s := range signals {
		p.signal(s)
		soon(t, "SIG"+name+" in the command", got.has(name))
	}
	p.signal(syscall.SIGTERM)
	p.wants(3)

	// What sqllock was started to ignore, as by nohup, the command ignores, too.
	nohup := r.cmd(t)
	nohup.Cmd = exec.CommandContext(t.Context(), "sh", "-c", `trap '' HUP INT; exec "$0" run --name signals -- sh -c 'kill -HUP $$; kill -INT $$; echo alive'`, r.binary)
	nohup.Stdout, nohup.Stderr = &nohup.stdout, &nohup.stderr
	nohup.Env = append(os.Environ(), "SQLLOCK_DSN="+r.dsn, "SQLLOCK_NAMESPACE="+r.namespace)
	nohup.begin().wants(0)
	if got := nohup.stdout.String(); got != "alive\n" {
		t.Errorf("the command printed %q", got)
	}
}

func runSignalWaiting(t *testing.T, r *runner) {
	goOn, up, ran := tempFile(t, "go"), tempFile(t, "up"), tempFile(t, "ran")
	first := r.start(t, "signal", "--", "sh", "-c", up.add("up")+goOn.wait())
	soon(t, "the command", up.has("up"))
	second := r.start(t, "signal", "--wait", "1m", "--", "sh", "-c", ran.add("ran"))
	r.waiting(t, "signal")
	second.signal(syscall.SIGTERM)
	second.wants(143, "signal: ended by SIGTERM before the lock was held; the command was not started")
	goOn.write(t, "")
	first.wants(0)
	if ran.text() != "" {
		t.Error("the command has run")
	}
}

func runLoss(t *testing.T, r *runner) {
	for kind, options := range map[string][]string{"session": nil, "lease": {"--ttl", "1h"}} {
		name, got := "loss "+kind, tempFile(t, "got")
		locker := r.sessions
		if kind == "lease" {
			locker = r.leases
		}
		p := r.start(t, name, append(options, "--", "sh", "-c", "trap '"+got.add("TERM")+"exit 0' TERM; "+got.add("up")+"while :; do sleep 0.02; done")...)
		soon(t, "the command", got.has("up"))
		r.end(t, locker, name)
		p.wants(79, name+": the command was stopped, since the lock was lost: ")
		if !got.has("TERM")() {
			t.Error("the command got no SIGTERM")
		}
	}
}

func runLossIgnored(t *testing.T, r *runner) {
	up, pid, childPID := tempFile(t, "up"), tempFile(t, "pid"), tempFile(t, "child")
	// The command has a child, which ignores the signal as well.
	p := r.start(t, "ignored", "--grace", "100ms", "--", "sh", "-c",
		"trap '' TERM; "+pid.add("$$")+"(exec sh -c '"+childPID.add("$$")+"while :; do sleep 0.02; done') >/dev/null 2>&1 & "+up.add("up")+"while :; do sleep 0.02; done")
	soon(t, "the command", up.has("up"))
	a, b := pid.pid(t), childPID.pid(t)
	r.end(t, r.sessions, "ignored")
	p.wants(79, "the lock was lost")
	if alive(a) || alive(b) {
		t.Errorf("the command is alive: %t, its child: %t", alive(a), alive(b))
	}
}

// runLossAtEnd is a loss that the watch has no time to find, mostly.
func runLossAtEnd(t *testing.T, r *runner) {
	for kind, options := range map[string][]string{"plain": nil, "min-hold": {"--min-hold", "1h"}} {
		name, up, goOn := "end "+kind, tempFile(t, "up"), tempFile(t, "go")
		p := r.start(t, name, append(options, "--", "sh", "-c", "trap '' TERM; "+up.add("up")+goOn.wait())...)
		soon(t, "the command", up.has("up"))
		r.end(t, r.sessions, name)
		soon(t, "the end of the session", func() bool { _, held := r.holder(t, r.sessions, name); return !held })
		goOn.write(t, "")
		p.wants(79, name+": the command ", "the lock was lost")
	}
}

func runTTL(t *testing.T, r *runner) {
	pid, next := tempFile(t, "pid"), tempFile(t, "next")
	first := r.start(t, "ttl", "--ttl", "3s", "--grace", "500ms", "--", "sh", "-c", "trap '"+pid.add("TERM")+"' TERM; "+pid.add("$$")+"while :; do sleep 0.02; done")
	hung := pid.pid(t)
	// Whoever is granted the lock looks whether the one before is there.
	second := r.start(t, "ttl", "--ttl", "1m", "--wait", "1m", "--", "sh", "-c",
		fmt.Sprintf("kill -0 %d && %s", hung, next.add("overlap"))+next.add("ran"))
	first.wants(79, "ttl: the command was stopped, since the lease was ending: --ttl 3s was over")
	if code := second.code(); code != 0 {
		t.Errorf("exit code %d, want 0: %s", code, second.stderr.String())
	}
	if got := next.text(); got != "ran\n" {
		t.Errorf("the next one wrote %q, want ran", got)
	}
	if !pid.has("TERM")() {
		t.Error("the command got no SIGTERM")
	}
}

func runKeepAlive(t *testing.T, r *runner) {
	goOn, up := tempFile(t, "go"), tempFile(t, "up")
	p := r.start(t, "alive", "--ttl", "4s", "--grace", "0", "--keep-alive", "1h", "--", "sh", "-c", up.add("up")+goOn.wait())
	limited := r.start(t, "limited", "--ttl", "4s", "--grace", "0", "--keep-alive", "5s", "--", "sh", "-c", "while :; do sleep 0.02; done")
	soon(t, "the command", up.has("up"))
	first, _ := r.holder(t, r.leases, "alive")
	soon(t, "the end of the first lease", func() bool {
		h, held := r.holder(t, r.leases, "alive")
		if !held || h.Token != first.Token {
			t.Fatal("the lock is not held by the command any more")
		}
		return h.Expires.Add(-h.TimeLeft).After(first.Expires.Add(time.Second))
	})
	goOn.write(t, "")
	p.wants(0)
	limited.wants(79, "the lease was ending: --keep-alive 5s was over, or the lease could not be extended")
}

func runMinHold(t *testing.T, r *runner) {
	for kind, options := range map[string][]string{"session": {"--min-hold", "1h"}, "lease": {"--ttl", "2h", "--min-hold", "1h"}} {
		name, pid := "min "+kind, tempFile(t, "pid")
		p := r.start(t, name, append(options, "--", "sh", "-c", pid.add("$$")+"exit 5")...)
		ended := pid.pid(t)
		soon(t, "the end of the command", func() bool { return !alive(ended) })
		r.start(t, name, "--", "true").wants(75, "held by")
		p.signal(syscall.SIGTERM)
		p.wants(5)
		r.start(t, name, "--", "true").wants(0)
	}
	start := time.Now()
	r.start(t, "min", "--min-hold", "300ms", "--", "true").wants(0)
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("it held the lock for %s", took)
	}
}

func runKilled(t *testing.T, r *runner) {
	pid := tempFile(t, "pid")
	p := r.start(t, "killed", "--", "sh", "-c", pid.add("$$")+"while :; do sleep 0.02; done")
	command := pid.pid(t)
	p.signal(syscall.SIGKILL)
	soon(t, "the end of the command", func() bool { return !alive(command) })
	r.start(t, "killed", "--wait", "1m", "--", "true").wants(0)
}

func runGroup(t *testing.T, r *runner) {
	up, pid := tempFile(t, "up"), tempFile(t, "pid")
	child := "(exec sh -c '" + pid.add("$$") + "while :; do sleep 0.02; done') >/dev/null 2>&1 & "
	// A command that ends leaves a process behind.
	r.start(t, "group", "--", "sh", "-c", child+"while ! [ -e "+string(pid)+" ]; do sleep 0.02; done; exit 0").wants(0)
	left := pid.pid(t)
	if !alive(left) {
		t.Error("what the command has left behind was killed")
	}
	_ = syscall.Kill(left, syscall.SIGKILL)
	_ = os.Remove(string(pid))

	// One that is ended by a signal does not: the shell dies at once, its child would go on.
	slow := "(exec sh -c 'trap \"" + strings.ReplaceAll(up.add("TERM"), `"`, "") + "sleep 0.2; exit\" TERM; " + pid.add("$$") + "while :; do sleep 0.02; done') >/dev/null & "
	p := r.start(t, "group", "--", "sh", "-c", "exec 2>/dev/null; "+slow+"while :; do sleep 0.02; done")
	left = pid.pid(t)
	p.signal(syscall.SIGTERM)
	p.wants(143)
	if alive(left) {
		t.Error("the lock was released, and a process of the command runs")
	}
	if !up.has("TERM")() {
		t.Error("the child had no time to end by itself")
	}

	// The same where the signal is the command's alone, as that of the kernel short of memory.
	_ = os.Remove(string(pid))
	_ = os.Remove(string(up))
	leader := tempFile(t, "leader")
	p = r.start(t, "group", "--", "sh", "-c", "exec 2>/dev/null; "+slow+leader.add("$$")+"while :; do sleep 0.02; done")
	left = pid.pid(t)
	if err := syscall.Kill(leader.pid(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.wants(137)
	if alive(left) || !up.has("TERM")() {
		t.Errorf("what is left of the command runs: %t, and got SIGTERM: %t", alive(left), up.has("TERM")())
	}
}

func runEnvironment(t *testing.T, r *runner) {
	env := func(args ...string) map[string]string {
		t.Helper()
		p := r.cmd(t, append(args, "--", "env")...)
		p.Env = append(p.Env, "SQLLOCK_TOKEN=99", "SQLLOCK_NAME=outer")
		if len(args) > 0 && args[0] == "--dsn" {
			p.Env = append(p.Env, "SQLLOCK_DSN=")
		}
		p.begin().wants(0)
		if n := strings.Count(p.stdout.String(), "SQLLOCK_NAME="); n != 1 {
			t.Errorf("the name is there %d times", n)
		}
		all := make(map[string]string)
		for line := range strings.Lines(p.stdout.String()) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			all[key] = value
		}
		return all
	}
	e := env("run", "--name", "the job")
	if e["SQLLOCK_NAME"] != "the job" || e["SQLLOCK_KEY"] != r.namespace+":the job" || e["SQLLOCK_TOKEN"] != "" {
		t.Errorf("the environment has %v", e)
	}
	a, b := env("run", "--name", "the job", "--ttl", "1h")["SQLLOCK_TOKEN"], env("run", "--name", "the job", "--ttl", "1h")["SQLLOCK_TOKEN"]
	x, _ := strconv.ParseInt(a, 10, 64)
	if y, _ := strconv.ParseInt(b, 10, 64); x <= 0 || y <= x || a == "99" {
		t.Errorf("tokens %s and %s do not grow", a, b)
	}
	for key, value := range env("--dsn", r.dsn, "run", "--name", "the job") {
		if strings.Contains(value, r.dsn) || strings.HasPrefix(key, "SQLLOCK_DSN") && value != "" {
			t.Errorf("the command got %s", key)
		}
	}
}

func runStreams(t *testing.T, r *runner) {
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	p := r.cmd(t, "run", "--name", "streams", "--", "sh", "-c", "cat; echo -n err >&2; exit 4")
	p.Stdin = bytes.NewReader(data)
	p.begin()
	if code := p.code(); code != 4 {
		t.Errorf("exit code %d, want 4", code)
	}
	if !bytes.Equal(p.stdout.Bytes(), data) {
		t.Errorf("%d bytes became %d, or others", len(data), p.stdout.Len())
	}
	if got := p.stderr.String(); got != "err" {
		t.Errorf("stderr has %q, want err", got)
	}
}

func runHidden(t *testing.T, r *runner) {
	u, err := url.Parse(r.dsn)
	if err != nil {
		t.Fatal(err)
	}
	show := `ps -o args= -p $PPID; tr '\0' ' ' < /proc/$PPID/cmdline; tr '\0' '\n' < /proc/$PPID/environ`
	if _, err := exec.LookPath("ps"); err != nil {
		show = strings.TrimPrefix(show, "ps -o args= -p $PPID; ")
	}
	for _, dsn := range [][]string{{"--dsn", r.dsn}, {"--dsn=" + r.dsn}, {"-dsn", r.dsn}} {
		p := r.cmd(t, append(append([]string{}, dsn...), "run", "--name", "hidden", "--", "sh", "-c", show, "--dsn", "of the command")...)
		p.Env = append(p.Env, "SQLLOCK_DSN=")
		p.begin().wants(0)
		got := p.stdout.String()
		if !strings.Contains(got, "run --name hidden -- sh -c") || !strings.Contains(got, "--dsn of the command") {
			t.Errorf("the process looks like %s", got)
		}
		if strings.Contains(got, u.Host) || strings.Contains(got, u.User.Username()) || strings.Contains(got, "%2Fo") {
			t.Errorf("the list of processes has the DSN: %s", got)
		}
	}
	// A flag may follow the arguments of the other commands.
	t.Run("of an operator", func(t *testing.T) { runHiddenOperator(t, r, u.Host) })
	p := r.cmd(t, "run", "--dsn", r.dsn, "--name", "hidden", "sh", "-c", show, "--dsn", "of the command")
	p.begin().wants(0)
	if got := p.stdout.String(); !strings.Contains(got, "--dsn of the command") || strings.Contains(strings.Split(got, "\n")[0], u.Host) {
		t.Errorf("without --, the process looks like %s", got)
	}
}

func runHiddenOperator(t *testing.T, r *runner, host string) {
	c := conn(t, r.db)
	lock, err := r.sessions.TryLock(t.Context(), c, "hidden too")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release(context.Background()) //nolint:errcheck // the session ends
	for _, args := range [][]string{
		{"wait", "hidden too", "--dsn=" + r.dsn},
		{"wait", "hidden too", "--dsn", r.dsn},
		{"list", "--watch", "hidden too", "another", "and another", "--dsn", r.dsn},
	} {
		p := r.cmd(t, args...)
		p.Env = append(p.Env, "SQLLOCK_DSN=")
		p.Stdout, p.Stderr = nil, nil
		pipe := p.StdoutPipe
		if args[0] == "wait" {
			pipe = p.StderrPipe
		}
		out, err := pipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		said, _ := bufio.NewReader(out).ReadString('\n') // it is at work
		got, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Process.Pid))
		_ = p.Process.Kill()
		_ = p.Wait()
		if errors.Is(err, os.ErrNotExist) {
			t.Skip("needs /proc")
		}
		if err != nil || said == "" || strings.Contains(string(got), host) || !strings.Contains(string(got), "hidden too") {
			t.Errorf("sqllock %s: it said %q; the list of processes has %q, %v", args[0], said, got, err)
		}
	}
}

func runArguments(t *testing.T, r *runner) {
	for _, command := range [][]string{
		{"--", "printf", "%s\n", "-v", "--help", "run", "--", "", " x ", "--name=y"},
		{"printf", "%s\n", "-v", "--help", "run", "--", "", " x ", "--name=y"},
	} {
		p := r.start(t, "arguments", command...)
		p.wants(0)
		if got := p.stdout.String(); got != "-v\n--help\nrun\n--\n\n x \n--name=y\n" {
			t.Errorf("%q: the command got %q", command, got)
		}
	}
	help := tempFile(t, "help") // a program by the name of a command of sqllock
	help.write(t, "#!/bin/sh\necho mine $1\n")
	p := r.cmd(t, "run", "--name", "arguments", "--", "help", "me")
	p.Env = append(p.Env, "PATH="+filepath.Dir(string(help))+":"+os.Getenv("PATH"))
	p.begin().wants(0)
	if got := p.stdout.String(); got != "mine me\n" {
		t.Errorf("the command printed %q", got)
	}
}

// A tty is a terminal that a command is started on, and what it shows.
type tty struct {
	*os.File
	mu   sync.Mutex
	text []byte
}

// onTerminal starts a command with a terminal of its own.
func onTerminal(t *testing.T, p *proc) *tty {
	t.Helper()
	p.Stdin, p.Stdout, p.Stderr = nil, nil, nil
	f, err := pty.Start(p.Cmd)
	if err != nil {
		t.Fatal(err)
	}
	term := &tty{File: f}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 1024)
		for r := bufio.NewReader(f); ; {
			n, err := r.Read(b)
			term.mu.Lock()
			term.text = append(term.text, b[:n]...)
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(p.over)
		_ = p.Wait() // the state tells
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.over
		_ = f.Close()
		select {
		case <-read:
		case <-time.After(5 * time.Second):
			t.Error("something is left that has the terminal")
		}
		if t.Failed() {
			t.Logf("the terminal showed:\n%s", term.shown())
		}
	})
	return term
}

func (term *tty) shown() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return string(term.text)
}

func (term *tty) types(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(term, text); err != nil {
		t.Fatal(err)
	}
}

func (term *tty) shows(t *testing.T, text string) {
	t.Helper()
	soon(t, "the terminal shows "+text, func() bool { return strings.Contains(term.shown(), text) })
}

func runTerminal(t *testing.T, r *runner) {
	// The command reads, and gets Ctrl-C; what comes after sqllock reads, too.
	p := r.cmd(t)
	p.Cmd = exec.CommandContext(t.Context(), "sh", "-c", `"$0" run --name terminal -- sh -c 'set -- $(cat /proc/$$/stat); [ $5 = $8 ] && echo foreground; echo up; read x; echo "got $x"; trap "echo INT; exit 5" INT; echo ready; while :; do sleep 0.02; done'; echo "code $?"; read y; echo "then $y"`, r.binary)
	p.Env = append(os.Environ(), "SQLLOCK_DSN="+r.dsn, "SQLLOCK_NAMESPACE="+r.namespace)
	term := onTerminal(t, p)
	term.shows(t, "up")
	if !strings.Contains(term.shown(), "foreground\r\n") { // wget, for one, looks, and writes elsewhere
		t.Error("the command is not in the foreground")
	}
	term.types(t, "hello\n")
	term.shows(t, "got hello")
	term.shows(t, "ready")
	term.types(t, "\x03")
	term.shows(t, "INT\r\n")
	term.shows(t, "code 5")
	term.types(t, "more\n")
	term.shows(t, "then more")
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}

	// With its output in a pipe the command has not got the terminal, and can have it.
	p = r.cmd(t)
	p.Cmd = exec.CommandContext(t.Context(), "sh", "-c", `"$0" run --name terminal -- sh -c 'echo up; read x; echo "got $x"' | cat; read y; echo "then $y"`, r.binary)
	p.Env = append(os.Environ(), "SQLLOCK_DSN="+r.dsn, "SQLLOCK_NAMESPACE="+r.namespace)
	term = onTerminal(t, p)
	term.shows(t, "up")
	term.types(t, "hello\n")
	term.shows(t, "got hello")
	term.types(t, "more\n")
	term.shows(t, "then more")
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func runJobControl(t *testing.T, r *runner) {
	p := r.cmd(t)
	p.Cmd = exec.CommandContext(t.Context(), "bash", "--norc", "--noprofile", "-i")
	p.Env = append(os.Environ(), "SQLLOCK_DSN="+r.dsn, "SQLLOCK_NAMESPACE="+r.namespace, "PS1=$ ", "B="+r.binary, "TERM=dumb")
	term := onTerminal(t, p)
	term.types(t, "\"$B\" run --name jobs -- sh -c 'echo is \"\"up; read x; echo got \"\"$x; while :; do echo ti\"\"ck; sleep 0.01; done'\n")
	term.shows(t, "is up")
	term.types(t, "\x1a") // Ctrl-Z
	term.shows(t, "Stopped")
	term.types(t, "\"$B\" run --name jobs -- true; echo code \"\"$?\n") // the lock is still held
	term.shows(t, "code 75")
	term.types(t, "fg\n")
	term.shows(t, "\"$B\" run --name jobs") // which bash repeats
	term.types(t, "hello\n")
	term.shows(t, "tick")
	term.types(t, "\x1a")
	soon(t, "stopped again", func() bool { return strings.Count(term.shown(), "Stopped") == 2 })

	// It is stopped, and its lock is lost: the command is not to go on.
	ticks := strings.Count(term.shown(), "tick")
	r.end(t, r.sessions, "jobs")
	term.types(t, "fg\n")
	term.shows(t, "the lock was lost")
	term.types(t, "echo code \"\"$?\n")
	term.shows(t, "code 79")
	term.types(t, "exit\n")
	p.code()
	if n := strings.Count(term.shown(), "tick"); n != ticks || n == 0 {
		t.Errorf("the command said tick %d times, and %d times without the lock", ticks, n-ticks)
	}
}

// runDocumentation runs what docs/command.md and the manual show, with programs that do
// nothing in the place of those of the examples.
func runDocumentation(t *testing.T, r *runner) {
	text, err := os.ReadFile("../docs/command.md")
	if err != nil {
		t.Fatal(err)
	}
	manual := r.cmd(t, "help", "run")
	manual.begin().wants(0)
	dir, ran := t.TempDir(), tempFile(t, "ran")
	for _, name := range []string{"php", "import", "migrate"} {
		file(filepath.Join(dir, name)).write(t, "#!/bin/sh\n"+ran.add(name+" $*"))
	}
	if err := os.Symlink(r.binary, filepath.Join(dir, "sqllock")); err != nil {
		t.Fatal(err)
	}
	var want string
	shell := regexp.MustCompile(`(?m)^.*?\bsqllock (run .* -- .*)$`)
	list := regexp.MustCompile(`(?m)^command: \["sqllock", "run", (.*)\]$`)
	n := 0
	for _, m := range append(shell.FindAllStringSubmatch(string(text)+manual.stdout.String(), -1), list.FindAllStringSubmatch(string(text), -1)...) {
		line := m[1]
		if strings.ContainsAny(line, "…|[") { // in a sentence, or the synopsis
			continue
		}
		if strings.HasPrefix(line, `"`) {
			line = "run " + strings.ReplaceAll(line, `", "`, `" "`)
		}
		_, command, _ := strings.Cut(strings.ReplaceAll(line, `"`, ""), " -- ")
		name, args, _ := strings.Cut(strings.TrimPrefix(command, "./"), " ")
		want += name + " " + args + "\n"
		p := r.cmd(t)
		p.Cmd = exec.CommandContext(t.Context(), "sh", "-c", "sqllock "+strings.ReplaceAll(line, "--min-hold 30s", "--min-hold 30ms"))
		p.Stdout, p.Stderr = &p.stdout, &p.stderr
		p.Dir = dir
		p.Env = append(os.Environ(), "SQLLOCK_DSN="+r.dsn, "SQLLOCK_NAMESPACE="+r.namespace, "PATH="+dir+":"+os.Getenv("PATH"))
		p.begin().wants(0)
		n++
	}
	if got := ran.text(); n < 9 || got != want {
		t.Errorf("%d commands ran\n%swant\n%s", n, got, want)
	}
}

// runStoppedForLong is sqllock stopped, with its command, beyond the end of the lease.
func runStoppedForLong(t *testing.T, r *runner) {
	got := tempFile(t, "got")
	p := r.start(t, "long", "--ttl", "6s", "--grace", "2s", "--", "sh", "-c", "exec 2>/dev/null; trap 'sleep 1; "+got.add("late")+"exit' TERM; "+got.add("up")+"while :; do sleep 0.02; done")
	soon(t, "the command", got.has("up"))
	p.signal(syscall.SIGSTOP)
	r.start(t, "long", "--ttl", "1m", "--wait", "1m", "--", "true").wants(0) // has ended its session
	p.signal(syscall.SIGCONT)
	p.wants(79, "long: the command was stopped, since ")
	if got.has("late")() {
		t.Error("the command had time, though its lease was over")
	}
}

func runTakeover(t *testing.T, r *runner) {
	up := tempFile(t, "up")
	p := r.start(t, "takeover", "--ttl", "1h", "--", "sh", "-c", up.add("up")+"while :; do sleep 0.02; done")
	soon(t, "the command", up.has("up"))
	p.signal(syscall.SIGKILL)
	p.code()
	said := r.start(t, "takeover", "--ttl", "1h", "--wait", "1m", "--verbose", "--", "true").
		wants(0, "takeover: taken over what was left by ", "takeover: acquired, token ", "takeover: released after ")
	if !strings.Contains(said, fmt.Sprintf("/%d sh, session ", p.Process.Pid)) {
		t.Errorf("it does not say who: %s", said)
	}
}

func runNoTable(t *testing.T, r *runner) {
	r.start(t, "none", "--table", "no_such_table", "--ttl", "1h", "--", "true").wants(69, "no_such_table", "sqllock migrate up makes the table")
	r.start(t, "none", "--table", "no such table", "--ttl", "1h", "--", "true").wants(64, "--table", "letters, digits")
	if r.pg {
		return
	}
	u, err := url.Parse(r.dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/"
	r.start(t, "none", "--dsn", u.String(), "--", "true").wants(0)
	r.start(t, "none", "--dsn", u.String(), "--ttl", "1h", "--", "true").wants(69, "no database is selected")
	r.start(t, "none", "--dsn", u.String(), "--table", r.namespace+".shared_locks", "--ttl", "1h", "--", "true").wants(0)
}

func runUnknownParameter(t *testing.T, r *runner) {
	r.start(t, "parameter", "--dsn", r.withParameter("no_such_thing=1"), "--", "true").
		wants(64, "the DSN has a parameter that neither the driver nor ", "no_such_thing")
	u, err := url.Parse(r.dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(u.User.Username(), "wrong/o?r")
	r.start(t, "parameter", "--dsn", u.String(), "--", "true").wants(map[bool]int{false: 69, true: 0}[r.pg], map[bool][]string{false: {"can't be reached", "Access denied"}}[r.pg]...)
}

func (r *runner) withParameter(p string) string {
	if strings.Contains(r.dsn, "?") {
		return r.dsn + "&" + p
	}
	return r.dsn + "?" + p
}
