package testdb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// installed returns the folder of the cache that has the server.
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

// instance is a program that runs under a supervisor, in a folder of its own.
type instance struct {
	owner io.Closer // its end ends the supervisor
	exit  chan error
	ended chan struct{} // closed when the program has ended by itself
	dir   string
}

// supervisor runs a command until its standard input ends, then has it stopped.
// It says when the command has ended by itself, unless a file asks to start it
// again. Ended means: with all the processes that it has started, which is when
// the last of them lets go of its output. What remains of a Postgres that was
// killed would keep the next one from starting.
//
// A stop is repeated until it has had an effect: a signal may come when the
// command is still the script that becomes the server, or the one before.
const supervisor = `
dir=$1 stop=$2; shift 2
{
	while
		rm -f "$dir/restart"
		{ "$@" </dev/null 2>&1 & echo $! >"$dir/server.pid"; wait; } | cat >>"$dir/out"
		[ -e "$dir/restart" ]
	do :; done
	: >"$dir/ended"
	echo exit
} &
until [ -s "$dir/server.pid" ]; do sleep 0.01; done
cat >/dev/null
while eval "$stop"; [ ! -e "$dir/ended" ]; do sleep 0.01; done
wait
rm -rf "$dir"
`

// stopAtOnce is for a server that is one process.
const stopAtOnce = `kill -9 "$(cat "$dir/server.pid")" 2>/dev/null`

// prepare returns the command that is to run in dir and serve port, and what
// stops it.
type prepare func(dir string, port int) (command []string, stop string, err error)

// launch starts an instance, and returns when ping succeeds.
func launch(ctx context.Context, name string, ping func(context.Context) error, prepare prepare) (i *instance, err error) {
	// Between finding a free port and taking it another process may be faster.
	for range 3 {
		if i, err = launchOnce(ctx, name, ping, prepare); !errors.Is(err, errEnded) {
			break
		}
	}
	return i, err
}

func launchOnce(ctx context.Context, name string, ping func(context.Context) error, prepare prepare) (*instance, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sqllock-"+name+"-")
	if err != nil {
		return nil, err
	}
	i := &instance{exit: make(chan error, 1), ended: make(chan struct{}), dir: dir}
	command, stop, err := prepare(dir, port)
	if err == nil {
		err = i.run(command, stop)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	if err := i.await(ctx, ping); err != nil {
		_ = i.end()
		return nil, fmt.Errorf("testdb: %s did not start: %w", name, err)
	}
	return i, nil
}

func (i *instance) run(command []string, stop string) error {
	cmd := exec.Command("sh", append([]string{"-c", supervisor, "sh", i.dir, stop}, command...)...) //nolint:noctx // it ends with the pipe
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}                                           // out of reach of a signal to the group of the tests
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if i.owner, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		// The supervisor says when the server has ended; after that it ends itself.
		_, _ = bufio.NewReader(out).ReadString('\n')
		close(i.ended)
		_, _ = io.Copy(io.Discard, out)
		i.exit <- cmd.Wait()
	}()
	return nil
}

var errEnded = errors.New("it has ended")

// await returns when the server answers, or an error with the server's log.
func (i *instance) await(ctx context.Context, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // an image may have to be pulled
	defer cancel()
	for {
		err := ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-i.ended:
			return fmt.Errorf("%w\n%s", errEnded, i.log())
		case <-ctx.Done():
			return fmt.Errorf("%w\n%s", err, i.log())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (i *instance) log() []byte {
	log, _ := os.ReadFile(filepath.Join(i.dir, "out"))
	return log
}

// end returns when the instance is gone.
func (i *instance) end() error { return errors.Join(i.owner.Close(), <-i.exit) }

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
