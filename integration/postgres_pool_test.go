package integration

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/locktest"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// pgBackends are those whose locks a Pool can have on PostgreSQL. on prepares an empty
// database for one.
var pgBackends = []struct {
	name string
	on   func(tb testing.TB, db *sql.DB) func() sqllock.Backend
}{
	{"pgadvisory", func(testing.TB, *sql.DB) func() sqllock.Backend {
		return func() sqllock.Backend { return pgadvisory.New() }
	}},
	{"pgtable", func(tb testing.TB, db *sql.DB) func() sqllock.Backend {
		tb.Helper()
		migratePG(tb, db)
		return func() sqllock.Backend { return pgtable.New(time.Minute) }
	}},
}

func migratePG(tb testing.TB, db *sql.DB) {
	tb.Helper()
	if err := migrations.Up(tb.Context(), db, migrations.Postgres()); err != nil {
		tb.Fatal(err)
	}
}

// onEachWithPG is onEach, with PostgreSQL besides.
func onEachWithPG(t *testing.T, test func(t *testing.T, s *testdb.Server)) {
	t.Helper()
	onEach(t, test)
	t.Run(string(testdb.Postgres), func(t *testing.T) { test(t, postgres(t)) })
}

// pgCase is a kind of lock in an empty database, where no session is left at the end.
type pgCase struct {
	*testing.T

	server  *testdb.Server
	backend func() sqllock.Backend
	direct  *sql.DB // what the test asks over
	name    string  // of the database
}

// onEachPG runs a test with every backend for PostgreSQL.
func onEachPG(t *testing.T, test func(c *pgCase)) {
	t.Helper()
	t.Run(string(testdb.Postgres), func(t *testing.T) {
		s := postgres(t)
		for _, b := range pgBackends {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				test(newPGCase(t, s, b.on))
			})
		}
	})
}

// onPGAdvisory runs a test of what only the locks without a table have.
func onPGAdvisory(t *testing.T, test func(c *pgCase)) {
	t.Helper()
	t.Run(string(testdb.Postgres), func(t *testing.T) { test(newPGCase(t, postgres(t), pgBackends[0].on)) })
}

func newPGCase(t *testing.T, s *testdb.Server, on func(testing.TB, *sql.DB) func() sqllock.Backend) *pgCase {
	t.Helper()
	c := &pgCase{T: t, server: s, direct: pgDatabase(t, s)}
	c.direct.SetMaxIdleConns(1)
	c.backend, c.name = on(t, c.direct), ask[string](t, c.direct, "SELECT current_database()")
	t.Cleanup(func() {
		c := *c
		c.T = nil // its ctx has ended
		waitFor(t, "all sessions to end", func() bool {
			var n int
			err := c.direct.QueryRowContext(context.WithoutCancel(t.Context()), "SELECT count(*) FROM pg_stat_activity"+
				" WHERE datname=current_database() AND backend_type='client backend' AND pid<>pg_backend_pid()").Scan(&n)
			if err != nil {
				t.Fatal(err)
			}
			return n == 0
		})
	})
	return c
}

// open returns a *sql.DB, as a process of its own has it.
func (c *pgCase) open(change ...func(*pgx.ConnConfig)) *sql.DB {
	c.Helper()
	return openPG(c, c.server, append([]func(*pgx.ConnConfig){func(cfg *pgx.ConnConfig) { cfg.Database = c.name }}, change...)...)
}

// pool is that of another process, which may have few connections; 0 is no limit.
func (c *pgCase) pool(conns int, opts ...sqllock.PoolOption) *sqllock.Pool {
	c.Helper()
	db := c.open()
	db.SetMaxOpenConns(conns)
	return pool(c, db, c.backend(), opts...)
}

// holder holds name in another process, until it is told to release.
func (c *pgCase) holder(name string, opts ...sqllock.LockOption) *sqllock.Lock {
	c.Helper()
	return acquire(c, sqllock.New(c.backend()), conn(c, c.direct), name, opts...)
}

