package sqllock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// onEachGroup runs a test with a backend that acquires several keys at once, and one
// that does not.
func onEachGroup(t *testing.T, f func(t *testing.T, s *memory.Server, b sqllock.Backend)) {
	t.Helper()
	for name, wrap := range map[string]func(s *memory.Server) sqllock.Backend{
		"at once":    func(s *memory.Server) sqllock.Backend { return s.Backend() },
		"one by one": func(s *memory.Server) sqllock.Backend { return plain{s.Backend()} },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) { f(t, s, wrap(s)) })
		})
	}
}

func names(ls sqllock.Locks) string {
	var ns []string
	for _, l := range ls {
		ns = append(ns, l.Name())
	}
	return strings.Join(ns, " ")
}

func TestPoolLockAll(t *testing.T) {
	onEachGroup(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{})
		ls, err := h.LockAll(t.Context(), []string{"c", "a", "b", "a", "c"})
		if err != nil {
			t.Fatal(err)
		}
		if names(ls) != "a b c" {
			t.Errorf("the locks are %s", names(ls))
		}
		for _, l := range ls {
			if l.Grant().Session != ls[0].Grant().Session || l.Conn() != nil {
				t.Errorf("%s is on session %d, the first on %d", l.Name(), l.Grant().Session, ls[0].Grant().Session)
			}
			_, err := other.TryLock(t.Context(), l.Name())
			is(t, "TryLock by another process", err, sqllock.ErrBusy)
			_, err = h.TryLock(t.Context(), l.Name())
			is(t, "TryLock", err, sqllock.ErrBusy)
		}
		if s := h.Stats(); s.Held != 3 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
		release(t, ls[1]) // before the others
		is(t, "Release", ls.Release(t.Context()), sqllock.ErrNotHeld)
		h.free(t, s, "a", "b", "c")

		failure := errors.New("of the function")
		err = h.DoAll(t.Context(), []string{"b", "a"}, func(ctx context.Context, ls sqllock.Locks) error {
			if names(ls) != "a b" || ctx.Err() != nil {
				t.Errorf("the locks are %s; %v", names(ls), ctx.Err())
			}
			_, err := other.TryLock(ctx, "b")
			is(t, "TryLock by another process", err, sqllock.ErrBusy)
			return failure
		})
		if err != failure { //nolint:errorlint // as it is
			t.Errorf("DoAll returned %v", err)
		}
		h.free(t, s, "a", "b")
		ran, err := h.TryDoAll(t.Context(), []string{"b", "a"}, func(context.Context, sqllock.Locks) error { return failure })
		if !ran || err != failure { //nolint:errorlint // as it is
			t.Errorf("TryDoAll: ran %v, %v", ran, err)
		}
		// On a session of their own.
		ls, err = h.LockAll(t.Context(), []string{"a", "b"}, sqllock.OwnSession())
		if err != nil || ls[0].Conn() == nil || ls[0].Conn() != ls[1].Conn() {
			t.Errorf("%v; %v", ls, err)
		}
		release(t, ls...)
		h.free(t, s, "a", "b")
	})
}

func TestPoolGroupRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: s.Leases(10 * time.Second)})
		for _, test := range []struct {
			names []string
			opts  []sqllock.LockOption
			want  error
			part  string
		}{
			{nil, nil, sqllock.ErrInvalidName, "there are no names"},
			{[]string{}, nil, sqllock.ErrInvalidName, "there are no names"},
			{[]string{"a", ""}, nil, sqllock.ErrInvalidName, ""},
			{[]string{"Job", "b", "job"}, nil, sqllock.ErrInvalidName, `"Job" and "job" differ in letter case only`},
			{[]string{"a", "b"}, []sqllock.LockOption{sqllock.TTL(-1)}, nil, "must be positive"},
			{[]string{"a", "b"}, []sqllock.LockOption{sqllock.AtLeast(11 * time.Second)}, nil, "AtLeast(11s) is longer than the TTL, 10s"},
		} {
			ran := false
			f := func(context.Context, sqllock.Locks) error { ran = true; return nil }
			_, err := h.LockAll(t.Context(), test.names, test.opts...)
			_, try := h.TryLockAll(t.Context(), test.names, test.opts...)
			do := h.DoAll(t.Context(), test.names, f, test.opts...)
			tried, tryDo := h.TryDoAll(t.Context(), test.names, f, test.opts...)
			for _, err := range []error{err, try, do, tryDo} {
				if err == nil || test.want != nil && !errors.Is(err, test.want) {
					t.Errorf("%q: %v", test.names, err)
				}
				textHas(t, err, test.part)
			}
			if ran || tried {
				t.Errorf("%q: the function has run", test.names)
			}
			h.free(t, s, "a", "b", "job", "Job")
			if s := h.Stats(); s.Held != 0 || s.Waits != 0 {
				t.Errorf("%q: %+v", test.names, s)
			}
		}
		if s := h.Stats().Names["a"]; s.Busy != 0 {
			t.Errorf("nobody was busy: %+v", s)
		}
	})
}

