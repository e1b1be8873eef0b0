package memory_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// bench is a server, and a locker on it.
type bench struct {
	*memory.Server

	db     *sql.DB
	locker *sqllock.Locker
}

func newBench(tb testing.TB) *bench {
	tb.Helper()
	s := memory.New()
	b := &bench{s, s.DB(), sqllock.New(s.Backend(), sqllock.WithCheckInterval(time.Millisecond))}
	tb.Cleanup(func() { _ = b.db.Close() })
	return b
}

func conn(tb testing.TB, db *sql.DB) *sql.Conn {
	tb.Helper()
	c, err := db.Conn(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func try(tb testing.TB, k *sqllock.Locker, c *sql.Conn, name string, opts ...sqllock.LockOption) *sqllock.Lock {
	tb.Helper()
	l, err := k.TryLock(tb.Context(), c, name, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// result is what became of a Lock in a goroutine of its own.
type result struct {
	lock *sqllock.Lock
	err  error
}

// wait begins to wait, and returns when the server knows of it.
func (b *bench) wait(tb testing.TB, c *sql.Conn, name string) <-chan result {
	tb.Helper()
	before := b.Waiters(name)
	done := make(chan result, 1)
	go func() {
		l, err := b.locker.Lock(tb.Context(), c, name)
		done <- result{l, err}
	}()
	for deadline := time.Now().Add(10 * time.Second); b.Waiters(name) == before; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			tb.Fatal("nobody came to wait")
		}
	}
	return done
}

func want(tb testing.TB, err error, targets ...error) {
	tb.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			tb.Errorf("got error %v, want one that matches %q", err, target)
		}
	}
}

func wantNot(tb testing.TB, err error, targets ...error) {
	tb.Helper()
	for _, target := range targets {
		if errors.Is(err, target) {
			tb.Errorf("got error %v, which should not match %q", err, target)
		}
	}
}

func TestLose(t *testing.T) {
	b := newBench(t)
	want(t, b.Lose("job"), sqllock.ErrNotHeld)
	first := conn(t, b.db)
	l, sibling := try(t, b.locker, first, "job"), try(t, b.locker, first, "other")
	next := b.wait(t, conn(t, b.db), "job")
	if err := b.Lose("job"); err != nil {
		t.Fatal(err)
	}
	r := <-next
	if r.err != nil {
		t.Fatalf("who waited: %v", r.err)
	}
	want(t, l.Check(t.Context()), sqllock.ErrLost)
	want(t, sibling.Release(t.Context()), sqllock.ErrLost)
	if err := r.lock.Release(t.Context()); err != nil {
		t.Error(err)
	}
	want(t, b.Lose("job"), sqllock.ErrNotHeld)

	apart := sqllock.New(b.Backend(), sqllock.WithNamespace("billing"))
	err := apart.Do(t.Context(), b.db, "job", func(context.Context, *sqllock.Lock) error { return b.Lose("billing:job") })
	want(t, err, sqllock.ErrLost)
}

