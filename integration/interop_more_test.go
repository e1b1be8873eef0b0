package integration

import (
	"context"
	"database/sql"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/interop/laravel"
	"github.com/sqllock/go-sqllock/interop/shedlock"
	"github.com/sqllock/go-sqllock/interop/symfony"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

func wantSays(t *testing.T, what string, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: the error should say %q: %v", what, text, err)
		}
	}
}

// TestInteropInTransaction: no row is ever a part of the caller's transaction.
func TestInteropInTransaction(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		name, p, ours := lockName("job"), c.newPeer(c.T), conn(c.T, c.db)
		plain, pooled := sqllock.New(c.backend(time.Minute, nil)), sqllock.New(c.backend(time.Minute, c.open(c.T)))

		held := acquire(c.T, plain, ours, name)
		tx, err := ours.BeginTx(c.Context(), nil)
		if err != nil {
			c.Fatal(err)
		}
		_, err = plain.TryLock(c.Context(), ours, name+"-2")
		wantErr(c.T, "TryLock in a transaction", err, sqllock.ErrInTransaction)
		wantSays(c.T, "TryLock in a transaction", err, "outside of the transaction", c.name+".WithPool")
		wantErr(c.T, "Extend in a transaction", held.Extend(c.Context(), time.Hour), sqllock.ErrInTransaction)
		wantErr(c.T, "Check in a transaction", held.Check(c.Context()), sqllock.ErrInTransaction)
		if err := held.WhileHeld(c.Context(), tx, 0, func() error { return nil }); err != nil {
			c.Errorf("the guard over the *sql.Tx: %v", err)
		}
		err = held.Release(c.Context())
		wantErr(c.T, "Release in a transaction", err, sqllock.ErrUnknown)
		wantSays(c.T, "Release in a transaction", err, "WithPool", "ends with its TTL")
		_ = tx.Rollback() // its session has been closed
		granting1(c.T, p, name, 60, false)

		ours = conn(c.T, c.db)
		if tx, err = ours.BeginTx(c.Context(), nil); err != nil {
			c.Fatal(err)
		}
		do(c.T, tx, "CREATE TEMPORARY TABLE nothing (n int)")
		l := acquire(c.T, pooled, ours, name+"-2")
		granting1(c.T, p, name+"-2", 60, false)
		_, err = pooled.TryLock(c.Context(), ours, name+"-2")
		wantErr(c.T, "TryLock again", err, sqllock.ErrHeld)
		for what, err := range map[string]error{"Check": l.Check(c.Context()), "Extend": l.Extend(c.Context(), time.Minute)} {
			if err != nil {
				c.Errorf("%s over the pool: %v", what, err)
			}
		}
		if err := tx.Rollback(); err != nil {
			c.Fatal(err)
		}
		wantHeld(c.T, l)
		if tx, err = ours.BeginTx(c.Context(), nil); err != nil {
			c.Fatal(err)
		}
		release(c.T, l)
		granting1(c.T, p, name+"-2", 60, true)
		_ = tx.Rollback() // nothing was done
	})
}

// end ends the session under s, as a broken network does.
func (c *interopCase) end(s *sql.Conn) {
	c.Helper()
	id := c.id(s)
	if c.pg() {
		if err := pgKill(c.Context(), c.db, id); err != nil {
			c.Fatal(err)
		}
		pgGone(c.T, c.db, id)
		return
	}
	if err := mysqlKill(c.Context(), c.db, id); err != nil {
		c.Fatal(err)
	}
	sessionEnds(c.T, c.db, id)
}

