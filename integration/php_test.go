package integration

import (
	"bufio"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// phpPeer is a process of PHP with its-mieger/mysql-shared-locks, as the server
// sees it: the statements of SharedLock.php in their order, prepared, on a session
// of its own.
type phpPeer struct {
	conn    *sql.Conn
	session int64
}

// What the PHP package throws.
var (
	errPHPTimeout = errors.New("PHP: SharedLockTimeoutException")
	errPHPAcquire = errors.New("PHP: SharedLockAcquireException")
	errPHPRelease = errors.New("PHP: SharedLockReleaseException")
)

// phpTries is how often PHP tries to take the doorbell of a row that it has made,
// and phpPause the time between two tries.
const (
	phpTries = 20
	phpPause = 200 * time.Millisecond
)

func newPHP(t *testing.T, db *sql.DB) *phpPeer {
	t.Helper()
	c := conn(t, db)
	t.Cleanup(func() { _ = c.PingContext(context.Background()) }) // one that was killed is not for the pool
	return &phpPeer{c, sessionID(t, c)}
}

// lock is SharedLock::lock.
func (p *phpPeer) lock(ctx context.Context, name string, timeout time.Duration, ttl int64) error {
	for start := time.Now(); ; {
		inserted, err := p.insert(ctx, name, ttl)
		if err != nil {
			return err
		}
		if inserted {
			_, err := p.ring(ctx, name)
			return err
		}
		if cleaned, err := p.clean(ctx, name); err != nil || cleaned {
			if err != nil {
				return err
			}
			continue
		}
		left := timeout - time.Since(start)
		if left <= 0 {
			return fmt.Errorf("%w: %s", errPHPTimeout, name)
		}
		if err := p.sleepUntilRelease(ctx, name, int64(math.Ceil(left.Seconds()))); err != nil {
			return err
		}
	}
}

// insert is registerLock: it reports whether there was no row yet.
func (p *phpPeer) insert(ctx context.Context, name string, ttl int64) (bool, error) {
	_, err := p.conn.ExecContext(ctx, "INSERT INTO `shared_locks` (`name`, `created`, `ttl`, `connection_id`, `lock_acquired`)"+
		" VALUES (?, unix_timestamp(), ?, connection_id(), false)", name, ttl)
	var answer *mysql.MySQLError
	if errors.As(err, &answer) && string(answer.SQLState[:]) == "23000" {
		return false, nil
	}
	return err == nil, err
}

// clean is cleanLock: it reports whether there was an obsolete row.
func (p *phpPeer) clean(ctx context.Context, name string) (bool, error) {
	return p.changed(ctx, "DELETE FROM `shared_locks` WHERE name = ? AND (`created` + `ttl` < unix_timestamp()"+
		" OR (`lock_acquired` AND IFNULL(IS_USED_LOCK(?),0) != `connection_id`))", name, name)
}

// ring is what follows insert: it takes the doorbell, and says so in the row. It
// returns how many tries that took.
func (p *phpPeer) ring(ctx context.Context, name string) (tries int, err error) {
	for tries = 1; ; tries++ {
		got, err := p.value(ctx, "SELECT GET_LOCK(?, ?)", name, 0)
		if err != nil {
			return tries, err
		}
		if got == 1 {
			break
		}
		if tries == phpTries {
			_, err := p.deregister(ctx, name)
			return tries, errors.Join(fmt.Errorf("%w: %s: other session holds it and does not terminate", errPHPAcquire, name), err)
		}
		time.Sleep(phpPause) // as PHP does
	}
	marked, err := p.changed(ctx, "UPDATE `shared_locks` SET `lock_acquired` = true WHERE `name` = ? AND `connection_id` = connection_id()", name)
	if err == nil && !marked {
		_, err = p.deregister(ctx, name)
		err = errors.Join(fmt.Errorf("%w: %s: could not mark database lock as acquired", errPHPAcquire, name), err)
	}
	return tries, err
}

// sleepUntilRelease waits on the doorbell, for at most left seconds and no longer
// than the row has, and lets go of it at once.
func (p *phpPeer) sleepUntilRelease(ctx context.Context, name string, left int64) error {
	ttl, err := p.value(ctx, "SELECT `created` + `ttl` - unix_timestamp() FROM `shared_locks` WHERE `name` = ?", name)
	if err != nil {
		return err
	}
	got, err := p.value(ctx, "SELECT GET_LOCK(?, ?)", name, min(left, ttl))
	if err != nil || got != 1 {
		return err
	}
	_, err = p.value(ctx, "SELECT RELEASE_LOCK(?)", name)
	return err
}

func (p *phpPeer) deregister(ctx context.Context, name string) (bool, error) {
	return p.changed(ctx, "DELETE FROM `shared_locks` WHERE `name` = ? AND `connection_id` = connection_id()", name)
}

// unlock is SharedLock::unlock.
func (p *phpPeer) unlock(ctx context.Context, name string) error {
	released, err := p.deregister(ctx, name)
	if err != nil {
		return err
	}
	for got := int64(1); got == 1; {
		if got, err = p.value(ctx, "SELECT RELEASE_LOCK(?)", name); err != nil {
			return err
		}
	}
	if !released {
		return fmt.Errorf("%w: %s", errPHPRelease, name)
	}
	return nil
}

func (p *phpPeer) changed(ctx context.Context, query string, args ...any) (bool, error) {
	res, err := p.conn.ExecContext(ctx, query, args...)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

// value is 0 where there is none.
func (p *phpPeer) value(ctx context.Context, query string, args ...any) (int64, error) {
	var v sql.NullInt64
	err := p.conn.QueryRowContext(ctx, query, args...).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return v.Int64, err
}

// locked has p hold name.
func (p *phpPeer) locked(t *testing.T, name string, ttl int64) {
	t.Helper()
	if err := p.lock(t.Context(), name, 0, ttl); err != nil {
		t.Fatalf("PHP's lock: %v", err)
	}
}

func (p *phpPeer) unlocked(t *testing.T, name string) {
	t.Helper()
	if err := p.unlock(t.Context(), name); err != nil {
		t.Fatalf("PHP's unlock: %v", err)
	}
}

// locking has p wait for name in a goroutine of its own. It returns when p waits
// on the server.
func (p *phpPeer) locking(t *testing.T, db *sql.DB, name string, ttl int64) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.lock(t.Context(), name, 30*time.Second, ttl) }()
	waitFor(t, "PHP to wait", func() bool {
		return ask[bool](t, db, "SELECT COUNT(*)=1 FROM information_schema.processlist WHERE id=? AND state='User lock'", p.session)
	})
	return done
}

