// Package session runs statements on the session that a *sql.Conn pins.
//
// It goes past database/sql to the driver, for one reason: when a statement on a
// *sql.Conn fails with driver.ErrBadConn, database/sql closes the conn, which
// waits for an open transaction or open rows on it to end. A caller who rolls
// back in a deferred call would wait for itself. Here the error just returns.
package session

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
)

// Row runs a statement without arguments and scans its only row.
// It returns sql.ErrNoRows if there is none.
func Row(ctx context.Context, conn *sql.Conn, query string, dest ...sql.Scanner) error {
	return raw(conn, func(dc any) error { return row(ctx, dc, query, dest) })
}

// Query runs a statement without arguments and calls each for every row. The
// values are valid during the call.
func Query(ctx context.Context, conn *sql.Conn, query string, each func([]driver.Value) error) error {
	return raw(conn, func(dc any) error { return rows(ctx, dc, query, each) })
}

func row(ctx context.Context, dc any, query string, dest []sql.Scanner) error {
	found := false
	err := rows(ctx, dc, query, func(values []driver.Value) error {
		found = true
		return scan(values, dest)
	})
	if err == nil && !found {
		return sql.ErrNoRows
	}
	return err
}

func rows(ctx context.Context, dc any, query string, each func([]driver.Value) error) error {
	q, ok := dc.(driver.QueryerContext)
	if !ok {
		return fmt.Errorf("the driver's connection (%T) can't run a query without preparing it (driver.QueryerContext)", dc)
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

// AliveRow is Row on a session whose driver has been asked first, without a
// round trip, whether the server has closed the connection. If it has, alive is
// false and the statement has not been sent. It is true where the driver can't
// tell.
func AliveRow(ctx context.Context, conn *sql.Conn, query string, dest ...sql.Scanner) (alive bool, err error) {
	alive = true
	err = raw(conn, func(dc any) error {
		// An invalid connection is left to the statement: to the driver for
		// MySQL, one with open rows is invalid, too.
		v, isValidator := dc.(driver.Validator)
		r, isResetter := dc.(driver.SessionResetter)
		if isValidator && isResetter && v.IsValid() {
			if err := r.ResetSession(ctx); err != nil {
				alive = false
				return err
			}
		}
		return row(ctx, dc, query, dest)
	})
	return alive, err
}

// Close closes the session, so that the server ends it and frees what it holds,
// whatever is open on it: transaction or rows. The conn stays with its owner:
// the next statement on it fails, and its Close drops the session from the pool.
func Close(conn *sql.Conn) error {
	return raw(conn, func(dc any) error {
		c, ok := dc.(driver.Conn)
		if !ok {
			return fmt.Errorf("not a driver.Conn: %T", dc)
		}
		return c.Close()
	})
}

// raw is conn.Raw for an f whose error is not to close conn.
func raw(conn *sql.Conn, f func(dc any) error) (err error) {
	failed := conn.Raw(func(dc any) error {
		err = f(dc)
		return nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// Scan scans into dest what QueryRowContext would scan: for a Querier that is
// no *sql.Conn.
func Scan(row *sql.Row, dest ...sql.Scanner) error {
	pointers := make([]any, len(dest))
	for i, d := range dest {
		pointers[i] = d
	}
	return row.Scan(pointers...)
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
