package sqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// inBubble runs a test where time passes when everybody waits: an hour takes no time,
// and every time is exact. A goroutine that is left behind is an error.
func inBubble(t *testing.T, f func(t *testing.T, s *memory.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, memory.New()) })
}

// setup is how a process uses its Pool.
type setup struct {
	backend sqllock.Backend // nil for that of the server, without TTLs
	conns   int             // MaxOpenConns, 0 for no limit
	locker  []sqllock.Option
	pool    []sqllock.PoolOption
}

// host is a process with a Pool.
type host struct {
	*sqllock.Pool

	db     *sql.DB
	locker *sqllock.Locker

	mu     sync.Mutex // guards events
	events []sqllock.Event
}

func newHost(t *testing.T, s *memory.Server, u setup) *host {
	t.Helper()
	if u.backend == nil {
		u.backend = s.Backend()
	}
	h := &host{db: s.DB()}
	h.db.SetMaxOpenConns(u.conns)
	h.locker = sqllock.New(u.backend, append(u.locker, sqllock.WithObserver(func(e sqllock.Event) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.events = append(h.events, e)
	}))...)
	h.Pool = sqllock.NewPool(h.db, h.locker, u.pool...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
		if s := h.Stats(); s.Conns != 0 || s.Held != 0 || s.Waits != 0 {
			t.Errorf("a closed Pool has %d connections, %d locks, and %d waits", s.Conns, s.Held, s.Waits)
		}
		if n := h.db.Stats().InUse; n != 0 {
			t.Errorf("a closed Pool has left %d connections in use", n)
		}
		if err := h.db.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// locks is Lock for one that must not fail.
func (h *host) locks(t *testing.T, name string, opts ...sqllock.LockOption) *sqllock.Lock {
	t.Helper()
	l, err := h.Lock(t.Context(), name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func release(t *testing.T, ls ...*sqllock.Lock) {
	t.Helper()
	for _, l := range ls {
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// free fails the test if one of names is held or awaited on the server.
func (h *host) free(t *testing.T, s *memory.Server, names ...string) {
	t.Helper()
	synctest.Wait()
	for _, name := range names {
		holder, err := h.locker.Holder(t.Context(), h.db, name)
		if !errors.Is(err, sqllock.ErrNotHeld) && (err != nil || holder.Alive) { // a dead session may have left its lease
			t.Errorf("%s is held by %+v, %v", name, holder, err)
		}
		if n := s.Waiters(name); n != 0 {
			t.Errorf("%d wait for %s on the server", n, name)
		}
	}
}

// result is what became of a Lock in a goroutine of its own.
type result struct {
	lock *sqllock.Lock
	err  error
}

// begin has a Lock wait, and returns when it does.
func (h *host) begin(ctx context.Context, name string, opts ...sqllock.LockOption) <-chan result {
	done := make(chan result, 1)
	go func() {
		l, err := h.Lock(ctx, name, opts...)
		done <- result{l, err}
	}()
	synctest.Wait()
	return done
}

// granted is the lock of one who has waited for it.
func granted(t *testing.T, done <-chan result) *sqllock.Lock {
	t.Helper()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.lock
}

func waits(t *testing.T, done <-chan result) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-done:
		t.Fatalf("it should wait: %v, %v", r.lock, r.err)
	default:
	}
}

// takes fails the test unless exactly want have passed since start, in a bubble.
func takes(t *testing.T, what string, start time.Time, want time.Duration) {
	t.Helper()
	if got := time.Since(start); got != want {
		t.Errorf("%s: after %v, want %v", what, got, want)
	}
}

func textHas(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the error should say %q: %v", part, err)
		}
	}
}

func nothing(context.Context, *sqllock.Lock) error { return nil }

// nextLine is the place in the code after that of the call, as the Pool shows it.
func nextLine() string {
	pc, _, line, _ := runtime.Caller(1)
	return fmt.Sprintf("%s:%d", runtime.FuncForPC(pc).Name(), line+1)
}

// plain hides what a backend can beyond the least.
type plain struct{ sqllock.Backend }

// plainLeases hides what a backend can beyond TTLs.
type plainLeases struct{ sqllock.Leaser }

// spy is a backend that tells of what it is asked, and may be told to fail.
type spy struct {
	*memory.Backend

	acquire func(req sqllock.Request) error
	wait    func(ctx context.Context)
	granted func(req sqllock.Request)
	pass    func() error
	watch   func(g sqllock.Grant) (lost bool, err error)
	check   func(g sqllock.Grant)
	release func(g sqllock.Grant) error
}

func (b *spy) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	if b.acquire != nil {
		if err := b.acquire(req); err != nil {
			return sqllock.Grant{}, err
		}
	}
	if b.wait != nil && req.Wait {
		b.wait(ctx)
	}
	g, err := b.Backend.Acquire(ctx, conn, req)
	if b.granted != nil && err == nil {
		b.granted(req)
	}
	return g, err
}

func (b *spy) Pass(ctx context.Context, conn *sql.Conn, g sqllock.Grant, req sqllock.Request) (sqllock.Grant, error) {
	if b.pass != nil {
		if err := b.pass(); err != nil {
			return sqllock.Grant{}, err
		}
	}
	return b.Backend.Pass(ctx, conn, g, req)
}

func (b *spy) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) ([]bool, error) {
	held, err := b.Backend.Watch(ctx, q, grants)
	for i := range held {
		if b.watch == nil {
			break
		}
		lost, err := b.watch(grants[i])
		if err != nil {
			return nil, err
		}
		held[i] = held[i] && !lost
	}
	return held, err
}

func (b *spy) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	if b.check != nil {
		b.check(g)
	}
	return b.Backend.Check(ctx, q, g)
}

func (b *spy) Release(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	if b.release != nil {
		if err := b.release(g); err != nil {
			return err
		}
	}
	return b.Backend.Release(ctx, conn, g)
}

func TestPoolDo(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		failure := errors.New("of the function")
		type key struct{}
		var ended func() error
		err := h.Do(context.WithValue(t.Context(), key{}, "value"), "job", func(ctx context.Context, l *sqllock.Lock) error {
			ended = ctx.Err
			if holder, err := h.locker.Holder(ctx, h.db, "job"); err != nil || holder.Session != l.Grant().Session {
				t.Errorf("the server says that the holder is %+v, %v", holder, err)
			}
			if ctx.Value(key{}) != "value" || ctx.Err() != nil || l.Name() != "job" {
				t.Errorf("the function got %v and %q", ctx, l.Name())
			}
			return failure
		})
		if err != failure { //nolint:errorlint // as it is
			t.Errorf("Do returned %v", err)
		}
		if ended() == nil {
			t.Error("the ctx of the function goes on after Do")
		}
		h.free(t, s, "job")
		// The release works with a ctx that has ended.
		ctx, cancel := context.WithCancelCause(t.Context())
		err = h.Do(ctx, "job", func(ctx context.Context, _ *sqllock.Lock) error {
			cancel(failure)
			<-ctx.Done()
			return context.Cause(ctx)
		})
		is(t, "Do", err, failure)
		h.free(t, s, "job")
		// The function may release by itself.
		err = h.Do(t.Context(), "job", func(ctx context.Context, l *sqllock.Lock) error {
			release(t, l)
			is(t, "the cause", context.Cause(ctx), sqllock.ErrNotHeld)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestPoolTryDo(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{}), newHost(t, s, setup{})
		failure := fmt.Errorf("of the function: %w", sqllock.ErrBusy)
		run := func() (bool, error) {
			return h.TryDo(t.Context(), "job", func(context.Context, *sqllock.Lock) error { return failure })
		}
		skips := func(where string) {
			t.Helper()
			if ran, err := run(); ran || err != nil {
				t.Errorf("busy in %s: ran %v, %v", where, ran, err)
			}
		}
		if ran, err := run(); !ran || err != failure { //nolint:errorlint // as it is
			t.Errorf("ran %v, %v", ran, err)
		}
		l := h.locks(t, "job")
		skips("this process")
		release(t, l)
		l = other.locks(t, "job")
		skips("another process")
		next := h.begin(t.Context(), "job")
		skips("another process, and this one waits")
		release(t, l)
		l = granted(t, next)
		skips("this process after that")
		release(t, l)
		if ran, err := run(); !ran || err == nil {
			t.Errorf("ran %v, %v", ran, err)
		}
		// Neither of these is nothing.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := h.TryDo(ctx, "job", nothing)
		is(t, "TryDo with a ctx that has ended", err, context.Canceled)
		alive := newHost(t, s, setup{backend: &spy{Backend: s.Backend(), acquire: func(sqllock.Request) error {
			return errors.Join(sqllock.ErrBusy, sqllock.ErrHolderAlive)
		}}})
		_, err = alive.TryDo(t.Context(), "job", nothing)
		is(t, "TryDo of a lock whose holder does not end", err, sqllock.ErrHolderAlive)
	})
}

// TestPoolBusy: the error says who in this process has the lock.
func TestPoolBusy(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{}), newHost(t, s, setup{})
		l := h.locks(t, "job")
		time.Sleep(3 * time.Second)
		_, err := h.TryLock(t.Context(), "job")
		is(t, "TryLock in this process", err, sqllock.ErrBusy)
		textHas(t, err, `try lock "job": another session holds the lock: github.com/sqllock/go-sqllock/sqllock_test.(*host).locks:`, " of this process has it, and called 3s ago")
		_, err = other.TryLock(t.Context(), "job")
		if want := `sqllock: try lock "job": another session holds the lock`; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		release(t, l)

		at := nextLine()
		l, err = h.Lock(t.Context(), "job")
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.TryLock(t.Context(), "job")
		if want := `sqllock: try lock "job": another session holds the lock: ` + at + ` of this process has it, and called 0s ago`; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, errors.New("too slow"))
		defer cancel()
		_, err = h.Lock(ctx, "job")
		if want := `sqllock: lock "job": another session holds the lock: ` + at + ` of this process has it, and called 5s ago: context deadline exceeded: too slow`; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		release(t, l)
	})
}

