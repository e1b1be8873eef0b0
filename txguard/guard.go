package txguard

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
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
// committing until the lock is asked about, and not after that. COMMIT and ROLLBACK
// are sent by database/sql, which waits for the answer as long as the readTimeout of
// the DSN, or the network, lets it.
//
// It is safe for concurrent use, but there is one guarded transaction at a time on
// a session: another one gets [sqllock.ErrInTransaction].
func Run(ctx context.Context, lock *sqllock.Lock, fn Func, opts ...Option) error {
	c, err := configure(opts)
	if err == nil && len(c.lock) > 0 {
		err = errors.New("WithLockOptions is for Do and TryDo: this lock has been acquired already")
	}
	if err != nil {
		return &OutcomeError{Name: lock.Name(), Outcome: ErrNotBegun, Err: err}
	}
	return c.run(ctx, lock, fn)
}

// Do acquires name on a connection of db, waiting as [sqllock.Locker.Do] does, has
// [Run] do the work, and releases. It returns what Run returns: nil if and only if
// the work was committed, whatever becomes of the release, which is the last thing
// that the lock is needed for. While fn runs, the server is asked at the interval
// of the Locker whether the lock is held.
func Do(ctx context.Context, locker *sqllock.Locker, db *sql.DB, name string, fn Func, opts ...Option) error {
	_, err := do(name, fn, opts, func(f lockedFunc, c *config) (bool, error) {
		return true, locker.Do(ctx, db, name, f, c.lock...)
	})
	return err
}

// TryDo is [Do] for work that is to be skipped when another session holds the lock:
// it then returns false and no error. It returns true and nil if the work was
// committed.
func TryDo(ctx context.Context, locker *sqllock.Locker, db *sql.DB, name string, fn Func, opts ...Option) (ran bool, err error) {
	return do(name, fn, opts, func(f lockedFunc, c *config) (bool, error) {
		return locker.TryDo(ctx, db, name, f, c.lock...)
	})
}

type lockedFunc = func(context.Context, *sqllock.Lock) error

func do(name string, fn Func, opts []Option, under func(lockedFunc, *config) (bool, error)) (ran bool, err error) {
	c, err := configure(opts)
	if err == nil && fn == nil {
		err = errFuncNil
	}
	if err != nil {
		return false, &OutcomeError{Name: name, Outcome: ErrNotBegun, Err: err}
	}
	begun := false
	var outcome error
	ran, err = under(func(ctx context.Context, lock *sqllock.Lock) error {
		begun = true
		outcome = c.run(ctx, lock, fn)
		return outcome
	}, c)
	switch {
	case begun:
		return true, outcome
	case err != nil:
		return false, &OutcomeError{Name: name, Outcome: ErrNotBegun, Err: err}
	}
	return ran, nil
}

func (c *config) run(ctx context.Context, lock *sqllock.Lock, fn Func) error {
	w := &work{config: c, lock: lock, conn: lock.Conn(), fn: fn}
	w.over = func(tx *sql.Tx) sqllock.Querier { return tx }
	if c.fence != nil {
		w.write = func(ctx context.Context, conn *sql.Conn) (*Evidence, error) { return c.fence.note(ctx, conn, lock.Grant().Key) }
	}
	return w.run(ctx)
}

// work is a guarded transaction under way.
type work struct {
	*config
	lock  *sqllock.Lock
	conn  *sql.Conn // the session that the work is done on
	fn    Func
	over  func(*sql.Tx) sqllock.Querier // what to ask about the lock over

	// write writes the evidence, at the end of the transaction; nil for none.
	write func(context.Context, *sql.Conn) (*Evidence, error)
}

// The pauses before a transaction is run again are random, from half of one to
// one; it doubles from the first to the last.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
)

// run makes attempts, as many as it may.
func (w *work) run(ctx context.Context) error {
	if err := w.possible(); err != nil {
		return w.fail(ErrNotBegun, err)
	}
	pause := firstPause
	for n := 0; ; n++ {
		err := w.attempt(ctx)
		if n == w.retries || !errors.Is(err, ErrRolledBack) || !transient(err) {
			return err
		}
		if lost := w.lock.Check(ctx); lost != nil {
			return w.fail(ErrRolledBack, fmt.Errorf("%w, after: %w", lost, err))
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
			return err
		}
		pause = min(2*pause, lastPause)
	}
}

// transient reports whether the same transaction may succeed next time.
func transient(err error) bool {
	switch userlock.Number(err) {
	case 1213, // ER_LOCK_DEADLOCK
		1020: // ER_CHECKREAD: MariaDB's innodb_snapshot_isolation
		return true
	}
	return false
}

