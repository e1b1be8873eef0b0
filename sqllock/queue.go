package sqllock

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"time"
)

// queue is the line of the goroutines of this process for one key. One of them has
// the turn: it acquires on the server, holds, and releases. A queue exists while
// somebody is in it or an attempt is under way. Its fields are guarded by Pool.mu.
type queue struct {
	turn    *place
	waiting list.List // of *place
	attempt *attempt
}

// place is that of one call in a queue.
type place struct {
	line    string // which queue: of the key, or one of its own
	name    string
	op      string
	ctx     context.Context //nolint:containedctx // of the call, for its values; it does not end
	req     Request
	group   bool // its lock is one of several
	since   time.Time
	callers callers
	ready   chan struct{} // closed when it has the turn

	queue     *queue        // set by enter
	element   *list.Element // in queue.waiting
	inherited *tenure       // what the one before has passed on with the turn

	granted bool // guarded by Pool.mu
	left    bool // guarded by Pool.mu

	// What it waits for, and since when, if that is not the lock; guarded by Pool.mu.
	need      error
	needSince time.Time
	starved   bool // which has been told
}

// callers are the innermost functions of the call.
type callers [8]uintptr

func stack() (c callers) {
	runtime.Callers(3, c[:])
	return c
}

const ours = "github.com/sqllock/go-sqllock/sqllock."

// by tells for people which function called the Pool, as far as it is none of this
// package.
func (pl *place) by() string {
	frames := runtime.CallersFrames(pl.callers[:])
	for {
		frame, more := frames.Next()
		if !strings.HasPrefix(frame.Function, ours) && frame.Function != "" {
			return fmt.Sprintf("%s:%d", frame.Function, frame.Line)
		}
		if !more {
			return "unknown"
		}
	}
}

// enter returns when pl has the turn, to be followed by called, or with an error, and
// without a place, if it can't wait or ctx ends.
func (p *Pool) enter(ctx context.Context, pl *place) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrClosed
	}
	q := p.queues[pl.line]
	if q == nil {
		q = &queue{}
		p.queues[pl.line] = q
	}
	pl.queue = q
	switch {
	case !pl.req.Wait && (q.turn != nil || q.attempt != nil):
		defer p.mu.Unlock()
		return q.busy()
	case q.turn == nil:
		q.turn = pl
		p.working++
		p.mu.Unlock()
		return nil
	}
	pl.element = q.waiting.PushBack(pl)
	p.mu.Unlock()
	select {
	case <-pl.ready:
		return nil
	case <-ctx.Done():
	case <-p.closing:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.turn != pl {
		q.waiting.Remove(pl.element)
		return fmt.Errorf("%w: %w", q.busy(), p.end(ctx))
	}
	// The turn has come at the same moment. It goes on without this call waiting
	// for what that takes.
	p.goes(func() {
		defer p.called()
		<-pl.ready
		if t := pl.inherited; t != nil {
			p.handOn(ctx, pl, t)
			return
		}
		p.leave(pl)
	})
	return fmt.Errorf("%w: %w", ErrBusy, p.end(ctx))
}

// end is why a call that waits has to end.
func (p *Pool) end(ctx context.Context) error {
	if ctx.Err() == nil {
		return ErrClosed
	}
	return endOf(ctx)
}

// busy says who in this process has the lock, or waits for it. The caller has
// Pool.mu.
func (q *queue) busy() error {
	return &busyError{turn: q.turn, granted: q.turn != nil && q.turn.granted, at: time.Now()}
}

// busyError is an ErrBusy whose text is made when it is asked for.
type busyError struct {
	turn    *place
	granted bool
	at      time.Time
}

func (e *busyError) Error() string {
	if e.turn == nil {
		return ErrBusy.Error() + ", for which this process has just been waiting"
	}
	doing := "is waiting for it"
	if e.granted {
		doing = "has it"
	}
	return fmt.Sprintf("%v: %s of this process %s, and called %v ago", ErrBusy, e.turn.by(), doing, e.at.Sub(e.turn.since).Round(time.Millisecond))
}

func (e *busyError) Unwrap() error { return ErrBusy }

