package integration

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// names lists what the lock table has.
func names(t *testing.T, db *sql.DB) []string {
	t.Helper()
	return listSQL(t, db, "SELECT name FROM shared_locks ORDER BY name")
}

func wantNames(t *testing.T, db *sql.DB, want ...string) {
	t.Helper()
	if got := names(t, db); !slices.Equal(got, want) {
		t.Errorf("the lock table has %q, want %q", got, want)
	}
}

// end has the lease of name be over, as if its time had passed.
func end(t *testing.T, db *sql.DB, name string) {
	t.Helper()
	do(t, db, "UPDATE shared_locks SET ttl=-1 WHERE name=?", name)
}

// TestSpellings: two names that differ in letter case are one lock, as they are
// one row, though MariaDB has two doorbells for them.
func TestSpellings(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		suffix := lockName("")
		upper, lower := "Job"+suffix, "job"+suffix
		one, two := conn(t, db), conn(t, db)
		var told events
		k := sqllock.New(table.New(time.Hour), told.observe())

		// A try, by another session and by the same.
		l := acquire(t, k, one, upper)
		_, err := k.TryLock(t.Context(), two, lower)
		wantErr(t, "TryLock of the other spelling", err, sqllock.ErrBusy)
		wantHeld(t, l)
		wantNames(t, db, upper)
		h, err := k.Holder(t.Context(), db, lower)
		if err != nil || h.Session != l.Grant().Session && l.Grant().Session != 0 || h.Key != upper || !h.Alive || h.Token != l.Token() {
			t.Errorf("Holder by the other spelling: %+v, %v", h, err)
		}

		// A wait, and hand-offs to and fro.
		for range 3 {
			waiting := granting(t, k, two, lower)
			waiters(t, db, upper, 1) // on the doorbell of the holder
			stillWaits(t, waiting)
			wantHeld(t, l)
			release(t, l)
			l = granted(t, waiting)
			wantHeld(t, l)
			wantNames(t, db, lower)
			one, two, upper, lower = two, one, lower, upper
		}
		told.want(t, 0)

		// A holder that has died.
		died := sessionID(t, one)
		waiting := granting(t, k, two, lower)
		waiters(t, db, upper, 1)
		if err := mysqlKill(t.Context(), db, died); err != nil {
			t.Fatal(err)
		}
		next := granted(t, waiting)
		told.want(t, died, sqllock.TakenOver)
		wantErr(t, "Check of the dead holder", l.Check(t.Context()), sqllock.ErrLost)
		wantHeld(t, next)
		wantNames(t, db, lower)
		release(t, next)
		wantNames(t, db)

		// One that hangs.
		hung := conn(t, db)
		l = acquire(t, k, hung, upper, sqllock.TTL(time.Second))
		session := sessionID(t, hung)
		next = acquire(t, k, two, lower)
		told.want(t, session, sqllock.Killed, sqllock.TakenOver)
		wantErr(t, "Check of the holder that hung", l.Check(t.Context()), sqllock.ErrLost)
		wantHeld(t, next)
		wantNames(t, db, lower)
		release(t, next)
		wantNames(t, db)
	})
}

// TestSpellingsOnOneSession: the second spelling is re-entry.
func TestSpellingsOnOneSession(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		suffix := lockName("")
		c := conn(t, db)
		k := sqllock.New(table.New(time.Hour))
		l := acquire(t, k, c, "Job"+suffix)
		_, err := k.TryLock(t.Context(), c, "job"+suffix)
		wantErr(t, "TryLock of the other spelling", err, sqllock.ErrHeld)
		wantNames(t, db, "Job"+suffix)
		if n := ask[int](t, c, "SELECT COALESCE(IS_USED_LOCK(?),0)", "Job"+suffix); n == 0 {
			t.Error("the doorbell of the holder is free")
		}
		wantHeld(t, l)
		release(t, l)
		wantNames(t, db)
	})
}

// TestSpellingsExclude: sessions that spell a name in two ways exclude each other.
func TestSpellingsExclude(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		const rounds = 10
		suffix := lockName("")
		spellings := []string{"Job" + suffix, "job" + suffix, "JOB" + suffix, "jOB" + suffix}
		k := sqllock.New(table.New(time.Hour))
		var conns []*sql.Conn
		for range spellings {
			conns = append(conns, conn(t, db))
		}
		exclusion(t, rounds, len(spellings), func(i int, locked bool, increment func(*sql.Conn) error) error {
			return goUnder(t, k, conns[i], spellings[i], locked, increment)
		})
		wantNames(t, db)
	})
}

