package sqllock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"
)

var (
	// errReleased is how a lock ends that was released.
	errReleased = fmt.Errorf("%w: it has been released", ErrNotHeld)

	// errLostAlone is how a lock ends that shared its session with others.
	errLostAlone = fmt.Errorf("%w: the server does not have it any more as it was granted", ErrLost)

	// errExpired is how a lock of a Pool ends whose time is over.
	errExpired = fmt.Errorf("%w: its TTL is over, or the time that it was to be kept alive for", ErrLost)
)

// Lock is a handle on one acquisition of a name. It is safe for concurrent use.
// Its calls share the conn with the caller's statements: they wait for one that
// is running, and must not be made while rows of a query on that conn are open,
// which would cost the session, and the lock. Every handle is to be released:
// one that is dropped without that is remembered as long as the process lives.
type Lock struct {
	locker *Locker
	conn   *sql.Conn
	handle handle
	name   string
	since  time.Time // of the grant
	tenure *tenure   // in the Pool that it is of, nil for a Locker's
	done   chan struct{}

	extending sync.Mutex // held across an Extend
	minting   sync.Mutex // held across the making of a token
	asking    sync.Mutex // held while the watch of a Do asks

	mu        sync.Mutex // guards the following; not held across I/O
	grant     Grant      // of which only Until changes, and Token once
	inUse     bool       // by a Use
	deciding  int        // how many WhileHelds have begun, for whose end a Release waits
	decided   *sync.Cond // on mu: deciding is 0
	releasing bool       // a Release has begun: it alone says how the lock ended
	err       error      // how the lock ended
	tenants   map[*context.CancelCauseFunc]struct{}
}

// Name returns the name that the lock was acquired under.
func (l *Lock) Name() string { return l.name }

// Conn returns the conn that the lock was acquired on. A transaction on it can't
// outlive the lock; package txguard makes more of that. In the function of a Do it
// is to be used inside [Lock.Use]. It is nil for a lock of a [Pool] that was acquired
// without [OwnSession]: other locks may be on its session.
func (l *Lock) Conn() *sql.Conn {
	if l.shared() {
		return nil
	}
	return l.conn
}

func (l *Lock) shared() bool { return l.tenure != nil && !l.tenure.place.req.own }

// Use calls f with Conn, and returns its error. Meanwhile the watch of a Do asks
// nothing there: a statement between rows of a query that f has open would break the
// connection, and lose the lock. So a loss is not noticed while f runs, but by the
// statements of f that fail. There is one Use at a time; another one returns an error
// that matches [ErrInTransaction], without having called f, and a lock that has no
// session of its own (see Conn) one that matches [ErrUnsupported].
func (l *Lock) Use(f func(conn *sql.Conn) error) error {
	if l.shared() {
		return l.fail("use", fmt.Errorf("%w: the lock shares its session with others; acquire it with sqllock.OwnSession()", ErrUnsupported))
	}
	l.mu.Lock()
	taken := l.inUse
	l.inUse = true
	l.mu.Unlock()
	if taken {
		return l.fail("use", fmt.Errorf("%w, or used otherwise: another Use of the lock is under way", ErrInTransaction))
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.inUse = false
	}()
	l.asking.Lock()   // what is being asked is answered first
	l.asking.Unlock() //nolint:staticcheck,gocritic // nothing is asked from now on
	return f(l.conn)
}

// Grant returns what the backend granted: the key on the server, the id of the
// session that holds it, and, where the backend has such, fencing token and end.
func (l *Lock) Grant() Grant {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.grant
}

// Token returns the fencing token of the grant: a number that grows with every
// grant of the name. A store that remembers the greatest token it has seen can
// refuse the late writes of a holder that had lost its lock. It is 0 if the
// backend has none, and [Lock.TokenFrom] has made none.
func (l *Lock) Token() int64 { return l.Grant().Token }

// TokenFrom returns Token; if there is none, it is what mint returns, and Token
// returns it from then on. One mint runs at a time.
func (l *Lock) TokenFrom(mint func() (int64, error)) (int64, error) {
	l.minting.Lock()
	defer l.minting.Unlock()
	if token := l.Token(); token != 0 {
		return token, nil
	}
	token, err := mint()
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.grant.Token = token
	return token, nil
}

