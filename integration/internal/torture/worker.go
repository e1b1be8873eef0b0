package torture

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"
)

// IsProcess reports whether this process was started to be one of a run, and has to
// call [Process].
func IsProcess() bool { return os.Getenv(jobEnv) != "" }

// Process books money until in ends, and tells out what it was told.
func Process(ctx context.Context, in io.Reader, out io.Writer) error {
	w := &worker{out: &outbox{to: out}}
	if err := json.Unmarshal([]byte(os.Getenv(jobEnv)), &w.job); err != nil {
		return err
	}
	w.rng = rand.New(rand.NewPCG(w.Seed, 0))
	w.wire.reach, w.wire.cut = w.reach, w.cut
	var err error
	if w.dialect, err = dialectOf(w.Kind); err != nil {
		return err
	}
	w.wire.dialect, w.wire.addr = w.dialect, w.Proxy
	db, err := w.join(w.job, &w.wire, w.rng)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // the process ends
	db.SetMaxIdleConns(4)
	w.db, w.fence = db, txguard.NewFence(db)
	w.lockers = lockers(w.dialect, w.Namespace, func() *sql.DB {
		if w.one(2) {
			return nil
		}
		return db
	})
	go w.in.read(in)
	w.out.put(event{Ready: true})
	for !w.in.done() {
		w.round(ctx)
	}
	return nil
}

// worker is the inside of a process.
type worker struct {
	job
	dialect
	rng      *rand.Rand
	db       *sql.DB
	fence    *txguard.Fence
	lockers  []*sqllock.Locker // by shard
	in       inbox
	out      *outbox
	wire     wire
	attempts int
	current  *attempt
}

// one is true one time out of n.
func (w *worker) one(n int) bool { return w.rng.IntN(n) == 0 }

// pause lasts up to most.
func (w *worker) pause(most time.Duration) { time.Sleep(time.Duration(w.rng.Int64N(int64(most)))) }

// reach waits at a point, if that was ordered.
func (w *worker) reach(at point) {
	if linger, ok := w.in.take(at); ok {
		w.at(at)
		time.Sleep(linger)
	}
}

// cut has a COMMIT be late, if that was ordered.
func (w *worker) cut() (late time.Duration, ok bool) {
	if late, ok = w.in.take(atCut); ok {
		w.at(atCut)
	}
	return late, ok
}

func (w *worker) at(at point) {
	w.out.put(event{At: at, Shard: w.current.shard, Session: w.current.session})
}

// round makes attempts on a shard. On that of others it does not wait: all would
// soon wait for one that is stopped.
func (w *worker) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	shard, visits := w.Home, w.one(4)
	if visits {
		shard = w.rng.IntN(len(w.lockers))
	}
	var err error
	switch {
	case !w.Guarded:
		err = w.withoutGuard(ctx, shard, visits)
	case w.forms()[shard].do:
		err = w.do(ctx, shard, visits)
	default:
		err = w.underLock(ctx, shard, visits)
	}
	if errors.Is(err, txguard.ErrNotBegun) {
		w.pause(20 * time.Millisecond) // the server is not there, or slow
	}
}

// options are those of a guarded transaction.
func (w *worker) options(f form) []txguard.Option {
	tx := w.txOptions()
	opts := []txguard.Option{txguard.WithTxOptions(*tx)}
	if tx.Isolation == sql.LevelSerializable || w.one(4) {
		opts = append(opts, txguard.Retries(2))
	}
	if f.leases != "" && w.one(4) {
		opts = append(opts, txguard.MinTTL(100*time.Millisecond))
	}
	return opts
}

func (w *worker) txOptions() *sql.TxOptions {
	levels := w.levels(w.Guarded)
	return &sql.TxOptions{Isolation: levels[w.rng.IntN(len(levels))]}
}

// impatient is a ctx that sometimes ends at a bad moment.
func (w *worker) impatient(ctx context.Context) (context.Context, context.CancelFunc) {
	if !w.one(50) {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(w.rng.Int64N(int64(5*time.Millisecond))))
}

// do is an attempt by Do or TryDo.
func (w *worker) do(ctx context.Context, shard int, try bool) error {
	f := w.forms()[shard]
	opts := append(w.options(f), txguard.WithEvidence(w.fence))
	a := w.newAttempt(shard)
	if f.leases != "" {
		a.findToken = w.tokenOf(f.leases)
	}
	ctx, cancel := w.impatient(ctx)
	defer cancel()
	if try {
		ran, err := txguard.TryDo(ctx, w.lockers[shard], w.db, name(shard), a.work, opts...)
		if !ran && err == nil {
			w.skip(shard)
			return nil
		}
		return w.tell(ctx, a, err)
	}
	return w.tell(ctx, a, txguard.Do(ctx, w.lockers[shard], w.db, name(shard), a.work, opts...))
}

