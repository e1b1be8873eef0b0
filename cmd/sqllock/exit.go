package main

import (
	"context"
	"errors"
	"fmt"

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
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
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

// onUsageError gives what the parser of flags found its exit code.
func onUsageError(_ context.Context, cmd *cli.Command, err error, _ bool) error {
	return usage("%w; see %s --help", err, cmd.FullName())
}
