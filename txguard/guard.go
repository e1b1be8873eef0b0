package txguard

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Func is work in a transaction. It works by tx, in one goroutine at a time, closes
// rows before it returns, returns the errors of statements, and leaves Commit and
// Rollback alone. Its ctx ends with that of the caller, and, with the error of the
// lock as the cause, when the lock is known to have ended. A statement that ctx cuts
// short costs the session, and with it the transaction, and the lock if it is on that
// session; one between statements costs neither.
type Func = func(ctx context.Context, tx *sql.Tx) error

// Run runs fn in a transaction on the session of lock, and commits if fn returns
// nil and the lock is still held. It returns nil if the work was committed, and
// otherwise an [OutcomeError]. If fn panics, or ends its goroutine, the transaction
// is rolled back and the panic goes on.
//
// It takes one round trip more than the transaction alone. The lock stays acquired
// whatever becomes of the transaction, unless the session is lost, as it is when
// [ErrUnknown] is returned: the handle then says so. ctx that ends keeps Run from
// committing until the lock is asked about, and not after that. BEGIN, COMMIT and
// ROLLBACK are sent by database/sql, which waits for the answer as long as the
// readTimeout of the DSN for MySQL, or the network, lets it.
//
// It is safe for concurrent use, but there is one guarded transaction at a time on
// a session: another one gets [sqllock.ErrInTransaction].
func Run(ctx context.Context, lock *sqllock.Lock, fn Func, opts ...Option) error {
	if lock == nil {
		return &OutcomeError{Outcome: ErrNotBegun, Err: errLockNil}
	}
	c, err := configure(opts)
	if err == nil && len(c.lock) > 0 {
		err = errLockOptions
	}
	if err != nil {
		return &OutcomeError{Name: lock.Name(), Outcome: ErrNotBegun, Err: err}
	}
	return c.result(ctx, c.run(ctx, lock, fn))
}

// Do acquires name on a connection of db, waiting as [sqllock.Locker.Do] does, has
// [Run] do the work, and releases. It returns what Run returns: nil if and only if
// the work was committed, whatever becomes of the release, which is the last thing
// that the lock is needed for. While fn runs, nothing is asked on its session: its
// own statements fail if that is lost.
//
// A function that needs the lock, to extend it or for its token, is run by Run
// inside of Locker.Do.
func Do(ctx context.Context, locker *sqllock.Locker, db *sql.DB, name string, fn Func, opts ...Option) error {
	_, err := do(ctx, locker, name, fn, opts, func(f lockedFunc, c *config) error {
		return locker.Do(ctx, db, name, f, c.lock...)
	})
	return err
}

// TryDo is [Do] for work that is to be skipped when another session holds the lock:
// it then returns false and no error. It returns true if fn has run, and true and
// nil if the work was committed.
func TryDo(ctx context.Context, locker *sqllock.Locker, db *sql.DB, name string, fn Func, opts ...Option) (ran bool, err error) {
	return do(ctx, locker, name, fn, opts, func(f lockedFunc, c *config) error {
		_, err := locker.TryDo(ctx, db, name, f, c.lock...)
		return err
	})
}

type lockedFunc = func(context.Context, *sqllock.Lock) error

func do(ctx context.Context, locker *sqllock.Locker, name string, fn Func, opts []Option, under func(lockedFunc, *config) error) (ran bool, err error) {
	c, err := configure(opts)
	switch {
	case err != nil:
	case locker == nil:
		err = errLockerNil
	case fn == nil:
		err = errFuncNil
	}
	if err != nil {
		return false, &OutcomeError{Name: name, Outcome: ErrNotBegun, Err: err}
	}
	locked := false
	var e *OutcomeError
	err = under(func(ctx context.Context, lock *sqllock.Lock) error {
		locked = true
		e = c.run(ctx, lock, func(ctx context.Context, tx *sql.Tx) error {
			ran = true
			return fn(ctx, tx)
		})
		return nil
	}, c)
	switch {
	case locked:
		return ran, c.result(ctx, e)
	case err != nil:
		return false, &OutcomeError{Name: name, Outcome: ErrNotBegun, Err: err}
	}
	return false, nil
}

