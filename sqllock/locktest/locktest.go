package locktest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Config is what the suite needs to know of a backend. Every field but Kill is required.
type Config struct {
	// Backend is what is tested. It is used by many goroutines.
	Backend sqllock.Backend

	// Open returns a new pool on the server, always the same one, that may
	// open ten connections. The suite tunes and closes it.
	Open func(t *testing.T) *sql.DB

	// Kill ends a session of the server from outside. It is nil for a backend whose locks
	// outlive their sessions: they end by a release, or with their TTL, and whatever is
	// about the end of a session is left out.
	Kill func(ctx context.Context, db *sql.DB, session int64) error

	// Waiters counts the sessions that wait on the server for key, and nothing
	// that only waits its turn to ask. Where nobody waits on the server, it counts
	// those that ask again and again.
	Waiters func(ctx context.Context, db *sql.DB, key string) (int, error)
}

// patience is how long a test waits for something that will happen, unless the
// backend is broken.
const patience = 30 * time.Second

type subtest struct {
	name string
	run  func(*testing.T, *bench)
}

// Run runs the suite as subtests of t. A backend that is a [sqllock.Leaser] also
// has to pass those about leases, and likewise a [sqllock.Watcher], a
// [sqllock.Passer] and a [sqllock.GroupAcquirer]. Suites may run beside each other.
func Run(t *testing.T, cfg Config) {
	t.Helper()
	tests := []subtest{
		{"Exclusion", testExclusion},
		{"HandOff", testHandOff},
		{"Try", testTry},
		{"Timeout", testTimeout},
		{"ExpiredContext", testExpiredContext},
		{"Cancel", testCancel},
		{"CancelAgainstGrant", testCancelAgainstGrant},
		{"DoubleRelease", testDoubleRelease},
		{"ReleaseWithDeadContext", testReleaseWithDeadContext},
		{"PoolHygiene", testPoolHygiene},
		{"Reentry", testReentry},
		{"Names", testNames},
		{"ManyLocksOnOneSession", testManyLocksOnOneSession},
		{"Holder", testHolder},
		{"WhileHeld", testWhileHeld},
		{"Context", testContext},
		{"Do", testDo},
		{"TryDo", testTryDo},
	}
	if cfg.Kill != nil {
		tests = append(tests, sessionTests()...)
	}
	if _, leases := cfg.Backend.(sqllock.Leaser); leases {
		tests = append(tests, leaseTests(cfg.Kill != nil)...)
	} else {
		tests = append(tests, subtest{"NoTTL", testNoTTL})
	}
	for _, test := range append(tests, optionalTests(cfg.Backend)...) {
		t.Run(test.name, func(t *testing.T) { cfg.run(t, test) })
	}
	t.Run("GoroutineLeaks", func(t *testing.T) {
		for !alone.TryLock() {
			time.Sleep(10 * time.Millisecond) // a Lock would keep other suites from going on
		}
		defer alone.Unlock()
		testGoroutineLeaks(t, cfg.bench(t))
	})
}

// sessionTests are those of what the end of a session does.
func sessionTests() []subtest {
	return []subtest{
		{"StaleRelease", testStaleRelease},
		{"LossByKill", testLossByKill},
		{"DoLoss", testDoLoss},
	}
}

// alone is held by the test that looks for goroutines that were left behind, and shared by
// all others.
var alone sync.RWMutex //nolint:gochecknoglobals // for all suites of the process

func (cfg Config) run(t *testing.T, test subtest) {
	t.Helper()
	alone.RLock()
	t.Cleanup(alone.RUnlock)
	test.run(t, cfg.bench(t))
}

func (cfg Config) bench(t *testing.T) *bench {
	t.Helper()
	b := &bench{Config: cfg, db: cfg.Open(t), name: "locktest-" + rand.Text()}
	b.locker = sqllock.New(cfg.Backend, sqllock.WithCheckInterval(10*time.Millisecond))
	t.Cleanup(func() { _ = b.db.Close() })
	return b
}

// bench is what one test works with.
type bench struct {
	Config
	locker *sqllock.Locker
	db     *sql.DB
	name   string // a lock name of this test's own
}

