package sqllock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
)

const (
	// unlimitedConns is how many connections a Pool takes at most of a *sql.DB
	// without a limit.
	unlimitedConns = 16

	// crowded is how many locks a shared session may have before another one is
	// opened: on MariaDB an acquire in a session with 500 locks takes twice as long as
	// in an empty one, and one with 10,000 ten times.
	crowded = 500

	// queued is how many calls may be at a shared session before another one is
	// opened.
	queued = 3

	// linger is for how long a connection is kept that holds nothing. Taking one and
	// giving it back for each lock would have a *sql.DB with few idle connections
	// open new ones all the time.
	linger = 5 * time.Second

	// starving is how long a wait for a connection is nothing to speak of.
	starving = time.Second

	// openTime is how long opening a connection may take that one can do without.
	openTime = 100 * time.Millisecond
)

// seat is a connection of the application's pool that a [Pool] has taken. Its fields
// are guarded by Pool.mu, but conn, which is set before others see it.
type seat struct {
	conn    *sql.Conn
	shared  bool
	users   int // calls that work on it, or are about to
	tenures map[*tenure]struct{}
	touched time.Time // when a statement on it was last answered
	seen    time.Time // when it last was known to live
	asked   bool      // the watch is asking on it
	gone    bool      // its session has ended, or is to
}

func newSeat() *seat { return &seat{users: 1, tenures: make(map[*tenure]struct{})} }

// limit is how many connections the Pool may have.
func (p *Pool) limit() (int, error) {
	open := p.db.Stats().MaxOpenConnections
	switch {
	case open == 1:
		return 0, fmt.Errorf("%w: MaxOpenConns of the *sql.DB is 1; a lock would take that one, and the application would wait for it; set 2 or more", ErrPoolTooSmall)
	case open == 0 && p.maxConns <= 0:
		return unlimitedConns, nil
	case open == 0:
		return p.maxConns, nil
	case p.maxConns <= 0:
		return open / 2, nil
	}
	return min(p.maxConns, open-1), nil
}

// take returns a seat for pl to work on: a shared one, or one apart.
func (p *Pool) take(ctx context.Context, pl *place) (*seat, error) {
	if pl.req.own {
		return p.takeApart(ctx, pl)
	}
	defer p.satisfied(pl)
	for {
		limit, err := p.limit()
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, ErrClosed
		}
		if s := p.leastBusy(); s != nil {
			s.users++
			p.grow(pl.ctx, s, limit)
			p.mu.Unlock()
			return s, nil
		}
		if !p.opening && p.conns() < limit {
			p.opening = true
			p.mu.Unlock()
			return p.openShared(ctx, pl)
		}
		changed := p.changes()
		p.needs(pl, p.occupied(limit))
		p.mu.Unlock()
		if err := p.starve(ctx, pl, changed); err != nil {
			return nil, err
		}
	}
}

// leastBusy returns the shared seat with the fewest calls, or the fewest locks
// among those. The caller has mu.
func (p *Pool) leastBusy() (best *seat) {
	for _, s := range p.shared {
		if best == nil || s.users < best.users || s.users == best.users && len(s.tenures) < len(best.tenures) {
			best = s
		}
	}
	return best
}

// conns is how many connections there are, or are about to be. The caller has mu.
func (p *Pool) conns() int {
	n := len(p.shared) + len(p.apart)
	if p.opening {
		n++
	}
	return n
}

// grow opens another seat to share where the best one is crowded, but leaves half of
// the connections for other needs. The caller has mu, and goes on with what there is.
func (p *Pool) grow(ctx context.Context, best *seat, limit int) {
	if best.users < queued && len(best.tenures) < crowded || p.opening || p.closed ||
		len(p.shared) >= (limit+1)/2 || p.conns() >= limit || p.line.Len() > 0 {
		return
	}
	p.opening = true
	p.goes(func() {
		ctx, cancel := context.WithTimeout(ctx, starving)
		defer cancel()
		conn, err := connOf(ctx, p.db)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.opening = false
		if err == nil && p.closed {
			p.goes(func() { closeConn(conn) })
		} else if err == nil {
			p.add(conn).users = 0
		}
		p.changed()
		p.serve()
	})
}

// openShared takes a connection to be shared. p.opening has been set for it.
func (p *Pool) openShared(ctx context.Context, pl *place) (*seat, error) {
	conn, err := p.open(ctx, pl)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opening = false
	p.changed()
	if err != nil {
		p.serve()
		return nil, err
	}
	return p.add(conn), nil
}

