package integration

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// built is the command, while tests use it.
var built struct {
	sync.Mutex
	users int
	dir   string
}

// sqllockBinary builds the command for the tests that run at a time, and returns its path.
func sqllockBinary(t *testing.T) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if built.users == 0 {
		dir, err := os.MkdirTemp("", "sqllock") //nolint:usetesting // other tests use it, too
		if err != nil {
			t.Fatal(err)
		}
		build := exec.CommandContext(t.Context(), "go", "build", "-o", dir, "./cmd/sqllock")
		build.Dir = ".."
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		built.dir = dir
	}
	built.users++
	t.Cleanup(func() {
		built.Lock()
		defer built.Unlock()
		built.users--
		if built.users == 0 {
			_ = os.RemoveAll(built.dir)
		}
	})
	return filepath.Join(built.dir, "sqllock")
}

// commandOn is a server as the command meets it.
type commandOn struct {
	t               *testing.T
	binary          string
	server          *testdb.Server
	db              *sql.DB // of an administrator, on a database of its own with the table of leases
	database        string
	sessions, lease *sqllock.Locker
	leases          string // what the backend of leases is called
	env             []string
}

// onEachCommand runs a test with the command on MySQL and MariaDB.
func onEachCommand(t *testing.T, test func(c *commandOn)) {
	t.Helper()
	onEach(t, func(t *testing.T, s *testdb.Server) { test(commandOnMySQL(t, s, lockTable(t, s, "MyISAM"))) })
}

func commandOnMySQL(t *testing.T, s *testdb.Server, db *sql.DB) *commandOn {
	t.Helper()
	return &commandOn{
		t: t, binary: sqllockBinary(t), server: s, db: db, database: database(t, db), leases: "table",
		sessions: sqllock.New(mysqlnamed.New()), lease: sqllock.New(table.New(time.Hour)),
	}
}

// commandPG is the same for PostgreSQL.
func commandPG(t *testing.T) *commandOn {
	t.Helper()
	return commandOnPG(t, pgLockTable(t, postgres(t)))
}

func commandOnPG(t *testing.T, db *sql.DB) *commandOn {
	t.Helper()
	return &commandOn{
		t: t, binary: sqllockBinary(t), server: postgres(t), db: db, database: ask[string](t, db, "SELECT current_database()"), leases: "pgtable",
		sessions: sqllock.New(pgadvisory.New()), lease: sqllock.New(pgtable.New(time.Hour)),
	}
}

func (c *commandOn) isPG() bool { return c.server.Kind == testdb.Postgres }

// dsn is that of the database, for another user if one is given.
func (c *commandOn) dsn(user ...string) string {
	c.t.Helper()
	if c.isPG() {
		u, err := url.Parse(c.server.DSN)
		if err != nil {
			c.t.Fatal(err)
		}
		u.Path = "/" + c.database
		if len(user) > 0 {
			u.User = url.UserPassword(user[0], "secret")
		}
		return u.String()
	}
	cfg, err := mysql.ParseDSN(c.server.DSN)
	if err != nil {
		c.t.Fatal(err)
	}
	cfg.DBName = c.database
	if len(user) > 0 {
		cfg.User, cfg.Passwd = user[0], "secret"
	}
	return cfg.FormatDSN()
}

// answer is what a command has said.
type answer struct {
	code           int
	stdout, stderr string
}

// command is a call that has not begun.
func (c *commandOn) command(dsn string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.t.Context(), c.binary, args...)
	cmd.Env = append([]string{"SQLLOCK_DSN=" + dsn, "PATH=" + os.Getenv("PATH"), "TERM=xterm"}, c.env...)
	return cmd
}

// run runs the command on the database.
func (c *commandOn) run(args ...string) answer {
	c.t.Helper()
	return c.runAs(c.dsn(), args...)
}

func (c *commandOn) runAs(dsn string, args ...string) answer {
	c.t.Helper()
	cmd := c.command(dsn, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	a := answer{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	if strings.Contains(a.stdout+a.stderr, "secret") || strings.Contains(a.stdout+a.stderr, "tcp(") {
		c.t.Errorf("sqllock %s shows the DSN:\n%s%s", strings.Join(args, " "), a.stdout, a.stderr)
	}
	return a
}

// wants fails the test unless the command ended with code and said all of texts.
func (a answer) wants(t *testing.T, code int, texts ...string) {
	t.Helper()
	if a.code != code {
		t.Errorf("exit code %d, want %d", a.code, code)
	}
	for _, text := range texts {
		if !strings.Contains(a.stdout+a.stderr, text) {
			t.Errorf("it does not say %q", text)
		}
	}
	if t.Failed() {
		t.Fatalf("it said:\n%s%s", a.stdout, a.stderr)
	}
}

// lacks fails the test if the command said any of texts.
func (a answer) lacks(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(a.stdout+a.stderr, text) {
			t.Fatalf("it says %q:\n%s%s", text, a.stdout, a.stderr)
		}
	}
}

// parsed is the answer in JSON.
func parsed[T any](t *testing.T, a answer) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.stdout), &v); err != nil {
		t.Fatalf("%v in:\n%s%s", err, a.stdout, a.stderr)
	}
	return v
}

// fields are the names of what a JSON object has.
func fields(object map[string]any) string {
	return strings.Join(slices.Sorted(maps.Keys(object)), " ")
}

const heldFields = "age_seconds alive database expires host key kind process session since state time_left_seconds token user"

func (c *commandOn) id(q *sql.Conn) int64 {
	c.t.Helper()
	if c.isPG() {
		return pgPID(c.t, q)
	}
	return sessionID(c.t, q)
}

// deadRow is what a dead holder has left.
func (c *commandOn) deadRow(name string) {
	c.t.Helper()
	do(c.t, c.db, fmt.Sprintf("INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired,token,holder) VALUES ('%s',999999,1700000000,60,1,7,'web9/1 cron')", name))
}

func TestCommandWho(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testWho)
}

func TestPGCommandWho(t *testing.T) {
	t.Parallel()
	testWho(commandPG(t))
}

func TestCommandList(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testList)
}

func TestPGCommandList(t *testing.T) {
	t.Parallel()
	testList(commandPG(t))
}

func TestCommandWatch(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testWatch)
}