// TestPoolGroupBusy: if one is not to be had, none is.
func TestPoolGroupBusy(t *testing.T) {
	onEachGroup(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{})
		want := int64(0)
		for where, holder := range map[string]*host{"this process": h, "another process": other} {
			for _, taken := range []string{"a", "b", "c"} {
				l := holder.locks(t, taken)
				ls, err := h.TryLockAll(t.Context(), []string{"a", "b", "c"})
				is(t, "TryLockAll", err, sqllock.ErrBusy)
				ran, skipped := h.TryDoAll(t.Context(), []string{"a", "b", "c"}, func(context.Context, sqllock.Locks) error { return nil })
				if ls != nil || ran || skipped != nil {
					t.Errorf("%s has %s: got %v; ran %v, %v", where, taken, ls, ran, skipped)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				start := time.Now()
				_, err = h.LockAll(ctx, []string{"c", "b", "a"})
				cancel()
				is(t, "LockAll", err, sqllock.ErrBusy, context.DeadlineExceeded)
				takes(t, "LockAll", start, 5*time.Second)
				if where == "this process" {
					textHas(t, err, "(*host).locks:")
				}
				synctest.Wait()
				if where == "this process" {
					want += 3
				} else {
					want += 9 // which of them it is that is not free, nobody knows
				}
				for _, free := range []string{"a", "b", "c"} {
					if free != taken {
						release(t, h.locks(t, free))
						release(t, other.locks(t, free))
					}
				}
				release(t, l)
				h.free(t, s, "a", "b", "c")
			}
		}
		got := int64(0)
		for _, c := range h.Stats().Names {
			got += c.Busy
		}
		if got != want {
			t.Errorf("%d calls are counted as busy, want %d", got, want)
		}
	})
}

// TestPoolGroupWaits: for one lock with those before it held, and those after it free.
func TestPoolGroupWaits(t *testing.T) {
	onEachGroup(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{})
		held := other.locks(t, "b")
		var order log
		done := make(chan error, 1)
		go func() {
			done <- h.DoAll(t.Context(), []string{"c", "b", "a"}, func(context.Context, sqllock.Locks) error {
				order.add("all")
				time.Sleep(brief)
				return nil
			})
		}()
		synctest.Wait()
		if n := s.Waiters("b"); n != 1 {
			t.Errorf("%d wait on the server", n)
		}
		_, err := other.TryLock(t.Context(), "a")
		is(t, "TryLock of one before it", err, sqllock.ErrBusy)
		release(t, other.locks(t, "c"))
		// Who comes for one of them later comes after it.
		later := []<-chan error{h.queue(t.Context(), "c", &order, "c"), h.queue(t.Context(), "a", &order, "a")}
		release(t, held)
		wantNil(t, append(later, done)...)
		if got := order.text(); got != "all c a" && got != "all a c" {
			t.Errorf("the order was %s", got)
		}
		h.free(t, s, "a", "b", "c")
	})
}

