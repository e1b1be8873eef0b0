package sqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/sqllock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a backend whose answers a test scripts. What is nil succeeds.
type fake struct {
	acquire func(ctx context.Context, conn *sql.Conn, req sqllock.Request) error
	release func() error
	check   func() error
}

func (f *fake) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	g := sqllock.Grant{Key: req.Key, Session: 7}
	if f.acquire == nil {
		return g, nil
	}
	return g, f.acquire(ctx, conn, req)
}

func (f *fake) Release(context.Context, *sql.Conn, sqllock.Grant) error {
	if f.release == nil {
		return nil
	}
	return f.release()
}

func (f *fake) Check(context.Context, sqllock.Querier, sqllock.Grant) error {
	if f.check == nil {
		return nil
	}
	return f.check()
}

func (f *fake) Holder(context.Context, sqllock.Querier, string) (sqllock.Holder, error) {
	return sqllock.Holder{}, sqllock.ErrNotHeld
}

var errNetwork = errors.New("network unreachable")

func pool(t *testing.T) *sql.DB {
	t.Helper()
	db, mock, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	mock.ExpectClose()
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func session(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func lock(t *testing.T, k *sqllock.Locker, conn *sql.Conn, name string) *sqllock.Lock {
	t.Helper()
	l, err := k.TryLock(t.Context(), conn, name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func is(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("%s: got %v, want an error that matches %q", what, err, w)
		}
	}
}

func TestBadInput(t *testing.T) {
	func() {
		defer func() {
			if got := fmt.Sprint(recover()); !strings.Contains(got, "mysqlnamed.New()") {
				t.Errorf("New(nil) should panic and say what it needs: %s", got)
			}
		}()
		sqllock.New(nil)
	}()
	k := sqllock.New(&fake{})
	_, err := k.Lock(t.Context(), nil, "invoices")
	if want := `sqllock: lock "invoices": the *sql.Conn is nil: take one with db.Conn, or use Do`; err == nil || err.Error() != want {
		t.Errorf("Lock on no conn: got %v, want %s", err, want)
	}
	err = k.Do(t.Context(), nil, "invoices", func(context.Context, *sqllock.Lock) error { return nil })
	if want := `sqllock: do "invoices": the *sql.DB is nil`; err == nil || err.Error() != want {
		t.Errorf("Do on no pool: got %v, want %s", err, want)
	}
	_, err = k.TryLock(t.Context(), session(t, pool(t)), "")
	is(t, "the empty name", err, sqllock.ErrInvalidName)
}

// An unconfirmed release costs the session, and every lock on it is told.
func TestUnconfirmedReleaseClosesTheSession(t *testing.T) {
	backend := &fake{release: func() error { return errNetwork }}
	k := sqllock.New(backend)
	conn := session(t, pool(t))
	l, sibling := lock(t, k, conn, "invoices"), lock(t, k, conn, "reports")

	err := l.Release(t.Context())
	is(t, "Release", err, sqllock.ErrUnknown, errNetwork)
	is(t, "Err", l.Err(), sqllock.ErrUnknown)
	is(t, "the second Release", l.Release(t.Context()), sqllock.ErrUnknown)
	if want := `sqllock: release "invoices": `; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("the error %q should start with %q", err, want)
	}
	is(t, "the other lock of the session", sibling.Err(), sqllock.ErrLost, sqllock.ErrSessionGone)
}

// A release that finds the lock lost leaves a session that is well alone.
func TestLostReleaseKeepsTheSession(t *testing.T) {
	backend := &fake{release: func() error { return sqllock.ErrLost }}
	k := sqllock.New(backend)
	conn := session(t, pool(t))
	l, sibling := lock(t, k, conn, "invoices"), lock(t, k, conn, "reports")
	is(t, "Release", l.Release(t.Context()), sqllock.ErrLost)
	if err := sibling.Err(); err != nil {
		t.Errorf("the other lock of the session: %v", err)
	}
}

func TestConnClosedBeforeRelease(t *testing.T) {
	backend := &fake{release: func() error { return sql.ErrConnDone }}
	l := lock(t, sqllock.New(backend), session(t, pool(t)), "invoices")
	err := l.Release(t.Context())
	is(t, "Release", err, sqllock.ErrUnknown, sql.ErrConnDone)
	if !strings.Contains(err.Error(), "the conn was closed before the lock was released") {
		t.Errorf("the error should say what went wrong: %v", err)
	}
}

func TestCheckThatCannotTell(t *testing.T) {
	backend := &fake{check: func() error { return errNetwork }}
	l := lock(t, sqllock.New(backend), session(t, pool(t)), "invoices")
	is(t, "Check", l.Check(t.Context()), sqllock.ErrUnknown, errNetwork)
	if err := l.Err(); err != nil {
		t.Errorf("the lock should go on: %v", err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Errorf("Release: %v", err)
	}
}

// Two goroutines that acquire one name on one conn would be one to the server.
func TestConcurrentAcquireOfOneSession(t *testing.T) {
	waiting, goOn := make(chan struct{}), make(chan struct{})
	backend := &fake{acquire: func(context.Context, *sql.Conn, sqllock.Request) error {
		close(waiting)
		<-goOn
		return nil
	}}
	k := sqllock.New(backend)
	conn := session(t, pool(t))
	done := make(chan error)
	go func() {
		_, err := k.Lock(t.Context(), conn, "invoices")
		done <- err
	}()
	<-waiting
	_, err := k.Lock(t.Context(), conn, "invoices")
	is(t, "the second Lock", err, sqllock.ErrHeld)
	close(goOn)
	if err := <-done; err != nil {
		t.Errorf("the first Lock: %v", err)
	}
}

// If the server grants what a handle was thought to hold, that handle had lost
// it, and its release must not free the new grant.
func TestNewerGrantOnTheSameSession(t *testing.T) {
	var releases atomic.Int64
	backend := &fake{release: func() error { releases.Add(1); return nil }}
	k := sqllock.New(backend)
	conn := session(t, pool(t))
	older, newer := lock(t, k, conn, "invoices"), lock(t, k, conn, "invoices")
	is(t, "the older lock", older.Err(), sqllock.ErrLost)
	is(t, "the release of the older lock", older.Release(t.Context()), sqllock.ErrLost)
	if n := releases.Load(); n != 0 {
		t.Errorf("the older handle released the newer grant")
	}
	if err := newer.Release(t.Context()); err != nil {
		t.Errorf("the release of the newer lock: %v", err)
	}
	// A failed acquire leaves the handle that is there alone.
	older = lock(t, k, conn, "invoices")
	backend.acquire = func(context.Context, *sql.Conn, sqllock.Request) error { return sqllock.ErrHeld }
	_, err := k.TryLock(t.Context(), conn, "invoices")
	is(t, "TryLock", err, sqllock.ErrHeld)
	if err := older.Release(t.Context()); err != nil {
		t.Errorf("the release after a failed acquire: %v", err)
	}
}

// A failed acquire leaves the registry as it was: a grant after that still finds
// the older handle, whose release must not free it.
func TestNewerGrantAfterAFailedAcquire(t *testing.T) {
	var released atomic.Int64
	backend := &fake{release: func() error { released.Add(1); return nil }}
	k := sqllock.New(backend)
	conn := session(t, pool(t))
	older := lock(t, k, conn, "invoices")
	backend.acquire = func(context.Context, *sql.Conn, sqllock.Request) error { return sqllock.ErrBusy }
	_, err := k.TryLock(t.Context(), conn, "invoices")
	is(t, "TryLock", err, sqllock.ErrBusy)
	backend.acquire = nil
	newer := lock(t, k, conn, "invoices")
	is(t, "the release of the older lock", older.Release(t.Context()), sqllock.ErrLost)
	if n := released.Load(); n != 0 {
		t.Error("the older handle released the newer grant")
	}
	if err := newer.Release(t.Context()); err != nil {
		t.Errorf("the release of the newer lock: %v", err)
	}
}

// An acquire that costs the session ends what else the session held.
func TestAcquireThatCostsTheSession(t *testing.T) {
	backend := &fake{}
	k := sqllock.New(backend)
	conn := session(t, pool(t))
	l := lock(t, k, conn, "invoices")
	backend.acquire = func(context.Context, *sql.Conn, sqllock.Request) error { return sqllock.ErrSessionGone }
	_, err := k.TryLock(t.Context(), conn, "reports")
	is(t, "TryLock", err, sqllock.ErrSessionGone)
	is(t, "the lock that the session had", l.Err(), sqllock.ErrLost, sqllock.ErrSessionGone)
}

// A Check that the session does not survive closes it, lest it go back to its
// pool alive, with a lock that was reported lost.
func TestCheckThatCostsTheSession(t *testing.T) {
	backend := &fake{check: func() error { return fmt.Errorf("%w: %w", sqllock.ErrLost, sqllock.ErrSessionGone) }}
	k := sqllock.New(backend)
	conn := session(t, pool(t))
	l, sibling := lock(t, k, conn, "invoices"), lock(t, k, conn, "reports")
	is(t, "Check", l.Check(t.Context()), sqllock.ErrLost)
	is(t, "the other lock of the session", sibling.Err(), sqllock.ErrLost, sqllock.ErrSessionGone)
}

// A Check that meets a release takes the release for no loss.
func TestCheckAgainstRelease(t *testing.T) {
	checking, releasing := make(chan struct{}), make(chan struct{})
	backend := &fake{}
	backend.check = func() error {
		close(checking)
		<-releasing
		return sqllock.ErrLost
	}
	backend.release = func() error { close(releasing); return nil }
	l := lock(t, sqllock.New(backend), session(t, pool(t)), "invoices")
	checked := make(chan error)
	go func() { checked <- l.Check(t.Context()) }()
	<-checking
	if err := l.Release(t.Context()); err != nil {
		t.Errorf("Release: %v", err)
	}
	is(t, "Check", <-checked, sqllock.ErrNotHeld)
	is(t, "Err", l.Err(), sqllock.ErrNotHeld)
}

// A release during which the session acquires the name anew is no loss.
func TestAcquireDuringRelease(t *testing.T) {
	releasing, goOn := make(chan struct{}), make(chan struct{})
	backend := &fake{release: func() error { close(releasing); <-goOn; return nil }}
	k := sqllock.New(backend)
	conn := session(t, pool(t))
	l := lock(t, k, conn, "invoices")
	released := make(chan error)
	go func() { released <- l.Release(t.Context()) }()
	<-releasing
	lock(t, k, conn, "invoices")
	close(goOn)
	if err := <-released; err != nil {
		t.Errorf("Release: %v", err)
	}
	is(t, "Err", l.Err(), sqllock.ErrNotHeld)
}

func TestDoWithAContextThatHasEnded(t *testing.T) {
	k := sqllock.New(&fake{acquire: func(context.Context, *sql.Conn, sqllock.Request) error {
		t.Error("acquired")
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := k.Do(ctx, pool(t), "invoices", func(context.Context, *sqllock.Lock) error { return nil })
	if want := `sqllock: do "invoices": context canceled`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = k.Holder(ctx, pool(t), "invoices")
	is(t, "Holder", err, context.Canceled)
	// One that ends during the acquire is no reason to try another connection.
	ctx, cancel = context.WithCancel(t.Context())
	tries := 0
	k = sqllock.New(&fake{acquire: func(context.Context, *sql.Conn, sqllock.Request) error {
		tries++
		cancel()
		return sqllock.ErrSessionGone
	}})
	err = k.Do(ctx, pool(t), "invoices", func(context.Context, *sqllock.Lock) error { return nil })
	is(t, "Do", err, sqllock.ErrSessionGone, context.Canceled)
	if tries != 1 {
		t.Errorf("%d tries, want 1", tries)
	}
}

// The watch goes on after the caller's ctx has ended, until fn returns.
func TestWatchOutlivesTheContext(t *testing.T) {
	db := pool(t)
	_ = session(t, db).Close()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		k := sqllock.New(&fake{check: func() error { return sqllock.ErrLost }})
		err := k.Do(ctx, db, "invoices", func(ctx context.Context, l *sqllock.Lock) error {
			cancel()
			<-ctx.Done()
			<-l.Done() // while it cleans up
			return errNetwork
		})
		is(t, "Do", err, sqllock.ErrLost, errNetwork)
	})
}

func TestDoTriesAnotherConnection(t *testing.T) {
	db := pool(t)
	for range 12 { // the mock ends when as many have been closed as were opened
		session(t, db)
	}
	tries := 0
	backend := &fake{acquire: func(context.Context, *sql.Conn, sqllock.Request) error {
		tries++
		if tries < 3 {
			return sqllock.ErrSessionGone
		}
		return nil
	}}
	ran := false
	err := sqllock.New(backend).Do(t.Context(), db, "invoices", func(context.Context, *sqllock.Lock) error {
		ran = true
		return nil
	})
	if err != nil || !ran || tries != 3 {
		t.Errorf("Do over two dead connections: error %v, ran %v, %d tries", err, ran, tries)
	}
	tries = -10
	err = sqllock.New(backend).Do(t.Context(), db, "invoices", func(context.Context, *sqllock.Lock) error { return nil })
	is(t, "Do over dead connections only", err, sqllock.ErrSessionGone)
	if tries != -7 {
		t.Errorf("%d tries, want 3", tries+10)
	}
}

func TestDoOnAFullPool(t *testing.T) {
	db := pool(t)
	db.SetMaxOpenConns(1)
	session(t, db)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := sqllock.New(&fake{}).Do(ctx, db, "invoices", func(context.Context, *sqllock.Lock) error { return nil })
	is(t, "Do", err, context.DeadlineExceeded)
	if want := "all 1 of the pool (MaxOpenConns) were in use"; !strings.Contains(err.Error(), want) {
		t.Errorf("the error should say %q: %v", want, err)
	}
}

// The watch asks at its interval. An error of the network is no loss; a loss
// ends the ctx of the function, with the cause.
func TestWatch(t *testing.T) {
	db := pool(t)
	conn := session(t, db) // outside of the bubble: database/sql has goroutines
	_ = conn.Close()
	answers := []error{nil, errNetwork, nil, fmt.Errorf("%w: the session was killed", sqllock.ErrLost)}
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		backend := &fake{check: func() error { asked++; return answers[asked-1] }}
		backend.release = func() error { t.Error("a lost lock was released"); return nil }
		start := time.Now()
		k := sqllock.New(backend, sqllock.WithCheckInterval(10*time.Second))
		err := k.Do(t.Context(), db, "invoices", func(ctx context.Context, l *sqllock.Lock) error {
			<-ctx.Done()
			is(t, "the cause", context.Cause(ctx), sqllock.ErrLost)
			is(t, "Err", l.Err(), sqllock.ErrLost)
			return errNetwork
		})
		is(t, "Do", err, sqllock.ErrLost, errNetwork)
		if got, want := time.Since(start), 40*time.Second; got != want {
			t.Errorf("the loss was known after %v, want %v", got, want)
		}
	})
}

func TestNoWatch(t *testing.T) {
	db := pool(t)
	_ = session(t, db).Close()
	synctest.Test(t, func(t *testing.T) {
		backend := &fake{check: func() error { t.Error("asked"); return nil }}
		k := sqllock.New(backend, sqllock.WithCheckInterval(0))
		err := k.Do(t.Context(), db, "invoices", func(context.Context, *sqllock.Lock) error {
			time.Sleep(time.Hour)
			return nil
		})
		if err != nil {
			t.Errorf("Do: %v", err)
		}
	})
}

// An error is one line that names operation, lock and reason.
func TestErrorTexts(t *testing.T) {
	conn := session(t, pool(t))
	ctx, cancel := context.WithCancelCause(t.Context())
	backend := &fake{acquire: func(context.Context, *sql.Conn, sqllock.Request) error { return sqllock.ErrBusy }}
	k := sqllock.New(backend)
	_, err := k.TryLock(ctx, conn, "invoices")
	if want := `sqllock: try lock "invoices": another session holds the lock`; err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	backend.acquire = func(context.Context, *sql.Conn, sqllock.Request) error {
		cancel(errors.New("shutting down"))
		return sqllock.ErrBusy
	}
	_, err = k.Lock(ctx, conn, "invoices")
	if want := `sqllock: lock "invoices": another session holds the lock: context canceled: shutting down`; err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	_, err = k.Lock(ctx, conn, "invoices")
	if want := `sqllock: lock "invoices": context canceled: shutting down`; err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	// A loss comes first, and once.
	backend.acquire = nil
	backend.release = func() error { return fmt.Errorf("%w: %w: invalid connection", sqllock.ErrLost, sqllock.ErrSessionGone) }
	err = k.Do(t.Context(), pool(t), "invoices", func(context.Context, *sqllock.Lock) error { return errNetwork })
	want := `sqllock: release "invoices": the lock was lost: the session is gone: invalid connection; the function returned: network unreachable`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	backend.check = backend.release
	k = sqllock.New(backend, sqllock.WithCheckInterval(time.Millisecond))
	err = k.Do(t.Context(), pool(t), "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if want, _, _ := strings.Cut(want, ";"); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestUse: the watch of a Do asks nothing on the conn meanwhile, and goes on after
// that.
func TestUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var using, asked atomic.Bool
		b := &fake{check: func() error {
			asked.Store(true)
			if using.Load() {
				t.Error("asked while the conn is in use")
			}
			return nil
		}}
		failure := errors.New("of the function")
		err := sqllock.New(b).Do(t.Context(), pool(t), t.Name(), func(_ context.Context, l *sqllock.Lock) error {
			err := l.Use(func(conn *sql.Conn) error {
				if conn != l.Conn() {
					t.Error("it is not the conn of the lock")
				}
				using.Store(true)
				time.Sleep(10 * sqllock.DefaultCheckInterval)
				using.Store(false)
				return failure
			})
			asked.Store(false)
			time.Sleep(2 * sqllock.DefaultCheckInterval)
			if !asked.Load() {
				t.Error("not asked any more")
			}
			return err
		})
		if err != failure { //nolint:errorlint // as it is
			t.Errorf("Do returned %v", err)
		}
	})
}
