package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// pool makes one over its own *sql.DB, as a process of its own has it.
func pool(tb testing.TB, db *sql.DB, b sqllock.Backend, opts ...sqllock.PoolOption) *sqllock.Pool {
	tb.Helper()
	return poolOf(tb, db, sqllock.New(b), opts...)
}

func poolOf(tb testing.TB, db *sql.DB, k *sqllock.Locker, opts ...sqllock.PoolOption) *sqllock.Pool {
	tb.Helper()
	p := sqllock.NewPool(db, k, opts...)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 30*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			tb.Error(err)
		}
		if s := p.Stats(); s.Conns != 0 || s.Held != 0 || s.Waits != 0 {
			tb.Errorf("a closed Pool has %d connections, %d locks, %d waits", s.Conns, s.Held, s.Waits)
		}
	})
	return p
}

// onEachBackend runs a test with every backend on every server; open returns a new
// *sql.DB on one database each time.
func onEachBackend(t *testing.T, test func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB)) {
	t.Helper()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		run := func(name string, db *sql.DB, b func() sqllock.Backend) {
			t.Run(name, func(t *testing.T) {
				name := database(t, db)
				test(t, b, func() *sql.DB { return open(t, s, inDatabase(name)) })
			})
		}
		run("mysqlnamed", schema(t, s), func() sqllock.Backend { return mysqlnamed.New() })
		for _, engine := range engines {
			run(engine, lockTable(t, s, engine), func() sqllock.Backend { return table.New(time.Minute) })
		}
	})
	onEachPG(t, func(c *pgCase) { test(c.T, c.backend, func() *sql.DB { return c.open() }) })
}

// slow skips what takes long on tables with transactions, where others show the same of
// the Pool.
func slow(t *testing.T) {
	t.Helper()
	if strings.HasSuffix(t.Name(), "InnoDB") || strings.HasSuffix(t.Name(), "pgtable") {
		t.Skip("played on MyISAM, and with pgadvisory")
	}
}