// TestPHPSpellings: PHP's names are what the table takes for those of Go, and its
// doorbells are others. On the table è is e, and a space at the end is none.
func TestPHPSpellings(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		for _, test := range []struct{ name, php, ours string }{
			{"accent", "café", "cafe"},
			{"letter case", "Cafe", "cafe"},
			{"space at the end", "cafe ", "cafe"},
		} {
			t.Run(test.name, func(t *testing.T) {
				prefix := lockName("") // may be of either letter case
				theirs, ours := prefix+test.php, prefix+test.ours
				php, c := newPHP(t, db), conn(t, db)
				var told events
				k := sqllock.New(table.New(time.Hour), told.observe())

				php.locked(t, theirs, 3600)
				_, err := k.TryLock(t.Context(), c, ours)
				wantErr(t, "TryLock", err, sqllock.ErrBusy)
				h, err := k.Holder(t.Context(), db, ours)
				if err != nil || h.Key != theirs || h.Session != php.session || !h.Alive {
					t.Errorf("Holder: %+v, %v; want PHP's session %d", h, err, php.session)
				}
				waiting := granting(t, k, c, ours)
				waiters(t, db, theirs, 1)
				stillWaits(t, waiting)
				php.unlocked(t, theirs)
				l := granted(t, waiting)
				wantHeld(t, l)
				wantNames(t, db, ours)
				release(t, l)
				told.want(t, 0)

				// PHP is about to lock: the row is left to it.
				if inserted, err := php.insert(t.Context(), theirs, 3600); !inserted {
					t.Fatalf("PHP's INSERT: %v, %v", inserted, err)
				}
				_, err = k.TryLock(t.Context(), c, ours)
				wantErr(t, "TryLock", err, sqllock.ErrBusy)
				if _, err := php.ring(t.Context(), theirs); err != nil {
					t.Fatalf("PHP: %v", err)
				}

				// PHP dies.
				php.ends(t, db)
				l = acquire(t, k, c, ours)
				told.want(t, php.session, sqllock.TakenOver)
				wantNames(t, db, ours)
				release(t, l)

				// PHP hangs.
				php = newPHP(t, db)
				php.locked(t, theirs, 3600)
				end(t, db, theirs)
				l = acquire(t, k, c, ours)
				told.want(t, php.session, sqllock.Killed, sqllock.TakenOver)
				wantNames(t, db, ours)
				release(t, l)

				// PHP is swept when it is dead, and broken when it is not.
				php = newPHP(t, db)
				php.locked(t, theirs, 3600)
				b := table.New(time.Hour)
				if n, err := b.Sweep(t.Context(), db); n != 0 || err != nil {
					t.Errorf("Sweep while PHP holds: %d, %v", n, err)
				}
				broken(t, k, db, ours, php.session)
				wantNames(t, db)
				php = newPHP(t, db)
				php.locked(t, theirs, 3600)
				php.ends(t, db)
				if n, err := b.Sweep(t.Context(), db); n != 1 || err != nil {
					t.Errorf("Sweep after PHP's death: %d, %v", n, err)
				}
			})
		}
	})
}

// TestPHPStealsOtherSpelling pins a limit: PHP asks for the proof of life under
// its own spelling, and so takes the row of a holder with another one, in Go as
// in PHP. The holder is told at its next check. (On MySQL letter case is none.)
func TestPHPStealsOtherSpelling(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		for _, test := range []struct {
			theirs string
			steals bool
		}{
			{"café", true},
			{"cafe ", true},
			{"Cafe", s.Kind == testdb.MariaDB},
		} {
			prefix := lockName("")
			php := newPHP(t, db)
			l := acquire(t, sqllock.New(table.New(time.Hour)), conn(t, db), prefix+"cafe")
			err := php.lock(t.Context(), prefix+test.theirs, 0, 3600)
			if !test.steals {
				wantErr(t, "PHP's lock of "+test.theirs, err, errPHPTimeout)
				release(t, l)
				continue
			}
			if err != nil {
				t.Errorf("PHP's lock of %q: %v", test.theirs, err)
				continue
			}
			wantErr(t, "Check of the holder whose row PHP took", l.Check(t.Context()), sqllock.ErrLost, sqllock.ErrSessionGone)
			php.unlocked(t, prefix+test.theirs)
			wantNames(t, db)
		}
	})
}

