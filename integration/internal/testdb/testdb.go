// Package testdb gives tests, benchmarks and the demo a real database server:
// the one that a DSN in the environment names, or a private instance in a
// temporary folder on a free port, from what servers/install.sh has put into
// the cache.
//
// A private instance lives no longer than the process that started it, however
// that ends: a small supervisor waits for the end of a pipe that this process
// holds open, then kills the server and removes the folder.
package testdb

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Kind is a kind of server.
type Kind string

// The kinds of servers that the tests run on.
const (
	MySQL   Kind = "mysql"
	MariaDB Kind = "mariadb"
)

// Kinds lists all of them.
func Kinds() []Kind { return []Kind{MySQL, MariaDB} }

// ErrNotInstalled is returned by Start when the cache has no such server.
var ErrNotInstalled = errors.New("testdb: the server is not installed: run `make servers`")

// Skipped reports whether the user has named the kind in SKIP_SERVERS.
func (k Kind) Skipped() bool {
	for name := range strings.SplitSeq(os.Getenv("SKIP_SERVERS"), ",") {
		if strings.TrimSpace(name) == string(k) {
			return true
		}
	}
	return false
}

// EnvDSN returns the DSN in the environment, "" if there is none.
func (k Kind) EnvDSN() string { return os.Getenv(strings.ToUpper(string(k)) + "_DSN") }

// Server is a server that answers.
type Server struct {
	Kind Kind
	DSN  string // a user who may do everything, no default database

	owner io.Closer // its end ends the supervisor
	exit  chan error
	ended chan struct{} // closed when the server has ended by itself
	dir   string
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
	// Between finding a free port and taking it another process may be faster.
	for range 3 {
		var s *Server
		if s, err = start(ctx, kind, home, args); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func installed(kind Kind) (string, error) {
	cache := os.Getenv("SQLLOCK_CACHE")
	if cache == "" {
		// As install.sh has it, on every system.
		base := os.Getenv("XDG_CACHE_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", err
			}
			base = filepath.Join(home, ".cache")
		}
		cache = filepath.Join(base, "go-sqllock")
	}
	home := filepath.Join(cache, string(kind))
	for _, file := range []string{"server", "docker"} {
		if _, err := os.Stat(filepath.Join(home, file)); err == nil {
			return home, nil
		}
	}
	return "", fmt.Errorf("%w (nothing in %s)", ErrNotInstalled, home)
}

// supervisor runs a command until its standard input ends, then has it stopped.
// It says when the command has ended by itself, unless a file asks to start it
// again.
const supervisor = `
dir=$1 stop=$2; shift 2
{
	while
		rm -f "$dir/restart"
		"$@" </dev/null >>"$dir/out" 2>&1 & echo $! >"$dir/server.pid"
		wait
		[ -e "$dir/restart" ]
	do :; done
	echo exit
} &
until [ -s "$dir/server.pid" ]; do sleep 0.01; done
cat >/dev/null
eval "$stop"
wait
rm -rf "$dir"
`

func start(ctx context.Context, kind Kind, home string, args []string) (*Server, error) {
	dir, err := os.MkdirTemp("", "sqllock-"+string(kind)+"-")
	if err != nil {
		return nil, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	command, stop, err := commandLine(ctx, kind, home, dir, port)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	s := &Server{Kind: kind, DSN: fmt.Sprintf("root@tcp(127.0.0.1:%d)/", port), exit: make(chan error, 1), ended: make(chan struct{}), dir: dir}
	cmd := exec.Command("sh", append([]string{"-c", supervisor, "sh", dir, stop}, append(command, args...)...)...) //nolint:noctx // it ends with the pipe
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}                                                          // out of reach of a signal to the group of the tests
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if s.owner, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	go func() {
		// The supervisor says when the server has ended; after that it ends itself.
		_, _ = bufio.NewReader(out).ReadString('\n')
		close(s.ended)
		_, _ = io.Copy(io.Discard, out)
		s.exit <- cmd.Wait()
	}()
	if err := s.await(ctx); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "out"))
		_ = s.Stop()
		return nil, fmt.Errorf("testdb: %s did not start: %w\n%s", kind, err, log)
	}
	return s, nil
}

func commandLine(ctx context.Context, kind Kind, home, dir string, port int) (command []string, stop string, err error) {
	if image, err := os.ReadFile(filepath.Join(home, "docker")); err == nil {
		name := filepath.Base(dir)
		return []string{
			"docker", "run", "--rm", "--name", name, "-p", "127.0.0.1:" + strconv.Itoa(port) + ":3306",
			"-e", "MYSQL_ALLOW_EMPTY_PASSWORD=1", "-e", "MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1", strings.TrimSpace(string(image)),
		}, "docker kill " + name + " >/dev/null", nil
	}
	data := filepath.Join(dir, "data")
	if out, err := exec.CommandContext(ctx, "cp", "-R", filepath.Join(home, "data"), data).CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("testdb: copying the data folder: %w: %s", err, out)
	}
	command = []string{
		filepath.Join(home, "server"), "--user=root", "--datadir=" + data, "--port=" + strconv.Itoa(port), "--bind-address=127.0.0.1",
		"--socket=" + filepath.Join(dir, "s"), "--tmpdir=" + dir, // a server that starts empties it of another's
		"--pid-file=" + filepath.Join(dir, "pid"), "--max-connections=500",
	}
	if os.Geteuid() != 0 {
		command = append(command[:1], command[2:]...)
	}
	switch kind {
	case MySQL:
		command = append(command, "--mysqlx=OFF", "--secure-file-priv=NULL", "--innodb-redo-log-capacity=8M")
	case MariaDB:
		command = append(
			command, "--skip-name-resolve", "--innodb-log-file-size=4M", "--innodb-data-file-path=ibdata1:1M:autoextend",
			"--innodb-autoextend-increment=1", "--innodb-undo-tablespaces=0", "--innodb-doublewrite=0",
			"--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0",
		)
	}
	return command, `kill -9 "$(cat "$dir/server.pid")"`, nil
}

func freePort(ctx context.Context) (int, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close() //nolint:errcheck // a listener that has served its purpose
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("testdb: not a TCP address: %v", l.Addr())
	}
	return addr.Port, nil
}

// await returns when the server answers.
func (s *Server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // an image may have to be pulled
	defer cancel()
	for {
		err := s.ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			return errors.New("it has ended")
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *Server) ping(ctx context.Context) error {
	db, err := OpenDB(s.DSN, nil)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // only a ping
	return db.PingContext(ctx)
}

// Private reports whether the server belongs to this process alone.
func (s *Server) Private() bool { return s.owner != nil }

// Crash kills the server of a private instance, as kill -9 does, and starts it
// again on what it has left. It returns when the server answers.
func (s *Server) Crash(ctx context.Context) error {
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
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for {
		now, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if len(now) > 0 && string(now) != string(before) {
			return s.await(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// Data is the folder of the data of a private instance.
func (s *Server) Data() string { return filepath.Join(s.dir, "data") }

// Stop ends a private instance at once, and returns when it is gone. It does
// nothing to the server of the environment.
func (s *Server) Stop() error {
	if !s.Private() {
		return nil
	}
	return errors.Join(s.owner.Close(), <-s.exit)
}

// OpenDB opens a pool on dsn after change, if there is one, has changed it. The
// driver's log of broken connections, which tests bring about, goes nowhere.
func OpenDB(dsn string, change func(*mysql.Config)) (*sql.DB, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	cfg.Logger = &mysql.NopLogger{}
	if change != nil {
		change(cfg)
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}