// run is Run with the options as they are, and without settling.
func (c *config) run(ctx context.Context, lock *sqllock.Lock, fn Func) *OutcomeError {
	w := &work{config: c, lock: lock, conn: lock.Conn(), fn: fn}
	if w.conn == nil {
		return w.fail(ErrNotBegun, errShared)
	}
	w.over = sqllock.InTx{Conn: w.conn}
	if c.fence != nil {
		w.write = func(ctx context.Context, conn *sql.Conn) (*Evidence, error) {
			return c.fence.note(ctx, w.server, conn, lock.Grant().Key)
		}
	}
	if err := w.possible(ctx); err != nil {
		return w.fail(ErrNotBegun, err)
	}
	return w.run(ctx)
}

// result makes an error of what is one, after looking up what became of a COMMIT whose
// answer was lost. That takes a connection, so the one that was lost has to have been
// given back, if it is ours.
func (c *config) result(ctx context.Context, e *OutcomeError) error {
	if e == nil {
		return nil
	}
	if e.Outcome != ErrUnknown || e.Evidence == nil { //nolint:errorlint // that of this transaction
		return e
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	committed, err := c.fence.settle(ctx, *e.Evidence)
	switch {
	case err != nil:
		return &OutcomeError{e.Name, ErrUnknown, fmt.Errorf("%w; %w", e.Err, err), e.Evidence}
	case committed:
		return nil
	}
	return &OutcomeError{Name: e.Name, Outcome: ErrRolledBack, Err: e.Err}
}

// work is a guarded transaction under way.
type work struct {
	*config
	lock   *sqllock.Lock
	conn   *sql.Conn // the session that the work is done on
	server dialect   // of conn, once there has been an attempt
	fn     Func
	over   sqllock.Querier // what to ask about the lock over

	// write writes the evidence, at the end of the transaction; nil for none.
	write func(context.Context, *sql.Conn) (*Evidence, error)

	// superseded is asked, after a rollback because of why, for a better reason; nil for none.
	superseded func(ctx context.Context, why error) error
}

// The pauses before a transaction is run again are random, from half of one to
// one; it doubles from the first to the last.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
)

// run makes attempts, as many as it may. Errors of this package that the function
// passes on are of other transactions: the outcomes of this one are compared, not
// matched.
func (w *work) run(ctx context.Context) *OutcomeError {
	pause := firstPause
	last := w.attempt(ctx)
	for range w.retries {
		if last == nil || last.Outcome != ErrRolledBack || !w.server.transient(last) { //nolint:errorlint // see above
			return last
		}
		err := w.lock.Check(ctx)
		if err == nil {
			err = wait(ctx, pause/2+rand.N(pause/2))
		}
		if err == nil {
			next := w.attempt(ctx)
			if next == nil || next.Outcome != ErrNotBegun { //nolint:errorlint // see above
				last = next
				pause = min(2*pause, lastPause)
				continue
			}
			err = next.Err
		}
		return w.fail(ErrRolledBack, fmt.Errorf("%w; not tried again: %w", last.Err, err))
	}
	return last
}

// wait returns early, with its error, when ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (w *work) fail(outcome, err error) *OutcomeError {
	return &OutcomeError{Name: w.lock.Name(), Outcome: outcome, Err: err}
}

// possible finds what can be found without the session.
func (w *work) possible(ctx context.Context) error {
	switch {
	case w.fn == nil:
		return errFuncNil
	case w.lock.Err() != nil:
		return w.lock.Err()
	case ctx.Err() != nil:
		return ended(ctx)
	case w.minTTL > 0 && w.lock.Remaining() == math.MaxInt64:
		return fmt.Errorf("%w: MinTTL was asked for, and the lock has no TTL", sqllock.ErrUnsupported)
	case w.minTTL > w.lock.Remaining():
		return fmt.Errorf("%w: %v, and MinTTL asks for %v at the end", sqllock.ErrTTLTooShort, w.lock.Remaining(), w.minTTL)
	}
	return nil
}
