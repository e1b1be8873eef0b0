package gocronlock

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/sqllock/go-sqllock/sqllock"
)

// Locker is for gocron.WithDistributedLocker and gocron.WithDistributedJobLocker. It is
// safe for concurrent use.
type Locker struct {
	pool    *sqllock.Pool
	atLeast time.Duration
	opts    []sqllock.LockOption

	mu   sync.Mutex // guards held
	held map[string]*sqllock.Lock
}

var _ gocron.Locker = (*Locker)(nil)

// NewLocker returns a Locker on the locks of pool, which it does not close. Each lock is
// held for atLeast, at the least: twice as long as the clocks of the hosts may differ, and less
// than the time between two ticks. opts are for every lock, such as sqllock.TTL and
// sqllock.KeepAlive; sqllock.Shared must not be one of them, since what is shared excludes
// nobody. It starts nothing. It panics if pool is nil, or atLeast not positive.
func NewLocker(pool *sqllock.Pool, atLeast time.Duration, opts ...sqllock.LockOption) *Locker {
	if pool == nil {
		panic("gocronlock: NewLocker needs a Pool, for example sqllock.NewPool(db, sqllock.New(mysqlnamed.New()))")
	}
	if atLeast <= 0 {
		panic(fmt.Sprintf("gocronlock: NewLocker(%v): the time that a lock is held at least must be positive: twice as long as the clocks of the hosts may differ", atLeast))
	}
	all := append(append([]sqllock.LockOption{}, opts...), sqllock.AtLeast(atLeast))
	return &Locker{pool: pool, atLeast: atLeast, opts: all, held: make(map[string]*sqllock.Lock)}
}

// Lock acquires the lock of a job, and does not wait while somebody else has it: the
// error then matches sqllock.ErrBusy, and gocron skips the run. Other errors, which gocron
// takes in the same way, are those of [sqllock.Pool.TryLock]; among them that of the
// deadline, which is half the time of atLeast. After an error nothing is held.
func (l *Locker) Lock(ctx context.Context, key string) (gocron.Lock, error) {
	// Who asks for longer may be granted the lock after another host has run the job and let go.
	limit := l.atLeast / 2
	start := time.Now()
	short, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	held, err := l.pool.TryLock(short, key, l.opts...)
	if err != nil {
		return nil, fmt.Errorf("gocronlock: the run is skipped: %w", err)
	}
	if took := time.Since(start); took >= limit {
		_ = held.Release(ctx) // what it has to tell, the observer is told
		return nil, fmt.Errorf("gocronlock: the run is skipped: it took %v to lock %q, in which another host may have run it: %w",
			took.Round(time.Millisecond), key, context.DeadlineExceeded)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[key] = held
	return &run{l, key, held}, nil
}

// Context returns a copy of ctx that ends with the lock of the job, too, with an error that
// matches sqllock.ErrLost as its cause if it is lost. It is for the function of a job that
// this Locker has locked, and job is the job's name; elsewhere the ctx has ended, with
// sqllock.ErrNotHeld as its cause. The CancelFunc has to be called when it is not needed
// any more.
func (l *Locker) Context(ctx context.Context, job string) (context.Context, context.CancelFunc) {
	l.mu.Lock()
	held := l.held[job]
	l.mu.Unlock()
	if held != nil {
		return held.Context(ctx)
	}
	ended, cancel := context.WithCancelCause(ctx)
	cancel(fmt.Errorf("gocronlock: Context: %w: no job named %q runs under this Locker", sqllock.ErrNotHeld, job))
	return ended, func() {}
}

// run is the lock of one run of a job.
type run struct {
	locker *Locker
	key    string
	held   *sqllock.Lock
}

// Unlock releases the lock, which works with a ctx that has ended, and returns what
// [sqllock.Lock.Release] does; gocron ignores that.
func (r *run) Unlock(ctx context.Context) error {
	l := r.locker
	l.mu.Lock()
	if l.held[r.key] == r.held {
		delete(l.held, r.key)
	}
	l.mu.Unlock()
	return r.held.Release(ctx)
}
