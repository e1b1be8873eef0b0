package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/sqllock"
)

// waitPause is between two looks. It is short for a person who waits, and nothing for a
// server.
const waitPause = 250 * time.Millisecond

func waitCommand() *cli.Command {
	return &cli.Command{
		Name:      "wait",
		Usage:     "wait until a lock is free",
		ArgsUsage: "NAME",
		Description: "It looks four times a second, and takes no part: it never has the lock, not for a moment, it is in nobody's\n" +
			"way, and it ends no holder whose TTL is over. So a lock that goes from one holder to the next at once may never be\n" +
			"seen free, and a free one may be taken again when this returns; sqllock run is for what must not run then.\n" +
			"The exit code is 0 when it was seen free, and 75 after --timeout.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "timeout", Usage: "how long to wait at most; 0s looks once (default: for ever)"},
		},
		OnUsageError: onUsageError,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			name, err := oneName(cmd)
			if err != nil {
				return err
			}
			if cmd.Duration("timeout") < 0 {
				return usage("--timeout has to be 0 or more, and is %v", cmd.Duration("timeout"))
			}
			s, err := open(ctx, cmd, "sqllock wait")
			if err != nil {
				return err
			}
			defer s.close()
			key, err := sqllock.Key(s.namespace, name)
			if err != nil {
				return err
			}
			return s.wait(ctx, cmd, name, key)
		},
	}
}

func (s *server) wait(ctx context.Context, cmd *cli.Command, name, key string) error {
	begun := time.Now()
	tick := time.NewTicker(waitPause)
	defer tick.Stop()
	var last int64 // whom it was said to wait for
	for {
		seen, err := s.look(ctx, key)
		if err != nil {
			return err
		}
		living, _ := seen.living()
		switch timeout := cmd.Duration("timeout"); {
		case len(living) == 0:
			return nil
		case cmd.IsSet("timeout") && time.Since(begun) >= timeout:
			return &exitError{exitBusy, fmt.Errorf("%s is held by %s, and was so for the %v of --timeout; %s has more",
				printable(key), living[0].brief(), timeout, s.command("who", name))}
		case living[0].Session != last:
			last = living[0].Session
			fmt.Fprintf(cmd.Root().ErrWriter, "sqllock: waiting for %s, held by %s\n", printable(key), living[0].brief())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
