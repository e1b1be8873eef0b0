package integration

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/go-sql-driver/mysql"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jonboulle/clockwork"
	"github.com/sqllock/go-sqllock/adapter/gocronlock"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

const (
	gocronEnv  = "SQLLOCK_GOCRON_JOB"
	gocronName = "report"
)

// gocronJob is what a process is to do.
type gocronJob struct {
	Kind  testdb.Kind
	DSN   string
	Lease time.Duration // its TTL; 0 for a lock of a session
	Way   string        // "locker", "elector" or "none"
}

func (j gocronJob) backend(db *sql.DB) sqllock.Backend {
	switch pg := j.Kind == testdb.Postgres; {
	case pg && j.Lease > 0:
		return pgtable.New(j.Lease, pgtable.WithPool(db))
	case pg:
		return pgadvisory.New()
	case j.Lease > 0:
		return table.New(j.Lease, table.WithPool(db))
	}
	return mysqlnamed.New()
}

func (j gocronJob) locker(db *sql.DB) *sqllock.Locker {
	return sqllock.New(j.backend(db), sqllock.WithNamespace(j.namespace()))
}

// namespace is one for each test, since the locks of MySQL are global to the server.
func (j gocronJob) namespace() string { return j.DSN[strings.LastIndex(j.DSN, "/")+1:] }

func (j gocronJob) open() (*sql.DB, error) {
	if j.Kind == testdb.Postgres {
		return testdb.OpenPostgres(j.DSN, nil)
	}
	return testdb.OpenDB(j.DSN, nil)
}

// gocronTest is a database, and processes with a scheduler each, whose clocks go on by a
// minute when they are told.
type gocronTest struct {
	*testing.T

	job  gocronJob
	db   *sql.DB
	live []*gocronProcess
	tick int
}

// gocronProcess is one of the processes, seen from the test.
type gocronProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string   // of its output; closed when it has ended
	err   error         // how; to be read after that
	done  chan struct{} // closed then, too
}

// newGocron makes a database, and starts processes in it that are ready to tick.
func newGocron(t *testing.T, s *testdb.Server, way string, lease time.Duration) *gocronTest {
	t.Helper()
	g := &gocronTest{T: t, job: gocronJob{Kind: s.Kind, Lease: lease, Way: way}}
	if s.Kind == testdb.Postgres {
		g.db = pgLockTable(t, s, func(c *pgx.ConnConfig) {
			u := url.URL{Scheme: "postgres", User: url.UserPassword(c.User, c.Password), Host: net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))), Path: c.Database}
			g.job.DSN = u.String()
		})
	} else {
		g.db = lockTable(t, s, "InnoDB")
		cfg, err := mysql.ParseDSN(s.DSN)
		if err != nil {
			t.Fatal(err)
		}
		cfg.DBName = database(t, g.db)
		g.job.DSN = cfg.FormatDSN()
	}
	do(t, g.db, "CREATE TABLE runs (tick bigint NOT NULL, pid bigint NOT NULL)")
	for range 3 {
		g.live = append(g.live, g.spawn())
	}
	for _, p := range g.live {
		g.expect(p, "ready")
	}
	return g
}

// spawn starts a process that does not outlive the test, nor, on Linux, its process.
func (g *gocronTest) spawn() *gocronProcess {
	g.Helper()
	text, err := json.Marshal(g.job)
	if err != nil {
		g.Fatal(err)
	}
	p := &gocronProcess{lines: make(chan string, 1000), done: make(chan struct{})}
	p.cmd = exec.CommandContext(g.Context(), os.Args[0], "-test.run=^TestGocronProcess$", "-test.timeout=100s")
	p.cmd.Env = append(os.Environ(), gocronEnv+"="+string(text))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if f := reflect.ValueOf(p.cmd.SysProcAttr).Elem().FieldByName("Pdeathsig"); f.IsValid() {
		f.Set(reflect.ValueOf(syscall.SIGKILL))
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		g.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		g.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() {
		_ = p.cmd.Process.Kill() // fails where it has ended
		<-p.done
	})
	go func() {
		defer close(p.done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.lines <- lines.Text()
		}
		p.err = p.cmd.Wait()
		close(p.lines)
	}()
	return p
}

// say returns the next line of a process that begins with one of words.
func (g *gocronTest) say(p *gocronProcess, words ...string) string {
	g.Helper()
	deadline := time.After(60 * time.Second)
	var before []string
	for {
		select {
		case line, alive := <-p.lines:
			if !alive {
				g.Fatalf("process %d has ended, %v, before it said one of %q:\n%s", p.pid(), p.err, words, strings.Join(before, "\n"))
			}
			for _, w := range words {
				if strings.HasPrefix(line, w) {
					return line
				}
			}
			before = append(before, line)
		case <-deadline:
			g.Fatalf("process %d does not say one of %q, but:\n%s", p.pid(), words, strings.Join(before, "\n"))
		}
	}
}

