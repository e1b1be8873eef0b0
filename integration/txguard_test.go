package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// guarded is a lock of one backend, and what its work is done on.
type guarded struct {
	t      *testing.T
	s      *testdb.Server
	db     *sql.DB
	fence  *txguard.Fence
	locker *sqllock.Locker
	leases bool
}

const fencesTable = "CREATE TABLE lock_fences (name varchar(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY, " +
	"token bigint NOT NULL, seq bigint NOT NULL DEFAULT 0, commits varbinary(512) NOT NULL DEFAULT '', " +
	"session bigint NOT NULL DEFAULT 0, updated bigint NOT NULL DEFAULT 0) ENGINE=InnoDB"

// onEachGuarded runs a test with each backend, engine and server.
func onEachGuarded(t *testing.T, test func(t *testing.T, g *guarded)) {
	t.Helper()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, engine := range engines {
			db := lockTable(t, s, engine)
			runSQL(t, db, fencesTable, "CREATE TABLE work (id bigint NOT NULL PRIMARY KEY, n bigint NOT NULL) ENGINE=InnoDB", "INSERT INTO work VALUES (1,0),(2,0)")
			run := func(name string, b sqllock.Backend) {
				t.Run(name, func(t *testing.T) {
					_, leases := b.(sqllock.Leaser)
					drain(t, db, "UPDATE work SET n=0")
					test(t, &guarded{t, s, db, txguard.NewFence(db), sqllock.New(b), leases})
				})
			}
			if engine == "MyISAM" {
				run("mysqlnamed", mysqlnamed.New())
			}
			run(engine, table.New(time.Minute))
			run(engine+" with pool", table.New(time.Minute, table.WithPool(db)))
		}
	})
}

// lock acquires a lock of a name of its own.
func (g *guarded) lock(opts ...sqllock.LockOption) *sqllock.Lock {
	g.t.Helper()
	l := acquire(g.t, g.locker, conn(g.t, g.db), lockName("guarded"), opts...)
	g.t.Cleanup(func() { _ = l.Release(g.t.Context()) })
	return l
}

func (g *guarded) n() int64 { return ask[int64](g.t, g.db, "SELECT n FROM work WHERE id=1") }

func increment(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, "UPDATE work SET n=n+1 WHERE id=1")
	return err
}

func TestGuardCommits(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		l := g.lock()
		for want := int64(1); want <= 3; want++ {
			if err := txguard.Run(t.Context(), l, increment); err != nil {
				t.Fatal(err)
			}
			if got := g.n(); got != want {
				t.Errorf("after %d guarded increments: %d", want, got)
			}
		}
		if err := txguard.Run(t.Context(), l, increment, txguard.WithEvidence(g.fence)); err != nil {
			t.Fatal(err)
		}
		f, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Run(t.Context(), increment); err != nil {
			t.Fatal(err)
		}
		if got := g.n(); got != 5 {
			t.Errorf("after 5 guarded increments: %d", got)
		}
		release(t, l)
	})
}

func TestGuardFunctionFails(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		l := g.lock()
		failure := errors.New("no stock")
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			return fmt.Errorf("booking: %w", errors.Join(increment(ctx, tx), failure))
		})
		wantErr(t, "a function that fails", err, txguard.ErrRolledBack, failure)
		for name, statement := range map[string]string{
			"DDL":     "CREATE TABLE x" + fmt.Sprint(time.Now().UnixNano()) + " (a int)",
			"COMMIT":  "COMMIT",
			"ROLLBACK": "ROLLBACK",
			"autocommit": "SET autocommit=0",
		} {
			err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
				if err := increment(ctx, tx); err != nil {
					return err
				}
				if _, err := tx.ExecContext(ctx, statement); err != nil {
					return err
				}
				return increment(ctx, tx)
			})
			wantErr(t, name, err, txguard.ErrUnguarded)
			t.Log(err)
		}
		for name, end := range map[string]func(*sql.Tx) error{"Commit": (*sql.Tx).Commit, "Rollback": (*sql.Tx).Rollback} {
			err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
				return errors.Join(increment(ctx, tx), end(tx))
			})
			wantErr(t, name, err, txguard.ErrUnguarded)
			t.Log(err)
		}
		if err := txguard.Run(t.Context(), l, increment); err != nil {
			t.Error("afterwards:", err)
		}
		release(t, l)
	})
}

func TestGuardKilled(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		l := g.lock()
		id := sessionID(t, l.Conn())
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			if err := increment(ctx, tx); err != nil {
				return err
			}
			return mysqlKill(ctx, g.db, id)
		})
		wantErr(t, "killed before the check", err, txguard.ErrRolledBack, sqllock.ErrLost)
		t.Log(err)
		l = g.lock()
		id = sessionID(t, l.Conn())
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			if err := mysqlKill(ctx, g.db, id); err != nil {
				t.Error(err)
			}
			return increment(ctx, tx)
		})
		wantErr(t, "killed before a statement", err, txguard.ErrRolledBack, sqllock.ErrLost)
		t.Log(err)
		if n := g.n(); n != 0 {
			t.Errorf("%d increments were committed", n)
		}
	})
}
