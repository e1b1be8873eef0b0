package txguard

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// busy are the conns with a guarded transaction. Two locks may share one.
var busy sync.Map //nolint:gochecknoglobals // a session is one for the whole process

// occupy has conn for itself until it is left.
func occupy(conn *sql.Conn) (leave func(), err error) {
	if _, taken := busy.LoadOrStore(conn, true); taken {
		return nil, fmt.Errorf("%w: a guarded one is under way on it", sqllock.ErrInTransaction)
	}
	return func() { busy.Delete(conn) }, nil
}

// attempt has the session for itself.
func (w *work) attempt(ctx context.Context) (e *OutcomeError) {
	leave, err := occupy(w.conn)
	if err != nil {
		return w.fail(ErrNotBegun, err)
	}
	defer leave()
	if w.conn != w.lock.Conn() {
		return w.transaction(ctx)
	}
	err = w.lock.Use(func(*sql.Conn) error {
		e = w.transaction(ctx)
		return nil
	})
	if err != nil {
		return w.fail(ErrNotBegun, err)
	}
	return e
}

// transaction is the life of one.
func (w *work) transaction(ctx context.Context) *OutcomeError {
	tx, err := w.begin(ctx)
	if err != nil {
		return w.fail(ErrNotBegun, err)
	}
	fnCtx, cancel := w.lock.Context(ctx)
	defer cancel() // last of all: it would break the connection under rows that were left open
	returned := false
	defer func() {
		if !returned {
			_ = w.undo(ctx, tx, errPanic, nil) // the panic goes on; the session is left tidy
		}
	}()
	err = w.fn(fnCtx, tx)
	returned = true
	if err != nil {
		return w.undo(ctx, tx, w.endedEarly(ctx, err), fmt.Errorf("the function returned: %w", err))
	}
	return w.commit(ctx, tx)
}

// begin begins the transaction, unless one is open on the session, which that
// would commit. The transaction lives as long as its ctx, so that must not be the
// caller's: its end would be answered by a rollback behind the back of the function.
func (w *work) begin(ctx context.Context) (*sql.Tx, error) {
	if err := w.vacant(ctx); err != nil {
		return nil, err
	}
	return w.conn.BeginTx(context.WithoutCancel(ctx), w.tx)
}

// vacant returns an error unless the session is alive, in no transaction, and
// notices when a later one ends. What the driver says of an open one may be of before
// an error.
func (w *work) vacant(ctx context.Context) error {
	var st userlock.Status
	err := userlock.Use(w.conn, func(s *session.Session) (err error) {
		if err := s.Alive(ctx); err != nil {
			return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
		}
		now, known := userlock.Known(s)
		if !known || now.Open {
			now, err = userlock.Refresh(ctx, s)
		}
		st = now
		return err
	})
	switch {
	case err != nil:
		return w.lost(ctx, err)
	case st.Open:
		return fmt.Errorf("%w: end it first; it was left as it is", sqllock.ErrInTransaction)
	case !st.Autocommit:
		return fmt.Errorf("%w: autocommit is off on the session, so that a statement that commits implicitly could not be noticed; SET autocommit=1", sqllock.ErrUnsupported)
	}
	return nil
}

// commit commits if the lock is held, and tells what became of the work.
func (w *work) commit(ctx context.Context, tx *sql.Tx) *OutcomeError {
	if err := w.mayCommit(ctx); err != nil {
		return w.refuse(ctx, tx, err)
	}
	var evidence *Evidence
	sent := false
	err := w.lock.WhileHeld(ctx, w.over, w.minTTL, func() (err error) {
		if w.write != nil {
			if evidence, err = w.write(ctx, w.conn); err != nil {
				return err
			}
		}
		if err := w.stillOpen(ctx); err != nil { // of an answer that has just come
			return err
		}
		sent = true
		return tx.Commit()
	})
	switch {
	case !sent || errors.Is(err, sql.ErrTxDone):
		return w.refuse(ctx, tx, err)
	case err != nil:
		return w.unknown(ctx, evidence, err)
	}
	if st, known := w.known(); !known || st.Open { // another one, by completion_type
		w.execute(ctx, "ROLLBACK AND NO CHAIN")
	}
	return nil
}

// mayCommit finds what can be found without asking.
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
	return w.stillOpen(ctx)
}

var (
	errPanic       = errors.New("the function did not return")
	errEndedByFunc = errors.New("the function ended the Tx itself")
	errEndedEarly  = errors.New("the transaction had been ended before its end, by a statement that commits implicitly, even one that failed, or by an error that rolls it back, such as a deadlock, and was not returned")
)

// stillOpen returns errEndedEarly if the session, by its last answer that was no
// error, is in no transaction any more, and another error if it can't be asked.
func (w *work) stillOpen(ctx context.Context) error {
	return session.Use(w.conn, func(s *session.Session) (err error) {
		st, known := userlock.Known(s)
		if !known {
			st, err = userlock.AskStatus(ctx, s)
		}
		if err != nil {
			return err
		}
		return early(st)
	})
}

