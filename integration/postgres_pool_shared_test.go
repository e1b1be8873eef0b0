package integration

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// onEachPGSharer runs a test with every backend for PostgreSQL whose locks can be shared.
func onEachPGSharer(t *testing.T, test func(c *pgCase)) {
	t.Helper()
	onEachPG(t, func(c *pgCase) {
		if _, shares := c.backend().(sqllock.Sharer); !shares {
			c.Skip("its locks can't be shared")
		}
		test(c)
	})
}

// reading is the function of a reader, which stays until it is told to leave.
type reading struct {
	in    chan struct{}
	leave chan struct{}
	done  <-chan error
}

func (c *pgCase) read(p *sqllock.Pool, name string, opts ...sqllock.LockOption) *reading {
	r := &reading{in: make(chan struct{}), leave: make(chan struct{})}
	r.done = later(func() error {
		return p.Do(c.Context(), name, func(ctx context.Context, _ *sqllock.Lock) error {
			close(r.in)
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-r.leave:
				return nil
			}
		}, append(opts, sqllock.Shared())...)
	})
	return r
}

func (r *reading) end(t *testing.T) {
	t.Helper()
	close(r.leave)
	if err := result(t, "a reader", r.done); err != nil {
		t.Error(err)
	}
}

func nothing(context.Context, *sqllock.Lock) error { return nil }

// TestPoolPGReaders: readers of two processes at a time, which no writer gets in between
// of; a writer that waits keeps later readers waiting, and is next.
func TestPoolPGReaders(t *testing.T) {
	t.Parallel()
	onEachPGSharer(t, func(c *pgCase) {
		name := lockName("readers")
		p, other := c.pool(0), c.pool(0)
		var readers []*reading
		for _, q := range []*sqllock.Pool{p, p, p, other, other} {
			readers = append(readers, c.read(q, name))
		}
		for _, r := range readers {
			result(t, "a reader", r.in)
		}
		if n := c.granted(); n != len(readers) {
			c.Errorf("%d of %d readers on the server", n, len(readers))
		}
		for _, q := range []*sqllock.Pool{p, other} {
			ran, err := q.TryDo(c.Context(), name, nothing)
			if ran || err != nil {
				c.Errorf("a writer beside readers: %t, %v", ran, err)
			}
			l, err := q.TryLock(c.Context(), name, sqllock.Shared())
			if err != nil {
				c.Fatalf("a reader beside readers: %v", err)
			}
			_, err = q.TryLock(c.Context(), name, sqllock.OwnSession())
			wantErr(c, "a writer with a session of its own", err, sqllock.ErrBusy)
			release(c, l)
		}

		writing, wrote := make(chan struct{}), make(chan struct{})
		writer := later(func() error {
			return p.Do(c.Context(), name, func(context.Context, *sqllock.Lock) error {
				close(writing)
				<-wrote
				return nil
			})
		})
		c.waiter(name)
		for _, q := range []*sqllock.Pool{p, other} {
			_, err := q.TryLock(c.Context(), name, sqllock.Shared())
			wantErr(c, "a reader behind a writer that waits", err, sqllock.ErrBusy)
		}
		late := []*reading{c.read(p, name), c.read(other, name)}
		waitFor(c.T, "readers behind the writer", func() bool {
			return p.Stats().Waits == 2 && other.Stats().Waits == 1 && len(c.waiting(name)) > 1
		})
		for _, r := range readers {
			select {
			case <-writing:
				c.Fatal("a writer has the lock beside readers")
			default:
			}
			r.end(c.T)
		}
		result(c.T, "the writer", writing)
		for _, r := range late {
			select {
			case <-r.in:
				c.Error("a reader has the lock beside the writer")
			default:
			}
		}
		close(wrote)
		if err := result(c.T, "the writer", writer); err != nil {
			c.Error(err)
		}
		for _, r := range late {
			result(c.T, "a late reader", r.in)
			r.end(c.T)
		}
		if s := p.Stats().Names[name]; s.Acquired != 6 || s.Released != 6 || s.Lost != 0 {
			c.Errorf("%+v", s)
		}
		c.free(name)
	})
}