// TestPoolOneName: a thousand goroutines and one name on four connections. Each adds
// one to a counter that loses updates without the lock.
func TestPoolOneName(t *testing.T) {
	count := func(t *testing.T, under func(add func()) error) int64 {
		t.Helper()
		var n atomic.Int64
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if err := under(func() {
					was := n.Load()
					runtime.Gosched()
					n.Store(was + 1)
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return n.Load()
	}
	if n := count(t, func(add func()) error { add(); return nil }); n == 1000 {
		t.Error("the control lost no update")
	}
	onEachBackend(t, func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB) {
		db := open()
		db.SetMaxOpenConns(4)
		p := pool(t, db, b())
		name := lockName("one")
		n := count(t, func(add func()) error {
			return p.Do(t.Context(), name, func(context.Context, *sqllock.Lock) error { add(); return nil })
		})
		s := p.Stats()
		if n != 1000 || s.Names[name].Acquired != 1000 {
			t.Errorf("%d updates, and %d locks were granted", n, s.Names[name].Acquired)
		}
		if s.Conns > 2 {
			t.Errorf("the Pool took %d connections", s.Conns)
		}
		if h := s.Names[name].HandedOn; h == 0 || h > 1000-1000/(sqllock.DefaultHandOffs+1) {
			t.Errorf("%d locks were handed on in the process", h)
		}
	})
}

// TestPoolStorm: three processes with many goroutines each on a few names, of which
// some give up, some want sessions of their own, some want several names, some
// panic, while sessions are killed. The counters are without a guard but the lock:
// two holders at a time are a data race.
func TestPoolStorm(t *testing.T) {
	onEachBackend(t, func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB) {
		admin := open()
		names := make([]string, 5)
		counters := make(map[string]*int)
		for i := range names {
			names[i] = lockName(fmt.Sprint("storm", i))
			counters[names[i]] = new(int)
		}
		var mu sync.Mutex
		want := make(map[string]int)
		did := func(name string) {
			*counters[name]++
			mu.Lock()
			want[name]++
			mu.Unlock()
		}
		ctx, stop := context.WithTimeout(t.Context(), 4*time.Second)
		defer stop()
		var wg sync.WaitGroup
		for range 3 {
			db := open()
			db.SetMaxOpenConns(6)
			p := pool(t, db, b())
			for g := range 40 {
				wg.Go(func() {
					for ctx.Err() == nil {
						name := names[rand.N(len(names))]
						ctx, cancel := context.WithTimeout(ctx, time.Duration(1+rand.N(2000))*time.Millisecond)
						var err error
						switch g % 5 {
						case 0:
							var ran bool
							ran, err = p.TryDo(ctx, name, func(context.Context, *sqllock.Lock) error { did(name); return nil })
							if !ran {
								<-time.After(time.Millisecond) // its next turn
							}
						case 1:
							err = p.Do(ctx, name, func(context.Context, *sqllock.Lock) error { did(name); return nil }, sqllock.OwnSession())
						case 2:
							pair := []string{name, names[rand.N(len(names))]}
							err = p.DoAll(ctx, pair, func(_ context.Context, ls sqllock.Locks) error {
								for _, l := range ls {
									did(l.Name())
								}
								return nil
							})
						default:
							err = p.Do(ctx, name, func(context.Context, *sqllock.Lock) error { did(name); return nil })
						}
						cancel()
						if err != nil && !errors.Is(err, sqllock.ErrBusy) && !errors.Is(err, sqllock.ErrPoolTooSmall) && !errors.Is(err, context.DeadlineExceeded) {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		total := 0
		for _, name := range names {
			if *counters[name] != want[name] {
				t.Errorf("%s: %d, want %d", name, *counters[name], want[name])
			}
			total += want[name]
		}
		t.Log(total, "functions")
		k := sqllock.New(b())
		for _, name := range names {
			l := acquire(t, k, conn(t, admin), name)
			release(t, l)
		}
	})
}

func inDatabase(name string) func(*mysql.Config) { return func(c *mysql.Config) { c.DBName = name } }

// TestPoolManyNames: 5,000 names held at a time on a *sql.DB with eight connections,
// of which the application still gets some; each is held on the server.
func TestPoolManyNames(t *testing.T) {
	onEachBackend(t, func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB) {
		slow(t)
		db, other := open(), open()
		db.SetMaxOpenConns(8)
		backend := b()
		p := pool(t, db, backend)
		prefix := lockName("many")
		locks := make([]*sqllock.Lock, 5000)
		var wg sync.WaitGroup
		for g := range 50 {
			wg.Go(func() {
				for i := g; i < len(locks); i += 50 {
					l, err := p.Lock(t.Context(), fmt.Sprint(prefix, i))
					if err != nil {
						t.Error(err)
						return
					}
					locks[i] = l
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for range 4 { // of the application, at a time
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				t.Fatalf("the application wants a transaction: %v", err)
			}
			t.Cleanup(func() { _ = tx.Rollback() })
		}
		s := p.Stats()
		if s.Held != len(locks) || s.Conns < 2 || s.Conns > 4 {
			t.Errorf("%d locks on %d connections", s.Held, s.Conns)
		}
		k, c := sqllock.New(b()), conn(t, other)
		for i := 0; i < len(locks); i += 250 {
			_, err := k.TryLock(t.Context(), c, locks[i].Name())
			wantErr(t, "TryLock by another process", err, sqllock.ErrBusy)
		}
		for _, l := range locks {
			if err := l.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for i := 0; i < len(locks); i += 250 {
			release(t, acquire(t, k, c, locks[i].Name()))
		}
	})
}

// TestPoolLeavesOthersTheirTurn: two processes with a hundred goroutines each on one
// name take turns at it, though each hands it on within itself.
func TestPoolLeavesOthersTheirTurn(t *testing.T) {
	const turns, most = 10, 30000 // a process can have no more than a hundred and one at a time
	onEachBackend(t, func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB) {
		slow(t)
		name := lockName("turns")
		last, changes, functions := -1, 0, 0
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var wg sync.WaitGroup
		for process := range 2 {
			p := pool(t, open(), b())
			for range 100 {
				wg.Go(func() {
					for ctx.Err() == nil {
						err := p.Do(ctx, name, func(context.Context, *sqllock.Lock) error {
							functions++
							if process != last {
								last, changes = process, changes+1
							}
							if changes == turns || functions == most {
								stop()
							}
							return nil
						})
						if err != nil && ctx.Err() == nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		t.Logf("%d turns of %d functions", changes, functions)
		if changes < turns {
			t.Errorf("the processes changed %d times in %d functions, want %d", changes, functions, turns)
		}
	})
}

// TestPoolGuard: a lock with a session of its own guards a transaction; one that
// shares its session is refused with what to do.
func TestPoolGuard(t *testing.T) {
	onEachBackend(t, func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB) {
		db := open()
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY)")
		p := pool(t, db, b())
		work := func(ctx context.Context, l *sqllock.Lock) error {
			return txguard.Run(ctx, l, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO work VALUES (1)")
				return err
			})
		}
		err := p.Do(t.Context(), lockName("guard"), work)
		wantErr(t, "Run with a lock that shares its session", err, txguard.ErrNotBegun)
		wantErr(t, "Run with a lock that shares its session", err, sqllock.ErrUnsupported)
		if err == nil || !strings.Contains(err.Error(), "OwnSession") {
			t.Errorf("the error should say what to do: %v", err)
		}
		if err := p.Do(t.Context(), lockName("guard"), work, sqllock.OwnSession()); err != nil {
			t.Error(err)
		}
		if n := ask[int](t, db, "SELECT COUNT(*) FROM work"); n != 1 {
			t.Errorf("%d rows were committed", n)
		}
	})
}

// TestPoolSeveralNames: two processes transfer between accounts in both directions,
// and never wait for each other in a circle. Two at one account are a data race.
func TestPoolSeveralNames(t *testing.T) {
	onEachBackend(t, func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB) {
		slow(t)
		prefix := lockName("account")
		accounts := make([]int, 6)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for range 2 {
			db := open()
			db.SetMaxOpenConns(8)
			p := pool(t, db, b())
			for range 8 {
				wg.Go(func() {
					for range 20 {
						from, to := rand.N(len(accounts)), rand.N(len(accounts))
						names := []string{fmt.Sprint(prefix, from), fmt.Sprint(prefix, to)}
						err := p.DoAll(ctx, names, func(context.Context, sqllock.Locks) error {
							accounts[from]--
							accounts[to]++
							return nil
						})
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		wg.Wait()
		sum := 0
		for _, a := range accounts {
			sum += a
		}
		if sum != 0 {
			t.Errorf("the sum of all accounts is %d: %v", sum, accounts)
		}
	})
}

// TestPoolTooSmall: too few connections are an error or an event that says so, and
// nobody waits without a word.
func TestPoolTooSmall(t *testing.T) {
	onEachWithPG(t, func(t *testing.T, s *testdb.Server) {
		var db *sql.DB
		var b sqllock.Backend
		if s.Kind == testdb.Postgres {
			db, b = openPG(t, s), pgadvisory.New()
		} else {
			db, b = open(t, s), mysqlnamed.New()
		}
		starved := make(chan error, 10)
		k := sqllock.New(b, sqllock.WithObserver(func(e sqllock.Event) {
			if e.Kind == sqllock.Starved {
				starved <- e.Err
			}
		}))
		p := sqllock.NewPool(db, k)
		name := lockName("small")
		says := func(what string, err error, words ...string) {
			t.Helper()
			wantErr(t, what, err, sqllock.ErrPoolTooSmall)
			for _, w := range words {
				if err != nil && !strings.Contains(err.Error(), w) {
					t.Errorf("%s should say %q: %v", what, w, err)
				}
			}
		}
		db.SetMaxOpenConns(1)
		_, err := p.Lock(t.Context(), name)
		says("a *sql.DB with one connection", err, "MaxOpenConns", "is 1")

		db.SetMaxOpenConns(3) // the Pool may have one of them
		err = p.Do(t.Context(), name, func(ctx context.Context, _ *sqllock.Lock) error {
			_, err := p.Lock(ctx, name)
			wantErr(t, "Lock inside of itself", err, sqllock.ErrHeld)
			_, err = p.Lock(ctx, name+"2")
			return err
		}, sqllock.OwnSession())
		says("a lock inside of one that has the connection", err, "MaxOpenConns")

		// The application has all connections, and would wait for the Pool.
		var txs []*sql.Tx
		for range 3 {
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = tx.Rollback() })
			txs = append(txs, tx)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		failed := make(chan error, 1)
		go func() {
			_, err := p.Lock(ctx, name)
			failed <- err
		}()
		says("the event", <-starved, "3 of 3", "MaxOpenConns")
		if w := p.Snapshot().Waiting; len(w) != 1 || w[0].Problem == "" || !strings.Contains(w[0].By, "TestPoolTooSmall") {
			t.Errorf("the snapshot has %+v", w)
		}
		cancel()
		err = <-failed
		says("Lock in vain", err, "MaxOpenConns")
		wantErr(t, "Lock in vain", err, context.Canceled)
		_ = txs[0].Rollback()
		l, err := p.Lock(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		release(t, l)
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
