package sqllock

import (
	"container/list"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// DefaultHandOffs is how many times at most a lock goes from one goroutine to the
// next in one process before other processes get their turn, unless [WithHandOffs]
// says otherwise. It goes on for no longer than handOffTime either. So the two round trips
// to the server weigh little where functions are short, and another process does not
// wait for long: where functions take longer than that time, processes take turns after each.
const DefaultHandOffs = 100

// handOffTime is how long after the grant of the server a lock may be handed on.
const handOffTime = 10 * time.Millisecond

// DefaultAnswerTime is how long a Pool takes a silent server for a slow one, unless
// [WithAnswerTime] says otherwise.
const DefaultAnswerTime = 5 * time.Second

// Pool holds and awaits any number of locks over few connections of a *sql.DB,
// which goes on serving the application. One Pool for a *sql.DB and a Locker serves
// the whole process. It is safe for concurrent use. It has one goroutine of its own
// while it has connections, and one for each name that it awaits on the server.
type Pool struct {
	db         *sql.DB
	locker     *Locker
	maxConns   int
	handOffs   int
	answerTime time.Duration
	counts     counts
	closing    chan struct{} // closed by Close

	mu      sync.Mutex // guards the following; not held across I/O
	closed  bool
	queues  map[string]*queue // by key; those that somebody is in, or an attempt
	held    map[*tenure]struct{}
	shared  []*seat            // for locks that share sessions
	apart   map[*seat]struct{} // for a lock or a wait of its own
	opening bool               // a connection is being taken that is to be shared
	line    list.List          // of *claim: who waits for one apart
	waits   map[*wait]struct{} // on the server, each on a seat apart
	opens   map[*wait]struct{} // for a connection of the application's pool
	polls   int                // waits that have no seat, and try at intervals
	jobs    int                // goroutines
	working int                // calls that have the turn, or give it on
	caring  bool               // care runs
	due     []*tenure          // leases to be extended
	keeping bool               // keep runs
	failing time.Time          // the first watch after the last one that was answered; zero if that was the last one
	change  chan struct{}      // closed when something of the above becomes free; nil if nobody waits for that
}

// PoolOption configures a [Pool].
type PoolOption interface{ applyToPool(*Pool) }

type poolOption func(*Pool)

func (o poolOption) applyToPool(p *Pool) { o(p) }

// WithMaxConns sets how many connections of the *sql.DB the Pool takes at most, for
// all of its locks and waits. It always leaves one of MaxOpenConns to the
// application. Without this option, or if n is not positive, it takes half of
// MaxOpenConns, and 16 where that is unlimited. It takes them as it needs them, and gives
// one back a few seconds after it was last needed. Each Pool counts for itself: with two
// on one *sql.DB, give both this option.
//
// If there are two or more, one is kept for locks that share sessions. A lock with
// [OwnSession] takes one while it is held, and a name that another
// process holds takes one while it is awaited. Where there is none for a wait, or a
// lock with OwnSession needs it, the Pool asks for the name in intervals of a fiftieth
// of a second, and longer if there are many such names. Where there is none for an
// OwnSession, the call waits; see [Starved] and [ErrPoolTooSmall].
func WithMaxConns(n int) PoolOption { return poolOption(func(p *Pool) { p.maxConns = n }) }

// WithHandOffs sets how many times at most, within ten milliseconds of the grant, a
// lock goes from one goroutine of the process to the next without being released in
// between; 0 for never.
func WithHandOffs(n int) PoolOption { return poolOption(func(p *Pool) { p.handOffs = max(n, 0) }) }

// WithAnswerTime sets how long the server may leave the Pool's question about its
// locks without an answer. After that they are lost: the ctx of each Do ends, though
// the server may keep the locks until it notices. It is how a cut that nobody
// is told of is told from a server that is slow. Backends have a bound of their own on
// every statement, five seconds for those here, so a greater value has no effect.
func WithAnswerTime(d time.Duration) PoolOption {
	return poolOption(func(p *Pool) {
		if d > 0 {
			p.answerTime = d
		}
	})
}

// pooled is what a Pool does with a lock, beside what the backend does.
type pooled struct {
	own     bool
	atLeast time.Duration
	keep    time.Duration // longest hold; 0 for no keeping
}

// OwnSession gives a lock of a [Pool] a session of its own, for [Lock.Conn] and
// package txguard. It takes a connection of the *sql.DB while the lock is held. A
// Locker, whose locks all have that, refuses this option ([ErrUnsupported]).
func OwnSession() LockOption {
	return lockOption(func(r *Request) error {
		r.own = true
		return nil
	})
}

// AtLeast keeps a lock of a [Pool] for d from its grant on, even if it is released
// before: the release returns at once, and the Pool goes on holding the lock. It is
// for jobs that end sooner than the clocks of the hosts that start them
// differ. [Pool.Close] waits for that time to pass. d must not exceed the TTL of a
// lease, or the time of [KeepAlive]. A Locker refuses this option ([ErrUnsupported]).
func AtLeast(d time.Duration) LockOption {
	return lockOption(func(r *Request) error {
		if d < 0 {
			return fmt.Errorf("AtLeast(%v): the time must not be negative", d)
		}
		r.atLeast = d
		return nil
	})
}

// KeepAlive has a [Pool] extend a lease by its TTL, whenever a third of that has
// passed, until it is released. The lock ends when it has been held for longest,
// whatever the function does, but not before the TTL that it was granted with is
// over. An extension that could not be made is tried again while the TTL lasts.
// [ErrUnsupported] is returned for locks without a TTL, and by a Locker.
func KeepAlive(longest time.Duration) LockOption {
	return lockOption(func(r *Request) error {
		if longest <= 0 {
			return fmt.Errorf("KeepAlive(%v): the longest hold must be positive", longest)
		}
		r.keep = longest
		return nil
	})
}

// NewPool returns a Pool of the locks of locker over db. It starts nothing. It
// panics if either is nil.
func NewPool(db *sql.DB, locker *Locker, opts ...PoolOption) *Pool {
	if db == nil || locker == nil {
		panic("sqllock: NewPool needs a *sql.DB and a Locker")
	}
	p := &Pool{
		db: db, locker: locker, handOffs: DefaultHandOffs, answerTime: DefaultAnswerTime,
		closing: make(chan struct{}), queues: make(map[string]*queue), held: make(map[*tenure]struct{}), apart: make(map[*seat]struct{}), waits: make(map[*wait]struct{}), opens: make(map[*wait]struct{}),
	}
	for _, o := range opts {
		o.applyToPool(p)
	}
	return p
}

// Do acquires name, waiting until it is granted or ctx ends, runs fn, and
// releases. Goroutines of one process that wait for one name are served in the
// order in which they came, and one that gives up leaves at once.
//
// fn gets a ctx that ends with ctx, and, with [ErrLost] as its cause, as soon as
// the lock is known to be lost, at most the interval of [WithCheckInterval] and a
// round trip later. fn should then stop. A lock with a TTL is lost when that is over,
// unless [KeepAlive] or fn extends it; the next one in the queue goes on then, even if
// fn does not return. A call with the ctx of fn that could only wait for fn itself
// returns an error: [ErrHeld] for its own name, [ErrPoolTooSmall] for a connection that
// fn and its callers have. Nested calls that take locks in different orders are not found:
// they wait for each other until ctx ends; take such locks together, by [Pool.DoAll].
//
// Do returns the error of fn, and, before it, the error of a lock that was lost or
// whose release could not be confirmed. If fn panics, or ends its goroutine, the lock
// is released and the panic goes on. If the lock could not be acquired, fn has not
// run.
func (p *Pool) Do(ctx context.Context, name string, fn func(ctx context.Context, lock *Lock) error, opts ...LockOption) error {
	return p.do(ctx, name, "lock", fn, opts)
}

// TryDo is Do for work that is to be skipped when somebody else holds the lock, in
// this process or another: it then returns false and no error, without having run fn.
// It returns true whenever fn has run. It does not wait for the lock, but for a
// connection if the Pool has none, and as [Locker.TryDo] for a holder whose TTL is
// over ([ErrHolderAlive]).
func (p *Pool) TryDo(ctx context.Context, name string, fn func(ctx context.Context, lock *Lock) error, opts ...LockOption) (ran bool, err error) {
	err = p.do(ctx, name, "try lock", func(ctx context.Context, lock *Lock) error {
		ran = true
		return fn(ctx, lock)
	}, opts)
	return ran, skipped(ran, err)
}

// skipped is the error of a TryDo: to skip is none.
func skipped(ran bool, err error) error {
	if !ran && errors.Is(err, ErrBusy) && !errors.Is(err, ErrHolderAlive) {
		return nil
	}
	return err
}

var errFuncNil = errors.New("the function is nil")

func (p *Pool) do(ctx context.Context, name, op string, fn func(context.Context, *Lock) error, opts []LockOption) error {
	if fn == nil {
		return &OpError{Op: "do", Name: name, Err: errFuncNil}
	}
	lock, err := p.acquire(ctx, name, op, opts)
	if err != nil {
		return err
	}
	return lock.run(within(ctx, lock), fn, func() {})
}

// Lock acquires name, waiting as [Pool.Do] does, and returns the handle, which has
// to be released. On failure nothing has been acquired. The error of a ctx that has
// ended is joined by [ErrBusy] where somebody else held the lock, and by
// [ErrPoolTooSmall] where there was no connection for it.
func (p *Pool) Lock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return p.acquire(ctx, name, "lock", opts)
}

