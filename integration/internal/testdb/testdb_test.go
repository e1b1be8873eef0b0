package testdb_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

const childEnv = "SQLLOCK_TESTDB_CHILD"

// TestMain is also the process that TestKilledOwner kills.
func TestMain(m *testing.M) {
	kind := testdb.Kind(os.Getenv(childEnv))
	if kind == "" {
		os.Exit(m.Run())
	}
	dsn, err := startForLife(context.Background(), kind)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(dsn)
	select {}
}

// startForLife starts what only the end of the process ends.
func startForLife(ctx context.Context, kind testdb.Kind) (dsn string, err error) {
	if kind != testdb.PgBouncer {
		s, err := testdb.Start(ctx, kind)
		if err != nil {
			return "", err
		}
		return s.DSN, nil
	}
	s, err := testdb.Start(ctx, testdb.Postgres)
	if err != nil {
		return "", err
	}
	b, err := testdb.StartBouncer(ctx, s, "session")
	if err != nil {
		return "", err
	}
	return b.DSN, nil
}

func needed(t *testing.T, kind testdb.Kind) {
	t.Helper()
	if testing.Short() || kind.Skipped() || kind.EnvDSN() != "" {
		t.Skip("no private instance is wanted")
	}
}

// TestKilledOwner: kill -9 of the process that started a server ends the server
// and removes its folder.
func TestKilledOwner(t *testing.T) {
	for _, kind := range append(testdb.Kinds(), testdb.Postgres, testdb.PgBouncer) {
		t.Run(string(kind), func(t *testing.T) {
			needed(t, kind)
			tmp := t.TempDir()
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), childEnv+"="+string(kind), "TMPDIR="+tmp)
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			dsn, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			db := open(t, kind, strings.TrimSpace(dsn))
			if err := db.PingContext(t.Context()); err != nil {
				t.Fatalf("the server of %s: %v", dsn, err)
			}
			busy(t, kind, db)
			if len(processes(t, tmp)) == 0 && runtime.GOOS == "linux" {
				t.Error("there should be processes")
			}
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = child.Wait()
			eventually(t, "the server to end", func() bool { return len(processes(t, tmp)) == 0 && db.PingContext(t.Context()) != nil })
			eventually(t, "the folder to be removed", func() bool {
				left, err := filepath.Glob(filepath.Join(tmp, "sqllock-*"))
				if err != nil {
					t.Fatal(err)
				}
				return len(left) == 0
			})
		})
	}
}

// open returns a pool for the length of the test.
func open(t *testing.T, kind testdb.Kind, dsn string) *sql.DB {
	t.Helper()
	var db *sql.DB
	var err error
	if kind == testdb.Postgres || kind == testdb.PgBouncer {
		db, err = testdb.OpenPostgres(dsn, nil)
	} else {
		db, err = testdb.OpenDB(dsn, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// busy has the server wait in a session, and another session idle, till the
// server ends. What it returns tells how the wait has ended.
func busy(t *testing.T, kind testdb.Kind, db *sql.DB) <-chan error {
	t.Helper()
	idle, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = idle.Close() })
	sleep := "DO SLEEP(600)"
	if kind == testdb.Postgres || kind == testdb.PgBouncer {
		sleep = "SELECT pg_sleep(600)"
	}
	waiter, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		defer waiter.Close() //nolint:errcheck // it is broken
		_, err := waiter.ExecContext(context.Background(), sleep)
		ended <- err
	}()
	return ended
}

// processes lists the processes that have to do with a folder, as /proc has them.
// The sessions of a Postgres show it as their working directory only.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, proc := range all {
		// A process that ends meanwhile has neither.
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd"))
		args, _ := os.ReadFile(filepath.Join(proc, "cmdline")) //nolint:gosec // of /proc
		if strings.HasPrefix(cwd, dir) || strings.Contains(string(args), dir) {
			found = append(found, fmt.Sprintf("%s in %s: %q", proc, cwd, args))
		}
	}
	return found
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestStop ends the server at once with all its processes, whatever it is doing,
// and a server that does not start is told with its log.
func TestStop(t *testing.T) {
	for _, kind := range []testdb.Kind{testdb.MariaDB, testdb.Postgres} {
		t.Run(string(kind), func(t *testing.T) {
			needed(t, kind)
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			s, err := testdb.Start(t.Context(), kind)
			if err != nil {
				t.Fatal(err)
			}
			busy(t, kind, open(t, kind, s.DSN))
			if err := s.Stop(); err != nil {
				t.Errorf("Stop: %v", err)
			}
			if left := processes(t, tmp); len(left) > 0 {
				t.Errorf("left running: %s", left)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("left in the folder: %v, %v", left, err)
			}
			_, err = testdb.Start(t.Context(), kind, "--no-such-option")
			if err == nil || !strings.Contains(err.Error(), "no-such-option") {
				t.Errorf("a server that does not start: %v", err)
			}
		})
	}
}

