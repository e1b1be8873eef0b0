package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// bouncer starts a PgBouncer, of which a pool on the database of db is opened.
func bouncer(t *testing.T, mode string) *testdb.Bouncer {
	t.Helper()
	s := postgres(t)
	needed(t, testdb.PgBouncer)
	b, err := testdb.StartBouncer(t.Context(), s, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// through opens a pool through b on the database of db.
func through(t *testing.T, b *testdb.Bouncer, db *sql.DB, change ...func(*pgx.ConnConfig)) *sql.DB {
	t.Helper()
	name := ask[string](t, db, "SELECT current_database()")
	return openPG(t, &testdb.Server{Kind: testdb.Postgres, DSN: b.DSN}, append([]func(*pgx.ConnConfig){func(c *pgx.ConnConfig) {
		c.Database = name
		c.DefaultQueryExecMode = pgx.QueryExecModeExec
	}}, change...)...)
}

// pgAdvisoryLocks counts the advisory locks in the database of db.
func pgAdvisoryLocks(t *testing.T, db *sql.DB) int {
	t.Helper()
	return ask[int](t, db, "SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND database=(SELECT oid FROM pg_database WHERE datname=current_database())")
}

// TestBouncerRefused: what is between us and the server is found out, whatever its mode,
// before anything is locked, and the error says what to use instead.
func TestBouncerRefused(t *testing.T) {
	t.Parallel()
	direct := pgDatabase(t, postgres(t))
	for _, mode := range []string{"transaction", "session"} {
		db := through(t, bouncer(t, mode), direct)
		k := pgLocker()
		c := conn(t, db)
		for what, err := range map[string]error{
			"TryLock": func() error { _, err := k.TryLock(t.Context(), c, "job"); return err }(),
			"Lock":    func() error { _, err := k.Lock(t.Context(), c, "job"); return err }(),
			"shared":  func() error { _, err := k.TryLock(t.Context(), c, "job", sqllock.Shared()); return err }(),
			"AcquireAll": func() error {
				_, err := pgadvisory.New().AcquireAll(t.Context(), c, []sqllock.Request{request("job"), request("other")})
				return err
			}(),
			"Do": k.Do(t.Context(), db, "job", func(context.Context, *sqllock.Lock) error { return errors.New("it ran") }),
			"other risks": func() error {
				other := sqllock.New(pgadvisory.New(pgadvisory.Allow(pgadvisory.ReadOnly, pgadvisory.Lookalike)))
				_, err := other.TryLock(t.Context(), c, "job")
				return err
			}(),
		} {
			wantErr(t, mode+" mode: "+what, err, sqllock.ErrUnsupported)
			wantNotErr(t, mode+" mode: "+what, err, sqllock.ErrSessionGone, sqllock.ErrBusy)
			for _, text := range []string{"PgBouncer", "Locker.LockTx", "pgadvisory.Allow(pgadvisory.Pooler)"} {
				if err != nil && !strings.Contains(err.Error(), text) {
					t.Errorf("%s mode: %s: the error does not name %s: %v", mode, what, text, err)
				}
			}
		}
		// In the caller's transaction, too, which goes on.
		tx, err := c.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.TryLock(t.Context(), c, "job")
		wantErr(t, mode+" mode, in a transaction", err, sqllock.ErrUnsupported)
		if err := k.LockTx(t.Context(), tx, "job"); err != nil {
			t.Errorf("%s mode: LockTx: %v", mode, err)
		}
		if err := tx.Commit(); err != nil {
			t.Errorf("%s mode: the caller's transaction: %v", mode, err)
		}
		if n := pgAdvisoryLocks(t, direct); n != 0 {
			t.Errorf("%s mode: %d locks are left", mode, n)
		}
	}
}

// TestBouncerAllowed: in session mode a lock of a session is one, if the caller says that
// this is the mode. The look costs one round trip in a session's life.
func TestBouncerAllowed(t *testing.T) {
	t.Parallel()
	direct := pgDatabase(t, postgres(t))
	wire := new(pgWire)
	db := through(t, bouncer(t, "session"), direct, wire.through)
	backend := pgadvisory.New(pgadvisory.Allow(pgadvisory.Pooler))
	k := sqllock.New(backend)
	c, other := conn(t, db), conn(t, db)
	sent := wire.writes.Load()
	l := acquire(t, k, c, "job")
	if n := wire.writes.Load() - sent; n != 2 {
		t.Errorf("the first lock of the session took %d round trips, want 2", n)
	}
	sent = wire.writes.Load()
	release(t, acquire(t, k, c, "group-0", sqllock.Shared()))
	if n := wire.writes.Load() - sent; n != 2 {
		t.Errorf("another lock and its release took %d round trips, want 2", n)
	}
	pid := pgPID(t, c)
	if g := l.Grant(); g.Session != pid {
		t.Errorf("the grant is of session %d, want that on the server, %d", g.Session, pid)
	}
	if held, err := backend.Watch(t.Context(), direct, []sqllock.Grant{l.Grant()}); err != nil || !held[0] {
		t.Errorf("Watch past the pooler: %v, %v", held, err)
	}
	_, err := k.TryLock(t.Context(), other, "job")
	wantErr(t, "TryLock", err, sqllock.ErrBusy)
	otherPID := pgPID(t, other)
	// Cancel requests go through it, and hit nothing else.
	for i := range 60 {
		ctx, cancel := context.WithCancel(t.Context())
		done := background(ctx, k, other, "job")
		if i%2 == 0 {
			pgQueue(t, direct, "job", 1)
		}
		cancel()
		err := (<-done).err
		wantErr(t, "a cancelled wait", err, context.Canceled)
		wantNotErr(t, "a cancelled wait", err, sqllock.ErrSessionGone)
		for range 3 {
			pgSame(t, other, otherPID)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	_, err = k.Lock(ctx, other, "job")
	cancel()
	wantErr(t, "a deadline", err, sqllock.ErrBusy, context.DeadlineExceeded)
	done := background(t.Context(), k, other, "job")
	pgQueue(t, direct, "job", 1)
	release(t, l)
	l = (<-done).mustHold(t)
	for range 3 {
		if err := l.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	// A backend that has not been told refuses on the same session.
	_, err = pgLocker().TryLock(t.Context(), c, "another")
	wantErr(t, "another backend", err, sqllock.ErrUnsupported)
	release(t, l)
	if n := pgAdvisoryLocks(t, direct); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// TestBouncerWhatIsRefused shows why: through a pooler in transaction mode two clients are
// both granted one lock of a session.
func TestBouncerWhatIsRefused(t *testing.T) {
	t.Parallel()
	direct := pgDatabase(t, postgres(t))
	db := through(t, bouncer(t, "transaction"), direct)
	k := sqllock.New(pgadvisory.New(pgadvisory.Allow(pgadvisory.Pooler)), sqllock.WithCheckInterval(0))
	c, other := conn(t, db), conn(t, db)
	if _, err := k.TryLock(t.Context(), c, "job"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.TryLock(t.Context(), other, "job"); err != nil {
		t.Errorf("two clients of a pooler are not granted one lock any more (%v): is there a need to refuse?", err)
	}
}

// TestBouncerTx: what a lock of a transaction does, it does through a pooler.
func TestBouncerTx(t *testing.T) {
	t.Parallel()
	b := bouncer(t, "transaction")
	// As PgBouncer before 1.21 needs it, which knows no prepared statements.
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheDescribe} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			direct := pgDatabase(t, postgres(t))
			do(t, direct, "CREATE TABLE work (id int)")
			testPGTx(t, through(t, b, direct, func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = mode }), direct)
		})
	}
}

// TestBouncerStorm: clients that read, wait and write back what they have read, through a
// pooler with fewer sessions than there are clients, beside a client that goes past it.
// Without the lock they lose updates.
func TestBouncerStorm(t *testing.T) {
	t.Parallel()
	const clients, rounds = 12, 25
	b := bouncer(t, "transaction")
	for _, locked := range []bool{true, false} {
		direct := pgDatabase(t, postgres(t))
		do(t, direct, "CREATE TABLE work (n int); INSERT INTO work VALUES (0)", pgx.QueryExecModeSimpleProtocol)
		k := pgLocker()
		var all sync.WaitGroup
		var done, busy atomic.Int64
		for i := range clients {
			mode := []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol}[i%2]
			db := through(t, b, direct, func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = mode })
			all.Go(func() {
				for r := range rounds {
					err := func() error {
						tx, err := db.BeginTx(context.Background(), nil)
						if err != nil {
							return err
						}
						defer tx.Rollback() //nolint:errcheck // a commit comes first
						if locked {
							if r%3 == 0 {
								err = k.TryLockTx(context.Background(), tx, "job")
							}
							if r%3 != 0 || errors.Is(err, sqllock.ErrBusy) {
								if err != nil {
									busy.Add(1)
								}
								err = k.LockTx(context.Background(), tx, "job")
							}
							if err != nil {
								return err
							}
						}
						var n int
						if err := tx.QueryRowContext(context.Background(), "SELECT n FROM work").Scan(&n); err != nil {
							return err
						}
						if _, err := tx.ExecContext(context.Background(), fmt.Sprintf("UPDATE work SET n=%d", n+1)); err != nil {
							return err
						}
						if r%5 == 4 {
							return nil // rolled back
						}
						done.Add(1)
						return tx.Commit()
					}()
					if err != nil {
						t.Errorf("locked %v, client %d, round %d: %v", locked, i, r, err)
						return
					}
				}
			})
		}
		if locked { // sessions past the pooler take part
			for range 2 {
				c := conn(t, direct)
				all.Go(func() {
					for range rounds {
						l, err := k.Lock(context.Background(), c, "job")
						if err != nil {
							t.Error(err)
							return
						}
						var n int
						err = c.QueryRowContext(context.Background(), "SELECT n FROM work").Scan(&n)
						if err == nil {
							_, err = c.ExecContext(context.Background(), fmt.Sprintf("UPDATE work SET n=%d", n+1))
						}
						done.Add(1)
						if err := errors.Join(err, l.Release(context.Background())); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		all.Wait()
		n := ask[int64](t, direct, "SELECT n FROM work")
		t.Logf("locked %v: %d updates were made and %d are there; %d were busy", locked, done.Load(), n, busy.Load())
		if locked && n != done.Load() {
			t.Errorf("%d updates were made and %d are there", done.Load(), n)
		}
		if !locked && n == done.Load() {
			t.Error("nothing was lost without the lock: the test shows nothing")
		}
		if left := pgAdvisoryLocks(t, direct); left != 0 {
			t.Errorf("%d locks are left", left)
		}
	}
}