// waiting are the sessions that wait for name.
func (c *pgCase) waiting(name string) (ids []int64) {
	c.Helper()
	for id := range strings.FieldsSeq(ask[string](c, c.direct, "SELECT coalesce(string_agg(pid::text,' '),'') FROM pg_locks WHERE NOT granted AND "+pgIsLock, name)) {
		var n int64
		if _, err := fmt.Sscan(id, &n); err != nil {
			c.Fatal(err)
		}
		ids = append(ids, n)
	}
	return ids
}

// waiter waits until one session waits for name, and returns it.
func (c *pgCase) waiter(name string, but ...int64) (id int64) {
	c.Helper()
	waitFor(c.T, "a session that waits", func() bool {
		ids := c.waiting(name)
		if len(ids) > 1 {
			c.Fatalf("%d sessions wait for one name", len(ids))
		}
		if len(ids) == 1 {
			id = ids[0]
		}
		return len(ids) == 1 && !slices.Contains(but, id)
	})
	return id
}

// granted is how many advisory locks are held.
func (c *pgCase) granted() int {
	c.Helper()
	return ask[int](c, c.direct, "SELECT count(*) FROM pg_locks WHERE granted AND locktype='advisory' AND database=(SELECT oid FROM pg_database WHERE datname=current_database())")
}

// free takes the locks in another process, as it can when they are free or are about to
// be.
func (c *pgCase) free(names ...string) {
	c.Helper()
	other := conn(c, c.direct)
	defer other.Close() //nolint:errcheck // it goes back to its pool
	for _, name := range names {
		release(c, acquire(c, sqllock.New(c.backend()), other, name))
	}
}

// result waits for what a goroutine has to say.
func result[T any](t *testing.T, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(30 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

// later calls f in a goroutine.
func later(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// TestPoolPGConnsOfOneName: two processes that take turns at one name need two
// connections each: one that has the lock, and one that waits for it.
func TestPoolPGConnsOfOneName(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		name := lockName("conns")
		ps := []*sqllock.Pool{c.pool(0), c.pool(0)}
		l, err := ps[0].Lock(c.Context(), name)
		for turn := range 10 {
			if err != nil {
				c.Fatal(err)
			}
			before := l
			done := later(func() (err error) {
				l, err = ps[1-turn%2].Lock(c.Context(), name)
				return err
			})
			c.waiter(name)
			release(c, before)
			err = result(c.T, "the lock", done)
		}
		release(c, l)
		for _, p := range ps {
			if n := p.Stats().Conns; n > 3 {
				c.Errorf("a Pool took %d connections for one name", n)
			}
		}
	})
}

// TestPoolPGOneWaiter: of a thousand goroutines that wait for a lock of another process
// one does so on the server. Half of them give up, that one among them, and what has
// waited on the server goes on doing so for the rest.
func TestPoolPGOneWaiter(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		name := lockName("waiter")
		before := c.holder(name)
		p := c.pool(4)
		impatient, giveUp := context.WithCancel(c.Context())
		defer giveUp()
		first := later(func() error {
			_, err := p.Lock(impatient, name)
			return err
		})
		id := c.waiter(name)
		n, gaveUp := 0, new(atomic.Int64)
		var wg sync.WaitGroup
		for i := range 999 {
			ctx := c.Context()
			if i%2 == 0 {
				ctx = impatient
			}
			wg.Go(func() {
				err := p.Do(ctx, name, func(context.Context, *sqllock.Lock) error { n++; return nil })
				if ctx == impatient {
					gaveUp.Add(1)
					wantErr(c, "Do of one who gives up", err, sqllock.ErrBusy, context.Canceled)
				} else if err != nil {
					c.Error(err)
				}
			})
		}
		waitFor(c.T, "a thousand to wait", func() bool { return p.Stats().Waits == 1000 })
		if now := c.waiter(name); now != id {
			c.Errorf("session %d waits, and %d did", now, id)
		}
		if s := p.Stats(); s.Conns > 2 {
			c.Errorf("%d connections, for those who wait for one name", s.Conns)
		}
		giveUp()
		wantErr(c, "Lock of the first", result(c.T, "the first", first), sqllock.ErrBusy, context.Canceled)
		waitFor(c.T, "half of them to leave", func() bool { return gaveUp.Load() == 500 && p.Stats().Waits == 499 })
		if now := c.waiter(name); now != id {
			c.Errorf("session %d waits after its caller has left, and %d did", now, id)
		}
		release(c, before)
		wg.Wait()
		if n != 499 {
			c.Errorf("%d functions, want 499", n)
		}
	})
}

