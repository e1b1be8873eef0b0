package sqllock

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// tenure is what one tenant of a [Pool] has: a lock, granted on the server, on a
// seat. A lock that is handed on has one tenure after another; between two of them
// it is in transit, and its seat is in use.
type tenure struct {
	pool   *Pool
	place  *place
	seat   *seat
	lock   *Lock
	grant  Grant
	passed int           // how many tenants the grant has had before
	since  time.Time     // the first of them
	ttl    time.Duration // 0 for none
	expiry *time.Timer   // of a lease
	kept   *time.Timer   // of one that is kept alive

	// retired is that nobody holds the handle: it is held for AtLeast, since.
	retired bool
	from    time.Time

	// Guarded by Pool.mu.
	begun bool
	dead  bool // its session has ended before it could begin
	ended bool // it was lost, and its tenant has yet to release the session
	quits bool // its tenant has released
}

// grant acquires what is asked for on s, which it puts back if that fails.
func (p *Pool) grant(ctx context.Context, pl *place, s *seat, req Request) (*tenure, error) {
	t := &tenure{pool: p, place: pl, seat: s}
	l, err := p.locker.grant(ctx, s.conn, pl.name, req, t)
	if err != nil {
		p.putBack(s, err)
		return nil, err
	}
	t.granted(l)
	return t, nil
}

func (t *tenure) granted(l *Lock) { t.lock, t.grant, t.since = l, l.Grant(), l.since }

// begin makes tenants of the places of ts, which are on one seat that is in use for
// them. It reports false if the session has ended since the grant, or the Pool is
// closed; they are over then.
func (p *Pool) begin(ts ...*tenure) bool {
	p.mu.Lock()
	s := ts[0].seat
	over := s.gone
	for _, t := range ts {
		over = over || t.dead
	}
	if over || p.closed && !ts[0].retired {
		p.mu.Unlock()
		err := ErrSessionGone
		for _, t := range ts {
			if !over {
				err = t.lock.free(t.place.ctx)
			}
			sessions.forget(t.lock)
		}
		p.putBack(s, err)
		return false
	}
	s.users--
	p.used(s)
	for _, t := range ts {
		t.begun, t.place.granted = true, true
		s.tenures[t] = struct{}{}
		p.held[t] = struct{}{}
		t.count()
	}
	if !ts[0].place.req.own {
		p.share(s)
	}
	p.care()
	p.mu.Unlock()
	return true
}

// count starts the timers of a lease. The caller has Pool.mu.
func (t *tenure) count() {
	if t.grant.Until.IsZero() {
		return
	}
	left := time.Until(t.grant.Until)
	if t.ttl == 0 {
		t.ttl = t.place.req.TTL
	}
	if t.ttl == 0 {
		t.ttl = left
	}
	t.expiry = time.AfterFunc(left, t.expire)
	if t.place.req.keep > 0 {
		t.kept = time.AfterFunc(t.ttl/3, t.keepDue)
	}
}

// expire ends a lease whose time is over by the local clock. The server gives it
// some time more, of which nobody is to make use.
func (t *tenure) expire() {
	if left := t.lock.Remaining(); left > 0 {
		t.expires(time.Now().Add(left))
		return
	}
	t.lock.end(errExpired)
}

// expires has the timer go off at the new end of the lease.
func (t *tenure) expires(until time.Time) {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	if t.expiry != nil {
		t.expiry.Reset(time.Until(until))
	}
}

func (t *tenure) stop() {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	if t.expiry != nil {
		t.expiry.Stop()
	}
	if t.kept != nil {
		t.kept.Stop()
	}
}

// release is the Release of the tenant.
func (t *tenure) release(ctx context.Context) error {
	t.pool.calls()
	defer t.pool.called()
	rest := t.place.req.atLeast - time.Since(t.lock.since)
	if rest > 0 {
		t.retire(ctx, rest)
		return errReleased
	}
	return t.vacate(ctx)
}

// retire goes on holding the lock for a time, without a tenant. It keeps the turn.
func (t *tenure) retire(ctx context.Context, rest time.Duration) {
	p := t.pool
	t.stop()
	r := &tenure{pool: p, place: t.place, seat: t.seat, grant: t.grant, passed: t.passed, since: t.since, ttl: t.ttl, retired: true, from: t.lock.since}
	r.grant.Until = t.lock.Grant().Until
	r.lock = p.locker.lock(t.lock.handle, t.lock.name, r.grant, r)
	p.transit(t)
	t.lock.conclude(errReleased, true)
	if !p.begin(r) {
		p.leave(t.place)
		return
	}
	time.AfterFunc(rest, func() {
		if r.lock.startRelease() {
			_ = r.vacate(context.WithoutCancel(ctx))
		}
	})
}

