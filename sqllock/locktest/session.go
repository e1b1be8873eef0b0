package locktest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/sqllock"
)

func testReentry(t *testing.T, b *bench) {
	conn, other := b.conn(t), b.conn(t)
	l := b.lock(t, conn, b.name)
	_, err := b.locker.TryLock(t.Context(), conn, b.name)
	wantIs(t, "TryLock again", err, sqllock.ErrHeld)
	wantNot(t, "TryLock again", err, sqllock.ErrBusy, sqllock.ErrSessionGone)
	_, err = b.locker.Lock(t.Context(), conn, b.name)
	wantIs(t, "Lock again", err, sqllock.ErrHeld)
	// A Locker that knows nothing of l has to learn it from the server.
	_, err = sqllock.New(b.Backend).Lock(t.Context(), conn, b.name)
	wantIs(t, "Lock again by another Locker", err, sqllock.ErrHeld)
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check after the re-entry: %v", err)
	}
	b.release(t, l)
	l, err = b.locker.TryLock(t.Context(), other, b.name)
	if err != nil {
		t.Fatalf("one release should free the lock: %v", err)
	}
	b.release(t, l)
}

// OddNames are names that a rule of names may stumble over. Any two of them are
// different locks, on servers that ignore letter case too.
func OddNames() []string {
	return []string{
		"a", " ", "a ", " a", "a  ", "'", "''", `"`, "`", `\`, `\\`, `\'`, "%", "_", ";--", "/*", "*/", "?", "$1", "a:b", "a::b", ":",
		"nul\x00", "nul", "nul\x00x", "tab\t", "line\n", "\r\n", "\x7f", "\x1b[0m",
		"café", "cafe", "cafe\u0301", "é", "É", "ß", "ss", "Я", "я", "\u212a", "k", "😀", "😁", "日本", "日本語", "\xff", "\xfe\xff", "\xc3", "\xc3(",
		strings.Repeat("x", 63), strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("x", 1000),
		strings.Repeat("x", 64) + "y", strings.Repeat("é", 32), strings.Repeat("é", 33), strings.Repeat("😀", 64),
		"x~0123456789abcdefghijklmnop", "~0123456789abcdefghijklmnop", "~", "x~",
	}
}

// testNames holds all of them at once: two that were one lock would exclude
// each other.
func testNames(t *testing.T, b *bench) {
	conn, other := b.conn(t), b.conn(t)
	locker := sqllock.New(b.Backend, sqllock.WithNamespace(b.name[:20]))
	_, err := locker.TryLock(t.Context(), conn, "")
	wantIs(t, "the empty name", err, sqllock.ErrInvalidName)
	names := OddNames()
	locks := make([]*sqllock.Lock, len(names))
	for i, name := range names {
		if locks[i], err = locker.TryLock(t.Context(), conn, name); err != nil {
			t.Fatalf("TryLock(%q) beside the others: %v", name, err)
		}
		if got := locks[i].Name(); got != name {
			t.Errorf("Name is %q, want %q", got, name)
		}
	}
	for i, name := range names {
		_, err := locker.TryLock(t.Context(), other, name)
		wantIs(t, fmt.Sprintf("TryLock(%q) by another session", name), err, sqllock.ErrBusy)
		b.release(t, locks[i])
		l, err := locker.TryLock(t.Context(), other, name)
		if err != nil {
			t.Fatalf("TryLock(%q) after its release: %v", name, err)
		}
		b.release(t, l)
	}
	// A namespace is a part of the name.
	here := b.lock(t, conn, b.name)
	there, err := sqllock.New(b.Backend, sqllock.WithNamespace("elsewhere")).TryLock(t.Context(), other, b.name)
	if err != nil {
		t.Fatalf("the same name in another namespace: %v", err)
	}
	b.release(t, there)
	b.release(t, here)
}

func testManyLocksOnOneSession(t *testing.T, b *bench) {
	const n = 100
	conn, other := b.conn(t), b.conn(t)
	locks := make([]*sqllock.Lock, n)
	name := func(i int) string { return fmt.Sprintf("%s-%d", b.name, i) }
	for i := range locks {
		locks[i] = b.lock(t, conn, name(i))
	}
	for i, l := range locks {
		if i%2 == 1 {
			b.release(t, l)
		}
	}
	for i, l := range locks {
		taken, err := b.locker.TryLock(t.Context(), other, name(i))
		if i%2 == 1 {
			if err != nil {
				t.Fatalf("a lock that was released: %v", err)
			}
			b.release(t, taken)
			continue
		}
		wantIs(t, "a lock that was not released", err, sqllock.ErrBusy)
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
		b.release(t, l)
	}
}