// TestInteropDeadSession: the lock outlives its session; with a pool it can be asked about,
// extended and released all the same, without one it ends with its TTL.
func TestInteropDeadSession(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		name, p := lockName("job"), c.newPeer(c.T)
		ours := conn(c.T, c.open(c.T))
		l := acquire(c.T, sqllock.New(c.backend(time.Minute, c.db)), ours, name)
		c.end(ours)
		granting1(c.T, p, name, 60, false)
		wantHeld(c.T, l)
		if err := l.Extend(c.Context(), time.Minute); err != nil {
			c.Errorf("Extend: %v", err)
		}
		release(c.T, l)
		granting1(c.T, p, name, 60, true)

		name += "-2"
		ours = conn(c.T, c.open(c.T))
		k := sqllock.New(c.backend(time.Second, nil))
		l = acquire(c.T, k, ours, name)
		m := acquire(c.T, k, ours, name+"-3", sqllock.TTL(time.Minute))
		c.end(ours)
		err := m.Release(c.Context())
		wantErr(c.T, "Release", err, sqllock.ErrUnknown)
		wantSays(c.T, "Release", err, "the lock ends with its TTL, in ")
		granting1(c.T, p, name+"-3", 60, false)
		release(c.T, granted(c.T, granting(c.T, k, conn(c.T, c.db), name)))
		wantErr(c.T, "Check, when the TTL is over", l.Check(c.Context()), sqllock.ErrLost)
	})
}

var createTable = regexp.MustCompile(`run (CREATE TABLE .*?): (Error|ERROR)`)

// TestInteropNoTable: the error has the statement that makes the table, and that makes it.
func TestInteropNoTable(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		do(c.T, c.db, "DROP TABLE "+c.table)
		b := c.backend(time.Minute, nil)
		k, ours := sqllock.New(b), conn(c.T, c.db)
		_, err := k.TryLock(c.Context(), ours, "job")
		_, holder := k.Holder(c.Context(), c.db, "job")
		_, list := b.List(c.Context(), c.db)
		for what, err := range map[string]error{"TryLock": err, "Holder": holder, "List": list} {
			wantErr(c.T, what, err, sqllock.ErrNoTable)
			wantSays(c.T, what, err, c.table, c.name+".WithTable")
		}
		found := createTable.FindStringSubmatch(err.Error())
		if found == nil {
			c.Fatalf("no CREATE TABLE in %v", err)
		}
		do(c.T, c.db, found[1])
		p := c.newPeer(c.T)
		l := acquire(c.T, k, ours, "job")
		granting1(c.T, p, "job", 60, false)
		release(c.T, l)
		granting1(c.T, p, "job", 60, true)

		// One that is of another shape.
		do(c.T, c.db, "DROP TABLE "+c.table)
		do(c.T, c.db, "CREATE TABLE "+c.table+" (n int)")
		_, err = k.TryLock(c.Context(), ours, "job")
		wantErr(c.T, "TryLock on another table", err, sqllock.ErrNoTable)
		wantSays(c.T, "TryLock on another table", err, "CREATE TABLE")

		// And one in which a lock can have two rows.
		do(c.T, c.db, "DROP TABLE "+c.table)
		do(c.T, c.db, strings.NewReplacer(" NOT NULL PRIMARY KEY", " NOT NULL").Replace(found[1]))
		_, err = sqllock.New(c.backend(time.Minute, nil)).TryLock(c.Context(), ours, "job") // one that has not seen the other table
		wantErr(c.T, "TryLock without a primary key", err, sqllock.ErrNoTable)
		if !c.pg() {
			wantSays(c.T, "TryLock without a primary key", err, "ADD PRIMARY KEY")
		}
	})
}

// TestInteropPermission: what is missing is told.
func TestInteropPermission(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		var reader *sql.DB
		if c.pg() {
			reader = pgRole(c.T, c.s, c.db, "")
		} else {
			reader = user(c.T, c.s, c.db, "SELECT")
		}
		k := sqllock.New(c.backend(time.Minute, nil))
		_, err := k.TryLock(c.Context(), conn(c.T, reader), "job")
		wantErr(c.T, "TryLock", err, sqllock.ErrPermission)
		wantSays(c.T, "TryLock", err, "SELECT, INSERT, UPDATE", c.table)
		if c.held() != 0 {
			c.Error("a row was made")
		}
	})
}

