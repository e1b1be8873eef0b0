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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// TestStorm has processes count to a number, each round under one and the same
// lock with a TTL of a second, while some of them are killed, and some are
// stopped for so long that their lock is taken from them. What they have written
// tells whether two of them ever held it at the same time.
func TestStorm(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, engine := range engines {
			if engine == "InnoDB" && s.Kind == testdb.MySQL {
				continue // one of the servers will do, and there it takes less time
			}
			t.Run(engine, func(t *testing.T) { faultyStorm(t, s, engine) })
		}
		t.Run("without the lock", func(t *testing.T) { unlockedStorm(t, s, "MyISAM") })
	})
	t.Run("postgres", func(t *testing.T) {
		s := postgres(t)
		faultyStorm(t, s, "")
		t.Run("without the lock", func(t *testing.T) { unlockedStorm(t, s, "") })
	})
}

// stormBackend is the one of the server, helped by a pool.
func stormBackend(kind testdb.Kind, pool *sql.DB) sqllock.Backend {
	if kind == testdb.Postgres {
		return pgtable.New(time.Second, pgtable.WithPool(pool))
	}
	return table.New(time.Second, table.WithPool(pool))
}

// stormDatabase is a database with a lock table, and its DSN for other processes.
func stormDatabase(t *testing.T, s *testdb.Server, engine string) (db *sql.DB, dsn string) {
	t.Helper()
	if s.Kind == testdb.Postgres {
		db = pgDatabase(t, s, func(c *pgx.ConnConfig) {
			u := url.URL{Scheme: "postgres", User: url.UserPassword(c.User, c.Password), Host: net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))), Path: c.Database}
			dsn = u.String()
		})
		if err := migrations.Up(t.Context(), db, migrations.Postgres()); err != nil {
			t.Fatal(err)
		}
		return db, dsn
	}
	db = lockTable(t, s, engine)
	cfg, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	cfg.DBName = database(t, db)
	return db, cfg.FormatDSN()
}

func faultyStorm(t *testing.T, s *testdb.Server, engine string) {
	const processes, rounds = 16, 200
	st := newStorm(t, s, engine, processes, stormJob{Rounds: rounds, Lock: true})
	st.start()

	st.stop(nil)
	st.kill(st.freeze("kill"))
	st.stop(func() { st.kill(st.waiter()) }) // a process that waits while the lock is taken over
	st.kill(st.waiter())
	st.stop(nil)
	st.kill(st.freeze("kill"))

	st.await()
	st.checkReports(rounds)
	st.checkJournal(rounds)
}

// unlockedStorm is the control: without the lock, updates get lost.
func unlockedStorm(t *testing.T, s *testdb.Server, engine string) {
	const processes, rounds = 8, 25
	for try := 1; try <= 10; try++ {
		st := newStorm(t, s, engine, processes, stormJob{Rounds: rounds})
		st.start()
		st.await()
		for _, p := range st.processes {
			if p.report.Committed != rounds || len(p.report.Unexpected) > 0 {
				t.Fatalf("process %d: %+v", p.pid(), p.report)
			}
		}
		if n := st.number(); n < processes*rounds {
			t.Logf("try %d: %d of %d updates were lost", try, processes*rounds-n, processes*rounds)
			return
		}
	}
	t.Error("no update was lost without the lock, so this test shows nothing")
}

const (
	stormEnv  = "SQLLOCK_STORM_JOB"
	stormName = "storm"
)

// stormJob is what a process is to do, and stormReport what it says it has done.
type stormJob struct {
	Kind   testdb.Kind
	DSN    string
	Rounds int
	Lock   bool
}

type stormReport struct {
	Committed  int      // rounds
	Ambiguous  int      // commits that failed, with a session that was killed
	Lost       []string // how rounds failed whose lock was lost
	Unexpected []string // how others failed
	From       []string // the processes whose sessions it has killed, or whose leavings it has removed
}

// stormProcess is one of the processes, seen from the test.
type stormProcess struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	ready  chan struct{} // closed when it waits for the end of its input
	done   chan struct{} // closed when it has ended, before which the following may not be read
	err    error
	report stormReport
	output strings.Builder

	stops  int  // for longer than the TTL
	killed bool // by the test
}

func (p *stormProcess) pid() int { return p.cmd.Process.Pid }

func (p *stormProcess) spared() bool { return p.stops == 0 && !p.killed }

// storm is a number of processes at one table.
type storm struct {
	t         *testing.T
	db        *sql.DB
	locker    *sqllock.Locker
	processes []*stormProcess
	begun     time.Time
	ended     time.Duration
}

