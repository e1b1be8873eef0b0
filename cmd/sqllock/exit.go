package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/sqllock"
)

// The exit codes. Those of a command that was run are its own.
const (
	exitNo          = 1   // doctor, who, break: nobody has it; a backend does not work
	exitUsage       = 64  // the command line, a file or the environment is wrong
	exitUnavailable = 69  // the server can't be reached, or refuses
	exitBusy        = 75  // another one holds the lock
	exitLost        = 79  // the lock was lost while the command ran; it has been stopped
	exitNotRunnable = 126 // the command can't be executed
	exitNotFound    = 127 // the command was not found
	exitSignal      = 128 // and the signal that ended the command
)

// An exitError is an error that comes with an exit code. Without an error it is silent.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usage is an error about what the user has typed or set.
func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// exitCode returns the code for what main got.
func exitCode(err error) int {
	var e *exitError
	var c cli.ExitCoder
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &c): // of the library: it found no such topic of help
		return exitUsage
	case errors.Is(err, sqllock.ErrInvalidName):
		return exitUsage
	case errors.Is(err, sqllock.ErrBusy):
		return exitBusy
	case errors.Is(err, sqllock.ErrLost):
		return exitLost
	case errors.Is(err, context.Canceled):
		return exitSignal + 2
	}
	return exitUnavailable
}

// explain returns what is printed of err: one line, or nothing.
func explain(err error) string {
	var e *exitError
	if err == nil || errors.As(err, &e) && e.err == nil {
		return ""
	}
	text := strings.ReplaceAll(err.Error(), "sqllock: ", "")
	if c := cli.ExitCoder(nil); e == nil && errors.As(err, &c) { // of the library: it found no such topic of help
		text = withoutDSNs(text)
	}
	if errors.Is(err, sqllock.ErrNoTable) && !strings.Contains(text, "sqllock migrate") {
		text += "; on the command line, sqllock migrate up makes the table"
	}
	return oneLine(text) // pgx tells of each address on a line
}

// A DSN is an argument where none belongs if the flag before it has lost its value: in
// --namespace $NAMESPACE --dsn $DSN, for one, when the first variable is empty.
const aDSN = "(a DSN, which is not shown)"

var quotation = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'`)

// withoutDSNs is an error of the library, which quotes arguments, without those.
func withoutDSNs(text string) string { return quotation.ReplaceAllStringFunc(text, shown) }

// shown is an argument as an error may show it.
func shown(arg string) string {
	if user, _, at := strings.Cut(arg, "@"); at && strings.Contains(user, ":") {
		return aDSN
	}
	return arg
}

// oneLine makes one line of text, without what a terminal might take for its own: names
// and holders are what others have chosen.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, strings.Join(strings.Fields(text), " "))
}

// onUsageError makes what the parser of flags found one line, with an exit code.
func onUsageError(_ context.Context, cmd *cli.Command, err error, _ bool) error {
	text := withoutDSNs(err.Error())
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		name = strings.TrimLeft(name, "-")
		text = fmt.Sprintf("there is no flag --%s", name)
		flags := cmd.Flags
		for _, c := range cmd.Lineage() {
			flags = append(flags, c.Flags...)
		}
		if like := cli.SuggestFlag(flags, name, false); similar(like, name) {
			text += fmt.Sprintf("; did you mean %s?", like)
		}
	} else if name, ok := strings.CutPrefix(text, "flag needs an argument: "); ok {
		text = fmt.Sprintf("--%s needs a value", strings.TrimLeft(name, "-"))
	} else {
		text = strings.ReplaceAll(text, "for flag -", "for --")
		if strings.Contains(text, "duration") {
			text += "; a duration has a unit, as in 30s, 10m or 1h30m"
		}
	}
	return usage("%s; see %s --help", text, cmd.FullName())
}
