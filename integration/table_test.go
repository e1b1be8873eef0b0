package integration

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// onEachEngine runs a test on each server with a lock table of each engine. The
// servers take it at the same time, since most of it is waiting for a TTL.
func onEachEngine(t *testing.T, test func(t *testing.T, s *testdb.Server, db *sql.DB)) {
	t.Helper()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		t.Parallel()
		for _, engine := range engines {
			t.Run(engine, func(t *testing.T) { test(t, s, lockTable(t, s, engine)) })
		}
	})
}

func do(tb testing.TB, q interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, query string, args ...any,
) {
	tb.Helper()
	if _, err := q.ExecContext(tb.Context(), query, args...); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
}

func ask[T any](tb testing.TB, q sqllock.Querier, query string, args ...any) (v T) {
	tb.Helper()
	if err := q.QueryRowContext(tb.Context(), query, args...).Scan(&v); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
	return v
}

// drain runs a statement that may answer with rows, which nobody needs.
func drain(tb testing.TB, db *sql.DB, query string) {
	tb.Helper()
	rows, err := db.QueryContext(tb.Context(), query)
	if err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
	}
	if err := rows.Err(); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
}

func acquire(tb testing.TB, k *sqllock.Locker, c *sql.Conn, name string, opts ...sqllock.LockOption) *sqllock.Lock {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	l, err := k.Lock(ctx, c, name, opts...)
	if err != nil {
		tb.Fatalf("Lock: %v", err)
	}
	return l
}

func release(tb testing.TB, l *sqllock.Lock) {
	tb.Helper()
	if err := l.Release(tb.Context()); err != nil {
		tb.Fatalf("Release: %v", err)
	}
}

func wantErr(tb testing.TB, what string, err error, targets ...error) {
	tb.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			tb.Errorf("%s: got %v, want %v", what, err, target)
		}
	}
}

// rowsLeft counts the rows of the lock table.
func rowsLeft(tb testing.TB, db *sql.DB) int {
	tb.Helper()
	return ask[int](tb, db, "SELECT COUNT(*) FROM shared_locks")
}

// holderEnv has the test binary hold a lock until it is killed.
const holderEnv = "SQLLOCK_TEST_HOLDER"

// TestHolderProcess is the process that TestTableHolderKilled kills.
func TestHolderProcess(t *testing.T) {
	dsn := os.Getenv(holderEnv)
	if dsn == "" {
		t.Skip("it is run by other tests")
	}
	db, err := testdb.OpenDB(dsn, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := conn(t, db)
	l := acquire(t, sqllock.New(table.New(time.Hour)), c, "job")
	do(t, c, "BEGIN")
	do(t, c, "INSERT INTO work VALUES (1)")
	fmt.Println("held", l.Token())
	select {}
}

// holderProcess starts a process that holds "job" for an hour, in a transaction
// that has written to the table work.
func holderProcess(t *testing.T, s *testdb.Server, db *sql.DB) (kill func(), token int64) {
	t.Helper()
	do(t, db, "CREATE TABLE work (id int PRIMARY KEY) ENGINE=InnoDB")
	cfg, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	cfg.DBName = database(t, db)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHolderProcess$", "-test.v")
	cmd.Env = append(os.Environ(), holderEnv+"="+cfg.FormatDSN())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	t.Cleanup(kill)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if said, ok := strings.CutPrefix(lines.Text(), "held "); ok {
			if token, err = strconv.ParseInt(said, 10, 64); err != nil {
				t.Fatal(err)
			}
			return kill, token
		}
	}
	t.Fatal("the holder has ended without the lock")
	return nil, 0
}

// TestTableHolderKilled: kill -9 of the holder's process. Its TTL is an hour.
func TestTableHolderKilled(t *testing.T) {
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		kill, token := holderProcess(t, s, db)
		var events []sqllock.Event
		k := sqllock.New(table.New(time.Hour), onHolders(func(e sqllock.Event) { events = append(events, e) }))
		c := conn(t, db)
		_, err := k.TryLock(t.Context(), c, "job")
		wantErr(t, "TryLock while the process lives", err, sqllock.ErrBusy)
		h, err := k.Holder(t.Context(), db, "job")
		if err != nil || !h.Alive || !strings.Contains(h.Process, filepath.Base(os.Args[0])) || h.Token != token || h.User == "" {
			t.Errorf("the holder is told as %+v, %v", h, err)
		}
		kill()
		start := time.Now()
		l := acquire(t, k, c, "job")
		t.Logf("granted %v after kill -9", time.Since(start))
		if n := ask[int](t, db, "SELECT COUNT(*) FROM work"); n != 0 {
			t.Error("the dead holder's transaction was committed")
		}
		if l.Token() <= token {
			t.Errorf("token %d after %d", l.Token(), token)
		}
		if len(events) != 1 || events[0].Kind != sqllock.TakenOver || events[0].Holder.Session != h.Session || events[0].Name != "job" {
			t.Errorf("the observer was told %+v", events)
		}
		release(t, l)
		if n := rowsLeft(t, db); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})
}

// TestTableHungHolder: the TTL is over, the holder's session lives and is in a
// transaction. The successor must not see anything of it, uncommitted or not.
func TestTableHungHolder(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY) ENGINE=InnoDB")
		var events []sqllock.Event
		k := sqllock.New(table.New(time.Second), onHolders(func(e sqllock.Event) { events = append(events, e) }))
		hung, other, bystander := conn(t, db), conn(t, db), conn(t, db)
		stale := acquire(t, k, hung, "job")
		id := sessionID(t, hung)
		tx, err := hung.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // its session is gone
		do(t, tx, "INSERT INTO work VALUES (1)")
		do(t, other, "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
		if n := ask[int](t, other, "SELECT COUNT(*) FROM work"); n != 1 {
			t.Fatalf("the test should see %d uncommitted rows, not 1", n)
		}
		l := acquire(t, k, other, "job")
		if n := ask[int](t, other, "SELECT COUNT(*) FROM work"); n != 0 {
			t.Error("the lock was granted before the stale holder's transaction was rolled back")
		}
		if err := tx.Commit(); err == nil {
			t.Error("the stale holder could commit")
		}
		wantErr(t, "the stale holder's Check", stale.Check(t.Context()), sqllock.ErrLost)
		if len(events) != 2 || events[0].Kind != sqllock.Killed || events[0].Holder.Session != id || events[1].Kind != sqllock.TakenOver {
			t.Errorf("the observer was told %+v", events)
		}
		if err := bystander.PingContext(t.Context()); err != nil {
			t.Errorf("a bystander: %v", err)
		}
		release(t, l)
		if n := rowsLeft(t, db); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})
}

