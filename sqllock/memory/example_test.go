package memory_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// sendInvoices is the code under test: a job that cron starts on every web server. It
// returns how many invoices it has sent.
func sendInvoices(ctx context.Context, db *sql.DB, locker *sqllock.Locker, send func(customer int) error) (sent int, err error) {
	ran, err := locker.TryDo(ctx, db, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		for customer := 1; ; customer++ {
			if ctx.Err() != nil {
				return context.Cause(ctx) // the lock was lost, or we are to stop
			}
			switch err := send(customer); {
			case errors.Is(err, errNoMore):
				return nil
			case err != nil:
				return err
			}
			sent++
		}
	})
	if err == nil && !ran {
		return 0, errors.New("skipped")
	}
	return sent, err
}

var errNoMore = errors.New("no more customers")

// The job is skipped while another process is at it.
func Example_busy() {
	ctx := context.Background()
	server := memory.New()
	db, elsewhere := server.DB(), server.DB()
	defer db.Close()
	defer elsewhere.Close()
	locker := sqllock.New(server.Backend())

	three := func(customer int) error {
		if customer > 3 {
			return errNoMore
		}
		return nil
	}
	err := locker.Do(ctx, elsewhere, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		sent, err := sendInvoices(ctx, db, locker, three)
		fmt.Println(sent, err)
		return nil
	})
	fmt.Println(err)
	sent, err := sendInvoices(ctx, db, locker, three)
	fmt.Println(sent, err)
	// Output:
	// 0 skipped
	// <nil>
	// 3 <nil>
}

// The job stops when its lock is lost, which the check at the interval finds out.
func Example_lost() {
	server := memory.New()
	db := server.DB()
	defer db.Close()
	locker := sqllock.New(server.Backend(), sqllock.WithCheckInterval(time.Millisecond))

	_, err := sendInvoices(context.Background(), db, locker, func(customer int) error {
		if customer == 5 {
			return server.Lose("invoices")
		}
		return nil // there are always more
	})
	fmt.Println(errors.Is(err, sqllock.ErrLost))
	// Output: true
}

// A passing error is no loss: the function goes on, and releases in the end.
func ExampleServer_Fail() {
	server := memory.New()
	db := server.DB()
	defer db.Close()
	locker := sqllock.New(server.Backend())

	err := locker.Do(context.Background(), db, "invoices", func(ctx context.Context, lock *sqllock.Lock) error {
		server.Fail(errors.New("no route to host"))
		fmt.Println(errors.Is(lock.Check(ctx), sqllock.ErrUnknown))
		server.Fail(nil)
		return lock.Check(ctx)
	})
	fmt.Println(err)
	// Output:
	// true
	// <nil>
}
