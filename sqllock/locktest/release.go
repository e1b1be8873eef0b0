package locktest

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sqllock/go-sqllock/sqllock"
)

func testDoubleRelease(t *testing.T, b *bench) {
	conn := b.conn(t)
	l := b.lock(t, conn, b.name)
	select {
	case <-l.Done():
		t.Fatal("Done is closed while the lock is held")
	default:
	}
	if err := l.Err(); err != nil {
		t.Fatalf("Err while the lock is held: %v", err)
	}
	b.release(t, l)
	await(t, "Done after the release", l.Done())
	wantIs(t, "Err after the release", l.Err(), sqllock.ErrNotHeld)
	wantNot(t, "Err after the release", l.Err(), sqllock.ErrLost)
	err := l.Release(t.Context())
	wantIs(t, "the second release", err, sqllock.ErrNotHeld)
	wantNot(t, "the second release", err, sqllock.ErrLost)
	wantIs(t, "Check after the release", l.Check(t.Context()), sqllock.ErrNotHeld)

	// A newer grant, on the same session too, is none of the old handle's.
	newer := b.lock(t, conn, b.name)
	wantIs(t, "the third release", l.Release(t.Context()), sqllock.ErrNotHeld)
	if err := newer.Check(t.Context()); err != nil {
		t.Errorf("the newer lock: %v", err)
	}

	// Of many releases at once, one frees the lock.
	var wg sync.WaitGroup
	var freed atomic.Int64
	for range 8 {
		wg.Go(func() {
			if err := newer.Release(t.Context()); err == nil {
				freed.Add(1)
			} else {
				wantIs(t, "a release beside others", err, sqllock.ErrNotHeld)
			}
		})
	}
	wg.Wait()
	if n := freed.Load(); n != 1 {
		t.Errorf("%d of 8 concurrent releases freed the lock, want 1", n)
	}
	b.free(t, b.name)
}

func testReleaseWithDeadContext(t *testing.T, b *bench) {
	conn := b.conn(t)
	session := b.session(t, conn)
	l := b.lock(t, conn, b.name)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Release(ctx); err != nil {
		t.Errorf("Release with a ctx that has ended: %v", err)
	}
	b.free(t, b.name)
	b.usable(t, conn, session)
}

func testStaleRelease(t *testing.T, b *bench) {
	first, second := b.conn(t), b.conn(t)
	stale := b.lock(t, first, b.name)
	b.kill(t, stale)
	newer := b.lock(t, second, b.name)
	err := stale.Release(t.Context())
	wantIs(t, "the release of the old lock", err, sqllock.ErrLost)
	wantNot(t, "the release of the old lock", err, sqllock.ErrNotHeld, sqllock.ErrUnknown)
	wantIs(t, "the second release of the old lock", stale.Release(t.Context()), sqllock.ErrLost)
	if err := newer.Check(t.Context()); err != nil {
		t.Errorf("the newer lock: %v", err)
	}
	b.release(t, newer)
	b.free(t, b.name)
}

func testLossByKill(t *testing.T, b *bench) {
	conn := b.conn(t)
	l := b.lock(t, conn, b.name)
	sibling := b.lock(t, conn, b.name+"-sibling")
	b.kill(t, l)
	wantIs(t, "Check after the kill", l.Check(t.Context()), sqllock.ErrLost)
	await(t, "Done after the loss was found", l.Done())
	wantIs(t, "Err", l.Err(), sqllock.ErrLost)
	wantNot(t, "Err", l.Err(), sqllock.ErrNotHeld)
	wantIs(t, "the second Check", l.Check(t.Context()), sqllock.ErrLost)
	wantIs(t, "Release", l.Release(t.Context()), sqllock.ErrLost)
	if err := sibling.Release(t.Context()); !errors.Is(err, sqllock.ErrLost) && !errors.Is(err, sqllock.ErrUnknown) {
		t.Errorf("Release of another lock of the session: got %v, want ErrLost or ErrUnknown", err)
	}
	_, err := b.locker.TryLock(t.Context(), conn, b.name)
	wantIs(t, "TryLock on the dead session", err, sqllock.ErrSessionGone)
	b.freed(t, b.name)
	b.freed(t, b.name+"-sibling")
}

