package sqllock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// idleTicks is how many intervals of the watch a session may go without a
// statement. The server ends sessions that do for longer than its wait_timeout.
const idleTicks = 3

// care starts the goroutine that looks after connections and locks, unless it runs.
// The caller has mu.
func (p *Pool) care() {
	if p.caring {
		return
	}
	p.caring = true
	p.goes(func() {
		every := p.locker.checkInterval
		if every <= 0 {
			every = time.Second // for giving back what is idle
		}
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for p.rest() {
			select {
			case <-ticker.C:
				if p.locker.checkInterval > 0 {
					p.look()
				}
			case <-p.empty():
			}
		}
	})
}

// empty returns a channel that is closed when a Pool that is being closed changes.
func (p *Pool) empty() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		return p.closing
	}
	return p.changes()
}

// rest gives back what has been idle for long, and reports whether anything is left
// to care for.
func (p *Pool) rest() bool {
	p.mu.Lock()
	var idle []*sql.Conn
	for _, s := range append([]*seat(nil), p.shared...) {
		if s.users == 0 && len(s.tenures) == 0 && (p.closed || time.Since(s.touched) > linger) {
			idle = append(idle, p.giveBack(s))
		}
	}
	p.serve() // MaxOpenConns may have been raised
	p.changed()
	p.caring = p.conns() > 0
	caring := p.caring
	p.mu.Unlock()
	for _, conn := range idle {
		closeConn(conn)
	}
	return caring
}

// question is what the watch asks: whether one lock of a session is still held, as
// which the session lives.
type question struct {
	seat   *seat
	tenure *tenure
}

// questions are one for each session, and those that have had no statement for
// long, which are to get one. The caller has mu.
func (p *Pool) questions() (asked, idle []question) {
	one := func(s *seat) {
		if s.gone || s.users > 0 && !s.shared && !s.asked {
			return // its call finds out
		}
		for t := range s.tenures {
			if t.ended || t.lock.ended() {
				continue
			}
			asked = append(asked, question{s, t})
			if time.Since(s.touched) > idleTicks*p.locker.checkInterval && !s.asked {
				idle = append(idle, question{s, t})
			}
			return
		}
	}
	for _, s := range p.shared {
		one(s)
	}
	for s := range p.apart {
		one(s)
	}
	return asked, idle
}

// look asks the server whether the sessions live, and ends the locks of those that
// do not.
func (p *Pool) look() {
	w, batches := p.locker.backend.(Watcher)
	p.mu.Lock()
	asked, idle := p.questions()
	if !batches {
		idle = asked
	}
	for _, q := range idle {
		p.touch(q)
	}
	p.mu.Unlock()
	if batches && len(asked) > 0 {
		p.ask(w, asked, false)
	}
}

// touch has a session asked about one of its locks, which also keeps it from being
// idle, unless it is being asked. The caller has mu.
func (p *Pool) touch(q question) {
	s := q.seat
	if s.asked {
		return
	}
	s.asked = true
	s.users++
	p.goes(func() {
		start := time.Now()
		asked, err := q.tenure.lock.look(q.tenure.place.ctx)
		p.mu.Lock()
		s.asked = false
		s.users--
		// An error of the server is an answer, too.
		if asked && !errors.Is(err, ErrSessionGone) && time.Since(start) < p.answerTime {
			s.touched, s.seen = start, start
		}
		conn := p.tidy(s, nil)
		p.mu.Unlock()
		closeConn(conn)
	})
}

// ask asks over one session about all. If that has not answered after half of the
// time that it may take, it asks over another one, too.
func (p *Pool) ask(w Watcher, asked []question, all bool) {
	r := &round{pool: p, watcher: w, asked: asked, all: all, start: time.Now(), answers: make(chan answer, maxSides), tried: make(map[*seat]bool)}
	r.side()
	// Time in which this process is stopped is one tick.
	ticker := time.NewTicker(p.answerTime / ticks)
	defer ticker.Stop()
	for tick := 0; r.pending > 0; {
		select {
		case a := <-r.answers:
			if a.err == nil {
				r.settle(a.held)
				return
			}
			r.unable = r.unable || errors.Is(a.err, ErrPoolTooSmall)
			r.pending--
			if r.pending == 0 {
				r.side()
			}
		case <-ticker.C:
			tick++
			if tick == ticks/2 {
				r.side()
			}
			if tick == ticks {
				r.fail()
				return
			}
		}
	}
	r.fail()
}

