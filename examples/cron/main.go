// Cron is a job that cron starts on every host at the same moment, and that one of them
// is to do. Start it on several:
//
//	DSN=… go run ./examples/cron -pause 1s
//
// The one that gets the lock works, the others say so and leave. If it is killed, its lock
// is free, and the next start goes on where it had stopped. With -without every host does
// all of it.
package main

import (
	"context"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/examples/internal/server"
	"github.com/sqllock/go-sqllock/sqllock"
)

func main() {
	server.Main("the lock", run)
}

func run(ctx context.Context, s *server.Server) error {
	err := s.Prepare(ctx, server.Table{
		Name:    "customers",
		Columns: "id bigint PRIMARY KEY, invoiced bigint NOT NULL, invoices bigint NOT NULL",
		Rows:    "(1,0,0),(2,0,0),(3,0,0)",
	})
	if err != nil {
		return err
	}
	if s.Without {
		return makeInvoices(ctx, s)
	}
	locker := sqllock.New(s.Locks(), sqllock.WithNamespace("billing"))
	ran, err := locker.TryDo(ctx, s.DB, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		return makeInvoices(ctx, s) // ctx ends if the lock is lost
	})
	if err == nil && !ran {
		fmt.Println("skipped: another host is at it")
	}
	return err
}

// makeInvoices makes those of the month that have not been made. A host whose clock is
// late comes when all is over, gets the lock, and finds nothing to do.
func makeInvoices(ctx context.Context, s *server.Server) error {
	now := time.Now().UTC()
	month := now.Year()*100 + int(now.Month())
	customers, err := s.Numbers(ctx, s.DB, "SELECT id FROM customers WHERE invoiced < ? ORDER BY id", month)
	if err != nil {
		return err
	}
	fmt.Println(len(customers), "invoices to make")
	for _, id := range customers {
		if err := s.Work(ctx); err != nil {
			return err
		}
		_, err := s.DB.ExecContext(ctx, s.SQL("UPDATE customers SET invoiced = ?, invoices = invoices + 1 WHERE id = ?"), month, id)
		if err != nil {
			return err
		}
	}
	fmt.Println("done")
	return nil
}