func early(st userlock.Status) error {
	switch {
	case !st.Open:
		return errEndedEarly
	case !st.Autocommit:
		return fmt.Errorf("%w; autocommit was switched off", errEndedEarly)
	}
	return nil
}

// endedEarly is stillOpen for a transaction that is to be undone because of why,
// which may be the error of the last statement. That statement may have committed
// implicitly, so another answer is asked for. A deadlock has rolled back: the session
// itself says whether that was its last statement's error, and it is followed by no
// other answer unless the function has gone on. If the session is broken, the server
// rolls back.
func (w *work) endedEarly(ctx context.Context, why error) (found error) {
	_ = session.Use(w.conn, func(s *session.Session) error {
		st, known := userlock.Known(s)
		if known && !st.Open {
			found = errEndedEarly
			return nil
		}
		rolledBack := false
		if transient(why) {
			last, err := userlock.LastError(ctx, s)
			if err != nil {
				return err
			}
			rolledBack = endsTransaction(last)
		}
		st, err := userlock.Refresh(ctx, s)
		if err == nil && (st.Open || !rolledBack) {
			found = early(st)
		}
		return err
	})
	return found
}

// refuse undoes a transaction whose function has succeeded.
func (w *work) refuse(ctx context.Context, tx *sql.Tx, why error) *OutcomeError {
	switch {
	case errors.Is(why, errEndedEarly):
		return w.undo(ctx, tx, why, nil)
	case errors.Is(why, sql.ErrTxDone):
		return w.undo(ctx, tx, nil, nil)
	}
	return w.undo(ctx, tx, w.endedEarly(ctx, why), why)
}

// undo rolls back, and tells why, and whether there was anything to roll back: early
// is that the transaction had ended before. why is nil if there is no other reason.
func (w *work) undo(ctx context.Context, tx *sql.Tx, early, why error) *OutcomeError {
	err := tx.Rollback()
	st, known := w.known()
	switch {
	case err != nil && !errors.Is(err, sql.ErrTxDone):
		_ = session.Close(w.conn) // what is closed already is what is wanted
	case early != nil || !known || st.Open:
		w.tidy(ctx)
	}
	if errors.Is(err, sql.ErrTxDone) {
		early = errEndedByFunc
	}
	switch {
	case early != nil && why != nil:
		return w.fail(ErrUnguarded, fmt.Errorf("%w; %w", early, why))
	case early != nil:
		return w.fail(ErrUnguarded, early)
	case err != nil || w.lock.Err() != nil:
		return w.fail(ErrRolledBack, w.lost(ctx, why))
	}
	return w.fail(ErrRolledBack, why)
}

// known is what the driver knows of the session.
func (w *work) known() (st userlock.Status, known bool) {
	_ = session.Use(w.conn, func(s *session.Session) error {
		st, known = userlock.Known(s)
		return nil
	})
	return st, known
}

// tidy leaves the session in no transaction, with autocommit, and without tables that
// the function has locked.
func (w *work) tidy(ctx context.Context) {
	w.execute(ctx, "ROLLBACK AND NO CHAIN", "UNLOCK TABLES", "SET autocommit=1")
}

// execute closes the session where a statement is not confirmed.
func (w *work) execute(ctx context.Context, queries ...string) {
	for _, query := range queries {
		if _, err := exec(ctx, w.conn, query); err != nil {
			_ = session.Close(w.conn)
			return
		}
	}
}

// lost is cause, behind the loss of the lock if that was lost.
func (w *work) lost(ctx context.Context, cause error) error {
	lost := w.lock.Check(context.WithoutCancel(ctx))
	told := errors.Is(cause, sqllock.ErrLost) || errors.Is(cause, sqllock.ErrNotHeld)
	if !told && (errors.Is(lost, sqllock.ErrLost) || errors.Is(lost, sqllock.ErrNotHeld)) {
		return fmt.Errorf("%w; %w", lost, cause)
	}
	return cause
}

// unknown tells what became of a transaction whose COMMIT failed with err.
func (w *work) unknown(ctx context.Context, evidence *Evidence, err error) *OutcomeError {
	unsent := errors.Is(err, driver.ErrBadConn)
	err = fmt.Errorf("COMMIT: %w", err)
	if transient(err) { // an answer, and it says so
		return w.fail(ErrRolledBack, err)
	}
	_ = session.Close(w.conn) // so that the server decides
	if unsent {
		return w.fail(ErrRolledBack, fmt.Errorf("%w: %w; %w", sqllock.ErrLost, sqllock.ErrSessionGone, err))
	}
	e := w.fail(ErrUnknown, w.lost(ctx, err))
	e.Evidence = evidence
	return e
}

func ended(ctx context.Context) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(cause, err) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
