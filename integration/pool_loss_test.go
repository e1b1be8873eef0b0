package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// lossNamed, lossTable, lossPG and lossPGTable count what the watch of a Pool asks.
type lossNamed struct {
	*mysqlnamed.Backend

	rounds *atomic.Int64
}

func (b lossNamed) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) ([]bool, error) {
	b.rounds.Add(1)
	return b.Backend.Watch(ctx, q, grants)
}

type lossTable struct {
	*table.Backend

	rounds *atomic.Int64
}

func (b lossTable) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) ([]bool, error) {
	b.rounds.Add(1)
	return b.Backend.Watch(ctx, q, grants)
}

// lossPG has the watch take sessions for others, too, as if those had their ids.
type lossPG struct {
	*pgadvisory.Backend

	rounds *atomic.Int64
	others *sync.Map // int64 by int64
}

func (b lossPG) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) ([]bool, error) {
	b.rounds.Add(1)
	return b.Backend.Watch(ctx, q, ofOthers(b.others, grants))
}

func ofOthers(others *sync.Map, grants []sqllock.Grant) []sqllock.Grant {
	grants = slices.Clone(grants)
	for i, g := range grants {
		if other, ok := others.Load(g.Session); ok {
			grants[i].Session, _ = other.(int64)
		}
	}
	return grants
}

type lossPGTable struct {
	*pgtable.Backend

	rounds *atomic.Int64
	others *sync.Map
}

func (b lossPGTable) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) ([]bool, error) {
	b.rounds.Add(1)
	return b.Backend.Watch(ctx, q, ofOthers(b.others, grants))
}

// lossServer is a server, and a kind of lock there.
type lossServer struct {
	*testing.T

	server *testdb.Server
	direct *sql.DB // what the test asks over
	schema string
	engine string        // of the lock table, "" for locks without one
	rounds *atomic.Int64 // questions of the watches
	writes *atomic.Int64 // of all connections to a PostgreSQL, but for direct
	others *sync.Map     // of lossPG
}

func newLossServer(t *testing.T, s *testdb.Server, engine string) *lossServer {
	t.Helper()
	f := &lossServer{T: t, server: s, engine: engine, rounds: new(atomic.Int64), writes: new(atomic.Int64), others: new(sync.Map)}
	if f.isPG() {
		f.direct = pgDatabase(t, s)
		f.schema = ask[string](t, f.direct, "SELECT current_database()")
		if engine != "" {
			migratePG(t, f.direct)
		}
		return f
	}
	oneTrip := func(c *mysql.Config) { c.InterpolateParams = true }
	if engine == "" {
		f.direct = schema(t, s, oneTrip)
	} else {
		f.direct = lockTable(t, s, engine, oneTrip)
	}
	f.schema = database(t, f.direct)
	return f
}

// lossEngines are those of engines that a server of the kind has. On PostgreSQL MyISAM
// stands for its only one.
func lossEngines(kind testdb.Kind, engines ...string) []string {
	if kind == testdb.Postgres {
		engines = slices.DeleteFunc(slices.Clone(engines), func(engine string) bool { return engine == "InnoDB" })
	}
	return engines
}

// onEachLoss runs a test on each server, at the same time, with locks that need no
// table, and with those of one.
func onEachLoss(t *testing.T, test func(f *lossServer)) {
	t.Helper()
	onEachWithPG(t, func(t *testing.T, s *testdb.Server) {
		t.Parallel()
		for _, engine := range lossEngines(s.Kind, "", "MyISAM") {
			f := newLossServer(t, s, engine)
			t.Run(f.what(), func(t *testing.T) { test(f.on(t)) })
		}
	})
}

// onEachLossAtOnce has a test that waits for long do so for all kinds of locks at a
// time.
func onEachLossAtOnce(t *testing.T, test func(t *testing.T, all []*lossServer), engines ...string) {
	t.Helper()
	onEachWithPG(t, func(t *testing.T, s *testdb.Server) {
		t.Parallel()
		var all []*lossServer
		for _, engine := range lossEngines(s.Kind, engines...) {
			all = append(all, newLossServer(t, s, engine))
		}
		test(t, all)
	})
}

func (f *lossServer) isPG() bool { return f.server.Kind == testdb.Postgres }

func (f *lossServer) what() string {
	switch {
	case f.isPG() && f.engine == "":
		return "pgadvisory"
	case f.isPG():
		return "pgtable"
	case f.engine == "":
		return "mysqlnamed"
	}
	return "table of " + f.engine
}

// on is f for a subtest, or for another Pool whose watch is counted apart.
func (f *lossServer) on(t *testing.T) *lossServer {
	t.Helper()
	g := *f
	g.T = t
	g.rounds = new(atomic.Int64)
	return &g
}

func (f *lossServer) open() *sql.DB {
	f.Helper()
	return f.openWith("", nil)
}

// openWith is open at another address, if that is not "", with settings for the sessions.
func (f *lossServer) openWith(addr string, settings map[string]string) *sql.DB {
	f.Helper()
	if f.isPG() {
		return openPG(f, f.server, func(c *pgx.ConnConfig) {
			c.Database = f.schema
			maps.Copy(c.RuntimeParams, settings)
			dial := new(net.Dialer)
			c.DialFunc = func(ctx context.Context, network, to string) (net.Conn, error) {
				if addr != "" {
					to = addr
				}
				conn, err := dial.DialContext(ctx, network, to)
				return countingConn{conn, f.writes}, err
			}
		})
	}
	return open(f, f.server, func(c *mysql.Config) {
		c.DBName, c.Params = f.schema, settings
		if addr != "" {
			c.Addr = addr
		}
	})
}

