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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// pgtID is the server's id of a session.
func pgtID(tb testing.TB, q sqllock.Querier) int64 {
	tb.Helper()
	return ask[int64](tb, q, "SELECT pg_backend_pid()")
}

// pgtExpire has the time of a row be over now.
func pgtExpire(tb testing.TB, db *sql.DB, name string) {
	tb.Helper()
	do(tb, db, "UPDATE shared_locks SET ttl=-1 WHERE name='"+name+"'")
}

// pgtRing takes the doorbell of a name, as package pgadvisory does, or another program.
func pgtRing(tb testing.TB, c *sql.Conn, name string) {
	tb.Helper()
	if !ask[bool](tb, c, "SELECT pg_try_advisory_lock(hashtextextended($1,0))", name) {
		tb.Fatalf("the doorbell of %s is taken", name)
	}
}

// pgtBells counts the doorbells that are held in the database of db.
func pgtBells(tb testing.TB, db *sql.DB) int {
	tb.Helper()
	return ask[int](tb, db, "SELECT count(*) FROM pg_locks WHERE locktype='advisory' AND database=(SELECT oid FROM pg_database WHERE datname=current_database())")
}

// pgtClean fails the test if a row or a doorbell is left.
func pgtClean(tb testing.TB, db *sql.DB) {
	tb.Helper()
	if rows, bells := rowsLeft(tb, db), pgtBells(tb, db); rows != 0 || bells != 0 {
		tb.Errorf("%d rows and %d doorbells are left", rows, bells)
	}
}

// pgtLocking is a Lock under way in a goroutine of its own, on the session called id.
func pgtLocking(t *testing.T, k *sqllock.Locker, c *sql.Conn, name string) (granted <-chan *sqllock.Lock, id int64) {
	t.Helper()
	id = pgtID(t, c)
	locked := make(chan *sqllock.Lock, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	go func() {
		l, err := k.Lock(ctx, c, name)
		if err != nil {
			t.Errorf("Lock: %v", err)
		}
		locked <- l
	}()
	return locked, id
}

// pgtWaits returns when the session waits for what pg_stat_activity calls event.
func pgtWaits(t *testing.T, db *sql.DB, id int64, event string) {
	t.Helper()
	waitFor(t, "the session to wait for "+event, func() bool {
		return ask[bool](t, db, "SELECT count(*)>0 FROM pg_stat_activity WHERE pid=$1 AND wait_event=$2", id, event)
	})
}

const pgtHolderEnv = "SQLLOCK_TEST_PG_HOLDER"

// TestPGTableHolderProcess is the process that TestPGTableHolderKilled kills.
func TestPGTableHolderProcess(t *testing.T) {
	dsn := os.Getenv(pgtHolderEnv)
	if dsn == "" {
		t.Skip("it is run by other tests")
	}
	db, err := testdb.OpenPostgres(dsn, func(c *pgx.ConnConfig) { c.Database = os.Getenv(pgtHolderEnv + "_DB") })
	if err != nil {
		t.Fatal(err)
	}
	c := conn(t, db)
	l := acquire(t, sqllock.New(pgtable.New(time.Hour)), c, "job")
	do(t, c, "BEGIN")
	do(t, c, "INSERT INTO work VALUES (1)")
	fmt.Println("held", l.Token())
	select {}
}

// TestPGTableHolderKilled: kill -9 of the holder's process, and the end of its session by
// an operator. The TTL is an hour.
func TestPGTableHolderKilled(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, way := range []string{"kill -9", "pg_terminate_backend"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			db := pgLockTable(t, s)
			do(t, db, "CREATE TABLE work (id int PRIMARY KEY)")
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPGTableHolderProcess$", "-test.v")
			cmd.Env = append(os.Environ(), pgtHolderEnv+"="+s.DSN, pgtHolderEnv+"_DB="+ask[string](t, db, "SELECT current_database()"))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			kill := sync.OnceFunc(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
			t.Cleanup(kill)
			var token int64
			for lines := bufio.NewScanner(out); token == 0 && lines.Scan(); {
				if said, ok := strings.CutPrefix(lines.Text(), "held "); ok {
					token, _ = strconv.ParseInt(said, 10, 64)
				}
			}
			var events []sqllock.Event
			k := sqllock.New(pgtable.New(time.Hour), onHolders(func(e sqllock.Event) { events = append(events, e) }))
			c := conn(t, db)
			_, err = k.TryLock(t.Context(), c, "job")
			wantErr(t, "TryLock while the process lives", err, sqllock.ErrBusy)
			h, err := k.Holder(t.Context(), db, "job")
			if err != nil || !h.Alive || !strings.Contains(h.Process, filepath.Base(os.Args[0])) || h.Token != token || h.User == "" || h.Host == "" ||
				h.State != "idle in transaction" || time.Until(h.Expires) < 50*time.Minute || h.TimeLeft < 50*time.Minute || time.Since(h.Since) > time.Minute {
				t.Errorf("the holder is told as %+v, %v", h, err)
			}
			if way == "kill -9" {
				kill()
			} else if err := pgKill(t.Context(), db, h.Session); err != nil {
				t.Fatal(err)
			}
			l := acquire(t, k, c, "job")
			if n := ask[int](t, db, "SELECT COUNT(*) FROM work"); n != 0 {
				t.Error("the dead holder's transaction was committed")
			}
			if l.Token() <= token {
				t.Errorf("token %d after %d", l.Token(), token)
			}
			if len(events) != 1 || events[0].Kind != sqllock.TakenOver || events[0].Holder.Session != h.Session || events[0].Holder.Token != token {
				t.Errorf("the observer was told %+v", events)
			}
			release(t, l)
			pgtClean(t, db)
		})
	}
}