// TestPoolBoundedWait: the error tells of the lock and of the ctx, wherever the lock
// is held, and nothing is left of the call.
func TestPoolBoundedWait(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, s *memory.Server, h, other *host) *sqllock.Lock{
		"this process": func(t *testing.T, _ *memory.Server, h, _ *host) *sqllock.Lock { t.Helper(); return h.locks(t, "job") },
		"another process": func(t *testing.T, _ *memory.Server, _, other *host) *sqllock.Lock {
			t.Helper()
			return other.locks(t, "job")
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h, other := newHost(t, s, setup{}), newHost(t, s, setup{})
				l := test(t, s, h, other)
				for range 50 { // two timers that end at one moment
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					start := time.Now()
					_, err := h.Lock(ctx, "job")
					is(t, "Lock", err, sqllock.ErrBusy, context.DeadlineExceeded)
					takes(t, "Lock", start, 5*time.Second)
					cancel()
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := h.begin(ctx, "job")
				start := time.Now()
				cancel()
				r := <-done
				is(t, "Lock", r.err, sqllock.ErrBusy, context.Canceled)
				takes(t, "the end of a wait that is cancelled", start, 0)
				release(t, l)
				h.free(t, s, "job")
			})
		})
	}
}

// TestPoolServerEndsTheWait: the server's clock may run ahead of the deadline.
func TestPoolServerEndsTheWait(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: plain{&spy{Backend: s.Backend(), acquire: func(sqllock.Request) error { return sqllock.ErrBusy }}}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := h.Lock(ctx, "job")
		is(t, "Lock", err, sqllock.ErrBusy, context.DeadlineExceeded)
		_, err = h.LockAll(ctx, []string{"job", "work"})
		is(t, "LockAll", err, sqllock.ErrBusy, context.DeadlineExceeded)
	})
}

// TestPoolDeadlineOnTheServer: it is the server that ends a bounded wait, where it can.
func TestPoolDeadlineOnTheServer(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		bounds := make(chan time.Duration, 9)
		h := newHost(t, s, setup{backend: &spy{Backend: s.Backend(), wait: func(ctx context.Context) {
			end, _ := ctx.Deadline()
			bounds <- time.Until(end)
		}}})
		other := newHost(t, s, setup{})
		held := other.locks(t, "job")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := h.Lock(ctx, "job")
		is(t, "Lock", err, sqllock.ErrBusy, context.DeadlineExceeded)
		if bound := <-bounds; bound != 5*time.Second {
			t.Errorf("the server was to wait for %v", bound)
		}
		release(t, held)
	})
}

// TestPoolSpelling: two names that are one lock on the server are one lock.
func TestPoolSpelling(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		b := &spy{Backend: s.Backend(), acquire: func(req sqllock.Request) error {
			if req.Key == "Job" {
				return sqllock.ErrHeld
			}
			return nil
		}}
		for _, backend := range []sqllock.Backend{b, plain{b}} {
			h := newHost(t, s, setup{backend: backend})
			l := h.locks(t, "job")
			_, err := h.TryLock(t.Context(), "Job")
			is(t, "TryLock", err, sqllock.ErrBusy)
			textHas(t, err, "this process, under another spelling of the name")
			if errors.Is(err, sqllock.ErrHeld) {
				t.Errorf("it is not the caller who holds it: %v", err)
			}
			release(t, l)
		}
	})
}

func TestPoolPanic(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		for name, run := range map[string]func(f func()){
			"Do": func(f func()) {
				_ = h.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error { f(); return nil })
			},
			"TryDo": func(f func()) {
				_, _ = h.TryDo(t.Context(), "job", func(context.Context, *sqllock.Lock) error { f(); return nil })
			},
			"DoAll": func(f func()) {
				_ = h.DoAll(t.Context(), []string{"job", "work"}, func(context.Context, sqllock.Locks) error { f(); return nil })
			},
		} {
			func() {
				defer func() {
					if got := recover(); got != "oops" {
						t.Errorf("%s: the panic is %v", name, got)
					}
				}()
				run(func() { panic("oops") })
			}()
			h.free(t, s, "job", "work")
			over := make(chan struct{})
			go func() {
				defer close(over)
				run(runtime.Goexit)
				t.Errorf("%s goes on after Goexit", name)
			}()
			<-over
			h.free(t, s, "job", "work")
		}
		// The one who waits goes on.
		var next <-chan result
		func() {
			defer func() { _ = recover() }()
			_ = h.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error {
				next = h.begin(t.Context(), "job")
				panic("oops")
			})
		}()
		release(t, granted(t, next))
	})
}

func TestPoolRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		leases := newHost(t, s, setup{backend: s.Leases(10 * time.Second)})
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		lock := func(h *host, ctx context.Context, name string, opts ...sqllock.LockOption) error {
			_, one := h.Lock(ctx, name, opts...)
			_, try := h.TryLock(ctx, name, opts...)
			_, all := h.LockAll(ctx, []string{name}, opts...)
			_, tryAll := h.TryLockAll(ctx, []string{name}, opts...)
			ran := false
			did := h.Do(ctx, name, func(context.Context, *sqllock.Lock) error { ran = true; return nil }, opts...)
			for _, err := range []error{try, all, tryAll, did} {
				if err == nil || one == nil || strings.SplitN(err.Error(), ": ", 3)[2] != strings.SplitN(one.Error(), ": ", 3)[2] {
					t.Errorf("the errors differ: %v; %v", one, err)
				}
			}
			if ran {
				t.Error("the function has run")
			}
			return one
		}
		for _, test := range []struct {
			name  string
			err   error
			want  error
			parts string
		}{
			{"no name", lock(h, t.Context(), ""), sqllock.ErrInvalidName, ""},
			{"an ended ctx", lock(h, ended, "job"), context.Canceled, ""},
			{"a TTL", lock(h, t.Context(), "job", sqllock.TTL(time.Second)), sqllock.ErrUnsupported, "have no TTL"},
			{"KeepAlive without a TTL", lock(h, t.Context(), "job", sqllock.KeepAlive(time.Second)), sqllock.ErrUnsupported, "have no TTL"},
			{"KeepAlive for nothing", lock(leases, t.Context(), "job", sqllock.KeepAlive(0)), nil, "must be positive"},
			{"AtLeast before", lock(h, t.Context(), "job", sqllock.AtLeast(-1)), nil, "must not be negative"},
			{"AtLeast beyond the TTL", lock(leases, t.Context(), "job", sqllock.TTL(time.Minute), sqllock.AtLeast(61*time.Second)), nil, "AtLeast(1m1s) is longer than the TTL, 1m0s"},
			{"AtLeast beyond the default TTL", lock(leases, t.Context(), "job", sqllock.AtLeast(11*time.Second)), nil, "AtLeast(11s) is longer than the TTL, 10s"},
		} {
			if test.err == nil || test.want != nil && !errors.Is(test.err, test.want) {
				t.Errorf("%s: %v", test.name, test.err)
			}
			textHas(t, test.err, test.parts)
		}
		for _, err := range []error{h.Do(t.Context(), "job", nil), h.DoAll(t.Context(), []string{"job"}, nil)} {
			if want := `sqllock: do "job": the function is nil`; err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		}
		h.free(t, s, "job")
		for _, makePool := range []func(){
			func() { sqllock.NewPool(nil, h.locker) },
			func() { sqllock.NewPool(h.db, nil) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Error("NewPool of nil did not panic")
					}
				}()
				makePool()
			}()
		}
	})
}

// TestLockerRefusesPoolOptions: a plain Locker can't do what they say.
func TestLockerRefusesPoolOptions(t *testing.T) {
	k, db := sqllock.New(&leases{}), pool(t)
	conn := session(t, db)
	for _, opt := range []sqllock.LockOption{sqllock.OwnSession(), sqllock.AtLeast(time.Second), sqllock.KeepAlive(time.Minute)} {
		_, try := k.TryLock(t.Context(), conn, "job", opt)
		_, wait := k.Lock(t.Context(), conn, "job", opt)
		do := k.Do(t.Context(), db, "job", nothing, opt)
		for _, err := range []error{try, wait, do} {
			is(t, "the error", err, sqllock.ErrUnsupported)
			textHas(t, err, "options of a Pool's locks")
		}
	}
}

// TestPoolFIFO: who came first is served first, by hand-offs and without.
func TestPoolFIFO(t *testing.T) {
	const n = 50
	for _, test := range []struct {
		name    string
		handOff int
		passes  bool
		want    int64 // hand-offs; the first is granted by the server, as is each after handOff others
	}{
		{"default", -1, true, n},
		{"never", 0, true, 0},
		{"one", 1, true, (n + 1) / 2},
		{"ten", 10, true, n + 1 - 5},
		{"always", 1000, true, n},
		{"the backend can't", 1000, false, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				u := setup{backend: s.Backend(), conns: 4}
				if test.handOff >= 0 {
					u.pool = append(u.pool, sqllock.WithHandOffs(test.handOff))
				}
				var acquired atomic.Int64
				if test.passes {
					u.backend = &spy{Backend: s.Backend(), acquire: func(sqllock.Request) error { acquired.Add(1); return nil }}
				} else {
					u.backend = plain{u.backend}
				}
				h := newHost(t, s, u)
				l := h.locks(t, "job")
				var got, want []int
				var wg sync.WaitGroup
				for i := range n {
					wg.Go(func() {
						err := h.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error {
							got = append(got, i)
							return nil
						})
						if err != nil {
							t.Error(err)
						}
					})
					synctest.Wait()
					want = append(want, i)
				}
				if s := h.Stats(); s.Waits != n || s.Held != 1 {
					t.Errorf("%d wait and %d hold, want %d and 1", s.Waits, s.Held, n)
				}
				if n := h.db.Stats().OpenConnections; n != 1 {
					t.Errorf("%d connections", n)
				}
				release(t, l)
				wg.Wait()
				if !slices.Equal(got, want) {
					t.Errorf("the order was %v", got)
				}
				c := h.Stats().Names["job"]
				if c.HandedOn != test.want || c.Acquired != n+1 || c.Released != n+1 {
					t.Errorf("%d of %d were handed on, want %d; %d were released", c.HandedOn, c.Acquired, test.want, c.Released)
				}
				if got := acquired.Load(); test.passes && got != n+1-test.want {
					t.Errorf("the server was asked for the lock %d times, want %d", got, n+1-test.want)
				}
			})
		})
	}
}

// log is what came after what, of many goroutines under one lock or many.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *log) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, " ")
}

