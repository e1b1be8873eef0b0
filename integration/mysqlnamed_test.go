package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/locktest"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// countingConn counts the packets that the client sends: the driver writes each
// command in one piece.
type countingConn struct {
	net.Conn

	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// counted opens a pool whose packets are counted.
func counted(tb testing.TB, s *testdb.Server, change func(*mysql.Config)) (*sql.DB, *atomic.Int64) {
	tb.Helper()
	writes := new(atomic.Int64)
	db := open(tb, s, change, func(c *mysql.Config) {
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return countingConn{conn, writes}, err
		}
	})
	return db, writes
}

// questions is the server's own count of the statements of a session.
func questions(t *testing.T, c *sql.Conn) (n int) {
	t.Helper()
	var name string
	if err := c.QueryRowContext(t.Context(), "SHOW SESSION STATUS LIKE 'Questions'").Scan(&name, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestOneRoundTrip counts what acquire, check and release send, under DSNs that
// change how the driver sends statements.
func TestOneRoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, dsn := range []struct {
			name   string
			change func(*mysql.Config)
		}{
			{"default", func(*mysql.Config) {}},
			{"interpolateParams", func(c *mysql.Config) { c.InterpolateParams = true }},
			{"clientFoundRows", func(c *mysql.Config) { c.ClientFoundRows = true }},
			{"multiStatements", func(c *mysql.Config) { c.MultiStatements = true }},
			{"parseTime", func(c *mysql.Config) { c.ParseTime = true }},
			{"collation", func(c *mysql.Config) { c.Collation = "latin1_swedish_ci" }},
			{"ANSI_QUOTES", func(c *mysql.Config) {
				c.Params = map[string]string{"sql_mode": "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'"}
			}},
			{"gbk", func(c *mysql.Config) { c.Collation = "gbk_chinese_ci" }},
			{"compress", func(c *mysql.Config) {
				if err := c.Apply(mysql.EnableCompression(true)); err != nil {
					t.Error(err)
				}
			}},
			{"TLS", func(c *mysql.Config) { c.TLSConfig = "skip-verify" }},
			{"autocommit off", func(c *mysql.Config) { c.Params = map[string]string{"autocommit": "0"} }},
		} {
			t.Run(dsn.name, func(t *testing.T) {
				if dsn.name == "TLS" && (s.Kind == testdb.MariaDB || !s.Private()) {
					t.Skip("needs a server with a certificate, as MySQL makes one for itself and MariaDB 10.11 does not")
				}
				db, writes := counted(t, s, dsn.change)
				c := conn(t, db)
				k := sqllock.New(mysqlnamed.New())
				name := t.Name() + ` it's "quoted" \ and %`
				warm, err := k.TryLock(t.Context(), c, name) // the look at the server
				if err != nil {
					t.Fatal(err)
				}
				if err := warm.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
				asked, sent := questions(t, c), writes.Load()
				var l *sqllock.Lock
				for _, step := range []struct {
					name string
					do   func() error
				}{
					{"TryLock", func() (err error) { l, err = k.TryLock(t.Context(), c, name); return err }},
					{"Check", func() error { return l.Check(t.Context()) }},
					{"re-entry", func() error {
						if _, err := k.TryLock(t.Context(), c, name); !errors.Is(err, sqllock.ErrHeld) {
							return fmt.Errorf("got %w, want ErrHeld", err)
						}
						return nil
					}},
					{"Release", func() error { return l.Release(t.Context()) }},
					{"Lock", func() (err error) { l, err = k.Lock(t.Context(), c, name); return err }},
					{"Release after Lock", func() error { return l.Release(t.Context()) }},
				} {
					if err := step.do(); err != nil {
						t.Fatalf("%s: %v", step.name, err)
					}
					now := writes.Load()
					if now-sent != 1 {
						t.Errorf("%s sent %d packets, want 1", step.name, now-sent)
					}
					sent = now
				}
				if got := questions(t, c) - asked - 1; got != 6 {
					t.Errorf("the server counted %d questions for 6 steps", got)
				}
			})
		}
	})
}