// TestPoolGroupInTurn: several names and single ones are served in the order in which
// they came; who gives up on the server leaves it to them.
func TestPoolGroupInTurn(t *testing.T) {
	onEachGroup(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{})
		held := other.locks(t, "job")
		var order log
		ctx, cancel := context.WithCancel(t.Context())
		first := h.queue(ctx, "job", &order, "first")
		var done []<-chan error
		group := func(line string) {
			all := make(chan error, 1)
			go func() {
				all <- h.DoAll(t.Context(), []string{"work", "job"}, func(context.Context, sqllock.Locks) error {
					order.add("%s", line)
					time.Sleep(brief)
					return nil
				})
			}()
			synctest.Wait()
			done = append(done, all)
		}
		group("1")
		done = append(done, h.queue(t.Context(), "job", &order, "2"))
		done = append(done, h.queue(t.Context(), "job", &order, "3"))
		group("4")
		done = append(done, h.queue(t.Context(), "job", &order, "5"))
		if n := s.Waiters("job"); n != 1 {
			t.Errorf("%d wait on the server", n)
		}
		cancel()
		is(t, "the first", <-first, sqllock.ErrBusy, context.Canceled)
		synctest.Wait()
		if n := s.Waiters("job"); n != 1 {
			t.Errorf("%d wait on the server after the first has given up", n)
		}
		release(t, held)
		wantNil(t, done...)
		if order.text() != "1 2 3 4 5" {
			t.Errorf("the order was %s", order.text())
		}
		h.free(t, s, "job", "work")
	})
}

// TestPoolGroupHandsOn: each goes on to who waits for that one, if it can.
func TestPoolGroupHandsOn(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		ls, err := h.LockAll(t.Context(), []string{"a", "b", "c"})
		if err != nil {
			t.Fatal(err)
		}
		a, b := h.begin(t.Context(), "a"), h.begin(t.Context(), "b", sqllock.OwnSession())
		release(t, ls...)
		release(t, granted(t, a), granted(t, b))
		if n := h.Stats().Names; n["a"].HandedOn != 1 || n["b"].HandedOn != 0 {
			t.Errorf("the counts are %+v", n)
		}
		h.free(t, s, "a", "b", "c")
	})
}

// TestPoolGroupGivesUp: at any moment, and nothing is left.
func TestPoolGroupGivesUp(t *testing.T) {
	onEachGroup(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{backend: b})
		got, gone := 0, 0
		for i := range 200 {
			holder := []*host{h, other}[i%2]
			held := holder.locks(t, "b")
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			var ls sqllock.Locks
			go func() {
				var err error
				ls, err = h.LockAll(ctx, []string{"a", "b", "c"})
				done <- err
			}()
			synctest.Wait()
			next := []<-chan result{h.begin(t.Context(), "a"), h.begin(t.Context(), "b"), other.begin(t.Context(), "c")}
			switch i % 3 {
			case 0:
				start := time.Now()
				cancel()
				is(t, "LockAll", <-done, sqllock.ErrBusy, context.Canceled)
				takes(t, "LockAll", start, 0)
				gone++
				release(t, held)
			default:
				go cancel()
				release(t, held)
				if err := <-done; err == nil {
					got++
					release(t, ls...)
				} else {
					gone++
					is(t, "LockAll", err, sqllock.ErrBusy, context.Canceled)
				}
			}
			for _, n := range next {
				release(t, granted(t, n))
			}
			h.free(t, s, "a", "b", "c")
		}
		t.Logf("%d got them, %d gave up", got, gone)
		if s := h.Stats(); s.Held != 0 || s.Waits != 0 {
			t.Errorf("%+v is left", s)
		}
	})
}

// TestPoolGroupStorm: goroutines of two processes lock the same names in every order.
// There is no deadlock, and never more than one holder.
func TestPoolGroupStorm(t *testing.T) {
	for _, conns := range []int{0, 2, 4} {
		t.Run(fmt.Sprint(conns), func(t *testing.T) {
			onEachGroup(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
				const goroutines, rounds, n = 12, 30, 5
				ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
				defer cancel()
				var counters [n]int // each guarded by its lock: -race finds two holders
				var wg sync.WaitGroup
				var mu sync.Mutex
				var want [n]int
				for range 2 {
					h := newHost(t, s, setup{backend: b, conns: conns})
					for range goroutines {
						wg.Go(func() {
							for range rounds {
								picked := rand.Perm(n)[:1+rand.N(n)]
								var names []string
								for _, i := range picked {
									names = append(names, fmt.Sprint("job", i))
								}
								err := h.DoAll(ctx, names, func(context.Context, sqllock.Locks) error {
									for _, i := range picked {
										counters[i]++
									}
									if rand.N(4) == 0 {
										time.Sleep(time.Microsecond)
									}
									return nil
								})
								if err != nil {
									t.Error(err)
									return
								}
								mu.Lock()
								for _, i := range picked {
									want[i]++
								}
								mu.Unlock()
							}
						})
					}
				}
				wg.Wait()
				if counters != want {
					t.Errorf("got %v, want %v", counters, want)
				}
			})
		})
	}
}