// brief is a time in which many functions run before a lock is due to other processes.
const brief = 10 * time.Microsecond

// queue has a Do wait that notes itself, and returns when it waits. Its error is to be
// had when it is over.
func (h *host) queue(ctx context.Context, name string, l *log, line string, opts ...sqllock.LockOption) <-chan error {
	done := make(chan error, 1)
	go func() {
		done <- h.Do(ctx, name, func(context.Context, *sqllock.Lock) error {
			l.add("%s", line)
			time.Sleep(brief)
			return nil
		}, opts...)
	}()
	synctest.Wait()
	return done
}

func wantNil(t *testing.T, dones ...<-chan error) {
	t.Helper()
	for _, done := range dones {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestPoolWaitsOnce: a hundred goroutines are one session in the queue of the server,
// which stays there when the first of them gives up.
func TestPoolWaitsOnce(t *testing.T) {
	for _, test := range []struct {
		name, first string
		hide        bool
	}{
		{"it goes to the next", "2 3 4", false},
		{"the backend can't pass", "third 2 3", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				var asked atomic.Int64
				var backend sqllock.Backend = &spy{Backend: s.Backend(), acquire: func(req sqllock.Request) error {
					if req.Wait {
						asked.Add(1)
					}
					return nil
				}}
				if test.hide {
					backend = plain{backend}
				}
				h, other, third := newHost(t, s, setup{backend: backend, conns: 6}), newHost(t, s, setup{}), newHost(t, s, setup{})
				held := other.locks(t, "job")
				var order log
				var cancels []context.CancelFunc
				var done, rest []<-chan error
				for i := range 100 {
					ctx, cancel := context.WithCancel(t.Context())
					t.Cleanup(cancel)
					cancels = append(cancels, cancel)
					done = append(done, h.queue(ctx, "job", &order, fmt.Sprint(i)))
				}
				behind := third.queue(t.Context(), "job", &order, "third")
				isAwaited := func(waiting int) {
					t.Helper()
					synctest.Wait()
					if n := s.Waiters("job"); n != 2 {
						t.Errorf("%d sessions wait on the server, want 2", n)
					}
					if n := h.Stats().Waits; n != waiting {
						t.Errorf("%d calls wait, want %d", n, waiting)
					}
				}
				isAwaited(100)
				if n := h.db.Stats().OpenConnections; n > 2 {
					t.Errorf("%d connections", n)
				}
				start := time.Now()
				for i, gone := range []int{50, 99, 0, 1} { // in the middle, the last, and two that wait on the server
					cancels[gone]()
					is(t, "the end", <-done[gone], sqllock.ErrBusy, context.Canceled)
					isAwaited(99 - i)
				}
				takes(t, "giving up", start, 0)
				if n := asked.Load(); n != 1 {
					t.Errorf("%d sessions came to wait on the server", n)
				}
				var want []string
				for i, d := range done {
					if i > 1 && i != 50 && i != 99 {
						rest, want = append(rest, d), append(want, fmt.Sprint(i))
					}
				}
				release(t, held)
				wantNil(t, append(rest, behind)...)
				if !strings.HasPrefix(order.text(), test.first+" ") {
					t.Errorf("the order was %s", order.text())
				}
				got := slices.DeleteFunc(strings.Fields(order.text()), func(line string) bool { return line == "third" })
				if !slices.Equal(got, want) {
					t.Errorf("the order in one process was %v", got)
				}
				h.free(t, s, "job")
			})
		})
	}
}

// TestPoolLastGivesUp: nobody is left on the server for those who have gone.
func TestPoolLastGivesUp(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{}), newHost(t, s, setup{})
		held := other.locks(t, "job")
		ctx, cancel := context.WithCancel(t.Context())
		first, second := h.begin(ctx, "job"), h.begin(ctx, "job")
		cancel()
		is(t, "the first", (<-first).err, sqllock.ErrBusy, context.Canceled)
		is(t, "the second", (<-second).err, sqllock.ErrBusy, context.Canceled)
		synctest.Wait()
		if n := s.Waiters("job"); n != 0 {
			t.Errorf("%d wait on the server", n)
		}
		// The next one does not get what was meant for them.
		next := h.begin(t.Context(), "job")
		waits(t, next)
		release(t, held)
		release(t, granted(t, next))
	})
}

// TestPoolInheritsADeadline: who is left an attempt goes on beyond its end.
func TestPoolInheritsADeadline(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{}), newHost(t, s, setup{})
		held := other.locks(t, "job")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		early, stop := context.WithCancel(ctx)
		first, second, third := h.begin(early, "job"), h.begin(ctx, "job"), h.begin(t.Context(), "job")
		time.Sleep(time.Second)
		stop()
		is(t, "the first", (<-first).err, context.Canceled)
		start := time.Now()
		is(t, "the second", (<-second).err, context.DeadlineExceeded)
		takes(t, "the second", start, 4*time.Second)
		time.Sleep(time.Minute)
		waits(t, third)
		release(t, held)
		release(t, granted(t, third))
	})
}

// TestPoolGivesUpAtTheGrant: a turn that comes at the moment when its owner leaves
// goes to the next, or back to the server.
func TestPoolGivesUpAtTheGrant(t *testing.T) {
	for _, test := range []struct {
		name  string
		local bool // the holder is of the same process
		next  bool // there is somebody behind
		opts  []sqllock.PoolOption
	}{
		{"handed on", true, true, nil},
		{"handed on to the last", true, false, nil},
		{"never handed on", true, true, []sqllock.PoolOption{sqllock.WithHandOffs(0)}},
		{"from another process", false, true, nil},
		{"from another process to the last", false, false, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h, other := newHost(t, s, setup{pool: test.opts}), newHost(t, s, setup{})
				holder := other
				if test.local {
					holder = h
				}
				got, gone := 0, 0
				for range 300 {
					held := holder.locks(t, "job")
					ctx, cancel := context.WithCancel(t.Context())
					first := h.begin(ctx, "job")
					var second <-chan result
					if test.next {
						second = h.begin(t.Context(), "job")
					}
					if rand.N(2) == 0 {
						go cancel()
						release(t, held)
					} else {
						cancel()
						release(t, held)
					}
					if r := <-first; r.err != nil {
						gone++
						is(t, "the first", r.err, sqllock.ErrBusy, context.Canceled)
					} else {
						got++
						release(t, r.lock)
					}
					if test.next {
						release(t, granted(t, second))
					}
					cancel()
					h.free(t, s, "job")
				}
				t.Logf("%d got it, %d gave up", got, gone)
				if c := h.Stats().Names["job"]; c.Acquired != c.Released || c.Busy != int64(gone) {
					t.Errorf("the counts are %+v", c)
				}
			})
		})
	}
}

// TestPoolCancelStorm: goroutines of two processes give up at random, many at the very
// moment when they are given the lock. Each grant is one run of a function, alone.
func TestPoolCancelStorm(t *testing.T) {
	for _, test := range []struct {
		name  string
		hide  bool
		conns int
		opts  []sqllock.PoolOption
	}{
		{"handed on", false, 0, nil},
		{"handed on twice, few connections", false, 2, []sqllock.PoolOption{sqllock.WithHandOffs(2)}},
		{"never handed on", false, 4, []sqllock.PoolOption{sqllock.WithHandOffs(0)}},
		{"the backend can't", true, 3, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				const goroutines, rounds = 12, 40
				all, cancelAll := context.WithTimeout(t.Context(), 24*time.Hour)
				defer cancelAll()
				var backend sqllock.Backend = s.Backend()
				if test.hide {
					backend = plain{backend}
				}
				ran := 0 // guarded by the lock: -race finds two holders
				var succeeded, gaveUp atomic.Int64
				var hosts []*host
				var wg sync.WaitGroup
				for range 2 {
					h := newHost(t, s, setup{backend: backend, conns: test.conns, pool: test.opts})
					hosts = append(hosts, h)
					var waiting [goroutines]atomic.Pointer[context.CancelFunc]
					for i := range goroutines {
						wg.Go(func() {
							for range rounds {
								ctx, cancel := context.WithCancel(all)
								waiting[i].Store(&cancel)
								err := h.Do(ctx, "job", func(context.Context, *sqllock.Lock) error {
									ran++
									waiting[i].Store(nil)
									victim := waiting[rand.N(goroutines)].Load()
									switch {
									case victim == nil:
									case rand.N(2) == 0:
										(*victim)()
									default:
										go (*victim)()
									}
									if rand.N(4) == 0 {
										time.Sleep(time.Microsecond) // everybody waits by then
									}
									return nil
								})
								switch {
								case err == nil:
									succeeded.Add(1)
								case errors.Is(err, context.Canceled):
									gaveUp.Add(1)
								default:
									t.Error(err)
								}
								cancel()
							}
						})
					}
				}
				wg.Wait()
				t.Logf("%d ran, %d gave up", succeeded.Load(), gaveUp.Load())
				if int64(ran) != succeeded.Load() || gaveUp.Load() == 0 {
					t.Errorf("%d functions ran, %d calls succeeded, %d gave up", ran, succeeded.Load(), gaveUp.Load())
				}
				for _, h := range hosts {
					h.free(t, s, "job")
					if s := h.Stats(); s.Held != 0 || s.Waits != 0 {
						t.Errorf("%+v is left", s)
					}
				}
			})
		})
	}
}

// TestPoolLeavesATurn: with somebody of another process in the queue of the server, a
// process has as many hand-offs as it may, and then it is the other one's turn.
func TestPoolLeavesATurn(t *testing.T) {
	for _, n := range []int{0, 1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithHandOffs(n)}})
				other := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithHandOffs(0)}})
				var order log
				var done []<-chan error
				for range 3 * (n + 1) {
					done = append(done, h.queue(t.Context(), "job", &order, "here"))
				}
				for range 3 {
					done = append(done, other.queue(t.Context(), "job", &order, "there"))
				}
				wantNil(t, done...)
				want := strings.Repeat(strings.Repeat("here ", n+1)+"there ", 3)
				if got := order.text() + " "; got != want {
					t.Errorf("the order was %s, want %s", got, want)
				}
			})
		})
	}
}

