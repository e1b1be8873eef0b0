package main

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
)

func whoCommand() *cli.Command {
	return &cli.Command{
		Name:      "who",
		Usage:     "tell who holds a lock, who waits for it, and how to get rid of it",
		ArgsUsage: "NAME",
		Description: "The exit code is 0 if somebody holds the lock, and 1 if it is free. A row of a dead holder in the\n" +
			"table of leases does not hold it: the next one who asks takes it over.",
		Flags:        []cli.Flag{jsonFlag()},
		OnUsageError: onUsageError,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			name, err := oneName(cmd)
			if err != nil {
				return err
			}
			s, err := open(ctx, cmd, "sqllock who")
			if err != nil {
				return err
			}
			defer s.close()
			key, err := sqllock.Key(s.namespace, name)
			if err != nil {
				return err
			}
			return who(ctx, cmd, s, name, key)
		},
	}
}

func who(ctx context.Context, cmd *cli.Command, s *server, name, key string) error {
	seen, err := s.look(ctx, key)
	if err != nil {
		return err
	}
	living, dead := seen.living()
	var waiting []held
	if len(living) > 0 {
		if waiting, err = s.waiters(ctx, key); err != nil {
			return err
		}
	} else {
		seen.notes = append(seen.notes, s.elsewhere(ctx, name, key)...)
	}
	w := cmd.Root().Writer
	switch {
	case cmd.Bool("json"):
		err = printJSON(w, map[string]any{
			"key": key, "held": len(living) > 0, "holders": allJSON(living), "left_by_the_dead": allJSON(dead),
			"waiters": allJSON(waiting), "notes": append([]string{}, seen.notes...),
		})
	case len(living) > 0:
		err = s.tell(w, name, key, living, waiting, seen.notes)
	default:
		fmt.Fprintf(w, "%s is free.\n", printable(key))
		for _, h := range dead {
			fmt.Fprintf(w, "A dead holder has left a row: %s. The next one who asks for the lock takes it over; sqllock sweep removes it.\n", h.brief())
		}
		printNotes(w, seen.notes)
	}
	if err == nil && len(living) == 0 {
		err = &exitError{code: exitNo}
	}
	return err
}

