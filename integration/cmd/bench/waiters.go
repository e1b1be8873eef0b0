package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	atlas "ariga.io/atlas/sql/mysql"
	"ariga.io/atlas/sql/schema"
	"github.com/go-sql-driver/mysql"
	prettytable "github.com/jedib0t/go-pretty/v6/table"
	gomysqllock "github.com/sanketplus/go-mysql-lock"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

const (
	ourConns  = 4  // MaxOpenConns of the pool under a sqllock.Pool
	peerConns = 32 // and under the others, which use a session for each waiter
)

// contender is a way to have many goroutines take turns.
type contender struct {
	name string
	open opener
}

// opener makes what n goroutines lock with, in a database with a lock table.
type opener func(ctx context.Context, db *sql.DB, n int) (under underLock, end func() error, err error)

// underLock runs work under the lock, for goroutine i.
type underLock func(i int, work func()) error

func contenders() []contender {
	return []contender{
		{fmt.Sprintf("sqllock.Pool, mysqlnamed, %d connections", ourConns), ourPool(mysqlnamed.New())},
		{fmt.Sprintf("sqllock.Pool, table (MyISAM), %d connections", ourConns), ourPool(table.New(time.Minute))},
		{"raw GET_LOCK, a session for each goroutine", sessionEach},
		{fmt.Sprintf("raw GET_LOCK, %d connections", peerConns), overDB(rawOver)},
		{fmt.Sprintf("go-mysql-lock, %d connections", peerConns), overDB(goMySQLLockOver)},
		{fmt.Sprintf("Atlas (sql/mysql), %d connections", peerConns), overDB(atlasOver)},
	}
}

func ourPool(backend sqllock.Backend) opener {
	return func(ctx context.Context, db *sql.DB, _ int) (underLock, func() error, error) {
		db.SetMaxOpenConns(ourConns)
		p := sqllock.NewPool(db, sqllock.New(backend))
		return func(_ int, work func()) error {
			return p.Do(ctx, name, func(context.Context, *sqllock.Lock) error { work(); return nil })
		}, func() error { return p.Close(ctx) }, nil
	}
}

func sessionEach(ctx context.Context, db *sql.DB, n int) (under underLock, end func() error, err error) {
	var conns []*sql.Conn
	end = func() (err error) {
		for _, c := range conns {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	for range n {
		c, err := db.Conn(ctx)
		if err != nil {
			return nil, nil, errors.Join(err, end())
		}
		conns = append(conns, c)
	}
	return func(i int, work func()) error { return literalOn(ctx, conns[i], work) }, end, nil
}

// overDB is for locks that take a connection from db while they wait and hold. It
// keeps as many as it may open.
func overDB(locker func(ctx context.Context, db *sql.DB) (func(work func()) error, error)) opener {
	return func(ctx context.Context, db *sql.DB, _ int) (underLock, func() error, error) {
		db.SetMaxOpenConns(peerConns)
		db.SetMaxIdleConns(peerConns)
		under, err := locker(ctx, db)
		return func(_ int, work func()) error { return under(work) }, func() error { return nil }, err
	}
}

func rawOver(ctx context.Context, db *sql.DB) (func(func()) error, error) {
	return func(work func()) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // nothing depends on it
		return literalOn(ctx, c, work)
	}, nil
}

func goMySQLLockOver(ctx context.Context, db *sql.DB) (func(func()) error, error) {
	locker := gomysqllock.NewMysqlLocker(db)
	return func(work func()) error {
		l, err := locker.ObtainTimeoutContext(ctx, name, 10)
		if err != nil {
			return err
		}
		work()
		return l.Release()
	}, nil
}

func atlasOver(ctx context.Context, db *sql.DB) (func(func()) error, error) {
	d, err := atlas.Open(db)
	if err != nil {
		return nil, err
	}
	locker, ok := d.(schema.Locker)
	if !ok {
		return nil, fmt.Errorf("%T has no locks", d)
	}
	return func(work func()) error {
		unlock, err := locker.Lock(ctx, name, 10*time.Second)
		if err != nil {
			return err
		}
		work()
		return unlock()
	}, nil
}

// sweep says what to measure: each contender with each number of goroutines, for the
// time of the window, in rounds. A point is the median of the rounds.
type sweep struct {
	waiters []int
	window  time.Duration
	rounds  int
}

var fullSweep = sweep{[]int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000}, 400 * time.Millisecond, 3} //nolint:gochecknoglobals // a constant, if Go had them