// TryLock is Lock for one that does not wait for the lock: it returns [ErrBusy] if
// somebody else holds it or waits for it in this process, or holds it in another.
func (p *Pool) TryLock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return p.acquire(ctx, name, "try lock", opts)
}

func (p *Pool) acquire(ctx context.Context, name, op string, opts []LockOption) (*Lock, error) {
	pl, err := p.place(ctx, name, op, opts)
	if err != nil {
		return nil, &OpError{Op: op, Name: name, Err: err}
	}
	if err = p.enter(ctx, pl); err == nil {
		defer p.called()
		var t *tenure
		if t, err = p.obtain(ctx, pl); err == nil {
			if err := p.lasting(t); err != nil {
				return nil, p.refused(ctx, op, pl.since, err, name)
			}
			return t.lock, nil
		}
		p.leave(pl)
	}
	return nil, p.refused(ctx, op, pl.since, err, name)
}

// lasting tells of what has been acquired, unless one of them is a lease that ends
// before it may: then it releases them.
func (p *Pool) lasting(ts ...*tenure) (err error) {
	for _, t := range ts {
		atLeast := t.place.req.atLeast
		ttl := t.grant.Until.Sub(t.lock.since).Round(time.Second) // it was counted from before the statement
		if atLeast > 0 && t.place.req.keep == 0 && !t.grant.Until.IsZero() && atLeast > ttl {
			err = errTooLong(atLeast, ttl)
		}
	}
	for _, t := range ts {
		if err == nil {
			p.emit(Event{Kind: Acquired, Name: t.place.name, Waited: time.Since(t.place.since), Token: t.grant.Token})
			continue
		}
		t.place.req.atLeast = 0
		_ = t.lock.Release(t.place.ctx) // the other error is the one to tell
	}
	return err
}