// TestTableLongRollback: the killed session is busy rolling back. The waiter gets
// the lock after that, or gives up when its ctx ends.
func TestTableLongRollback(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY AUTO_INCREMENT, x int) ENGINE=InnoDB")
		do(t, db, "INSERT INTO work (x) VALUES (1),(1),(1),(1),(1),(1),(1),(1)")
		k := sqllock.New(table.New(time.Second))
		hung, other := conn(t, db), conn(t, db)
		acquire(t, k, hung, "job")
		do(t, other, "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
		tx, err := hung.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // its session is gone
		for range 13 {
			do(t, tx, "INSERT INTO work (x) SELECT x FROM work")
		}
		waitFor(t, "the TTL to be over", func() bool {
			return ask[bool](t, db, "SELECT created+ttl<UNIX_TIMESTAMP() FROM shared_locks")
		})
		// Killing takes no time, rolling back 65,528 rows does.
		var l *sqllock.Lock
		gaveUp, alive := 0, 0
		for l == nil {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			if l, err = k.Lock(ctx, other, "job"); err != nil {
				gaveUp++
				wantErr(t, "Lock during the rollback", err, sqllock.ErrBusy, context.DeadlineExceeded)
				if errors.Is(err, sqllock.ErrHolderAlive) { // else it had no time to look
					alive++
				}
			}
			cancel()
			if err != nil && gaveUp > 3000 {
				t.Fatal(err)
			}
		}
		if n := ask[int](t, other, "SELECT COUNT(*) FROM work"); n != 8 {
			t.Errorf("%d rows at the grant, want the 8 that were committed", n)
		}
		if alive == 0 {
			t.Error("no wait during the rollback has said that the holder has not ended")
		}
		t.Logf("%d waits of 10 ms gave up during the rollback, %d with ErrHolderAlive", gaveUp, alive)
		release(t, l)
	})
}

// TestTableHolderWithoutDoorbell: the row says that it is held, and its session
// lives, but has let go of the doorbell.
func TestTableHolderWithoutDoorbell(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		k := sqllock.New(table.New(time.Hour))
		holder, other := conn(t, db), conn(t, db)
		l := acquire(t, k, holder, "job")
		do(t, holder, "DO RELEASE_LOCK('job')")
		h, err := k.Holder(t.Context(), db, "job")
		if err != nil || h.Alive {
			t.Errorf("the holder is told as %+v, %v; it is not alive", h, err)
		}
		newer, err := k.TryLock(t.Context(), other, "job")
		if err != nil {
			t.Fatalf("TryLock: %v", err)
		}
		if err := holder.PingContext(t.Context()); err != nil {
			t.Errorf("there was no need to kill the session: %v", err)
		}
		wantErr(t, "the old handle", l.Release(t.Context()), sqllock.ErrLost)
		if err := newer.Check(t.Context()); err != nil {
			t.Errorf("the newer lock: %v", err)
		}
		release(t, newer)
	})
}

// durable is a server that does not forget what was committed when it crashes.
func durable(t *testing.T, kind testdb.Kind) *testdb.Server {
	t.Helper()
	return private(t, kind, "--innodb-flush-log-at-trx-commit=1")
}

// TestTableConnectionIDsReused: rows that are older than the server name sessions
// that are others now. Nobody innocent is killed, whatever he does.
func TestTableConnectionIDsReused(t *testing.T) {
	for _, kind := range testdb.Kinds() {
		for _, engine := range engines {
			t.Run(string(kind)+" "+engine, func(t *testing.T) {
				s := durable(t, kind)
				db := lockTable(t, s, engine)
				k := sqllock.New(table.New(time.Second))
				acquire(t, k, conn(t, db), "fresh", sqllock.TTL(time.Hour))
				acquire(t, k, conn(t, db), "over")
				waitFor(t, "the next second, so that the rows are older than the server", func() bool {
					return ask[bool](t, db, "SELECT MAX(created)<UNIX_TIMESTAMP() FROM shared_locks")
				})
				if err := s.Crash(t.Context()); err != nil {
					t.Fatal(err)
				}
				db = open(t, s, func(c *mysql.Config) { c.DBName = database(t, db) })
				waitFor(t, "the TTL to be over", func() bool {
					return ask[bool](t, db, "SELECT created+ttl<UNIX_TIMESTAMP() FROM shared_locks WHERE name='over'")
				})
				idle, ringing, other := conn(t, db), conn(t, db), conn(t, db)
				// The rows of the dead carry the ids of sessions that live now: of
				// one that does nothing, and of one that is about to acquire.
				do(t, db, "UPDATE shared_locks SET connection_id=? WHERE name='fresh'", sessionID(t, idle))
				do(t, db, "UPDATE shared_locks SET connection_id=? WHERE name='over'", sessionID(t, ringing))
				do(t, ringing, "DO GET_LOCK('over',0)")
				_, err := k.TryLock(t.Context(), other, "over")
				wantErr(t, "TryLock", err, sqllock.ErrBusy)
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				_, err = k.Lock(ctx, other, "over")
				wantErr(t, "Lock", err, sqllock.ErrBusy, context.DeadlineExceeded)
				for _, c := range []*sql.Conn{idle, ringing} {
					if err := c.PingContext(t.Context()); err != nil {
						t.Errorf("somebody innocent was killed: %v", err)
					}
				}
				// The session that is ringing may acquire itself, and its own id in
				// a row that is older than the server is no re-entry.
				do(t, ringing, "DO RELEASE_LOCK('over')")
				release(t, acquire(t, k, ringing, "over"))
				release(t, acquire(t, k, idle, "fresh"))
				if n := rowsLeft(t, db); n != 0 {
					t.Errorf("%d rows are left", n)
				}
			})
		}
	}
}

// wholeRow is everything that the table has of a name.
func wholeRow(tb testing.TB, db *sql.DB, name string) string {
	tb.Helper()
	return ask[string](tb, db, "SELECT CONCAT_WS('|',name,connection_id,created,ttl,lock_acquired,token,holder) FROM shared_locks WHERE name=?", name)
}