// Remaining returns how long the lock is held at least, if nothing is done: the
// TTL, counted from before the grant or the extension was asked for on the local
// monotonic clock. It asks nobody, so it knows nothing of a loss before that
// time. It is 0 when the lock has ended, and the longest duration there is for a
// lock without a TTL.
func (l *Lock) Remaining() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return 0
	case l.grant.Until.IsZero():
		return math.MaxInt64
	}
	return max(0, time.Until(l.grant.Until))
}

// Done returns a channel that is closed when the lock has been released, or is
// known to be lost. A loss becomes known when the server is asked: by Check, by
// Release, or by the watch that a Do or a Pool keeps.
func (l *Lock) Done() <-chan struct{} { return l.done }

// Err returns nil until Done is closed, then how the lock ended: an error that
// matches [ErrNotHeld] if it was released, [ErrLost] if it was lost, and
// [ErrUnknown] if its release could not be confirmed.
func (l *Lock) Err() error { return l.fail("hold", l.how()) }

// how returns how the lock ended, nil if it has not.
func (l *Lock) how() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *Lock) ended() bool { return l.how() != nil }

// supersede ends a lock whose session has acquired it anew: the server would
// not have granted it if it had been held. So it had been lost, or else a
// Release is about to report.
func (l *Lock) supersede() {
	l.end(fmt.Errorf("%w: its session had let go of it, and has acquired it anew", ErrLost))
}

// end records how the lock was lost, unless it has ended already, or a Release is
// about to tell how.
func (l *Lock) end(err error) {
	if l.conclude(err, false) && l.tenure != nil {
		l.tenure.lost(err)
	}
}

func (l *Lock) conclude(err error, released bool) bool {
	l.mu.Lock()
	if l.err != nil || l.releasing && !released {
		l.mu.Unlock()
		return false
	}
	l.err = err
	close(l.done)
	for cancel := range l.tenants {
		(*cancel)(l.fail("hold", err))
	}
	l.tenants = nil
	l.mu.Unlock()

	e := Event{Kind: Lost, Name: l.name, Held: time.Since(l.since), Session: l.Grant().Session, Err: err}
	switch {
	case errors.Is(err, errReleased):
		e.Kind = Released
		if !errors.Is(err, ErrClosed) {
			e.Err = nil
		}
	case errors.Is(err, errExpired):
		e.Kind = Expired
	}
	l.emit(e)
	return true
}

func (l *Lock) emit(e Event) {
	switch {
	case l.tenure == nil:
		l.locker.observe(e)
	case !l.tenure.retired:
		l.tenure.pool.emit(e)
	case e.Kind == Lost && e.Err != nil && l.tenure.early(): // it has been released before
		l.tenure.pool.emit(e)
	}
}

// Context returns a copy of parent that ends with the lock, too, with the error of
// Err as its cause. As Done, it knows of a loss when the server has been asked. The
// CancelFunc has to be called when it is not needed any more.
func (l *Lock) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		cancel(l.fail("hold", l.err))
		return ctx, func() {}
	}
	if l.tenants == nil {
		l.tenants = make(map[*context.CancelCauseFunc]struct{})
	}
	l.tenants[&cancel] = struct{}{}
	return ctx, func() {
		l.mu.Lock()
		delete(l.tenants, &cancel)
		l.mu.Unlock()
		cancel(nil)
	}
}

// Check asks the server whether the lock is still held, and its TTL, if it has
// one, not over: nil if so, and an error that matches [ErrLost] if it is not,
// [ErrNotHeld] if it has been released, or [ErrUnknown] if the server could not be
// asked. It takes one round trip, or as many as the backend says.
//
// A ctx that has ended is returned as such, together with ErrUnknown, without
// asking. The statement itself is not cut short by ctx, since that would close
// the session and lose the lock; it has a bound of some seconds of its own. A
// server that stays silent for as long has lost us: the session is closed, and
// the answer is ErrLost, though the server may take longer to free the lock.
func (l *Lock) Check(ctx context.Context) error {
	return l.fail("check", l.held(ctx, l.conn, 0))
}