// refused makes the error of an acquisition of names that has failed.
func (p *Pool) refused(ctx context.Context, op string, start time.Time, err error, names ...string) error {
	end := ctx.Err()
	if end == nil && (hasEnded(ctx) || op == "lock" && errors.Is(err, ErrBusy) && !errors.Is(err, ErrClosed)) {
		end = context.DeadlineExceeded // as the server has it, or the dialer
	}
	if end != nil && !errors.Is(err, end) {
		err = fmt.Errorf("%w: %w", err, endOf(ctx))
	}
	if errors.Is(err, ErrBusy) {
		for _, name := range names {
			p.emit(Event{Kind: Busy, Name: name, Waited: time.Since(start), Err: err})
		}
	}
	return &OpError{Op: op, Name: strings.Join(names, ", "), Err: err}
}

func (p *Pool) emit(e Event) {
	p.counts.add(e)
	p.locker.observe(e)
}

// place makes of a call what goes into the queue.
func (p *Pool) place(ctx context.Context, name, op string, opts []LockOption) (*place, error) {
	req, err := p.locker.request(name, opts)
	if err != nil {
		return nil, err
	}
	_, leases := p.locker.backend.(Leaser)
	switch {
	case req.keep != 0 && !leases:
		return nil, errNoTTL(p.locker.backend)
	case req.keep == 0 && req.TTL != 0 && req.atLeast > req.TTL:
		return nil, errTooLong(req.atLeast, req.TTL)
	case req.keep != 0 && req.atLeast > req.keep:
		return nil, fmt.Errorf("AtLeast(%v) is longer than KeepAlive(%v): the lock would end before", req.atLeast, req.keep)
	case ctx.Err() != nil:
		return nil, endOf(ctx)
	}
	if err := p.possible(ctx, req); err != nil {
		return nil, err
	}
	req.Wait = op == "lock"
	req.Observe = func(e Event) {
		e.Name = name
		p.emit(e)
	}
	line := req.Key
	if req.Shared { // nobody's turn, and, as another might wait on its session, on none of others
		req.own = true
		line += "\x00" + rand.Text()
	}
	return &place{
		line: line, name: name, op: op, ctx: context.WithoutCancel(ctx), req: req, since: time.Now(), callers: stack(), ready: make(chan struct{}),
	}, nil
}

func errTooLong(atLeast, ttl time.Duration) error {
	return fmt.Errorf("AtLeast(%v) is longer than the TTL, %v: the lock would end before", atLeast, ttl)
}