func TestPGCommandWatch(t *testing.T) {
	t.Parallel()
	testWatch(commandPG(t))
}

func TestCommandWait(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testWait)
}

func TestPGCommandWait(t *testing.T) {
	t.Parallel()
	testWait(commandPG(t))
}

func TestCommandBreak(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testBreak)
}

func TestPGCommandBreak(t *testing.T) {
	t.Parallel()
	testBreak(commandPG(t))
}

func TestCommandAsks(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testAsks)
}

func TestPGCommandAsks(t *testing.T) {
	t.Parallel()
	testAsks(commandPG(t))
}

func TestCommandSweep(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testSweep)
}

func TestPGCommandSweep(t *testing.T) {
	t.Parallel()
	testSweep(commandPG(t))
}

func TestCommandMigrate(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testMigrate)
}

func TestPGCommandMigrate(t *testing.T) {
	t.Parallel()
	testMigrate(commandPG(t))
}

func TestCommandDoctor(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testDoctor)
}

func TestPGCommandDoctor(t *testing.T) {
	t.Parallel()
	testDoctor(commandPG(t))
}

func TestCommandBench(t *testing.T) {
	t.Parallel()
	onEachCommand(t, testBench)
}

func TestPGCommandBench(t *testing.T) {
	t.Parallel()
	testBench(commandPG(t))
}

// weak makes a user who may use the table, and nothing more, and returns its name.
func (c *commandOn) weak() string {
	c.t.Helper()
	if c.isPG() {
		_, role := pgtRole(c.t, c.server, c.db, pgtOnTable, pgtOnSequence)
		return role
	}
	db := user(c.t, c.server, c.db)
	name, _, _ := strings.Cut(ask[string](c.t, db, "SELECT CURRENT_USER()"), "@")
	return name
}

// waiting begins a wait for a lock of a session, and returns when the server knows of it.
func (c *commandOn) waiting(name string) (id int64) {
	c.t.Helper()
	q := conn(c.t, c.db)
	id = c.id(q)
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if l, err := c.sessions.Lock(ctx, q, name); err == nil {
			_ = l.Release(ctx)
		}
	}()
	c.t.Cleanup(func() { cancel(); <-done })
	return id
}

type whoAnswer struct {
	Key     string           `json:"key"`
	Held    bool             `json:"held"`
	Holders []map[string]any `json:"holders"`
	Dead    []map[string]any `json:"left_by_the_dead"`
	Waiters []map[string]any `json:"waiters"`
	Notes   []string         `json:"notes"`
}

func testWho(c *commandOn) {
	t := c.t
	name := lockName("who")
	c.run("who", name).wants(t, 1, name+" is free.")
	over := acquire(t, c.lease, conn(t, c.db), name+"-over", sqllock.TTL(time.Second))

	// A lock of a session, and who waits for it.
	holder, leaser := conn(t, c.db), conn(t, c.db)
	of := acquire(t, c.sessions, holder, name)
	c.run("who", name).wants(t, 0, name+" is held.", "of the session", fmt.Sprintf("session   %d", c.id(holder)), "Nobody is seen waiting", "sqllock break "+name)
	waiter := c.waiting(name)
	waitFor(t, "sqllock who to tell of the waiter", func() bool {
		return strings.Contains(c.run("who", name).stdout, fmt.Sprintf("1 waiting for it:\n  session %d (", waiter))
	})
	var got whoAnswer
	waitFor(t, "sqllock who --json to tell of the waiter", func() bool {
		got = parsed[whoAnswer](t, c.run("who", "--json", name)) // it may be between two slices
		return len(got.Waiters) == 1
	})
	if got.Key != name || !got.Held || len(got.Holders) != 1 || len(got.Dead) != 0 || len(got.Waiters) != 1 {
		t.Fatalf("who --json: %+v", got)
	}
	if h := got.Holders[0]; fields(h) != heldFields || h["kind"] != "session" || h["alive"] != true || h["session"] != float64(c.id(holder)) ||
		h["user"] == "" || h["host"] == "" || h["expires"] != nil || h["time_left_seconds"] != nil || h["age_seconds"] == nil {
		t.Errorf("the holder: %+v", h)
	}
	if got.Waiters[0]["session"] != float64(waiter) {
		t.Errorf("the waiter: %+v", got.Waiters[0])
	}

	// A lease.
	l := acquire(t, c.lease, leaser, name+"-lease")
	c.run("who", name+"-lease").wants(t, 0, "a lease", "granted, or last extended", "time left  ", "integration.test")
	lease := parsed[whoAnswer](t, c.run("who", name+"-lease", "--json")).Holders
	if len(lease) != 1 || lease[0]["kind"] != "lease" || lease[0]["token"] != float64(l.Token()) {
		t.Errorf("who of a lease: %+v", lease)
	}
	if _, err := time.Parse(time.RFC3339, fmt.Sprint(lease[0]["expires"])); err != nil {
		t.Error(err)
	}

	// What a dead holder has left, alone, and beside a lock of a session.
	c.deadRow(name + "-dead")
	c.run("who", name+"-dead").wants(t, 1, "is free.", "A dead holder has left a row: session 999999 (web9/1 cron)", "sqllock sweep")
	c.deadRow(name)
	c.run("who", name).wants(t, 0, "is held", fmt.Sprintf("session   %d", c.id(holder)))
	if got := parsed[whoAnswer](t, c.run("who", name, "--json")); !got.Held || len(got.Holders) != 1 || len(got.Dead) != 1 {
		t.Errorf("a lock of a session beside a dead lease: %+v", got)
	}

	// Seen by one who may not see the sessions of others.
	weak := c.runAs(c.dsn(c.weak()), "who", name)
	weak.wants(t, 0, "is held", fmt.Sprint(c.id(holder)))
	weak.lacks(t, "127.0.0.1:", "localhost:")

	// Under another namespace.
	acquire(t, c.lease, leaser, "billing:"+name+"-ns")
	c.run("who", name+"-ns").wants(t, 1, "is free.", "But billing:"+name+"-ns is held: sqllock who --namespace billing "+name+"-ns")
	c.run("who", "--namespace", "billing", name+"-ns").wants(t, 0, "sqllock break --namespace billing "+name+"-ns")
	c.run("who", "--namespace", "shop", "billing:"+name+"-ns").wants(t, 1, `without the namespace "shop"`, "sqllock who --namespace= billing:"+name+"-ns")
	c.env = []string{"SQLLOCK_NAMESPACE=billing"}
	c.run("who", name+"-ns").wants(t, 0)
	c.run("who", "--namespace=", "billing:"+name+"-ns").wants(t, 0)
	c.env = nil

	// One that hangs.
	waitFor(t, "sqllock who to tell that the TTL is over", func() bool {
		return strings.Contains(c.run("who", name+"-over").stdout, "none, for ")
	})
	c.run("who", name+"-over").wants(t, 0, "is held", "the next one who asks for the lock ends this session")
	if err := over.Conn().PingContext(t.Context()); err != nil {
		t.Errorf("the holder whose time is over: %v", err)
	}

	// Without the table.
	do(t, c.db, "DROP TABLE shared_locks")
	c.run("who", name).wants(t, 0, "is held", "of the session")
	c.run("who", name, "--json").wants(t, 0)
	c.run("who", "nobody").wants(t, 1, "nobody is free.")
	release(t, of)

	// What is typed wrong.
	c.run("who").wants(t, 64, "takes one argument, the name of a lock, and got 0", "--help")
	c.run("who", "a", "b").wants(t, 64, "got 2")
	c.run("who", "").wants(t, 64, "the name is empty")
	c.run("who", "a", "--jsno").wants(t, 64, "jsno", "--help")
}