// ends ends the session, as the death of the process does, and returns when the
// server has noticed.
func (p *phpPeer) ends(t *testing.T, db *sql.DB) {
	t.Helper()
	if err := mysqlKill(t.Context(), db, p.session); err != nil {
		t.Fatal(err)
	}
	sessionEnds(t, db, p.session)
}

func sessionEnds(t *testing.T, db *sql.DB, session int64) {
	t.Helper()
	waitFor(t, "the session to end", func() bool {
		return ask[bool](t, db, "SELECT COUNT(*)=0 FROM information_schema.processlist WHERE id=?", session)
	})
}

// grant is how a Lock has ended.
type grant struct {
	lock *sqllock.Lock
	err  error
}

// granting has a session wait for name in a goroutine of its own.
func granting(t *testing.T, k *sqllock.Locker, c *sql.Conn, name string) <-chan grant {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	done := make(chan grant, 1)
	go func() {
		l, err := k.Lock(ctx, c, name)
		done <- grant{l, err}
	}()
	return done
}

// granted returns the lock that a waiter gets.
func granted(t *testing.T, waiting <-chan grant) *sqllock.Lock {
	t.Helper()
	g := <-waiting
	if g.err != nil {
		t.Fatalf("Lock: %v", g.err)
	}
	return g.lock
}

// stillWaits fails the test if a wait is over.
func stillWaits[T any](t *testing.T, waiting <-chan T) {
	t.Helper()
	select {
	case v := <-waiting:
		t.Fatalf("the wait is over: %+v", v)
	default:
	}
}

// wantRows fails the test unless the lock table has as many rows.
func wantRows(t *testing.T, db *sql.DB, want int) {
	t.Helper()
	if n := rowsLeft(t, db); n != want {
		t.Errorf("the lock table has %d rows, want %d", n, want)
	}
}

// wantHeld fails the test unless the server says that l is held.
func wantHeld(t *testing.T, l *sqllock.Lock) {
	t.Helper()
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check of %q: %v", l.Name(), err)
	}
}

// broken has an operator break name, which is to end session.
func broken(t *testing.T, k *sqllock.Locker, db *sql.DB, name string, session int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if h, err := k.Break(ctx, db, name); err != nil || h.Session != session {
		t.Errorf("Break: %+v, %v; want session %d", h, err, session)
	}
}

// lockName is a name that no other test on the server has.
func lockName(what string) string { return what + "-" + rand.Text()[:10] }

// events collects what an observer is told.
type events struct {
	mu  sync.Mutex // guards all
	all []sqllock.Event
}

func (e *events) observe() sqllock.Option {
	return onHolders(func(event sqllock.Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.all = append(e.all, event)
	})
}

// onHolders observes what happens to earlier holders.
func onHolders(f func(sqllock.Event)) sqllock.Option {
	return sqllock.WithObserver(func(e sqllock.Event) {
		if e.Holder.Session != 0 {
			f(e)
		}
	})
}

