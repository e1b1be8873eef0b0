package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/locktest"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

func request(key string) sqllock.Request {
	return sqllock.Request{Key: key, Observe: func(sqllock.Event) {}}
}

// group asks for n names that are as long as they can be.
func group(n int) []sqllock.Request {
	reqs := make([]sqllock.Request, n)
	prefix := lockName(strings.Repeat("x", 40))
	for i := range reqs {
		reqs[i] = request(fmt.Sprintf("%s-%04d", prefix, i))
	}
	return reqs
}

// freed is what RELEASE_LOCK says on the session.
func freed(t *testing.T, c *sql.Conn, key string) sql.NullInt64 {
	t.Helper()
	return ask[sql.NullInt64](t, c, "SELECT RELEASE_LOCK(?)", key)
}

// once fails the test unless the session holds each of reqs exactly once. It holds
// none afterwards.
func once(t *testing.T, c *sql.Conn, reqs ...sqllock.Request) {
	t.Helper()
	for i, req := range reqs {
		first, second := freed(t, c, req.Key), freed(t, c, req.Key)
		if first.Int64 != 1 || second.Valid {
			t.Errorf("number %d of %d: RELEASE_LOCK says %v, and then %v", i, len(reqs), first, second)
		}
	}
}

// unheld fails the test if any session holds one of reqs.
func unheld(t *testing.T, db *sql.DB, reqs ...sqllock.Request) {
	t.Helper()
	keys := make([]any, len(reqs))
	for i, req := range reqs {
		keys[i] = req.Key
	}
	query := "SELECT CONCAT_WS(',',''" + strings.Repeat(",IS_USED_LOCK(?)", len(keys)) + ")"
	if by := ask[string](t, db, query, keys...); by != "" {
		t.Errorf("some of %d locks are held by the sessions %s", len(keys), by)
	}
}

// TestGroupOnce: the server evaluates each function of the nested conditionals once
// at most, whichever name is not to be had, and for whatever reason.
func TestGroupOnce(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		c, other := conn(t, db), conn(t, db)
		b := mysqlnamed.New()
		for _, n := range []int{1, 2, 3, 16, 17, 32, 64} {
			reqs := group(n)
			grants, err := b.AcquireAll(t.Context(), c, reqs)
			if err != nil || len(grants) != n || grants[n-1].Session != sessionID(t, c) {
				t.Fatalf("AcquireAll of %d: %+v, %v", n, grants, err)
			}
			once(t, c, reqs...)
			for i, taken := range reqs {
				for _, holder := range []*sql.Conn{c, other} {
					if v := ask[int](t, holder, "SELECT GET_LOCK(?,0)", taken.Key); v != 1 {
						t.Fatalf("GET_LOCK: %d", v)
					}
					_, err := b.AcquireAll(t.Context(), c, reqs)
					wantErr(t, fmt.Sprintf("AcquireAll where number %d is taken", i), err, sqllock.ErrBusy)
					once(t, holder, taken)
					unheld(t, db, reqs...)
				}
			}
		}
	})
}

// TestGroupSpellings: two names that are one lock on the server can't be had together.
func TestGroupSpellings(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		c := conn(t, db)
		suffix := lockName("")
		reqs := []sqllock.Request{request("job" + suffix), request("other" + suffix), request("Job" + suffix)}
		_, err := mysqlnamed.New().AcquireAll(t.Context(), c, reqs)
		if s.Kind == testdb.MariaDB && err == nil {
			once(t, c, reqs...)
		} else {
			wantErr(t, "AcquireAll of two spellings", err, sqllock.ErrBusy)
		}
		unheld(t, db, reqs...)
	})
}

