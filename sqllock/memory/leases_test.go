package memory_test

import (
	"context"
	"errors"
	"math"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

const hour = time.Hour

// leasing is a bench with leases of an hour, whose takeovers are noted.
type leasing struct {
	*bench

	mu     sync.Mutex
	events []sqllock.Event
}

func newLeasing(tb testing.TB) *leasing {
	tb.Helper()
	b := &leasing{bench: newBench(tb)}
	b.locker = sqllock.New(b.Leases(hour), sqllock.WithObserver(func(e sqllock.Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if e.Kind == sqllock.Killed || e.Kind == sqllock.TakenOver { // the others are the core's
			b.events = append(b.events, e)
		}
	}))
	return b
}

// happened compares the kinds of the events with those that are wanted, and returns
// them.
func (b *leasing) happened(tb testing.TB, kinds ...sqllock.EventKind) []sqllock.Event {
	tb.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var got []sqllock.EventKind
	for _, e := range b.events {
		got = append(got, e.Kind)
	}
	if !reflect.DeepEqual(got, kinds) {
		tb.Errorf("events %q, want %q", got, kinds)
	}
	events := b.events
	b.events = nil
	return events
}

// TestExpiry has an hour pass without waiting for it.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeasing(t)
		stale := try(t, b.locker, conn(t, b.db), "job")
		other := conn(t, b.db)
		time.Sleep(hour - time.Nanosecond)
		_, err := b.locker.TryLock(t.Context(), other, "job")
		want(t, err, sqllock.ErrBusy)
		if err := stale.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if left := stale.Remaining(); left != 1 {
			t.Errorf("%v are left", left)
		}
		b.happened(t)
		time.Sleep(time.Nanosecond)
		l := try(t, b.locker, other, "job")
		for _, e := range b.happened(t, sqllock.Killed, sqllock.TakenOver) {
			if g := stale.Grant(); e.Name != "job" || e.Holder.Session != g.Session || e.Holder.Token != g.Token || e.Holder.TimeLeft > 0 {
				t.Errorf("%s: from %+v, want the holder of %+v", e.Kind, e.Holder, g)
			}
		}
		want(t, stale.Check(t.Context()), sqllock.ErrLost)
		if err := l.Release(t.Context()); err != nil || l.Token() <= stale.Token() {
			t.Errorf("token %d after %d; %v", l.Token(), stale.Token(), err)
		}
	})
}

// TestWaitForExpiry: a waiter takes over when the time is over, not before and not
// later, also where that is put off or brought forward.
func TestWaitForExpiry(t *testing.T) {
	for _, test := range []struct {
		name   string
		extend time.Duration // after a minute
		want   time.Duration
	}{
		{"as it is", 0, hour},
		{"put off", 2 * hour, time.Minute + 2*hour},
		{"brought forward", time.Second, time.Minute + time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newLeasing(t)
				start := time.Now()
				stale := try(t, b.locker, conn(t, b.db), "job")
				next := b.wait(t, conn(t, b.db), "job")
				start2 := time.Now()
				if test.extend > 0 {
					time.Sleep(time.Minute - start2.Sub(start))
					if err := stale.Extend(t.Context(), test.extend); err != nil {
						t.Fatal(err)
					}
				}
				r := <-next
				if got := time.Since(start); r.err != nil || got != test.want {
					t.Errorf("granted after %v, want %v; %v", got, test.want, r.err)
				}
				b.happened(t, sqllock.Killed, sqllock.TakenOver)
			})
		})
	}
}

// TestExpiryOfTheNext: the one who is granted the lock by a release may hang, too.
func TestExpiryOfTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeasing(t)
		first := try(t, b.locker, conn(t, b.db), "job", sqllock.TTL(100*hour))
		second := b.wait(t, conn(t, b.db), "job")
		third := b.wait(t, conn(t, b.db), "job")
		start := time.Now()
		if err := first.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		stale, r := <-second, <-third
		if got := time.Since(start); stale.err != nil || r.err != nil || got != hour {
			t.Errorf("the third after %v: %v, %v", got, stale.err, r.err)
		}
		want(t, stale.lock.Release(t.Context()), sqllock.ErrLost)
	})
}

