package laravel_test

import (
	"context"
	"database/sql"
	"log"
	"time"

	_ "github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/interop/laravel"
	"github.com/sqllock/go-sqllock/sqllock"
)

// A job that a Laravel application runs, too, under Cache::lock('invoices', 600) of a store
// whose prefix is shop_cache_.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(laravel.New(10*time.Minute, laravel.WithPool(db), laravel.WithPrefix("shop_cache_")))

	ran, err := locker.TryDo(ctx, db, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		return makeInvoices(ctx, db) // ctx ends if the lock is lost
	})
	switch {
	case err != nil:
		log.Fatal(err)
	case !ran:
		log.Print("another process is at it, here or in PHP")
	}
}

func makeInvoices(context.Context, *sql.DB) error { return nil }