// TestNamesOfTheirOwn: what Key makes of odd names are locks of their own, and
// rows of their own.
func TestNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		prefix := lockName("")
		long := prefix + strings.Repeat("n", 64-len(prefix))
		all := []string{
			prefix, prefix + " ", prefix + "  ", long, long + "n", long + "nn", long[:63], long[:63] + " ",
			prefix + "🔒", prefix + "🔑", prefix + "cafe", prefix + "café", prefix + "cafe\u0301", prefix + "caf\xe9", prefix + "cafè",
			prefix + "ß", prefix + "ss", prefix + "\x00", prefix + "a\x00b", prefix + "a", prefix + "%", prefix + "_", prefix + `\`, prefix + `'`, prefix + `"`, prefix + "`",
		}
		k := sqllock.New(table.New(time.Hour))
		one, two := conn(t, db), conn(t, db)
		locks := make([]*sqllock.Lock, 0, len(all))
		for _, name := range all {
			l, err := k.TryLock(t.Context(), one, name)
			if err != nil {
				t.Errorf("TryLock(%q): %v", name, err)
				continue
			}
			locks = append(locks, l)
		}
		wantRows(t, db, len(all))
		if found, err := table.New(time.Hour).List(t.Context(), db); err != nil || len(found) != len(all) {
			t.Errorf("List: %d locks, %v; want %d", len(found), err, len(all))
		}
		for _, l := range locks {
			wantHeld(t, l)
			_, err := k.TryLock(t.Context(), two, l.Name())
			wantErr(t, "TryLock by another session", err, sqllock.ErrBusy)
			h, err := k.Holder(t.Context(), db, l.Name())
			if err != nil || h.Key != l.Grant().Key || h.Token != l.Token() {
				t.Errorf("Holder(%q): %+v, %v", l.Name(), h, err)
			}
		}
		for i, l := range locks {
			release(t, l)
			wantRows(t, db, len(all)-i-1)
			again, err := k.TryLock(t.Context(), two, l.Name())
			if err != nil {
				t.Errorf("TryLock(%q) after its release: %v", l.Name(), err)
				continue
			}
			release(t, again)
		}
		wantRows(t, db, 0)
	})
}

// TestTableUnderDSNs: what the settings of a session or a DSN change does not
// change what any of the statements does.
func TestTableUnderDSNs(t *testing.T) {
	t.Parallel()
	mode := func(mode string) func(*mysql.Config) {
		return func(c *mysql.Config) { c.Params = map[string]string{"sql_mode": "'" + mode + "'"} }
	}
	for _, dsn := range []struct {
		name   string
		change func(*mysql.Config)
	}{
		{"ANSI_QUOTES", mode("ANSI_QUOTES")},
		{"NO_BACKSLASH_ESCAPES", mode("NO_BACKSLASH_ESCAPES")},
		{"TRADITIONAL", mode("TRADITIONAL")},
		{"ANSI and all", mode("ANSI,NO_BACKSLASH_ESCAPES,TRADITIONAL,NO_UNSIGNED_SUBTRACTION,HIGH_NOT_PRECEDENCE,PAD_CHAR_TO_FULL_LENGTH")},
		{"no mode", mode("")},
		{"interpolateParams", func(c *mysql.Config) { c.InterpolateParams = true }},
		{"clientFoundRows", func(c *mysql.Config) { c.ClientFoundRows = true }},
		{"multiStatements", func(c *mysql.Config) { c.MultiStatements = true }},
		{"parseTime", func(c *mysql.Config) { c.ParseTime = true }},
		{"latin1", func(c *mysql.Config) { c.Collation = "latin1_swedish_ci" }},
		{"utf8mb4_bin", func(c *mysql.Config) { c.Collation = "utf8mb4_bin" }},
	} {
		t.Run(dsn.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, s *testdb.Server) {
				for _, engine := range engines {
					t.Run(engine, func(t *testing.T) {
						db := lockTable(t, s, engine, dsn.change)
						tenancies(t, table.New(time.Hour), db)
						tenancies(t, table.New(time.Hour, table.WithPool(db)), db)
					})
				}
			})
		})
	}
}