// newStorm starts the processes, which then wait for start.
func newStorm(t *testing.T, s *testdb.Server, engine string, processes int, job stormJob) *storm {
	t.Helper()
	db, dsn := stormDatabase(t, s, engine)
	runSQL(
		t, db,
		"CREATE TABLE work (n bigint NOT NULL)",
		"INSERT INTO work VALUES (0)",
		"CREATE TABLE journal (n bigint NOT NULL PRIMARY KEY, pid bigint NOT NULL, token bigint NOT NULL)",
	)
	job.Kind, job.DSN = s.Kind, dsn
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	st := &storm{t: t, db: db, locker: sqllock.New(stormBackend(s.Kind, db))}
	for range processes {
		st.processes = append(st.processes, spawn(t, string(text)))
	}
	for _, p := range st.processes {
		select {
		case <-p.ready:
		case <-p.done:
			t.Fatalf("process %d did not start: %v\n%s", p.pid(), p.err, &p.output)
		}
	}
	return st
}

// spawn starts a process that does not outlive the test, nor, on Linux, its
// process.
func spawn(t *testing.T, job string) *stormProcess {
	t.Helper()
	p := &stormProcess{ready: make(chan struct{}), done: make(chan struct{})}
	p.cmd = exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStormProcess$", "-test.timeout=100s")
	p.cmd.Env = append(os.Environ(), stormEnv+"="+job)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if f := reflect.ValueOf(p.cmd.SysProcAttr).Elem().FieldByName("Pdeathsig"); f.IsValid() {
		f.Set(reflect.ValueOf(syscall.SIGKILL))
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // fails where it has ended
		<-p.done
	})
	go func() {
		defer close(p.done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			switch line := lines.Text(); {
			case line == "ready":
				close(p.ready)
			case strings.HasPrefix(line, "{"):
				p.err = json.Unmarshal(lines.Bytes(), &p.report)
			default:
				p.output.WriteString(line + "\n")
			}
		}
		p.err = errors.Join(p.err, p.cmd.Wait())
	}()
	return p
}

func (st *storm) start() {
	st.t.Helper()
	st.begun = time.Now()
	for _, p := range st.processes {
		if err := p.stdin.Close(); err != nil {
			st.t.Fatal(err)
		}
	}
}

// await returns when all processes have ended.
func (st *storm) await() {
	st.t.Helper()
	timeout := time.After(60 * time.Second)
	for _, p := range st.processes {
		select {
		case <-p.done:
		case <-timeout:
			h, _ := st.holder()
			st.t.Fatalf("after %v process %d has not ended; the lock is held by %+v", time.Since(st.begun), p.pid(), h)
		}
		if p.err != nil && !p.killed {
			st.t.Errorf("process %d: %v\n%s", p.pid(), p.err, &p.output)
		}
	}
	st.ended = time.Since(st.begun)
}

// holder returns who holds the lock, and its process, nil if there is none.
func (st *storm) holder() (sqllock.Holder, *stormProcess) {
	st.t.Helper()
	h, err := st.locker.Holder(st.t.Context(), st.db, stormName)
	if err != nil && !errors.Is(err, sqllock.ErrNotHeld) {
		st.t.Fatal(err)
	}
	if err != nil || !h.Alive {
		return sqllock.Holder{}, nil
	}
	return h, st.named(h.Process)
}

// named returns the process that calls itself "host/pid program".
func (st *storm) named(name string) *stormProcess {
	rest := name[strings.LastIndex(name, "/")+1:]
	pid, _, _ := strings.Cut(rest, " ")
	for _, p := range st.processes {
		if strconv.Itoa(p.pid()) == pid {
			return p
		}
	}
	return nil
}

// freeze stops the process that holds the lock, between two statements, and once
// nothing else has been done to that process, so that it lives to report on it.
func (st *storm) freeze(what string) (frozen *stormProcess) {
	st.t.Helper()
	waitFor(st.t, "a process that holds the lock, to "+what+" it", func() bool {
		before, p := st.holder()
		if p == nil || !p.spared() || p.cmd.Process.Signal(syscall.SIGSTOP) != nil {
			return false
		}
		now, _ := st.holder()
		if now.Token != before.Token || now.State != "Sleep" && !strings.HasPrefix(now.State, "idle") {
			st.resume(p)
			return false
		}
		frozen = p
		return true
	})
	return frozen
}

func (st *storm) resume(p *stormProcess) {
	st.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		st.t.Errorf("process %d can't be resumed: %v", p.pid(), err)
	}
}

// stop stops the process that holds the lock until another one has been granted
// it, and for a while longer.
func (st *storm) stop(meanwhile func()) {
	st.t.Helper()
	p := st.freeze("stop")
	p.stops++
	if meanwhile != nil {
		meanwhile()
	}
	waitFor(st.t, "another process to be granted the lock", func() bool {
		_, now := st.holder()
		return now != nil && now != p
	})
	select {
	case <-time.After(1500 * time.Millisecond):
	case <-p.done:
	}
	st.resume(p)
}

