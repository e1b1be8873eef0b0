package pgsession

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqllock/go-sqllock/sqllock"
)

// SQLSTATEs that say more than what Classify makes of them.
const (
	LockTimeout   = "55P03" // lock_not_available
	Serialization = "40001" // serialization_failure
	Deadlock      = "40P01" // deadlock_detected
	Canceled      = "57014" // query_canceled
	NoPrivilege   = "42501" // insufficient_privilege
	NoTable       = "42P01" // undefined_table
	NoColumn      = "42703" // undefined_column
	NoFunction    = "42883" // undefined_function
	ReadOnlyTx    = "25006" // read_only_sql_transaction
	outOfMemory   = "53200" // out_of_memory
	failedTx      = "25P02" // in_failed_sql_transaction
	noStatement   = "26000" // invalid_sql_statement_name
)

// Code returns the SQLSTATE of an error of the server, "" if err is none.
func Code(err error) string {
	var answer interface{ SQLState() string }
	if errors.As(err, &answer) {
		return answer.SQLState()
	}
	return ""
}

// Classify gives an error of the driver or the server the meaning it has for a
// lock, by SQLSTATE and never by text. Errors that mean nothing in particular are
// returned as they are: the session is usable then.
func Classify(err error) error {
	if err == nil || errors.Is(err, sql.ErrTxDone) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, sqllock.ErrSessionGone) {
		return err
	}
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		// After an error of the driver the connection is closed.
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	}
	switch {
	case fatal(answer):
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	case answer.Code == Canceled: // pg_cancel_backend, or statement_timeout
		return fmt.Errorf("%w: %w", sqllock.ErrInterrupted, err)
	case answer.Code == Deadlock:
		return fmt.Errorf("%w: %w", sqllock.ErrDeadlock, err)
	case answer.Code == failedTx:
		return fmt.Errorf("%w: %w", ErrAborted, err)
	case answer.Code == outOfMemory && strings.HasPrefix(answer.Message, "out of shared memory"):
		return fmt.Errorf("the server has no room for another lock: raise max_locks_per_transaction: %w", err)
	}
	return err
}

// fatal reports whether the server has ended the session with its answer.
func fatal(answer *pgconn.PgError) bool {
	severity := answer.SeverityUnlocalized
	if severity == "" {
		severity = answer.Severity
	}
	return severity == "FATAL" || severity == "PANIC"
}

// NotSent reports whether err means that the session was over before the statement
// could run on it.
func NotSent(err error) bool {
	var answer *pgconn.PgError
	return errors.Is(err, errClosed) || errors.Is(err, sqllock.ErrSessionGone) && errors.As(err, &answer)
}