func (w *work) fail(outcome, err error) error {
	return &OutcomeError{Name: w.lock.Name(), Outcome: outcome, Err: err}
}

// possible finds what no attempt would change.
func (w *work) possible() error {
	switch {
	case w.fn == nil:
		return errFuncNil
	case w.lock.Err() != nil:
		return w.lock.Err()
	case w.minTTL > 0 && w.lock.Remaining() == math.MaxInt64:
		return fmt.Errorf("%w: MinTTL was asked for, and the lock has no TTL", sqllock.ErrUnsupported)
	}
	return nil
}

// busy are the conns with a guarded transaction. Two locks may share one.
var busy sync.Map //nolint:gochecknoglobals // a session is one for the whole process

// attempt is the life of one transaction.
func (w *work) attempt(ctx context.Context) error {
	if _, taken := busy.LoadOrStore(w.conn, true); taken {
		return w.fail(ErrNotBegun, fmt.Errorf("%w: another guarded one is under way on it", sqllock.ErrInTransaction))
	}
	defer busy.Delete(w.conn)
	tx, finish, err := w.begin(ctx)
	if err != nil {
		return w.fail(ErrNotBegun, err)
	}
	defer finish()
	returned := false
	defer func() {
		if !returned {
			_ = w.undo(ctx, tx, errPanic) // which tells nobody
		}
	}()
	fnCtx, cancel := w.lock.Context(ctx)
	defer cancel() // at the end: it would break the connection under rows that were left open
	err = w.fn(fnCtx, tx)
	returned = true
	if err != nil {
		return w.undo(ctx, tx, fmt.Errorf("the function returned: %w", err))
	}
	return w.commit(ctx, tx)
}

// begin begins the transaction, unless one is open on the session, which that
// would commit. The transaction lives as long as its ctx, so ctx must not be the
// caller's: its end would be answered by a rollback behind the back of the function.
func (w *work) begin(ctx context.Context) (tx *sql.Tx, finish func(), err error) {
	if ctx.Err() != nil {
		return nil, nil, ended(ctx)
	}
	st, err := w.status(ctx)
	switch {
	case err != nil:
		return nil, nil, w.lost(ctx, err)
	case st.Open:
		return nil, nil, fmt.Errorf("%w: end it first; it was left as it is", sqllock.ErrInTransaction)
	case !st.Autocommit:
		return nil, nil, fmt.Errorf("%w: autocommit is off on the session, so that a statement that commits implicitly could not be noticed; SET autocommit=1", sqllock.ErrUnsupported)
	}
	txCtx, finish := context.WithCancel(context.WithoutCancel(ctx))
	silence := time.AfterFunc(userlock.AnswerTime, finish)
	tx, err = w.conn.BeginTx(txCtx, w.tx)
	if !silence.Stop() && err == nil {
		_ = tx.Rollback() // it is under way already
		err = userlock.ErrSilent
	}
	if err != nil {
		finish()
		return nil, nil, err
	}
	return tx, finish, nil
}

// status asks the session, or the driver, about its transaction. What the driver
// says of an open one may be of before an error, so that is asked again.
func (w *work) status(ctx context.Context) (st userlock.Status, err error) {
	err = userlock.Use(w.conn, func(s *session.Session) (err error) {
		if err := s.Alive(ctx); err != nil {
			return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
		}
		known := false
		if st, known = userlock.Known(s); !known || st.Open {
			st, err = userlock.AskStatus(ctx, s)
		}
		return err
	})
	return st, err
}

// undo rolls back, and tells why, and whether there was anything to roll back.
func (w *work) undo(ctx context.Context, tx *sql.Tx, why error) error {
	early := w.endedEarly(ctx)
	if errors.Is(early, errEndedEarly) {
		defer w.unlockTables(ctx)
	} else {
		early = nil // the session is broken, and the server rolls back
	}
	err := w.rollback(ctx, tx)
	switch {
	case errors.Is(err, sql.ErrTxDone) && errors.Is(why, errEndedEarly):
		return w.fail(ErrUnguarded, errEndedByFunc)
	case errors.Is(err, sql.ErrTxDone):
		return w.fail(ErrUnguarded, fmt.Errorf("%w; %w", errEndedByFunc, why))
	case errors.Is(why, errEndedEarly):
		return w.fail(ErrUnguarded, why)
	case early != nil:
		return w.fail(ErrUnguarded, fmt.Errorf("%w; %w", early, why))
	case err != nil || w.lock.Err() != nil:
		return w.fail(ErrRolledBack, w.lost(ctx, why))
	}
	return w.fail(ErrRolledBack, why)
}

