package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"github.com/sqllock/go-sqllock/adapter/gooselock"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// gooseCase is an empty database, or one with a lock table and nothing else, that
// goose is to migrate.
type gooseCase struct {
	*testing.T

	server  *testdb.Server
	dialect goose.Dialect
	db      *sql.DB         // what the test asks over, and the lease's pool
	backend sqllock.Backend //
	name    string          // of the lock
}

// onEachGoose runs a test on each server, with the locks of a session and with leases.
func onEachGoose(t *testing.T, test func(c *gooseCase)) {
	t.Helper()
	t.Parallel()
	run := func(s *testdb.Server, name string, on func(t *testing.T) (*sql.DB, sqllock.Backend)) {
		t.Run(string(s.Kind)+" "+name, func(t *testing.T) {
			t.Parallel()
			c := &gooseCase{T: t, server: s, dialect: goose.DialectMySQL, name: lockName("goose")}
			if s.Kind == testdb.Postgres {
				c.dialect = goose.DialectPostgres
			}
			c.db, c.backend = on(t)
			test(c)
		})
	}
	for _, kind := range testdb.Kinds() {
		if kind.Skipped() {
			continue
		}
		s := server(t, kind)
		run(s, "mysqlnamed", func(t *testing.T) (*sql.DB, sqllock.Backend) { t.Helper(); return schema(t, s), mysqlnamed.New() })
		run(s, "table", func(t *testing.T) (*sql.DB, sqllock.Backend) {
			t.Helper()
			db := lockTable(t, s, "InnoDB")
			return db, table.New(time.Second, table.WithPool(db))
		})
	}
	if testdb.Postgres.Skipped() {
		return
	}
	s := postgres(t)
	run(s, "pgadvisory", func(t *testing.T) (*sql.DB, sqllock.Backend) {
		t.Helper()
		return pgDatabase(t, s), pgadvisory.New()
	})
	run(s, "pgtable", func(t *testing.T) (*sql.DB, sqllock.Backend) {
		t.Helper()
		db := pgLockTable(t, s)
		return db, pgtable.New(time.Second, pgtable.WithPool(db))
	})
}

func (c *gooseCase) locker(opts ...sqllock.Option) *sqllock.Locker {
	return sqllock.New(c.backend, opts...)
}

// pool is that of another process on the same database.
func (c *gooseCase) pool() *sql.DB {
	c.Helper()
	if c.server.Kind == testdb.Postgres {
		return sameDatabase(c, c.server, c.db)
	}
	return schemaOf(c, c.server, c.db)
}

// provider is one of goose over a pool of its own; l may be nil.
func (c *gooseCase) provider(l lock.SessionLocker, files fstest.MapFS, migrations ...*goose.Migration) *goose.Provider {
	c.Helper()
	opts := []goose.ProviderOption{goose.WithGoMigrations(migrations...), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger())}
	if l != nil {
		opts = append(opts, goose.WithSessionLocker(l))
	}
	p, err := goose.NewProvider(c.dialect, c.pool(), files, opts...)
	if err != nil {
		c.Fatal(err)
	}
	return p
}

func (c *gooseCase) waiters() (n int, err error) {
	if c.server.Kind == testdb.Postgres {
		return pgWaiters(c.Context(), c.db, c.name)
	}
	return mysqlWaiters(c.Context(), c.db, c.name)
}

// awaitWaiter returns when a session waits for the lock on the server.
func (c *gooseCase) awaitWaiter() {
	c.Helper()
	waitFor(c.T, "a session that waits for the lock", func() bool {
		n, err := c.waiters()
		if err != nil {
			c.Fatal(err)
		}
		return n > 0
	})
}

// hold has somebody else hold the lock, who lets go when the returned function is called.
func (c *gooseCase) hold() (held *sqllock.Lock, letGo func()) {
	c.Helper()
	l := acquire(c, c.locker(), conn(c, c.db), c.name, c.long()...)
	return l, func() {
		c.Helper()
		if err := l.Release(c.Context()); err != nil {
			c.Error(err)
		}
	}
}

// long is a TTL that the test does not outlive.
func (c *gooseCase) long() []sqllock.LockOption {
	if _, leases := c.backend.(sqllock.Leaser); leases {
		return []sqllock.LockOption{sqllock.TTL(time.Minute)}
	}
	return nil
}

