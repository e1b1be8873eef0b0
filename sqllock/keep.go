package sqllock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// keepDue has keep extend the lease.
func (t *tenure) keepDue() {
	p := t.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.due = append(p.due, t)
	if !p.keeping {
		p.keeping = true
		p.goes(p.keep)
	}
}

// keep extends leases that are due, until none is.
func (p *Pool) keep() {
	for {
		p.mu.Lock()
		due := p.due
		p.due = nil
		p.keeping = len(due) > 0
		p.mu.Unlock()
		if len(due) == 0 {
			return
		}
		all := make(map[time.Duration][]*tenure) // by what they are to get
		for _, t := range due {
			if ttl := t.extension(); ttl > 0 {
				all[ttl] = append(all[ttl], t)
			}
		}
		b, ok := p.locker.backend.(GroupExtender)
		for ttl, ts := range all {
			if ok {
				p.extendAll(b, ts, ttl)
				continue
			}
			for _, t := range ts {
				t.extendAlone(ttl)
			}
		}
	}
}

// extension is for how long the lease is to be extended: for its TTL, but no longer
// than it may be held. It is 0 for not now, since as much is left, or not at all.
func (t *tenure) extension() time.Duration {
	left := t.lock.Remaining()
	longest := t.place.req.keep - time.Since(t.start())
	ttl := min(t.ttl, longest)
	switch {
	case left <= 0:
		return 0
	case ttl > left:
		return ttl
	case longest > left:
		t.kept.Reset(max(left-t.ttl*2/3, time.Millisecond))
	}
	return 0
}

// extendAll extends leases over a session that is not theirs, or only by chance:
// theirs may be in use.
func (p *Pool) extendAll(b GroupExtender, ts []*tenure, ttl time.Duration) {
	var grants []Grant
	var free []*tenure
	for _, t := range ts {
		if !t.lock.extending.TryLock() {
			t.again() // its tenant is extending it, which may take as long as a statement on its session
			continue
		}
		free, grants = append(free, t), append(grants, t.lock.Grant())
	}
	if len(free) == 0 {
		return
	}
	ts = free
	held, until, err := p.extendOver(b, ts[0].place.ctx, grants, ttl)
	for i, t := range ts {
		switch {
		case err != nil:
		case !held[i]:
			t.lock.end(fmt.Errorf("%w: its row is gone, or has been taken over, or its time was over when it was to be extended", ErrLost))
		default:
			t.kept.Reset(t.ttl / 3)
			t.extended(until)
		}
		t.lock.extending.Unlock()
		t.tell(err)
	}
}

// extended notes the new end: no later than the lease may be held.
func (t *tenure) extended(until time.Time) {
	t.lock.endsBy(minTime(until, t.start().Add(t.place.req.keep)))
}

// tell tells of an extension, which is tried again if it has failed.
func (t *tenure) tell(err error) {
	if t.lock.ended() {
		return
	}
	if err != nil {
		t.again()
	}
	t.lock.emit(Event{Kind: Extended, Name: t.lock.name, Err: err})
}

// again has the lease extended while time is left.
func (t *tenure) again() {
	if !t.lock.ended() {
		t.kept.Reset(max(min(t.lock.Remaining()/4, time.Second), time.Millisecond))
	}
}

// extendOver asks over a shared session, or over a connection of the application's
// pool.
func (p *Pool) extendOver(b GroupExtender, ctx context.Context, grants []Grant, ttl time.Duration) ([]bool, time.Time, error) { //nolint:revive // ctx is that of one of the grants
	var held []bool
	var until time.Time
	err := p.aside(ctx, func(conn *sql.Conn) (err error) {
		held, until, err = b.ExtendAll(ctx, conn, grants, ttl)
		return err
	})
	return held, until, err
}

// aside calls f with a session that no tenant uses.
func (p *Pool) aside(ctx context.Context, f func(*sql.Conn) error) error {
	p.mu.Lock()
	s := p.leastBusy()
	if s == nil {
		p.mu.Unlock()
		short, cancel := context.WithTimeout(ctx, starving)
		defer cancel()
		conn, err := connOf(short, p.db)
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // it goes back to its pool
		return f(conn)
	}
	s.users++
	p.mu.Unlock()
	err := f(s.conn)
	if errors.Is(err, ErrSessionGone) {
		p.abandon(s, err)
	}
	p.putBack(s, err)
	return err
}

// extendAlone is for a Leaser that extends on the lock's own session: not while its
// tenant uses it.
func (t *tenure) extendAlone(ttl time.Duration) {
	l := t.lock
	l.asking.Lock()
	defer l.asking.Unlock()
	l.mu.Lock()
	inUse := l.inUse
	l.mu.Unlock()
	if inUse {
		t.tell(fmt.Errorf("%w: its session is in use", ErrInTransaction))
		return
	}
	if err := l.extend(t.place.ctx, ttl); err != nil { // which has told of it
		t.again()
		return
	}
	t.extended(l.Grant().Until)
	t.kept.Reset(t.ttl / 3)
}
