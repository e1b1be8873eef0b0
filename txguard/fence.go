package txguard

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	defaultTable = "lock_fences"
	alphabet     = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$"

	idSize = 8  // bytes of the id of a commit
	kept   = 64 // how many of them a row keeps

	// settleTime is how long a guarded transaction waits for the database to tell
	// what became of it.
	settleTime = 10 * time.Second

	// settlePause is between two tries while the database can't be asked.
	settlePause = 100 * time.Millisecond

	// connectTries is how many connections a fenced transaction takes from the pool
	// when those it gets turn out to be dead.
	connectTries = 3
)

// Fence is a table of fence rows, one for each name, in a database where work is
// done: it keeps the holder of a lock from committing there once a later one has been
// admitted, over whatever connection it works. The table is made by
// migrations.Up(ctx, db, migrations.Fences()), on PostgreSQL by
// migrations.Up(ctx, db, migrations.Postgres(), migrations.Fences()). A Fence is safe for
// concurrent use.
type Fence struct {
	db     *sql.DB
	table  string                  // its name
	server atomic.Pointer[dialect] // of db, once it has been found
}

// FenceOption configures a [Fence].
type FenceOption interface{ apply(*Fence) }

type fenceOption func(*Fence)

func (o fenceOption) apply(f *Fence) { o(f) }

// WithTable names the table in place of lock_fences, with or without a schema in
// front: ASCII letters, digits, "_" and "$". It is quoted, so that on PostgreSQL
// letter case counts. It panics on any other name.
func WithTable(name string) FenceOption {
	schema, table, qualified := strings.Cut(name, ".")
	if schema == "" || strings.Trim(schema, alphabet) != "" || qualified && (table == "" || strings.Trim(table, alphabet) != "") {
		panic(fmt.Sprintf("txguard: WithTable(%q): the name must be ASCII letters, digits, _ and $, with or without a schema and a dot in front", name))
	}
	return fenceOption(func(f *Fence) { f.table = name })
}

// NewFence returns the fence in the database of db, which is the pool that fenced
// work runs on, and whose sessions must have autocommit on, where the server has that. It
// sends nothing. It panics if db is nil.
func NewFence(db *sql.DB, opts ...FenceOption) *Fence {
	if db == nil {
		panic("txguard: NewFence needs the *sql.DB of the database where the work is done")
	}
	f := &Fence{db: db, table: defaultTable}
	for _, o := range opts {
		o.apply(f)
	}
	return f
}

// dialect finds it by a connection of the pool, once.
func (f *Fence) dialect(ctx context.Context) (dialect, error) {
	if known := f.server.Load(); known != nil {
		return *known, nil
	}
	conn, err := f.db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoConn, err)
	}
	defer conn.Close() //nolint:errcheck // nothing was done on it
	d := dialectOf(conn)
	f.server.Store(&d)
	return d, nil
}

// Fenced is the holder of a lock, admitted to a fence. It is safe for concurrent
// use; transactions commit one after the other.
type Fenced struct {
	fence *Fence
	lock  *sqllock.Lock
	token int64
}

// Raise admits the holder of lock, from which moment on no earlier holder can commit
// behind f. It waits, as long as ctx allows, for one that is about to commit. It
// costs one write.
//
// A lock without a token of its own, as of mysqlnamed and pgadvisory, gets one from the fence table
// of the same name in the database of the lock's session, which costs a check and a
// write more, and does not work in a transaction on that session. If the work is done
// on another server, both have a table then.
//
// The error is an [OutcomeError] with ErrNotBegun, and matches [sqllock.ErrLost] if a
// later holder has been admitted already.
func (f *Fence) Raise(ctx context.Context, lock *sqllock.Lock) (*Fenced, error) {
	if lock == nil {
		return nil, &OutcomeError{Outcome: ErrNotBegun, Err: errLockNil}
	}
	fail := func(err error) (*Fenced, error) {
		return nil, &OutcomeError{Name: lock.Name(), Outcome: ErrNotBegun, Err: err}
	}
	if err := lock.Err(); err != nil {
		return fail(err)
	}
	token, err := lock.TokenFrom(func() (int64, error) { return f.mint(ctx, lock) })
	if err != nil {
		return fail(err)
	}
	latest, err := f.raise(ctx, lock.Grant().Key, token)
	if err != nil {
		return fail(err)
	}
	if latest > token {
		return fail(fmt.Errorf("%w: a later holder has been admitted, with token %d, and this one has %d", sqllock.ErrLost, latest, token))
	}
	return &Fenced{f, lock, token}, nil
}