func testList(c *commandOn) {
	t := c.t
	name := lockName("list")
	one, two := conn(t, c.db), conn(t, c.db)
	c.deadRow(name + "-dead")
	acquire(t, c.lease, one, name+"-lease")
	acquire(t, c.sessions, two, name)
	a := c.run("list")
	a.wants(t, 0, "LOCK", "KIND", "SINCE", name+"-dead", "dead", name+"-lease")
	lines := strings.Split(a.stdout, "\n")
	if !strings.Contains(lines[1], name+"-dead") {
		t.Errorf("the oldest is not the first:\n%s", a.stdout)
	}
	if strings.Count(a.stdout, fmt.Sprint(" ", c.id(one), " ")) != 1 {
		t.Errorf("a lease and its doorbell are not one line:\n%s", a.stdout)
	}
	all := parsed[[]map[string]any](t, c.run("list", "--json"))
	for _, l := range all {
		if fields(l) != heldFields {
			t.Errorf("fields %s", fields(l))
		}
	}
	has := func(key, kind string) bool {
		return slices.ContainsFunc(all, func(l map[string]any) bool { return l["key"] == key && l["kind"] == kind })
	}
	switch c.server.Kind {
	case testdb.MySQL:
		if !has(strings.ToLower(name), "session") {
			t.Errorf("list --json lacks the lock of a session: %+v", all)
		}
		weak := c.runAs(c.dsn(c.weak()), "list")
		weak.wants(t, 0, name+"-lease", "Locks of sessions can't be listed", "GRANT SELECT ON performance_schema.*", "sqllock who NAME")
	case testdb.MariaDB:
		a.wants(t, 0, "Locks of sessions can't be listed", "performance_schema=ON", "sqllock who NAME")
	case testdb.Postgres:
		number := ask[string](t, c.db, "SELECT 'number '||hashtextextended('"+name+"',0)")
		a.wants(t, 0, number, "sqllock list NAME...")
		if !has(number, "session") {
			t.Errorf("list --json lacks the lock of a session: %+v", all)
		}
	}
	if !has(name+"-lease", "lease") || !has(name+"-dead", "lease") {
		t.Errorf("list --json: %+v", all)
	}
	// By name everything is seen everywhere.
	all = parsed[[]map[string]any](t, c.run("list", "--json", name, name+"-lease", "nobody"))
	if len(all) != 2 || !has(name, "session") || !has(name+"-lease", "lease") {
		t.Errorf("list NAME... --json: %+v", all)
	}
	if !c.isPG() { // where locks of sessions are seen by everybody
		stranger := user(t, c.server, schema(t, c.server), "SELECT") // of another database
		name, _, _ := strings.Cut(ask[string](t, stranger, "SELECT CURRENT_USER()"), "@")
		do(t, c.db, "GRANT INSERT ON "+c.database+".shared_locks TO "+name+"@'%'")
		c.runAs(c.dsn(name), "list", "--json").wants(t, 69, "neither leases nor locks of sessions can be listed", "SELECT, INSERT, UPDATE and DELETE")
	}
	c.run("list", "nobody").wants(t, 0, "No lock is held")
	c.run("list", "--json", "nobody").wants(t, 0, "[]")
	do(t, c.db, "DROP TABLE shared_locks")
	c.run("list").wants(t, 0, "There are no leases to be seen", "sqllock migrate up")
}

