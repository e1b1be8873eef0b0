package userlock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
)

// inside runs f with the session under a connection of db.
func inside(t *testing.T, db *sql.DB, f func(*session.Session)) {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's
	if err := session.Use(conn, func(s *session.Session) error { f(s); return nil }); err != nil {
		t.Error(err)
	}
}

func wantNotKnown(t *testing.T, s *session.Session) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("panic: %v", p)
		}
	}()
	if st, ok := userlock.Known(s); ok || st != (userlock.Status{}) {
		t.Errorf("got %+v, %t, want nothing known", st, ok)
	}
}

func TestNotKnownOfSqlmock(t *testing.T) {
	db, mock, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mock.ExpectClose(); _ = db.Close() })
	inside(t, db, func(s *session.Session) { wantNotKnown(t, s) })
	if err := mock.ExpectationsWereMet(); err != nil {
		t.Error(err)
	}
}

// none does nothing.
type none struct{}

func (none) Prepare(string) (driver.Stmt, error) { return nil, driver.ErrSkip }
func (none) Begin() (driver.Tx, error)           { return nil, driver.ErrSkip }
func (none) Close() error                        { return nil }

// The kinds of connections that a driver can have. One has the field that is looked
// for, but is of another package.
type (
	withStatus struct {
		none

		status uint16
	}
	number  int
	mapping map[string]int
	calling func()
	wrapper struct{ driver.Conn }
)

func (number) Prepare(string) (driver.Stmt, error)  { return nil, driver.ErrSkip }
func (number) Begin() (driver.Tx, error)            { return nil, driver.ErrSkip }
func (number) Close() error                         { return nil }
func (mapping) Prepare(string) (driver.Stmt, error) { return nil, driver.ErrSkip }
func (mapping) Begin() (driver.Tx, error)           { return nil, driver.ErrSkip }
func (mapping) Close() error                        { return nil }
func (calling) Prepare(string) (driver.Stmt, error) { return nil, driver.ErrSkip }
func (calling) Begin() (driver.Tx, error)           { return nil, driver.ErrSkip }
func (calling) Close() error                        { return nil }

// nothing is a connection that needs no value.
type nothing struct{}

func (*nothing) Prepare(string) (driver.Stmt, error) { return nil, driver.ErrSkip }
func (*nothing) Begin() (driver.Tx, error)           { return nil, driver.ErrSkip }
func (*nothing) Close() error                        { return nil }

type connector struct{ conn driver.Conn }

func (c connector) Connect(context.Context) (driver.Conn, error) { return c.conn, nil }
func (c connector) Driver() driver.Driver                        { return nil }

func TestNotKnownOfOtherKinds(t *testing.T) {
	for _, test := range []struct {
		name string
		conn driver.Conn
	}{
		{"struct", none{}},
		{"struct with such a field", withStatus{status: 3}},
		{"pointer to one", &withStatus{status: 3}},
		{"one that wraps another", wrapper{&withStatus{status: 3}}},
		{"number", number(3)},
		{"map", mapping(nil)},
		{"function", calling(nil)},
		{"nil pointer", (*nothing)(nil)},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := sql.OpenDB(connector{test.conn})
			t.Cleanup(func() { _ = db.Close() })
			inside(t, db, func(s *session.Session) { wantNotKnown(t, s) })
		})
	}
	t.Run("none at all", func(t *testing.T) { wantNotKnown(t, &session.Session{}) })
}
