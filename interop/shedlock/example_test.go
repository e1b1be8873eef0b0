package shedlock_test

import (
	"context"
	"database/sql"
	"log"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/sqllock/go-sqllock/interop/shedlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// A job that has @SchedulerLock(name = "invoices", lockAtMostFor = "10m") in Java.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("pgx", "postgres://user:password@127.0.0.1/shop")
	if err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(shedlock.New(10*time.Minute, shedlock.WithPool(db)))

	ran, err := locker.TryDo(ctx, db, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		return makeInvoices(ctx, db) // ctx ends if the lock is lost
	})
	switch {
	case err != nil:
		log.Fatal(err)
	case !ran:
		log.Print("another process is at it, here or in Java")
	}
}

func makeInvoices(context.Context, *sql.DB) error { return nil }