func TestPoolDefaultHandOffs(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{}), newHost(t, s, setup{})
		var order log
		var done []<-chan error
		for range sqllock.DefaultHandOffs + 10 {
			done = append(done, h.queue(t.Context(), "job", &order, "here"))
		}
		done = append(done, other.queue(t.Context(), "job", &order, "there"))
		wantNil(t, done...)
		if got := strings.Index(order.text(), "there"); got != (sqllock.DefaultHandOffs+1)*len("here ") {
			t.Errorf("the order was %s", order.text())
		}
	})
}

// TestPoolHandOffTime: where functions take their time, a process has its turn for no
// longer than it takes one of them after that time.
func TestPoolHandOffTime(t *testing.T) {
	for _, test := range []struct {
		work time.Duration
		turn int
	}{{11 * time.Millisecond, 1}, {10 * time.Millisecond, 2}, {4 * time.Millisecond, 3}} {
		t.Run(test.work.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				var order log
				var wg sync.WaitGroup
				for _, name := range []string{"here", "there"} {
					h := newHost(t, s, setup{backend: s.Leases(time.Minute)})
					for range 2 * test.turn {
						wg.Go(func() {
							err := h.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error {
								order.add("%s", name)
								time.Sleep(test.work)
								return nil
							})
							if err != nil {
								t.Error(err)
							}
						})
					}
					synctest.Wait()
				}
				wg.Wait()
				want := strings.Repeat(strings.Repeat("here ", test.turn)+strings.Repeat("there ", test.turn), 2)
				if got := order.text() + " "; got != want {
					t.Errorf("the order was %s, want %s", got, want)
				}
			})
		})
	}
}

// TestPoolTokens: each tenant has a token of its own, greater than those before, and
// its own TTL.
func TestPoolTokens(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: s.Leases(time.Minute)})
		var tokens []int64
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				ttl := time.Duration(i+2) * time.Second
				err := h.Do(t.Context(), "job", func(_ context.Context, l *sqllock.Lock) error {
					if left := l.Remaining(); left != ttl {
						t.Errorf("%v are left of %v", left, ttl)
					}
					time.Sleep(brief)
					tokens = append(tokens, l.Token())
					return nil
				}, sqllock.TTL(ttl))
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i, token := range tokens {
			if i > 0 && token <= tokens[i-1] {
				t.Errorf("token %d after %d", token, tokens[i-1])
			}
		}
		if c := h.Stats().Names["job"]; len(tokens) != 40 || c.HandedOn != 39 || c.Acquired != 40 {
			t.Errorf("%d tokens; %+v", len(tokens), c)
		}
	})
}

// TestPoolPassFails: what can't be handed on is released, and acquired anew.
func TestPoolPassFails(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: &spy{Backend: s.Backend(), pass: func() error { return errNetwork }}})
		first := h.locks(t, "job")
		next := h.begin(t.Context(), "job")
		release(t, first)
		release(t, granted(t, next))
		if c := h.Stats().Names["job"]; c.HandedOn != 0 || c.Acquired != 2 || c.Lost != 0 {
			t.Errorf("the counts are %+v", c)
		}
		h.free(t, s, "job")
	})
	// A session that has ended between the two is one that nobody gets.
	inBubble(t, func(t *testing.T, s *memory.Server) {
		var session atomic.Int64
		h := newHost(t, s, setup{backend: &spy{Backend: s.Backend(), pass: func() error { return s.Kill(session.Load()) }}})
		first := h.locks(t, "job")
		session.Store(first.Grant().Session)
		next := h.begin(t.Context(), "job")
		release(t, first)
		l := granted(t, next)
		if err := l.Check(t.Context()); err != nil || l.Grant().Session == first.Grant().Session {
			t.Errorf("on the session %d: %v", l.Grant().Session, err)
		}
		release(t, l)
	})
}

// TestPoolEndsBeforeItBegins: a lock whose session ends after the grant, before anybody
// has the handle, is nobody's.
func TestPoolEndsBeforeItBegins(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		var sibling *sqllock.Lock
		h := newHost(t, s, setup{backend: plain{&spy{Backend: s.Backend(), granted: func(req sqllock.Request) {
			if l := sibling; l != nil && req.Key == "job" {
				sibling = nil
				if err := s.Kill(l.Grant().Session); err != nil {
					t.Error(err)
				}
				is(t, "Check", l.Check(t.Context()), sqllock.ErrLost)
				synctest.Wait() // the Pool has found out
			}
		}}}})
		for _, lock := range []func() ([]*sqllock.Lock, error){
			func() ([]*sqllock.Lock, error) {
				l, err := h.Lock(t.Context(), "job")
				return []*sqllock.Lock{l}, err
			},
			func() ([]*sqllock.Lock, error) { return h.LockAll(t.Context(), []string{"job", "work"}) },
		} {
			l := h.locks(t, "sibling")
			sibling = l
			ls, err := lock()
			if err != nil {
				t.Fatal(err)
			}
			for _, got := range ls {
				if err := got.Check(t.Context()); err != nil || got.Grant().Session == l.Grant().Session {
					t.Errorf("%s is on session %d of %d: %v", got.Name(), got.Grant().Session, l.Grant().Session, err)
				}
			}
			release(t, ls...)
			_ = l.Release(t.Context())
			h.free(t, s, "job", "work", "sibling")
		}
	})
}

// TestPoolManyNames: thousands of locks on few sessions, each of which is held.
func TestPoolManyNames(t *testing.T) {
	const n = 2500
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{conns: 8}), newHost(t, s, setup{})
		ls := make([]*sqllock.Lock, n)
		for i := range ls {
			ls[i] = h.locks(t, fmt.Sprint("job", i))
		}
		synctest.Wait()
		sessions := make(map[int64]int)
		for i, l := range ls {
			sessions[l.Grant().Session]++
			if l.Conn() != nil {
				t.Error("a lock that shares its session gives it away")
			}
			if i%100 == 0 {
				_, err := other.TryLock(t.Context(), l.Name())
				is(t, "TryLock by another process", err, sqllock.ErrBusy)
			}
		}
		if open := h.db.Stats().OpenConnections; open != 2 || len(sessions) != 2 {
			t.Errorf("%d locks are on %v, with %d connections open", n, sessions, open)
		}
		if s := h.Stats(); s.Held != n || s.Conns != 2 || s.Waits != 0 {
			t.Errorf("%d held on %d connections, %d wait", s.Held, s.Conns, s.Waits)
		}
		release(t, ls...)
		for i := range n {
			if i%100 == 0 {
				release(t, other.locks(t, fmt.Sprint("job", i)))
			}
		}
	})
}

// TestPoolGrows: a session with hundreds of locks is a slow one; half of the
// connections are left for other needs.
func TestPoolGrows(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(6)}})
		var ls []*sqllock.Lock
		for i, want := range []int{1, 2, 3, 3} {
			for range 500 {
				ls = append(ls, h.locks(t, fmt.Sprint("job", len(ls))))
			}
			synctest.Wait()
			if got := h.db.Stats().OpenConnections; got != want {
				t.Errorf("%d locks: %d connections, want %d", 500*(i+1), got, want)
			}
			ls = append(ls, h.locks(t, fmt.Sprint("job", len(ls))))
			synctest.Wait()
		}
		release(t, ls...)
	})
}

// TestPoolGivesBack: a connection that holds nothing is kept for a while, and then
// goes back, with the goroutine that looked after it.
func TestPoolGivesBack(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		session := int64(0)
		for range 20 {
			l := h.locks(t, "job")
			if id := l.Grant().Session; session != 0 && id != session {
				t.Error("a connection was opened for each lock")
			} else {
				session = id
			}
			time.Sleep(4 * time.Second)
			release(t, l)
			time.Sleep(4 * time.Second)
		}
		if n := h.db.Stats().InUse; n != 1 {
			t.Errorf("%d connections are in use, want 1", n)
		}
		own := h.locks(t, "own", sqllock.OwnSession())
		release(t, own)
		if n := h.db.Stats().InUse; n != 1 {
			t.Errorf("%d connections are in use after an OwnSession, want 1", n)
		}
		time.Sleep(3 * time.Second) // seven since the last of the shared ones
		synctest.Wait()
		if n := h.db.Stats().InUse; n != 0 || h.Stats().Conns != 0 {
			t.Errorf("%d connections are in use, want 0", n)
		}
	})
}

func TestPoolOwnSession(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		shared, other := h.locks(t, "shared"), h.locks(t, "other")
		own, second := h.locks(t, "own", sqllock.OwnSession()), h.locks(t, "second", sqllock.OwnSession())
		a, b, c, d := shared.Grant().Session, other.Grant().Session, own.Grant().Session, second.Grant().Session
		if a != b || c == a || d == a || c == d {
			t.Errorf("the sessions are %d, %d, %d, and %d", a, b, c, d)
		}
		if shared.Conn() != nil || own.Conn() == nil {
			t.Error("Conn is for those with a session of their own")
		}
		called := false
		f := func(conn *sql.Conn) error {
			called = true
			return conn.PingContext(t.Context())
		}
		err := shared.Use(f)
		is(t, "Use", err, sqllock.ErrUnsupported)
		textHas(t, err, "OwnSession()")
		if called {
			t.Error("the session of others was given away")
		}
		if err := own.Use(f); err != nil || !called {
			t.Errorf("Use: %v", err)
		}
		if n := h.db.Stats().InUse; n != 3 {
			t.Errorf("%d connections are in use, want 3", n)
		}
		release(t, shared, other, own, second)
		// One after the other on the same name, with and without: no hand-off.
		var order log
		var done []<-chan error
		for i, opts := range [][]sqllock.LockOption{nil, {sqllock.OwnSession()}, {sqllock.OwnSession()}, nil, nil} {
			done = append(done, h.queue(t.Context(), "job", &order, fmt.Sprint(i), opts...))
		}
		wantNil(t, done...)
		if c := h.Stats().Names["job"]; order.text() != "0 1 2 3 4" || c.HandedOn != 1 {
			t.Errorf("the order was %s, and %d were handed on", order.text(), c.HandedOn)
		}
	})
}

