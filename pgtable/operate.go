package pgtable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

// Holder tells who holds key: the row with its session, alive or not, or, where there is
// no row, who has the doorbell. Of the sessions of other roles, a role without
// pg_read_all_stats sees what the row says.
func (b *Backend) Holder(ctx context.Context, q sqllock.Querier, key string) (sqllock.Holder, error) {
	var h holding
	if err := b.ask(ctx, q, b.queries.holder(key), h.dest()...); err != nil {
		return sqllock.Holder{}, err
	}
	if !h.name.Valid && !h.bell.Valid {
		return sqllock.Holder{}, fmt.Errorf("%w: it is free", sqllock.ErrNotHeld)
	}
	return h.holder(key), nil
}

// List tells of all rows of the table, of live and of dead holders, ordered by key; the
// TTL and the namespace of locks do not matter. It asks over connections of db, and waits
// for nothing but them. Errors match ErrNoTable and ErrPermission. It is safe for
// concurrent use.
func (b *Backend) List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error) {
	if db == nil {
		return nil, errors.New("pgtable: list: the *sql.DB is nil")
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("pgtable: list: %w", err)
	}
	defer conn.Close()                                                                         //nolint:errcheck // nothing is left on it
	if err := pgsession.Use(conn, func(*pgsession.Session) error { return nil }); err != nil { // it is of another driver
		return nil, fmt.Errorf("pgtable: list: %w", err)
	}
	rows, err := conn.QueryContext(ctx, b.queries.holders(), pgx.QueryExecModeExec)
	if err != nil {
		return nil, fmt.Errorf("pgtable: list: %w", b.explain(err))
	}
	defer rows.Close()
	var all []sqllock.Holder
	for rows.Next() {
		var h holding
		if err := rows.Scan(pointers(h.dest())...); err != nil {
			return nil, fmt.Errorf("pgtable: list: %w", err)
		}
		all = append(all, h.holder(""))
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("pgtable: list: %w", b.explain(err))
	}
	return all, nil
}

// Sweep removes the rows that nobody holds: of sessions that have ended or let go. It
// returns how many. It ends nobody, so the row of a holder that hangs stays. Locks work
// without it; it is for names that nobody asks for any more. Errors match ErrNoTable and
// ErrPermission. It is safe for concurrent use, with locks, too.
func (b *Backend) Sweep(ctx context.Context, db *sql.DB) (removed int64, err error) {
	if db == nil {
		return 0, errors.New("pgtable: sweep: the *sql.DB is nil")
	}
	var n sql.NullInt64
	if err := b.ask(ctx, db, b.queries.sweep(), &n); err != nil {
		return 0, fmt.Errorf("pgtable: sweep: %w", err)
	}
	return n.Int64, nil
}

// breakPause is between two looks at a session that is to end, and handOver how long a
// session may have the doorbell without a row on its way to the lock.
const (
	breakPause = 10 * time.Millisecond
	handOver   = time.Second
)