func testHolder(t *testing.T, b *bench) {
	conn := b.conn(t)
	_, err := b.locker.Holder(t.Context(), b.db, b.name)
	wantIs(t, "Holder of a free lock", err, sqllock.ErrNotHeld)
	_, err = b.locker.Holder(t.Context(), b.db, "")
	wantIs(t, "Holder of the empty name", err, sqllock.ErrInvalidName)
	l := b.lock(t, conn, b.name)
	h, err := b.locker.Holder(t.Context(), b.db, b.name)
	if err != nil {
		t.Fatalf("Holder: %v", err)
	}
	if !h.Alive || h.Key != b.key(t, b.name) {
		t.Errorf("Holder should say that the session lives, and the key: %+v", h)
	}
	if g := l.Grant(); b.Kill != nil && (h.Session == 0 || g.Session != 0 && h.Session != g.Session) {
		t.Errorf("Holder has session %d, the grant %d", h.Session, g.Session)
	}
	if b.Kill != nil && (h.User == "" || h.State == "") {
		t.Errorf("Holder of the same user should say more: %+v", h)
	}
	// Not a matter of speed: a sign, or a unit, that is wrong.
	if age := time.Since(h.Since); (b.Kill != nil || !h.Since.IsZero()) && (age < -time.Hour || age > time.Hour) {
		t.Errorf("Holder says that the session has been like that since %v", h.Since)
	}
	b.release(t, l)
	_, err = b.locker.Holder(t.Context(), b.db, b.name)
	wantIs(t, "Holder after the release", err, sqllock.ErrNotHeld)
}

func testDo(t *testing.T, b *bench) {
	other := b.conn(t)
	l := b.lock(t, other, b.name)
	ran := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- b.locker.Do(t.Context(), b.db, b.name, func(ctx context.Context, l *sqllock.Lock) error {
			close(ran)
			return errors.Join(ctx.Err(), l.Check(ctx))
		})
	}()
	b.waiting(t, b.name)
	select {
	case <-ran:
		t.Fatal("Do ran its function while another session held the lock")
	default:
	}
	b.release(t, l)
	if err := await(t, "Do to return", done); err != nil {
		t.Errorf("Do: %v", err)
	}
	await(t, "the function to have run", ran)

	// A full pool is a wait that ends with ctx, and an error that says so.
	pool := b.Open(t)
	defer pool.Close() //nolint:errcheck // nothing depends on it
	pool.SetMaxOpenConns(1)
	held, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close() //nolint:errcheck // nothing depends on it
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = b.locker.Do(ctx, pool, b.name, func(context.Context, *sqllock.Lock) error { return nil })
	wantIs(t, "Do on a full pool", err, context.Canceled)
}

func testTryDo(t *testing.T, b *bench) {
	other := b.conn(t)
	l := b.lock(t, other, b.name)
	never := func(context.Context, *sqllock.Lock) error {
		t.Error("TryDo ran its function while another session held the lock")
		return nil
	}
	ran, err := b.locker.TryDo(t.Context(), b.db, b.name, never)
	if ran || err != nil {
		t.Errorf("TryDo of a lock that is held: got %v, %v; want false, nil", ran, err)
	}
	b.release(t, l)
	// An ErrBusy of the function is the function's.
	ran, err = b.locker.TryDo(t.Context(), b.db, b.name, func(context.Context, *sqllock.Lock) error { return sqllock.ErrBusy })
	if !ran || !errors.Is(err, sqllock.ErrBusy) {
		t.Errorf("TryDo of a free lock: got %v, %v; want true, the function's error", ran, err)
	}
	b.free(t, b.name)
}

// testDoLoss kills the session of a lock that is idle in Do: the watch has to
// find out.
func testDoLoss(t *testing.T, b *bench) {
	err := b.locker.Do(t.Context(), b.db, b.name, func(ctx context.Context, l *sqllock.Lock) error {
		b.kill(t, l)
		await(t, "the ctx of the function to end", ctx.Done())
		wantIs(t, "the cause", context.Cause(ctx), sqllock.ErrLost)
		await(t, "Done", l.Done())
		return nil
	})
	wantIs(t, "Do whose lock was lost", err, sqllock.ErrLost)
	b.free(t, b.name)
}

func testGoroutineLeaks(t *testing.T, b *bench) {
	b.free(t, b.name) // what starts once has started
	before := goleak.IgnoreCurrent()
	pool := b.Open(t)
	holder, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waiter, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := b.lock(t, holder, b.name)
	ctx, cancel := context.WithCancel(t.Context())
	granted := b.attempt(ctx, waiter, b.name)
	b.waiting(t, b.name)
	cancel()
	await(t, "the cancelled waiter to return", granted)
	_ = b.locker.Do(t.Context(), pool, b.name+"-2", func(_ context.Context, l *sqllock.Lock) error {
		if b.Kill != nil {
			b.kill(t, l)
		}
		return nil
	})
	if _, err := b.locker.TryDo(t.Context(), pool, b.name+"-2", func(context.Context, *sqllock.Lock) error { return nil }); err != nil {
		t.Errorf("TryDo: %v", err)
	}
	// A handle that is dropped with its session leaves nothing either.
	_ = l
	if err := errors.Join(holder.Close(), waiter.Close(), pool.Close()); err != nil {
		t.Errorf("closing the pool: %v", err)
	}
	goleak.VerifyNone(t, before)
}
