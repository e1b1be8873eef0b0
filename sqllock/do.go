package sqllock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// acquireTries is how many connections Do and TryDo take from the pool when
// those they get turn out to be dead, as the pool does for its own queries.
const acquireTries = 3

// Do acquires name on a connection of its own from db, waiting until it is
// granted or ctx ends, runs fn, and releases. It holds that one connection of
// the pool from before the wait until after the release; fn works on others.
//
// fn may work on the lock's own connection, too, by lock.Use: a transaction there
// can't outlive the lock (see package txguard).
//
// fn gets a ctx that ends with ctx, and, with [ErrLost] as its cause, as soon
// as the lock is known to be lost: the server is asked at the interval of
// [WithCheckInterval]. fn should then stop. fn may release the lock early by
// lock.Release; its ctx then ends with [ErrNotHeld] as the cause. A lock with a
// TTL is lost when that is over, unless fn extends it by lock.Extend in time.
//
// Do returns the error of fn, and, before it, the error of a lock that was lost
// or whose release could not be confirmed, in which case the connection has been
// closed. If fn panics, or ends its goroutine, the lock is released and the
// panic goes on. If the lock could not be acquired, fn has not run.
//
// Do is safe for concurrent use. Each needs a connection while it waits and
// while fn runs: where the pool has fewer than there are Dos and what their
// functions need besides, they wait for each other until ctx ends. A Do inside
// fn for the same name waits for itself.
func (k *Locker) Do(ctx context.Context, db *sql.DB, name string, fn func(ctx context.Context, lock *Lock) error, opts ...LockOption) error {
	return k.do(ctx, db, name, k.Lock, fn, opts)
}

// TryDo is Do for work that is to be skipped when another session holds the
// lock: it then returns false and no error, without having run fn. It returns
// true whenever fn has run. It does not wait for the lock, but as long as ctx
// allows for a connection of a pool that has none to spare, and some seconds for
// the session of a holder whose TTL is over to end; if that takes longer, the
// error matches [ErrHolderAlive].
func (k *Locker) TryDo(ctx context.Context, db *sql.DB, name string, fn func(ctx context.Context, lock *Lock) error, opts ...LockOption) (ran bool, err error) {
	err = k.do(ctx, db, name, k.TryLock, func(ctx context.Context, lock *Lock) error {
		ran = true
		return fn(ctx, lock)
	}, opts)
	if !ran && errors.Is(err, ErrBusy) && !errors.Is(err, ErrHolderAlive) {
		return false, nil
	}
	return ran, err
}

var errNilDB = errors.New("the *sql.DB is nil")

type acquireFunc func(ctx context.Context, conn *sql.Conn, name string, opts ...LockOption) (*Lock, error)

func (k *Locker) do(ctx context.Context, db *sql.DB, name string, acquire acquireFunc, fn func(context.Context, *Lock) error, opts []LockOption) error {
	if fn == nil {
		return &OpError{Op: "do", Name: name, Err: errors.New("the function is nil")}
	}
	for try := 1; ; try++ {
		conn, err := k.conn(ctx, db, name)
		if err != nil {
			return err
		}
		lock, err := acquire(ctx, conn, name, opts...)
		if err == nil {
			defer conn.Close() //nolint:errcheck,gocritic // the loop ends here; a session that was discarded says so once more
			return k.run(ctx, lock, fn)
		}
		_ = conn.Close() // a session that is gone says so once more
		if errors.Is(err, ErrHeld) {
			return fmt.Errorf("%w; this connection of the pool has it since an earlier handle's conn was closed before its release", err)
		}
		if try == acquireTries || ctx.Err() != nil || !errors.Is(err, ErrSessionGone) {
			return err
		}
	}
}

// conn takes a connection from db.
func (k *Locker) conn(ctx context.Context, db *sql.DB, name string) (*sql.Conn, error) {
	conn, err := connOf(ctx, db)
	if err != nil {
		return nil, &OpError{Op: "do", Name: name, Err: err}
	}
	return conn, nil
}

// connOf takes a connection from db. Its errors are read by people who wonder
// which of their pools is empty.
func connOf(ctx context.Context, db *sql.DB) (*sql.Conn, error) {
	if db == nil {
		return nil, errNilDB
	}
	if ctx.Err() != nil {
		return nil, endOf(ctx)
	}
	conn, err := db.Conn(ctx)
	if err == nil {
		return conn, nil
	}
	if hasEnded(ctx) && allInUse(db) {
		return nil, fmt.Errorf("no connection for the lock: all %d of the pool (MaxOpenConns) were in use: %w",
			db.Stats().MaxOpenConnections, endOf(ctx))
	}
	return nil, fmt.Errorf("no connection for the lock: %w", err)
}

// hasEnded tells a ctx whose deadline has passed, too: a dialer takes the time itself,
// and may be faster than the timer of ctx.
func hasEnded(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) <= 0
}

func allInUse(db *sql.DB) bool {
	s := db.Stats()
	return s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections
}

// run runs fn under a lock that is held, watches it, and releases it.
func (k *Locker) run(ctx context.Context, lock *Lock, fn func(context.Context, *Lock) error) error {
	stopWatch := k.watch(ctx, lock)
	return lock.run(ctx, fn, stopWatch)
}

// run runs fn under a lock that is held, and releases it.
func (l *Lock) run(ctx context.Context, fn func(context.Context, *Lock) error, before func()) (err error) {
	fnCtx, cancel := l.Context(ctx)
	defer func() {
		cause := context.Cause(fnCtx)
		cancel()
		before()
		err = both(l.Release(ctx), err, cause)
	}()
	return fn(fnCtx, l)
}

// both makes one error of that of the release and that of the function, whose ctx
// may have ended for a cause.
func both(released, err, cause error) error {
	switch {
	case released == nil || errors.Is(released, ErrNotHeld) && !errors.Is(released, ErrClosed):
		return err
	case err == nil || err == cause: //nolint:errorlint // the cause as it is adds nothing
		return released
	}
	return fmt.Errorf("%w; the function returned: %w", released, err)
}

// look is Check for a watch. Where the session is in use, nothing is asked, and the
// watch asks again later.
func (l *Lock) look(ctx context.Context) (asked bool, err error) {
	l.asking.Lock()
	defer l.asking.Unlock()
	l.mu.Lock()
	inUse := l.inUse
	l.mu.Unlock()
	if inUse {
		return false, nil
	}
	return true, l.Check(ctx)
}

// watch finds out when lock is lost, which ends it. A function that is done
// before the first interval is over costs no goroutine. The watch goes on until
// it is stopped, for a function that takes its time to clean up after ctx has
// ended. stop returns when the watch is over.
func (k *Locker) watch(ctx context.Context, lock *Lock) (stop func()) {
	if k.checkInterval <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	over := make(chan struct{})
	first := time.AfterFunc(k.checkInterval, func() {
		defer close(over)
		ticker := time.NewTicker(k.checkInterval)
		defer ticker.Stop()
		for !lock.ended() {
			_, _ = lock.look(ctx) // a loss is remembered
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	return func() {
		cancel()
		if !first.Stop() {
			<-over
		}
	}
}