// TestPoolPGWaitEnds: sessions that wait are ended, and the waits go on elsewhere; a wait
// is cancelled, which its caller is told, and those behind him go on.
func TestPoolPGWaitEnds(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		name := lockName("ends")
		before := c.holder(name)
		p := c.pool(0)
		do := func() error {
			return p.Do(c.Context(), name, func(context.Context, *sqllock.Lock) error { return nil })
		}
		first := later(do)
		ids := []int64{c.waiter(name)}
		second := later(do)
		waitFor(c.T, "two to wait", func() bool { return p.Stats().Waits == 2 })
		for range 2 {
			if err := pgKill(c.Context(), c.direct, ids[len(ids)-1]); err != nil {
				c.Fatal(err)
			}
			ids = append(ids, c.waiter(name, ids...))
		}
		if !ask[bool](c, c.direct, "SELECT pg_cancel_backend($1)", ids[2]) {
			c.Error("there was nothing to cancel")
		}
		wantErr(c, "a wait that was cancelled", result(c.T, "the first", first), sqllock.ErrInterrupted)
		c.waiter(name)
		select {
		case err := <-second:
			c.Errorf("the second should still wait: %v", err)
		default:
		}
		release(c, before)
		if err := result(c.T, "the second", second); err != nil {
			c.Error(err)
		}
		c.free(name)
	})
}

// TestPoolPGGivesUpAtTheGrant: callers give up at the moment at which the server grants
// what they wait for. It is theirs, or nobody's.
func TestPoolPGGivesUpAtTheGrant(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		p := c.pool(0)
		k, other := sqllock.New(c.backend()), conn(c, c.direct)
		var granted, left int
		for range 50 {
			name := lockName("moment")
			before := acquire(c, k, other, name)
			ctx, giveUp := context.WithCancel(c.Context())
			var l *sqllock.Lock
			done := later(func() (err error) {
				l, err = p.Lock(ctx, name)
				return err
			})
			c.waiter(name)
			at := rand.N(1500 * time.Microsecond)
			released := later(func() error {
				<-time.After(rand.N(time.Millisecond))
				return before.Release(c.Context())
			})
			<-time.After(at)
			giveUp()
			if err := result(c.T, "the call", done); err != nil {
				left++
				wantErr(c, "Lock", err, sqllock.ErrBusy, context.Canceled)
			} else {
				granted++
				release(c, l)
			}
			if err := result(c.T, "the release", released); err != nil {
				c.Fatal(err)
			}
			release(c, acquire(c, k, other, name))
		}
		waitFor(c.T, "no lock to be left", func() bool { return c.granted() == 0 })
		c.Logf("%d were granted the lock, %d gave up", granted, left)
	})
}

// TestPoolPGYields: a wait gives its connection to a lock with a session of its own,
// tries in intervals from then on, and gets the lock.
func TestPoolPGYields(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		name := lockName("yields")
		before := c.holder(name)
		p := c.pool(4) // one is kept to be shared, so there is one to wait on
		waiting := later(func() error {
			return p.Do(c.Context(), name, func(context.Context, *sqllock.Lock) error { return nil })
		})
		c.waiter(name)
		ctx, cancel := context.WithTimeout(c.Context(), 30*time.Second)
		defer cancel()
		err := p.Do(ctx, lockName("own"), func(context.Context, *sqllock.Lock) error {
			waitFor(c.T, "nobody to wait on the server", func() bool { return len(c.waiting(name)) == 0 })
			release(c, before)
			return result(c.T, "who waits", waiting)
		}, sqllock.OwnSession())
		if err != nil {
			c.Error(err)
		}
	})
}