// TestDeadlineIsAWaitOnTheServer: a deadline with a fraction of a second is one
// try and one wait; a longer one takes a statement a second.
func TestDeadlineIsAWaitOnTheServer(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, writes := counted(t, s, func(*mysql.Config) {})
		holder, waiter := conn(t, db), conn(t, db)
		k := sqllock.New(mysqlnamed.New())
		if _, err := k.TryLock(t.Context(), holder, t.Name()); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			deadline time.Duration
			packets  int64
		}{
			{300 * time.Millisecond, 3}, // try, wait, and the release after a wait that was cut short
			{1300 * time.Millisecond, 5},
		} {
			sent := writes.Load()
			ctx, cancel := context.WithTimeout(t.Context(), test.deadline)
			_, err := k.Lock(ctx, waiter, t.Name())
			cancel()
			if !errors.Is(err, sqllock.ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Lock with %v: %v", test.deadline, err)
			}
			if got := writes.Load() - sent; got > test.packets {
				t.Errorf("Lock with %v sent %d packets, want at most %d", test.deadline, got, test.packets)
			}
		}
	})
}

// TestLimitOnExecutionTime: a limit that the session has does not end a wait.
func TestLimitOnExecutionTime(t *testing.T) {
	t.Parallel()
	limits := map[testdb.Kind]string{
		testdb.MySQL:   "SET SESSION max_execution_time=50",
		testdb.MariaDB: "SET SESSION max_statement_time=0.05",
	}
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		holder, waiter := conn(t, db), conn(t, db)
		k := sqllock.New(mysqlnamed.New())
		l, err := k.TryLock(t.Context(), holder, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := waiter.ExecContext(t.Context(), limits[s.Kind]); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		if _, err := k.Lock(ctx, waiter, t.Name()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock: got %v, want DeadlineExceeded", err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// waitFor polls until is.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func waiters(t *testing.T, db *sql.DB, name string, want int) {
	t.Helper()
	waitFor(t, "sessions that wait", func() bool {
		n, err := mysqlWaiters(t.Context(), db, name)
		if err != nil {
			t.Fatal(err)
		}
		return n == want
	})
}

// TestKillQueryByAnOperator ends a wait from outside: the session stays, and
// the error is neither a timeout nor a loss.
func TestKillQueryByAnOperator(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		holder, waiter := conn(t, db), conn(t, db)
		k := sqllock.New(mysqlnamed.New())
		if _, err := k.TryLock(t.Context(), holder, t.Name()); err != nil {
			t.Fatal(err)
		}
		var id int64
		if err := waiter.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
			t.Fatal(err)
		}
		failed := make(chan error)
		go func() {
			_, err := k.Lock(context.Background(), waiter, t.Name())
			failed <- err
		}()
		waiters(t, db, t.Name(), 1)
		if _, err := db.ExecContext(t.Context(), fmt.Sprintf("KILL QUERY %d", id)); err != nil {
			t.Fatal(err)
		}
		err := <-failed
		if !errors.Is(err, sqllock.ErrInterrupted) || errors.Is(err, sqllock.ErrBusy) || errors.Is(err, sqllock.ErrSessionGone) {
			t.Errorf("got %v, want ErrInterrupted", err)
		}
		var same int64
		if err := waiter.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&same); err != nil || same != id {
			t.Errorf("the session was %d and is %d, %v", id, same, err)
		}
	})
}

