package integration

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// TestExamples runs the programs of the folder examples as processes, with what they are
// about, and without it.
func TestExamples(t *testing.T) {
	t.Parallel()
	dir := buildExamples(t)
	onEach(t, func(t *testing.T, s *testdb.Server) {
		runExamples(t, func(t *testing.T) *stage {
			t.Helper()
			db := schema(t, s)
			cfg, err := mysql.ParseDSN(s.DSN)
			if err != nil {
				t.Fatal(err)
			}
			cfg.DBName = database(t, db)
			st := &stage{T: t, dir: dir, db: db, dsn: cfg.FormatDSN(), addr: cfg.Addr}
			st.through = func(addr string) string {
				cfg.Addr = addr
				return cfg.FormatDSN()
			}
			return st.migrate()
		})
	})
}

func TestExamplesPG(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	dir := buildExamples(t)
	runExamples(t, func(t *testing.T) *stage {
		t.Helper()
		db := pgDatabase(t, s)
		dsn, err := url.Parse(s.DSN)
		if err != nil {
			t.Fatal(err)
		}
		dsn.Path = "/" + ask[string](t, db, "SELECT current_database()")
		st := &stage{T: t, dir: dir, db: db, dsn: dsn.String(), addr: dsn.Host}
		st.through = func(addr string) string {
			dsn.Host = addr
			return dsn.String()
		}
		return st.migrate(migrations.Postgres())
	})
}

// buildExamples puts the programs into a folder.
func buildExamples(t *testing.T) (dir string) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a server")
	}
	dir = t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", dir, "./examples/...")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

func runExamples(t *testing.T, newStage func(t *testing.T) *stage) {
	t.Helper()
	for _, example := range []struct {
		name string
		play func(st *stage, without bool)
	}{
		{"cron", playCron},
		{"endpoint", playEndpoint},
		{"partitions", playPartitions},
		{"longjob", playLongJob},
		{"transfer", playTransfer},
		{"leader", playLeader},
		{"unknown", playUnknown},
	} {
		for _, without := range []bool{false, true} {
			name := example.name
			if without {
				name += " without"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				example.play(newStage(t), without)
			})
		}
	}
	t.Run("on an empty database", func(t *testing.T) {
		t.Parallel()
		playEmpty(newStage(t))
	})
}

// playEmpty: who starts an example on an empty database sees it at work.
func playEmpty(st *stage) {
	for _, example := range []struct {
		name string
		says []string
	}{
		{"cron", []string{"3 invoices to make", "done"}},
		{"partitions", []string{"part 1: 2 orders", "part 2: 2 orders", "part 3: 2 orders"}},
		{"longjob", []string{"page 1", "page 2", "page 3", "page 4"}},
		{"transfer", []string{"balances [1000 1000] sum 2000"}},
		{"unknown", []string{"charged"}},
	} {
		p := st.start(example.name, false, "-pause=1ms")
		for _, line := range example.says {
			p.says(line)
		}
		p.ends(0)
	}
	st.do("UPDATE charges SET id = 8")
	p := st.start("unknown", false)
	if line := p.says("charged", "not charged: "); !strings.Contains(line, "0 accounts with id 7") {
		st.Errorf("there is no account 7, and the program said %q", line)
	}
	p.ends(1)
}

// playCron: three hosts start the job. The one that works is kept at it until the others
// have ended.
func playCron(st *stage, without bool) {
	st.do("CREATE TABLE customers (id bigint PRIMARY KEY, invoiced bigint NOT NULL, invoices bigint NOT NULL)")
	st.do("INSERT INTO customers VALUES (1,0,0),(2,0,0),(3,0,0)")
	resume := st.block("SELECT id FROM customers WHERE id = 1 FOR UPDATE")
	hosts := []*program{st.start("cron", without), st.start("cron", without), st.start("cron", without)}
	worked, skipped := 0, 0
	for _, h := range hosts {
		if line := h.says("3 invoices to make", "skipped: another host is at it"); strings.HasPrefix(line, "skipped") {
			skipped++
			h.ends(0)
		} else {
			worked++
		}
	}
	resume()
	for _, h := range hosts {
		h.ends(0)
	}
	want := 1
	if without {
		want = 3
	}
	if worked != want || worked+skipped != 3 {
		st.Errorf("%d hosts worked, %d skipped", worked, skipped)
	}
	if n := st.number("SELECT SUM(invoices) FROM customers"); n != 3*want {
		st.Errorf("%d invoices were made for three customers", n)
	}
	late := st.start("cron", without)
	late.says("0 invoices to make")
	late.ends(0)
}

