package locktest

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// ttl is the shortest lease that the tests wait to be over, and long one that
// none of them sees the end of.
const (
	ttl  = time.Second
	long = time.Hour
)

// leaseTests are of leases that end with their sessions, too, or of others.
func leaseTests(sessions bool) []subtest {
	tests := []subtest{
		{"Expiry", testExpiry},
		{"TryLockAfterExpiry", testTryLockAfterExpiry},
		{"Extend", testExtend},
		{"ExtendAfterTheEnd", testExtendAfterTheEnd},
		{"AssertTTL", testAssertTTL},
		{"BadTTL", testBadTTL},
		{"DoExpiry", testDoExpiry},
		{"HolderOfALease", testHolderOfALease},
	}
	if !sessions {
		return tests
	}
	return append(tests, subtest{"ExpiryInATransaction", testExpiryInATransaction}, subtest{"Tokens", testTokens})
}

// testNoTTL: a backend without TTLs says so.
func testNoTTL(t *testing.T, b *bench) {
	conn := b.conn(t)
	_, err := b.locker.TryLock(t.Context(), conn, b.name, sqllock.TTL(time.Minute))
	wantIs(t, "TryLock with a TTL", err, sqllock.ErrUnsupported)
	l := b.lock(t, conn, b.name)
	wantIs(t, "Extend", l.Extend(t.Context(), time.Minute), sqllock.ErrUnsupported)
	wantIs(t, "AssertTTL", l.AssertTTL(t.Context(), time.Minute), sqllock.ErrUnsupported)
	if got := l.Remaining(); got != math.MaxInt64 {
		t.Errorf("Remaining of a lock without a TTL: %v", got)
	}
	b.release(t, l)
}

