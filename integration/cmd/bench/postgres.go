package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// postgresRows are about packages pgadvisory and pgtable. The two peers of that
// language are played by the statements that they send, in the order and over the
// connections that they have: go-pglock v3, which hashes the name by FNV-64a, and cirello's pglock with its
// defaults, whose transactions are SERIALIZABLE.
func postgresRows() []row {
	atMost := func(ratio float64) *float64 { return &ratio }
	return []row{
		{"acquire and release / two SELECT 1", nil, againstSelect},
		{"acquire and release / raw pg_advisory_lock($1) and pg_advisory_unlock($1)", atMost(1.3), againstAdvisory},
		{"acquire and release / the statements of go-pglock", atMost(1), againstGoPGLock},
		{"acquire and release / the statements of cirello pglock", atMost(1), againstCirello},
		{"Do, connection from the pool / the statements of go-pglock", nil, doAgainstGoPGLock},
		{"hand-off p50 / raw pg_advisory_lock", atMost(1.2), handOffQuantile(0.5)},
		{"hand-off p99 / raw pg_advisory_lock", nil, handOffQuantile(0.99)},
		{"allocations / raw pg_advisory_lock($1) and pg_advisory_unlock($1)", nil, allocations},
		{"pgtable, acquire and release / the statements of cirello pglock", atMost(1), pgtableAgainstCirello},
		{"pgtable, acquire and release / one INSERT and one DELETE", nil, pgtableAgainstRows},
		{"pgtable, hand-off p50 / raw pg_advisory_lock hand-off + one INSERT", nil, pgtableHandOff},
		{"pgtable, Pool.Do / acquire and release on a held Conn", nil, pgtablePoolAgainstConn},
	}
}

const advisoryKey = int64(20261123)

func (b *bench) advisory() error { return advisoryOn(b.ctx, b.conn, func() {}) }

// advisoryOn is the fastest form of raw statements around work.
func advisoryOn(ctx context.Context, conn *sql.Conn, work func()) error {
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", advisoryKey); err != nil {
		return err
	}
	work()
	return unlockAdvisory(ctx, conn)
}

func unlockAdvisory(ctx context.Context, conn *sql.Conn) error {
	var freed bool
	err := conn.QueryRowContext(ctx, "SELECT pg_advisory_unlock($1)", advisoryKey).Scan(&freed)
	if err == nil && !freed {
		err = errors.New("pg_advisory_unlock: the lock was not held")
	}
	return err
}

func advisoryHandOff(ctx context.Context, holder, waiter *sql.Conn) (time.Duration, error) {
	lock := func(conn *sql.Conn) error {
		_, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", advisoryKey)
		return err
	}
	if err := lock(holder); err != nil {
		return 0, err
	}
	d, err := handed(func() error { return lock(waiter) }, func() error { return unlockAdvisory(ctx, holder) })
	if err != nil {
		return 0, err
	}
	return d, unlockAdvisory(ctx, waiter)
}

// versus times both sides in turns.
func (b *bench) versus(n int, ours, peer func() error, peerName string) (result, error) {
	o, p, err := takeTurns(n, timed(ours), timed(peer))
	if err != nil {
		return result{}, err
	}
	return compare(o, p, 0.5, peerName), nil
}

func againstSelect(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) {
		return b.versus(turns, b.ours, func() error {
			var one int
			return errors.Join(
				b.conn.QueryRowContext(ctx, "SELECT 1").Scan(&one),
				b.conn.QueryRowContext(ctx, "SELECT 1").Scan(&one),
			)
		}, "SELECT 1, SELECT 1:")
	})
}

func againstAdvisory(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) { return b.versus(turns, b.ours, b.advisory, "raw:") })
}

func againstGoPGLock(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) { return b.versus(turns, b.ours, b.goPGLock, "go-pglock's:") })
}

func doAgainstGoPGLock(ctx context.Context, s *testdb.Server) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) {
		return b.versus(turns, func() error { return b.locker.Do(ctx, b.db, name, nothing) }, b.goPGLock, "go-pglock's:")
	})
}

