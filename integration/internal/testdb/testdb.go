// Package testdb gives tests, benchmarks and the demo a real database server:
// the one that a DSN in the environment names, or a private instance in a
// temporary folder on a free port, from what servers/install.sh has put into
// the cache. In front of a PostgreSQL it puts a PgBouncer.
//
// A private instance lives no longer than the process that started it, however
// that ends: a small supervisor waits for the end of a pipe that this process
// holds open, then kills the server and removes the folder.
package testdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Kind is a kind of server.
type Kind string

// The kinds of servers that the tests run on.
const (
	MySQL    Kind = "mysql"
	MariaDB  Kind = "mariadb"
	Postgres Kind = "postgres"
)

// PgBouncer is what StartBouncer runs in front of a Postgres.
const PgBouncer Kind = "pgbouncer"

// Kinds lists the kinds that speak the protocol of MySQL: what a test does on
// each of them takes the driver of MySQL.
func Kinds() []Kind { return []Kind{MySQL, MariaDB} }

// ErrNotInstalled is returned by Start when the cache has no such server.
var ErrNotInstalled = errors.New("testdb: the server is not installed: run `make servers`")

// Skipped reports whether the user has named the kind in SKIP_SERVERS. Without
// a Postgres there is no PgBouncer either.
func (k Kind) Skipped() bool {
	for name := range strings.SplitSeq(os.Getenv("SKIP_SERVERS"), ",") {
		switch Kind(strings.TrimSpace(name)) {
		case k:
			return true
		case Postgres:
			if k == PgBouncer {
				return true
			}
		}
	}
	return false
}

// EnvDSN returns the DSN in the environment, "" if there is none.
func (k Kind) EnvDSN() string { return os.Getenv(strings.ToUpper(string(k)) + "_DSN") }

// Server is a server that answers.
type Server struct {
	Kind Kind
	DSN  string // a user who may do everything; no default database, that of Postgres is postgres

	*instance // nil for the server of the environment
}

// Open returns the server of the environment, or a private instance. An
// environment that names a server which can't be reached is an error.
func Open(ctx context.Context, kind Kind) (*Server, error) {
	dsn := kind.EnvDSN()
	if dsn == "" {
		return Start(ctx, kind)
	}
	s := &Server{Kind: kind, DSN: dsn}
	if err := s.ping(ctx); err != nil {
		return nil, fmt.Errorf("testdb: the server that %s_DSN names can't be reached: %w", strings.ToUpper(string(kind)), err)
	}
	return s, nil
}

// Start starts a private instance with args added to its arguments.
func Start(ctx context.Context, kind Kind, args ...string) (*Server, error) {
	home, err := installed(kind)
	if err != nil {
		return nil, err
	}
	s := &Server{Kind: kind}
	s.instance, err = launch(ctx, string(kind), s.ping, func(dir string, port int) (command []string, stop string, err error) {
		if kind == Postgres {
			s.DSN = postgresDSN(port, "postgres")
		} else {
			s.DSN = mysqlDSN(port)
		}
		command, stop, err = commandLine(ctx, kind, home, dir, port)
		return append(command, args...), stop, err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// commandLine returns the command of a server with the folder that it is to use,
// and what stops it.
func commandLine(ctx context.Context, kind Kind, home, dir string, port int) (command []string, stop string, err error) {
	if image, err := os.ReadFile(filepath.Join(home, "docker")); err == nil {
		name, options := filepath.Base(dir), mysqlDocker
		if kind == Postgres {
			options = postgresDocker
		}
		return append([]string{"docker", "run", "--rm", "--name", name}, options(port, strings.TrimSpace(string(image)))...),
			"docker kill " + name + " >/dev/null", nil
	}
	data := filepath.Join(dir, "data")
	// With -p it stays that of the user whom the server runs as.
	if out, err := exec.CommandContext(ctx, "cp", "-Rp", filepath.Join(home, "data"), data).CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("testdb: copying the data folder: %w: %s", err, out)
	}
	server := filepath.Join(home, "server")
	if kind == Postgres {
		return append([]string{server}, postgresOptions(data, port)...), stopPostgres, nil
	}
	return append([]string{server}, mysqlOptions(kind, dir, data, port)...), stopAtOnce, nil
}

func (s *Server) ping(ctx context.Context) error {
	if s.Kind == Postgres {
		return pingPostgres(ctx, s.DSN)
	}
	db, err := OpenDB(s.DSN, nil)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // only a ping
	return db.PingContext(ctx)
}

// Private reports whether the server belongs to this process alone.
func (s *Server) Private() bool { return s.instance != nil }

// Crash kills the server of a private instance, as kill -9 does, and starts it
// again on what it has left. It returns when the server answers.
func (s *Server) Crash(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := os.WriteFile(filepath.Join(s.dir, "restart"), nil, 0o600); err != nil {
		return err
	}
	file := filepath.Join(s.dir, "server.pid")
	before, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(before)))
	if err != nil {
		return err
	}
	sessions := workingIn(s.Data())
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for _, pid := range sessions {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for {
		now, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if len(now) > 0 && string(now) != string(before) {
			return s.await(ctx, s.ping)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("testdb: the server that was killed has not ended: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// workingIn lists the processes that have dir as their working directory: of a
// Postgres, also those of its sessions. They end by themselves when they notice
// that the server has, all but the ones that compute; which is what remains to
// be waited for on a system without /proc.
func workingIn(dir string) (pids []int) {
	dir, _ = filepath.EvalSymlinks(dir)
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && cwd == dir {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// Data is the folder of the data of a private instance.
func (s *Server) Data() string { return filepath.Join(s.dir, "data") }

// Stop ends a private instance at once, and returns when it is gone. It does
// nothing to the server of the environment.
func (s *Server) Stop() error {
	if !s.Private() {
		return nil
	}
	return s.end()
}