func TestGroupOddNames(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s, func(c *mysql.Config) {
			c.Collation = "gbk_chinese_ci"
			c.Params = map[string]string{"sql_mode": "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'"}
		})
		c := conn(t, db)
		var reqs []sqllock.Request
		for _, name := range locktest.OddNames() {
			key, err := sqllock.Key(lockName(""), name)
			if err != nil {
				t.Fatal(err)
			}
			reqs = append(reqs, request(key))
		}
		b := mysqlnamed.New()
		grants, err := b.AcquireAll(t.Context(), c, reqs)
		if err != nil {
			t.Fatal(err)
		}
		held, err := b.Watch(t.Context(), db, grants)
		for i := range held {
			if !held[i] {
				t.Errorf("%q is not held", reqs[i].Key)
			}
		}
		if err != nil || len(held) != len(reqs) {
			t.Errorf("Watch: %d of %d, %v", len(held), len(reqs), err)
		}
		once(t, c, reqs...)
	})
}

// TestGroupRoundTrips counts what the calls for many locks send.
func TestGroupRoundTrips(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, writes := counted(t, s, func(*mysql.Config) {})
		c, other := conn(t, db), conn(t, db)
		b := mysqlnamed.New()
		sends := func(what string, want int, f func() error) {
			t.Helper()
			asked, sent := questions(t, c), writes.Load()
			err := f()
			if got := writes.Load() - sent; got != int64(want) {
				t.Errorf("%s sent %d packets, want %d", what, got, want)
			}
			if got := questions(t, c) - asked - 1; got != want {
				t.Errorf("%s were %d questions, want %d", what, got, want)
			}
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		all := func(reqs []sqllock.Request) func() error {
			return func() error { _, err := b.AcquireAll(t.Context(), c, reqs); return err }
		}
		look := group(1) // the look at the server
		if err := all(look)(); err != nil {
			t.Fatal(err)
		}
		for n, want := range map[int]int{0: 0, 1: 1, 2: 1, 16: 1, 17: 2, 64: 4} {
			sends(fmt.Sprintf("AcquireAll of %d", n), want, all(group(n)))
		}
		reqs := group(120)
		if v := ask[int](t, other, "SELECT GET_LOCK(?,0)", reqs[119].Key); v != 1 {
			t.Fatalf("GET_LOCK: %d", v)
		}
		busy := func(reqs []sqllock.Request) func() error {
			return func() error {
				if err := all(reqs)(); !errors.Is(err, sqllock.ErrBusy) {
					return fmt.Errorf("got %w, want ErrBusy", err)
				}
				return nil
			}
		}
		sends("AcquireAll of 16 with the last taken", 1, busy(reqs[104:]))
		sends("AcquireAll of 120 with the last taken", 8+2, busy(reqs))
		unheld(t, db, reqs[:119]...)
		grants, err := b.AcquireAll(t.Context(), c, group(101))
		if err != nil {
			t.Fatal(err)
		}
		watch := func(grants []sqllock.Grant) func() error {
			return func() error { _, err := b.Watch(t.Context(), c, grants); return err }
		}
		sends("Watch of 100", 1, watch(grants[:100]))
		sends("Watch of 101", 2, watch(grants))
		sends("Pass", 0, func() error { _, err := b.Pass(t.Context(), c, grants[0], reqs[0]); return err })
	})
}

// TestGroupInterrupted has KILL QUERY hit the statement: whatever comes of it, the
// session has all of the locks once, or none, or is to be closed.
func TestGroupInterrupted(t *testing.T) {
	t.Parallel()
	const rounds = 300
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		killer := conn(t, db)
		c := conn(t, db)
		b := mysqlnamed.New()
		reqs := group(32)
		var outcomes struct{ granted, interrupted, gone int }
		for range rounds {
			id, done := sessionID(t, c), make(chan struct{})
			go func() {
				defer close(done)
				time.Sleep(rand.N(3 * time.Millisecond))
				_, _ = killer.ExecContext(context.WithoutCancel(t.Context()), fmt.Sprintf("KILL QUERY %d", id))
			}()
			_, err := b.AcquireAll(t.Context(), c, reqs)
			<-done
			switch {
			case err == nil:
				outcomes.granted++
				if n := ask[int](t, c, "SELECT RELEASE_ALL_LOCKS()"); n != len(reqs) {
					t.Errorf("the session had %d locks, or references to them, of %d", n, len(reqs))
				}
			case errors.Is(err, sqllock.ErrSessionGone):
				outcomes.gone++
				if err := mysqlKill(t.Context(), db, id); err != nil {
					t.Fatal(err)
				}
				sessionEnds(t, db, id)
				_ = c.Close()
				c = conn(t, db)
			case errors.Is(err, sqllock.ErrInterrupted), errors.Is(err, sqllock.ErrBusy):
				outcomes.interrupted++
			default:
				t.Fatalf("AcquireAll: %v", err)
			}
			unheld(t, db, reqs...)
		}
		t.Logf("%+v", outcomes)
		if outcomes.granted == rounds {
			t.Error("no statement was hit")
		}
	})
}