// TestDeadlock: two sessions that wait for each other. One of them is told at
// once, keeps its session and what it holds, and its transaction goes on.
func TestDeadlock(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		k := sqllock.New(mysqlnamed.New())
		type side struct {
			conn *sql.Conn
			lock *sqllock.Lock
			next string
		}
		sides := [2]side{{conn: conn(t, db), next: t.Name() + "-1"}, {conn: conn(t, db), next: t.Name() + "-0"}}
		for i := range sides {
			var err error
			if sides[i].lock, err = k.TryLock(t.Context(), sides[i].conn, fmt.Sprintf("%s-%d", t.Name(), i)); err != nil {
				t.Fatal(err)
			}
		}
		type outcome struct {
			side
			next *sqllock.Lock
			err  error
		}
		outcomes := make(chan outcome)
		for _, sd := range sides {
			go func() {
				l, err := k.Lock(context.Background(), sd.conn, sd.next)
				outcomes <- outcome{sd, l, err}
			}()
		}
		victim := <-outcomes
		if !errors.Is(victim.err, sqllock.ErrDeadlock) || errors.Is(victim.err, sqllock.ErrSessionGone) {
			t.Fatalf("got %v, want ErrDeadlock", victim.err)
		}
		if err := victim.lock.Check(t.Context()); err != nil {
			t.Errorf("the victim's own lock: %v", err)
		}
		if err := victim.lock.Release(t.Context()); err != nil {
			t.Errorf("the victim's release: %v", err)
		}
		winner := <-outcomes
		if winner.err != nil {
			t.Fatalf("the other side: %v", winner.err)
		}
		if err := errors.Join(winner.next.Release(t.Context()), winner.lock.Release(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// TestWaitTimeout: the server ends an idle holder. The watch of Do keeps a
// session from being idle for that long.
func TestWaitTimeout(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s, func(c *mysql.Config) { c.Params = map[string]string{"wait_timeout": "1"} })
		watcher := open(t, s)
		gone := func(l *sqllock.Lock) func() bool {
			return func() bool {
				var n int
				err := watcher.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM information_schema.processlist WHERE id="+
					fmt.Sprint(l.Grant().Session)).Scan(&n)
				return err == nil && n == 0
			}
		}
		k := sqllock.New(mysqlnamed.New())
		for _, call := range []func(*sqllock.Lock) error{
			func(l *sqllock.Lock) error { return l.Check(t.Context()) },
			func(l *sqllock.Lock) error { return l.Release(t.Context()) },
		} {
			l, err := k.TryLock(t.Context(), conn(t, db), t.Name())
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the server to end the idle session", gone(l))
			if err := call(l); !errors.Is(err, sqllock.ErrLost) {
				t.Errorf("got %v, want ErrLost", err)
			}
		}
		unwatched := sqllock.New(mysqlnamed.New(), sqllock.WithCheckInterval(0))
		err := unwatched.Do(t.Context(), db, t.Name(), func(_ context.Context, l *sqllock.Lock) error {
			waitFor(t, "the server to end the idle session", gone(l))
			return nil
		})
		if !errors.Is(err, sqllock.ErrLost) {
			t.Errorf("Do without a watch: got %v, want ErrLost", err)
		}
		watched := sqllock.New(mysqlnamed.New(), sqllock.WithCheckInterval(100*time.Millisecond))
		err = watched.Do(t.Context(), db, t.Name(), func(ctx context.Context, _ *sqllock.Lock) error {
			// Another session that idles from now on is ended; this one is not.
			idle, err := k.TryLock(ctx, conn(t, db), t.Name()+"-idle")
			if err != nil {
				return err
			}
			waitFor(t, "the server to end the idle session", gone(idle))
			return ctx.Err()
		})
		if err != nil {
			t.Errorf("Do with a watch: %v", err)
		}
	})
}

func sessionID(t *testing.T, c *sql.Conn) (id int64) {
	t.Helper()
	if err := c.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestControlPoolOfAnotherServer: a KILL QUERY there would hit a stranger.
func TestControlPoolOfAnotherServer(t *testing.T) {
	t.Parallel()
	// Young servers, on which connection ids are small and near each other.
	mine, other := private(t, testdb.MySQL), private(t, testdb.MariaDB)
	db, control := open(t, mine), open(t, other)
	holder, waiter := conn(t, db), conn(t, db)
	k := sqllock.New(mysqlnamed.New(mysqlnamed.WithControl(control)))
	if _, err := k.TryLock(t.Context(), holder, t.Name()); err != nil {
		t.Fatal(err)
	}
	// A stranger with the id of the waiter, in the middle of a statement.
	strangers := open(t, other)
	id, stranger := sessionID(t, waiter), conn(t, strangers)
	for theirs := sessionID(t, stranger); theirs != id; {
		// Ids count up on both servers: the one that is behind catches up.
		if theirs < id {
			stranger = conn(t, strangers)
			theirs = sessionID(t, stranger)
		} else {
			waiter = conn(t, db)
			id = sessionID(t, waiter)
		}
	}
	slept := make(chan error, 1)
	go func() {
		// SLEEP returns 1, and no error, if it was interrupted.
		var interrupted int
		err := stranger.QueryRowContext(context.Background(), "SELECT SLEEP(3)").Scan(&interrupted)
		if interrupted != 0 {
			err = errors.New("it was interrupted")
		}
		slept <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := k.Lock(ctx, waiter, t.Name())
		failed <- err
	}()
	waiters(t, db, t.Name(), 1)
	cancel()
	err := <-failed
	if !errors.Is(err, sqllock.ErrSessionGone) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "same server") {
		t.Errorf("got %v, want ErrSessionGone, context.Canceled, and the reason", err)
	}
	if err := <-slept; err != nil {
		t.Errorf("the stranger's statement: %v", err)
	}
}