// want compares kinds, and the session of all of them.
func (e *events) want(t *testing.T, session int64, kinds ...sqllock.EventKind) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	same := len(e.all) == len(kinds)
	for i := range min(len(e.all), len(kinds)) {
		same = same && e.all[i].Kind == kinds[i] && e.all[i].Holder.Session == session
	}
	if !same {
		t.Errorf("the observer was told %+v, want %v of session %d", e.all, kinds, session)
	}
	e.all = nil
}

// TestPHPWaitsForGo: PHP waits while Go holds, gives up when its timeout is over,
// and gets the lock after the release.
func TestPHPWaitsForGo(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		name, php := lockName("job"), newPHP(t, db)
		k := sqllock.New(table.New(time.Hour))
		l := acquire(t, k, conn(t, db), name)
		start := time.Now()
		wantErr(t, "PHP's lock with a timeout", php.lock(t.Context(), name, time.Second, 3600), errPHPTimeout)
		if waited := time.Since(start); waited < time.Second {
			t.Errorf("PHP gave up after %v", waited)
		}
		wantHeld(t, l)
		locked := php.locking(t, db, name, 3600)
		stillWaits(t, locked)
		wantHeld(t, l)
		release(t, l)
		if err := <-locked; err != nil {
			t.Fatalf("PHP's lock after the release: %v", err)
		}
		_, err := k.TryLock(t.Context(), conn(t, db), name)
		wantErr(t, "TryLock while PHP holds", err, sqllock.ErrBusy)
		php.unlocked(t, name)
		wantRows(t, db, 0)
	})
}

// TestGoWaitsForPHP: the other way round. Go knows who holds.
func TestGoWaitsForPHP(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		name, php, c := lockName("job"), newPHP(t, db), conn(t, db)
		var told events
		k := sqllock.New(table.New(time.Hour), told.observe())
		php.locked(t, name, 3600)
		_, err := k.TryLock(t.Context(), c, name)
		wantErr(t, "TryLock", err, sqllock.ErrBusy)
		h, err := k.Holder(t.Context(), db, name)
		if err != nil || h.Key != name || h.Session != php.session || !h.Alive || h.Token != 0 || h.Process != "" {
			t.Errorf("Holder: %+v, %v; want PHP's session %d", h, err, php.session)
		}
		waiting := granting(t, k, c, name)
		waiters(t, db, name, 1)
		stillWaits(t, waiting)
		php.unlocked(t, name)
		l := granted(t, waiting)
		wantErr(t, "PHP's lock while Go holds", php.lock(t.Context(), name, 0, 3600), errPHPTimeout)
		wantHeld(t, l)
		release(t, l)
		php.locked(t, name, 3600)
		php.unlocked(t, name)
		wantRows(t, db, 0)
		told.want(t, 0) // nobody had died
	})
}

// Of a process that holds a lock until it is killed: as whom, where, and which.
const (
	peerEnv     = "SQLLOCK_TEST_PEER" // "PHP" or "Go"
	peerDSNEnv  = "SQLLOCK_TEST_PEER_DSN"
	peerNameEnv = "SQLLOCK_TEST_PEER_NAME"
)

// TestPeerProcess is the process that TestPHPKilled and TestGoKilled kill.
func TestPeerProcess(t *testing.T) {
	peer, name := os.Getenv(peerEnv), os.Getenv(peerNameEnv)
	if peer == "" {
		t.Skip("it is run by other tests")
	}
	db, err := testdb.OpenDB(os.Getenv(peerDSNEnv), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	php := newPHP(t, db)
	if peer == "PHP" {
		php.locked(t, name, 3600)
	} else {
		acquire(t, sqllock.New(table.New(time.Hour)), php.conn, name)
	}
	fmt.Println("held", php.session)
	_, _ = io.Copy(io.Discard, os.Stdin) // until we are killed, or who runs us ends
}

// peerProcess starts a process that holds name for an hour.
func peerProcess(t *testing.T, peer string, s *testdb.Server, db *sql.DB, name string) (kill func(), session int64) {
	t.Helper()
	cfg, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	cfg.DBName = database(t, db)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPeerProcess$", "-test.v")
	cmd.Env = append(os.Environ(), peerEnv+"="+peer, peerDSNEnv+"="+cfg.FormatDSN(), peerNameEnv+"="+name)
	if _, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // SIGKILL
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
		if n, _ := fmt.Sscanf(lines.Text(), "held %d", &session); n == 1 {
			return kill, session
		}
	}
	t.Fatalf("the %s process has ended without the lock:\n%s", peer, strings.Join(said, "\n"))
	return nil, 0
}

