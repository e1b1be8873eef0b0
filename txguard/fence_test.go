package txguard_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"
)

// The statements of a fence as they are sent; 42 is the token.
const (
	place   = "CRC32(CONCAT_WS('/',@@hostname,@@port,DATABASE()))"
	columns = " (name,token,seq,commits,session,updated) VALUES (_latin1 X'6a6f62',"
	stamp   = "session=CONNECTION_ID(),updated=UNIX_TIMESTAMP()"
	stamped = ",CONNECTION_ID(),UNIX_TIMESTAMP()) ON DUPLICATE KEY UPDATE "
	clock   = "(UNIX_TIMESTAMP()*1000000+MICROSECOND(NOW(6)))"
	added   = "seq=LAST_INSERT_ID(((seq+1)<<32)|" + place + ")>>32,commits=LEFT(CONCAT(X'id',commits),512)," + stamp

	mint  = "INSERT INTO `lock_fences`" + columns + "LAST_INSERT_ID(" + clock + "),0,''" + stamped + "token=LAST_INSERT_ID(GREATEST(token+1," + clock + "))," + stamp
	raise = "INSERT INTO `lock_fences`" + columns + "LAST_INSERT_ID(42),0,''" + stamped + "token=LAST_INSERT_ID(GREATEST(token,42))," + stamp
	note  = "INSERT INTO `lock_fences`" + columns + "0,LAST_INSERT_ID((1<<32)|" + place + ")>>32,X'id'" + stamped + added
	pass  = "UPDATE `lock_fences` SET " + added + " WHERE name=_latin1 X'6a6f62' AND token=42"
	look  = "SELECT seq,commits," + place + " p FROM `lock_fences` WHERE name=_latin1 X'6a6f62' FOR UPDATE"
	sweep = "DELETE FROM `lock_fences` WHERE name>='' AND updated<UNIX_TIMESTAMP()-604800"

	insert = "INSERT INTO `lock_fences`" // what a script knows them by
	passes = "UPDATE `lock_fences`"
)

// fencedScene has a lock on one server and a fence on another; both write into one
// log.
type fencedScene struct {
	*scene
	work  *wire
	fence *txguard.Fence
}

func newFencedScene(t *testing.T, b sqllock.Backend) *fencedScene {
	t.Helper()
	s := newScene(t, b)
	s.name = "lock: "
	work := newWire(t, "work: ", s.log)
	return &fencedScene{s, work, txguard.NewFence(work.db)}
}

// raised returns the holder, admitted with token 42.
func (s *fencedScene) raised(t *testing.T) *txguard.Fenced {
	t.Helper()
	s.work.done(insert, 42)
	f, err := s.fence.Raise(s.ctx, s.lock)
	if err != nil {
		t.Fatal(err)
	}
	s.log.clear()
	return f
}

func prefixed(prefix string, statements []string) []string {
	all := make([]string, len(statements))
	for i, s := range statements {
		all[i] = prefix + s
	}
	return all
}

func onWork(parts ...any) []string { return prefixed("work: ", lines(parts...)) }
func onLock(parts ...any) []string { return prefixed("lock: ", lines(parts...)) }

func TestRaise(t *testing.T) {
	t.Run("token of the lock", func(t *testing.T) {
		s := newFencedScene(t, &leases{})
		s.work.done(insert, 42)
		f, err := s.fence.Raise(s.ctx, s.lock)
		if err != nil || f.Token() != 42 {
			t.Errorf("got %v, %v", f, err)
		}
		s.log.sent(t, "work: "+raise)
	})
	t.Run("minted", func(t *testing.T) {
		s := newFencedScene(t, nil)
		s.done(insert, 42)
		s.work.done(insert, 42)
		f, err := s.fence.Raise(s.ctx, s.lock)
		if err != nil || f.Token() != 42 {
			t.Errorf("got %v, %v", f, err)
		}
		s.log.sent(t, lines(onLock(asked, peek, check, mint), "work: "+raise)...)
	})
	t.Run("waits for one that is about to commit", func(t *testing.T) {
		s := newFencedScene(t, &leases{})
		s.work.fails(insert, number(1205))
		s.work.fails(insert, number(1213))
		s.work.done(insert, 42)
		if _, err := s.fence.Raise(s.ctx, s.lock); err != nil {
			t.Error(err)
		}
		s.log.sent(t, onWork(raise, raise, raise)...)
	})
}