// curve is the grants per second of a contender for each number of waiters. It ends
// where the contender has failed.
type curve struct {
	name     string
	rates    []float64
	failedAt int // number of waiters; 0 for never
	failure  error
}

// panel is what was measured on one server.
type panel struct {
	product  string
	title    string
	server   string // settings of it
	database string // with a lock table
	curves   []curve
}

// plotWaiters measures on all servers, and draws.
func plotWaiters(ctx context.Context, sw sweep, file string, out io.Writer) (err error) {
	var panels []panel
	for _, kind := range testdb.Kinds() {
		if kind.Skipped() {
			fmt.Fprintf(os.Stderr, "bench: %s is left out, as SKIP_SERVERS says\n", kind)
			continue
		}
		p, err := sw.onServer(ctx, kind)
		if err != nil {
			return err
		}
		panels = append(panels, p)
	}
	if len(panels) == 0 {
		return errors.New("no server is left to measure on")
	}
	showPanels(out, sw, panels)
	return drawPanels(sw, panels, file)
}

// onServer measures on a server of the environment, or a private one with the limit
// of connections that servers have by default.
func (sw sweep) onServer(ctx context.Context, kind testdb.Kind) (p panel, err error) {
	open := func() (*testdb.Server, error) { return testdb.Start(ctx, kind, "--max-connections=151") }
	if kind.EnvDSN() != "" {
		open = func() (*testdb.Server, error) { return testdb.Open(ctx, kind) }
	}
	s, err := open()
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	_, err = withTable(ctx, s, "MyISAM", func(b *bench) (result, error) {
		if err := p.about(b, s); err != nil {
			return result{}, err
		}
		return result{}, p.measure(b, s, sw)
	})
	return p, err
}

// measure fills in the curves.
func (p *panel) measure(b *bench, s *testdb.Server, sw sweep) error {
	all := contenders()
	samples := make([][]measurement, len(all))
	for i, c := range all {
		p.curves = append(p.curves, curve{name: c.name})
		samples[i] = make([]measurement, len(sw.waiters))
	}
	for r := range sw.rounds {
		for w, n := range sw.waiters {
			fmt.Fprintf(os.Stderr, "bench: %s: round %d of %d, %d goroutines\n", s.Kind, r+1, sw.rounds, n)
			for i, c := range all {
				if at := p.curves[i].failedAt; at > 0 && at <= n {
					continue
				}
				rate, err := p.point(b.ctx, s, c, n, sw.window)
				if b.ctx.Err() != nil {
					return b.ctx.Err()
				}
				if err != nil {
					p.curves[i].failedAt, p.curves[i].failure = n, err
					continue
				}
				samples[i][w] = append(samples[i][w], rate)
			}
		}
	}
	for i := range p.curves {
		c := &p.curves[i]
		for w, n := range sw.waiters {
			if c.failedAt == 0 || n < c.failedAt {
				c.rates = append(c.rates, samples[i][w].quantile(0.5))
			}
		}
	}
	return nil
}