// TestTableNoPrivilegeToKill: the holder is another database user's.
func TestTableNoPrivilegeToKill(t *testing.T) {
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		weak := user(t, s, db)
		k := sqllock.New(table.New(time.Second))
		holder, other := conn(t, db), conn(t, weak)
		l := acquire(t, k, holder, "job")
		before := wholeRow(t, db, "job")
		waitFor(t, "the TTL to be over", func() bool {
			return ask[bool](t, db, "SELECT created+ttl<UNIX_TIMESTAMP() FROM shared_locks")
		})
		for what, acquire := range map[string]func() (*sqllock.Lock, error){
			"TryLock": func() (*sqllock.Lock, error) { return k.TryLock(t.Context(), other, "job") },
			"Lock":    func() (*sqllock.Lock, error) { return k.Lock(t.Context(), other, "job") },
			"Break": func() (*sqllock.Lock, error) {
				_, err := k.Break(t.Context(), weak, "job")
				return nil, err
			},
		} {
			_, err := acquire()
			wantErr(t, what, err, sqllock.ErrPermission)
			if err != nil && (!strings.Contains(err.Error(), "CONNECTION") || !strings.Contains(err.Error(), strconv.FormatInt(sessionID(t, holder), 10))) {
				t.Errorf("%s: the error should name the session and the privilege: %v", what, err)
			}
			if now := wholeRow(t, db, "job"); now != before {
				t.Errorf("%s: the row was %s and is %s", what, before, now)
			}
		}
		release(t, l) // nobody took it
		release(t, acquire(t, k, other, "job"))

		// A Break that is refused leaves alone who holds the lock in time.
		l = acquire(t, k, holder, "job", sqllock.TTL(time.Hour))
		refused := make(chan struct{})
		go func() {
			defer close(refused)
			for range 50 {
				if _, err := k.Break(t.Context(), weak, "job"); !errors.Is(err, sqllock.ErrPermission) {
					t.Errorf("Break: %v", err)
				}
			}
		}()
		for checking := true; checking; {
			if err := l.Check(t.Context()); err != nil {
				t.Fatalf("Check beside a Break that is refused: %v", err)
			}
			select {
			case <-refused:
				checking = false
			default:
			}
		}
		release(t, l)
	})
}

// user makes a user who may use the database of db, and nothing else.
func user(tb testing.TB, s *testdb.Server, db *sql.DB, privileges ...string) *sql.DB {
	tb.Helper()
	name := database(tb, db)
	user := "u" + name[1:min(len(name), 20)]
	grant := "SELECT,INSERT,UPDATE,DELETE"
	if len(privileges) > 0 {
		grant = strings.Join(privileges, ",")
	}
	do(tb, db, "CREATE USER "+user+"@'%' IDENTIFIED BY 'secret'")
	tb.Cleanup(func() { _, _ = db.ExecContext(context.WithoutCancel(tb.Context()), "DROP USER "+user+"@'%'") })
	do(tb, db, "GRANT "+grant+" ON "+name+".* TO "+user+"@'%'")
	return open(tb, s, func(c *mysql.Config) { c.DBName, c.User, c.Passwd = name, user, "secret" })
}

// TestTableTokensGrowForEver: over what makes an engine forget its counters.
func TestTableTokensGrowForEver(t *testing.T) {
	for _, kind := range testdb.Kinds() {
		for _, engine := range engines {
			t.Run(string(kind)+" "+engine, func(t *testing.T) {
				s := durable(t, kind)
				db := lockTable(t, s, engine)
				var last int64
				grew := func(what string) {
					t.Helper()
					// A new Backend has seen no token.
					k := sqllock.New(table.New(time.Minute))
					c := conn(t, db)
					l := acquire(t, k, c, "job")
					if l.Token() <= last {
						t.Errorf("%s: token %d after %d", what, l.Token(), last)
					}
					last = l.Token()
					release(t, l)
					_ = c.Close()
				}
				grew("first")
				grew("release")
				grew("release")
				for _, statement := range []string{
					"REPAIR TABLE shared_locks", "REPAIR TABLE shared_locks USE_FRM", "TRUNCATE TABLE shared_locks",
					"ALTER TABLE shared_locks AUTO_INCREMENT=1", "FLUSH TABLES", "DELETE FROM shared_locks",
				} {
					drain(t, db, statement)
					grew(statement)
				}
				// With a row in the table, and the session dead.
				c := conn(t, db)
				l := acquire(t, sqllock.New(table.New(time.Minute)), c, "job")
				last = l.Token()
				do(t, db, "KILL CONNECTION "+strconv.FormatInt(sessionID(t, c), 10))
				grew("takeover")
				if err := s.Crash(t.Context()); err != nil {
					t.Fatal(err)
				}
				db = open(t, s, func(c *mysql.Config) { c.DBName = database(t, db) })
				grew("crash of the server")
				// A clock that was set back, where something is left to know it by.
				l = acquire(t, sqllock.New(table.New(time.Minute)), conn(t, db), "job")
				do(t, db, "UPDATE shared_locks SET token=token+1000000000000, lock_acquired=1, connection_id=0")
				last = l.Token() + 1000000000000
				do(t, db, "KILL CONNECTION "+strconv.FormatInt(ask[int64](t, db, "SELECT IS_USED_LOCK('job')"), 10))
				grew("takeover from the future")
			})
		}
	}
}

// TestTableWaiterSleeps: a waiter is on the server until release or expiry.
func TestTableWaiterSleeps(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		for _, test := range []struct {
			name  string
			opts  []table.Option
			ttl   time.Duration
			most  int // slices of the wait
			cause string
		}{
			{"plain", nil, 3 * time.Second, 5, "expiry"},
			{"last second", nil, time.Second, 3, "expiry"},
			{"pool", []table.Option{table.WithPool(db)}, 3 * time.Second, 2, "expiry"},
			{"release", []table.Option{table.WithPool(db)}, time.Hour, 1, "release"},
		} {
			t.Run(test.name, func(t *testing.T) {
				k := sqllock.New(table.New(test.ttl, test.opts...))
				holder, waiter := conn(t, db), conn(t, db)
				release(t, acquire(t, k, waiter, "warm-up"))
				l := acquire(t, k, holder, "job")
				before := questions(t, waiter)
				granted := make(chan *sqllock.Lock, 1)
				go func() {
					l, err := k.Lock(t.Context(), waiter, "job")
					if err != nil {
						t.Errorf("Lock: %v", err)
					}
					granted <- l
				}()
				if test.cause == "release" {
					waitFor(t, "the waiter", func() bool {
						n, err := mysqlWaiters(t.Context(), db, "job")
						return err == nil && n == 1
					})
					release(t, l)
				}
				newer := <-granted
				n := questions(t, waiter) - before
				t.Logf("%d statements", n)
				// A look, a wait and what ends it for each slice, on InnoDB also two to
				// see whether the session is in a transaction; and the takeover.
				if most := 5*test.most + 24; n > most {
					t.Errorf("%d statements, want %d at most", n, most)
				}
				if newer != nil {
					release(t, newer)
				}
			})
		}
	})
}