func (f *lossServer) addr() string {
	f.Helper()
	if f.isPG() {
		cfg, err := pgx.ParseConfig(f.server.DSN)
		if err != nil {
			f.Fatal(err)
		}
		return net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
	}
	cfg, err := mysql.ParseDSN(f.server.DSN)
	if err != nil {
		f.Fatal(err)
	}
	return cfg.Addr
}

func (f *lossServer) locker(opts ...sqllock.Option) *sqllock.Locker {
	switch {
	case f.isPG() && f.engine == "":
		return sqllock.New(lossPG{pgadvisory.New(), f.rounds, f.others}, opts...)
	case f.isPG():
		return sqllock.New(lossPGTable{pgtable.New(time.Hour), f.rounds, f.others}, opts...)
	case f.engine == "":
		return sqllock.New(lossNamed{mysqlnamed.New(), f.rounds}, opts...)
	}
	return sqllock.New(lossTable{table.New(time.Hour), f.rounds}, opts...)
}

func (f *lossServer) kill(session int64) {
	f.Helper()
	kill := mysqlKill
	if f.isPG() {
		kill = pgKill
	}
	if err := kill(f.Context(), f.direct, session); err != nil {
		f.Fatal(err)
	}
}

// waiter waits until one session waits for the lock.
func (f *lossServer) waiter(name string) {
	f.Helper()
	if !f.isPG() {
		waiters(f.T, f.direct, name, 1)
		return
	}
	waitFor(f.T, "a session that waits", func() bool {
		n, err := pgWaiters(f.Context(), f.direct, name)
		if err != nil {
			f.Fatal(err)
		}
		return n == 1
	})
}

// pool is closed at the end of the test, when all locks have to be free.
func (f *lossServer) pool(db *sql.DB, interval time.Duration, opts ...sqllock.PoolOption) *sqllock.Pool {
	f.Helper()
	return f.poolOf(db, f.locker(sqllock.WithCheckInterval(interval)), opts...)
}

func (f *lossServer) poolOf(db *sql.DB, k *sqllock.Locker, opts ...sqllock.PoolOption) *sqllock.Pool {
	f.Helper()
	p := sqllock.NewPool(db, k, opts...)
	f.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.Context()), 30*time.Second)
		defer cancel()
		// A statement that is not answered has a bound of five seconds.
		var err error
		for err = p.Close(ctx); err != nil && ctx.Err() == nil; err = p.Close(ctx) {
		}
		if err != nil {
			f.Errorf("%v; held: %+v", err, p.Snapshot())
		}
	})
	return p
}

// lossHold is a Do whose function waits until it is told to return.
type lossHold struct {
	f       *lossServer
	name    string
	lock    *sqllock.Lock
	ctx     context.Context //nolint:containedctx // of the function
	ready   chan struct{}
	stop    func()
	stopped chan struct{}
	session int64         // that has the lock, by the server
	lost    chan struct{} // closed when ctx has ended
	began   time.Time     // when the function did
	at      time.Time     // when ctx ended
	done    chan struct{}
	err     error // of Do
}

// lossFunc is the function of a Do, which calls wait.
type lossFunc func(ctx context.Context, l *sqllock.Lock, wait func()) error

// hold starts a Do. Its function waits at once, or where inside calls wait.
func (f *lossServer) hold(p *sqllock.Pool, name string, inside lossFunc, opts ...sqllock.LockOption) *lossHold {
	f.Helper()
	h := &lossHold{f: f, name: name, ready: make(chan struct{}), stopped: make(chan struct{}), lost: make(chan struct{}), done: make(chan struct{})}
	h.stop = sync.OnceFunc(func() { close(h.stopped) })
	if inside == nil {
		inside = func(_ context.Context, _ *sqllock.Lock, wait func()) error {
			wait()
			return nil
		}
	}
	go func() {
		defer close(h.done)
		h.err = p.Do(context.WithoutCancel(f.Context()), name, func(ctx context.Context, l *sqllock.Lock) error {
			h.lock, h.ctx, h.began = l, ctx, time.Now()
			return inside(ctx, l, func() {
				close(h.ready)
				select {
				case <-ctx.Done():
					h.at = time.Now()
					close(h.lost)
					<-h.stopped
				case <-h.stopped:
				}
			})
		}, opts...)
	}()
	f.Cleanup(func() {
		h.stop()
		<-h.done
	})
	return h
}

// held is hold, and waits until the function runs.
func (f *lossServer) held(p *sqllock.Pool, what string, inside lossFunc, opts ...sqllock.LockOption) *lossHold {
	f.Helper()
	return f.hold(p, lockName(what), inside, opts...).await()
}

func (h *lossHold) await() *lossHold {
	h.f.Helper()
	select {
	case <-h.ready:
	case <-h.done:
		h.f.Fatalf("Do has returned: %v", h.err)
	case <-time.After(30 * time.Second):
		h.f.Fatalf("Do of %s waited in vain", h.name)
	}
	h.session = h.f.user(h.name)
	return h
}

// user is the session that has the lock, 0 if none has.
func (f *lossServer) user(name string) int64 {
	f.Helper()
	if f.isPG() {
		return ask[sql.NullInt64](f, f.direct, "SELECT max(pid) FROM pg_locks WHERE granted AND "+pgIsLock, name).Int64
	}
	return ask[sql.NullInt64](f, f.direct, "SELECT IS_USED_LOCK(?)", name).Int64
}

