package integration

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// pgGuarded is a backend, and a database for the work under its locks.
type pgGuarded struct {
	t       *testing.T
	s       *testdb.Server
	db      *sql.DB
	name    string // of the database
	fence   *txguard.Fence
	backend sqllock.Backend
	locker  *sqllock.Locker
}

func newPGGuarded(t *testing.T, s *testdb.Server, backend func(*testing.T, *sql.DB) sqllock.Backend) *pgGuarded {
	t.Helper()
	db := pgGuardDB(t, s)
	b := backend(t, db)
	return &pgGuarded{t, s, db, ask[string](t, db, "SELECT current_database()"), txguard.NewFence(db), b, sqllock.New(b)}
}

// pgGuardBackends are those that work is guarded with on PostgreSQL, by name.
func pgGuardBackends() map[string]func(t *testing.T, db *sql.DB) sqllock.Backend {
	return map[string]func(*testing.T, *sql.DB) sqllock.Backend{
		"pgadvisory": func(*testing.T, *sql.DB) sqllock.Backend { return pgadvisory.New() },
	}
}

// onEachPGGuarded runs a test with each backend, in a database of its own.
func onEachPGGuarded(t *testing.T, test func(t *testing.T, g *pgGuarded)) {
	t.Helper()
	t.Parallel()
	s := postgres(t)
	for name, backend := range pgGuardBackends() {
		t.Run(name, func(t *testing.T) {
			test(t, newPGGuarded(t, s, backend))
		})
	}
}

// pgGuardDB makes a database for guarded work.
func pgGuardDB(t *testing.T, s *testdb.Server) *sql.DB {
	t.Helper()
	db := pgDatabase(t, s)
	pgFenceTable(t, db)
	runSQL(t, db, "CREATE TABLE work (id bigint PRIMARY KEY, n bigint NOT NULL)", "INSERT INTO work VALUES (1,0),(2,0)")
	return db
}

func pgFenceTable(t *testing.T, db *sql.DB) {
	t.Helper()
	if err := migrations.Up(t.Context(), db, migrations.Postgres(), migrations.Fences()); err != nil {
		t.Fatal(err)
	}
}

// pool opens another one on the same database.
func (g *pgGuarded) pool(change ...func(*pgx.ConnConfig)) *sql.DB {
	g.t.Helper()
	return openPG(g.t, g.s, append([]func(*pgx.ConnConfig){func(c *pgx.ConnConfig) { c.Database = g.name }}, change...)...)
}

// dialed has the connections of a pool be what wrap makes of them.
func dialed(wrap func(net.Conn) net.Conn) func(*pgx.ConnConfig) {
	return func(c *pgx.ConnConfig) {
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}
	}
}

// lock acquires a lock of a name of its own.
func (g *pgGuarded) lock(opts ...sqllock.LockOption) *sqllock.Lock {
	g.t.Helper()
	return g.lockOn(g.db, lockName("guarded"), opts...)
}

func (g *pgGuarded) lockOn(db *sql.DB, name string, opts ...sqllock.LockOption) *sqllock.Lock {
	g.t.Helper()
	l := acquire(g.t, g.locker, conn(g.t, db), name, opts...)
	g.t.Cleanup(func() { _ = l.Release(g.t.Context()) })
	return l
}

// mints reports whether a fence has to make the token of l, since the backend has none.
func (g *pgGuarded) mints(l *sqllock.Lock) bool {
	_, leases := g.backend.(sqllock.Leaser)
	return !leases || l.Token() == 0
}

func (g *pgGuarded) n() int64 {
	g.t.Helper()
	return ask[int64](g.t, g.db, "SELECT n FROM work WHERE id=1")
}

func (g *pgGuarded) wantN(what string, want int64) {
	g.t.Helper()
	if got := g.n(); got != want {
		g.t.Errorf("%s: n is %d, want %d", what, got, want)
	}
}

// clean checks that the session of l is the one that it was granted on, in no
// transaction, that it holds the lock, and that n increments were committed.
func (g *pgGuarded) clean(what string, l *sqllock.Lock, n int64) {
	g.t.Helper()
	g.wantN(what, n)
	wantHeld(g.t, l)
	if got, want := pgBackend(g.t, l.Conn()), l.Grant().Session; got != want {
		g.t.Errorf("%s: the session is %d, and the lock was granted on %d", what, got, want)
	}
	if err := txguard.Run(g.t.Context(), l, increment); err != nil {
		g.t.Errorf("%s: the next transaction: %v", what, err)
	}
	do(g.t, g.db, "UPDATE work SET n=0")
}

func pgBackend(t *testing.T, q sqllock.Querier) int64 {
	t.Helper()
	return ask[int64](t, q, "SELECT pg_backend_pid()")
}