// ticks are what the time for an answer is divided into.
const ticks = 10

// maxSides is how many sides a round asks at most.
const maxSides = 3

// round is one turn of asking about locks.
type round struct {
	pool    *Pool
	watcher Watcher
	asked   []question
	all     bool // locks are asked about for each lock, not one for each session
	start   time.Time
	answers chan answer
	tried   map[*seat]bool
	sides   int
	pending int
	unable  bool // the application's pool had no connection to ask over
}

type answer struct {
	held []bool
	err  error
}

// side has one more side asked: a shared session that has not been, the one whose
// last statement is the longest ago, or else a connection of the application's pool.
func (r *round) side() {
	if r.sides == maxSides {
		return
	}
	r.sides++
	r.pending++
	grants := make([]Grant, len(r.asked))
	for i, q := range r.asked {
		grants[i] = q.tenure.grant
	}
	ctx := r.asked[0].tenure.place.ctx
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	var over *seat
	for _, s := range p.shared {
		if !r.tried[s] && !s.asked && (over == nil || s.touched.Before(over.touched)) {
			over = s
		}
	}
	if over == nil || r.sides == maxSides {
		p.goes(func() {
			held, err := p.askApart(ctx, r.watcher, grants)
			r.answers <- answer{held, err}
		})
		return
	}
	r.tried[over] = true
	over.asked = true
	over.users++
	p.goes(func() {
		held, err := r.watcher.Watch(ctx, over.conn, grants)
		p.mu.Lock()
		over.asked = false
		p.mu.Unlock()
		if errors.Is(err, ErrSessionGone) {
			p.abandon(over, err)
		}
		p.putBack(over, err)
		r.answers <- answer{held, err}
	})
}

// askApart asks over a connection of the application's pool, if it has one to spare.
func (p *Pool) askApart(ctx context.Context, w Watcher, grants []Grant) ([]bool, error) {
	short, cancel := context.WithTimeout(ctx, p.answerTime/2)
	defer cancel()
	conn, err := connOf(short, p.db)
	if err != nil && hasEnded(short) && allInUse(p.db) {
		return nil, fmt.Errorf("%w: %w", ErrPoolTooSmall, err)
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // it goes back to its pool
	return w.Watch(ctx, conn, grants)
}

// settle ends the locks that an answer says are not held. Where that is one of a
// session with others, it asks about each of them.
func (r *round) settle(held []bool) {
	p := r.pool
	alive := make(map[*seat]bool)
	var missing []question
	p.mu.Lock()
	p.failing = time.Time{}
	for i, q := range r.asked {
		if held[i] {
			q.seat.seen, alive[q.seat] = r.start, true
		} else if _, still := p.held[q.tenure]; still && !q.tenure.lock.over() {
			missing = append(missing, q)
		}
	}
	var all []question
	for _, q := range missing {
		if r.all {
			break
		}
		for t := range q.seat.tenures {
			all = append(all, question{q.seat, t})
		}
	}
	p.mu.Unlock()
	if len(all) > len(missing) {
		p.ask(r.watcher, all, true)
		return
	}
	for _, q := range missing {
		if alive[q.seat] {
			q.tenure.lock.end(fmt.Errorf("%w: the server says that its session does not hold it any more", ErrLost))
		} else {
			p.abandon(q.seat, errEnded)
		}
	}
}

var errEnded = errors.New("the server says that it has ended, or that its only lock is no longer what was granted")

// fail ends the locks of sessions of which nothing has been heard for too long. Where
// there was nothing to ask over, or this process has been stopped meanwhile, nothing
// is known; the next round asks again.
func (r *round) fail() {
	p := r.pool
	if r.unable || time.Since(r.start) > 2*p.answerTime {
		return
	}
	var silent []question
	p.mu.Lock()
	if p.failing.IsZero() {
		p.failing = r.start
	}
	for _, q := range r.asked {
		switch {
		case q.seat.gone:
		case q.seat.seen.Before(p.failing) && time.Since(p.failing) >= p.answerTime:
			silent = append(silent, q)
		default:
			p.touch(q)
		}
	}
	p.mu.Unlock()
	for _, q := range silent {
		p.abandon(q.seat, fmt.Errorf("the server has not answered for %v", p.answerTime))
	}
}

// abandon ends all locks of a session, which is closed.
func (p *Pool) abandon(s *seat, why error) {
	p.mu.Lock()
	p.lose(s)
	p.mu.Unlock()
	sessions.end(s.conn, why)
}