// TestInteropRefused: tables and servers on which nothing can be promised.
func TestInteropRefused(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, f := range interopFormats {
			c := newInterop(t, s.Kind, f)
			if f.name == "laravel" {
				do(t, c.db, "ALTER TABLE cache_locks MODIFY `key` varchar(100) NOT NULL") // what MyISAM takes
			}
			do(t, c.db, "ALTER TABLE "+f.table+" ENGINE=MyISAM")
			_, err := sqllock.New(f.backend(time.Minute, nil)).TryLock(t.Context(), conn(t, c.db), "job")
			wantErr(t, "TryLock on MyISAM", err, sqllock.ErrUnsupported)
			wantSays(t, "TryLock on MyISAM", err, "ENGINE=InnoDB")
		}
		c := newInterop(t, s.Kind, interopFormats[1])
		name := database(t, c.db)
		zoned := open(t, s, func(cfg *mysql.Config) {
			cfg.DBName, cfg.Params = name, map[string]string{"time_zone": "'+05:00'"}
		})
		_, err := sqllock.New(shedlock.New(time.Minute)).TryLock(t.Context(), conn(t, zoned), "job")
		wantErr(t, "TryLock in another time zone", err, sqllock.ErrUnsupported)
		wantSays(t, "TryLock in another time zone", err, "time_zone", "DSN")
		do(t, c.db, "ALTER TABLE shedlock MODIFY lock_until DATETIME(3) NOT NULL")
		release(t, acquire(t, sqllock.New(shedlock.New(time.Minute)), conn(t, zoned), "job"))
	})
	t.Run("read-only", func(t *testing.T) {
		s := private(t, testdb.MariaDB)
		db := schema(t, s)
		do(t, db, interopFormats[0].mysql)
		do(t, db, "SET GLOBAL read_only=1")
		_, err := sqllock.New(symfony.New(time.Minute)).TryLock(t.Context(), conn(t, db), "job")
		wantErr(t, "TryLock", err, sqllock.ErrUnsupported)
		wantSays(t, "TryLock", err, "read-only", "connect to the primary")
		do(t, db, "SET GLOBAL read_only=0")
	})
	t.Run("postgres", func(t *testing.T) {
		c := newInterop(t, testdb.Postgres, interopFormats[1])
		do(t, c.db, "ALTER TABLE shedlock ALTER lock_until TYPE timestamptz")
		_, err := sqllock.New(shedlock.New(time.Minute)).TryLock(t.Context(), conn(t, c.db), "job")
		wantErr(t, "TryLock", err, sqllock.ErrUnsupported)
		wantSays(t, "TryLock", err, "timestamp without time zone")
	})
}

