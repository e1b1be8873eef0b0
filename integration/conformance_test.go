package integration

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/locktest"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// mysqlWaiters counts the sessions that are inside GET_LOCK for key.
func mysqlWaiters(ctx context.Context, db *sql.DB, key string) (n int, err error) {
	err = db.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.processlist"+
		" WHERE id<>CONNECTION_ID() AND state='User lock' AND info LIKE ?",
		"%GET_LOCK(%X'"+hex.EncodeToString([]byte(key))+"',%").Scan(&n)
	return n, err
}

func mysqlKill(ctx context.Context, db *sql.DB, session int64) error {
	_, err := db.ExecContext(ctx, fmt.Sprintf("KILL CONNECTION %d", session))
	return err
}

func TestConformanceMySQLNamed(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		run := func(name string, backend sqllock.Backend) {
			t.Run(name, func(t *testing.T) {
				locktest.Run(t, locktest.Config{
					Backend: backend,
					Open:    func(t *testing.T) *sql.DB { t.Helper(); return open(t, s) },
					Kill:    mysqlKill,
					Waiters: mysqlWaiters,
				})
			})
		}
		run("plain", mysqlnamed.New())
		run("control", mysqlnamed.New(mysqlnamed.WithControl(open(t, s))))
	})
}

// engines are those that the table can be of.
var engines = []string{"MyISAM", "InnoDB"}

// schema makes an empty database for the length of the test, and returns a pool
// on it.
func schema(tb testing.TB, s *testdb.Server, change ...func(*mysql.Config)) *sql.DB {
	tb.Helper()
	name := "t" + strings.ToLower(rand.Text())
	admin := open(tb, s)
	if _, err := admin.ExecContext(tb.Context(), "CREATE DATABASE "+name); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if _, err := admin.ExecContext(context.WithoutCancel(tb.Context()), "DROP DATABASE "+name); err != nil {
			tb.Error(err)
		}
	})
	return open(tb, s, append([]func(*mysql.Config){func(c *mysql.Config) { c.DBName = name }}, change...)...)
}

// lockTable makes a database with a lock table of the engine.
func lockTable(tb testing.TB, s *testdb.Server, engine string, change ...func(*mysql.Config)) *sql.DB {
	tb.Helper()
	db := schema(tb, s, change...)
	if err := migrations.Up(tb.Context(), db, migrations.WithEngine(engine)); err != nil {
		tb.Fatal(err)
	}
	return db
}

func TestConformanceTable(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, engine := range engines {
			db := lockTable(t, s, engine)
			name := database(t, db)
			run := func(what string, backend sqllock.Backend) {
				t.Run(engine+" "+what, func(t *testing.T) {
					locktest.Run(t, locktest.Config{
						Backend: backend,
						Open: func(t *testing.T) *sql.DB {
							t.Helper()
							return open(t, s, func(c *mysql.Config) { c.DBName = name })
						},
						Kill:    mysqlKill,
						Waiters: mysqlWaiters,
					})
				})
			}
			run("plain", table.New(time.Minute))
			run("pool", table.New(time.Minute, table.WithPool(db)))
		}
	})
}

func database(tb testing.TB, db *sql.DB) (name string) {
	tb.Helper()
	if err := db.QueryRowContext(tb.Context(), "SELECT DATABASE()").Scan(&name); err != nil {
		tb.Fatal(err)
	}
	return name
}
