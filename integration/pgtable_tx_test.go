package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
)

// pgtUntouched fails the test if the transaction on c has to do with the lock table.
func pgtUntouched(tb testing.TB, db *sql.DB, id int64) {
	tb.Helper()
	if n := ask[int](tb, db, "SELECT count(*) FROM pg_locks WHERE pid=$1 AND relation='shared_locks'::regclass", id); n != 0 {
		tb.Error("a statement on the lock table is a part of the caller's transaction")
	}
}

// TestPGTableInTransaction: acquire, wait, check, extend and release inside the caller's
// transaction, which goes on, and contains nothing of it.
func TestPGTableInTransaction(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, begin := range []string{
		"BEGIN", "BEGIN; INSERT INTO work VALUES (1)", "BEGIN; SELECT COUNT(*) FROM work", "BEGIN READ ONLY",
		"BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO work VALUES (1)", "BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO work VALUES (1)",
	} {
		for _, end := range []string{"COMMIT", "ROLLBACK"} {
			t.Run(begin+" "+end, func(t *testing.T) {
				t.Parallel()
				db := pgLockTable(t, s)
				do(t, db, "CREATE TABLE work (id int PRIMARY KEY)")
				lent := sameDatabase(t, s, db)
				c, other := conn(t, db), conn(t, db)
				id := pgtID(t, c)
				inside := func() {
					t.Helper()
					for statement := range strings.SplitSeq(begin, "; ") {
						do(t, c, statement)
					}
				}
				ended := func() {
					t.Helper()
					pgtUntouched(t, db, id)
					do(t, c, "SELECT 1") // it can go on
					do(t, c, end)
					want := 0
					if end == "COMMIT" && strings.Contains(begin, "INSERT") {
						want = 1
					}
					if n := ask[int](t, db, "SELECT COUNT(*) FROM work"); n != want {
						t.Errorf("after %s there are %d rows, want %d", end, n, want)
					}
					do(t, db, "DELETE FROM work")
				}
				busy := func(k *sqllock.Locker) {
					t.Helper()
					_, err := k.TryLock(t.Context(), other, "job")
					wantErr(t, "TryLock by another session", err, sqllock.ErrBusy)
				}
				plain, pooled := sqllock.New(pgtable.New(time.Hour)), sqllock.New(pgtable.New(time.Hour, pgtable.WithPool(lent)))

				inside()
				_, err := plain.TryLock(t.Context(), c, "job")
				wantErr(t, "TryLock without a pool", err, sqllock.ErrInTransaction)
				if err == nil || !strings.Contains(err.Error(), "pgtable.WithPool") {
					t.Errorf("the error should say what to do: %v", err)
				}
				ended()

				inside()
				l, err := pooled.TryLock(t.Context(), c, "job")
				if err != nil {
					t.Fatalf("TryLock: %v", err)
				}
				busy(pooled)
				if err := errors.Join(l.Check(t.Context()), l.Extend(t.Context(), 2*time.Hour), l.AssertTTL(t.Context(), 90*time.Minute)); err != nil {
					t.Errorf("Check, Extend, AssertTTL: %v", err)
				}
				_, err = pooled.TryLock(t.Context(), c, "job")
				wantErr(t, "TryLock again", err, sqllock.ErrHeld)
				ended()
				if err := l.Check(t.Context()); err != nil {
					t.Errorf("Check after the %s: %v", end, err)
				}
				busy(plain)
				release(t, l)
				pgtClean(t, db)

				l = acquire(t, plain, other, "job")
				inside()
				_, err = pooled.TryLock(t.Context(), c, "job")
				wantErr(t, "TryLock of a lock that is held", err, sqllock.ErrBusy)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
				_, err = pooled.Lock(ctx, c, "job")
				cancel()
				wantErr(t, "Lock that times out", err, sqllock.ErrBusy, context.DeadlineExceeded)
				granted := make(chan error, 1)
				var waiter *sqllock.Lock
				go func() {
					var err error
					waiter, err = pooled.Lock(t.Context(), c, "job")
					granted <- err
				}()
				pgtWaits(t, db, id, "advisory")
				release(t, l)
				if err := <-granted; err != nil {
					t.Fatalf("Lock: %v", err)
				}
				busy(pooled)
				ended()
				release(t, waiter)
				pgtClean(t, db)

				for k, left := range map[*sqllock.Locker]int{plain: 1, pooled: 0} {
					l = acquire(t, k, c, "job")
					inside()
					if err := l.Check(t.Context()); err != nil {
						t.Errorf("Check: %v", err)
					}
					if err := l.Extend(t.Context(), time.Hour); k == plain {
						wantErr(t, "Extend without a pool", err, sqllock.ErrInTransaction)
					} else if err != nil {
						t.Errorf("Extend: %v", err)
					}
					release(t, l)
					if n := rowsLeft(t, db); n != left {
						t.Errorf("%d rows are left, want %d", n, left)
					}
					newer, err := k.TryLock(t.Context(), other, "job")
					if err != nil {
						t.Fatalf("TryLock by another session, before the end of the transaction: %v", err)
					}
					ended()
					if err := newer.Check(t.Context()); err != nil {
						t.Errorf("the newer lock: %v", err)
					}
					release(t, newer)
					pgtClean(t, db)
				}

				// A holder that hangs is ended from within a transaction, too.
				hung := conn(t, db)
				acquire(t, plain, hung, "job")
				pgtExpire(t, db, "job")
				inside()
				l, err = pooled.TryLock(t.Context(), c, "job")
				if err != nil {
					t.Fatalf("TryLock of a hung holder's: %v", err)
				}
				if err := hung.PingContext(t.Context()); err == nil {
					t.Error("the hung session lives")
				}
				ended()
				release(t, l)
				pgtClean(t, db)
			})
		}
	}
}