// TestTableInTransaction: acquire and release inside the caller's transaction.
func TestTableInTransaction(t *testing.T) {
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		engine := ask[string](t, db, "SELECT engine FROM information_schema.tables WHERE table_schema=DATABASE() AND table_name='shared_locks'")
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY) ENGINE=InnoDB")
		gtid := s.Kind == testdb.MySQL
		for _, state := range []struct {
			name, before, end string
			// what happens without a pool
			fails bool
		}{
			{"begun", "BEGIN", "ROLLBACK", engine == "InnoDB"},
			{"written", "BEGIN; INSERT INTO work VALUES (1)", "ROLLBACK", engine == "InnoDB" || gtid},
			{"read", "BEGIN; SELECT COUNT(*) FROM work", "ROLLBACK", engine == "InnoDB"},
			{"read only", "START TRANSACTION READ ONLY", "ROLLBACK", true},
			{"no autocommit", "SET autocommit=0", "ROLLBACK; SET autocommit=1", engine == "InnoDB"},
			{"locked tables", "LOCK TABLES work WRITE", "UNLOCK TABLES", true},
		} {
			for _, pool := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, pool %v", state.name, pool), func(t *testing.T) {
					var opts []table.Option
					if pool {
						opts = append(opts, table.WithPool(db))
					}
					k := sqllock.New(table.New(time.Minute, opts...))
					c, other := conn(t, db), conn(t, db)
					release(t, acquire(t, k, c, "warm-up"))
					for statement := range strings.SplitSeq(state.before, "; ") {
						do(t, c, statement)
					}
					l, err := k.TryLock(t.Context(), c, "job")
					if state.fails && !pool {
						wantErr(t, "TryLock", err, sqllock.ErrInTransaction)
						if err != nil && !strings.Contains(err.Error(), "table.WithPool") {
							t.Errorf("the error should say what to do: %v", err)
						}
					} else if err != nil {
						t.Fatalf("TryLock: %v", err)
					}
					if l != nil {
						if err := l.Check(t.Context()); err != nil && state.name != "locked tables" {
							t.Errorf("Check: %v", err)
						}
						_, err = k.TryLock(t.Context(), other, "job")
						wantErr(t, "TryLock by another session", err, sqllock.ErrBusy)
					}
					for statement := range strings.SplitSeq(state.end, "; ") {
						do(t, c, statement)
					}
					if n := ask[int](t, db, "SELECT COUNT(*) FROM work"); n != 0 {
						t.Error("the caller's transaction was committed")
						do(t, db, "DELETE FROM work")
					}
					if l != nil {
						// The rollback has not taken the row with it.
						if err := l.Check(t.Context()); err != nil {
							t.Errorf("Check after the rollback: %v", err)
						}
						_, err = k.TryLock(t.Context(), other, "job")
						wantErr(t, "TryLock by another session after the rollback", err, sqllock.ErrBusy)
						release(t, l)
					}
					release(t, acquire(t, k, other, "job"))
					if n := rowsLeft(t, db); n != 0 {
						t.Errorf("%d rows are left", n)
					}
				})
				t.Run(fmt.Sprintf("release, %s, pool %v", state.name, pool), func(t *testing.T) {
					var opts []table.Option
					if pool {
						opts = append(opts, table.WithPool(db))
					}
					k := sqllock.New(table.New(time.Minute, opts...))
					c, other := conn(t, db), conn(t, db)
					l := acquire(t, k, c, "job")
					for statement := range strings.SplitSeq(state.before, "; ") {
						do(t, c, statement)
					}
					release(t, l)
					newer, err := k.TryLock(t.Context(), other, "job")
					if err != nil {
						t.Fatalf("TryLock by another session, before the end of the transaction: %v", err)
					}
					for statement := range strings.SplitSeq(state.end, "; ") {
						do(t, c, statement)
					}
					if n := ask[int](t, db, "SELECT COUNT(*) FROM work"); n != 0 {
						t.Error("the caller's transaction was committed")
						do(t, db, "DELETE FROM work")
					}
					if err := newer.Check(t.Context()); err != nil {
						t.Errorf("the newer lock, after the rollback: %v", err)
					}
					release(t, newer)
					if n := rowsLeft(t, db); n != 0 {
						t.Errorf("%d rows are left", n)
					}
				})
				if !pool {
					continue
				}
				t.Run("wait, "+state.name, func(t *testing.T) {
					k := sqllock.New(table.New(time.Minute, table.WithPool(db)))
					c, other := conn(t, db), conn(t, db)
					held := acquire(t, k, other, "job")
					for statement := range strings.SplitSeq(state.before, "; ") {
						do(t, c, statement)
					}
					granted := make(chan error, 1)
					var l *sqllock.Lock
					go func() {
						var err error
						l, err = k.Lock(t.Context(), c, "job")
						granted <- err
					}()
					// For longer than a slice, so that it goes on in another step.
					waitFor(t, "the waiter to be in its second slice", func() bool {
						return ask[bool](t, db, "SELECT created+1<UNIX_TIMESTAMP() FROM shared_locks WHERE name='job'")
					})
					release(t, held)
					if err := <-granted; err != nil {
						t.Fatalf("Lock: %v", err)
					}
					_, err := k.TryLock(t.Context(), other, "job")
					wantErr(t, "TryLock by another session", err, sqllock.ErrBusy)
					release(t, l)
					for statement := range strings.SplitSeq(state.end, "; ") {
						do(t, c, statement)
					}
					if n := ask[int](t, db, "SELECT COUNT(*) FROM work"); n != 0 {
						t.Error("the caller's transaction was committed")
						do(t, db, "DELETE FROM work")
					}
					release(t, acquire(t, k, other, "job"))
				})
			}
		}
	})
}

