package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// pgWire is what the connections of a pool go over.
type pgWire struct {
	writes atomic.Int64 // the driver sends each message, or several at once, in one write
	fail   atomic.Pointer[func(ctx context.Context) error]

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

type pgWireConn struct {
	net.Conn

	wire *pgWire
}

func (c pgWireConn) Write(p []byte) (int, error) {
	c.wire.writes.Add(1)
	return c.Conn.Write(p)
}

// through has the pool use the wire.
func (w *pgWire) through(c *pgx.ConnConfig) {
	c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if fail := w.fail.Load(); fail != nil {
			return nil, (*fail)(ctx)
		}
		raw, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.conns = append(w.conns, raw)
		return pgWireConn{raw, w}, nil
	}
}

// failing has all connections from now on fail as f says.
func (w *pgWire) failing(f func(ctx context.Context) error) { w.fail.Store(&f) }

// last is the newest connection.
func (w *pgWire) last() net.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conns[len(w.conns)-1]
}

func pgPID(tb testing.TB, q sqllock.Querier) int64 {
	tb.Helper()
	return ask[int64](tb, q, "SELECT pg_backend_pid()")
}

// pgHas counts the advisory locks that a session has, by mode and number.
func pgHas(tb testing.TB, q sqllock.Querier, pid int64) int {
	tb.Helper()
	return ask[int](tb, q, "SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND granted AND pid=$1", pid)
}

// pgGone waits until the server has ended a session.
func pgGone(t *testing.T, db *sql.DB, pid int64) {
	t.Helper()
	waitFor(t, "the server to end a session", func() bool {
		return ask[int](t, db, "SELECT count(*) FROM pg_stat_activity WHERE pid=$1", pid) == 0
	})
}

func pgQueue(t *testing.T, db *sql.DB, name string, want int) {
	t.Helper()
	key, err := sqllock.Key("", name)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "sessions that wait", func() bool {
		n, err := pgWaiters(t.Context(), db, key)
		if err != nil {
			t.Fatal(err)
		}
		return n == want
	})
}

// pgSame fails the test unless c is the session that it was, and is usable.
func pgSame(t *testing.T, c *sql.Conn, pid int64) {
	t.Helper()
	if now, err := pgPIDErr(t.Context(), c); err != nil || now != pid {
		t.Errorf("the session was %d and is %d, %v", pid, now, err)
	}
}

func pgPIDErr(ctx context.Context, c *sql.Conn) (pid int64, err error) {
	err = c.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid)
	return pid, err
}

func wantNotErr(tb testing.TB, what string, err error, targets ...error) {
	tb.Helper()
	for _, target := range targets {
		if errors.Is(err, target) {
			tb.Errorf("%s: got %v, which should not match %v", what, err, target)
		}
	}
}

func pgLocker(opts ...sqllock.Option) *sqllock.Locker { return sqllock.New(pgadvisory.New(), opts...) }

// background starts a Lock, and returns where its outcome comes.
func background(ctx context.Context, k *sqllock.Locker, c *sql.Conn, name string, opts ...sqllock.LockOption) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		l, err := k.Lock(ctx, c, name, opts...)
		done <- outcome{l, err}
	}()
	return done
}

type outcome struct {
	lock *sqllock.Lock
	err  error
}

func (o outcome) mustHold(t *testing.T) *sqllock.Lock {
	t.Helper()
	if o.err != nil {
		t.Fatalf("Lock: %v", o.err)
	}
	return o.lock
}

// TestPGInterop: a program that knows nothing of this one takes part in a lock by its
// number, whatever is in the name, and however the session reads literals.
func TestPGInterop(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, strings := range []string{"on", "off"} {
		db := openPG(t, s, func(c *pgx.ConnConfig) {
			c.RuntimeParams["standard_conforming_strings"] = strings
			c.RuntimeParams["backslash_quote"] = "off"
		})
		mine, raw := conn(t, db), conn(t, openPG(t, s))
		suffix := lockName("")
		for _, name := range []string{
			"plain", "it's", `''`, `back\slash`, `\`, `\'`, `'\`, `\\'';--`, `a"b`, "$1", "$$", "%s", "U&'\\0041'", "café", "日本", "😀", "\xff", "a\x00b",
		} {
			name += suffix
			for _, namespace := range []string{"", "billing"} {
				key, err := sqllock.Key(namespace, name)
				if err != nil {
					t.Fatal(err)
				}
				k := pgLocker(sqllock.WithNamespace(namespace))
				if got := ask[bool](t, raw, "SELECT pg_try_advisory_lock("+pgNumber+")", key); !got {
					t.Fatalf("%q is not free", key)
				}
				_, err = k.TryLock(t.Context(), mine, name)
				wantErr(t, fmt.Sprintf("TryLock of %q, which is taken", name), err, sqllock.ErrBusy)
				done := background(t.Context(), k, mine, name)
				waitFor(t, "the waiter", func() bool {
					n, err := pgWaiters(t.Context(), db, key)
					return err == nil && n == 1
				})
				if !ask[bool](t, raw, "SELECT pg_advisory_unlock("+pgNumber+")", key) {
					t.Fatalf("%q was not held", key)
				}
				l := (<-done).mustHold(t)
				if ask[bool](t, raw, "SELECT pg_try_advisory_lock("+pgNumber+")", key) {
					t.Errorf("%q is granted twice", key)
				}
				if ask[bool](t, raw, "SELECT pg_try_advisory_lock_shared("+pgNumber+")", key) {
					t.Errorf("%q is shared while it is held alone", key)
				}
				if err := l.Check(t.Context()); err != nil {
					t.Errorf("Check of %q: %v", name, err)
				}
				if h, err := k.Holder(t.Context(), db, name); err != nil {
					t.Errorf("Holder of %q: %v", name, err)
				} else if h.Session != l.Grant().Session {
					t.Errorf("Holder of %q: %+v", name, h)
				}
				release(t, l)
				if !ask[bool](t, raw, "SELECT pg_try_advisory_lock("+pgNumber+")", key) {
					t.Errorf("%q is not free after the release", key)
				}
				do(t, raw, "SELECT pg_advisory_unlock_all()")
			}
		}
	}
}

// TestPGNamespaceIsDocumented is the example of the package's documentation.
func TestPGNamespaceIsDocumented(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	raw := conn(t, db)
	do(t, raw, "SELECT pg_advisory_lock(hashtextextended('billing:invoices', 0))")
	_, err := pgLocker(sqllock.WithNamespace("billing")).TryLock(t.Context(), conn(t, db), "invoices")
	wantErr(t, "TryLock", err, sqllock.ErrBusy)
}

// pgTwins are two names of one number. They were found by running the server's hash
// backwards.
var pgTwins = [2]string{"invoices-001", "9k2c9a_h9zwv"}

// TestPGCollision: a session that holds one of two names of one number can have the
// other, and no one else either. That it holds the same name is another answer.
func TestPGCollision(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	if a, b := ask[int64](t, db, "SELECT "+pgNumber, pgTwins[0]), ask[int64](t, db, "SELECT "+pgNumber, pgTwins[1]); a != b {
		t.Fatalf("%q and %q are %d and %d on this server", pgTwins[0], pgTwins[1], a, b)
	}
	k := pgLocker()
	for _, opts := range [][]sqllock.LockOption{nil, {sqllock.Shared()}} {
		for _, order := range [][2]int{{0, 1}, {1, 0}} {
			mine, other := conn(t, db), conn(t, db)
			pid := pgPID(t, mine)
			locks := make(map[int]*sqllock.Lock)
			for i, name := range pgTwins {
				l, err := k.TryLock(t.Context(), mine, name, opts...)
				if err != nil {
					t.Fatalf("TryLock(%q): %v", name, err)
				}
				locks[i] = l
			}
			refused := func(what string) {
				t.Helper()
				for _, name := range pgTwins {
					_, err := k.TryLock(t.Context(), other, name)
					wantErr(t, what+": another session", err, sqllock.ErrBusy)
					wantNotErr(t, what+": another session", err, sqllock.ErrHeld)
				}
			}
			reentry := func(what string, i int) {
				t.Helper()
				_, err := k.TryLock(t.Context(), mine, pgTwins[i], opts...)
				wantErr(t, what+": TryLock again", err, sqllock.ErrHeld)
				_, err = pgLocker().Lock(t.Context(), mine, pgTwins[i])
				wantErr(t, what+": Lock again", err, sqllock.ErrHeld)
				if err := locks[i].Check(t.Context()); err != nil {
					t.Errorf("%s: Check: %v", what, err)
				}
			}
			refused("both held")
			reentry("both held", 0)
			reentry("both held", 1)
			first, second := order[0], order[1]
			release(t, locks[first])
			refused("one released")
			reentry("one released", second)
			// The one that was released can be had again, by the same session.
			again, err := k.TryLock(t.Context(), mine, pgTwins[first], opts...)
			if err != nil {
				t.Fatalf("TryLock after a release: %v", err)
			}
			release(t, again)
			refused("one released again")
			release(t, locks[second])
			if n := pgHas(t, db, pid); n != 0 {
				t.Errorf("%d locks are left", n)
			}
			for _, name := range pgTwins {
				release(t, acquire(t, k, other, name))
			}
		}
	}
}

