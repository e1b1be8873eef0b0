package locktest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// testWhileHeld is what package txguard relies on: the lock is asked about in a
// transaction on its session, which that does not disturb, and can't be released
// before what depends on it has been decided.
func testWhileHeld(t *testing.T, b *bench) {
	conn := b.conn(t)
	l := b.lock(t, conn, b.name)
	if l.Conn() != conn {
		t.Error("Conn is not the conn that the lock was acquired on")
	}
	var released <-chan error
	tx, err := conn.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	failure := errors.New("of the function")
	err = l.WhileHeld(t.Context(), sqllock.InTx{Conn: conn}, 0, func() error {
		released = releasing(t.Context(), l)
		_, err := b.locker.TryLock(t.Context(), b.conn(t), b.name)
		wantIs(t, "TryLock by another session", err, sqllock.ErrBusy)
		select {
		case err := <-released:
			t.Errorf("Release did not wait: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if err := tx.Commit(); err != nil {
			t.Errorf("the transaction: %v", err)
		}
		return failure
	})
	if err != failure { //nolint:errorlint // as it is
		t.Errorf("WhileHeld returned %v, want the error of the function", err)
	}
	if err := await(t, "the release", released); err != nil {
		t.Errorf("Release: %v", err)
	}
	never := func() error {
		t.Error("the function was called")
		return nil
	}
	err = l.WhileHeld(t.Context(), conn, 0, never)
	wantIs(t, "after the release", err, sqllock.ErrNotHeld)
	wantNot(t, "after the release", err, sqllock.ErrLost)

	if b.Kill == nil {
		return
	}
	lost := b.lock(t, conn, b.name)
	if tx, err = conn.BeginTx(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	b.kill(t, lost)
	err = lost.WhileHeld(t.Context(), sqllock.InTx{Conn: conn}, 0, never)
	wantIs(t, "in the transaction of a session that was killed", err, sqllock.ErrLost)
	_ = tx.Rollback() // the session is gone
	b.freed(t, b.name)
}

func releasing(ctx context.Context, l *sqllock.Lock) <-chan error {
	released := make(chan error, 1)
	go func() { released <- l.Release(ctx) }()
	return released
}

// testContext: a ctx of the lock ends with it, and tells how.
func testContext(t *testing.T, b *bench) {
	conn := b.conn(t)
	l := b.lock(t, conn, b.name)
	ctx, cancel := l.Context(t.Context())
	defer cancel()
	given, giveUp := l.Context(t.Context())
	giveUp()
	if ctx.Err() != nil || !errors.Is(given.Err(), context.Canceled) || errors.Is(context.Cause(given), sqllock.ErrNotHeld) {
		t.Errorf("while the lock is held: %v; the one that was given up: %v", ctx.Err(), context.Cause(given))
	}
	b.release(t, l)
	wantIs(t, "the cause after the release", context.Cause(ctx), sqllock.ErrNotHeld)
	late, cancel := l.Context(t.Context())
	defer cancel()
	wantIs(t, "the cause of one that comes late", context.Cause(late), sqllock.ErrNotHeld)

	if b.Kill == nil {
		return
	}
	lost := b.lock(t, conn, b.name)
	ctx, cancel = lost.Context(t.Context())
	defer cancel()
	b.kill(t, lost)
	wantIs(t, "Check", lost.Check(t.Context()), sqllock.ErrLost)
	wantIs(t, "the cause after the loss", context.Cause(ctx), sqllock.ErrLost)
}