// conn takes a session for the length of the test.
func (b *bench) conn(t *testing.T) *sql.Conn {
	t.Helper()
	c, err := b.db.Conn(t.Context())
	if err != nil {
		t.Fatalf("taking a connection: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *bench) lock(t *testing.T, conn *sql.Conn, name string) *sqllock.Lock {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l, err := b.locker.Lock(ctx, conn, name)
	if err != nil {
		t.Fatalf("Lock: %v", err)
	}
	return l
}

func (b *bench) release(t *testing.T, l *sqllock.Lock) {
	t.Helper()
	if err := l.Release(t.Context()); err != nil {
		t.Fatalf("Release: %v", err)
	}
}

// free fails the test unless name can be had by a session that is new to it.
func (b *bench) free(t *testing.T, name string) {
	t.Helper()
	c := b.conn(t)
	defer c.Close() //nolint:errcheck // a session that is dead says so
	l, err := b.locker.TryLock(t.Context(), c, name)
	if err != nil {
		t.Fatalf("the lock should be free: %v", err)
	}
	b.release(t, l)
}

// freed is free for a lock that the server is about to free.
func (b *bench) freed(t *testing.T, name string) {
	t.Helper()
	c := b.conn(t)
	defer c.Close() //nolint:errcheck // a session that is dead says so
	b.release(t, b.lock(t, c, name))
}

// waiting returns once a session waits for name on the server.
func (b *bench) waiting(t *testing.T, name string) {
	t.Helper()
	b.eventually(t, "the waiter to be on the server", func() bool {
		got, err := b.Waiters(t.Context(), b.db, b.key(t, name))
		if err != nil {
			t.Fatalf("Config.Waiters: %v", err)
		}
		return got == 1
	})
}

func (b *bench) eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain for %s", patience, what)
		}
	}
}

func (b *bench) key(t *testing.T, name string) string {
	t.Helper()
	key, err := sqllock.Key("", name)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// kill ends the session that holds l, and returns once the server has freed it.
func (b *bench) kill(t *testing.T, l *sqllock.Lock) {
	t.Helper()
	killed := b.holder(t, l).Session
	if err := b.Kill(t.Context(), b.db, killed); err != nil {
		t.Fatalf("Config.Kill: %v", err)
	}
	b.eventually(t, "the killed session to let go of its lock", func() bool {
		h, err := b.locker.Holder(t.Context(), b.db, l.Name())
		return errors.Is(err, sqllock.ErrNotHeld) || err == nil && (h.Session != killed || !h.Alive)
	})
}

// holder tells who holds l, which is held.
func (b *bench) holder(t *testing.T, l *sqllock.Lock) sqllock.Holder {
	t.Helper()
	h, err := b.locker.Holder(t.Context(), b.db, l.Name())
	if err != nil {
		t.Fatalf("Holder: %v", err)
	}
	return h
}

// attempt is a Lock under way in a goroutine of its own.
type attempt struct {
	lock *sqllock.Lock
	err  error
}

func (b *bench) attempt(ctx context.Context, conn *sql.Conn, name string) <-chan attempt {
	c := make(chan attempt, 1)
	go func() {
		l, err := b.locker.Lock(ctx, conn, name)
		c <- attempt{l, err}
	}()
	return c
}

func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited %v in vain for %s", patience, what)
		panic("unreachable")
	}
}

func wantIs(t *testing.T, what string, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("%s: got error %v, want one that matches %q", what, err, target)
		}
	}
}

func wantNot(t *testing.T, what string, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if errors.Is(err, target) {
			t.Errorf("%s: got error %v, which should not match %q", what, err, target)
		}
	}
}

// usable fails the test unless conn still is the session that it was, by
// acquiring and releasing a lock on it.
func (b *bench) usable(t *testing.T, conn *sql.Conn, session int64) {
	t.Helper()
	l, err := b.locker.TryLock(t.Context(), conn, b.name+"-usable")
	if err != nil {
		t.Fatalf("the session should be usable: %v", err)
	}
	if got := b.holder(t, l).Session; got != session {
		t.Errorf("the session changed from %d to %d", session, got)
	}
	b.release(t, l)
}

// session returns the server's id of the session under conn.
func (b *bench) session(t *testing.T, conn *sql.Conn) int64 {
	t.Helper()
	l := b.lock(t, conn, b.name+"-session")
	defer b.release(t, l)
	return b.holder(t, l).Session
}