// cancelledBesideBusyControl has a wait cancelled while its control pool has no
// connection to spare, and returns its error.
func cancelledBesideBusyControl(t *testing.T, s *testdb.Server, afterCancel func(holder *sqllock.Lock)) error {
	t.Helper()
	db, control := open(t, s), open(t, s)
	control.SetMaxOpenConns(1)
	conn(t, control)
	holder, waiter := conn(t, db), conn(t, db)
	k := sqllock.New(mysqlnamed.New(mysqlnamed.WithControl(control)))
	l, err := k.TryLock(t.Context(), holder, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := k.Lock(ctx, waiter, t.Name())
		failed <- err
	}()
	waiters(t, db, t.Name(), 1)
	cancel()
	afterCancel(l)
	err = <-failed
	waiters(t, db, t.Name(), 0)
	return err
}

// TestControlPoolExhausted: a control pool without a connection to spare costs
// the session, and blocks nobody.
func TestControlPoolExhausted(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		var holder *sqllock.Lock
		err := cancelledBesideBusyControl(t, s, func(l *sqllock.Lock) { holder = l })
		if !errors.Is(err, sqllock.ErrSessionGone) || !errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want ErrSessionGone and context.Canceled", err)
		}
		if !strings.Contains(err.Error(), "no connection to spare") {
			t.Errorf("the error should say why: %v", err)
		}
		if err := holder.Check(t.Context()); err != nil {
			t.Errorf("the holder: %v", err)
		}
	})
}

// TestControlPoolNotNeeded: a wait that ends by itself needs no KILL, and does not
// wait for a control pool that is busy.
func TestControlPoolNotNeeded(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		err := cancelledBesideBusyControl(t, s, func(l *sqllock.Lock) {
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
		if !errors.Is(err, context.Canceled) || errors.Is(err, sqllock.ErrSessionGone) {
			t.Errorf("got %v, want context.Canceled and a session that goes on", err)
		}
		if _, err := sqllock.New(mysqlnamed.New()).Holder(t.Context(), open(t, s), t.Name()); !errors.Is(err, sqllock.ErrNotHeld) {
			t.Errorf("Holder: %v, want ErrNotHeld", err)
		}
	})
}

// TestKillSparesStatementsThatQueue: a statement of the caller's that waits for
// the conn while a wait on it is ended by KILL QUERY is not hit.
func TestKillSparesStatementsThatQueue(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		holder, waiter := conn(t, db), conn(t, db)
		k := sqllock.New(mysqlnamed.New(mysqlnamed.WithControl(open(t, s))))
		for range 300 {
			l, err := k.TryLock(t.Context(), holder, t.Name())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 2)
			go func() {
				l, err := k.Lock(ctx, waiter, t.Name())
				if err == nil {
					err = l.Release(context.Background())
				} else if errors.Is(err, context.Canceled) && !errors.Is(err, sqllock.ErrSessionGone) {
					err = nil
				}
				ended <- err
			}()
			waiters(t, db, t.Name(), 1)
			go func() {
				var interrupted int
				err := waiter.QueryRowContext(context.Background(), "SELECT SLEEP(0.002)").Scan(&interrupted)
				if interrupted != 0 {
					err = errors.New("the caller's statement was interrupted")
				}
				ended <- err
			}()
			cancel()
			time.Sleep(rand.N(400 * time.Microsecond)) // lets the release meet the KILL at another moment
			if err := l.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// TestStatementInFlight: a call on a lock waits for the caller's own statement on
// the conn, however long that takes, and is right afterwards.
func TestStatementInFlight(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		k := sqllock.New(mysqlnamed.New())
		for _, call := range []func(*sqllock.Lock) error{
			func(l *sqllock.Lock) error { return l.Check(t.Context()) },
			func(l *sqllock.Lock) error { return l.Release(t.Context()) },
		} {
			c := conn(t, db)
			l, err := k.TryLock(t.Context(), c, t.Name())
			if err != nil {
				t.Fatal(err)
			}
			slept := make(chan error, 1)
			go func() {
				_, err := c.ExecContext(context.Background(), "DO SLEEP(6)") // longer than a statement of ours may take
				slept <- err
			}()
			waitFor(t, "the statement to run", func() bool {
				var n int
				err := db.QueryRowContext(t.Context(), fmt.Sprintf(
					"SELECT COUNT(*) FROM information_schema.processlist WHERE id=%d AND info LIKE 'DO SLEEP%%'", l.Grant().Session)).Scan(&n)
				return err == nil && n == 1
			})
			if err := call(l); err != nil {
				t.Errorf("the call: %v", err)
			}
			if err := <-slept; err != nil {
				t.Errorf("the statement: %v", err)
			}
			if err := l.Release(t.Context()); err != nil && !errors.Is(err, sqllock.ErrNotHeld) {
				t.Error(err)
			}
		}
	})
}

