package memory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// errEnded is what a session answers that has been ended, or closed.
var errEnded = fmt.Errorf("%w: memory: it has been ended or closed", sqllock.ErrSessionGone)

// client is a session as the server sees it. What follows is guarded by the mutex of
// the Server, and methods of the Server in this file that do not take it are called
// with it held.
type client struct {
	id      int64
	process string
	gone    bool
	held    map[*holding]struct{}
	waits   *waiter // at most one: a session runs one statement at a time
}

// lock is one that somebody holds, or has left behind. Nobody waits for a lock that
// has no holder.
type lock struct {
	key    string
	holder *holding
	queue  []*waiter
	left   []sqllock.Event // what the next holder is told; the last is of a lease whose session is dead
	timer  *time.Timer     // takes over from a holder whose time is over, while there is a queue
}

// holding is one grant. It is the State of a [sqllock.Grant].
type holding struct {
	key     string
	client  *client
	token   int64
	since   time.Time
	expires time.Time // zero without a TTL
}

func (h *holding) lease() bool { return !h.expires.IsZero() }

func (h *holding) over() bool { return h.lease() && !time.Now().Before(h.expires) }

func (h *holding) grant() sqllock.Grant {
	return sqllock.Grant{Key: h.key, Session: h.client.id, Token: h.token, Until: h.expires, State: h}
}

// waiter is a session in a queue.
type waiter struct {
	client  *client
	lock    *lock
	ttl     time.Duration
	decided chan struct{} // closed when it has been granted the lock, or its session has ended
	holding *holding
	events  []sqllock.Event
}

func (w *waiter) decide(h *holding, events []sqllock.Event) {
	w.holding, w.events = h, events
	w.client.waits = nil
	close(w.decided)
}

// at returns the lock of a key. One that is made must be settled.
func (s *Server) at(key string) *lock {
	l := s.locks[key]
	if l == nil {
		l = &lock{key: key}
		s.locks[key] = l
	}
	return l
}

// held returns what g stands for, nil if that is over and done with.
func (s *Server) held(g sqllock.Grant) *holding {
	h, ok := g.State.(*holding)
	if !ok || h == nil || s.locks[h.key] == nil || s.locks[h.key].holder != h {
		return nil
	}
	return h
}

// grant makes c the holder of a lock that has none, and returns what c is to be told.
func (s *Server) grant(l *lock, c *client, ttl time.Duration) (*holding, []sqllock.Event) {
	h := &holding{key: l.key, client: c}
	s.begin(h, ttl)
	l.holder = h
	c.held[h] = struct{}{}
	events := l.left
	l.left = nil
	return h, events
}

// begin has a grant begin now.
func (s *Server) begin(h *holding, ttl time.Duration) {
	h.since = time.Now()
	if ttl > 0 {
		s.tokens++
		h.token = s.tokens
		h.expires = h.since.Add(ttl)
	}
}

// free ends a grant, and gives the lock to the first who waits.
func (s *Server) free(h *holding) {
	delete(h.client.held, h)
	l := s.locks[h.key]
	l.holder = nil
	s.settle(l)
}

// settle follows every change of a lock: the first waiter gets it if it is free, and
// the timer goes off when the time of the one who has it now is over.
func (s *Server) settle(l *lock) {
	if l.holder == nil && len(l.queue) > 0 {
		w := l.queue[0]
		l.queue = l.queue[1:]
		w.decide(s.grant(l, w.client, w.ttl))
	}
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	switch {
	case l.holder == nil && len(l.left) == 0:
		delete(s.locks, l.key)
	case len(l.queue) > 0 && l.holder.lease():
		l.timer = time.AfterFunc(time.Until(l.holder.expires), func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.expire(l) // does nothing if it comes late
		})
	}
}

// expire ends the session of a holder whose time is over.
func (s *Server) expire(l *lock) {
	if l.holder == nil || !l.holder.over() {
		return
	}
	l.left = append(l.left, sqllock.Event{Kind: sqllock.Killed, Holder: l.holder.describe()})
	s.end(l.holder.client)
}