// TestPoolGroupLoses: the ctx of the function ends when any is lost; the others are
// released.
func TestPoolGroupLoses(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		var lost atomic.Bool
		h := newHost(t, s, setup{backend: &spy{Backend: s.Backend(), watch: func(g sqllock.Grant) (bool, error) {
			return lost.Load() && g.Key != "c", nil
		}}})
		failure := errors.New("of the function")
		err := h.DoAll(t.Context(), []string{"a", "b", "c"}, func(ctx context.Context, ls sqllock.Locks) error {
			lost.Store(true)
			<-ctx.Done()
			is(t, "the cause", context.Cause(ctx), sqllock.ErrLost)
			if err := ls[2].Check(context.WithoutCancel(ctx)); err != nil {
				t.Errorf("the third lock: %v", err)
			}
			return failure
		})
		is(t, "DoAll", err, sqllock.ErrLost, failure)
		h.free(t, s, "a", "b", "c")
		if s := h.Stats(); s.Held != 0 || s.Names["c"].Lost != 0 || s.Names["c"].Released != 1 {
			t.Errorf("%+v", s)
		}
	})
	// The session of all of them ends.
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		ls, err := h.LockAll(t.Context(), []string{"a", "b", "c"})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Kill(ls[0].Grant().Session); err != nil {
			t.Fatal(err)
		}
		for _, l := range ls {
			<-l.Done()
			is(t, "Err", l.Err(), sqllock.ErrLost, sqllock.ErrSessionGone)
		}
		is(t, "Release", ls.Release(t.Context()), sqllock.ErrLost)
		h.free(t, s, "a", "b", "c")
	})
}

// TestPoolGroupClosed: a call that waits is woken.
func TestPoolGroupClosed(t *testing.T) {
	onEachGroup(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{})
		theirs, ours := other.locks(t, "b"), h.locks(t, "z")
		var done []chan error
		for _, names := range [][]string{{"a", "b"}, {"y", "z"}, {"b", "c"}} {
			d := make(chan error, 1)
			go func() {
				_, err := h.LockAll(t.Context(), names)
				d <- err
			}()
			synctest.Wait()
			done = append(done, d)
		}
		closed := make(chan error, 1)
		go func() { closed <- h.Close(t.Context()) }()
		synctest.Wait()
		for _, d := range done {
			select {
			case err := <-d:
				is(t, "LockAll", err, sqllock.ErrClosed)
			default:
				t.Error("a call still waits")
			}
		}
		h.free(t, s, "a", "y", "c") // what was held meanwhile
		if n := s.Waiters("b"); n != 0 {
			t.Errorf("%d wait on the server", n)
		}
		release(t, ours)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		release(t, theirs)
	})
}

// TestPoolGroupKept: options are those of each.
func TestPoolGroupKept(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: s.Leases(3 * time.Second)})
		start := time.Now()
		err := h.DoAll(t.Context(), []string{"a", "b"}, func(ctx context.Context, ls sqllock.Locks) error {
			time.Sleep(10 * time.Second)
			for _, l := range ls {
				if err := l.Check(ctx); err != nil {
					t.Error(err)
				}
			}
			if ls[0].Token() == ls[1].Token() {
				t.Error("two locks have one token")
			}
			return nil
		}, sqllock.KeepAlive(time.Minute), sqllock.AtLeast(20*time.Second))
		if err != nil {
			t.Error(err)
		}
		takes(t, "DoAll", start, 10*time.Second)
		release(t, h.locks(t, "b"))
		takes(t, "the next grant", start, 20*time.Second)
		// A TTL is a hard limit for each.
		ls, err := h.LockAll(t.Context(), []string{"a", "b"})
		if err != nil {
			t.Fatal(err)
		}
		release(t, h.locks(t, "a"), h.locks(t, "b"))
		takes(t, "the grant after that", start, 23*time.Second)
		is(t, "Release", ls.Release(t.Context()), sqllock.ErrLost)
	})
}
