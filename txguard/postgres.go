package txguard

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

// postgres is PostgreSQL. It tells with every answer, errors included, whether a
// transaction is open, and whether that has failed.
type postgres struct{}

var (
	errByStatement = fmt.Errorf("%w, by COMMIT, ROLLBACK or PREPARE TRANSACTION as a statement", errEndedEarly)

	// errFailed is that nothing can be committed. Unlike on MySQL, no later statement
	// has had an effect.
	errFailed = errors.New("a statement failed, and the function did not return its error; after that PostgreSQL commits nothing of the transaction")
)

func (postgres) vacant(_ context.Context, conn *sql.Conn) error {
	return pgsession.Use(conn, func(s *pgsession.Session) error {
		switch {
		case s.Busy():
			return errRowsBefore
		case s.Tx() == pgsession.Aborted:
			return pgsession.ErrAborted
		case s.Tx() != pgsession.Idle:
			return errLeftAsItIs
		}
		return nil
	})
}

// notBegun finds what vacant, which asks nobody, could not.
func (postgres) notBegun(conn *sql.Conn, err error) error {
	if _, open, unknown := pgsession.TxOf(conn); open && unknown == nil {
		return err
	}
	return fmt.Errorf("%w: %w: %w", sqllock.ErrSessionGone, driver.ErrBadConn, err)
}

func (postgres) idle(conn *sql.Conn) error {
	return pgsession.Use(conn, func(s *pgsession.Session) error {
		if s.Busy() {
			return errOpenRows
		}
		return nil
	})
}

func (postgres) stillOpen(_ context.Context, conn *sql.Conn) error {
	state, open, err := pgsession.TxOf(conn)
	switch {
	case err != nil:
		return err
	case !open:
		return fmt.Errorf("%w: its connection is closed", sqllock.ErrSessionGone)
	case state == pgsession.Idle:
		return errByStatement
	case state == pgsession.Aborted:
		return errFailed
	}
	return nil
}

func (postgres) endedEarly(_ context.Context, conn *sql.Conn, _ error) error {
	if state, _, err := pgsession.TxOf(conn); err == nil && state == pgsession.Idle {
		return errByStatement
	}
	return nil
}

// tidying is for a transaction that was begun after the early end. Settings that were
// made in one that is rolled back are undone with it.
func (d postgres) tidying(conn *sql.Conn, _ bool) []string { return d.chained(conn) }

func (postgres) chained(conn *sql.Conn) []string {
	if state, open, err := pgsession.TxOf(conn); err == nil && open && state != pgsession.Idle {
		return []string{"ROLLBACK"}
	}
	return nil
}

func (d postgres) execute(_ context.Context, conn *sql.Conn, query string) error {
	return d.ask(conn, query)
}

// ask runs statements on the session under conn.
func (postgres) ask(conn *sql.Conn, query string, dest ...sql.Scanner) error {
	return pgsession.Use(conn, func(s *pgsession.Session) error { return s.Ask(query, dest...) })
}

func (postgres) transient(err error) bool {
	switch pgsession.Code(err) {
	case pgsession.Serialization, pgsession.Deadlock:
		return true
	}
	return false
}

// refused: the answer has to have come to its end.
func (postgres) refused(conn *sql.Conn, err error) bool {
	state, open, unknown := pgsession.TxOf(conn)
	return unknown == nil && open && state == pgsession.Idle && pgsession.NotCommitted(err)
}

// unsent: what stillOpen has found to be open is sent. What the driver says is not to be
// relied upon: pgx has the error of a closed connection, and pgconn.SafeToRetry, for an
// answer that did not come.
func (postgres) unsent(error) bool { return false }

