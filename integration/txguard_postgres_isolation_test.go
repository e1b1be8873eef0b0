package integration

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"testing"

	"github.com/sqllock/go-sqllock/txguard"
)

func pgIsolations() map[string]sql.TxOptions {
	return map[string]sql.TxOptions{
		"READ COMMITTED":  {Isolation: sql.LevelReadCommitted},
		"REPEATABLE READ": {Isolation: sql.LevelRepeatableRead},
		"SERIALIZABLE":    {Isolation: sql.LevelSerializable},
	}
}

func onEachPGIsolation(t *testing.T, test func(t *testing.T, g *pgGuarded, opts sql.TxOptions)) {
	t.Helper()
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		for name, opts := range pgIsolations() {
			t.Run(name, func(t *testing.T) {
				do(t, g.db, "UPDATE work SET n=0")
				do(t, g.db, "DELETE FROM lock_fences")
				test(t, &pgGuarded{t, g.s, g.db, g.name, g.fence, g.backend, g.locker}, opts)
			})
		}
	})
}

// TestPGGuardSeesItsPredecessor: whoever waited for the lock reads what the holder
// before committed, under every isolation level. The control locks when its snapshot
// has been taken, as by pg_advisory_xact_lock in a transaction, and reads what was
// there before it waited.
func TestPGGuardSeesItsPredecessor(t *testing.T) {
	const rounds = 8
	onEachPGIsolation(t, func(t *testing.T, g *pgGuarded, opts sql.TxOptions) {
		missed := 0
		for range rounds {
			if g.succession(t, func(ctx context.Context, name string) (int, error) { return g.lockInside(ctx, name, opts) }) {
				missed++
			}
		}
		want := rounds
		if opts.Isolation == sql.LevelReadCommitted {
			want = 0
		}
		if missed != want {
			t.Errorf("a lock that is taken in the transaction: its predecessor was missed %d times, want %d of %d; if it never is, this shows nothing", missed, want, rounds)
		}
		for form, do := range map[string]func(ctx context.Context, name string) (n int, err error){
			"Do": func(ctx context.Context, name string) (n int, err error) {
				err = txguard.Do(ctx, g.locker, g.db, name, readingInto(&n), txguard.WithTxOptions(opts))
				return n, err
			},
			"with evidence": func(ctx context.Context, name string) (n int, err error) {
				err = txguard.Do(ctx, g.locker, g.db, name, readingInto(&n), txguard.WithTxOptions(opts), txguard.WithEvidence(g.fence))
				return n, err
			},
			"fenced": func(ctx context.Context, name string) (n int, err error) {
				c := conn(t, g.db)
				defer c.Close() //nolint:errcheck // it is closed by the cleanup, too
				l, err := g.locker.Lock(ctx, c, name)
				if err != nil {
					return 0, err
				}
				f, err := g.fence.Raise(ctx, l)
				if err == nil {
					err = f.Run(ctx, readingInto(&n), txguard.WithTxOptions(opts))
				}
				return n, errors.Join(err, l.Release(ctx))
			},
		} {
			for range rounds {
				if g.succession(t, do) {
					t.Errorf("%s: the predecessor was missed", form)
				}
			}
		}
	})
}

// readingInto reads into n, and adds one.
func readingInto(n *int) txguard.Func {
	return func(ctx context.Context, tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, "SELECT n FROM work WHERE id=1").Scan(n); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "UPDATE work SET n=$1 WHERE id=1", *n+1)
		return err
	}
}

// lockInside takes the lock in the transaction, as its first statement, and reads.
func (g *pgGuarded) lockInside(ctx context.Context, name string, opts sql.TxOptions) (n int, err error) {
	tx, err := g.db.BeginTx(ctx, &opts)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() //nolint:errcheck // it only reads
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock("+pgNumber+")", name); err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, "SELECT n FROM work WHERE id=1").Scan(&n)
	return n, err
}

// succession has a holder commit while next waits for its lock, and reports whether
// that has missed what was committed.
func (g *pgGuarded) succession(t *testing.T, next func(ctx context.Context, name string) (n int, err error)) (missed bool) {
	t.Helper()
	do(t, g.db, "UPDATE work SET n=0")
	l := g.lock()
	var wg sync.WaitGroup
	wg.Go(func() {
		n, err := next(t.Context(), l.Grant().Key)
		if err != nil {
			t.Error(err)
		}
		missed = n == 0
	})
	waitFor(t, "the next one to wait", func() bool {
		n, err := pgWaiters(t.Context(), g.db, l.Grant().Key)
		return n == 1 && err == nil
	})
	if err := txguard.Run(t.Context(), l, increment); err != nil {
		t.Error(err)
	}
	release(t, l)
	wg.Wait()
	return missed
}