// kill ends a session, and returns when it is gone.
func (g *pgGuarded) kill(session int64) {
	g.t.Helper()
	if err := pgKill(g.t.Context(), g.db, session); err != nil {
		g.t.Error(err)
	}
	waitFor(g.t, "the session to end", func() bool {
		return ask[bool](g.t, g.db, "SELECT count(*)=0 FROM pg_stat_activity WHERE pid=$1", session)
	})
}

// pgRowWait returns when a statement with that text waits for a lock.
func pgRowWait(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	waitFor(t, "a statement to wait: "+statement, func() bool {
		return ask[bool](t, db, "SELECT count(*)>0 FROM pg_stat_activity WHERE datname=current_database() AND pid<>pg_backend_pid()"+
			" AND wait_event_type='Lock' AND query LIKE $1", "%"+statement+"%")
	})
}

func never(t *testing.T) txguard.Func {
	t.Helper()
	return func(context.Context, *sql.Tx) error {
		t.Error("the function was called")
		return nil
	}
}

// pgReadAndWrite adds one to what it has read, as programs do.
func pgReadAndWrite(ctx context.Context, tx *sql.Tx) error {
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT n FROM work WHERE id=1").Scan(&n); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "UPDATE work SET n=$1 WHERE id=1", n+1)
	return err
}

// pgGate lets packets with COMMIT pass one by one, when it is told to.
type pgGate struct {
	reached chan struct{} // a COMMIT is about to be sent
	pass    chan struct{}
	over    <-chan struct{}        // the test, maybe with a failure
	id      atomic.Pointer[string] // of the last commit, in hex
}

type pgGatedConn struct {
	net.Conn

	gate *pgGate
}

var (
	pgCommit   = []byte("commit\x00")
	pgCommitID = regexp.MustCompile(`decode\('([0-9a-f]{16})'`)
)

func (c pgGatedConn) Write(p []byte) (int, error) {
	if m := pgCommitID.FindSubmatch(p); m != nil {
		id := string(m[1])
		c.gate.id.Store(&id)
	}
	if bytes.HasSuffix(p, pgCommit) {
		select {
		case c.gate.reached <- struct{}{}:
		case <-c.gate.over:
		}
		select {
		case <-c.gate.pass:
		case <-c.gate.over:
		}
	}
	return c.Conn.Write(p)
}

// gated opens a pool with a gate in front of COMMIT.
func (g *pgGuarded) gated() (*sql.DB, *pgGate) {
	g.t.Helper()
	gate := &pgGate{reached: make(chan struct{}), pass: make(chan struct{}), over: g.t.Context().Done()}
	return g.pool(dialed(func(c net.Conn) net.Conn { return pgGatedConn{c, gate} })), gate
}

func TestPGGuardCommits(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		for want := int64(1); want <= 3; want++ {
			if err := txguard.Run(t.Context(), l, increment); err != nil {
				t.Fatal(err)
			}
			g.wantN("guarded increments", want)
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
		g.clean("guarded increments", l, 5)
		release(t, l)
	})
}

func TestPGGuardFunctionFails(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		failure := errors.New("no stock")
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			return fmt.Errorf("booking: %w", errors.Join(increment(ctx, tx), failure))
		})
		wantErr(t, "a function that fails", err, txguard.ErrRolledBack, failure)
		g.clean("a function that fails", l, 0)

		for _, statement := range []string{"SET search_path=nowhere", "SELECT 1/0"} {
			func() {
				defer func() {
					if p := recover(); p != failure { //nolint:errorlint // the very value
						t.Errorf("recovered %v", p)
					}
				}()
				_ = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
					do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
					_, _ = tx.ExecContext(ctx, statement)
					panic(failure)
				})
			}()
			g.clean("a panic after "+statement, l, 0)
		}

		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, "SELECT generate_series(1,100000)") //nolint:sqlclosecheck // that is the test
			if err != nil || !rows.Next() {
				t.Errorf("rows: %v", errors.Join(err, rows.Err()))
			}
			return nil
		})
		wantErr(t, "rows left open", err, txguard.ErrRolledBack)
		if err == nil || !strings.Contains(err.Error(), "close rows before the function returns") {
			t.Errorf("the error does not say what to do: %v", err)
		}
		g.clean("rows left open", l, 0)
	})
}