func (c *gooseCase) free() {
	c.Helper()
	waitFor(c.T, "the lock to be free", func() bool {
		h, err := c.locker().Holder(c.Context(), c.db, c.name)
		return errors.Is(err, sqllock.ErrNotHeld) || err == nil && !h.Alive
	})
}

// applied are the versions that goose has recorded.
func (c *gooseCase) applied() (versions []int64) {
	c.Helper()
	rows, err := c.db.QueryContext(c.Context(), "SELECT version_id FROM goose_db_version WHERE version_id > 0 ORDER BY id")
	if err != nil {
		c.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var v int64
		if err := rows.Scan(&v); err != nil {
			c.Fatal(err)
		}
		versions = append(versions, v)
	}
	if err := rows.Err(); err != nil {
		c.Fatal(err)
	}
	return versions
}

func (c *gooseCase) wantApplied(want ...int64) {
	c.Helper()
	if got := c.applied(); !slices.Equal(got, want) {
		c.Errorf("goose has recorded %v, want %v", got, want)
	}
}

// tableExists asks whether there is a table of that name.
func (c *gooseCase) tableExists(name string) bool {
	c.Helper()
	where := "table_schema = DATABASE()"
	if c.server.Kind == testdb.Postgres {
		where = "table_schema = current_schema()"
	}
	return ask[int](c, c.db, "SELECT COUNT(*) FROM information_schema.tables WHERE "+where+" AND table_name = '"+name+"'") == 1
}

// me asks a session for its id.
func (c *gooseCase) me(q sqllock.Querier) int64 {
	c.Helper()
	if c.server.Kind == testdb.Postgres {
		return ask[int64](c, q, "SELECT pg_backend_pid()")
	}
	return ask[int64](c, q, "SELECT CONNECTION_ID()")
}

// kill ends a session, and returns when the server has.
func (c *gooseCase) kill(session int64) {
	c.Helper()
	kill, list := mysqlKill, "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %d"
	if c.server.Kind == testdb.Postgres {
		kill, list = pgKill, "SELECT COUNT(*) FROM pg_stat_activity WHERE pid = %d"
	}
	if err := kill(c.Context(), c.db, session); err != nil {
		c.Error(err)
	}
	waitFor(c.T, "a session to end", func() bool { return ask[int](c, c.db, fmt.Sprintf(list, session)) == 0 })
}

// gooseLater is later for functions that may fail the test, and so not return.
func gooseLater(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("it did not return")
		defer func() { done <- err }()
		err = f()
	}()
	return done
}

// up is what the documentation shows.
func up(ctx context.Context, p *goose.Provider) ([]*goose.MigrationResult, error) {
	if _, err := p.GetDBVersion(ctx); err != nil {
		return nil, err
	}
	return p.Up(ctx)
}

func goTx(version int64, run func(ctx context.Context, tx *sql.Tx) error) *goose.Migration {
	return goose.NewGoMigration(version, &goose.GoFunc{RunTx: run}, nil)
}

func goDB(version int64, run func(ctx context.Context, db *sql.DB) error) *goose.Migration {
	return goose.NewGoMigration(version, &goose.GoFunc{RunDB: run}, nil)
}

func nothingTx(context.Context, *sql.Tx) error { return nil }

func sqlFile(statements string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte("-- +goose Up\n" + statements)}
}

