package sqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// leases is a fake whose grants end by themselves.
type leases struct {
	fake

	until  time.Time
	extend func(ttl time.Duration) (time.Time, error)
	left   func() (time.Duration, error)
	asked  sqllock.Request
}

func (f *leases) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	f.asked = req
	g, err := f.fake.Acquire(ctx, conn, req)
	g.Token, g.Until = 42, f.until
	return g, err
}

func (f *leases) Extend(_ context.Context, _ *sql.Conn, _ sqllock.Grant, ttl time.Duration) (time.Time, error) {
	return f.extend(ttl)
}

func (f *leases) TimeLeft(context.Context, sqllock.Querier, sqllock.Grant) (time.Duration, error) {
	return f.left()
}

var _ sqllock.Leaser = (*leases)(nil)

func wantIs(t *testing.T, what string, err, want error, not ...error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
	for _, target := range not {
		if errors.Is(err, target) {
			t.Errorf("%s: %v should not match %v", what, err, target)
		}
	}
}

func TestTTL(t *testing.T) {
	conn := session(t, pool(t))
	b := &leases{}
	l, err := sqllock.New(b).TryLock(t.Context(), conn, "a", sqllock.TTL(90*time.Second))
	if err != nil || b.asked.TTL != 90*time.Second {
		t.Errorf("the backend was asked for %+v, %v", b.asked, err)
	}
	if l.Token() != 42 {
		t.Errorf("token %d", l.Token())
	}
	for _, d := range []time.Duration{0, -1} {
		if _, err := sqllock.New(b).TryLock(t.Context(), conn, "b", sqllock.TTL(d)); err == nil || !strings.Contains(err.Error(), "positive") {
			t.Errorf("a TTL of %v: %v", d, err)
		}
	}
	_, err = sqllock.New(&fake{}).TryLock(t.Context(), conn, "c", sqllock.TTL(time.Second))
	wantIs(t, "a TTL for a backend without", err, sqllock.ErrUnsupported)
}

func TestRemaining(t *testing.T) {
	conn := session(t, pool(t))
	b := &leases{until: time.Now().Add(time.Hour)}
	k := sqllock.New(b)
	l := lock(t, k, conn, "a")
	if left := l.Remaining(); left <= 59*time.Minute || left > time.Hour {
		t.Errorf("Remaining is %v of an hour", left)
	}
	b.extend = func(ttl time.Duration) (time.Time, error) { return time.Now().Add(ttl), nil }
	if err := l.Extend(t.Context(), 2*time.Hour); err != nil {
		t.Fatal(err)
	}
	if left := l.Remaining(); left <= time.Hour {
		t.Errorf("Remaining is %v after an extension to two hours", left)
	}
	if err := l.Release(t.Context()); err != nil || l.Remaining() != 0 {
		t.Errorf("Remaining is %v after the release (%v)", l.Remaining(), err)
	}
	b.until = time.Now().Add(-time.Hour)
	if left := lock(t, k, conn, "b").Remaining(); left != 0 {
		t.Errorf("Remaining is %v of a lease that is over", left)
	}
	if left := lock(t, sqllock.New(&fake{}), conn, "c").Remaining(); left != math.MaxInt64 {
		t.Errorf("Remaining is %v without a TTL", left)
	}
}

func TestExtendAnswers(t *testing.T) {
	for _, test := range []struct {
		name  string
		err   error
		want  error
		not   error
		ended bool
	}{
		{"lost", sqllock.ErrLost, sqllock.ErrLost, sqllock.ErrUnknown, true},
		{"can't tell", errNetwork, sqllock.ErrUnknown, sqllock.ErrLost, false},
		{"in a transaction", sqllock.ErrInTransaction, sqllock.ErrInTransaction, sqllock.ErrUnknown, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := &leases{
				until:  time.Now().Add(time.Hour),
				extend: func(time.Duration) (time.Time, error) { return time.Now().Add(9 * time.Hour), test.err },
			}
			l := lock(t, sqllock.New(b), session(t, pool(t)), "a")
			wantIs(t, "Extend", l.Extend(t.Context(), time.Hour), test.want, test.not)
			if ended := l.Err() != nil; ended != test.ended {
				t.Errorf("ended: %v, want %v", ended, test.ended)
			}
			if left := l.Remaining(); left > time.Hour {
				t.Errorf("Remaining is %v after an extension that failed", left)
			}
		})
	}
}