// TestPHPKilled: kill -9 of a PHP process that holds. Its TTL is an hour.
func TestPHPKilled(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		name, c := lockName("job"), conn(t, db)
		var told events
		k := sqllock.New(table.New(time.Hour), told.observe())

		kill, session := peerProcess(t, "PHP", s, db, name)
		waiting := granting(t, k, c, name)
		waiters(t, db, name, 1)
		stillWaits(t, waiting)
		kill()
		release(t, granted(t, waiting))
		told.want(t, session, sqllock.TakenOver)

		kill, session = peerProcess(t, "PHP", s, db, name)
		_, err := k.TryLock(t.Context(), c, name)
		wantErr(t, "TryLock while the process lives", err, sqllock.ErrBusy)
		kill()
		sessionEnds(t, db, session)
		l, err := k.TryLock(t.Context(), c, name)
		if err != nil {
			t.Fatalf("TryLock after kill -9: %v", err)
		}
		release(t, l)
		told.want(t, session, sqllock.TakenOver)
		wantRows(t, db, 0)
	})
}

// TestGoKilled: kill -9 of a Go process that holds, for an hour, too.
func TestGoKilled(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		name, php := lockName("job"), newPHP(t, db)
		kill, _ := peerProcess(t, "Go", s, db, name)
		locked := php.locking(t, db, name, 3600)
		stillWaits(t, locked)
		kill()
		if err := <-locked; err != nil {
			t.Fatalf("PHP's lock after kill -9 of the Go process: %v", err)
		}
		php.unlocked(t, name)
		wantRows(t, db, 0)
	})
}

// TestPHPHangs: PHP's TTL is over, and it is in a transaction. Go kills its
// session, and has the lock when that transaction has been rolled back.
func TestPHPHangs(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		do(t, db, "CREATE TABLE work (id int AUTO_INCREMENT PRIMARY KEY, text varchar(200) NOT NULL) ENGINE=InnoDB")
		name, php, c := lockName("job"), newPHP(t, db), conn(t, db)
		do(t, c, "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
		php.locked(t, name, 1)
		do(t, php.conn, "BEGIN")
		do(t, php.conn, "INSERT INTO work (text) VALUES (REPEAT('x', 200))")
		for range 14 { // so that the rollback takes a while
			do(t, php.conn, "INSERT INTO work (text) SELECT text FROM work")
		}
		if n := ask[int](t, c, "SELECT COUNT(*) FROM work"); n != 1<<14 {
			t.Fatalf("the test should see %d uncommitted rows, and sees %d", 1<<14, n)
		}
		var told events
		k := sqllock.New(table.New(time.Hour), told.observe())
		l := acquire(t, k, c, name)
		if n := ask[int](t, c, "SELECT COUNT(*) FROM work"); n != 0 {
			t.Errorf("%d rows of PHP's transaction were left when the lock was granted", n)
		}
		told.want(t, php.session, sqllock.Killed, sqllock.TakenOver)
		if _, err := php.conn.ExecContext(t.Context(), "COMMIT"); err == nil {
			t.Error("PHP could commit after the next grant")
		}
		wantHeld(t, l)
		release(t, l)
		wantRows(t, db, 0)
	})
}

// TestPHPHangsWithinItsTTL: it is left alone.
func TestPHPHangsWithinItsTTL(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		name, php, c := lockName("job"), newPHP(t, db), conn(t, db)
		const ttl = 2
		k := sqllock.New(table.New(time.Hour))
		php.locked(t, name, ttl)
		created := ask[int64](t, db, "SELECT created FROM shared_locks WHERE name=?", name)
		l := acquire(t, k, c, name)
		if now := ask[int64](t, c, "SELECT UNIX_TIMESTAMP()"); now <= created+ttl {
			t.Errorf("the lock of second %d, for %d seconds, was taken in second %d", created, ttl, now)
		}
		release(t, l)
	})
}

// TestGoSessionGone: a Go lease is over, and its session is gone. PHP gets the
// lock without a wait.
func TestGoSessionGone(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		name, php, c := lockName("job"), newPHP(t, db), conn(t, db)
		session := sessionID(t, c)
		l := acquire(t, sqllock.New(table.New(time.Second)), c, name)
		waitFor(t, "the TTL to be over", func() bool {
			return ask[bool](t, db, "SELECT created+ttl<UNIX_TIMESTAMP() FROM shared_locks WHERE name=?", name)
		})
		if err := mysqlKill(t.Context(), db, session); err != nil {
			t.Fatal(err)
		}
		sessionEnds(t, db, session)
		wantRows(t, db, 1)
		php.locked(t, name, 3600)
		wantErr(t, "the release of the lost lock", l.Release(t.Context()), sqllock.ErrLost)
		wantErr(t, "another PHP process", newPHP(t, db).lock(t.Context(), name, 0, 3600), errPHPTimeout)
		php.unlocked(t, name)
		wantRows(t, db, 0)
	})
}