// race has two providers migrate one empty database at once, by migrations of every
// kind that goose has: SQL and Go, with and without a transaction. In the second one, which
// counts its runs, each of them stays until the other is seen to wait for the lock, or is in
// it, too.
func (c *gooseCase) race(l lock.SessionLocker) (runs int, applied [2]int, errs [2]error) {
	c.Helper()
	var in atomic.Int64
	both := make(chan struct{})
	second := func(ctx context.Context, db *sql.DB) error {
		if in.Add(1) == 2 {
			close(both)
		}
		waitFor(c.T, "the other provider", func() bool {
			n, err := c.waiters()
			if err != nil {
				c.Error(err)
				return true
			}
			select {
			case <-both:
				return true
			default:
				return n > 0
			}
		})
		_, err := db.ExecContext(ctx, "INSERT INTO runs VALUES (2)")
		return err
	}
	third := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO runs VALUES (3)")
		return err
	}
	files := fstest.MapFS{
		"00001_runs.sql":  sqlFile("CREATE TABLE IF NOT EXISTS runs (version bigint NOT NULL);"),
		"00004_notx.sql":  {Data: []byte("-- +goose NO TRANSACTION\n-- +goose Up\nCREATE TABLE once (n bigint NOT NULL);\n")},
		"00005_alter.sql": sqlFile("ALTER TABLE once ADD COLUMN m bigint;\nINSERT INTO runs VALUES (5);"),
	}
	do(c, c.db, "CREATE TABLE IF NOT EXISTS runs (version bigint NOT NULL)")
	var ps [2]*goose.Provider
	for i := range ps {
		ps[i] = c.provider(l, files, goDB(2, second), goTx(3, third))
	}
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	if l == nil { // or goose's own table is in the way, of which TestGooseHalfMadeTable tells
		if _, err := ps[0].GetDBVersion(ctx); err != nil {
			c.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for i, p := range ps {
		all.Go(func() {
			var results []*goose.MigrationResult
			results, errs[i] = up(ctx, p)
			applied[i] = len(results)
		})
	}
	all.Wait()
	return ask[int](c, c.db, "SELECT COUNT(*) FROM runs"), applied, errs
}

// TestGooseTwoProviders: two providers migrate one empty database at once, and each
// migration runs once.
func TestGooseTwoProviders(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		runs, applied, errs := c.race(gooselock.New(c.locker(), c.name))
		if err := errors.Join(errs[:]...); err != nil {
			c.Error(err)
		}
		if applied != [2]int{5, 0} && applied != [2]int{0, 5} {
			c.Errorf("they have applied %v migrations, want all five by one of them", applied)
		}
		if runs != 3 {
			c.Errorf("what counts has run %d times, want three times", runs)
		}
		c.wantApplied(1, 2, 3, 4, 5)
		c.free()
	})
}

// TestGooseTwoProvidersWithoutLock is the control: without the locker, migrations run twice.
func TestGooseTwoProvidersWithoutLock(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		if _, leases := c.backend.(sqllock.Leaser); leases {
			c.Skip("there is no lock, so one kind will do")
		}
		runs, _, errs := c.race(nil)
		c.Logf("%d runs, errors: %v", runs, errs)
		if ask[int](c, c.db, "SELECT COUNT(*) FROM runs WHERE version = 2") != 2 {
			c.Error("nothing ran twice without the lock, so the test of it shows nothing")
		}
	})
}

// TestGooseEmptyDatabase: GetDBVersion makes goose's table under the lock. Up makes it
// before, so another Up may find it half made.
func TestGooseEmptyDatabase(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		_, letGo := c.hold()
		files := fstest.MapFS{"00001_a.sql": sqlFile("CREATE TABLE a (n bigint NOT NULL);")}
		p := c.provider(gooselock.New(c.locker(), c.name), files)
		done := gooseLater(func() error {
			_, err := up(c.Context(), p)
			return err
		})
		c.awaitWaiter()
		if c.tableExists("goose_db_version") {
			c.Error("the table of goose was made without the lock")
		}
		letGo()
		if err := <-done; err != nil {
			c.Error(err)
		}
		c.wantApplied(1)
	})
}

// TestGooseHalfMadeTable is why: Up alone makes the table while another one has the lock,
// and does not find its way with one that has no row yet, as MySQL and MariaDB show it.
func TestGooseHalfMadeTable(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		if _, leases := c.backend.(sqllock.Leaser); leases {
			c.Skip("it is about goose, so one kind will do")
		}
		_, letGo := c.hold()
		files := fstest.MapFS{"00001_a.sql": sqlFile("CREATE TABLE a (n bigint NOT NULL);")}
		alone := func() error {
			_, err := c.provider(gooselock.New(c.locker(), c.name), files).Up(c.Context())
			return err
		}
		done := gooseLater(alone)
		c.awaitWaiter()
		if !c.tableExists("goose_db_version") {
			c.Error("Up has not made the table of goose yet: GetDBVersion is not needed any more")
		}
		do(c, c.db, "DELETE FROM goose_db_version")
		letGo()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "missing zero version") {
			c.Errorf("got %v: GetDBVersion is not needed any more", err)
		}
		c.free()
	})
}