func TestRaiseNotBegun(t *testing.T) {
	for _, test := range []struct {
		name    string
		backend sqllock.Backend // nil: mysqlnamed
		prepare func(*fencedScene)
		reasons []error
		text    string
		sent    []string
	}{
		{
			"ended lock",
			&leases{},
			func(s *fencedScene) { _ = s.lock.Release(s.ctx) },
			[]error{sqllock.ErrNotHeld},
			"",
			nil,
		},
		{
			"later holder",
			&leases{},
			func(s *fencedScene) { s.work.done(insert, 43) },
			[]error{sqllock.ErrLost},
			`txguard: "job": not begun: the lock was lost: a later holder has been admitted, with token 43, and this one has 42`,
			onWork(raise),
		},
		{
			"no table",
			&leases{},
			func(s *fencedScene) { s.work.fails(insert, number(1146)) },
			[]error{sqllock.ErrNoTable, number(1146)},
			"lock_fences: run migrations.Up(ctx, db, migrations.Fences()) on that database",
			onWork(raise),
		},
		{
			"a table of another shape",
			&leases{},
			func(s *fencedScene) { s.work.fails(insert, number(1054)) },
			[]error{sqllock.ErrNoTable, number(1054)},
			"migrations.Fences()",
			onWork(raise),
		},
		{
			"no privilege",
			&leases{},
			func(s *fencedScene) { s.work.fails(insert, number(1142)) },
			[]error{sqllock.ErrPermission, number(1142)},
			"INSERT",
			onWork(raise),
		},
		{
			"no server",
			&leases{},
			func(s *fencedScene) { s.work.fails(insert, errBroke) },
			[]error{errBroke},
			"",
			onWork(raise),
		},
		{
			"ctx ends in the wait",
			&leases{},
			func(s *fencedScene) {
				s.work.at(insert, func() { s.cancel(errStop) })
				s.work.fails(insert, number(1205))
			},
			[]error{context.Canceled, errStop},
			"somebody is about to commit",
			onWork(raise),
		},
		{
			"mint in a transaction",
			nil,
			func(s *fencedScene) { s.session().set(func(s *session) { s.open = true }) },
			[]error{sqllock.ErrInTransaction},
			"",
			onLock(asked),
		},
		{
			"mint with autocommit off",
			nil,
			func(s *fencedScene) { s.autocommit = false },
			[]error{sqllock.ErrUnsupported},
			"",
			onLock(asked),
		},
		{
			"mint for a lost lock",
			nil,
			func(s *fencedScene) { s.checked(int64(0)) },
			[]error{sqllock.ErrLost},
			"",
			onLock(asked, peek, check),
		},
		{
			"mint without a table there",
			nil,
			func(s *fencedScene) { s.fails(insert, number(1146)) },
			[]error{sqllock.ErrNoTable},
			"migrations.Fences()",
			onLock(asked, peek, check, mint),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newFencedScene(t, test.backend)
			test.prepare(s)
			f, err := s.fence.Raise(s.ctx, s.lock)
			if f != nil {
				t.Error("admitted")
			}
			wantOutcome(t, err, txguard.ErrNotBegun, test.reasons...)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("the error should say %q: %v", test.text, err)
			}
			s.log.sent(t, test.sent...)
		})
	}
}

func TestFencedStatements(t *testing.T) {
	s := newFencedScene(t, nil)
	s.done(insert, 42)
	f := s.raised(t)
	s.work.works()
	s.work.done(passes, 1<<32)
	s.work.ExpectCommit()
	wantOutcome(t, f.Run(s.ctx, sell), nil)
	s.log.sent(t, lines(onWork(asked, "BEGIN", update, asked), onLock(check), onWork(pass, asked, "COMMIT", abort))...)
	if n := s.work.db.Stats().InUse; n != 0 {
		t.Errorf("%d connections of the fence's pool are in use", n)
	}
}