// TestGoHangsBesidePHP: a Go lease is over, and its session lives. PHP takes the
// row away, can't get the doorbell, and gives up; the holder is told, and Break
// ends one that can't be told.
func TestGoHangsBesidePHP(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		name, php, c := lockName("job"), newPHP(t, db), conn(t, db)
		session := sessionID(t, c)
		k := sqllock.New(table.New(time.Second))
		l := acquire(t, k, c, name)
		waitFor(t, "the TTL to be over", func() bool {
			return ask[bool](t, db, "SELECT created+ttl<UNIX_TIMESTAMP() FROM shared_locks WHERE name=?", name)
		})
		wantErr(t, "PHP's lock", php.lock(t.Context(), name, 30*time.Second, 3600), errPHPAcquire)
		wantRows(t, db, 0)
		_, err := k.TryLock(t.Context(), conn(t, db), name)
		wantErr(t, "TryLock", err, sqllock.ErrBusy)
		broken(t, k, db, name, session)
		wantErr(t, "Check", l.Check(t.Context()), sqllock.ErrLost)
		php.locked(t, name, 3600)
		php.unlocked(t, name)
	})
}

// TestPHPAboutToLock: PHP has made its row and is about to take the doorbell. The
// Go sessions that want the lock, or have queued for the doorbell before, leave it
// to PHP.
func TestPHPAboutToLock(t *testing.T) {
	t.Parallel()
	const sessions = 6
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		name := lockName("job")
		counted, sent := counted(t, s, func(c *mysql.Config) { c.DBName = database(t, db) })
		k := sqllock.New(table.New(time.Hour))
		for _, queued := range []bool{false, true} {
			php, foreign := newPHP(t, db), conn(t, db)
			wait := func() (waiting []<-chan grant) {
				for range sessions {
					waiting = append(waiting, granting(t, k, conn(t, counted), name))
				}
				return waiting
			}
			insert := func() {
				if inserted, err := php.insert(t.Context(), name, 3600); !inserted {
					t.Fatalf("PHP's INSERT: %v, %v", inserted, err)
				}
			}
			var waiting []<-chan grant
			if queued {
				do(t, foreign, "DO GET_LOCK(?, 0)", name)
				waiting = wait()
				waiters(t, db, name, sessions)
				insert()
				do(t, foreign, "DO RELEASE_LOCK(?)", name)
			} else {
				insert()
				before := sent.Load()
				waiting = wait()
				waitFor(t, "the waiters to have looked several times", func() bool { return sent.Load() > before+10*sessions })
			}
			_, err := k.TryLock(t.Context(), conn(t, db), name)
			wantErr(t, "TryLock", err, sqllock.ErrBusy)
			tries, err := php.ring(t.Context(), name)
			if err != nil {
				t.Fatalf("PHP's GET_LOCK, queued %v: %v", queued, err)
			}
			t.Logf("queued %v: PHP had the doorbell at try %d", queued, tries)
			for _, w := range waiting {
				stillWaits(t, w)
			}
			php.unlocked(t, name)
			var all sync.WaitGroup
			for _, w := range waiting { // in any order
				all.Go(func() {
					g := <-w
					if g.err != nil {
						t.Errorf("Lock: %v", g.err)
						return
					}
					if err := g.lock.Release(t.Context()); err != nil {
						t.Errorf("Release: %v", err)
					}
				})
			}
			all.Wait()
			wantRows(t, db, 0)
		}
	})
}

// TestPHPDiedHalfway: between INSERT and UPDATE a row blocks until its TTL is over.
func TestPHPDiedHalfway(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		const ttl = 1
		for _, rung := range []bool{false, true} {
			name, php, c := lockName("job"), newPHP(t, db), conn(t, db)
			var told events
			k := sqllock.New(table.New(time.Hour), told.observe())
			if inserted, err := php.insert(t.Context(), name, ttl); !inserted {
				t.Fatalf("PHP's INSERT: %v, %v", inserted, err)
			}
			if rung {
				do(t, php.conn, "DO GET_LOCK(?, 0)", name)
			}
			created := ask[int64](t, db, "SELECT created FROM shared_locks WHERE name=?", name)
			php.ends(t, db)
			l := acquire(t, k, c, name)
			if now := ask[int64](t, c, "SELECT UNIX_TIMESTAMP()"); now <= created+ttl {
				t.Errorf("the row of second %d, for %d seconds, was removed in second %d", created, ttl, now)
			}
			told.want(t, php.session, sqllock.TakenOver)
			release(t, l)
			wantRows(t, db, 0)
		}
	})
}