// testWatch: it goes on until it is interrupted, over what changes.
func testWatch(c *commandOn) {
	t := c.t
	q := conn(t, c.db)
	l := acquire(t, c.lease, q, "job")
	for _, args := range [][]string{{"list", "--watch", "--interval", "20ms"}, {"list", "-w", "--json", "--interval", "20ms"}} {
		cmd := c.command(c.dsn(), args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		looks, jobs := 0, 0
		lines := bufio.NewScanner(out)
		for looks < 3 && lines.Scan() {
			switch line := lines.Text(); {
			case strings.Contains(line, "until Ctrl-C"):
				looks++
			case strings.HasPrefix(line, "["):
				looks++
				var all []map[string]any
				if err := json.Unmarshal([]byte(line), &all); err != nil {
					t.Errorf("%v in %s", err, line)
				}
				jobs += len(all)
			case strings.HasPrefix(line, "job"):
				jobs++
			}
		}
		if looks < 3 || jobs < 2 {
			t.Errorf("%d looks, %d of them with the lock", looks, jobs)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("sqllock %v after Ctrl-C: %v", args, err)
		}
	}
	release(t, l)
	c.run("list", "--watch", "--interval", "0s").wants(t, 64, "--interval")
}

// testWait: it returns when the lock is free, and is in nobody's way.
func testWait(c *commandOn) {
	t := c.t
	name := lockName("wait")
	c.run("wait", name).wants(t, 0)
	for kind, k := range map[string]*sqllock.Locker{"session": c.sessions, "lease": c.lease} {
		q, other := conn(t, c.db), conn(t, c.db)
		l := acquire(t, k, q, name+kind)
		c.run("wait", name+kind, "--timeout", "0s").wants(t, 75, name+kind+" is held by session ", "sqllock who "+name+kind)
		c.run("wait", name+kind, "--timeout", "300ms").wants(t, 75, "300ms")
		cmd := c.command(c.dsn(), "wait", name+kind)
		said, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, _ := bufio.NewReader(said).ReadString('\n'); !strings.Contains(line, "waiting for "+name+kind+", held by session ") {
			t.Errorf("sqllock wait says %q", line)
		}
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("the holder, who is waited for: %v", err)
		}
		release(t, l)
		for range 50 { // at no moment does the one who waits have it
			atOnce(t, k, other, name+kind)
		}
		_, _ = io.Copy(io.Discard, said)
		if err := cmd.Wait(); err != nil {
			t.Errorf("sqllock wait: %v", err)
		}
	}
	// A holder whose time is over is left alone.
	q := conn(t, c.db)
	l := acquire(t, c.lease, q, name+"-over", sqllock.TTL(time.Second))
	waitFor(t, "the TTL to be over", func() bool { return l.Remaining() <= 0 })
	c.run("wait", name+"-over", "--timeout", "1100ms").wants(t, 75)
	if err := q.PingContext(t.Context()); err != nil {
		t.Errorf("the holder whose time is over: %v", err)
	}
	// A dead one keeps nobody waiting.
	c.deadRow(name + "-dead")
	c.run("wait", name+"-dead", "--timeout", "0s").wants(t, 0)
	c.run("wait", name, "--timeout", "-1s").wants(t, 64, "--timeout")
}

func testBreak(c *commandOn) {
	t := c.t
	name := lockName("break")
	c.run("break", name, "--yes").wants(t, 1, name+" is free: there is nothing to break")
	c.deadRow(name + "-dead")
	c.run("break", name+"-dead", "--yes").wants(t, 1, "is free", "sqllock sweep")
	c.run("break", name, "--json").wants(t, 64, "--yes")
	weak := c.weak()

	for kind, k := range map[string]*sqllock.Locker{"session": c.sessions, "lease": c.lease} {
		q := conn(t, c.db)
		l := acquire(t, k, q, name+kind)
		second := acquire(t, k, q, name+kind+"-2")
		id := c.id(q)
		a := c.run("break", name+kind)
		a.wants(t, 64, "is held", fmt.Sprintf("To break it ends session %d", id), "nobody is there to ask", "--yes")
		c.runAs(c.dsn(weak), "break", name+kind, "--yes").wants(t, 69, "lacks a privilege", fmt.Sprint(id), "nobody was ended", map[testdb.Kind]string{
			testdb.MySQL:    "GRANT CONNECTION_ADMIN ON *.* TO '" + weak + "'@'%';",
			testdb.MariaDB:  "GRANT CONNECTION ADMIN ON *.* TO '" + weak + "'@'%';",
			testdb.Postgres: "GRANT pg_signal_backend TO " + weak + ";",
		}[c.server.Kind])
		for _, l := range []*sqllock.Lock{l, second} {
			if err := l.Check(t.Context()); err != nil {
				t.Fatalf("the lock, which was not broken: %v", err)
			}
		}
		a = c.run("break", name+kind, "--yes")
		a.wants(t, 0, fmt.Sprintf("Ended session %d (", id), "The lock is free of it.")
		if kind == "lease" || c.server.Kind == testdb.MySQL {
			a.wants(t, 0, "1 other locks end with it: "+strings.ToLower(name)[:5])
		}
		wantErr(t, "the lock", l.Check(t.Context()), sqllock.ErrLost)
		wantErr(t, "the other lock of the session", second.Check(t.Context()), sqllock.ErrLost)
		c.run("who", name+kind).wants(t, 1)
	}
	q := conn(t, c.db)
	l := acquire(t, c.lease, q, name)
	id := c.id(q)
	got := parsed[struct {
		Key   string           `json:"key"`
		Ended []map[string]any `json:"ended"`
	}](t, c.run("break", "--json", "--yes", name))
	if got.Key != name || len(got.Ended) != 1 || got.Ended[0]["session"] != float64(id) || fields(got.Ended[0]) != heldFields {
		t.Errorf("break --json: %+v", got)
	}
	wantErr(t, "the lock", l.Check(t.Context()), sqllock.ErrLost)
}

// terminal is a command with somebody in front of it.
type terminal struct {
	t    *testing.T
	cmd  *exec.Cmd
	file *os.File
	said string
}

// terminal runs a command under a shell that stays until all is read: what is in a terminal
// when its first process ends may be lost.
func (c *commandOn) terminal(args ...string) *terminal {
	c.t.Helper()
	cmd := c.command(c.dsn(), args...)
	cmd.Path = "/bin/sh"
	cmd.Args = append([]string{"sh", "-c", `trap : INT; "$@"; echo "[exit $?]"; read _`, "sh", c.binary}, args...)
	f, err := pty.Start(cmd)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = f.Close(); _ = cmd.Wait() })
	return &terminal{t: c.t, cmd: cmd, file: f}
}

// until reads until the command has said text.
func (x *terminal) until(text string) {
	x.t.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(x.said, text) {
		n, err := x.file.Read(buf)
		x.said += string(buf[:n])
		if err != nil {
			x.t.Fatalf("it did not say %q, but:\n%s", text, x.said)
		}
	}
}

func (x *terminal) types(text string) {
	x.t.Helper()
	if _, err := x.file.WriteString(text); err != nil {
		x.t.Fatal(err)
	}
}

// ends waits for the end of the command.
func (x *terminal) ends(code int, texts ...string) {
	x.t.Helper()
	x.until("[exit ")
	x.until("]\r\n")
	said, end, _ := strings.Cut(x.said, "[exit ")
	x.said = said
	x.types("\n")
	_ = x.cmd.Wait()
	got, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(end), "]"))
	if err != nil {
		x.t.Fatal(err)
	}
	answer{got, said, ""}.wants(x.t, code, texts...)
}