// TestStopWhileStarting: a server that is stopped before it can have answered
// ends as well.
func TestStopWhileStarting(t *testing.T) {
	for _, kind := range append(testdb.Kinds(), testdb.Postgres) {
		t.Run(string(kind), func(t *testing.T) {
			needed(t, kind)
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			for patience := time.Millisecond; patience < 100*time.Millisecond; patience *= 3 {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				s, err := testdb.Start(ctx, kind)
				cancel()
				if err == nil {
					err = s.Stop()
					t.Logf("it has started within %s, %v", patience, err)
				}
				if left := processes(t, tmp); len(left) > 0 {
					t.Fatalf("left running after %s: %s", patience, left)
				}
			}
		})
	}
}

// TestCrash: what was committed is there afterwards, sessions are not.
func TestCrash(t *testing.T) {
	for _, kind := range append(testdb.Kinds(), testdb.Postgres) {
		t.Run(string(kind), func(t *testing.T) {
			needed(t, kind)
			var args []string
			if kind == testdb.MariaDB {
				args = append(args, "--innodb-flush-log-at-trx-commit=1") // else it may lose a second
			}
			s, err := testdb.Start(t.Context(), kind, args...)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Stop() //nolint:errcheck // TestStop has it
			db := open(t, kind, s.DSN)
			do(t, db, "CREATE SCHEMA crash")
			do(t, db, "CREATE TABLE crash.rounds (n INT PRIMARY KEY)")
			for round := range 2 {
				do(t, db, fmt.Sprintf("INSERT INTO crash.rounds VALUES (%d)", round))
				waiting := busy(t, kind, db)
				if err := s.Crash(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := <-waiting; err == nil {
					t.Error("a session has outlived its server")
				}
				var rounds int
				// A pool of its own has no sessions of the server before.
				if err := open(t, kind, s.DSN).QueryRowContext(t.Context(), "SELECT COUNT(*) FROM crash.rounds").Scan(&rounds); err != nil {
					t.Fatal(err)
				}
				if rounds != round+1 {
					t.Errorf("%d rows after crash %d", rounds, round)
				}
			}
		})
	}
}

func do(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// TestPostgres: what the tests rely on.
func TestPostgres(t *testing.T) {
	needed(t, testdb.Postgres)
	s, err := testdb.Start(t.Context(), testdb.Postgres, "-c", "deadlock_timeout=123ms", "-c", "max_connections=20")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop() //nolint:errcheck // TestStop has it
	db := open(t, s.Kind, s.DSN)
	for name, want := range map[string]string{
		"deadlock_timeout": "123ms", "max_connections": "20", "server_encoding": "UTF8", "fsync": "off",
	} {
		var got string
		err := db.QueryRowContext(t.Context(), "SELECT setting || COALESCE(NULLIF(unit, '8kB'), '') FROM pg_settings WHERE name = $1", name).Scan(&got)
		if err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	var version int
	var collation string
	err = db.QueryRowContext(
		t.Context(), "SELECT current_setting('server_version_num')::int, datcollate FROM pg_database WHERE datname = current_database()",
	).Scan(&version, &collation)
	if err != nil || version < 15_00_00 || collation != "C" {
		t.Errorf("version %d, collation %s, %v", version, collation, err)
	}
}

// TestBouncer: each mode has clients share the sessions of the server in its way.
func TestBouncer(t *testing.T) {
	needed(t, testdb.PgBouncer)
	s, err := testdb.Open(t.Context(), testdb.Postgres)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop() //nolint:errcheck // TestStop has it
	for _, mode := range []string{"session", "transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			b, err := testdb.StartBouncer(t.Context(), s, mode)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := b.Stop(); err != nil {
					t.Error(err)
				}
			}()
			simple := func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol }
			db, err := testdb.OpenPostgres(b.DSN, simple)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close() //nolint:errcheck // only read from
			// In a session two statements have the server's session to themselves; else
			// more clients than it has sessions are served.
			clients := testdb.BouncerPool
			if mode != "session" {
				clients *= 3
			}
			pids := map[int]bool{}
			for range clients {
				c, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				var pid int
				if err := c.QueryRowContext(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
					t.Fatal(err)
				}
				pids[pid] = true
			}
			if mode == "session" && len(pids) != clients || len(pids) > testdb.BouncerPool {
				t.Errorf("%d clients have had %d sessions", clients, len(pids))
			}
			console, err := testdb.OpenPostgres(b.DSN, func(c *pgx.ConnConfig) { simple(c); c.Database = "pgbouncer" })
			if err != nil {
				t.Fatal(err)
			}
			defer console.Close() //nolint:errcheck // only read from
			var version string
			if err := console.QueryRowContext(t.Context(), "SHOW VERSION").Scan(&version); err != nil || !strings.Contains(version, "PgBouncer") {
				t.Errorf("the console: %q, %v", version, err)
			}
			if mode == "statement" {
				if _, err := db.BeginTx(t.Context(), nil); err == nil {
					t.Error("there are no transactions in this mode")
				}
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		if _, err := testdb.StartBouncer(t.Context(), s, "no-such-mode"); err == nil || !strings.Contains(err.Error(), "pool_mode") {
			t.Errorf("a mode that does not exist: %v", err)
		}
	})
}