// TestGooseWoken: who waits is woken by the server, in the statement that waits. A waiter
// that asks again and again is never seen to wait, and sends something after the release.
func TestGooseWoken(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		var db *sql.DB
		var sent *atomic.Int64
		if c.server.Kind == testdb.Postgres {
			db, sent = countedPG(c, c.server, c.db)
		} else {
			name := ask[string](c, c.db, "SELECT DATABASE()")
			db, sent = counted(c, c.server, func(cfg *mysql.Config) { cfg.DBName = name })
		}
		waiter := conn(c, db)
		l := gooselock.New(c.locker(), c.name)
		lease := int64(0)
		if _, leases := c.backend.(sqllock.Leaser); leases {
			lease = 3 // it writes its row once it has been woken, in a transaction
		}
		const tries = 10 // a wait may just have been over, and begin anew
		var after []int64
		for range tries {
			_, letGo := c.hold()
			done := gooseLater(func() error { return l.SessionLock(c.Context(), waiter) })
			c.awaitWaiter()
			before := sent.Load()
			letGo()
			if err := <-done; err != nil {
				c.Fatal(err)
			}
			more := sent.Load() - before
			if err := l.SessionUnlock(c.Context(), waiter); err != nil {
				c.Fatal(err)
			}
			if after = append(after, more); more <= lease {
				return
			}
		}
		c.Errorf("after the release the waiter sent %v packets, want none, or %d for a lease", after, lease)
	})
}

// countedPG opens a pool on the database of db whose packets are counted.
func countedPG(tb testing.TB, s *testdb.Server, db *sql.DB) (*sql.DB, *atomic.Int64) {
	tb.Helper()
	writes := new(atomic.Int64)
	return sameDatabase(tb, s, db, func(c *pgx.ConnConfig) {
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return countingConn{conn, writes}, err
		}
	}), writes
}

// TestGooseBusy: a wait that is over tells who migrates, has migrated nothing, and costs
// no session.
func TestGooseBusy(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		held, letGo := c.hold()
		files := fstest.MapFS{"00001_a.sql": sqlFile("CREATE TABLE a (n bigint NOT NULL);")}

		limited := c.provider(gooselock.New(c.locker(), c.name, gooselock.WithMaxWait(50*time.Millisecond)), files)
		_, err := limited.Up(c.Context())
		wantErr(c, "at the limit", err, sqllock.ErrBusy, context.DeadlineExceeded)
		wantText(c, err, "nothing has been migrated", "WithMaxWait", "another migration is under way: session ", c.name)
		if session := held.Grant().Session; session != 0 {
			wantText(c, err, fmt.Sprintf("session %d", session))
		}

		ctx, cancel := context.WithCancelCause(c.Context())
		reason := errors.New("the deployment was called off")
		waiting := c.pool()
		waiting.SetMaxOpenConns(1)
		session := c.me(waiting)
		p, err := goose.NewProvider(c.dialect, waiting, files, goose.WithSessionLocker(gooselock.New(c.locker(), c.name)), goose.WithLogger(goose.NopLogger()))
		if err != nil {
			c.Fatal(err)
		}
		done := gooseLater(func() error {
			_, err := p.Up(ctx)
			return err
		})
		c.awaitWaiter()
		cancel(reason)
		err = <-done
		wantErr(c, "cancelled", err, sqllock.ErrBusy, context.Canceled, reason)
		wantText(c, err, "nothing has been migrated", "another migration is under way")
		if now := c.me(waiting); now != session {
			c.Errorf("the session was %d, and is %d: the wait has cost it", session, now)
		}
		if c.tableExists("a") {
			c.Error("something has been migrated")
		}
		letGo()
	})
}

func wantText(tb testing.TB, err error, texts ...string) {
	tb.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			tb.Errorf("the error is %q, and does not say %q", err, text)
		}
	}
}