func (g *gocronTest) expect(p *gocronProcess, word string) { g.Helper(); g.say(p, word) }

func (p *gocronProcess) pid() int { return p.cmd.Process.Pid }

func (g *gocronTest) tell(p *gocronProcess, line string) {
	g.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		g.Fatal(err)
	}
}

// next has the clocks go on, and returns those who have run the job, or are at it.
func (g *gocronTest) next() (ran, skipped []*gocronProcess) {
	g.Helper()
	g.tick++
	for _, p := range g.live {
		g.tell(p, "tick")
	}
	for _, p := range g.live {
		what := g.say(p, "ran", "skip")
		if number := what[strings.Index(what, " ")+1:]; number != strconv.Itoa(g.tick) {
			g.Fatalf("process %d says %q of tick %d", p.pid(), what, g.tick)
		}
		if strings.HasPrefix(what, "ran") {
			ran = append(ran, p)
		} else {
			skipped = append(skipped, p)
		}
	}
	if n := ask[int](g, g.db, fmt.Sprintf("SELECT COUNT(*) FROM runs WHERE tick = %d", g.tick)); n != len(ran) {
		g.Errorf("tick %d has %d rows, and %d say that they ran it", g.tick, n, len(ran))
	}
	return ran, skipped
}

// once is next where one of them has to have run the job.
func (g *gocronTest) once() *gocronProcess {
	g.Helper()
	ran, _ := g.next()
	if len(ran) != 1 {
		g.Fatalf("tick %d ran %d times", g.tick, len(ran))
	}
	return ran[0]
}

// kill ends a process as kill -9 does, and returns when it is gone.
func (g *gocronTest) kill(p *gocronProcess) {
	g.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		g.Error(err)
	}
	<-p.done
	g.forget(p)
}

// stop ends a process in good order.
func (g *gocronTest) stop(p *gocronProcess) {
	g.Helper()
	if err := p.stdin.Close(); err != nil {
		g.Error(err)
	}
	var said []string
	for line := range p.lines {
		said = append(said, line)
	}
	<-p.done
	if p.err != nil {
		g.Errorf("process %d: %v\n%s", p.pid(), p.err, strings.Join(said, "\n"))
	}
	g.forget(p)
}

func (g *gocronTest) forget(p *gocronProcess) {
	for i, q := range g.live {
		if p == q {
			g.live = append(g.live[:i:i], g.live[i+1:]...)
			return
		}
	}
}

// onEachGocron runs a test on each server, with the locks of a session or leases: each way
// has both on some server.
func onEachGocron(t *testing.T, leases map[testdb.Kind]time.Duration, test func(t *testing.T, s *testdb.Server, lease time.Duration)) {
	t.Helper()
	t.Parallel()
	onEachWithPG(t, func(t *testing.T, s *testdb.Server) {
		t.Parallel()
		test(t, s, leases[s.Kind])
	})
}

// TestGocronLocker has three processes tick at once: each tick runs on one of them. The
// first one is killed while it runs the job, and the next tick runs elsewhere.
func TestGocronLocker(t *testing.T) {
	onEachGocron(t, map[testdb.Kind]time.Duration{testdb.MySQL: time.Minute}, func(t *testing.T, s *testdb.Server, lease time.Duration) {
		g := newGocron(t, s, "locker", lease)
		g.kill(g.once())
		locker := g.job.locker(g.db)
		waitFor(t, "the lock of the dead process to be free", func() bool {
			h, err := locker.Holder(t.Context(), g.db, gocronName)
			return errors.Is(err, sqllock.ErrNotHeld) || err == nil && !h.Alive
		})
		p := g.once()
		g.tell(p, "finish")
		g.expect(p, "finished")
		// Its job is done, and no other host runs that tick again.
		if h, err := locker.Holder(t.Context(), g.db, gocronName); err != nil || !h.Alive {
			t.Errorf("the lock is not held for the time of atLeast: %+v, %v", h, err)
		}
		for len(g.live) > 0 {
			g.stop(g.live[0])
		}
		if _, err := locker.Holder(t.Context(), g.db, gocronName); !errors.Is(err, sqllock.ErrNotHeld) {
			t.Errorf("after the end of all processes: %v, want ErrNotHeld", err)
		}
	})
}

