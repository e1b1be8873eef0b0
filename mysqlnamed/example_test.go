package mysqlnamed_test

import (
	"context"
	"database/sql"
	"errors"
	"expvar"
	"log"
	"log/slog"
	"time"

	_ "github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
)

// A job that cron starts on every web server, and that must run once.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("billing"))

	ran, err := locker.TryDo(ctx, db, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		return makeInvoices(ctx, db) // ctx ends if the lock is lost
	})
	switch {
	case err != nil:
		log.Fatal(err)
	case !ran:
		log.Print("another web server is at it")
	}
}

// Waiting for a lock on a connection of one's own, ten seconds at most.
func ExampleBackend_handle() {
	work := func(ctx context.Context, db *sql.DB) (err error) {
		locker := sqllock.New(mysqlnamed.New(mysqlnamed.WithControl(db)))

		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close() // after the release

		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		lock, err := locker.Lock(wait, conn, "invoices")
		if errors.Is(err, sqllock.ErrBusy) {
			if h, err := locker.Holder(ctx, db, "invoices"); err == nil {
				log.Printf("session %d of %s at %s has it, since %v or longer", h.Session, h.User, h.Host, h.Since)
			}
		}
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Release(ctx)) }()

		if err := makeInvoices(ctx, db); err != nil {
			return err
		}
		return lock.Check(ctx) // was it ours all the time?
	}
	_ = work
}

func makeInvoices(context.Context, *sql.DB) error { return nil }

// Many goroutines with many locks, over few connections of the application's pool.
func Example_pool() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	pool := sqllock.NewPool(db, sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop")))
	defer pool.Close(ctx)

	err = pool.Do(ctx, "account:7", func(ctx context.Context, _ *sqllock.Lock) error {
		return charge(ctx, db, 7) // ctx ends if the lock is lost
	})
	if err != nil {
		log.Print(err)
	}

	err = pool.DoAll(ctx, []string{"account:7", "account:9"}, func(ctx context.Context, _ sqllock.Locks) error {
		return transfer(ctx, db, 7, 9)
	})
	if err != nil {
		log.Print(err)
	}
}

// What a Pool does, in the log, and what it has, at /debug/vars.
func Example_seeing() {
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(mysqlnamed.New(), sqllock.WithObserver(sqllock.LogTo(slog.Default())))
	pool := sqllock.NewPool(db, locker)
	expvar.Publish("locks", expvar.Func(func() any { return pool.Snapshot() }))
}

func charge(context.Context, *sql.DB, int) error { return nil }

func transfer(context.Context, *sql.DB, int, int) error { return nil }