// TestInteropNames: how the others' names are reached.
func TestInteropNames(t *testing.T) {
	t.Parallel()
	long, ending := strings.Repeat("App\\Message\\", 10), "ends in a space "
	onInteropKinds(t, func(t *testing.T, kind testdb.Kind) {
		reach := func(c *interopCase, b sqllock.Backend, ours, theirs string) {
			t.Helper()
			p, k := c.newPeer(t), sqllock.New(b)
			l := acquire(t, k, conn(t, c.db), ours)
			granting1(t, p, theirs, 60, false)
			release(t, l)
			granting1(t, p, theirs, 60, true)
			_, err := k.TryLock(t.Context(), conn(t, c.db), ours)
			wantErr(t, "TryLock of "+ours, err, sqllock.ErrBusy)
		}
		c := newInterop(t, kind, interopFormats[0])
		reach(c, symfony.New(time.Minute, symfony.WithPrefix("glueful_lock_")), "import:daily", "glueful_lock_import:daily")
		reach(c, symfony.New(time.Minute, symfony.WithName("message", long), symfony.WithPrefix("x")), "message", long)
		reach(c, symfony.New(time.Minute, symfony.WithName("ending", ending)), "ending", ending)
		reach(c, symfony.New(time.Minute, symfony.WithName("café", "café")), "café", "café")
		do(t, c.db, "ALTER TABLE lock_keys RENAME TO locks")
		rename := []string{"key_id TO id", "key_token TO token", "key_expiration TO expiration"}
		for _, r := range rename {
			do(t, c.db, "ALTER TABLE locks RENAME COLUMN "+r)
		}
		moved := symfony.New(time.Minute, symfony.WithTable("locks"), symfony.WithColumns("id", "token", "expiration"))
		release(t, acquire(t, sqllock.New(moved), conn(t, c.db), "job"))

		c = newInterop(t, kind, interopFormats[1])
		reach(c, shedlock.New(time.Minute, shedlock.WithName("job", "tägliche Rechnung")), "job", "tägliche Rechnung")
		_, err := sqllock.New(shedlock.New(time.Minute, shedlock.WithName("job", long))).TryLock(t.Context(), conn(t, c.db), "job")
		wantErr(t, "TryLock of a name that is too long", err, sqllock.ErrInvalidName)
		wantSays(t, "TryLock of a name that is too long", err, "column name takes 64")
		moved2 := shedlock.New(time.Minute, shedlock.WithTable("locks"), shedlock.WithColumns("n", "u", "a", "b"))
		do(t, c.db, "ALTER TABLE shedlock RENAME TO locks")
		for _, r := range []string{"name TO n", "lock_until TO u", "locked_at TO a", "locked_by TO b"} {
			do(t, c.db, "ALTER TABLE locks RENAME COLUMN "+r)
		}
		release(t, acquire(t, sqllock.New(moved2), conn(t, c.db), "job"))

		c = newInterop(t, kind, interopFormats[2])
		reach(c, laravel.New(time.Minute, laravel.WithPrefix("shop_cache_")), "invoices", "shop_cache_invoices")
		reach(c, laravel.New(time.Minute, laravel.WithName("framework/schedule", "framework/schedule-"+long)), "framework/schedule", "framework/schedule-"+long)
		// On MySQL the collation that Laravel gives its tables takes no notice of letter case.
		k := sqllock.New(laravel.New(time.Minute))
		l := acquire(t, k, conn(t, c.db), "Report")
		granting1(t, c.newPeer(t), "report", 60, c.pg())
		release(t, l)
	})
}

// TestInteropShedLock: what Java does that is not in the statements of both.
func TestInteropShedLock(t *testing.T) {
	t.Parallel()
	onInteropKinds(t, func(t *testing.T, kind testdb.Kind) {
		c := newInterop(t, kind, interopFormats[1])
		k, ours := sqllock.New(shedlock.New(time.Minute)), conn(t, c.db)
		// Without usingDbTime Java unlocks by the name alone.
		l := acquire(t, k, ours, "job")
		now := c.pick("UTC_TIMESTAMP(3)", "timezone('utc', CURRENT_TIMESTAMP)")
		do(t, c.db, "UPDATE shedlock SET lock_until = "+now+" WHERE name = 'job'")
		waitFor(t, "the Check to tell", func() bool { return errors.Is(l.Check(t.Context()), sqllock.ErrLost) })
		wantErr(t, "Release", l.Release(t.Context()), sqllock.ErrLost)
		// lockAtLeastFor: the row is held after the unlock.
		do(t, c.db, "UPDATE shedlock SET locked_by = 'java', lock_until = "+c.pick("TIMESTAMPADD(SECOND, 60, "+now+")", now+" + interval '60 s'"))
		_, err := k.TryLock(t.Context(), ours, "job")
		wantErr(t, "TryLock", err, sqllock.ErrBusy)
		h, err := k.Holder(t.Context(), c.db, "job")
		if err != nil || h.Process != "java" || time.Since(h.Since).Abs() > time.Hour {
			t.Errorf("Holder: %+v, %v", h, err)
		}
	})
}