// under is what the ctx of a function tells of the locks that it runs under.
type under struct {
	lock   *Lock
	parent *under
}

type underKey struct{}

func within(ctx context.Context, lock *Lock) context.Context {
	parent, _ := ctx.Value(underKey{}).(*under)
	return context.WithValue(ctx, underKey{}, &under{lock, parent})
}

// possible finds calls that could only wait for the function that makes them.
func (p *Pool) possible(ctx context.Context, req Request) error {
	limit, err := p.limit()
	if err != nil {
		return err
	}
	own := make(map[*seat]bool)
	for _, t := range p.above(ctx) {
		if t.place.req.Key == req.Key {
			return fmt.Errorf("%w: the ctx is that of a function that runs under it, which would wait for itself", ErrHeld)
		}
		if t.place.req.own {
			own[t.seat] = true
		}
	}
	if len(own) >= limit {
		return errNested(limit)
	}
	return nil
}

// above are the locks that a call is made under.
func (p *Pool) above(ctx context.Context) (ts []*tenure) {
	u, _ := ctx.Value(underKey{}).(*under)
	for ; u != nil; u = u.parent {
		if t := u.lock.tenure; t != nil && t.pool == p && !u.lock.ended() {
			ts = append(ts, t)
		}
	}
	return ts
}

func errNested(limit int) error {
	return fmt.Errorf("%w: of the %d connections that the Pool may take, those for locks with OwnSession are used by functions that wait for a further one, "+
		"this call's among them; raise MaxOpenConns or WithMaxConns", ErrPoolTooSmall, limit)
}

// Close ends the Pool. Calls that wait for a lock return [ErrClosed] at once, as do
// those that come later. Close then waits until everything that is held has been
// released, and for the time of [AtLeast] to pass. If ctx ends before that, it
// releases the rest itself: their handles end with ErrClosed, as does the ctx
// of each function that still runs, and the error names them. When Close returns, the Pool
// has no goroutine and no connection, unless the error says so. It is safe to
// call it more than once. From within a function that holds a lock it waits for
// itself, until ctx ends.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.closing)
		for w := range p.opens {
			w.cancel(ErrClosed)
		}
	}
	p.mu.Unlock()
	forced := p.drain(ctx)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.answerTime)
	defer cancel()
	for {
		p.mu.Lock()
		jobs, changed := p.jobs+p.working, p.changes()
		p.mu.Unlock()
		if jobs == 0 {
			return forced
		}
		select {
		case <-changed:
		case <-grace.Done():
			return errors.Join(forced, fmt.Errorf("sqllock: close: %d goroutines still wait for the server, or for a statement of a lock's holder", jobs))
		}
	}
}

// drain returns when nothing is held any more.
func (p *Pool) drain(ctx context.Context) error {
	for {
		p.mu.Lock()
		left := len(p.held) + p.working
		changed := p.changes()
		p.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return p.evict(ctx)
		}
	}
}

// evict releases what is still held.
func (p *Pool) evict(ctx context.Context) error {
	p.mu.Lock()
	names := make([]string, 0, len(p.held))
	for t := range p.held {
		held := ""
		if t.retired {
			held = ", before the time of AtLeast"
		}
		names = append(names, fmt.Sprintf("%q (%s%s)", t.place.name, t.place.by(), held))
		p.goes(func() { t.evict(ctx) })
	}
	p.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("sqllock: close: %w: released what was still held: %s", endOf(ctx), enumerate(names))
}

// enumerate names the first of many.
func enumerate(names []string) string {
	const few = 10
	s, more := "", ""
	if len(names) > few {
		names, more = names[:few], fmt.Sprintf(" and %d more", len(names)-few)
	}
	for i, n := range names {
		if i > 0 {
			s += ", "
		}
		s += n
	}
	return s + more
}

// changes returns a channel that is closed at the next change. The caller has mu.
func (p *Pool) changes() <-chan struct{} {
	if p.change == nil {
		p.change = make(chan struct{})
	}
	return p.change
}

// changed wakes those who wait for a change. The caller has mu.
func (p *Pool) changed() {
	if p.change != nil {
		close(p.change)
		p.change = nil
	}
}

// calls begins what Close waits for, beside goroutines.
func (p *Pool) calls() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working++
}

// called ends what enter or calls has begun.
func (p *Pool) called() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working--
	p.changed()
}

// goes runs f in a goroutine that Close waits for. The caller has mu.
func (p *Pool) goes(f func()) {
	p.jobs++
	go func() {
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.jobs--
			p.changed()
		}()
		f()
	}()
}