// TestPGTableAborted: a transaction that has failed takes no statement.
func TestPGTableAborted(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	for _, lent := range []*sql.DB{nil, sameDatabase(t, s, db)} {
		k := sqllock.New(pgtable.New(time.Hour, pgtable.WithPool(lent)))
		c := conn(t, db)
		l := acquire(t, k, c, "job")
		do(t, c, "BEGIN")
		if _, err := c.ExecContext(t.Context(), "SELECT 1/0"); err == nil {
			t.Fatal("the test should have failed")
		}
		_, err := k.TryLock(t.Context(), c, "job-2")
		wantErr(t, "TryLock", err, sqllock.ErrInTransaction)
		if errors.Is(err, sqllock.ErrSessionGone) {
			t.Errorf("the session should be usable: %v", err)
		}
		err = l.Check(t.Context())
		if lent == nil {
			wantErr(t, "Check without a pool", err, sqllock.ErrInTransaction)
		} else if err != nil {
			t.Errorf("Check: %v", err)
		}
		do(t, c, "ROLLBACK")
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check after the rollback: %v", err)
		}
		do(t, c, "BEGIN")
		_, _ = c.ExecContext(t.Context(), "SELECT 1/0")
		wantErr(t, "Release", l.Release(t.Context()), sqllock.ErrUnknown, sqllock.ErrSessionGone)
		release(t, acquire(t, k, conn(t, db), "job"))
		pgtClean(t, db)
	}
}

// TestPGTableExtendBesideTransaction: the session of the lock is in a statement of a
// transaction, beyond the first end of the lease.
func TestPGTableExtendBesideTransaction(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	do(t, db, "CREATE TABLE work (id int PRIMARY KEY)")
	do(t, db, "INSERT INTO work VALUES (1)")
	k := sqllock.New(pgtable.New(2*time.Second, pgtable.WithPool(sameDatabase(t, s, db))))
	c, blocker, other := conn(t, db), conn(t, db), conn(t, db)
	l := acquire(t, k, c, "job")
	tx, err := c.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	ask[int](t, tx, "SELECT COUNT(*) FROM work")
	do(t, blocker, "BEGIN")
	do(t, blocker, "SELECT FROM work FOR UPDATE")
	busy := make(chan error, 1)
	go func() {
		_, err := tx.ExecContext(t.Context(), "UPDATE work SET id=3")
		busy <- err
	}()
	first := l.Grant().Until
	for time.Now().Before(first.Add(1100 * time.Millisecond)) {
		if err := l.Extend(t.Context(), time.Minute); err != nil {
			t.Fatalf("Extend: %v", err)
		}
		_, err := k.TryLock(t.Context(), other, "job")
		wantErr(t, "TryLock", err, sqllock.ErrBusy)
		time.Sleep(20 * time.Millisecond)
	}
	if len(busy) != 0 {
		t.Fatal("the session was not busy")
	}
	do(t, blocker, "ROLLBACK")
	if err := errors.Join(<-busy, l.AssertTTL(t.Context(), time.Second), tx.Commit()); err != nil {
		t.Errorf("the transaction: %v", err)
	}
	release(t, l)
	pgtClean(t, db)
}