func (f *lossServer) many(p *sqllock.Pool, n int, opts ...sqllock.LockOption) []*lossHold {
	f.Helper()
	all := make([]*lossHold, n)
	for i := range all {
		all[i] = f.hold(p, lockName("shared"), nil, opts...)
	}
	for _, h := range all {
		h.await()
	}
	return all
}

// busy has the session of a lock in a transaction, with rows of a query open.
func busy(ctx context.Context, l *sqllock.Lock, wait func()) error {
	return l.Use(func(c *sql.Conn) error {
		tx, err := c.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() //nolint:errcheck // it is over, or its session is
		rows, err := tx.QueryContext(ctx, "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3")
		if err != nil {
			return err
		}
		defer rows.Close()
		rows.Next()
		wait()
		n := 1
		for rows.Next() {
			n++
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		if n != 3 {
			return fmt.Errorf("%d rows, want 3", n)
		}
		if _, err := tx.ExecContext(ctx, "SELECT 1"); err != nil {
			return err
		}
		return tx.Commit()
	})
}

// isHeld asks the server whether its session has the lock.
func (h *lossHold) isHeld() bool {
	h.f.Helper()
	switch {
	case h.f.engine == "":
		return h.f.user(h.name) == h.session
	case h.f.isPG():
		return h.f.user(h.name) == h.session && ask[bool](h.f, h.f.direct,
			"SELECT count(*)=1 FROM shared_locks WHERE name=$1 AND token=$2 AND connection_id=$3", h.name, h.lock.Token(), h.session)
	}
	return ask[bool](h.f, h.f.direct, "SELECT COUNT(*) FROM shared_locks WHERE name=? AND token=? AND connection_id=IS_USED_LOCK(?) AND connection_id=?",
		h.name, h.lock.Token(), h.name, h.session)
}

// wantAllHeld fails the test if a lock is lost, on the server or here.
func wantAllHeld(t *testing.T, all ...*lossHold) {
	t.Helper()
	var wrong []string
	for _, h := range all {
		if h.ctx.Err() != nil {
			wrong = append(wrong, fmt.Sprintf("the ctx of %s has ended: %v", h.name, context.Cause(h.ctx)))
		} else if !h.isHeld() {
			wrong = append(wrong, fmt.Sprintf("%s is not held by session %d", h.name, h.session))
		}
	}
	few(t, "locks should be held", len(all), wrong)
}

// few shows the first of many errors.
func few(t *testing.T, what string, of int, wrong []string) {
	t.Helper()
	if len(wrong) > 0 {
		t.Errorf("%d %s, and %d are not: %s", of, what, len(wrong), strings.Join(wrong[:min(len(wrong), 3)], "; "))
	}
}

// wantAllLost waits until the ctxs end, and has the functions return.
func wantAllLost(t *testing.T, since time.Time, all ...*lossHold) (took []time.Duration) {
	t.Helper()
	for _, h := range all {
		select {
		case <-h.lost:
			took = append(took, h.at.Sub(since))
			wantErr(t, "the cause of "+h.name, context.Cause(h.ctx), sqllock.ErrLost)
		case <-time.After(30 * time.Second):
			t.Fatalf("the ctx of %s has not ended", h.name)
		}
	}
	for _, h := range all {
		h.stop()
		select {
		case <-h.done:
			wantErr(t, "Do of "+h.name, h.err, sqllock.ErrLost)
			if op := new(sqllock.OpError); !errors.As(h.err, &op) || op.Name != h.name {
				t.Errorf("the error of %s does not name it: %v", h.name, h.err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("Do of %s hangs after its lock was lost", h.name)
		}
	}
	slices.Sort(took)
	return took
}

func spread(took []time.Duration) string {
	return fmt.Sprintf("p50 %v, max %v", took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
}

// wantReleased has the functions return, and wants no error.
func wantReleased(t *testing.T, all ...*lossHold) {
	t.Helper()
	var wrong []string
	for _, h := range all {
		h.stop()
		<-h.done
		if h.err != nil {
			wrong = append(wrong, fmt.Sprintf("Do of %s: %v", h.name, h.err))
		}
	}
	few(t, "locks should be released", len(all), wrong)
}

// looks waits until the watch has asked n times more.
func (f *lossServer) looks(n int64) {
	f.Helper()
	until := f.rounds.Load() + n
	waitFor(f.T, "questions of the watch", func() bool { return f.rounds.Load() >= until })
}

// again acquires what was lost, in the Pool that had lost it.
func again(t *testing.T, p *sqllock.Pool, all ...*lossHold) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, h := range all {
		err := p.Do(ctx, h.name, func(_ context.Context, l *sqllock.Lock) error {
			if h.f.user(l.Name()) == h.session {
				return fmt.Errorf("it was granted to the session that was lost, %d", h.session)
			}
			return nil
		})
		if err != nil {
			t.Errorf("Do after the loss: %v", err)
		}
	}
}

// contended is a lock that had to wait, which it does on a session that it then shares.
func (f *lossServer) contended(p *sqllock.Pool) *lossHold {
	f.Helper()
	name := lockName("contended")
	before := acquire(f, f.locker(), conn(f, f.open()), name)
	h := f.hold(p, name, nil)
	f.waiter(name)
	release(f, before)
	return h.await()
}

// TestPoolKill ends sessions by KILL: one that many locks share, one of an idle lock,
// and one that is in use.
func TestPoolKill(t *testing.T) {
	t.Parallel()
	onEachLoss(t, func(f *lossServer) {
		t := f.T
		p := f.pool(f.open(), 50*time.Millisecond)
		shared, another := f.many(p, 50), f.contended(p)
		idle, spared := f.held(p, "idle", nil, sqllock.OwnSession()), f.held(p, "spared", nil, sqllock.OwnSession())
		inUse, sparedInUse := f.held(p, "in-use", busy, sqllock.OwnSession()), f.held(p, "spared-in-use", busy, sqllock.OwnSession())
		// Idle sessions are asked themselves every few rounds.
		f.looks(10)
		wantAllHeld(t, append(shared, another, idle, inUse, spared, sparedInUse)...)

		bySession := make(map[int64][]*lossHold)
		var victims []*lossHold // those of one session
		for _, h := range append(shared, another) {
			bySession[h.session] = append(bySession[h.session], h)
			if all := bySession[h.session]; len(all) > len(victims) {
				victims = all
			}
		}
		others := []*lossHold{spared, sparedInUse}
		for session, all := range bySession {
			if session != victims[0].session {
				others = append(others, all...)
			}
		}
		if len(bySession) < 2 || len(victims) < 5 {
			t.Errorf("%d sessions, with %d locks at most, so this shows little", len(bySession), len(victims))
		}
		for _, round := range []struct {
			what string
			lost []*lossHold
		}{{"shared", victims}, {"idle", []*lossHold{idle}}, {"in use", []*lossHold{inUse}}} {
			start := time.Now()
			f.kill(round.lost[0].session)
			waitFor(t, "the session to end", func() bool { return !round.lost[0].isHeld() })
			asked := f.rounds.Load()
			took := wantAllLost(t, start, round.lost...)
			// One round: over the dead session, over another one, and about each lock.
			if n := f.rounds.Load() - asked; n > 4 {
				t.Errorf("%s: the loss was known after %d questions", round.what, n)
			}
			t.Logf("%s: known %s after the KILL", round.what, spread(took))
		}
		f.looks(3)
		wantAllHeld(t, others...)
		again(t, p, victims[0], idle, inUse)
		for _, h := range append(victims, idle, inUse) {
			if n := p.Stats().Names[h.name]; n.Lost != 1 {
				t.Errorf("%s: %+v, want one loss", h.name, n)
			}
		}
		wantReleased(t, others...)
	})
}

// lossNet is the network to a server.
type lossNet struct {
	*toxiproxy.Proxy

	f *lossServer
}

func (f *lossServer) net() *lossNet {
	f.Helper()
	n := &lossNet{f: f}
	n.begin("127.0.0.1:0")
	f.Cleanup(func() { n.Stop() })
	return n
}

func (n *lossNet) begin(listen string) {
	n.f.Helper()
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	n.Proxy = toxiproxy.NewProxy(api, "pool", listen, n.f.addr())
	if err := n.Start(); err != nil {
		n.f.Fatal(err)
	}
}

// open is over the network.
func (n *lossNet) open() *sql.DB {
	n.f.Helper()
	return n.f.openWith(n.Listen, nil)
}

// add adds a toxic for the directions.
func (n *lossNet) add(kind, attribute string, value time.Duration, directions ...string) (names []string) {
	n.f.Helper()
	for _, d := range directions {
		name := kind + " " + d
		toxic := fmt.Sprintf(`{"name":%q,"type":%q,"stream":%q,"attributes":{%q:%d}}`, name, kind, d, attribute, value.Milliseconds())
		if _, err := n.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			n.f.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// delay holds up what goes in the directions. At its end what was held up gets
// through.
func (n *lossNet) delay(by time.Duration, directions ...string) (end func()) {
	n.f.Helper()
	names := n.add("latency", "latency", by, directions...)
	end = sync.OnceFunc(func() {
		for _, name := range names {
			_ = n.Toxics.RemoveToxic(context.Background(), name)
		}
	})
	n.f.Cleanup(end) // before the Pool is closed
	return end
}

// cut ends connections on which something comes (reset_peer), or has it vanish
// (timeout). Its end is another network in place of this one: where such a toxic is
// removed, toxiproxy may leave a goroutine behind.
func (n *lossNet) cut(kind string, directions ...string) (end func()) {
	n.f.Helper()
	n.add(kind, "timeout", 0, directions...)
	end = sync.OnceFunc(func() {
		n.Stop()
		n.begin(n.Listen)
	})
	n.f.Cleanup(end)
	return end
}

const (
	upstream   = "upstream"
	downstream = "downstream"
)

// TestPoolNetwork has the network delay, cut and swallow what the Pool says. Each
// case has a network of its own, so that all are waited for at a time.
func TestPoolNetwork(t *testing.T) {
	t.Parallel()
	onEachLossAtOnce(t, func(t *testing.T, all []*lossServer) {
		var slow, cut []*fault
		for _, f := range all {
			slow = append(slow,
				&fault{name: "latency", value: 3 * faultInterval, directions: []string{downstream}, f: f.on(t)},
				&fault{name: "a passing silence", value: time.Hour, directions: []string{upstream, downstream}, f: f.on(t)},
			)
			cut = append(cut,
				&fault{name: "reset", toxic: "reset_peer", directions: []string{downstream}, f: f.on(t)},
				&fault{name: "silence", toxic: "timeout", directions: []string{upstream, downstream}, f: f.on(t)},
				&fault{name: "half-open upstream", toxic: "timeout", directions: []string{upstream}, f: f.on(t)},
				&fault{name: "half-open downstream", toxic: "timeout", directions: []string{downstream}, f: f.on(t)},
			)
		}
		begin(t, 4*time.Second, slow)
		time.Sleep(time.Second) // the silence
		for _, c := range slow {
			if c.value == time.Hour {
				wantAllHeld(t, c.locks...)
				c.end()
			}
		}
		for _, c := range slow {
			t.Run(c.f.what()+" "+c.name, func(t *testing.T) {
				wantAllHeld(t, c.locks...)
				if c.name == "latency" {
					c.f.looks(3)
				}
				c.end()
				c.f.looks(3)
				wantAllHeld(t, c.locks...)
				wantReleased(t, c.locks...)
			})
		}
		begin(t, 1500*time.Millisecond, cut) // more than a busy machine takes to answer
		for _, c := range cut {
			t.Run(c.f.what()+" "+c.name, func(t *testing.T) {
				t.Log("known " + spread(wantAllLost(t, c.start, c.locks...)) + " after the cut")
				c.end()
				again(t, c.pool, c.locks...)
			})
		}
	}, "", "MyISAM")
}

const faultInterval = 200 * time.Millisecond

// fault is a network that fails, and a Pool behind it.
type fault struct {
	name       string
	toxic      string        // "" for a delay
	value      time.Duration // of the delay
	directions []string

	f     *lossServer
	pool  *sqllock.Pool
	locks []*lossHold
	start time.Time
	end   func()
}

// begin has all networks fail, when there are locks.
func begin(t *testing.T, answer time.Duration, all []*fault) {
	t.Helper()
	nets := make([]*lossNet, len(all))
	for i, c := range all {
		nets[i] = c.f.net()
		c.pool = c.f.pool(nets[i].open(), faultInterval, sqllock.WithAnswerTime(answer))
		c.locks = append(c.f.many(c.pool, 5), c.f.held(c.pool, "idle", nil, sqllock.OwnSession()))
		if c.toxic != "reset_peer" { // nothing goes over a session in use that could be reset
			c.locks = append(c.locks, c.f.held(c.pool, "in-use", busy, sqllock.OwnSession()))
		}
	}
	for _, c := range all {
		c.f.looks(2)
		wantAllHeld(t, c.locks...)
	}
	for i, c := range all {
		c.start = time.Now()
		if c.toxic == "" {
			c.end = nets[i].delay(c.value, c.directions...)
		} else {
			c.end = nets[i].cut(c.toxic, c.directions...)
		}
	}
}

// TestPoolSaturated: the application uses up its connections. That loses nothing, and
// hides no loss.
func TestPoolSaturated(t *testing.T) {
	t.Parallel()
	const interval, answer = 100 * time.Millisecond, time.Second
	saturate := func(f *lossServer, db *sql.DB) {
		f.Helper()
		for s := db.Stats(); s.InUse < s.MaxOpenConnections; s = db.Stats() {
			c := conn(f, db)
			f.Cleanup(func() { _ = c.Close() }) // before the Pool is closed
		}
	}
	onEachLoss(t, func(f *lossServer) {
		t := f.T
		g, h := f.on(t), f.on(t)
		db, apart := f.open(), g.open()
		network := h.net()
		silent := network.open()
		for _, db := range []*sql.DB{db, apart, silent} {
			db.SetMaxOpenConns(4)
		}
		p := f.pool(db, interval, sqllock.WithAnswerTime(answer))
		shared, idle := f.many(p, 20), f.held(p, "idle", nil, sqllock.OwnSession())
		alone := g.held(g.pool(apart, interval, sqllock.WithAnswerTime(answer)), "alone", nil, sqllock.OwnSession())
		cutOff := h.many(h.pool(silent, interval, sqllock.WithAnswerTime(answer)), 5)
		saturate(f, db)
		saturate(g, apart)
		saturate(h, silent)
		start := time.Now()
		f.looks(10)
		waitFor(t, "more than two answer times to pass", func() bool { return time.Since(start) > 5*answer/2 })
		wantAllHeld(t, append(append(shared, idle, alone), cutOff...)...)
		start = time.Now()
		end := network.cut("timeout", upstream, downstream)
		for _, victim := range []*lossHold{shared[0], idle, alone} {
			f.kill(victim.session)
		}
		t.Log("known " + spread(wantAllLost(t, start, append(shared, idle, alone)...)) + " after the KILL")
		t.Log("known " + spread(wantAllLost(t, start, cutOff...)) + " after the cut")
		end()
	})
}

// TestPoolWaitTimeout: the server ends sessions that are idle for three seconds.
func TestPoolWaitTimeout(t *testing.T) {
	t.Parallel()
	onEachLossAtOnce(t, func(t *testing.T, all []*lossServer) {
		var kept, unwatched []*lossHold
		for _, f := range all {
			settings := map[string]string{"wait_timeout": "3"}
			if f.isPG() { // the Pool leaves no transaction open, so the second one is nothing to it
				settings = map[string]string{"idle_session_timeout": "3000", "idle_in_transaction_session_timeout": "100"}
			}
			p, q := f.pool(f.openWith("", settings), 500*time.Millisecond), f.pool(f.openWith("", settings), -1)
			kept = append(kept, f.held(p, "shared", nil), f.held(p, "own", nil, sqllock.OwnSession()))
			unwatched = append(unwatched, f.held(q, "shared", nil), f.held(q, "own", nil, sqllock.OwnSession()))
		}
		start := time.Now()
		for _, h := range unwatched {
			waitFor(t, "the server to end an idle session", func() bool { return !h.isHeld() })
			if h.ctx.Err() != nil {
				t.Errorf("nobody has asked, and the ctx has ended: %v", context.Cause(h.ctx))
			}
			h.stop()
			<-h.done
			wantErr(t, "Do without a watch", h.err, sqllock.ErrLost)
		}
		waitFor(t, "more than two times the timeout to pass", func() bool { return time.Since(start) > 8*time.Second })
		wantAllHeld(t, kept...)
		wantReleased(t, kept...)
	}, "", "MyISAM")
}

// TestPoolWatchCost counts the statements that the server gets for a thousand locks.
func TestPoolWatchCost(t *testing.T) {
	t.Parallel()
	const locks, interval = 1000, 50 * time.Millisecond
	for _, kind := range append(testdb.Kinds(), testdb.Postgres) {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			var s *testdb.Server
			if kind == testdb.Postgres {
				s = postgres(t)
			} else {
				s = private(t, kind, "--sync-binlog=0")
			}
			for _, engine := range lossEngines(kind, "", "MyISAM") {
				f := newLossServer(t, s, engine)
				p := f.pool(f.open(), interval)
				held := make([]*sqllock.Lock, locks)
				for i := range held {
					l, err := p.Lock(t.Context(), lockName("held"))
					if err != nil {
						t.Fatal(err)
					}
					held[i] = l
				}
				c := conn(t, f.direct)
				f.looks(1)
				sent := func() int {
					if f.isPG() {
						return int(f.writes.Load()) + 1
					}
					return statements(t, c)
				}
				start, before := time.Now(), sent()
				f.looks(20)
				asked, intervals := sent()-before-1, int(time.Since(start)/interval)
				t.Logf("%s: %d statements in %d intervals, on %d connections", f.what(), asked, intervals, p.Stats().Conns)
				// One asks about all; a session that was not asked over for three
				// intervals is asked itself.
				if most := 2 * (intervals + 1); asked > most || asked < 15 {
					t.Errorf("%d statements in %d intervals, want 15 to %d", asked, intervals, most)
				}
				for _, l := range held {
					release(t, l)
				}
			}
		})
	}
}

// statements is how many statements the server has got from all sessions.
func statements(t *testing.T, c *sql.Conn) (n int) {
	t.Helper()
	var name string
	if err := c.QueryRowContext(t.Context(), "SHOW GLOBAL STATUS LIKE 'Questions'").Scan(&name, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// oneShared has all locks of a Pool share one session.
var oneShared = sqllock.WithMaxConns(2)

// TestPoolLeaseHangs: the function of a lease does not return. Another process gets
// the lock when its time is over, and other leases of the session go on.
func TestPoolLeaseHangs(t *testing.T) {
	t.Parallel()
	onEachLossAtOnce(t, func(t *testing.T, all []*lossServer) {
		var hung, next, bystanders []*lossHold
		var pools []*sqllock.Pool
		for _, f := range all {
			p, other := f.pool(f.open(), 200*time.Millisecond, oneShared), f.pool(f.open(), 200*time.Millisecond)
			more := f.many(p, 5, sqllock.TTL(time.Hour))
			bystanders = append(bystanders, more...)
			// The server counts in whole seconds: the moment within one matters.
			for _, phase := range []int{0, 500000, 960000, 980000, 990000} {
				waitFor(t, "a moment of the server's second", func() bool {
					now := "SELECT MICROSECOND(NOW(6))"
					if f.isPG() {
						now = "SELECT extract(microsecond FROM clock_timestamp())::int%1000000"
					}
					d := ask[int](t, f.direct, now) - phase
					return d >= 0 && d < 4000
				})
				h := f.held(p, fmt.Sprintf("hangs-%d", phase), nil, sqllock.TTL(time.Second))
				if h.session != more[0].session {
					t.Fatalf("the leases are of different sessions, %d and %d", h.session, more[0].session)
				}
				hung, next, pools = append(hung, h), append(next, f.hold(other, h.name, nil)), append(pools, p)
			}
		}
		var took []time.Duration
		for i, h := range hung {
			select {
			case <-h.lost:
			case <-time.After(30 * time.Second):
				t.Fatal("the ctx of a lease does not end")
			}
			wantErr(t, "the cause", context.Cause(h.ctx), sqllock.ErrLost)
			next[i].await() // while the function hangs
			took = append(took, next[i].began.Sub(h.at))
			if next[i].began.Before(h.at) {
				t.Errorf("%s was granted to another process before its ctx ended", h.name)
			}
			if next[i].lock.Token() <= h.lock.Token() {
				t.Errorf("token %d after %d", next[i].lock.Token(), h.lock.Token())
			}
		}
		wantAllHeld(t, bystanders...)
		for i, h := range hung {
			h.stop()
			<-h.done
			wantErr(t, "Do of a lease that is over", h.err, sqllock.ErrLost)
			if n := pools[i].Stats().Names[h.name]; n.Expired != 1 {
				t.Errorf("%s: %+v, want one expiry", h.name, n)
			}
		}
		slices.Sort(took)
		t.Logf("another process had the lock %s after the end of the lease", spread(took))
		wantReleased(t, append(next, bystanders...)...)
	}, engines...)
}

// TestPoolLeaseRowRemoved: somebody deletes the row of a lock, which the watch finds,
// or an extension. That lock is lost, and no other one of its session. Others can have
// it.
func TestPoolLeaseRowRemoved(t *testing.T) {
	t.Parallel()
	onEachLossAtOnce(t, func(t *testing.T, all []*lossServer) {
		var victims, bystanders []*lossHold
		var others []*sqllock.Pool
		removed := func(f *lossServer, interval time.Duration, opts ...sqllock.LockOption) {
			p := f.pool(f.open(), interval, oneShared)
			bystanders = append(bystanders, f.many(p, 3, sqllock.TTL(time.Hour))...)
			victim := f.held(p, "removed", nil, opts...)
			do(t, f.direct, "DELETE FROM shared_locks WHERE name='"+victim.name+"'")
			victims, others = append(victims, victim), append(others, f.pool(f.open(), time.Second))
		}
		for _, f := range all {
			removed(f, 50*time.Millisecond, sqllock.TTL(time.Hour))
			removed(f, time.Hour, sqllock.TTL(2*time.Second), sqllock.KeepAlive(time.Hour))
		}
		wantAllLost(t, time.Now(), victims...)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		for i, h := range victims {
			err := others[i].Do(ctx, h.name, func(context.Context, *sqllock.Lock) error { return nil })
			if err != nil {
				t.Errorf("another process can't have the lock that was lost: %v", err)
			}
		}
		wantAllHeld(t, bystanders...)
		wantReleased(t, bystanders...)
	}, engines...)
}

// TestPoolKeepAlive: leases outlast their TTL while their functions run, for as long
// as they may.
func TestPoolKeepAlive(t *testing.T) {
	t.Parallel()
	const ttl, longest = 3 * time.Second, 4200 * time.Millisecond // the table counts in seconds
	onEachLossAtOnce(t, func(t *testing.T, all []*lossServer) {
		var kept, limited, gone []*lossHold
		start := time.Now()
		for _, f := range all {
			p := f.pool(f.open(), 200*time.Millisecond)
			limited = append(limited, f.held(p, "limited", nil, sqllock.TTL(ttl), sqllock.KeepAlive(longest)))
			lasting := []sqllock.LockOption{sqllock.TTL(ttl), sqllock.KeepAlive(time.Hour)}
			kept = append(kept, f.many(p, 100, lasting...)...) // 200 on the server
			broken := f.held(p, "broken", nil, append(lasting, sqllock.OwnSession())...)
			if _, err := f.locker().Break(t.Context(), f.direct, broken.name); err != nil {
				t.Fatal(err)
			}
			gone = append(gone, broken)
		}
		wantAllLost(t, start, gone...)
		for _, h := range limited {
			wantAllLost(t, start, h)
			t.Logf("held for %v, at most %v", h.at.Sub(h.began), longest)
			if held := h.at.Sub(h.began); held <= ttl || held > longest+500*time.Millisecond {
				t.Errorf("held for %v, want more than the TTL, %v, and at most %v", held, ttl, longest)
			}
		}
		wantAllHeld(t, kept...)
		wantReleased(t, kept...)
	}, engines...)
}

// TestPoolKeepAliveThroughErrors: what passes while the TTL lasts loses no lease: the
// network is silent, and, elsewhere, the table is locked for longer than the session's
// statements wait.
func TestPoolKeepAliveThroughErrors(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	onEachLossAtOnce(t, func(t *testing.T, all []*lossServer) {
		silent, locked := all[0], all[1]
		if silent.isPG() {
			t.Skip("statements wait for a locked table for as long as the TTL, whatever the session's settings")
		}
		n := silent.net()
		failed := make(chan error, 100)
		impatient := locked.openWith("", map[string]string{"lock_wait_timeout": "1"})
		watched := locked.locker(sqllock.WithObserver(func(e sqllock.Event) {
			if e.Kind == sqllock.Extended && e.Err != nil {
				failed <- e.Err
			}
		}))
		pools := []*sqllock.Pool{silent.pool(n.open(), 200*time.Millisecond), locked.poolOf(impatient, watched)}
		var kept [2][]*lossHold
		for i, p := range pools {
			opts := []sqllock.LockOption{sqllock.TTL(ttl), sqllock.KeepAlive(time.Hour)}
			kept[i] = append(all[i].many(p, 5, opts...), all[i].held(p, "own", nil, append(opts, sqllock.OwnSession())...))
		}
		end := n.delay(time.Hour, upstream, downstream)
		c := conn(t, locked.direct)
		do(t, c, "LOCK TABLES shared_locks WRITE")
		select {
		case err := <-failed:
			t.Log(err)
		case <-time.After(30 * time.Second):
			t.Error("no extension has failed")
		}
		end()
		do(t, c, "UNLOCK TABLES")
		for range 2 {
			for i, p := range pools {
				before := p.Stats()
				for _, h := range kept[i] {
					waitFor(t, "an extension", func() bool {
						return h.ctx.Err() != nil || p.Stats().Names[h.name].Extended > before.Names[h.name].Extended
					})
				}
			}
		}
		for i := range pools {
			wantAllHeld(t, kept[i]...)
			wantReleased(t, kept[i]...)
		}
	}, "MyISAM", "MyISAM")
}

// TestPoolKeepAliveInUse: a session that is in use is left alone, and holds up no
// other lease.
func TestPoolKeepAliveInUse(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	onEachLossAtOnce(t, func(t *testing.T, all []*lossServer) {
		f := all[0]
		p := f.pool(f.open(), 200*time.Millisecond)
		lasting := []sqllock.LockOption{sqllock.TTL(ttl), sqllock.KeepAlive(time.Hour)}
		kept := f.many(p, 5, lasting...)
		lasting = append(lasting, sqllock.OwnSession())
		rows := f.held(p, "rows", busy, lasting...)
		slow := f.hold(p, lockName("slow"), func(ctx context.Context, l *sqllock.Lock, wait func()) error {
			return l.Use(func(c *sql.Conn) error {
				sleep := "DO SLEEP(3)"
				if f.isPG() {
					sleep = "SELECT pg_sleep(3)"
				}
				_, err := c.ExecContext(context.WithoutCancel(ctx), sleep)
				wait()
				return err
			})
		}, lasting...)
		start := time.Now()
		waitFor(t, "an extension to be due", func() bool { return time.Since(start) > ttl*2/3 })
		wantAllHeld(t, rows)
		wantReleased(t, rows)
		waitFor(t, "the TTL to pass", func() bool { return time.Since(start) > ttl+ttl/3 })
		wantAllHeld(t, kept...)
		slow.stop() // its lease may have ended: nobody can say anything on its session
		<-slow.done
		wantReleased(t, kept...)
	}, "MyISAM")
}

// TestPoolKeepAliveReleased: leases are released just when they are to be extended.
// That harms no other lock of their session.
func TestPoolKeepAliveReleased(t *testing.T) {
	t.Parallel()
	const ttl = time.Second
	onEachLossAtOnce(t, func(t *testing.T, all []*lossServer) {
		var bystanders []*lossHold
		var wg sync.WaitGroup
		for _, f := range all {
			p := f.pool(f.open(), 200*time.Millisecond, oneShared)
			bystanders = append(bystanders, f.held(p, "bystander", nil, sqllock.TTL(time.Hour)))
			for range 50 {
				wg.Go(func() {
					err := p.Do(t.Context(), lockName("short"), func(_ context.Context, l *sqllock.Lock) error {
						time.Sleep(ttl/3 - (ttl - l.Remaining())) // its first extension is due then
						return nil
					}, sqllock.TTL(ttl), sqllock.KeepAlive(time.Hour))
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		wantAllHeld(t, bystanders...)
		wantReleased(t, bystanders...)
	}, engines...)
}

// TestPoolServerRestart: the server crashes. Everything is lost, even where a new
// session has the id of an old one and its locks.
func TestPoolServerRestart(t *testing.T) {
	t.Parallel()
	for _, kind := range append(testdb.Kinds(), testdb.Postgres) {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			var s *testdb.Server
			if kind == testdb.Postgres {
				s = private(t, kind)
			} else {
				s = durable(t, kind)
			}
			var idle, inUse []*lossHold
			var all []*lossServer
			var pools []*sqllock.Pool
			var nets []*lossNet
			for _, engine := range lossEngines(kind, "", "MyISAM") {
				f := newLossServer(t, s, engine)
				for range 20 {
					_ = conn(t, f.direct) // so that the ids that follow come again
				}
				n := f.net()
				// Nothing is taken for lost for the time that the server is away.
				p := f.pool(n.open(), 200*time.Millisecond, sqllock.WithAnswerTime(time.Minute))
				idle = append(append(idle, f.many(p, 5)...), f.held(p, "idle", nil, sqllock.OwnSession()))
				inUse = append(inUse, f.held(p, "in-use", busy, sqllock.OwnSession()))
				all, pools, nets = append(all, f), append(pools, p), append(nets, n)
			}
			waitFor(t, "another second than the one in which the server started", func() bool {
				return kind == testdb.Postgres || ask[bool](t, all[0].direct, "SELECT UNIX_TIMESTAMP()>((UUID_SHORT()>>24)&0xFFFFFFFF)+1")
			})
			for i, f := range all { // which the watch has hardly had the time to ask about
				f.looks(1)
				inUse = append(inUse, f.held(pools[i], "late", busy, sqllock.OwnSession()))
				nets[i].Stop()
			}
			ids := make(map[int64][]*lossHold)
			for _, h := range append(slices.Clone(idle), inUse...) {
				ids[h.session] = append(ids[h.session], h)
			}
			start := time.Now()
			if err := s.Crash(t.Context()); err != nil {
				t.Fatal(err)
			}
			if kind == testdb.Postgres {
				for _, f := range all {
					impersonatePG(t, f, ids)
				}
			} else {
				impersonate(t, s, ids)
			}
			for _, n := range nets {
				if err := n.Start(); err != nil {
					t.Fatal(err)
				}
			}
			t.Log("known " + spread(wantAllLost(t, start, idle...)) + " after the crash")
			t.Log("known " + spread(wantAllLost(t, start, inUse...)) + " after the crash, of sessions in use")
		})
	}
}

// impersonate has other sessions acquire the locks of those with their ids.
func impersonate(t *testing.T, s *testdb.Server, ids map[int64][]*lossHold) {
	t.Helper()
	most := slices.Max(slices.Collect(maps.Keys(ids)))
	db := open(t, s)
	for len(ids) > 0 {
		c := conn(t, db)
		id := sessionID(t, c)
		if id > most {
			t.Fatalf("no session has got the ids %v", ids)
		}
		for _, h := range ids[id] {
			do(t, c, "USE "+h.f.schema)
			acquire(t, h.f.locker(), c, h.name)
		}
		delete(ids, id)
	}
}

// impersonatePG has other sessions acquire the locks, which the watch then asks about
// as if they had the ids of those before: the server takes ids from the system, in
// whatever order.
func impersonatePG(t *testing.T, f *lossServer, ids map[int64][]*lossHold) {
	t.Helper()
	db := f.open()
	for id, all := range ids {
		if all[0].f.schema != f.schema {
			continue
		}
		c := conn(t, db)
		for _, h := range all {
			acquire(t, f.locker(), c, h.name)
		}
		f.others.Store(id, ask[int64](t, c, "SELECT pg_backend_pid()"))
	}
}