func TestEvidenceStatements(t *testing.T) {
	s := newFencedScene(t, nil)
	s.works()
	s.done(insert, 1<<32)
	s.ExpectCommit()
	wantOutcome(t, txguard.Run(s.ctx, s.lock, sell, txguard.WithEvidence(s.fence)), nil)
	s.log.sent(t, onLock(asked, "BEGIN", update, asked, held, note, asked, "COMMIT", abort)...)
}

func TestFencedNotBegun(t *testing.T) {
	readOnly := txguard.WithTxOptions(sql.TxOptions{ReadOnly: true})
	for _, test := range []struct {
		name    string
		prepare func(*fencedScene)
		opts    []txguard.Option
		reasons []error
		text    string
		sent    []string
	}{
		{"WithEvidence", nil, []txguard.Option{txguard.WithEvidence(txguard.NewFence(new(sql.DB)))}, nil, "fenced transactions have it already", nil},
		{"WithLockOptions", nil, []txguard.Option{txguard.WithLockOptions(sqllock.TTL(1))}, nil, "WithLockOptions is for Do and TryDo", nil},
		{"read-only", nil, []txguard.Option{readOnly}, nil, "a read-only transaction can't pass a fence", nil},
		{"an option in error", nil, []txguard.Option{txguard.MinTTL(0)}, nil, "MinTTL(0s)", nil},
		{"dead ctx", func(s *fencedScene) { s.cancel(errStop) }, nil, []error{context.Canceled, errStop}, "", nil},
		{"released lock", func(s *fencedScene) { _ = s.lock.Release(s.ctx); s.log.clear() }, nil, []error{sqllock.ErrNotHeld}, "", nil},
		{"autocommit off", func(s *fencedScene) { s.work.autocommit = false }, nil, []error{sqllock.ErrUnsupported}, "", onWork(asked)},
		{
			"all connections are dead",
			func(s *fencedScene) { s.work.setDown(driver.ErrBadConn) },
			nil,
			[]error{driver.ErrBadConn, sqllock.ErrSessionGone},
			"",
			onWork(version, version, version),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newFencedScene(t, &leases{})
			f := s.raised(t)
			if test.prepare != nil {
				test.prepare(s)
			}
			err := f.Run(s.ctx, func(context.Context, *sql.Tx) error { t.Error("the function has run"); return nil }, test.opts...)
			wantOutcome(t, err, txguard.ErrNotBegun, test.reasons...)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("the error should say %q: %v", test.text, err)
			}
			got := s.log.lines
			s.log.lines = nil
			for _, line := range got {
				if !strings.HasSuffix(line, "CLOSE") { // that of a pool, of dead ones
					s.log.add(line)
				}
			}
			s.log.sent(t, test.sent...)
			if n := s.work.db.Stats().InUse; n != 0 {
				t.Errorf("%d connections of the fence's pool are in use", n)
			}
		})
	}
	t.Run("no function", func(t *testing.T) {
		s := newFencedScene(t, &leases{})
		wantOutcome(t, s.raised(t).Run(s.ctx, nil), txguard.ErrNotBegun)
		s.log.sent(t)
	})
	t.Run("read-only with evidence", func(t *testing.T) {
		s := newFencedScene(t, &leases{})
		err := txguard.Run(s.ctx, s.lock, sell, txguard.WithEvidence(s.fence), readOnly)
		wantOutcome(t, err, txguard.ErrNotBegun)
		if want := "a read-only transaction can't write evidence"; !strings.Contains(err.Error(), want) {
			t.Errorf("the error should say %q: %v", want, err)
		}
		s.log.sent(t)
	})
}

// TestFencedDeadConnection: a connection of the pool that the server has closed is
// not the caller's concern.
func TestFencedDeadConnection(t *testing.T) {
	s := newFencedScene(t, &leases{left: time.Hour})
	f := s.raised(t)
	s.work.session().set(func(s *session) { s.dead = true })
	s.work.works()
	s.work.done(passes, 1<<32)
	s.work.ExpectCommit()
	wantOutcome(t, f.Run(s.ctx, sell, txguard.MinTTL(time.Minute)), nil)
	s.log.did(t, onWork("CLOSE", "BEGIN", update, pass, "COMMIT")...)
}

