package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

var pgtRoles atomic.Int64

// pgtRole makes a role that may use the lock table, and returns a pool of it.
func pgtRole(tb testing.TB, s *testdb.Server, db *sql.DB, grants ...string) (pool *sql.DB, role string) {
	tb.Helper()
	role = fmt.Sprintf("pgt_%s_%d", ask[string](tb, db, "SELECT current_database()"), pgtRoles.Add(1))
	do(tb, db, "CREATE ROLE "+role+" LOGIN PASSWORD 'secret'")
	tb.Cleanup(func() {
		ctx := context.WithoutCancel(tb.Context())
		_, _ = db.ExecContext(ctx, "DROP OWNED BY "+role)
		if _, err := db.ExecContext(ctx, "DROP ROLE "+role); err != nil {
			tb.Error(err)
		}
	})
	for _, grant := range grants {
		do(tb, db, "GRANT "+grant+" TO "+role)
	}
	return sameDatabase(tb, s, db, func(c *pgx.ConnConfig) { c.User, c.Password = role, "secret" }), role
}

const (
	pgtOnTable    = "SELECT,INSERT,UPDATE,DELETE ON shared_locks"
	pgtOnSequence = "USAGE ON SEQUENCE shared_locks_token"
)

// pgtWholeRow is everything that the table has of a name.
func pgtWholeRow(tb testing.TB, db *sql.DB, name string) string {
	tb.Helper()
	return ask[string](tb, db, "SELECT t::text FROM shared_locks t WHERE name=$1", name)
}

// TestPGTableNoPrivilegeToKill: the holder is another role's, or a superuser's.
func TestPGTableNoPrivilegeToKill(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	alice, aliceRole := pgtRole(t, s, db, pgtOnTable, pgtOnSequence)
	bob, _ := pgtRole(t, s, db, pgtOnTable, pgtOnSequence)
	member, _ := pgtRole(t, s, db, pgtOnTable, pgtOnSequence, aliceRole)
	signaller, _ := pgtRole(t, s, db, pgtOnTable, pgtOnSequence, "pg_signal_backend")
	k := sqllock.New(pgtable.New(time.Hour))
	for _, test := range []struct {
		name          string
		holder, other *sql.DB
		may           bool
	}{
		{"another role", alice, bob, false},
		{"a superuser's", db, bob, false},
		{"a superuser's, with pg_signal_backend", db, signaller, false},
		{"the same role", alice, alice, true},
		{"a member of the role", alice, member, true},
		{"pg_signal_backend", alice, signaller, true},
		{"a superuser", alice, db, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			holder, other := conn(t, test.holder), conn(t, test.other)
			id := pgtID(t, holder)
			l := acquire(t, k, holder, "job")
			pgtExpire(t, db, "job")
			before := pgtWholeRow(t, db, "job")
			if test.may {
				h, err := k.Holder(t.Context(), test.other, "job")
				if err != nil || !h.Alive || h.Session != id {
					t.Errorf("Holder: %+v, %v", h, err)
				}
				newer, err := k.TryLock(t.Context(), other, "job")
				if err != nil {
					t.Fatalf("TryLock: %v", err)
				}
				wantErr(t, "the stale holder", l.Check(t.Context()), sqllock.ErrLost)
				release(t, newer)
				return
			}
			for what, acquire := range map[string]func() error{
				"TryLock": func() error { _, err := k.TryLock(t.Context(), other, "job"); return err },
				"Lock":    func() error { _, err := k.Lock(t.Context(), other, "job"); return err },
				"Break":   func() error { _, err := k.Break(t.Context(), test.other, "job"); return err },
			} {
				err := acquire()
				wantErr(t, what, err, sqllock.ErrPermission)
				if err != nil && (!strings.Contains(err.Error(), "pg_signal_backend") || !strings.Contains(err.Error(), fmt.Sprint(id)) || strings.Contains(err.Error(), "GRANT SELECT")) {
					t.Errorf("%s: the error should name the session and what to grant: %v", what, err)
				}
				if now := pgtWholeRow(t, db, "job"); now != before {
					t.Errorf("%s: the row was %s and is %s", what, before, now)
				}
			}
			release(t, l) // nobody took it
			release(t, acquire(t, k, other, "job"))
		})
	}
	pgtClean(t, db)
}

