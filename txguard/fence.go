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
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
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
// migrations.Up(ctx, db, migrations.Fences()). A Fence is safe for concurrent use.
type Fence struct {
	db    *sql.DB
	name  string // of the table
	table string // quoted
}

// FenceOption configures a [Fence].
type FenceOption interface{ apply(*Fence) }

type fenceOption func(*Fence)

func (o fenceOption) apply(f *Fence) { o(f) }

// WithTable names the table in place of lock_fences, with or without a schema in
// front: ASCII letters, digits, "_" and "$". It panics on any other name.
func WithTable(name string) FenceOption {
	schema, table, qualified := strings.Cut(name, ".")
	if schema == "" || strings.Trim(schema, alphabet) != "" || qualified && (table == "" || strings.Trim(table, alphabet) != "") {
		panic(fmt.Sprintf("txguard: WithTable(%q): the name must be ASCII letters, digits, _ and $, with or without a schema and a dot in front", name))
	}
	return fenceOption(func(f *Fence) { f.name = name })
}

// NewFence returns the fence in the database of db, which is the pool that fenced
// work runs on, and whose sessions must have autocommit on. It sends nothing. It panics
// if db is nil.
func NewFence(db *sql.DB, opts ...FenceOption) *Fence {
	if db == nil {
		panic("txguard: NewFence needs the *sql.DB of the database where the work is done")
	}
	f := &Fence{db: db, name: defaultTable}
	for _, o := range opts {
		o.apply(f)
	}
	f.table = "`" + strings.ReplaceAll(f.name, ".", "`.`") + "`"
	return f
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
// A lock without a token of its own, as of mysqlnamed, gets one from the fence table
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
		return fail(f.explain(err))
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
	w := &work{lock: lock, conn: lock.Conn()}
	if err := w.vacant(ctx); err != nil {
		return 0, fmt.Errorf("a token for the lock can't be made on its session: %w", err)
	}
	if err := f.unlocked(ctx, lock); err != nil {
		return 0, err
	}
	err = lock.WhileHeld(ctx, lock.Conn(), 0, func() (err error) {
		token, err = exec(ctx, lock.Conn(), f.mintQuery(lock.Grant().Key))
		if errors.Is(err, sqllock.ErrSessionGone) {
			return w.lost(ctx, err)
		}
		return f.explain(err)
	})
	return token, err
}

// unlocked waits, without a statement that waits, until nobody has the row of the
// lock: statements on the lock's session are given up after some seconds, and the
// session with them.
func (f *Fence) unlocked(ctx context.Context, lock *sqllock.Lock) error {
	var token sql.NullInt64 // of no interest
	for {
		err := userlock.AskOver(ctx, lock.Conn(), f.peekQuery(lock.Grant().Key), &token)
		switch userlock.Number(err) {
		case 3572, // ER_LOCK_NOWAIT
			1205, // the same on MariaDB
			1213:
		default:
			return nil // what else there is, the next statement says
		}
		if wait(ctx, settlePause) != nil {
			return fmt.Errorf("%w; somebody is about to commit: %w", ended(ctx), err)
		}
	}
}

// exec runs a statement on the session under conn, and returns its insert id.
func exec(ctx context.Context, conn *sql.Conn, query string) (id int64, err error) {
	err = userlock.Use(conn, func(s *session.Session) error {
		res, err := userlock.Exec(ctx, s, query)
		if err != nil {
			return err
		}
		id, err = res.LastInsertId()
		return err
	})
	return id, err
}

// raise returns the greatest token of key.
func (f *Fence) raise(ctx context.Context, key string, token int64) (int64, error) {
	for {
		latest, err := f.raiseOnce(ctx, key, token)
		if err == nil || errors.Is(err, errNoConn) {
			return latest, err
		}
		if ctx.Err() == nil && !blocked(err) {
			return 0, err
		}
		if wait(ctx, settlePause) != nil {
			return 0, fmt.Errorf("%w; somebody is about to commit, or the server is not there: %w", ended(ctx), err)
		}
	}
}

// errNoConn is that the pool had no connection.
var errNoConn = errors.New("no connection for the fence: all of the pool are in use, the lock's own perhaps among them, or the server can't be reached")