// TestFencedRunsOnce: a function that has failed because of a dead connection of its
// own is not run again.
func TestFencedRunsOnce(t *testing.T) {
	s := newFencedScene(t, &leases{})
	f := s.raised(t)
	for range 3 {
		s.work.ExpectBegin()
		s.work.ExpectRollback()
	}
	runs := 0
	err := f.Run(s.ctx, func(context.Context, *sql.Tx) error {
		runs++
		return &txguard.OutcomeError{Name: "other", Outcome: txguard.ErrNotBegun, Err: driver.ErrBadConn}
	})
	if runs != 1 {
		t.Errorf("it has run %d times: %v", runs, err)
	}
	for range 3 - runs { // what the script has left
		if tx, err := s.work.db.BeginTx(s.ctx, nil); err == nil {
			_ = tx.Rollback()
		}
	}
}

func TestFencedOutcomes(t *testing.T) {
	begun := onWork("BEGIN", update)
	end := onWork("ROLLBACK")
	for _, test := range []struct {
		name    string
		prepare func(*fencedScene)
		outcome error
		reasons []error
		text    string
		sent    []string
	}{
		{
			"lock lost",
			func(s *fencedScene) { s.work.works(); s.checked(int64(0)); s.work.ExpectRollback() },
			txguard.ErrRolledBack,
			[]error{sqllock.ErrLost},
			"",
			lines(begun, end),
		},
		{
			"a later holder",
			func(s *fencedScene) {
				s.work.works()
				s.work.done(passes, 0)
				s.work.ExpectRollback()
			},
			txguard.ErrRolledBack,
			[]error{sqllock.ErrLost},
			`txguard: "job": rolled back: the lock was lost: a later holder than that of token 42 has been admitted to lock_fences, or its row was removed`,
			lines(begun, onWork(pass), end),
		},
		{
			"no table",
			func(s *fencedScene) {
				s.work.works()
				s.work.fails(passes, number(1146))
				s.work.ExpectRollback()
			},
			txguard.ErrRolledBack,
			[]error{sqllock.ErrNoTable},
			"migrations.Fences()",
			lines(begun, onWork(pass), end),
		},
		{
			"no privilege",
			func(s *fencedScene) {
				s.work.works()
				s.work.fails(passes, number(1142))
				s.work.ExpectRollback()
			},
			txguard.ErrRolledBack,
			[]error{sqllock.ErrPermission},
			"UPDATE",
			lines(begun, onWork(pass), end),
		},
		{
			"ended by the function's statement",
			func(s *fencedScene) {
				s.work.works()
				s.work.at(update, func() { s.work.session().set(func(s *session) { s.open = false }) })
				s.work.ExpectRollback()
			},
			txguard.ErrUnguarded,
			nil,
			"by a statement that commits implicitly",
			lines(begun, end),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newFencedScene(t, nil)
			s.done(insert, 42)
			f := s.raised(t)
			test.prepare(s)
			err := f.Run(s.ctx, sell)
			wantOutcome(t, err, test.outcome, test.reasons...)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("the error should say %q: %v", test.text, err)
			}
			s.log.did(t, test.sent...)
			if n := s.work.db.Stats().InUse; n != 0 {
				t.Errorf("%d connections of the fence's pool are in use", n)
			}
		})
	}
}

func TestEvidenceNotWritten(t *testing.T) {
	for _, test := range []struct {
		number uint16
		reason error
		text   string
	}{
		{1146, sqllock.ErrNoTable, "migrations.Fences()"},
		{1142, sqllock.ErrPermission, "lock_fences"},
		{1114, number(1114), "as the server puts it"},
	} {
		s := newFencedScene(t, nil)
		s.works()
		s.fails(insert, number(test.number))
		s.ExpectRollback()
		err := txguard.Run(s.ctx, s.lock, sell, txguard.WithEvidence(s.fence))
		wantOutcome(t, err, txguard.ErrRolledBack, test.reason, number(test.number))
		if !strings.Contains(err.Error(), test.text) {
			t.Errorf("the error should say %q: %v", test.text, err)
		}
		s.log.did(t, onLock("BEGIN", update, note, "ROLLBACK")...)
	}
}