// leave gives the turn of pl, which holds nothing, to the next, once. If there is none,
// what is under way on the server is called off.
func (p *Pool) leave(pl *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pl.left {
		return
	}
	pl.left = true
	q := pl.queue
	if next := p.pop(q); next != nil {
		close(next.ready)
		return
	}
	a := q.attempt
	switch {
	case a == nil:
		p.remove(q, pl.line)
	case a.over():
		q.attempt = nil
		p.remove(q, pl.line)
		p.goes(func() { a.undo() })
	default:
		a.cancel()
	}
	p.changed()
}

// pop gives the turn to the first who waits, whose ready is still to be closed, and
// who has to end it by called. The caller has mu.
func (p *Pool) pop(q *queue) *place {
	q.turn = nil
	if e := q.waiting.Front(); e != nil {
		q.turn, _ = q.waiting.Remove(e).(*place)
		p.working++
	}
	return q.turn
}

func (p *Pool) remove(q *queue, key string) {
	if q.turn == nil && q.attempt == nil && p.queues[key] == q {
		delete(p.queues, key)
	}
}

// obtain acquires on the server for pl, which has the turn and keeps it.
func (p *Pool) obtain(ctx context.Context, pl *place) (*tenure, error) {
	if err := p.behind(ctx, pl); err != nil {
		return nil, err
	}
	t := pl.inherited
	for {
		if t != nil {
			if heir := p.inherit(ctx, pl, t); heir != nil {
				return heir, nil
			}
			t = nil
		}
		p.mu.Lock()
		a := pl.queue.attempt
		p.mu.Unlock()
		if a == nil {
			t, err := p.try(ctx, pl)
			if err == nil && p.begin(t) {
				return t, nil
			}
			if err != nil && (!pl.req.Wait || !errors.Is(err, ErrBusy)) {
				return nil, err
			}
			if err == nil {
				continue // its session has just ended
			}
			a = p.start(ctx, pl)
		}
		if err := p.wait(ctx, a); err != nil {
			return nil, err
		}
		p.mu.Lock()
		pl.queue.attempt = nil
		p.mu.Unlock()
		t = a.tenure
		switch {
		case a.place != pl: // of one who has given up
		case a.err != nil:
			return nil, a.err
		case p.begin(t):
			return t, nil
		default:
			t = nil
		}
	}
}

// behind has one who is to share a lock let those of this process go first who wait on
// the server to have it alone: it could take the connection that they wait on.
func (p *Pool) behind(ctx context.Context, pl *place) error {
	for pl.req.Shared {
		p.mu.Lock()
		q := p.queues[pl.req.Key]
		if q == nil || q.attempt == nil || q.attempt.over() {
			p.mu.Unlock()
			return nil
		}
		busy, done := q.busy(), q.attempt.done
		p.mu.Unlock()
		if !pl.req.Wait {
			return busy
		}
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrBusy, endOf(ctx))
		case <-p.closing:
			return fmt.Errorf("%w: %w", ErrBusy, ErrClosed)
		}
	}
	return nil
}

// wait waits for an attempt.
func (p *Pool) wait(ctx context.Context, a *attempt) error {
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		return p.because(a, endOf(ctx))
	case <-p.closing:
		return p.because(a, ErrClosed)
	}
}

// because says what a was waiting for when its caller gave up.
func (p *Pool) because(a *attempt, err error) error {
	p.mu.Lock()
	need := a.place.need
	p.mu.Unlock()
	if need != nil {
		return fmt.Errorf("%w: %w", asOfNow(need), err)
	}
	return fmt.Errorf("%w: %w", ErrBusy, err)
}

// try acquires on the server without waiting there. What it returns is still to
// begin.
func (p *Pool) try(ctx context.Context, pl *place) (*tenure, error) {
	tries := p.tries()
	for n := 1; ; n++ {
		s, err := p.take(ctx, pl)
		if err != nil {
			return nil, err
		}
		req := pl.req
		req.Wait = false
		t, err := p.grant(ctx, pl, s, req)
		if err == nil {
			return t, nil
		}
		if errors.Is(err, ErrHeld) {
			return nil, errSpelling
		}
		if n >= tries || ctx.Err() != nil || !errors.Is(err, ErrSessionGone) {
			return nil, err
		}
	}
}