// TestTableExtendBesideTransaction: the session of the lock runs a statement in a
// transaction, and has seen the row as it was.
func TestTableExtendBesideTransaction(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY) ENGINE=InnoDB")
		do(t, db, "INSERT INTO work VALUES (1)")
		k := sqllock.New(table.New(time.Second, table.WithPool(db)))
		c, blocker := conn(t, db), conn(t, db)
		l := acquire(t, k, c, "job")
		tx, err := c.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
		if err != nil {
			t.Fatal(err)
		}
		ask[int](t, tx, "SELECT COUNT(*) FROM shared_locks")
		do(t, blocker, "BEGIN")
		do(t, blocker, "UPDATE work SET id=2")
		busy := make(chan error, 1)
		go func() {
			_, err := tx.ExecContext(t.Context(), "UPDATE work SET id=3")
			busy <- err
		}()
		// While the session is in that statement, the lease is prolonged again and
		// again, beyond its first end.
		end := time.Now().Add(2500 * time.Millisecond)
		for time.Now().Before(end) {
			if err := l.Extend(t.Context(), 2*time.Second); err != nil {
				t.Fatalf("Extend: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		select {
		case err := <-busy:
			t.Fatalf("the session was not busy: %v", err)
		default:
		}
		if err := l.Extend(t.Context(), time.Hour); err != nil {
			t.Fatalf("Extend: %v", err)
		}
		do(t, blocker, "ROLLBACK")
		if err := <-busy; err != nil {
			t.Fatalf("the statement of the transaction: %v", err)
		}
		if err := l.AssertTTL(t.Context(), 30*time.Minute); err != nil {
			t.Errorf("AssertTTL in the transaction: %v", err)
		}
		if err := tx.Commit(); err != nil {
			t.Errorf("Commit: %v", err)
		}
		release(t, l)

		// Without a pool it has to be the session itself.
		k = sqllock.New(table.New(time.Minute))
		l = acquire(t, k, c, "job")
		do(t, c, "BEGIN")
		do(t, c, "INSERT INTO work VALUES (9)")
		err = l.Extend(t.Context(), time.Hour)
		if err != nil {
			wantErr(t, "Extend without a pool", err, sqllock.ErrInTransaction)
		}
		do(t, c, "ROLLBACK")
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check after that: %v", err)
		}
		release(t, l)
	})
}

// TestTableSessionKeptAlive: the check of a Do reaches the session of the lock,
// wherever it reads the row, so that the server does not end it as idle.
func TestTableSessionKeptAlive(t *testing.T) {
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		short := open(t, s, func(c *mysql.Config) {
			c.DBName, c.Params = database(t, db), map[string]string{"wait_timeout": "2"}
		})
		k := sqllock.New(table.New(time.Hour, table.WithPool(db)), sqllock.WithCheckInterval(200*time.Millisecond))
		err := k.Do(t.Context(), short, "job", func(ctx context.Context, l *sqllock.Lock) error {
			do(t, db, "DO SLEEP(4)")
			return errors.Join(context.Cause(ctx), l.Check(t.Context()))
		})
		if err != nil {
			t.Errorf("Do with a wait_timeout of 2 s, for 4 s: %v", err)
		}
	})
}

// TestTableHungInSerializable: a check in the holder's transaction does not keep
// others from taking over, whatever its isolation level.
func TestTableHungInSerializable(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY) ENGINE=InnoDB")
		k := sqllock.New(table.New(time.Second))
		hung, other := conn(t, db), conn(t, db)
		l := acquire(t, k, hung, "job")
		tx, err := hung.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelSerializable})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // its session is gone
		if err := l.Check(t.Context()); err != nil {
			t.Fatalf("Check in the transaction: %v", err)
		}
		// Neither is it a part of the transaction: what others commit now is seen.
		do(t, db, "INSERT INTO work VALUES (1)")
		if n := ask[int](t, tx, "SELECT COUNT(*) FROM work"); n != 1 {
			t.Errorf("after Check the transaction sees %d rows, want the 1 that was committed since", n)
		}
		newer := acquire(t, k, other, "job")
		if err := tx.Commit(); err == nil {
			t.Error("the stale holder could commit")
		}
		release(t, newer)
	})
}

// TestTableOwnLeaving: a session comes back for a lock whose row it could not
// remove when it released it. Nobody takes it for a holder that hangs.
func TestTableOwnLeaving(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		back, other := conn(t, db), conn(t, db)
		id := sessionID(t, back)
		for round := range 100 {
			do(t, db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) VALUES ('job',?,UNIX_TIMESTAMP()-100,1,1)", id)
			var wg sync.WaitGroup
			for _, c := range []*sql.Conn{back, other} {
				wg.Go(func() {
					// A Backend of its own remembers nothing of the row.
					l, err := sqllock.New(table.New(time.Minute)).TryLock(t.Context(), c, "job")
					if err != nil && (!errors.Is(err, sqllock.ErrBusy) || errors.Is(err, sqllock.ErrSessionGone)) {
						t.Errorf("round %d: %v", round, err)
					}
					if err == nil {
						err = l.Release(t.Context())
					}
					if err != nil && !errors.Is(err, sqllock.ErrBusy) {
						t.Errorf("round %d: %v", round, err)
					}
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			do(t, db, "DELETE FROM shared_locks")
		}
	})
}

// TestTableLockTablesAfterACrowd: a session under LOCK TABLES is refused in its
// first look, where others spare themselves the try.
func TestTableLockTablesAfterACrowd(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY) ENGINE=InnoDB")
		for _, pool := range []*sql.DB{nil, db} {
			k := sqllock.New(table.New(time.Minute, table.WithPool(pool)))
			holder, other, c := conn(t, db), conn(t, db), conn(t, db)
			l := acquire(t, k, holder, "job")
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			_, err := k.Lock(ctx, other, "job")
			cancel()
			wantErr(t, "Lock", err, sqllock.ErrBusy)
			release(t, l)
			do(t, c, "LOCK TABLES work WRITE")
			l, err = k.Lock(t.Context(), c, "job")
			if pool == nil {
				wantErr(t, "Lock without a pool", err, sqllock.ErrInTransaction)
			} else if err != nil {
				t.Fatalf("Lock: %v", err)
			}
			do(t, c, "UNLOCK TABLES")
			if l != nil {
				release(t, l)
			}
			release(t, acquire(t, k, other, "job"))
			if n := rowsLeft(t, db); n != 0 {
				t.Errorf("%d rows are left", n)
			}
		}
	})
}

