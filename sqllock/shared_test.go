package sqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// txBackend is the backend for unit tests with shared locks, and with those of a
// transaction, of which it keeps what it was asked for.
type txBackend struct {
	sqllock.Backend

	mu   sync.Mutex // guards all
	all  []sqllock.Request
	fail error
}

func (b *txBackend) CanShare() {}

func (b *txBackend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	b.note(req)
	return b.Backend.Acquire(ctx, conn, req)
}

func (b *txBackend) AcquireTx(_ context.Context, tx *sql.Tx, req sqllock.Request) error {
	if tx == nil {
		return errors.New("there is no transaction")
	}
	b.note(req)
	return b.fail
}

func (b *txBackend) note(req sqllock.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, req)
}

func (b *txBackend) asked() []sqllock.Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.all
	b.all = nil
	return all
}

// sharing is a server with a pool on it, one of its sessions and a transaction on another.
func sharing(t *testing.T) (*memory.Server, *sql.DB, *sql.Conn, *sql.Tx) {
	t.Helper()
	s := memory.New()
	db := s.DB()
	t.Cleanup(func() { _ = db.Close() })
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return s, db, conn, tx
}

// TestUnsupported: a backend without shared locks, or without those of a transaction, is
// told by the error, and nothing is asked of it.
func TestUnsupported(t *testing.T) {
	s, db, conn, tx := sharing(t)
	k := sqllock.New(s.Backend())
	p := sqllock.NewPool(db, k)
	defer p.Close(t.Context()) //nolint:errcheck // nothing is in it
	never := func(context.Context, *sqllock.Lock) error {
		t.Error("the function ran")
		return nil
	}
	lock := func(_ *sqllock.Lock, err error) error { return err }
	for what, err := range map[string]error{
		"TryLock":         lock(k.TryLock(t.Context(), conn, "job", sqllock.Shared())),
		"Lock":            lock(k.Lock(t.Context(), conn, "job", sqllock.Shared())),
		"Do":              k.Do(t.Context(), db, "job", never, sqllock.Shared()),
		"Do of a Pool":    p.Do(t.Context(), "job", never, sqllock.Shared()),
		"Lock of a Pool":  lock(p.Lock(t.Context(), "job", sqllock.Shared())),
		"DoAll of a Pool": p.DoAll(t.Context(), []string{"job", "other"}, func(context.Context, sqllock.Locks) error { return nil }, sqllock.Shared()),
		"LockTx":          k.LockTx(t.Context(), tx, "job"),
		"TryLockTx":       k.TryLockTx(t.Context(), tx, "job"),
		"LockTx, shared":  k.LockTx(t.Context(), tx, "job", sqllock.Shared()),
	} {
		var op *sqllock.OpError
		if !errors.Is(err, sqllock.ErrUnsupported) || !errors.As(err, &op) {
			t.Errorf("%s: got %v, want ErrUnsupported", what, err)
			continue
		}
		if !strings.Contains(err.Error(), "memory.Backend") {
			t.Errorf("%s: the error does not name the backend: %v", what, err)
		}
	}
	l, err := k.TryLock(t.Context(), conn, "job")
	if err != nil {
		t.Fatalf("after that: %v", err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSharedIsPassedOn: the backend is asked for what the caller asks for, and a shared
// lock of a Pool has a session of its own.
func TestSharedIsPassedOn(t *testing.T) {
	s, db, conn, _ := sharing(t)
	b := &txBackend{Backend: s.Backend()}
	k := sqllock.New(b, sqllock.WithNamespace("billing"))
	shared := func() (list []bool) {
		for _, req := range b.asked() {
			list = append(list, req.Shared)
		}
		return list
	}
	for _, opts := range [][]sqllock.LockOption{nil, {sqllock.Shared()}} {
		want := []bool{len(opts) > 0}
		l, err := k.TryLock(t.Context(), conn, "job", opts...)
		if err != nil {
			t.Fatal(err)
		}
		if got := shared(); !slices.Equal(got, want) {
			t.Errorf("TryLock: got %v, want %v", got, want)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if err := k.Do(t.Context(), db, "job", func(context.Context, *sqllock.Lock) error { return nil }, opts...); err != nil {
			t.Error(err)
		}
		if got := shared(); !slices.Equal(got, want) {
			t.Errorf("Do: got %v, want %v", got, want)
		}
	}
	p := sqllock.NewPool(db, k)
	err := p.Do(t.Context(), "job", func(_ context.Context, l *sqllock.Lock) error {
		if l.Conn() == nil {
			t.Error("a shared lock of a Pool has no session of its own")
		}
		return nil
	}, sqllock.Shared())
	if err != nil {
		t.Error(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if got := shared(); !slices.Equal(got, []bool{true}) {
		t.Errorf("Do of a Pool: got %v, want true", got)
	}
}

// TestLockTx: what reaches the backend, and what does not.
func TestLockTx(t *testing.T) {
	s, _, _, tx := sharing(t)
	b := &txBackend{Backend: s.Backend()}
	var events []sqllock.Event
	k := sqllock.New(b, sqllock.WithNamespace("billing"), sqllock.WithObserver(func(e sqllock.Event) { events = append(events, e) }))
	for wait, f := range map[bool]func(context.Context, *sql.Tx, string, ...sqllock.LockOption) error{true: k.LockTx, false: k.TryLockTx} {
		for _, opts := range [][]sqllock.LockOption{nil, {sqllock.Shared()}} {
			if err := f(t.Context(), tx, "job", opts...); err != nil {
				t.Fatal(err)
			}
			got := b.asked()
			if len(got) != 1 || got[0].Key != "billing:job" || got[0].Wait != wait || got[0].Shared != (len(opts) > 0) || got[0].Observe == nil {
				t.Errorf("the backend was asked for %+v", got)
			}
		}
		if len(events) != 2 || events[0].Kind != sqllock.Acquired || events[0].Name != "job" {
			t.Errorf("the events are %+v", events)
		}
		events = nil

		cancelled, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		cancel(cause)
		for what, test := range map[string]struct {
			ctx  context.Context //nolint:containedctx // of the case
			tx   *sql.Tx
			name string
			opts []sqllock.LockOption
			want error
			text string
		}{
			"an expired ctx":  {cancelled, tx, "job", nil, context.Canceled, "enough"},
			"no transaction":  {t.Context(), nil, "job", nil, nil, "begin one"},
			"no name":         {t.Context(), tx, "", nil, sqllock.ErrInvalidName, ""},
			"a TTL":           {t.Context(), tx, "job", []sqllock.LockOption{sqllock.TTL(time.Second)}, sqllock.ErrUnsupported, "TTL"},
			"OwnSession":      {t.Context(), tx, "job", []sqllock.LockOption{sqllock.OwnSession()}, sqllock.ErrUnsupported, "Pool"},
			"an invalid TTL":  {t.Context(), tx, "job", []sqllock.LockOption{sqllock.TTL(-1)}, nil, "positive"},
			"OwnSession, too": {t.Context(), tx, "job", []sqllock.LockOption{sqllock.Shared(), sqllock.OwnSession()}, sqllock.ErrUnsupported, "Pool"},
		} {
			err := f(test.ctx, test.tx, test.name, test.opts...)
			var op *sqllock.OpError
			if !errors.As(err, &op) || op.Name != test.name || op.Op != map[bool]string{true: "lock", false: "try lock"}[wait] {
				t.Errorf("%s: got %v", what, err)
				continue
			}
			if test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%s: got %v, want %v, %q", what, err, test.want, test.text)
			}
		}
		if got := b.asked(); len(got) != 0 {
			t.Errorf("the backend was asked for %+v", got)
		}
		if len(events) != 0 {
			t.Errorf("there were events: %+v", events)
		}

		// What the backend answers. The error of the ctx is added where it waited.
		b.fail = sqllock.ErrBusy
		late, stop := context.WithTimeout(t.Context(), time.Hour)
		err := f(late, tx, "job")
		stop()
		if !errors.Is(err, sqllock.ErrBusy) || errors.Is(err, context.DeadlineExceeded) != wait {
			t.Errorf("busy: got %v", err)
		}
		if len(events) != 1 || events[0].Kind != sqllock.Busy {
			t.Errorf("busy: the events are %+v", events)
		}
		b.fail = sqllock.ErrDeadlock
		if err := f(t.Context(), tx, "job"); !errors.Is(err, sqllock.ErrDeadlock) || errors.Is(err, sqllock.ErrBusy) {
			t.Errorf("deadlock: got %v", err)
		}
		b.fail = nil
		b.asked()
		events = nil
	}
}
