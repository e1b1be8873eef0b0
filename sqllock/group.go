package sqllock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Locks are locks that were acquired together, on one session, in the order of their
// keys.
type Locks []*Lock

// Release releases all of them, the last one first, and returns the errors of those
// that [Lock.Release] has any for, joined.
func (ls Locks) Release(ctx context.Context) error {
	var errs []error
	for _, l := range slices.Backward(ls) {
		errs = append(errs, l.Release(ctx))
	}
	return errors.Join(errs...)
}

// LockAll is [Pool.Lock] for several names: it acquires all of them, or none. A name
// that is given twice is locked once.
//
// Calls for names in whatever order do not wait for each other in a circle, in one
// process or several, as long as no call is made while another one's locks are held:
// every call acquires in one and the same order. Where all are free and
// the backend can, it takes one round trip. Where one is not, the call waits for that with
// those before it held.
func (p *Pool) LockAll(ctx context.Context, names []string, opts ...LockOption) (Locks, error) {
	return p.acquireAll(ctx, names, "lock", opts)
}

// TryLockAll is LockAll for one that does not wait: it returns [ErrBusy] if any of
// the locks is not free.
func (p *Pool) TryLockAll(ctx context.Context, names []string, opts ...LockOption) (Locks, error) {
	return p.acquireAll(ctx, names, "try lock", opts)
}

// DoAll is [Pool.Do] for several names, as [Pool.LockAll] acquires them. The ctx of fn
// ends when any of the locks is lost.
func (p *Pool) DoAll(ctx context.Context, names []string, fn func(ctx context.Context, locks Locks) error, opts ...LockOption) error {
	return p.doAll(ctx, names, "lock", fn, opts)
}

// TryDoAll is [Pool.TryDo] for several names: it skips if any of the locks is not
// free.
func (p *Pool) TryDoAll(ctx context.Context, names []string, fn func(ctx context.Context, locks Locks) error, opts ...LockOption) (ran bool, err error) {
	err = p.doAll(ctx, names, "try lock", func(ctx context.Context, locks Locks) error {
		ran = true
		return fn(ctx, locks)
	}, opts)
	return ran, skipped(ran, err)
}

func (p *Pool) doAll(ctx context.Context, names []string, op string, fn func(context.Context, Locks) error, opts []LockOption) (err error) {
	if fn == nil {
		return &OpError{Op: "do", Name: strings.Join(names, ", "), Err: errFuncNil}
	}
	locks, err := p.acquireAll(ctx, names, op, opts)
	if err != nil {
		return err
	}
	fnCtx := ctx
	var cancels []context.CancelFunc
	for _, l := range locks {
		var cancel context.CancelFunc
		fnCtx, cancel = l.Context(within(fnCtx, l)) //nolint:fatcontext // it ends with each of them
		cancels = append(cancels, cancel)
	}
	defer func() {
		cause := context.Cause(fnCtx)
		for _, cancel := range slices.Backward(cancels) {
			cancel()
		}
		for _, l := range slices.Backward(locks) {
			err = both(l.Release(ctx), err, cause)
		}
	}()
	return fn(fnCtx, locks)
}

func (p *Pool) acquireAll(ctx context.Context, names []string, op string, opts []LockOption) (Locks, error) {
	start := time.Now()
	pls, err := p.places(ctx, names, op, opts)
	if err != nil {
		return nil, &OpError{Op: op, Name: strings.Join(names, ", "), Err: err}
	}
	for i, pl := range pls {
		if err := p.enter(ctx, pl); err != nil {
			p.leaveAll(pls[:i])
			for range i {
				p.called()
			}
			return nil, p.refused(ctx, op, start, err, pl.name)
		}
	}
	ts, err := p.obtainAll(ctx, pls)
	for range pls {
		p.called()
	}
	if err != nil {
		return nil, p.refused(ctx, op, start, err, names...)
	}
	if err := p.lasting(ts...); err != nil {
		return nil, p.refused(ctx, op, start, err, names...)
	}
	return locksOf(ts), nil
}

// places makes a place for each name, in the order in which all acquire: that of the
// keys without letter case, since MySQL takes two that differ in it for one.
func (p *Pool) places(ctx context.Context, names []string, op string, opts []LockOption) ([]*place, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: there are no names", ErrInvalidName)
	}
	var pls []*place
	for _, name := range names {
		pl, err := p.place(ctx, name, op, opts)
		if err != nil {
			return nil, err
		}
		pl.group = true
		pls = append(pls, pl)
	}
	fold := func(pl *place) string { return strings.ToLower(pl.req.Key) }
	slices.SortStableFunc(pls, func(a, b *place) int { return strings.Compare(fold(a), fold(b)) })
	pls = slices.CompactFunc(pls, func(a, b *place) bool { return a.req.Key == b.req.Key })
	for i, pl := range pls[1:] {
		if fold(pl) == fold(pls[i]) {
			return nil, fmt.Errorf("%w: %q and %q differ in letter case only, and are one lock on some servers", ErrInvalidName, pls[i].name, pl.name)
		}
	}
	return pls, nil
}

func (p *Pool) leaveAll(pls []*place) {
	for _, pl := range pls {
		p.leave(pl)
	}
}