// kill ends a process as kill -9 does, and returns when it is gone.
func (st *storm) kill(p *stormProcess) {
	st.t.Helper()
	p.killed = true
	if err := p.cmd.Process.Kill(); err != nil {
		st.t.Errorf("process %d can't be killed: %v", p.pid(), err)
	}
	<-p.done
}

// waiter returns a process that does not hold the lock, so it waits.
func (st *storm) waiter() (waiter *stormProcess) {
	st.t.Helper()
	_, holder := st.holder()
	for _, p := range st.processes {
		select {
		case <-p.done:
		default:
			if p.spared() && p != holder {
				return p
			}
		}
	}
	st.t.Fatal("the storm is over before all was done to it")
	return nil
}

// number is how far they have counted.
func (st *storm) number() (n int) {
	st.t.Helper()
	if err := st.db.QueryRowContext(st.t.Context(), "SELECT n FROM work").Scan(&n); err != nil {
		st.t.Fatal(err)
	}
	return n
}

// checkReports: what processes complain of was done to them.
func (st *storm) checkReports(rounds int) {
	st.t.Helper()
	var stops, lost int
	for _, p := range st.processes {
		r := p.report
		stops += p.stops
		lost += len(r.Lost)
		for _, text := range r.Unexpected {
			st.t.Errorf("process %d (stopped %d times): %s", p.pid(), p.stops, text)
		}
		if len(r.Lost) > p.stops {
			st.t.Errorf("process %d has lost the lock %d times, and was stopped %d times: %q", p.pid(), len(r.Lost), p.stops, r.Lost)
		}
		if !p.killed && r.Committed != rounds {
			st.t.Errorf("process %d has committed %d rounds, want %d", p.pid(), r.Committed, rounds)
		}
		for _, from := range r.From {
			if victim := st.named(from); victim == nil || victim.spared() {
				st.t.Errorf("process %d has taken the lock from %s, to which nothing had been done", p.pid(), from)
			}
		}
	}
	if lost < 2 {
		st.t.Errorf("the lock was lost %d times in %d stops; want 2 at least, to have shown something", lost, stops)
	}
	for _, p := range st.processes {
		if len(p.report.Lost)+len(p.report.From) > 0 {
			st.t.Logf("process %d, stopped %d times: lost %q, took from %q", p.pid(), p.stops, p.report.Lost, p.report.From)
		}
	}
}

// checkJournal: they have counted one by one, and each had its turn.
func (st *storm) checkJournal(rounds int) {
	st.t.Helper()
	rows, err := st.db.QueryContext(st.t.Context(), "SELECT n, pid, token FROM journal ORDER BY n")
	if err != nil {
		st.t.Fatal(err)
	}
	defer rows.Close()
	var n, last int64
	written := map[int]int{}
	slowest := -1 // rounds of the slowest one that was spared, when the fastest has finished
	for rows.Next() {
		var number, token int64
		var pid int
		if err := rows.Scan(&number, &pid, &token); err != nil {
			st.t.Fatal(err)
		}
		n++
		if number != n {
			st.t.Fatalf("the journal has no %d, but %d", n, number)
		}
		if token <= last {
			st.t.Fatalf("round %d has token %d, the one before %d", n, token, last)
		}
		last = token
		written[pid]++
		if slowest < 0 && written[pid] == rounds && slices.ContainsFunc(st.processes, func(p *stormProcess) bool { return p.pid() == pid && p.spared() }) {
			slowest = rounds
			for _, p := range st.processes {
				if p.spared() {
					slowest = min(slowest, written[p.pid()])
				}
			}
		}
	}
	if err := rows.Err(); err != nil {
		st.t.Fatal(err)
	}
	if counted := st.number(); int64(counted) != n {
		st.t.Errorf("they have counted to %d, and the journal has %d rounds", counted, n)
	}
	var sum int64
	var stops, kills int
	for _, p := range st.processes {
		stops += p.stops
		sum += int64(written[p.pid()])
		if p.killed {
			kills++
			continue // nobody knows what it would have said
		}
		if r := p.report; written[p.pid()] < r.Committed || written[p.pid()] > r.Committed+r.Ambiguous {
			st.t.Errorf("process %d has written %d rounds, and committed %d, besides %d that it can't tell",
				p.pid(), written[p.pid()], r.Committed, r.Ambiguous)
		}
	}
	if sum != n {
		st.t.Errorf("the journal has %d rounds, and %d of the processes", n, sum)
	}
	if slowest < rounds/2 {
		st.t.Errorf("unfair: when the fastest process had its %d rounds, the slowest had %d", rounds, slowest)
	}
	st.t.Logf("%d rounds in %v, %d stops, %d kills; when the fastest had %d rounds, the slowest had %d",
		n, st.ended.Round(time.Millisecond), stops, kills, rounds, slowest)
}

