package sqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// onEachWatch runs a test with backends that the Pool can ask about many locks at a
// time, and with those where it can't.
func onEachWatch(t *testing.T, f func(t *testing.T, s *memory.Server, b sqllock.Backend)) {
	t.Helper()
	for name, wrap := range map[string]func(s *memory.Server) sqllock.Backend{
		"together":        func(s *memory.Server) sqllock.Backend { return s.Backend() },
		"leases together": func(s *memory.Server) sqllock.Backend { return s.Leases(time.Hour) },
		"alone":           func(s *memory.Server) sqllock.Backend { return plain{s.Backend()} },
		"leases alone":    func(s *memory.Server) sqllock.Backend { return plainLeases{s.Leases(time.Hour)} },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) { f(t, s, wrap(s)) })
		})
	}
}

// isLost waits for the end of a lock, and fails the test if that is not known in time,
// or is told otherwise than it should be.
func isLost(t *testing.T, l *sqllock.Lock, within time.Duration) {
	t.Helper()
	start := time.Now()
	<-l.Done()
	if d := time.Since(start); d > within {
		t.Errorf("%s: the loss was known after %v", l.Name(), d)
	}
	for what, err := range map[string]error{"Err": l.Err(), "Check": l.Check(t.Context()), "Release": l.Release(t.Context())} {
		is(t, what+" of "+l.Name(), err, sqllock.ErrLost)
		if errors.Is(err, sqllock.ErrNotHeld) || errors.Is(err, sqllock.ErrUnknown) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if l.Remaining() != 0 {
		t.Errorf("%v are left of a lost lock", l.Remaining())
	}
}

// TestPoolLoss: what was on a session is lost with it, and nothing else.
func TestPoolLoss(t *testing.T) {
	onEachWatch(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		h := newHost(t, s, setup{backend: b})
		shared, sibling := h.locks(t, "shared"), h.locks(t, "sibling")
		own, other := h.locks(t, "own", sqllock.OwnSession()), h.locks(t, "other", sqllock.OwnSession())
		time.Sleep(2500 * time.Millisecond)
		if err := s.Lose("own"); err != nil {
			t.Fatal(err)
		}
		isLost(t, own, sqllock.DefaultCheckInterval)
		if err := s.Kill(shared.Grant().Session); err != nil {
			t.Fatal(err)
		}
		isLost(t, shared, sqllock.DefaultCheckInterval)
		isLost(t, sibling, 0)
		time.Sleep(10 * time.Second)
		if err := errors.Join(other.Err(), other.Check(t.Context())); err != nil {
			t.Errorf("on another session: %v", err)
		}
		again := h.locks(t, "shared")
		if again.Grant().Session == shared.Grant().Session {
			t.Error("a dead session was used again")
		}
		for name, want := range map[string]int64{"own": 1, "shared": 1, "sibling": 1, "other": 0} {
			if got := h.Stats().Names[name].Lost; got != want {
				t.Errorf("%s was lost %d times", name, got)
			}
		}
		release(t, other, again)
		if s := h.Stats(); s.Held != 0 {
			t.Errorf("%+v is left", s)
		}
	})
}

// TestPoolLossInDo: the function is told by its ctx, and the next one goes on even if
// the function does not.
func TestPoolLossInDo(t *testing.T) {
	for name, opts := range map[string][]sqllock.LockOption{"shared": nil, "own": {sqllock.OwnSession()}} {
		t.Run(name, func(t *testing.T) {
			onEachWatch(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
				h := newHost(t, s, setup{backend: b})
				failure := errors.New("of the function")
				goOn, done := make(chan struct{}), make(chan error, 1)
				go func() {
					done <- h.Do(t.Context(), "job", func(ctx context.Context, _ *sqllock.Lock) error {
						<-ctx.Done()
						is(t, "the cause", context.Cause(ctx), sqllock.ErrLost)
						<-goOn
						return failure
					}, opts...)
				}()
				synctest.Wait()
				next := h.begin(t.Context(), "job", opts...)
				start := time.Now()
				if err := s.Lose("job"); err != nil {
					t.Fatal(err)
				}
				l := granted(t, next)
				if d := time.Since(start); d > sqllock.DefaultCheckInterval {
					t.Errorf("the next one had it after %v", d)
				}
				synctest.Wait() // the watch may be asking over one
				if n := h.db.Stats().InUse; n > 2 {
					t.Errorf("%d connections are in use", n)
				}
				close(goOn)
				err := <-done
				is(t, "Do", err, sqllock.ErrLost, failure)
				if err := l.Check(t.Context()); err != nil {
					t.Errorf("the late function ended the lock of the next: %v", err)
				}
				release(t, l)
				h.free(t, s, "job")
			})
		})
	}
}