// TestPoolPGReadersStorm: readers and writers in two processes, some of several names,
// some of which give up. What writers keep equal, readers see equal; without the locks
// they do not.
func TestPoolPGReadersStorm(t *testing.T) {
	t.Parallel()
	type pair struct{ a, b atomic.Int64 }
	write := func(p *pair) {
		n := p.a.Add(1)
		runtime.Gosched()
		if p.b.Load() != n-1 {
			n = -1000 // which nobody sees as equal any more
		}
		p.b.Store(n)
	}
	equal := func(p *pair) bool {
		a := p.a.Load()
		runtime.Gosched()
		return p.b.Load() == a
	}
	control := new(pair)
	var unequal atomic.Bool
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				write(control)
				if !equal(control) {
					unequal.Store(true)
				}
			}
		})
	}
	wg.Wait()
	if !unequal.Load() {
		t.Error("the control saw nothing")
	}
	onEachPGSharer(t, func(c *pgCase) {
		names := []string{lockName("storm"), lockName("storm")}
		pairs := []*pair{new(pair), new(pair)}
		var readers, most, wrote, read atomic.Int64
		look := func(i int) error {
			n := readers.Add(1)
			defer readers.Add(-1)
			for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
			}
			read.Add(1)
			if !equal(pairs[i]) {
				return errors.New("a reader has seen what a writer was at")
			}
			return nil
		}
		ctx, stop := context.WithTimeout(c.Context(), 2*time.Second)
		defer stop()
		var wg sync.WaitGroup
		for _, conns := range []int{0, 12} {
			p := c.pool(conns)
			for g := range 10 {
				wg.Go(func() {
					for ctx.Err() == nil {
						i := rand.N(2)
						ctx, cancel := context.WithTimeout(ctx, time.Duration(1+rand.N(500))*time.Millisecond)
						var err error
						switch g {
						case 0, 1:
							err = p.Do(ctx, names[i], func(context.Context, *sqllock.Lock) error { write(pairs[i]); wrote.Add(1); return nil })
						case 2:
							err = p.DoAll(ctx, names, func(context.Context, sqllock.Locks) error {
								write(pairs[0])
								write(pairs[1])
								wrote.Add(2)
								return nil
							})
						case 3:
							err = p.DoAll(ctx, names, func(context.Context, sqllock.Locks) error { return errors.Join(look(0), look(1)) }, sqllock.Shared())
						default:
							err = p.Do(ctx, names[i], func(context.Context, *sqllock.Lock) error { return look(i) }, sqllock.Shared())
						}
						cancel()
						if err != nil && !errors.Is(err, context.DeadlineExceeded) {
							c.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		if n := pairs[0].b.Load() + pairs[1].b.Load(); n != wrote.Load() || !equal(pairs[0]) || !equal(pairs[1]) {
			c.Errorf("%d of %d writes are left", n, wrote.Load())
		}
		c.Logf("%d writes, %d reads, %d of these at a time", wrote.Load(), read.Load(), most.Load())
		if most.Load() < 2 || wrote.Load() == 0 {
			c.Error("there should be readers at the same time, and writers")
		}
	})
}

// TestPoolPGReaderLost: the session of one reader ends, and no other reader's.
func TestPoolPGReaderLost(t *testing.T) {
	t.Parallel()
	onEachPGSharer(t, func(c *pgCase) {
		name := lockName("reader")
		p := poolOf(c, c.open(), sqllock.New(c.backend(), sqllock.WithCheckInterval(20*time.Millisecond)))
		var locks sqllock.Locks
		for range 3 {
			l, err := p.Lock(c.Context(), name, sqllock.Shared())
			if err != nil {
				c.Fatal(err)
			}
			locks = append(locks, l)
		}
		if err := pgKill(c.Context(), c.direct, locks[1].Grant().Session); err != nil {
			c.Fatal(err)
		}
		select {
		case <-locks[1].Done():
			wantErr(c, "the reader", locks[1].Err(), sqllock.ErrLost)
		case <-time.After(30 * time.Second):
			c.Error("the loss is not noticed")
		}
		_, err := p.TryLock(c.Context(), name)
		wantErr(c, "a writer beside two readers", err, sqllock.ErrBusy)
		wantErr(c, "Release of what is lost", locks[1].Release(c.Context()), sqllock.ErrLost)
		release(c, locks[0])
		release(c, locks[2])
		c.free(name)
	})
}

// TestPoolPGReadersAtLeast: a reader that has left keeps writers out for its time, and no
// readers. Close waits for that.
func TestPoolPGReadersAtLeast(t *testing.T) {
	t.Parallel()
	const least = 400 * time.Millisecond
	onEachPGSharer(t, func(c *pgCase) {
		name := lockName("least")
		p, other := c.pool(0), c.pool(0)
		var start time.Time
		err := p.Do(c.Context(), name, func(context.Context, *sqllock.Lock) error {
			start = time.Now()
			return nil
		}, sqllock.Shared(), sqllock.AtLeast(least))
		if err != nil {
			c.Fatal(err)
		}
		for _, q := range []*sqllock.Pool{p, other} {
			if ran, err := q.TryDo(c.Context(), name, nothing); (ran || err != nil) && time.Since(start) < least {
				c.Errorf("a writer before the time: %t, %v", ran, err)
			}
			if ran, err := q.TryDo(c.Context(), name, nothing, sqllock.Shared(), sqllock.OwnSession()); !ran || err != nil {
				c.Errorf("another reader: %t, %v", ran, err)
			}
		}
		if h := p.Snapshot().Held; time.Since(start) < least && (len(h) != 1 || !h[0].Released) {
			c.Errorf("the snapshot has %+v", h)
		}
		if err := p.Close(c.Context()); err != nil {
			c.Error(err)
		}
		if passed := time.Since(start); passed < least-50*time.Millisecond { // the grant was before start
			c.Errorf("Close has returned after %v", passed)
		}
		if ran, err := other.TryDo(c.Context(), name, nothing); !ran || err != nil {
			c.Errorf("a writer after the time: %t, %v", ran, err)
		}
	})
}

// TestPoolPGReadersClose: Close ends readers that wait, and takes the locks of those that
// stay when its ctx ends. Their functions are told, and nothing is left.
func TestPoolPGReadersClose(t *testing.T) {
	t.Parallel()
	onEachPGSharer(t, func(c *pgCase) {
		name, awaited := lockName("close"), lockName("awaited")
		before := c.holder(awaited)
		db := c.open()
		p := sqllock.NewPool(db, sqllock.New(c.backend()))
		readers := []*reading{c.read(p, name), c.read(p, name)}
		for _, r := range readers {
			result(c.T, "a reader", r.in)
		}
		early, err := p.Lock(c.Context(), lockName("early"), sqllock.Shared(), sqllock.AtLeast(time.Hour))
		if err != nil {
			c.Fatal(err)
		}
		release(c, early)
		waiting := later(func() error { return p.Do(c.Context(), awaited, nothing, sqllock.Shared()) })
		c.waiter(awaited)
		ctx, cancel := context.WithCancel(c.Context())
		closed := later(func() error { return p.Close(ctx) })
		wantErr(c, "a reader that waits", result(c.T, "who waits", waiting), sqllock.ErrClosed)
		select {
		case err := <-closed:
			c.Errorf("Close has returned beside readers: %v", err)
		default:
		}
		cancel()
		err = result(c.T, "Close", closed)
		wantErr(c, "Close", err, context.Canceled)
		if err == nil || strings.Count(err.Error(), name) != 2 || !strings.Contains(err.Error(), "AtLeast") {
			c.Errorf("the error should name all three: %v", err)
		}
		for _, r := range readers {
			wantErr(c, "a reader", result(c.T, "a reader", r.done), sqllock.ErrClosed)
		}
		if n := c.granted(); n != 1 || db.Stats().InUse != 0 {
			c.Errorf("%d locks are left, want that of another process, and %d connections", n, db.Stats().InUse)
		}
		release(c, before)
	})
}

// TestPoolPGReadersTooSmall: each reader needs a connection. Who has to wait for one is
// told so, and who would wait for himself at once.
func TestPoolPGReadersTooSmall(t *testing.T) {
	t.Parallel()
	onEachPGSharer(t, func(c *pgCase) {
		name, another := lockName("small"), lockName("another")
		for conns, pools := range map[int]string{2: "of one", 4: "of two"} {
			p := c.pool(conns)
			r := c.read(p, name)
			result(c.T, "a reader", r.in)
			ctx, cancel := context.WithCancel(c.Context())
			second := later(func() error { return p.Do(ctx, name, nothing, sqllock.Shared()) })
			waitFor(c.T, "a reader that waits for a connection", func() bool {
				w := p.Snapshot().Waiting
				return len(w) == 1 && strings.Contains(w[0].Problem, "OwnSession")
			})
			cancel()
			err := result(c.T, "the second reader", second)
			wantErr(c, "a second reader with a Pool "+pools, err, sqllock.ErrPoolTooSmall, context.Canceled)
			third := later(func() error { return p.Do(c.Context(), name, nothing, sqllock.Shared()) })
			r.end(c.T)
			if err := result(c.T, "the third reader", third); err != nil {
				c.Error(err)
			}
			err = p.Do(c.Context(), name, func(ctx context.Context, _ *sqllock.Lock) error {
				for _, opts := range [][]sqllock.LockOption{nil, {sqllock.Shared()}, {sqllock.OwnSession()}} {
					_, err := p.Lock(ctx, name, opts...)
					wantErr(c, "a lock inside of itself", err, sqllock.ErrHeld)
				}
				_, err := p.Lock(ctx, another, sqllock.Shared())
				return err
			}, sqllock.Shared())
			wantErr(c, "a reader inside of one that has the connection, with a Pool "+pools, err, sqllock.ErrPoolTooSmall)
		}
		// A writer that has no connection to wait on gets its turn between readers.
		p := c.pool(4)
		r := c.read(p, name)
		result(c.T, "a reader", r.in)
		writer := later(func() error { return p.Do(c.Context(), name, nothing) })
		waitFor(c.T, "the writer to wait", func() bool { return p.Stats().Waits == 1 })
		r.end(c.T)
		if err := result(c.T, "the writer", writer); err != nil {
			c.Error(err)
		}
	})
}

// TestPoolPGReadersLetWriters: readers that come without a pause, more of them than the
// Pool has connections for, do not keep a writer of the same process out.
func TestPoolPGReadersLetWriters(t *testing.T) {
	t.Parallel()
	const most = 300 // readers after the writer's call
	onEachPGSharer(t, func(c *pgCase) {
		name := lockName("writer")
		p := c.pool(12)
		ctx, stop := context.WithCancel(c.Context())
		defer stop()
		var reads atomic.Int64
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for ctx.Err() == nil {
					err := p.Do(ctx, name, func(context.Context, *sqllock.Lock) error {
						if reads.Add(1) == most {
							stop()
						}
						<-time.After(5 * time.Millisecond)
						return nil
					}, sqllock.Shared())
					if err != nil && ctx.Err() == nil {
						c.Error(err)
					}
				}
			})
		}
		waitFor(c.T, "readers", func() bool { return reads.Load() > 10 })
		start := reads.Load()
		err := p.Do(ctx, name, nothing)
		c.Logf("the writer had its turn after %d readers", reads.Load()-start)
		if err != nil {
			c.Errorf("the writer had no turn before %d readers: %v", most, err)
		}
		stop()
		wg.Wait()
	})
}

// TestPoolPGReadersShown: who waits for readers or writers of this process is told their
// names.
func TestPoolPGReadersShown(t *testing.T) {
	t.Parallel()
	onEachPGSharer(t, func(c *pgCase) {
		name := lockName("shown")
		p := c.pool(0)
		for what, opts := range map[string][2][]sqllock.LockOption{
			"a reader behind a writer": {nil, {sqllock.Shared()}},
			"a writer behind a reader": {{sqllock.Shared()}, nil},
		} {
			l, err := p.Lock(c.Context(), name, opts[0]...)
			if err != nil {
				c.Fatal(err)
			}
			done := later(func() error { return p.Do(c.Context(), name, nothing, opts[1]...) })
			c.waiter(name)
			if w := p.Snapshot().Waiting; len(w) != 1 || !strings.Contains(w[0].Holder, "TestPoolPGReadersShown") {
				c.Errorf("%s: %+v", what, w)
			}
			release(c, l)
			if err := result(c.T, what, done); err != nil {
				c.Error(err)
			}
		}
	})
}