// TestHolderLeavesTheLockAlone: over the conn of a lock, with a ctx that ends.
func TestHolderLeavesTheLockAlone(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		c := conn(t, db)
		k := sqllock.New(mysqlnamed.New())
		l, err := k.TryLock(t.Context(), c, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), rand.N(300*time.Microsecond))
			h, err := k.Holder(ctx, c, t.Name())
			cancel()
			if err != nil && !errors.Is(err, context.DeadlineExceeded) || err == nil && h.Session != l.Grant().Session {
				t.Fatalf("Holder: %+v, %v", h, err)
			}
		}
		tx, err := c.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if h, err := k.Holder(ctx, tx, t.Name()); err != nil || h.Session != l.Grant().Session {
			t.Errorf("Holder over a transaction: %+v, %v", h, err)
		}
		cancel()
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Errorf("Release: %v", err)
		}
	})
}

// TestTwoLockersOnOneSession: a release never frees the newer grant of another
// Locker on the same session.
func TestTwoLockersOnOneSession(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		c := conn(t, open(t, s))
		a, b := sqllock.New(mysqlnamed.New()), sqllock.New(mysqlnamed.New())
		first, err := a.TryLock(t.Context(), c, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ExecContext(t.Context(), "DO RELEASE_ALL_LOCKS()"); err != nil {
			t.Fatal(err)
		}
		second, err := b.TryLock(t.Context(), c, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Release(t.Context()); !errors.Is(err, sqllock.ErrLost) {
			t.Errorf("the release of the first: %v, want ErrLost", err)
		}
		if err := second.Check(t.Context()); err != nil {
			t.Errorf("the second: %v", err)
		}
	})
}

// TestReadOnlyServer: a server that becomes a replica is refused from then on,
// on sessions that have locked there before, too.
func TestReadOnlyServer(t *testing.T) {
	t.Parallel()
	for _, kind := range testdb.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s := private(t, kind)
			db := open(t, s)
			c := conn(t, db)
			k := sqllock.New(mysqlnamed.New())
			held, err := k.TryLock(t.Context(), c, "held")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.ExecContext(t.Context(), "SET GLOBAL read_only=1"); err != nil {
				t.Fatal(err)
			}
			_, err = k.TryLock(t.Context(), c, "invoices")
			if !errors.Is(err, sqllock.ErrUnsupported) || !strings.Contains(err.Error(), "read-only") {
				t.Errorf("got %v, want ErrUnsupported and the reason", err)
			}
			if _, err := k.Holder(t.Context(), db, "invoices"); !errors.Is(err, sqllock.ErrNotHeld) {
				t.Errorf("Holder of what was refused: %v, want ErrNotHeld", err)
			}
			if err := held.Release(t.Context()); err != nil {
				t.Errorf("the release of what was held before: %v", err)
			}
			allowed := sqllock.New(mysqlnamed.New(mysqlnamed.Allow(mysqlnamed.ReadOnly)))
			l, err := allowed.TryLock(t.Context(), c, "invoices")
			if err != nil {
				t.Fatalf("with Allow(ReadOnly): %v", err)
			}
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGaleraNode: MariaDB with replication by wsrep switched on, which is how
// every node of a cluster runs.
func TestGaleraNode(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.MariaDB, "--wsrep-on=ON")
	db := open(t, s)
	_, err := sqllock.New(mysqlnamed.New()).TryLock(t.Context(), conn(t, db), "invoices")
	if !errors.Is(err, sqllock.ErrUnsupported) || !strings.Contains(err.Error(), "Galera") {
		t.Errorf("got %v, want ErrUnsupported and the reason", err)
	}
	allowed := sqllock.New(mysqlnamed.New(mysqlnamed.Allow(mysqlnamed.PerNode)))
	if _, err := allowed.TryLock(t.Context(), conn(t, db), "invoices"); err != nil {
		t.Errorf("with Allow(PerNode): %v", err)
	}
}