// tell prints who has a lock, for people.
func (s *server) tell(w io.Writer, name, key string, living, waiting []held, notes []string) error {
	shared := ""
	if len(living) > 1 {
		shared = fmt.Sprintf(" by %d sessions", len(living))
	}
	fmt.Fprintf(w, "%s is held%s.\n", printable(key), shared)
	for i := range living {
		fmt.Fprintln(w)
		if err := printTable(w, nil, living[i].facts()); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	if len(waiting) == 0 {
		fmt.Fprintln(w, "Nobody is seen waiting for it.")
	} else {
		fmt.Fprintf(w, "%d waiting for it:\n", len(waiting))
		for _, h := range waiting {
			fmt.Fprintf(w, "  %s\n", h.brief())
		}
	}
	printNotes(w, notes)
	fmt.Fprintf(w, "To get rid of the holder: %s\n", s.command("break", name))
	return nil
}

func printNotes(w io.Writer, notes []string) {
	for _, note := range notes {
		fmt.Fprintln(w, printable(note))
	}
}

// facts are what is known of a holder.
func (h *held) facts() [][]string {
	kind := "of the session: it ends when it is released, or with its session"
	if h.kind == lease {
		kind = "a lease: it ends when it is released, with its session, or by its TTL"
	}
	rows := [][]string{
		{"  lock", kind},
		{"  session", fmt.Sprint(h.Session)},
		{"  process", h.Process},
		{"  user", h.who()},
		{"  database", h.Database},
		{"  state", h.State},
	}
	if age, ok := h.age(); ok {
		what := "in this state for " + span(age) + "; the server does not tell when the lock was granted"
		if h.kind == lease {
			what = "granted, or last extended, " + span(age) + " ago"
		}
		rows = append(rows, []string{"  since", what})
	}
	if !h.Expires.IsZero() {
		left := span(h.TimeLeft)
		if h.TimeLeft <= 0 {
			left = "none, for " + span(-h.TimeLeft) + ": the next one who asks for the lock ends this session"
		}
		rows = append(rows, []string{"  time left", left})
	}
	return rows
}

// brief is a holder in a few words.
func (h *held) brief() string {
	said := fmt.Sprintf("session %d", h.Session)
	if about := strings.Join(slices.DeleteFunc([]string{h.who(), h.Process}, func(s string) bool { return s == "" }), ", "); about != "" {
		said += " (" + printable(about) + ")"
	}
	return said
}

// sight is what there is to see of locks.
type sight struct {
	locks []held
	notes []string // what can't be seen, and why
}

func (s *sight) living() (living, dead []held) {
	for _, h := range s.locks {
		if h.Alive {
			living = append(living, h)
		} else {
			dead = append(dead, h)
		}
	}
	return living, dead
}

// look tells who has key: the lease, if there is a table, and whoever has the lock of the
// session of that name without being its holder, such as one of mysqlnamed beside a row
// that a dead one has left, or all who share it on PostgreSQL.
func (s *server) look(ctx context.Context, key string) (*sight, error) {
	now, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	seen := &sight{}
	var h sqllock.Holder
	err = answered(ctx, func(ctx context.Context) (err error) {
		h, err = s.leases.Holder(ctx, s.db, key)
		return err
	})
	switch {
	case err == nil && (!h.Alive || !h.Expires.IsZero()):
		seen.locks = append(seen.locks, held{h, lease, now})
	case err != nil && !errors.Is(err, sqllock.ErrNotHeld) && !errors.Is(err, sqllock.ErrNoTable):
		seen.notes = append(seen.notes, fmt.Sprintf("Whether it is a lease can't be seen: %v.", short(err)))
	}
	sessions, err := s.sessionsWith(ctx, key)
	if err != nil {
		return nil, err
	}
	for _, h := range sessions {
		seen.add(held{h, ofSession, now})
	}
	for i := range seen.locks {
		s.describe(ctx, &seen.locks[i])
	}
	return seen, nil
}

// add adds the lock of a session, unless it is the doorbell of a lease.
func (s *sight) add(h held) {
	doorbell := func(l held) bool {
		return l.kind == lease && l.Alive && l.Session == h.Session && strings.EqualFold(l.Key, h.Key)
	}
	if !slices.ContainsFunc(s.locks, doorbell) {
		s.locks = append(s.locks, h)
	}
}

// sessionsWith are those that have the lock of a session.
func (s *server) sessionsWith(ctx context.Context, key string) (all []sqllock.Holder, err error) {
	err = answered(ctx, func(ctx context.Context) error {
		if b, ok := s.sessions.(*pgadvisory.Backend); ok {
			all, err = b.List(ctx, s.db, key)
			all = slices.DeleteFunc(all, func(h sqllock.Holder) bool { return h.Key != key })
			return err
		}
		h, err := s.sessions.Holder(ctx, s.db, key)
		switch {
		case errors.Is(err, sqllock.ErrNotHeld):
			return nil
		case err != nil:
			return err
		}
		all = []sqllock.Holder{h}
		return nil
	})
	return all, err
}

// describe adds to a lock of a session what its driver has told the server of the process,
// as far as MySQL and MariaDB show it.
func (s *server) describe(ctx context.Context, h *held) {
	if h.Process != "" || !h.Alive || s.mysql == nil {
		return
	}
	var pid, program sql.NullString
	err := s.ask(ctx, s.db, "SELECT MAX(IF(attr_name='_pid',attr_value,NULL)),MAX(IF(attr_name='program_name',attr_value,NULL))"+
		" FROM performance_schema.session_connect_attrs WHERE processlist_id="+fmt.Sprint(h.Session), &pid, &program)
	if err == nil && pid.Valid {
		h.Process = strings.TrimSpace("process " + pid.String + " " + program.String)
	}
}

// now is the server's clock, in whole seconds as Since is.
func (s *server) now(ctx context.Context) (time.Time, error) {
	query := "SELECT extract(epoch FROM clock_timestamp())::bigint"
	if s.mysql != nil {
		query = "SELECT UNIX_TIMESTAMP()"
	}
	var seconds int64
	err := s.ask(ctx, s.db, query, &seconds)
	return time.Unix(seconds, 0), err
}

// waiters are the sessions that wait on the server for key. One that waits in slices may
// just be between two of them.
func (s *server) waiters(ctx context.Context, key string) ([]held, error) {
	now, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	var all []held
	add := func(scan func(...any) error) error {
		h := held{Holder: sqllock.Holder{Key: key, Alive: true}, kind: ofSession, now: now}
		var since sql.NullInt64
		if err := scan(&h.Session, &h.User, &h.Host, &h.Database, &h.State, &h.Process, &since); err != nil {
			return err
		}
		if since.Valid {
			h.Since = time.Unix(since.Int64, 0)
		}
		if !slices.ContainsFunc(all, func(o held) bool { return o.Session == h.Session }) {
			all = append(all, h)
		}
		return nil
	}
	if s.mysql == nil {
		err = s.each(ctx, pgWaiting, add, key)
	} else if err = s.each(ctx, mysqlWaiting, add, "X'"+hex.EncodeToString([]byte(key))+"'", "'"+key+"'"); err == nil {
		_ = s.each(ctx, mysqlPending, add, key, key) // not everybody may see it, nor does every server record it
	}
	slices.SortFunc(all, func(a, b held) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Session, b.Session)) })
	return all, err
}

