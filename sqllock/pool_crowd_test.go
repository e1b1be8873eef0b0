package sqllock_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// TestPoolWaitLeavesTheOnlyConnection: a wait for what another process holds keeps
// nobody from what is free, however few connections there are.
func TestPoolWaitLeavesTheOnlyConnection(t *testing.T) {
	for _, conns := range []int{2, 3, 4} {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			x := newHost(t, s, setup{}).locks(t, "x")
			h := newHost(t, s, setup{conns: conns})
			next := h.begin(t.Context(), "x")
			time.Sleep(time.Minute)
			start := time.Now()
			release(t, h.locks(t, "y"))
			takes(t, "Lock of a free one", start, 0)
			release(t, x)
			release(t, granted(t, next))
		})
	}
}

// TestPoolKeepAliveWithMoreLeft: a lease that has more left than its TTL for a while is
// kept alive after that.
func TestPoolKeepAliveWithMoreLeft(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: s.Leases(30 * time.Second)})
		extended := h.locks(t, "extended", sqllock.KeepAlive(time.Hour))
		if err := extended.Extend(t.Context(), 5*time.Minute); err != nil {
			t.Fatal(err)
		}
		rounded := h.locks(t, "rounded", sqllock.TTL(1200*time.Millisecond), sqllock.KeepAlive(time.Hour))
		time.Sleep(20 * time.Minute)
		release(t, extended, rounded)
	})
}

// TestPoolShortened: a lease that is extended to less ends then.
func TestPoolShortened(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: s.Leases(time.Hour), locker: []sqllock.Option{sqllock.WithCheckInterval(0)}})
		l, others := h.locks(t, "x"), h.locks(t, "y")
		if err := l.Extend(t.Context(), 2*time.Second); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		<-l.Done()
		takes(t, "the lease", start, 2*time.Second)
		is(t, "the lease", l.Err(), sqllock.ErrLost)
		synctest.Wait()
		h.free(t, s, "x")
		release(t, others)
	})
}

// TestPoolServesTheLine: who waits for a connection gets it when there is one again,
// whatever has kept it from there being one.
func TestPoolServesTheLine(t *testing.T) {
	for name, pause := range map[string]time.Duration{"a connection to share came": time.Second / 2, "none came": 3 * time.Second / 2} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h := newHost(t, s, setup{conns: 8})
				var held []*sqllock.Lock
				for i := range 500 {
					held = append(held, h.locks(t, fmt.Sprint("s", i)))
				}
				defer func() { release(t, held...) }()
				defer release(t, h.locks(t, "o1", sqllock.OwnSession()))
				defer release(t, h.locks(t, "o2", sqllock.OwnSession()))
				leave := h.fill(t)
				defer release(t, h.locks(t, "more"))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				next := h.begin(ctx, "o3", sqllock.OwnSession())
				time.Sleep(pause)
				leave()
				release(t, granted(t, next))
			})
		})
	}
	t.Run("MaxOpenConns was raised", func(t *testing.T) {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			h := newHost(t, s, setup{conns: 2})
			first := h.locks(t, "o1", sqllock.OwnSession())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			own, shared := h.begin(ctx, "o2", sqllock.OwnSession()), h.begin(ctx, "s")
			synctest.Wait()
			h.db.SetMaxOpenConns(20)
			release(t, granted(t, own), granted(t, shared), first)
		})
	})
}

// TestPoolYieldsThoughGranted: a wait that was to yield, and was granted the lock at
// that moment, leaves it to the next one to yield.
func TestPoolYieldsThoughGranted(t *testing.T) {
	for range 100 {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			other := newHost(t, s, setup{})
			x, y := other.locks(t, "x"), other.locks(t, "y")
			h := newHost(t, s, setup{conns: 6}) // three for the Pool
			shared := h.locks(t, "shared")
			gets, waits := h.begin(t.Context(), "x"), h.begin(t.Context(), "y")
			time.Sleep(time.Minute)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			go release(t, x)
			own := h.begin(ctx, "own", sqllock.OwnSession())
			release(t, granted(t, own))
			release(t, granted(t, gets), y)
			release(t, granted(t, waits), shared)
		})
	}
}

// TestPoolGroupGivenUp: a call for several names that is given up leaves none of them
// held, AtLeast or not.
func TestPoolGroupGivenUp(t *testing.T) {
	for range 300 {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			x := newHost(t, s, setup{}).locks(t, "x")
			h := newHost(t, s, setup{})
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan bool, 1)
			go func() {
				ls, err := h.LockAll(ctx, []string{"x", "y"}, sqllock.AtLeast(time.Hour))
				failed <- err != nil
				_ = ls.Release(t.Context())
			}()
			time.Sleep(time.Second)
			go cancel()
			go release(t, x)
			if <-failed {
				time.Sleep(5 * time.Second)
				h.free(t, s, "x", "y")
			}
			time.Sleep(2 * time.Hour) // of those that were not given up
		})
	}
}

// TestPoolExpiredOwnSession: a session of its own does not go back to the application
// with a lease in it that was over before it was released, by its holder or by Close.
func TestPoolExpiredOwnSession(t *testing.T) {
	for _, how := range []string{"released", "evicted"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h := newHost(t, s, setup{backend: s.Leases(time.Second)})
				h.db.SetMaxOpenConns(2)
				l := h.locks(t, "job", sqllock.OwnSession())
				<-l.Done()
				is(t, "the lease", l.Err(), sqllock.ErrLost)
				if how == "released" {
					is(t, "Release", l.Release(t.Context()), sqllock.ErrLost)
				} else {
					ended, cancel := context.WithCancel(t.Context())
					cancel()
					_ = h.Close(ended)
				}
				synctest.Wait()
				if n := h.db.Stats().InUse; n != 0 {
					t.Errorf("%d connections are in use", n)
				}
				h.free(t, s, "job")
			})
		})
	}
}