// TestPoolPGTenThousandNames: 10,000 locks on few sessions, of which one is ended, one is
// told to let go of everything, and one of one lock. These are lost, and no others.
func TestPoolPGTenThousandNames(t *testing.T) {
	t.Parallel()
	onPGAdvisory(t, func(c *pgCase) {
		sessions := new(sync.Map)
		k := sqllock.New(spyPG{pgadvisory.New(), sessions}, sqllock.WithCheckInterval(500*time.Millisecond))
		db := c.open()
		db.SetMaxOpenConns(12)
		p := poolOf(c, db, k)
		locks := make(sqllock.Locks, 0, 10000)
		prefix := lockName("n")
		for len(locks) < cap(locks) {
			names := make([]string, 100)
			for i := range names {
				names[i] = fmt.Sprint(prefix, len(locks)+i)
			}
			more, err := p.LockAll(c.Context(), names)
			if err != nil {
				c.Fatal(err)
			}
			locks = append(locks, more...)
		}
		if n := c.granted(); n != len(locks) {
			c.Errorf("%d locks are held on the server", n)
		}
		on := make(map[int64][]*sqllock.Lock)
		for _, l := range locks {
			on[l.Grant().Session] = append(on[l.Grant().Session], l)
		}
		if len(on) != 3 {
			c.Fatalf("the locks are on %d sessions", len(on))
		}
		var ids []int64
		for id := range on {
			ids = append(ids, id)
		}
		freed := func(id int64, query string, args ...any) {
			c.Helper()
			s, _ := sessions.Load(id)
			if s, ok := s.(*sql.Conn); !ok || !ask[bool](c, s, query, args...) {
				c.Fatalf("%s, on session %d", query, id)
			}
		}
		victim := on[ids[2]][7]
		freed(ids[2], "SELECT pg_advisory_unlock("+pgNumber+") AND pg_advisory_unlock("+pgNumber+")", victim.Name())
		freed(ids[1], "SELECT pg_advisory_unlock_all() IS NOT NULL")
		if err := pgKill(c.Context(), c.direct, ids[0]); err != nil {
			c.Fatal(err)
		}
		lost := func(locks ...*sqllock.Lock) {
			c.Helper()
			for _, l := range locks {
				select {
				case <-l.Done():
					wantErr(c, l.Name(), l.Err(), sqllock.ErrLost)
				case <-time.After(30 * time.Second):
					c.Fatalf("%s should be lost", l.Name())
				}
			}
		}
		lost(append(on[ids[0]], on[ids[1]]...)...)
		for _, l := range on[ids[2]] {
			if err := l.Err(); err != nil && l != victim {
				c.Errorf("%s: %v", l.Name(), err)
			}
		}
		for _, l := range on[ids[2]][:100] {
			if err := l.Release(c.Context()); (err != nil) != (l == victim) {
				c.Errorf("%s: %v", l.Name(), err)
			}
		}
		wantErr(c, "the lock that was freed", victim.Err(), sqllock.ErrLost)
		c.free(on[ids[0]][0].Name(), on[ids[1]][0].Name(), victim.Name())
		if err := pgKill(c.Context(), c.direct, ids[2]); err != nil {
			c.Fatal(err)
		}
		lost(on[ids[2]][100:]...)
	})
}

// queryTracer keeps what pgx sends.
type queryTracer struct{ queries []string }

func (q *queryTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	q.queries = append(q.queries, d.SQL)
	return ctx
}

