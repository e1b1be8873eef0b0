package symfony_test

import (
	"context"
	"database/sql"
	"log"
	"time"

	_ "github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/interop/symfony"
	"github.com/sqllock/go-sqllock/sqllock"
)

// A job that a Symfony application runs, too, as $factory->createLock('invoices', 30).
func Example() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	pool := sqllock.NewPool(db, sqllock.New(symfony.New(30*time.Second, symfony.WithPool(db))))
	defer pool.Close(ctx)

	err = pool.Do(ctx, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		return makeInvoices(ctx, db) // ctx ends if the lock is lost
	}, sqllock.KeepAlive(time.Hour))
	if err != nil {
		log.Print(err)
	}
}

func makeInvoices(context.Context, *sql.DB) error { return nil }

// Glueful's name of a lock has a prefix.
func ExampleWithPrefix() {
	locker := sqllock.New(symfony.New(time.Minute, symfony.WithPrefix("glueful_lock_")))
	_ = locker
}

// A name of PHP's that is too long, or not ASCII, gets a short one here.
func ExampleWithName() {
	locker := sqllock.New(symfony.New(time.Minute,
		symfony.WithName("export", `App\Scheduler\Handler\ExportOfAllInvoicesOfTheMonthToTheAccountant`)))
	_ = locker
}