// TestEnvironment: a DSN that is set wins, and it is an error if nobody answers.
func TestEnvironment(t *testing.T) {
	t.Setenv("MYSQL_DSN", "root@tcp(127.0.0.1:1)/")
	if _, err := testdb.Open(t.Context(), testdb.MySQL); err == nil || !strings.Contains(err.Error(), "MYSQL_DSN") {
		t.Errorf("a DSN that leads nowhere: %v", err)
	}
	t.Setenv("MYSQL_DSN", "")
	t.Setenv("SQLLOCK_CACHE", t.TempDir())
	if _, err := testdb.Open(t.Context(), testdb.MySQL); !errors.Is(err, testdb.ErrNotInstalled) || !strings.Contains(err.Error(), "make servers") {
		t.Errorf("an empty cache: %v", err)
	}
	t.Setenv("SKIP_SERVERS", "postgres, mysql")
	if !testdb.MySQL.Skipped() || testdb.MariaDB.Skipped() || !testdb.Postgres.Skipped() || !testdb.PgBouncer.Skipped() {
		t.Error("SKIP_SERVERS is misread")
	}
}

// script runs one of the scripts beside the tests with an environment that has
// nothing but what is given.
func script(t *testing.T, name string, args []string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", "servers", name), args...)
	cmd.Env = append([]string{"HOME=" + t.TempDir()}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// path makes a folder of programs: links to those of the system that are named,
// and scripts.
func path(t *testing.T, scripts map[string]string, system ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range system {
		target, err := exec.LookPath(name)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	return "PATH=" + dir
}

var shellTools = []string{"sh", "mkdir", "mktemp", "rm", "mv", "tr", "cat", "id", "grep", "dirname", "chmod", "ln"}

// withoutServer skips the test if the script finds a server outside of PATH.
func withoutServer(t *testing.T, kind testdb.Kind) {
	t.Helper()
	for _, pattern := range map[testdb.Kind][]string{
		testdb.MySQL:     {"/usr/sbin/mysqld"},
		testdb.Postgres:  {"/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb"},
		testdb.PgBouncer: {"/usr/sbin/pgbouncer"},
	}[kind] {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			t.Skip("this machine has a server where the script looks for one")
		}
	}
}

// TestInstallWithoutAnything: the message says what to do.
func TestInstallWithoutAnything(t *testing.T) {
	for kind, wants := range map[testdb.Kind][]string{
		testdb.MySQL:     {"brew install mysql", "MYSQL_DSN='user", "SKIP_SERVERS=mysql", "start Docker"},
		testdb.Postgres:  {"brew install postgresql", "POSTGRES_DSN='postgres://", "SKIP_SERVERS=postgres", "start Docker"},
		testdb.PgBouncer: {"brew install pgbouncer", "SKIP_SERVERS=pgbouncer"},
	} {
		t.Run(string(kind), func(t *testing.T) {
			withoutServer(t, kind)
			out, err := script(t, "install.sh", []string{string(kind)}, path(t, nil, shellTools...))
			if err == nil {
				t.Fatalf("it should fail: %s", out)
			}
			for _, want := range wants {
				if !strings.Contains(out, want) {
					t.Errorf("the message should have %q:\n%s", want, out)
				}
			}
		})
	}
	out, err := script(t, "install.sh", nil, path(t, nil, shellTools...), "SKIP_SERVERS=mysql,postgres", "MARIADB_DSN=root@tcp(127.0.0.1:1)/")
	if err != nil || !strings.Contains(out, "pgbouncer: left out") || !strings.Contains(out, "the DSN from the environment is used") {
		t.Errorf("with nothing to do: %v\n%s", err, out)
	}
	if out, err = script(t, "install.sh", []string{"oracle"}, path(t, nil, shellTools...)); err == nil || !strings.Contains(out, "no server called oracle") {
		t.Errorf("an unknown server: %v\n%s", err, out)
	}
}

// TestInstallWithDocker: where only Docker is there, the image is noted, and an
// instance is a container that is killed at the end.
func TestInstallWithDocker(t *testing.T) {
	for kind, want := range map[testdb.Kind]struct{ image, port, option string }{
		testdb.MySQL:    {"mysql:8.4", ":3306", "MYSQL_ALLOW_EMPTY_PASSWORD=1"},
		testdb.Postgres: {"postgres:17", ":5432", "POSTGRES_HOST_AUTH_METHOD=trust"},
	} {
		t.Run(string(kind), func(t *testing.T) {
			withoutServer(t, kind)
			cache := t.TempDir()
			out, err := script(t, "install.sh", []string{string(kind)}, path(t, map[string]string{"docker": "exit 0"}, shellTools...), "SQLLOCK_CACHE="+cache)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			image, err := os.ReadFile(filepath.Join(cache, string(kind), "docker"))
			if err != nil || strings.TrimSpace(string(image)) != want.image {
				t.Errorf("image %q, %v", image, err)
			}
			// The stand-in for Docker ends at once, and tells what it was asked.
			told := filepath.Join(t.TempDir(), "told")
			t.Setenv("SQLLOCK_CACHE", cache)
			dir := strings.TrimPrefix(path(t, map[string]string{"docker": `echo "$@" >>"` + told + `"; echo no daemon; exit 1`}), "PATH=")
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			if _, err := testdb.Start(t.Context(), kind); err == nil || !strings.Contains(err.Error(), "no daemon") {
				t.Errorf("a container that does not start: %v", err)
			}
			said, err := os.ReadFile(told)
			if err != nil {
				t.Fatal(err)
			}
			name := "sqllock-" + string(kind) + "-"
			for _, want := range []string{"run --rm --name " + name, "-p 127.0.0.1:", want.port, want.option, want.image, "kill " + name} {
				if !strings.Contains(string(said), want) {
					t.Errorf("docker should have been told %q:\n%s", want, said)
				}
			}
		})
	}
}

// TestInstallFromPath: a PostgreSQL that is not too old, and a PgBouncer, are
// used from where they are, by root as well.
func TestInstallFromPath(t *testing.T) {
	programs := map[string]string{
		"postgres":  `echo "postgres (PostgreSQL) 16.1"; id -u`,
		"initdb":    "exit 0",
		"pgbouncer": "id -u",
	}
	tools := append([]string{"setpriv", "chown"}, shellTools...)
	if os.Geteuid() != 0 {
		tools = shellTools
	}
	cache, found := t.TempDir(), path(t, programs, tools...)
	out, err := script(t, "install.sh", []string{"postgres", "pgbouncer"}, found, "SQLLOCK_CACHE="+cache)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, kind := range []testdb.Kind{testdb.Postgres, testdb.PgBouncer} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(cache, string(kind), "server")).Output()
		if uid := strings.TrimSpace(string(out)); err != nil || uid == "" || strings.HasSuffix(uid, "\n0") || uid == "0" {
			t.Errorf("%s ran as %q, %v", kind, uid, err)
		}
	}
	if info, err := os.Stat(filepath.Join(cache, "postgres", "data")); err != nil || !info.IsDir() {
		t.Errorf("the data folder: %v", err)
	}
}

// TestNoCompiler: the message says what to install.
func TestNoCompiler(t *testing.T) {
	out, err := script(t, "cc.sh", nil, path(t, map[string]string{"go": "echo no-such-cc"}, "sh", "id"))
	if err == nil || !strings.Contains(out, "apt-get install gcc") || !strings.Contains(out, "xcode-select") {
		t.Errorf("%v\n%s", err, out)
	}
}
