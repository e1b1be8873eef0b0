package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v3"
)

func main() {
	ctx := untilSignal(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := app(os.Stdin, os.Stdout, os.Stderr).Run(ctx, os.Args)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if text := explain(err); text != "" {
		fmt.Fprintln(os.Stderr, "sqllock:", text)
	}
	os.Exit(exitCode(err))
}

// untilSignal returns a context that ends with one of signals, and the code to exit
// with as its cause. A second one ends the process at once. Who has started us may
// have us ignore signals, as nohup does, and goes on having that.
func untilSignal(ctx context.Context, signals ...os.Signal) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	c := make(chan os.Signal, 1)
	listen(c, signals...)
	go func() {
		s := <-c
		signal.Stop(c)
		cancel(ended(s))
	}()
	return ctx
}

// listen is signal.Notify but for signals that are ignored.
func listen(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// ended is the error for a signal that ended us.
func ended(s os.Signal) *exitError {
	return &exitError{exitSignal + signalNumber(s), fmt.Errorf("ended by %s", signalName(s))}
}

// app is the whole command line.
func app(stdin io.Reader, stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:        "sqllock",
		Usage:       "locks in MySQL, MariaDB and PostgreSQL, for cron and for operators",
		Description: rootManual,
		Version:     version(),
		Flags:       connectFlags(),
		Commands: slices.Concat(
			in("for jobs", runCommand(), waitCommand()),
			in("for operators", listCommand(), whoCommand(), breakCommand(), sweepCommand()),
			in(setup, migrateCommand(), doctorCommand(), benchCommand()),
		),
		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: configureCompletion,
		Action:                          noCommand,
		ExitErrHandler:                  func(context.Context, *cli.Command, error) {}, // main does that
		Reader:                          stdin, Writer: stdout, ErrWriter: stderr,
	}
	_ = root.Walk(func(c *cli.Command) error { // the library does not hand these on
		if c.OnUsageError == nil {
			c.OnUsageError = onUsageError
		}
		if len(c.Commands) == 0 {
			c.HideHelpCommand = true // or "help" would be no argument
		}
		return nil
	})
	printManuals()
	return root
}

const setup = "to set it up"

// in puts commands into a category of the help.
func in(category string, all ...*cli.Command) []*cli.Command {
	for _, c := range all {
		c.Category = category
	}
	return all
}

// noCommand is what sqllock does without a command, or with one that there is not.
func noCommand(_ context.Context, cmd *cli.Command) error {
	name := cmd.Args().First()
	if name == "" {
		return usage("a command is missing; sqllock help lists them")
	}
	var also string
	if like := cli.SuggestCommand(cmd.Commands, name); similar(like, name) {
		also = fmt.Sprintf("; did you mean %s?", like)
	}
	return usage("there is no command %s%s; sqllock help lists them", shown(name), also)
}

// similar says whether a suggestion is worth making: the library makes one in any case.
func similar(suggestion, name string) bool {
	suggestion = strings.TrimLeft(suggestion, "-")
	return suggestion != "" && name != "" && suggestion[0] == name[0]
}

// version is that of the module, as the build knows it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
