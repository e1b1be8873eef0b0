package integration

import (
	"context"
	"database/sql"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/interop/laravel"
	"github.com/sqllock/go-sqllock/interop/shedlock"
	"github.com/sqllock/go-sqllock/interop/symfony"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/locktest"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// interopBackend is what the backends on the tables of others can do.
type interopBackend interface {
	sqllock.Leaser
	sqllock.Breaker
	sqllock.Watcher
	sqllock.Passer
	sqllock.GroupExtender
	sqllock.Relinquisher
	List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error)
}

// interopFormat is a table of others, made as they make it.
type interopFormat struct {
	name, table     string
	mysql, postgres string
	backend         func(ttl time.Duration, pool *sql.DB) interopBackend // pool may be nil
	peer            func(c *interopCase, conn *sql.Conn) interopPeer
}

var interopFormats = []interopFormat{
	{
		name: "symfony", table: "lock_keys",
		mysql:    "CREATE TABLE lock_keys (key_id VARCHAR(64) NOT NULL PRIMARY KEY, key_token VARCHAR(44) NOT NULL, key_expiration INTEGER UNSIGNED NOT NULL) COLLATE utf8mb4_bin, ENGINE = InnoDB",
		postgres: "CREATE TABLE lock_keys (key_id VARCHAR(64) NOT NULL PRIMARY KEY, key_token VARCHAR(64) NOT NULL, key_expiration INTEGER)",
		backend:  func(ttl time.Duration, pool *sql.DB) interopBackend { return symfony.New(ttl, symfony.WithPool(pool)) },
		peer:     newSymfonyPeer,
	},
	{
		name: "shedlock", table: "shedlock",
		mysql: "CREATE TABLE shedlock(name VARCHAR(64) NOT NULL, lock_until TIMESTAMP(3) NOT NULL," +
			" locked_at TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3), locked_by VARCHAR(255) NOT NULL, PRIMARY KEY (name))",
		postgres: "CREATE TABLE shedlock(name VARCHAR(64) NOT NULL, lock_until TIMESTAMP NOT NULL," +
			" locked_at TIMESTAMP NOT NULL, locked_by VARCHAR(255) NOT NULL, PRIMARY KEY (name))",
		backend: func(ttl time.Duration, pool *sql.DB) interopBackend {
			return shedlock.New(ttl, shedlock.WithPool(pool))
		},
		peer: newShedLockPeer,
	},
	{
		name: "laravel", table: "cache_locks",
		mysql: "create table `cache_locks` (`key` varchar(255) not null, `owner` varchar(255) not null, `expiration` int not null," +
			" primary key (`key`)) default character set utf8mb4 collate 'utf8mb4_unicode_ci'",
		postgres: `create table "cache_locks" ("key" varchar(255) not null, "owner" varchar(255) not null, "expiration" integer not null, primary key ("key"))`,
		backend: func(ttl time.Duration, pool *sql.DB) interopBackend {
			return laravel.New(ttl, laravel.WithPool(pool), laravel.WithClockSkew(0)) // PHP runs on this host, and the server, too
		},
		peer: newLaravelPeer,
	},
}

// interopCase is a table of others on a server.
type interopCase struct {
	*testing.T
	interopFormat

	kind testdb.Kind
	s    *testdb.Server
	db   *sql.DB // in whose database the table is
}

var interopKinds = []testdb.Kind{testdb.MySQL, testdb.MariaDB, testdb.Postgres}

// newInterop makes the table of a format in an empty database.
func newInterop(t *testing.T, kind testdb.Kind, f interopFormat) *interopCase {
	t.Helper()
	c := &interopCase{T: t, interopFormat: f, kind: kind, s: server(t, kind)}
	if c.pg() {
		c.db = pgDatabase(t, c.s)
		do(t, c.db, f.postgres)
	} else {
		c.db = schema(t, c.s)
		do(t, c.db, f.mysql)
	}
	return c
}

func (c *interopCase) pg() bool { return c.kind == testdb.Postgres }

// pick is what differs between the servers.
func (c *interopCase) pick(onMySQL, onPostgres string) string {
	if c.pg() {
		return onPostgres
	}
	return onMySQL
}

// open returns another pool on the database.
func (c *interopCase) open(t *testing.T) *sql.DB {
	t.Helper()
	if c.pg() {
		return sameDatabase(t, c.s, c.db)
	}
	name := database(t, c.db)
	return open(t, c.s, func(cfg *mysql.Config) { cfg.DBName = name })
}

// onInterop runs a test with each table on each server, all at the same time: most of what
// they do is to wait, and t.Parallel lets no more of them do so than there are processors.
func onInterop(t *testing.T, test func(c *interopCase)) {
	t.Helper()
	var all sync.WaitGroup
	for _, kind := range interopKinds {
		for _, f := range interopFormats {
			all.Go(func() {
				t.Run(string(kind)+" "+f.name, func(t *testing.T) { test(newInterop(t, kind, f)) })
			})
		}
	}
	all.Wait()
}

// onInteropKinds runs a test on each server, all at the same time.
func onInteropKinds(t *testing.T, test func(t *testing.T, kind testdb.Kind)) {
	t.Helper()
	var all sync.WaitGroup
	for _, kind := range interopKinds {
		all.Go(func() { t.Run(string(kind), func(t *testing.T) { test(t, kind) }) })
	}
	all.Wait()
}

// polled counts those who wait, which they do in no statement.
type polled struct {
	interopBackend

	mu      sync.Mutex // guards waiting
	waiting map[string]int
}

func (p *polled) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	count := func(n int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.waiting[req.Key] += n
	}
	if req.Wait {
		count(1)
		defer count(-1)
	}
	return p.interopBackend.Acquire(ctx, conn, req)
}

func (p *polled) waiters(_ context.Context, _ *sql.DB, key string) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting[key], nil
}

// TestConformanceInterop runs the suite for all of them at the same time: most of it waits.
func TestConformanceInterop(t *testing.T) {
	onInterop(t, func(c *interopCase) {
		b := &polled{interopBackend: c.backend(time.Minute, c.db), waiting: make(map[string]int)}
		locktest.Run(c.T, locktest.Config{Backend: b, Open: c.open, Waiters: b.waiters})
	})
}
