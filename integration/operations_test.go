package integration

import (
	"context"
	"database/sql"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// operations are the statements of a block of docs/operations.md.
func operations(t *testing.T, begins string) (statements []string) {
	t.Helper()
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range strings.Split(string(page), "```sql\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		if !strings.HasPrefix(block, "-- "+begins) {
			continue
		}
		for statement := range strings.SplitSeq(strings.TrimSpace(block), ";\n") {
			statements = append(statements, strings.TrimSuffix(statement, ";"))
		}
		return statements
	}
	t.Fatalf("the page has no block that begins with %q", begins)
	return nil
}

// TestOperationsSQL: what the page grants is enough, and the last of it is needed; what it
// asks shows who hangs and who waits.
func TestOperationsSQL(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := schema(t, s)
		name := database(t, db)
		names := strings.NewReplacer("shop.", name+".", "migrator", "m"+name[:20], "app", "a"+name[:20])
		other := "o" + name[:20]
		for _, user := range []string{names.Replace("migrator"), names.Replace("app"), other} {
			do(t, db, "CREATE USER "+user+" IDENTIFIED BY 'secret'")
			t.Cleanup(func() { _, _ = db.ExecContext(context.WithoutCancel(t.Context()), "DROP USER "+user) })
		}
		as := func(user string) *sql.DB {
			return open(t, s, func(c *mysql.Config) { c.DBName, c.User, c.Passwd = name, user, "secret" })
		}
		grants := operations(t, "MySQL, MariaDB: who runs migrations.Up")
		do(t, db, names.Replace(grants[0]))
		migrator := as(names.Replace("migrator"))
		migrate(t, migrator)
		for _, grant := range grants[1:5] {
			do(t, db, names.Replace(grant))
		}
		app := as(names.Replace("app"))
		migrate(t, app)
		lockAndFence(t, app, table.New(time.Minute, table.WithPool(app)))

		// Another user's holder hangs.
		do(t, db, "GRANT SELECT, INSERT, UPDATE, DELETE ON "+name+".shared_locks TO "+other)
		holder := conn(t, as(other))
		k := sqllock.New(table.New(time.Second))
		stale := acquire(t, k, holder, "job")
		hangs, waits := operations(t, "MySQL, MariaDB: leases")[0], operations(t, "MySQL, MariaDB: leases")[1]
		waitFor(t, "the operator to see that it hangs", func() bool {
			return ask[int](t, db, "SELECT COUNT(*) FROM ("+hangs+") s WHERE name='job' AND connection_id="+ask[string](t, holder, "SELECT CONNECTION_ID()")) == 1
		})
		_, err := k.TryLock(t.Context(), conn(t, app), "job")
		wantErr(t, "TryLock without the last grant", err, sqllock.ErrPermission)
		last := grants[5]
		if s.Kind == testdb.MariaDB {
			last = strings.ReplaceAll(last, "CONNECTION_ADMIN", "CONNECTION ADMIN")
		}
		do(t, db, names.Replace(last))
		next := acquire(t, k, conn(t, as(names.Replace("app"))), "job", sqllock.TTL(time.Hour)) // sessions know of a grant from when they began
		wantErr(t, "Check of the one that hung", stale.Check(t.Context()), sqllock.ErrLost)

		before := ask[int](t, db, "SELECT COUNT(*) FROM ("+waits+") s")
		waiting, cancel := context.WithCancel(t.Context())
		defer cancel()
		waiter := conn(t, app)
		done := later(func() error {
			_, err := k.Lock(waiting, waiter, "job")
			return err
		})
		waitFor(t, "the operator to see who waits", func() bool { return ask[int](t, db, "SELECT COUNT(*) FROM ("+waits+") s") > before })
		cancel()
		wantErr(t, "the wait", result(t, "the end of the wait", done), context.Canceled)
		release(t, next)
	})
}

// migrate runs both sets, as a program does when it starts.
func migrate(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	for _, set := range [][]migrations.Option{opts, append(opts, migrations.Fences())} {
		if err := migrations.Up(t.Context(), db, set...); err != nil {
			t.Fatal(err)
		}
	}
}