// TestPGGuardEndedEarly: what was done until the transaction ended is not undone, and
// Run says so, whatever ended it.
func TestPGGuardEndedEarly(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		failure := errors.New("no stock")
		unguarded := func(name string, n int64, end func(ctx context.Context, tx *sql.Tx) error) {
			t.Helper()
			err := txguard.Run(t.Context(), l, end)
			wantErr(t, name, err, txguard.ErrUnguarded)
			if errors.Is(err, txguard.ErrRolledBack) {
				t.Errorf("%s: %v", name, err)
			}
			g.clean(name, l, n)
		}
		for statement, n := range map[string]int64{"COMMIT": 2, "ROLLBACK": 1, "END": 2, "ABORT": 1} {
			for _, failure := range []error{nil, failure} {
				unguarded(statement, n, func(ctx context.Context, tx *sql.Tx) error {
					do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
					do(t, tx, statement)
					return errors.Join(increment(ctx, tx), failure)
				})
			}
		}
		for name, end := range map[string]func(*sql.Tx) error{"Commit": (*sql.Tx).Commit, "Rollback": (*sql.Tx).Rollback} {
			n := map[string]int64{"Commit": 1, "Rollback": 0}[name]
			for _, failure := range []error{nil, failure} {
				unguarded(name, n, func(ctx context.Context, tx *sql.Tx) error { return errors.Join(increment(ctx, tx), end(tx), failure) })
			}
		}
		unguarded("COMMIT, and a session that ends after it", 1, func(ctx context.Context, tx *sql.Tx) error {
			err := increment(ctx, tx)
			do(t, tx, "COMMIT")
			g.kill(l.Grant().Session)
			l = g.lock() // for the check afterwards
			return err
		})

		// What commits implicitly on MySQL does not here, and BEGIN begins nothing.
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
			do(t, tx, "CREATE TABLE other (a int)")
			do(t, tx, "BEGIN")
			return errors.Join(increment(ctx, tx), failure)
		})
		wantErr(t, "DDL and BEGIN", err, txguard.ErrRolledBack, failure)
		g.clean("DDL and BEGIN", l, 0)
		if ask[bool](t, g.db, "SELECT to_regclass('other') IS NOT NULL") {
			t.Error("the DDL was committed")
		}

		// Not noticed, as the documentation says: it looks the same afterwards.
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "COMMIT AND CHAIN")
			return increment(ctx, tx)
		})
		if err != nil {
			t.Errorf("COMMIT AND CHAIN is noticed now: %v", err)
		}
		g.clean("COMMIT AND CHAIN", l, 1)
	})
}

// TestPGGuardFailedStatement: a statement that failed has ended all but the rollback,
// and COMMIT would be answered as if it had been one.
func TestPGGuardFailedStatement(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		for _, opts := range [][]txguard.Option{nil, {txguard.WithEvidence(g.fence)}} {
			err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
				do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
				if _, err := tx.ExecContext(ctx, "SELECT 1/0"); err == nil {
					t.Error("1/0 is something")
				}
				return nil
			}, opts...)
			wantErr(t, "a failure that is kept quiet", err, txguard.ErrRolledBack)
			if errors.Is(err, txguard.ErrUnguarded) || err == nil || !strings.Contains(err.Error(), "did not return its error") {
				t.Errorf("the error does not say what happened: %v", err)
			}
			g.clean("a failure that is kept quiet", l, 0)
		}
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "SAVEPOINT here")
			if _, err := tx.ExecContext(ctx, "SELECT 1/0"); err == nil {
				t.Error("1/0 is something")
			}
			do(t, tx, "ROLLBACK TO SAVEPOINT here")
			return increment(ctx, tx)
		})
		if err != nil {
			t.Errorf("a failure that a savepoint has undone: %v", err)
		}
		g.clean("a failure that a savepoint has undone", l, 1)
	})
}

// TestPGGuardOpenTransaction: one that is open is refused, and left as it is.
func TestPGGuardOpenTransaction(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		tx, err := l.Conn().BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := increment(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "beside a Tx", txguard.Run(t.Context(), l, never(t)), txguard.ErrNotBegun, sqllock.ErrInTransaction)
		_, err = g.fence.Raise(t.Context(), l)
		if g.mints(l) {
			wantErr(t, "Raise beside a Tx", err, txguard.ErrNotBegun, sqllock.ErrInTransaction)
		}
		g.wantN("beside a Tx", 0)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		g.wantN("after the Tx", 1)
		do(t, l.Conn(), "BEGIN")
		wantErr(t, "after BEGIN", txguard.Run(t.Context(), l, never(t)), txguard.ErrNotBegun, sqllock.ErrInTransaction)
		_, _ = l.Conn().ExecContext(t.Context(), "SELECT 1/0")
		wantErr(t, "after a failure", txguard.Run(t.Context(), l, never(t)), txguard.ErrNotBegun, sqllock.ErrInTransaction)
		do(t, l.Conn(), "ROLLBACK")

		rows, err := l.Conn().QueryContext(t.Context(), "SELECT generate_series(1,100000)")
		if err != nil || !rows.Next() {
			t.Fatal(errors.Join(err, rows.Err()))
		}
		wantErr(t, "beside rows", txguard.Run(t.Context(), l, never(t)), txguard.ErrNotBegun)
		if err := rows.Close(); err != nil { //nolint:sqlclosecheck // here, and not later
			t.Error(err)
		}
		err = txguard.Run(t.Context(), l, func(ctx context.Context, _ *sql.Tx) error {
			wantErr(t, "beside a guarded one", txguard.Run(ctx, l, never(t)), txguard.ErrNotBegun, sqllock.ErrInTransaction)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		g.clean("in the end", l, 1)
	})
}

