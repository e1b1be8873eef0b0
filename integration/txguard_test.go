package integration

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/migrations"
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
	tables int // made so far
}

// fenceTable makes the fence table in the database of db, and one to work on.
func fenceTable(t *testing.T, db *sql.DB) {
	t.Helper()
	if err := migrations.Up(t.Context(), db, migrations.Fences()); err != nil {
		t.Fatal(err)
	}
	runSQL(t, db, "CREATE TABLE work (id bigint NOT NULL PRIMARY KEY, n bigint NOT NULL) ENGINE=InnoDB", "INSERT INTO work VALUES (1,0),(2,0)")
}

// onEachGuarded runs a test with each backend, engine and server.
func onEachGuarded(t *testing.T, test func(t *testing.T, g *guarded)) {
	t.Helper()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		t.Parallel()
		for _, engine := range engines {
			db := lockTable(t, s, engine)
			fenceTable(t, db)
			run := func(name string, b sqllock.Backend) {
				t.Run(name, func(t *testing.T) {
					_, leases := b.(sqllock.Leaser)
					drain(t, db, "UPDATE work SET n=0")
					test(t, &guarded{t, s, db, txguard.NewFence(db), sqllock.New(b), leases, 0})
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

// clean checks that the session of l has no transaction, holds the lock, and that
// n increments were committed.
func (g *guarded) clean(l *sqllock.Lock, n int64) {
	g.t.Helper()
	if got := g.n(); got != n {
		g.t.Errorf("%d increments were committed, want %d", got, n)
	}
	wantHeld(g.t, l)
	if err := txguard.Run(g.t.Context(), l, increment); err != nil {
		g.t.Errorf("the next transaction: %v", err)
	}
	do(g.t, g.db, "UPDATE work SET n=0")
}

func TestGuardFunctionFails(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		l := g.lock()
		failure := errors.New("no stock")
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			return fmt.Errorf("booking: %w", errors.Join(increment(ctx, tx), failure))
		})
		wantErr(t, "a function that fails", err, txguard.ErrRolledBack, failure)
		g.clean(l, 0)
		func() {
			defer func() {
				if p := recover(); p != failure { //nolint:errorlint // the very value
					t.Errorf("recovered %v", p)
				}
			}()
			_ = txguard.Run(t.Context(), l, func(_ context.Context, tx *sql.Tx) error {
				do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
				panic(failure)
			})
		}()
		g.clean(l, 0)
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, "SELECT 1 UNION SELECT 2") //nolint:sqlclosecheck // that is the test
			if err != nil || !rows.Next() {
				t.Errorf("rows: %v", errors.Join(err, rows.Err()))
			}
			return nil
		})
		wantErr(t, "rows left open", err, txguard.ErrRolledBack)
		g.clean(l, 0)
	})
}

