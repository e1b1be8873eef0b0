package gocronlock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	// checkEvery is how often a leader asks whether it still is.
	checkEvery = time.Second

	// trust is for how long an answer is good. It is more than the five seconds that
	// backends give the server for an answer.
	trust = 10 * time.Second

	// waitFor is how long one wait for the lock is, after which it is asked who leads.
	waitFor = 5 * time.Second

	// Pauses after what is no answer of the server's, each twice as long as the one before.
	shortestPause, longestPause = 100 * time.Millisecond, 5 * time.Second
)

// Elector is for gocron.WithDistributedElector: one of the processes that campaign for a
// name leads. It is safe for concurrent use. From Start to Close it has one goroutine, and
// one connection of the *sql.DB.
type Elector struct {
	db       *sql.DB
	locker   *sqllock.Locker
	name     string
	onChange []func(error)
	stop     context.CancelFunc // nil before Start; set once
	done     chan struct{}      // closed when the goroutine has ended

	mu        sync.Mutex // guards the following, and stop; not held across I/O
	closed    bool
	lock      *sqllock.Lock // while it leads
	confirmed time.Time     // by the server: not before it was asked
	err       error         // why it does not lead, nil if it does
}

var _ gocron.Elector = (*Elector)(nil)

// ElectorOption configures an [Elector].
type ElectorOption interface{ apply(*Elector) }

type electorOption func(*Elector)

func (o electorOption) apply(e *Elector) { o(e) }

// OnChange has f called when the answer of IsLeader has changed, with the new one: nil
// when this process leads, else why it does not. gocron shows none of that. f is called by
// one goroutine, and must not block, nor call Close.
func OnChange(f func(err error)) ElectorOption {
	return electorOption(func(e *Elector) {
		if f != nil {
			e.onChange = append(e.onChange, f)
		}
	})
}

var (
	errNotStarted = errors.New("gocronlock: the Elector has not been started: call Start before the scheduler's")
	errClosed     = errors.New("gocronlock: the Elector is closed")
)

// NewElector returns an Elector that leads while it has the lock that locker has under
// name, on a connection of db. It starts nothing. It panics if db or locker is nil.
func NewElector(db *sql.DB, locker *sqllock.Locker, name string, opts ...ElectorOption) *Elector {
	if db == nil || locker == nil {
		panic("gocronlock: NewElector needs a *sql.DB and a Locker")
	}
	e := &Elector{db: db, locker: locker, name: name, done: make(chan struct{}), err: errNotStarted}
	for _, o := range opts {
		o.apply(e)
	}
	return e
}

// IsLeader returns nil if this process leads, else an error that says why it does not; it
// matches sqllock.ErrBusy if another one does. It asks nobody.
func (e *Elector) IsLeader(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.answer()
}

// answer is IsLeader for one who has mu.
func (e *Elector) answer() error {
	if e.closed {
		return errClosed
	}
	if e.err != nil {
		return e.err
	}
	if err := e.lock.Err(); err != nil {
		return fmt.Errorf("gocronlock: no longer the leader: %w", err)
	}
	if e.lock.Remaining() <= 0 {
		return fmt.Errorf("gocronlock: no longer the leader: %w: the TTL of %q is over", sqllock.ErrLost, e.name)
	}
	if ago := time.Since(e.confirmed); ago > trust {
		return fmt.Errorf("gocronlock: no longer the leader: %w: the server has not said so of %q for %v", sqllock.ErrUnknown, e.name, ago.Round(time.Millisecond))
	}
	return nil
}

// Start begins to campaign, and returns when it is known whether this process leads. A
// campaign that fails otherwise at that moment is an error, and nothing is started; ctx bounds
// no more than that. Later errors do not end it.
func (e *Elector) Start(ctx context.Context) error {
	campaign, stop := context.WithCancel(context.WithoutCancel(ctx))
	e.mu.Lock()
	if e.closed || e.stop != nil {
		defer e.mu.Unlock()
		stop()
		if e.closed {
			return errClosed
		}
		return errors.New("gocronlock: the Elector has been started already")
	}
	e.stop = stop
	e.mu.Unlock()

	conn, lock, err := e.first(ctx)
	if err != nil {
		stop()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.stop = nil
		if e.closed {
			close(e.done)
		}
		return fmt.Errorf("gocronlock: the Elector has not been started: %w", err)
	}
	begun := make(chan struct{})
	go e.campaign(campaign, conn, lock, begun)
	<-begun
	return nil
}

// first asks for the lock once. It returns no lock if another process has it.
func (e *Elector) first(ctx context.Context) (*sql.Conn, *sqllock.Lock, error) {
	conn, err := e.db.Conn(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("no connection for the lock %q: %w", e.name, err)
	}
	lock, err := e.locker.TryLock(ctx, conn, e.name)
	if err != nil && !busy(err) {
		_ = conn.Close() // the first error is the one to tell
		return nil, nil, err
	}
	return conn, lock, nil
}