// testAsks: break asks, and ends nobody but whom it has shown.
func testAsks(c *commandOn) {
	t := c.t
	name := lockName("asks")
	q := conn(t, c.db)
	for kind, k := range map[string]*sqllock.Locker{"session": c.sessions, "lease": c.lease} {
		l := acquire(t, k, q, name+kind)
		question := fmt.Sprintf("End session %d? [y/N]", c.id(q))
		for _, no := range []string{"n\n", "\n", "nein\n", "\x04"} {
			x := c.terminal("break", name+kind)
			x.until(question)
			x.types(no)
			x.ends(1, "nothing was done")
		}
		x := c.terminal("break", name+kind)
		x.until(question)
		x.types("\x03") // Ctrl-C
		x.ends(130, "nothing was done")

		// It is released while the question is on the screen, and another one takes it.
		x = c.terminal("break", name+kind)
		x.until(question)
		release(t, l)
		other := conn(t, c.db)
		newer := acquire(t, k, other, name+kind)
		x.types("y\n")
		x.ends(75, "nobody was ended", "has changed hands", fmt.Sprintf("from session %d to session %d", c.id(q), c.id(other)))
		if err := newer.Check(t.Context()); err != nil {
			t.Errorf("who came after: %v", err)
		}
		if err := q.PingContext(t.Context()); err != nil {
			t.Errorf("who was there before: %v", err)
		}
		x = c.terminal("break", name+kind)
		x.until(fmt.Sprintf("End session %d? [y/N]", c.id(other)))
		release(t, newer)
		x.types("y\n")
		x.ends(1, "nobody was ended", "is free", "let go of it by itself")

		newer = acquire(t, k, other, name+kind)
		x = c.terminal("break", name+kind)
		x.until("[y/N]")
		x.types("yes\n")
		x.ends(0, "Ended session ")
		wantErr(t, "the holder", newer.Check(t.Context()), sqllock.ErrLost)
	}
	// A live view on a terminal clears it.
	x := c.terminal("list", "--watch", "--interval", "20ms")
	x.until("\x1b[H\x1b[2J")
	x.until("until Ctrl-C")
	x.types("\x03")
	x.ends(0)
}

func testSweep(c *commandOn) {
	t := c.t
	l := acquire(t, c.lease, conn(t, c.db), "live")
	c.run("sweep", "--dry-run").wants(t, 0, "There is nothing to remove.")
	c.deadRow("dead")
	c.deadRow("gone")
	a := c.run("sweep", "-n")
	a.wants(t, 0, "dead", "gone", "999999")
	a.lacks(t, "live")
	if all := parsed[[]map[string]any](t, c.run("sweep", "-n", "--json")); len(all) != 2 || fields(all[0]) != heldFields {
		t.Errorf("sweep --dry-run --json: %+v", all)
	}
	if n := parsed[map[string]int](t, c.run("sweep", "--json")); len(n) != 1 || n["removed"] != 2 {
		t.Errorf("sweep --json: %+v", n)
	}
	c.run("sweep").wants(t, 0, "Removed 0.")
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("the live one: %v", err)
	}
	c.run("sweep", "live").wants(t, 64, "takes no arguments")
	do(t, c.db, "DROP TABLE shared_locks")
	for _, args := range [][]string{{"sweep"}, {"sweep", "-n"}} {
		c.run(args...).wants(t, 69, "shared_locks", "sqllock migrate up")
	}
}

func testMigrate(c *commandOn) {
	t := c.t
	newest, engine := "2 of 2", "shared_locks MyISAM, made by sqllock"
	if c.isPG() {
		newest, engine = "1 of 1", "shared_locks, made by sqllock"
	}
	c.run("migrate", "status").wants(t, 0, engine, newest, "not needed")
	l := acquire(t, c.lease, conn(t, c.db), "job")
	c.run("migrate", "down").wants(t, 64, "1 are held, and will be lost: job by session ", "--yes")
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("after a down that was not done: %v", err)
	}
	release(t, l)
	x := c.terminal("migrate", "down")
	x.until("This drops shared_locks. No lease is held.")
	x.until("[y/N]")
	x.types("y\n")
	x.ends(0, "Done.")
	c.run("migrate", "status").wants(t, 1, "there is no table shared_locks", "sqllock migrate up")
	c.run("migrate", "down", "--yes").wants(t, 0, "There is nothing to take back")
	c.run("migrate", "up").wants(t, 0, "shared_locks is at version "+newest[:1])
	c.run("migrate", "up").wants(t, 0, "shared_locks is at version "+newest[:1])
	release(t, acquire(t, c.lease, conn(t, c.db), "job"))

	st := parsed[map[string]any](t, c.run("migrate", "status", "--json"))
	if fields(st) != "engine exists made_by_sqllock newest_version table up_needed version version_hidden" || st["exists"] != true || st["up_needed"] != false {
		t.Errorf("migrate status --json: %+v", st)
	}
	c.run("migrate", "--fences", "up").wants(t, 0, "lock_fences is at version 1")
	c.run("migrate", "--fences", "status").wants(t, 0, "lock_fences")
	c.run("migrate", "--fences", "--fence-table", "other_fences", "status").wants(t, 1, "other_fences", "sqllock migrate --fences up")
	c.run("migrate", "--fences", "down").wants(t, 64, "This drops lock_fences.", "nobody may be at work", "--yes")
	c.run("migrate", "--fences", "down", "-y").wants(t, 0, "Done.")
	c.run("migrate", "up", "--table", "a b").wants(t, 64, "--table")
	c.run("migrate", "up", "--engine", "CSV").wants(t, 64, "InnoDB")
	c.run("migrate", "sideways").wants(t, 64, "sideways")

	// What print prints does what up does.
	c.run("migrate", "down", "--yes").wants(t, 0)
	for _, args := range [][]string{{"migrate", "print"}, {"migrate", "print", "--dialect", map[bool]string{true: "postgres", false: "mysql"}[c.isPG()]}} {
		a := c.run(args...)
		a.wants(t, 0, "CREATE TABLE")
		multi := c.db
		if !c.isPG() {
			multi = open(t, c.server, func(cfg *mysql.Config) { cfg.DBName, cfg.MultiStatements = c.database, true })
		}
		do(t, multi, a.stdout)
	}
	release(t, acquire(t, c.lease, conn(t, c.db), "job"))
	c.run("migrate", "status").wants(t, 1, "made by sqllock", "0 of")
	weak := c.weak()
	if !c.isPG() {
		c.run("migrate", "up", "--engine", "InnoDB").wants(t, 0)
		do(t, c.db, "DROP TABLE shared_locks")
		do(t, c.db, "DROP TABLE shared_locks_version")
		c.runAs(c.dsn(weak), "migrate", "up").wants(t, 69, "1142")
		do(t, c.db, documentedTable)
		c.run("migrate", "up").wants(t, 0)
		c.run("migrate", "status").wants(t, 0, "adopted", "PHP", "2 of 2")
		c.run("migrate", "down").wants(t, 64, "shared_locks was there before: it stays")
	}
	bare := c.runAs("", "migrate", "print")
	bare.wants(t, 64, "--dialect mysql", "--dialect postgres")
	c.runAs("", "migrate", "print", "--dialect", "oracle").wants(t, 64, "oracle")
	c.runAs("", "migrate", "print", "--dialect", "mysql", "--fences").wants(t, 0, "lock_fences", "InnoDB")
	c.runAs("", "migrate", "print", "--dialect", "mysql", "--engine", "InnoDB", "--table", "mine").wants(t, 0, "`mine`", "ENGINE=InnoDB")
}