// TestGuardEndedEarly: what was done until the transaction ended is not undone, and
// Run says so, whatever ended it.
func TestGuardEndedEarly(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		l := g.lock()
		unguarded := func(name string, n int64, end func(ctx context.Context, tx *sql.Tx) error) {
			t.Helper()
			err := txguard.Run(t.Context(), l, end)
			wantErr(t, name, err, txguard.ErrUnguarded)
			if errors.Is(err, txguard.ErrRolledBack) {
				t.Errorf("%s: %v", name, err)
			}
			g.clean(l, n)
		}
		for statement, n := range map[string]int64{
			"COMMIT": 2, "ROLLBACK": 1, "SET autocommit=0": 0, "CREATE TABLE x%d (a int)": 2, "LOCK TABLES work WRITE": 2, "ANALYZE TABLE work": 2,
		} {
			g.tables++
			statement = strings.Replace(statement, "%d", strconv.Itoa(g.tables)+strings.ToLower(rand.Text()), 1)
			for _, failure := range []error{nil, errors.New("no stock")} {
				if failure != nil && strings.Contains(statement, "CREATE") {
					continue
				}
				unguarded(statement, n, func(_ context.Context, tx *sql.Tx) error {
					do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
					drainTx(t, tx, statement)
					do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
					return failure
				})
			}
		}
		for name, end := range map[string]func(*sql.Tx) error{"Commit": (*sql.Tx).Commit, "Rollback": (*sql.Tx).Rollback} {
			n := map[string]int64{"Commit": 1, "Rollback": 0}[name]
			unguarded(name, n, func(ctx context.Context, tx *sql.Tx) error { return errors.Join(increment(ctx, tx), end(tx)) })
			failure := errors.New("no stock")
			unguarded(name, n, func(ctx context.Context, tx *sql.Tx) error { return errors.Join(increment(ctx, tx), end(tx), failure) })
		}

		// A statement that fails has committed, too, and its answer does not say so.
		unguarded("DDL that fails", 1, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
			_, err := tx.ExecContext(ctx, "CREATE TABLE work (id int)")
			return err
		})

		// What became of another transaction says nothing about this one.
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			return errors.Join(increment(ctx, tx), txguard.Run(ctx, g.lock(), func(_ context.Context, tx *sql.Tx) error {
				do(t, tx, "COMMIT")
				return nil
			}))
		})
		var outcome *txguard.OutcomeError
		if !errors.As(err, &outcome) || outcome.Outcome != txguard.ErrRolledBack { //nolint:errorlint // the outer one
			t.Errorf("another one that was not guarded: %v", err)
		}
		g.clean(l, 0)

		do(t, l.Conn(), "SET completion_type=CHAIN")
		if err := txguard.Run(t.Context(), l, increment); err != nil {
			t.Errorf("with completion_type=CHAIN: %v", err)
		}
		g.clean(l, 1)
		err = txguard.Run(t.Context(), l, func(context.Context, *sql.Tx) error { return sql.ErrNoRows })
		wantErr(t, "with completion_type=CHAIN", err, txguard.ErrRolledBack, sql.ErrNoRows)
		do(t, l.Conn(), "SET completion_type=NO_CHAIN")
		g.clean(l, 0)

		// Not noticed, as the documentation says: it looks the same afterwards.
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "START TRANSACTION")
			return increment(ctx, tx)
		})
		if err != nil {
			t.Errorf("START TRANSACTION is noticed now: %v", err)
		}
		g.clean(l, 1)
	})
}

func drainTx(t *testing.T, tx *sql.Tx, query string) {
	t.Helper()
	rows, err := tx.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// deadlock has tx be the victim of a deadlock, whose error it returns.
func (g *guarded) deadlock(tx *sql.Tx) error {
	g.t.Helper()
	do(g.t, tx, "UPDATE work SET n=n+1 WHERE id=1")
	other, err := g.db.BeginTx(g.t.Context(), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	defer other.Rollback() //nolint:errcheck // it is committed by then
	do(g.t, other, "UPDATE work SET n=n WHERE id=2")
	do(g.t, other, "INSERT INTO work SELECT id+1000,0 FROM (SELECT 1 id UNION SELECT 2 UNION SELECT 3 UNION SELECT 4) o") // more to undo
	waited := make(chan error, 1)
	go func() {
		_, err := other.ExecContext(g.t.Context(), "UPDATE work SET n=n WHERE id=1")
		waited <- err
	}()
	rowWait(g.t, g.db, "work SET n=n WHERE id=1")
	_, err = tx.ExecContext(g.t.Context(), "UPDATE work SET n=n WHERE id=2")
	if err := <-waited; err != nil {
		g.t.Fatalf("the other one was the victim: %v", err)
	}
	return err
}

// TestGuardDeadlock: a deadlock ends the transaction on both servers. Where its error
// is returned, nothing happened, and the work can be done again.
func TestGuardDeadlock(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		l := g.lock()
		err := txguard.Run(t.Context(), l, func(_ context.Context, tx *sql.Tx) error { return g.deadlock(tx) })
		wantErr(t, "a deadlock", err, txguard.ErrRolledBack)
		g.clean(l, 0)
		err = txguard.Run(t.Context(), l, func(_ context.Context, tx *sql.Tx) error {
			_ = g.deadlock(tx)
			return nil
		})
		wantErr(t, "a deadlock that is kept quiet, at the end", err, txguard.ErrUnguarded)
		g.clean(l, 0)
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			_ = g.deadlock(tx)
			return increment(ctx, tx)
		})
		wantErr(t, "a deadlock that is kept quiet", err, txguard.ErrUnguarded)
		g.clean(l, 1)

		tries := 0
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			tries++
			if tries < 3 {
				return fmt.Errorf("try %d: %w", tries, g.deadlock(tx))
			}
			return increment(ctx, tx)
		}, txguard.Retries(2))
		if err != nil || tries != 3 {
			t.Errorf("with two retries: %d tries, %v", tries, err)
		}
		g.clean(l, 1)
	})
}

