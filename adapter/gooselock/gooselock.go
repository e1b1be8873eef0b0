package gooselock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3/lock"

	"github.com/sqllock/go-sqllock/sqllock"
)

// DefaultMaxWait is how long SessionLock waits, unless [WithMaxWait] says otherwise. It is
// that of goose's own lockers.
const DefaultMaxWait = 5 * time.Minute

// slice is the longest wait in one statement on PostgreSQL: less than deadlock_timeout,
// which is a second there, so that who waits for the end of our snapshot has it before
// the server looks for a deadlock.
const slice = 500 * time.Millisecond

// Option configures a [SessionLocker].
type Option interface{ apply(*SessionLocker) }

type option func(*SessionLocker)

func (o option) apply(l *SessionLocker) { o(l) }

// WithMaxWait sets how long SessionLock waits for another process, beside what its ctx
// allows. It should be longer than all migrations take. If d is not positive, only ctx
// ends the wait.
func WithMaxWait(d time.Duration) Option { return option(func(l *SessionLocker) { l.maxWait = d }) }

// SessionLocker is a lock under which goose migrates. One serves any number of providers,
// of which one at a time migrates. It is safe for concurrent use. It has no goroutine but
// one for each lease that it holds.
type SessionLocker struct {
	locker  *sqllock.Locker
	name    string
	maxWait time.Duration

	mu   sync.Mutex // guards held
	held map[*sql.Conn]*hold
}

var _ lock.SessionLocker = (*SessionLocker)(nil)

// hold is a lock that goose has.
type hold struct {
	lock *sqllock.Lock
	ctx  context.Context // of the call that migrates
	stop func()          // ends the extending, and waits for that
}

// New returns a SessionLocker on the lock that locker has under name. All who migrate one
// version table of goose need one and the same. It starts nothing. It panics if locker is nil.
func New(locker *sqllock.Locker, name string, opts ...Option) *SessionLocker {
	if locker == nil {
		panic(`gooselock: New needs a Locker, for example sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop"))`)
	}
	l := &SessionLocker{locker: locker, name: name, maxWait: DefaultMaxWait, held: make(map[*sql.Conn]*hold)}
	for _, o := range opts {
		o.apply(l)
	}
	return l
}

// SessionLock acquires the lock for the session under conn, and waits while another one has
// it, until ctx ends or the time of [WithMaxWait] is over: then the error matches
// sqllock.ErrBusy and the error of ctx, or context.DeadlineExceeded, and says who has it.
// Other errors are those of [sqllock.Locker.Lock]. On failure nothing is held, and conn is
// as usable as before unless the error matches sqllock.ErrSessionGone.
func (l *SessionLocker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	if conn == nil {
		return errors.New("gooselock: SessionLock needs a connection; the *sql.Conn is nil")
	}
	start := time.Now()
	held, err := l.locker.TryLock(ctx, conn, l.name)
	if errors.Is(err, sqllock.ErrBusy) && ctx.Err() == nil {
		held, err = l.wait(ctx, conn)
	}
	switch {
	case errors.Is(err, sqllock.ErrBusy) && !errors.Is(err, sqllock.ErrSessionGone):
		return fmt.Errorf("gooselock: nothing has been migrated: after %v%s %s: %w",
			time.Since(start).Round(time.Millisecond), l.limit(ctx), l.who(ctx, conn), err)
	case err != nil:
		return fmt.Errorf("gooselock: nothing has been migrated: %w", err)
	}
	h := &hold{lock: held, ctx: ctx, stop: extend(ctx, held)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[conn] = h
	return nil
}

// wait waits on the server, which wakes it when the lock is free.
func (l *SessionLocker) wait(ctx context.Context, conn *sql.Conn) (*sqllock.Lock, error) {
	if l.maxWait > 0 {
		limited, cancel := context.WithTimeout(ctx, l.maxWait)
		defer cancel()
		ctx = limited
	}
	if !onPostgres(ctx, conn) {
		return l.locker.Lock(ctx, conn, l.name)
	}
	for {
		part, cancel := context.WithTimeout(ctx, slice)
		held, err := l.locker.Lock(part, conn, l.name)
		cancel()
		ended := hasEnded(ctx)
		if ended && errors.Is(err, context.Cause(part)) && !errors.Is(err, sqllock.ErrBusy) {
			err = fmt.Errorf("%w: %w", sqllock.ErrBusy, err) // ctx ended between two waits
		}
		if ended || !errors.Is(err, sqllock.ErrBusy) || errors.Is(err, sqllock.ErrSessionGone) {
			return held, err
		}
	}
}

// hasEnded tells a ctx whose deadline has passed, too: the server's clock may run a moment
// ahead of the timer.
func hasEnded(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) <= 0
}

