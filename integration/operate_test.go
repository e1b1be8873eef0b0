package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// atOnce acquires and releases what has to be free now.
func atOnce(t *testing.T, k *sqllock.Locker, c *sql.Conn, name string) {
	t.Helper()
	l, err := k.TryLock(t.Context(), c, name)
	if err != nil {
		t.Fatalf("TryLock: %v", err)
	}
	release(t, l)
}

// TestBreakNamed: when it returns, the holder's work is undone and its lock free.
func TestBreakNamed(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := lockTable(t, s, "InnoDB")
		do(t, db, "CREATE TABLE work (id int PRIMARY KEY) ENGINE=InnoDB")
		weak := user(t, s, db)
		b := mysqlnamed.New()
		k := sqllock.New(b)
		name := lockName("break")
		_, err := k.Break(t.Context(), db, name)
		wantErr(t, "Break of what is free", err, sqllock.ErrNotHeld)

		c := conn(t, db)
		l := acquire(t, k, c, name)
		second := acquire(t, k, c, name+"-2")
		tx, err := c.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // its session is gone
		other := conn(t, db)
		// What takes long enough to roll back to be noticed.
		do(t, tx, "INSERT INTO work WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i<900) SELECT a.i*1000+b.i FROM n a,n b WHERE b.i<20")
		_, err = k.Break(t.Context(), weak, name)
		wantErr(t, "Break without the privilege", err, sqllock.ErrPermission)
		for _, text := range []string{"CONNECTION_ADMIN", fmt.Sprint(l.Grant().Session)} {
			if err != nil && !strings.Contains(err.Error(), text) {
				t.Errorf("the error does not name %s: %v", text, err)
			}
		}
		h, err := k.Break(t.Context(), db, name)
		if err != nil || h.Session != l.Grant().Session || h.User == "" {
			t.Fatalf("Break: %+v, %v; want session %d", h, err, l.Grant().Session)
		}
		atOnce(t, k, other, name)
		do(t, other, "INSERT INTO work VALUES (0)") // it would wait for a row that is not decided
		wantErr(t, "the holder", l.Check(t.Context()), sqllock.ErrLost)
		wantErr(t, "the other lock of its session", second.Check(t.Context()), sqllock.ErrLost)
		if err := tx.Commit(); err == nil {
			t.Error("the holder could commit after Break")
		}
	})
}

// operated is a backend with what an operator needs of it.
type operated struct {
	name string
	sqllock.Breaker
	breakHolder func(context.Context, *sql.DB, sqllock.Holder) error
	db          *sql.DB
}

func operatedMySQL(t *testing.T, s *testdb.Server) []operated {
	t.Helper()
	db := lockTable(t, s, "MyISAM")
	n, l := mysqlnamed.New(), table.New(time.Hour)
	return []operated{{"mysqlnamed", n, n.BreakHolder, db}, {"table", l, l.BreakHolder, db}}
}

func operatedPG(t *testing.T) []operated {
	t.Helper()
	db := pgLockTable(t, postgres(t))
	a, l := pgadvisory.New(), pgtable.New(time.Hour)
	return []operated{{"pgadvisory", a, a.BreakHolder, db}, {"pgtable", l, l.BreakHolder, db}}
}

// TestBreakHolder, on MySQL and MariaDB.
func TestBreakHolder(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) { testBreakHolder(t, operatedMySQL(t, s)) })
}

func TestPGBreakHolder(t *testing.T) {
	t.Parallel()
	testBreakHolder(t, operatedPG(t))
}