func (*queryTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestPoolPGWatchPlan: the server looks through its locks once for a thousand grants,
// whatever it thinks of how many there are. A join by a nested loop would take seconds
// where there are thousands, more than a statement may.
func TestPoolPGWatchPlan(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		tracer := &queryTracer{}
		traced := c.open(func(cfg *pgx.ConnConfig) { cfg.Tracer = tracer })
		b, session := c.backend(), conn(c, c.direct)
		w, ok := b.(sqllock.Watcher)
		if !ok {
			c.Skip("it has no watch")
		}
		var grants []sqllock.Grant
		for range 10 {
			g, err := b.Acquire(c.Context(), session, request(lockName("plan")))
			if err != nil {
				c.Fatal(err)
			}
			grants = append(grants, g)
		}
		grants = slices.Repeat(grants, 100)
		tx, err := traced.BeginTx(c.Context(), nil)
		if err != nil {
			c.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // it has done nothing
		begun := len(tracer.queries)
		held, err := w.Watch(c.Context(), tx, grants)
		if err != nil || len(held) != len(grants) || slices.Contains(held, false) || len(tracer.queries) != begun+1 {
			c.Fatalf("Watch: %d of %d, by %q, %v", len(held), len(grants), tracer.queries[begun:], err)
		}
		rows, err := tx.QueryContext(c.Context(), "EXPLAIN (ANALYZE, COSTS OFF) "+tracer.queries[begun], pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			c.Fatal(err)
		}
		defer rows.Close()
		scans := 0
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				c.Fatal(err)
			}
			if !strings.Contains(line, "pg_lock_status") && !strings.Contains(line, "Values Scan") {
				continue
			}
			scans++
			if !strings.Contains(line, " loops=1)") {
				c.Errorf("the plan has %q", line)
			}
		}
		if err := rows.Err(); err != nil || scans != 2 {
			c.Errorf("%d scans, %v", scans, err)
		}
	})
}

// spyPG keeps the sessions by their ids.
type spyPG struct {
	*pgadvisory.Backend

	sessions *sync.Map // of *sql.Conn
}

func (b spyPG) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	g, err := b.Backend.Acquire(ctx, conn, req)
	if err == nil {
		b.sessions.Store(g.Session, conn)
	}
	return g, err
}

func (b spyPG) AcquireAll(ctx context.Context, conn *sql.Conn, reqs []sqllock.Request) ([]sqllock.Grant, error) {
	gs, err := b.Backend.AcquireAll(ctx, conn, reqs)
	if err == nil {
		b.sessions.Store(gs[0].Session, conn)
	}
	return gs, err
}

// TestPoolPGOneOfAFew: one lock of a session is freed on the server. The watch asks about
// one lock of each session at a time, and finds that one. The others go on.
func TestPoolPGOneOfAFew(t *testing.T) {
	t.Parallel()
	onPGAdvisory(t, func(c *pgCase) {
		sessions := new(sync.Map)
		k := sqllock.New(spyPG{pgadvisory.New(), sessions}, sqllock.WithCheckInterval(20*time.Millisecond))
		p := poolOf(c, c.open(), k)
		locks := make([]*sqllock.Lock, 4)
		for i := range locks {
			var err error
			if locks[i], err = p.Lock(c.Context(), lockName("few")); err != nil {
				c.Fatal(err)
			}
		}
		s, _ := sessions.Load(locks[0].Grant().Session)
		session, ok := s.(*sql.Conn)
		if !ok {
			c.Fatal("no session")
		}
		do(c, session, "SELECT pg_advisory_unlock("+pgNumber+"),pg_advisory_unlock("+pgNumber+")", locks[0].Name())
		c.holder(locks[0].Name()) // another process has it now
		select {
		case <-locks[0].Done():
			wantErr(c, "the lock that was freed", locks[0].Err(), sqllock.ErrLost)
		case <-time.After(30 * time.Second):
			c.Error("the watch does not find the lock that was freed")
		}
		for _, l := range locks[1:] {
			release(c, l)
		}
	})
}

