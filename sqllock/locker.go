package sqllock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"
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
	observe       func(Event)
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
// which also keeps that session from being idle for longer. A [Pool] of the Locker asks
// once an interval for all of its locks, handles included, over a session that nobody
// uses, and leaves none idle for more than four intervals. The interval plus a
// round trip is how long a loss can go unnoticed. Zero or less: never ask; a
// loss is then found by the release, and sessions may be idle.
func WithCheckInterval(d time.Duration) Option {
	return option(func(k *Locker) { k.checkInterval = d })
}

// WithObserver has f called with every [Event]; [LogTo] makes one that logs. f must
// not block, and is called concurrently. With more than one of these options, each
// f is called.
func WithObserver(f func(Event)) Option {
	return option(func(k *Locker) {
		if f == nil {
			return
		}
		others := k.observe
		k.observe = func(e Event) {
			others(e)
			f(e)
		}
	})
}

// LockOption is an option of one acquisition.
type LockOption interface{ applyTo(*Request) error }

type lockOption func(*Request) error

func (o lockOption) applyTo(r *Request) error { return o(r) }

// TTL sets how long the lock is held unless it is extended or released, counted
// from the grant, in place of the backend's default. Backends may round it up,
// to whole seconds for one. It is an error with a backend whose locks have no
// TTL ([ErrUnsupported]), and if d is not positive.
func TTL(d time.Duration) LockOption {
	return lockOption(func(r *Request) error {
		if d <= 0 {
			return fmt.Errorf("the TTL is %v, and must be positive", d)
		}
		r.TTL = d
		return nil
	})
}

// Shared acquires a lock beside others who share it, while nobody holds it alone: the
// read lock of readers and writers. Who waits to hold it alone keeps those who come
// later to share it waiting. In a [Pool] it has a session of its own, as with
// [OwnSession]. It is an error with a backend whose locks can't be shared
// ([ErrUnsupported]).
func Shared() LockOption {
	return lockOption(func(r *Request) error {
		r.Shared = true
		return nil
	})
}

// New returns a Locker on b. It panics if b is nil.
func New(b Backend, opts ...Option) *Locker {
	if b == nil {
		panic("sqllock: New needs a backend, for example mysqlnamed.New()")
	}
	k := &Locker{backend: b, checkInterval: DefaultCheckInterval, observe: func(Event) {}}
	for _, o := range opts {
		o.apply(k)
	}
	return k
}

// TryLock acquires name for the session under conn if it is free, and returns
// [ErrBusy] if another session holds it. It does not wait for the lock; where the
// TTL of its holder is over, and the session has to be ended, it waits some seconds
// for that ([ErrHolderAlive]).
//
// On failure nothing has been acquired, and conn is as usable as before unless
// the error matches [ErrSessionGone]. Rows of a query on conn must have been
// closed. A server that falls silent costs the session, after some seconds.
func (k *Locker) TryLock(ctx context.Context, conn *sql.Conn, name string, opts ...LockOption) (*Lock, error) {
	return k.acquire(ctx, conn, name, "try lock", false, opts)
}

// Lock acquires name for the session under conn, waiting on the server until it
// is granted or ctx ends. In the second case the error matches the error and
// the cause of ctx, and [ErrBusy] if another session held the lock.
//
// On failure nothing has been acquired, and conn is as usable as before unless
// the error matches [ErrSessionGone]. Other statements on conn wait meanwhile;
// rows of a query on it must have been closed. How soon a cancellation ends the
// wait is up to the backend. A server that falls silent costs the session, some
// seconds after it should have answered, whatever ctx says.
func (k *Locker) Lock(ctx context.Context, conn *sql.Conn, name string, opts ...LockOption) (*Lock, error) {
	return k.acquire(ctx, conn, name, "lock", true, opts)
}

// LockTx acquires name for the transaction tx, waiting until it is granted or ctx ends.
// The lock ends with tx, so there is no handle: with its commit, its rollback, a statement
// of it that fails, or a ROLLBACK TO a savepoint that was set before LockTx. Take it first
// of all; then what tx commits was done under the lock. It excludes, and is excluded by,
// locks of the same name of sessions. It is for poolers that lend a server's session for
// the length of a transaction, where those can't be had.
//
// When ctx has ended the error matches the error and the cause of ctx, and [ErrBusy] if
// somebody else held the lock. On failure nothing has been acquired, and tx can go on as
// if nothing had been tried, unless the error matches [ErrSessionGone], or is one that the
// server has for a statement, such as [ErrInterrupted]: that fails a transaction.
// [ErrUnsupported] is returned by backends that have no such locks, and for a transaction
// that would not see what the holder before has committed: with package pgadvisory it has
// to be READ COMMITTED. How soon a cancellation ends the wait is up to the backend.
func (k *Locker) LockTx(ctx context.Context, tx *sql.Tx, name string, opts ...LockOption) error {
	return k.acquireTx(ctx, tx, name, "lock", opts)
}

