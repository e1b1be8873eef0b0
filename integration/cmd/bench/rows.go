package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	gomysqllock "github.com/sanketplus/go-mysql-lock"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// row is a comparison that can be picked by its name.
type row struct {
	name    string
	target  *float64
	measure func(ctx context.Context, s *testdb.Server) (result, error)
}

const (
	turns   = 4000
	handOff = 400
	name    = "bench"
)

var literal = "X'" + hex.EncodeToString([]byte(name)) + "'" //nolint:gochecknoglobals // a constant, if Go had them

func rows(kind testdb.Kind, pick *regexp.Regexp) []row {
	of := slices.Concat(mysqlRows(), tableRows(), poolRows(), guardRows())
	if kind == testdb.Postgres {
		of = slices.Concat(postgresRows(), poolRows(), postgresGuardRows())
	}
	var picked []row
	for _, r := range of {
		if r.name = string(kind) + ": " + r.name; pick.MatchString(r.name) {
			picked = append(picked, r)
		}
	}
	return picked
}

func mysqlRows() []row {
	atMost := func(ratio float64) *float64 { return &ratio }
	return []row{
		{"acquire and release / two DO 1", nil, againstDo},
		{"acquire and release / raw literal GET_LOCK and RELEASE_LOCK", atMost(1.3), againstLiteral},
		{"acquire and release / raw GET_LOCK(?) and RELEASE_LOCK(?)", atMost(1), againstPlaceholder},
		{"acquire and release / go-mysql-lock", atMost(0.5), againstGoMySQLLock},
		{"Do, connection from the pool / go-mysql-lock", nil, doAgainstGoMySQLLock},
		{"raw literal GET_LOCK and RELEASE_LOCK / go-mysql-lock", nil, literalAgainstGoMySQLLock},
		{"hand-off p50 / raw GET_LOCK", atMost(1.2), handOffQuantile(0.5)},
		{"hand-off p99 / raw GET_LOCK", nil, handOffQuantile(0.99)},
		{"allocations / raw literal GET_LOCK and RELEASE_LOCK", nil, allocations},
	}
}

// bench is a pool and what the sides do on it.
type bench struct {
	ctx    context.Context //nolint:containedctx // for the length of one row
	db     *sql.DB
	conn   *sql.Conn
	locker *sqllock.Locker
}

// open opens a pool.
func open(s *testdb.Server) (*sql.DB, error) {
	if s.Kind == testdb.Postgres {
		return testdb.OpenPostgres(s.DSN, nil)
	}
	return testdb.OpenDB(s.DSN, nil)
}

// named is the backend that needs no table.
func named(s *testdb.Server) sqllock.Backend {
	if s.Kind == testdb.Postgres {
		return pgadvisory.New()
	}
	return mysqlnamed.New()
}

// with opens a pool for f, and a session of it.
func with(ctx context.Context, s *testdb.Server, f func(b *bench) (result, error)) (res result, err error) {
	db, err := open(s)
	if err != nil {
		return res, err
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	conn, err := db.Conn(ctx)
	if err != nil {
		return res, err
	}
	defer conn.Close() //nolint:errcheck // as above
	return f(&bench{ctx, db, conn, sqllock.New(named(s))})
}

func timed(f func() error) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		start := time.Now()
		err := f()
		return time.Since(start), err
	}
}

func (b *bench) ours() error { return b.pair(b.conn) }

func (b *bench) pair(conn *sql.Conn) error {
	l, err := b.locker.Lock(b.ctx, conn, name)
	if err != nil {
		return err
	}
	return l.Release(b.ctx)
}

// raw asks for a lock verdict, which has to be 1.
func raw(ctx context.Context, conn *sql.Conn, query string, args ...any) error {
	var verdict sql.NullInt64
	if err := conn.QueryRowContext(ctx, query, args...).Scan(&verdict); err != nil {
		return err
	}
	if verdict.Int64 != 1 {
		return fmt.Errorf("%s: %v", query, verdict)
	}
	return nil
}

func (b *bench) literal() error { return literalOn(b.ctx, b.conn, func() {}) }

// floor is the fastest form of raw statements.
type floor struct {
	lock    func(ctx context.Context, conn *sql.Conn, work func()) error
	handOff func(ctx context.Context, holder, waiter *sql.Conn) (time.Duration, error)
}

func floorOf(s *testdb.Server) floor {
	if s.Kind == testdb.Postgres {
		return floor{advisoryOn, advisoryHandOff}
	}
	return floor{literalOn, rawHandOff}
}

func againstDo(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) {
		ours, floor, err := takeTurns(turns, timed(b.ours), timed(func() error {
			for range 2 {
				if _, err := b.conn.ExecContext(ctx, "DO 1"); err != nil {
					return err
				}
			}
			return nil
		}))
		if err != nil {
			return result{}, err
		}
		return compare(ours, floor, 0.5, "DO 1, DO 1:"), nil
	})
}