// TestPoolPGGroups: all locks of a call, on one session, or none, for as many as one
// statement takes and more.
func TestPoolPGGroups(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		p := c.pool(0)
		sizes := []int{1, 2, 16, 17, 33} // pgadvisory takes sixteen in one statement
		if _, leases := c.backend().(sqllock.Leaser); leases {
			sizes = []int{17}
		}
		for _, n := range sizes {
			names := make([]string, n)
			for i := range names {
				names[i] = lockName("group")
			}
			locks, err := p.LockAll(c.Context(), append(names, names[0])) // one of them twice
			if err != nil {
				c.Fatal(err)
			}
			if held := c.granted(); len(locks) != n || held != n {
				c.Errorf("LockAll of %d: %d locks, and %d on the server", n, len(locks), held)
			}
			for _, l := range locks {
				if l.Grant().Session != locks[0].Grant().Session {
					c.Errorf("LockAll of %d is on several sessions", n)
				}
			}
			if err := locks.Release(c.Context()); err != nil {
				c.Error(err)
			}
			slices.Sort(names)
			for _, i := range []int{0, n - 1} {
				before := c.holder(names[i])
				_, err := p.TryLockAll(c.Context(), names)
				wantErr(c, "TryLockAll where one is taken", err, sqllock.ErrBusy)
				ran, err := p.TryDoAll(c.Context(), names, func(context.Context, sqllock.Locks) error { return nil })
				if ran || err != nil {
					c.Errorf("TryDoAll where one is taken: %t, %v", ran, err)
				}
				if held := c.granted(); held != 1 {
					c.Errorf("TryLockAll of %d: %d are held", n, held)
				}
				ctx, cancel := context.WithCancel(c.Context())
				gone := later(func() error { _, err := p.LockAll(ctx, names); return err })
				c.waiter(names[i])
				if held := c.granted(); held != i+1 {
					c.Errorf("LockAll of %d waits for number %d, and %d are held", n, i, held)
				}
				cancel()
				wantErr(c, "LockAll by one who gives up", result(c.T, "LockAll", gone), sqllock.ErrBusy, context.Canceled)
				waitFor(c.T, "what it had to be free", func() bool { return c.granted() == 1 && p.Stats().Waits == 0 })
				done := later(func() error {
					return p.DoAll(c.Context(), names, func(_ context.Context, locks sqllock.Locks) error {
						if held := c.granted(); len(locks) != n || held != n {
							return fmt.Errorf("%d locks, and %d on the server", len(locks), held)
						}
						return nil
					})
				})
				c.waiter(names[i])
				release(c, before)
				if err := result(c.T, "DoAll", done); err != nil {
					c.Error(err)
				}
			}
		}
		if held := c.granted(); held != 0 {
			c.Errorf("%d locks are left", held)
		}
	})
}

