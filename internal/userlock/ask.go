package userlock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// AnswerTime is how long a statement may take beyond what it is asked to wait.
// Its end costs the session, so it is long for a live server.
const AnswerTime = 5 * time.Second

// ErrSilent is that a statement was not answered in time.
var ErrSilent = fmt.Errorf("the server did not answer for %v", AnswerTime)

// Use is session.Use where a closed conn is a session that is gone.
func Use(conn *sql.Conn, f func(*session.Session) error) error {
	err := session.Use(conn, f)
	if errors.Is(err, sql.ErrConnDone) {
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	}
	return err
}

// Ended reports whether ctx has ended, or has too little time left to be a wait
// on the server.
func Ended(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) < time.Millisecond
}

// AskOver is Ask for every Querier. What is no session of the caller's, like a
// *sql.DB, takes the end of ctx well; a transaction is given time to answer, and
// has to live with what becomes of it if it does not.
func AskOver(ctx context.Context, q sqllock.Querier, query string, dest ...sql.Scanner) error {
	var tx *sql.Tx
	switch q := q.(type) {
	case sqllock.InTx:
		return AskOver(ctx, q.Conn, query, dest...)
	case *sql.Conn:
		return session.Use(q, func(s *session.Session) error { return Ask(ctx, s, query, dest...) })
	case *sql.Tx:
		tx = q
	}
	pointers := make([]any, len(dest))
	for i, d := range dest {
		pointers[i] = d
	}
	if tx != nil {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	err := q.QueryRowContext(ctx, query).Scan(pointers...)
	switch {
	case err == nil || tx == nil:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("the transaction's session did not answer for %v", AnswerTime)
	}
	return Classify(err)
}

// HeldIn tells whether the session in the transaction of q holds lock. That it does
// not is an error of the statement (1690): an answer without a row takes half the time.
func HeldIn(ctx context.Context, q sqllock.InTx, lock string) (held bool, err error) {
	err = session.Use(q.Conn, func(s *session.Session) error {
		_, err := Exec(ctx, s, "SET @go_sqllock=18446744073709551615+(1-(IS_USED_LOCK("+lock+")<=>CONNECTION_ID()))")
		return err
	})
	if Number(err) == outOfRange {
		return false, nil
	}
	return err == nil, err
}

// Ask runs a statement that answers with one row at once. The end of ctx does
// not reach it; it has a bound of its own.
func Ask(ctx context.Context, s *session.Session, query string, dest ...sql.Scanner) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), AnswerTime)
	defer cancel()
	return understood(ctx, s.Row(ctx, query, dest...))
}

// Exec runs a statement that changes rows, with the bound of Ask.
func Exec(ctx context.Context, s *session.Session, query string) (driver.Result, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), AnswerTime)
	defer cancel()
	res, err := s.Exec(ctx, query)
	return res, understood(ctx, err)
}

// understood is Classify for a statement whose bound was that of ctx.
func understood(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, ErrSilent)
	}
	return Classify(err)
}
