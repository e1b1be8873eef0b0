package table

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// Holder tells who holds key: the row with its session, alive or not, or, where
// there is no row, who holds the doorbell. A user without the PROCESS privilege
// sees of other users' sessions what the row says.
func (b *Backend) Holder(ctx context.Context, q sqllock.Querier, key string) (sqllock.Holder, error) {
	srv, err := b.shapeOver(ctx, q)
	if err != nil {
		return sqllock.Holder{}, err
	}
	var h holding
	if err := userlock.AskOver(ctx, q, srv.queries.holders(key), h.dest()...); err != nil {
		return sqllock.Holder{}, b.explain(err)
	}
	if !h.name.Valid && !h.bell.Valid {
		return sqllock.Holder{}, fmt.Errorf("%w: it is free", sqllock.ErrNotHeld)
	}
	return h.holder(key), nil
}

// List tells of all rows of the table, of live and of dead holders, ordered by key;
// the TTL and the namespace of locks do not matter. It asks over connections of db,
// and waits for nothing but them. Errors match ErrNoTable and ErrPermission. It is
// safe for concurrent use.
func (b *Backend) List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error) {
	if db == nil {
		return nil, errors.New("table: list: the *sql.DB is nil")
	}
	srv, err := b.shapeOver(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("table: list: %w", err)
	}
	rows, err := db.QueryContext(ctx, srv.queries.holders(""))
	if err != nil {
		return nil, fmt.Errorf("table: list: %w", b.explain(err))
	}
	defer rows.Close()
	var all []sqllock.Holder
	for rows.Next() {
		var h holding
		if err := rows.Scan(pointers(h.dest())...); err != nil {
			return nil, fmt.Errorf("table: list: %w", err)
		}
		all = append(all, h.holder(""))
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("table: list: %w", b.explain(err))
	}
	return all, nil
}

// Sweep removes the rows that nobody holds: of sessions that have ended or let go,
// and of PHP processes that died before they had the lock, once their TTL is over.
// It returns how many. It kills nobody, so the row of a holder that hangs stays.
// Locks work without it; it is for names that nobody asks for any more. Errors match
// ErrNoTable and ErrPermission. It is safe for concurrent use, with locks, too.
func (b *Backend) Sweep(ctx context.Context, db *sql.DB) (removed int64, err error) {
	if db == nil {
		return 0, errors.New("table: sweep: the *sql.DB is nil")
	}
	srv, err := b.shapeOver(ctx, db)
	if err != nil {
		return 0, fmt.Errorf("table: sweep: %w", err)
	}
	for try := 1; ; try++ {
		res, err := db.ExecContext(ctx, srv.queries.sweep())
		switch {
		case err == nil:
			return res.RowsAffected()
		case userlock.Number(err) != deadlock || try == 10: // which locks on InnoDB rows may bring about
			return 0, fmt.Errorf("table: sweep: %w", b.explain(err))
		}
	}
}

// breakPause is between two looks at a session that is to end, and handOver how
// long a session may hold the doorbell without a row on its way to the lock.
const (
	breakPause = 10 * time.Millisecond
	handOver   = time.Second
)

// Break ends the session that holds key, the name as List shows it, and removes its
// row; what a dead session has left is only removed. Where there is no row, any
// session that keeps the GET_LOCK of that name for a second is ended, also one of
// another program. It returns whom it ended when the lock is free of it, which takes
// as long as the rollback, or ErrNotHeld, ErrPermission, ErrNoTable, or, when ctx
// ends first, ErrHolderAlive: then it may have been told to end. It is safe for
// concurrent use. Do not call it over a pool that has a connection with the lock in
// it, which might break its own.
func (b *Backend) Break(ctx context.Context, db *sql.DB, key string) (sqllock.Holder, error) {
	return b.breakUp(ctx, db, key, nil)
}

// BreakHolder is Break for whom Holder or List has told of, and for nobody else: it
// returns ErrNotHeld if h.Key is free, or another one's, or the same one's by a later
// grant. An extension of the TTL changes nothing.
func (b *Backend) BreakHolder(ctx context.Context, db *sql.DB, h sqllock.Holder) error {
	_, err := b.breakUp(ctx, db, h.Key, &h)
	return err
}