// TestGroupOfANameThatIsTooLong: what comes before it is not kept.
func TestGroupOfANameThatIsTooLong(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		c := conn(t, db)
		reqs := group(20)
		reqs[18].Key = strings.Repeat("x", 200)
		_, err := mysqlnamed.New().AcquireAll(t.Context(), c, reqs)
		wantErr(t, "AcquireAll", err, sqllock.ErrInvalidName)
		if errors.Is(err, sqllock.ErrSessionGone) {
			id := sessionID(t, c)
			if err := mysqlKill(t.Context(), db, id); err != nil {
				t.Fatal(err)
			}
			sessionEnds(t, db, id)
		}
		unheld(t, db, append(reqs[:18], reqs[19])...)
	})
}

// TestWatchOfATable: a grant is lost with its doorbell, its row, its token, or its
// time, and when it has been condemned.
func TestWatchOfATable(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		c := conn(t, db)
		b := table.New(time.Hour)
		names := []string{"kept", "no-doorbell", "no-row", "other-token", "over", "condemned", "other-session", "Spelt"}
		grants := make([]sqllock.Grant, len(names))
		for i, name := range names {
			var err error
			names[i] = lockName(name)
			if grants[i], err = b.Acquire(t.Context(), c, request(names[i])); err != nil {
				t.Fatal(err)
			}
		}
		freed(t, c, names[1])
		do(t, db, "DELETE FROM shared_locks WHERE name=?", names[2])
		do(t, db, "UPDATE shared_locks SET token=token+1 WHERE name=?", names[3])
		end(t, db, names[4])
		do(t, db, "UPDATE shared_locks SET lock_acquired=9 WHERE name=?", names[5])
		do(t, db, "UPDATE shared_locks SET connection_id=connection_id+1 WHERE name=?", names[6])
		held, err := b.Watch(t.Context(), db, grants)
		if err != nil {
			t.Fatal(err)
		}
		for i, g := range grants {
			if want := i == 0 || i == 7; held[i] != want {
				t.Errorf("%s: held is %t", names[i], held[i])
			}
			if err := b.Check(t.Context(), c, g); held[i] != (err == nil) {
				t.Errorf("%s: held is %t, and Check says %v", names[i], held[i], err)
			}
			next, err := b.Pass(t.Context(), c, g, request(g.Key))
			if held[i] != (err == nil) {
				t.Errorf("%s: held is %t, and Pass says %v", names[i], held[i], err)
			}
			if err != nil {
				wantErr(t, "Pass", err, sqllock.ErrLost, sqllock.ErrSessionGone)
			} else if err := b.Check(t.Context(), c, next); err != nil {
				t.Errorf("%s: Check after Pass: %v", names[i], err)
			}
		}
	})
}