// TestDoExpires: a function that hangs is told after the TTL, with nobody waiting.
func TestDoExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeasing(t)
		start := time.Now()
		err := b.locker.Do(t.Context(), b.db, "job", func(ctx context.Context, _ *sqllock.Lock) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		want(t, err, sqllock.ErrLost)
		if got := time.Since(start); got < hour || got > hour+2*sqllock.DefaultCheckInterval {
			t.Errorf("told after %v", got)
		}
	})
}

// TestReleaseInOwnTime: a lock that nobody has taken is released late, not lost.
func TestReleaseInOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeasing(t)
		l := try(t, b.locker, conn(t, b.db), "job")
		time.Sleep(2 * hour)
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		try(t, b.locker, conn(t, b.db), "job")
		b.happened(t)
	})
}

// TestLeftBehind: a dead holder is seen until the next one takes over.
func TestLeftBehind(t *testing.T) {
	b := newLeasing(t)
	l := try(t, b.locker, conn(t, b.db), "job")
	if err := b.Lose("job"); err != nil {
		t.Fatal(err)
	}
	h, err := b.locker.Holder(t.Context(), b.db, "job")
	if err != nil || h.Alive || h.Token != l.Token() || h.TimeLeft <= 0 {
		t.Errorf("what is left: %+v, %v", h, err)
	}
	_, err = sqllock.New(b.Backend()).Holder(t.Context(), b.db, "job")
	want(t, err, sqllock.ErrNotHeld)
	want(t, b.Lose("job"), sqllock.ErrNotHeld)
	try(t, b.locker, conn(t, b.db), "job")
	b.happened(t, sqllock.TakenOver)
}

func TestBreak(t *testing.T) {
	b := newLeasing(t)
	_, err := b.locker.Break(t.Context(), b.db, "job")
	want(t, err, sqllock.ErrNotHeld)
	holder := conn(t, b.db)
	l := try(t, b.locker, holder, "job")
	next := b.wait(t, conn(t, b.db), "job")
	h, err := b.locker.Break(t.Context(), b.db, "job")
	if err != nil || h.Session != l.Grant().Session {
		t.Fatalf("broke %+v, %v", h, err)
	}
	r := <-next
	if r.err != nil {
		t.Fatal(r.err)
	}
	want(t, holder.PingContext(t.Context()), sqllock.ErrSessionGone)
	want(t, l.Check(t.Context()), sqllock.ErrLost)
	if err := b.Lose("job"); err != nil {
		t.Fatal(err)
	}
	if h, err = b.locker.Break(t.Context(), b.db, "job"); err != nil || h.Session != r.lock.Grant().Session {
		t.Errorf("removed what was left of %+v, %v", h, err)
	}
	_, err = b.locker.Holder(t.Context(), b.db, "job")
	want(t, err, sqllock.ErrNotHeld)
	b.happened(t)
}

func TestWholeSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeasing(t)
		c := conn(t, b.db)
		for ttl, want := range map[time.Duration]time.Duration{
			1:                           time.Second,
			time.Second:                 time.Second,
			time.Second + 1:             2 * time.Second,
			hour:                        hour,
			math.MaxInt64 - time.Second: math.MaxInt64 - time.Second,
		} {
			l := try(t, b.locker, c, "job", sqllock.TTL(ttl))
			if left := l.Remaining(); left != want {
				t.Errorf("a TTL of %v lasts %v, want %v", ttl, left, want)
			}
			if err := l.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestTTLMustBePositive(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	newBench(t).Leases(0)
}

// optional is what both backends have beside what every backend has.
type optional interface {
	sqllock.Watcher
	sqllock.Passer
	sqllock.GroupAcquirer
}

func onBoth(t *testing.T, test func(t *testing.T, b *bench, backend optional)) {
	t.Helper()
	for _, name := range []string{"backend", "leases"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				var backend optional = b.Backend()
				if name == "leases" {
					backend = b.Leases(hour)
				}
				b.locker = sqllock.New(backend)
				test(t, b, backend)
			})
		})
	}
}

