package sqllock

import (
	"context"
	"sort"
	"sync"
	"time"
)

// maxNames is how many names are counted one by one; the rest are counted together.
const maxNames = 1000

// OtherNames is the name in [Stats] under which those are counted that came after a
// thousand others.
const OtherNames = "(others)"

// NameStats counts what has happened to the locks of a name.
type NameStats struct {
	Acquired int64         // grants, of the server and of the one before in this process
	HandedOn int64         // grants of those that came from the one before in this process
	Busy     int64         // calls that did not get it, since another one had it
	Released int64         // by their holders
	Lost     int64         // under their holders, or not confirmed to be released
	Expired  int64         // leases that ended under their holders
	Extended int64         // leases whose TTL was prolonged
	Starved  int64         // calls that waited for a connection for more than a second
	Taken    int64         // takeovers of what a dead or hanging holder had left
	Killed   int64         // sessions ended for a takeover
	Waited   time.Duration // by those who acquired, in sum
	Held     time.Duration // by those whose locks have ended, in sum
}

// Stats are counts since the Pool was made.
type Stats struct {
	Names map[string]NameStats // at most a thousand, and OtherNames
	Conns int                  // connections that the Pool has now
	Held  int                  // locks that it holds now
	Waits int                  // calls that wait for a lock now

	OldestLock time.Duration // for how long the oldest of the locks has been held; 0 if there is none
	OldestWait time.Duration // for how long the call that waits longest has done so; 0 if there is none
}

// counts are the NameStats of all names.
type counts struct {
	mu    sync.Mutex // guards names
	names map[string]*NameStats
}

// of returns the counts for name. The caller has mu.
func (c *counts) of(name string) *NameStats {
	s := c.names[name]
	if s != nil {
		return s
	}
	if c.names == nil {
		c.names = make(map[string]*NameStats)
	}
	if len(c.names) >= maxNames && name != OtherNames {
		return c.of(OtherNames)
	}
	s = &NameStats{}
	c.names[name] = s
	return s
}

func (c *counts) add(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.of(e.Name)
	switch e.Kind {
	case Acquired:
		s.Acquired++
		s.Waited += e.Waited
	case Busy:
		s.Busy++
	case Released:
		s.Released++
		s.Held += e.Held
	case Lost:
		s.Lost++
		s.Held += e.Held
	case Expired:
		s.Expired++
		s.Held += e.Held
	case Extended:
		if e.Err == nil {
			s.Extended++
		}
	case Starved:
		s.Starved++
	case TakenOver:
		s.Taken++
	case Killed:
		s.Killed++
	case Repaired:
	}
}

func (c *counts) handedOn(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of(name).HandedOn++
}

// Stats returns counts of what has happened. They are for metrics; [Pool.Snapshot]
// tells what is held now.
func (p *Pool) Stats() Stats {
	p.counts.mu.Lock()
	s := Stats{Names: make(map[string]NameStats, len(p.counts.names))}
	for name, n := range p.counts.names {
		s.Names[name] = *n
	}
	p.counts.mu.Unlock()
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Conns, s.Held = p.conns(), len(p.held)
	for t := range p.held {
		s.OldestLock = max(s.OldestLock, now.Sub(t.heldSince()))
	}
	for _, q := range p.queues {
		for _, c := range q.calls() {
			s.Waits++
			s.OldestWait = max(s.OldestWait, now.Sub(c.since))
		}
	}
	return s
}

// Holder is [Locker.Holder], asked over the *sql.DB of the Pool: it tells which session
// holds name on the server, be it one of this Pool or of another process. It takes a
// connection for one statement, beside those of the Pool, and waits for that until ctx ends.
func (p *Pool) Holder(ctx context.Context, name string) (Holder, error) {
	return p.locker.Holder(ctx, p.db, name)
}

// calls are those that wait, the first of them on the server. The caller has
// Pool.mu.
func (q *queue) calls() []*place {
	var cs []*place
	if q.turn != nil && !q.turn.granted {
		cs = append(cs, q.turn)
	}
	for e := q.waiting.Front(); e != nil; e = e.Next() {
		c, _ := e.Value.(*place)
		cs = append(cs, c)
	}
	return cs
}

// Snapshot is what a [Pool] holds and waits for at one moment. It is made to be shown,
// as JSON by package expvar, for example, where durations are nanoseconds:
//
//	expvar.Publish("locks", expvar.Func(func() any { return pool.Snapshot() }))
type Snapshot struct {
	Held    []HeldLock
	Waiting []WaitingCall
}

// HeldLock is a lock that the Pool holds.
type HeldLock struct {
	Name     string
	By       string        // the function that acquired it, and its line
	Since    time.Time     // when it was granted
	For      time.Duration // how long ago that is
	Session  int64         // the server's id of its session; 0 if the backend did not have to ask for it
	Sharing  int           // how many other locks are on that session
	Token    int64         // 0 if there is none
	TimeLeft time.Duration // of a lease; 0 if there is no TTL
	Released bool          // by its holder, and held on for AtLeast
	Lost     bool          // its holder has yet to notice
}

// WaitingCall is a call that waits for a lock.
type WaitingCall struct {
	Name    string
	By      string // the function that made it, and its line
	Since   time.Time
	For     time.Duration
	Holder  string // the function of this process that has the lock or waits for it before, or "another process"; empty while the server is being asked
	Problem string // what it waits for before it can wait for the lock: a connection, and who has them
}

// heldSince is when the lock was granted. What is held on for AtLeast has a lock of its
// own, made when its holder released it. The caller has Pool.mu.
func (t *tenure) heldSince() time.Time {
	if t.retired {
		return t.from
	}
	return t.lock.since
}

// sharing is who has a lock that is waited for on the server: whoever has it in this
// process shares it, or is waited for by one who is to share it. The caller has mu.
func (p *Pool) sharing(key string) string {
	for t := range p.held {
		if t.place.req.Key == key {
			return t.place.by()
		}
	}
	return "another process"
}

// Snapshot returns what is held and what is waited for, both by age, the oldest
// first. It asks nothing of the server; [Locker.Holder] tells who holds a lock
// there.
func (p *Pool) Snapshot() Snapshot {
	now := time.Now()
	s := Snapshot{Held: []HeldLock{}, Waiting: []WaitingCall{}}
	p.mu.Lock()
	for t := range p.held {
		h := HeldLock{
			Name: t.place.name, By: t.place.by(), Since: t.heldSince(), For: now.Sub(t.heldSince()), Session: t.grant.Session,
			Sharing: len(t.seat.tenures) - 1, Token: t.grant.Token, Released: t.retired, Lost: t.lock.ended(),
		}
		if !t.grant.Until.IsZero() {
			h.TimeLeft = t.lock.Remaining()
		}
		s.Held = append(s.Held, h)
	}
	for _, q := range p.queues {
		for _, c := range q.calls() {
			w := WaitingCall{Name: c.name, By: c.by(), Since: c.since, For: now.Sub(c.since)}
			if q.attempt != nil {
				w.Holder = p.sharing(c.req.Key)
			}
			if c != q.turn && q.turn != nil {
				w.Holder = q.turn.by()
			}
			if c.need != nil {
				w.Holder, w.Problem = "", c.need.Error()
			}
			s.Waiting = append(s.Waiting, w)
		}
	}
	p.mu.Unlock()
	sort.Slice(s.Held, func(i, j int) bool { return s.Held[i].Since.Before(s.Held[j].Since) })
	sort.Slice(s.Waiting, func(i, j int) bool { return s.Waiting[i].Since.Before(s.Waiting[j].Since) })
	return s
}