// obtainAll acquires on the server for all of pls, which have their turns. If it
// returns an error, they have left, or are about to.
func (p *Pool) obtainAll(ctx context.Context, pls []*place) ([]*tenure, error) {
	if p.idle(pls) {
		ts, err := p.tryAll(ctx, pls)
		if err == nil {
			return ts, nil
		}
		if !pls[0].req.Wait || !errors.Is(err, ErrBusy) {
			p.leaveAll(pls)
			return nil, err
		}
	}
	type result struct {
		ts  []*tenure
		err error
	}
	done, givenUp := make(chan result), make(chan struct{})
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.goes(func() {
		ts, err := p.awaitAll(waitCtx, pls)
		select {
		case done <- result{ts, err}:
			return
		case <-givenUp:
		}
		if err == nil {
			for _, t := range ts {
				t.place.req.atLeast = 0
			}
			_ = p.lasting(ts...)
			_ = locksOf(ts).Release(pls[0].ctx) // nobody is there to be told
		} else {
			p.leaveAll(pls)
		}
	})
	p.mu.Unlock()
	select {
	case r := <-done:
		if r.err != nil {
			p.leaveAll(pls)
		}
		return r.ts, r.err
	case <-ctx.Done():
	case <-p.closing:
	}
	close(givenUp)
	p.mu.Lock()
	need := pls[0].need
	p.mu.Unlock()
	if need == nil {
		need = ErrBusy
	}
	return nil, fmt.Errorf("%w: %w", asOfNow(need), p.end(ctx))
}

func locksOf(ts []*tenure) Locks {
	ls := make(Locks, len(ts))
	for i, t := range ts {
		ls[i] = t.lock
	}
	return ls
}

// idle reports whether nothing is under way on the server for any of pls.
func (p *Pool) idle(pls []*place) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(pls, func(pl *place) bool { return pl.queue.attempt != nil })
}

// calm has what is under way for somebody who has given up come to its end.
func (p *Pool) calm(pls []*place) {
	for _, pl := range pls {
		p.mu.Lock()
		a := pl.queue.attempt
		p.mu.Unlock()
		if a == nil {
			continue
		}
		a.cancel()
		<-a.done
		p.mu.Lock()
		pl.queue.attempt = nil
		p.mu.Unlock()
		a.undo()
	}
}

// tryAll acquires all without waiting on the server, or none.
func (p *Pool) tryAll(ctx context.Context, pls []*place) ([]*tenure, error) {
	tries := p.tries()
	for n := 1; ; n++ {
		s, err := p.take(ctx, pls[0])
		if err != nil {
			return nil, err
		}
		ts, err := p.grantAll(ctx, s, pls, false)
		if err == nil || n >= tries || ctx.Err() != nil || !errors.Is(err, ErrSessionGone) {
			return ts, err
		}
	}
}

// awaitAll acquires all, in their order, waiting on the server for each; or where
// there is no connection to wait on, by tries.
func (p *Pool) awaitAll(ctx context.Context, pls []*place) (ts []*tenure, err error) {
	p.calm(pls)
	err = p.persist(ctx, pls[0], func(ctx context.Context, s *seat) (err error) {
		ts, err = p.grantAll(ctx, s, pls, true)
		return err
	}, func() (err error) {
		ts, err = p.tryAll(ctx, pls)
		return err
	})
	return ts, err
}

// grantAll acquires all on s, or none, and has them begin. If it fails, it puts s
// back.
func (p *Pool) grantAll(ctx context.Context, s *seat, pls []*place, wait bool) ([]*tenure, error) {
	ts := make([]*tenure, len(pls))
	for i, pl := range pls {
		ts[i] = &tenure{pool: p, place: pl, seat: s}
	}
	err := p.grantEach(ctx, s, ts, wait)
	if errors.Is(err, ErrHeld) {
		err = errSpelling
	}
	if err != nil {
		p.putBack(s, err)
		return nil, err
	}
	if p.begin(ts...) {
		return ts, nil
	}
	return nil, fmt.Errorf("%w: it ended after the locks had been granted", ErrSessionGone)
}

// grantEach acquires on s in one round trip, where that can be, or one by one.
func (p *Pool) grantEach(ctx context.Context, s *seat, ts []*tenure, wait bool) error {
	if b, ok := p.locker.backend.(GroupAcquirer); ok && !wait {
		reqs := make([]Request, len(ts))
		for i, t := range ts {
			reqs[i] = t.place.req
			reqs[i].Wait = false
		}
		locks, err := p.locker.grantAll(ctx, b, s.conn, reqs, ts)
		for i, l := range locks {
			ts[i].granted(l)
		}
		return err
	}
	for i, t := range ts {
		req := t.place.req
		req.Wait = wait
		l, err := p.locker.grant(ctx, s.conn, t.place.name, req, t)
		if err != nil {
			for _, before := range slices.Backward(ts[:i]) {
				if freed := before.lock.free(ctx); !errors.Is(freed, errReleased) {
					err = fmt.Errorf("%w; %w", err, freed)
				}
			}
			return err
		}
		t.granted(l)
	}
	return nil
}