// TestPGTableFullPool: the pool that was lent is the one that the locks are in, and they
// have all of it.
func TestPGTableFullPool(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	pool := sameDatabase(t, s, db)
	pool.SetMaxOpenConns(2)
	k := sqllock.New(pgtable.New(time.Minute, pgtable.WithPool(pool)))
	var wg, both sync.WaitGroup
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
	a, _ := conn(t, pool), conn(t, pool)
	l := acquire(t, k, a, "job")
	do(t, a, "BEGIN")
	err := l.Extend(t.Context(), time.Hour)
	wantErr(t, "Extend in a transaction with a full pool", err, sqllock.ErrInTransaction)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's ctx has not ended: %v", err)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check in a transaction with a full pool: %v", err)
	}
	release(t, l) // which leaves the row
	do(t, a, "ROLLBACK")
	release(t, acquire(t, k, a, "job"))
	pgtClean(t, db)
}

// TestPGTablePoolElsewhere: a pool on another database is found out.
func TestPGTablePoolElsewhere(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db, elsewhere := pgLockTable(t, s), pgLockTable(t, s)
	k := sqllock.New(pgtable.New(time.Minute, pgtable.WithPool(elsewhere)))
	c := conn(t, db)
	do(t, c, "BEGIN")
	_, err := k.TryLock(t.Context(), c, "job")
	wantErr(t, "TryLock", err, sqllock.ErrUnsupported)
	if err == nil || !strings.Contains(err.Error(), "same server and database") {
		t.Errorf("the error should say what is wrong: %v", err)
	}
	do(t, c, "SELECT 1")
	do(t, c, "COMMIT")
	pgtClean(t, db)
	k = sqllock.New(pgtable.New(time.Minute, pgtable.WithPool(pgDatabase(t, s))))
	do(t, c, "BEGIN")
	_, err = k.TryLock(t.Context(), c, "job")
	wantErr(t, "TryLock where the pool has no table", err, sqllock.ErrNoTable)
	do(t, c, "COMMIT")
	pgtClean(t, db)
}