// TestLoseInDo: the function is told by its ctx.
func TestLoseInDo(t *testing.T) {
	b := newBench(t)
	err := b.locker.Do(t.Context(), b.db, "job", func(ctx context.Context, _ *sqllock.Lock) error {
		if err := b.Lose("job"); err != nil {
			t.Error(err)
		}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	want(t, err, sqllock.ErrLost)
}

func TestKill(t *testing.T) {
	b := newBench(t)
	if err := b.Kill(7); err == nil {
		t.Error("a session that does not exist was ended")
	}
	l := try(t, b.locker, conn(t, b.db), "job")
	waiter := conn(t, b.db)
	id := try(t, b.locker, waiter, "id").Grant().Session
	killed, next := b.wait(t, waiter, "job"), b.wait(t, conn(t, b.db), "job")
	if err := b.Kill(id); err != nil {
		t.Fatal(err)
	}
	r := <-killed
	want(t, r.err, sqllock.ErrSessionGone)
	wantNot(t, r.err, sqllock.ErrBusy)
	if got := b.Waiters("job"); got != 1 {
		t.Errorf("%d wait, want 1", got)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if r := <-next; r.err != nil {
		t.Errorf("the one behind it: %v", r.err)
	}
}

// TestKillIdle: a pool does not hand out a session that ended while it was idle.
func TestKillIdle(t *testing.T) {
	b := newBench(t)
	b.db.SetMaxOpenConns(1)
	c := conn(t, b.db)
	id := try(t, b.locker, c, "id").Grant().Session // which the connection takes into the pool
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Kill(id); err != nil {
		t.Fatal(err)
	}
	if got := try(t, b.locker, conn(t, b.db), "id").Grant().Session; got == id {
		t.Error("the pool kept a dead session")
	}
}

func TestFail(t *testing.T) {
	b := newBench(t)
	passing := errors.New("no route to host")
	c := conn(t, b.db)
	l := try(t, b.locker, c, "job")
	b.Fail(passing)
	err := l.Check(t.Context())
	want(t, err, sqllock.ErrUnknown, passing)
	wantNot(t, err, sqllock.ErrLost)
	_, err = b.locker.TryLock(t.Context(), c, "other")
	want(t, err, passing)
	wantNot(t, err, sqllock.ErrSessionGone, sqllock.ErrBusy)
	_, err = b.locker.Holder(t.Context(), b.db, "job")
	want(t, err, passing)
	_, err = b.db.Conn(t.Context())
	want(t, err, passing)
	want(t, c.PingContext(t.Context()), passing)
	_, err = c.BeginTx(t.Context(), nil)
	want(t, err, passing)
	b.Fail(nil)
	if err := errors.Join(l.Check(t.Context()), c.PingContext(t.Context())); err != nil {
		t.Errorf("when it has passed: %v", err)
	}
	b.Fail(passing)
	want(t, l.Release(t.Context()), sqllock.ErrUnknown, passing)
	b.Fail(nil)
	try(t, b.locker, conn(t, b.db), "job") // the session has been closed
}

func TestFailLease(t *testing.T) {
	b := newBench(t)
	passing := errors.New("no route to host")
	l := try(t, sqllock.New(b.Leases(time.Minute)), conn(t, b.db), "job")
	b.Fail(passing)
	want(t, l.Extend(t.Context(), time.Hour), sqllock.ErrUnknown, passing)
	b.Fail(nil)
	if err := l.Extend(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
}

func TestFirstComeFirstServed(t *testing.T) {
	b := newBench(t)
	l := try(t, b.locker, conn(t, b.db), "job")
	var waiting []<-chan result
	for range 20 {
		waiting = append(waiting, b.wait(t, conn(t, b.db), "job"))
	}
	for i, next := range waiting {
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := b.locker.TryLock(t.Context(), conn(t, b.db), "job")
		want(t, err, sqllock.ErrBusy) // nobody comes in between
		select {
		case r := <-next:
			if l = r.lock; r.err != nil {
				t.Fatal(r.err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("waiter %d was not served in its turn", i)
		}
	}
}

func TestDeadlock(t *testing.T) {
	b := newBench(t)
	one, two, three := conn(t, b.db), conn(t, b.db), conn(t, b.db)
	try(t, b.locker, one, "1")
	try(t, b.locker, two, "2")
	l := try(t, b.locker, three, "3")
	first, second := b.wait(t, one, "2"), b.wait(t, two, "3")
	_, err := b.locker.Lock(t.Context(), three, "1")
	want(t, err, sqllock.ErrDeadlock)
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := <-second
	if err := b.Lose("2"); err != nil {
		t.Fatal(err)
	}
	want(t, r.lock.Check(t.Context()), sqllock.ErrLost)
	if r := <-first; r.err != nil {
		t.Error(r.err)
	}
}

func TestNoDatabase(t *testing.T) {
	b := newBench(t)
	c := conn(t, b.db)
	l := try(t, b.locker, c, "job")
	isRefused := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "memory: this is no database") {
			t.Errorf("got error %v", err)
		}
	}
	_, err := c.ExecContext(t.Context(), "UPDATE invoices SET sent = 1")
	isRefused(err)
	for _, query := range []string{"SELECT a FROM b", "SELECT 1 UNION SELECT 2", "", "SELECT", "SELECT 1 FROM a"} {
		isRefused(c.QueryRowContext(t.Context(), query).Scan(new(string)))
	}
	isRefused(c.QueryRowContext(t.Context(), "SELECT 1", 1).Scan(new(string)))
	_, err = c.PrepareContext(t.Context(), "SELECT 1") //nolint:sqlclosecheck // there is none
	isRefused(err)

	tx, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := tx.QueryRowContext(t.Context(), "select 42").Scan(&n); err != nil || n != 42 {
		t.Errorf("got %d, %v", n, err)
	}
	if h, err := b.locker.Holder(t.Context(), tx, "job"); err != nil || h.Session != l.Grant().Session {
		t.Errorf("Holder over a transaction: %+v, %v", h, err)
	}
	if err := errors.Join(tx.Commit(), l.Check(t.Context())); err != nil {
		t.Error(err)
	}
}

// TestStrangers: a conn of another server, or of none, is told from one of this.
func TestStrangers(t *testing.T) {
	b, other := newBench(t), newBench(t)
	_, err := b.locker.TryLock(t.Context(), conn(t, other.db), "job")
	want(t, err, sqllock.ErrUnsupported)
	_, err = b.locker.Holder(t.Context(), other.db, "job")
	want(t, err, sqllock.ErrUnsupported)
	c := conn(t, b.db)
	_ = c.Close()
	_, err = b.locker.TryLock(t.Context(), c, "job")
	want(t, err, sqllock.ErrSessionGone, sql.ErrConnDone)
	c = conn(t, b.db)
	l := try(t, b.locker, c, "job")
	want(t, b.Backend().Check(t.Context(), c, sqllock.Grant{Key: "job"}), sqllock.ErrLost)
	want(t, b.Backend().Check(t.Context(), conn(t, b.db), l.Grant()), sqllock.ErrLost)
}

// TestDeadContext: a ctx that has ended does not reach a statement on a conn.
func TestDeadContext(t *testing.T) {
	b := newBench(t)
	c := conn(t, b.db)
	l := try(t, b.locker, c, "job")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	backend := b.Backend()
	_, held := backend.Holder(ctx, c, "job")
	_, watched := backend.Watch(ctx, c, nil)
	if err := errors.Join(held, watched, backend.Check(ctx, c, l.Grant()), l.Release(ctx)); err != nil {
		t.Error(err)
	}
}

func TestProcesses(t *testing.T) {
	b := newBench(t)
	second := b.DB()
	defer second.Close() //nolint:errcheck // a test's
	var processes []string
	for _, db := range []*sql.DB{b.db, second} {
		l := try(t, b.locker, conn(t, db), "job")
		h, err := b.locker.Holder(t.Context(), b.db, "job")
		if err != nil {
			t.Fatal(err)
		}
		processes = append(processes, h.Process)
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if processes[0] == processes[1] || slices.Contains(processes, "") {
		t.Errorf("two processes are called %q", processes)
	}
}