// testBreakHolder: who was shown is ended, and nobody who has come after.
func testBreakHolder(t *testing.T, all []operated) {
	for _, b := range all {
		t.Run(b.name, func(t *testing.T) {
			k := sqllock.New(b.Breaker)
			name := lockName("holder")
			first, second := conn(t, b.db), conn(t, b.db)
			l := acquire(t, k, first, name)
			seen, err := k.Holder(t.Context(), b.db, name)
			if err != nil {
				t.Fatal(err)
			}
			release(t, l)
			wantErr(t, "BreakHolder of what is free", b.breakHolder(t.Context(), b.db, seen), sqllock.ErrNotHeld)

			newer := acquire(t, k, second, name)
			err = b.breakHolder(t.Context(), b.db, seen)
			wantErr(t, "BreakHolder where another one has it", err, sqllock.ErrNotHeld)
			if err != nil && !strings.Contains(err.Error(), fmt.Sprint(seen.Session)) {
				t.Errorf("the error does not name session %d: %v", seen.Session, err)
			}
			if err := newer.Check(t.Context()); err != nil {
				t.Errorf("who was not meant: %v", err)
			}
			if err := first.PingContext(t.Context()); err != nil {
				t.Errorf("who had let go: %v", err)
			}
			if seen, err = k.Holder(t.Context(), b.db, name); err != nil {
				t.Fatal(err)
			}
			if _, leases := b.Breaker.(sqllock.Leaser); leases {
				if err := newer.Extend(t.Context(), 2*time.Hour); err != nil { // it is the same grant
					t.Error(err)
				}
			}
			if err := b.breakHolder(t.Context(), b.db, seen); err != nil {
				t.Errorf("BreakHolder: %v", err)
			}
			wantErr(t, "who was meant", newer.Check(t.Context()), sqllock.ErrLost)
			release(t, acquire(t, k, first, name))
			wantErr(t, "BreakHolder again", b.breakHolder(t.Context(), b.db, seen), sqllock.ErrNotHeld)
		})
	}
}

// TestBreakHolderOfALease: a later grant of the same session is another one, and a row
// that the dead have left is removed if it is the one that was seen.
func TestBreakHolderOfALease(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) { testBreakHolderOfALease(t, operatedMySQL(t, s)[1]) })
}

func TestPGBreakHolderOfALease(t *testing.T) {
	t.Parallel()
	testBreakHolderOfALease(t, operatedPG(t)[1])
}

func testBreakHolderOfALease(t *testing.T, b operated) {
	k := sqllock.New(b.Breaker)
	c := conn(t, b.db)
	name := lockName("job") // the doorbell is one of the whole server
	see := func() sqllock.Holder {
		t.Helper()
		h, err := k.Holder(t.Context(), b.db, name)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	l := acquire(t, k, c, name)
	seen := see()
	release(t, l)
	l = acquire(t, k, c, name)
	wantErr(t, "BreakHolder of an earlier grant", b.breakHolder(t.Context(), b.db, seen), sqllock.ErrNotHeld)
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("the later grant: %v", err)
	}
	h := see()
	if _, err := b.Break(t.Context(), b.db, name); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "BreakHolder of what was broken", b.breakHolder(t.Context(), b.db, h), sqllock.ErrNotHeld)

	do(t, b.db, fmt.Sprintf("INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired,token,holder) VALUES ('%s',%d,1,1,1,7,'a')", name, 999999))
	dead := see()
	if dead.Alive {
		t.Fatalf("nobody is alive: %+v", dead)
	}
	other := dead
	other.Token++
	wantErr(t, "BreakHolder of another row", b.breakHolder(t.Context(), b.db, other), sqllock.ErrNotHeld)
	if err := b.breakHolder(t.Context(), b.db, dead); err != nil {
		t.Errorf("BreakHolder of the dead: %v", err)
	}
	_, err := k.Holder(t.Context(), b.db, name)
	wantErr(t, "Holder after that", err, sqllock.ErrNotHeld)
}

// TestListNamed: on a server that keeps a record, and one that does not.
func TestListNamed(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := schema(t, s)
		c := conn(t, db)
		b := mysqlnamed.New()
		k := sqllock.New(b)
		name := lockName("list")
		l := acquire(t, k, c, name)
		all, err := b.List(t.Context(), db)
		if s.Kind == testdb.MariaDB {
			wantErr(t, "List", err, sqllock.ErrUnsupported)
			if err != nil && !strings.Contains(err.Error(), "performance_schema=ON") {
				t.Errorf("the error does not say what to set: %v", err)
			}
			release(t, l)
			return
		}
		mine := slices.IndexFunc(all, func(h sqllock.Holder) bool { return h.Key == strings.ToLower(name) })
		if err != nil || mine < 0 {
			t.Fatalf("List: %+v, %v", all, err)
		}
		h, err := k.Holder(t.Context(), db, name)
		if got := all[mine]; err != nil || got.Session != h.Session || got.User != h.User || got.Host != h.Host || !got.Alive || got.Since.IsZero() {
			t.Errorf("List tells of %+v, Holder of %+v, %v", got, h, err)
		}
		weak := user(t, s, db)
		_, err = b.List(t.Context(), weak)
		wantErr(t, "List without the privilege", err, sqllock.ErrPermission)
		release(t, l)
		all, err = b.List(t.Context(), db)
		if err != nil || slices.ContainsFunc(all, func(h sqllock.Holder) bool { return h.Key == strings.ToLower(name) }) {
			t.Errorf("after the release: %+v, %v", all, err)
		}
	})
}