// playEndpoint: while a host rebuilds, another one is asked to.
func playEndpoint(st *stage, without bool) {
	st.do("CREATE TABLE search (id bigint PRIMARY KEY, builds bigint NOT NULL)")
	st.do("INSERT INTO search VALUES (1,0)")
	resume := st.block("SELECT id FROM search WHERE id = 1 FOR UPDATE")
	one, other := st.start("endpoint", without, "-listen=127.0.0.1:0"), st.start("endpoint", without, "-listen=127.0.0.1:0")
	where := func(p *program) string {
		return "http://" + strings.TrimPrefix(p.says("listening on "), "listening on ") + "/rebuild"
	}
	first, second := where(one), where(other)
	type answer struct {
		status     int
		retryAfter string
		err        error
	}
	post := func(to string) <-chan answer {
		got := make(chan answer, 1)
		go func() {
			req, err := http.NewRequestWithContext(st.Context(), http.MethodPost, to, http.NoBody)
			if err != nil {
				got <- answer{err: err}
				return
			}
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			res, err := client.Do(req)
			if err != nil {
				got <- answer{err: err}
				return
			}
			defer res.Body.Close() //nolint:errcheck // it is of no interest
			got <- answer{res.StatusCode, res.Header.Get("Retry-After"), nil}
		}()
		return got
	}
	working := post(first)
	one.says("rebuilding")
	meanwhile := post(second)
	want := answer{http.StatusOK, "", nil}
	builds := 1
	if without {
		other.says("rebuilding")
		builds = 2
	} else if got := result(st.T, "the answer to the second request", meanwhile); got.status != http.StatusConflict || got.retryAfter == "" || got.err != nil {
		st.Errorf("the second request got %+v", got)
	}
	resume()
	if got := result(st.T, "the answer to the first request", working); got != want {
		st.Errorf("the first request got %+v", got)
	}
	if without {
		result(st.T, "the answer to the second request", meanwhile)
	} else {
		builds++
		if got := result(st.T, "the answer to the next request", post(second)); got != want {
			st.Errorf("when the first was done, the next got %+v", got)
		}
	}
	for _, p := range []*program{one, other} {
		p.signal(syscall.SIGTERM)
		p.ends(0)
	}
	if n := st.number("SELECT builds FROM search"); n != builds {
		st.Errorf("%d builds, want %d", n, builds)
	}
}

// playPartitions: a worker is killed in its partition, with an order booked and not
// committed. Another one has done the others by then, and does that, too.
func playPartitions(st *stage, without bool) {
	st.do("CREATE TABLE orders (id bigint PRIMARY KEY, part bigint NOT NULL, booked bigint NOT NULL)")
	st.do("INSERT INTO orders VALUES (1,1,0),(2,1,0),(3,2,0),(4,2,0),(5,3,0),(6,3,0)")
	resume := st.block("SELECT id FROM orders WHERE id = 2 FOR UPDATE")
	first := st.start("partitions", without)
	first.says("part 1: 2 orders")
	second := st.start("partitions", without)
	if without {
		second.says("part 1: 2 orders")
		resume()
		first.ends(0)
		second.ends(0)
		if n := st.number("SELECT COUNT(*) FROM orders WHERE booked > 1"); n == 0 {
			st.Error("the control has booked every order once")
		}
		return
	}
	second.says("part 2: 2 orders")
	second.says("part 3: 2 orders")
	second.says("waiting for part 1")
	first.signal(syscall.SIGKILL)
	first.ends(-1)
	resume()
	second.says("part 1: 2 orders")
	second.ends(0)
	if n := st.number("SELECT COUNT(*) FROM orders WHERE booked = 1"); n != 6 {
		st.Errorf("%d of 6 orders were booked once", n)
	}
}

// playLongJob: the job is stopped in the second of four pages for longer than its TTL, and
// wakes up when another one has done the rest.
func playLongJob(st *stage, without bool) {
	st.do("CREATE TABLE pages (id bigint PRIMARY KEY, exported bigint NOT NULL)")
	st.do("INSERT INTO pages VALUES (1,0),(2,0),(3,0),(4,0)")
	resume := st.block("SELECT id FROM pages WHERE id = 2 FOR UPDATE")
	first := st.start("longjob", without, "-ttl=2s")
	first.says("page 2")
	first.signal(syscall.SIGSTOP)
	second := st.start("longjob", without, "-ttl=1m")
	second.says("page 2")
	resume()
	if without {
		first.signal(syscall.SIGCONT)
		first.ends(0)
		second.ends(0)
		if n := st.number("SELECT exported FROM pages WHERE id = 2"); n != 2 {
			st.Errorf("the control has exported page 2 %d times", n)
		}
		return
	}
	second.ends(0)
	first.signal(syscall.SIGCONT)
	first.says("another one has gone on, since this one was silent for too long: ")
	first.ends(1)
	if n := st.number("SELECT COUNT(*) FROM pages WHERE exported = 1"); n != 4 {
		st.Errorf("%d of 4 pages were exported once", n)
	}
}