// mint makes a token on the session of lock: where the session lives, it holds the
// lock, so tokens grow in the order of the grants.
func (f *Fence) mint(ctx context.Context, lock *sqllock.Lock) (token int64, err error) {
	if lock.Conn() == nil {
		return 0, fmt.Errorf("a token for the lock can't be made on its session: %w", errShared)
	}
	leave, err := occupy(lock.Conn())
	if err != nil {
		return 0, err
	}
	defer leave()
	w := &work{lock: lock, conn: lock.Conn(), server: dialectOf(lock.Conn())}
	if err := w.vacant(ctx); err != nil {
		return 0, fmt.Errorf("a token for the lock can't be made on its session: %w", err)
	}
	return w.server.mint(ctx, w.conn, f.table, lock.Grant().Key, func(statement func() error) error {
		return lock.WhileHeld(ctx, w.conn, 0, func() error {
			err := statement()
			if errors.Is(err, sqllock.ErrSessionGone) {
				return w.lost(ctx, err)
			}
			return w.server.explain(f.table, err)
		})
	})
}

// errBlocked is that ctx has ended while err kept a statement from being run.
func errBlocked(ctx context.Context, err error) error {
	return fmt.Errorf("%w; somebody is about to commit: %w", ended(ctx), err)
}

// raise returns the greatest token of key.
func (f *Fence) raise(ctx context.Context, key string, token int64) (int64, error) {
	for {
		latest, blocked, err := f.raiseOnce(ctx, key, token)
		if err == nil || errors.Is(err, errNoConn) {
			return latest, err
		}
		if ctx.Err() == nil && !blocked {
			return 0, err
		}
		if wait(ctx, settlePause) != nil {
			return 0, fmt.Errorf("%w; somebody is about to commit, or the server is not there: %w", ended(ctx), err)
		}
	}
}

// errNoConn is that the pool had no connection.
var errNoConn = errors.New("no connection for the fence: all of the pool are in use, the lock's own perhaps among them, or the server can't be reached")

// raiseOnce reports besides whether somebody else's lock on the row has kept the
// statement, which did nothing, from being run.
func (f *Fence) raiseOnce(ctx context.Context, key string, token int64) (latest int64, blocked bool, err error) {
	conn, err := f.db.Conn(ctx)
	if err != nil {
		return 0, false, fmt.Errorf("%w: %w", errNoConn, err)
	}
	defer conn.Close() //nolint:errcheck // what was raised is raised
	d := dialectOf(conn)
	latest, err = d.raise(ctx, conn, f.table, key, token)
	return latest, d.blocked(err), d.explain(f.table, err)
}

// Token returns the fencing token, which grows with every holder of the name. What
// is not behind the fence, such as another service, can be given it, and refuse
// what comes with a smaller one than it has seen.
func (f *Fenced) Token() int64 { return f.token }

// Run runs fn in a transaction on a connection of the fence's pool, and commits if
// fn returns nil, the lock is still held, and no later holder has been admitted. It
// is as package-level [Run] in all else. It costs one connection of the pool, and
// two round trips more than the transaction alone, one of them on the lock's session.
func (f *Fenced) Run(ctx context.Context, fn Func, opts ...Option) error {
	fail := func(err error) error {
		return &OutcomeError{Name: f.lock.Name(), Outcome: ErrNotBegun, Err: err}
	}
	c, err := configure(opts)
	switch {
	case err != nil:
		return fail(err)
	case len(c.lock) > 0:
		return fail(errLockOptions)
	case c.fence != nil:
		return fail(errors.New("WithEvidence is for the same-session form: fenced transactions have it already"))
	case c.tx != nil && c.tx.ReadOnly:
		return fail(errors.New("a read-only transaction can't pass a fence, and needs none: it has nothing to commit"))
	}
	c.fence = f.fence
	w := &work{config: c, lock: f.lock, fn: fn, over: f.lock.Conn()}
	w.write = func(ctx context.Context, conn *sql.Conn) (*Evidence, error) { return f.pass(ctx, w.server, conn) }
	w.superseded = func(ctx context.Context, why error) error { return f.superseded(ctx, w.server, w.conn, why) }
	if err := w.possible(ctx); err != nil {
		return fail(err)
	}
	for try := 1; ; try++ {
		e := w.apart(ctx, f.fence.db)
		if e == nil || try == connectTries || e.Outcome != ErrNotBegun || !errors.Is(e, driver.ErrBadConn) { //nolint:errorlint // that of this transaction
			return c.result(ctx, e)
		}
	}
}

// apart runs the work on a connection of db.
func (w *work) apart(ctx context.Context, db *sql.DB) *OutcomeError {
	conn, err := db.Conn(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no connection for the work: %w", ended(ctx))
		}
		return w.fail(ErrNotBegun, err)
	}
	defer conn.Close() //nolint:errcheck // a session that was closed says so once more
	w.conn = conn
	return w.run(ctx)
}

// Evidence identifies a transaction in a fence table. Its fields are exported so
// that it can be stored.
type Evidence struct {
	Key   string // the name of the lock on its server
	ID    []byte // random, of 8 bytes
	Seq   int64  // which commit of the key it is, if it was committed
	Place uint32 // a number of server and database that it was written on
}

