package session_test

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"

	"github.com/sqllock/go-sqllock/internal/session"
)

func mock(t *testing.T) (*sql.Conn, sqlmock.Sqlmock) {
	t.Helper()
	db, mock, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mock.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		mock.ExpectClose()
		_ = conn.Close()
		_ = db.Close()
	})
	return conn, mock
}

func TestRow(t *testing.T) {
	conn, m := mock(t)
	row := func(rows *sqlmock.Rows) (n sql.NullInt64, s sql.NullString, err error) {
		m.ExpectQuery("SELECT").WillReturnRows(rows)
		err = session.Use(conn, func(se *session.Session) error { return se.Row(t.Context(), "SELECT", &n, &s) })
		return n, s, err
	}
	two := []string{"a", "b"}
	if n, s, err := row(sqlmock.NewRows(two).AddRow([]byte("7"), "x")); err != nil || n.Int64 != 7 || s.String != "x" {
		t.Errorf("got %v, %v, %v", n, s, err)
	}
	if n, _, err := row(sqlmock.NewRows(two).AddRow(nil, "x")); err != nil || n.Valid {
		t.Errorf("NULL: got %v, %v", n, err)
	}
	if _, _, err := row(sqlmock.NewRows(two)); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("no row: got %v, want ErrNoRows", err)
	}
	if _, _, err := row(sqlmock.NewRows([]string{"a"}).AddRow(1)); err == nil || !strings.Contains(err.Error(), "1 columns, not 2") {
		t.Errorf("a column too few: got %v", err)
	}
	if _, _, err := row(sqlmock.NewRows(two).AddRow("seven", "x")); err == nil || !strings.Contains(err.Error(), "column 1") {
		t.Errorf("not a number: got %v", err)
	}
}

// TestBadConn: an error that would have database/sql close the conn, and wait
// for an open transaction to do so, leaves it open.
func TestBadConn(t *testing.T) {
	conn, m := mock(t)
	m.ExpectBegin()
	tx, err := conn.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	m.ExpectQuery("SELECT").WillReturnError(driver.ErrBadConn)
	if err := session.Use(conn, func(s *session.Session) error { return s.Row(t.Context(), "SELECT") }); !errors.Is(err, driver.ErrBadConn) {
		t.Errorf("got %v, want ErrBadConn", err)
	}
	m.ExpectRollback()
	if err := tx.Rollback(); err != nil {
		t.Errorf("the transaction is no longer the caller's: %v", err)
	}
	_ = conn.Close()
	if err := session.Use(conn, func(s *session.Session) error { return s.Row(t.Context(), "SELECT") }); !errors.Is(err, sql.ErrConnDone) {
		t.Errorf("on a closed conn: got %v, want ErrConnDone", err)
	}
}

// TestUseAgainstClose: a conn that is closed at the same moment is a closed one, where
// database/sql panics.
func TestUseAgainstClose(t *testing.T) {
	db, m, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	for range 50_000 {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan error, 1)
		go func() { closed <- conn.Close() }()
		err = session.Use(conn, func(*session.Session) error { return nil })
		if err != nil && !errors.Is(err, sql.ErrConnDone) {
			t.Fatal(err)
		}
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
	}
	m.ExpectClose()
	_ = db.Close()
}

func TestProcess(t *testing.T) {
	t.Parallel()
	p := session.Process()
	if !strings.Contains(p, "/") || !strings.Contains(p, "session") || len(p) > 255 {
		t.Errorf("process calls itself %q", p)
	}
}
