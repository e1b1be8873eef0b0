// Partitions is a batch that any number of workers share: each takes a partition that
// nobody has, books its orders in one transaction, and goes on to the next.
//
//	DSN=… go run ./examples/partitions -pause 1s
//
// The transaction is on the session that holds the lock of the partition. So the server has
// rolled back what a worker that was killed had begun before another one gets it: each order
// is booked once. With -without it is not.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/sqllock/go-sqllock/examples/internal/server"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"
)

func main() {
	server.Main("the locks", run)
}

func run(ctx context.Context, s *server.Server) error {
	err := s.Prepare(ctx, server.Table{
		Name:    "orders",
		Columns: "id bigint PRIMARY KEY, part bigint NOT NULL, booked bigint NOT NULL",
		Rows:    "(1,1,0),(2,1,0),(3,2,0),(4,2,0),(5,3,0),(6,3,0)",
	})
	if err != nil {
		return err
	}
	locker := sqllock.New(s.Locks(), sqllock.WithNamespace("orders"))
	for {
		parts, err := s.Numbers(ctx, s.DB, "SELECT DISTINCT part FROM orders WHERE booked = 0 ORDER BY part")
		if err != nil || len(parts) == 0 {
			return err
		}
		worked := false
		for _, part := range parts {
			ran, err := try(ctx, s, locker, part)
			if err != nil {
				return err
			}
			worked = worked || ran
		}
		if !worked { // Others have all that is left. Wait for one: if it dies, its partition is ours.
			fmt.Println("waiting for part", parts[0])
			if err := again(txguard.Do(ctx, locker, s.DB, name(parts[0]), book(s, parts[0]))); err != nil {
				return err
			}
		}
	}
}

// try books a partition, unless another worker is at it.
func try(ctx context.Context, s *server.Server, locker *sqllock.Locker, part int64) (ran bool, err error) {
	if s.Without {
		return true, withoutLock(ctx, s, part)
	}
	ran, err = txguard.TryDo(ctx, locker, s.DB, name(part), book(s, part))
	return ran, again(err)
}

// again tells which errors are none here, as the loop looks anew at what there is to do:
// all of a transaction was committed, or nothing.
func again(err error) error {
	if errors.Is(err, sqllock.ErrLost) || errors.Is(err, txguard.ErrUnknown) {
		fmt.Println("once more:", err)
		return nil
	}
	return err
}

func name(part int64) string { return fmt.Sprintf("part:%d", part) }

// book books the orders of a partition that are not.
func book(s *server.Server, part int64) txguard.Func {
	return func(ctx context.Context, tx *sql.Tx) error {
		orders, err := s.Numbers(ctx, tx, "SELECT id FROM orders WHERE part = ? AND booked = 0 ORDER BY id", part)
		if err != nil || len(orders) == 0 {
			return err
		}
		fmt.Printf("part %d: %d orders\n", part, len(orders))
		for _, id := range orders {
			if err := s.Work(ctx); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, s.SQL("UPDATE orders SET booked = booked + 1 WHERE id = ?"), id); err != nil {
				return err
			}
		}
		return nil
	}
}

func withoutLock(ctx context.Context, s *server.Server, part int64) error {
	tx, err := s.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := book(s, part)(ctx, tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