// mint waits for the row in statements that are short, so that the end of ctx, which
// must not reach them, is noticed.
func (d postgres) mint(ctx context.Context, conn *sql.Conn, table, key string, send func(func() error) error) (int64, error) {
	for {
		var token sql.NullInt64
		err := send(func() error { return d.ask(conn, d.table(table).mintQuery(key), &token) })
		if err == nil || !d.blocked(err) {
			return token.Int64, err
		}
		if wait(ctx, settlePause) != nil {
			return 0, errBlocked(ctx, err)
		}
	}
}

func (d postgres) raise(ctx context.Context, conn *sql.Conn, table, key string, token int64) (int64, error) {
	var latest sql.NullInt64
	err := pgsession.Use(conn, func(s *pgsession.Session) error {
		return s.AskWithin(ctx, d.table(table).raiseQuery(key, token), &latest)
	})
	return latest.Int64, err
}

func (postgres) blocked(err error) bool {
	switch pgsession.Code(err) {
	case pgsession.LockTimeout, pgsession.Deadlock, pgsession.Serialization:
		return true
	}
	return false
}

func (d postgres) note(_ context.Context, conn *sql.Conn, table, key string, id []byte) (seq int64, place uint32, err error) {
	return d.written(conn, d.table(table).noteQuery(key, id))
}

func (d postgres) pass(_ context.Context, conn *sql.Conn, table, key string, token int64, id []byte) (seq int64, place uint32, err error) {
	return d.written(conn, d.table(table).passQuery(key, token, id))
}

func (d postgres) written(conn *sql.Conn, query string) (seq int64, place uint32, err error) {
	var number, where sql.NullInt64
	err = d.ask(conn, query, &number, &where)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return number.Int64, uint32(where.Int64), err //nolint:gosec // of 32 bits
}

// superseded: a transaction with a snapshot can't pass when the row has been written
// since, by whomever, and not read it either.
func (d postgres) superseded(_ context.Context, conn *sql.Conn, table, key string, err error) (latest int64, known bool) {
	if pgsession.Code(err) != pgsession.Serialization {
		return 0, false
	}
	var token sql.NullInt64
	err = d.ask(conn, d.table(table).tokenQuery(key), &token)
	return token.Int64, err == nil
}

// look has a row of its own inserted where there is none, and taken back: that waits
// for another one's that is not committed yet, which no SELECT can see.
func (d postgres) look(ctx context.Context, db *sql.DB, table, key string) (seq int64, commits []byte, place uint32, err error) {
	var number, where sql.NullInt64
	var text sql.NullString
	err = d.over(ctx, db, d.table(table).lookQuery(key), &number, &text, &where)
	if err != nil {
		return 0, nil, 0, err
	}
	commits, err = hex.DecodeString(text.String)
	return number.Int64, commits, uint32(where.Int64), err //nolint:gosec // of 32 bits
}

func (d postgres) sweep(ctx context.Context, db *sql.DB, table string, seconds int64) (int64, error) {
	var removed sql.NullInt64
	err := d.over(ctx, db, d.table(table).sweepQuery(seconds), &removed)
	return removed.Int64, err
}

// over runs statements on a connection of db.
func (postgres) over(ctx context.Context, db *sql.DB, query string, dest ...sql.Scanner) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // a transaction that is open for an error is not kept by the pool
	return pgsession.Use(conn, func(s *pgsession.Session) error { return s.AskWithin(ctx, query, dest...) })
}

func (postgres) explain(table string, err error) error {
	switch pgsession.Code(err) {
	case pgsession.NoTable, pgsession.NoColumn, noConstraint:
		return fmt.Errorf("%w: %s: run migrations.Up(ctx, db, migrations.Postgres(), migrations.Fences()) on that database: %w", sqllock.ErrNoTable, table, err)
	case pgsession.NoPrivilege:
		return fmt.Errorf("%w: the fence needs SELECT, INSERT, UPDATE (and DELETE for Sweep) on %s: %w", sqllock.ErrPermission, table, err)
	}
	return err
}

const noConstraint = "42P10" // invalid_column_reference: no primary key