// doctorAnswer is doctor --json.
type doctorAnswer struct {
	Server string `json:"server"`
	Works  bool   `json:"works"`
	Checks []struct {
		Check string `json:"check"`
		Level string `json:"level"`
		Found string `json:"found"`
		Do    string `json:"do"`
	} `json:"checks"`
	Backends []struct {
		Backend string `json:"backend"`
		Works   bool   `json:"works"`
		Why     string `json:"why_not"`
	} `json:"backends"`
}

// level is that of a check, and "" if there is none.
func (d *doctorAnswer) level(check string) string {
	for _, c := range d.Checks {
		if c.Check == check {
			return c.Level
		}
	}
	return ""
}

// works lists the backends that do.
func (d *doctorAnswer) works() (names []string) {
	for _, b := range d.Backends {
		if b.Works {
			names = append(names, b.Backend)
		}
	}
	return names
}

func (d *doctorAnswer) why(backend string) string {
	for _, b := range d.Backends {
		if b.Backend == backend {
			return b.Why
		}
	}
	return ""
}

func (d *doctorAnswer) wants(t *testing.T, levels map[string]string, works ...string) {
	t.Helper()
	for check, level := range levels {
		if got := d.level(check); got != level {
			t.Errorf("check %q: %q, want %q in %+v", check, got, level, d.Checks)
		}
	}
	if got := d.works(); !slices.Equal(got, works) || d.Works != (len(works) > 0) {
		t.Errorf("these work: %q, want %q: %+v", got, works, d.Backends)
	}
}

func testDoctor(c *commandOn) {
	t := c.t
	both := map[bool][]string{true: {"pgadvisory", "pgadvisory (LockTx)", "pgtable"}, false: {"mysqlnamed", "table"}}[c.isPG()]
	a := c.run("doctor")
	a.wants(t, 0, "BACKEND", "WORKS", "yes", "agrees with ours")
	d := parsed[doctorAnswer](t, c.run("doctor", "--json"))
	d.wants(t, map[string]string{"server": "ok", "table": "ok", "clock": "ok", "connections": "ok", "fence table": "info", "right to migrate": "ok"}, both...)
	if rows := ask[int](t, c.db, "SELECT COUNT(*) FROM shared_locks"); rows != 0 {
		t.Errorf("it has left %d rows", rows)
	}
	weak := parsed[doctorAnswer](t, c.runAs(c.dsn(c.weak()), "doctor", "--json"))
	rights := map[string]string{"right to KILL": "info", "right to see": "info", "right to migrate": "info", "list of locks": "info"}
	if c.isPG() {
		rights = map[string]string{"right to end": "info", "right to see": "info", "right to migrate": "info"}
	}
	weak.wants(t, rights, both...)

	switch c.server.Kind {
	case testdb.MySQL:
		d.wants(t, map[string]string{"engine": "warning", "damage": "ok", "proxy": "ok", "right to KILL": "ok", "list of locks": "ok", "wait_timeout": "ok"}, both...)
		short := parsed[doctorAnswer](t, c.runAs(c.dsn()+"?wait_timeout=30", "doctor", "--json"))
		short.wants(t, map[string]string{"wait_timeout": "warning"}, both...)
	case testdb.MariaDB:
		d.wants(t, map[string]string{"engine": "ok", "damage": "ok", "proxy": "ok", "right to KILL": "ok", "list of locks": "info"}, both...)
	case testdb.Postgres:
		d.wants(t, map[string]string{"pooler": "ok", "right to end": "ok"}, both...)
		role := c.weak()
		do(t, c.db, "ALTER ROLE "+role+" NOINHERIT")
		do(t, c.db, "GRANT pg_signal_backend, pg_read_all_stats TO "+role) // of which it has nothing
		bound := parsed[doctorAnswer](t, c.runAs(c.dsn(role), "doctor", "--json"))
		bound.wants(t, map[string]string{"right to end": "info", "right to see": "info"}, both...)
		separator := "?"
		if strings.Contains(c.dsn(), "?") {
			separator = "&"
		}
		set := parsed[doctorAnswer](t, c.runAs(c.dsn()+separator+"idle_session_timeout=60000&statement_timeout=5000&default_transaction_read_only=on", "doctor", "--json"))
		set.wants(t, map[string]string{"idle_session_timeout": "warning", "statement_timeout": "info", "read-only": "warning"}, both...)
	}

	// A user who may not write the table.
	if !c.isPG() {
		reader := user(t, c.server, schema(t, c.server), "SELECT") // of another database
		name, _, _ := strings.Cut(ask[string](t, reader, "SELECT CURRENT_USER()"), "@")
		do(t, c.db, "GRANT SELECT ON "+c.database+".shared_locks TO "+name+"@'%'")
		r := parsed[doctorAnswer](t, c.runAs(c.dsn(name), "doctor", "--json"))
		r.wants(t, nil, "mysqlnamed")
		if why := r.why("table"); !strings.Contains(why, "it needs SELECT, INSERT, UPDATE and DELETE on table shared_locks") {
			t.Errorf("why not: %s", why)
		}
	} else {
		_, role := pgtRole(t, c.server, c.db, "SELECT ON shared_locks")
		r := parsed[doctorAnswer](t, c.runAs(c.dsn(role), "doctor", "--json"))
		r.wants(t, nil, "pgadvisory", "pgadvisory (LockTx)")
		if why := r.why("pgtable"); !strings.Contains(why, "GRANT SELECT, INSERT, UPDATE, DELETE ON shared_locks") {
			t.Errorf("why not: %s", why)
		}
	}

	// Before migrate up.
	c.run("migrate", "down", "--yes").wants(t, 0)
	c.run("doctor").wants(t, 0, "there is no table shared_locks", "sqllock migrate up")
	d = parsed[doctorAnswer](t, c.run("doctor", "--json"))
	d.wants(t, map[string]string{"table": "info"}, both[:len(both)-1]...)
	if n := tables(t, c); n != 0 {
		t.Errorf("it has made %d tables", n)
	}
	// A table that is behind.
	if !c.isPG() {
		do(t, c.db, documentedTable)
		d = parsed[doctorAnswer](t, c.run("doctor", "--json"))
		d.wants(t, map[string]string{"table": "warning"}, "mysqlnamed")
	}

	// Nothing answers.
	nobody := strings.Replace(strings.Replace(c.dsn(), "127.0.0.1", "127.0.0.2", 1), "localhost", "127.0.0.2", 1)
	c.runAs(nobody, "doctor", "--connect-timeout", "1s").wants(t, 69, "can't be reached")
}