// TestPGGuardContext ends the caller's ctx at every moment. One that has ended must not
// reach a statement: the driver would close the session, and the lock were lost.
func TestPGGuardContext(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		cause := errors.New("the deploy stops us")
		l := g.lock()
		f, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		forms := map[string]func(context.Context, txguard.Func) error{
			"same session": func(ctx context.Context, fn txguard.Func) error { return txguard.Run(ctx, l, fn) },
			"with evidence": func(ctx context.Context, fn txguard.Func) error {
				return txguard.Run(ctx, l, fn, txguard.WithEvidence(g.fence))
			},
			"fenced": func(ctx context.Context, fn txguard.Func) error { return f.Run(ctx, fn) },
		}
		for form, run := range forms {
			for what, result := range map[string]error{"nil": nil, "an error": sql.ErrNoRows} {
				ctx, cancel := context.WithCancelCause(t.Context())
				err := run(ctx, func(ctx context.Context, tx *sql.Tx) error {
					err := increment(ctx, tx)
					cancel(cause)
					<-ctx.Done()
					return errors.Join(err, result)
				})
				wantErr(t, form+", in a function that returns "+what, err, txguard.ErrRolledBack)
				if result == nil {
					wantErr(t, form, err, context.Canceled, cause)
				}
				g.clean(form, l, 0)
				wantErr(t, form+", before", run(ctx, never(t)), txguard.ErrNotBegun, context.Canceled, cause)
				g.clean(form, l, 0)
			}
		}
		ended, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		fresh := g.lock()
		_, err = g.fence.Raise(ended, fresh)
		wantErr(t, "Raise", err, txguard.ErrNotBegun, context.Canceled)
		g.clean("Raise", fresh, 0)

		// In a statement: the driver knows no other way than to close the connection.
		ctx, cancel := context.WithCancelCause(t.Context())
		err = txguard.Run(ctx, l, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
			go func() {
				waitFor(t, "the statement", func() bool {
					return ask[bool](t, g.db, "SELECT count(*)>0 FROM pg_stat_activity WHERE datname=current_database() AND wait_event='PgSleep'")
				})
				cancel(cause)
			}()
			_, err := tx.ExecContext(ctx, "SELECT pg_sleep(30)")
			return err
		})
		wantErr(t, "in a statement", err, txguard.ErrRolledBack, context.Canceled, sqllock.ErrLost)
		release(t, acquire(t, g.locker, conn(t, g.db), l.Name()))
		g.wantN("in a statement", 0)

		pool, gate := g.gated()
		l = g.lockOn(pool, lockName("guarded"))
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
		g.wantN("between check and commit", 1)
	})
}

// TestPGGuardReleasedInside: by the handle, and behind its back.
func TestPGGuardReleasedInside(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			return errors.Join(increment(ctx, tx), l.Release(ctx))
		})
		wantErr(t, "by the handle", err, txguard.ErrRolledBack, sqllock.ErrNotHeld)
		wantErr(t, "the next one", txguard.Run(t.Context(), l, increment), txguard.ErrNotBegun, sqllock.ErrNotHeld)
		l = g.lock()
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "SELECT pg_advisory_unlock_all()")
			return increment(ctx, tx)
		})
		wantErr(t, "by pg_advisory_unlock_all", err, txguard.ErrRolledBack, sqllock.ErrLost)
		g.wantN("released inside", 0)
	})
}

// TestPGGuardKilled: whoever loses the session has lost lock and transaction, and the
// next holder finds that decided.
func TestPGGuardKilled(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		for _, opts := range [][]txguard.Option{nil, {txguard.WithEvidence(g.fence)}} {
			l := g.lock()
			err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
				err := increment(ctx, tx)
				g.kill(l.Grant().Session)
				next := acquire(t, g.locker, conn(t, g.db), l.Name())
				do(t, g.db, "UPDATE work SET n=10 WHERE id=1") // which waits for nobody
				release(t, next)
				return err
			}, opts...)
			wantErr(t, "killed before the check", err, txguard.ErrRolledBack, sqllock.ErrLost)
			g.wantN("killed before the check", 10)
			do(t, g.db, "UPDATE work SET n=0 WHERE id=1")
			l = g.lock()
			err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
				g.kill(l.Grant().Session)
				first := increment(ctx, tx)
				second := increment(ctx, tx)
				if first == nil || second == nil {
					t.Errorf("on a session that was killed: %v, %v", first, second)
				}
				return errors.Join(first, second)
			}, opts...)
			wantErr(t, "killed before a statement", err, txguard.ErrRolledBack, sqllock.ErrLost)
			l = g.lock()
			g.kill(l.Grant().Session)
			wantErr(t, "killed before", txguard.Run(t.Context(), l, never(t), opts...), txguard.ErrNotBegun, sqllock.ErrLost)
		}
		l := g.lock()
		g.kill(l.Grant().Session)
		_, err := g.fence.Raise(t.Context(), l)
		if g.mints(l) {
			wantErr(t, "Raise on a session that was killed", err, txguard.ErrNotBegun, sqllock.ErrLost)
		}
		g.wantN("killed", 0)

		// Fenced, it is the session of the work that ends, or that of the lock.
		l = g.lock()
		f, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		err = f.Run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
			err := increment(ctx, tx)
			g.kill(pgBackend(t, tx))
			return err
		})
		wantErr(t, "fenced, killed at work", err, txguard.ErrRolledBack)
		if errors.Is(err, sqllock.ErrLost) {
			t.Errorf("the lock was not lost: %v", err)
		}
		g.clean("fenced, killed at work", l, 0)
		if err := f.Run(t.Context(), increment); err != nil {
			t.Errorf("the next one: %v", err)
		}
		err = f.Run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
			err := increment(ctx, tx)
			g.kill(l.Grant().Session)
			return err
		})
		wantErr(t, "fenced, lock killed", err, txguard.ErrRolledBack, sqllock.ErrLost)
		g.wantN("fenced", 1)
	})
}

