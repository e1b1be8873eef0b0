package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// pool makes one over its own *sql.DB, as a process of its own has it.
func pool(tb testing.TB, db *sql.DB, b sqllock.Backend, opts ...sqllock.PoolOption) *sqllock.Pool {
	tb.Helper()
	p := sqllock.NewPool(db, sqllock.New(b), opts...)
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
// *sql.DB each time.
func onEachBackend(t *testing.T, test func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB)) {
	t.Helper()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		t.Run("mysqlnamed", func(t *testing.T) {
			test(t, func() sqllock.Backend { return mysqlnamed.New() }, func() *sql.DB { return open(t, s) })
		})
		for _, engine := range engines {
			t.Run(engine, func(t *testing.T) {
				name := database(t, lockTable(t, s, engine))
				test(t, func() sqllock.Backend { return table.New(time.Minute) }, func() *sql.DB { return open(t, s, inDatabase(name)) })
			})
		}
	})
}

// TestPoolOneName: a thousand goroutines and one name on four connections.
func TestPoolOneName(t *testing.T) {
	onEachBackend(t, func(t *testing.T, b func() sqllock.Backend, open func() *sql.DB) {
		db := open()
		db.SetMaxOpenConns(4)
		p := pool(t, db, b())
		name := lockName("one")
		n := 0
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if err := p.Do(t.Context(), name, func(context.Context, *sqllock.Lock) error {
					n++
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s := p.Stats()
		if n != 1000 || s.Names[name].Acquired != 1000 {
			t.Errorf("%d functions have run, and %d locks were granted", n, s.Names[name].Acquired)
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