// TestPGTableLateClaim: a claim over the pool that comes when its session has let go of the
// doorbell, and another one has the lock, changes nothing.
func TestPGTableLateClaim(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	lent := sameDatabase(t, s, db, func(c *pgx.ConnConfig) { c.RuntimeParams["application_name"] = "lent" })
	pooled, plain := sqllock.New(pgtable.New(time.Hour, pgtable.WithPool(lent))), sqllock.New(pgtable.New(time.Hour))
	c, other, operator := conn(t, db), conn(t, db), conn(t, db)
	// What a dead session has left is locked, so the claim has to wait after it has looked.
	do(t, db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired,token) VALUES ('job',0,1,1,1,1)")
	do(t, operator, "BEGIN")
	do(t, operator, "SELECT FROM shared_locks FOR UPDATE")
	do(t, c, "BEGIN")
	tried := make(chan error, 1)
	go func() {
		_, err := pooled.TryLock(t.Context(), c, "job")
		tried <- err
	}()
	waitFor(t, "the claim to wait for the row", func() bool {
		return ask[bool](t, db, "SELECT count(*)>0 FROM pg_stat_activity WHERE application_name='lent' AND wait_event_type='Lock'")
	})
	if err := pgKill(t.Context(), db, ask[int64](t, db, "SELECT pid FROM pg_locks WHERE locktype='advisory' AND database=(SELECT oid FROM pg_database WHERE datname=current_database())")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the session to end", func() bool { return pgtBells(t, db) == 0 })
	// The operator stands for the next holder, who replaces the row.
	do(t, operator, "UPDATE shared_locks SET connection_id=pg_backend_pid(),token=9,ttl=9999999999")
	pgtRing(t, operator, "job")
	do(t, operator, "COMMIT")
	if err := <-tried; err == nil {
		t.Error("a dead session was granted the lock")
	}
	if got, want := ask[int64](t, db, "SELECT connection_id FROM shared_locks"), pgtID(t, operator); got != want {
		t.Errorf("the row of session %d was replaced by one of %d", want, got)
	}
	do(t, operator, "DELETE FROM shared_locks")
	do(t, operator, "SELECT pg_advisory_unlock_all()")
	release(t, acquire(t, plain, other, "job"))
	pgtClean(t, db)
}

// TestPGTableLimits: the limits of the session end neither a wait, nor a lock; an operator
// who has locked the row is told of, and nothing is left held.
func TestPGTableLimits(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	strict := sameDatabase(t, s, db, func(c *pgx.ConnConfig) {
		c.RuntimeParams["statement_timeout"], c.RuntimeParams["lock_timeout"] = "200", "100"
		c.RuntimeParams["idle_in_transaction_session_timeout"], c.RuntimeParams["synchronous_commit"] = "100", "off"
	})
	k := sqllock.New(pgtable.New(time.Hour))
	l := acquire(t, k, conn(t, db), "job")
	c := conn(t, strict)
	granted, id := pgtLocking(t, k, c, "job")
	pgtWaits(t, db, id, "advisory")
	do(t, db, "SELECT pg_sleep(0.5)")
	release(t, l)
	l = <-granted
	for name, want := range map[string]string{"statement_timeout": "200ms", "lock_timeout": "100ms", "synchronous_commit": "off", "default_transaction_isolation": "read committed"} {
		if got := ask[string](t, c, "SHOW "+name); got != want {
			t.Errorf("%s is %s after the lock, and was %s", name, got, want)
		}
	}
	release(t, l)

	operator := conn(t, db)
	do(t, operator, "BEGIN")
	do(t, operator, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired,token) VALUES ('job',0,1,1,1,1)")
	_, err := k.TryLock(t.Context(), c, "job")
	wantErr(t, "TryLock that waits for an operator's row", err, sqllock.ErrInterrupted)
	_, err = k.TryLock(t.Context(), conn(t, db), "job")
	if err == nil || !strings.Contains(err.Error(), "another session has locked table shared_locks") || errors.Is(err, sqllock.ErrSessionGone) {
		t.Errorf("TryLock that waits for an operator's row: %v", err)
	}
	do(t, operator, "ROLLBACK")
	pgtClean(t, db)
	release(t, acquire(t, k, c, "job"))
}

func pgtCancelled(i int) string { return fmt.Sprintf("cancelled %d", i) }

// TestPGTableInterrupted: a try whose statement is cancelled, by an operator, after it has
// taken the doorbell.
func TestPGTableInterrupted(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	k := sqllock.New(pgtable.New(time.Hour))
	operator, c := conn(t, db), conn(t, db)
	id := pgtID(t, c)
	for i := range 5 {
		do(t, operator, "BEGIN")
		do(t, operator, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired,token) VALUES ('"+pgtCancelled(i)+"',0,1,1,1,1)")
		tried := make(chan error, 1)
		go func() {
			_, err := k.TryLock(t.Context(), c, pgtCancelled(i))
			tried <- err
		}()
		pgtWaits(t, db, id, "transactionid")
		if n := pgtBells(t, db); n != 1 {
			t.Errorf("%d doorbells are held before the cancellation, want 1", n)
		}
		do(t, db, "SELECT pg_cancel_backend($1)", id)
		wantErr(t, "TryLock", <-tried, sqllock.ErrInterrupted)
		do(t, operator, "ROLLBACK")
		pgtClean(t, db)
	}
	if now := pgtID(t, c); now != id {
		t.Errorf("the session changed from %d to %d", id, now)
	}
}