// TestGocronElector has three processes campaign: one of them leads, and runs each
// tick. It is killed, another one leads; that closes, and the last one does.
func TestGocronElector(t *testing.T) {
	onEachGocron(t, map[testdb.Kind]time.Duration{testdb.MariaDB: time.Minute, testdb.Postgres: time.Minute}, func(t *testing.T, s *testdb.Server, lease time.Duration) {
		g := newGocron(t, s, "elector", lease)
		first := g.leader(nil)
		for range 2 {
			if ran := g.once(); ran != first {
				t.Errorf("process %d has run the job, and %d leads", ran.pid(), first.pid())
			}
		}
		g.kill(first)
		second := g.leader(nil)
		if ran := g.once(); ran != second {
			t.Errorf("process %d has run the job, and %d leads", ran.pid(), second.pid())
		}
		g.stop(second)
		third := g.leader(nil)
		if ran := g.once(); ran != third {
			t.Errorf("process %d has run the job, and %d leads", ran.pid(), third.pid())
		}
		g.stop(third)
	})
}

// TestGocronElectorStopped stops the leader for longer than its TTL, until another one
// leads. When it goes on it does not take itself for the leader, and does not run the job.
func TestGocronElectorStopped(t *testing.T) {
	onEachGocron(t, nil, func(t *testing.T, s *testdb.Server, _ time.Duration) {
		if s.Kind == testdb.MySQL {
			t.Skip("it takes a while, and the lease is that of MariaDB")
		}
		g := newGocron(t, s, "elector", time.Second)
		stopped := g.leader(nil)
		if err := stopped.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		second := g.leader(stopped)
		g.tell(stopped, "leader?")
		if err := stopped.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if answer := g.say(stopped, "answer "); strings.HasPrefix(answer, "answer yes") {
			t.Errorf("who was stopped says %q", answer)
		}
		if ran := g.once(); ran != second {
			t.Errorf("process %d has run the job, and %d leads", ran.pid(), second.pid())
		}
		for len(g.live) > 0 {
			g.stop(g.live[0])
		}
	})
}

// leader returns the process that leads, when there is one. It does not ask but.
func (g *gocronTest) leader(but *gocronProcess) (is *gocronProcess) {
	g.Helper()
	waitFor(g.T, "a leader", func() bool {
		for _, p := range g.live {
			if p != but && g.leads(p) {
				is = p
			}
		}
		return is != nil
	})
	return is
}

// leads asks a process, and has it say who leads if it is another one.
func (g *gocronTest) leads(p *gocronProcess) bool {
	g.Helper()
	g.tell(p, "leader?")
	answer := g.say(p, "answer ")
	if strings.HasPrefix(answer, "answer yes") {
		return true
	}
	if !strings.Contains(answer, "not the leader") && !strings.Contains(answer, "no longer the leader") {
		g.Errorf("process %d: %s", p.pid(), answer)
	}
	return false
}

// TestGocronElectorText: who does not lead says who does, as far as the server knows.
func TestGocronElectorText(t *testing.T) {
	onEachWithPG(t, func(t *testing.T, s *testdb.Server) {
		var db *sql.DB
		if s.Kind == testdb.Postgres {
			db = pgDatabase(t, s)
		} else {
			db = schema(t, s)
		}
		k := sqllock.New(gocronJob{Kind: s.Kind}.backend(db))
		name := lockName("gocron")
		leader := acquire(t, k, conn(t, db), name)
		e := gocronlock.NewElector(db, k, name)
		if err := e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		h, err := k.Holder(t.Context(), db, name)
		if err != nil {
			t.Fatal(err)
		}
		err = e.IsLeader(t.Context())
		wantErr(t, "IsLeader", err, sqllock.ErrBusy)
		wantText(t, err, fmt.Sprintf("session %d", h.Session), h.User, h.Process, name)
		release(t, leader)
		waitFor(t, "it to lead", func() bool { return e.IsLeader(t.Context()) == nil })
		if err := e.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := k.Holder(t.Context(), db, name); !errors.Is(err, sqllock.ErrNotHeld) {
			t.Errorf("after Close: %v, want ErrNotHeld", err)
		}
	})
}