// TestTableFullPool: the pool that was lent is the one that the locks are in, and
// they have all of it.
func TestTableFullPool(t *testing.T) {
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		pool := open(t, s, func(c *mysql.Config) { c.DBName = database(t, db) })
		pool.SetMaxOpenConns(2)
		k := sqllock.New(table.New(time.Minute, table.WithPool(pool)))
		var wg sync.WaitGroup
		var both sync.WaitGroup
		both.Add(2)
		for _, name := range []string{"a", "b"} {
			wg.Go(func() {
				err := k.Do(t.Context(), pool, name, func(ctx context.Context, l *sqllock.Lock) error {
					both.Done()
					both.Wait()
					return l.Extend(ctx, time.Hour)
				})
				if err != nil {
					t.Errorf("Do %s that extends: %v", name, err)
				}
			})
		}
		wg.Wait()
		// Where only the pool will do, the error says what it lacks, and does not
		// look like the end of the caller's ctx.
		a, b := conn(t, pool), conn(t, pool)
		l := acquire(t, k, a, "job")
		do(t, a, "START TRANSACTION READ ONLY")
		err := l.Extend(t.Context(), time.Hour)
		wantErr(t, "Extend in a transaction with a full pool", err, sqllock.ErrInTransaction)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the caller's ctx has not ended: %v", err)
		}
		do(t, a, "ROLLBACK")
		release(t, l)
		_ = b
	})
}

// TestTableOddColumns: tables that locks can't be made in are refused, by Up and by
// the backend, before anything is held.
func TestTableOddColumns(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for name, alter := range map[string]string{
			"AUTO_INCREMENT": "ADD COLUMN id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY",
			"no default":     "ADD COLUMN extra int NOT NULL",
			"short names":    "MODIFY COLUMN name varchar(20) NOT NULL",
		} {
			t.Run(name, func(t *testing.T) {
				db := schema(t, s)
				do(t, db, documentedTable)
				do(t, db, "ALTER TABLE shared_locks "+alter)
				if err := migrations.Up(t.Context(), db); err == nil || !strings.Contains(err.Error(), "shared_locks") {
					t.Errorf("migrations.Up: %v", err)
				}
				if name == "short names" {
					return
				}
				_, err := sqllock.New(table.New(time.Minute, table.AllowUnmigrated())).TryLock(t.Context(), conn(t, db), "job")
				wantErr(t, "TryLock", err, sqllock.ErrNoTable)
			})
		}
	})
}

// TestTableRowRemoved: an operator deletes the row of a live lock.
func TestTableRowRemoved(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		k := sqllock.New(table.New(time.Hour))
		for name, find := range map[string]func(*sqllock.Lock) error{
			"check":   func(l *sqllock.Lock) error { return l.Check(t.Context()) },
			"extend":  func(l *sqllock.Lock) error { return l.Extend(t.Context(), time.Hour) },
			"release": func(l *sqllock.Lock) error { return l.Release(t.Context()) },
		} {
			c := conn(t, db)
			l := acquire(t, k, c, "job")
			do(t, db, "TRUNCATE TABLE shared_locks")
			_, err := k.TryLock(t.Context(), conn(t, db), "job")
			wantErr(t, "TryLock while the session still has the doorbell", err, sqllock.ErrBusy)
			wantErr(t, name, find(l), sqllock.ErrLost)
			release(t, acquire(t, k, conn(t, db), "job"))
		}
	})
}

// TestTableMissing: each call says what to do, and nothing is left held.
func TestTableMissing(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := schema(t, s)
		k := sqllock.New(table.New(time.Minute))
		c := conn(t, db)
		check := func(what string, err error) {
			t.Helper()
			wantErr(t, what, err, sqllock.ErrNoTable)
			if err != nil && !strings.Contains(err.Error(), "migrations.Up") {
				t.Errorf("%s: the error should name what creates the table: %v", what, err)
			}
		}
		_, err := k.TryLock(t.Context(), c, "job")
		check("TryLock", err)
		_, err = k.Holder(t.Context(), db, "job")
		check("Holder", err)
		_, err = k.Break(t.Context(), db, "job")
		check("Break", err)
		_, err = table.New(time.Minute).List(t.Context(), db)
		check("List", err)
		_, err = table.New(time.Minute).Sweep(t.Context(), db)
		check("Sweep", err)
		if err := c.PingContext(t.Context()); err != nil {
			t.Errorf("the session should be usable: %v", err)
		}
		// It is made, and dropped again while the backend knows it.
		if err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		release(t, acquire(t, k, c, "job"))
		do(t, db, "DROP TABLE shared_locks")
		_, err = k.TryLock(t.Context(), c, "job")
		check("TryLock after DROP TABLE", err)
		if used := ask[sql.NullInt64](t, db, "SELECT IS_USED_LOCK('job')"); used.Valid {
			t.Errorf("session %d was left with the doorbell", used.Int64)
		}
		// Something else of that name.
		do(t, db, "CREATE TABLE shared_locks (name varchar(64), what int)")
		_, err = sqllock.New(table.New(time.Minute)).TryLock(t.Context(), c, "job")
		wantErr(t, "TryLock with a table of another shape", err, sqllock.ErrNoTable)
		if err != nil && !strings.Contains(err.Error(), "table.WithTable") {
			t.Errorf("the error should say what to do: %v", err)
		}

		none := open(t, s)
		_, err = sqllock.New(table.New(time.Minute)).TryLock(t.Context(), conn(t, none), "job")
		wantErr(t, "TryLock without a default database", err, sqllock.ErrNoTable)

		if err := migrations.Up(t.Context(), schemaOf(t, s, db)); err == nil {
			t.Error("migrations.Up should refuse a table of another shape")
		}
		qualified := sqllock.New(table.New(time.Minute, table.WithTable(database(t, db)+".locks")))
		if err := migrations.Up(t.Context(), db, migrations.WithTable("locks")); err != nil {
			t.Fatal(err)
		}
		release(t, acquire(t, qualified, conn(t, none), "job"))
	})
}

