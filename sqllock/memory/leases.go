package memory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Leases is a backend whose locks end by themselves when their TTL is over, by the
// monotonic clock: who asks for one then, or waits for it, ends the session of the
// holder and takes over, with the events that package table has for that. Until
// somebody does, only the calls on the handle tell that the time is over. It is safe
// for concurrent use. [Server.Leases] returns it.
type Leases struct {
	server *Server
	ttl    time.Duration
}

var (
	_ sqllock.Leaser        = (*Leases)(nil)
	_ sqllock.Breaker       = (*Leases)(nil)
	_ sqllock.Watcher       = (*Leases)(nil)
	_ sqllock.Passer        = (*Leases)(nil)
	_ sqllock.GroupAcquirer = (*Leases)(nil)
	_ sqllock.GroupExtender = (*Leases)(nil)
	_ sqllock.Relinquisher  = (*Leases)(nil)
)

// length is the TTL of what req asks for.
func (l *Leases) length(req sqllock.Request) time.Duration {
	if req.TTL == 0 {
		return wholeSeconds(l.ttl)
	}
	return wholeSeconds(req.TTL)
}

// wholeSeconds rounds up, as the table does.
func wholeSeconds(d time.Duration) time.Duration {
	if rest := d % time.Second; rest > 0 && d < math.MaxInt64-time.Second {
		return d - rest + time.Second
	}
	return d
}

// errOver is the end of a lease that its session is not to outlive.
var errOver = fmt.Errorf("%w: its TTL is over, or it has been taken over; %w", sqllock.ErrLost, sqllock.ErrSessionGone)

// Acquire tries, takes over, and waits in the queue of the lock if that is wanted. The
// end of ctx ends the wait at once, and costs nothing. Other statements on conn wait
// meanwhile.
func (l *Leases) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	return l.server.acquire(ctx, conn, req, l.length)
}

// AcquireAll is Acquire for all of reqs or for none.
func (l *Leases) AcquireAll(ctx context.Context, conn *sql.Conn, reqs []sqllock.Request) ([]sqllock.Grant, error) {
	return l.server.acquireAll(ctx, conn, reqs, l.length)
}

// Release frees g, also after its time, unless somebody has taken over.
func (l *Leases) Release(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	return l.server.release(ctx, conn, g, errOver)
}

// Check asks over q, the session that holds g, whether it does, and its time is not
// over.
func (l *Leases) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	_, err := l.TimeLeft(ctx, q, g)
	return err
}

// TimeLeft is Check that tells how much of the time is left.
func (l *Leases) TimeLeft(ctx context.Context, q sqllock.Querier, g sqllock.Grant) (time.Duration, error) {
	return l.server.left(ctx, q, g, errOver)
}

// Watch asks about many grants at a time, over any session of the server. One whose
// time is over is not held.
func (l *Leases) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) ([]bool, error) {
	return l.server.watch(ctx, q, grants)
}

// Pass makes g the grant of its next tenant, with a new token and a TTL that begins
// anew.
func (l *Leases) Pass(ctx context.Context, conn *sql.Conn, g sqllock.Grant, req sqllock.Request) (sqllock.Grant, error) {
	return l.server.pass(ctx, conn, g, l.length(req), errOver)
}

// Extend has g end ttl from now, rounded up to whole seconds. It does not need conn,
// which may be busy or in a transaction.
func (l *Leases) Extend(_ context.Context, _ *sql.Conn, g sqllock.Grant, ttl time.Duration) (time.Time, error) {
	s := l.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return time.Time{}, s.failure
	}
	h := s.held(g)
	if h == nil || h.over() {
		return time.Time{}, errOver
	}
	h.since = time.Now()
	h.expires = h.since.Add(wholeSeconds(ttl))
	s.settle(s.locks[h.key])
	return h.expires, nil
}

// ExtendAll extends all of grants, and does not need conn either.
func (l *Leases) ExtendAll(ctx context.Context, conn *sql.Conn, grants []sqllock.Grant, ttl time.Duration) ([]bool, time.Time, error) {
	until := time.Now().Add(wholeSeconds(ttl))
	held := make([]bool, len(grants))
	for i, g := range grants {
		_, err := l.Extend(ctx, conn, g, ttl)
		if err != nil && !errors.Is(err, sqllock.ErrLost) {
			return nil, time.Time{}, err
		}
		held[i] = err == nil
	}
	return held, until, nil
}

// Relinquish frees what the session under conn has of g.
func (l *Leases) Relinquish(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	err := l.server.release(ctx, conn, g, errNotHeld)
	if errors.Is(err, sqllock.ErrLost) && !errors.Is(err, sqllock.ErrSessionGone) {
		return nil
	}
	return err
}

// Holder tells which session of the server holds key, or held it when it ended, if
// nobody has taken that over yet.
func (l *Leases) Holder(ctx context.Context, q sqllock.Querier, key string) (sqllock.Holder, error) {
	return l.server.holder(ctx, q, key, true)
}

// Break ends the session that holds key, or removes what a dead one has left behind,
// and returns whom that was. It does not wait, but for a connection of db.
func (l *Leases) Break(ctx context.Context, db *sql.DB, key string) (sqllock.Holder, error) {
	s := l.server
	if _, err := s.over(ctx, db); err != nil {
		return sqllock.Holder{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	whom, err := s.describe(key, true)
	if err != nil {
		return sqllock.Holder{}, err
	}
	lock := s.locks[key]
	lock.left = nil
	if h := lock.holder; h != nil {
		s.free(h) // before its session ends, so that nothing of it is left behind
		s.end(h.client)
		whom.Alive = false
		return whom, nil
	}
	s.settle(lock)
	return whom, nil
}