// tenancies does with a lock what can be done.
func tenancies(t *testing.T, b *table.Backend, db *sql.DB) {
	name := lockName(`it's "quoted" \ and % and ?`)
	var told events
	k := sqllock.New(b, told.observe())
	one, two, three := conn(t, db), conn(t, db), conn(t, db)

	l := acquire(t, k, one, name)
	_, err := k.TryLock(t.Context(), one, name)
	wantErr(t, "re-entry", err, sqllock.ErrHeld)
	_, err = k.TryLock(t.Context(), two, name)
	wantErr(t, "TryLock", err, sqllock.ErrBusy)
	for _, ttl := range []time.Duration{2 * time.Hour, 2 * time.Hour, 3 * time.Hour} {
		if err := l.Extend(t.Context(), ttl); err != nil {
			t.Fatalf("Extend to %v: %v", ttl, err)
		}
	}
	if err := l.AssertTTL(t.Context(), 2*time.Hour+time.Minute); err != nil {
		t.Errorf("AssertTTL: %v", err)
	}
	wantErr(t, "AssertTTL of more", l.AssertTTL(t.Context(), 4*time.Hour), sqllock.ErrTTLTooShort)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	_, err = k.Lock(ctx, two, name)
	cancel()
	wantErr(t, "Lock that gives up", err, sqllock.ErrBusy, context.DeadlineExceeded)
	waiting := granting(t, k, two, name)
	waiters(t, db, name, 1)
	stillWaits(t, waiting)
	release(t, l)
	stale := granted(t, waiting)
	if stale.Token() <= l.Token() {
		t.Errorf("token %d after %d", stale.Token(), l.Token())
	}
	told.want(t, 0)

	session := sessionID(t, two)
	end(t, db, name)
	if _, err := two.ExecContext(t.Context(), "DO 1"); err != nil {
		t.Fatalf("a holder whose time is over should live until somebody wants the lock: %v", err)
	}
	l = acquire(t, k, three, name)
	told.want(t, session, sqllock.Killed, sqllock.TakenOver)
	wantErr(t, "Release by the stale holder", stale.Release(t.Context()), sqllock.ErrLost)
	if l.Token() <= stale.Token() {
		t.Errorf("token %d after %d", l.Token(), stale.Token())
	}

	session = sessionID(t, three)
	all, err := b.List(t.Context(), db)
	if err != nil || len(all) != 1 || all[0].Key != name || all[0].Session != session || !all[0].Alive ||
		all[0].Token != l.Token() || all[0].Process == "" || all[0].Expires.Sub(all[0].Since) != time.Hour+time.Second {
		t.Errorf("List: %+v, %v; want session %d", all, err, session)
	}
	if n, err := b.Sweep(t.Context(), db); n != 0 || err != nil {
		t.Errorf("Sweep of a lock that is held: %d, %v", n, err)
	}
	broken(t, k, db, name, session)
	wantErr(t, "Check after Break", l.Check(t.Context()), sqllock.ErrLost)
	if _, err := k.Break(t.Context(), db, name); !errors.Is(err, sqllock.ErrNotHeld) {
		t.Errorf("Break of a lock that is free: %v, want ErrNotHeld", err)
	}

	gone := conn(t, db)
	session = sessionID(t, gone)
	l = acquire(t, k, gone, name)
	if err := mysqlKill(t.Context(), db, session); err != nil {
		t.Fatal(err)
	}
	sessionEnds(t, db, session)
	all, err = b.List(t.Context(), db)
	if err != nil || len(all) != 1 || all[0].Session != session || all[0].Alive {
		t.Errorf("List after the death of session %d: %+v, %v", session, all, err)
	}
	if n, err := b.Sweep(t.Context(), db); n != 1 || err != nil {
		t.Errorf("Sweep: %d, %v", n, err)
	}
	wantErr(t, "Release by a dead session", l.Release(t.Context()), sqllock.ErrLost)
	wantRows(t, db, 0)
}
