package userlock

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// Classify gives an error of the driver or the server the meaning it has for a
// lock, by number and never by text. Errors that mean nothing in particular are
// returned as they are: the session is usable then.
func Classify(err error) error {
	if err == nil || errors.Is(err, sql.ErrTxDone) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, sql.ErrNoRows) {
		return err
	}
	answer, ok := serverError(err)
	if !ok {
		// After an error of the driver the connection is closed, or, with rows
		// of a query open on it, about to fail.
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	}
	switch answer.Number {
	case 1317, // ER_QUERY_INTERRUPTED: KILL QUERY
		3024, // ER_QUERY_TIMEOUT: MySQL's max_execution_time
		1969: // ER_STATEMENT_TIMEOUT: MariaDB's max_statement_time
		return fmt.Errorf("%w: %w", sqllock.ErrInterrupted, err)
	case 3058, // ER_USER_LOCK_DEADLOCK: MySQL
		1213: // ER_LOCK_DEADLOCK: MariaDB; the transaction goes on
		return fmt.Errorf("%w: %w", sqllock.ErrDeadlock, err)
	case 3057, // ER_USER_LOCK_WRONG_NAME: empty, or not utf8mb3
		4163, // ER_USER_LOCK_OVERLONG_NAME: MySQL 8 and later
		1059: // ER_TOO_LONG_IDENT: MariaDB
		return fmt.Errorf("%w: %w", sqllock.ErrInvalidName, err)
	case 1053, // ER_SERVER_SHUTDOWN
		1927, // ER_CONNECTION_KILLED: MariaDB
		3169, // ER_SESSION_WAS_KILLED: MySQL
		4031: // ER_CLIENT_INTERACTION_TIMEOUT: MySQL's wait_timeout
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	}
	return err
}

// NotSent reports whether err means that the session was over before the
// statement could run on it.
func NotSent(err error) bool {
	if err == nil {
		return false
	}
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, session.ErrUnusable) {
		return true
	}
	_, answered := serverError(err)
	return answered && errors.Is(err, sqllock.ErrSessionGone)
}

func serverError(err error) (*mysql.MySQLError, bool) {
	var answer *mysql.MySQLError
	ok := errors.As(err, &answer)
	return answer, ok
}

// Numbers of errors that say more than what Classify makes of them.
const (
	UnknownThread = 1094 // ER_NO_SUCH_THREAD: there is no session to KILL
	timeLimit     = 3024 // ER_QUERY_TIMEOUT
	outOfRange    = 1690 // ER_DATA_OUT_OF_RANGE
)

// Number returns the number of an error of the server, 0 if err is none.
func Number(err error) uint16 {
	if answer, ok := serverError(err); ok {
		return answer.Number
	}
	return 0
}

// Interrupted is what it means that GET_LOCK returned NULL.
func Interrupted() error {
	return fmt.Errorf("%w: GET_LOCK returned NULL", sqllock.ErrInterrupted)
}
