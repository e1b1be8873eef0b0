package table_test

import (
	"context"
	"database/sql"
	"log"
	"time"

	_ "github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

// A job that must not block the others when it hangs: after ten minutes the next
// one ends its session, and takes over.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	if err := migrations.Up(ctx, db); err != nil { // or the SQL of its documentation
		log.Fatal(err)
	}
	locker := sqllock.New(table.New(10*time.Minute, table.WithPool(db)))

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

// An operator at night: who has which lock, and how to get rid of them.
func ExampleBackend_List() {
	operate := func(ctx context.Context, db *sql.DB) error {
		backend := table.New(time.Minute)
		locks, err := backend.List(ctx, db)
		if err != nil {
			return err
		}
		for _, h := range locks {
			log.Printf("%s: %s, session %d of %s at %s, alive: %v, since %v, for another %v",
				h.Key, h.Process, h.Session, h.User, h.Host, h.Alive, h.Since, h.TimeLeft)
		}
		for _, h := range locks {
			if h.Alive && h.Key == "billing:invoices" {
				whom, err := backend.Break(ctx, db, h.Key)
				if err != nil {
					return err
				}
				log.Printf("ended session %d of %s", whom.Session, whom.Process)
			}
		}
		return nil
	}
	_ = operate
}

func customers() []string { return nil }

func invoice(_ context.Context, _ string, _ int64) error { return nil }

// A job whose length is not known, on every web server at about the same time.
func Example_keepAlive() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(table.New(30*time.Second, table.WithPool(db)))
	pool := sqllock.NewPool(db, locker)

	ran, err := pool.TryDo(ctx, "invoices", makeAllInvoices,
		sqllock.KeepAlive(2*time.Hour),  // no longer, even if it hangs
		sqllock.AtLeast(10*time.Second), // for hosts whose clocks differ
	)
	switch {
	case err != nil:
		log.Print(err)
	case !ran:
		log.Print("another web server is at it, or has just been")
	}
	if err := pool.Close(ctx); err != nil { // waits for the ten seconds
		log.Print(err)
	}
}

func makeAllInvoices(context.Context, *sqllock.Lock) error { return nil }
