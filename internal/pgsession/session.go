package pgsession

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// AnswerTime is how long a statement may take beyond what it is asked to wait.
// Its end costs the session, so it is long for a live server.
const AnswerTime = 5 * time.Second

// ErrSilent is that a statement was not answered in time.
var ErrSilent = fmt.Errorf("the server did not answer for %v", AnswerTime)

// unwatched is the ctx that pgx starts no goroutine for. The end of any other one would
// have it close the session; statements are bounded by a deadline of the connection.
var unwatched = context.Background() //nolint:gochecknoglobals,forbidigo // see above

// errRows is that a statement can't be sent now; the session is unharmed.
var errRows = errors.New("rows of a query are open on the conn: close them first")

// Session is a session while nothing else runs on it.
type Session struct{ pg *pgconn.PgConn }

// Use calls f with the session under conn, for whose length other statements on
// conn wait. It waits for one that is running. A closed conn is a session that is gone.
func Use(conn *sql.Conn, f func(*Session) error) error {
	err := session.Use(conn, func(s *session.Session) error {
		pg, err := driverConn(s.Driver())
		if err != nil {
			return err
		}
		if pg.IsClosed() {
			return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, errClosed)
		}
		return f(&Session{pg})
	})
	if errors.Is(err, sql.ErrConnDone) {
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	}
	return err
}

// errClosed is that nothing was sent.
var errClosed = errors.New("its connection is closed")

// driverConn returns the connection of pgx under that of database/sql, which a driver
// may have wrapped.
func driverConn(dc any) (*pgconn.PgConn, error) {
	for inner := dc; inner != nil; {
		if c, ok := inner.(*stdlib.Conn); ok {
			return c.Conn().PgConn(), nil
		}
		w, ok := inner.(interface{ Raw() driver.Conn })
		if !ok {
			break
		}
		inner = w.Raw()
	}
	return nil, fmt.Errorf("%w: the pool's connections are of the driver %T, and have to be those of github.com/jackc/pgx/v5/stdlib; on MySQL and MariaDB use mysqlnamed, or table", sqllock.ErrUnsupported, dc)
}

// Tx is the state of the session's transaction, as of its last answer.
type Tx byte

// The states that the server tells of with every answer.
const (
	Idle    Tx = 'I'
	Open    Tx = 'T'
	Aborted Tx = 'E' // it takes no statement any more but one that rolls back
)

// Tx asks nobody.
func (s *Session) Tx() Tx { return Tx(s.pg.TxStatus()) }

// Ready returns an error if no statement can be sent that would leave everything as it
// is: beside rows of a query that are open, or in a transaction that has failed.
func (s *Session) Ready() error {
	switch {
	case s.Busy():
		return errRows
	case s.Tx() == Aborted:
		return ErrAborted
	}
	return nil
}

// Busy reports whether rows of a query are open, beside which no statement can be sent.
func (s *Session) Busy() bool { return s.pg.IsBusy() }

// ErrAborted is that the transaction on the session takes no statement.
var ErrAborted = fmt.Errorf("%w that has failed and takes no statement: roll it back first", sqllock.ErrInTransaction)

// Ask runs statements without arguments, and scans the last row that they answer with,
// or nothing if there is no dest. It returns sql.ErrNoRows if there is none. The end of
// a ctx does not reach it; its bound is AnswerTime.
func (s *Session) Ask(query string, dest ...sql.Scanner) error {
	return s.run(query, AnswerTime, dest)
}

// AskOften is Ask for a statement about key that is run again and again: text makes it of
// the number of the lock, by which it must not differ otherwise.
func (s *Session) AskOften(name, key string, text func(number string) string, dest ...sql.Scanner) error {
	ran, err := s.AskPrepared(name, func() string { return text(placeholder) }, []string{key}, dest...)
	if ran {
		return err
	}
	return s.Ask(text(Number(key)), dest...)
}

// AskPrepared runs a statement with args in place of $1, $2 and so on, and scans its last
// row, if the session has it prepared, which it does the second time, in a round trip of
// its own: to parse and to plan it takes the server longer than to run it. It reports
// whether that was so; nothing has run otherwise, and err is of no interest. In a
// transaction it never is, where a statement that is there no more would be an error of
// the caller's transaction.
func (s *Session) AskPrepared(name string, text func() string, args []string, dest ...sql.Scanner) (ran bool, err error) {
	st := s.Known()
	prepared, seen := st.often[name]
	if s.Tx() != Idle || s.Busy() || !seen {
		st.often[name] = prepared
		return false, nil
	}
	if prepared == nil {
		failed := s.bounded(AnswerTime, func() (err error) {
			prepared, err = s.pg.Prepare(unwatched, "go_sqllock_"+name, text(), nil)
			return err
		})
		if prepared == nil { // there may be one of that name, of which we know nothing
			gone := errors.Is(failed, sqllock.ErrSessionGone)
			return gone, failed
		}
		st.often[name] = prepared
	}
	values := make([][]byte, len(args))
	for i, arg := range args {
		values[i] = []byte(arg)
	}
	var row []sql.NullString
	err = s.bounded(AnswerTime, func() error {
		rows := s.pg.ExecStatement(unwatched, prepared, values, nil, nil)
		for rows.NextRow() {
			row = texts(rows.Values(), row[:0])
		}
		_, err := rows.Close()
		return err
	})
	switch {
	case Code(err) == noStatement: // DISCARD ALL, DEALLOCATE ALL
		delete(st.often, name)
		return false, nil
	case err != nil:
		return true, err
	}
	return true, found(row, dest)
}