// TestPHPComesLate: PHP hangs between INSERT and GET_LOCK until its TTL is over,
// and goes on when Go has the lock. It does no harm, and is not killed.
func TestPHPComesLate(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		name, php := lockName("job"), newPHP(t, db)
		var told events
		k := sqllock.New(table.New(time.Hour), told.observe())
		if inserted, err := php.insert(t.Context(), name, 1); !inserted {
			t.Fatalf("PHP's INSERT: %v, %v", inserted, err)
		}
		l := acquire(t, k, conn(t, db), name)
		told.want(t, php.session, sqllock.TakenOver)
		_, err := php.ring(t.Context(), name)
		wantErr(t, "PHP that comes late", err, errPHPAcquire)
		wantHeld(t, l)
		wantErr(t, "PHP's release", php.unlock(t.Context(), name), errPHPRelease)
		wantHeld(t, l)
		release(t, l)
		php.locked(t, name, 3600)
		php.unlocked(t, name)
		wantRows(t, db, 0)
	})
}

// TestExclusionBetweenPHPAndGo has peers of both kinds exclude each other.
func TestExclusionBetweenPHPAndGo(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		const peers, rounds = 3, 12
		name := lockName("job")
		k := sqllock.New(table.New(time.Hour))
		var php [peers]*phpPeer
		var conns [peers]*sql.Conn
		for i := range peers {
			php[i], conns[i] = newPHP(t, db), conn(t, db)
		}
		exclusion(t, rounds, 2*peers, func(i int, locked bool, increment func(*sql.Conn) error) error {
			if i < peers {
				return phpUnder(t, php[i], name, locked, increment)
			}
			return goUnder(t, k, conns[i-peers], name, locked, increment)
		})
		wantRows(t, db, 0)
	})
}

// exclusion has sessions increment a counter by reading it, doing a round trip,
// and writing it back, under the lock that each takes. The control, without it,
// must lose updates.
func exclusion(t *testing.T, rounds, sessions int, under func(session int, locked bool, increment func(*sql.Conn) error) error) {
	t.Helper()
	run := func(locked bool) (lost int64) {
		var counter atomic.Int64
		increment := func(c *sql.Conn) error {
			n := counter.Load()
			err := c.PingContext(t.Context())
			counter.Store(n + 1)
			return err
		}
		var all sync.WaitGroup
		for i := range sessions {
			all.Go(func() {
				for range rounds {
					if err := under(i, locked, increment); err != nil {
						t.Errorf("session %d: %v", i, err)
						return
					}
				}
			})
		}
		all.Wait()
		return int64(rounds*sessions) - counter.Load()
	}
	if lost := run(true); lost != 0 {
		t.Errorf("%d of %d updates were lost inside the lock", lost, rounds*sessions)
	}
	waitFor(t, "the control to lose an update without the lock", func() bool { return run(false) > 0 })
}

func goUnder(t *testing.T, k *sqllock.Locker, c *sql.Conn, name string, locked bool, f func(*sql.Conn) error) error {
	t.Helper()
	if !locked {
		return f(c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := k.Lock(ctx, c, name)
	if err != nil {
		return err
	}
	return errors.Join(f(c), l.Release(ctx))
}

// phpUnder tries again after a deadlock, which PHP's INSERT may run into on InnoDB.
func phpUnder(t *testing.T, p *phpPeer, name string, locked bool, f func(*sql.Conn) error) error {
	t.Helper()
	if !locked {
		return f(p.conn)
	}
	for {
		err := p.lock(t.Context(), name, time.Minute, 3600)
		var answer *mysql.MySQLError
		if errors.As(err, &answer) && answer.Number == 1213 {
			continue
		}
		if err != nil {
			return err
		}
		return errors.Join(f(p.conn), p.unlock(t.Context(), name))
	}
}

// onPHPTables runs a test with a lock table that PHP has, and nobody migrated.
func onPHPTables(t *testing.T, test func(t *testing.T, s *testdb.Server, db *sql.DB)) {
	t.Helper()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, engine := range engines {
			t.Run(engine, func(t *testing.T) {
				db := schema(t, s)
				do(t, db, strings.Replace(documentedTable, "MyISAM", engine, 1))
				test(t, s, db)
			})
		}
	})
}

// TestUnmigratedRefused: what is missing is told, and nothing is held.
func TestUnmigratedRefused(t *testing.T) {
	t.Parallel()
	onPHPTables(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		name, c := lockName("job"), conn(t, db)
		k := sqllock.New(table.New(time.Minute))
		_, try := k.TryLock(t.Context(), c, name)
		_, wait := k.Lock(t.Context(), c, name)
		_, holder := k.Holder(t.Context(), db, name)
		_, list := table.New(time.Minute).List(t.Context(), db)
		for what, err := range map[string]error{"TryLock": try, "Lock": wait, "Holder": holder, "List": list} {
			wantErr(t, what, err, sqllock.ErrNoTable)
			if err != nil && !strings.Contains(err.Error(), "migrations.Up") {
				t.Errorf("%s: the error should name migrations.Up: %v", what, err)
			}
		}
		wantRows(t, db, 0)
		if ask[bool](t, db, "SELECT IS_USED_LOCK(?) IS NOT NULL", name) {
			t.Error("the doorbell was taken")
		}
	})
}