// TestSessionIsLeftInNoTransaction: where COMMIT begins the next transaction
// (completion_type=CHAIN), a Tx that the function has ended leaves one.
func TestSessionIsLeftInNoTransaction(t *testing.T) {
	s := newFencedScene(t, &leases{})
	f := s.raised(t)
	s.work.works()
	s.work.ExpectCommit()
	s.work.done(passes, 1<<32)
	err := f.Run(s.ctx, func(ctx context.Context, tx *sql.Tx) error {
		err := sell(ctx, tx)
		_ = tx.Commit()
		s.work.session().set(func(s *session) { s.open = true })
		return err
	})
	wantOutcome(t, err, txguard.ErrUnguarded)
	if session := s.work.session(); session.isOpen() && !session.closed {
		t.Error("the session is back in its pool with a transaction open")
	}
}

// TestFencedPanic: the panic goes on, the transaction is rolled back, and the
// connection goes back to its pool.
func TestFencedPanic(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func()
	}{
		{"panic", func() { panic(errOut) }},
		{"Goexit", runtime.Goexit},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newFencedScene(t, &leases{})
			f := s.raised(t)
			before := goleak.IgnoreCurrent()
			s.work.works()
			s.work.ExpectRollback()
			over := make(chan any)
			go func() {
				defer func() { over <- recover() }()
				_ = f.Run(s.ctx, func(ctx context.Context, tx *sql.Tx) error {
					_ = sell(ctx, tx)
					test.end()
					return nil
				})
				t.Error("Run has returned")
			}()
			if got := <-over; test.name == "panic" && got != errOut || test.name != "panic" && got != nil { //nolint:errorlint // the very value
				t.Errorf("got panic %v", got)
			}
			s.log.did(t, onWork("BEGIN", update, "ROLLBACK")...)
			if n := s.work.db.Stats().InUse; n != 0 {
				t.Errorf("%d connections of the fence's pool are in use", n)
			}
			if err := goleak.Find(before); err != nil {
				t.Errorf("while the lock is held: %v", err)
			}
		})
	}
}