// early reports whether the time of AtLeast and the TTL are not over.
func (t *tenure) early() bool {
	return time.Since(t.from) < t.place.req.atLeast && (t.grant.Until.IsZero() || time.Now().Before(t.grant.Until))
}

// start is when its tenant got the lock.
func (t *tenure) start() time.Time {
	if t.retired {
		return t.from
	}
	return t.lock.since
}

// transit has t be nobody's, while its seat is in use.
func (p *Pool) transit(t *tenure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.transitLocked(t)
}

func (p *Pool) transitLocked(t *tenure) {
	delete(p.held, t)
	delete(t.seat.tenures, t)
	t.seat.users++
}

// vacate ends t, whose lock is being released: the next in line gets the lock, or
// else it is released on the server.
func (t *tenure) vacate(ctx context.Context) error {
	p := t.pool
	p.calls()
	defer p.called()
	t.stop()
	p.mu.Lock()
	if next := p.heir(t); next != nil {
		p.transitLocked(t)
		p.mu.Unlock()
		t.lock.conclude(errReleased, true)
		next.inherited = t
		close(next.ready)
		return errReleased
	}
	p.mu.Unlock()
	err := t.lock.free(ctx)
	if t.retired { // its time is over, in any case
		t.lock.conclude(errReleased, true)
	} else {
		t.lock.conclude(err, true)
	}
	p.drop(t, err)
	p.leave(t.place)
	return err
}

// heir gives the turn to the first in line, if it can have the lock of t as it is.
// The caller has mu.
func (p *Pool) heir(t *tenure) *place {
	front := t.place.queue.waiting.Front()
	if front == nil || t.passed >= p.handOffs || time.Since(t.since) > handOffTime || t.seat.gone || t.place.req.own {
		return nil
	}
	if next, _ := front.Value.(*place); next.group || next.req.own {
		return nil
	}
	if _, ok := p.locker.backend.(Passer); !ok {
		return nil
	}
	t.place.left = true
	return p.pop(t.place.queue)
}

// handOn gives a lock in transit, and the turn of pl, to the next in line, or
// releases it.
func (p *Pool) handOn(ctx context.Context, pl *place, t *tenure) {
	p.mu.Lock()
	next := p.heir(t)
	p.mu.Unlock()
	if next != nil {
		next.inherited = t
		close(next.ready)
		return
	}
	p.putBack(t.seat, t.lock.free(ctx))
	p.leave(pl)
}

// inherit makes the lock of t, which is in transit, that of pl. It returns nil if
// that can't be; the lock has been released then.
func (p *Pool) inherit(ctx context.Context, pl *place, t *tenure) *tenure {
	b, ok := p.locker.backend.(Passer)
	if ok && !pl.req.own && !t.place.req.own && !pl.group {
		g, err := b.Pass(context.WithoutCancel(ctx), t.seat.conn, t.grant, pl.req)
		if err == nil {
			heir := &tenure{pool: p, place: pl, seat: t.seat, grant: g, passed: t.passed + 1, since: t.since}
			heir.lock = p.locker.lock(t.lock.handle, pl.name, g, heir)
			if p.begin(heir) {
				p.counts.handedOn(pl.name)
				return heir
			}
			return nil
		}
	}
	p.putBack(t.seat, t.lock.free(ctx))
	return nil
}

// lost goes on without a lock that was lost, whatever its tenant still does. If the
// session is its own, that stays until the tenant releases.
func (t *tenure) lost(err error) {
	p := t.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if !t.begun {
		t.dead = true
		return
	}
	if errors.Is(err, ErrSessionGone) {
		p.lose(t.seat)
	}
	own := t.place.req.own && !t.retired && !t.quits
	t.ended = own
	p.goes(func() {
		t.stop()
		switch {
		case own:
		case errors.Is(err, ErrSessionGone):
			p.drop(t, err)
		default: // the session has others, and may have a part of this one
			p.drop(t, t.lock.free(t.place.ctx))
		}
		p.leave(t.place)
	})
}

// quit is the Release of a tenant whose lock has ended before.
func (t *tenure) quit(ctx context.Context) {
	p := t.pool
	p.mu.Lock()
	ended := t.ended
	t.ended, t.quits = false, true
	p.working++
	p.mu.Unlock()
	defer p.called()
	if !ended {
		return
	}
	err := t.lock.how()
	if !errors.Is(err, ErrSessionGone) {
		err = t.lock.free(ctx)
	}
	p.drop(t, err)
}

// errEvicted is how a lock ends that is held beyond the end of its Pool.
var errEvicted = fmt.Errorf("%w, since %w", errReleased, ErrClosed)

// evict releases the lock under its tenant.
func (t *tenure) evict(ctx context.Context) {
	if !t.lock.startRelease() {
		t.quit(ctx)
		return
	}
	t.stop()
	t.lock.conclude(errEvicted, true)
	t.pool.drop(t, t.lock.free(ctx))
	t.pool.leave(t.place)
}