// TestPoolKilledSessions: a session that ends while it holds nothing harms nobody.
func TestPoolKilledSessions(t *testing.T) {
	onEachWatch(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{backend: b})
		killOthers := func(but *sqllock.Lock) {
			for id := range int64(100) {
				if but == nil || id != but.Grant().Session {
					_ = s.Kill(id) // there may be none
				}
			}
		}
		release(t, h.locks(t, "job"))
		killOthers(nil)
		release(t, h.locks(t, "job"))
		// One that waits.
		held := other.locks(t, "job")
		var next []<-chan result
		for range 3 {
			next = append(next, h.begin(t.Context(), "job"))
		}
		for range 2 {
			killOthers(held)
			synctest.Wait()
			if n := s.Waiters("job"); n != 1 {
				t.Errorf("%d wait on the server", n)
			}
		}
		release(t, held)
		for _, n := range next {
			release(t, granted(t, n))
		}
		// A group.
		killOthers(nil)
		ls, err := h.LockAll(t.Context(), []string{"a", "b"})
		if err != nil {
			t.Fatal(err)
		}
		release(t, ls...)
		h.free(t, s, "a", "b", "job")
	})
}

// TestPoolSilentServer: the Pool asks over a second session after half of the time
// that an answer may take, and takes the locks for lost after all of it.
func TestPoolSilentServer(t *testing.T) {
	const answer = 4 * time.Second
	for _, test := range []struct {
		name   string
		silent int64 // how many questions get no answer
		own    bool
		lost   time.Duration // 0 for never
	}{
		{"one question", 1, false, 0},
		{"all", 1000, false, time.Second + answer},
		{"all, about an OwnSession", 1000, true, time.Second + answer},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				goOn := make(chan struct{})
				var asked atomic.Int64
				second := make(chan time.Time, 1000)
				h := newHost(t, s, setup{
					backend: &spy{Backend: s.Backend(), watch: func(sqllock.Grant) (bool, error) {
						n := asked.Add(1)
						second <- time.Now()
						if n <= test.silent {
							<-goOn
						}
						return false, nil
					}},
					pool: []sqllock.PoolOption{sqllock.WithAnswerTime(answer)},
				})
				var opts []sqllock.LockOption
				if test.own {
					opts = append(opts, sqllock.OwnSession())
				}
				start := time.Now()
				l := h.locks(t, "job", opts...)
				use := func(f func()) { f() }
				if test.own {
					use = func(f func()) { // nothing is asked there
						_ = l.Use(func(*sql.Conn) error { f(); return nil })
					}
				}
				use(func() {
					select {
					case <-l.Done():
						takes(t, "the loss", start, test.lost)
						textHas(t, l.Err(), "the server has not answered for 4s")
						is(t, "Err", l.Err(), sqllock.ErrLost, sqllock.ErrSessionGone)
					case <-time.After(time.Minute):
						if test.lost != 0 {
							t.Error("the loss is not known")
						}
					}
				})
				<-second
				if d := (<-second).Sub(start); d != time.Second+answer/2 {
					t.Errorf("the second question was asked after %v", d)
				}
				close(goOn)
				if err := l.Release(t.Context()); !errors.Is(err, sqllock.ErrLost) && test.lost != 0 || err != nil && test.lost == 0 {
					t.Errorf("Release: %v", err)
				}
			})
		})
	}
}

// TestPoolCannotAsk: while the application uses all of its connections, and the tenants
// those of the Pool, nothing is known, and nothing is lost.
func TestPoolCannotAsk(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{conns: 2})
		own := h.locks(t, "own", sqllock.OwnSession())
		leave := h.fill(t)
		err := own.Use(func(*sql.Conn) error {
			select {
			case <-time.After(time.Minute):
			case <-own.Done():
			}
			return own.Err()
		})
		if err != nil {
			t.Error(err)
		}
		leave()
		release(t, own)
	})
}