// Break ends the session that holds key, the name as List shows it, and removes its row;
// what a dead session has left is only removed. Where there is no row, any session that
// keeps the advisory lock of that name for a second is ended, also one of another program.
// It returns whom it ended when the lock is free of it, which takes as long as the
// rollback, or ErrNotHeld, ErrPermission, ErrNoTable, or, when ctx ends first,
// ErrHolderAlive: then it may have been told to end. It is safe for concurrent use. Do not
// call it over a pool that has a connection with the lock in it, which might break its
// own.
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
	conn, err := db.Conn(ctx)
	if err != nil {
		return sqllock.Holder{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	br := breaking{b: b, conn: conn, key: key, only: only}
	if br.whom, err = b.Holder(ctx, conn, key); err != nil {
		return sqllock.Holder{}, err
	}
	for {
		done, err := br.step(ctx)
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
	b     *Backend
	conn  *sql.Conn
	key   string
	only  *sqllock.Holder // nobody else is to be ended
	whom  sqllock.Holder
	ended int64     // the session that has been told to end
	bare  int64     // who was first seen with the doorbell and no row
	since time.Time // when
}

// step ends who is found to hold the lock, or, if it has, looks whether the lock is free
// of it, and removes what is left. The row that is looked at is the one that is acted
// upon.
func (br *breaking) step(ctx context.Context) (done bool, err error) {
	var c rowOf
	var alive sql.NullBool
	var pid sql.NullInt64
	if err := br.b.ask(ctx, br.conn, br.b.queries.spy(br.key), append(c.dest(), &alive, &pid)...); err != nil {
		return false, err
	}
	switch r := c.row(); {
	case br.ended != 0 && pid.Int64 != br.ended && (!r.there || r.session != br.ended):
		return true, nil
	case br.spared(&r, pid):
		return false, fmt.Errorf("%w by session %d any more: it has changed hands", sqllock.ErrNotHeld, br.only.Session)
	case alive.Bool:
		return false, br.end(ctx, &r)
	case r.there:
		return br.remove(ctx, &r, pid.Valid && pid.Int64 == r.session)
	case !pid.Valid && br.ended == 0:
		return false, fmt.Errorf("%w: its holder let go of it by itself", sqllock.ErrNotHeld)
	case !pid.Valid:
		return true, nil
	case br.bare != pid.Int64:
		br.bare, br.since = pid.Int64, time.Now()
	case time.Since(br.since) >= handOver:
		return false, br.endBare(ctx, pid.Int64)
	}
	return false, nil
}

// spared reports whether the lock is of another one than the only one that is to be ended.
// A doorbell without a row has no token.
func (br *breaking) spared(r *row, pid sql.NullInt64) bool {
	switch {
	case br.only == nil || br.ended != 0:
		return false
	case r.there:
		return br.only.Session != r.session || br.only.Token != r.token
	}
	return pid.Valid && (br.only.Session != pid.Int64 || br.only.Token != 0)
}

// remove removes a row that nobody holds, or whose session can't be the one that it names.
// It is done if that was all that there was.
func (br *breaking) remove(ctx context.Context, r *row, ringing bool) (done bool, err error) {
	var n sql.NullInt64
	if err := br.b.ask(ctx, br.conn, br.b.queries.remove(br.key, r), &n); err != nil {
		return false, err
	}
	if n.Int64 == 0 || br.ended != 0 || ringing {
		return false, nil
	}
	br.whom = r.holder(br.key)
	return true, nil
}

// end ends the session of r, unless it has just let go.
func (br *breaking) end(ctx context.Context, r *row) error {
	var c rowOf
	var marks sql.NullInt64
	var told sql.NullBool
	err := br.b.over(ctx, br.conn, br.b.queries.breakUp(br.key, r), append(c.dest(), &marks, &told)...)
	return br.told(r, told.Bool, err)
}

func (br *breaking) endBare(ctx context.Context, pid int64) error {
	var told sql.NullBool
	err := br.b.over(ctx, br.conn, endBare(br.key, pid), &told)
	return br.told(&row{session: pid}, told.Bool, err)
}

// told notes that the session of r was told to end.
func (br *breaking) told(r *row, told bool, err error) error {
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil // the row has changed; look again
	case pgsession.Code(err) == pgsession.NoPrivilege:
		return errKill("the holder", r.session, err)
	case err != nil || !told:
		return br.b.explain(err)
	}
	br.ended = r.session
	if br.whom.Session != r.session || br.whom.Token != r.token { // it was another one at first
		br.whom = r.holder(br.key)
	}
	return nil
}

// holding is a row of queries.holders.
type holding struct {
	name, user, host, database, state sql.NullString
	row                               rowOf
	expires, bell                     sql.NullInt64
	alive                             sql.NullBool
}

func (h *holding) dest() []sql.Scanner {
	return append(append([]sql.Scanner{&h.name}, h.row.dest()...), &h.expires, &h.alive, &h.bell, &h.user, &h.host, &h.database, &h.state)
}

func pointers(dest []sql.Scanner) []any {
	p := make([]any, len(dest))
	for i, d := range dest {
		p[i] = d
	}
	return p
}

func (h *holding) holder(key string) sqllock.Holder {
	out := sqllock.Holder{Key: key, Session: h.bell.Int64, Alive: true}
	if h.name.Valid {
		r := h.row.row()
		out = r.holder(h.name.String)
		out.Alive, out.Expires = h.alive.Bool, time.Unix(h.expires.Int64, 0)
	}
	if out.Alive { // else the session of that id, if there is one, is somebody else's
		out.User, out.Host, out.Database, out.State = h.user.String, h.host.String, h.database.String, h.state.String
	}
	return out
}