// TestListNamedWhereRecorded: MariaDB keeps a record where it is told to.
func TestListNamedWhereRecorded(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.MariaDB, "--performance-schema=ON", "--performance-schema-instrument=wait/lock/metadata/sql/mdl=ON")
	db := open(t, s, func(c *mysql.Config) { c.DBName = "mysql" })
	b := mysqlnamed.New()
	l := acquire(t, sqllock.New(b), conn(t, db), "Job")
	all, err := b.List(t.Context(), db)
	if err != nil || len(all) != 1 || all[0].Key != "Job" || all[0].Session != l.Grant().Session || all[0].Host == "" {
		t.Errorf("List: %+v, %v", all, err)
	}
	release(t, l)
	do(t, db, "UPDATE performance_schema.setup_instruments SET enabled='NO' WHERE name='wait/lock/metadata/sql/mdl'")
	_, err = b.List(t.Context(), db)
	wantErr(t, "List without the instrument", err, sqllock.ErrUnsupported)
	if err != nil && !strings.Contains(err.Error(), "UPDATE performance_schema.setup_instruments") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

// TestPGList: by name where it is given, and by number.
func TestPGList(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	b := pgadvisory.New()
	k := sqllock.New(b)
	if all, err := b.List(t.Context(), db, "job"); err != nil || len(all) != 0 {
		t.Errorf("List of nothing: %+v, %v", all, err)
	}
	one, two := conn(t, db), conn(t, db)
	acquire(t, k, one, `it's a \job`)
	acquire(t, k, one, "readers", sqllock.Shared())
	acquire(t, k, two, "readers", sqllock.Shared())
	do(t, two, "SELECT pg_advisory_lock(-5)")
	do(t, two, "SELECT pg_advisory_lock(1,2)") // of two numbers
	all, err := b.List(t.Context(), db, `it's a \job`, "readers", "nobody")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range all {
		if h.Host == "" || h.User == "" || h.Since.IsZero() || !h.Alive {
			t.Errorf("List tells of %+v", h)
		}
		got = append(got, fmt.Sprint(h.Key, " ", map[int64]string{pgPID(t, one): "one", pgPID(t, two): "two"}[h.Session]))
	}
	slices.Sort(got)
	if want := []string{"-5 two", `it's a \job one`, "readers one", "readers two"}; !slices.Equal(got, want) {
		t.Errorf("List: got %q, want %q", got, want)
	}
	// When it returns, the lock is free.
	other := conn(t, db)
	for range 20 {
		c := conn(t, db)
		acquire(t, k, c, "job")
		if err := b.BreakHolder(t.Context(), db, sqllock.Holder{Key: "job", Session: pgPID(t, c)}); err != nil {
			t.Fatal(err)
		}
		atOnce(t, k, other, "job")
	}
	// One of those who share it, and no other.
	h := sqllock.Holder{Key: "readers", Session: pgPID(t, one)}
	if err := b.BreakHolder(t.Context(), db, h); err != nil {
		t.Error(err)
	}
	all, err = b.List(t.Context(), db)
	if err != nil || len(all) != 2 || slices.ContainsFunc(all, func(o sqllock.Holder) bool { return o.Session == h.Session }) {
		t.Errorf("after BreakHolder: %+v, %v", all, err)
	}
	if err := b.BreakHolder(t.Context(), nil, h); err == nil || errors.Is(err, sqllock.ErrNotHeld) {
		t.Errorf("without a pool: %v", err)
	}
}