func TestWatch(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench, backend optional) {
		c := conn(t, b.db)
		kept, released := try(t, b.locker, c, "kept"), try(t, b.locker, c, "released")
		lost := try(t, b.locker, conn(t, b.db), "lost")
		grants := []sqllock.Grant{lost.Grant(), kept.Grant(), released.Grant(), {Key: "kept"}}
		if err := errors.Join(released.Release(t.Context()), b.Lose("lost")); err != nil {
			t.Fatal(err)
		}
		try(t, b.locker, conn(t, b.db), "lost")
		watch := func(want ...bool) {
			t.Helper()
			held, err := backend.Watch(t.Context(), b.db, grants)
			if err != nil || !reflect.DeepEqual(held, want) {
				t.Errorf("got %v, %v; want %v", held, err, want)
			}
		}
		watch(false, true, false, false)
		time.Sleep(2 * hour)
		_, leases := backend.(sqllock.Leaser)
		watch(false, !leases, false, false)
		passing := errors.New("no route to host")
		b.Fail(passing)
		_, err := backend.Watch(t.Context(), b.db, grants)
		want(t, err, passing)
	})
}

func TestPass(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench, backend optional) {
		c := conn(t, b.db)
		req := sqllock.Request{Key: "job", TTL: 3 * hour}
		g, err := backend.Acquire(t.Context(), c, sqllock.Request{Key: "job"})
		if err != nil {
			t.Fatal(err)
		}
		next := b.wait(t, conn(t, b.db), "job")
		start := time.Now()
		newer, err := backend.Pass(t.Context(), c, g, req)
		if err != nil || b.Waiters("job") != 1 {
			t.Fatalf("%v; %d wait", err, b.Waiters("job"))
		}
		if _, leases := backend.(sqllock.Leaser); leases && newer.Token <= g.Token {
			t.Errorf("token %d after %d", newer.Token, g.Token)
		} else if leases {
			if r := <-next; r.err != nil || time.Since(start) != 3*hour {
				t.Errorf("%v after %v", r.err, time.Since(start))
			}
		} else {
			if err := backend.Release(t.Context(), c, newer); err != nil {
				t.Error(err)
			}
			<-next
		}
		_, err = backend.Pass(t.Context(), c, newer, req)
		want(t, err, sqllock.ErrLost)
	})
}

func TestAcquireAll(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench, backend optional) {
		observe := func(sqllock.Event) {}
		reqs := []sqllock.Request{{Key: "a", Observe: observe}, {Key: "b", TTL: time.Minute, Observe: observe}, {Key: "c", Observe: observe}}
		c := conn(t, b.db)
		own := try(t, b.locker, c, "b")
		_, err := backend.AcquireAll(t.Context(), c, reqs)
		want(t, err, sqllock.ErrBusy)
		if err := errors.Join(own.Check(t.Context()), own.Release(t.Context())); err != nil {
			t.Error(err)
		}
		foreign := try(t, b.locker, conn(t, b.db), "c")
		_, err = backend.AcquireAll(t.Context(), c, reqs)
		want(t, err, sqllock.ErrBusy)
		try(t, b.locker, conn(t, b.db), "a") // was not kept
		if err := errors.Join(b.Lose("a"), foreign.Release(t.Context())); err != nil {
			t.Fatal(err)
		}
		grants, err := backend.AcquireAll(t.Context(), c, reqs)
		if err != nil || len(grants) != 3 {
			t.Fatal(grants, err)
		}
		for i, g := range grants {
			if g.Key != reqs[i].Key {
				t.Errorf("grant %d is for %q", i, g.Key)
			}
			if err := backend.Check(t.Context(), c, g); err != nil {
				t.Errorf("%s: %v", g.Key, err)
			}
		}
		if _, leases := backend.(sqllock.Leaser); leases {
			time.Sleep(2 * hour)
			_, err = backend.AcquireAll(t.Context(), c, reqs)
			want(t, err, sqllock.ErrBusy) // held by this session, if no longer for sure
			if _, err := backend.AcquireAll(t.Context(), conn(t, b.db), reqs); err != nil {
				t.Errorf("after their time: %v", err)
			}
		}
	})
}