func againstLiteral(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) {
		ours, peer, err := takeTurns(turns, timed(b.ours), timed(b.literal))
		if err != nil {
			return result{}, err
		}
		return compare(ours, peer, 0.5, "raw:"), nil
	})
}

func againstPlaceholder(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) {
		ours, peer, err := takeTurns(turns, timed(b.ours), timed(func() error {
			if err := raw(ctx, b.conn, "SELECT GET_LOCK(?, 10)", name); err != nil {
				return err
			}
			return raw(ctx, b.conn, "SELECT RELEASE_LOCK(?)", name)
		}))
		if err != nil {
			return result{}, err
		}
		return compare(ours, peer, 0.5, "raw, default DSN:"), nil
	})
}

// againstGoMySQLLock compares on the caller's conn. The peer has no such form:
// it takes a connection from the pool for every lock.
func againstGoMySQLLock(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) { return b.goMySQLLock(b.ours) })
}

// doAgainstGoMySQLLock has both sides take a connection from the pool.
func doAgainstGoMySQLLock(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) {
		return b.goMySQLLock(func() error {
			return b.locker.Do(ctx, b.db, name, func(context.Context, *sqllock.Lock) error { return nil })
		})
	})
}

// literalAgainstGoMySQLLock is what anything of two round trips can reach there.
func literalAgainstGoMySQLLock(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) { return b.goMySQLLock(b.literal) })
}

func (b *bench) goMySQLLock(ours func() error) (result, error) {
	peer := gomysqllock.NewMysqlLocker(b.db)
	o, theirs, err := takeTurns(turns, timed(ours), timed(func() error {
		l, err := peer.ObtainTimeoutContext(b.ctx, name, 10)
		if err != nil {
			return err
		}
		return l.Release()
	}))
	if err != nil {
		return result{}, err
	}
	return compare(o, theirs, 0.5, "go-mysql-lock:"), nil
}

// handOffQuantile measures from before the release to the return of a waiter
// that waits on the server.
func handOffQuantile(q float64) func(context.Context, *testdb.Server) (result, error) {
	return func(ctx context.Context, s *testdb.Server) (result, error) {
		return with(ctx, s, func(b *bench) (result, error) {
			waiter, err := b.db.Conn(ctx)
			if err != nil {
				return result{}, err
			}
			defer waiter.Close() //nolint:errcheck // nothing depends on it
			ours := func() (time.Duration, error) { return b.handOff(waiter) }
			peer := func() (time.Duration, error) { return floorOf(s).handOff(ctx, b.conn, waiter) }
			o, p, err := takeTurns(handOff, ours, peer)
			if err != nil {
				return result{}, err
			}
			return compare(o, p, q, "raw:"), nil
		})
	}
}

// handOff times one to waiter, from before the release to the grant.
func (b *bench) handOff(waiter *sql.Conn) (time.Duration, error) {
	l, err := b.locker.Lock(b.ctx, b.conn, name)
	if err != nil {
		return 0, err
	}
	var next *sqllock.Lock
	d, err := handed(func() (err error) {
		next, err = b.locker.Lock(b.ctx, waiter, name)
		return err
	}, func() error { return l.Release(b.ctx) })
	if err != nil {
		return 0, err
	}
	return d, next.Release(b.ctx)
}

func rawHandOff(ctx context.Context, holder, waiter *sql.Conn) (time.Duration, error) {
	get, release := "SELECT GET_LOCK("+literal+", 10)", "SELECT RELEASE_LOCK("+literal+")"
	if err := raw(ctx, holder, get); err != nil {
		return 0, err
	}
	d, err := handed(func() error { return raw(ctx, waiter, get) }, func() error { return raw(ctx, holder, release) })
	if err != nil {
		return 0, err
	}
	return d, raw(ctx, waiter, release)
}

// handed starts a wait, gives it time to reach the server, and releases. It
// returns what passed from there to the end of the wait.
func handed(wait, release func() error) (time.Duration, error) {
	type end struct {
		at  time.Time
		err error
	}
	ended := make(chan end, 1)
	go func() {
		err := wait()
		ended <- end{time.Now(), err}
	}()
	time.Sleep(4 * time.Millisecond)
	start := time.Now()
	if err := release(); err != nil {
		return 0, err
	}
	e := <-ended
	return e.at.Sub(start), e.err
}

func allocations(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) {
		var failed error
		count := func(f func() error) float64 {
			return testing.AllocsPerRun(1000, func() {
				if err := f(); err != nil {
					failed = err
				}
			})
		}
		ours, peer := count(b.ours), count(func() error { return floorOf(s).lock(ctx, b.conn, func() {}) })
		return result{Ours: fmt.Sprintf("%.0f", ours), Peer: fmt.Sprintf("raw: %.0f", peer), Ratio: ours / peer}, failed
	})
}