// TestPoolOwnSessionGivesUp: a connection that comes at the moment when who wants it
// leaves goes to the next, or back.
func TestPoolOwnSessionGivesUp(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		own := sqllock.OwnSession()
		h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(2)}})
		got, gone := 0, 0
		for i := range 300 {
			held := h.locks(t, "held", own)
			ctx, cancel := context.WithCancel(t.Context())
			first, second := h.begin(ctx, "first", own), h.begin(t.Context(), "second", own)
			if i%2 == 0 {
				go cancel()
			} else {
				cancel()
			}
			release(t, held)
			if r := <-first; r.err != nil {
				gone++
				is(t, "the first", r.err, context.Canceled)
			} else {
				got++
				release(t, r.lock)
			}
			release(t, granted(t, second))
			cancel()
			synctest.Wait()
			if n := h.db.Stats().InUse; n != 0 || h.Stats().Conns != 0 {
				t.Fatalf("%d connections are in use, the Pool has %d", n, h.Stats().Conns)
			}
		}
		t.Logf("%d got it, %d gave up", got, gone)
	})
}

// TestPoolTooSmall: one connection would be taken from the application.
func TestPoolTooSmall(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{conns: 1})
		start := time.Now()
		_, err := h.Lock(t.Context(), "job")
		is(t, "Lock", err, sqllock.ErrPoolTooSmall)
		textHas(t, err, "MaxOpenConns of the *sql.DB is 1")
		ran, err := h.TryDo(t.Context(), "job", nothing, sqllock.OwnSession())
		is(t, "TryDo", err, sqllock.ErrPoolTooSmall)
		_, all := h.LockAll(t.Context(), []string{"job"})
		is(t, "LockAll", all, sqllock.ErrPoolTooSmall)
		takes(t, "a Pool that is too small", start, 0)
		if ran {
			t.Error("the function has run")
		}
		h.db.SetMaxOpenConns(2)
		release(t, h.locks(t, "job"))
	})
}

// TestPoolLimit: how many connections a Pool takes, and leaves to the application.
func TestPoolLimit(t *testing.T) {
	for _, test := range []struct{ open, most, want int }{
		{2, 0, 1}, {3, 0, 1}, {8, 0, 4}, {9, 0, 4}, {0, 0, 16}, {0, 20, 20}, {8, 3, 3}, {8, 8, 7}, {8, 100, 7}, {2, 1, 1},
	} {
		t.Run(fmt.Sprintf("%d of %d", test.most, test.open), func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h := newHost(t, s, setup{conns: test.open, pool: []sqllock.PoolOption{sqllock.WithMaxConns(test.most)}})
				other := newHost(t, s, setup{conns: 200})
				ctx, cancel := context.WithCancel(t.Context())
				ls := make([]*sqllock.Lock, 0, 30)
				var own []<-chan result
				for i := range 30 {
					name := fmt.Sprint("job", i)
					ls = append(ls, other.locks(t, name))
					h.begin(ctx, name) // wants a connection to wait on
				}
				for i := range 30 {
					own = append(own, h.begin(ctx, fmt.Sprint("own", i), sqllock.OwnSession()))
				}
				if s := h.Stats(); s.Conns != test.want || h.db.Stats().InUse != test.want {
					t.Errorf("the Pool has %d connections, %d are in use, want %d", s.Conns, h.db.Stats().InUse, test.want)
				}
				cancel()
				for _, done := range own {
					if r := <-done; r.err == nil {
						release(t, r.lock)
					}
				}
				release(t, ls...)
			})
		})
	}
}

// TestPoolNested: a function that asks for what it has would wait for itself.
func TestPoolNested(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{}), newHost(t, s, setup{})
		start := time.Now()
		isHeld := func(ctx context.Context) {
			t.Helper()
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			err := h.Do(ctx, "job", nothing)
			is(t, "Do", err, sqllock.ErrHeld)
			textHas(t, err, "would wait for itself")
			_, err = h.TryDo(ctx, "job", nothing)
			is(t, "TryDo", err, sqllock.ErrHeld)
			_, err = h.Lock(ctx, "job", sqllock.OwnSession())
			is(t, "Lock", err, sqllock.ErrHeld)
			err = h.DoAll(ctx, []string{"a", "job"}, func(context.Context, sqllock.Locks) error { return nil })
			is(t, "DoAll", err, sqllock.ErrHeld)
		}
		err := h.Do(t.Context(), "job", func(ctx context.Context, l *sqllock.Lock) error {
			isHeld(ctx)
			err := h.Do(ctx, "work", func(ctx context.Context, _ *sqllock.Lock) error {
				isHeld(ctx)
				return h.DoAll(ctx, []string{"x", "y"}, func(ctx context.Context, _ sqllock.Locks) error {
					isHeld(ctx)
					is(t, "Do of one of several", h.Do(ctx, "x", nothing), sqllock.ErrHeld)
					return other.Do(ctx, "z", nothing)
				})
			})
			if err != nil {
				t.Error(err)
			}
			_, err = other.TryLock(ctx, "job") // of another Pool
			is(t, "TryLock of another Pool", err, sqllock.ErrBusy)
			release(t, l)
			return h.Do(ctx, "job", nothing)
		})
		is(t, "Do with the ctx of a lock that was released", err, context.Canceled)
		err = h.Do(t.Context(), "job", func(ctx context.Context, l *sqllock.Lock) error {
			release(t, l)
			return h.Do(context.WithoutCancel(ctx), "job", nothing)
		})
		if err != nil {
			t.Errorf("Do after a release: %v", err)
		}
		takes(t, "all this", start, 0)
		h.free(t, s, "job", "work", "a", "x", "y", "z")
	})
}

// TestPoolNestedOwn: functions that hold the connections and want a further one wait
// for each other. The one that closes the circle is told.
func TestPoolNestedOwn(t *testing.T) {
	own := sqllock.OwnSession()
	for _, test := range []struct{ conns, ok int }{{1, 1}, {2, 1}, {3, 2}, {5, 4}} {
		t.Run(fmt.Sprintf("one after another on %d", test.conns), func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(test.conns)}})
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				depth := 0
				var deeper func(ctx context.Context, l *sqllock.Lock) error
				deeper = func(ctx context.Context, _ *sqllock.Lock) error {
					depth++
					return h.Do(ctx, fmt.Sprint("job", depth), deeper, own)
				}
				err := h.Do(ctx, "job", deeper, own)
				is(t, "Do", err, sqllock.ErrPoolTooSmall)
				textHas(t, err, fmt.Sprintf("of the %d connections that the Pool may take", test.conns), "raise MaxOpenConns or WithMaxConns")
				if depth != test.ok {
					t.Errorf("%d functions ran, want %d", depth, test.ok)
				}
				takes(t, "it", start, 0)
			})
		})
	}
	t.Run("under a lock that shares the only one", func(t *testing.T) {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(1)}})
			start := time.Now()
			err := h.Do(t.Context(), "job", func(ctx context.Context, _ *sqllock.Lock) error {
				ctx, cancel := context.WithTimeout(ctx, time.Hour)
				defer cancel()
				return h.Do(ctx, "own", nothing, own)
			})
			is(t, "Do", err, sqllock.ErrPoolTooSmall)
			takes(t, "it", start, 0)
		})
	})
	t.Run("in a circle", func(t *testing.T) {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			const n = 3
			h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(n + 1)}})
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			var all sync.WaitGroup
			all.Add(n)
			var order log
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					err := h.Do(ctx, fmt.Sprint("job", i), func(ctx context.Context, _ *sqllock.Lock) error {
						all.Done()
						all.Wait()
						time.Sleep(time.Duration(i) * time.Second)
						err := h.Do(ctx, fmt.Sprint("more", i), nothing, own)
						if errors.Is(err, sqllock.ErrPoolTooSmall) {
							order.add("%d refused", i)
							return nil
						}
						order.add("%d done", i)
						return err
					}, own)
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			// The last one closes the circle, and makes room for the others.
			if got, want := order.text(), fmt.Sprintf("%d refused 0 done 1 done", n-1); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			takes(t, "it", start, (n-1)*time.Second)
		})
	})
	t.Run("somebody else makes room", func(t *testing.T) {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(3)}})
			start := time.Now()
			var order log
			done := h.queue(t.Context(), "other", &order, "other", own) // for a moment
			err := h.Do(t.Context(), "job", func(ctx context.Context, _ *sqllock.Lock) error {
				return h.Do(ctx, "more", nothing, own)
			}, own)
			if err != nil {
				t.Error(err)
			}
			wantNil(t, done)
			takes(t, "it", start, brief)
		})
	})
	t.Run("several names are one session", func(t *testing.T) {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(3)}})
			err := h.DoAll(t.Context(), []string{"a", "b", "c"}, func(ctx context.Context, _ sqllock.Locks) error {
				return errors.Join(h.Do(ctx, "shared", nothing), h.Do(ctx, "own", nothing, own))
			}, own)
			if err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("shared ones need no room", func(t *testing.T) {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(2)}})
			err := h.Do(t.Context(), "job", func(ctx context.Context, _ *sqllock.Lock) error {
				return h.Do(ctx, "shared", func(ctx context.Context, _ *sqllock.Lock) error { return h.Do(ctx, "more", nothing) })
			}, own)
			if err != nil {
				t.Error(err)
			}
		})
	})
}

// fill has the application use all connections of its pool, until the function is
// called that it returns.
func (h *host) fill(t *testing.T) (leave func()) {
	t.Helper()
	var conns []*sql.Conn
	for h.db.Stats().InUse < h.db.Stats().MaxOpenConnections {
		conn, err := h.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	return func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}

// starved are the events that tell of a long wait for a connection.
func (h *host) starved() (events []sqllock.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Kind == sqllock.Starved {
			events = append(events, e)
		}
	}
	return events
}

