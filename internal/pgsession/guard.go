package pgsession

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqllock/go-sqllock/internal/session"
)

// Is reports whether a connection of a driver is one of pgx, which may be wrapped.
func Is(dc any) bool {
	_, err := driverConn(dc)
	return err == nil
}

// TxOf returns the state of the transaction on the session under conn as of its last
// answer, which it keeps when it is over; open tells that it is not.
func TxOf(conn *sql.Conn) (state Tx, open bool, err error) {
	err = session.Use(conn, func(s *session.Session) error {
		pg, err := driverConn(s.Driver())
		if err != nil {
			return err
		}
		state, open = Tx(pg.TxStatus()), !pg.IsClosed()
		return nil
	})
	return state, open, err
}

// AskWithin is Ask for a session that may be closed by the end of ctx, which is its
// only bound.
func (s *Session) AskWithin(ctx context.Context, query string, dest ...sql.Scanner) error {
	if s.Busy() {
		return errRows
	}
	last, err := s.exec(ctx, query)
	switch {
	case err != nil && ctx.Err() != nil && Code(err) == "":
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	case err != nil:
		return Classify(err)
	}
	return found(last, dest)
}

// NotCommitted reports whether err, of a COMMIT, is the server's answer that nothing was
// committed. An answer that ends the session is none: the server may give it after the
// commit. Neither is one that a program between here and the server may have made up.
func NotCommitted(err error) bool {
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return true
	}
	var answer *pgconn.PgError
	if !errors.As(err, &answer) || fatal(answer) || len(answer.Code) != 5 {
		return false
	}
	switch answer.Code[:2] {
	case "08", // connection_exception
		"58", // system_error
		"XX": // internal_error
		return false
	case "57": // operator_intervention
		return answer.Code == Canceled
	}
	return answer.Code != "40003" // statement_completion_unknown
}
