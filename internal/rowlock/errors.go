package rowlock

import (
	"errors"
	"fmt"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// Of MySQL and MariaDB.
const (
	duplicate = 1062 // ER_DUP_ENTRY
	rowLocked = 1205 // ER_LOCK_WAIT_TIMEOUT; on MariaDB what NOWAIT says, too
	noWait    = 3572 // ER_LOCK_NOWAIT
	deadlock  = 1213 // ER_LOCK_DEADLOCK
	noTable   = 1146 // ER_NO_SUCH_TABLE
	tooLong   = 1406 // ER_DATA_TOO_LONG
)

// crossed reports whether a claim has failed since somebody else wrote the row at the same
// moment. It has changed nothing then.
func crossed(err error) bool {
	return userlock.Number(err) == duplicate || undone(err)
}

// undone reports whether the server has undone a statement for the sake of another session.
func undone(err error) bool {
	switch pgsession.Code(err) {
	case pgsession.Deadlock, pgsession.Serialization:
		return true
	}
	return userlock.Number(err) == deadlock
}

// locked reports whether a statement has failed since somebody else has locked the row.
func locked(err error) bool {
	switch userlock.Number(err) {
	case rowLocked, noWait:
		return true
	}
	return pgsession.Code(err) == pgsession.LockTimeout
}

func errStandby(why string) error {
	return fmt.Errorf("%w: %s, so probably a replica: a lock there excludes nobody on the primary; connect to the primary", sqllock.ErrUnsupported, why)
}

func (b *Backend) errInTransaction() error {
	return fmt.Errorf("%w, which statements on the lock table would join, and others not see: do it outside of the transaction, or give the backend a pool (%s.WithPool)",
		sqllock.ErrInTransaction, b.format.Package)
}

func lost(why string) error { return fmt.Errorf("%w: %s", sqllock.ErrLost, why) }

const (
	whyGone = "its row is gone, or somebody else's by now"
	whyOver = "its TTL is over, or somebody has freed it"
)

// unasked is the end of a lock whose time is over, of which err is all that is known. An
// ErrInTransaction in it would say that nothing has changed.
func unasked(err error) error {
	if errors.Is(err, sqllock.ErrSessionGone) {
		return fmt.Errorf("%w: its TTL is over, and the server could not be asked: %w", sqllock.ErrLost, err)
	}
	return fmt.Errorf("%w: its TTL is over, and the server could not be asked: %v", sqllock.ErrLost, err) //nolint:errorlint // see above
}

// notSent reports whether err means that the session was over before the statement ran.
func notSent(err error) bool { return userlock.NotSent(err) || pgsession.NotSent(err) }

// explain adds to the server's errors about the table what to do.
func (q *queries) explain(err error) error {
	if err == nil || errors.Is(err, sqllock.ErrNoTable) || errors.Is(err, sqllock.ErrPermission) {
		return err
	}
	if errors.Is(err, userlock.ErrSilent) || errors.Is(err, pgsession.ErrSilent) {
		return fmt.Errorf("%w; is table %s locked?", err, q.f.Table)
	}
	if q.pg {
		return q.explainPG(err)
	}
	switch userlock.Number(err) {
	case noTable, 1051, 1049: // ER_BAD_TABLE_ERROR, ER_BAD_DB_ERROR
		return q.errMissing(err)
	case 1046: // ER_NO_DB_ERROR
		return fmt.Errorf("%w: no database is selected: name one in the DSN, or in %s.WithTable(\"schema.%s\"): %w", sqllock.ErrNoTable, q.f.Package, q.f.Table, err)
	case 1054: // ER_BAD_FIELD_ERROR
		return q.errShape(err)
	case 1142, 1143, 1044, 1227: // ER_TABLEACCESS_DENIED_ERROR and the like
		return fmt.Errorf("%w: it needs SELECT, INSERT, UPDATE and DELETE on table %s: %w", sqllock.ErrPermission, q.f.Table, err)
	case 1792: // ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
		return fmt.Errorf("%w: transactions of the session are READ ONLY by default (transaction_read_only, or tx_read_only on MariaDB): take that out of the DSN, or put it on those that need it: %w", sqllock.ErrUnsupported, err)
	case 1290, 1836: // ER_OPTION_PREVENTS_STATEMENT, ER_READ_ONLY_MODE
		return fmt.Errorf("%w: %w", errStandby("the server takes no writes"), err)
	case rowLocked:
		return q.errLocked(err)
	case tooLong:
		return fmt.Errorf("%w: a column of table %s is too short for it: %w", sqllock.ErrInvalidName, q.f.Table, err)
	}
	return err
}

func (q *queries) explainPG(err error) error {
	switch pgsession.Code(err) {
	case pgsession.NoTable, "3F000": // invalid_schema_name
		return q.errMissing(err)
	case pgsession.NoColumn, "42P10", pgsession.NoFunction, "42804", "42809": // no unique index, datatype_mismatch, wrong_object_type
		return q.errShape(err)
	case pgsession.NoPrivilege:
		return fmt.Errorf("%w: this role needs GRANT SELECT, INSERT, UPDATE, DELETE ON %s, and USAGE on its schema: %w", sqllock.ErrPermission, q.f.Table, err)
	case "0A000": // feature_not_supported: READ WRITE on a standby
		return fmt.Errorf("%w: %w", errStandby("the server takes no writes"), err)
	case pgsession.LockTimeout:
		return q.errLocked(err)
	case "22001": // string_data_right_truncation
		return fmt.Errorf("%w: a column of table %s is too short for it: %w", sqllock.ErrInvalidName, q.f.Table, err)
	}
	return err
}

func (q *queries) errMissing(err error) error {
	return fmt.Errorf("%w: there is no table %s that this user can see. It is %s's, which makes it; or name another by %s.WithTable, or run %s: %w",
		sqllock.ErrNoTable, q.f.Table, q.f.Owner, q.f.Package, q.create(), err)
}

func (q *queries) errShape(err error) error {
	return fmt.Errorf("%w: table %s is not one of %s's locks, as %s makes it: %w", sqllock.ErrNoTable, q.f.Table, q.f.Owner, q.create(), err)
}

func (q *queries) errLocked(err error) error {
	return fmt.Errorf("another session has locked the row, or table %s, for seconds (an open transaction that has written or guards the lock, LOCK TABLES, ALTER TABLE): %w", q.f.Table, err)
}

// errGuard says why a transaction can't be guarded.
func (q *queries) errGuard(err error) error {
	switch {
	case q.pg && pgsession.Code(err) == pgsession.ReadOnlyTx:
		return fmt.Errorf("%w: the transaction is READ ONLY, so it can't lock the row of its lock, and has nothing to commit either: %w", sqllock.ErrUnsupported, err)
	case q.pg && pgsession.Code(err) == pgsession.Serialization, !q.pg && userlock.Number(err) == 1020: // ER_CHECKREAD
		return fmt.Errorf("the lock was extended, or taken over, since the transaction's snapshot; with READ COMMITTED it may be extended, "+
			"otherwise take a TTL that is longer than the transaction, or txguard.Retries: %w", err)
	}
	return q.explain(err)
}