// TestPoolStarves: a call waits for a connection, says so after a second, and in the
// end says what was missing.
func TestPoolStarves(t *testing.T) {
	own := sqllock.OwnSession()
	byOthers := []string{"2 of 2 (MaxOpenConns) are in use"}
	for _, test := range []struct {
		name  string
		conns int
		most  int
		take  func(t *testing.T, h *host) func()
		opts  []sqllock.LockOption
		parts []string
	}{
		{"the application has all", 2, 0, func(t *testing.T, h *host) func() { t.Helper(); return h.fill(t) }, nil, byOthers},
		{"the application has all, for an OwnSession", 2, 0, func(t *testing.T, h *host) func() { t.Helper(); return h.fill(t) }, []sqllock.LockOption{own}, byOthers},
		{"OwnSessions have all", 0, 3, func(t *testing.T, h *host) func() {
			t.Helper()
			a, b := h.locks(t, "a", own), h.locks(t, "b", own)
			return func() { release(t, a, b) }
		}, []sqllock.LockOption{own}, []string{"of the 3 that the Pool may take, 2 are used by locks with OwnSession (among them ", "0 to wait, one is kept for locks that share", "MaxOpenConns"}},
		{"an OwnSession has the only one", 0, 1, func(t *testing.T, h *host) func() {
			t.Helper()
			a := h.locks(t, "a", own)
			return func() { release(t, a) }
		}, nil, []string{"of the 1 that the Pool may take, 1 are used by locks with OwnSession (\"a\" of ", "0 to wait, 0 by locks that share", "MaxOpenConns"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h := newHost(t, s, setup{conns: test.conns, pool: []sqllock.PoolOption{sqllock.WithMaxConns(test.most)}})
				leave := test.take(t, h)
				before := h.Stats()
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				_, err := h.Lock(ctx, "job", test.opts...)
				takes(t, "the end", start, 5*time.Second)
				is(t, "Lock", err, sqllock.ErrPoolTooSmall, context.DeadlineExceeded)
				if errors.Is(err, sqllock.ErrBusy) {
					t.Errorf("nobody has the lock: %v", err)
				}
				textHas(t, err, "MaxOpenConns")
				if after := h.Stats(); after.Conns != before.Conns || after.Waits != 0 || after.Held != before.Held {
					t.Errorf("before: %+v, after that: %+v", before, after)
				}

				start = time.Now()
				next := h.begin(t.Context(), "job", test.opts...)
				ran, err := h.TryDo(t.Context(), "job", nothing) // somebody is before it
				if ran || err != nil {
					t.Errorf("ran %v, %v", ran, err)
				}
				time.Sleep(2 * time.Second)
				waits(t, next)
				events := h.starved()
				if len(events) != 2 {
					t.Fatalf("%d events, want one for each call: %v", len(events), events)
				}
				for _, e := range events {
					is(t, "the event", e.Err, sqllock.ErrPoolTooSmall)
					textHas(t, e.Err, test.parts...)
					if e.Name != "job" || e.Waited != time.Second {
						t.Errorf("the event is %+v", e)
					}
				}
				if w := h.Snapshot().Waiting; len(w) != 1 || !strings.Contains(w[0].Problem, test.parts[0]) || w[0].Holder != "" {
					t.Errorf("the snapshot says %+v", w)
				}
				leave()
				release(t, granted(t, next))
				takes(t, "the grant", start, 2*time.Second)
				if c := h.Stats().Names["job"]; c.Starved != 2 || c.Acquired != 1 {
					t.Errorf("the counts are %+v", c)
				}
			})
		})
	}
}

// TestPoolStarvesAmongOthers: who gets no connection says so, though others come and go.
func TestPoolStarvesAmongOthers(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(1)}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				for ctx.Err() == nil {
					err := h.Do(t.Context(), fmt.Sprint("own", i), func(context.Context, *sqllock.Lock) error {
						time.Sleep(300 * time.Millisecond)
						return nil
					}, sqllock.OwnSession())
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		err := h.Do(ctx, "job", nothing)
		waited := time.Since(start)
		wg.Wait()
		if err == nil && waited < time.Second {
			return // it did not starve
		}
		is(t, "Do", err, sqllock.ErrPoolTooSmall, context.DeadlineExceeded)
		if !slices.ContainsFunc(h.starved(), func(e sqllock.Event) bool { return e.Name == "job" }) {
			t.Error("nobody was told of ten seconds of waiting for a connection")
		}
	})
}

// TestPoolWaitsYield: who waits for another process gives up its connection to who
// needs one to hold a lock, goes on by asking now and then, and waits again later.
func TestPoolWaitsYield(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(2)}}), newHost(t, s, setup{})
		isAwaited := func(want int) {
			t.Helper()
			synctest.Wait()
			if got := s.Waiters("job"); got != want {
				t.Errorf("%d wait on the server, want %d", got, want)
			}
		}
		held := other.locks(t, "job")
		next := h.begin(t.Context(), "job")
		isAwaited(1)
		start := time.Now()
		own := h.locks(t, "own", sqllock.OwnSession())
		takes(t, "an OwnSession", start, 0)
		time.Sleep(time.Second)
		isAwaited(0)
		if w := h.Stats().Waits; w != 1 {
			t.Errorf("%d wait", w)
		}
		release(t, own)
		time.Sleep(time.Second)
		isAwaited(1)
		own = h.locks(t, "own", sqllock.OwnSession())
		time.Sleep(time.Second)
		start = time.Now()
		release(t, held)
		l := granted(t, next) // though there is no connection to wait on
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Errorf("granted after %v", d)
		}
		release(t, l, own)
		// A deadline ends it as any other wait.
		held, own = other.locks(t, "job"), h.locks(t, "own", sqllock.OwnSession())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start = time.Now()
		_, err := h.Lock(ctx, "job")
		is(t, "Lock", err, sqllock.ErrBusy, context.DeadlineExceeded)
		takes(t, "Lock", start, time.Minute)
		release(t, held, own)
	})
}

// TestPoolYieldsAreNoFailures: a wait that has yielded often outlives the end of its
// session as any other.
func TestPoolYieldsAreNoFailures(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(2)}}), newHost(t, s, setup{})
		held := other.locks(t, "job")
		next := h.begin(t.Context(), "job")
		for range 5 {
			release(t, h.locks(t, "own", sqllock.OwnSession()))
			time.Sleep(time.Second)
		}
		for id := range int64(100) {
			if id != held.Grant().Session {
				_ = s.Kill(id) // there may be none
			}
		}
		waits(t, next)
		release(t, held)
		release(t, granted(t, next))
	})
}

// TestPoolWaitsForNobody: there is no deadlock where who holds what we wait for waits
// for what we hold, and that needs the connection that we wait on.
func TestPoolWaitsForNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		most := []sqllock.PoolOption{sqllock.WithMaxConns(2)}
		h, other := newHost(t, s, setup{pool: most}), newHost(t, s, setup{pool: most})
		var wg sync.WaitGroup
		do := func(h *host, ctx context.Context, name string, f func(ctx context.Context, l *sqllock.Lock) error, opts ...sqllock.LockOption) {
			if err := h.Do(ctx, name, f, opts...); err != nil {
				t.Error(err)
			}
		}
		start := time.Now()
		wg.Go(func() {
			do(other, ctx, "theirs", func(ctx context.Context, _ *sqllock.Lock) error {
				time.Sleep(time.Second)
				return other.Do(ctx, "ours", nothing)
			})
		})
		wg.Go(func() {
			do(h, ctx, "ours", func(ctx context.Context, _ *sqllock.Lock) error {
				time.Sleep(2 * time.Second) // all wait on the server
				return h.Do(ctx, "own", nothing, sqllock.OwnSession())
			})
		})
		synctest.Wait()
		wg.Go(func() { do(h, ctx, "theirs", nothing) })
		wg.Wait()
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// TestPoolManyWaits: more names of other processes than connections to wait on.
func TestPoolManyWaits(t *testing.T) {
	const n = 40
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{conns: 8}), newHost(t, s, setup{})
		var held []*sqllock.Lock
		var next []<-chan result
		for i := range n {
			name := fmt.Sprint("job", i)
			held = append(held, other.locks(t, name))
			next = append(next, h.begin(t.Context(), name))
		}
		if open := h.db.Stats().OpenConnections; open != 4 {
			t.Errorf("%d connections are open, want 4", open)
		}
		time.Sleep(time.Minute)
		for i := range n {
			waits(t, next[i])
			release(t, held[i])
			release(t, granted(t, next[i]))
		}
	})
}

// TestPoolAtLeast: the lock is held on, by nobody, and no longer.
func TestPoolAtLeast(t *testing.T) {
	const d = 10 * time.Second
	for _, test := range []struct {
		name string
		ttl  time.Duration
		opts []sqllock.LockOption
	}{
		{"without a TTL", 0, nil},
		{"as long as the TTL", d, nil},
		{"with an OwnSession", 0, []sqllock.LockOption{sqllock.OwnSession()}},
		{"kept alive beyond the TTL", 3 * time.Second, []sqllock.LockOption{sqllock.KeepAlive(time.Minute)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				var b sqllock.Backend = s.Backend()
				if test.ttl > 0 {
					b = s.Leases(test.ttl)
				}
				h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{backend: b})
				start := time.Now()
				opts := append(slices.Clone(test.opts), sqllock.AtLeast(d))
				err := h.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error {
					time.Sleep(time.Second)
					return nil
				}, opts...)
				if err != nil {
					t.Fatal(err)
				}
				takes(t, "Do", start, time.Second)
				if c := h.Stats().Names["job"]; c.Released != 1 || c.Held != time.Second {
					t.Errorf("the counts are %+v", c)
				}
				if held := h.Snapshot().Held; len(held) != 1 || !held[0].Released || held[0].Lost {
					t.Errorf("the snapshot says %+v", held)
				}
				// Nested in nothing: the ctx is that of no function.
				var order log
				local := h.queue(t.Context(), "job", &order, "here")
				for time.Since(start) < d-time.Second {
					time.Sleep(time.Second)
					_, err := h.TryLock(t.Context(), "job")
					is(t, "TryLock in this process", err, sqllock.ErrBusy)
					_, err = other.TryLock(t.Context(), "job")
					is(t, "TryLock in another process", err, sqllock.ErrBusy)
				}
				remote := other.queue(t.Context(), "job", &order, "there")
				if order.text() != "" {
					t.Errorf("after %v: %s", time.Since(start), order.text())
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if order.text() == "" {
					t.Error("nobody was granted the lock after the time")
				}
				wantNil(t, local, remote)
				if c := h.Stats().Names["job"]; c.Acquired != 2 || c.Released != 2 || c.Lost+c.Expired != 0 {
					t.Errorf("the counts are %+v", c)
				}
				h.free(t, s, "job")
			})
		})
	}
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		err := h.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error {
			time.Sleep(time.Minute)
			return nil
		}, sqllock.AtLeast(time.Second))
		if err != nil {
			t.Error(err)
		}
		h.free(t, s, "job") // the time is over
		// A release of what is held on is not one of the lock.
		l := h.locks(t, "job", sqllock.AtLeast(time.Minute))
		release(t, l)
		is(t, "the second Release", l.Release(t.Context()), sqllock.ErrNotHeld)
		is(t, "Check", l.Check(t.Context()), sqllock.ErrNotHeld)
		_, err = h.TryLock(t.Context(), "job")
		is(t, "TryLock", err, sqllock.ErrBusy)
		// One that is lost meanwhile is not held for as long as was asked for.
		start := time.Now()
		next := h.begin(t.Context(), "job")
		if err := s.Lose("job"); err != nil {
			t.Fatal(err)
		}
		release(t, granted(t, next))
		if d := time.Since(start); d > sqllock.DefaultCheckInterval {
			t.Errorf("granted %v after the loss", d)
		}
		if c := h.Stats().Names["job"]; c.Lost != 1 {
			t.Errorf("the counts are %+v", c)
		}
	})
}