// TestRemainingAfterAnUnknownExtend: the shorter time may be the one that counts.
func TestRemainingAfterAnUnknownExtend(t *testing.T) {
	b := &leases{until: time.Now().Add(time.Hour), extend: func(time.Duration) (time.Time, error) { return time.Time{}, errNetwork }}
	l := lock(t, sqllock.New(b), session(t, pool(t)), "a")
	wantIs(t, "Extend", l.Extend(t.Context(), time.Second), sqllock.ErrUnknown)
	if left := l.Remaining(); left > time.Second {
		t.Errorf("Remaining is %v, and the server may have shortened it to a second", left)
	}
}

func TestAssertTTL(t *testing.T) {
	b := &leases{until: time.Now().Add(time.Hour), left: func() (time.Duration, error) { return 5 * time.Second, nil }}
	l := lock(t, sqllock.New(b), session(t, pool(t)), "a")
	if err := l.AssertTTL(t.Context(), 5*time.Second); err != nil {
		t.Errorf("exactly as much as there is: %v", err)
	}
	err := l.AssertTTL(t.Context(), 5*time.Second+1)
	wantIs(t, "more than there is", err, sqllock.ErrTTLTooShort, sqllock.ErrLost)
	if l.Err() != nil {
		t.Errorf("the lock has ended: %v", l.Err())
	}
	b.left = func() (time.Duration, error) { return 0, sqllock.ErrLost }
	wantIs(t, "when it is lost", l.AssertTTL(t.Context(), 0), sqllock.ErrLost, sqllock.ErrTTLTooShort)
	wantIs(t, "Err", l.Err(), sqllock.ErrLost)
}

// TestTryDoTellsOfAHolderThatDoesNotEnd: that is nothing to skip in silence.
func TestTryDoTellsOfAHolderThatDoesNotEnd(t *testing.T) {
	b := &fake{acquire: func(context.Context, *sql.Conn, sqllock.Request) error {
		return errors.Join(sqllock.ErrBusy, sqllock.ErrHolderAlive)
	}}
	ran, err := sqllock.New(b).TryDo(t.Context(), pool(t), "a", func(context.Context, *sqllock.Lock) error { return nil })
	if ran {
		t.Error("the function has run")
	}
	wantIs(t, "TryDo", err, sqllock.ErrHolderAlive)
}

func TestBreakAndHolderInput(t *testing.T) {
	k, db := sqllock.New(&fake{}), pool(t)
	_, err := k.Break(t.Context(), db, "a")
	wantIs(t, "Break of a backend that can't", err, sqllock.ErrUnsupported)
	_, err = k.Break(t.Context(), db, "")
	wantIs(t, "Break of nothing", err, sqllock.ErrInvalidName)
	for _, q := range []sqllock.Querier{nil, (*sql.DB)(nil), (*sql.Conn)(nil), (*sql.Tx)(nil)} {
		if _, err := k.Holder(t.Context(), q, "a"); err == nil || !strings.Contains(err.Error(), "nil") {
			t.Errorf("Holder over %T: %v", q, err)
		}
	}
	if err := k.Do(t.Context(), db, "a", nil); err == nil || !strings.Contains(err.Error(), "function is nil") {
		t.Errorf("Do without a function: %v", err)
	}
}

// TestObserver: events carry the name that the caller knows.
func TestObserver(t *testing.T) {
	b := &fake{acquire: func(_ context.Context, _ *sql.Conn, req sqllock.Request) error {
		req.Observe(sqllock.Event{Kind: sqllock.Killed, Holder: sqllock.Holder{Key: req.Key}})
		return nil
	}}
	var events []sqllock.Event
	k := sqllock.New(b, sqllock.WithNamespace("billing"), sqllock.WithObserver(func(e sqllock.Event) { events = append(events, e) }))
	conn := session(t, pool(t))
	lock(t, k, conn, "a")
	if len(events) != 2 || events[0].Name != "a" || events[0].Holder.Key != "billing:a" || events[0].Kind != sqllock.Killed ||
		events[1].Kind != sqllock.Acquired {
		t.Errorf("the observer was told %+v", events)
	}
	lock(t, sqllock.New(b, sqllock.WithObserver(nil)), conn, "b") // none is no observer
}