// TestPGGuardDeadConnections: a fenced transaction takes another connection in place
// of one that is found to be dead at BEGIN.
func TestPGGuardDeadConnections(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		pool := g.pool()
		l := g.lock()
		f, err := txguard.NewFence(pool).Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		c, other := conn(t, pool), conn(t, pool)
		pids := []int64{pgBackend(t, c), pgBackend(t, other)}
		for _, c := range []*sql.Conn{c, other} {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for _, pid := range pids {
			g.kill(pid)
		}
		if err := f.Run(t.Context(), increment); err != nil {
			t.Errorf("with dead connections in the pool: %v", err)
		}
		g.clean("with dead connections in the pool", l, 1)
	})
}

// countedWrites opens a pool that counts what is sent.
func (g *pgGuarded) countedWrites() (*sql.DB, *atomic.Int64) {
	g.t.Helper()
	writes := new(atomic.Int64)
	return g.pool(dialed(func(c net.Conn) net.Conn { return countingConn{c, writes} })), writes
}

// TestPGGuardRoundTrips: one more than the transaction alone; one more for evidence.
func TestPGGuardRoundTrips(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		db, writes := g.countedWrites()
		l := g.lockOn(db, lockName("guarded"))
		for what, test := range map[string]struct {
			want int64
			run  func() error
		}{
			"alone": {3, func() error {
				tx, err := l.Conn().BeginTx(t.Context(), nil)
				if err != nil {
					return err
				}
				return errors.Join(increment(t.Context(), tx), tx.Commit())
			}},
			"guarded":       {4, func() error { return txguard.Run(t.Context(), l, increment) }},
			"with evidence": {5, func() error { return txguard.Run(t.Context(), l, increment, txguard.WithEvidence(g.fence)) }},
			"failed": {3, func() error {
				_ = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
					_ = increment(ctx, tx)
					return sql.ErrNoRows
				})
				return nil
			}},
		} {
			before := writes.Load()
			if err := test.run(); err != nil {
				t.Fatal(err)
			}
			if got := writes.Load() - before; got != test.want {
				t.Errorf("%s: %d round trips, want %d", what, got, test.want)
			}
		}
		apart, writes := g.countedWrites()
		f := txguard.NewFence(apart)
		for range 2 { // before its first use again, a connection is asked whether it is alive
			if err := apart.PingContext(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		before := writes.Load()
		fenced, err := f.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if got := writes.Load() - before; got != 1 {
			t.Errorf("Raise: %d round trips on the pool of the fence, want 1", got)
		}
		before = writes.Load()
		if err := fenced.Run(t.Context(), increment); err != nil {
			t.Fatal(err)
		}
		if got := writes.Load() - before; got != 4 {
			t.Errorf("fenced: %d round trips on the connection of the work, want 4", got)
		}
		release(t, l)
	})
}

// TestPGGuardDo: acquire, work, commit and release in one call.
func TestPGGuardDo(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		k := sqllock.New(g.backend, sqllock.WithCheckInterval(time.Millisecond))
		name := lockName("do")

		// Rows are open while the watch of Do looks at the same session.
		err := txguard.Do(t.Context(), k, g.db, name, func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, "SELECT pg_sleep(0.01),repeat('x',100000) FROM generate_series(1,5)")
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				time.Sleep(10 * time.Millisecond)
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return err
			}
			return increment(ctx, tx)
		})
		if err != nil {
			t.Error(err)
		}
		err = txguard.Do(t.Context(), k, g.db, name, func(ctx context.Context, tx *sql.Tx) error {
			ran, err := txguard.TryDo(ctx, k, g.db, name, increment)
			if ran || err != nil {
				t.Errorf("TryDo of what is held: %v, %v", ran, err)
			}
			g.kill(pgBackend(t, tx))
			return nil
		})
		wantErr(t, "killed", err, txguard.ErrRolledBack, sqllock.ErrLost)
		if err := txguard.Do(t.Context(), k, g.db, name, func(context.Context, *sql.Tx) error { return nil }); err != nil {
			t.Errorf("Do, when the session has ended: %v", err)
		}
		if ran, err := txguard.TryDo(t.Context(), k, g.db, name, increment, txguard.WithEvidence(g.fence)); !ran || err != nil {
			t.Errorf("TryDo: %v, %v", ran, err)
		}
		g.wantN("Do and TryDo", 2)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		holder := acquire(t, k, conn(t, g.db), name)
		wantErr(t, "busy", txguard.Do(ctx, k, g.db, name, increment), txguard.ErrNotBegun, sqllock.ErrBusy, context.DeadlineExceeded)
		release(t, holder)
	})
}