// TestPoolAtLeastAfterAWait: the TTL begins with the grant, as AtLeast does, however
// long the wait was.
func TestPoolAtLeastAfterAWait(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{backend: s.Leases(10 * time.Second)}), newHost(t, s, setup{})
		held := other.locks(t, "job")
		right := h.begin(t.Context(), "job", sqllock.AtLeast(10*time.Second))
		wrong := h.begin(t.Context(), "job", sqllock.AtLeast(11*time.Second))
		time.Sleep(time.Minute)
		release(t, held)
		release(t, granted(t, right))
		r := <-wrong
		if r.err == nil {
			release(t, r.lock)
		}
		textHas(t, r.err, "AtLeast(11s) is longer than the TTL, 10s")
		h.free(t, s, "job")
	})
}

// TestPoolCloseWaitsForAtLeast: but not when its ctx has ended.
func TestPoolCloseWaitsForAtLeast(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		start := time.Now()
		release(t, h.locks(t, "job", sqllock.AtLeast(10*time.Second)))
		time.Sleep(time.Second)
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
		takes(t, "Close", start, 10*time.Second)
		// The release may come later than Close.
		h = newHost(t, s, setup{})
		start = time.Now()
		l := h.locks(t, "job", sqllock.AtLeast(10*time.Second))
		go func() {
			time.Sleep(time.Second)
			release(t, l)
		}()
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
		takes(t, "Close", start, 10*time.Second)
		h = newHost(t, s, setup{})
		start = time.Now()
		release(t, h.locks(t, "job", sqllock.AtLeast(10*time.Second)))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := h.Close(ctx)
		is(t, "Close", err, context.Canceled)
		textHas(t, err, "before the time of AtLeast")
		takes(t, "Close", start, 0)
		h.free(t, s, "job")
	})
}

// TestPoolKeepAlive: a lease is extended until it has been held for the longest time,
// through errors that pass.
func TestPoolKeepAlive(t *testing.T) {
	for _, test := range []struct {
		name                   string
		ttl, longest, work, at time.Duration // when the lock ends, 0 for never
		opts                   []sqllock.LockOption
		hide                   bool
	}{
		{"done in time", 9 * time.Second, time.Minute, 59 * time.Second, 0, nil, false},
		{"the longest hold", 9 * time.Second, time.Minute, 2 * time.Minute, time.Minute, nil, false},
		{"part of a TTL", 9 * time.Second, 61 * time.Second, 2 * time.Minute, 61 * time.Second, nil, false},
		{"part of a second", 9 * time.Second, 60500 * time.Millisecond, 2 * time.Minute, 60500 * time.Millisecond, nil, false},
		{"shorter than the TTL", 9 * time.Second, time.Second, 2 * time.Minute, 9 * time.Second, nil, false},
		{"with an OwnSession", 9 * time.Second, time.Minute, 2 * time.Minute, time.Minute, []sqllock.LockOption{sqllock.OwnSession()}, false},
		{"with a TTL of its own", time.Hour, time.Minute, 2 * time.Minute, time.Minute, []sqllock.LockOption{sqllock.TTL(9 * time.Second)}, false},
		{"by itself", 9 * time.Second, time.Minute, 2 * time.Minute, time.Minute, nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				var b sqllock.Backend = s.Leases(test.ttl)
				if test.hide {
					b = plainLeases{s.Leases(test.ttl)}
				}
				h, other := newHost(t, s, setup{backend: b}), newHost(t, s, setup{backend: b})
				start := time.Now()
				next := make(chan result, 1)
				err := h.Do(t.Context(), "job", func(ctx context.Context, _ *sqllock.Lock) error {
					synctest.Wait()
					go func() { next <- <-other.begin(context.WithoutCancel(ctx), "job") }()
					select {
					case <-time.After(test.work):
					case <-ctx.Done():
						takes(t, "the end of the ctx", start, test.at)
					}
					return context.Cause(ctx)
				}, append(slices.Clone(test.opts), sqllock.KeepAlive(test.longest))...)
				if test.at == 0 && err != nil || test.at != 0 && !errors.Is(err, sqllock.ErrLost) {
					t.Errorf("Do returned %v", err)
				}
				release(t, granted(t, next))
				if test.at != 0 && time.Since(start) > test.at+time.Second {
					t.Errorf("the next one had it after %v", time.Since(start))
				}
				if c := h.Stats().Names["job"]; test.longest == time.Minute && c.Extended != 17 {
					t.Errorf("it was extended %d times", c.Extended)
				}
			})
		})
	}
}

// TestPoolKeepAliveFailures: an error that passes while the TTL lasts drops nothing.
func TestPoolKeepAliveFailures(t *testing.T) {
	for name, test := range map[string]struct {
		failure time.Duration
		want    error
	}{
		"it passes":      {4 * time.Second, nil},
		"it does not":    {time.Minute, sqllock.ErrLost},
		"it is repeated": {0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h := newHost(t, s, setup{backend: s.Leases(9 * time.Second)})
				start := time.Now()
				err := h.Do(t.Context(), "job", func(ctx context.Context, l *sqllock.Lock) error {
					if test.failure == 0 {
						for range 30 {
							s.Fail(errNetwork)
							time.Sleep(3500 * time.Millisecond)
							s.Fail(nil)
							time.Sleep(1500 * time.Millisecond)
						}
						return context.Cause(ctx)
					}
					time.Sleep(20 * time.Second)
					s.Fail(errNetwork)
					select {
					case <-time.After(test.failure):
						s.Fail(nil)
						time.Sleep(20 * time.Second)
					case <-ctx.Done():
						s.Fail(nil)
						if d := time.Since(start); d > 29*time.Second {
							t.Errorf("the loss was known after %v", d)
						}
						if l.Remaining() != 0 {
							t.Errorf("%v are left of a lost lock", l.Remaining())
						}
					}
					return context.Cause(ctx)
				}, sqllock.KeepAlive(time.Hour))
				if !errors.Is(err, test.want) {
					t.Errorf("Do returned %v, want %v", err, test.want)
				}
				h.free(t, s, "job")
			})
		})
	}
	// It does not outlive a loss.
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: s.Leases(9 * time.Second)})
		err := h.Do(t.Context(), "job", func(ctx context.Context, _ *sqllock.Lock) error {
			time.Sleep(20*time.Second + time.Millisecond)
			start := time.Now()
			if err := s.Lose("job"); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			if d := time.Since(start); d > sqllock.DefaultCheckInterval {
				t.Errorf("the loss was known after %v", d)
			}
			return nil
		}, sqllock.KeepAlive(time.Hour))
		is(t, "Do", err, sqllock.ErrLost)
	})
}

// TestPoolKeepAliveMany: each of many leases is extended in time.
func TestPoolKeepAliveMany(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: s.Leases(time.Minute)})
		var ls []*sqllock.Lock
		for i := range 100 {
			ls = append(ls, h.locks(t, fmt.Sprint("job", i), sqllock.TTL(time.Duration(3+i%5)*time.Second), sqllock.KeepAlive(time.Hour)))
		}
		time.Sleep(10 * time.Minute)
		for _, l := range ls {
			if err := l.Check(t.Context()); err != nil {
				t.Error(err)
			}
		}
		release(t, ls...)
	})
}

// TestPoolHangs: a TTL is a hard limit: the next one goes on, even if the function
// does not return.
func TestPoolHangs(t *testing.T) {
	const ttl = 10 * time.Second
	for name, opts := range map[string][]sqllock.LockOption{"shared": nil, "with an OwnSession": {sqllock.OwnSession()}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h := newHost(t, s, setup{backend: s.Leases(ttl)})
				start := time.Now()
				l, sibling := h.locks(t, "job", opts...), h.locks(t, "other", sqllock.TTL(time.Hour))
				next, nextButOne := h.begin(t.Context(), "job"), h.begin(t.Context(), "job", opts...)
				second := granted(t, next)
				takes(t, "the next grant", start, ttl)
				third := granted(t, nextButOne)
				takes(t, "the grant after that", start, 2*ttl)
				for _, lost := range []*sqllock.Lock{l, second} {
					select {
					case <-lost.Done():
					default:
						t.Error("the handle has not ended")
					}
					is(t, "Err", lost.Err(), sqllock.ErrLost)
					textHas(t, lost.Err(), "its TTL is over")
					is(t, "Release", lost.Release(t.Context()), sqllock.ErrLost)
					is(t, "Release once more", lost.Release(t.Context()), sqllock.ErrLost)
				}
				if err := third.Check(t.Context()); err != nil {
					t.Errorf("a late release freed the lock of another: %v", err)
				}
				if c := h.Stats().Names["job"]; c.Expired != 2 || c.Lost != 0 || c.Acquired != 3 || c.HandedOn != 0 {
					t.Errorf("the counts are %+v", c)
				}
				if err := sibling.Check(t.Context()); err != nil {
					t.Errorf("another lock of the process: %v", err)
				}
				release(t, third, sibling)
				h.free(t, s, "job", "other")
			})
		})
	}
}