// unlockTables undoes a LOCK TABLES, which commits implicitly.
func (w *work) unlockTables(ctx context.Context) {
	if _, err := exec(ctx, w.conn, "UNLOCK TABLES"); err != nil {
		_ = session.Close(w.conn)
	}
}

// lost is cause, behind the loss of the lock if that was lost.
func (w *work) lost(ctx context.Context, cause error) error {
	if lost := w.lock.Check(context.WithoutCancel(ctx)); errors.Is(lost, sqllock.ErrLost) || errors.Is(lost, sqllock.ErrNotHeld) {
		return fmt.Errorf("%w; %w", lost, cause)
	}
	return cause
}

// commit commits if the lock is held, and tells what became of the work.
func (w *work) commit(ctx context.Context, tx *sql.Tx) error {
	if err := w.mayCommit(ctx); err != nil {
		return w.undo(ctx, tx, err)
	}
	var evidence *Evidence
	sent := false
	err := w.lock.WhileHeld(ctx, w.over(tx), w.minTTL, func() (err error) {
		if w.write != nil {
			if evidence, err = w.write(ctx, w.conn); err != nil {
				return err
			}
		}
		if err := w.endedEarly(ctx); err != nil { // of an answer that has just come
			return err
		}
		sent = true
		return tx.Commit()
	})
	switch {
	case err == nil:
		return nil
	case !sent:
		return w.undo(ctx, tx, err)
	case errors.Is(err, sql.ErrTxDone):
		return w.fail(ErrUnguarded, errEndedByFunc)
	}
	return w.unknown(ctx, evidence, err)
}

func (w *work) mayCommit(ctx context.Context) error {
	if err := w.lock.Err(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ended(ctx)
	}
	err := session.Use(w.conn, func(s *session.Session) error { return s.Idle() })
	if errors.Is(err, session.ErrUnusable) {
		return errOpenRows
	}
	if err != nil {
		return err
	}
	return w.endedEarly(ctx)
}

var (
	errPanic       = errors.New("the function did not return")
	errEndedByFunc = errors.New("the function ended the Tx itself")
	errEndedEarly  = errors.New("the transaction had been ended before its end, by a statement that commits implicitly, or by a deadlock whose error was not returned")
)

// endedEarly returns errEndedEarly if the session, by its last answer that was no
// error, is in no transaction any more, and another error if it can't be asked.
func (w *work) endedEarly(ctx context.Context) error {
	var st userlock.Status
	err := session.Use(w.conn, func(s *session.Session) (err error) {
		known := false
		if st, known = userlock.Known(s); !known {
			st, err = userlock.AskStatus(ctx, s)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case !st.Open:
		return errEndedEarly
	case !st.Autocommit:
		return fmt.Errorf("%w; autocommit was switched off", errEndedEarly)
	}
	return nil
}

// rollback ends the transaction, and leaves no other one open in the session,
// which is closed where that can't be confirmed.
func (w *work) rollback(ctx context.Context, tx *sql.Tx) error {
	err := tx.Rollback()
	clean := userlock.Use(w.conn, func(s *session.Session) error {
		st, known := userlock.Known(s)
		switch {
		case err != nil && !errors.Is(err, sql.ErrTxDone):
			return err
		case known && !st.Open && st.Autocommit:
			return nil
		}
		_, failed := userlock.Exec(ctx, s, "ROLLBACK")
		if failed == nil {
			_, failed = userlock.Exec(ctx, s, "SET autocommit=1")
		}
		return failed
	})
	if clean != nil {
		_ = session.Close(w.conn) // what is closed already is what is wanted
	}
	return err
}

// unknown tells what became of a transaction whose COMMIT failed with err.
func (w *work) unknown(ctx context.Context, evidence *Evidence, err error) error {
	if transient(err) { // an answer, and it says so
		return w.fail(ErrRolledBack, fmt.Errorf("COMMIT: %w", err))
	}
	_ = session.Close(w.conn) // so that the server decides
	reason := w.lost(ctx, fmt.Errorf("COMMIT: %w", err))
	if evidence == nil {
		return w.fail(ErrUnknown, reason)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	committed, err := w.fence.Settle(ctx, *evidence)
	switch {
	case err != nil:
		return &OutcomeError{w.lock.Name(), ErrUnknown, fmt.Errorf("%w; %w", reason, err), evidence}
	case committed:
		return nil
	}
	return w.fail(ErrRolledBack, reason)
}

func ended(ctx context.Context) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(cause, err) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
