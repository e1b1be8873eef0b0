// Package session runs statements on the session that a *sql.Conn pins.
//
// It goes past database/sql to the driver, for two reasons. When a statement on
// a *sql.Conn fails with driver.ErrBadConn, database/sql closes the conn, which
// waits for an open transaction or open rows on it to end: a caller who rolls
// back in a deferred call would wait for itself. And between two statements on
// a *sql.Conn anybody else's may run, while what happens inside [Use] is alone.
package session

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
)

// ErrUnusable is returned for a session that the driver reports as invalid:
// its connection is broken, or rows of a query are open on it. To send a
// statement would break it for certain.
var ErrUnusable = errors.New("the connection is broken, or rows of a query are open on it")

// Session is a session while nothing else runs on it.
type Session struct{ dc any }

// Use calls f with the session under conn, for whose length other statements
// on conn wait. It waits for one that is running, however long that takes, so
// bounds of time are for f to set. It returns the error of f, or sql.ErrConnDone
// if conn is closed; neither closes conn.
func Use(conn *sql.Conn, f func(*Session) error) (err error) {
	var call struct { // on the heap, once
		begun bool
		err   error
	}
	defer func() {
		// Raw panics where a Close comes between its check for that and its beginning.
		if !call.begun {
			if r := recover(); r != nil {
				err = sql.ErrConnDone
			}
		}
	}()
	closed := conn.Raw(func(dc any) error {
		call.begun = true
		call.err = f(&Session{dc})
		return nil // an error here would have database/sql close conn
	})
	if closed != nil {
		return closed
	}
	return call.err
}

// Row runs a statement without arguments and scans its only row. It returns
// sql.ErrNoRows if there is none.
func (s *Session) Row(ctx context.Context, query string, dest ...sql.Scanner) error {
	found := false
	err := s.Query(ctx, query, func(values []driver.Value) error {
		found = true
		return scan(values, dest)
	})
	if err == nil && !found {
		return sql.ErrNoRows
	}
	return err
}

// Query runs a statement without arguments and calls each for every row. The
// values are valid during the call.
func (s *Session) Query(ctx context.Context, query string, each func([]driver.Value) error) error {
	q, ok := s.dc.(driver.QueryerContext)
	if !ok {
		return fmt.Errorf("the driver's connection (%T) can't run a query without preparing it (driver.QueryerContext)", s.dc)
	}
	if !s.valid() {
		return ErrUnusable
	}
	answer, err := q.QueryContext(ctx, query, nil)
	if err != nil {
		return err
	}
	values := make([]driver.Value, len(answer.Columns()))
	for err = answer.Next(values); err == nil; err = answer.Next(values) {
		if err = each(values); err != nil {
			break
		}
	}
	if closed := answer.Close(); errors.Is(err, io.EOF) {
		return closed
	}
	return err
}

// Exec runs a statement without arguments that answers with no rows.
func (s *Session) Exec(ctx context.Context, query string) (driver.Result, error) {
	e, ok := s.dc.(driver.ExecerContext)
	if !ok {
		return nil, fmt.Errorf("the driver's connection (%T) can't run a statement without preparing it (driver.ExecerContext)", s.dc)
	}
	if !s.valid() {
		return nil, ErrUnusable
	}
	return e.ExecContext(ctx, query, nil)
}

// Driver returns the driver's own connection, to be looked at during [Use].
func (s *Session) Driver() any { return s.dc }

// Idle returns ErrUnusable for a session that no statement can be sent on now.
func (s *Session) Idle() error {
	if !s.valid() {
		return ErrUnusable
	}
	return nil
}

func (s *Session) valid() bool {
	v, ok := s.dc.(driver.Validator)
	return !ok || v.IsValid()
}

// Alive asks the driver whether the server has closed the connection, without a
// round trip. It returns nil also where the driver can't tell. It is for drivers
// whose ResetSession does just that, as the one for MySQL's does.
func (s *Session) Alive(ctx context.Context) error {
	v, ok := s.dc.(driver.Validator)
	if !ok {
		return nil
	}
	if !v.IsValid() {
		return ErrUnusable
	}
	if r, ok := s.dc.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

// Close closes the session under conn, so that the server ends it and frees what
// it holds, whatever is open on it: transaction or rows. The conn stays with its
// owner: the next statement on it fails, and its Close drops the session from
// the pool.
func Close(conn *sql.Conn) error {
	return Use(conn, func(s *Session) error {
		c, ok := s.dc.(driver.Conn)
		if !ok {
			return fmt.Errorf("not a driver.Conn: %T", s.dc)
		}
		return c.Close()
	})
}

func scan(values []driver.Value, dest []sql.Scanner) error {
	if len(values) != len(dest) {
		return fmt.Errorf("the server answered with %d columns, not %d", len(values), len(dest))
	}
	for i, d := range dest {
		if err := d.Scan(values[i]); err != nil {
			return fmt.Errorf("column %d: %w", i+1, err)
		}
	}
	return nil
}
