package pgadvisory_test

import (
	"context"
	"database/sql"
	"errors"
	"log"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
)

// A job that cron starts on every web server, and that must run once.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("pgx", "postgres://user:password@127.0.0.1:5432/shop")
	if err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(pgadvisory.New(), sqllock.WithNamespace("billing"))

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

// Behind PgBouncer in transaction mode a session is lent for the length of a
// transaction, and so is the lock: who commits, commits under it.
func Example_pgBouncer() {
	locker := sqllock.New(pgadvisory.New(), sqllock.WithNamespace("billing"))
	closeMonth := func(ctx context.Context, db *sql.DB, month string) error {
		tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
		if err != nil {
			return err
		}
		defer tx.Rollback() // after a commit it does nothing

		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := locker.LockTx(wait, tx, "close "+month); err != nil {
			return err // ErrBusy if somebody else had it for all that time
		}
		if _, err := tx.ExecContext(ctx, "UPDATE months SET closed = true WHERE month = $1", month); err != nil {
			return err
		}
		return tx.Commit() // which also frees the lock
	}
	_ = closeMonth
}

// Readers beside each other, and a writer alone.
func Example_shared() {
	ctx := context.Background()
	db, err := sql.Open("pgx", "postgres://user:password@127.0.0.1:5432/shop")
	if err != nil {
		log.Fatal(err)
	}
	pool := sqllock.NewPool(db, sqllock.New(pgadvisory.New()))
	defer pool.Close(ctx)

	err = pool.Do(ctx, "prices", func(ctx context.Context, _ *sqllock.Lock) error {
		return export(ctx, db)
	}, sqllock.Shared())
	if err != nil {
		log.Print(err)
	}
	err = pool.Do(ctx, "prices", func(ctx context.Context, _ *sqllock.Lock) error {
		return reprice(ctx, db)
	})
	if errors.Is(err, sqllock.ErrLost) {
		log.Print("the session was ended: ", err)
	}
}

func makeInvoices(context.Context, *sql.DB) error { return nil }
func export(context.Context, *sql.DB) error       { return nil }
func reprice(context.Context, *sql.DB) error      { return nil }
