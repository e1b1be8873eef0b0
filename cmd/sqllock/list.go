package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name:      "list",
		Usage:     "list who holds which lock, the oldest first, or tell of some by name",
		ArgsUsage: "[NAME...]",
		Description: "Without a NAME it lists the leases of the table, also those that dead holders have left, and the locks of\n" +
			"sessions as far as the server shows them: MySQL in lower case, MariaDB if performance_schema is on, PostgreSQL\n" +
			"by number unless there is a lease of that name. What can't be seen is said below the table. The namespace is not\n" +
			"heeded then; keys are those of the server. With NAMEs it asks for these, which works everywhere.",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "go on until Ctrl-C; with --json, a line for each look"},
			&cli.DurationFlag{Name: "interval", Value: 2 * time.Second, Usage: "how long it is from look to look with --watch"},
		},
		OnUsageError: onUsageError,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Duration("interval") <= 0 {
				return usage("--interval has to be more than 0, and is %v", cmd.Duration("interval"))
			}
			s, err := open(ctx, cmd, "sqllock list")
			if err != nil {
				return err
			}
			defer s.close()
			keys := make([]string, cmd.Args().Len())
			for i, name := range cmd.Args().Slice() {
				if keys[i], err = sqllock.Key(s.namespace, name); err != nil {
					return err
				}
			}
			if cmd.Bool("watch") {
				return s.watch(ctx, cmd, keys)
			}
			seen, err := s.see(ctx, keys)
			if err != nil {
				return err
			}
			return s.show(cmd, seen)
		},
	}
}

// see is list, or look for each of keys.
func (s *server) see(ctx context.Context, keys []string) (*sight, error) {
	if len(keys) == 0 {
		return s.list(ctx)
	}
	all := &sight{}
	for _, key := range keys {
		one, err := s.look(ctx, key)
		if err != nil {
			return nil, err
		}
		all.locks = append(all.locks, one.locks...)
		for _, note := range one.notes {
			if !slices.Contains(all.notes, note) {
				all.notes = append(all.notes, note)
			}
		}
	}
	all.sort()
	return all, nil
}

// list tells of all locks that can be seen. PostgreSQL knows locks of sessions by number:
// those of leases are told by name, and those of names.
func (s *server) list(ctx context.Context, names ...string) (*sight, error) {
	now, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	seen := &sight{}
	var blind error
	leases, err := s.allLeases(ctx)
	switch {
	case errors.Is(err, sqllock.ErrNoTable):
		seen.notes = append(seen.notes, "There are no leases to be seen: there is no usable table that this user may read (sqllock doctor says why, sqllock migrate up makes one).")
	case err != nil:
		blind = err
		seen.notes = append(seen.notes, fmt.Sprintf("Leases can't be seen: %v.", short(err)))
	}
	for _, h := range leases {
		seen.locks = append(seen.locks, held{h, lease, now})
		names = append(names, h.Key)
	}
	sessions, note, err := s.ofSessions(ctx, names)
	if err != nil {
		return nil, err
	}
	for _, h := range sessions {
		seen.add(held{h, ofSession, now})
	}
	if blind != nil && note != "" && len(sessions) == 0 { // an empty list would look like locks that are free
		return nil, fmt.Errorf("neither leases nor locks of sessions can be listed, but one by its name, by sqllock who NAME: %w", blind)
	}
	if note != "" {
		seen.notes = append(seen.notes, note)
	}
	seen.sort()
	return seen, nil
}

// numbers is how the key of a lock looks whose name the server does not know.
const numbers = "number "

// ofSessions lists the locks of sessions, doorbells of leases among them.
func (s *server) ofSessions(ctx context.Context, names []string) (all []sqllock.Holder, note string, err error) {
	err = answered(ctx, func(ctx context.Context) error {
		all, note, err = s.ofSessionsNow(ctx, names)
		return err
	})
	return all, note, err
}

func (s *server) ofSessionsNow(ctx context.Context, names []string) (all []sqllock.Holder, note string, err error) {
	switch b := s.sessions.(type) {
	case *mysqlnamed.Backend:
		all, err = b.List(ctx, s.db)
		if errors.Is(err, sqllock.ErrUnsupported) || errors.Is(err, sqllock.ErrPermission) {
			return nil, fmt.Sprintf("Locks of sessions can't be listed: %v. sqllock who NAME tells of one.", short(errors.Unwrap(err))), nil
		}
	case *pgadvisory.Backend:
		all, err = b.List(ctx, s.db, names...)
		for i := range all {
			if !slices.Contains(names, all[i].Key) {
				all[i].Key = numbers + all[i].Key
				note = "PostgreSQL knows locks of sessions by number only: sqllock list NAME... finds those that have a name of yours."
			}
		}
	}
	return all, note, err
}

// sort puts the oldest first, and what has no age last.
func (s *sight) sort() {
	slices.SortStableFunc(s.locks, func(a, b held) int {
		if a.Since.IsZero() != b.Since.IsZero() {
			if a.Since.IsZero() {
				return 1
			}
			return -1
		}
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Key, b.Key), cmp.Compare(a.Session, b.Session))
	})
}

// show prints what is seen, once.
func (s *server) show(cmd *cli.Command, seen *sight) error {
	w := cmd.Root().Writer
	if cmd.Bool("json") {
		printNotes(cmd.Root().ErrWriter, seen.notes)
		return printJSON(w, allJSON(seen.locks))
	}
	if len(seen.locks) == 0 {
		fmt.Fprintln(w, "No lock is held, as far as can be seen.")
	} else if err := printTable(w, []string{"LOCK", "KIND", "ALIVE", "SINCE", "LEFT", "SESSION", "USER", "PROCESS", "STATE"}, lines(seen.locks)); err != nil {
		return err
	}
	printNotes(w, seen.notes)
	return nil
}

// lines are the locks as rows of a table. SINCE is when a lease was granted or last
// extended, or since when the session of another lock has been in its state.
func lines(locks []held) [][]string {
	rows := make([][]string, len(locks))
	for i, h := range locks {
		alive, since, left := "yes", "", ""
		if !h.Alive {
			alive = "dead"
		}
		if age, ok := h.age(); ok {
			since = span(age)
		}
		if !h.Expires.IsZero() {
			left = span(h.TimeLeft)
		}
		rows[i] = []string{h.Key, h.kind, alive, since, left, fmt.Sprint(h.Session), h.who(), h.Process, h.State}
	}
	return rows
}

// watch shows again and again what there is to see, until ctx ends, which is no error. A
// server that has answered once may be away for a while.
func (s *server) watch(ctx context.Context, cmd *cli.Command, keys []string) error {
	w := cmd.Root().Writer
	tick := time.NewTicker(cmd.Duration("interval"))
	defer tick.Stop()
	for first := true; ; first = false {
		seen, err := s.see(ctx, keys)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			fmt.Fprintln(cmd.Root().ErrWriter, "sqllock:", short(err))
		case cmd.Bool("json"):
			if err := printLine(w, allJSON(seen.locks)); err != nil {
				return err
			}
		default:
			if isTerminal(w) {
				fmt.Fprint(w, "\x1b[H\x1b[2J") // home, and clear
			} else if !first {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "%s, each %v, until Ctrl-C\n", time.Now().Format(time.TimeOnly), cmd.Duration("interval"))
			if err := s.show(cmd, seen); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