func tables(t *testing.T, c *commandOn) int {
	t.Helper()
	query := "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema=DATABASE()"
	if c.isPG() {
		query = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema=current_schema()"
	}
	return ask[int](t, c.db, query)
}

// TestCommandDoctorBouncer: behind PgBouncer in transaction mode.
func TestCommandDoctorBouncer(t *testing.T) {
	t.Parallel()
	b := bouncer(t, "transaction")
	c := commandPG(t)
	u, err := url.Parse(b.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + c.database
	a := c.runAs(u.String(), "doctor", "--json")
	d := parsed[doctorAnswer](t, a)
	d.wants(t, map[string]string{"pooler": "problem", "server": "ok", "table": "ok"}, "pgadvisory (LockTx)")
	if why := d.why("pgadvisory"); !strings.Contains(why, "a pooler is between") || !strings.Contains(why, "LockTx") {
		t.Errorf("why not: %s", why)
	}
	a.wants(t, 0)
	// What only looks works.
	l := acquire(t, c.lease, conn(t, c.db), "job")
	c.runAs(u.String(), "who", "job").wants(t, 0, "is held")
	c.runAs(u.String(), "list").wants(t, 0, "job")
	c.runAs(u.String(), "break", "job", "--yes").wants(t, 0, "Ended session")
	wantErr(t, "the holder", l.Check(t.Context()), sqllock.ErrLost)
}

// TestCommandDoctorIllServers: a server that is read-only, and one whose table is damaged.
func TestCommandDoctorIllServers(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.MariaDB, "--myisam-recover-options=OFF")
	c := commandOnMySQL(t, s, lockTable(t, s, "MyISAM"))
	c.deadRow("dead")
	do(t, c.db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) VALUES (UUID(),0,0,0,1),(UUID(),0,0,0,1)")
	do(t, c.db, "FLUSH TABLES shared_locks")
	if err := os.Truncate(filepath.Join(s.Data(), c.database, "shared_locks.MYI"), 1024); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it has repaired nothing
		a := c.run("doctor")
		a.wants(t, 0, "REPAIR TABLE")
		d := parsed[doctorAnswer](t, c.run("doctor", "--json"))
		d.wants(t, map[string]string{"damage": "problem"}, "mysqlnamed")
		if why := d.why("table"); !strings.Contains(why, "damaged") {
			t.Errorf("why not: %s", why)
		}
	}
	// Who holds what is told without the table.
	acquire(t, c.sessions, conn(t, c.db), "job")
	c.run("who", "job").wants(t, 0, "is held", "Whether it is a lease can't be seen")

	do(t, c.db, "REPAIR TABLE shared_locks")
	do(t, c.db, "SET GLOBAL read_only=1")
	a := c.run("doctor")
	a.wants(t, 1, "probably a replica", "name the primary")
	d := parsed[doctorAnswer](t, c.run("doctor", "--json"))
	d.wants(t, map[string]string{"read-only": "problem"})
	c.run("bench", "--duration", "10ms").wants(t, 1, "round trip", "mysqlnamed was not measured", "read-only")
}

func testBench(c *commandOn) {
	t := c.t
	backends := map[bool][]string{true: {"pgadvisory", "pgtable"}, false: {"mysqlnamed", "table"}}[c.isPG()]
	a := c.run("bench", "--duration", "30ms")
	a.wants(t, 0, append(backends, "round trip", "acquire and release", "hand-off", "PER SECOND", "ROUND TRIPS")...)
	b := parsed[struct {
		Server  string           `json:"server"`
		Figures []map[string]any `json:"figures"`
		Not     []any            `json:"not_measured"`
	}](t, c.run("bench", "--duration", "30ms", "--concurrency", "3", "--json"))
	if len(b.Figures) != 5 || len(b.Not) != 0 || b.Server == "" {
		t.Fatalf("bench --json: %+v", b)
	}
	for _, f := range b.Figures {
		p50, _ := f["p50_seconds"].(float64)
		p99, _ := f["p99_seconds"].(float64)
		if fields(f) != "backend count operation p50_round_trips p50_seconds p99_seconds per_second sessions" || p50 <= 0 || p99 < p50 || f["p50_round_trips"] == 0.0 {
			t.Errorf("figures: %+v", f)
		}
		if f["operation"] == "acquire and release" && f["sessions"] != 3.0 {
			t.Errorf("sessions: %+v", f)
		}
	}
	if rows := ask[int](t, c.db, "SELECT COUNT(*) FROM shared_locks"); rows != 0 {
		t.Errorf("it has left %d rows", rows)
	}
	c.run("bench", "--duration", "0s").wants(t, 64, "--duration")
	c.run("bench", "--concurrency", "0").wants(t, 64, "--concurrency")
}