// TestPassRow: what becomes of the row.
func TestPassRow(t *testing.T) {
	t.Parallel()
	onEachEngine(t, func(t *testing.T, _ *testdb.Server, db *sql.DB) {
		c := conn(t, db)
		b := table.New(time.Hour)
		name := lockName("row")
		g, err := b.Acquire(t.Context(), c, request(name))
		if err != nil {
			t.Fatal(err)
		}
		do(t, db, "UPDATE shared_locks SET created=created-1000 WHERE name=?", name)
		next, err := b.Pass(t.Context(), c, g, sqllock.Request{Key: name, TTL: 90 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		row := ask[string](t, db, "SELECT CONCAT_WS(' ',connection_id,ttl,lock_acquired,token,UNIX_TIMESTAMP()-created<100,holder<>'') FROM shared_locks WHERE name=?", name)
		if want := fmt.Sprintf("%d 5400 1 %d 1 1", sessionID(t, c), next.Token); row != want {
			t.Errorf("the row is %q, want %q", row, want)
		}
		// A clock that has been set back.
		ahead := next
		ahead.Token += int64(time.Hour / time.Microsecond)
		do(t, db, "UPDATE shared_locks SET token=? WHERE name=?", ahead.Token, name)
		if next, err = b.Pass(t.Context(), c, ahead, request(name)); err != nil || next.Token != ahead.Token+1 {
			t.Errorf("token %d after %d, %v", next.Token, ahead.Token, err)
		}
		if err := b.Release(t.Context(), c, next); err != nil {
			t.Error(err)
		}
		last, err := b.Acquire(t.Context(), c, request(name))
		if err != nil || last.Token <= next.Token {
			t.Errorf("token %d after %d, %v", last.Token, next.Token, err)
		}
	})
}

// TestPassOfAnUnmigratedTable: without tokens, the session tells the grants apart.
func TestPassOfAnUnmigratedTable(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, engine := range engines {
			t.Run(engine, func(t *testing.T) {
				db := lockTable(t, s, engine)
				do(t, db, "ALTER TABLE shared_locks DROP COLUMN token, DROP COLUMN holder")
				c, other := conn(t, db), conn(t, db)
				b := table.New(time.Minute, table.AllowUnmigrated())
				name := lockName("unmigrated")
				g, err := b.Acquire(t.Context(), c, request(name))
				if err != nil {
					t.Fatal(err)
				}
				next, err := b.Pass(t.Context(), c, g, sqllock.Request{Key: name, TTL: time.Hour})
				if err != nil || next.Token != 0 || next.Session != sessionID(t, c) || time.Until(next.Until) < 50*time.Minute {
					t.Fatalf("%+v, %v", next, err)
				}
				_, err = b.Acquire(t.Context(), other, request(name))
				wantErr(t, "Acquire by another session", err, sqllock.ErrBusy)
				watched := func() bool {
					held, err := b.Watch(t.Context(), db, []sqllock.Grant{next})
					if err != nil {
						t.Fatal(err)
					}
					return held[0]
				}
				if !watched() {
					t.Error("Watch says that it is lost")
				}
				// Grants from before the columns were added go on.
				do(t, db, "DROP TABLE shared_locks_version")
				if err := migrations.Up(t.Context(), db, migrations.WithEngine(engine)); err != nil {
					t.Fatal(err)
				}
				if !watched() {
					t.Error("Watch says after the migration that it is lost")
				}
				if err := b.Release(t.Context(), c, next); err != nil {
					t.Error(err)
				}
				if watched() {
					t.Error("Watch says that it is held after its release")
				}
				_, err = b.Pass(t.Context(), c, next, request(name))
				wantErr(t, "Pass after the release", err, sqllock.ErrLost)
			})
		}
	})
}

// TestPassRoundTrips: one statement, whatever the engine.
func TestPassRoundTrips(t *testing.T) {
	onEachEngine(t, func(t *testing.T, s *testdb.Server, db *sql.DB) {
		name := database(t, db)
		pool, writes := counted(t, s, func(c *mysql.Config) { c.DBName, c.ClientFoundRows = name, true })
		c := conn(t, pool)
		b := table.New(time.Hour)
		grants := make([]sqllock.Grant, 101)
		for i, req := range group(len(grants)) {
			var err error
			if grants[i], err = b.Acquire(t.Context(), c, req); err != nil {
				t.Fatal(err)
			}
		}
		sent := writes.Load()
		if _, err := b.Pass(t.Context(), c, grants[0], request(grants[0].Key)); err != nil {
			t.Error(err)
		}
		if got := writes.Load() - sent; got != 1 {
			t.Errorf("Pass sent %d packets", got)
		}
		sent = writes.Load()
		held, err := b.Watch(t.Context(), c, grants)
		if err != nil || held[0] || !held[1] || !held[100] {
			t.Errorf("Watch: %v, %v", held, err)
		}
		if got := writes.Load() - sent; got != 2 {
			t.Errorf("Watch of %d sent %d packets", len(grants), got)
		}
	})
}