// end ends a session. What it held goes to those who wait; of a lease something
// stays behind, as its row in the table does, for the next one to take over.
func (s *Server) end(c *client) {
	if c.gone {
		return
	}
	c.gone = true
	delete(s.clients, c.id)
	if w := c.waits; w != nil {
		s.leave(w)
		w.decide(nil, nil)
	}
	for h := range c.held {
		if h.lease() {
			dead := h.describe()
			dead.Alive = false
			dead.User, dead.Host, dead.Database, dead.State = "", "", "", ""
			l := s.locks[h.key]
			l.left = append(l.left, sqllock.Event{Kind: sqllock.TakenOver, Holder: dead})
		}
		s.free(h)
	}
}

// leave takes a waiter out of its queue.
func (s *Server) leave(w *waiter) {
	w.client.waits = nil
	w.lock.queue = slices.DeleteFunc(w.lock.queue, func(other *waiter) bool { return other == w })
	s.settle(w.lock)
}

// take grants the key of req to c, or waits for it. It takes the mutex. The events
// are to be told whatever it returns.
func (s *Server) take(ctx context.Context, c *client, req sqllock.Request, ttl time.Duration) (*holding, []sqllock.Event, error) {
	w := &waiter{client: c, ttl: ttl, decided: make(chan struct{})}
	if queued, err := s.try(w, req); !queued {
		return w.holding, w.events, err
	}
	select {
	case <-w.decided:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.gone:
		return nil, w.events, errEnded
	case ctx.Err() == nil:
		return w.holding, w.events, nil
	case w.holding != nil:
		s.free(w.holding) // it came too late
	default:
		s.leave(w)
	}
	return nil, w.events, sqllock.ErrBusy
}

// try grants the key of req to w if it is free; if not, and req waits, w is put into
// the queue. It takes the mutex.
func (s *Server) try(w *waiter, req sqllock.Request) (queued bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.client.gone {
		return false, errEnded
	}
	l := s.at(req.Key)
	if l.holder != nil && l.holder.client == w.client {
		return false, sqllock.ErrHeld
	}
	s.expire(l)
	switch {
	case l.holder == nil:
		w.holding, w.events = s.grant(l, w.client, w.ttl)
		return false, nil
	case !req.Wait:
		return false, sqllock.ErrBusy
	case s.deadlock(w.client, l):
		return false, fmt.Errorf("%w: who holds %q waits, directly or not, for what this session holds", sqllock.ErrDeadlock, l.key)
	}
	w.lock = l
	w.client.waits = w
	l.queue = append(l.queue, w)
	s.settle(l)
	return true, nil
}

// deadlock reports whether l would be free only after c has let go of something. A
// lock has one holder and a session one wait, so there is one path to follow; it ends,
// since no cycle has been let in before.
func (s *Server) deadlock(c *client, l *lock) bool {
	for l.holder.client != c {
		w := l.holder.client.waits
		if w == nil {
			return false
		}
		l = w.lock
	}
	return true
}

// takeAll grants the keys of all of reqs to c, or none. It takes the mutex.
func (s *Server) takeAll(c *client, reqs []sqllock.Request, ttl ttlOf) ([]*holding, [][]sqllock.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.gone {
		return nil, nil, errEnded
	}
	for _, req := range reqs {
		l := s.locks[req.Key]
		if l == nil || l.holder == nil {
			continue
		}
		if l.holder.client == c || !l.holder.over() || len(l.queue) > 0 {
			return nil, nil, sqllock.ErrBusy
		}
	}
	holdings, events := make([]*holding, len(reqs)), make([][]sqllock.Event, len(reqs))
	for i, req := range reqs {
		l := s.at(req.Key)
		s.expire(l)
		holdings[i], events[i] = s.grant(l, c, ttl(req))
	}
	return holdings, events, nil
}

// describe tells of a holder that lives.
func (h *holding) describe() sqllock.Holder {
	d := sqllock.Holder{
		Key: h.key, Session: h.client.id, User: "memory", Host: "localhost", Database: "memory", State: "Sleep",
		Process: h.client.process, Token: h.token, Alive: true, Since: h.since.Round(0),
	}
	if h.client.waits != nil {
		d.State = "User lock"
	}
	if h.lease() {
		d.Expires, d.TimeLeft = h.expires.Round(0), time.Until(h.expires)
	}
	return d
}