// breakUp is Break for only, if that is not nil.
func (b *Backend) breakUp(ctx context.Context, db *sql.DB, key string, only *sqllock.Holder) (sqllock.Holder, error) {
	if db == nil {
		return sqllock.Holder{}, errors.New("the *sql.DB is nil")
	}
	srv, err := b.shapeOver(ctx, db)
	if err != nil {
		return sqllock.Holder{}, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return sqllock.Holder{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	br := breaking{b: b, srv: srv, key: key, only: only}
	if br.whom, err = b.Holder(ctx, conn, key); err != nil {
		return sqllock.Holder{}, err
	}
	for {
		done := false
		err := userlock.Use(conn, func(s *session.Session) (err error) {
			done, err = br.step(ctx, s)
			return err
		})
		switch {
		case err != nil:
			return sqllock.Holder{}, err
		case done:
			return br.whom, nil
		}
		select {
		case <-time.After(breakPause):
		case <-ctx.Done():
			return sqllock.Holder{}, fmt.Errorf("%w: %w: session %d", context.Cause(ctx), sqllock.ErrHolderAlive, br.whom.Session)
		}
	}
}

// breaking is a Break under way.
type breaking struct {
	b      *Backend
	srv    *server
	key    string
	only   *sqllock.Holder // nobody else is to be ended
	whom   sqllock.Holder
	killed *row      // whose session has been told to end
	bare   int64     // who was first seen with the doorbell and no row
	since  time.Time // when
}

// step kills who is found to hold the lock, or, if it has, looks whether the lock
// is free of it, and removes what is left. The row that is looked at is the one
// that is acted upon.
func (br *breaking) step(ctx context.Context, s *session.Session) (done bool, err error) {
	r, err := look(ctx, s, br.b, br.srv, br.key)
	if err != nil {
		return false, err
	}
	switch live := r.there && r.used.Valid && r.used.Int64 == r.session && r.created >= r.started; {
	case br.killed != nil && r.bell.Int64 != br.killed.session && (!r.there || r.session != br.killed.session):
		return true, nil
	case br.spared(r):
		return false, fmt.Errorf("%w by session %d any more: it has changed hands", sqllock.ErrNotHeld, br.only.Session)
	case live:
		return false, br.kill(ctx, s, r)
	case r.there:
		return br.remove(ctx, s, r)
	case !r.bell.Valid && br.killed == nil:
		return false, fmt.Errorf("%w: its holder let go of it by itself", sqllock.ErrNotHeld)
	case !r.bell.Valid:
		return true, nil
	case br.bare != r.bell.Int64:
		br.bare, br.since = r.bell.Int64, time.Now()
	case time.Since(br.since) >= handOver:
		return false, br.kill(ctx, s, &row{name: br.key, session: r.bell.Int64, created: r.started})
	}
	return false, nil
}

// spared reports whether r is of another one than the only one that is to be ended. A
// doorbell without a row has no token.
func (br *breaking) spared(r *row) bool {
	switch {
	case br.only == nil || br.killed != nil:
		return false
	case r.there:
		return br.only.Session != r.session || br.only.Token != r.token
	}
	return r.bell.Valid && (br.only.Session != r.bell.Int64 || br.only.Token != 0)
}

// remove removes a row that nobody holds, or whose session can't be the one that
// it names. It is done if that was all that there was.
func (br *breaking) remove(ctx context.Context, s *session.Session, r *row) (done bool, err error) {
	res, err := userlock.Exec(ctx, s, br.srv.queries.remove(r))
	if userlock.Number(err) == deadlock {
		return false, nil // on InnoDB; look again
	}
	if err != nil {
		return false, br.b.explain(err)
	}
	n, err := res.RowsAffected()
	if err != nil || n == 0 || br.killed != nil || r.used.Int64 == r.session {
		return false, err
	}
	br.whom = r.holder()
	return true, nil
}

// kill ends the session of r, unless it has just let go.
func (br *breaking) kill(ctx context.Context, s *session.Session, r *row) error {
	_, err := userlock.Exec(ctx, s, kill(r))
	switch {
	case err == nil:
		br.killed = r
		br.named(r)
		return nil
	case userlock.Number(err) == userlock.UnknownThread:
		return nil // it has gone, or is known no more while it rolls back
	}
	return userlock.ErrKill("the holder", r.session, err)
}

// named makes r the one that Break tells of, if it was another one at first.
func (br *breaking) named(r *row) {
	if br.whom.Session != r.session || br.whom.Token != r.token {
		br.whom = r.holder()
	}
}

// holding is a row of queries.holders.
type holding struct {
	name, process, user, host, database, state   sql.NullString
	session, created, expires, left, token, bell sql.NullInt64
	alive                                        sql.NullBool
}

func (h *holding) dest() []sql.Scanner {
	return []sql.Scanner{
		&h.name, &h.session, &h.created, &h.expires, &h.left, &h.token, &h.process, &h.alive, &h.bell,
		&h.user, &h.host, &h.database, &h.state,
	}
}

func pointers(dest []sql.Scanner) []any {
	p := make([]any, len(dest))
	for i, d := range dest {
		p[i] = d
	}
	return p
}

func (h *holding) holder(key string) sqllock.Holder {
	out := sqllock.Holder{
		Key: key, Session: h.bell.Int64, Alive: true,
		User: h.user.String, Host: h.host.String, Database: h.database.String, State: h.state.String,
	}
	if h.name.Valid {
		out.Key, out.Session, out.Alive = unhex(h.name.String), h.session.Int64, h.alive.Bool
		out.Process, out.Token = h.process.String, h.token.Int64
		out.Since, out.Expires = time.Unix(h.created.Int64, 0), time.Unix(h.expires.Int64, 0)
		out.TimeLeft = length(h.left.Int64, time.Microsecond)
	}
	if !out.Alive {
		// The session of that id, if there is one, is somebody else's.
		out.User, out.Host, out.Database, out.State = "", "", "", ""
	}
	return out
}

func (b *Backend) shapeOver(ctx context.Context, q sqllock.Querier) (*server, error) {
	return b.shape(func(query string, dest ...sql.Scanner) error { return userlock.AskOver(ctx, q, query, dest...) })
}