// TestPGTableRights: what a role needs on table and sequence. An error leaves nothing held.
func TestPGTableRights(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	k := sqllock.New(pgtable.New(time.Hour))
	for name, grants := range map[string][]string{
		"no sequence": {pgtOnTable},
		"no table":    {pgtOnSequence},
		"no DELETE":   {pgtOnSequence, "SELECT,INSERT,UPDATE ON shared_locks"},
		"no UPDATE":   {pgtOnSequence, "SELECT,INSERT,DELETE ON shared_locks"},
	} {
		weak, _ := pgtRole(t, s, db, grants...)
		c := conn(t, weak)
		_, err := k.TryLock(t.Context(), c, "job")
		wantErr(t, name, err, sqllock.ErrPermission)
		if err != nil && !strings.Contains(err.Error(), "GRANT") {
			t.Errorf("%s: the error should say what to grant: %v", name, err)
		}
		if err := c.PingContext(t.Context()); err != nil {
			t.Errorf("%s: the session should be usable: %v", name, err)
		}
		pgtClean(t, db)
	}
	enough, _ := pgtRole(t, s, db, pgtOnTable, pgtOnSequence)
	c := conn(t, enough)
	l := acquire(t, sqllock.New(pgtable.New(time.Hour, pgtable.WithPool(enough))), c, "job")
	if err := l.Extend(t.Context(), time.Hour); err != nil {
		t.Errorf("Extend: %v", err)
	}
	release(t, l)
	pgtClean(t, db)
}