// busy is that another process leads, and the session is as it was.
func busy(err error) bool {
	return errors.Is(err, sqllock.ErrBusy) && !errors.Is(err, sqllock.ErrSessionGone)
}

// Close ends the campaign, lets another process lead, and returns when that is so, or with
// the error of ctx if that ends before; what is left goes on then. It may be called more than
// once. Shut the scheduler down before, so that no job of it runs any more.
func (e *Elector) Close(ctx context.Context) error {
	e.mu.Lock()
	if stop := e.stop; stop != nil {
		stop()
	} else if !e.closed {
		close(e.done)
	}
	e.closed = true
	e.mu.Unlock()
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("gocronlock: the lock %q has not been released yet: %w", e.name, context.Cause(ctx))
	}
}

// campaign goes on until ctx ends. It closes begun when it is known who leads.
func (e *Elector) campaign(ctx context.Context, conn *sql.Conn, lock *sqllock.Lock, begun chan struct{}) {
	defer close(e.done)
	began := sync.OnceFunc(func() { close(begun) })
	defer began()
	pause := shortestPause
	for {
		err := e.term(ctx, conn, lock, func() {
			pause = shortestPause // the server has answered
			began()
		})
		conn, lock = nil, nil
		if ctx.Err() != nil {
			e.tell(errClosed)
			return
		}
		e.tell(fmt.Errorf("gocronlock: not the leader, and about to try again: %w", err))
		began()
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, longestPause)
	}
}

// term waits on one connection for the lock, and leads. It returns when the lock, or
// the session, is lost, or ctx has ended.
func (e *Elector) term(ctx context.Context, conn *sql.Conn, lock *sqllock.Lock, known func()) (err error) {
	if conn == nil {
		limited, cancel := context.WithTimeout(ctx, trust)
		conn, err = e.db.Conn(limited)
		cancel()
		if err != nil {
			return fmt.Errorf("no connection for the lock %q: %w", e.name, err)
		}
	} else if lock == nil {
		e.tell(e.led(ctx, conn))
		known()
	}
	defer conn.Close() //nolint:errcheck // back to the pool, or gone
	for lock == nil {
		limited, cancel := context.WithTimeout(ctx, waitFor)
		lock, err = e.locker.Lock(limited, conn, e.name)
		cancel()
		if err != nil && (!busy(err) || ctx.Err() != nil) {
			return err
		}
		if err != nil {
			e.tell(e.led(ctx, conn))
			known()
		}
	}
	return e.lead(ctx, lock, known)
}

// lead leads while the server says that the lock is held.
func (e *Elector) lead(ctx context.Context, lock *sqllock.Lock, known func()) error {
	defer func() {
		_ = lock.Release(ctx) // one that is lost says so once more
	}()
	every, ttl := checkEvery, time.Duration(0)
	if !lock.Grant().Until.IsZero() {
		ttl = max(lock.Remaining().Round(time.Second), time.Second) // it was counted from before the grant
		every = min(every, ttl/4)
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var confirmed time.Time
	for {
		asked := time.Now()
		err := e.ask(ctx, lock, ttl)
		switch {
		case err == nil:
			confirmed = asked
			e.leads(lock, confirmed)
			known()
		case lock.Err() != nil || time.Since(confirmed) > trust:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// ask asks the server whether the lock is held, and extends a lease of which a third is over.
func (e *Elector) ask(ctx context.Context, lock *sqllock.Lock, ttl time.Duration) error {
	if lock.Remaining() < ttl*2/3 {
		return lock.Extend(ctx, ttl)
	}
	return lock.Check(ctx)
}

// leads notes that the server has said so.
func (e *Elector) leads(lock *sqllock.Lock, confirmed time.Time) {
	e.mu.Lock()
	e.lock, e.confirmed = lock, confirmed
	changed := e.err != nil && !e.closed
	if changed {
		e.err = nil
	}
	e.mu.Unlock()
	if changed {
		e.changed(nil)
	}
}

// tell notes why this process does not lead.
func (e *Elector) tell(err error) {
	e.mu.Lock()
	changed := e.err == nil || e.err.Error() != err.Error()
	e.err, e.lock = err, nil
	e.mu.Unlock()
	if changed {
		e.changed(err)
	}
}

func (e *Elector) changed(err error) {
	for _, f := range e.onChange {
		f(err)
	}
}

// led says who leads, as far as the server shows it.
func (e *Elector) led(ctx context.Context, conn *sql.Conn) error {
	who := "another process"
	if h, err := e.locker.Holder(ctx, conn, e.name); err == nil {
		who = fmt.Sprintf("session %d", h.Session) + known(" of ", h.Process) + known(", user ", h.User) + known(" at ", h.Host)
	}
	return fmt.Errorf("gocronlock: not the leader, as %s is, by the lock %q: %w", who, e.name, sqllock.ErrBusy)
}

// known is what the server shows, if it does.
func known(before, what string) string {
	if what == "" {
		return ""
	}
	return before + what
}