// TestPGGuardTxOptions: they are those of the transaction.
func TestPGGuardTxOptions(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		f, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		for name, opts := range pgIsolations() {
			fn := func(_ context.Context, tx *sql.Tx) error {
				if got := ask[string](t, tx, "SHOW transaction_isolation"); !strings.EqualFold(got, name) {
					t.Errorf("the transaction is %s, want %s", got, name)
				}
				return nil
			}
			err := errors.Join(txguard.Run(t.Context(), l, fn, txguard.WithTxOptions(opts)), f.Run(t.Context(), fn, txguard.WithTxOptions(opts)))
			if err != nil {
				t.Error(err)
			}
		}
		err = txguard.Run(t.Context(), l, increment, txguard.WithTxOptions(sql.TxOptions{ReadOnly: true}))
		wantErr(t, "a write", err, txguard.ErrRolledBack)
		if sqlState(err) != "25006" {
			t.Errorf("a write in a read-only transaction: %v", err)
		}
		g.clean("a write in a read-only transaction", l, 0)
	})
}

func sqlState(err error) string {
	var answer interface{ SQLState() string }
	if errors.As(err, &answer) {
		return answer.SQLState()
	}
	return ""
}

// TestPGGuardInUse: what would wait for itself is refused.
func TestPGGuardInUse(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		err := l.Use(func(*sql.Conn) error { return txguard.Run(t.Context(), l, increment) })
		wantErr(t, "Run inside of Use", err, txguard.ErrNotBegun, sqllock.ErrInTransaction)

		// A lock that shares its session with others has none for a transaction.
		pool := sqllock.NewPool(g.db, g.locker)
		defer pool.Close(t.Context()) //nolint:errcheck // nothing depends on it
		err = pool.Do(t.Context(), "shared", func(ctx context.Context, l *sqllock.Lock) error {
			wantErr(t, "on a shared session", txguard.Run(ctx, l, increment), txguard.ErrNotBegun, sqllock.ErrUnsupported)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		err = pool.Do(t.Context(), "own", func(ctx context.Context, l *sqllock.Lock) error { return txguard.Run(ctx, l, increment) }, sqllock.OwnSession())
		if err != nil {
			t.Error(err)
		}
		g.clean("in the end", l, 1)
	})
}

// TestPGGuardRetries: deadlocks and serialization failures roll back, and may be tried again.
func TestPGGuardRetries(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		f, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		repeatable := txguard.WithTxOptions(sql.TxOptions{Isolation: sql.LevelRepeatableRead})
		serializable := txguard.WithTxOptions(sql.TxOptions{Isolation: sql.LevelSerializable})
		for _, test := range []struct {
			name, code string
			fail       func(ctx context.Context, tx *sql.Tx) error // once
			opts       []txguard.Option
			atCommit   bool
		}{
			{"a deadlock", "40P01", g.deadlock, nil, false},
			{"a row that was changed after the snapshot", "40001", g.changedRow, []txguard.Option{repeatable}, false},
			{"write skew", "40001", g.writeSkew, []txguard.Option{serializable}, true},
		} {
			for form, run := range map[string]func(context.Context, txguard.Func, ...txguard.Option) error{
				"same session": func(ctx context.Context, fn txguard.Func, opts ...txguard.Option) error {
					return txguard.Run(ctx, l, fn, opts...)
				},
				"fenced": f.Run,
			} {
				what := form + ", " + test.name
				err := run(t.Context(), test.fail, test.opts...)
				wantErr(t, what, err, txguard.ErrRolledBack)
				if sqlState(err) != test.code {
					t.Errorf("%s: got %v, want %s", what, err, test.code)
				}
				if test.atCommit && form == "same session" && !commitSent(err) {
					t.Errorf("%s: it came before COMMIT: %v", what, err)
				}
				g.clean(what, l, 0)

				tries := 0
				err = run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
					tries++
					if tries < 3 {
						if err := test.fail(ctx, tx); err != nil {
							return fmt.Errorf("try %d: %w", tries, err)
						}
						return nil
					}
					return increment(ctx, tx)
				}, append(test.opts, txguard.Retries(2))...)
				if err != nil || tries != 3 {
					t.Errorf("%s, with two retries: %d tries, %v", what, tries, err)
				}
				g.clean(what, l, 1)
			}
		}
		tries := 0
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			tries++
			return g.changedRow(ctx, tx)
		}, repeatable, txguard.Retries(1))
		wantErr(t, "out of retries", err, txguard.ErrRolledBack)
		if tries != 2 {
			t.Errorf("%d tries, want 2", tries)
		}
		g.clean("out of retries", l, 0)
		tries = 0
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			tries++
			_ = g.changedRow(ctx, tx)
			return nil
		}, repeatable, txguard.Retries(1))
		wantErr(t, "a failure that is kept quiet", err, txguard.ErrRolledBack)
		g.clean("a failure that is kept quiet", l, 0)
		tries = 0
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			tries++
			g.kill(l.Grant().Session)
			return g.changedRow(ctx, tx)
		}, repeatable, txguard.Retries(3))
		wantErr(t, "a lock that is lost", err, txguard.ErrRolledBack, sqllock.ErrLost)
		if tries != 1 {
			t.Errorf("%d tries without the lock, want 1", tries)
		}
	})
}