// schemaOf is another pool on the database of db.
func schemaOf(tb testing.TB, s *testdb.Server, db *sql.DB) *sql.DB {
	tb.Helper()
	return open(tb, s, func(c *mysql.Config) { c.DBName = database(tb, db) })
}

// TestTableDamaged breaks the index file of a MyISAM table. No page of it may be
// missing: MySQL and MariaDB crash when two sessions read one at a time, whoever
// they are (free_block in mf_keycache.c).
func TestTableDamaged(t *testing.T) {
	for _, kind := range testdb.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s := private(t, kind, "--myisam-recover-options=OFF")
			t.Run("end", func(t *testing.T) { testDamaged(t, s, 1024) })
			t.Run("page", func(t *testing.T) { testDamaged(t, s, 1024, 2048) }) // found in use
			t.Run("header", func(t *testing.T) { testDamaged(t, s, 100) })      // found on opening, needs USE_FRM
			t.Run("zeros", func(t *testing.T) { testDamaged(t, s, 0, 1024) })   // not known for an index any more
		})
	}
}

// testDamaged gives the index file one size after the other; what it grows by is
// zeros, as after a power failure.
func testDamaged(t *testing.T, s *testdb.Server, sizes ...int64) {
	db := lockTable(t, s, "MyISAM")
	var mu sync.Mutex
	var repairs []sqllock.Event
	observe := sqllock.WithObserver(func(e sqllock.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Kind == sqllock.Repaired {
			repairs = append(repairs, e)
		}
	})
	before := acquire(t, sqllock.New(table.New(time.Minute)), conn(t, db), "job")
	release(t, before)
	damage := func() {
		t.Helper()
		do(t, db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) VALUES (UUID(),0,0,0,1),(UUID(),0,0,0,1)")
		do(t, db, "FLUSH TABLES shared_locks")
		for _, size := range sizes {
			if err := os.Truncate(filepath.Join(s.Data(), database(t, db), "shared_locks.MYI"), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	damage()
	c := conn(t, db)
	_, err := sqllock.New(table.New(time.Minute), observe).TryLock(t.Context(), c, "job")
	if err == nil || !strings.Contains(err.Error(), "REPAIR TABLE") {
		t.Errorf("TryLock without a pool should say what to do: %v", err)
	}
	// Many find it damaged at a time.
	k := sqllock.New(table.New(time.Minute, table.WithPool(db)), observe)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			l, err := k.TryLock(t.Context(), conn(t, db), fmt.Sprintf("job%d", i))
			if err != nil {
				t.Errorf("TryLock: %v", err)
				return
			}
			if l.Token() <= before.Token() {
				t.Errorf("token %d after %d", l.Token(), before.Token())
			}
			release(t, l)
		})
	}
	wg.Wait()
	if len(repairs) != 1 || repairs[0].Err == nil {
		t.Errorf("the observer was told of %d repairs: %+v", len(repairs), repairs)
	}
	damage()
	weak := user(t, s, db, "SELECT", "UPDATE")
	_, err = sqllock.New(table.New(time.Minute, table.WithPool(weak))).TryLock(t.Context(), conn(t, weak), "job")
	wantErr(t, "TryLock without the privilege", err, sqllock.ErrPermission)
}

// TestTableOperator: List, Holder, Sweep and Break.
func TestTableOperator(t *testing.T) {
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		b := table.New(time.Hour)
		k := sqllock.New(b)
		if all, err := b.List(t.Context(), db); err != nil || len(all) != 0 {
			t.Fatalf("List of nothing: %+v, %v", all, err)
		}
		live, dead, bare := conn(t, db), conn(t, db), conn(t, db)
		l := acquire(t, k, live, "live")
		acquire(t, k, dead, "dead")
		deadID := sessionID(t, dead)
		do(t, db, "KILL CONNECTION "+strconv.FormatInt(deadID, 10))
		waitFor(t, "the session to end", func() bool { return !ask[sql.NullInt64](t, db, "SELECT IS_USED_LOCK('dead')").Valid })
		do(t, db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) VALUES ('php',0,UNIX_TIMESTAMP(),3600,0),('php over',0,1,1,0)")
		do(t, db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) VALUES ('',0,1,1,1)")
		do(t, bare, "DO GET_LOCK('bare',0)")

		all, err := b.List(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range all {
			got = append(got, fmt.Sprintf("%s %v %d", h.Key, h.Alive, h.Session))
		}
		want := fmt.Sprintf(" false 0,dead false %d,live true %d,php false 0,php over false 0", deadID, sessionID(t, live))
		if strings.Join(got, ",") != want {
			t.Errorf("List: got %v, want %s", got, want)
		}
		if h := all[2]; h.User == "" || h.Host == "" || h.Database != database(t, db) || h.Process == "" || h.Token != l.Token() ||
			time.Until(h.Expires) < 30*time.Minute || time.Since(h.Since) > time.Hour {
			t.Errorf("List tells of a live holder %+v", h)
		}
		h, err := k.Holder(t.Context(), db, "bare")
		if err != nil || h.Session != sessionID(t, bare) || !h.Alive || !h.Expires.IsZero() {
			t.Errorf("Holder of a doorbell without a row: %+v, %v", h, err)
		}

		if n, err := b.Sweep(t.Context(), db); err != nil || n != 3 {
			t.Errorf("Sweep removed %d, %v; want 3, the dead and what PHP has left", n, err)
		}
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check after Sweep: %v", err)
		}

		_, err = k.Break(t.Context(), db, "nobody")
		wantErr(t, "Break of a free lock", err, sqllock.ErrNotHeld)
		tx, err := live.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // its session is gone
		id := ask[int64](t, tx, "SELECT CONNECTION_ID()")
		h, err = k.Break(t.Context(), db, "live")
		if err != nil || h.Session != id || h.Process == "" {
			t.Errorf("Break says %+v, %v; the holder was session %d", h, err, id)
		}
		if err := tx.Commit(); err == nil {
			t.Error("the holder could commit after Break")
		}
		wantErr(t, "the handle", l.Check(t.Context()), sqllock.ErrLost)
		h, err = k.Break(t.Context(), db, "bare")
		if err != nil || h.Session == 0 {
			t.Errorf("Break of a doorbell without a row: %+v, %v", h, err)
		}
		// A row that looks older than the server, after its clock was set back.
		old := conn(t, db)
		acquire(t, k, old, "old")
		do(t, db, "UPDATE shared_locks SET created=1 WHERE name='old'")
		h, err = k.Break(t.Context(), db, "old")
		if err != nil || h.Session == 0 {
			t.Errorf("Break of a row that looks older than the server: %+v, %v", h, err)
		}
		if err := old.PingContext(t.Context()); err == nil {
			t.Error("Break said so, and its holder lives")
		}
		for _, name := range []string{"live", "bare", "old"} {
			l, err := k.TryLock(t.Context(), conn(t, db), name)
			if err != nil {
				t.Fatalf("TryLock after Break: %v", err)
			}
			release(t, l)
		}
		do(t, db, "DELETE FROM shared_locks WHERE name='php'")
		if n := rowsLeft(t, db); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})
}