// evidence is what write has written with a new id.
func (f *Fence) evidence(d dialect, key string, write func(id []byte) (seq int64, place uint32, err error)) (*Evidence, error) {
	e := &Evidence{Key: key, ID: make([]byte, idSize)}
	_, _ = rand.Read(e.ID) // never fails
	var err error
	e.Seq, e.Place, err = write(e.ID)
	return e, d.explain(f.table, err)
}

// note writes evidence on the session of the lock.
func (f *Fence) note(ctx context.Context, d dialect, conn *sql.Conn, key string) (*Evidence, error) {
	return f.evidence(d, key, func(id []byte) (int64, uint32, error) { return d.note(ctx, conn, f.table, key, id) })
}

// pass writes evidence if the fence lets the transaction pass.
func (f *Fenced) pass(ctx context.Context, d dialect, conn *sql.Conn) (*Evidence, error) {
	key, table := f.lock.Grant().Key, f.fence.table
	e, err := f.fence.evidence(d, key, func(id []byte) (int64, uint32, error) { return d.pass(ctx, conn, table, key, f.token, id) })
	if err == nil && e.Seq == 0 {
		err = fmt.Errorf("%w: a later holder than that of token %d has been admitted to %s, or its row was removed", sqllock.ErrLost, f.token, table)
	}
	return e, err
}

// superseded returns an error if a later holder is why a transaction did not pass.
func (f *Fenced) superseded(ctx context.Context, d dialect, conn *sql.Conn, why error) error {
	latest, known := d.superseded(ctx, conn, f.fence.table, f.lock.Grant().Key, why)
	if !known || latest <= f.token {
		return nil
	}
	return fmt.Errorf("%w: a later holder has been admitted to %s, with token %d, and this one has %d (%v)", sqllock.ErrLost, f.fence.table, latest, f.token, why) //nolint:errorlint // it is not to be tried again
}

// Settle tells whether the transaction of e was committed. It waits, as long as
// ctx allows, while that is undecided or the database can't be asked. The error
// matches [ErrUnknown] if it could not be told: ctx has ended, or so many have been
// committed under the name since that the table has forgotten, which are 64.
func (f *Fence) Settle(ctx context.Context, e Evidence) (committed bool, err error) {
	if e.Key == "" || len(e.ID) != idSize || e.Seq < 1 {
		return false, fmt.Errorf("%w: %+v is no evidence of a guarded transaction", ErrUnknown, e)
	}
	committed, err = f.settle(ctx, e)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return committed, err
}

func (f *Fence) settle(ctx context.Context, e Evidence) (committed bool, err error) {
	var last error // of the database
	for {
		committed, err = f.look(ctx, e)
		if err == nil || errors.Is(err, errForgotten) || errors.Is(err, sqllock.ErrNoTable) || errors.Is(err, sqllock.ErrPermission) {
			return committed, err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if wait(ctx, settlePause) != nil {
			return false, fmt.Errorf("the database did not tell in time (%w): %w", ended(ctx), last)
		}
	}
}

// errForgotten is that the row does not say.
var errForgotten = errors.New("it can't be told any more")

// look tells by the row of e, once no transaction that has written it is undecided.
func (f *Fence) look(ctx context.Context, e Evidence) (bool, error) {
	d, err := f.dialect(ctx)
	if err != nil {
		return false, err
	}
	seq, commits, place, err := d.look(ctx, f.db, f.table, e.Key)
	switch {
	case err != nil:
		return false, d.explain(f.table, err)
	case place != e.Place:
		return false, fmt.Errorf("%w: the evidence was written on another server or database than the pool of the fence leads to", errForgotten)
	case seq == 0 && e.Seq == 1:
		return false, nil
	case seq < e.Seq-1:
		return false, fmt.Errorf("%w: the row of %q in %s was removed meanwhile", errForgotten, e.Key, f.table)
	}
	for id := range slices.Chunk(commits, idSize) {
		if bytes.Equal(id, e.ID) {
			return true, nil
		}
	}
	if seq-e.Seq >= kept {
		return false, fmt.Errorf("%w: %d transactions of %q have been committed since, and %s remembers %d", errForgotten, seq-e.Seq, e.Key, f.table, kept)
	}
	return false, nil
}

// Sweep removes the rows that have not been written for age or longer, and returns
// how many. Names that are used for ever need none. age has to be longer than any
// holder may hang between acquiring its lock and being admitted, and than an
// outcome may stay unsettled.
func (f *Fence) Sweep(ctx context.Context, age time.Duration) (removed int64, err error) {
	if age < time.Second {
		return 0, fmt.Errorf("txguard: Sweep(%v): the age must be a second or more, and should be days", age)
	}
	d, err := f.dialect(ctx)
	if err != nil {
		return 0, err
	}
	removed, err = d.sweep(ctx, f.db, f.table, int64(age/time.Second))
	return removed, d.explain(f.table, err)
}