// about says what the server is, where it runs, and what bears on the figures.
func (p *panel) about(b *bench, s *testdb.Server) error {
	var version string
	var limit int
	var logs bool
	query := "SELECT DATABASE(), SUBSTRING_INDEX(VERSION(),'-',1), @@max_connections, @@log_bin AND @@sync_binlog=1"
	if err := b.conn.QueryRowContext(b.ctx, query).Scan(&p.database, &version, &limit, &logs); err != nil {
		return err
	}
	cfg, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		return err
	}
	where := "over the network"
	host, _, err := net.SplitHostPort(cfg.Addr)
	if ip := net.ParseIP(host); cfg.Net == "unix" || err == nil && (host == "localhost" || ip != nil && ip.IsLoopback()) {
		where = "loopback"
	}
	p.product = map[testdb.Kind]string{testdb.MySQL: "MySQL", testdb.MariaDB: "MariaDB"}[s.Kind]
	p.title = fmt.Sprintf("%s %s, %d cores, %s", p.product, version, runtime.NumCPU(), where)
	p.server = fmt.Sprintf("max_connections = %d", limit)
	if logs {
		p.server += ", a binary log that is synced for each write"
	}
	return nil
}

// point is the grants per second of c.
func (p *panel) point(ctx context.Context, s *testdb.Server, c contender, n int, window time.Duration) (rate float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, window+10*time.Second)
	defer cancel()
	db, err := testdb.OpenDB(s.DSN, func(cfg *mysql.Config) { cfg.DBName = p.database })
	if err != nil {
		return 0, err
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	under, end, err := c.open(ctx, db, n)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, end()) }()
	return contend(n, window, under)
}

// contend has n goroutines run under over and over. It counts for the time of the
// window, after a quarter of that to warm up.
func contend(n int, window time.Duration, under underLock) (perSecond float64, err error) {
	var (
		counter int // which nothing but the lock guards
		grants  atomic.Int64
		stop    atomic.Bool
		first   sync.Once
		wg      sync.WaitGroup
	)
	failed := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			for !stop.Load() {
				if failure := under(i, func() { counter++; grants.Add(1) }); failure != nil {
					first.Do(func() { err = failure; close(failed) })
					return
				}
			}
		})
	}
	pass := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-failed:
		}
	}
	pass(window / 4)
	before, start := grants.Load(), time.Now()
	pass(window)
	perSecond = float64(grants.Load()-before) / time.Since(start).Seconds()
	stop.Store(true)
	wg.Wait()
	switch {
	case err != nil:
		return 0, err
	case perSecond == 0:
		return 0, fmt.Errorf("no grant in %v", window)
	}
	return perSecond, lostUpdates(counter, int(grants.Load()))
}

// reason is an error for people, without what is around the server's.
func reason(err error) string {
	if m := (*mysql.MySQLError)(nil); errors.As(err, &m) {
		return fmt.Sprintf("error %d, %s", m.Number, m.Message)
	}
	return err.Error()
}

func showPanels(out io.Writer, sw sweep, panels []panel) {
	for _, p := range panels {
		t := prettytable.NewWriter()
		t.SetOutputMirror(out)
		t.SetStyle(prettytable.StyleRounded)
		t.SetTitle("Grants/s on one name. " + p.title)
		header := prettytable.Row{"goroutines"}
		for _, n := range sw.waiters {
			header = append(header, n)
		}
		t.AppendHeader(header)
		for _, c := range p.curves {
			row := prettytable.Row{c.name}
			for _, rate := range c.rates {
				row = append(row, math.Round(rate))
			}
			if c.failure != nil {
				row = append(row, "fails: "+reason(c.failure))
			}
			t.AppendRow(row)
		}
		t.Render()
	}
}

// limits are the ends of the axis of grants per second: powers of ten.
func limits(panels []panel) (low, high float64) {
	var all []float64
	for _, p := range panels {
		for _, c := range p.curves {
			all = append(all, c.rates...)
		}
	}
	if len(all) == 0 {
		return 1, 10
	}
	return math.Pow(10, math.Floor(math.Log10(slices.Min(all)))), math.Pow(10, math.Ceil(math.Log10(slices.Max(all))))
}