// Extend has the lock end ttl, which must be positive, from now, in place of when
// it would have ended. It returns nil if that is so; an error that matches
// [ErrLost] if the lock had ended before, by its TTL or otherwise (its session has
// been closed then, unless it shares that with others), [ErrNotHeld] if it has been released, and [ErrUnknown] if the
// server could not be asked: the lock then ends at the old time or at the new one.
// It never acquires anew. Whether it works while the session of the lock is in a
// transaction is up to the backend; where it does not, the error matches
// [ErrInTransaction]. [ErrUnsupported] is returned for locks without a TTL.
func (l *Lock) Extend(ctx context.Context, ttl time.Duration) error {
	return l.fail("extend", l.extend(ctx, ttl))
}

func (l *Lock) extend(ctx context.Context, ttl time.Duration) error {
	b, ok := l.locker.backend.(Leaser)
	switch {
	case !ok:
		return errNoTTL(l.locker.backend)
	case ttl <= 0:
		return fmt.Errorf("the TTL is %v, and must be positive; the lock was not changed", ttl)
	}
	l.extending.Lock() // so that the last one on the server is the last one here
	defer l.extending.Unlock()
	return l.ask(ctx, func(g Grant) error {
		// Until the answer is known, the earlier end may be the one that counts.
		l.endsBy(minTime(g.Until, time.Now().Add(ttl)))
		until, err := b.Extend(ctx, l.conn, g, ttl)
		switch {
		case err == nil:
			l.endsBy(until)
		case errors.Is(err, ErrInTransaction):
			l.endsBy(g.Until)
		}
		l.emit(Event{Kind: Extended, Name: l.name, Err: err})
		return err
	})
}

func (l *Lock) endsBy(until time.Time) {
	l.mu.Lock()
	l.grant.Until = until
	l.mu.Unlock()
	if l.tenure != nil {
		l.tenure.expires(until)
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// AssertTTL asks the server, by whose clock TTLs are counted, whether the lock
// is held and as much of its time is left as atLeast, as Check does. It returns
// an error that matches [ErrTTLTooShort] if less is left, and otherwise as Check
// does. [ErrUnsupported] is returned for locks without a TTL.
func (l *Lock) AssertTTL(ctx context.Context, atLeast time.Duration) error {
	// Zero is for locks without a TTL, too; any part of the last instant is more.
	return l.fail("assert ttl", l.held(ctx, l.conn, max(atLeast, 1)))
}

// WhileHeld asks the server, as Check does, whether the lock is held, and, if
// atLeast is not zero, as AssertTTL does, whether that much of its time is left. If
// so, it calls f, which may decide something that needs the lock, such as a commit:
// a Release waits until f has returned. f must not release the lock.
//
// q is what to ask over: Conn, whether that is nil or not, or, with a transaction open
// on it, an [InTx], to which asking adds nothing. WhileHeld returns the error of f as it is, and otherwise
// what Check and AssertTTL return.
func (l *Lock) WhileHeld(ctx context.Context, q Querier, atLeast time.Duration, f func() error) error {
	l.mu.Lock()
	if l.releasing {
		l.mu.Unlock()
		<-l.done
		return l.fail("check", l.how())
	}
	l.deciding++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.deciding--
		if l.deciding == 0 {
			l.decided.Broadcast()
		}
	}()
	if conn, ok := q.(*sql.Conn); ok && conn == nil {
		q = l.conn
	}
	if err := l.held(ctx, q, atLeast); err != nil {
		return l.fail("check", err)
	}
	return f()
}

// held asks over q whether the lock is held, with atLeast of its time left.
func (l *Lock) held(ctx context.Context, q Querier, atLeast time.Duration) error {
	if atLeast == 0 {
		return l.ask(ctx, func(g Grant) error { return l.locker.backend.Check(ctx, q, g) })
	}
	b, ok := l.locker.backend.(Leaser)
	if !ok {
		return errNoTTL(l.locker.backend)
	}
	var left time.Duration
	err := l.ask(ctx, func(g Grant) (err error) {
		left, err = b.TimeLeft(ctx, q, g)
		return err
	})
	if err == nil && left < atLeast {
		return fmt.Errorf("%w: %v, and %v was asked for", ErrTTLTooShort, left, atLeast)
	}
	return err
}

// ask has f ask the backend about the grant, and ends the lock if the answer is
// that it is lost.
func (l *Lock) ask(ctx context.Context, f func(Grant) error) error {
	if err := l.how(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, endOf(ctx))
	}
	err := f(l.Grant())
	if errors.Is(err, sql.ErrConnDone) {
		return l.connDone(err)
	}
	if errors.Is(err, ErrInTransaction) {
		return err // nothing was asked
	}
	if err != nil && !errors.Is(err, ErrLost) {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if l.over() {
		// The answer is of a moment before or after the release.
		<-l.done
		return l.how()
	}
	if err == nil {
		return nil
	}
	switch {
	case l.shared():
		err = errLostAlone // whether the session has to go, the Pool finds out
	case errors.Is(err, ErrSessionGone):
		sessions.forget(l)
		sessions.discard(l.conn, errUnsettled) // before anybody is told, and may put it back
	default:
		sessions.forget(l)
	}
	l.end(err)
	return err
}

// over reports whether the lock has ended, or a Release has begun.
func (l *Lock) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.releasing || l.err != nil
}