// deadlock has tx be the victim of a deadlock, whose error it returns.
func (g *pgGuarded) deadlock(_ context.Context, tx *sql.Tx) error {
	g.t.Helper()
	do(g.t, tx, "SET LOCAL deadlock_timeout='20ms'") // the other one looks for a deadlock much later
	do(g.t, tx, "UPDATE work SET n=n+1 WHERE id=1")
	other, err := g.db.BeginTx(g.t.Context(), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	defer other.Rollback() //nolint:errcheck // nothing of it is to stay
	do(g.t, other, "SET LOCAL deadlock_timeout='1min'")
	do(g.t, other, "UPDATE work SET n=n WHERE id=2")
	waited := make(chan error, 1)
	go func() {
		_, err := other.ExecContext(g.t.Context(), "UPDATE work SET n=n+0 WHERE id=1")
		waited <- err
	}()
	pgRowWait(g.t, g.db, "SET n=n+0 WHERE id=1")
	_, err = tx.ExecContext(g.t.Context(), "UPDATE work SET n=n WHERE id=2")
	if err := <-waited; err != nil {
		g.t.Errorf("the other one was the victim: %v", err)
	}
	return err
}

// changedRow has tx write a row that has been changed since its snapshot was taken.
func (g *pgGuarded) changedRow(ctx context.Context, tx *sql.Tx) error {
	g.t.Helper()
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT n FROM work WHERE id=1").Scan(&n); err != nil {
		return err
	}
	do(g.t, g.db, "UPDATE work SET n=n WHERE id=1")
	return increment(ctx, tx)
}

// writeSkew has tx read what another one writes, which reads what tx writes, and is
// committed first.
func (g *pgGuarded) writeSkew(ctx context.Context, tx *sql.Tx) error {
	g.t.Helper()
	if n := ask[int](g.t, tx, "SELECT n FROM work WHERE id=2"); n < 0 {
		g.t.Error(n)
	}
	if err := increment(ctx, tx); err != nil {
		return err
	}
	other, err := g.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
	if err != nil {
		return err
	}
	defer other.Rollback() //nolint:errcheck // it is committed by then
	if n := ask[int](g.t, other, "SELECT n FROM work WHERE id=1"); n != 0 {
		g.t.Errorf("n is %d", n)
	}
	do(g.t, other, "UPDATE work SET n=n WHERE id=2")
	return other.Commit()
}

// TestPGGuardRefusedAtCommit: an answer to COMMIT that is no confirmation is an answer
// all the same: the session goes on.
func TestPGGuardRefusedAtCommit(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		runSQL(
			t, g.db,
			"CREATE TABLE orders (id bigint PRIMARY KEY, item bigint REFERENCES work DEFERRABLE INITIALLY DEFERRED, number bigint UNIQUE DEFERRABLE INITIALLY DEFERRED)",
			"INSERT INTO orders VALUES (1,1,1)",
			"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END'",
			"CREATE TABLE slow (id bigint)",
			"CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
		)
		l := g.lock()
		f, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		for statement, code := range map[string]string{
			"INSERT INTO orders VALUES (2,99,2)": "23503",
			"INSERT INTO orders VALUES (2,1,1)":  "23505",
			"INSERT INTO slow VALUES (1)":        "57014", // by pg_cancel_backend
		} {
			fn := func(ctx context.Context, tx *sql.Tx) error {
				do(t, tx, statement)
				if code == "57014" {
					go g.cancelSleeper()
				}
				return increment(ctx, tx)
			}
			for form, err := range map[string]error{
				"same session":  txguard.Run(t.Context(), l, fn),
				"with evidence": txguard.Run(t.Context(), l, fn, txguard.WithEvidence(g.fence)),
				"fenced":        f.Run(t.Context(), fn),
			} {
				what := form + ": " + statement
				wantErr(t, what, err, txguard.ErrRolledBack)
				if sqlState(err) != code || !commitSent(err) || errors.Is(err, sqllock.ErrLost) {
					t.Errorf("%s: got %v, want %s at COMMIT", what, err, code)
				}
				g.clean(what, l, 0)
			}
		}
	})
}