// underLock makes up to three attempts under one lock.
func (w *worker) underLock(ctx context.Context, shard int, try bool) error {
	f := w.forms()[shard]
	return w.locked(ctx, shard, try, func(lock *sqllock.Lock) error {
		run := func(ctx context.Context, fn txguard.Func, opts ...txguard.Option) error {
			return txguard.Run(ctx, lock, fn, opts...)
		}
		token := lock.Token()
		if f.fenced {
			fenced, err := w.fence.Raise(ctx, lock)
			if err != nil {
				return w.tell(ctx, w.newAttempt(shard), err)
			}
			run, token = fenced.Run, fenced.Token()
		}
		for range 1 + w.rng.IntN(3) {
			a := w.newAttempt(shard)
			a.token = token
			limited, cancel := w.impatient(ctx)
			err := w.tell(ctx, a, run(limited, a.work, w.options(f)...))
			cancel()
			if err != nil {
				return err
			}
			if f.leases != "" && w.one(4) {
				_ = lock.Extend(ctx, ttl) // the next attempt sees what became of it
			}
		}
		return nil
	})
}

func (w *worker) skip(shard int) { w.out.put(event{Shard: shard, Outcome: skipped}) }

// locked calls f under the lock of a shard.
func (w *worker) locked(ctx context.Context, shard int, try bool, f func(*sqllock.Lock) error) error {
	failed := func(err error) error {
		return w.tell(ctx, w.newAttempt(shard), &txguard.OutcomeError{Name: name(shard), Outcome: txguard.ErrNotBegun, Err: err})
	}
	conn, err := w.db.Conn(ctx)
	if err != nil {
		return failed(err)
	}
	defer conn.Close() //nolint:errcheck // back to the pool, or broken
	acquire := w.lockers[shard].Lock
	if try {
		acquire = w.lockers[shard].TryLock
	}
	lock, err := acquire(ctx, conn, name(shard))
	if try && errors.Is(err, sqllock.ErrBusy) {
		w.skip(shard)
		return nil
	}
	if err != nil {
		return failed(err)
	}
	defer lock.Release(ctx) //nolint:errcheck // what was committed under it has been told
	return f(lock)
}

// withoutGuard is the control: the lock is taken, and nothing asks for it at the
// end of a transaction over another connection.
func (w *worker) withoutGuard(ctx context.Context, shard int, try bool) error {
	return w.locked(ctx, shard, try, func(lock *sqllock.Lock) error {
		a := w.newAttempt(shard)
		a.token = lock.Token()
		fail := func(outcome, err error) error {
			return w.tell(ctx, a, &txguard.OutcomeError{Name: name(shard), Outcome: outcome, Err: err})
		}
		tx, err := w.db.BeginTx(context.WithoutCancel(ctx), w.txOptions())
		if err != nil {
			return fail(txguard.ErrNotBegun, err)
		}
		defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to do
		if err := a.work(ctx, tx); err != nil {
			return fail(txguard.ErrRolledBack, err)
		}
		if err := tx.Commit(); err != nil {
			return fail(txguard.ErrUnknown, err)
		}
		return w.tell(ctx, a, nil)
	})
}

// tell writes what became of an attempt, and returns err.
func (w *worker) tell(ctx context.Context, a *attempt, err error) error {
	e := event{Shard: a.shard, Attempt: a.id, Runs: a.runs, Lost: w.wire.lost.Swap(false)}
	var oe *txguard.OutcomeError
	switch {
	case err == nil:
		e.Outcome = committed
	case !errors.As(err, &oe):
		e.Outcome, e.Violation = unknown, fmt.Sprintf("%s: %v is no OutcomeError", a.id, err)
	default:
		e.Outcome = map[error]outcome{
			txguard.ErrNotBegun: notBegun, txguard.ErrRolledBack: rolledBack, txguard.ErrUnguarded: unguarded, txguard.ErrUnknown: unknown,
		}[oe.Outcome]
	}
	if err != nil {
		e.Text = err.Error()
	}
	switch ran := a.runs > 0; {
	case ran && e.Outcome == notBegun:
		e.Violation = fmt.Sprintf("%s: its function has run, and yet: %v", a.id, err)
	case !ran && e.Outcome != notBegun:
		e.Violation = fmt.Sprintf("%s: its function has not run, and yet: %s, %v", a.id, e.Outcome, err)
	}
	if oe != nil && e.Outcome == unknown && oe.Evidence != nil {
		e.Settled = w.settle(ctx, *oe.Evidence)
	}
	w.out.put(e)
	return err
}

// settle asks for longer than txguard does.
func (w *worker) settle(ctx context.Context, e txguard.Evidence) outcome {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	done, err := w.fence.Settle(ctx, e)
	switch {
	case err != nil:
		return ""
	case done:
		return committed
	}
	return rolledBack
}
