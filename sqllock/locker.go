package sqllock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
)

// DefaultCheckInterval is how often Do and TryDo ask the server whether their
// lock is still held, unless [WithCheckInterval] says otherwise.
const DefaultCheckInterval = time.Second

// Locker makes locks of one backend under one namespace. It is safe for
// concurrent use, and starts no goroutine except inside Do and TryDo. An
// application needs one per backend and namespace, not one per lock.
type Locker struct {
	backend       Backend
	namespace     string
	checkInterval time.Duration

	mu   sync.Mutex       // guards live
	live map[handle]*Lock // what is held, or nil while it is being acquired
}

// handle is what a session can hold once.
type handle struct {
	conn *sql.Conn
	key  string
}

// Option configures a [Locker].
type Option interface{ apply(*Locker) }

type option func(*Locker)

func (o option) apply(k *Locker) { o(k) }

// WithNamespace puts "namespace:" before every name, to keep applications on
// one server apart: the user-level locks of MySQL and MariaDB, for example, are
// global to the server, whatever the schema. See [Key].
func WithNamespace(namespace string) Option {
	return option(func(k *Locker) { k.namespace = namespace })
}

// WithCheckInterval sets how often Do and TryDo ask the server whether their
// lock is still held. It is one small statement on the lock's own session,
// which also keeps that session from being idle for longer. The interval plus a
// round trip is how long a loss can go unnoticed. Zero or less: never ask; a
// loss is then found by the release.
func WithCheckInterval(d time.Duration) Option {
	return option(func(k *Locker) { k.checkInterval = d })
}

// New returns a Locker on b. It panics if b is nil.
func New(b Backend, opts ...Option) *Locker {
	if b == nil {
		panic("sqllock: New needs a backend, for example mysqlnamed.New()")
	}
	k := &Locker{backend: b, checkInterval: DefaultCheckInterval, live: make(map[handle]*Lock)}
	for _, o := range opts {
		o.apply(k)
	}
	return k
}

// TryLock acquires name for the session under conn if it is free, and returns
// [ErrBusy] if another session holds it. It does not wait for the lock.
//
// On failure nothing has been acquired, and conn is as usable as before unless
// the error matches [ErrSessionGone].
func (k *Locker) TryLock(ctx context.Context, conn *sql.Conn, name string) (*Lock, error) {
	return k.acquire(ctx, conn, name, "try lock", false)
}

// Lock acquires name for the session under conn, waiting on the server until it
// is granted or ctx ends. In the second case the error matches the error and
// the cause of ctx, and [ErrBusy] if another session held the lock.
//
// On failure nothing has been acquired, and conn is as usable as before unless
// the error matches [ErrSessionGone]. Other statements on conn wait meanwhile.
func (k *Locker) Lock(ctx context.Context, conn *sql.Conn, name string) (*Lock, error) {
	return k.acquire(ctx, conn, name, "lock", true)
}

func (k *Locker) acquire(ctx context.Context, conn *sql.Conn, name, op string, wait bool) (*Lock, error) {
	fail := func(err error) (*Lock, error) { return nil, &OpError{Op: op, Name: name, Err: err} }
	key, err := Key(k.namespace, name)
	if err != nil {
		return fail(err)
	}
	if conn == nil {
		return fail(errors.New("the *sql.Conn is nil: take one with db.Conn, or use Do"))
	}
	if ctx.Err() != nil {
		return fail(endOf(ctx))
	}
	h := handle{conn, key}
	old, err := k.reserve(h)
	if err != nil {
		return fail(err)
	}
	g, err := k.backend.Acquire(ctx, conn, Request{Key: key, Wait: wait})
	if err != nil {
		k.settle(h, old)
		if errors.Is(err, ErrSessionGone) {
			k.discard(conn)
		}
		if wait && (errors.Is(err, ErrBusy) || ctx.Err() != nil) {
			err = fmt.Errorf("%w: %w", err, endOf(ctx))
		}
		return fail(err)
	}
	l := &Lock{locker: k, conn: conn, name: name, grant: g, done: make(chan struct{})}
	k.settle(h, l)
	if old != nil {
		// The server granted what old was thought to hold, so old had lost it;
		// and its release must not free the new grant.
		old.end(fmt.Errorf("%w: its session had let go of it, and has acquired it anew", ErrLost))
	}
	return l, nil
}

// reserve keeps two goroutines from acquiring one key on one session at a time:
// each could be taken for the other by the server. It returns the lock that
// this Locker believes to be held there; whether it is, the server says.
func (k *Locker) reserve(h handle) (*Lock, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old, there := k.live[h]
	if there && old == nil {
		return nil, fmt.Errorf("%w, or is about to: another goroutine is acquiring it on the same conn", ErrHeld)
	}
	k.live[h] = nil
	return old, nil
}

// settle ends a reservation: l is what h holds now, nil for nothing.
func (k *Locker) settle(h handle, l *Lock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l == nil || l.Err() != nil {
		delete(k.live, h)
		return
	}
	k.live[h] = l
}

// forget removes l, and nothing newer.
func (k *Locker) forget(l *Lock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := handle{l.conn, l.grant.Key}
	if k.live[h] == l {
		delete(k.live, h)
	}
}

// Holder tells which session holds name, asking over q: the *sql.DB, a *sql.Conn
// or a *sql.Tx, on the server of the lock. It returns [ErrNotHeld] if the lock
// is free.
func (k *Locker) Holder(ctx context.Context, q Querier, name string) (Holder, error) {
	key, err := Key(k.namespace, name)
	if err != nil {
		return Holder{}, &OpError{Op: "holder", Name: name, Err: err}
	}
	h, err := k.backend.Holder(ctx, q, key)
	if err != nil {
		return Holder{}, &OpError{Op: "holder", Name: name, Err: err}
	}
	return h, nil
}

// discard closes the session under conn, and with it every lock that it held.
func (k *Locker) discard(conn *sql.Conn) {
	_ = session.Close(conn) // one that is closed already is what is wanted
	k.mu.Lock()
	var lost []*Lock
	for h, l := range k.live {
		if h.conn == conn && l != nil {
			lost = append(lost, l)
			delete(k.live, h)
		}
	}
	k.mu.Unlock()
	for _, l := range lost {
		l.end(fmt.Errorf("%w: %w: it was closed when another lock on it could not be settled", ErrLost, ErrSessionGone))
	}
}

// endOf returns the error of a ctx that has ended, on one line with its cause
// if that says more. A ctx whose deadline is only about to pass has ended too:
// the server's clock may run a moment ahead of the timer.
func endOf(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		return context.DeadlineExceeded
	}
	if cause := context.Cause(ctx); !errors.Is(cause, err) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