// TryLockTx is LockTx for one that does not wait: it returns [ErrBusy] if somebody else
// holds name.
func (k *Locker) TryLockTx(ctx context.Context, tx *sql.Tx, name string, opts ...LockOption) error {
	return k.acquireTx(ctx, tx, name, "try lock", opts)
}

func (k *Locker) acquireTx(ctx context.Context, tx *sql.Tx, name, op string, opts []LockOption) error {
	start := time.Now()
	req, err := k.request(name, opts)
	b, ok := k.backend.(TxLocker)
	switch {
	case err != nil:
	case !ok:
		err = fmt.Errorf("%w: %T has no locks for the length of a transaction; package pgadvisory has", ErrUnsupported, k.backend)
	case tx == nil:
		err = errors.New("the *sql.Tx is nil: begin one")
	case req.pooled != pooled{}:
		err = errPooled
	case ctx.Err() != nil:
		err = endOf(ctx)
	}
	if err != nil {
		return &OpError{Op: op, Name: name, Err: err}
	}
	req.Wait = op == "lock"
	if err := b.AcquireTx(ctx, tx, req); err != nil {
		return k.refused(ctx, op, name, start, err)
	}
	k.observe(Event{Kind: Acquired, Name: name, Waited: time.Since(start)})
	return nil
}

var errPooled = fmt.Errorf("%w: OwnSession, AtLeast and KeepAlive are options of a Pool's locks", ErrUnsupported)

func (k *Locker) acquire(ctx context.Context, conn *sql.Conn, name, op string, wait bool, opts []LockOption) (*Lock, error) {
	start := time.Now()
	req, err := k.request(name, opts)
	switch {
	case err != nil:
	case conn == nil:
		err = errors.New("the *sql.Conn is nil: take one with db.Conn, or use Do")
	case req.pooled != pooled{}:
		err = errPooled
	case ctx.Err() != nil:
		err = endOf(ctx)
	}
	if err != nil {
		return nil, &OpError{Op: op, Name: name, Err: err}
	}
	req.Wait = wait
	l, err := k.grant(ctx, conn, name, req, nil)
	if err != nil {
		return nil, k.refused(ctx, op, name, start, err)
	}
	k.observe(Event{Kind: Acquired, Name: name, Waited: time.Since(start), Token: l.grant.Token})
	return l, nil
}

// refused makes the error of an acquisition that has failed.
func (k *Locker) refused(ctx context.Context, op, name string, start time.Time, err error) error {
	if op != "try lock" && (errors.Is(err, ErrBusy) || ctx.Err() != nil) {
		err = fmt.Errorf("%w: %w", err, endOf(ctx))
	}
	if errors.Is(err, ErrBusy) {
		k.observe(Event{Kind: Busy, Name: name, Waited: time.Since(start), Err: err})
	}
	return &OpError{Op: op, Name: name, Err: err}
}

// grant has the backend acquire what is asked for, in a Pool for t.
func (k *Locker) grant(ctx context.Context, conn *sql.Conn, name string, req Request, t *tenure) (*Lock, error) {
	h := k.handle(conn, req.Key)
	old, err := sessions.reserve(h)
	if err != nil {
		return nil, err
	}
	g, err := k.backend.Acquire(ctx, conn, req)
	if err != nil {
		sessions.settle(h, old)
		if errors.Is(err, ErrSessionGone) {
			sessions.discard(conn, errUnsettled)
		}
		return nil, err
	}
	l := k.lock(h, name, g, t)
	if old != nil {
		old.supersede()
	}
	return l, nil
}