// TestPoolUse: nothing is asked on a session that the function uses, and a loss is
// noticed elsewhere.
func TestPoolUse(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		var checks atomic.Int64
		h := newHost(t, s, setup{backend: &spy{Backend: s.Backend(), check: func(g sqllock.Grant) {
			if g.Key == "own" {
				checks.Add(1)
			}
		}}})
		own := h.locks(t, "own", sqllock.OwnSession())
		time.Sleep(time.Minute)
		if n := checks.Load(); n < 10 || n > 20 { // each three intervals or so
			t.Errorf("an idle session was asked %d times in a minute", n)
		}
		checks.Store(0)
		err := own.Use(func(*sql.Conn) error {
			time.Sleep(time.Minute)
			if n := checks.Load(); n != 0 {
				t.Errorf("a session in use was asked %d times", n)
			}
			if err := s.Lose("own"); err != nil {
				t.Error(err)
			}
			isLost(t, own, sqllock.DefaultCheckInterval)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestPoolNoWatch: without an interval a loss is found by the release, and idle
// connections are given back all the same.
func TestPoolNoWatch(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{
			backend: &spy{
				Backend: s.Backend(), check: func(sqllock.Grant) { t.Error("asked") },
				watch: func(sqllock.Grant) (bool, error) { t.Error("asked"); return false, nil },
			},
			locker: []sqllock.Option{sqllock.WithCheckInterval(0)},
		})
		l := h.locks(t, "job")
		if err := s.Lose("job"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := l.Err(); err != nil {
			t.Errorf("who said so? %v", err)
		}
		is(t, "Release", l.Release(t.Context()), sqllock.ErrLost)
		release(t, h.locks(t, "job"))
		time.Sleep(10 * time.Second)
		if n := h.db.Stats().InUse; n != 0 {
			t.Errorf("%d connections are in use", n)
		}
	})
}

// TestPoolPassingErrors: a question that can't be answered now is asked again.
func TestPoolPassingErrors(t *testing.T) {
	for _, test := range []struct {
		name                  string
		interval, after, take time.Duration
	}{
		{"for less than an answer may take", time.Second, 900 * time.Millisecond, 4 * time.Second},
		{"at one question of many", time.Minute, time.Minute - 100*time.Millisecond, 200 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			onEachWatch(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
				h := newHost(t, s, setup{backend: b, locker: []sqllock.Option{sqllock.WithCheckInterval(test.interval)}})
				shared, own := h.locks(t, "shared"), h.locks(t, "own", sqllock.OwnSession())
				time.Sleep(test.after)
				s.Fail(errNetwork)
				time.Sleep(test.take)
				s.Fail(nil)
				time.Sleep(2 * test.interval)
				for _, l := range []*sqllock.Lock{shared, own} {
					if err := errors.Join(l.Err(), l.Check(t.Context())); err != nil {
						t.Errorf("%s: %v", l.Name(), err)
					}
					_ = l.Release(t.Context())
				}
			})
		})
	}
}

// TestPoolUnconfirmedRelease: the session is closed, with what else it holds.
func TestPoolUnconfirmedRelease(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		var fail atomic.Bool
		h := newHost(t, s, setup{backend: &spy{Backend: s.Backend(), release: func(sqllock.Grant) error {
			if fail.Load() {
				return errNetwork
			}
			return nil
		}}})
		l, sibling, own := h.locks(t, "job"), h.locks(t, "sibling"), h.locks(t, "own", sqllock.OwnSession())
		fail.Store(true)
		is(t, "Release", l.Release(t.Context()), sqllock.ErrUnknown, errNetwork)
		fail.Store(false)
		isLost(t, sibling, 0)
		release(t, own)
		h.free(t, s, "job", "sibling", "own")
		release(t, h.locks(t, "job"))
	})
}

// TestPoolLossStorm: sessions end at random. What is not lost is exclusive, and
// nothing is left behind.
func TestPoolLossStorm(t *testing.T) {
	onEachWatch(t, func(t *testing.T, s *memory.Server, b sqllock.Backend) {
		const goroutines, rounds = 12, 20
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		var holders [3]atomic.Pointer[sqllock.Lock]
		var lost atomic.Int64
		var wg sync.WaitGroup
		for range 2 {
			h := newHost(t, s, setup{backend: b, conns: 6})
			for g := range goroutines {
				wg.Go(func() {
					for range rounds {
						n := rand.N(len(holders))
						var opts []sqllock.LockOption
						if g%3 == 0 {
							opts = append(opts, sqllock.OwnSession())
						}
						err := h.Do(ctx, fmt.Sprint("job", n), func(fnCtx context.Context, l *sqllock.Lock) error {
							before := holders[n].Swap(l) // or the one after, if this one is lost already
							if before != nil && before.Check(ctx) == nil && l.Check(ctx) == nil {
								t.Error("two hold it")
							}
							if rand.N(8) == 0 {
								_ = s.Kill(1 + rand.Int64N(80))
							}
							if rand.N(4) == 0 {
								select {
								case <-time.After(time.Millisecond):
								case <-fnCtx.Done():
								}
							}
							return nil
						}, opts...)
						switch {
						case errors.Is(err, sqllock.ErrLost):
							lost.Add(1)
						case err != nil && !errors.Is(err, sqllock.ErrSessionGone):
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		t.Logf("%d of %d were lost", lost.Load(), 2*goroutines*rounds)
	})
}