// playTransfer: two processes move money both ways.
func playTransfer(st *stage, without bool) {
	st.do("CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL)")
	st.do("INSERT INTO accounts VALUES (1,1000),(2,1000)")
	run := func() int {
		one, other := st.start("transfer", without), st.start("transfer", without)
		one.ends(0)
		other.ends(0)
		return st.number("SELECT SUM(balance) FROM accounts")
	}
	if without {
		waitFor(st.T, "the control to lose money, or to make some", func() bool { return run() != 2000 })
		return
	}
	if sum, first := run(), st.number("SELECT balance FROM accounts WHERE id = 1"); sum != 2000 || first != 1000 {
		st.Errorf("the sum of the balances was 2000 and is %d, the first was 1000 and is %d", sum, first)
	}
}

// playLeader: the leader is killed; the next one is told to end.
func playLeader(st *stage, without bool) {
	rest := []*program{st.start("leader", without), st.start("leader", without), st.start("leader", without)}
	if without {
		for _, p := range rest {
			p.says("leading")
		}
		for _, p := range rest {
			p.signal(syscall.SIGTERM)
			p.ends(0)
		}
		return
	}
	var leader *program
	followers := rest[:0:0]
	for _, p := range rest {
		if p.says("leading", "following") == "following" {
			followers = append(followers, p)
			continue
		}
		if leader != nil {
			st.Fatal("there are two leaders")
		}
		leader = p
	}
	if leader == nil {
		st.Fatal("there is no leader")
	}
	for i, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		leader.signal(sig)
		leader.ends(map[syscall.Signal]int{syscall.SIGKILL: -1, syscall.SIGTERM: 0}[sig])
		leader = next(st, followers...)
		followers = others(followers, leader)
		for _, p := range followers {
			if strings.Contains(p.sofar(), "leading") {
				st.Errorf("after the end of %d leaders there are two", i+1)
			}
		}
	}
	leader.signal(syscall.SIGTERM)
	leader.ends(0)
}

// next is the one that says that it leads.
func next(st *stage, followers ...*program) (leader *program) {
	st.Helper()
	waitFor(st.T, "another one to lead", func() bool {
		for _, p := range followers {
			if strings.Contains(p.sofar(), "leading") {
				leader = p
			}
		}
		return leader != nil
	})
	return leader
}

func others(all []*program, one *program) (rest []*program) {
	for _, p := range all {
		if p != one {
			rest = append(rest, p)
		}
	}
	return rest
}

// playUnknown cuts the connection when the COMMIT has been answered, and before it arrives.
func playUnknown(st *stage, without bool) {
	st.do("CREATE TABLE charges (id bigint PRIMARY KEY, n bigint NOT NULL)")
	st.do("INSERT INTO charges VALUES (7,0)")
	for _, answered := range []bool{true, false} {
		before := st.number("SELECT n FROM charges")
		st.dsn = st.through(cutAtCommit(st.T, st.addr, "UPDATE charges", answered))
		p := st.start("unknown", without)
		want, code := "not charged: ", 1
		switch {
		case without:
			want = "charged or not, nobody knows: "
		case answered:
			want, code = "charged", 0
		}
		line := p.says("not charged: ", "charged")
		p.ends(code)
		if line != want && (code == 0 || !strings.HasPrefix(line, want)) {
			st.Errorf("the COMMIT was answered: %v, and the program said %q", answered, line)
		}
		if n := st.number("SELECT n FROM charges"); (n == before+1) != answered {
			st.Errorf("the COMMIT was answered: %v, and %d became %d", answered, before, n)
		}
	}
}