// onPostgres asks the server, since a Locker does not tell its backend. All of them have
// this function. Where it can't tell, the lock will say what is wrong.
func onPostgres(ctx context.Context, conn *sql.Conn) bool {
	var version string
	err := conn.QueryRowContext(context.WithoutCancel(ctx), "SELECT version()").Scan(&version)
	return err == nil && strings.HasPrefix(version, "PostgreSQL")
}

// limit says which limit has ended a wait, if it is not that of the caller.
func (l *SessionLocker) limit(ctx context.Context) string {
	if l.maxWait > 0 && !hasEnded(ctx) {
		return " (the limit of gooselock.WithMaxWait)"
	}
	return ""
}

// who tells who has the lock now, as far as the server shows it.
func (l *SessionLocker) who(ctx context.Context, conn *sql.Conn) string {
	h, err := l.locker.Holder(context.WithoutCancel(ctx), conn, l.name)
	switch {
	case errors.Is(err, sqllock.ErrNotHeld):
		return "another migration was under way, and ended just now"
	case err != nil:
		return fmt.Sprintf("another migration is under way (whose, could not be asked: %v)", err)
	}
	since := ""
	if !h.Since.IsZero() {
		since = ", since " + h.Since.Format(time.RFC3339) + " or longer"
	}
	return fmt.Sprintf("another migration is under way: session %d", h.Session) +
		known(" of ", h.Process) + known(", user ", h.User) + known(" at ", h.Host) + since
}

// known is what the server shows, if it does.
func known(before, what string) string {
	if what == "" {
		return ""
	}
	return before + what
}

// extend extends a lease until the returned function is called. A loss is remembered by
// the lock, and the observer of the Locker is told of failures.
func extend(ctx context.Context, held *sqllock.Lock) (stop func()) {
	if held.Grant().Until.IsZero() {
		return func() {}
	}
	ttl := max(held.Remaining().Round(time.Second), time.Second) // it was counted from before the grant
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	over := make(chan struct{})
	go func() {
		defer close(over)
		next := ttl / 3
		for {
			select {
			case <-ctx.Done():
				return
			case <-held.Done():
				return
			case <-time.After(next):
			}
			if next = ttl / 3; held.Extend(ctx, ttl) != nil {
				next = min(next, max(held.Remaining()/4, 10*time.Millisecond)) // again while the TTL lasts
			}
		}
	}()
	return func() {
		cancel()
		<-over
	}
}

// SessionUnlock releases the lock. It works with a ctx that has ended. It returns an error
// that matches sqllock.ErrLost if the lock was gone before, so that another process may have
// gone on from there; sqllock.ErrUnknown if the server did not confirm the release, after
// which the session has been closed; and sqllock.ErrNotHeld for a conn that SessionLock has
// not locked. In each case nothing is held any more. A session that the end of the ctx of
// SessionLock has cost is no error: goose has returned that.
func (l *SessionLocker) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	l.mu.Lock()
	h := l.held[conn]
	delete(l.held, conn)
	l.mu.Unlock()
	if h == nil {
		return fmt.Errorf("gooselock: SessionUnlock: %w by this connection: SessionLock has not locked it, or it has been unlocked", sqllock.ErrNotHeld)
	}
	h.stop()
	err := h.lock.Release(ctx)
	broke := errors.Is(err, sql.ErrConnDone) // goose closes conn later, so its session has ended
	switch {
	case err == nil, h.ctx.Err() != nil && (broke || errors.Is(err, sqllock.ErrSessionGone)):
		return nil
	case broke:
		err = &sqllock.OpError{Op: "release", Name: l.name, Err: fmt.Errorf("%w: its session ended: %w", sqllock.ErrLost, sql.ErrConnDone)}
	}
	if errors.Is(err, sqllock.ErrLost) {
		return fmt.Errorf("gooselock: the lock did not last as long as the migration: another one may have gone on from there; "+
			"look at what has been applied (goose status) before you migrate again: %w", err)
	}
	return fmt.Errorf("gooselock: %w", err)
}