// TestGuardLockDeadlock: a cycle of user-level locks is an error, too, which leaves
// the transaction open on both servers, whatever its number.
func TestGuardLockDeadlock(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := schema(t, s)
		runSQL(t, db, "CREATE TABLE work (id bigint NOT NULL PRIMARY KEY, n bigint NOT NULL) ENGINE=InnoDB", "INSERT INTO work VALUES (1,0)")
		k := sqllock.New(mysqlnamed.New())
		mine, others := conn(t, db), conn(t, db)
		l, theirs := acquire(t, k, mine, lockName("a")), lockName("b")
		other := acquire(t, k, others, theirs)
		waited := make(chan error, 1)
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
			go func() {
				got, err := k.Lock(t.Context(), others, l.Name())
				if err == nil {
					err = got.Release(t.Context())
				}
				waited <- err
			}()
			waiters(t, db, l.Name(), 1)
			_, err := k.Lock(ctx, mine, theirs) // the cycle
			if err == nil {
				t.Error("there was no deadlock")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if got := ask[int](t, db, "SELECT n FROM work WHERE id=1"); got != 1 {
			t.Errorf("n is %d", got)
		}
		release(t, l)
		if err := <-waited; err != nil {
			t.Error(err)
		}
		release(t, other)
	})
}

// TestGuardOpenTransaction: one that is open is refused, and left as it is.
func TestGuardOpenTransaction(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		l := g.lock()
		never := func(context.Context, *sql.Tx) error {
			t.Error("the function was called")
			return nil
		}
		tx, err := l.Conn().BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := increment(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "beside a Tx", txguard.Run(t.Context(), l, never), txguard.ErrNotBegun, sqllock.ErrInTransaction)
		if n := g.n(); n != 0 {
			t.Errorf("%d was committed", n)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		do(t, l.Conn(), "BEGIN")
		wantErr(t, "after BEGIN", txguard.Run(t.Context(), l, never), txguard.ErrNotBegun, sqllock.ErrInTransaction)
		do(t, l.Conn(), "ROLLBACK")
		do(t, l.Conn(), "SET autocommit=0")
		wantErr(t, "without autocommit", txguard.Run(t.Context(), l, never), txguard.ErrNotBegun, sqllock.ErrUnsupported)
		do(t, l.Conn(), "SET autocommit=1")
		err = txguard.Run(t.Context(), l, func(ctx context.Context, _ *sql.Tx) error {
			wantErr(t, "beside a guarded one", txguard.Run(ctx, l, never), txguard.ErrNotBegun, sqllock.ErrInTransaction)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		g.clean(l, 1)
	})
}

// TestGuardContext ends the caller's ctx at every moment.
func TestGuardContext(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		cause := errors.New("the deploy stops us")
		l := g.lock()
		ctx, cancel := context.WithCancelCause(t.Context())
		err := txguard.Run(ctx, l, func(ctx context.Context, tx *sql.Tx) error {
			err := increment(ctx, tx)
			cancel(cause)
			<-ctx.Done()
			return err
		})
		wantErr(t, "in the function", err, txguard.ErrRolledBack, context.Canceled, cause)
		g.clean(l, 0)
		wantErr(t, "before", txguard.Run(ctx, l, increment), txguard.ErrNotBegun, context.Canceled, cause)
		g.clean(l, 0)

		// In a statement: the driver knows no other way than to close the connection.
		ctx, cancel = context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
		err = txguard.Run(ctx, l, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE work SET n=SLEEP(1) WHERE id=1")
			return err
		})
		wantErr(t, "in a statement", err, txguard.ErrRolledBack, context.Canceled, sqllock.ErrLost)
		release(t, acquire(t, g.locker, conn(t, g.db), l.Name()))

		pool, gate := gated(t, g.s, g.db)
		l = acquire(t, g.locker, conn(t, pool), lockName("guarded"))
		ctx, cancel = context.WithCancelCause(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- txguard.Run(ctx, l, increment) }()
		<-gate.reached
		cancel(cause)
		released := make(chan error, 1)
		go func() { released <- l.Release(t.Context()) }()
		_, err = g.locker.TryLock(t.Context(), conn(t, g.db), l.Name())
		wantErr(t, "TryLock by another one meanwhile", err, sqllock.ErrBusy)
		stillWaits(t, released)
		gate.pass <- struct{}{}
		if err := <-ran; err != nil {
			t.Errorf("between check and commit: %v", err)
		}
		if err := <-released; err != nil {
			t.Errorf("Release, which waits for the commit: %v", err)
		}
		if n := g.n(); n != 1 {
			t.Errorf("%d was committed", n)
		}
	})
}