// operatorSQL is the statements that the documentation gives the operator.
func operatorSQL(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile("../docs/servers.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(page), "```sql\n")
	rights, _, _ := strings.Cut(blocks[1], "```")
	night, _, _ := strings.Cut(blocks[2], "```")
	statements := append(strings.Split(night, ";\n"), rights)
	if len(blocks) != 3 || len(statements) != 6 || statements[4] != "" {
		t.Fatalf("the page has the statements %q", statements)
	}
	return statements
}

// TestOperatorSQL runs what the documentation gives the operator.
func TestOperatorSQL(t *testing.T) {
	named, listing := operatorSQL(t)[0], operatorSQL(t)[1]
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		c, dead := conn(t, db), conn(t, db)
		acquire(t, sqllock.New(table.New(time.Hour)), dead, "dead")
		do(t, db, "KILL CONNECTION "+strconv.FormatInt(sessionID(t, dead), 10))
		waitFor(t, "the session to end", func() bool { return !ask[sql.NullInt64](t, db, "SELECT IS_USED_LOCK('dead')").Valid })
		l := acquire(t, sqllock.New(table.New(time.Hour)), c, "job")
		defer release(t, l)
		rows, err := db.QueryContext(t.Context(), listing)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		alive := make(map[string]bool)
		for rows.Next() {
			var name, holder, since, until string
			var id int64
			var is bool
			if err := rows.Scan(&name, &holder, &id, &since, &until, &is); err != nil {
				t.Fatal(err)
			}
			alive[name] = is
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if len(alive) != 2 || !alive["job"] || alive["dead"] {
			t.Errorf("the listing says %v", alive)
		}
		if got := ask[sql.NullInt64](t, db, named); got.Valid {
			t.Errorf("nobody has that lock, and %s says %v", named, got.Int64)
		}
		billing := acquire(t, sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("billing")), c, "invoices")
		if got := ask[sql.NullInt64](t, db, named); got.Int64 != billing.Grant().Session {
			t.Errorf("%s says %v, want %d", named, got.Int64, billing.Grant().Session)
		}
		release(t, billing)
	})
}

// TestTableRoundTrips counts what acquire, check, extend and release send once the
// server is known.
func TestTableRoundTrips(t *testing.T) {
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		name := database(t, db)
		around := int64(1) // what each call takes
		if ask[string](t, db, "SELECT engine FROM information_schema.tables WHERE table_schema=DATABASE() AND table_name='shared_locks'") == "InnoDB" {
			around = 2
			if s.Kind == testdb.MySQL {
				around = 3
			}
		}
		for _, dsn := range []struct {
			name   string
			change func(*mysql.Config)
		}{
			{"default", func(*mysql.Config) {}},
			{"interpolateParams", func(c *mysql.Config) { c.InterpolateParams = true }},
			{"clientFoundRows", func(c *mysql.Config) { c.ClientFoundRows = true }},
			{"multiStatements", func(c *mysql.Config) { c.MultiStatements = true }},
			{"ANSI_QUOTES", func(c *mysql.Config) {
				c.Params = map[string]string{"sql_mode": "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'"}
			}},
			{"not strict", func(c *mysql.Config) { c.Params = map[string]string{"sql_mode": "''"} }},
			{"gbk", func(c *mysql.Config) { c.Collation = "gbk_chinese_ci" }},
		} {
			t.Run(dsn.name, func(t *testing.T) {
				db, writes := counted(t, s, func(c *mysql.Config) {
					c.DBName = name
					dsn.change(c)
				})
				c := conn(t, db)
				k := sqllock.New(table.New(time.Minute))
				release(t, acquire(t, k, c, "warm-up"))
				var l *sqllock.Lock
				sent := writes.Load()
				for _, step := range []struct {
					name string
					want int64
					do   func() error
				}{
					{"TryLock", around, func() (err error) { l, err = k.TryLock(t.Context(), c, "job"); return err }},
					{"Check", around, func() error { return l.Check(t.Context()) }},
					{"AssertTTL", around, func() error { return l.AssertTTL(t.Context(), time.Second) }},
					{"Extend", around, func() error { return l.Extend(t.Context(), time.Minute) }},
					{"Release", around, func() error { return l.Release(t.Context()) }},
					{"Lock", around, func() (err error) { l, err = k.Lock(t.Context(), c, "job"); return err }},
					{"Release after Lock", around, func() error { return l.Release(t.Context()) }},
				} {
					if err := step.do(); err != nil {
						t.Fatalf("%s: %v", step.name, err)
					}
					now := writes.Load()
					if now-sent != step.want {
						t.Errorf("%s sent %d packets, want %d", step.name, now-sent, step.want)
					}
					sent = now
				}
			})
		}
	})
}

// TestTableOfTwoDatabases: one Backend on sessions whose default databases differ,
// and so do the tables.
func TestTableOfTwoDatabases(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		k := sqllock.New(table.New(time.Minute, table.AllowUnmigrated()))
		var conns []*sql.Conn
		for _, engine := range engines {
			conns = append(conns, conn(t, lockTable(t, s, engine)))
		}
		php := schema(t, s)
		do(t, php, documentedTable)
		conns = append(conns, conn(t, php))
		for range 2 {
			for i, c := range conns {
				l := acquire(t, k, c, "job")
				if migrated := i < 2; migrated != (l.Token() != 0) {
					t.Errorf("database %d: token %d", i, l.Token())
				}
				_, err := k.TryLock(t.Context(), conns[(i+1)%3], "job")
				wantErr(t, "TryLock in another database of the server", err, sqllock.ErrBusy)
				if err := l.Check(t.Context()); err != nil {
					t.Errorf("Check: %v", err)
				}
				release(t, l)
			}
		}
	})
}
