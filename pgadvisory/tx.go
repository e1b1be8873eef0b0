package pgadvisory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

// CanShare says that the locks can be shared.
func (b *Backend) CanShare() {}

// txSlice is the longest wait in one statement of a *sql.Tx, which no cancel request
// can end.
const txSlice = time.Second

// AcquireTx tries, and then waits in slices of a second, each behind a savepoint. The
// server that lends its session for the transaction is the one that holds the lock, so
// poolers do no harm; a standby or a look-alike is refused as for other locks.
func (b *Backend) AcquireTx(ctx context.Context, tx *sql.Tx, req sqllock.Request) error {
	var got, standby sql.NullBool
	var version, level sql.NullString
	l := lock{req.Key, req.Shared}
	query := l.xact("pg_try_advisory_xact_lock") + " got,version(),pg_is_in_recovery(),current_setting('transaction_isolation')"
	err := pgsession.AskOver(ctx, tx, query, &got, &version, &standby, &level)
	if err != nil {
		return err
	}
	if err := pgsession.Refused(version.String, standby.Bool, b.allowed, "pgadvisory"); err != nil {
		return fmt.Errorf("%w; roll the transaction back", err) // it may have the lock
	}
	if level.String != "read committed" && level.String != "read uncommitted" {
		return fmt.Errorf("%w: the transaction is %s, and would not see what the holder before it has committed: "+
			"roll it back, and begin it with sql.LevelReadCommitted", sqllock.ErrUnsupported, strings.ToUpper(level.String))
	}
	for !got.Bool {
		if !req.Wait || pgsession.Ended(ctx) {
			return sqllock.ErrBusy
		}
		if got.Bool, err = waitTx(ctx, tx, l); err != nil {
			return err
		}
	}
	return nil
}

// waitTx waits for one slice, and reports whether the lock was granted. An error of the
// server's takes the transaction back to where it was, without the lock: unlike one of a
// session's, that is not kept after an error.
func waitTx(ctx context.Context, tx *sql.Tx, l lock) (granted bool, err error) {
	d := pgsession.Slice(ctx, txSlice)
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), d+pgsession.AnswerTime)
	defer cancel()
	run := func(query string) error {
		_, err := tx.ExecContext(bound, query, pgx.QueryExecModeSimpleProtocol)
		if err != nil && bound.Err() != nil {
			return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, pgsession.ErrSilent)
		}
		return pgsession.Classify(err)
	}
	err = run(pgsession.LimitedTx(d, l.xact("pg_advisory_xact_lock")))
	if err == nil || errors.Is(err, sqllock.ErrSessionGone) || errors.Is(err, sql.ErrTxDone) {
		return err == nil, err
	}
	if failed := run(pgsession.Undo); failed != nil {
		return false, fmt.Errorf("%w; the transaction could not be taken back to where it was: %w", err, failed)
	}
	if pgsession.Code(err) == pgsession.LockTimeout {
		return false, nil
	}
	return false, err
}