// testExpiry has a holder that does nothing when its time is over.
func testExpiry(t *testing.T, b *bench) {
	holder, waiter := b.conn(t), b.conn(t)
	stale, err := b.locker.TryLock(t.Context(), holder, b.name, sqllock.TTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	if left := stale.Remaining(); left <= 0 || left > ttl {
		t.Errorf("Remaining is %v of %v", left, ttl)
	}
	newer := b.lock(t, waiter, b.name)
	if left := stale.Remaining(); left != 0 {
		t.Errorf("another session was granted the lock while its holder had %v left", left)
	}
	wantIs(t, "Check", stale.Check(t.Context()), sqllock.ErrLost)
	wantIs(t, "Err", stale.Err(), sqllock.ErrLost)
	wantIs(t, "Extend", stale.Extend(t.Context(), long), sqllock.ErrLost)
	wantIs(t, "Release", stale.Release(t.Context()), sqllock.ErrLost)
	if err := newer.Check(t.Context()); err != nil {
		t.Errorf("the newer lock: %v", err)
	}
	if b.Kill != nil {
		if newer.Token() <= stale.Token() {
			t.Errorf("token %d after %d", newer.Token(), stale.Token())
		}
		_, err = b.locker.TryLock(t.Context(), holder, b.name+"-2")
		wantIs(t, "TryLock on the session that was too late", err, sqllock.ErrSessionGone)
	}
	b.release(t, newer)
	b.free(t, b.name)
}

// testExpiryInATransaction: what was begun under a lock that is over can't be
// committed.
func testExpiryInATransaction(t *testing.T, b *bench) {
	holder, waiter := b.conn(t), b.conn(t)
	if _, err := b.locker.TryLock(t.Context(), holder, b.name, sqllock.TTL(ttl)); err != nil {
		t.Fatal(err)
	}
	tx, err := holder.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // its session is gone
	if err := tx.QueryRowContext(t.Context(), "SELECT 1").Scan(new(int)); err != nil {
		t.Fatal(err)
	}
	newer := b.lock(t, waiter, b.name)
	if err := tx.Commit(); err == nil {
		t.Error("the transaction of a holder whose time was over could be committed after the next grant")
	}
	b.release(t, newer)
}

func testTryLockAfterExpiry(t *testing.T, b *bench) {
	holder, other := b.conn(t), b.conn(t)
	stale, err := b.locker.TryLock(t.Context(), holder, b.name, sqllock.TTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.locker.TryLock(t.Context(), other, b.name)
	wantIs(t, "TryLock before the time is over", err, sqllock.ErrBusy)
	b.eventually(t, "TryLock to take over", func() bool {
		l, err := b.locker.TryLock(t.Context(), other, b.name)
		if err != nil {
			wantIs(t, "TryLock", err, sqllock.ErrBusy)
			return false
		}
		b.release(t, l)
		return true
	})
	wantIs(t, "Release", stale.Release(t.Context()), sqllock.ErrLost)
}

func testExtend(t *testing.T, b *bench) {
	holder, other := b.conn(t), b.conn(t)
	l, err := b.locker.TryLock(t.Context(), holder, b.name, sqllock.TTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Extend(t.Context(), long); err != nil {
		t.Fatalf("Extend: %v", err)
	}
	if left := l.Remaining(); left <= ttl || left > long {
		t.Errorf("Remaining is %v after an extension to %v", left, long)
	}
	// Again, by as much: nothing changes, and that is no loss.
	for range 3 {
		if err := l.Extend(t.Context(), long); err != nil {
			t.Fatalf("Extend again: %v", err)
		}
	}
	if err := l.AssertTTL(t.Context(), long/2); err != nil {
		t.Errorf("AssertTTL: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*ttl)
	defer cancel()
	_, err = b.locker.Lock(ctx, other, b.name)
	wantIs(t, "Lock for longer than the first TTL", err, sqllock.ErrBusy, context.DeadlineExceeded)
	// Shorter is possible, too.
	if err := l.Extend(t.Context(), ttl); err != nil {
		t.Fatalf("Extend to less: %v", err)
	}
	b.release(t, b.lock(t, other, b.name))
	wantIs(t, "Release", l.Release(t.Context()), sqllock.ErrLost)
}

func testExtendAfterTheEnd(t *testing.T, b *bench) {
	conn, other := b.conn(t), b.conn(t)
	l := b.lock(t, conn, b.name)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantIs(t, "Extend with a ctx that has ended", l.Extend(ctx, long), context.Canceled)
	if err := l.Extend(t.Context(), 0); err == nil {
		t.Error("Extend by nothing should be an error")
	}
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check after extensions that were refused: %v", err)
	}
	b.release(t, l)
	wantIs(t, "Extend after the release", l.Extend(t.Context(), long), sqllock.ErrNotHeld)
	if left := l.Remaining(); left != 0 {
		t.Errorf("Remaining after the release: %v", left)
	}
	b.free(t, b.name)

	if b.Kill != nil {
		l = b.lock(t, conn, b.name)
		b.kill(t, l)
		newer := b.lock(t, other, b.name)
		wantIs(t, "Extend of a lost lock", l.Extend(t.Context(), long), sqllock.ErrLost)
		if err := newer.Check(t.Context()); err != nil {
			t.Errorf("the newer lock: %v", err)
		}
		b.release(t, newer)
	}

	// A time that is over is over, even if nobody else wants the lock.
	l, err := b.locker.TryLock(t.Context(), b.conn(t), b.name, sqllock.TTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	b.eventually(t, "the TTL to be over", func() bool {
		h, err := b.locker.Holder(t.Context(), b.db, b.name)
		if err != nil && !errors.Is(err, sqllock.ErrNotHeld) { // what is over may be told as nothing
			t.Fatalf("Holder: %v", err)
		}
		return h.TimeLeft <= 0
	})
	wantIs(t, "Extend after the TTL", l.Extend(t.Context(), long), sqllock.ErrLost)
	b.freed(t, b.name)
}

func testAssertTTL(t *testing.T, b *bench) {
	conn := b.conn(t)
	l, err := b.locker.TryLock(t.Context(), conn, b.name, sqllock.TTL(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AssertTTL(t.Context(), 30*time.Second); err != nil {
		t.Errorf("AssertTTL of less than there is: %v", err)
	}
	err = l.AssertTTL(t.Context(), time.Hour)
	wantIs(t, "AssertTTL of more than there is", err, sqllock.ErrTTLTooShort)
	wantNot(t, "AssertTTL of more than there is", err, sqllock.ErrLost, sqllock.ErrUnknown)
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check after it: %v", err)
	}
	b.release(t, l)
	wantIs(t, "AssertTTL after the release", l.AssertTTL(t.Context(), 0), sqllock.ErrNotHeld)
}

// testTokens: they grow over releases, on one session and on two, over the death
// of a holder, and over the end of its time.
func testTokens(t *testing.T, b *bench) {
	first, second := b.conn(t), b.conn(t)
	var last int64
	grew := func(l *sqllock.Lock) *sqllock.Lock {
		t.Helper()
		if l.Token() <= last {
			t.Errorf("token %d after %d", l.Token(), last)
		}
		last = l.Token()
		return l
	}
	for range 20 {
		b.release(t, grew(b.lock(t, first, b.name)))
		b.release(t, grew(b.lock(t, second, b.name)))
	}
	b.kill(t, grew(b.lock(t, first, b.name)))
	l := grew(b.lock(t, second, b.name))
	if err := l.Extend(t.Context(), ttl); err != nil {
		t.Fatal(err)
	}
	if l.Token() != last {
		t.Error("an extension is no grant")
	}
	b.release(t, grew(b.lock(t, b.conn(t), b.name)))
}

func testBadTTL(t *testing.T, b *bench) {
	conn := b.conn(t)
	for _, d := range []time.Duration{0, -time.Second, math.MinInt64} {
		if l, err := b.locker.TryLock(t.Context(), conn, b.name, sqllock.TTL(d)); err == nil {
			t.Errorf("a TTL of %v was accepted", d)
			b.release(t, l)
		}
	}
	for _, d := range []time.Duration{1, time.Millisecond, math.MaxInt64} {
		l, err := b.locker.TryLock(t.Context(), conn, b.name, sqllock.TTL(d))
		if err != nil {
			t.Fatalf("a TTL of %v: %v", d, err)
		}
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check with a TTL of %v: %v", d, err)
		}
		_, err = b.locker.TryLock(t.Context(), b.conn(t), b.name)
		wantIs(t, "TryLock by another session", err, sqllock.ErrBusy)
		b.release(t, l)
	}
	b.free(t, b.name)
}

// testDoExpiry: a function that hangs loses its lock, and is told.
func testDoExpiry(t *testing.T, b *bench) {
	err := b.locker.Do(t.Context(), b.db, b.name, func(ctx context.Context, _ *sqllock.Lock) error {
		await(t, "the ctx of the function to end", ctx.Done())
		wantIs(t, "the cause", context.Cause(ctx), sqllock.ErrLost)
		return nil
	}, sqllock.TTL(ttl))
	wantIs(t, "Do whose time was over", err, sqllock.ErrLost)
	b.freed(t, b.name)
	err = b.locker.Do(t.Context(), b.db, b.name, func(ctx context.Context, l *sqllock.Lock) error {
		return errors.Join(ctx.Err(), l.Extend(ctx, long), l.AssertTTL(ctx, long/2))
	}, sqllock.TTL(ttl))
	if err != nil {
		t.Errorf("Do that extends: %v", err)
	}
	b.free(t, b.name)
}

func testHolderOfALease(t *testing.T, b *bench) {
	conn := b.conn(t)
	l, err := b.locker.TryLock(t.Context(), conn, b.name, sqllock.TTL(long))
	if err != nil {
		t.Fatal(err)
	}
	h := b.holder(t, l)
	if h.Token != l.Token() {
		t.Errorf("Holder has token %d, the lock %d", h.Token, l.Token())
	}
	for what, left := range map[string]time.Duration{"Expires": time.Until(h.Expires), "TimeLeft": h.TimeLeft} {
		if left < long/2 || left > 2*long {
			t.Errorf("Holder says by %s that %v of %v are left", what, left, long)
		}
	}
	b.release(t, l)
}