// TestStormProcess is what each process of TestStorm does.
func TestStormProcess(t *testing.T) {
	text := os.Getenv(stormEnv)
	if text == "" {
		t.Skip("is run by TestStorm, in processes of its own")
	}
	var job stormJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		t.Fatal(err)
	}
	db, err := job.open()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	if err := db.PingContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := &stormWorker{db: db, pid: os.Getpid(), insert: "INSERT IGNORE INTO journal (n,pid,token) VALUES (%d,%d,%d)"}
	if job.Kind == testdb.Postgres {
		w.insert = "INSERT INTO journal (n,pid,token) VALUES (%d,%d,%d) ON CONFLICT DO NOTHING"
	}
	w.locker = sqllock.New(stormBackend(job.Kind, db), onHolders(func(e sqllock.Event) {
		w.report.From = append(w.report.From, e.Holder.Process)
	}))
	round := w.unlocked
	if job.Lock {
		round = w.locked
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	for w.report.Committed < job.Rounds && len(w.report.Unexpected) == 0 && len(w.report.Lost) < 10 {
		round(t.Context())
	}
	if err := json.NewEncoder(os.Stdout).Encode(w.report); err != nil {
		t.Fatal(err)
	}
}

func (job stormJob) open() (*sql.DB, error) {
	if job.Kind == testdb.Postgres {
		return testdb.OpenPostgres(job.DSN, nil)
	}
	return testdb.OpenDB(job.DSN, nil)
}

// stormWorker is the inside of a process.
type stormWorker struct {
	insert string // into the journal, where the number may be there
	db     *sql.DB
	locker *sqllock.Locker
	pid    int
	report stormReport
}

func (w *stormWorker) unexpected(what string, err error) {
	w.report.Unexpected = append(w.report.Unexpected, what+": "+err.Error())
}

// locked is a round in a transaction under the lock.
func (w *stormWorker) locked(ctx context.Context) {
	conn, err := w.db.Conn(ctx)
	if err != nil {
		w.unexpected("conn", err)
		return
	}
	defer conn.Close() //nolint:errcheck // back to the pool, or broken
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	lock, err := w.locker.Lock(limited, conn, stormName)
	if err != nil {
		w.unexpected("lock", err)
		return
	}
	err = w.transaction(ctx, conn, lock.Grant().Token)
	released := lock.Release(ctx)
	switch failed := errors.Join(err, released); {
	case failed == nil:
	case refusedByServer(err):
		// The session was there to be told, so the lock was not lost, or too late.
		w.unexpected("round", failed)
	case errors.Is(released, sqllock.ErrLost), errors.Is(released, sqllock.ErrUnknown):
		w.report.Lost = append(w.report.Lost, failed.Error())
	default:
		w.unexpected("round", failed)
	}
}

// refusedByServer reports whether a server has answered with an error, other
// than that the session was killed. One is what a second holder would get, whose
// number is already in the journal.
func refusedByServer(err error) bool {
	var answer *mysql.MySQLError
	if errors.As(err, &answer) {
		return !slices.Contains([]uint16{1317, 1927, 3169}, answer.Number)
	}
	var other *pgconn.PgError
	return errors.As(err, &other) && other.Severity != "FATAL"
}

func (w *stormWorker) transaction(ctx context.Context, conn *sql.Conn, token int64) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to do
	if err := w.count(ctx, tx, "INSERT INTO journal (n,pid,token) VALUES (%d,%d,%d)", token); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		w.report.Ambiguous++
		return fmt.Errorf("commit: %w", err)
	}
	w.report.Committed++
	return nil
}

// unlocked is a round without lock and transaction.
func (w *stormWorker) unlocked(ctx context.Context) {
	if err := w.count(ctx, w.db, w.insert, 0); err != nil {
		w.unexpected("round", err)
		return
	}
	w.report.Committed++
}

// count reads a number, works for a moment, and writes the next one.
func (w *stormWorker) count(ctx context.Context, q interface {
	sqllock.Querier
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, insert string, token int64,
) error {
	var n int64
	if err := q.QueryRowContext(ctx, "SELECT n FROM work").Scan(&n); err != nil {
		return fmt.Errorf("select: %w", err)
	}
	time.Sleep(time.Millisecond) // the work
	if _, err := q.ExecContext(ctx, fmt.Sprintf("UPDATE work SET n=%d", n+1)); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	if _, err := q.ExecContext(ctx, fmt.Sprintf(insert, n+1, w.pid, token)); err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	return nil
}