func (f *Fence) raiseOnce(ctx context.Context, key string, token int64) (int64, error) {
	conn, err := f.db.Conn(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNoConn, err)
	}
	defer conn.Close() //nolint:errcheck // what was raised is raised
	res, err := conn.ExecContext(ctx, f.raiseQuery(key, token))
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// blocked reports whether somebody else's lock on a row has kept a statement, which
// did nothing, from being run.
func blocked(err error) bool {
	switch userlock.Number(err) {
	case 1205, // ER_LOCK_WAIT_TIMEOUT
		1213: // ER_LOCK_DEADLOCK
		return true
	}
	return false
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
	w := &work{config: c, lock: f.lock, fn: fn, over: f.lock.Conn(), write: f.pass}
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

// evidence is what a statement with that id has written.
func (f *Fence) evidence(ctx context.Context, conn *sql.Conn, key string, query func(id []byte) string) (*Evidence, error) {
	e := &Evidence{Key: key, ID: newID()}
	n, err := exec(ctx, conn, query(e.ID))
	e.Seq, e.Place = int64(uint64(n)>>32), uint32(uint64(n)) //nolint:gosec // two halves
	return e, f.explain(err)
}

// newID returns a random id.
func newID() []byte {
	id := make([]byte, idSize)
	_, _ = rand.Read(id) // never fails
	return id
}

// note writes evidence on the session of the lock.
func (f *Fence) note(ctx context.Context, conn *sql.Conn, key string) (*Evidence, error) {
	return f.evidence(ctx, conn, key, func(id []byte) string { return f.noteQuery(key, id) })
}

// pass writes evidence if the fence lets the transaction pass.
func (f *Fenced) pass(ctx context.Context, conn *sql.Conn) (*Evidence, error) {
	key := f.lock.Grant().Key
	e, err := f.fence.evidence(ctx, conn, key, func(id []byte) string { return f.fence.passQuery(key, f.token, id) })
	if err == nil && e.Seq == 0 {
		err = fmt.Errorf("%w: a later holder than that of token %d has been admitted to %s, or its row was removed", sqllock.ErrLost, f.token, f.fence.name)
	}
	return e, err
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

// look reads the row of e under its lock, for which a transaction that has written
// it makes everybody wait until it is decided. A read without one might be of the
// moment before.
func (f *Fence) look(ctx context.Context, e Evidence) (bool, error) {
	tx, err := f.db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	var seq int64
	var place uint32
	var commits []byte
	err = tx.QueryRowContext(ctx, f.lookQuery(e.Key)).Scan(&seq, &commits, &place)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRowContext(ctx, "SELECT "+f.place()+" p").Scan(&place)
	}
	switch {
	case err != nil:
	case place != e.Place:
		return false, fmt.Errorf("%w: the evidence was written on another server or database than the pool of the fence leads to", errForgotten)
	case seq == 0 && e.Seq == 1:
		return false, nil
	case seq < e.Seq-1:
		return false, fmt.Errorf("%w: the row of %q in %s was removed meanwhile", errForgotten, e.Key, f.name)
	}
	if err != nil {
		return false, f.explain(err)
	}
	for id := range slices.Chunk(commits, idSize) {
		if bytes.Equal(id, e.ID) {
			return true, nil
		}
	}
	if seq-e.Seq >= kept {
		return false, fmt.Errorf("%w: %d transactions of %q have been committed since, and %s remembers %d", errForgotten, seq-e.Seq, e.Key, f.name, kept)
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
	res, err := f.db.ExecContext(ctx, f.sweepQuery(int64(age/time.Second)))
	if err != nil {
		return 0, f.explain(err)
	}
	return res.RowsAffected()
}

const noSuchTable = 1146 // ER_NO_SUCH_TABLE

// explain says what to do about an error of the table.
func (f *Fence) explain(err error) error {
	switch userlock.Number(err) {
	case noSuchTable, 1054: // ER_BAD_FIELD_ERROR
		return fmt.Errorf("%w: %s: run migrations.Up(ctx, db, migrations.Fences()) on that database: %w", sqllock.ErrNoTable, f.name, err)
	case 1142, 1143, 1044: // ER_TABLEACCESS_DENIED_ERROR, ER_COLUMNACCESS_DENIED_ERROR, ER_DBACCESS_DENIED_ERROR
		return fmt.Errorf("%w: the fence needs SELECT, INSERT, UPDATE (and DELETE for Sweep) on %s: %w", sqllock.ErrPermission, f.name, err)
	}
	return err
}