// TestGuardReleasedInside: by the handle, and behind its back.
func TestGuardReleasedInside(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		l := g.lock()
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			return errors.Join(increment(ctx, tx), l.Release(ctx))
		})
		wantErr(t, "by the handle", err, txguard.ErrRolledBack, sqllock.ErrNotHeld)
		wantErr(t, "the next one", txguard.Run(t.Context(), l, increment), txguard.ErrNotBegun, sqllock.ErrNotHeld)
		l = g.lock()
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			drainTx(t, tx, "SELECT RELEASE_LOCK('"+l.Grant().Key+"')")
			return increment(ctx, tx)
		})
		wantErr(t, "by RELEASE_LOCK", err, txguard.ErrRolledBack, sqllock.ErrLost)
		if n := g.n(); n != 0 {
			t.Errorf("%d was committed", n)
		}
	})
}

// TestGuardTTL: what is left of it counts at the commit, by the server's clock.
func TestGuardTTL(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		if !g.leases {
			l := g.lock()
			err := txguard.Run(t.Context(), l, increment, txguard.MinTTL(time.Second))
			wantErr(t, "MinTTL of a lock without one", err, txguard.ErrNotBegun, sqllock.ErrUnsupported)
			return
		}
		l := g.lock(sqllock.TTL(30 * time.Second))
		if err := txguard.Run(t.Context(), l, increment, txguard.MinTTL(10*time.Second)); err != nil {
			t.Error(err)
		}
		err := txguard.Run(t.Context(), l, increment, txguard.MinTTL(time.Minute))
		wantErr(t, "more than there ever was", err, txguard.ErrNotBegun, sqllock.ErrTTLTooShort)
		enough := l.Remaining() - 100*time.Millisecond
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			err := increment(ctx, tx)
			waitFor(t, "some of the TTL to pass", func() bool { return l.Remaining() < enough })
			return err
		}, txguard.MinTTL(enough))
		wantErr(t, "too little left", err, txguard.ErrRolledBack, sqllock.ErrTTLTooShort)
		g.clean(l, 1)

		l = g.lock(sqllock.TTL(time.Second))
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			err := increment(ctx, tx)
			waitFor(t, "the TTL to be over", func() bool { return l.Remaining() == 0 })
			drainTx(t, tx, "SELECT SLEEP(1.1)") // up to a second more, by the server's clock
			return err
		})
		wantErr(t, "TTL over", err, txguard.ErrRolledBack, sqllock.ErrLost)

		l = g.lock(sqllock.TTL(time.Second))
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			err := increment(ctx, tx)
			next := acquire(t, g.locker, conn(t, g.db), l.Name())
			if n := g.n(); n != 0 {
				t.Errorf("the next holder reads %d", n)
			}
			do(t, g.db, "UPDATE work SET n=10 WHERE id=1") // which waits for nobody
			release(t, next)
			return err
		})
		wantErr(t, "taken over", err, txguard.ErrRolledBack, sqllock.ErrLost)
		if n := g.n(); n != 10 {
			t.Errorf("n is %d", n)
		}
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
