// Unknown charges an account, and knows in the end whether it has: when the connection
// breaks during COMMIT, all of the work was committed or none of it, and no error can tell
// which. Evidence that is committed with the work can.
//
//	DSN=… go run ./examples/unknown
//
// The test of this example cuts the connection between the COMMIT and its answer, and before
// it. With -without the program can't tell.
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
	server.Main("the evidence", run)
}

func run(ctx context.Context, s *server.Server) error {
	if err := s.Prepare(ctx, server.Table{Name: "charges", Columns: "id bigint PRIMARY KEY, n bigint NOT NULL", Rows: "(7,0)"}); err != nil {
		return err
	}
	locker := sqllock.New(s.Locks(), sqllock.WithNamespace("shop"))
	fence := txguard.NewFence(s.DB)
	var opts []txguard.Option
	if !s.Without {
		opts = append(opts, txguard.WithEvidence(fence))
	}
	err := txguard.Do(ctx, locker, s.DB, "charges", func(ctx context.Context, tx *sql.Tx) error {
		if err := s.Work(ctx); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "UPDATE charges SET n = n + 1 WHERE id = 7")
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 { // of no account there is nothing to commit
			return errors.Join(err, fmt.Errorf("%d accounts with id 7", n))
		}
		return nil
	}, opts...)

	// Do has looked it up by itself. It has given up after ten seconds if the database
	// could not be asked; then Settle goes on, now or, with the evidence stored, later.
	var outcome *txguard.OutcomeError
	if errors.As(err, &outcome) && outcome.Evidence != nil {
		committed, settled := fence.Settle(ctx, *outcome.Evidence)
		switch {
		case settled != nil:
			err = errors.Join(err, settled) // as unknown as before
		case committed:
			err = nil
		default:
			err = txguard.ErrRolledBack
		}
	}
	switch {
	case err == nil:
		fmt.Println("charged")
		return nil
	case errors.Is(err, txguard.ErrUnknown):
		fmt.Println("charged or not, nobody knows:", err)
	default:
		fmt.Println("not charged:", err)
	}
	return err
}
