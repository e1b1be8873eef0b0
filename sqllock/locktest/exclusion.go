package locktest

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// testExclusion has sessions increment a counter by reading it, doing a round
// trip, and writing it back. The control, without the lock, must lose updates.
func testExclusion(t *testing.T, b *bench) {
	const sessions = 8
	rounds := 25
	if b.Kill == nil { // a waiter that asks again and again takes its time
		rounds = 8
	}
	conns := make([]*sql.Conn, sessions)
	for i := range conns {
		conns[i] = b.conn(t)
	}
	run := func(t *testing.T, locked bool) (lost int64) {
		t.Helper()
		var counter atomic.Int64
		increment := func(conn *sql.Conn) error {
			n := counter.Load()
			err := conn.PingContext(t.Context())
			counter.Store(n + 1)
			return err
		}
		var wg sync.WaitGroup
		for _, conn := range conns {
			wg.Go(func() {
				for range rounds {
					var l *sqllock.Lock
					var err error
					if locked {
						if l, err = b.locker.Lock(t.Context(), conn, b.name); err != nil {
							t.Errorf("Lock: %v", err)
							return
						}
					}
					if err := increment(conn); err != nil {
						t.Errorf("a round trip inside the lock: %v", err)
					}
					if locked {
						if err := l.Release(t.Context()); err != nil {
							t.Errorf("Release: %v", err)
						}
					}
				}
			})
		}
		wg.Wait()
		return int64(sessions*rounds) - counter.Load()
	}
	if lost := run(t, true); lost != 0 {
		t.Errorf("%d of %d updates were lost inside the lock", lost, sessions*rounds)
	}
	b.eventually(t, "the control to lose an update without the lock", func() bool { return run(t, false) > 0 })
}

func testHandOff(t *testing.T, b *bench) {
	holder, waiter := b.conn(t), b.conn(t)
	l := b.lock(t, holder, b.name)
	granted := b.attempt(t.Context(), waiter, b.name)
	b.waiting(t, b.name)
	select {
	case a := <-granted:
		t.Fatalf("a waiter returned while the lock was held: %+v", a)
	default:
	}
	b.release(t, l)
	a := await(t, "the waiter to be granted the lock", granted)
	if a.err != nil {
		t.Fatalf("the waiter: %v", a.err)
	}
	if err := a.lock.Check(t.Context()); err != nil {
		t.Errorf("Check after the hand-off: %v", err)
	}
	b.release(t, a.lock)
	b.free(t, b.name)
}

func testTry(t *testing.T, b *bench) {
	holder, other := b.conn(t), b.conn(t)
	session := b.session(t, other)
	l := b.lock(t, holder, b.name)
	_, err := b.locker.TryLock(t.Context(), other, b.name)
	wantIs(t, "TryLock of a lock that is held", err, sqllock.ErrBusy)
	wantNot(t, "TryLock of a lock that is held", err, sqllock.ErrHeld, sqllock.ErrSessionGone, context.DeadlineExceeded)
	var oe *sqllock.OpError
	if !errors.As(err, &oe) || oe.Name != b.name {
		t.Errorf("the error should be an *OpError with the name: %#v", err)
	}
	b.usable(t, other, session)
	b.release(t, l)
	l, err = b.locker.TryLock(t.Context(), other, b.name)
	if err != nil {
		t.Fatalf("TryLock of a free lock: %v", err)
	}
	b.release(t, l)
}

func testTimeout(t *testing.T, b *bench) {
	holder, waiter := b.conn(t), b.conn(t)
	session := b.session(t, waiter)
	l := b.lock(t, holder, b.name)
	for _, d := range []time.Duration{time.Millisecond, 30 * time.Millisecond, 300 * time.Millisecond, 1100 * time.Millisecond} {
		before := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), d)
		_, err := b.locker.Lock(ctx, waiter, b.name)
		// The wait is in whole milliseconds, and one that is shorter is none.
		if waited := time.Since(before); waited < d-2*time.Millisecond {
			t.Errorf("Lock with %v gave up after %v", d, waited)
		}
		cancel()
		wantIs(t, "Lock that times out", err, context.DeadlineExceeded)
		if d > time.Millisecond { // which may be over before anything is sent
			wantIs(t, "Lock that times out", err, sqllock.ErrBusy)
		}
		wantNot(t, "Lock that times out", err, sqllock.ErrSessionGone, context.Canceled)
		b.usable(t, waiter, session)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("the holder's Check: %v", err)
	}
	b.release(t, l)
	b.free(t, b.name)
}

