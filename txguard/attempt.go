package txguard

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/sqllock/go-sqllock/internal/session"
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
	w.server = dialectOf(w.conn)
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
		return w.undo(ctx, tx, w.server.endedEarly(ctx, w.conn, err), fmt.Errorf("the function returned: %w", err))
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
	tx, err := w.conn.BeginTx(context.WithoutCancel(ctx), w.tx)
	if err == nil {
		return tx, nil
	}
	err = w.server.notBegun(w.conn, err)
	if errors.Is(err, sqllock.ErrSessionGone) {
		err = w.lost(ctx, err)
	}
	return nil, err
}

// vacant returns an error unless a transaction can be begun on the session.
func (w *work) vacant(ctx context.Context) error {
	err := w.server.vacant(ctx, w.conn)
	if err == nil || errors.Is(err, sqllock.ErrInTransaction) || errors.Is(err, sqllock.ErrUnsupported) {
		return err
	}
	return w.lost(ctx, err)
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
		if err := w.server.stillOpen(ctx, w.conn); err != nil { // of an answer that has just come
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
	w.execute(ctx, w.server.chained(w.conn))
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
	if err := w.server.idle(w.conn); err != nil {
		return err
	}
	return w.server.stillOpen(ctx, w.conn)
}

var (
	errPanic       = errors.New("the function did not return")
	errEndedByFunc = errors.New("the function ended the Tx itself")
	errEndedEarly  = errors.New("the transaction had been ended before its end")
)

// refuse undoes a transaction whose function has succeeded.
func (w *work) refuse(ctx context.Context, tx *sql.Tx, why error) *OutcomeError {
	switch {
	case errors.Is(why, errEndedEarly):
		return w.undo(ctx, tx, why, nil)
	case errors.Is(why, sql.ErrTxDone):
		return w.undo(ctx, tx, nil, nil)
	}
	e := w.undo(ctx, tx, w.server.endedEarly(ctx, w.conn, why), why)
	if w.superseded != nil && e.Outcome == ErrRolledBack { //nolint:errorlint // that of this transaction
		if err := w.superseded(ctx, why); err != nil {
			e.Err = err
		}
	}
	return e
}

// undo rolls back, and tells why, and whether there was anything to roll back: early
// is that the transaction had ended before. why is nil if there is no other reason.
func (w *work) undo(ctx context.Context, tx *sql.Tx, early, why error) *OutcomeError {
	err := tx.Rollback()
	if err != nil && !errors.Is(err, sql.ErrTxDone) {
		_ = session.Close(w.conn) // what is closed already is what is wanted
	} else {
		w.execute(ctx, w.server.tidying(w.conn, early != nil))
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

// execute closes the session where a statement is not confirmed.
func (w *work) execute(ctx context.Context, queries []string) {
	for _, query := range queries {
		if err := w.server.execute(ctx, w.conn, query); err != nil {
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
	unsent := w.server.unsent(err)
	err = fmt.Errorf("COMMIT: %w", err)
	if w.server.refused(w.conn, err) {
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