// connDone explains sql.ErrConnDone to the person who wonders what became of
// the lock. database/sql closes a conn after an error of the connection, too.
func (l *Lock) connDone(err error) error {
	session := "its session"
	if id := l.Grant().Session; id != 0 {
		session += " " + strconv.FormatInt(id, 10)
	}
	return fmt.Errorf("%w: %w: either %s broke, and the lock is gone with it, or the conn was closed "+
		"before the lock was released, and the session is back in its pool with the lock until it ends", ErrUnknown, err, session)
}

// Release frees the lock, in one round trip. It works with a ctx that has
// ended, of which it uses only the values, and takes some seconds at most when
// the server does not answer; it waits for a statement that is running on the
// conn, and for a WhileHeld. In an open transaction it frees the lock before the commit.
//
// It returns nil if this call freed the lock; an error that matches
// [ErrNotHeld] if an earlier call did; [ErrLost] if the lock was gone before;
// and [ErrUnknown] if the server did not confirm, in which case the session has
// been closed rather than left with a lock in it. It never frees a lock that
// was acquired after this one. Whatever it returns, the handle has ended.
//
// A lease that is released after its time, before anybody has taken it, was held
// all the while, and Release returns nil.
//
// Release before closing the conn: a conn that has been closed is back in its
// pool, out of reach, with the lock in it. When the time of a lease is over, its
// next holder then kills that session, whoever uses it by now.
func (l *Lock) Release(ctx context.Context) error {
	if !l.startRelease() {
		<-l.done
		if l.tenure != nil {
			l.tenure.quit(ctx)
		}
		return l.fail("release", l.how())
	}
	var err error
	if l.tenure != nil {
		err = l.tenure.release(ctx)
	} else {
		err = l.free(ctx)
		l.conclude(err, true)
	}
	if errors.Is(err, errReleased) {
		return nil
	}
	return l.fail("release", err)
}

// startRelease reports whether the caller is the one that is to say how the lock
// ends.
func (l *Lock) startRelease() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.deciding > 0 {
		l.decided.Wait()
	}
	if l.releasing || l.err != nil {
		return false
	}
	l.releasing = true
	return true
}

// free has the backend release the grant, and tells how the lock has ended.
func (l *Lock) free(ctx context.Context) error {
	err := l.locker.backend.Release(context.WithoutCancel(ctx), l.conn, l.Grant())
	sessions.forget(l)
	switch {
	case err == nil:
		return errReleased
	case errors.Is(err, sql.ErrConnDone):
		return l.connDone(err)
	case errors.Is(err, ErrLost) && l.shared() && l.relinquish(ctx):
		return errLostAlone
	case errors.Is(err, ErrSessionGone) || !errors.Is(err, ErrLost):
		sessions.discard(l.conn, errUnsettled)
		if !errors.Is(err, ErrLost) {
			err = fmt.Errorf("%w: the release was not confirmed, so the session was closed: %w", ErrUnknown, err)
		}
	}
	return err
}

// relinquish frees what a session may still have of a lost lock, for the sake of the
// others on it.
func (l *Lock) relinquish(ctx context.Context) bool {
	b, ok := l.locker.backend.(Relinquisher)
	return ok && b.Relinquish(context.WithoutCancel(ctx), l.conn, l.Grant()) == nil
}

func (l *Lock) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Name: l.name, Err: err}
}
