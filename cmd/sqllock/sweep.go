package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"
)

func sweepCommand() *cli.Command {
	return &cli.Command{
		Name:  "sweep",
		Usage: "remove what dead holders have left in the table of leases",
		Description: "Locks work without it: whoever asks for a name takes over what a dead holder has left. It is for names that\n" +
			"nobody asks for any more. It ends nobody. A row that a PHP process has made and not yet acquired by stays until its\n" +
			"TTL is over, though --dry-run lists it.",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "list what nobody holds, and remove nothing"},
		},
		OnUsageError: onUsageError,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			s, err := open(ctx, cmd, "sqllock sweep")
			if err != nil {
				return err
			}
			defer s.close()
			if cmd.Bool("dry-run") {
				return s.sweepDry(ctx, cmd)
			}
			n, err := s.leases.Sweep(ctx, s.db)
			switch {
			case err != nil:
				return advise(err)
			case cmd.Bool("json"):
				return printJSON(cmd.Root().Writer, map[string]int64{"removed": n})
			}
			fmt.Fprintf(cmd.Root().Writer, "Removed %d.\n", n)
			return nil
		},
	}
}

func (s *server) sweepDry(ctx context.Context, cmd *cli.Command) error {
	now, err := s.now(ctx)
	if err != nil {
		return err
	}
	all, err := s.allLeases(ctx)
	if err != nil {
		return advise(err)
	}
	seen := &sight{}
	for _, h := range all {
		if !h.Alive {
			seen.locks = append(seen.locks, held{h, lease, now})
		}
	}
	seen.sort()
	w := cmd.Root().Writer
	switch {
	case cmd.Bool("json"):
		return printJSON(w, allJSON(seen.locks))
	case len(seen.locks) == 0:
		fmt.Fprintln(w, "There is nothing to remove.")
		return nil
	}
	return s.show(cmd, seen)
}