// TestLookAtEachServer: a Locker that has locked on one server looks at another
// of the same version.
func TestLookAtEachServer(t *testing.T) {
	t.Parallel()
	plain, node := server(t, testdb.MariaDB), private(t, testdb.MariaDB, "--wsrep-on=ON")
	k := sqllock.New(mysqlnamed.New())
	if _, err := k.TryLock(t.Context(), conn(t, open(t, plain)), t.Name()); err != nil {
		t.Fatal(err)
	}
	db := open(t, node)
	if _, err := k.TryLock(t.Context(), conn(t, db), t.Name()); !errors.Is(err, sqllock.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
	if _, err := k.Holder(t.Context(), db, t.Name()); !errors.Is(err, sqllock.ErrNotHeld) {
		t.Errorf("Holder of what was refused: %v, want ErrNotHeld", err)
	}
}

// TestLookIsCheap: one statement for a Locker and a kind of session, not one
// for a lock or a session.
func TestLookIsCheap(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, writes := counted(t, s, func(*mysql.Config) {})
		k := sqllock.New(mysqlnamed.New())
		for i, want := range []int64{3, 2, 2} { // look, try, release
			c := conn(t, db)
			sent := writes.Load()
			l, err := k.TryLock(t.Context(), c, t.Name())
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := writes.Load() - sent; got != want {
				t.Errorf("session %d: %d packets, want %d", i, got, want)
			}
		}
	})
}

// TestReleasedBehindItsBack: something else in the session frees the lock.
func TestReleasedBehindItsBack(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		c, other := conn(t, db), conn(t, db)
		k := sqllock.New(mysqlnamed.New())
		lock := func(c *sql.Conn) *sqllock.Lock {
			t.Helper()
			l, err := k.TryLock(t.Context(), c, t.Name())
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		free := func() {
			t.Helper()
			if _, err := c.ExecContext(t.Context(), "DO RELEASE_ALL_LOCKS()"); err != nil {
				t.Fatal(err)
			}
		}
		first := lock(c)
		free()
		second := lock(c) // on the same session
		if err := first.Release(t.Context()); !errors.Is(err, sqllock.ErrLost) {
			t.Errorf("the release of the first lock: %v, want ErrLost", err)
		}
		if err := second.Check(t.Context()); err != nil {
			t.Errorf("the second lock after the release of the first: %v", err)
		}
		free()
		if err := second.Check(t.Context()); !errors.Is(err, sqllock.ErrLost) || errors.Is(err, sqllock.ErrSessionGone) {
			t.Errorf("Check of the second lock: %v, want ErrLost and a session that goes on", err)
		}
		third := lock(c)
		free()
		fourth := lock(other) // on another session
		if err := third.Release(t.Context()); !errors.Is(err, sqllock.ErrLost) {
			t.Errorf("the release of the third lock: %v, want ErrLost", err)
		}
		if err := fourth.Release(t.Context()); err != nil {
			t.Errorf("the release of the fourth lock: %v", err)
		}
	})
}

// TestOpenRows: an acquire beside rows that are open says what is wrong.
func TestOpenRows(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		c := conn(t, db)
		rows, err := c.QueryContext(t.Context(), "SELECT 1 UNION ALL SELECT 2")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		rows.Next()
		_, err = sqllock.New(mysqlnamed.New()).TryLock(t.Context(), c, t.Name())
		if !errors.Is(err, sqllock.ErrSessionGone) || !strings.Contains(err.Error(), "rows of a query are open") {
			t.Errorf("got %v, want ErrSessionGone and the reason", err)
		}
		if err := rows.Err(); err != nil {
			t.Logf("the rows: %v", err)
		}
	})
}

