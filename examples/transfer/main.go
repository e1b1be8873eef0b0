// Transfer moves money between two accounts, under the locks of both. Half of its
// goroutines go from the first to the second and half the other way round: taken one after
// the other in these orders, the locks would wait for each other. DoAll takes both in one
// order, or none.
//
//	DSN=… go run ./examples/transfer
//
// Start it in several processes: the sum of the balances stays what it was. With -without
// it does not.
package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/sqllock/go-sqllock/examples/internal/server"
	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	goroutines = 8
	each       = 20 // transfers
)

func main() {
	server.Main("the locks", run)
}

func run(ctx context.Context, s *server.Server) error {
	accounts := server.Table{Name: "accounts", Columns: "id bigint PRIMARY KEY, balance bigint NOT NULL", Rows: "(1,1000),(2,1000)"}
	if err := s.Prepare(ctx, accounts); err != nil {
		return err
	}
	pool := sqllock.NewPool(s.DB, sqllock.New(s.Locks(), sqllock.WithNamespace("bank")))
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for i := range goroutines {
		from, to := int64(1), int64(2)
		if i%2 == 1 {
			from, to = to, from
		}
		wg.Go(func() {
			for range each {
				errs[i] = errors.Join(errs[i], move(ctx, s, pool, from, to))
			}
		})
	}
	wg.Wait()
	balances, err := s.Numbers(ctx, s.DB, "SELECT balance FROM accounts WHERE id IN (1, 2) ORDER BY id")
	if err == nil && len(balances) == 2 {
		fmt.Println("balances", balances, "sum", balances[0]+balances[1])
	}
	return errors.Join(append(errs, err, pool.Close(ctx))...)
}

// move takes one from an account to another one.
func move(ctx context.Context, s *server.Server, pool *sqllock.Pool, from, to int64) error {
	if s.Without {
		return transfer(ctx, s, from, to)
	}
	names := []string{fmt.Sprintf("account:%d", from), fmt.Sprintf("account:%d", to)}
	return pool.DoAll(ctx, names, func(ctx context.Context, _ sqllock.Locks) error {
		return transfer(ctx, s, from, to)
	})
}

// transfer reads both balances, computes, and writes both, as programs do.
func transfer(ctx context.Context, s *server.Server, from, to int64) error {
	ids := []int64{min(from, to), max(from, to)}
	balances := make(map[int64]int64)
	for _, id := range ids {
		var balance int64
		if err := s.DB.QueryRowContext(ctx, s.SQL("SELECT balance FROM accounts WHERE id = ?"), id).Scan(&balance); err != nil {
			return err
		}
		balances[id] = balance
	}
	if err := s.Work(ctx); err != nil {
		return err
	}
	balances[from]--
	balances[to]++
	tx, err := s.DB.BeginTx(ctx, nil) // rolled back when ctx ends, as with the loss of a lock
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a Commit it does nothing
	for _, id := range ids {
		if _, err := tx.ExecContext(ctx, s.SQL("UPDATE accounts SET balance = ? WHERE id = ?"), balances[id], id); err != nil {
			return err
		}
	}
	return tx.Commit()
}