// TestGocronElectorLost: the session of the leader is ended on the server. It says so
// itself, campaigns again, and follows the one that leads by then.
func TestGocronElectorLost(t *testing.T) {
	onEachWithPG(t, func(t *testing.T, s *testdb.Server) {
		t.Parallel()
		var db *sql.DB
		kill := mysqlKill
		if s.Kind == testdb.Postgres {
			kill, db = pgKill, pgDatabase(t, s)
		} else {
			db = schema(t, s)
		}
		name := lockName("gocron")
		k := sqllock.New(gocronJob{Kind: s.Kind}.backend(db))
		lost := make(chan error, 100)
		a, b := gocronlock.NewElector(db, k, name, gocronlock.OnChange(func(err error) { lost <- err })), gocronlock.NewElector(db, k, name)
		for _, e := range []*gocronlock.Elector{a, b} {
			if err := e.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(a.IsLeader(t.Context()), <-lost); err != nil {
			t.Fatal(err)
		}
		h, err := k.Holder(t.Context(), db, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := kill(t.Context(), db, h.Session); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the other one to lead", func() bool { return b.IsLeader(t.Context()) == nil })
		err = <-lost
		wantErr(t, "the old leader", err, sqllock.ErrLost)
		wantText(t, err, "not the leader, and about to try again")
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
		waitFor(t, "the old leader to lead again", func() bool { return a.IsLeader(t.Context()) == nil })
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestGocronWithoutLock is the control: without a Locker and an Elector, each tick runs
// three times. It has nothing to do with the server, so one will do.
func TestGocronWithoutLock(t *testing.T) {
	t.Parallel()
	g := newGocron(t, server(t, testdb.MariaDB), "none", 0)
	if ran, _ := g.next(); len(ran) != 3 {
		t.Errorf("the tick ran %d times, so the tests with a lock show nothing", len(ran))
	}
	for len(g.live) > 0 {
		g.stop(g.live[0])
	}
}

// TestGocronProcess is what each of the processes does.
func TestGocronProcess(t *testing.T) {
	text := os.Getenv(gocronEnv)
	if text == "" {
		t.Skip("is run by TestGocronLocker and others, in processes of its own")
	}
	w := &gocronWorker{T: t, clock: clockwork.NewFakeClockAt(time.Unix(0, 0)), finish: make(chan struct{}, 10)}
	if err := json.Unmarshal([]byte(text), &w.job); err != nil {
		t.Fatal(err)
	}
	if err := w.run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// gocronWorker is the inside of a process.
type gocronWorker struct {
	*testing.T

	job    gocronJob
	db     *sql.DB
	clock  *clockwork.FakeClock
	finish chan struct{}
}

func (w *gocronWorker) run(ctx context.Context) (err error) {
	if w.db, err = w.job.open(); err != nil {
		return err
	}
	defer w.db.Close() //nolint:errcheck // nothing depends on it
	opts := []gocron.SchedulerOption{gocron.WithClock(w.clock), gocron.WithMonitor(w)}
	leader := func() error { return errors.New("not the leader: there is none") }
	switch w.job.Way {
	case "locker":
		pool := sqllock.NewPool(w.db, w.job.locker(w.db))
		defer func() {
			// The time of atLeast is not over; who stops for good need not wait for it.
			over, cancel := context.WithCancel(context.WithoutCancel(ctx))
			cancel()
			_ = pool.Close(over)
		}()
		opts = append(opts, gocron.WithDistributedLocker(gocronlock.NewLocker(pool, 50*time.Second)))
	case "elector":
		e := gocronlock.NewElector(w.db, w.job.locker(w.db), "cron")
		if err := e.Start(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.Close(ctx)) }()
		leader = func() error { return e.IsLeader(ctx) }
		opts = append(opts, gocron.WithDistributedElector(e))
	}
	s, err := gocron.NewScheduler(opts...)
	if err != nil {
		return err
	}
	if _, err := s.NewJob(gocron.DurationJob(time.Minute), gocron.NewTask(w.report), gocron.WithName(gocronName)); err != nil {
		return err
	}
	s.Start()
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "tick":
			if err := w.clock.BlockUntilContext(ctx, 1); err != nil {
				return err
			}
			w.clock.Advance(time.Minute)
		case "finish":
			w.finish <- struct{}{}
		case "leader?":
			if err := leader(); err != nil {
				fmt.Println("answer no:", err)
			} else {
				fmt.Println("answer yes")
			}
		}
	}
	return s.Shutdown()
}

// report is the job. Under a Locker it goes on until it is told that all others have asked
// for the lock.
func (w *gocronWorker) report(ctx context.Context) error {
	tick := int(w.clock.Now().Unix() / 60)
	if _, err := w.db.ExecContext(ctx, fmt.Sprintf("INSERT INTO runs VALUES (%d, %d)", tick, os.Getpid())); err != nil {
		fmt.Println("failed", err)
		return err
	}
	fmt.Println("ran", tick)
	if w.job.Way == "locker" {
		select {
		case <-w.finish:
		case <-ctx.Done():
		}
	}
	return nil
}

// IncrementJob is told by gocron what became of a tick.
func (w *gocronWorker) IncrementJob(_ uuid.UUID, _ string, _ []string, status gocron.JobStatus) {
	switch status {
	case gocron.Skip:
		fmt.Println("skip", int(w.clock.Now().Unix()/60))
	case gocron.Success:
		fmt.Println("finished")
	}
}

// RecordJobTiming is of no use here.
func (w *gocronWorker) RecordJobTiming(time.Time, time.Time, uuid.UUID, string, []string) {}