// grantAll is grant for several tenures at once, all or none, without waiting.
func (k *Locker) grantAll(ctx context.Context, b GroupAcquirer, conn *sql.Conn, reqs []Request, ts []*tenure) (locks []*Lock, err error) {
	olds := make([]*Lock, 0, len(reqs))
	undo := func() {
		for i, old := range olds {
			sessions.settle(k.handle(conn, reqs[i].Key), old)
		}
	}
	for _, req := range reqs {
		old, err := sessions.reserve(k.handle(conn, req.Key))
		if err != nil {
			undo()
			return nil, err
		}
		olds = append(olds, old)
	}
	grants, err := b.AcquireAll(ctx, conn, reqs)
	if err != nil {
		undo()
		if errors.Is(err, ErrSessionGone) {
			sessions.discard(conn, errUnsettled)
		}
		return nil, err
	}
	for i, g := range grants {
		locks = append(locks, k.lock(k.handle(conn, reqs[i].Key), ts[i].place.name, g, ts[i]))
		if olds[i] != nil {
			olds[i].supersede()
		}
	}
	return locks, nil
}

func (k *Locker) handle(conn *sql.Conn, key string) handle {
	return handle{conn, reflect.TypeOf(k.backend), key}
}

// lock makes the handle of a grant.
func (k *Locker) lock(h handle, name string, g Grant, t *tenure) *Lock {
	l := &Lock{locker: k, conn: h.conn, handle: h, name: name, grant: g, since: time.Now(), tenure: t, done: make(chan struct{})}
	l.decided = sync.NewCond(&l.mu)
	sessions.settle(h, l)
	return l
}

// request makes what the backend is asked for of what the caller asks for.
func (k *Locker) request(name string, opts []LockOption) (req Request, err error) {
	if req.Key, err = Key(k.namespace, name); err != nil {
		return req, err
	}
	for _, o := range opts {
		if err := o.applyTo(&req); err != nil {
			return req, err
		}
	}
	if _, leases := k.backend.(Leaser); req.TTL != 0 && !leases {
		return req, errNoTTL(k.backend)
	}
	if _, shares := k.backend.(Sharer); req.Shared && !shares {
		return req, fmt.Errorf("%w: locks of %T can't be shared", ErrUnsupported, k.backend)
	}
	req.Observe = func(e Event) {
		e.Name = name
		k.observe(e)
	}
	return req, nil
}

func errNoTTL(b Backend) error {
	return fmt.Errorf("%w: locks of %T have no TTL; they live as long as their session, or their transaction", ErrUnsupported, b)
}

// Break takes name from its holder: it ends the holder's session, whose open
// transaction the server rolls back, and returns when the lock is free of it,
// with whom it ended. name is the lock's as the application gives it, not its key
// on the server, as in a [Holder]. It is for operators; the user of db needs the privilege to
// end the sessions of the holder's user ([ErrPermission]). It returns
// [ErrNotHeld] if the lock is free, and [ErrUnsupported] if the backend has no
// such thing. A ctx that ends does not undo what has been done.
func (k *Locker) Break(ctx context.Context, db *sql.DB, name string) (Holder, error) {
	fail := func(err error) (Holder, error) { return Holder{}, &OpError{Op: "break", Name: name, Err: err} }
	key, err := Key(k.namespace, name)
	if err != nil {
		return fail(err)
	}
	b, ok := k.backend.(Breaker)
	switch {
	case !ok:
		return fail(fmt.Errorf("%w: %T can't break locks", ErrUnsupported, k.backend))
	case db == nil:
		return fail(errNilDB)
	case ctx.Err() != nil:
		return fail(endOf(ctx))
	}
	h, err := b.Break(ctx, db, key)
	if err != nil {
		return fail(err)
	}
	return h, nil
}

// Holder tells which session holds name, asking over q: the *sql.DB, a *sql.Conn
// or a *sql.Tx, on the server of the lock. It returns [ErrNotHeld] if the lock
// is free. On a *sql.Conn or a *sql.Tx the statement is not cut short by ctx,
// since that would close the session; it has a bound of some seconds of its own.
func (k *Locker) Holder(ctx context.Context, q Querier, name string) (Holder, error) {
	key, err := Key(k.namespace, name)
	if err != nil {
		return Holder{}, &OpError{Op: "holder", Name: name, Err: err}
	}
	if q == nil || reflect.ValueOf(q).Kind() == reflect.Pointer && reflect.ValueOf(q).IsNil() {
		return Holder{}, &OpError{Op: "holder", Name: name, Err: errors.New("there is nothing to ask over: the *sql.DB, *sql.Conn or *sql.Tx is nil")}
	}
	if ctx.Err() != nil {
		return Holder{}, &OpError{Op: "holder", Name: name, Err: endOf(ctx)}
	}
	h, err := k.backend.Holder(ctx, q, key)
	if err != nil {
		return Holder{}, &OpError{Op: "holder", Name: name, Err: err}
	}
	return h, nil
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