// TestGooseLost: the session of goose is ended in the middle of a migration. It stops
// there, and says that the lock was lost; the next one goes on from there.
func TestGooseLost(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		broken := true
		second := goTx(2, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, "INSERT INTO a VALUES (2)"); err != nil {
				return err
			}
			if broken {
				c.kill(c.me(tx))
			}
			return nil
		})
		files := fstest.MapFS{
			"00001_a.sql": sqlFile("CREATE TABLE a (n bigint NOT NULL);"),
			"00003_b.sql": sqlFile("CREATE TABLE b (n bigint NOT NULL);"),
		}
		l := gooselock.New(c.locker(), c.name)
		_, err := up(c.Context(), c.provider(l, files, second))
		wantErr(c, "up", err, sqllock.ErrLost)
		wantText(c, err, "the lock did not last as long as the migration", "goose status")
		var partial *goose.PartialError
		if !errors.As(err, &partial) || partial.Failed.Source.Version != 2 {
			c.Errorf("goose's own error is not there, or not about the second migration: %v", err)
		}
		c.wantApplied(1)
		if n := ask[int](c, c.db, "SELECT COUNT(*) FROM a"); n != 0 {
			c.Errorf("of what was begun under the lock %d rows are there", n)
		}
		broken = false
		if _, err := up(c.Context(), c.provider(l, files, second)); err != nil {
			c.Error(err)
		}
		c.wantApplied(1, 2, 3)
	})
}

// TestGooseLostElsewhere: a Go migration without a transaction works on other
// connections. Nobody stops it, but goose, before the next one, and the error tells.
func TestGooseLostElsewhere(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		session := make(chan int64, 1)
		first := goTx(1, func(_ context.Context, tx *sql.Tx) error {
			session <- c.me(tx)
			return nil
		})
		second := goDB(2, func(context.Context, *sql.DB) error {
			c.kill(<-session)
			return nil
		})
		files := fstest.MapFS{"00003_b.sql": sqlFile("CREATE TABLE b (n bigint NOT NULL);")}
		_, err := up(c.Context(), c.provider(gooselock.New(c.locker(), c.name), files, first, second))
		wantErr(c, "up", err, sqllock.ErrLost)
		c.wantApplied(1, 2)
		if c.tableExists("b") {
			c.Error("it has gone on")
		}
	})
}

// TestGooseLostAndClosed: database/sql has closed the conn by itself, since the session was
// found broken. That is a loss, too, for goose closes it after the unlock only.
func TestGooseLostAndClosed(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		l := gooselock.New(c.locker(), c.name)
		migrating := conn(c, c.pool())
		if err := l.SessionLock(c.Context(), migrating); err != nil {
			c.Fatal(err)
		}
		c.kill(c.me(migrating))
		waitFor(c.T, "database/sql to close the conn", func() bool {
			_, err := migrating.ExecContext(c.Context(), "SELECT 1")
			return errors.Is(err, sql.ErrConnDone)
		})
		err := l.SessionUnlock(c.Context(), migrating)
		wantErr(c, "unlock", err, sqllock.ErrLost)
		wantText(c, err, "the lock did not last as long as the migration", "its session ended")
	})
}

// TestGooseFreedByMigration: a migration that frees all locks of its session frees this
// one, which is told in the end.
func TestGooseFreedByMigration(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		statement := "DO RELEASE_ALL_LOCKS();"
		if c.server.Kind == testdb.Postgres {
			statement = "SELECT pg_advisory_unlock_all();"
		}
		files := fstest.MapFS{"00001_free.sql": sqlFile(statement)}
		results, err := up(c.Context(), c.provider(gooselock.New(c.locker(), c.name), files))
		wantErr(c, "up", err, sqllock.ErrLost)
		wantText(c, err, "the lock did not last as long as the migration")
		if len(results) != 1 {
			c.Errorf("goose tells of %d migrations, want the one that it has applied", len(results))
		}
	})
}

// TestGooseFails: a migration that fails, or is cancelled in a transaction, leaves the lock
// free, and says nothing of a loss.
func TestGooseFails(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		l := gooselock.New(c.locker(), c.name)
		reason := errors.New("no such customer")
		_, err := up(c.Context(), c.provider(l, nil, goTx(1, func(context.Context, *sql.Tx) error { return reason })))
		wantErr(c, "up", err, reason)
		wantNotErr(c, "up", err, sqllock.ErrLost, sqllock.ErrUnknown)
		c.free()

		_, err = up(c.Context(), c.provider(l, fstest.MapFS{"00001_bad.sql": sqlFile("CREATE NONSENSE;")}))
		wantNotErr(c, "up", err, sqllock.ErrLost, sqllock.ErrUnknown)
		if err == nil {
			c.Error("no error for a statement that is none")
		}
		c.free()

		ctx, cancel := context.WithCancel(c.Context())
		_, err = up(ctx, c.provider(l, nil, goTx(1, func(ctx context.Context, tx *sql.Tx) error {
			cancel()
			_, err := tx.ExecContext(ctx, "SELECT 1")
			return err
		})))
		wantErr(c, "cancelled", err, context.Canceled)
		wantNotErr(c, "cancelled", err, sqllock.ErrLost, sqllock.ErrUnknown)
		c.free()

		if _, err := up(c.Context(), c.provider(l, nil, goTx(1, nothingTx))); err != nil {
			c.Error(err)
		}
		c.wantApplied(1)
	})
}