// TestPoolPGGroupStorm: two processes lock sets that overlap, of one to twenty of two
// dozen accounts, in whatever order, and move one from the first to the last. Two at one
// account are a data race; a circle would be a deadlock of the server, or last for ever.
func TestPoolPGGroupStorm(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
		defer cancel()
		prefix := lockName("account")
		accounts := make([]int, 24)
		var moved, busy atomic.Int64
		rounds := 12
		if _, leases := c.backend().(sqllock.Leaser); leases {
			rounds = 4 // which acquire one by one, in a transaction each
		}
		var wg sync.WaitGroup
		for range 2 {
			p := c.pool(8)
			for g := range 6 {
				wg.Go(func() {
					for range rounds {
						set := rand.Perm(len(accounts))[:1+rand.N(20)]
						names := make([]string, len(set))
						for i, account := range set {
							names[i] = fmt.Sprint(prefix, account)
						}
						move := func(context.Context, sqllock.Locks) error {
							for _, account := range set {
								accounts[account]++
								runtime.Gosched()
								accounts[account]--
							}
							accounts[set[0]]--
							accounts[set[len(set)-1]]++
							moved.Add(1)
							return nil
						}
						ran := true
						var err error
						if g == 0 {
							ran, err = p.TryDoAll(ctx, names, move)
						} else {
							err = p.DoAll(ctx, names, move)
						}
						if err != nil {
							c.Error(err)
							return
						}
						if !ran {
							busy.Add(1)
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
		if sum != 0 || moved.Load()+busy.Load() != int64(2*6*rounds) {
			c.Errorf("the sum is %d after %d moves, and %d that were not made: %v", sum, moved.Load(), busy.Load(), accounts)
		}
	})
}

// TestPoolPGAtLeast: a lock is held for its time though its function has returned, in
// face of another process, and of the end of the Pool.
func TestPoolPGAtLeast(t *testing.T) {
	t.Parallel()
	const least = 400 * time.Millisecond
	onEachPG(t, func(c *pgCase) {
		p, other := c.pool(0), c.pool(0)
		name := lockName("least")
		var start time.Time
		for _, opts := range [][]sqllock.LockOption{nil, {sqllock.OwnSession()}} {
			err := p.Do(c.Context(), name, func(context.Context, *sqllock.Lock) error {
				start = time.Now()
				return nil
			}, append(opts, sqllock.AtLeast(least))...)
			if err != nil {
				c.Error(err)
			}
			if s := p.Snapshot().Held; len(s) != 1 || !s[0].Released || s[0].Name != name {
				c.Errorf("the snapshot has %+v", s)
			}
			for what, q := range map[string]*sqllock.Pool{"the process": p, "another process": other} {
				ran, err := q.TryDo(c.Context(), name, func(context.Context, *sqllock.Lock) error { return nil })
				if (ran || err != nil) && time.Since(start) < least {
					c.Errorf("TryDo by %s: %t, %v", what, ran, err)
				}
			}
			err = other.Do(c.Context(), name, func(context.Context, *sqllock.Lock) error {
				if passed := time.Since(start); passed < least-50*time.Millisecond { // the grant was before start
					c.Errorf("another process has the lock after %v", passed)
				}
				return nil
			})
			if err != nil {
				c.Error(err)
			}
		}
		l, err := p.Lock(c.Context(), name, sqllock.AtLeast(least))
		if err != nil {
			c.Fatal(err)
		}
		start = time.Now()
		release(c, l)
		if err := p.Close(c.Context()); err != nil {
			c.Error(err)
		}
		if passed := time.Since(start); passed < least-50*time.Millisecond {
			c.Errorf("Close has returned after %v", passed)
		}
		c.free(name)
	})
}

// TestPoolPGNoLeases: KeepAlive and TTL are refused by locks that have no TTL.
func TestPoolPGNoLeases(t *testing.T) {
	t.Parallel()
	onPGAdvisory(t, func(c *pgCase) {
		p, name := c.pool(0), lockName("lease")
		for what, o := range map[string]sqllock.LockOption{"KeepAlive": sqllock.KeepAlive(time.Hour), "TTL": sqllock.TTL(time.Hour)} {
			_, err := p.Lock(c.Context(), name, o)
			wantErr(c, what, err, sqllock.ErrUnsupported)
			err = p.DoAll(c.Context(), []string{name, name + "2"}, func(context.Context, sqllock.Locks) error { return nil }, o)
			wantErr(c, what+" of several", err, sqllock.ErrUnsupported)
		}
		if s := p.Stats(); s.Conns != 0 || s.Held != 0 {
			c.Errorf("%+v after what was refused", s)
		}
	})
}

// TestPoolPGShown: what Stats and Snapshot say is what the server has, whatever the names.
func TestPoolPGShown(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		p := c.pool(0)
		var locks sqllock.Locks
		for _, name := range locktest.OddNames() {
			l, err := p.Lock(c.Context(), name)
			if err != nil {
				c.Fatalf("%q: %v", name, err)
			}
			locks = append(locks, l)
		}
		if n := c.granted(); n != len(locks) {
			c.Errorf("%d locks on the server, want %d", n, len(locks))
		}
		before := c.holder("awaited")
		done := make(chan error, 2)
		call := func() {
			done <- p.Do(c.Context(), "awaited", func(context.Context, *sqllock.Lock) error { return nil })
		}
		go call()
		c.waiter("awaited")
		go call()
		waitFor(c.T, "two to wait", func() bool { return p.Stats().Waits == 2 })
		s, stats := p.Snapshot(), p.Stats()
		if len(s.Held) != len(locks) || stats.Held != len(locks) || stats.Conns != 2 || len(s.Waiting) != 2 {
			c.Fatalf("%d of %d locks in the snapshot, %d waits, %+v", len(s.Held), len(locks), len(s.Waiting), stats)
		}
		for i, h := range s.Held {
			if h.Name != locks[i].Name() || h.Sharing != len(locks)-1 || !strings.Contains(h.By, "TestPoolPGShown") ||
				h.Session != locks[i].Grant().Session || h.Token != locks[i].Token() || h.Released || h.Lost {
				c.Errorf("%q: %+v", locks[i].Name(), h)
			}
			if n := ask[int](c, c.direct, "SELECT count(*) FROM pg_locks WHERE granted AND pid=$2 AND "+pgIsLock, locks[i].Grant().Key, h.Session); n != 1 {
				c.Errorf("session %d does not have %q", h.Session, h.Name)
			}
		}
		if w := s.Waiting[0]; w.Name != "awaited" || w.Holder != "another process" || w.Problem != "" {
			c.Errorf("who waits on the server: %+v", w)
		}
		if w := s.Waiting[1]; !strings.Contains(w.Holder, "TestPoolPGShown") {
			c.Errorf("who waits behind: %+v", w)
		}
		h, err := sqllock.New(c.backend()).Holder(c.Context(), c.direct, locks[0].Name())
		if err != nil || h.Session != s.Held[0].Session {
			c.Errorf("the holder is %+v, %v", h, err)
		}
		release(c, before)
		for range 2 {
			if err := result(c.T, "Do", done); err != nil {
				c.Error(err)
			}
		}
		if err := locks.Release(c.Context()); err != nil {
			c.Error(err)
		}
		for name, n := range p.Stats().Names {
			want := int64(1)
			if name == "awaited" {
				want = 2
			}
			if n.Acquired != want || n.Released != want || n.Lost != 0 || n.Held <= 0 {
				c.Errorf("%q: %+v", name, n)
			}
		}
	})
}

// TestPoolPGClose: Close ends waits on the server at once, waits for functions while its
// ctx allows, and then takes what they have. Nothing is left on the server.
func TestPoolPGClose(t *testing.T) {
	t.Parallel()
	onEachPG(t, func(c *pgCase) {
		db := c.open()
		p := sqllock.NewPool(db, sqllock.New(c.backend()))
		awaited, shared, own := lockName("awaited"), lockName("shared"), lockName("own")
		before := c.holder(awaited)
		var waits []<-chan error
		waits = append(waits, later(func() error { _, err := p.Lock(c.Context(), awaited); return err }))
		c.waiter(awaited)
		waits = append(waits,
			later(func() error { _, err := p.Lock(c.Context(), awaited); return err }),
			later(func() error { _, err := p.LockAll(c.Context(), []string{awaited, lockName("free")}); return err }))
		in := make(chan struct{})
		function := func(ctx context.Context, _ *sqllock.Lock) error {
			in <- struct{}{}
			<-ctx.Done()
			return context.Cause(ctx)
		}
		functions := []<-chan error{
			later(func() error { return p.Do(c.Context(), shared, function) }),
			later(func() error { return p.Do(c.Context(), own, function, sqllock.OwnSession()) }),
		}
		for range functions {
			result(c.T, "the functions", in)
		}
		waitFor(c.T, "all to wait", func() bool { return p.Stats().Waits == 3 })
		ctx, cancel := context.WithCancel(c.Context())
		closed := later(func() error { return p.Close(ctx) })
		for _, w := range waits {
			wantErr(c, "a call that waits when the Pool is closed", result(c.T, "a wait", w), sqllock.ErrClosed)
		}
		waitFor(c.T, "nobody to wait on the server", func() bool { return len(c.waiting(awaited)) == 0 })
		select {
		case err := <-closed:
			c.Errorf("Close has returned while functions ran: %v", err)
		default:
		}
		if n := c.granted(); n != 3 {
			c.Errorf("%d locks are held, want 3", n)
		}
		cancel()
		err := result(c.T, "Close", closed)
		wantErr(c, "Close", err, context.Canceled)
		for _, name := range []string{shared, own} {
			if err == nil || !strings.Contains(err.Error(), name) {
				c.Errorf("the error should name %s: %v", name, err)
			}
		}
		for _, f := range functions {
			wantErr(c, "a function", result(c.T, "a function", f), sqllock.ErrClosed)
		}
		if n := c.granted(); n != 1 {
			c.Errorf("%d locks are held after Close, want that of another process", n)
		}
		if s := db.Stats(); s.InUse != 0 || p.Stats().Conns != 0 {
			c.Errorf("%d connections are in use, %d by the Pool", s.InUse, p.Stats().Conns)
		}
		_, err = p.TryLock(c.Context(), own)
		wantErr(c, "TryLock after Close", err, sqllock.ErrClosed)
		release(c, before)
		c.free(awaited, shared, own)
	})
}