// TestPGCollisionOfAGroup: a group may have both.
func TestPGCollisionOfAGroup(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	b, c := pgadvisory.New(), conn(t, db)
	grants, err := b.AcquireAll(t.Context(), c, []sqllock.Request{request(pgTwins[0]), request(pgTwins[1])})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.AcquireAll(t.Context(), c, []sqllock.Request{request("another"), request(pgTwins[1])})
	wantErr(t, "a group with one that is held", err, sqllock.ErrBusy)
	for i, g := range grants {
		if _, err := b.Acquire(t.Context(), conn(t, db), request(pgTwins[0])); !errors.Is(err, sqllock.ErrBusy) {
			t.Errorf("after %d releases: %v, want ErrBusy", i, err)
		}
		if err := b.Release(t.Context(), c, g); err != nil {
			t.Error(err)
		}
	}
	if n := pgHas(t, db, pgPID(t, c)); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// pgSettings are what a wait puts aside, as the session has them.
func pgSettings(tb testing.TB, q sqllock.Querier) string {
	tb.Helper()
	return ask[string](tb, q, "SELECT string_agg(name||'='||setting,' ' ORDER BY name) FROM pg_settings WHERE name IN "+
		"('lock_timeout','statement_timeout','transaction_timeout','client_connection_check_interval','idle_in_transaction_session_timeout')")
}

// TestPGOneRoundTrip counts what is sent, whatever the pool has the driver do by default.
func TestPGOneRoundTrip(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			wire := new(pgWire)
			db := openPG(t, s, wire.through, func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = mode })
			for _, opts := range [][]sqllock.LockOption{nil, {sqllock.Shared()}} {
				c, k, name := conn(t, db), pgLocker(), lockName(`it's "quoted" \ and %`)
				var l *sqllock.Lock
				sent := func(what string, want int64, f func() error) {
					t.Helper()
					before := wire.writes.Load()
					if err := f(); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					if n := wire.writes.Load() - before; n != want {
						t.Errorf("%s sent %d packets, want %d", what, n, want)
					}
				}
				try := func() (err error) { l, err = k.TryLock(t.Context(), c, name, opts...); return err }
				check := func() error { return l.Check(t.Context()) }
				free := func() error { return l.Release(t.Context()) }
				again := func() error {
					if _, err := k.TryLock(t.Context(), c, name, opts...); !errors.Is(err, sqllock.ErrHeld) {
						return fmt.Errorf("got %w, want ErrHeld", err)
					}
					return nil
				}
				// The first lock of a session is a look more, the second time a statement
				// is sent it is prepared.
				sent("the first TryLock", 2, try)
				sent("the first Check", 1, check)
				sent("the first Release", 1, free)
				sent("the second TryLock", 2, try)
				sent("the second Check", 2, check)
				sent("the second Release", 2, free)
				for range 3 {
					sent("TryLock", 1, try)
					sent("Check", 1, check)
					sent("re-entry", 1, again)
					sent("Release", 1, free)
					sent("Lock", 1, func() (err error) { l, err = k.Lock(t.Context(), c, name, opts...); return err })
					sent("Release after Lock", 1, free)
				}
				// In a transaction nothing is prepared, so that nothing can fail by that.
				other := conn(t, db)
				tx, err := other.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				c = other
				sent("the first TryLock in a transaction", 2, try)
				for range 3 {
					sent("Check in a transaction", 1, check)
					sent("Release in a transaction", 1, free)
					sent("TryLock in a transaction", 1, try)
				}
				sent("Release in a transaction", 1, free)
				if err := tx.Commit(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestPGDeadlineIsAWaitOnTheServer: try, wait, and the statement that lets go of what
// the end of the wait may have left; that a wait is granted costs nothing more.
func TestPGDeadlineIsAWaitOnTheServer(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	wire := new(pgWire)
	db := openPG(t, s, wire.through, func(c *pgx.ConnConfig) {
		c.RuntimeParams["lock_timeout"] = "7s"
		c.RuntimeParams["statement_timeout"] = "8s"
	})
	direct := openPG(t, s)
	k, waiter, name := pgLocker(), conn(t, db), lockName("deadline")
	release(t, acquire(t, k, waiter, name))
	pid := pgPID(t, waiter)
	before := pgSettings(t, waiter)
	for _, inTx := range []bool{false, true} {
		var tx *sql.Tx
		if inTx {
			var err error
			if tx, err = waiter.BeginTx(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			do(t, tx, "SET LOCAL lock_timeout='9s'")
			do(t, tx, "SET LOCAL statement_timeout='10s'")
			before = pgSettings(t, tx)
		}
		unchanged := func(what string) {
			t.Helper()
			if after := pgSettings(t, waiter); after != before {
				t.Errorf("%s: the settings were %s and are %s", what, before, after)
			}
		}
		wait := func(what string, end func(cancel context.CancelFunc, holder *sqllock.Lock), packets int64, deadline time.Duration) outcome {
			t.Helper()
			holder := acquire(t, pgLocker(), conn(t, direct), name)
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			sent := wire.writes.Load()
			done := background(ctx, k, waiter, name)
			if end != nil {
				pgQueue(t, direct, name, 1)
				end(cancel, holder)
			}
			o := <-done
			if n := wire.writes.Load() - sent; n > packets {
				t.Errorf("%s sent %d packets, want at most %d", what, n, packets)
			}
			unchanged(what)
			pgSame(t, waiter, pid)
			if o.err != nil && pgHas(t, direct, pid) != 0 {
				t.Errorf("%s: %v, and the session has the lock", what, o.err)
			}
			if holder.Err() == nil {
				release(t, holder)
			}
			return o
		}
		undo := int64(0)
		if inTx {
			undo = 1
		}
		// A prepared try is one packet more once.
		o := wait("a wait that is granted", func(_ context.CancelFunc, holder *sqllock.Lock) { release(t, holder) }, 3-undo, time.Minute)
		release(t, o.mustHold(t))
		o = wait("a deadline", nil, 3+undo, 300*time.Millisecond)
		wantErr(t, "a deadline", o.err, sqllock.ErrBusy, context.DeadlineExceeded)
		o = wait("a cancellation", func(cancel context.CancelFunc, _ *sqllock.Lock) { cancel() }, 20, time.Minute)
		wantErr(t, "a cancellation", o.err, sqllock.ErrBusy, context.Canceled)
		if inTx {
			if err := tx.Commit(); err != nil {
				t.Errorf("the caller's transaction: %v", err)
			}
		}
	}
}

// TestPGLimitsOfTheSession: a limit that the session has for itself does not end a wait.
func TestPGLimitsOfTheSession(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db, direct := openPG(t, s), openPG(t, s)
	k, name := pgLocker(), lockName("limits")
	holder := acquire(t, k, conn(t, direct), name)
	for _, setting := range []string{"lock_timeout", "statement_timeout"} {
		waiter := conn(t, db)
		do(t, waiter, "SET "+setting+"=200")
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		_, err := k.Lock(ctx, waiter, name)
		cancel()
		wantErr(t, setting, err, sqllock.ErrBusy, context.DeadlineExceeded)
		tx, err := waiter.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
		_, err = k.Lock(ctx, waiter, name)
		cancel()
		wantErr(t, setting+" in a transaction", err, sqllock.ErrBusy, context.DeadlineExceeded)
		ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
		err = k.LockTx(ctx, tx, name)
		cancel()
		wantErr(t, setting+" for a transaction", err, sqllock.ErrBusy, context.DeadlineExceeded)
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
	}
	release(t, holder)
}

// TestPGErrorIsNotNotHeld has the grant and what ends the wait come at the same moment.
// After an error the session does not have the lock; after a success it has.
func TestPGErrorIsNotNotHeld(t *testing.T) {
	t.Parallel()
	const rounds = 150
	s := postgres(t)
	for _, inTx := range []bool{false, true} {
		for _, how := range []string{"deadline", "ctx", "pg_cancel_backend"} {
			t.Run(fmt.Sprintf("%s, in a transaction %v", how, inTx), func(t *testing.T) {
				t.Parallel()
				db, direct := openPG(t, s), openPG(t, s)
				k, name := pgLocker(), lockName("collide")
				key, err := sqllock.Key("", name)
				if err != nil {
					t.Fatal(err)
				}
				holder, waiter := conn(t, direct), conn(t, db)
				pid := pgPID(t, waiter)
				granted, failed := 0, 0
				var ahead time.Duration // the release is of the end of the wait; it is steered to where both come at once
				for i := range rounds {
					if !ask[bool](t, holder, "SELECT pg_try_advisory_lock("+pgNumber+")", key) {
						t.Fatalf("round %d: the lock is not free", i)
					}
					var tx *sql.Tx
					if inTx {
						if tx, err = waiter.BeginTx(t.Context(), nil); err != nil {
							t.Fatalf("round %d: %v", i, err)
						}
					}
					ctx, cancel := context.WithCancel(t.Context())
					if how == "deadline" {
						ctx, cancel = context.WithTimeout(t.Context(), 8*time.Millisecond)
					}
					done := background(ctx, k, waiter, name)
					switch how {
					case "deadline":
						// The server's timer began when its statement did.
						end, _ := ctx.Deadline()
						time.Sleep(time.Until(end) - ahead)
						do(t, holder, "SELECT pg_advisory_unlock("+pgNumber+")", key)
					case "ctx":
						pgQueue(t, direct, name, 1)
						late := max(ahead, 0)
						go func() {
							time.Sleep(late)
							cancel()
						}()
						time.Sleep(max(-ahead, 0))
						do(t, holder, "SELECT pg_advisory_unlock("+pgNumber+")", key)
					default:
						pgQueue(t, direct, name, 1)
						if i%2 == 0 {
							do(t, holder, "SELECT pg_advisory_unlock("+pgNumber+"),pg_cancel_backend($2)", key, pid)
						} else {
							do(t, holder, "SELECT pg_cancel_backend($2),pg_advisory_unlock("+pgNumber+")", key, pid)
						}
					}
					o := <-done
					cancel()
					has := pgHas(t, direct, pid)
					switch {
					case o.err == nil && has == 1:
						granted++
						ahead -= time.Duration(rand.Int64N(int64(200 * time.Microsecond)))
						if err := o.lock.Check(t.Context()); err != nil {
							t.Errorf("round %d: Check: %v", i, err)
						}
						release(t, o.lock)
						if pgHas(t, direct, pid) != 0 {
							t.Fatalf("round %d: released, and the session has it", i)
						}
					case o.err != nil && has == 0:
						failed++
						ahead = min(ahead+time.Duration(rand.Int64N(int64(200*time.Microsecond))), 7*time.Millisecond)
						want := sqllock.ErrBusy
						if how == "pg_cancel_backend" {
							want = sqllock.ErrInterrupted
						}
						wantErr(t, fmt.Sprintf("round %d", i), o.err, want)
						wantNotErr(t, fmt.Sprintf("round %d", i), o.err, sqllock.ErrSessionGone)
					default:
						t.Fatalf("round %d: %v, and the session has %d locks", i, o.err, has)
					}
					if tx != nil {
						if err := tx.Commit(); err != nil {
							t.Fatalf("round %d: the caller's transaction: %v", i, err)
						}
					}
					if now, err := pgPIDErr(t.Context(), waiter); err != nil || now != pid {
						t.Fatalf("round %d: session %d is %d, %v", i, pid, now, err)
					}
				}
				t.Logf("%d rounds: %d granted, %d ended", rounds, granted, failed)
				// Of a cancellation beside the release the server nearly always makes an error.
				if granted == 0 && how != "pg_cancel_backend" || failed == 0 {
					t.Errorf("the race was no race: %d granted, %d ended", granted, failed)
				}
			})
		}
	}
}

// TestPGTryInterrupted has the server end tries, groups, checks and releases at any
// point. Whatever the answer is, it is true.
func TestPGTryInterrupted(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db, direct := openPG(t, s), openPG(t, s)
	b := pgadvisory.New()
	keys := make([]sqllock.Request, 40)
	for i := range keys {
		keys[i] = request(lockName("interrupted"))
	}
	var c *sql.Conn
	var pid int64
	renew := func() {
		if c != nil {
			_ = c.Raw(func(dc any) error { return dc.(driver.Conn).Close() }) //nolint:forcetypeassert,errcheck // as the core does it
			_ = c.Close()
			pgGone(t, direct, pid)
		}
		c = conn(t, db)
		pid = pgPID(t, c)
		// Wherever it comes: a group takes about this long.
		release(t, acquire(t, pgLocker(), c, lockName("look")))
	}
	renew()
	stop, stopped := make(chan struct{}), make(chan struct{})
	var target atomic.Int64
	canceller := conn(t, direct)
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if id := target.Load(); id != 0 {
				time.Sleep(time.Duration(rand.Int64N(int64(time.Millisecond)))) // or it would always be the first moment
				_, _ = canceller.ExecContext(context.Background(), "SELECT pg_cancel_backend($1)", id)
			}
		}
	}()
	counts := make(map[string]int)
	for i := range 100 {
		reqs := keys[:1+i%len(keys)]
		target.Store(pid)
		var grants []sqllock.Grant
		var err error
		if i%4 == 0 {
			var g sqllock.Grant
			g, err = b.Acquire(t.Context(), c, reqs[0])
			grants, reqs = []sqllock.Grant{g}, reqs[:1]
		} else {
			grants, err = b.AcquireAll(t.Context(), c, reqs)
		}
		target.Store(0)
		switch {
		case errors.Is(err, sqllock.ErrSessionGone):
			counts["session gone"]++
			renew()
			continue
		case err != nil:
			counts["error"]++
			wantErr(t, "acquire", err, sqllock.ErrInterrupted)
			if n := pgHas(t, direct, pid); n != 0 {
				t.Fatalf("round %d: %v, and the session has %d locks", i, err, n)
			}
			continue
		}
		counts["granted"]++
		if n := pgHas(t, direct, pid); n != len(reqs) {
			t.Fatalf("round %d: granted, and the session has %d locks of %d", i, n, len(reqs))
		}
		target.Store(pid)
		gone := false
		for _, g := range grants {
			if err := b.Check(t.Context(), c, g); err != nil {
				wantErr(t, "check", err, sqllock.ErrInterrupted)
				wantNotErr(t, "check", err, sqllock.ErrLost)
			}
			err := b.Release(t.Context(), c, g)
			if err != nil {
				counts["release not confirmed"]++
				wantErr(t, "release", err, sqllock.ErrInterrupted)
				wantNotErr(t, "release", err, sqllock.ErrLost)
				gone = true
			}
		}
		target.Store(0)
		if gone { // as the core does
			renew()
		} else if n := pgHas(t, direct, pid); n != 0 {
			t.Fatalf("round %d: released, and the session has %d locks", i, n)
		}
	}
	close(stop)
	<-stopped
	t.Logf("%v", counts)
	if counts["granted"] == 0 || counts["error"]+counts["session gone"] == 0 {
		t.Errorf("nothing was hit, or everything: %v", counts)
	}
}

// TestPGInTransaction: the caller's transaction goes on whatever becomes of a lock in it.
func TestPGInTransaction(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	do(t, db, "CREATE TABLE work (id int PRIMARY KEY)")
	k := pgLocker()
	mine, other := conn(t, db), conn(t, db)
	busy := acquire(t, k, other, "busy")
	tx, err := mine.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	pid := pgPID(t, mine)
	do(t, tx, "INSERT INTO work VALUES (1)")
	do(t, tx, "SAVEPOINT go_sqllock") // of the caller's own
	_, err = k.TryLock(t.Context(), mine, "busy")
	wantErr(t, "TryLock", err, sqllock.ErrBusy)
	do(t, tx, "INSERT INTO work VALUES (2)")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	_, err = k.Lock(ctx, mine, "busy")
	cancel()
	wantErr(t, "a deadline", err, sqllock.ErrBusy, context.DeadlineExceeded)
	do(t, tx, "INSERT INTO work VALUES (3)")
	ctx, cancel = context.WithCancel(t.Context())
	done := background(ctx, k, mine, "busy")
	pgQueue(t, db, "busy", 1)
	cancel()
	wantErr(t, "a cancellation", (<-done).err, sqllock.ErrBusy, context.Canceled)
	do(t, tx, "INSERT INTO work VALUES (4)")
	done = background(t.Context(), k, mine, "busy")
	pgQueue(t, db, "busy", 1)
	do(t, db, "SELECT pg_cancel_backend($1)", pid)
	o := <-done
	wantErr(t, "pg_cancel_backend", o.err, sqllock.ErrInterrupted)
	wantNotErr(t, "pg_cancel_backend", o.err, sqllock.ErrSessionGone)
	do(t, tx, "INSERT INTO work VALUES (5)")
	free := acquire(t, k, mine, "free")
	if err := free.Check(t.Context()); err != nil {
		t.Error(err)
	}
	_, err = k.TryLock(t.Context(), mine, "free")
	wantErr(t, "re-entry", err, sqllock.ErrHeld)
	done = background(t.Context(), k, mine, "busy")
	pgQueue(t, db, "busy", 1)
	release(t, busy)
	busy = (<-done).mustHold(t)
	release(t, free)
	do(t, tx, "INSERT INTO work VALUES (6)")
	do(t, tx, "RELEASE SAVEPOINT go_sqllock") // still the caller's
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	pgSame(t, mine, pid)
	if n := ask[int](t, db, "SELECT count(*) FROM work"); n != 6 {
		t.Errorf("%d rows were committed, want 6", n)
	}
	if err := busy.Check(t.Context()); err != nil {
		t.Errorf("after the commit: %v", err)
	}
	// A rollback leaves the lock, too.
	tx, err = mine.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	inside := acquire(t, k, mine, "inside")
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(inside.Check(t.Context()), busy.Check(t.Context())); err != nil {
		t.Errorf("after the rollback: %v", err)
	}
	release(t, inside)
	release(t, busy)
	if n := pgHas(t, db, pid); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// TestPGFailedTransaction: one that takes no statement any more. What can be done without
// is refused, and Release closes the session, and says so.
func TestPGFailedTransaction(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	k := pgLocker()
	mine := conn(t, db)
	pid := pgPID(t, mine)
	l := acquire(t, k, mine, "held")
	busy := acquire(t, k, conn(t, db), "busy")
	fail := func(c *sql.Conn) *sql.Tx {
		t.Helper()
		tx, err := c.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), "SELECT 1/0"); err == nil {
			t.Fatal("no error")
		}
		return tx
	}
	tx := fail(mine)
	for _, name := range []string{"held", "free", "busy"} {
		_, err := k.TryLock(t.Context(), mine, name)
		wantErr(t, "TryLock of "+name, err, sqllock.ErrInTransaction)
		wantNotErr(t, "TryLock of "+name, err, sqllock.ErrSessionGone)
		_, err = k.Lock(t.Context(), mine, name)
		wantErr(t, "Lock of "+name, err, sqllock.ErrInTransaction)
		wantErr(t, "LockTx of "+name, k.LockTx(t.Context(), tx, name), sqllock.ErrInTransaction)
	}
	err := l.Check(t.Context())
	wantErr(t, "Check", err, sqllock.ErrInTransaction)
	wantNotErr(t, "Check", err, sqllock.ErrLost)
	_, err = k.Holder(t.Context(), mine, "busy")
	wantErr(t, "Holder over the conn", err, sqllock.ErrInTransaction)
	_, err = k.Holder(t.Context(), tx, "busy")
	wantErr(t, "Holder over the Tx", err, sqllock.ErrInTransaction)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	pgSame(t, mine, pid)
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("after the rollback: %v", err)
	}
	tx = fail(mine)
	err = l.Release(t.Context())
	wantErr(t, "Release", err, sqllock.ErrUnknown, sqllock.ErrSessionGone, sqllock.ErrInTransaction)
	if !strings.Contains(err.Error(), "roll it back") {
		t.Errorf("Release does not say what to do: %v", err)
	}
	_ = tx.Rollback()
	pgGone(t, db, pid)
	release(t, acquire(t, k, conn(t, db), "held"))
	release(t, busy)
}