// TestPGTableTokensGrowForEver: over all that could set them back.
func TestPGTableTokensGrowForEver(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.Postgres, "-c", "fsync=on")
	db := pgLockTable(t, s)
	name := ask[string](t, db, "SELECT current_database()")
	lazy := func() *sql.DB {
		return openPG(t, s, func(c *pgx.ConnConfig) { c.Database, c.RuntimeParams["synchronous_commit"] = name, "off" })
	}
	pool := lazy()
	var last int64
	grew := func(what string) {
		t.Helper()
		c := conn(t, pool)
		l := acquire(t, sqllock.New(pgtable.New(time.Minute)), c, "job")
		if l.Token() <= last {
			t.Errorf("%s: token %d after %d", what, l.Token(), last)
		}
		last = l.Token()
		release(t, l)
		_ = c.Close()
	}
	grew("first")
	grew("release")
	for _, statement := range []string{"TRUNCATE shared_locks RESTART IDENTITY", "DELETE FROM shared_locks", "VACUUM FULL shared_locks"} {
		do(t, db, statement)
		grew(statement)
	}
	held := func(end func(id int64)) {
		t.Helper()
		c := conn(t, pool)
		id := pgtID(t, c)
		l := acquire(t, sqllock.New(pgtable.New(time.Minute)), c, "job")
		if l.Token() <= last {
			t.Errorf("token %d after %d", l.Token(), last)
		}
		last = l.Token()
		end(id)
		_ = c.PingContext(t.Context()) // which finds out that it is dead
		_ = c.Close()
	}
	kill := func(id int64) {
		if err := pgKill(t.Context(), db, id); err != nil {
			t.Fatal(err)
		}
	}
	held(kill)
	grew("takeover")
	// The sequence was set back, by a restore of it alone for one.
	held(func(id int64) {
		kill(id)
		do(t, db, "ALTER SEQUENCE shared_locks_token RESTART WITH 1")
	})
	grew("a sequence that was set back, where the row is left")
	do(t, db, "SELECT setval('shared_locks_token',$1)", last)
	// The last thing before a crash is a grant, in a session that does not wait for the disk.
	for range 5 {
		held(func(int64) {
			if err := s.Crash(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		pool, db = lazy(), openPG(t, s, func(c *pgx.ConnConfig) { c.Database = name })
		do(t, db, "DELETE FROM shared_locks") // of which a token would be known
		grew("crash of the server")
	}
}

// TestPGTableServerRestarted: rows that are older than the server name sessions that are
// others now.
func TestPGTableServerRestarted(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.Postgres)
	db := pgLockTable(t, s)
	name := ask[string](t, db, "SELECT current_database()")
	k := sqllock.New(pgtable.New(time.Hour))
	l := acquire(t, k, conn(t, db), "job")
	waitFor(t, "the next second, so that the row is older than the server", func() bool {
		return ask[bool](t, db, "SELECT created<floor(extract(epoch FROM clock_timestamp())) FROM shared_locks")
	})
	if err := s.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	db = openPG(t, s, func(c *pgx.ConnConfig) { c.Database = name })
	ringing, other := conn(t, db), conn(t, db)
	pgtRing(t, ringing, "job")
	do(t, db, "UPDATE shared_locks SET ttl=-1,connection_id=$1", pgtID(t, ringing))
	_, err := k.TryLock(t.Context(), other, "job")
	wantErr(t, "TryLock", err, sqllock.ErrBusy)
	if err := ringing.PingContext(t.Context()); err != nil {
		t.Errorf("somebody innocent was ended: %v", err)
	}
	do(t, ringing, "SELECT pg_advisory_unlock_all()")
	newer, err := k.TryLock(t.Context(), other, "job")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(t.Context()); !errors.Is(err, sqllock.ErrLost) && !errors.Is(err, sqllock.ErrUnknown) {
		t.Errorf("the lock of before: %v", err)
	}
	if newer.Token() <= l.Token() {
		t.Errorf("token %d after %d", newer.Token(), l.Token())
	}
	release(t, newer)
	pgtClean(t, db)
}

// TestPGTableMissing: each call says what to do, and nothing is left held.
func TestPGTableMissing(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgDatabase(t, s)
	b := pgtable.New(time.Minute)
	k := sqllock.New(b)
	c := conn(t, db)
	check := func(what string, err error) {
		t.Helper()
		wantErr(t, what, err, sqllock.ErrNoTable)
		if err != nil && !strings.Contains(err.Error(), "migrations.Up(ctx, db, migrations.Postgres())") {
			t.Errorf("%s: the error should name what creates the table: %v", what, err)
		}
	}
	all := func(what string) {
		t.Helper()
		_, err := k.TryLock(t.Context(), c, "job")
		check("TryLock, "+what, err)
		_, err = k.Lock(t.Context(), c, "job")
		check("Lock, "+what, err)
	}
	all("no table")
	_, err := k.Holder(t.Context(), db, "job")
	check("Holder", err)
	_, err = k.Break(t.Context(), db, "job")
	check("Break", err)
	_, err = b.List(t.Context(), db)
	check("List", err)
	_, err = b.Sweep(t.Context(), db)
	check("Sweep", err)
	makePGTable(t, db, "shared_locks")
	release(t, acquire(t, k, c, "job"))
	for _, damage := range []struct{ what, do, undo string }{
		{"no sequence", "ALTER SEQUENCE shared_locks_token RENAME TO gone", "ALTER SEQUENCE gone RENAME TO shared_locks_token"},
		{"no column", "ALTER TABLE shared_locks RENAME COLUMN token TO gone", "ALTER TABLE shared_locks RENAME COLUMN gone TO token"},
		{"no key", "ALTER TABLE shared_locks DROP CONSTRAINT shared_locks_pkey", "ALTER TABLE shared_locks ADD PRIMARY KEY (name)"},
		{"a column of another type", "ALTER TABLE shared_locks ALTER COLUMN connection_id TYPE text", "ALTER TABLE shared_locks ALTER COLUMN connection_id TYPE bigint USING connection_id::bigint"},
		{"a column that no lock fills", "ALTER TABLE shared_locks ADD COLUMN more int NOT NULL", "ALTER TABLE shared_locks DROP COLUMN more"},
		{"no sequence but a table", "ALTER SEQUENCE shared_locks_token RENAME TO gone; CREATE TABLE shared_locks_token (i int)", "DROP TABLE shared_locks_token; ALTER SEQUENCE gone RENAME TO shared_locks_token"},
		{"dropped", "ALTER TABLE shared_locks RENAME TO gone", "ALTER TABLE gone RENAME TO shared_locks"},
	} {
		for statement := range strings.SplitSeq(damage.do, "; ") {
			do(t, db, statement)
		}
		all(damage.what)
		if n := pgtBells(t, db); n != 0 {
			t.Errorf("%s: %d doorbells are held", damage.what, n)
		}
		for statement := range strings.SplitSeq(damage.undo, "; ") {
			do(t, db, statement)
		}
		release(t, acquire(t, k, c, "job"))
	}
	if err := c.PingContext(t.Context()); err != nil {
		t.Errorf("the session should be usable: %v", err)
	}
	do(t, db, `CREATE SCHEMA "Locks"`)
	there := sameDatabase(t, s, db, func(c *pgx.ConnConfig) { c.RuntimeParams["search_path"] = `"Locks"` })
	makePGTable(t, there, "jobs")
	qualified := sqllock.New(pgtable.New(time.Minute, pgtable.WithTable("Locks.jobs")))
	l := acquire(t, qualified, c, "job")
	_, err = k.TryLock(t.Context(), conn(t, db), "job")
	wantErr(t, "TryLock on another table, with the same doorbell", err, sqllock.ErrBusy)
	release(t, l)
	_, err = sqllock.New(pgtable.New(time.Minute, pgtable.WithTable("nowhere.locks"))).TryLock(t.Context(), c, "job")
	wantErr(t, "TryLock in a schema that is not there", err, sqllock.ErrNoTable)
	if err != nil && !strings.Contains(err.Error(), `migrations.WithTable("locks")`) {
		t.Errorf("the error should name the table: %v", err)
	}
	pgtClean(t, db)
}

// TestPGTableWithPGAdvisory: locks of one name of the two packages exclude each other.
func TestPGTableWithPGAdvisory(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	leases, bare := sqllock.New(pgtable.New(time.Hour)), sqllock.New(pgadvisory.New())
	one, other := conn(t, db), conn(t, db)
	for _, way := range [][2]*sqllock.Locker{{leases, bare}, {bare, leases}} {
		l := acquire(t, way[0], one, "job")
		_, err := way[1].TryLock(t.Context(), other, "job")
		wantErr(t, "TryLock by another session", err, sqllock.ErrBusy)
		_, err = way[1].TryLock(t.Context(), one, "job")
		wantErr(t, "TryLock by the same session", err, sqllock.ErrHeld)
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
		release(t, l)
		release(t, acquire(t, way[1], other, "job"))
	}
	pgtClean(t, db)
}

// TestPGTableOperator: List, Holder, Sweep and Break.
func TestPGTableOperator(t *testing.T) {
	t.Parallel()
	db := pgLockTable(t, postgres(t))
	b := pgtable.New(time.Hour)
	k := sqllock.New(b)
	if all, err := b.List(t.Context(), db); err != nil || len(all) != 0 {
		t.Fatalf("List of nothing: %+v, %v", all, err)
	}
	live, dead, bare := conn(t, db), conn(t, db), conn(t, db)
	l := acquire(t, k, live, "live")
	deadID := pgtID(t, dead)
	acquire(t, k, dead, "dead")
	if err := pgKill(t.Context(), db, deadID); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the session to end", func() bool { return pgtBells(t, db) == 1 })
	do(t, db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) VALUES ('',9223372036854775807,9223372036854775807,9223372036854775807,1)")
	pgtRing(t, bare, "bare")

	all, err := b.List(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range all {
		got = append(got, fmt.Sprintf("%s %v %d", h.Key, h.Alive, h.Session))
	}
	want := fmt.Sprintf(" false 9223372036854775807,dead false %d,live true %d", deadID, pgtID(t, live))
	if strings.Join(got, ",") != want {
		t.Errorf("List: got %v, want %s", got, want)
	}
	if h := all[len(all)-1]; h.User == "" || h.Host == "" || h.Database == "" || h.State != "idle" || h.Process == "" || h.Token != l.Token() ||
		time.Until(h.Expires) < 30*time.Minute || time.Since(h.Since) > time.Hour || h.TimeLeft < 30*time.Minute {
		t.Errorf("List tells of a live holder %+v", h)
	}
	h, err := k.Holder(t.Context(), db, "bare")
	if err != nil || h.Session != pgtID(t, bare) || !h.Alive || !h.Expires.IsZero() || h.User == "" {
		t.Errorf("Holder of a doorbell without a row: %+v, %v", h, err)
	}
	if n, err := b.Sweep(t.Context(), db); err != nil || n != 2 {
		t.Errorf("Sweep removed %d, %v; want 2", n, err)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check after Sweep: %v", err)
	}

	_, err = k.Break(t.Context(), db, "nobody")
	wantErr(t, "Break of a free lock", err, sqllock.ErrNotHeld)
	tx, err := live.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // its session is gone
	id := pgtID(t, tx)
	h, err = k.Break(t.Context(), db, "live")
	if err != nil || h.Session != id || h.Process == "" {
		t.Errorf("Break says %+v, %v; the holder was session %d", h, err, id)
	}
	if err := tx.Commit(); err == nil {
		t.Error("the holder could commit after Break")
	}
	wantErr(t, "the handle", l.Check(t.Context()), sqllock.ErrLost)
	h, err = k.Break(t.Context(), db, "bare")
	if err != nil || h.Session == 0 {
		t.Errorf("Break of a doorbell without a row: %+v, %v", h, err)
	}
	// A row that looks older than the server, after its clock was set back.
	old := conn(t, db)
	acquire(t, k, old, "old")
	do(t, db, "UPDATE shared_locks SET created=1 WHERE name='old'")
	h, err = k.Break(t.Context(), db, "old")
	if err != nil || h.Session == 0 {
		t.Errorf("Break of a row that looks older than the server: %+v, %v", h, err)
	}
	if err := old.PingContext(t.Context()); err == nil {
		t.Error("Break said so, and its holder lives")
	}
	do(t, db, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired,holder) VALUES ('left',0,1,1,1,'who')")
	h, err = k.Break(t.Context(), db, "left")
	if err != nil || h.Process != "who" {
		t.Errorf("Break of what a dead session has left: %+v, %v", h, err)
	}
	for _, name := range []string{"live", "bare", "old", "left"} {
		l, err := k.TryLock(t.Context(), conn(t, db), name)
		if err != nil {
			t.Fatalf("TryLock after Break: %v", err)
		}
		release(t, l)
	}
	pgtClean(t, db)
}

// TestPGTableRoundTrips counts what goes to the server once a connection is known.
func TestPGTableRoundTrips(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	for mode, change := range map[string]func(*pgx.ConnConfig){
		"default": func(*pgx.ConnConfig) {},
		"exec":    func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = pgx.QueryExecModeExec },
		"strings": func(c *pgx.ConnConfig) { c.RuntimeParams["standard_conforming_strings"] = "off" },
		"serial":  func(c *pgx.ConnConfig) { c.RuntimeParams["default_transaction_isolation"] = "serializable" },
	} {
		t.Run(mode, func(t *testing.T) {
			writes := new(atomic.Int64)
			dial := func(c *pgx.ConnConfig) {
				c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, network, addr)
					return countingConn{conn, writes}, err
				}
				change(c)
			}
			c, other := conn(t, sameDatabase(t, s, db, dial)), conn(t, db)
			b := pgtable.New(time.Minute)
			k := sqllock.New(b)
			name := `job'\` + mode
			for range 2 { // what is run a second time is prepared
				release(t, acquire(t, k, c, name))
			}
			first := int64(1) // what a try takes
			if mode == "serial" {
				first = 2 // it has to be what the session's defaults do not make it
			}
			var l *sqllock.Lock
			req := sqllock.Request{Key: "pass" + mode, Observe: func(sqllock.Event) {}}
			g, err := b.Acquire(t.Context(), c, req)
			if err != nil {
				t.Fatal(err)
			}
			var held *sqllock.Lock
			sent := writes.Load()
			for _, step := range []struct {
				name string
				want int64
				do   func() error
			}{
				{"TryLock", first, func() (err error) { l, err = k.TryLock(t.Context(), c, name); return err }},
				{"Check", 1, func() error { return l.Check(t.Context()) }},
				{"AssertTTL", 1, func() error { return l.AssertTTL(t.Context(), time.Second) }},
				{"Extend", 1, func() error { return l.Extend(t.Context(), time.Minute) }},
				{"Release", 1, func() error { return l.Release(t.Context()) }},
				{"Lock", first, func() (err error) { l, err = k.Lock(t.Context(), c, name); return err }},
				{"Release after Lock", 1, func() error { return l.Release(t.Context()) }},
				{"Pass", 1, func() (err error) { g, err = b.Pass(t.Context(), c, g, req); return err }},
				{"TryLock of a lock that is held", first, func() error {
					held = acquire(t, k, other, name)
					if _, err := k.TryLock(t.Context(), c, name); err == nil {
						return fmt.Errorf("it was granted")
					}
					return nil
				}},
				{"Lock that waits", first + 1, func() error {
					granted := make(chan *sqllock.Lock, 1)
					go func() {
						l, err := k.Lock(t.Context(), c, name)
						if err != nil {
							t.Error(err)
						}
						granted <- l
					}()
					waitFor(t, "the waiter", func() bool {
						n, err := pgWaiters(t.Context(), db, name)
						return err == nil && n == 1
					})
					release(t, held)
					l = <-granted
					return nil
				}},
				{"Release after a wait", 1, func() error { return l.Release(t.Context()) }},
			} {
				if err := step.do(); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				now := writes.Load()
				if now-sent != step.want {
					t.Errorf("%s sent %d packets, want %d", step.name, now-sent, step.want)
				}
				sent = now
			}
		})
	}
}

// TestPGTableRefused: what is no PostgreSQL, or not its session.
func TestPGTableRefused(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgLockTable(t, s)
	t.Run("PgBouncer", func(t *testing.T) {
		for _, mode := range []string{"transaction", "session"} {
			bouncer, err := testdb.StartBouncer(t.Context(), s, mode)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = bouncer.Stop() })
			pool, err := testdb.OpenPostgres(bouncer.DSN, func(c *pgx.ConnConfig) {
				c.Database = ask[string](t, db, "SELECT current_database()")
				c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = pool.Close() })
			c := conn(t, pool)
			_, err = sqllock.New(pgtable.New(time.Minute)).TryLock(t.Context(), c, "job")
			wantErr(t, "TryLock", err, sqllock.ErrUnsupported)
			if mode == "session" {
				release(t, acquire(t, sqllock.New(pgtable.New(time.Minute, pgtable.Allow(pgtable.Pooler))), c, "job"))
			}
			_ = c.Close()
			_ = pool.Close()
		}
		pgtClean(t, db)
	})
	t.Run("MySQL", func(t *testing.T) {
		wrong := open(t, server(t, testdb.MariaDB))
		b := pgtable.New(time.Minute)
		k := sqllock.New(b)
		_, err := k.TryLock(t.Context(), conn(t, wrong), "job")
		wantErr(t, "TryLock", err, sqllock.ErrUnsupported)
		_, err = k.Holder(t.Context(), wrong, "job")
		wantErr(t, "Holder", err, sqllock.ErrUnsupported)
		_, err = b.Sweep(t.Context(), wrong)
		wantErr(t, "Sweep", err, sqllock.ErrUnsupported)
		_, err = b.List(t.Context(), wrong)
		wantErr(t, "List", err, sqllock.ErrUnsupported)
		k = sqllock.New(pgtable.New(time.Minute, pgtable.WithPool(wrong)))
		c := conn(t, db)
		do(t, c, "BEGIN")
		_, err = k.TryLock(t.Context(), c, "job")
		wantErr(t, "TryLock with a pool of MySQL", err, sqllock.ErrUnsupported)
		do(t, c, "COMMIT")
		pgtClean(t, db)
	})
}
