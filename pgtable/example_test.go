package pgtable_test

import (
	"context"
	"database/sql"
	"log"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
)

// A job that must not block the others when it hangs.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("pgx", "postgres://user:password@127.0.0.1:5432/shop")
	if err != nil {
		log.Fatal(err)
	}
	if err := migrations.Up(ctx, db, migrations.Postgres()); err != nil { // once, or at every start
		log.Fatal(err)
	}
	locker := sqllock.New(pgtable.New(10*time.Minute, pgtable.WithPool(db)))

	err = locker.Do(ctx, db, "invoices", func(ctx context.Context, lock *sqllock.Lock) error {
		for _, customer := range customers() {
			if err := lock.Extend(ctx, 10*time.Minute); err != nil {
				return err // ErrLost, or ErrUnknown if the server could not be asked
			}
			if err := invoice(ctx, customer, lock.Token()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
}

// Who has what, at night.
func ExampleBackend_List() {
	ctx := context.Background()
	db, err := sql.Open("pgx", "postgres://operator@127.0.0.1:5432/shop")
	if err != nil {
		log.Fatal(err)
	}
	backend := pgtable.New(time.Minute) // the TTL does not matter here
	all, err := backend.List(ctx, db)
	if err != nil {
		log.Fatal(err)
	}
	for _, h := range all {
		log.Printf("%s: process %d, %s, since %v, %v left, alive: %t", h.Key, h.Session, h.Process, h.Since, h.TimeLeft, h.Alive)
	}
	ended, err := backend.Break(ctx, db, "invoices")
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("process %d was ended", ended.Session)
}

func customers() []string { return nil }

func invoice(context.Context, string, int64) error { return nil }
