package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v3"
)

func main() {
	hideDSN()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := app(os.Stdin, os.Stdout, os.Stderr).Run(ctx, os.Args)
	stop()
	var e *exitError
	if err != nil && (!errors.As(err, &e) || e.err != nil) {
		fmt.Fprintln(os.Stderr, "sqllock:", strings.ReplaceAll(err.Error(), "sqllock: ", ""))
	}
	os.Exit(exitCode(err))
}

// app is the whole command line.
func app(stdin io.Reader, stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:  "sqllock",
		Usage: "locks in MySQL, MariaDB and PostgreSQL, for cron and for operators",
		Flags: connectFlags(),
		Commands: []*cli.Command{
			runCommand(), listCommand(), whoCommand(), waitCommand(), breakCommand(),
			sweepCommand(), migrateCommand(), doctorCommand(), benchCommand(),
		},
		EnableShellCompletion: true,
		Suggest:               true,
		OnUsageError:          onUsageError,
		ExitErrHandler:        func(context.Context, *cli.Command, error) {}, // main does that
		Reader:                stdin, Writer: stdout, ErrWriter: stderr,
	}
	return root
}
