package gooselock_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/adapter/gooselock"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// conns returns two sessions of one server, in pools of their own.
func conns(t *testing.T, server *memory.Server) (a, b *sql.Conn) {
	t.Helper()
	one := func() *sql.Conn {
		db := server.DB()
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = conn.Close() // a session that has ended says so
			_ = db.Close()
		})
		return conn
	}
	return one(), one()
}

func want(t *testing.T, what string, err error, matches []error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	for _, target := range matches {
		if !errors.Is(err, target) {
			t.Errorf("%s: %q does not match %v", what, err, target)
		}
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %q does not say %q", what, err, text)
		}
	}
}

// TestOneAtATime: one SessionLocker serves two sessions, the second of which waits for the
// first.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		a, b := conns(t, server)
		l := gooselock.New(sqllock.New(server.Backend(), sqllock.WithNamespace("shop")), "migrations")
		if err := l.SessionLock(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		locked := make(chan error)
		go func() { locked <- l.SessionLock(t.Context(), b) }()
		synctest.Wait()
		if n := server.Waiters("shop:migrations"); n != 1 {
			t.Errorf("%d sessions wait, want the second one", n)
		}
		dead, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.SessionUnlock(dead, a); err != nil {
			t.Errorf("unlock with a dead ctx: %v", err)
		}
		if err := <-locked; err != nil {
			t.Error(err)
		}
		want(t, "a second unlock", l.SessionUnlock(t.Context(), a), []error{sqllock.ErrNotHeld}, "it has been unlocked")
		want(t, "a second lock", l.SessionLock(t.Context(), b), []error{sqllock.ErrHeld}, "nothing has been migrated")
		if err := l.SessionUnlock(t.Context(), b); err != nil {
			t.Error(err)
		}
	})
}

// TestMaxWait: the wait ends by itself, with an error that tells who migrates.
func TestMaxWait(t *testing.T) {
	for _, test := range []struct {
		name  string
		opts  []gooselock.Option
		limit time.Duration // of ctx
		after time.Duration
		says  string
	}{
		{"the default", nil, time.Hour, gooselock.DefaultMaxWait, "after 5m0s (the limit of gooselock.WithMaxWait) another migration is under way: session "},
		{"an option", []gooselock.Option{gooselock.WithMaxWait(time.Second)}, time.Hour, time.Second, "after 1s (the limit"},
		{"none but ctx", []gooselock.Option{gooselock.WithMaxWait(0)}, time.Hour, time.Hour, "after 1h0m0s another migration is under way"},
		{"ctx before", nil, time.Minute, time.Minute, "after 1m0s another migration is under way"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := memory.New()
				a, b := conns(t, server)
				l := gooselock.New(sqllock.New(server.Backend()), "migrations", test.opts...)
				if err := l.SessionLock(t.Context(), a); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), test.limit)
				defer cancel()
				want(t, "the wait", l.SessionLock(ctx, b), []error{sqllock.ErrBusy, context.DeadlineExceeded},
					"gooselock: nothing has been migrated: ", test.says, `lock "migrations"`)
				if took := time.Since(start); took != test.after {
					t.Errorf("it ended after %v, want %v", took, test.after)
				}
				want(t, "unlock of what was not locked", l.SessionUnlock(t.Context(), b), []error{sqllock.ErrNotHeld}, "SessionLock has not locked it")
				if err := l.SessionUnlock(t.Context(), a); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLost: the unlock tells of a lock that was lost, once.
func TestLost(t *testing.T) {
	server := memory.New()
	a, b := conns(t, server)
	l := gooselock.New(sqllock.New(server.Backend()), "migrations")
	if err := l.SessionLock(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := server.Lose("migrations"); err != nil {
		t.Fatal(err)
	}
	if err := l.SessionLock(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	want(t, "unlock", l.SessionUnlock(t.Context(), a), []error{sqllock.ErrLost},
		"another one may have gone on from there", "goose status", `release "migrations"`)
	want(t, "a second unlock", l.SessionUnlock(t.Context(), a), []error{sqllock.ErrNotHeld})
	if err := l.SessionUnlock(t.Context(), b); err != nil {
		t.Errorf("the lock of the other one: %v", err)
	}
}

// TestCtxCostsTheSession: a session that the end of the ctx has cost is no news.
func TestCtxCostsTheSession(t *testing.T) {
	server := memory.New()
	a, b := conns(t, server)
	l := gooselock.New(sqllock.New(server.Backend()), "migrations")
	ctx, cancel := context.WithCancel(t.Context())
	if err := l.SessionLock(ctx, a); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := server.Lose("migrations"); err != nil {
		t.Fatal(err)
	}
	if err := l.SessionUnlock(context.WithoutCancel(ctx), a); err != nil {
		t.Error(err)
	}
	if err := l.SessionLock(t.Context(), b); err != nil {
		t.Error(err)
	}
	if err := l.SessionUnlock(t.Context(), b); err != nil {
		t.Error(err)
	}
}

// TestLease: a lease lasts as long as the migration, also where the server can't be
// asked for a while, and no longer than its TTL where it can't be asked any more.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		a, b := conns(t, server)
		locker := sqllock.New(server.Leases(10 * time.Second))
		l := gooselock.New(locker, "migrations")
		if err := l.SessionLock(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := locker.TryLock(t.Context(), b, "migrations"); !errors.Is(err, sqllock.ErrBusy) {
			t.Errorf("after an hour another one gets %v, want ErrBusy", err)
		}
		if err := l.SessionUnlock(t.Context(), a); err != nil {
			t.Error(err)
		}
	})
}

// TestLeaseInTrouble: an extension that fails is tried again while the TTL lasts.
func TestLeaseInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		a, b := conns(t, server)
		locker := sqllock.New(server.Leases(9 * time.Second))
		l := gooselock.New(locker, "migrations")
		if err := l.SessionLock(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		server.Fail(errors.New("no route to host"))
		time.Sleep(8 * time.Second) // from the last extension that could be made on
		server.Fail(nil)
		time.Sleep(8 * time.Second)
		if _, err := locker.TryLock(t.Context(), b, "migrations"); !errors.Is(err, sqllock.ErrBusy) {
			t.Errorf("another one gets %v, want ErrBusy", err)
		}
		server.Fail(errors.New("no route to host"))
		time.Sleep(10 * time.Second)
		server.Fail(nil)
		if err := l.SessionLock(t.Context(), b); err != nil {
			t.Errorf("after the TTL: %v", err)
		}
		want(t, "unlock", l.SessionUnlock(t.Context(), a), []error{sqllock.ErrLost})
		if err := l.SessionUnlock(t.Context(), b); err != nil {
			t.Error(err)
		}
	})
}

func TestBadInput(t *testing.T) {
	server := memory.New()
	a, _ := conns(t, server)
	l := gooselock.New(sqllock.New(server.Backend()), "")
	want(t, "no name", l.SessionLock(t.Context(), a), []error{sqllock.ErrInvalidName}, "nothing has been migrated")
	want(t, "no connection", l.SessionLock(t.Context(), nil), nil, "the *sql.Conn is nil")
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, "a dead ctx", gooselock.New(sqllock.New(server.Backend()), "migrations").SessionLock(dead, a), []error{context.Canceled})
	defer func() {
		if text, _ := recover().(string); !strings.Contains(text, "New needs a Locker") {
			t.Errorf("without a Locker: %q", text)
		}
	}()
	gooselock.New(nil, "migrations")
}