// cancelSleeper ends the statement of a session that sleeps.
func (g *pgGuarded) cancelSleeper() {
	waitFor(g.t, "a session that sleeps", func() bool {
		var canceled bool
		err := g.db.QueryRowContext(g.t.Context(), "SELECT bool_or(pg_cancel_backend(pid)) IS TRUE FROM pg_stat_activity WHERE datname=current_database() AND wait_event='PgSleep'").Scan(&canceled)
		return canceled || err != nil
	})
}

// TestPGGuardWrappedDriver: a driver around pgx's, as tracers have.
func TestPGGuardWrappedDriver(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		pool := pgWrappedPool(t, g)
		l := g.lockOn(pool, lockName("wrapped"))
		f, err := txguard.NewFence(pool).Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(txguard.Run(t.Context(), l, increment), f.Run(t.Context(), increment)); err != nil {
			t.Error(err)
		}
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			do(t, tx, "COMMIT")
			return increment(ctx, tx)
		})
		wantErr(t, "COMMIT", err, txguard.ErrUnguarded)
		g.clean("a driver that is wrapped", l, 3)
	})
}

// TestPGGuardStorm: many count under one lock while their sessions are killed, and no
// count is lost; without the lock, some are.
func TestPGGuardStorm(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		for form, run := range map[string]func(ctx context.Context, fence *txguard.Fence, l *sqllock.Lock) error{
			"same session": func(ctx context.Context, fence *txguard.Fence, l *sqllock.Lock) error {
				return txguard.Run(ctx, l, pgReadAndWrite, txguard.WithEvidence(fence))
			},
			"fenced": func(ctx context.Context, fence *txguard.Fence, l *sqllock.Lock) error {
				f, err := fence.Raise(ctx, l)
				if err != nil {
					return err
				}
				return f.Run(ctx, pgReadAndWrite)
			},
		} {
			for level, kills := range map[string]bool{"with kills": true, "without": false} {
				do(t, g.db, "UPDATE work SET n=0")
				name, pool := lockName("storm"), g.stormy()
				fence := txguard.NewFence(pool)
				committed, failed := guardedStorm(t, g, pool, kills, func(ctx context.Context, c *sql.Conn) error {
					l, err := g.locker.Lock(ctx, c, name)
					if err != nil {
						return err
					}
					err = run(ctx, fence, l)
					_ = l.Release(ctx) // its session may have been killed
					return err
				})
				t.Logf("%s, %s: %d committed, %d not", form, level, committed, failed)
				g.wantN(form+", "+level, committed)
				if committed == 0 || kills == (failed == 0) {
					t.Errorf("%s, %s: %d committed, %d not, so this shows nothing", form, level, committed, failed)
				}
			}
		}
		for range 10 {
			do(t, g.db, "UPDATE work SET n=0")
			committed, _ := guardedStorm(t, g, g.stormy(), false, func(ctx context.Context, c *sql.Conn) error {
				tx, err := c.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				return errors.Join(pgReadAndWrite(ctx, tx), tx.Commit())
			})
			if n := g.n(); n < committed {
				t.Logf("without the lock: %d of %d updates were lost", committed-n, committed)
				return
			}
		}
		t.Error("no update was lost without the lock, so this test shows nothing")
	})
}

// stormy opens a pool whose sessions may be ended.
func (g *pgGuarded) stormy() *sql.DB {
	g.t.Helper()
	return g.pool(func(c *pgx.ConnConfig) { c.RuntimeParams["application_name"] = "storm" })
}

// guardedStorm has eight sessions of pool do rounds, and ends some of them.
func guardedStorm(t *testing.T, g *pgGuarded, pool *sql.DB, kills bool, round func(context.Context, *sql.Conn) error) (committed, failed int64) {
	t.Helper()
	const workers, rounds = 8, 15
	var wg sync.WaitGroup
	var good, bad atomic.Int64
	for range workers {
		wg.Go(func() {
			for range rounds {
				c, err := pool.Conn(t.Context())
				if err == nil {
					err = round(t.Context(), c)
					_ = c.Close() // the session may have been killed
				}
				if errors.Is(err, txguard.ErrUnknown) || errors.Is(err, txguard.ErrUnguarded) {
					t.Error(err)
				}
				if err == nil {
					good.Add(1)
				} else {
					bad.Add(1)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		select {
		case <-done:
			return good.Load(), bad.Load()
		case <-time.After(5 * time.Millisecond):
			if kills {
				do(t, g.db, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname=current_database()"+
					" AND application_name='storm' AND state<>'idle' AND random()<0.2")
			}
		}
	}
}