// TestPGTableHungHolder: the TTL is over, the holder's session lives and is in a
// transaction. At the grant that has been rolled back, whatever the isolation levels, and
// neither others who wait nor bystanders come to harm.
func TestPGTableHungHolder(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			t.Parallel()
			db := pgLockTable(t, s)
			do(t, db, "CREATE TABLE work (id int PRIMARY KEY)")
			set := sameDatabase(t, s, db, func(c *pgx.ConnConfig) { // ours have to write all the same
				c.RuntimeParams["default_transaction_isolation"] = strings.ToLower(level.String())
				c.RuntimeParams["default_transaction_read_only"] = "on"
			})
			var events []sqllock.Event
			k := sqllock.New(pgtable.New(time.Second), onHolders(func(e sqllock.Event) { events = append(events, e) }))
			hung, other, bystander, second := conn(t, set), conn(t, set), conn(t, set), conn(t, set)
			stale := acquire(t, k, hung, "job")
			id := pgtID(t, hung)
			tx, err := hung.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback() //nolint:errcheck // its session is gone
			do(t, tx, "SET TRANSACTION READ WRITE")
			if err := stale.Check(t.Context()); err != nil {
				t.Errorf("Check in the transaction: %v", err)
			}
			do(t, tx, "INSERT INTO work VALUES (1)")
			l := acquire(t, k, other, "job", sqllock.TTL(time.Hour))
			// A row that was not rolled back yet would be waited for.
			rw := sameDatabase(t, s, db, func(c *pgx.ConnConfig) { c.RuntimeParams["lock_timeout"] = "1" })
			do(t, rw, "INSERT INTO work VALUES (1)")
			if err := tx.Commit(); err == nil {
				t.Error("the stale holder could commit")
			}
			wantErr(t, "the stale holder's Check", stale.Check(t.Context()), sqllock.ErrLost)
			if len(events) != 2 || events[0].Kind != sqllock.Killed || events[0].Holder.Session != id || events[1].Kind != sqllock.TakenOver || events[1].Holder.Session != id {
				t.Errorf("the observer was told %+v", events)
			}
			if left := l.Remaining(); left < time.Hour-30*time.Second {
				t.Errorf("%v are left of an hour", left)
			}
			granted, waiter := pgtLocking(t, k, second, "job")
			pgtWaits(t, db, waiter, "advisory")
			_, err = k.TryLock(t.Context(), bystander, "job")
			wantErr(t, "TryLock", err, sqllock.ErrBusy)
			release(t, l)
			release(t, <-granted)
			pgtClean(t, db)
		})
	}
}