// goPGLock takes a connection for each lock, since it has no other form.
func (b *bench) goPGLock() error {
	conn, err := b.db.Conn(b.ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing depends on it
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	key := int64(h.Sum64())      //nolint:gosec // any number will do
	var got bool
	if err := conn.QueryRowContext(b.ctx, "SELECT pg_try_advisory_lock($1)", key).Scan(&got); err != nil {
		return err
	}
	_, err = conn.ExecContext(b.ctx, "SELECT pg_advisory_unlock($1)", key)
	if err == nil && !got {
		err = errors.New("the lock was taken")
	}
	return err
}

const cirelloTable = `CREATE TABLE IF NOT EXISTS locks (name varchar(255) PRIMARY KEY, record_version_number varchar(255), data bytea, owner varchar(255))`

// cirello is one lock and its release.
func (b *bench) cirello() error {
	version := rand.Text()
	serializable := &sql.TxOptions{Isolation: sql.LevelSerializable}
	tx, err := b.db.BeginTx(b.ctx, serializable)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
	_, err = tx.ExecContext(b.ctx, "INSERT INTO locks (name,record_version_number,data) VALUES ($1,$2,$3) ON CONFLICT (name) DO UPDATE"+
		" SET record_version_number=$2, data=CASE WHEN $5 THEN $3 ELSE locks.data END"+
		" WHERE locks.record_version_number IS NULL OR locks.record_version_number=$4", name, version, []byte(nil), "", false)
	if err != nil {
		return err
	}
	var found string
	var data []byte
	if err := tx.QueryRowContext(b.ctx, "SELECT record_version_number,data FROM locks WHERE name=$1 FOR UPDATE", name).Scan(&found, &data); err != nil {
		return err
	}
	if found != version {
		return fmt.Errorf("the lock was taken by %s", found)
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	release, err := b.db.BeginTx(b.ctx, serializable)
	if err != nil {
		return err
	}
	defer release.Rollback() //nolint:errcheck // as above
	if _, err := release.ExecContext(b.ctx, "UPDATE locks SET record_version_number=NULL WHERE name=$1 AND record_version_number=$2", name, version); err != nil {
		return err
	}
	return release.Commit()
}

// withDatabase is with in a database of its own, with the tables of both.
func withDatabase(ctx context.Context, s *testdb.Server, backend sqllock.Backend, f func(b *bench) (result, error)) (result, error) {
	return with(ctx, s, func(b *bench) (result, error) {
		database := "bench" + strings.ToLower(rand.Text())
		if _, err := b.db.ExecContext(ctx, "CREATE DATABASE "+database); err != nil {
			return result{}, err
		}
		defer b.db.ExecContext(context.WithoutCancel(ctx), "DROP DATABASE "+database+" WITH (FORCE)") //nolint:errcheck // a server of the user's keeps an empty one
		db, err := testdb.OpenPostgres(s.DSN, func(c *pgx.ConnConfig) { c.Database = database })
		if err != nil {
			return result{}, err
		}
		defer db.Close() //nolint:errcheck // nothing depends on it
		if err := migrations.Up(ctx, db, migrations.Postgres()); err != nil {
			return result{}, err
		}
		conn, err := db.Conn(ctx)
		if err != nil {
			return result{}, err
		}
		defer conn.Close() //nolint:errcheck // as above
		if err := exec(ctx, conn, cirelloTable); err != nil {
			return result{}, err
		}
		return f(&bench{ctx, db, conn, sqllock.New(backend)})
	})
}

func againstCirello(ctx context.Context, s *testdb.Server) (result, error) {
	return withDatabase(ctx, s, pgadvisory.New(), func(b *bench) (result, error) {
		return b.versus(tableTurns, b.ours, b.cirello, "cirello's:")
	})
}

func pgtableAgainstCirello(ctx context.Context, s *testdb.Server) (result, error) {
	return withDatabase(ctx, s, pgtable.New(time.Minute), func(b *bench) (result, error) {
		return b.versus(tableTurns, b.ours, b.cirello, "cirello's:")
	})
}

// row is what anything that writes a row for a lock can't do without.
func (b *bench) insert(conn *sql.Conn) error {
	_, err := conn.ExecContext(b.ctx, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired,token,holder) VALUES ($1,1,1,1,1,1,$2)", "floor", "nobody")
	return err
}

func (b *bench) remove(conn *sql.Conn) error {
	_, err := conn.ExecContext(b.ctx, "DELETE FROM shared_locks WHERE name=$1", "floor")
	return err
}

func pgtableAgainstRows(ctx context.Context, s *testdb.Server) (result, error) {
	return withDatabase(ctx, s, pgtable.New(time.Minute), func(b *bench) (result, error) {
		return b.versus(tableTurns, b.ours, func() error { return errors.Join(b.insert(b.conn), b.remove(b.conn)) }, "INSERT, DELETE:")
	})
}

func pgtableHandOff(ctx context.Context, s *testdb.Server) (result, error) {
	return withDatabase(ctx, s, pgtable.New(time.Minute), func(b *bench) (result, error) {
		waiter, err := b.db.Conn(ctx)
		if err != nil {
			return result{}, err
		}
		defer waiter.Close() //nolint:errcheck // nothing depends on it
		ours := func() (time.Duration, error) { return b.handOff(waiter) }
		floor := func() (time.Duration, error) {
			d, err := advisoryHandOff(ctx, b.conn, waiter)
			if err != nil {
				return 0, err
			}
			start := time.Now()
			err = b.insert(waiter)
			d += time.Since(start)
			if err != nil {
				return 0, err
			}
			return d, b.remove(waiter)
		}
		o, p, err := takeTurns(handOff, ours, floor)
		if err != nil {
			return result{}, err
		}
		return compare(o, p, 0.5, "raw:"), nil
	})
}

func pgtablePoolAgainstConn(ctx context.Context, s *testdb.Server) (result, error) {
	return withDatabase(ctx, s, pgtable.New(time.Minute), (*bench).poolAgainstConn)
}

// postgresGuardRows are guardRows for PostgreSQL.
func postgresGuardRows() []row {
	return []row{
		{"guarded transaction, pgadvisory / the same one unguarded", nil, pgGuard(pgadvisory.New())},
		{"guarded transaction, pgtable / the same one unguarded", nil, pgGuard(pgtable.New(time.Hour))},
		{"guarded transaction with evidence, pgadvisory / the same one unguarded", nil, pgGuard(pgadvisory.New(), evidence)},
		{"fenced transaction, pgtable / the same one unguarded on a connection of the pool", nil, pgFenced},
	}
}

func withPGWork(ctx context.Context, s *testdb.Server, backend sqllock.Backend, f func(b *bench, lock *sqllock.Lock) (result, error)) (result, error) {
	return withDatabase(ctx, s, backend, func(b *bench) (res result, err error) {
		if err := migrations.Up(ctx, b.db, migrations.Postgres(), migrations.Fences()); err != nil {
			return result{}, err
		}
		if err := exec(ctx, b.conn, "CREATE TABLE work (id bigint PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor=50)"); err != nil {
			return result{}, err
		}
		if err := exec(ctx, b.conn, "INSERT INTO work VALUES (1,0)"); err != nil {
			return result{}, err
		}
		lock, err := b.locker.Lock(ctx, b.conn, name)
		if err != nil {
			return result{}, err
		}
		defer func() { err = errors.Join(err, lock.Release(ctx)) }()
		return f(b, lock)
	})
}

func pgGuard(backend sqllock.Backend, opts ...func(*sql.DB) txguard.Option) func(context.Context, *testdb.Server) (result, error) {
	return func(ctx context.Context, s *testdb.Server) (result, error) {
		return withPGWork(ctx, s, backend, func(b *bench, lock *sqllock.Lock) (result, error) { return b.guarded(lock, opts) })
	}
}

func pgFenced(ctx context.Context, s *testdb.Server) (result, error) {
	return withPGWork(ctx, s, pgtable.New(time.Hour), (*bench).fenced)
}