// testPoolHygiene leaves a session in every way there is. The pool has one
// connection, so the next one to use it gets the session that was left, if it
// was put back.
func testPoolHygiene(t *testing.T, b *bench) {
	pool := b.Open(t)
	t.Cleanup(func() { _ = pool.Close() })
	pool.SetMaxOpenConns(1)
	errWork := errors.New("the work failed")
	do := func(ctx context.Context, fn func(context.Context, *sqllock.Lock) error) error {
		return b.locker.Do(ctx, pool, b.name, fn)
	}
	locked := func(t *testing.T, ctx context.Context, then func(*sql.Conn, *sqllock.Lock)) {
		t.Helper()
		conn, err := pool.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // a session that is dead says so
		then(conn, b.lock(t, conn, b.name))
	}
	for _, way := range []struct {
		name  string
		leave func(t *testing.T)
	}{
		{"normal", func(t *testing.T) {
			if err := do(t.Context(), func(context.Context, *sqllock.Lock) error { return nil }); err != nil {
				t.Errorf("Do: %v", err)
			}
		}},
		{"error", func(t *testing.T) {
			err := do(t.Context(), func(context.Context, *sqllock.Lock) error { return errWork })
			wantIs(t, "Do", err, errWork)
		}},
		{"panic", func(t *testing.T) {
			defer func() {
				if got, ok := recover().(error); !ok || !errors.Is(got, errWork) {
					t.Errorf("recovered %v, want the panic of the function", got)
				}
			}()
			_ = do(t.Context(), func(context.Context, *sqllock.Lock) error { panic(errWork) })
		}},
		{"goexit", func(t *testing.T) {
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = do(t.Context(), func(context.Context, *sqllock.Lock) error {
					runtime.Goexit()
					return nil
				})
			}()
			await(t, "the goroutine to end", ended)
		}},
		{"dead context", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			err := do(ctx, func(ctx context.Context, _ *sqllock.Lock) error {
				cancel()
				return ctx.Err()
			})
			wantIs(t, "Do", err, context.Canceled)
			wantNot(t, "Do", err, sqllock.ErrUnknown, sqllock.ErrLost)
		}},
		{"early release", func(t *testing.T) {
			err := do(t.Context(), func(ctx context.Context, l *sqllock.Lock) error {
				b.release(t, l)
				await(t, "the ctx of the function to end", ctx.Done())
				wantIs(t, "the cause", context.Cause(ctx), sqllock.ErrNotHeld)
				return nil
			})
			if err != nil {
				t.Errorf("Do: %v", err)
			}
		}},
		{"lost session", func(t *testing.T) {
			err := do(t.Context(), func(_ context.Context, l *sqllock.Lock) error {
				b.kill(t, l)
				return errWork
			})
			wantIs(t, "Do", err, errWork, sqllock.ErrLost)
		}},
		{"open transaction", func(t *testing.T) {
			locked(t, t.Context(), func(conn *sql.Conn, l *sqllock.Lock) {
				tx, err := conn.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback() //nolint:errcheck // the point is that it comes after the release
				b.release(t, l)
			})
		}},
		{"lost session with an open transaction", func(t *testing.T) {
			locked(t, t.Context(), func(conn *sql.Conn, l *sqllock.Lock) {
				tx, err := conn.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback() //nolint:errcheck // the point is that it comes after the release
				b.kill(t, l)
				if err := tx.QueryRowContext(t.Context(), "SELECT 1").Scan(new(int)); err == nil {
					t.Error("a statement in the transaction of a killed session should fail")
				}
				// None of these may wait for the rollback.
				wantIs(t, "Check", l.Check(t.Context()), sqllock.ErrLost)
				wantIs(t, "Release", l.Release(t.Context()), sqllock.ErrLost)
				_, err = b.locker.TryLock(t.Context(), conn, b.name)
				wantIs(t, "TryLock", err, sqllock.ErrSessionGone)
			})
		}},
		{"open rows", func(t *testing.T) {
			locked(t, t.Context(), func(conn *sql.Conn, l *sqllock.Lock) {
				rows, err := conn.QueryContext(t.Context(), "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3")
				if err != nil {
					t.Fatal(err)
				}
				defer rows.Close()
				rows.Next()
				// A driver may refuse a statement beside open rows. Then the
				// session has to go, and the lock with it.
				if err := l.Release(t.Context()); err != nil && !errors.Is(err, sqllock.ErrLost) {
					wantIs(t, "Release beside open rows", err, sqllock.ErrUnknown)
				}
				if err := rows.Err(); err != nil {
					t.Logf("the rows: %v", err)
				}
			})
		}},
		{"acquire beside open rows", func(t *testing.T) {
			locked(t, t.Context(), func(conn *sql.Conn, l *sqllock.Lock) {
				rows, err := conn.QueryContext(t.Context(), "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3")
				if err != nil {
					t.Fatal(err)
				}
				defer rows.Close()
				rows.Next()
				// Either it works, or is refused, or the session is gone and the error says so.
				other, err := b.locker.TryLock(t.Context(), conn, b.name+"-other")
				if err == nil {
					b.release(t, other)
				}
				if err == nil || !errors.Is(err, sqllock.ErrSessionGone) {
					if err := errors.Join(rows.Close(), rows.Err()); err != nil {
						t.Errorf("the rows of the caller: %v", err)
					}
					b.release(t, l)
					return
				}
				wantIs(t, "TryLock beside open rows", err, sqllock.ErrSessionGone)
				wantIs(t, "the lock that the session had", l.Err(), sqllock.ErrLost)
				if err := rows.Err(); err != nil {
					t.Logf("the rows: %v", err)
				}
			})
		}},
	} {
		if b.Kill == nil && strings.HasPrefix(way.name, "lost session") {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			left := make(chan struct{})
			go func() {
				defer close(left)
				way.leave(t)
			}()
			await(t, "a call that should not wait for the caller's own transaction or rows", left)
			b.freed(t, b.name)
		})
	}
}