// placeholder is Number for a statement that is prepared.
const placeholder = "hashtextextended($1,0)"

func (s *Session) run(query string, bound time.Duration, dest []sql.Scanner) error {
	if s.Busy() {
		return errRows
	}
	var last []sql.NullString
	err := s.bounded(bound, func() (err error) {
		last, err = s.exec(unwatched, query)
		return err
	})
	if err != nil {
		return err
	}
	return found(last, dest)
}

// exec runs statements, and returns the last row that they answer with.
func (s *Session) exec(ctx context.Context, query string) (last []sql.NullString, err error) {
	answers := s.pg.Exec(ctx, query)
	for answers.NextResult() {
		rows := answers.ResultReader()
		for rows.NextRow() {
			last = texts(rows.Values(), last[:0])
		}
		_, _ = rows.Close() // Close of all answers returns the error
	}
	return last, answers.Close()
}

// found scans a row that has to be there if it is wanted.
func found(row []sql.NullString, dest []sql.Scanner) error {
	switch {
	case len(dest) == 0:
		return nil
	case row == nil:
		return sql.ErrNoRows
	}
	return scan(row, dest)
}

// bounded calls f, which sends a statement and reads its answer. It is given up after
// bound, and the session with it.
func (s *Session) bounded(bound time.Duration, f func() error) error {
	conn := s.pg.Conn()
	if err := conn.SetDeadline(time.Now().Add(bound)); err != nil {
		return fmt.Errorf("%w: %w: %w", sqllock.ErrSessionGone, errClosed, err)
	}
	err := f()
	if failed := conn.SetDeadline(time.Time{}); err == nil && failed != nil {
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, failed)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || isTimeout(err) {
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, ErrSilent)
	}
	return Classify(err)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func texts(values [][]byte, to []sql.NullString) []sql.NullString {
	for _, v := range values {
		to = append(to, sql.NullString{String: string(v), Valid: v != nil})
	}
	return to
}

func scan(values []sql.NullString, dest []sql.Scanner) error {
	if len(values) != len(dest) {
		return fmt.Errorf("the server answered with %d columns, not %d", len(values), len(dest))
	}
	for i, d := range dest {
		var v any
		if values[i].Valid {
			v = values[i].String
		}
		if err := d.Scan(v); err != nil {
			return fmt.Errorf("column %d: %w", i+1, err)
		}
	}
	return nil
}

// AskOver is Ask for every Querier. What is no session of the caller's, like a
// *sql.DB, takes the end of ctx well; a transaction is given time to answer, and has
// to live with what becomes of it if it does not.
func AskOver(ctx context.Context, q sqllock.Querier, query string, dest ...sql.Scanner) error {
	var tx *sql.Tx
	switch q := q.(type) {
	case sqllock.InTx:
		return AskOver(ctx, q.Conn, query, dest...)
	case *sql.Conn:
		return Use(q, func(s *Session) error {
			if err := s.Ready(); err != nil {
				return err
			}
			return s.Ask(query, dest...)
		})
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
	// Both modes are one round trip, and leave nothing behind. Exec, which spoils rows that
	// are open on the session, also works where standard_conforming_strings is off.
	mode := pgx.QueryExecModeExec
	if tx != nil {
		mode = pgx.QueryExecModeSimpleProtocol
	}
	err := q.QueryRowContext(ctx, query, mode).Scan(pointers...)
	switch {
	case err == nil || errors.Is(err, sql.ErrNoRows):
		return err
	case tx == nil && ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	case tx != nil && ctx.Err() != nil:
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, ErrSilent)
	case Code(err) == "" && !broken(err):
		return err // of pgx, or another driver, which has sent nothing
	}
	return Classify(err)
}

// broken reports whether err is about the connection.
func broken(err error) bool {
	var n net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &n)
}

// Text returns s as a literal that means the same whatever
// standard_conforming_strings is.
func Text(s string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(s) + "'"
}
