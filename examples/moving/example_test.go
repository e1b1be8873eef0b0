// Package moving_test has the snippets of docs/moving.md.
package moving_test

import (
	"context"
	"database/sql"
	"log"
	"time"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

// GET_LOCK by hand, and the same lock by this library.
func Example_getLock() {
	before := func(ctx context.Context, db *sql.DB) error {
		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		var got sql.NullInt64
		if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK('invoices', 0)").Scan(&got); err != nil {
			return err
		}
		if got.Int64 != 1 {
			return nil // another one has it
		}
		defer conn.ExecContext(ctx, "DO RELEASE_LOCK('invoices')")
		return makeInvoices(ctx)
	}
	after := func(ctx context.Context, db *sql.DB) error {
		locker := sqllock.New(mysqlnamed.New()) // without a namespace: the same name on the server
		_, err := locker.TryDo(ctx, db, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
			return makeInvoices(ctx)
		})
		return err
	}
	_, _ = before, after
}

// The release in between takes both locks, the old one first.
func Example_both() {
	both := func(ctx context.Context, db *sql.DB) error {
		before := sqllock.New(mysqlnamed.New())
		after := sqllock.New(table.New(time.Minute), sqllock.WithNamespace("billing"))
		return before.Do(ctx, db, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
			return after.Do(ctx, db, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
				return makeInvoices(ctx)
			})
		})
	}
	_ = both
}

// Beside PHP, on its table and by its names.
func Example_php() {
	beside := func(ctx context.Context, db *sql.DB) error {
		locker := sqllock.New(table.New(10*time.Minute, table.WithPool(db))) // no namespace: PHP has none
		ran, err := locker.TryDo(ctx, db, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
			return makeInvoices(ctx)
		})
		if err == nil && !ran {
			log.Print("PHP, or another Go process, is at it")
		}
		return err
	}
	_ = beside
}

func makeInvoices(context.Context) error { return nil }