// TestPoolExtends: the function may extend by itself.
func TestPoolExtends(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{backend: s.Leases(10 * time.Second)})
		start := time.Now()
		err := h.Do(t.Context(), "job", func(ctx context.Context, l *sqllock.Lock) error {
			time.Sleep(9 * time.Second)
			if err := l.Extend(ctx, time.Minute); err != nil {
				t.Error(err)
			}
			time.Sleep(50 * time.Second)
			if err := l.Extend(ctx, 2*time.Second); err != nil { // to a shorter time
				t.Error(err)
			}
			<-ctx.Done()
			takes(t, "the end", start, time.Minute+time.Second)
			return nil
		})
		is(t, "Do", err, sqllock.ErrLost)
	})
}

// TestPoolClose: who waits, for whatever, is told at once, and nothing is left.
func TestPoolClose(t *testing.T) {
	own := sqllock.OwnSession()
	for _, test := range []struct {
		name string
		u    setup
		wait func(t *testing.T, h, other *host) (waiting []<-chan result, leave func())
	}{
		{"for another goroutine", setup{}, func(t *testing.T, h, _ *host) ([]<-chan result, func()) {
			t.Helper()
			l := h.locks(t, "job")
			return []<-chan result{h.begin(t.Context(), "job"), h.begin(t.Context(), "job", own)}, func() { release(t, l) }
		}},
		{"for another process", setup{}, func(t *testing.T, h, other *host) ([]<-chan result, func()) {
			t.Helper()
			l := other.locks(t, "job")
			return []<-chan result{h.begin(t.Context(), "job"), h.begin(t.Context(), "job")}, func() { release(t, l) }
		}},
		{"for another process, by tries", setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(1)}}, func(t *testing.T, h, other *host) ([]<-chan result, func()) {
			t.Helper()
			l, mine := other.locks(t, "job"), h.locks(t, "mine")
			return []<-chan result{h.begin(t.Context(), "job"), h.begin(t.Context(), "job")}, func() { release(t, l, mine) }
		}},
		{"for a connection to share", setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(1)}}, func(t *testing.T, h, _ *host) ([]<-chan result, func()) {
			t.Helper()
			l := h.locks(t, "own", own)
			return []<-chan result{h.begin(t.Context(), "job"), h.begin(t.Context(), "work")}, func() { release(t, l) }
		}},
		{"for a connection of its own", setup{pool: []sqllock.PoolOption{sqllock.WithMaxConns(2)}}, func(t *testing.T, h, _ *host) ([]<-chan result, func()) {
			t.Helper()
			l := h.locks(t, "own", own)
			return []<-chan result{h.begin(t.Context(), "job", own), h.begin(t.Context(), "work", own)}, func() { release(t, l) }
		}},
		{"for a connection of the application", setup{conns: 4}, func(t *testing.T, h, _ *host) ([]<-chan result, func()) {
			t.Helper()
			leave := h.fill(t)
			return []<-chan result{h.begin(t.Context(), "job"), h.begin(t.Context(), "work", own)}, leave
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				h, other := newHost(t, s, test.u), newHost(t, s, setup{})
				waiting, leave := test.wait(t, h, other)
				start := time.Now()
				closed := make(chan error, 1)
				go func() { closed <- h.Close(t.Context()) }()
				synctest.Wait()
				for i, done := range waiting {
					select {
					case r := <-done:
						is(t, "Lock", r.err, sqllock.ErrClosed)
						takes(t, "the end of the wait", start, 0)
					default:
						t.Errorf("call %d still waits", i)
					}
				}
				_, err := h.Lock(t.Context(), "more")
				is(t, "Lock", err, sqllock.ErrClosed)
				_, err = h.TryLock(t.Context(), "job")
				is(t, "TryLock", err, sqllock.ErrClosed)
				ran, err := h.TryDo(t.Context(), "more", nothing)
				is(t, "TryDo", err, sqllock.ErrClosed)
				_, err = h.LockAll(t.Context(), []string{"more", "most"})
				is(t, "LockAll", err, sqllock.ErrClosed)
				if want := `sqllock: lock "more, most": the Pool is closed`; ran || err == nil || !strings.HasSuffix(err.Error(), "the Pool is closed") {
					t.Errorf("got  %v\nwant %s", err, want)
				}
				leave()
				if err := <-closed; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestPoolCloseWaits: for those who hold something, and for nobody else.
func TestPoolCloseWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		l, own := h.locks(t, "job"), h.locks(t, "own", sqllock.OwnSession())
		start := time.Now()
		go func() {
			time.Sleep(time.Second)
			release(t, l)
			time.Sleep(time.Second)
			if err := own.Check(t.Context()); err != nil {
				t.Error(err)
			}
			release(t, own)
		}()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := h.Close(t.Context()); err != nil {
					t.Error(err)
				}
				takes(t, "Close", start, 2*time.Second)
			})
		}
		wg.Wait()
		if err := h.Close(t.Context()); err != nil {
			t.Errorf("the Close after that: %v", err)
		}
		h.free(t, s, "job", "own")
		// A Pool that was never used, and one whose locks have ended.
		h = newHost(t, s, setup{})
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestPoolCloseEvicts: when its ctx ends, it releases under the holders, and names them.
func TestPoolCloseEvicts(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		start := time.Now()
		running := make(chan error, 1)
		at := nextLine()
		go func() {
			running <- h.Do(t.Context(), "running", func(ctx context.Context, _ *sqllock.Lock) error {
				<-ctx.Done()
				takes(t, "the end of the ctx", start, 5*time.Second)
				return context.Cause(ctx)
			})
		}()
		synctest.Wait()
		own := h.locks(t, "own", sqllock.OwnSession())
		all, err := h.LockAll(t.Context(), []string{"a", "b"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, errors.New("shutting down"))
		defer cancel()
		err = h.Close(ctx)
		takes(t, "Close", start, 5*time.Second)
		is(t, "Close", err, context.DeadlineExceeded)
		name, _, _ := strings.Cut(at, ":")
		textHas(t, err, "sqllock: close: context deadline exceeded: shutting down: released what was still held: ", `"running" (`+name+".", `"own" (`, `"a" (`, `"b" (`)
		is(t, "Do", <-running, sqllock.ErrClosed)
		for _, l := range append(all, own) {
			is(t, "Err", l.Err(), sqllock.ErrClosed, sqllock.ErrNotHeld)
			is(t, "Release", l.Release(t.Context()), sqllock.ErrClosed)
		}
		h.free(t, s, "running", "own", "a", "b")
		if s := h.Stats(); s.Conns != 0 || s.Held != 0 {
			t.Errorf("%+v is left", s)
		}
		if err := h.Close(t.Context()); err != nil {
			t.Errorf("the Close after that: %v", err)
		}
	})
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		for i := range 12 {
			h.locks(t, fmt.Sprint("job", i))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := h.Close(ctx)
		textHas(t, err, " and 2 more")
		if n := strings.Count(err.Error(), "(*host).locks"); n != 10 {
			t.Errorf("%d are named: %v", n, err)
		}
	})
}

// TestPoolCloseSilent: a server that does not answer a release is waited for no longer
// than for another answer.
func TestPoolCloseSilent(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		answer := make(chan struct{})
		h := newHost(t, s, setup{
			backend: &spy{Backend: s.Backend(), release: func(sqllock.Grant) error { <-answer; return nil }},
			pool:    []sqllock.PoolOption{sqllock.WithAnswerTime(3 * time.Second)},
		})
		l := h.locks(t, "job")
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		err := h.Close(ctx)
		takes(t, "Close", start, 5*time.Second)
		textHas(t, err, "released what was still held", "2 goroutines still wait")
		close(answer)
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
		is(t, "Release", l.Release(t.Context()), sqllock.ErrClosed)
	})
}

// TestPoolCloseStorm: Close comes in the midst of everything.
func TestPoolCloseStorm(t *testing.T) {
	for round := range 20 {
		inBubble(t, func(t *testing.T, s *memory.Server) {
			var b sqllock.Backend = s.Backend()
			if round%2 == 1 {
				b = s.Leases(time.Minute)
			}
			h, other := newHost(t, s, setup{backend: b, conns: 4}), newHost(t, s, setup{backend: b, conns: 6})
			ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
			defer cancel()
			all, stop := context.WithCancel(ctx)
			var wg sync.WaitGroup
			work := func(h *host, g int) {
				for all.Err() == nil {
					name, second := fmt.Sprint("job", rand.N(4)), fmt.Sprint("job", rand.N(4))
					f := func(ctx context.Context, _ *sqllock.Lock) error {
						if rand.N(4) == 0 {
							time.Sleep(time.Millisecond)
						}
						return context.Cause(ctx)
					}
					var err error
					switch g % 5 {
					case 0:
						_, err = h.TryDo(all, name, f)
						time.Sleep(100 * time.Microsecond)
					case 1:
						err = h.Do(all, name, f, sqllock.OwnSession())
					case 2:
						err = h.DoAll(all, []string{name, second}, func(context.Context, sqllock.Locks) error { return f(all, nil) })
					case 3:
						err = h.Do(all, name, f, sqllock.AtLeast(time.Millisecond))
					default:
						err = h.Do(all, name, f)
					}
					if errors.Is(err, sqllock.ErrClosed) {
						return
					}
					if err != nil && all.Err() == nil {
						t.Error(err)
					}
				}
			}
			for g := range 20 {
				wg.Go(func() { work(h, g) })
				wg.Go(func() { work(other, g) })
			}
			time.Sleep(time.Duration(rand.N(20)) * time.Millisecond)
			grace, cancelGrace := context.WithTimeout(ctx, time.Duration(rand.N(3))*time.Millisecond)
			defer cancelGrace()
			err := h.Close(grace)
			if err != nil && !strings.Contains(err.Error(), "released what was still held") {
				t.Error(err)
			}
			if s := h.Stats(); s.Conns != 0 || s.Held != 0 || h.db.Stats().InUse != 0 {
				t.Errorf("after Close: %+v, %d connections in use", s, h.db.Stats().InUse)
			}
			stop()
			wg.Wait()
			if ctx.Err() != nil {
				t.Error("somebody had waited for ever")
			}
			if s := h.Stats(); s.Conns != 0 || s.Held != 0 || s.Waits != 0 {
				t.Errorf("at the end: %+v", s)
			}
			time.Sleep(time.Second) // what is held for AtLeast
			h.free(t, s, "job0", "job1", "job2", "job3")
		})
	}
}