// tries is how many sessions a call may find dead: all that there are, after a restart
// of the server, and some more.
func (p *Pool) tries() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.shared) + acquireTries
}

// errSpelling is that a lock of the session shares its key on the server with
// another one, as MySQL has it for those that differ in letter case.
var errSpelling = fmt.Errorf("%w: this process, under another spelling of the name", ErrBusy)

// attempt is an acquisition that waits on the server, in a goroutine of its own. It
// belongs to the queue: who gives up leaves it to the next in line.
type attempt struct {
	pool   *Pool
	place  *place          // for which it was begun
	ctx    context.Context //nolint:containedctx // its own
	cancel context.CancelFunc
	done   chan struct{}

	tenure *tenure // set before done is closed; nil if err is not
	err    error
}

func (a *attempt) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// undo releases what was granted to nobody.
func (a *attempt) undo() {
	if a.tenure == nil {
		return
	}
	a.pool.putBack(a.tenure.seat, a.tenure.lock.free(a.ctx))
}

// start begins an attempt for pl. It ends with the deadline of ctx, and when nobody
// needs it any more.
func (p *Pool) start(ctx context.Context, pl *place) *attempt {
	a := &attempt{pool: p, place: pl, ctx: context.WithoutCancel(ctx), done: make(chan struct{})}
	if deadline, ok := ctx.Deadline(); ok {
		a.ctx, a.cancel = context.WithDeadline(a.ctx, deadline)
	} else {
		a.ctx, a.cancel = context.WithCancel(a.ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pl.queue.attempt = a
	p.goes(func() {
		defer a.cancel()
		t, err := p.await(a.ctx, pl)
		p.mu.Lock()
		a.tenure, a.err = t, err
		close(a.done)
		abandoned := pl.queue.turn == nil && pl.queue.attempt == a
		if abandoned {
			pl.queue.attempt = nil
			p.remove(pl.queue, pl.line)
		}
		p.mu.Unlock()
		if abandoned {
			a.undo()
		}
	})
	return a
}

// The pauses between tries where there is no connection to wait on: more than one try
// in a millisecond would be a load.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = 20 * time.Millisecond
	pauseEach  = time.Millisecond
)

// pause waits between two tries, for longer each time.
func (p *Pool) pause(ctx context.Context, pause *time.Duration) error {
	p.mu.Lock()
	p.polls++
	longest := max(lastPause, time.Duration(p.polls)*pauseEach)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.polls--
	}()
	timer := time.NewTimer(*pause/2 + rand.N(*pause/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		*pause = min(2**pause, longest)
		return nil
	case <-ctx.Done():
	case <-p.closing:
	}
	return fmt.Errorf("%w: %w", ErrBusy, p.end(ctx))
}

// await acquires on the server, waiting there.
func (p *Pool) await(ctx context.Context, pl *place) (t *tenure, err error) {
	err = p.persist(ctx, pl, func(ctx context.Context, s *seat) (err error) {
		t, err = p.grant(ctx, pl, s, pl.req)
		return err
	}, func() (err error) {
		t, err = p.try(ctx, pl)
		return err
	})
	return t, err
}

// persist acquires for pl: by waiting, on a connection apart, or, where there is none
// to be had for that, by one try after another.
func (p *Pool) persist(ctx context.Context, pl *place, wait func(context.Context, *seat) error, try func() error) error {
	pause, gone := firstPause, 0
	for {
		s, ok, err := p.takeToWait(ctx, pl)
		if err != nil {
			return err
		}
		yielded := false
		if ok {
			yielded, err = p.waiting(ctx, func(ctx context.Context) error { return wait(ctx, s) })
		}
		switch {
		case !ok, yielded:
			if err := p.pause(ctx, &pause); err != nil {
				return err
			}
			if err := try(); err == nil || !errors.Is(err, ErrBusy) {
				return err
			}
		case errors.Is(err, ErrSessionGone) && ctx.Err() == nil && gone < acquireTries:
			gone++
		default:
			return err
		}
	}
}