// TestPGCommandShared: all who share a lock are shown, and ended.
func TestPGCommandShared(t *testing.T) {
	t.Parallel()
	c := commandPG(t)
	one, two := conn(t, c.db), conn(t, c.db)
	acquire(t, c.sessions, one, "readers", sqllock.Shared())
	acquire(t, c.sessions, two, "readers", sqllock.Shared())
	c.run("who", "readers").wants(t, 0, "is held by 2 sessions", fmt.Sprint(c.id(one)), fmt.Sprint(c.id(two)))
	ids := []string{fmt.Sprint(c.id(one)), fmt.Sprint(c.id(two))}
	a := c.run("break", "readers", "--yes")
	a.wants(t, 0, "To break it ends 2 sessions, ", "Ended session "+ids[0], "Ended session "+ids[1])
	c.run("who", "readers").wants(t, 1)
}

// TestCommandWhoPHP: the row of a PHP process, which tells less.
func TestCommandWhoPHP(t *testing.T) {
	t.Parallel()
	onEachCommand(t, func(c *commandOn) {
		q := conn(t, c.db)
		name := lockName("php")
		do(t, q, "DO GET_LOCK('"+name+"',0)")
		do(t, q, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) VALUES ('"+name+"',CONNECTION_ID(),UNIX_TIMESTAMP(),600,1)")
		id := c.id(q)
		c.run("who", name).wants(t, 0, "a lease", fmt.Sprint(id), "time left")
		c.run("break", name, "--yes").wants(t, 0, fmt.Sprintf("Ended session %d", id))
		c.run("who", name).wants(t, 1)
	})
}

// example is a command line of the documentation, with what it says.
type example struct{ line, says string }

// examples are those of a section of the documentation.
func examples(t *testing.T, section string) (all []example) {
	t.Helper()
	page, err := os.ReadFile("../docs/command.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), section)
	if !found {
		t.Fatalf("the documentation has no section %q", section)
	}
	_, text, _ = strings.Cut(text, "```console\n")
	text, _, _ = strings.Cut(text, "\n```")
	for part := range strings.SplitSeq("\n"+text, "\n$ ") {
		line, says, _ := strings.Cut(part, "\n")
		if line != "" {
			all = append(all, example{line, says})
		}
	}
	return all
}

// normal is what is the same each time: numbers, times, names of sessions and processes
// are not, nor is the width of columns.
func normal(s string) string {
	for _, r := range []struct{ re, to string }{
		{`\x1b\[[0-9;]*[A-Za-z]|\r`, ""},
		{`process \d+ \S+?([\s)])`, "PROCESS$1"},
		{`process \d+`, "PROCESS"},
		{`[\w.-]+/\d+ [\w.]+`, "PROCESS"},
		{`\w+@[\w.]+:\d+`, "USER"},
		{`database +\w+`, "DATABASE"},
		{`(and ALTER on) \w+`, "$1 DATABASE"},
		{`MySQL \S+ .*`, "SERVER"},
		{`-?\d[\d.]*(µs|ms|[dhms])[\d.dhms]*`, "SPAN"},
		{`\d[\d.]*`, "N"},
		{` +`, " "},
	} {
		s = regexp.MustCompile(r.re).ReplaceAllString(s, r.to)
	}
	return strings.TrimSpace(s)
}

// TestCommandAtNight runs every line of the documentation. What it shows is MySQL's.
func TestCommandAtNight(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.MySQL) // whose list of locks has those of nobody else
	db := lockTable(t, s, "MyISAM")
	c := commandOnMySQL(t, s, db)
	c.env = []string{"SQLLOCK_NAMESPACE=billing"}
	k := func(l sqllock.Backend) *sqllock.Locker { return sqllock.New(l, sqllock.WithNamespace("billing")) }
	var nightly *sqllock.Lock
	for _, section := range []struct {
		title string
		setUp func()
	}{
		{"## Who holds this lock?", func() { acquire(t, k(table.New(time.Hour)), conn(t, db), "invoices") }},
		{"## How do I get rid of it?", func() {}},
		{"## Is it a dead one?", func() { c.deadRow("billing:report") }},
		{"## Why does my job not run?", func() {
			nightly = acquire(t, k(mysqlnamed.New()), conn(t, db), "nightly")
			waiter := conn(t, db)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); _, _ = waiter.ExecContext(ctx, "DO GET_LOCK('billing:nightly',600)") }()
			t.Cleanup(func() { cancel(); <-done })
			waitFor(t, "a session to wait", func() bool {
				return ask[bool](t, db, "SELECT COUNT(*)=1 FROM information_schema.processlist WHERE state='User lock'")
			})
		}},
		{"## May I deploy now?", func() {}},
		{"## What does this server do?", func() {}},
	} {
		section.setUp()
		code, ran := 0, 0
		for _, e := range examples(t, section.title) {
			ran++
			if e.line == "echo $?" {
				if e.says != fmt.Sprint(code) {
					t.Errorf("%s: the exit code is %d, and not %s", section.title, code, e.says)
				}
				continue
			}
			args := strings.Fields(strings.TrimPrefix(e.line, "sqllock "))
			var got string
			switch {
			case strings.Contains(e.says, "[y/N] y"):
				x := c.terminal(args...)
				x.until("[y/N]")
				x.types("y\n")
				x.ends(0)
				got, code = x.said, 0
			case args[0] == "wait":
				cmd := c.command(c.dsn(), args...)
				said, err := cmd.StderrPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				got, _ = bufio.NewReader(said).ReadString('\n')
				do(t, db, fmt.Sprintf("KILL %d", ask[int64](t, db, "SELECT id FROM information_schema.processlist WHERE state='User lock'")))
				release(t, nightly)
				_ = cmd.Wait()
				code = cmd.ProcessState.ExitCode()
			default:
				a := c.run(args...)
				got, code = a.stdout+a.stderr, a.code
			}
			if normal(got) != normal(e.says) {
				t.Errorf("$ %s\n%s\nand the documentation has\n%s", e.line, normal(got), normal(e.says))
			}
		}
		if ran == 0 {
			t.Errorf("%s: no line was run", section.title)
		}
	}
}