// TestInteropLaravel: PHP's clock, and its forceRelease.
func TestInteropLaravel(t *testing.T) {
	t.Parallel()
	onInteropKinds(t, func(t *testing.T, kind testdb.Kind) {
		c := newInterop(t, kind, interopFormats[2])
		k, ours := sqllock.New(laravel.New(time.Minute)), conn(t, c.db)
		p := newLaravelPeer(c, conn(t, c.db)).(*laravelPeer) //nolint:errcheck // it is one
		l := acquire(t, k, ours, "forced")
		if err := p.forceRelease(t.Context(), "forced"); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "Check after forceRelease", l.Check(t.Context()), sqllock.ErrLost)

		// A host that is ahead by a second takes nothing early.
		p.ahead = time.Second
		l = acquire(t, k, ours, "job", sqllock.TTL(time.Second))
		waitFor(t, "the peer to be granted the lock", func() bool {
			ok, err := p.acquire(t.Context(), "job", 1)
			if left := l.Remaining(); err != nil || ok && left > 0 {
				t.Fatalf("granted while %v were left; %v", left, err)
			}
			return ok
		})
		// And nothing is taken early of one that is behind.
		p.ahead = -time.Second
		start := time.Now()
		granting1(t, p, "behind", 2, true)
		l = granted(t, granting(t, k, ours, "behind"))
		if held := time.Since(start); held < 2*time.Second {
			t.Errorf("the lock of PHP was taken after %v of its 2 s", held)
		}
		release(t, l)
	})
}

// TestInteropOperate: who has what, and how to get rid of it.
func TestInteropOperate(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		b := c.backend(time.Minute, nil)
		k, p := sqllock.New(b), c.newPeer(c.T)
		l := acquire(c.T, k, conn(c.T, c.db), "ours")
		granting1(c.T, p, "theirs", 60, true)
		over := acquire(c.T, k, conn(c.T, c.db), "released")
		release(c.T, over)
		all, err := b.List(c.Context(), c.db)
		if err != nil || len(all) != 2 {
			c.Fatalf("List: %+v, %v", all, err)
		}
		for _, h := range all {
			if !h.Alive || h.TimeLeft <= 0 || time.Until(h.Expires).Abs() > time.Hour {
				c.Errorf("List: %+v", h)
			}
			if c.name != "symfony" && h.Key == "ours" && !strings.Contains(h.Process, "integration") {
				c.Errorf("List should tell the process: %+v", h)
			}
		}
		_, err = k.Break(c.Context(), c.db, "free")
		wantErr(c.T, "Break of what is free", err, sqllock.ErrNotHeld)
		for _, name := range []string{"ours", "theirs"} {
			h, err := k.Break(c.Context(), c.db, name)
			if err != nil || h.Key != name {
				c.Errorf("Break: %+v, %v", h, err)
			}
			release(c.T, acquire(c.T, k, conn(c.T, c.db), name))
		}
		wantErr(c.T, "Check of what was broken", l.Check(c.Context()), sqllock.ErrLost)
		if err := p.release(c.Context(), "theirs"); err != nil {
			c.Error(err)
		}
	})
}

// TestInteropKeepAlive: a Pool extends, so that the lock outlasts its TTL.
func TestInteropKeepAlive(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		const ttl = 4 * time.Second // a machine that is busy still extends in time
		k, other := pool(c.T, c.open(c.T), c.backend(ttl, c.db)), c.newPeer(c.T)
		err := k.Do(c.Context(), "job", func(ctx context.Context, lock *sqllock.Lock) error {
			for first := lock.Grant().Until.Add(time.Second); time.Now().Before(first); time.Sleep(50 * time.Millisecond) {
				granting1(c.T, other, "job", 60, false)
			}
			return ctx.Err()
		}, sqllock.KeepAlive(time.Minute))
		if err != nil {
			c.Errorf("Do: %v", err)
		}
		granting1(c.T, other, "job", 60, true)
	})
}

