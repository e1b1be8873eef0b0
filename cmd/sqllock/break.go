package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/sqllock"
)

func breakCommand() *cli.Command {
	return &cli.Command{
		Name:      "break",
		Usage:     "end the session that holds a lock, after asking",
		ArgsUsage: "NAME",
		Description: "It shows who holds the lock, asks, and ends that session, and no other one: if the lock has changed hands\n" +
			"meanwhile, it says so and ends nobody. The server rolls back what the session has not committed; other locks of the\n" +
			"session end, too. It returns when the lock is free of it. What the process does on other connections goes on.\n" +
			"The exit code is 0 when the session has ended, 1 if the lock was free or the answer is no, and 75 if it has changed hands.",
		Flags: []cli.Flag{
			yesFlag(), jsonFlag(),
			&cli.DurationFlag{Name: "timeout", Value: time.Minute, Usage: "how long to wait for the rollback"},
		},
		OnUsageError: onUsageError,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			name, err := oneName(cmd)
			if err != nil {
				return err
			}
			if cmd.Bool("json") && !cmd.Bool("yes") {
				return usage("with --json there is nobody to ask: give --yes, too")
			}
			s, err := open(ctx, cmd, "sqllock break")
			if err != nil {
				return err
			}
			defer s.close()
			key, err := sqllock.Key(s.namespace, name)
			if err != nil {
				return err
			}
			return s.breakLock(ctx, cmd, name, key)
		},
	}
}

func (s *server) breakLock(ctx context.Context, cmd *cli.Command, name, key string) error {
	seen, err := s.look(ctx, key)
	if err != nil {
		return err
	}
	w := cmd.Root().Writer
	if cmd.Bool("json") {
		w = io.Discard
	}
	living, dead := seen.living()
	if len(living) == 0 {
		err := fmt.Errorf("%s is free: there is nothing to break", printable(key))
		if len(dead) > 0 {
			err = fmt.Errorf("%w (a dead holder has left a row, which keeps nobody out; sqllock sweep removes it)", err)
		}
		if notes := slices.Concat(seen.notes, s.elsewhere(ctx, name, key)); len(notes) > 0 {
			err = fmt.Errorf("%w. %s", err, strings.Join(notes, " "))
		}
		return &exitError{exitNo, err}
	}
	fmt.Fprintf(w, "%s is held.\n\n", printable(key))
	for i := range living {
		if err := printTable(w, nil, living[i].facts()); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\nTo break it ends %s. What is not committed there is rolled back. %s\n", sessions(living), s.others(ctx, key, living))
	if err := confirm(ctx, cmd, fmt.Sprintf("End %s?", sessions(living))); err != nil {
		return err
	}
	bound, cancel := context.WithTimeout(ctx, cmd.Duration("timeout"))
	defer cancel()
	for i := range living {
		if err := s.end(bound, &living[i]); err != nil {
			return s.notBroken(ctx, key, &living[i], err)
		}
		fmt.Fprintf(w, "Ended %s. The lock is free of it.\n", living[i].brief())
	}
	if cmd.Bool("json") {
		return printJSON(cmd.Root().Writer, map[string]any{"key": key, "ended": allJSON(living)})
	}
	return nil
}

// sessions names the sessions of holders.
func sessions(holders []held) string {
	if len(holders) == 1 {
		return fmt.Sprintf("session %d", holders[0].Session)
	}
	ids := make([]string, len(holders))
	for i, h := range holders {
		ids[i] = fmt.Sprint(h.Session)
	}
	return fmt.Sprintf("%d sessions, %s", len(ids), strings.Join(ids, ", "))
}

// others says which other locks end with holders.
func (s *server) others(ctx context.Context, key string, holders []held) string {
	all, err := s.list(ctx, key)
	if err != nil {
		return "Whether there are other locks on it can't be seen."
	}
	var names []string
	for _, h := range all.locks {
		for _, doomed := range holders {
			if h.Alive && h.Session == doomed.Session && !strings.EqualFold(h.Key, key) {
				names = append(names, h.Key)
			}
		}
	}
	const most = 10
	switch n := len(names); {
	case n > most:
		return fmt.Sprintf("%d other locks end with it: %s and others.", n, printable(strings.Join(names[:most], ", ")))
	case n > 0:
		return fmt.Sprintf("%d other locks end with it: %s.", n, printable(strings.Join(names, ", ")))
	case len(all.notes) > 0 && s.mysql != nil:
		return "Whether other locks end with it can't be seen."
	}
	return "No other lock is seen to end with it."
}

// end ends the session of h, if it still has the lock.
func (s *server) end(ctx context.Context, h *held) error {
	var b any = s.sessions
	if h.kind == lease {
		b = s.leases
	}
	breaker, ok := b.(interface {
		BreakHolder(ctx context.Context, db *sql.DB, h sqllock.Holder) error
	})
	if !ok {
		return fmt.Errorf("%w: %T can't break locks", sqllock.ErrUnsupported, b)
	}
	return breaker.BreakHolder(ctx, s.db, h.Holder)
}

// notBroken says what to do about an error of end.
func (s *server) notBroken(ctx context.Context, key string, h *held, err error) error {
	switch {
	case errors.Is(err, sqllock.ErrNotHeld):
		seen, failed := s.look(ctx, key)
		if failed != nil {
			return fmt.Errorf("%w; nobody was ended", err)
		}
		if living, _ := seen.living(); len(living) > 0 {
			return &exitError{exitBusy, fmt.Errorf("nobody was ended: %s has changed hands, from session %d to %s; look again", printable(key), h.Session, living[0].brief())}
		}
		return &exitError{exitNo, fmt.Errorf("nobody was ended: %s is free, session %d has let go of it by itself", printable(key), h.Session)}
	case errors.Is(err, sqllock.ErrPermission):
		return fmt.Errorf("%w; nobody was ended. %s", err, s.grantToKill(ctx))
	case errors.Is(err, sqllock.ErrHolderAlive):
		return fmt.Errorf("session %d was told to end, and has not ended yet: it may be rolling back, and keeps the lock until that is done (%w)", h.Session, err)
	}
	return err
}

// grantToKill is the statement that an administrator has to run for this user.
func (s *server) grantToKill(ctx context.Context) string {
	var user, version string
	query := "SELECT quote_ident(current_user),''"
	if s.mysql != nil {
		query = "SELECT CONCAT('''',REPLACE(CURRENT_USER(),'@','''@'''),''''),VERSION()"
	}
	if err := s.ask(ctx, s.db, query, &user, &version); err != nil {
		return ""
	}
	switch {
	case s.mysql == nil:
		return fmt.Sprintf("An administrator may run: GRANT pg_signal_backend TO %s;", user)
	case isMariaDB(version):
		return fmt.Sprintf("An administrator may run: GRANT CONNECTION ADMIN ON *.* TO %s;", user)
	}
	return fmt.Sprintf("An administrator may run: GRANT CONNECTION_ADMIN ON *.* TO %s;", user)
}

// isMariaDB tells the two servers apart.
func isMariaDB(version string) bool { return strings.Contains(version, "MariaDB") }
