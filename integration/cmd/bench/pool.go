package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// poolRows are about sqllock.Pool.
func poolRows() []row {
	atMost := func(ratio float64) *float64 { return &ratio }
	return []row{
		{"Pool.Do / acquire and release on a held Conn", atMost(1.3), poolAgainstConn},
		{"1,000 goroutines on one name, time per grant / raw locks of 32 sessions", atMost(0.2), crowd{1000, 32, 4000, 7}.measure},
		{"watch of 10,000 held locks, share of one core", atMost(0.02), watch{10_000, 8 * time.Second}.measure},
	}
}

func poolAgainstConn(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, (*bench).poolAgainstConn)
}

// withPool is a Pool for the length of f.
func withPool(ctx context.Context, db *sql.DB, locker *sqllock.Locker, f func(*sqllock.Pool) error) (err error) {
	p := sqllock.NewPool(db, locker)
	defer func() { err = errors.Join(err, p.Close(ctx)) }()
	return f(p)
}

func nothing(context.Context, *sqllock.Lock) error { return nil }

func (b *bench) poolAgainstConn() (res result, err error) {
	err = withPool(b.ctx, b.db, b.locker, func(p *sqllock.Pool) error {
		ours, held, err := takeTurns(turns, timed(func() error { return p.Do(b.ctx, name, nothing) }), timed(b.ours))
		if err != nil {
			return err
		}
		res = compare(ours, held, 0.5, "held Conn:")
		return nil
	})
	return res, err
}

// crowd is goroutines that share the grants of one name among them: those of one
// Pool on few connections, and others of a session each.
type crowd struct{ goroutines, sessions, grants, turns int }

func (c crowd) measure(ctx context.Context, s *testdb.Server) (res result, err error) {
	return with(ctx, s, func(b *bench) (result, error) {
		db, err := open(s)
		if err != nil {
			return result{}, err
		}
		defer db.Close() //nolint:errcheck // nothing depends on it
		db.SetMaxOpenConns(4)
		conns := make([]*sql.Conn, c.sessions)
		for i := range conns {
			if conns[i], err = b.db.Conn(ctx); err != nil {
				return result{}, err
			}
			defer conns[i].Close() //nolint:errcheck,gocritic // few of them
		}
		var ours, peer measurement
		err = withPool(ctx, db, b.locker, func(p *sqllock.Pool) error {
			ours, peer, err = takeTurns(
				c.turns,
				timed(func() error {
					return share(c.goroutines, c.grants/c.goroutines, func(_ int, work func()) error {
						return p.Do(ctx, name, func(context.Context, *sqllock.Lock) error { work(); return nil })
					})
				}),
				timed(func() error {
					return share(c.sessions, c.grants/c.sessions, func(i int, work func()) error { return floorOf(s).lock(ctx, conns[i], work) })
				}),
			)
			return err
		})
		if err != nil {
			return result{}, err
		}
		perSecond := func(m measurement) string { return fmt.Sprintf("%.0f grants/s", float64(c.grants)*1e6/m.quantile(0.5)) }
		return result{Ours: perSecond(ours), Peer: "raw: " + perSecond(peer), Ratio: ours.quantile(0.5) / peer.quantile(0.5)}, nil
	})
}

// literalOn is the fastest form of raw statements around work.
func literalOn(ctx context.Context, conn *sql.Conn, work func()) error {
	if err := raw(ctx, conn, "SELECT GET_LOCK("+literal+", 10)"); err != nil {
		return err
	}
	work()
	return raw(ctx, conn, "SELECT RELEASE_LOCK("+literal+")")
}

// share has n goroutines run under times each. The work is to count, which nothing
// but the lock guards.
func share(n, times int, under underLock) error {
	counter := 0
	failed := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for range times {
				if failed[i] = under(i, func() { counter++ }); failed[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errors.Join(failed...), lostUpdates(counter, n*times))
}

func lostUpdates(got, want int) error {
	if got != want {
		return fmt.Errorf("%d grants have counted to %d: no exclusion", want, got)
	}
	return nil
}

// watch is a number of locks that are held while nothing happens, and for how long.
type watch struct {
	names int
	time  time.Duration
}

// measure tells what the process spends more with the locks than without, as a
// share of one core.
func (w watch) measure(ctx context.Context, s *testdb.Server) (res result, err error) {
	var sent atomic.Int64
	db, err := openCounted(s, &sent)
	if err != nil {
		return result{}, err
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	err = withPool(ctx, db, sqllock.New(named(s)), func(p *sqllock.Pool) error {
		if err := p.Do(ctx, name, nothing); err != nil {
			return err
		}
		empty, err := idle(w.time/2, &sent)
		if err != nil {
			return err
		}
		locks, err := hold(ctx, p, w.names)
		defer func() { err = errors.Join(err, free(ctx, locks)) }()
		if err != nil {
			return err
		}
		full, err := idle(w.time, &sent)
		if err != nil {
			return err
		}
		res = result{Ours: full.String(), Peer: "empty Pool: " + empty.String(), Ratio: full.cpu - empty.cpu}
		return lostLocks(locks)
	})
	return res, err
}

// openCounted is open for a pool whose statements are counted: each is a packet.
func openCounted(s *testdb.Server, sent *atomic.Int64) (*sql.DB, error) {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return recorder{conn, func([]byte) { sent.Add(1) }}, err
	}
	if s.Kind == testdb.Postgres {
		return testdb.OpenPostgres(s.DSN, func(c *pgx.ConnConfig) { c.DialFunc = dial })
	}
	return testdb.OpenDB(s.DSN, func(c *mysql.Config) { c.DialFunc = dial })
}

// holders is how many goroutines acquire and release many names.
const holders = 64

// hold acquires n names.
func hold(ctx context.Context, p *sqllock.Pool, n int) (locks []*sqllock.Lock, err error) {
	locks = make([]*sqllock.Lock, n)
	return locks, inParallel(n, func(i int) (err error) {
		locks[i], err = p.Lock(ctx, name+strconv.Itoa(i))
		return err
	})
}

func free(ctx context.Context, locks []*sqllock.Lock) error {
	return inParallel(len(locks), func(i int) error {
		if locks[i] == nil {
			return nil
		}
		return locks[i].Release(ctx)
	})
}

func inParallel(n int, f func(i int) error) error {
	failed := make([]error, holders)
	var wg sync.WaitGroup
	for h := range holders {
		wg.Go(func() {
			for i := h; i < n && failed[h] == nil; i += holders {
				failed[h] = f(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// lostLocks is an error if any lock has ended.
func lostLocks(locks []*sqllock.Lock) error {
	for _, l := range locks {
		select {
		case <-l.Done():
			return fmt.Errorf("%s: %w", l.Name(), l.Err())
		default:
		}
	}
	return nil
}

// load is what a process does, and sends, in a second.
type load struct{ cpu, statements float64 }

func (l load) String() string {
	return fmt.Sprintf("%.2f ms CPU/s, %.1f statements/s", l.cpu*1000, l.statements)
}

// idle measures for d.
func idle(d time.Duration, sent *atomic.Int64) (load, error) {
	before := sent.Load()
	used, err := cpu()
	if err != nil {
		return load{}, err
	}
	start := time.Now()
	time.Sleep(d)
	wall := time.Since(start)
	now, err := cpu()
	return load{float64(now-used) / float64(wall), float64(sent.Load()-before) / wall.Seconds()}, err
}

// cpu is what this process has used.
func cpu() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}