// TestConnClosedFirst: the one mistake that leaves a lock in a pool is told.
func TestConnClosedFirst(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		c := conn(t, db)
		l, err := sqllock.New(mysqlnamed.New()).TryLock(t.Context(), c, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.Check(t.Context()); !errors.Is(err, sqllock.ErrUnknown) || errors.Is(err, sqllock.ErrLost) {
			t.Errorf("Check: %v, want ErrUnknown", err)
		}
		err = l.Release(t.Context())
		if !errors.Is(err, sqllock.ErrUnknown) || !strings.Contains(err.Error(), "closed before the lock was released") {
			t.Errorf("Release: %v, want ErrUnknown and the reason", err)
		}
	})
}

// TestForeignGetLock: a program that calls GET_LOCK with the name is excluded,
// and excludes.
func TestForeignGetLock(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		foreign, ours := conn(t, db), conn(t, db)
		k := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("billing"))
		get := func() (got int) {
			t.Helper()
			if err := foreign.QueryRowContext(t.Context(), "SELECT GET_LOCK('billing:it''s due', 0)").Scan(&got); err != nil {
				t.Fatal(err)
			}
			return got
		}
		l, err := k.TryLock(t.Context(), ours, "it's due")
		if err != nil {
			t.Fatal(err)
		}
		if got := get(); got != 0 {
			t.Errorf("GET_LOCK while we hold it: %d, want 0", got)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := get(); got != 1 {
			t.Errorf("GET_LOCK after our release: %d, want 1", got)
		}
		if _, err := k.TryLock(t.Context(), ours, "it's due"); !errors.Is(err, sqllock.ErrBusy) {
			t.Errorf("TryLock while the other has it: %v, want ErrBusy", err)
		}
	})
}

// TestHolderWithoutPrivilege: a user who may not see the sessions of others
// learns the id of the one that has the lock.
func TestHolderWithoutPrivilege(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		user := fmt.Sprintf("plain%d", rand.N(1<<30))
		if _, err := db.ExecContext(t.Context(), fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY 'secret'", user)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := db.ExecContext(context.Background(), fmt.Sprintf("DROP USER '%s'@'%%'", user)); err != nil {
				t.Error(err)
			}
		})
		plain := open(t, s, func(c *mysql.Config) { c.User, c.Passwd = user, "secret" })
		k := sqllock.New(mysqlnamed.New())
		l, err := k.TryLock(t.Context(), conn(t, db), t.Name())
		if err != nil {
			t.Fatal(err)
		}
		want := sqllock.Holder{Key: t.Name(), Alive: true, Session: l.Grant().Session}
		got, err := k.Holder(t.Context(), plain, t.Name())
		if err != nil || got != want {
			t.Errorf("Holder: got %+v, %v; want %+v", got, err, want)
		}
		// A plain user needs nothing more to lock.
		mine, err := k.TryLock(t.Context(), conn(t, plain), t.Name()+"-2")
		if err != nil {
			t.Fatal(err)
		}
		if got, err = k.Holder(t.Context(), plain, t.Name()+"-2"); err != nil || got.User != user || got.Host == "" {
			t.Errorf("Holder of one's own lock: %+v, %v", got, err)
		}
		if err := mine.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestSilentServer: one that stops answering costs the session, in bounded
// time, and the answer is that nobody can tell.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		var silent atomic.Bool
		db := open(t, s, func(c *mysql.Config) {
			c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				return silentConn{conn, &silent}, err
			}
		})
		k := sqllock.New(mysqlnamed.New())
		l, err := k.TryLock(t.Context(), conn(t, db), t.Name())
		if err != nil {
			t.Fatal(err)
		}
		waiter := conn(t, db)
		waited := make(chan error, 1)
		go func() {
			_, err := k.Lock(context.Background(), waiter, t.Name())
			waited <- err
		}()
		waiters(t, open(t, s), t.Name(), 1)
		silent.Store(true)
		err = l.Release(t.Context())
		if !errors.Is(err, sqllock.ErrUnknown) || !strings.Contains(err.Error(), "did not answer") {
			t.Errorf("Release: got %v, want ErrUnknown and the reason", err)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no ctx of the caller's has ended: %v", err)
		}
		err = <-waited
		if !errors.Is(err, sqllock.ErrSessionGone) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock: got %v, want ErrSessionGone and no error of a ctx", err)
		}
		// Both sessions have been closed, so the lock can be had.
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		next, err := k.Lock(ctx, conn(t, open(t, s)), t.Name())
		if err != nil {
			t.Fatalf("the next Lock: %v", err)
		}
		if err := next.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// silentConn swallows what is sent once silent is set.