// open takes a connection from the application's pool, which may have none to spare.
func (p *Pool) open(ctx context.Context, pl *place) (*sql.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &wait{cancel}
	p.mu.Lock()
	p.opens[w] = struct{}{}
	p.needs(pl, noConnError{p.db})
	if p.closed {
		cancel(ErrClosed)
	}
	since := pl.needSince
	p.mu.Unlock()
	timer := time.AfterFunc(time.Until(since.Add(starving)), func() { p.starved(pl) })
	defer timer.Stop()
	conn, err := connOf(ctx, p.db)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.opens, w)
	switch {
	case err == nil && p.closed:
		p.goes(func() { closeConn(conn) })
		err = ErrClosed
	case err != nil && errors.Is(context.Cause(ctx), ErrClosed):
		err = ErrClosed
	case err != nil && hasEnded(ctx) && allInUse(p.db):
		err = fmt.Errorf("%w: %w", ErrPoolTooSmall, err)
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// noConnError is the need for a connection of the application's pool.
type noConnError struct{ db *sql.DB }

func (n noConnError) Error() string {
	s := n.db.Stats()
	if s.MaxOpenConnections == 0 {
		return "waiting for a connection of the *sql.DB to be opened"
	}
	return fmt.Sprintf("waiting for a connection of the *sql.DB, of which %d of %d (MaxOpenConns) are in use", s.InUse, s.MaxOpenConnections)
}

// asOfNow is a need as an error.
func asOfNow(need error) error {
	n, ok := need.(noConnError) //nolint:errorlint // it is not wrapped
	if ok && allInUse(n.db) {
		return fmt.Errorf("%w: %w", ErrPoolTooSmall, need)
	}
	return need
}

// add makes a seat of a connection, to be shared, with one user. The caller has mu.
func (p *Pool) add(conn *sql.Conn) *seat {
	s := newSeat()
	s.conn = conn
	p.used(s)
	p.share(s)
	p.care()
	return s
}

// share makes s one that locks share, if it is not. The caller has mu.
func (p *Pool) share(s *seat) {
	if s.shared || s.gone {
		return
	}
	s.shared = true
	delete(p.apart, s)
	p.shared = append(p.shared, s)
	p.changed()
}

// claim is that of a call to a seat apart.
type claim struct {
	got   chan *seat
	above []*tenure // the locks that the call is made under
}

// takeApart returns a seat that pl has for itself, waiting for it in order.
func (p *Pool) takeApart(ctx context.Context, pl *place) (*seat, error) {
	limit, err := p.limit()
	if err != nil {
		return nil, err
	}
	c := &claim{got: make(chan *seat, 1), above: p.above(pl.ctx)}
	p.mu.Lock()
	e := p.line.PushBack(c)
	p.serve()
	if len(c.got) == 0 {
		if len(c.above) > 0 && p.stuck(limit) {
			p.line.Remove(e)
			p.mu.Unlock()
			return nil, errNested(limit)
		}
		p.needs(pl, p.occupied(limit))
		p.preempt()
	}
	p.mu.Unlock()
	defer p.satisfied(pl)
	timer := time.NewTimer(starving)
	defer timer.Stop()
	for {
		select {
		case s := <-c.got:
			return p.fill(ctx, pl, s)
		case <-timer.C:
			p.starved(pl)
			continue
		case <-ctx.Done():
		case <-p.closing:
		}
		p.mu.Lock()
		need := pl.need
		p.line.Remove(e)
		p.mu.Unlock()
		select {
		case s := <-c.got:
			p.putBack(s, nil)
		default:
		}
		if need == nil {
			need = ErrPoolTooSmall
		}
		return nil, fmt.Errorf("%w: %w", need, p.end(ctx))
	}
}

// stuck reports whether each seat that could become free for somebody in line is
// held by a function that itself waits in line. The caller has mu.
func (p *Pool) stuck(limit int) bool {
	waits := make(map[*tenure]bool)
	for e := p.line.Front(); e != nil; e = e.Next() {
		if c, ok := e.Value.(*claim); ok {
			for _, t := range c.above {
				waits[t] = true
			}
		}
	}
	blocked := func(s *seat) bool {
		for t := range s.tenures {
			if waits[t] {
				return true
			}
		}
		return false
	}
	for s := range p.apart {
		if !blocked(s) {
			return false
		}
	}
	if len(p.apart) >= mostApart(limit) {
		return true
	}
	for _, s := range p.shared {
		if !blocked(s) {
			return false
		}
	}
	return !p.opening && p.conns() >= limit
}

// occupied says who has the connections. The caller has mu.
func (p *Pool) occupied(limit int) error {
	own, by := 0, ""
	for s := range p.apart {
		for t := range s.tenures {
			by = fmt.Sprintf(" (%q of %s)", t.place.name, t.place.by())
		}
		if len(s.tenures) > 0 {
			own++
		}
	}
	if own > 1 {
		by = strings.Replace(by, "(", "(among them ", 1)
	}
	shared := fmt.Sprintf("%d by locks that share", len(p.shared))
	if limit > 1 && len(p.shared) == 0 {
		shared = "one is kept for locks that share"
	}
	return fmt.Errorf("%w: of the %d that the Pool may take, %d are used by locks with OwnSession%s, %d to wait, %s; see MaxOpenConns and WithMaxConns",
		ErrPoolTooSmall, limit, own, by, len(p.apart)-own, shared)
}

// wait is one on the server, which can be done without a seat.
type wait struct{ cancel context.CancelCauseFunc }

// errYield ends a wait whose seat somebody needs to hold a lock: to wait for that
// could be to wait for oneself, since who holds the other lock may be waiting
// for this process.
var errYield = errors.New("sqllock: the connection is needed otherwise")

// preempt has a wait give up its seat. The caller has mu.
func (p *Pool) preempt() {
	for w := range p.waits {
		w.cancel(errYield)
		delete(p.waits, w)
		return
	}
}

// waiting calls f, which waits on a seat apart, and reports whether it ended since
// it was to yield.
func (p *Pool) waiting(ctx context.Context, f func(ctx context.Context) error) (yielded bool, err error) {
	waitCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &wait{cancel}
	p.mu.Lock()
	p.waits[w] = struct{}{}
	if p.line.Len() > 0 {
		p.preempt()
	}
	p.mu.Unlock()
	err = f(waitCtx)
	p.mu.Lock()
	delete(p.waits, w)
	yielded = errors.Is(err, ErrBusy) && ctx.Err() == nil && errors.Is(context.Cause(waitCtx), errYield)
	if !yielded && p.line.Len() > 0 { // it may have been to yield, and was granted the lock
		p.preempt()
	}
	p.mu.Unlock()
	return yielded, err
}

// mostApart is how many seats there may be apart: one is left for locks that share.
func mostApart(limit int) int { return max(1, limit-1) }

// fill takes a connection for a seat that has none.
func (p *Pool) fill(ctx context.Context, pl *place, s *seat) (*seat, error) {
	if s.conn != nil {
		return s, nil
	}
	conn, err := p.open(ctx, pl)
	if err != nil {
		p.putBack(s, nil)
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.conn = conn
	return s, nil
}

// takeToWait returns a seat for pl to wait on. ok is false where there is none to be
// had at once, or others need it to hold a lock, as they do the only one.
func (p *Pool) takeToWait(ctx context.Context, pl *place) (s *seat, ok bool, err error) {
	limit, err := p.limit()
	if err != nil {
		return nil, false, err
	}
	p.mu.Lock()
	if limit > 1 && p.line.Len() == 0 {
		s = p.reserve()
	}
	p.mu.Unlock()
	if s == nil || s.conn != nil {
		return s, s != nil, nil
	}
	defer p.satisfied(pl)
	short, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	s, err = p.fill(short, pl, s)
	if err != nil && !errors.Is(err, ErrClosed) {
		return nil, false, nil // it can do without
	}
	return s, s != nil, err
}

// serve gives seats apart to those who wait for one, in order. The caller has mu.
func (p *Pool) serve() {
	for e := p.line.Front(); e != nil; e = p.line.Front() {
		s := p.reserve()
		if s == nil {
			return
		}
		c, _ := p.line.Remove(e).(*claim)
		c.got <- s
	}
}

// reserve returns a seat apart, or nil if there is to be no further one: a connection is
// left for locks that share. It is one of theirs that is idle, if they have another one,
// or else a new one, which is still without a connection; where that would be one too
// many, any that is idle. A wait leaves its seat to those who share, so without the first
// each further wait would open a connection. The caller has mu.
func (p *Pool) reserve() *seat {
	limit, err := p.limit()
	if err != nil || len(p.apart) >= mostApart(limit) {
		return nil
	}
	mayOpen := p.conns() < limit
	if !mayOpen || len(p.shared) > 1 {
		for _, s := range p.shared {
			if s.users == 0 && len(s.tenures) == 0 {
				p.unshare(s)
				s.users = 1
				p.apart[s] = struct{}{}
				return s
			}
		}
	}
	if !mayOpen {
		return nil
	}
	s := newSeat()
	p.apart[s] = struct{}{}
	return s
}

// unshare has locks share s no more. The caller has mu.
func (p *Pool) unshare(s *seat) {
	p.shared = slices.DeleteFunc(p.shared, func(other *seat) bool { return other == s })
	s.shared = false
}

// putBack ends the work of a call on s, which has ended with err.
func (p *Pool) putBack(s *seat, err error) {
	p.mu.Lock()
	s.users--
	p.used(s)
	conn := p.tidy(s, err)
	p.mu.Unlock()
	closeConn(conn)
}

// drop takes t off its seat after its lock was released, or lost, with err.
func (p *Pool) drop(t *tenure, err error) {
	p.mu.Lock()
	delete(p.held, t)
	delete(t.seat.tenures, t)
	p.used(t.seat)
	conn := p.tidy(t.seat, err)
	p.changed()
	p.mu.Unlock()
	closeConn(conn)
}

func closeConn(conn *sql.Conn) {
	if conn != nil {
		_ = conn.Close() // a session that is gone says so once more
	}
}

// used notes that a statement on s has just been answered. The caller has mu.
func (p *Pool) used(s *seat) {
	s.touched = time.Now()
	s.seen = s.touched
}

// tidy returns the connection of s if it is to be given back now. The caller has mu.
func (p *Pool) tidy(s *seat, err error) *sql.Conn {
	if errors.Is(err, ErrSessionGone) || errors.Is(err, ErrUnknown) {
		p.lose(s)
	}
	if s.users > 0 || len(s.tenures) > 0 {
		return nil
	}
	if s.shared && !s.gone && !p.closed {
		p.serve()
		return nil
	}
	return p.giveBack(s)
}

// giveBack forgets s, and returns its connection. The caller has mu.
func (p *Pool) giveBack(s *seat) *sql.Conn {
	delete(p.apart, s)
	p.unshare(s)
	p.changed()
	p.serve()
	return s.conn
}

// lose has nobody use s any more. Its session is closed, in a goroutine, since a
// statement may be running on it. The caller has mu.
func (p *Pool) lose(s *seat) {
	if s.gone {
		return
	}
	s.gone = true
	p.unshare(s)
	p.apart[s] = struct{}{}
	s.users++
	p.goes(func() {
		_ = session.Close(s.conn) // one that is closed already is what is wanted
		p.putBack(s, nil)
	})
}

// needs notes what pl waits for. The caller has mu.
func (p *Pool) needs(pl *place, need error) {
	if pl.needSince.IsZero() {
		pl.needSince = time.Now()
	}
	pl.need = need
}

func (p *Pool) satisfied(pl *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pl.need, pl.needSince = nil, time.Time{}
}

// starve waits for a change, for pl that needs a connection.
func (p *Pool) starve(ctx context.Context, pl *place, changed <-chan struct{}) error {
	p.mu.Lock()
	since := pl.needSince
	p.mu.Unlock()
	timer := time.NewTimer(time.Until(since.Add(starving)))
	defer timer.Stop()
	for {
		select {
		case <-changed:
			return nil
		case <-timer.C:
			p.starved(pl)
			continue
		case <-ctx.Done():
		case <-p.closing:
		}
		p.mu.Lock()
		need := pl.need
		p.mu.Unlock()
		return fmt.Errorf("%w: %w", need, p.end(ctx))
	}
}

// starved tells of a long wait for a connection, once for each call.
func (p *Pool) starved(pl *place) {
	p.mu.Lock()
	need, since, told := pl.need, pl.needSince, pl.starved
	pl.starved = told || need != nil
	p.mu.Unlock()
	if need != nil && !told {
		p.emit(Event{Kind: Starved, Name: pl.name, Waited: time.Since(since), Err: asOfNow(need)})
	}
}