// TestPGTableManyTakeOver: many find the row of a hung holder at a time. One session is
// ended, and one grant follows the other.
func TestPGTableManyTakeOver(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	var kills, takeovers, holders atomic.Int64
	k := sqllock.New(pgtable.New(time.Hour), onHolders(func(e sqllock.Event) {
		if e.Kind == sqllock.Killed {
			kills.Add(1)
		} else {
			takeovers.Add(1)
		}
	}))
	conns := make([]*sql.Conn, 9)
	for i := range conns {
		conns[i] = conn(t, db)
	}
	for range 10 {
		hung := conn(t, db)
		acquire(t, k, hung, "job")
		pgtExpire(t, db, "job")
		var wg sync.WaitGroup
		for i, c := range conns {
			wg.Go(func() {
				lock := k.Lock
				if i == 0 {
					lock = k.TryLock
				}
				l, err := lock(t.Context(), c, "job")
				if err != nil {
					if i > 0 || !errors.Is(err, sqllock.ErrBusy) {
						t.Errorf("session %d: %v", i, err)
					}
					return
				}
				if holders.Add(1) != 1 {
					t.Error("two sessions have the lock")
				}
				err = l.Check(t.Context())
				holders.Add(-1)
				if err := errors.Join(err, l.Release(t.Context())); err != nil {
					t.Errorf("session %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if err := hung.PingContext(t.Context()); err == nil {
			t.Error("the hung session lives")
		}
		_ = hung.Close()
	}
	if kills.Load() != 10 || takeovers.Load() != 10 {
		t.Errorf("the observer was told of %d kills and %d takeovers, want 10 each", kills.Load(), takeovers.Load())
	}
	pgtClean(t, db)
}

// TestPGTableSlowEnd: the session that is ended takes its time: its process is stopped.
// Nobody is granted the lock before it has ended.
func TestPGTableSlowEnd(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	do(t, db, "CREATE TABLE work (id int PRIMARY KEY)")
	k := sqllock.New(pgtable.New(time.Hour))
	hung, other, third := conn(t, db), conn(t, db), conn(t, db)
	acquire(t, k, hung, "job")
	tx, err := hung.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // its session is gone
	do(t, tx, "INSERT INTO work VALUES (1)")
	id := int(ask[int64](t, tx, "SELECT pg_backend_pid()"))
	if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id)); !strings.Contains(string(line), "idle in transaction") || syscall.Kill(id, syscall.SIGSTOP) != nil {
		t.Skip("the server's processes are out of reach")
	}
	resume := sync.OnceFunc(func() { _ = syscall.Kill(id, syscall.SIGCONT) })
	t.Cleanup(resume)
	pgtExpire(t, db, "job")
	_, err = k.TryLock(t.Context(), other, "job")
	wantErr(t, "TryLock", err, sqllock.ErrBusy, sqllock.ErrHolderAlive)
	if err != nil && !strings.Contains(err.Error(), strconv.Itoa(id)) {
		t.Errorf("the error should name the session: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = k.Lock(ctx, other, "job")
	wantErr(t, "Lock", err, sqllock.ErrBusy, sqllock.ErrHolderAlive, context.DeadlineExceeded)
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = k.Break(ctx, db, "job")
	wantErr(t, "Break", err, sqllock.ErrHolderAlive, context.DeadlineExceeded)
	granted, waiter := pgtLocking(t, k, third, "job")
	pgtWaits(t, db, waiter, "advisory")
	resume()
	l := <-granted
	if n := ask[int](t, db, "SELECT COUNT(*) FROM work"); n != 0 {
		t.Error("the stale holder's transaction was committed")
	}
	if err := other.PingContext(t.Context()); err != nil {
		t.Errorf("the session that gave up: %v", err)
	}
	release(t, l)
	pgtClean(t, db)
}

// TestPGTableSpared: a session is ended for a lock that it has, and for no other reason.
func TestPGTableSpared(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	k := sqllock.New(pgtable.New(time.Hour))
	other := conn(t, db)
	row := func(id int64, age string) {
		t.Helper()
		do(t, db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired,token) VALUES ('job',"+strconv.FormatInt(id, 10)+
			",floor(extract(epoch FROM clock_timestamp()))::bigint-"+age+",-1,1,1)")
	}
	alive := func(what string, c *sql.Conn) {
		t.Helper()
		if err := c.PingContext(t.Context()); err != nil {
			t.Errorf("%s: an innocent session was ended: %v", what, err)
		}
	}
	t.Run("the id is another session's", func(t *testing.T) {
		idle := conn(t, db)
		row(pgtID(t, idle), "0")
		release(t, acquire(t, k, other, "job"))
		alive("idle", idle)
	})
	t.Run("which is about to acquire", func(t *testing.T) {
		ringing := conn(t, db)
		pgtRing(t, ringing, "job")
		row(pgtID(t, ringing), "100") // older than the session
		_, err := k.TryLock(t.Context(), other, "job")
		wantErr(t, "TryLock", err, sqllock.ErrBusy)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = k.Lock(ctx, other, "job")
		wantErr(t, "Lock", err, sqllock.ErrBusy, context.DeadlineExceeded)
		if errors.Is(err, sqllock.ErrHolderAlive) {
			t.Errorf("nobody was told to end: %v", err)
		}
		alive("ringing", ringing)
		do(t, ringing, "SELECT pg_advisory_unlock_all()")
		release(t, acquire(t, k, ringing, "job"))
	})
	t.Run("shared", func(t *testing.T) {
		reader := conn(t, db)
		r := acquire(t, sqllock.New(pgadvisory.New()), reader, "job", sqllock.Shared())
		row(pgtID(t, reader), "0")
		_, err := k.TryLock(t.Context(), other, "job")
		wantErr(t, "TryLock", err, sqllock.ErrBusy)
		alive("reader", reader)
		release(t, r)
		release(t, acquire(t, k, other, "job"))
	})
	// The holder is about to let go: what was evaluated before the row could be had does
	// not count.
	t.Run("let go meanwhile", func(t *testing.T) {
		holder, operator := conn(t, db), conn(t, db)
		acquire(t, k, holder, "job")
		pgtExpire(t, db, "job")
		do(t, operator, "BEGIN")
		do(t, operator, "SELECT FROM shared_locks FOR UPDATE")
		granted, waiter := pgtLocking(t, k, other, "job")
		pgtWaits(t, db, waiter, "transactionid")
		do(t, holder, "SELECT pg_advisory_unlock_all()")
		do(t, operator, "COMMIT")
		release(t, <-granted)
		alive("holder", holder)
	})
	t.Run("extended meanwhile", func(t *testing.T) {
		holder, operator := conn(t, db), conn(t, db)
		l := acquire(t, k, holder, "job")
		pgtExpire(t, db, "job")
		do(t, operator, "BEGIN")
		do(t, operator, "UPDATE shared_locks SET ttl=3600") // as the extension would
		id := pgtID(t, other)
		tried := make(chan error, 1)
		go func() {
			_, err := k.TryLock(t.Context(), other, "job")
			tried <- err
		}()
		pgtWaits(t, db, id, "transactionid")
		do(t, operator, "COMMIT")
		wantErr(t, "TryLock", <-tried, sqllock.ErrBusy)
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
		release(t, l)
	})
	pgtClean(t, db)
}

// TestPGTableExtendBesideEnd: an extension that waits for the row while the session is being
// ended is refused, though the lease was in time when it was asked for.
func TestPGTableExtendBesideEnd(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	called := func(name string) *sql.DB {
		return sameDatabase(t, s, db, func(c *pgx.ConnConfig) { c.RuntimeParams["application_name"] = name })
	}
	waits := func(name string) {
		t.Helper()
		waitFor(t, name+" to wait for the row", func() bool {
			return ask[bool](t, db, "SELECT count(*)>0 FROM pg_stat_activity WHERE application_name=$1 AND wait_event_type='Lock'", name)
		})
	}
	k := sqllock.New(pgtable.New(time.Hour, pgtable.WithPool(called("extender"))))
	holder, operator := conn(t, db), conn(t, db)
	l := acquire(t, k, holder, "job")
	do(t, operator, "BEGIN")
	do(t, operator, "SELECT FROM shared_locks FOR UPDATE")
	broken, extended := make(chan error, 1), make(chan error, 1)
	breaker := called("breaker")
	go func() {
		_, err := k.Break(t.Context(), breaker, "job")
		broken <- err
	}()
	waits("breaker")
	go func() { extended <- l.Extend(t.Context(), time.Hour) }()
	waits("extender")
	do(t, operator, "COMMIT")
	wantErr(t, "Extend", <-extended, sqllock.ErrLost)
	if err := <-broken; err != nil {
		t.Errorf("Break: %v", err)
	}
	pgtClean(t, db)
}

// TestPGTableUnlockBeforeDelete: the doorbell of a release rings before its row is gone,
// or the release is undone after that.
func TestPGTableUnlockBeforeDelete(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	k := sqllock.New(pgtable.New(time.Hour))
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		holder, waiter := conn(t, db), conn(t, db)
		old := acquire(t, k, holder, "job")
		granted, id := pgtLocking(t, k, waiter, "job")
		pgtWaits(t, db, id, "advisory")
		do(t, holder, "BEGIN")
		do(t, holder, "DELETE FROM shared_locks WHERE name='job'")
		do(t, holder, "SELECT pg_advisory_unlock_all()")
		pgtWaits(t, db, id, "transactionid")
		do(t, holder, end)
		l := <-granted
		if l.Token() <= old.Token() {
			t.Errorf("%s: token %d after %d", end, l.Token(), old.Token())
		}
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("%s: Check: %v", end, err)
		}
		release(t, l)
		_ = holder.Close()
	}
	pgtClean(t, db)
}

// TestPGTableWaitCounts: a lease is counted from the grant, not from when its wait began.
func TestPGTableWaitCounts(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	k := sqllock.New(pgtable.New(time.Hour))
	held := acquire(t, k, conn(t, db), "job")
	waiter := conn(t, db)
	id := pgtID(t, waiter)
	type outcome struct {
		lock *sqllock.Lock
		err  error
	}
	granted := make(chan outcome, 1)
	start := time.Now()
	go func() {
		l, err := k.Lock(t.Context(), waiter, "job", sqllock.TTL(2*time.Second))
		granted <- outcome{l, err}
	}()
	pgtWaits(t, db, id, "advisory")
	underway := time.Since(start) // no more than that the server has got it later
	do(t, db, "SELECT pg_sleep(2.5)")
	before := time.Now()
	release(t, held)
	o := <-granted
	if o.err != nil {
		t.Fatal(o.err)
	}
	if until := o.lock.Grant().Until; until.Before(before.Add(2*time.Second-underway)) || until.After(time.Now().Add(2*time.Second)) {
		t.Errorf("a lease of 2s that was granted between %v and now ends in %v", time.Since(before), time.Until(until))
	}
	release(t, o.lock)
}

// TestPGTableHolderWithoutDoorbell: the row says that it is held, and its session lives,
// but has let go of the doorbell.
func TestPGTableHolderWithoutDoorbell(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	for _, lent := range []*sql.DB{nil, sameDatabase(t, s, db)} {
		k := sqllock.New(pgtable.New(time.Hour, pgtable.WithPool(lent)))
		for _, find := range []func(*sqllock.Lock) error{
			func(l *sqllock.Lock) error { return l.Release(t.Context()) },
			func(l *sqllock.Lock) error { return l.Check(t.Context()) },
			func(l *sqllock.Lock) error { return l.Extend(t.Context(), time.Hour) },
		} {
			holder, other := conn(t, db), conn(t, db)
			l := acquire(t, k, holder, "nobody's")
			do(t, holder, "SELECT pg_advisory_unlock_all()")
			wantErr(t, "the handle of what nobody has acquired since", find(l), sqllock.ErrLost)
			release(t, acquire(t, k, other, "nobody's"))
			holder = conn(t, db)
			l = acquire(t, k, holder, "job")
			do(t, holder, "SELECT pg_advisory_unlock_all()")
			h, err := k.Holder(t.Context(), db, "job")
			if err != nil || h.Alive || h.User != "" {
				t.Errorf("the holder is told as %+v, %v; it is not alive", h, err)
			}
			newer, err := k.TryLock(t.Context(), other, "job")
			if err != nil {
				t.Fatalf("TryLock: %v", err)
			}
			if err := holder.PingContext(t.Context()); err != nil {
				t.Errorf("there was no need to end the session: %v", err)
			}
			wantErr(t, "the old handle", find(l), sqllock.ErrLost)
			if err := newer.Check(t.Context()); err != nil {
				t.Errorf("the newer lock: %v", err)
			}
			release(t, newer)
		}
	}
	pgtClean(t, db)
}

// TestPGTableRowRemoved: an operator deletes the row of a live lock.
func TestPGTableRowRemoved(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	for _, lent := range []*sql.DB{nil, sameDatabase(t, s, db)} {
		k := sqllock.New(pgtable.New(time.Hour, pgtable.WithPool(lent)))
		for name, find := range map[string]func(*sqllock.Lock) error{
			"check":   func(l *sqllock.Lock) error { return l.Check(t.Context()) },
			"extend":  func(l *sqllock.Lock) error { return l.Extend(t.Context(), time.Hour) },
			"release": func(l *sqllock.Lock) error { return l.Release(t.Context()) },
			"release in a transaction": func(l *sqllock.Lock) error {
				do(t, l.Conn(), "BEGIN")
				return l.Release(t.Context())
			},
		} {
			if lent == nil && name == "release in a transaction" {
				continue // which does not know of the row
			}
			c := conn(t, db)
			l := acquire(t, k, c, "job")
			do(t, db, "TRUNCATE TABLE shared_locks")
			_, err := k.TryLock(t.Context(), conn(t, db), "job")
			wantErr(t, "TryLock while the session still has the doorbell", err, sqllock.ErrBusy)
			wantErr(t, name, find(l), sqllock.ErrLost)
			if err := c.PingContext(t.Context()); (err == nil) != strings.HasPrefix(name, "release") {
				t.Errorf("the session after %s: %v", name, err)
			}
			release(t, acquire(t, k, conn(t, db), "job"))
		}
	}
	pgtClean(t, db)
}

// TestPGTableCheckBesideWaiter: what a check gives back of the doorbell nobody else gets.
func TestPGTableCheckBesideWaiter(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	k := sqllock.New(pgtable.New(time.Hour))
	holder, waiter := conn(t, db), conn(t, db)
	l := acquire(t, k, holder, "job")
	granted, id := pgtLocking(t, k, waiter, "job")
	pgtWaits(t, db, id, "advisory")
	for range 50 {
		if err := errors.Join(l.Check(t.Context()), l.Extend(t.Context(), time.Hour)); err != nil {
			t.Fatalf("Check, Extend: %v", err)
		}
	}
	do(t, holder, "BEGIN")
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check in a transaction: %v", err)
	}
	do(t, holder, "COMMIT")
	if len(granted) != 0 {
		t.Error("the waiter was granted the lock")
	}
	release(t, l)
	release(t, <-granted)
	pgtClean(t, db)
}

// TestPGTableLeavingFirst: a session does not ring before its own row of before is removed,
// since with its doorbell rung it would look like that of a hung holder.
func TestPGTableLeavingFirst(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	k := sqllock.New(pgtable.New(time.Hour))
	back, operator := conn(t, db), conn(t, db)
	l := acquire(t, k, back, "job")
	do(t, back, "BEGIN")
	release(t, l)
	do(t, back, "COMMIT")
	do(t, operator, "BEGIN")
	do(t, operator, "SELECT FROM shared_locks FOR UPDATE")
	granted, id := pgtLocking(t, k, back, "job")
	pgtWaits(t, db, id, "transactionid")
	if n := pgtBells(t, db); n != 0 {
		t.Error("the session rings while its old row is there")
	}
	do(t, operator, "COMMIT")
	release(t, <-granted)

	// Neither does one that has to wait, be it for somebody who makes no row.
	other := conn(t, db)
	for range 3 { // as it does when its statements are prepared
		l = acquire(t, k, back, "job")
		do(t, back, "BEGIN")
		release(t, l)
		do(t, back, "COMMIT")
		held := acquire(t, sqllock.New(pgadvisory.New()), other, "job")
		granted, id = pgtLocking(t, k, back, "job")
		pgtWaits(t, db, id, "advisory")
		if n := rowsLeft(t, db); n != 0 {
			t.Error("the session waits, and its old row is there")
		}
		release(t, held)
		release(t, <-granted)
	}
	pgtClean(t, db)
}

// TestPGTableOwnLeaving: a session comes back for a lock whose row it could not remove
// when it released it, and whose time is over. Nobody takes it for a holder that hangs.
func TestPGTableOwnLeaving(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	k := sqllock.New(pgtable.New(time.Hour))
	back, others := conn(t, db), []*sql.Conn{conn(t, db), conn(t, db), conn(t, db)}
	for round := range 100 {
		l := acquire(t, k, back, "job")
		do(t, back, "BEGIN")
		release(t, l)
		do(t, back, "COMMIT")
		pgtExpire(t, db, "job")
		var wg sync.WaitGroup
		for _, c := range append(others, back) {
			wg.Go(func() {
				l, err := k.TryLock(t.Context(), c, "job")
				if err == nil {
					err = l.Release(t.Context())
				}
				if err != nil && (!errors.Is(err, sqllock.ErrBusy) || errors.Is(err, sqllock.ErrHolderAlive)) {
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
}
