package txguard_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"time"

	_ "github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"
)

// Work on the server of the lock: acquire, begin, work, check, commit and release in
// one call.
func Example_sameSession() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop"))

	err = txguard.Do(ctx, locker, db, "stock", func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE stock SET n = n - 1 WHERE item = 7")
		return err
	})
	switch {
	case err == nil:
		log.Print("committed, and the lock was held")
	case errors.Is(err, txguard.ErrNotBegun), errors.Is(err, txguard.ErrRolledBack):
		log.Print("nothing was committed: ", err) // errors.Is(err, sqllock.ErrLost), the error of the function, …
	case errors.Is(err, txguard.ErrUnknown):
		log.Print("committed or not: ", err) // see the example of the unknown outcome
	case errors.Is(err, txguard.ErrUnguarded):
		log.Print("an error in the function: ", err)
	}
}

// The same among many goroutines, over few connections.
func Example_pool() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	pool := sqllock.NewPool(db, sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop")))
	defer pool.Close(ctx)

	err = pool.Do(ctx, "stock", func(ctx context.Context, lock *sqllock.Lock) error {
		return txguard.Run(ctx, lock, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE stock SET n = n - 1 WHERE item = 7")
			return err
		})
	}, sqllock.OwnSession())
	if err != nil {
		log.Print(err)
	}
}

// Work on another server than that of the lock, or in many transactions under one
// lock.
func Example_fenced() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	warehouse, err := sql.Open("mysql", "user:password@tcp(192.0.2.7:3306)/warehouse")
	if err != nil {
		log.Fatal(err)
	}
	if err := migrations.Up(ctx, db); err != nil {
		log.Fatal(err)
	}
	if err := migrations.Up(ctx, warehouse, migrations.Fences()); err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(table.New(time.Minute))

	fence := txguard.NewFence(warehouse)
	err = locker.Do(ctx, db, "stock", func(ctx context.Context, lock *sqllock.Lock) error {
		fenced, err := fence.Raise(ctx, lock) // from here on no earlier holder can commit
		if err != nil {
			return err
		}
		for _, order := range orders() {
			err := fenced.Run(ctx, func(ctx context.Context, tx *sql.Tx) error {
				return bookOrder(ctx, tx, order)
			})
			if err != nil {
				return err
			}
		}
		return tellTheShop(ctx, fenced.Token())
	})
	if err != nil {
		log.Print(err)
	}
}

// A COMMIT whose answer is lost is looked up. Where even that could not be done in
// time, it can be later.
func Example_unknownOutcome() {
	ctx := context.Background()
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	if err := migrations.Up(ctx, db, migrations.Fences()); err != nil {
		log.Fatal(err)
	}
	locker := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop"))

	fence := txguard.NewFence(db)
	err = txguard.Do(ctx, locker, db, "stock", bookStock, txguard.WithEvidence(fence))
	var outcome *txguard.OutcomeError
	if errors.As(err, &outcome) && outcome.Evidence != nil {
		committed, err := fence.Settle(ctx, *outcome.Evidence) // waits until it can be told
		if err != nil {
			log.Fatal(err) // ctx has ended
		}
		log.Print("committed: ", committed)
	}
}

// What is not behind a fence of ours can have one of its own: it remembers the
// greatest token that it has seen, and refuses what comes with a smaller one.
func Example_fencedHTTP() {
	var mu sync.Mutex
	var latest int64
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, err := strconv.ParseInt(r.Header.Get("Fencing-Token"), 10, 64)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			http.Error(w, "no fencing token", http.StatusBadRequest)
		case token < latest:
			http.Error(w, "a later holder has been here", http.StatusConflict)
		default:
			latest = token
			fmt.Fprintln(w, "done") // what is to be done, while mu is held
		}
	}))
	defer service.Close()

	send := func(token int64) { // lock.Token(), or fenced.Token()
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, service.URL, http.NoBody)
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("Fencing-Token", strconv.FormatInt(token, 10))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		defer res.Body.Close()
		fmt.Println(token, res.Status)
	}
	send(33)
	send(34) // the next holder
	send(33) // the first one, after a long pause
	// Output:
	// 33 200 OK
	// 34 200 OK
	// 33 409 Conflict
}

func bookStock(context.Context, *sql.Tx) error { return nil }

func orders() []int { return nil }

func bookOrder(context.Context, *sql.Tx, int) error { return nil }

func tellTheShop(context.Context, int64) error { return nil }