// TestGooseLeaseLasts: a lease is extended while a migration takes longer than its TTL,
// in a transaction, with rows open on the session.
func TestGooseLeaseLasts(t *testing.T) {
	onEachGoose(t, func(c *gooseCase) {
		if _, leases := c.backend.(sqllock.Leaser); !leases {
			c.Skip("it has no TTL")
		}
		extended := make(chan error, 100)
		l := gooselock.New(c.locker(sqllock.WithObserver(func(e sqllock.Event) {
			if e.Kind == sqllock.Extended {
				extended <- e.Err
			}
		})), c.name)
		// Longer than a second, which the server's clock may round up to two.
		const thirds = 8
		p := c.provider(l, nil, goTx(1, func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, "SELECT 1 UNION ALL SELECT 2")
			if err != nil {
				return err
			}
			defer rows.Close()
			rows.Next()
			for range thirds {
				select {
				case err := <-extended:
					if err != nil {
						return err
					}
				case <-time.After(20 * time.Second):
					return errors.New("the lease is not extended")
				}
			}
			other := conn(c, c.db)
			if _, err := c.locker().TryLock(ctx, other, c.name); !errors.Is(err, sqllock.ErrBusy) {
				return fmt.Errorf("after its TTL another one gets %w, want ErrBusy", err)
			}
			return rows.Err()
		}))
		if _, err := p.Up(c.Context()); err != nil {
			c.Error(err)
		}
	})
}

// TestGooseConcurrentIndexPG: CREATE INDEX CONCURRENTLY waits for everybody's snapshot,
// who waits for the lock has one, and holds nobody up for long. The control waits as
// others do, in one statement, and the server ends one of them.
func TestGooseConcurrentIndexPG(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	run := func(t *testing.T, lease bool, second func(c *gooseCase, db *sql.DB) error) error {
		t.Helper()
		c := &gooseCase{T: t, server: s, dialect: goose.DialectPostgres, db: pgLockTable(t, s), backend: pgadvisory.New(), name: lockName("goose")}
		if lease {
			c.backend = pgtable.New(time.Second, pgtable.WithPool(c.db))
		}
		do(t, c.db, "CREATE TABLE a (n bigint)")
		files := fstest.MapFS{
			"00002_index.sql": {Data: []byte("-- +goose NO TRANSACTION\n-- +goose Up\nCREATE INDEX CONCURRENTLY a_n ON a (n);\n")},
		}
		var waiter <-chan error
		other := c.pool()
		p := c.provider(gooselock.New(c.locker(), c.name), files, goDB(1, func(context.Context, *sql.DB) error {
			waiter = gooseLater(func() error { return second(c, other) })
			c.awaitWaiter()
			return nil
		}))
		_, err := up(t.Context(), p)
		return errors.Join(err, <-waiter)
	}
	for name, lease := range map[string]bool{"pgadvisory": false, "pgtable": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(t, lease, func(c *gooseCase, db *sql.DB) error {
				l := gooselock.New(c.locker(), c.name)
				waiter := conn(c, db)
				if err := l.SessionLock(t.Context(), waiter); err != nil {
					return err
				}
				c.wantApplied(1, 2)
				return l.SessionUnlock(t.Context(), waiter)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("one statement", func(t *testing.T) {
		t.Parallel()
		err := run(t, false, func(c *gooseCase, db *sql.DB) error {
			return c.locker().Do(t.Context(), db, c.name, func(context.Context, *sqllock.Lock) error { return nil })
		})
		var answer *pgconn.PgError
		if !errors.Is(err, sqllock.ErrDeadlock) && (!errors.As(err, &answer) || answer.Code != "40P01") {
			t.Errorf("got %v, want a deadlock: the slices are not needed", err)
		}
	})
}