const (
	// mysqlWaiting goes by the text of the statement, which has the name as our packages write
	// it, or as most others do.
	mysqlWaiting = "SELECT p.id,COALESCE(p.user,''),COALESCE(p.host,''),COALESCE(p.db,''),COALESCE(p.state,''),'',UNIX_TIMESTAMP()-p.time" +
		" FROM information_schema.processlist p WHERE p.state='User lock' AND (LOCATE(?,p.info)>0 OR LOCATE(?,p.info)>0)"

	// mysqlPending is what the server has recorded. MySQL has names in lower case.
	mysqlPending = "SELECT t.processlist_id,COALESCE(t.processlist_user,''),COALESCE(t.processlist_host,''),COALESCE(t.processlist_db,'')," +
		"COALESCE(t.processlist_state,''),'',UNIX_TIMESTAMP()-t.processlist_time" +
		" FROM performance_schema.metadata_locks l JOIN performance_schema.threads t ON t.thread_id=l.owner_thread_id" +
		" WHERE l.object_type='USER LEVEL LOCK' AND l.lock_status='PENDING' AND l.object_name IN (?,LOWER(?))"

	pgWaiting = "SELECT l.pid,coalesce(a.usename,''),coalesce(host(a.client_addr)||':'||a.client_port,''),coalesce(a.datname,''),coalesce(a.state,'')," +
		"coalesce(a.application_name,''),extract(epoch FROM a.query_start)::bigint" +
		" FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid=l.pid WHERE l.locktype='advisory' AND l.objsubid=1 AND NOT l.granted" +
		" AND l.database=(SELECT oid FROM pg_database WHERE datname=current_database())" +
		" AND (l.classid::bigint<<32|l.objid::bigint)=hashtextextended($1,0)"
)

// elsewhere looks for what the user may have meant: the most frequent reason to find a
// lock free is that it was asked for under another name.
func (s *server) elsewhere(ctx context.Context, name, key string) (notes []string) {
	if s.namespace != "" {
		if plain, err := s.look(ctx, name); err == nil && name != key {
			if living, _ := plain.living(); len(living) > 0 {
				notes = append(notes, fmt.Sprintf("But %s is held, which is that name without the namespace %q: sqllock who --namespace= %s", name, s.namespace, quoted(name)))
			}
		}
	}
	all, err := s.list(ctx)
	if err != nil {
		return notes
	}
	living, _ := all.living()
	for _, note := range all.notes {
		if strings.Contains(note, "ocks of sessions") {
			notes = append(notes, "Whether somebody holds it under another namespace can't be seen here, save for leases.")
		}
	}
	for _, h := range living {
		n := len(h.Key) - len(name) - 1
		of := n > 0 && strings.EqualFold(h.Key[n:], ":"+name)
		switch {
		case h.Key == key || s.namespace != "" && h.Key == name: // taken since, or told of before
		case strings.EqualFold(h.Key, key):
			notes = append(notes, fmt.Sprintf("But %s is held: the letter case differs.", h.Key))
		case of:
			notes = append(notes, fmt.Sprintf("But %s is held: sqllock who --namespace %s %s", h.Key, quoted(h.Key[:n]), quoted(name)))
		}
	}
	return notes
}

// querier is what there is to ask over.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// mode has pgx send a statement in a way that every pooler takes.
func (s *server) mode(args []any) []any {
	if s.postgres == nil {
		return args
	}
	return append([]any{pgx.QueryExecModeExec}, args...)
}

// answerTime is how long the server has for an answer to what is only asked: at night, a
// table that somebody has locked, or a server that hangs, is what is to be told.
const answerTime = 5 * time.Second

// answered asks within answerTime.
func answered(ctx context.Context, ask func(context.Context) error) error {
	short, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	err := ask(short)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fmt.Errorf("the server did not answer for %v; is the table locked (LOCK TABLE, ALTER TABLE, a backup)? (%w)", answerTime, context.DeadlineExceeded)
	}
	return err
}

// ask runs a query that answers with one row.
func (s *server) ask(ctx context.Context, q querier, query string, dest ...any) error {
	return answered(ctx, func(ctx context.Context) error {
		return q.QueryRowContext(ctx, query, s.mode(nil)...).Scan(dest...)
	})
}

// allLeases is what the table of leases has.
func (s *server) allLeases(ctx context.Context) (all []sqllock.Holder, err error) {
	err = answered(ctx, func(ctx context.Context) error {
		all, err = s.leases.List(ctx, s.db)
		return err
	})
	return all, err
}

// each runs a query, and calls f for each row.
func (s *server) each(ctx context.Context, query string, f func(scan func(...any) error) error, args ...any) error {
	return answered(ctx, func(ctx context.Context) error {
		rows, err := s.db.QueryContext(ctx, query, s.mode(args)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := f(rows.Scan); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// short is an error without the prefix of the library, which means nothing here.
func short(err error) string { return strings.ReplaceAll(err.Error(), "sqllock: ", "") }