// TestPGDeadlock: two sessions that wait for each other, in a transaction or not.
func TestPGDeadlock(t *testing.T) {
	t.Parallel()
	for _, inTx := range []bool{false, true} {
		t.Run(fmt.Sprintf("in a transaction %v", inTx), func(t *testing.T) {
			t.Parallel()
			db := pgDatabase(t, postgres(t), func(c *pgx.ConnConfig) { c.RuntimeParams["deadlock_timeout"] = "50ms" })
			k := pgLocker()
			conns := [2]*sql.Conn{conn(t, db), conn(t, db)}
			var pids [2]int64
			var txs [2]*sql.Tx
			var own [2]*sqllock.Lock
			for i, c := range conns {
				pids[i] = pgPID(t, c)
				if inTx {
					var err error
					if txs[i], err = c.BeginTx(t.Context(), nil); err != nil {
						t.Fatal(err)
					}
				}
				own[i] = acquire(t, k, c, fmt.Sprint(i))
			}
			type ended struct {
				outcome
				i int
			}
			done := make(chan ended, 2)
			for i, c := range conns {
				go func() { done <- ended{<-background(context.Background(), k, c, fmt.Sprint(1-i)), i} }()
			}
			victim := <-done
			wantErr(t, "the victim", victim.err, sqllock.ErrDeadlock)
			wantNotErr(t, "the victim", victim.err, sqllock.ErrSessionGone, sqllock.ErrBusy)
			pgSame(t, conns[victim.i], pids[victim.i])
			if n := pgHas(t, db, pids[victim.i]); n != 1 {
				t.Errorf("the victim has %d locks, want its own", n)
			}
			if err := own[victim.i].Check(t.Context()); err != nil {
				t.Errorf("the victim's own lock: %v", err)
			}
			release(t, own[victim.i])
			winner := <-done
			release(t, winner.mustHold(t))
			release(t, own[winner.i])
			for _, tx := range txs {
				if tx != nil {
					if err := tx.Commit(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// TestPGDeadlockWithARow: one waits for the lock, the other, who has it, for a row of his.
func TestPGDeadlockWithARow(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t), func(c *pgx.ConnConfig) { c.RuntimeParams["deadlock_timeout"] = "50ms" })
	do(t, db, "CREATE TABLE work (id int PRIMARY KEY, n int); INSERT INTO work VALUES (1,0),(2,0)", pgx.QueryExecModeSimpleProtocol)
	k := pgLocker()
	locks := func(wait func(ctx context.Context, c *sql.Conn, tx *sql.Tx) error) {
		t.Helper()
		holder, waiter := conn(t, db), conn(t, db)
		l := acquire(t, k, holder, "job")
		tx, err := waiter.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		do(t, tx, "UPDATE work SET n=n+1 WHERE id=1")
		// The holder looks for deadlocks so late that it is the waiter who finds this one.
		do(t, holder, "SET deadlock_timeout='1min'")
		updated := make(chan error, 1)
		do(t, waiter, "SET LOCAL deadlock_timeout='1min'")
		waited := make(chan error, 1)
		go func() {
			_, err := holder.ExecContext(context.Background(), "UPDATE work SET n=n+10 WHERE id=1")
			updated <- err
		}()
		waitFor(t, "the holder to wait for the row", func() bool {
			return ask[int](t, db, "SELECT count(*) FROM pg_stat_activity WHERE pid=$1 AND wait_event='transactionid'", l.Grant().Session) == 1
		})
		do(t, waiter, "SET LOCAL deadlock_timeout='50ms'")
		go func() { waited <- wait(context.Background(), waiter, tx) }()
		err = <-waited
		wantErr(t, "the waiter", err, sqllock.ErrDeadlock)
		wantNotErr(t, "the waiter", err, sqllock.ErrSessionGone)
		do(t, tx, "UPDATE work SET n=n+1 WHERE id=2") // the transaction goes on
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
		if err := <-updated; err != nil {
			t.Error(err)
		}
		release(t, l)
	}
	locks(func(ctx context.Context, c *sql.Conn, _ *sql.Tx) error {
		_, err := k.Lock(ctx, c, "job")
		return err
	})
	locks(func(ctx context.Context, _ *sql.Conn, tx *sql.Tx) error { return k.LockTx(ctx, tx, "job") })
	if n := ask[int](t, db, "SELECT sum(n) FROM work"); n != 24 {
		t.Errorf("the work is %d, want 24", n)
	}
}

// TestPGWaiterIsKilled: a waiter whose process is gone leaves the queue, also in the
// caller's transaction.
func TestPGWaiterIsKilled(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, inTx := range []bool{false, true} {
		db := pgDatabase(t, s)
		k := pgLocker()
		holder := acquire(t, k, conn(t, db), "job")
		wire := new(pgWire)
		name := ask[string](t, db, "SELECT current_database()")
		doomed := openPG(t, s, wire.through, func(c *pgx.ConnConfig) { c.Database = name })
		waiter := conn(t, doomed)
		pid := pgPID(t, waiter)
		if inTx {
			if _, err := waiter.BeginTx(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
		socket := wire.last()
		done := background(t.Context(), k, waiter, "job")
		pgQueue(t, db, "job", 1)
		wire.failing(func(context.Context) error { return errors.New("the process is dead") })
		// As the kernel does when a process is killed.
		if err := socket.Close(); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "the waiter", (<-done).err, sqllock.ErrSessionGone)
		pgGone(t, db, pid)
		if err := holder.Check(t.Context()); err != nil {
			t.Error(err)
		}
		release(t, holder)
		release(t, acquire(t, k, conn(t, db), "job"))
	}
}

// TestPGFirstComeFirstServed: waiters are granted the lock in the order that they came.
func TestPGFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	const n = 8
	db := pgDatabase(t, postgres(t))
	k := pgLocker()
	holder := acquire(t, k, conn(t, db), "job")
	order := make(chan int, n)
	var all sync.WaitGroup
	for i := range n {
		c := conn(t, db)
		all.Go(func() {
			l, err := k.Lock(context.Background(), c, "job")
			if err != nil {
				t.Error(err)
				return
			}
			order <- i
			if err := l.Release(context.Background()); err != nil {
				t.Error(err)
			}
		})
		pgQueue(t, db, "job", i+1)
	}
	release(t, holder)
	all.Wait()
	close(order)
	want := 0
	for got := range order {
		if got != want {
			t.Errorf("the lock went to waiter %d, want %d", got, want)
		}
		want++
	}
}

// TestPGCancelHitsNothingElse: cancelled waits, each with statements of the caller's
// right behind it, on many sessions at once.
func TestPGCancelHitsNothingElse(t *testing.T) {
	t.Parallel()
	const sessions, rounds = 8, 40
	db := pgDatabase(t, postgres(t))
	k := pgLocker()
	holder := acquire(t, k, conn(t, db), "job")
	var all sync.WaitGroup
	var cancelled atomic.Int64
	for i := range sessions {
		c := conn(t, db)
		pid := pgPID(t, c)
		all.Go(func() {
			for r := range rounds {
				var tx *sql.Tx
				if i%2 == 1 {
					var err error
					if tx, err = c.BeginTx(context.Background(), nil); err != nil {
						t.Errorf("session %d, round %d: %v", i, r, err)
						return
					}
				}
				ctx, cancel := context.WithCancel(context.Background())
				go func() {
					time.Sleep(time.Duration(rand.Int64N(int64(3 * time.Millisecond)))) // before the try, in it, before the wait, in it
					cancel()
				}()
				_, err := k.Lock(ctx, c, "job")
				cancel()
				if !errors.Is(err, context.Canceled) || errors.Is(err, sqllock.ErrSessionGone) {
					t.Errorf("session %d, round %d: %v", i, r, err)
				}
				cancelled.Add(1)
				for range 3 {
					if now, err := pgPIDErr(context.Background(), c); err != nil || now != pid {
						t.Errorf("session %d, round %d: the next statement: session %d is %d, %v", i, r, pid, now, err)
						return
					}
				}
				if tx != nil {
					if err := tx.Commit(); err != nil {
						t.Errorf("session %d, round %d: %v", i, r, err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d cancelled", cancelled.Load())
	release(t, holder)
}

// TestPGCancelCanNotBeDelivered: what is left then is to give up the session, which is
// said, with why.
func TestPGCancelCanNotBeDelivered(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	wire := new(pgWire)
	db, direct := openPG(t, s, wire.through), openPG(t, s)
	k, name := pgLocker(), lockName("job")
	holder := acquire(t, k, conn(t, direct), name)
	waiter := conn(t, db)
	pid, pg := pgPID(t, waiter), pgDriver(t, waiter)
	ctx, cancel := context.WithCancel(t.Context())
	done := background(ctx, k, waiter, name)
	pgQueue(t, direct, name, 1)
	wire.failing(func(context.Context) error { return errors.New("no more connections today") })
	cancel()
	o := <-done
	wantErr(t, "Lock", o.err, sqllock.ErrSessionGone, context.Canceled)
	wantNotErr(t, "Lock", o.err, sqllock.ErrBusy)
	if o.err != nil && (!strings.Contains(o.err.Error(), "could not be cancelled") || !strings.Contains(o.err.Error(), "no more connections today")) {
		t.Errorf("the error does not say why: %v", o.err)
	}
	// The driver tells the server good-bye. A waiter does not hear that, but looks each
	// second whether the process is still there.
	_ = wire.last().Close()
	pgGone(t, direct, pid)
	cleanedUp(t, pg)
	release(t, holder)
}

// pgDriver returns the driver's connection.
func pgDriver(t *testing.T, c *sql.Conn) (pg *pgconn.PgConn) {
	t.Helper()
	err := c.Raw(func(dc any) error {
		pg = dc.(*stdlib.Conn).Conn().PgConn() //nolint:forcetypeassert,errcheck // of the test's own pool
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pg
}

// cleanedUp waits until the driver has no goroutine more for a connection.
func cleanedUp(t *testing.T, pg *pgconn.PgConn) {
	t.Helper()
	select {
	case <-pg.CleanupDone():
	case <-time.After(30 * time.Second):
		t.Error("the driver has not let go of the connection")
	}
}

// pgNet is a network to the server that can be cut.
type pgNet struct{ *toxiproxy.Proxy }

func newPGNet(t *testing.T, s *testdb.Server) *pgNet {
	t.Helper()
	cfg, err := pgx.ParseConfig(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	n := &pgNet{toxiproxy.NewProxy(api, "pg", "127.0.0.1:0", net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port)))}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return n
}

func (n *pgNet) through(c *pgx.ConnConfig) {
	c.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", n.Listen)
	}
}

// silence has all that is sent in a direction vanish from now on.
func (n *pgNet) silence(t *testing.T, direction string) {
	t.Helper()
	if _, err := n.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"type":"timeout","stream":%q,"attributes":{"timeout":0}}`, direction))); err != nil {
		t.Fatal(err)
	}
}

// silentCase is an operation on a session whose network has fallen silent.
type silentCase struct {
	what    string
	want    []error
	begin   func(c *silentCase) // before the silence, if it waits
	run     func(ctx context.Context, c *silentCase) error
	k       *sqllock.Locker
	name    string
	net     *pgNet
	conn    *sql.Conn
	pg      *pgconn.PgConn
	tx      *sql.Tx
	warm    *sqllock.Lock
	lock    *sqllock.Lock
	waiting chan error // where what begin has begun ends
	cancel  context.CancelFunc
	err     error
	took    time.Duration
}

// TestPGSilence: a server that is not heard of any more costs the session, in bounded
// time, and the answer is the truth. All cases are waited for at a time.
func TestPGSilence(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	direct := openPG(t, s)
	gone := []error{sqllock.ErrSessionGone}
	var all []*silentCase
	for _, direction := range []string{upstream, downstream} {
		for _, inTx := range []bool{false, true} {
			ops := []silentCase{
				{what: "TryLock", want: gone, run: func(ctx context.Context, c *silentCase) error {
					_, err := c.k.TryLock(ctx, c.conn, c.name)
					return err
				}},
				{what: "Check", want: append(gone, sqllock.ErrLost), run: func(ctx context.Context, c *silentCase) error { return c.lock.Check(ctx) }},
				{what: "Release", want: append(gone, sqllock.ErrUnknown), run: func(ctx context.Context, c *silentCase) error { return c.lock.Release(ctx) }},
				{what: "Lock, cancelled", want: append(gone, context.Canceled), begin: func(c *silentCase) {
					ctx, cancel := context.WithCancel(context.Background())
					c.cancel = cancel
					go func() {
						_, err := c.k.Lock(ctx, c.conn, c.name)
						c.waiting <- err
					}()
				}},
				{what: "Lock with a deadline", want: gone, begin: func(c *silentCase) {
					ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
					go func() {
						defer cancel()
						_, err := c.k.Lock(ctx, c.conn, c.name)
						c.waiting <- err
					}()
				}},
			}
			if inTx {
				ops = append(ops, silentCase{what: "LockTx", want: gone, run: func(ctx context.Context, c *silentCase) error {
					return c.k.LockTx(ctx, c.tx, c.name)
				}}, silentCase{what: "LockTx, waiting", want: gone, begin: func(c *silentCase) {
					go func() { c.waiting <- c.k.LockTx(context.Background(), c.tx, c.name) }()
				}})
			}
			for i := range ops {
				c := &ops[i]
				c.what += fmt.Sprintf(", %s, in a transaction %v", direction, inTx)
				c.k, c.name, c.net, c.waiting = pgLocker(), lockName("silence"), newPGNet(t, s), make(chan error, 1)
				c.conn = conn(t, openPG(t, s, c.net.through))
				c.pg, c.warm = pgDriver(t, c.conn), acquire(t, c.k, c.conn, lockName("warm"))
				switch {
				case c.begin != nil:
					acquire(t, c.k, conn(t, direct), c.name)
				case !strings.HasPrefix(c.what, "TryLock") && !strings.HasPrefix(c.what, "LockTx"):
					c.lock = acquire(t, c.k, c.conn, c.name)
				}
				if inTx {
					var err error
					if c.tx, err = c.conn.BeginTx(t.Context(), nil); err != nil {
						t.Fatal(err)
					}
				}
				all = append(all, c)
			}
		}
	}
	var ran sync.WaitGroup
	for _, c := range all {
		if c.begin != nil {
			c.begin(c)
			pgQueue(t, direct, c.name, 1)
		}
		direction := downstream
		if strings.Contains(c.what, upstream) {
			direction = upstream
		}
		c.net.silence(t, direction)
		ran.Go(func() {
			start := time.Now()
			if c.cancel != nil {
				c.cancel()
			}
			if c.begin != nil {
				c.err = <-c.waiting
			} else {
				c.err = c.run(context.Background(), c)
			}
			c.took = time.Since(start)
		})
	}
	ran.Wait()
	for _, c := range all {
		wantErr(t, c.what, c.err, c.want...)
		if !strings.Contains(c.what, "deadline") { // no other ctx of the caller's has ended
			wantNotErr(t, c.what, c.err, context.DeadlineExceeded)
		}
		if c.took > 25*time.Second {
			t.Errorf("%s took %v", c.what, c.took)
		}
		if !strings.HasPrefix(c.what, "LockTx") {
			// The core has closed the session, with the other lock on it.
			wantErr(t, c.what+": the other lock", c.warm.Err(), sqllock.ErrLost)
		}
		c.net.Stop() // whoever still waits for an answer gets none
		if c.tx != nil {
			_ = c.tx.Rollback()
		}
		_ = c.conn.Close()
		cleanedUp(t, c.pg)
	}
}

// TestPGExpiredContext: no call with a ctx that has ended harms the session, which pgx
// would close.
func TestPGExpiredContext(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	k := pgLocker()
	c := conn(t, db)
	pid := pgPID(t, c)
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("out of time"))
	late, stop := context.WithTimeout(t.Context(), 1)
	defer stop()
	busy := acquire(t, k, conn(t, db), "busy")
	for what, ctx := range map[string]context.Context{"cancelled": cancelled, "late": late} {
		for _, opts := range [][]sqllock.LockOption{nil, {sqllock.Shared()}} {
			l := acquire(t, k, c, "held", opts...)
			tx, err := c.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"held", "free", "busy"} {
				_, err := k.TryLock(ctx, c, name, opts...)
				wantErr(t, what+" TryLock", err, ctx.Err())
				_, err = k.Lock(ctx, c, name, opts...)
				wantErr(t, what+" Lock", err, ctx.Err())
				wantErr(t, what+" TryLockTx", k.TryLockTx(ctx, tx, name, opts...), ctx.Err())
				wantErr(t, what+" LockTx", k.LockTx(ctx, tx, name, opts...), ctx.Err())
				for _, q := range []sqllock.Querier{c, tx, db} {
					_, err = k.Holder(ctx, q, name)
					wantErr(t, what+" Holder", err, ctx.Err())
				}
				_, err = k.Break(ctx, db, name)
				wantErr(t, what+" Break", err, ctx.Err())
			}
			wantErr(t, what+" Check", l.Check(ctx), sqllock.ErrUnknown, ctx.Err())
			// The backend's own methods, as a Pool calls them.
			b := pgadvisory.New()
			if err := b.Check(ctx, c, l.Grant()); err != nil {
				t.Errorf("%s: Check of the backend: %v", what, err)
			}
			if err := b.Check(ctx, sqllock.InTx{Conn: c}, l.Grant()); err != nil {
				t.Errorf("%s: Check of the backend in the transaction: %v", what, err)
			}
			if err := b.Check(ctx, tx, l.Grant()); err != nil {
				t.Errorf("%s: Check of the backend over the Tx: %v", what, err)
			}
			if held, err := b.Watch(ctx, c, []sqllock.Grant{l.Grant()}); err != nil || !held[0] {
				t.Errorf("%s: Watch of the backend: %v, %v", what, held, err)
			}
			if _, err := b.Holder(ctx, tx, "held"); err != nil {
				t.Errorf("%s: Holder of the backend: %v", what, err)
			}
			if _, err := b.Acquire(ctx, c, sqllock.Request{Key: "busy", Wait: true}); !errors.Is(err, sqllock.ErrBusy) {
				t.Errorf("%s: Acquire of the backend: %v", what, err)
			}
			if err := b.AcquireTx(ctx, tx, sqllock.Request{Key: "busy", Wait: true}); !errors.Is(err, sqllock.ErrBusy) {
				t.Errorf("%s: AcquireTx of the backend: %v", what, err)
			}
			if _, err := b.AcquireAll(ctx, c, []sqllock.Request{request("free"), request("busy")}); !errors.Is(err, sqllock.ErrBusy) {
				t.Errorf("%s: AcquireAll of the backend: %v", what, err)
			}
			pgSame(t, c, pid)
			if err := l.Check(t.Context()); err != nil {
				t.Errorf("%s: the lock: %v", what, err)
			}
			if err := l.Release(ctx); err != nil {
				t.Errorf("%s Release: %v", what, err)
			}
			if err := tx.Commit(); err != nil {
				t.Error(err)
			}
			pgSame(t, c, pid)
			if n := pgHas(t, db, pid); n != 0 {
				t.Errorf("%s: %d locks are left", what, n)
			}
		}
	}
	release(t, busy)
}

// TestPGOpenRows: nothing can be sent beside them. What can be done without leaves the
// session alone, Release closes it.
func TestPGOpenRows(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	k := pgLocker()
	c := conn(t, db)
	pid := pgPID(t, c)
	for _, inTx := range []bool{false, true} {
		l, often := acquire(t, k, c, "held"), acquire(t, k, c, "often")
		for range 3 { // prepared
			if err := often.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var tx *sql.Tx
		var q interface {
			QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
		} = c
		if inTx {
			var err error
			if tx, err = c.BeginTx(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			q = tx
		}
		rows, err := q.QueryContext(t.Context(), "SELECT generate_series(1,20000)")
		if err != nil {
			t.Fatal(err)
		}
		rows.Next()
		for _, call := range map[string]func() error{
			"TryLock": func() error { _, err := k.TryLock(t.Context(), c, "free"); return err },
			"Lock":    func() error { _, err := k.Lock(t.Context(), c, "free"); return err },
			"again":   func() error { _, err := k.TryLock(t.Context(), c, "held"); return err },
			"Check":   func() error { return l.Check(t.Context()) },
			"group": func() error {
				_, err := pgadvisory.New().AcquireAll(t.Context(), c, []sqllock.Request{request("free")})
				return err
			},
			"Holder": func() error { _, err := k.Holder(t.Context(), c, "held"); return err },
		} {
			err := call()
			if err == nil || !strings.Contains(err.Error(), "rows of a query are open") {
				t.Errorf("got %v, want the reason", err)
			}
			wantNotErr(t, "beside open rows", err, sqllock.ErrSessionGone, sqllock.ErrLost, sqllock.ErrBusy)
		}
		if tx != nil {
			if err := k.TryLockTx(t.Context(), tx, "free"); err == nil {
				t.Error("TryLockTx worked beside open rows")
			}
		}
		n := 1
		for rows.Next() {
			n++
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil || n != 20000 { //nolint:sqlclosecheck // its error is the test's
			t.Errorf("the rows of the caller: %d, %v", n, err)
		}
		if tx != nil {
			if err := k.TryLockTx(t.Context(), tx, "free"); err != nil {
				t.Errorf("TryLockTx after the rows: %v", err)
			}
			if err := tx.Commit(); err != nil {
				t.Error(err)
			}
		}
		pgSame(t, c, pid)
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("after the rows: %v", err)
		}
		release(t, l)
		release(t, often)
	}
	l := acquire(t, k, c, "held")
	rows, err := c.QueryContext(t.Context(), "SELECT generate_series(1,20000)") //nolint:rowserrcheck // they break
	if err != nil {
		t.Fatal(err)
	}
	rows.Next()
	err = l.Release(t.Context())
	wantErr(t, "Release", err, sqllock.ErrUnknown)
	if !strings.Contains(err.Error(), "rows of a query are open") {
		t.Errorf("Release does not say why: %v", err)
	}
	_ = rows.Close() //nolint:sqlclosecheck // while the test goes on
	pgGone(t, db, pid)
	release(t, acquire(t, k, conn(t, db), "held"))
}

// TestPGFreedBehindItsBack: the application frees all that its session has, or makes it
// forget what is prepared, in a transaction of its own or not.
func TestPGFreedBehindItsBack(t *testing.T) {
	t.Parallel()
	// Who discards statements has the driver keep none.
	db := pgDatabase(t, postgres(t), func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = pgx.QueryExecModeExec })
	do(t, db, "CREATE TABLE work (id int)")
	k := pgLocker()
	for _, opts := range [][]sqllock.LockOption{nil, {sqllock.Shared()}} {
		for _, statement := range []string{"SELECT pg_advisory_unlock_all()", "DISCARD ALL", "DEALLOCATE ALL", `DEALLOCATE "go_sqllock_check"`} {
			c := conn(t, db)
			pid := pgPID(t, c)
			mode, _, _ := strings.Cut(statement, " ")
			lost := !strings.HasPrefix(mode, "DEALLOCATE")
			if len(opts) > 0 && strings.Contains(statement, "go_sqllock") {
				continue // has another name
			}
			for round := range 3 {
				l := acquire(t, k, c, "job", opts...)
				for range 3 {
					if err := l.Check(t.Context()); err != nil {
						t.Fatalf("%s: %v", statement, err)
					}
				}
				do(t, c, statement, pgx.QueryExecModeSimpleProtocol)
				err := l.Check(t.Context())
				if lost {
					wantErr(t, "Check after "+statement, err, sqllock.ErrLost)
					wantErr(t, "Err after "+statement, l.Err(), sqllock.ErrLost)
					l = acquire(t, k, c, "job", opts...)
				} else if err != nil {
					t.Errorf("Check after %s: %v", statement, err)
				}
				// In a transaction nothing may fail.
				do(t, c, "DEALLOCATE ALL", pgx.QueryExecModeSimpleProtocol)
				tx, err := c.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Check(t.Context()); err != nil {
					t.Errorf("Check in a transaction: %v", err)
				}
				inside := acquire(t, k, c, "inside", opts...)
				do(t, tx, "INSERT INTO work VALUES (1)")
				release(t, inside)
				do(t, tx, "DEALLOCATE ALL", pgx.QueryExecModeSimpleProtocol)
				if err := l.Check(t.Context()); err != nil {
					t.Errorf("Check in a transaction: %v", err)
				}
				do(t, tx, "INSERT INTO work VALUES (1)")
				if err := tx.Commit(); err != nil {
					t.Errorf("%s, round %d: the caller's transaction: %v", statement, round, err)
				}
				if err := l.Check(t.Context()); err != nil {
					t.Error(err)
				}
				release(t, l)
				pgSame(t, c, pid)
				if n := pgHas(t, db, pid); n != 0 {
					t.Errorf("%d locks are left", n)
				}
			}
			// A release of what has been freed says so, and the session goes on.
			l := acquire(t, k, c, "job", opts...)
			do(t, c, "SELECT pg_advisory_unlock_all()")
			wantErr(t, "Release", l.Release(t.Context()), sqllock.ErrLost)
			pgSame(t, c, pid)
			again := acquire(t, k, c, "job", opts...)
			do(t, c, "SELECT pg_advisory_unlock_all()")
			newer := acquire(t, k, c, "job", opts...) // without a check between
			wantErr(t, "the older handle", again.Check(t.Context()), sqllock.ErrLost)
			release(t, newer)
		}
	}
	if n := ask[int](t, db, "SELECT count(*) FROM work"); n != 2*3*(4+3) {
		t.Errorf("%d rows were committed, want 42", n)
	}
}

// TestPGCountedReferences: the application gives back what it has not taken, or takes
// references of its own. A lock is held as long as the session has any part of it.
func TestPGCountedReferences(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	k := pgLocker()
	c, other := conn(t, db), conn(t, db)
	pid := pgPID(t, c)
	busy := func(what string) {
		t.Helper()
		_, err := k.TryLock(t.Context(), other, "job")
		wantErr(t, what, err, sqllock.ErrBusy)
	}
	l := acquire(t, k, c, "job")
	do(t, c, "SELECT pg_advisory_unlock("+pgNumber+")", "job") // one of our two
	for range 3 {
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check with one reference: %v", err)
		}
		busy("while one reference is there")
	}
	_, err := k.TryLock(t.Context(), c, "job")
	wantErr(t, "re-entry", err, sqllock.ErrHeld)
	if err := l.Release(t.Context()); err != nil {
		t.Errorf("Release of one reference: %v", err)
	}
	if n := pgHas(t, db, pid); n != 0 {
		t.Errorf("%d locks are left", n)
	}
	l = acquire(t, k, c, "job")
	do(t, c, "SELECT pg_advisory_unlock("+pgNumber+"),pg_advisory_unlock("+pgNumber+")", "job")
	release(t, acquire(t, k, other, "job"))
	wantErr(t, "Check without a reference", l.Check(t.Context()), sqllock.ErrLost)

	// The application's own reference before ours, and after.
	do(t, c, "SELECT pg_advisory_lock("+pgNumber+")", "job")
	l = acquire(t, k, c, "job")
	do(t, c, "SELECT pg_advisory_lock("+pgNumber+")", "job")
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	release(t, l)
	for i := range 2 {
		busy("while the application has its own")
		if !ask[bool](t, c, "SELECT pg_advisory_unlock("+pgNumber+")", "job") {
			t.Errorf("reference %d of the application is gone", i)
		}
	}
	release(t, acquire(t, k, other, "job"))
	if n := pgHas(t, db, pid); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// TestPGShared: readers beside each other, a writer alone.
func TestPGShared(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	k := pgLocker()
	shared := sqllock.Shared()
	a, b, w, late := conn(t, db), conn(t, db), conn(t, db), conn(t, db)
	la, lb := acquire(t, k, a, "job", shared), acquire(t, k, b, "job", shared)
	if h, err := k.Holder(t.Context(), db, "job"); err != nil || h.Session != la.Grant().Session && h.Session != lb.Grant().Session {
		t.Errorf("Holder: %+v, %v", h, err)
	}
	if held, err := pgadvisory.New().Watch(t.Context(), db, []sqllock.Grant{la.Grant(), lb.Grant()}); err != nil || !held[0] || !held[1] {
		t.Errorf("Watch: %v, %v", held, err)
	}
	_, err := k.TryLock(t.Context(), w, "job")
	wantErr(t, "alone beside shared", err, sqllock.ErrBusy)
	for what, opts := range map[string][]sqllock.LockOption{"shared": {shared}, "alone": nil} {
		_, err = k.TryLock(t.Context(), a, "job", opts...)
		wantErr(t, "re-entry, "+what, err, sqllock.ErrHeld)
		_, err = pgLocker().Lock(t.Context(), a, "job", opts...)
		wantErr(t, "re-entry of another Locker, "+what, err, sqllock.ErrHeld)
		if _, err = pgadvisory.New().AcquireAll(t.Context(), a, []sqllock.Request{request("x"), request("job")}); !errors.Is(err, sqllock.ErrBusy) {
			t.Errorf("a group with one that is held: %v", err)
		}
	}
	writer := background(t.Context(), k, w, "job")
	pgQueue(t, db, "job", 1)
	// Who comes later to share it waits behind who wants it alone.
	_, err = k.TryLock(t.Context(), late, "job", shared)
	wantErr(t, "TryLock, shared, beside a waiting writer", err, sqllock.ErrBusy)
	reader := background(t.Context(), k, late, "job", shared)
	pgQueue(t, db, "job", 2)
	for _, l := range []*sqllock.Lock{la, lb} {
		for range 3 { // give one back, take it again: not from the end of the queue
			if err := l.Check(t.Context()); err != nil {
				t.Errorf("Check beside a waiting writer: %v", err)
			}
		}
	}
	release(t, la)
	if n := pgHas(t, db, pgPID(t, a)); n != 0 {
		t.Errorf("a reader has %d locks left", n)
	}
	if err := lb.Check(t.Context()); err != nil {
		t.Error(err)
	}
	pgQueue(t, db, "job", 2) // for all readers
	release(t, lb)
	lw := (<-writer).mustHold(t)
	pgQueue(t, db, "job", 1)
	for what, opts := range map[string][]sqllock.LockOption{"shared": {shared}, "alone": nil} {
		_, err = k.TryLock(t.Context(), w, "job", opts...)
		wantErr(t, "re-entry of the writer, "+what, err, sqllock.ErrHeld)
	}
	release(t, lw)
	lr := (<-reader).mustHold(t)
	// A shared wait that ends leaves nothing.
	lr2 := acquire(t, k, a, "job", shared)
	release(t, lr)
	release(t, lr2)
	lw = acquire(t, k, w, "job")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	_, err = k.Lock(ctx, a, "job", shared)
	cancel()
	wantErr(t, "a shared wait with a deadline", err, sqllock.ErrBusy, context.DeadlineExceeded)
	ctx, cancel = context.WithCancel(t.Context())
	reader = background(ctx, k, a, "job", shared)
	pgQueue(t, db, "job", 1)
	cancel()
	wantErr(t, "a shared wait, cancelled", (<-reader).err, sqllock.ErrBusy, context.Canceled)
	release(t, lw)
	do(t, a, "SELECT 1")
	if n := ask[int](t, db, "SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND database=(SELECT oid FROM pg_database WHERE datname=current_database())"); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// TestPGSharedCollision has a reader, of either of two names of one number, wait to be
// alone under the other, beside another reader: what it shares stays when the wait ends.
func TestPGSharedCollision(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	k := pgLocker()
	a, b := conn(t, db), conn(t, db)
	la, lb := acquire(t, k, a, pgTwins[0], sqllock.Shared()), acquire(t, k, b, pgTwins[0], sqllock.Shared())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	_, err := k.Lock(ctx, a, pgTwins[1])
	cancel()
	wantErr(t, "alone beside another reader", err, sqllock.ErrBusy)
	if err := errors.Join(la.Check(t.Context()), lb.Check(t.Context())); err != nil {
		t.Error(err)
	}
	release(t, lb)
	alone := acquire(t, k, a, pgTwins[1])
	_, err = k.TryLock(t.Context(), b, pgTwins[0], sqllock.Shared())
	wantErr(t, "shared beside one alone", err, sqllock.ErrBusy)
	release(t, la)
	_, err = k.TryLock(t.Context(), b, pgTwins[0], sqllock.Shared())
	wantErr(t, "shared beside one alone", err, sqllock.ErrBusy)
	if err := alone.Check(t.Context()); err != nil {
		t.Error(err)
	}
	release(t, alone)
	release(t, acquire(t, k, b, pgTwins[0]))
}

// TestPGSharedInAPool: several in one Pool at once, and a writer alone, many times.
func TestPGSharedInAPool(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	p := pool(t, db, pgadvisory.New())
	all := make(chan struct{})
	var in atomic.Int64
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			err := p.Do(t.Context(), "job", func(ctx context.Context, l *sqllock.Lock) error {
				if in.Add(1) == 3 {
					close(all)
				}
				select {
				case <-all: // nobody goes before all three are in
				case <-time.After(30 * time.Second):
					return errors.New("the readers exclude each other")
				}
				return l.Check(ctx)
			}, sqllock.Shared())
			if err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()

	var readersIn, writersIn, bad atomic.Int64
	var storm sync.WaitGroup
	for i := range 8 {
		storm.Go(func() {
			for range 30 {
				if i < 2 {
					err := p.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error {
						if writersIn.Add(1) != 1 || readersIn.Load() != 0 {
							bad.Add(1)
						}
						writersIn.Add(-1)
						return nil
					})
					if err != nil {
						t.Error(err)
					}
					continue
				}
				err := p.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error {
					readersIn.Add(1)
					if writersIn.Load() != 0 {
						bad.Add(1)
					}
					readersIn.Add(-1)
					return nil
				}, sqllock.Shared())
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	storm.Wait()
	if bad.Load() != 0 {
		t.Errorf("a writer was not alone %d times", bad.Load())
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if n := ask[int](t, db, "SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND database=(SELECT oid FROM pg_database WHERE datname=current_database())"); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// pgRole makes a role for the length of the test, and returns a pool of it on the
// database of db.
func pgRole(t *testing.T, s *testdb.Server, db *sql.DB, attributes string, change ...func(*pgx.ConnConfig)) *sql.DB {
	t.Helper()
	name := fmt.Sprintf("role_%d_%d", os.Getpid(), databases.Add(1))
	do(t, db, "CREATE ROLE "+name+" LOGIN PASSWORD 'secret' "+attributes)
	database := ask[string](t, db, "SELECT current_database()")
	t.Cleanup(func() { _, _ = db.ExecContext(context.Background(), "DROP ROLE "+name) })
	return openPG(t, s, append(change, func(c *pgx.ConnConfig) { c.User, c.Password, c.Database = name, "secret", database })...)
}

// TestPGBreak: with the privileges that three roles have.
func TestPGBreak(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgDatabase(t, s)
	do(t, db, "CREATE TABLE work (id int)")
	owner, stranger := pgRole(t, s, db, ""), pgRole(t, s, db, "")
	operator := pgRole(t, s, db, "IN ROLE pg_signal_backend")
	k := pgLocker()
	_, err := k.Break(t.Context(), db, "job")
	wantErr(t, "Break of what is free", err, sqllock.ErrNotHeld)
	for _, test := range []struct {
		holder, by *sql.DB
		may        bool
	}{
		{owner, owner, true},
		{owner, stranger, false},
		{owner, operator, true},
		{db, operator, false}, // a superuser's session
		{owner, db, true},
	} {
		c := conn(t, test.holder)
		l := acquire(t, k, c, "job")
		pid := l.Grant().Session
		h, err := k.Break(t.Context(), test.by, "job")
		if !test.may {
			wantErr(t, "Break", err, sqllock.ErrPermission)
			for _, text := range []string{"pg_signal_backend", fmt.Sprint(pid)} {
				if err != nil && !strings.Contains(err.Error(), text) {
					t.Errorf("the error does not name %s: %v", text, err)
				}
			}
			if err := l.Check(t.Context()); err != nil {
				t.Errorf("the lock: %v", err)
			}
			release(t, l)
			continue
		}
		if err != nil || h.Session != pid {
			t.Fatalf("Break: %+v, %v", h, err)
		}
		if _, err := k.TryLock(t.Context(), conn(t, db), "job"); err != nil {
			t.Errorf("after Break: %v", err)
		}
		wantErr(t, "the holder", l.Check(t.Context()), sqllock.ErrLost)
		_, err = k.Break(t.Context(), db, "job")
		if err != nil {
			t.Errorf("Break of the one who tried: %v", err)
		}
	}
	// An unprivileged role sees who it is, and not what it does.
	l := acquire(t, k, conn(t, owner), "job")
	seen, err := k.Holder(t.Context(), stranger, "job")
	if err != nil || seen.Session != l.Grant().Session || seen.User == "" || !seen.Alive || seen.State != "" || seen.Host != "" {
		t.Errorf("Holder seen by a stranger: %+v, %v", seen, err)
	}
	// Its watch knows the session by its id alone.
	if held, err := pgadvisory.New().Watch(t.Context(), stranger, []sqllock.Grant{l.Grant()}); err != nil || !held[0] {
		t.Errorf("Watch by a stranger: %v, %v", held, err)
	}
	seen, err = k.Holder(t.Context(), db, "job")
	if err != nil || seen.State != "idle" || seen.Host == "" || seen.Since.IsZero() || seen.Database == "" {
		t.Errorf("Holder seen by an operator: %+v, %v", seen, err)
	}
	release(t, l)
	// All who share it.
	var readers []*sqllock.Lock
	for range 5 {
		readers = append(readers, acquire(t, k, conn(t, owner), "job", sqllock.Shared()))
	}
	bystander := acquire(t, k, conn(t, owner), "another")
	if _, err := k.Break(t.Context(), operator, "job"); err != nil {
		t.Error(err)
	}
	if _, err := k.TryLock(t.Context(), conn(t, db), "job"); err != nil {
		t.Errorf("after Break of all readers: %v", err)
	}
	for _, l := range readers {
		wantErr(t, "a reader", l.Check(t.Context()), sqllock.ErrLost)
	}
	if err := bystander.Check(t.Context()); err != nil {
		t.Errorf("the lock of another name: %v", err)
	}
	release(t, bystander)
}

// TestPGBreakWaitsForTheRollback: when it returns the holder's work is undone.
func TestPGBreakWaitsForTheRollback(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	do(t, db, "CREATE TABLE work (id int PRIMARY KEY)")
	k := pgLocker()
	for range 10 {
		c := conn(t, db)
		acquire(t, k, c, "job")
		tx, err := c.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		do(t, tx, "INSERT INTO work SELECT generate_series(1,2000)")
		waiter := background(t.Context(), k, conn(t, db), "job")
		pgQueue(t, db, "job", 1)
		if _, err := k.Break(t.Context(), db, "job"); err != nil {
			t.Fatal(err)
		}
		l := (<-waiter).mustHold(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		// It would wait for the row of a transaction that is not decided.
		rows, err := l.Conn().ExecContext(ctx, "INSERT INTO work VALUES (1)")
		cancel()
		if err != nil {
			t.Fatalf("%v, %v", rows, err)
		}
		do(t, l.Conn(), "DELETE FROM work")
		release(t, l)
		_ = tx.Rollback()
	}
}

// pgTraced is the driver of pgx as a tracer, otelsql for one, wraps it.
type pgTraced struct{ driver.Connector }

type pgTracedConn struct{ *stdlib.Conn }

// Raw is how otelsql shows what it wraps.
func (c pgTracedConn) Raw() driver.Conn { return c.Conn }

func (w pgTraced) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := w.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return pgTwice{pgTracedConn{c.(*stdlib.Conn)}}, nil //nolint:forcetypeassert,errcheck // it is
}

type pgTwice struct{ pgTracedConn }

// Raw shows another one that is wrapped.
func (c pgTwice) Raw() driver.Conn { return c.pgTracedConn }

// TestPGWrappedDriver: one that shows what it wraps works, another driver is refused.
func TestPGWrappedDriver(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	cfg, err := pgx.ParseConfig(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(pgTraced{stdlib.GetConnector(*cfg)})
	defer db.Close() //nolint:errcheck // nothing depends on it
	k, name := pgLocker(), lockName("wrapped")
	c, other := conn(t, db), conn(t, db)
	l := acquire(t, k, c, name)
	for range 3 {
		if err := l.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := background(ctx, k, other, name)
	pgQueue(t, db, name, 1)
	cancel()
	wantErr(t, "a cancelled wait", (<-done).err, sqllock.ErrBusy, context.Canceled)
	if _, err := k.Holder(t.Context(), db, name); err != nil {
		t.Error(err)
	}
	tx, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "TryLockTx", k.TryLockTx(t.Context(), tx, name), sqllock.ErrBusy)
	release(t, l)
	if err := k.LockTx(t.Context(), tx, name); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	l = acquire(t, k, c, name)
	if _, err := k.Break(t.Context(), db, name); err != nil {
		t.Error(err)
	}
	wantErr(t, "Check after Break", l.Check(t.Context()), sqllock.ErrLost)
}

// foreign is a driver that is not that of pgx.
type foreign struct{}

func (foreign) Open(string) (driver.Conn, error)             { return foreign{}, nil }
func (foreign) Connect(context.Context) (driver.Conn, error) { return foreign{}, nil }
func (foreign) Driver() driver.Driver                        { return foreign{} }
func (foreign) Prepare(string) (driver.Stmt, error)          { return nil, errors.New("not here") }
func (foreign) Close() error                                 { return nil }
func (foreign) Begin() (driver.Tx, error)                    { return foreign{}, nil }
func (foreign) Commit() error                                { return nil }
func (foreign) Rollback() error                              { return nil }
func (foreign) Raw() driver.Conn                             { return nil }
func (foreign) CheckNamedValue(*driver.NamedValue) error     { return nil }
func (foreign) ResetSession(context.Context) error           { return nil }
func foreignDriver(t *testing.T) *sql.DB {
	t.Helper()
	db := sql.OpenDB(foreign{})
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestPGForeignDriver(t *testing.T) {
	t.Parallel()
	k := pgLocker()
	for what, db := range map[string]*sql.DB{"one that shows nothing": foreignDriver(t), "MySQL's": func() *sql.DB {
		cfg := mysql.NewConfig()
		cfg.Addr = "127.0.0.1:1"
		connector, err := mysql.NewConnector(cfg)
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(pgNever{connector})
		t.Cleanup(func() { _ = db.Close() })
		return db
	}()} {
		_, err := k.TryLock(t.Context(), conn(t, db), "job")
		wantErr(t, what, err, sqllock.ErrUnsupported)
		wantNotErr(t, what, err, sqllock.ErrSessionGone)
		if err != nil && !strings.Contains(err.Error(), "github.com/jackc/pgx/v5/stdlib") {
			t.Errorf("%s: the error does not name the driver that is needed: %v", what, err)
		}
	}
}

// pgNever has connections of another type.
type pgNever struct{ driver.Connector }

type pgNeverConn struct{ driver.Conn }

func (pgNever) Connect(context.Context) (driver.Conn, error) { return pgNeverConn{foreign{}}, nil }

// TestPGLockTableIsFull: the error says what to raise, and nothing is left held.
func TestPGLockTableIsFull(t *testing.T) {
	t.Parallel()
	// The slack in the shared memory, of about 100 kB, is room for more than is configured.
	s := private(t, testdb.Postgres, "-c", "max_locks_per_transaction=10", "-c", "max_connections=20", "-c", "max_prepared_transactions=0", "-c", "max_wal_senders=0")
	db := openPG(t, s)
	k, b := pgLocker(), pgadvisory.New()
	full, c := conn(t, db), conn(t, db)
	pid, fullPID := pgPID(t, c), pgPID(t, full)
	watcher := conn(t, db) // nobody new gets in any more
	pgHas(t, watcher, pid)
	third := conn(t, db)
	pgPID(t, third)
	look := acquire(t, k, c, "look")
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "max_locks_per_transaction") {
			t.Errorf("%s: got %v, want what to raise", what, err)
		}
		wantNotErr(t, what, err, sqllock.ErrBusy, sqllock.ErrSessionGone)
	}
	// Until nothing more is to be had, by groups, which take all or none: one that fails
	// halfway costs its session.
	group := conn(t, db)
	groupPID := pgPID(t, group)
	held := 0
	for i := 0; ; i++ {
		reqs := make([]sqllock.Request, 16)
		for j := range reqs {
			reqs[j] = request(fmt.Sprintf("group-%d-%d", i, j))
		}
		grants, err := b.AcquireAll(t.Context(), group, reqs)
		if err == nil {
			held += len(grants)
			continue
		}
		if !strings.Contains(err.Error(), "max_locks_per_transaction") {
			t.Errorf("a group: got %v, want what to raise", err)
		}
		if n := pgHas(t, watcher, groupPID); !errors.Is(err, sqllock.ErrSessionGone) && n != held {
			t.Errorf("%d locks are there, and %d were granted", n, held)
		}
		break
	}
	t.Logf("%d locks fit by sixteens", held)
	_ = group.Raw(func(dc any) error { return dc.(driver.Conn).Close() }) //nolint:forcetypeassert,errcheck // as the core does it
	waitFor(t, "the session to end", func() bool { return pgHas(t, watcher, groupPID) == 0 })
	held = 0
	var last error
	for i := 0; ; i++ { // and one by one
		_, err := k.TryLock(t.Context(), full, fmt.Sprintf("single-%d", i))
		if err != nil {
			last = err
			break
		}
		held++
	}
	refused("TryLock", last)
	if n := pgHas(t, watcher, fullPID); n != held {
		t.Errorf("%d locks are there, and %d were granted", n, held)
	}
	t.Logf("%d locks fit", held)
	_, err := k.Lock(t.Context(), c, "by Lock")
	refused("Lock", err)
	if n := pgHas(t, watcher, pid); n != 1 {
		t.Errorf("the session has %d locks, want its first", n)
	}
	if err := look.Check(t.Context()); err != nil {
		t.Errorf("the lock that was there: %v", err)
	}
	tx, err := third.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refused("LockTx", k.LockTx(t.Context(), tx, "by LockTx"))
	_ = tx.Rollback()
	// In the caller's transaction the error of a try fails the transaction. Whether the
	// session can go on or not, nothing is left held.
	tx, err = c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = k.TryLock(t.Context(), c, "in a transaction"); err == nil || !strings.Contains(err.Error(), "max_locks_per_transaction") {
		t.Errorf("TryLock in a transaction: %v", err)
	}
	_ = tx.Rollback()
	if n := pgHas(t, watcher, pid); n > 1 {
		t.Errorf("the session has %d locks, want its first at most", n)
	}
}

// TestPGOthersLocks: what has the same number in another database, or in the other space
// of numbers, is another lock.
func TestPGOthersLocks(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db, elsewhere := pgDatabase(t, s), pgDatabase(t, s)
	k, b := pgLocker(), pgadvisory.New()
	there := acquire(t, k, conn(t, elsewhere), "job")
	raw := conn(t, db)
	do(t, raw, "SELECT pg_advisory_lock(("+pgNumber+">>32)::int,(("+pgNumber+"&4294967295)-(("+pgNumber+"&2147483648)<<1))::int)", "job")
	_, err := k.Holder(t.Context(), db, "job")
	wantErr(t, "Holder", err, sqllock.ErrNotHeld)
	_, err = k.Break(t.Context(), db, "job")
	wantErr(t, "Break", err, sqllock.ErrNotHeld)
	if held, err := b.Watch(t.Context(), db, []sqllock.Grant{there.Grant()}); err != nil || held[0] {
		t.Errorf("Watch in another database: %v, %v", held, err)
	}
	// A session with the other kind of lock, whose own is lost, can have it again.
	l := acquire(t, k, raw, "job")
	do(t, raw, "SELECT pg_advisory_unlock("+pgNumber+"),pg_advisory_unlock("+pgNumber+")", "job")
	again := acquire(t, k, raw, "job")
	wantErr(t, "Check", l.Check(t.Context()), sqllock.ErrLost)
	release(t, again)
	if n := pgHas(t, db, pgPID(t, raw)); n != 1 {
		t.Errorf("%d locks are left, want the application's", n)
	}
	if err := there.Check(t.Context()); err != nil {
		t.Error(err)
	}
	release(t, there)
}

// TestPGStandby: a server in recovery, whose locks nobody on the primary sees.
func TestPGStandby(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.Postgres)
	signal := filepath.Join(s.Data(), "standby.signal")
	if _, err := os.Stat(s.Data()); err != nil {
		t.Skip("the data folder of the server is not at hand")
	}
	if err := os.WriteFile(signal, nil, 0o644); err != nil { //nolint:gosec // the server is another user
		t.Fatal(err)
	}
	if err := s.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	db := openPG(t, s)
	if !ask[bool](t, db, "SELECT pg_is_in_recovery()") {
		t.Fatal("the server is no standby")
	}
	refused := func(what string, err error) {
		t.Helper()
		wantErr(t, what, err, sqllock.ErrUnsupported)
		if err != nil && (!strings.Contains(err.Error(), "standby") || !strings.Contains(err.Error(), "pgadvisory.Allow(pgadvisory.ReadOnly)")) {
			t.Errorf("%s: the error does not say what is wrong: %v", what, err)
		}
	}
	c := conn(t, db)
	pid := pgPID(t, c)
	_, err := pgLocker().TryLock(t.Context(), c, "job")
	refused("TryLock", err)
	_, err = pgLocker().Lock(t.Context(), c, "job")
	refused("Lock", err)
	_, err = pgadvisory.New().AcquireAll(t.Context(), c, []sqllock.Request{request("job")})
	refused("AcquireAll", err)
	tx, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refused("TryLockTx", pgLocker().TryLockTx(t.Context(), tx, "job"))
	_ = tx.Rollback()
	pgSame(t, c, pid)
	if n := pgHas(t, db, pid); n != 0 {
		t.Errorf("%d locks are left", n)
	}
	k := sqllock.New(pgadvisory.New(pgadvisory.Allow(pgadvisory.ReadOnly)))
	release(t, acquire(t, k, c, "job"))
	// What another backend allows is not allowed here.
	_, err = pgLocker().TryLock(t.Context(), c, "job")
	refused("TryLock after another backend's", err)
	if tx, err = c.BeginTx(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := k.LockTx(t.Context(), tx, "job"); err != nil {
		t.Errorf("LockTx where it is allowed: %v", err)
	}
	_ = tx.Rollback()
}

// TestPGTx: a lock of a transaction, beside those of sessions.
func TestPGTx(t *testing.T) {
	t.Parallel()
	s := postgres(t) // in other modes of the driver: TestBouncerTx
	db := pgDatabase(t, s)
	do(t, db, "CREATE TABLE work (id int)")
	testPGTx(t, db, db)
}

// testPGTx has transactions of db, and sessions of direct, which may be another way to
// the same database, with a table called work.
func testPGTx(t *testing.T, db, direct *sql.DB) {
	t.Helper()
	k := pgLocker()
	begin := func() *sql.Tx {
		t.Helper()
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	session := conn(t, direct)
	free := func(what string) {
		t.Helper()
		release(t, acquire(t, k, session, "job"))
		if n := ask[int](t, direct, "SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND database=(SELECT oid FROM pg_database WHERE datname=current_database())"); n != 0 {
			t.Errorf("%s: %d locks are left", what, n)
		}
	}
	busy := func(what string, err error) {
		t.Helper()
		wantErr(t, what, err, sqllock.ErrBusy)
		wantNotErr(t, what, err, sqllock.ErrSessionGone, sqllock.ErrHeld)
	}

	// It ends with the transaction, by commit, by rollback, and excludes until then.
	for _, end := range []func(*sql.Tx) error{(*sql.Tx).Commit, (*sql.Tx).Rollback} {
		for _, lock := range []func(context.Context, *sql.Tx, string, ...sqllock.LockOption) error{k.LockTx, k.TryLockTx} {
			tx := begin()
			if err := lock(t.Context(), tx, "job"); err != nil {
				t.Fatal(err)
			}
			if err := lock(t.Context(), tx, "job"); err != nil { // counted, and ends with the transaction all the same
				t.Errorf("again: %v", err)
			}
			if err := lock(t.Context(), tx, "another"); err != nil {
				t.Errorf("another name: %v", err)
			}
			if err := sqllock.New(pgadvisory.New(), sqllock.WithNamespace("elsewhere")).TryLockTx(t.Context(), tx, "job"); err != nil {
				t.Errorf("another namespace: %v", err)
			}
			_, err := k.TryLock(t.Context(), session, "job")
			busy("a session", err)
			second := begin()
			busy("another transaction", k.TryLockTx(t.Context(), second, "job"))
			busy("another transaction", k.TryLockTx(t.Context(), second, "another"))
			busy("a shared one", k.TryLockTx(t.Context(), second, "job", sqllock.Shared()))
			if err := second.Commit(); err != nil {
				t.Error(err)
			}
			if err := end(tx); err != nil {
				t.Error(err)
			}
			free("after the end")
			wantErr(t, "after the end", k.LockTx(t.Context(), tx, "job"), sql.ErrTxDone)
		}
	}

	// Shared.
	a, b := begin(), begin()
	for _, tx := range []*sql.Tx{a, b} {
		if err := k.LockTx(t.Context(), tx, "job", sqllock.Shared()); err != nil {
			t.Error(err)
		}
	}
	reader := acquire(t, k, session, "job", sqllock.Shared())
	busy("alone beside those who share", k.TryLockTx(t.Context(), b, "job"))
	release(t, reader)
	if err := errors.Join(a.Commit(), b.Rollback()); err != nil {
		t.Error(err)
	}
	free("shared")

	// Refused, it leaves the transaction as it was, with its settings.
	holder := acquire(t, k, session, "job")
	tx := begin()
	do(t, tx, "SET LOCAL lock_timeout='1234ms'")
	do(t, tx, "INSERT INTO work VALUES (1)")
	before := pgSettings(t, tx)
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error, 1)
	for what, wait := range map[string]func() error{
		"busy": func() error { return k.TryLockTx(t.Context(), tx, "job") },
		"a deadline": func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
			defer cancel()
			err := k.LockTx(ctx, tx, "job")
			wantErr(t, "a deadline", err, context.DeadlineExceeded)
			return err
		},
		"a deadline after more than a slice": func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 1300*time.Millisecond)
			defer cancel()
			err := k.LockTx(ctx, tx, "job")
			wantErr(t, "a deadline after more than a slice", err, context.DeadlineExceeded)
			return err
		},
		"a cancellation": func() error {
			go func() { cancelled <- k.LockTx(ctx, tx, "job") }()
			pgQueue(t, direct, "job", 1)
			cancel()
			err := <-cancelled
			wantErr(t, "a cancellation", err, context.Canceled)
			return err
		},
	} {
		busy(what, wait())
		do(t, tx, "INSERT INTO work VALUES (1)")
		if after := pgSettings(t, tx); after != before {
			t.Errorf("%s: the settings were %s and are %s", what, before, after)
		}
	}
	// Granted, too.
	granted := make(chan error, 1)
	go func() { granted <- k.LockTx(context.Background(), tx, "job") }()
	pgQueue(t, direct, "job", 1)
	release(t, holder)
	if err := <-granted; err != nil {
		t.Fatal(err)
	}
	_, err := k.TryLock(t.Context(), session, "job")
	busy("a session", err)
	if after := pgSettings(t, tx); after != before {
		t.Errorf("granted: the settings were %s and are %s", before, after)
	}
	// What comes after it and is taken back to a savepoint of the caller's is not the lock.
	do(t, tx, "SAVEPOINT mine")
	do(t, tx, "ROLLBACK TO SAVEPOINT mine")
	_, err = k.TryLock(t.Context(), session, "job")
	busy("a session", err)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if n := ask[int](t, direct, "SELECT count(*) FROM work"); n != 5 {
		t.Errorf("%d rows were committed, want 5", n)
	}
	free("at the end")
	// Nor has any session kept a setting, of which a pooler would make others' settings.
	var after []*sql.Tx
	for range testdb.BouncerPool {
		tx := begin()
		after = append(after, tx)
		if timeout := ask[string](t, tx, "SHOW lock_timeout"); timeout != "0" {
			t.Errorf("a session has a lock_timeout of %s", timeout)
		}
	}
	for _, tx := range after {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// TestPGTxLost: the lock ends with the connection, too, and not before what was done.
func TestPGTxLost(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	do(t, db, "CREATE TABLE work (id int)")
	k := pgLocker()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.LockTx(t.Context(), tx, "job"); err != nil {
		t.Fatal(err)
	}
	do(t, tx, "INSERT INTO work VALUES (1)")
	pid := pgPID(t, tx)
	next := background(t.Context(), k, conn(t, db), "job")
	pgQueue(t, db, "job", 1)
	if err := pgKill(t.Context(), db, pid); err != nil {
		t.Fatal(err)
	}
	l := (<-next).mustHold(t)
	if err := tx.Commit(); err == nil {
		t.Error("the commit of a transaction that is gone succeeded")
	}
	if n := ask[int](t, l.Conn(), "SELECT count(*) FROM work"); n != 0 {
		t.Errorf("%d rows are there", n)
	}
	release(t, l)
	// While it waits.
	l = acquire(t, k, conn(t, db), "job")
	if tx, err = db.BeginTx(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	pid = pgPID(t, tx)
	waited := make(chan error, 1)
	go func() { waited <- k.LockTx(context.Background(), tx, "job") }()
	pgQueue(t, db, "job", 1)
	if err := pgKill(t.Context(), db, pid); err != nil {
		t.Fatal(err)
	}
	err = <-waited
	wantErr(t, "LockTx", err, sqllock.ErrSessionGone)
	wantNotErr(t, "LockTx", err, sqllock.ErrBusy)
	_ = tx.Rollback()
	release(t, l)
}

// TestPGTxErrorIsNotNotHeld has the grant of a transaction's lock and the end of its wait
// come at the same moment.
func TestPGTxErrorIsNotNotHeld(t *testing.T) {
	t.Parallel()
	const rounds = 100
	s := postgres(t)
	for _, how := range []string{"deadline", "pg_cancel_backend"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			db := openPG(t, s)
			k, name := pgLocker(), lockName("collide")
			key, err := sqllock.Key("", name)
			if err != nil {
				t.Fatal(err)
			}
			holder, waiter := conn(t, db), conn(t, db)
			pid := pgPID(t, waiter)
			granted, failed := 0, 0
			var ahead time.Duration
			for i := range rounds {
				do(t, holder, "SELECT pg_advisory_lock("+pgNumber+")", key)
				tx, err := waiter.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				if how == "deadline" {
					ctx, cancel = context.WithTimeout(t.Context(), 8*time.Millisecond)
				}
				done := make(chan error, 1)
				go func() { done <- k.LockTx(ctx, tx, name) }()
				if how == "deadline" {
					end, _ := ctx.Deadline()
					time.Sleep(time.Until(end) - ahead)
					do(t, holder, "SELECT pg_advisory_unlock("+pgNumber+")", key)
				} else {
					pgQueue(t, db, name, 1)
					if i%2 == 0 {
						do(t, holder, "SELECT pg_advisory_unlock("+pgNumber+"),pg_cancel_backend($2)", key, pid)
					} else {
						do(t, holder, "SELECT pg_cancel_backend($2),pg_advisory_unlock("+pgNumber+")", key, pid)
					}
				}
				err = <-done
				cancel()
				has := pgHas(t, db, pid)
				switch {
				case err == nil && has == 1:
					granted++
					ahead -= time.Duration(rand.Int64N(int64(200 * time.Microsecond)))
				case err != nil && has == 0:
					failed++
					ahead = min(ahead+time.Duration(rand.Int64N(int64(200*time.Microsecond))), 7*time.Millisecond)
					wantNotErr(t, fmt.Sprintf("round %d", i), err, sqllock.ErrSessionGone)
				default:
					t.Fatalf("round %d: %v, and the transaction has %d locks", i, err, has)
				}
				if err := tx.Commit(); err != nil {
					t.Fatalf("round %d: %v", i, err)
				}
			}
			t.Logf("%d rounds: %d granted, %d ended", rounds, granted, failed)
			if granted == 0 && how == "deadline" || failed == 0 {
				t.Errorf("the race was no race: %d granted, %d ended", granted, failed)
			}
		})
	}
}

// TestPGWatchKnowsSessions: a grant is held by the session that it was granted to, in its
// mode, and not by a later session with the same process id.
func TestPGWatchKnowsSessions(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgDatabase(t, s)
	b := pgadvisory.New()
	grant := func(c *sql.Conn, key string, shared bool) sqllock.Grant {
		t.Helper()
		req := request(key)
		req.Shared = shared
		g, err := b.Acquire(t.Context(), c, req)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	first, second, third := conn(t, db), conn(t, db), conn(t, db)
	job, read, readToo := grant(first, "job", false), grant(second, "read", true), grant(third, "read", true)
	of := func(g sqllock.Grant, session int64) sqllock.Grant {
		g.Session = session
		return g
	}
	free := job
	free.Key = "free"
	once := grant(first, "mode", false)
	if err := b.Release(t.Context(), first, once); err != nil {
		t.Fatal(err)
	}
	now := grant(first, "mode", true)
	grants := []sqllock.Grant{
		job, of(job, read.Session), read, readToo,
		of(read, readToo.Session), // as if the second session had ended, and the third had its process id
		free, once, now,
	}
	want := []bool{true, false, true, true, false, false, false, true}
	var many []sqllock.Grant
	var wanted []bool
	for range 150 { // more than one statement's worth
		many, wanted = append(many, grants...), append(wanted, want...)
	}
	held, err := b.Watch(t.Context(), db, many)
	if err != nil || !slices.Equal(held, wanted) {
		t.Errorf("got %v…, %v; want %v…", held[:min(len(want), len(held))], err, want)
	}
	// A role that may not see when a session began knows it by its id.
	want[4] = true
	if held, err := b.Watch(t.Context(), pgRole(t, s, db, ""), grants); err != nil || !slices.Equal(held, want) {
		t.Errorf("a stranger: got %v, %v; want %v", held, err, want)
	}
	if held, err := b.Watch(t.Context(), db, nil); err != nil || len(held) != 0 {
		t.Errorf("Watch of nothing: %v, %v", held, err)
	}
}