// TestSettled: the answer to COMMIT is lost, and the database tells.
func TestSettled(t *testing.T) {
	for _, test := range []struct {
		name    string
		rows    func(id []byte) [][]driver.Value // what the database has
		outcome error
		text    string
	}{
		{"committed", func(id []byte) [][]driver.Value { return [][]driver.Value{{5, id}} }, nil, ""},
		{
			"committed, and others since",
			func(id []byte) [][]driver.Value { return [][]driver.Value{{7, "01234567" + string(id) + "76543210"}} },
			nil,
			"",
		},
		{
			"not committed",
			func([]byte) [][]driver.Value { return [][]driver.Value{{4, []byte("01234567")}} },
			txguard.ErrRolledBack,
			`txguard: "job": rolled back: `,
		},
		{"the row was removed", func([]byte) [][]driver.Value { return nil }, txguard.ErrUnknown, `the row of "job" in lock_fences was removed`},
		{
			"an id across two others",
			func(id []byte) [][]driver.Value { return [][]driver.Value{{4, "0123" + string(id) + "4567"}} },
			txguard.ErrRolledBack,
			"",
		},
		{"forgotten", func([]byte) [][]driver.Value { return [][]driver.Value{{69, ""}} }, txguard.ErrUnknown, `64 transactions of "job" have been committed since`},
		{"not forgotten", func([]byte) [][]driver.Value { return [][]driver.Value{{68, ""}} }, txguard.ErrRolledBack, ""},
	} {
		settles := func(s *fencedScene) {
			id, err := hex.DecodeString(s.log.id())
			if err != nil || len(id) != 8 {
				s.t.Fatalf("id %x, %v", id, err)
			}
			s.work.ExpectBegin()
			rows := sqlmock.NewRows([]string{"seq", "commits", "p"})
			for _, r := range test.rows(id) {
				rows.AddRow(append(r, 0)...)
			}
			s.work.ExpectQuery(look).WillReturnRows(rows)
			if len(test.rows(id)) == 0 {
				s.work.answer("SELECT "+place, 0)
			}
			s.work.ExpectRollback()
		}
		looks := func() []any {
			if len(test.rows(nil)) == 0 {
				return []any{"BEGIN", look, "SELECT " + place + " p", "ROLLBACK"}
			}
			return []any{"BEGIN", look, "ROLLBACK"}
		}
		examine := func(t *testing.T, err error) {
			t.Helper()
			if test.outcome == nil {
				wantOutcome(t, err, nil)
				return
			}
			wantOutcome(t, err, test.outcome, mysql.ErrInvalidConn)
			if !strings.Contains(err.Error(), test.text) {
				t.Errorf("the error should say %q: %v", test.text, err)
			}
			if e := evidenceOf(err); (e != nil) != errors.Is(test.outcome, txguard.ErrUnknown) {
				t.Errorf("evidence %v", e)
			}
		}
		t.Run(test.name, func(t *testing.T) {
			s := newFencedScene(t, nil)
			s.works()
			s.done(insert, 5<<32)
			s.ExpectCommit().WillReturnError(mysql.ErrInvalidConn)
			s.at("COMMIT", func() { settles(s) })
			examine(t, txguard.Run(s.ctx, s.lock, sell, txguard.WithEvidence(s.fence)))
			s.log.did(t, lines(onLock("BEGIN", update, note, "COMMIT", "CLOSE"), onWork(looks()...))...)
		})
		t.Run(test.name+", fenced", func(t *testing.T) {
			s := newFencedScene(t, &leases{})
			f := s.raised(t)
			s.work.works()
			s.work.done(passes, 5<<32)
			s.work.ExpectCommit().WillReturnError(mysql.ErrInvalidConn)
			s.work.at("COMMIT", func() { settles(s) })
			examine(t, f.Run(s.ctx, sell))
			s.log.did(t, onWork(append([]any{"BEGIN", update, pass, "COMMIT", "CLOSE"}, looks()...)...)...)
			if err := s.lock.Err(); err != nil {
				t.Errorf("the lock, which is on another session, should go on: %v", err)
			}
		})
	}
}

// TestNotSettled: the database can't be asked. The caller gets what to ask with.
func TestNotSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFencedScene(t, nil)
		s.works()
		s.done(insert, 5<<32)
		s.ExpectCommit().WillReturnError(mysql.ErrInvalidConn)
		s.work.setDown(errBroke)
		s.at("COMMIT", func() { s.cancel(errStop) }) // which is not what ends the wait
		id := ""
		s.work.at("BEGIN", func() {
			if id == "" {
				id = s.log.id()
			}
		})
		start := time.Now()
		err := txguard.Run(s.ctx, s.lock, sell, txguard.WithEvidence(s.fence))
		wantOutcome(t, err, txguard.ErrUnknown, mysql.ErrInvalidConn, context.DeadlineExceeded)
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
		e := evidenceOf(err)
		if e == nil {
			t.Fatalf("no evidence in %v", err)
		}
		if e.Key != "job" || hex.EncodeToString(e.ID) != id || e.Seq != 5 {
			t.Errorf("evidence %+v of id %s", e, id)
		}
		s.work.setDown(nil)
		s.work.ExpectBegin()
		s.work.answer(look, 5, e.ID, 0)
		s.work.ExpectRollback()
		if committed, err := s.fence.Settle(t.Context(), *e); !committed || err != nil {
			t.Errorf("settled later: %t, %v", committed, err)
		}
	})
}

