package integration

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// fixture is the server of a kind, started when the first test asks for it.
type fixture struct {
	once   sync.Once
	server *testdb.Server
	err    error
}

var fixtures = map[testdb.Kind]*fixture{testdb.MySQL: {}, testdb.MariaDB: {}, testdb.Postgres: {}}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range fixtures {
		if f.server != nil {
			if err := f.server.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines that the tests left behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// server returns the shared server of a kind. One that can't be had fails the
// test, unless the user has named it in SKIP_SERVERS.
func server(tb testing.TB, kind testdb.Kind) *testdb.Server {
	tb.Helper()
	needed(tb, kind)
	f := fixtures[kind]
	f.once.Do(func() { f.server, f.err = testdb.Open(context.Background(), kind) })
	if f.err != nil {
		tb.Fatal(f.err)
	}
	return f.server
}

// needed skips the test where no server of the kind is wanted.
func needed(tb testing.TB, kind testdb.Kind) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("needs a server")
	}
	if kind.Skipped() {
		tb.Skipf("%s is named in SKIP_SERVERS", kind)
	}
}

// private starts a server that the test may spoil.
func private(t *testing.T, kind testdb.Kind, args ...string) *testdb.Server {
	t.Helper()
	needed(t, kind)
	if kind.EnvDSN() != "" {
		t.Skipf("needs an instance of its own, and a DSN for %s was given", kind)
	}
	s, err := testdb.Start(t.Context(), kind, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// onEach runs a test on each kind of server that speaks the protocol of MySQL.
func onEach(t *testing.T, test func(t *testing.T, s *testdb.Server)) {
	t.Helper()
	for _, kind := range testdb.Kinds() {
		t.Run(string(kind), func(t *testing.T) { test(t, server(t, kind)) })
	}
}

// open returns a pool on s for the length of the test.
func open(tb testing.TB, s *testdb.Server, change ...func(*mysql.Config)) *sql.DB {
	tb.Helper()
	db, err := testdb.OpenDB(s.DSN, func(c *mysql.Config) {
		for _, f := range change {
			f(c)
		}
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// postgres returns the shared PostgreSQL.
func postgres(tb testing.TB) *testdb.Server {
	tb.Helper()
	return server(tb, testdb.Postgres)
}

// openPG returns a pool on s for the length of the test.
func openPG(tb testing.TB, s *testdb.Server, change ...func(*pgx.ConnConfig)) *sql.DB {
	tb.Helper()
	db, err := testdb.OpenPostgres(s.DSN, func(c *pgx.ConnConfig) {
		for _, f := range change {
			f(c)
		}
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

var databases atomic.Int64

// pgDatabase makes an empty database for the length of the test, in which the
// test is alone with its advisory locks, and returns a pool on it.
func pgDatabase(tb testing.TB, s *testdb.Server, change ...func(*pgx.ConnConfig)) *sql.DB {
	tb.Helper()
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), databases.Add(1))
	admin := openPG(tb, s)
	admin.SetMaxIdleConns(0) // the test may crash the server
	if _, err := admin.ExecContext(tb.Context(), "CREATE DATABASE "+name); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if _, err := admin.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			tb.Error(err)
		}
	})
	return openPG(tb, s, append([]func(*pgx.ConnConfig){func(c *pgx.ConnConfig) { c.Database = name }}, change...)...)
}

// conn takes a session for the length of the test.
func conn(tb testing.TB, db *sql.DB) *sql.Conn {
	tb.Helper()
	c, err := db.Conn(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}