type silentConn struct {
	net.Conn

	silent *atomic.Bool
}

func (c silentConn) Write(p []byte) (int, error) {
	if c.silent.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// TestReadTimeout: a DSN's readTimeout has to be longer than a slice of a wait.
func TestReadTimeout(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		k := sqllock.New(mysqlnamed.New())
		l, err := k.TryLock(t.Context(), conn(t, open(t, s)), t.Name())
		if err != nil {
			t.Fatal(err)
		}
		for timeout, want := range map[time.Duration]error{
			2 * time.Second:        sqllock.ErrBusy,
			500 * time.Millisecond: sqllock.ErrSessionGone,
		} {
			db := open(t, s, func(c *mysql.Config) { c.ReadTimeout = timeout })
			ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
			_, err := k.Lock(ctx, conn(t, db), t.Name())
			cancel()
			if !errors.Is(err, want) || errors.Is(err, sqllock.ErrBusy) == errors.Is(err, sqllock.ErrSessionGone) {
				t.Errorf("readTimeout %v: got %v, want %v", timeout, err, want)
			}
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestKeysOnTheServer: every key is accepted as a name, and two keys are one
// lock only if they are equal or, on MySQL, differ in letter case.
func TestKeysOnTheServer(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		c := conn(t, open(t, s))
		k := sqllock.New(mysqlnamed.New())
		r := rand.New(rand.NewPCG(1, 2))
		names := locktest.OddNames()
		for range 500 {
			b := make([]byte, 1+r.IntN(100))
			for i := range b {
				b[i] = byte(r.IntN(256))
			}
			names = append(names, string(b))
		}
		held := make(map[string]bool)
		for _, name := range names {
			key, err := sqllock.Key("", name)
			if err != nil {
				t.Fatal(err)
			}
			seen := held[strings.ToLower(key)]
			_, err = k.TryLock(t.Context(), c, name)
			if seen != errors.Is(err, sqllock.ErrHeld) || !seen && err != nil {
				t.Errorf("TryLock(%q), key %q, seen %v: %v", name, key, seen, err)
			}
			held[strings.ToLower(key)] = true
		}
	})
}

// TestLetterCase: MySQL takes names that differ in letter case for one, MariaDB
// does not.
func TestLetterCase(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		k := sqllock.New(mysqlnamed.New())
		if _, err := k.TryLock(t.Context(), conn(t, db), "Job"); err != nil {
			t.Fatal(err)
		}
		_, err := k.TryLock(t.Context(), conn(t, db), "job")
		if got, want := errors.Is(err, sqllock.ErrBusy), s.Kind == testdb.MySQL; got != want {
			t.Errorf(`"job" beside "Job": got %v, want busy: %v`, err, want)
		}
	})
}

// FuzzKeyOnTheServer is TestKeysOnTheServer for names that a fuzzer finds.
func FuzzKeyOnTheServer(f *testing.F) {
	var conns []*sql.Conn
	for _, kind := range testdb.Kinds() {
		if !kind.Skipped() && !testing.Short() {
			conns = append(conns, conn(f, open(f, server(f, kind))))
		}
	}
	if len(conns) == 0 {
		f.Skip("needs a server")
	}
	k := sqllock.New(mysqlnamed.New())
	for _, name := range locktest.OddNames() {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		for _, c := range conns {
			l, err := k.TryLock(t.Context(), c, name)
			if name == "" && errors.Is(err, sqllock.ErrInvalidName) {
				continue
			}
			if err != nil {
				t.Fatalf("TryLock(%q): %v", name, err)
			}
			if err := l.Release(t.Context()); err != nil {
				t.Errorf("Release(%q): %v", name, err)
			}
		}
	})
}