// TestUnmigratedAllowed: PHP's table as it is does for everything but tokens.
func TestUnmigratedAllowed(t *testing.T) {
	t.Parallel()
	onPHPTables(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY) ENGINE=InnoDB")
		for _, test := range []struct {
			name string
			opts []table.Option
		}{
			{"plain", []table.Option{table.AllowUnmigrated()}},
			{"pool", []table.Option{table.AllowUnmigrated(), table.WithPool(db)}},
		} {
			t.Run(test.name, func(t *testing.T) {
				unmigrated(t, table.New(time.Hour, test.opts...), s, db)
			})
		}
	})
}

func unmigrated(t *testing.T, b *table.Backend, s *testdb.Server, db *sql.DB) {
	name, php := lockName("job"), newPHP(t, db)
	one, two := conn(t, db), conn(t, db)
	var told events
	k := sqllock.New(b, told.observe())

	// Re-entry, a try, a wait, and a hand-off.
	l := acquire(t, k, one, name)
	_, err := k.TryLock(t.Context(), one, name)
	wantErr(t, "re-entry", err, sqllock.ErrHeld)
	_, err = sqllock.New(b).TryLock(t.Context(), one, name) // which knows only what the server knows
	wantErr(t, "re-entry by another Locker", err, sqllock.ErrHeld)
	_, err = k.TryLock(t.Context(), two, name)
	wantErr(t, "TryLock", err, sqllock.ErrBusy)
	waiting := granting(t, k, two, name)
	waiters(t, db, name, 1)
	release(t, l)
	l = granted(t, waiting)
	if l.Token() != 0 || l.Grant().Session != sessionID(t, two) {
		t.Errorf("the grant is %+v, want token 0 and session %d", l.Grant(), sessionID(t, two))
	}
	told.want(t, 0)

	// Extensions to more, to the same, and to less.
	for _, ttl := range []time.Duration{2 * time.Hour, 2 * time.Hour, time.Second} {
		if err := l.Extend(t.Context(), ttl); err != nil {
			t.Fatalf("Extend to %v: %v", ttl, err)
		}
		if got := ask[int64](t, db, "SELECT ttl FROM shared_locks WHERE name=?", name); got != int64(ttl.Seconds()) {
			t.Errorf("the row has a TTL of %d s after an extension to %v", got, ttl)
		}
	}

	// The holder hangs in a transaction.
	do(t, two, "BEGIN")
	do(t, two, "INSERT INTO work VALUES (1)")
	stale, session := l, l.Grant().Session
	third := conn(t, db)
	do(t, third, "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
	l = acquire(t, k, third, name)
	if n := ask[int](t, third, "SELECT COUNT(*) FROM work"); n != 0 {
		t.Error("the lock was granted before the stale holder's transaction was rolled back")
	}
	told.want(t, session, sqllock.Killed, sqllock.TakenOver)
	wantErr(t, "Check by the stale holder", stale.Check(t.Context()), sqllock.ErrLost)
	wantErr(t, "Extend by the stale holder", stale.Extend(t.Context(), time.Hour), sqllock.ErrLost)
	wantErr(t, "Release by the stale holder", stale.Release(t.Context()), sqllock.ErrLost)
	wantHeld(t, l)

	// PHP, in both directions.
	wantErr(t, "PHP's lock", php.lock(t.Context(), name, 0, 3600), errPHPTimeout)
	release(t, l)
	php.locked(t, name, 3600)
	waiting = granting(t, k, one, name)
	waiters(t, db, name, 1)
	php.unlocked(t, name)
	l = granted(t, waiting)

	// A death, and what is left of it.
	all, err := b.List(t.Context(), db)
	if err != nil || len(all) != 1 || all[0].Key != name || all[0].Session != l.Grant().Session || !all[0].Alive {
		t.Errorf("List: %+v, %v", all, err)
	}
	if err := mysqlKill(t.Context(), open(t, s), l.Grant().Session); err != nil {
		t.Fatal(err)
	}
	sessionEnds(t, db, l.Grant().Session)
	if n, err := b.Sweep(t.Context(), db); n != 1 || err != nil {
		t.Errorf("Sweep: %d, %v", n, err)
	}
	wantErr(t, "the release of a dead session", l.Release(t.Context()), sqllock.ErrLost)
	wantRows(t, db, 0)
}

// TestUnmigratedExtendInTransaction: with a pool it does not matter what the
// session is in.
func TestUnmigratedExtendInTransaction(t *testing.T) {
	t.Parallel()
	onPHPTables(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		name, c := lockName("job"), conn(t, db)
		k := sqllock.New(table.New(time.Minute, table.AllowUnmigrated(), table.WithPool(db)))
		l := acquire(t, k, c, name)
		do(t, c, "BEGIN")
		if err := l.Extend(t.Context(), time.Hour); err != nil {
			t.Errorf("Extend: %v", err)
		}
		do(t, c, "ROLLBACK")
		if err := l.AssertTTL(t.Context(), 30*time.Minute); err != nil {
			t.Errorf("AssertTTL after the rollback: %v", err)
		}
		release(t, l)
		wantRows(t, db, 0)
	})
}

