package integration

import (
	"database/sql"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock/locktest"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// pgLockTable makes an empty database with a lock table.
func pgLockTable(tb testing.TB, s *testdb.Server, change ...func(*pgx.ConnConfig)) *sql.DB {
	tb.Helper()
	db := pgDatabase(tb, s, change...)
	makePGTable(tb, db, "shared_locks")
	return db
}

// makePGTable makes a lock table in the database of db.
func makePGTable(tb testing.TB, db *sql.DB, name string) {
	tb.Helper()
	if err := migrations.Up(tb.Context(), db, migrations.Postgres(), migrations.WithTable(name)); err != nil {
		tb.Fatal(err)
	}
}

// sameDatabase is another pool on the database of db.
func sameDatabase(tb testing.TB, s *testdb.Server, db *sql.DB, change ...func(*pgx.ConnConfig)) *sql.DB {
	tb.Helper()
	name := ask[string](tb, db, "SELECT current_database()")
	return openPG(tb, s, append([]func(*pgx.ConnConfig){func(c *pgx.ConnConfig) { c.Database = name }}, change...)...)
}

// TestConformancePGTable has a pool lent, which is more to go wrong. What does without one
// is in the tests of this package, and in those of Pool.
func TestConformancePGTable(t *testing.T) {
	s := postgres(t)
	db := pgLockTable(t, s)
	locktest.Run(t, locktest.Config{
		Backend: pgtable.New(time.Minute, pgtable.WithPool(db)),
		Open:    func(t *testing.T) *sql.DB { t.Helper(); return sameDatabase(t, s, db) },
		Kill:    pgKill,
		Waiters: pgWaiters,
	})
}