// cutAtCommit is the network to the server at addr. The first connection over which work
// has been sent and then COMMIT ends: with the answer to that, or before it arrives.
func cutAtCommit(t *testing.T, addr, work string, answered bool) (proxy string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				_ = client.Close()
				continue
			}
			mu.Lock()
			open = append(open, client, server)
			mu.Unlock()
			both := func() { _, _ = client.Close(), server.Close() }
			sent := make(chan struct{}) // a COMMIT that is to be answered
			wg.Go(func() {
				defer both()
				relay(server, client, func([]byte) bool {
					select {
					case <-sent:
						return false
					default:
						return true
					}
				})
			})
			wg.Go(func() {
				defer both()
				worked := false
				relay(client, server, func(p []byte) bool {
					worked = worked || bytes.Contains(p, []byte(work))
					if !worked || len(p) > 16 || !bytes.Contains(bytes.ToUpper(p), []byte("COMMIT")) {
						return true // a longer one speaks of commits
					}
					if answered {
						close(sent)
						worked = false
					}
					return answered
				})
			})
		}
	})
	return l.Addr().String()
}

// relay passes on what passes.
func relay(from io.Reader, to io.Writer, passes func(p []byte) bool) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		if err != nil || !passes(buffer[:n]) {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// stage is an empty database with the tables of the library, and the programs on it.
type stage struct {
	*testing.T

	dir     string // of the programs
	db      *sql.DB
	dsn     string
	addr    string                   // of the server
	through func(addr string) string // the DSN of the same database over a proxy
}

func (st *stage) migrate(opts ...migrations.Option) *stage {
	st.Helper()
	if err := migrations.Up(st.Context(), st.db, opts...); err != nil {
		st.Fatal(err)
	}
	if err := migrations.Up(st.Context(), st.db, append(opts, migrations.Fences())...); err != nil {
		st.Fatal(err)
	}
	return st
}

func (st *stage) do(statement string) {
	st.Helper()
	do(st.T, st.db, statement)
}

func (st *stage) number(query string) int {
	st.Helper()
	return ask[int](st.T, st.db, query)
}

// block locks rows, until resume.
func (st *stage) block(query string) (resume func()) {
	st.Helper()
	tx, err := st.db.BeginTx(st.Context(), nil)
	if err != nil {
		st.Fatal(err)
	}
	var id int
	if err := tx.QueryRowContext(st.Context(), query).Scan(&id); err != nil {
		st.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
			st.Error(err)
		}
	}
}

// program is a process of an example.
type program struct {
	st   *stage
	name string
	cmd  *exec.Cmd
	done chan struct{} // it has ended, and all that it said is there

	mu   sync.Mutex
	said []string
	read int // of said, by says
}

// start starts an example, which does not outlive the test, nor, on Linux, its process.
func (st *stage) start(name string, without bool, args ...string) *program {
	st.Helper()
	if without {
		args = append(args, "-without")
	}
	p := &program{st: st, name: name, cmd: exec.CommandContext(st.Context(), filepath.Join(st.dir, name), args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "DSN="+st.dsn)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if f := reflect.ValueOf(p.cmd.SysProcAttr).Elem().FieldByName("Pdeathsig"); f.IsValid() {
		f.Set(reflect.ValueOf(syscall.SIGKILL))
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		st.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := p.cmd.Start(); err != nil {
		st.Fatal(err)
	}
	go func() {
		defer close(p.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.mu.Lock()
			p.said = append(p.said, lines.Text())
			p.mu.Unlock()
		}
		_ = p.cmd.Wait() // the test looks at the exit code
	}()
	st.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

func (p *program) signal(s syscall.Signal) {
	p.st.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.st.Fatal(err)
	}
}

func (p *program) sofar() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.said, "\n")
}

// says waits for a line that has one of texts, after those that have been waited for.
func (p *program) says(texts ...string) (line string) {
	p.st.Helper()
	look := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for ; p.read < len(p.said); p.read++ {
			for _, text := range texts {
				if strings.Contains(p.said[p.read], text) {
					line = p.said[p.read]
					p.read++
					return true
				}
			}
		}
		return false
	}
	ctx, cancel := context.WithTimeout(p.st.Context(), 30*time.Second)
	defer cancel()
	for !look() {
		select {
		case <-p.done:
			if look() {
				return line
			}
			p.st.Fatalf("%s has ended without %q:\n%s", p.name, texts, p.sofar())
		case <-ctx.Done():
			p.st.Fatalf("waited in vain for %s to say %q:\n%s", p.name, texts, p.sofar())
		case <-time.After(time.Millisecond):
		}
	}
	return line
}

// ends waits for the end of the program with that code; -1 is that of a signal.
func (p *program) ends(code int) {
	p.st.Helper()
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.st.Fatalf("%s does not end:\n%s", p.name, p.sofar())
	}
	if p.cmd.ProcessState.ExitCode() == code {
		return
	}
	p.st.Errorf("%s has ended with %v:\n%s", p.name, p.cmd.ProcessState, p.sofar())
}
