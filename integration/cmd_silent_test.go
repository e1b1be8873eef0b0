package integration

import (
	"context"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// TestCommandLocked: at night it may be a lock of the table that nobody gets past. The
// command tells what there is to tell without it.
func TestCommandLocked(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testLocked)
}

func TestPGCommandLocked(t *testing.T) {
	t.Parallel()
	testLocked(commandPG(t))
}

func testLocked(c *commandOn) {
	t := c.t
	name := lockName("locked")
	acquire(t, c.sessions, conn(t, c.db), name)
	locker := conn(t, c.db)
	lock, unlock := "LOCK TABLES shared_locks WRITE", "UNLOCK TABLES"
	if c.isPG() {
		do(t, locker, "BEGIN")
		lock, unlock = "LOCK TABLE shared_locks", "ROLLBACK"
	}
	do(t, locker, lock)
	t.Cleanup(func() {
		if _, err := locker.ExecContext(context.Background(), unlock); err != nil {
			t.Error(err)
		}
	})
	own := conn(t, c.db)
	acquire(t, c.sessions, own, name+"-broken")
	tests := []struct {
		args  []string
		code  int
		texts []string
	}{
		{[]string{"list"}, 0, []string{"Leases can't be seen", "is the table locked"}},
		{[]string{"who", name}, 0, []string{" is held.", "Whether it is a lease can't be seen"}},
		{[]string{"wait", name, "--timeout", "1s"}, 75, []string{name}},
		{[]string{"doctor"}, 0, []string{" no ", "locked"}},
		{[]string{"sweep", "--dry-run"}, 69, []string{"is the table locked"}},
		{[]string{"break", "--yes", "--timeout", "10s", name + "-broken"}, 0, []string{"Ended session "}},
	}
	if c.server.Kind == testdb.MariaDB { // which lists no locks of sessions either
		tests[0].code, tests[0].texts[0] = 69, "neither leases nor locks of sessions can be listed"
	}
	answers := make([]answer, len(tests))
	var wg sync.WaitGroup // and no parallel tests, of which few run at a time
	for i, test := range tests {
		wg.Go(func() { answers[i] = c.inTime(c.dsn(), test.args...) })
	}
	wg.Wait()
	for i, test := range tests {
		t.Run(test.args[0], func(t *testing.T) { answers[i].wants(t, test.code, test.texts...) })
	}
	if own.PingContext(t.Context()) == nil {
		t.Error("the session has not been ended")
	}
}

// inTime is runAs of what has to end by itself.
func (c *commandOn) inTime(dsn string, args ...string) answer {
	ctx, cancel := context.WithTimeout(c.t.Context(), 50*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, args...)
	cmd.Env = c.command(dsn).Env
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // the state tells
	return answer{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// TestPGCommandSilent: a server that does not answer any more is not one where the lock is
// held, least of all for cron.
func TestPGCommandSilent(t *testing.T) {
	t.Parallel()
	c := commandPG(t)
	name := lockName("silent")
	acquire(t, c.sessions, conn(t, c.db), name)
	for asks, args := range map[string][]string{
		"FROM pg_stat_activity WHERE datname=current_database() AND application_name='sqllock wait' AND query LIKE '%locks%'": {"wait", name, "--timeout", "2s"},
		"FROM pg_locks l JOIN pg_stat_activity a ON a.pid=l.pid WHERE a.datname=current_database() AND locktype='advisory' AND NOT granted": {
			"run", "--name", name, "--wait", "2s", "--skip-ok", "--quiet", "--", "true",
		},
	} {
		t.Run(args[0], func(t *testing.T) {
			t.Parallel()
			n := newPGNet(t, postgres(t))
			u, err := url.Parse(c.dsn())
			if err != nil {
				t.Fatal(err)
			}
			u.Host = n.Listen
			over := make(chan answer)
			go func() { over <- c.inTime(u.String(), args...) }()
			waitFor(t, "the command to ask", func() bool { return ask[bool](t, c.db, "SELECT EXISTS (SELECT "+asks+")") })
			n.silence(t, "downstream")
			a := <-over
			a.wants(t, 69, "not answer")
		})
	}
}