// TestPHPOddRows: tables with columns that may be NULL, and TTLs that no sum of
// seconds can hold, do no harm to anybody.
func TestPHPOddRows(t *testing.T) {
	t.Parallel()
	onPHPTables(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		do(t, db, "ALTER TABLE shared_locks MODIFY connection_id bigint NULL, MODIFY created bigint NULL, MODIFY ttl bigint NULL, MODIFY lock_acquired tinyint(1) NULL")
		b := table.New(time.Hour, table.AllowUnmigrated())
		for _, test := range []struct {
			name string
			ttl  any
			live bool // while its session has the doorbell
		}{
			{"an hour", 3600, true},
			{"the greatest TTL", math.MaxInt64, true},
			{"a great TTL", int64(math.MaxInt64) / 1000, true},
			{"no TTL", 0, false},
			{"a negative TTL", -5, false},
			{"a very negative TTL", int64(math.MinInt64) / 1000, false},
			{"the least TTL", math.MinInt64, false},
			{"NULL", nil, false},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Cleanup(func() { _, _ = db.ExecContext(context.Background(), "DELETE FROM shared_locks") })
				name, c := lockName("job"), conn(t, db)
				var told events
				k := sqllock.New(b, told.observe())
				insert := func(php *phpPeer) {
					do(t, php.conn, "INSERT INTO shared_locks (name,created,ttl,connection_id,lock_acquired) VALUES (?,UNIX_TIMESTAMP(),?,CONNECTION_ID(),1)", name, test.ttl)
				}
				php := newPHP(t, db)
				insert(php)
				do(t, php.conn, "DO GET_LOCK(?, 0)", name)
				if test.live {
					_, err := k.TryLock(t.Context(), c, name)
					wantErr(t, "TryLock of a lock that is held", err, sqllock.ErrBusy)
				}
				all, err := b.List(t.Context(), db)
				if err != nil || len(all) != 1 || all[0].Session != php.session || !all[0].Alive {
					t.Errorf("List: %+v, %v", all, err)
				}
				if len(all) == 1 && test.live && all[0].Expires.Before(all[0].Since) {
					t.Errorf("List: %+v ends before it has begun", all[0])
				}
				if n, err := b.Sweep(t.Context(), db); n != 0 || err != nil {
					t.Errorf("Sweep while the session lives: %d, %v", n, err)
				}
				want := []sqllock.EventKind{sqllock.Killed, sqllock.TakenOver}
				if test.live {
					php.ends(t, db)
					want = want[1:]
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				l, err := k.Lock(ctx, c, name)
				if err != nil {
					t.Fatalf("Lock: %v", err)
				}
				for _, e := range told.all {
					if test.live && e.Holder.Expires.Before(e.Holder.Since) {
						t.Errorf("the observer was told of a lock that ends before it has begun: %+v", e)
					}
				}
				told.want(t, php.session, want...)
				wantHeld(t, l)
				release(t, l)
				wantRows(t, db, 0)

				php = newPHP(t, db)
				insert(php)
				php.ends(t, db)
				if n, err := b.Sweep(t.Context(), db); n != 1 || err != nil {
					t.Errorf("Sweep after the session's end: %d, %v", n, err)
				}
			})
		}
		// Nothing that PHP makes, but a table may have it.
		t.Run("NULL in all columns", func(t *testing.T) {
			name, c := lockName("job"), conn(t, db)
			k := sqllock.New(b)
			do(t, db, "INSERT INTO shared_locks (name) VALUES (?)", name)
			all, err := b.List(t.Context(), db)
			if err != nil || len(all) != 1 || all[0].Key != name || all[0].Alive {
				t.Errorf("List: %+v, %v", all, err)
			}
			l, err := k.TryLock(t.Context(), c, name)
			if err != nil {
				t.Fatalf("TryLock: %v", err)
			}
			release(t, l)
			wantRows(t, db, 0)
			do(t, db, "INSERT INTO shared_locks (name) VALUES (?)", name)
			if n, err := b.Sweep(t.Context(), db); n != 1 || err != nil {
				t.Errorf("Sweep: %d, %v", n, err)
			}
		})
	})
}