// TestSettleInVain: what no waiting will change is said at once, and as what it is.
func TestSettleInVain(t *testing.T) {
	for _, test := range []struct {
		name   string
		number uint16
		want   error
	}{
		{"no table", 1146, sqllock.ErrNoTable},
		{"a table of another shape", 1054, sqllock.ErrNoTable},
		{"no privilege", 1142, sqllock.ErrPermission},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t, "", &wireLog{})
				w.ExpectBegin()
				w.at(look, func() { w.setDown(number(test.number)) })
				w.refuse(look, number(test.number))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				_, err := txguard.NewFence(w.db).Settle(ctx, txguard.Evidence{Key: "job", ID: []byte("ABCDEFGH"), Seq: 5})
				if !errors.Is(err, test.want) {
					t.Errorf("got %v, want one that matches %v", err, test.want)
				}
				if took := time.Since(start); took != 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// TestSettle: the statements, and what does not end the wait.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, "", &wireLog{})
		w.ExpectBegin().WillReturnError(errBroke)
		w.ExpectBegin()
		w.refuse(look, number(1205))
		w.ExpectRollback()
		w.ExpectBegin()
		w.answer(look, 5, "ABCDEFGH", 0)
		w.ExpectRollback()
		start := time.Now()
		committed, err := txguard.NewFence(w.db).Settle(t.Context(), txguard.Evidence{Key: "job", ID: []byte("ABCDEFGH"), Seq: 5})
		if !committed || err != nil {
			t.Errorf("got %t, %v", committed, err)
		}
		if took := time.Since(start); took != 200*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		w.log.sent(t, "BEGIN", "BEGIN", look, "ROLLBACK", "BEGIN", look, "ROLLBACK")
	})
}

func TestSettleCtxEnds(t *testing.T) {
	w := newWire(t, "", &wireLog{})
	w.setDown(errBroke)
	ctx, cancel := context.WithCancelCause(t.Context())
	w.at("BEGIN", func() { cancel(errStop) })
	committed, err := txguard.NewFence(w.db).Settle(ctx, txguard.Evidence{Key: "job", ID: []byte("ABCDEFGH"), Seq: 5})
	for _, want := range []error{txguard.ErrUnknown, context.Canceled, errStop} {
		if committed || !errors.Is(err, want) {
			t.Errorf("got %t, %v, want one that matches %v", committed, err, want)
		}
	}
}

func TestSweep(t *testing.T) {
	w := newWire(t, "", &wireLog{})
	f := txguard.NewFence(w.db)
	w.ExpectExec("DELETE").WillReturnResult(sqlmock.NewResult(0, 3))
	if n, err := f.Sweep(t.Context(), 7*24*time.Hour); n != 3 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	w.log.sent(t, sweep)
	w.ExpectExec("DELETE").WillReturnError(number(1146))
	if _, err := f.Sweep(t.Context(), time.Hour); !errors.Is(err, sqllock.ErrNoTable) {
		t.Errorf("no table: %v", err)
	}
	w.log.clear()
	for _, age := range []time.Duration{time.Second - 1, 0, -time.Hour} {
		_, err := f.Sweep(t.Context(), age)
		if want := "txguard: Sweep(" + age.String() + "): the age must be a second or more, and should be days"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	w.log.sent(t)
}

// TestFenceOfMysqlnamed: the locker's namespace is in the key of the row.
func TestFenceOfMysqlnamed(t *testing.T) {
	w := newWire(t, "", &wireLog{})
	w.ExpectQuery("SHOW GLOBAL VARIABLES").WillReturnRows(sqlmock.NewRows([]string{"n", "v"}).AddRow("version", "9.7.4"))
	w.answer("GET_LOCK(X'613a6a6f62',0)", 1, 7, "db1", 3306, "0")
	lock, err := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("a")).TryLock(t.Context(), w.conn(), "job")
	if err != nil {
		t.Fatal(err)
	}
	w.answer("SELECT IS_USED_LOCK(X'613a6a6f62')", 1)
	w.done("`shop`.`fences` (name,token,seq,commits,session,updated) VALUES (_latin1 X'613a6a6f62',", 42)
	w.done("`shop`.`fences` (name,token,seq,commits,session,updated) VALUES (_latin1 X'613a6a6f62',", 42)
	if _, err := txguard.NewFence(w.db, txguard.WithTable("shop.fences")).Raise(t.Context(), lock); err != nil {
		t.Error(err)
	}
	w.answer("SELECT RELEASE_LOCK(X'613a6a6f62')", 1)
	if err := lock.Release(t.Context()); err != nil {
		t.Error(err)
	}
}