// lockAndFence uses all of the tables.
func lockAndFence(t *testing.T, db *sql.DB, b sqllock.Backend) {
	t.Helper()
	fence := txguard.NewFence(db)
	err := sqllock.New(b).Do(t.Context(), db, "fenced", func(ctx context.Context, lock *sqllock.Lock) error {
		if err := lock.Extend(ctx, time.Minute); err != nil {
			return err
		}
		fenced, err := fence.Raise(ctx, lock)
		if err != nil {
			return err
		}
		return fenced.Run(ctx, func(ctx context.Context, tx *sql.Tx) error {
			var one int
			return tx.QueryRowContext(ctx, "SELECT 1").Scan(&one)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := fence.Sweep(t.Context(), time.Hour); err != nil || n != 0 {
		t.Errorf("Sweep: %d, %v", n, err)
	}
}

func TestOperationsPG(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgDatabase(t, s)
	name := ask[string](t, db, "SELECT current_database()")
	names := strings.NewReplacer("migrator", name+"_m", "app", name+"_a")
	other := name + "_o"
	for _, role := range []string{names.Replace("migrator"), names.Replace("app"), other} {
		do(t, db, "CREATE ROLE "+role+" LOGIN PASSWORD 'secret'")
		t.Cleanup(func() {
			if _, err := db.ExecContext(context.WithoutCancel(t.Context()), "DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Error(err)
			}
		})
	}
	do(t, db, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
	as := func(role string) *sql.DB {
		return sameDatabase(t, s, db, func(c *pgx.ConnConfig) { c.User, c.Password = role, "secret" })
	}
	grants := operations(t, "PostgreSQL: who runs migrations.Up")
	do(t, db, names.Replace(grants[0]))
	migrate(t, as(names.Replace("migrator")), migrations.Postgres())
	for _, grant := range grants[1:5] {
		do(t, db, names.Replace(grant))
	}
	app := as(names.Replace("app"))
	migrate(t, app, migrations.Postgres())
	lockAndFence(t, app, pgtable.New(time.Minute, pgtable.WithPool(app)))

	for _, grant := range []string{"USAGE ON SCHEMA public", "SELECT, INSERT, UPDATE, DELETE ON shared_locks", "USAGE ON SEQUENCE shared_locks_token"} {
		do(t, db, "GRANT "+grant+" TO "+other)
	}
	holder := conn(t, as(other))
	k := sqllock.New(pgtable.New(time.Second))
	stale := acquire(t, k, holder, "job")
	asked := operations(t, "PostgreSQL: leases")
	waitFor(t, "the operator to see that it hangs", func() bool {
		return ask[int](t, db, "SELECT COUNT(*) FROM ("+asked[0]+") s WHERE name='job'") == 1
	})
	_, err := k.TryLock(t.Context(), conn(t, app), "job")
	wantErr(t, "TryLock without the last grant", err, sqllock.ErrPermission)
	do(t, db, names.Replace(grants[5]))
	next := acquire(t, k, conn(t, app), "job", sqllock.TTL(time.Hour))
	wantErr(t, "Check of the one that hung", stale.Check(t.Context()), sqllock.ErrLost)

	waiting, cancel := context.WithCancel(t.Context())
	defer cancel()
	waiter := conn(t, app)
	pid := pgPID(t, waiter)
	done := later(func() error {
		_, err := k.Lock(waiting, waiter, "job")
		return err
	})
	waitFor(t, "the operator to see who waits, and whom for", func() bool {
		return ask[int](t, db, "SELECT COUNT(*) FROM ("+asked[1]+") s WHERE pid=$1 AND $2=ANY(holders)", pid, next.Grant().Session) == 1
	})
	if n := ask[int](t, db, "SELECT COUNT(*) FROM ("+asked[2]+") s WHERE taken > 0 AND places > taken"); n != 1 {
		t.Error("the lock table should be neither empty nor full")
	}
	cancel()
	wantErr(t, "the wait", result(t, "the end of the wait", done), context.Canceled)
	release(t, next)
}

// TestOperationsTimeouts: settings that end waits or sessions elsewhere, and what they do
// to a lock.
func TestOperationsTimeouts(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		k := sqllock.New(mysqlnamed.New())
		direct := open(t, s)
		db := open(t, s, func(c *mysql.Config) {
			c.Params = map[string]string{"lock_wait_timeout": "1", "innodb_lock_wait_timeout": "1"}
			if s.Kind == testdb.MariaDB {
				c.Params["idle_transaction_timeout"] = "1"
			}
		})
		holder := acquire(t, k, conn(t, direct), t.Name())
		// More than these seconds, and more than a slice.
		wait, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		_, err := k.Lock(wait, conn(t, db), t.Name())
		wantErr(t, "a wait of more than the timeouts", err, sqllock.ErrBusy, context.DeadlineExceeded)
		wantNotErr(t, "a wait of more than the timeouts", err, sqllock.ErrInterrupted, sqllock.ErrSessionGone)
		release(t, holder)

		db.SetConnMaxLifetime(time.Millisecond)
		db.SetConnMaxIdleTime(time.Millisecond)
		inUse := conn(t, db)
		l := acquire(t, k, inUse, t.Name())
		waitFor(t, "another connection to be closed for its age", func() bool {
			if err := db.PingContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			return db.Stats().MaxLifetimeClosed+db.Stats().MaxIdleTimeClosed > 1
		})
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("the connection of a lock should not be closed for its age: %v", err)
		}
		if s.Kind == testdb.MariaDB {
			do(t, inUse, "BEGIN")
			waitFor(t, "the server to end what is idle in a transaction", func() bool {
				return !ask[sql.NullInt64](t, direct, "SELECT IS_USED_LOCK('"+l.Grant().Key+"')").Valid
			})
			wantErr(t, "Check after idle_transaction_timeout", l.Check(t.Context()), sqllock.ErrLost)
			return
		}
		release(t, l)
	})
}

func TestOperationsTimeoutsPG(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgDatabase(t, s)
	ends := func(setting string, begin bool) {
		t.Helper()
		limited := sameDatabase(t, s, db, func(c *pgx.ConnConfig) { c.RuntimeParams[setting] = "1s" })
		c := conn(t, limited)
		l := acquire(t, pgLocker(), c, setting)
		if begin {
			do(t, c, "BEGIN")
		}
		pgGone(t, db, l.Grant().Session)
		wantErr(t, "Check after "+setting, l.Check(t.Context()), sqllock.ErrLost)
	}
	if ask[int](t, db, "SELECT current_setting('server_version_num')::int") >= 140000 {
		ends("idle_session_timeout", false)

		// The watch of a Do keeps its session, while another one is ended.
		limited := sameDatabase(t, s, db, func(c *pgx.ConnConfig) { c.RuntimeParams["idle_session_timeout"] = "1s" })
		watched := sqllock.New(pgadvisory.New(), sqllock.WithCheckInterval(20*time.Millisecond))
		err := watched.Do(t.Context(), limited, "watched", func(ctx context.Context, _ *sqllock.Lock) error {
			pgGone(t, db, acquire(t, pgLocker(), conn(t, limited), "idle").Grant().Session)
			return ctx.Err()
		})
		if err != nil {
			t.Errorf("Do with a watch: %v", err)
		}
	}
	ends("idle_in_transaction_session_timeout", true)

	pool := sameDatabase(t, s, db)
	pool.SetConnMaxLifetime(time.Millisecond)
	pool.SetConnMaxIdleTime(time.Millisecond)
	l := acquire(t, pgLocker(), conn(t, pool), "old")
	waitFor(t, "another connection to be closed for its age", func() bool {
		if err := pool.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return pool.Stats().MaxLifetimeClosed+pool.Stats().MaxIdleTimeClosed > 1
	})
	release(t, l)
}

// TestMoving: which locks exclude each other while programs are changed one by one, and
// that a release which takes two kinds excludes both.
func TestMoving(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := lockTable(t, s, "MyISAM")
		name := lockName("moving")
		byHand := conn(t, db)
		kinds := []struct {
			name string
			lock func(f func()) (ran bool, err error)
		}{
			{"GET_LOCK by hand", func(f func()) (bool, error) {
				if ask[int](t, byHand, "SELECT GET_LOCK('"+name+"', 0)") != 1 {
					return false, nil
				}
				f()
				do(t, byHand, "DO RELEASE_LOCK('"+name+"')")
				return true, nil
			}},
			{"mysqlnamed", try(t, db, name, sqllock.New(mysqlnamed.New()))},
			{"table", try(t, db, name, sqllock.New(table.New(time.Minute)))},
			{"both", func(f func()) (ran bool, err error) {
				_, err = try(t, db, name, sqllock.New(mysqlnamed.New()))(func() {
					ran, err = try(t, db, name, sqllock.New(table.New(time.Minute), sqllock.WithNamespace("new")))(f)
				})
				return ran, err
			}},
			{"the new name", try(t, db, name, sqllock.New(table.New(time.Minute), sqllock.WithNamespace("new")))},
		}
		for i, holder := range kinds {
			for j, other := range kinds {
				excluded := holder.name == "both" || other.name == "both" || (holder.name == "the new name") == (other.name == "the new name")
				if i == 0 && j == 0 {
					continue // by hand it is one session, which may have it twice
				}
				ran, err := holder.lock(func() {
					ran, err := other.lock(func() {})
					if err != nil || ran == excluded {
						t.Errorf("%s is held, and %s ran: %v, %v", holder.name, other.name, ran, err)
					}
				})
				if err != nil || !ran {
					t.Errorf("%s ran: %v, %v", holder.name, ran, err)
				}
			}
		}
	})
}

// try returns what runs a function under a lock, if that is free.
func try(t *testing.T, db *sql.DB, name string, k *sqllock.Locker) func(f func()) (ran bool, err error) {
	t.Helper()
	return func(f func()) (bool, error) {
		return k.TryDo(t.Context(), db, name, func(context.Context, *sqllock.Lock) error {
			f()
			return nil
		})
	}
}