// TestInteropSnapshot: in a transaction with a snapshot PostgreSQL can't lock a row that was
// extended since, which is no loss; in a READ COMMITTED one, and on the others, it can.
func TestInteropSnapshot(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		do(c.T, c.db, "CREATE TABLE work (n int)")
		l := acquire(c.T, sqllock.New(c.backend(time.Minute, c.db)), conn(c.T, c.db), "job")
		work := func(ctx context.Context, tx *sql.Tx) error {
			snapshot := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+c.table).Scan(new(int))
			_, err := tx.ExecContext(ctx, "INSERT INTO work VALUES (1)")
			if err := errors.Join(snapshot, err); err != nil {
				return err
			}
			return l.Extend(ctx, time.Hour)
		}
		run := func(opts sql.TxOptions) error { return txguard.Run(c.Context(), l, work, txguard.WithTxOptions(opts)) }
		err, want := run(sql.TxOptions{Isolation: sql.LevelRepeatableRead}), int64(2)
		if c.pg() {
			want = 1
			wantErr(c.T, "REPEATABLE READ, extended", err, txguard.ErrRolledBack)
			wantSays(c.T, "REPEATABLE READ, extended", err, "READ COMMITTED")
			err = nil
		}
		if err := errors.Join(err, run(sql.TxOptions{Isolation: sql.LevelReadCommitted})); err != nil {
			c.Errorf("extended: %v", err)
		}
		wantHeld(c.T, l)
		if n := ask[int64](c.T, c.db, "SELECT COUNT(*) FROM work"); n != want {
			c.Errorf("%d rows, want %d", n, want)
		}
		if c.pg() {
			err := txguard.Run(c.Context(), l, func(context.Context, *sql.Tx) error { return nil }, txguard.WithTxOptions(sql.TxOptions{ReadOnly: true}))
			wantErr(c.T, "READ ONLY", err, sqllock.ErrUnsupported)
		}
	})
}

// TestInteropLockedRow: somebody's transaction that has the row locked costs nobody the
// session, and nothing is left of the limit on waits.
func TestInteropLockedRow(t *testing.T) {
	t.Parallel()
	onInteropKinds(t, func(t *testing.T, kind testdb.Kind) {
		c := newInterop(t, kind, interopFormats[2])
		k, ours := sqllock.New(laravel.New(time.Minute)), conn(t, c.db)
		id, setting := c.id(ours), c.pick("SELECT CONCAT(@@SESSION.innodb_lock_wait_timeout,'/',@@SESSION.lock_wait_timeout)", "SHOW lock_timeout")
		before := ask[string](t, ours, setting)
		l := acquire(t, k, ours, "job")
		tx, err := c.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // nothing was done
		do(t, tx, "UPDATE cache_locks SET owner = owner")
		err = l.Extend(t.Context(), time.Hour)
		wantErr(t, "Extend", err, sqllock.ErrUnknown)
		wantSays(t, "Extend", err, "another session has locked the row")
		if c.id(ours) != id || ask[string](t, ours, setting) != before {
			t.Errorf("the session, or its settings, have changed: %s", ask[string](t, ours, setting))
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		release(t, l)
	})
}

// TestInteropBouncer: a row is a lock behind PgBouncer in transaction mode, too.
func TestInteropBouncer(t *testing.T) {
	t.Parallel()
	for _, f := range interopFormats {
		t.Run(f.name, func(t *testing.T) {
			b := bouncer(t, "transaction")
			c := newInterop(t, testdb.Postgres, f)
			db := through(t, b, c.db)
			k, first, second := sqllock.New(f.backend(time.Minute, db)), conn(t, db), conn(t, db)
			for range 5 {
				l := acquire(t, k, first, "job")
				_, err := k.TryLock(t.Context(), second, "job")
				wantErr(t, "TryLock by another client", err, sqllock.ErrBusy)
				wantNotErr(t, "TryLock by another client", err, sqllock.ErrHeld)
				granting1(t, c.newPeer(t), "job", 60, false)
				release(t, l)
			}
		})
	}
}