func testExpiredContext(t *testing.T, b *bench) {
	conn := b.conn(t)
	session := b.session(t, conn)
	l := b.lock(t, conn, b.name)
	for _, end := range []struct {
		name string
		ctx  func() (context.Context, context.CancelFunc)
		want error
	}{
		{"deadline", func() (context.Context, context.CancelFunc) {
			return context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		}, context.DeadlineExceeded},
		{"cancelled", func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx, cancel
		}, context.Canceled},
	} {
		ctx, cancel := end.ctx()
		t.Cleanup(cancel)
		_, err := b.locker.TryLock(ctx, conn, b.name+"-2")
		wantIs(t, "TryLock, "+end.name, err, end.want)
		wantNot(t, "TryLock, "+end.name, err, sqllock.ErrBusy, sqllock.ErrSessionGone)
		_, err = b.locker.Lock(ctx, conn, b.name+"-2")
		wantIs(t, "Lock, "+end.name, err, end.want)
		err = l.Check(ctx)
		wantIs(t, "Check, "+end.name, err, end.want, sqllock.ErrUnknown)
	}
	b.usable(t, conn, session)
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("the lock should have survived: %v", err)
	}
	b.release(t, l)
	b.free(t, b.name+"-2")
}

func testCancel(t *testing.T, b *bench) {
	holder, waiter := b.conn(t), b.conn(t)
	session := b.session(t, waiter)
	other := b.lock(t, waiter, b.name+"-other")
	l := b.lock(t, holder, b.name)
	cause := errors.New("the shop is closing")
	ctx, cancel := context.WithCancelCause(t.Context())
	granted := b.attempt(ctx, waiter, b.name)
	b.waiting(t, b.name)
	cancel(cause)
	a := await(t, "the cancelled waiter to return", granted)
	wantIs(t, "Lock that is cancelled", a.err, context.Canceled, cause)
	wantNot(t, "Lock that is cancelled", a.err, sqllock.ErrSessionGone, context.DeadlineExceeded)
	b.usable(t, waiter, session)
	if err := other.Check(t.Context()); err != nil {
		t.Errorf("another lock on the session of the waiter: %v", err)
	}
	b.release(t, other)
	b.release(t, l)
	b.free(t, b.name)
}

// testCancelAgainstGrant lets a cancellation and a release meet, as nearly at
// one moment as scheduling has it, and looks whether a waiter that gave up was
// left with the lock, or a later statement of its session was hit.
func testCancelAgainstGrant(t *testing.T, b *bench) {
	rounds, most, meet := 1000, 1000, func() time.Duration { return 400 * time.Microsecond }
	if b.Kill == nil { // a waiter that asks again and again takes its time
		rounds, most, meet = 30, 300, func() time.Duration { return 5 * time.Millisecond << rand.N(6) }
	}
	holder, waiter, third := b.conn(t), b.conn(t), b.conn(t)
	session := b.session(t, waiter)
	var grants, cancels int
	for i := 0; i < rounds || i < most && (grants == 0 || cancels == 0); i++ {
		l := b.lock(t, holder, b.name)
		ctx, cancel := context.WithCancel(t.Context())
		granted := b.attempt(ctx, waiter, b.name)
		if rand.N(2) == 0 { // else the cancellation may come before the wait
			b.waiting(t, b.name)
		}
		var wg sync.WaitGroup
		for _, end := range []func(){cancel, func() { b.release(t, l) }} {
			wg.Go(func() {
				spin(rand.N(meet()))
				end()
			})
		}
		wg.Wait()
		a := await(t, "the waiter to return", granted)
		if a.err == nil {
			grants++
			b.release(t, a.lock)
		} else {
			cancels++
			wantIs(t, "the waiter", a.err, context.Canceled)
			wantNot(t, "the waiter", a.err, sqllock.ErrSessionGone)
		}
		l, err := b.locker.TryLock(t.Context(), third, b.name)
		if err != nil {
			t.Fatalf("the waiter returned %v, and the lock is taken: %v", a.err, err)
		}
		b.release(t, l)
		if err := waiter.PingContext(t.Context()); err != nil {
			t.Fatalf("the next statement of the waiter's session: %v", err)
		}
	}
	b.usable(t, waiter, session)
	t.Logf("%d rounds: %d granted, %d cancelled", grants+cancels, grants, cancels)
	if grants == 0 || cancels == 0 {
		t.Errorf("the race was no race: %d granted, %d cancelled", grants, cancels)
	}
}

// spin lets a time pass that may be too short to sleep.
func spin(d time.Duration) {
	if d > time.Millisecond {
		time.Sleep(d)
		return
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}
