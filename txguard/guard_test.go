package txguard_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The statements of Run as they are sent. The lock is called "job".
const (
	version = "SELECT VERSION() v,@@autocommit a"
	inside  = "SET TRANSACTION READ WRITE" // which MySQL refuses inside of one
	inMaria = "SELECT @@in_transaction v"
	update  = "UPDATE stock SET n=n-1"
	check   = "SELECT IS_USED_LOCK(X'6a6f62')=CONNECTION_ID() v"
	held    = "SET @go_sqllock=18446744073709551615+(1-(IS_USED_LOCK(X'6a6f62')<=>CONNECTION_ID()))"
	peek    = "SELECT token FROM `lock_fences` WHERE name=_latin1 X'6a6f62' FOR UPDATE NOWAIT"
	errs    = "SHOW ERRORS LIMIT 1"
	abort   = "ROLLBACK AND NO CHAIN"
	auto    = "SET autocommit=1"
	unlock  = "UNLOCK TABLES"
	release = "SELECT RELEASE_LOCK(X'6a6f62') v"
)

// wire is a pool on sqlmock. It stands before sqlmock's driver for what that can't:
// it writes down what is sent, what is answered with an error that nobody looks at
// included; it knows whether a session is in a transaction, and answers what asks
// for that; and a test can have something happen at a statement.
//
// sqlmock's connections are none of go-sql-driver/mysql, so userlock.Known is not
// ok, and the status is asked for, as it is over a driver that wraps another. That
// fallback is what is shown here; the integration tests show the other way.
type wire struct {
	sqlmock.Sqlmock
	t   *testing.T
	db  *sql.DB
	log *wireLog

	name       string // before what is written down
	version    string
	autocommit bool

	mu       sync.Mutex // guards the following
	sessions []*session
	happens  map[string]func()
	down     error // what every statement is answered with
	checks   []any // how checks are answered, by numbers and errors; 1 after those
}

type wireLog struct {
	mu    sync.Mutex
	lines []string
}

// ids are the random ids of commits; those of names are longer or shorter here.
var ids = regexp.MustCompile(`X'([0-9a-f]{16})'`)

func (l *wireLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *wireLog) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = nil
}

// sent compares what has been sent since the last time.
func (l *wireLog) sent(t *testing.T, want ...string) {
	t.Helper()
	l.compare(t, func(string) bool { return true }, want)
}

// did is sent for what is decided elsewhere: it leaves out the questions for lock and
// transaction, and what makes sure of its end once it has been rolled
// back, which are many and change nothing.
func (l *wireLog) did(t *testing.T, want ...string) {
	t.Helper()
	l.compare(t, func(line string) bool {
		_, statement, named := strings.Cut(line, ": ")
		if !named {
			statement = line
		}
		switch statement {
		case version, inside, inMaria, check, held, errs, abort, auto, unlock:
			return false
		}
		return true
	}, want)
}

func (l *wireLog) compare(t *testing.T, counts func(line string) bool, want []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var got []string
	for _, line := range l.lines {
		if counts(line) {
			got = append(got, ids.ReplaceAllString(line, "X'id'"))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("sent\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	l.lines = nil
}

// id returns the id of the commit that was written last.
func (l *wireLog) id() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range slices.Backward(l.lines) {
		if m := ids.FindStringSubmatch(line); m != nil {
			return m[1]
		}
	}
	return ""
}

var contains = sqlmock.QueryMatcherFunc(func(want, got string) error {
	if !strings.Contains(got, want) {
		return errors.New("not expected: " + got + ", but " + want)
	}
	return nil
})

func newWire(t *testing.T, name string, log *wireLog) *wire {
	t.Helper()
	inner, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(contains))
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Sqlmock: mock, t: t, log: log, name: name, version: "9.7.4", autocommit: true, happens: make(map[string]func())}
	// All connections of a mock are one, and inner keeps it.
	shared, err := inner.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var mocked mockConn
	if err := shared.Raw(func(dc any) error { mocked = dc.(mockConn); return nil }); err != nil { //nolint:errcheck,forcetypeassert // a panic tells
		t.Fatal(err)
	}
	w.db = sql.OpenDB(connector{w, mocked})
	t.Cleanup(func() {
		if err := mock.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		_ = w.db.Close()
		mock.ExpectClose()
		_ = shared.Close()
		_ = inner.Close()
	})
	return w
}

// at has f called when a statement that contains sub has been sent, before it is
// answered.
func (w *wire) at(sub string, f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.happens[sub] = f
}

// session returns the latest session.
func (w *wire) session() *session {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sessions[len(w.sessions)-1]
}

func (w *wire) setDown(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = err
}

// checked has the next checks of the lock answered so.
func (w *wire) checked(answers ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checks = append(w.checks, answers...)
}

func (w *wire) nextCheck() (any, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.checks) == 0 {
		return int64(1), nil
	}
	next := w.checks[0]
	w.checks = w.checks[1:]
	if err, ok := next.(error); ok {
		return nil, err
	}
	return next, nil
}

func (w *wire) answer(statement string, answer ...driver.Value) {
	w.ExpectQuery(statement).WillReturnRows(sqlmock.NewRows(make([]string, len(answer))).AddRow(answer...))
}

func (w *wire) refuse(statement string, err error) { w.ExpectQuery(statement).WillReturnError(err) }

func (w *wire) done(statement string, id int64) {
	w.ExpectExec(statement).WillReturnResult(sqlmock.NewResult(id, 1))
}

func (w *wire) fails(statement string, err error) { w.ExpectExec(statement).WillReturnError(err) }

// works expects what comes before the end of the function sell.
func (w *wire) works() {
	w.ExpectBegin()
	w.done(update, 0)
}

// conn takes a connection for as long as the test.
func (w *wire) conn() *sql.Conn {
	w.t.Helper()
	conn, err := w.db.Conn(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// grants expects an acquisition of the lock.
func (w *wire) grants() {
	w.ExpectQuery("SHOW GLOBAL VARIABLES").WillReturnRows(sqlmock.NewRows([]string{"n", "v"}).AddRow("version", w.version).AddRow("read_only", "OFF"))
	w.answer("GET_LOCK(X'6a6f62',0)", 1, 7, "db1", 3306, "0")
}

// lock acquires the lock of mysqlnamed.
func (w *wire) lock() *sqllock.Lock {
	w.t.Helper()
	w.grants()
	return w.lockOf(mysqlnamed.New())
}

// lockOf acquires the lock of b, and forgets what that sends.
func (w *wire) lockOf(b sqllock.Backend) *sqllock.Lock {
	w.t.Helper()
	lock, err := sqllock.New(b).TryLock(w.t.Context(), w.conn(), "job")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = lock.Release(w.t.Context()) })
	w.log.clear()
	return lock
}

type connector struct {
	w      *wire
	mocked mockConn
}

func (c connector) Connect(context.Context) (driver.Conn, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	s := &session{w: c.w, mocked: c.mocked}
	c.w.sessions = append(c.w.sessions, s)
	return s, nil
}

func (c connector) Driver() driver.Driver { return nil }

// mockConn is what sqlmock's connection can do.
type mockConn interface {
	driver.Conn
	driver.QueryerContext
	driver.ExecerContext
	driver.ConnBeginTx
}

// session is a session of a server.
type session struct {
	w      *wire
	mocked mockConn

	mu     sync.Mutex // guards the following
	open   bool       // in a transaction
	rows   bool       // rows of a query are open
	closed bool
	dead   bool   // the server has ended it, which a statement finds out
	failed uint16 // the error of the last statement of the caller
	valid  func() // called when the driver is asked whether the session is usable
}

// set changes the state of the session.
func (s *session) set(f func(*session)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *session) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// send writes a statement down.
func (s *session) send(statement string) error {
	s.mu.Lock()
	gone := s.closed || s.dead
	s.mu.Unlock()
	if gone {
		_ = s.Close() // as drivers do
		return driver.ErrBadConn
	}
	s.w.log.add(s.w.name + statement)
	s.w.mu.Lock()
	down := s.w.down
	var happens []func()
	for sub, f := range s.w.happens {
		if strings.Contains(statement, sub) {
			happens = append(happens, f)
		}
	}
	s.w.mu.Unlock()
	for _, f := range happens {
		f()
	}
	return down
}

// answered passes on the error of sqlmock.
func (s *session) answered(err error) error {
	if err != nil && strings.Contains(err.Error(), "not expected") {
		s.w.t.Error(err)
	}
	number := userlock.Number(err)
	s.set(func(s *session) { s.failed = number })
	switch number {
	case 1213, 1020: // the server has rolled back
		s.set(func(s *session) { s.open = false })
	}
	return err
}

// last is the error of the last statement.
func (s *session) last() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.failed)
}

func (s *session) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.send(query); err != nil {
		return nil, err
	}
	if strings.HasSuffix(query, " FOR UPDATE NOWAIT") {
		return &row{values: []driver.Value{int64(1)}}, nil
	}
	switch query {
	case version:
		return &row{values: []driver.Value{s.w.version, s.w.autocommit}}, nil
	case inMaria:
		return &row{values: []driver.Value{s.isOpen()}}, nil
	case check:
		held, err := s.w.nextCheck()
		if err != nil {
			return nil, err
		}
		return &row{values: []driver.Value{held}}, nil
	case errs:
		return &row{values: []driver.Value{"Error", s.last(), "as the server puts it"}}, nil
	case release:
		return &row{values: []driver.Value{int64(1)}}, nil
	}
	rows, err := s.mocked.QueryContext(ctx, query, args)
	return rows, s.answered(err)
}

func (s *session) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := s.send(query); err != nil {
		return nil, err
	}
	switch query {
	case inside:
		if s.isOpen() {
			return nil, number(1568)
		}
		return sqlmock.NewResult(0, 0), nil
	case held:
		answer, err := s.w.nextCheck()
		if err == nil && answer != int64(1) {
			err = number(1690)
		}
		if err != nil {
			return nil, err
		}
		return sqlmock.NewResult(0, 0), nil
	case abort:
		s.set(func(s *session) { s.open = false })
		return sqlmock.NewResult(0, 0), nil
	case auto, unlock:
		return sqlmock.NewResult(0, 0), nil
	}
	res, err := s.mocked.ExecContext(ctx, query, args)
	return res, s.answered(err)
}

func (s *session) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	statement := "BEGIN"
	if opts.ReadOnly {
		statement += " READ ONLY"
	}
	if level := sql.IsolationLevel(opts.Isolation); level != sql.LevelDefault {
		statement += " " + level.String()
	}
	if err := s.send(statement); err != nil {
		return nil, err
	}
	tx, err := s.mocked.BeginTx(ctx, opts)
	if err != nil {
		return nil, s.answered(err)
	}
	s.set(func(s *session) { s.open = true })
	return ending{s, tx}, nil
}

func (s *session) Begin() (driver.Tx, error) { return nil, errors.New("not expected: Begin") }

func (s *session) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("not expected: Prepare")
}

func (s *session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.w.log.add(s.w.name + "CLOSE")
	}
	return nil
}

func (s *session) IsValid() bool {
	s.mu.Lock()
	valid, usable := s.valid, !s.closed && !s.rows
	s.mu.Unlock()
	if valid != nil {
		valid()
	}
	return usable
}

// ending is the transaction of a session.
type ending struct {
	s  *session
	tx driver.Tx
}

func (e ending) Commit() error   { return e.end("COMMIT", e.tx.Commit) }
func (e ending) Rollback() error { return e.end("ROLLBACK", e.tx.Rollback) }

func (e ending) end(statement string, f func() error) error {
	if err := e.s.send(statement); err != nil {
		return err
	}
	err := f()
	if err == nil {
		e.s.set(func(s *session) { s.open = false })
	}
	return e.s.answered(err)
}

// row is an answer of one row.
type row struct {
	values []driver.Value
	over   bool
}

func (r *row) Columns() []string { return make([]string, len(r.values)) }
func (r *row) Close() error      { return nil }

func (r *row) Next(dest []driver.Value) error {
	if r.over {
		return io.EOF
	}
	r.over = true
	copy(dest, r.values)
	return nil
}

// plain is a backend whose answers a test scripts. What is nil succeeds.
type plain struct {
	acquire func(sqllock.Request) error
	release func() error
	check   func() error
}

func (b *plain) Acquire(_ context.Context, _ *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	g := sqllock.Grant{Key: req.Key, Session: 7}
	if b.acquire == nil {
		return g, nil
	}
	return g, b.acquire(req)
}

func (b *plain) Release(context.Context, *sql.Conn, sqllock.Grant) error {
	if b.release == nil {
		return nil
	}
	return b.release()
}

func (b *plain) Check(context.Context, sqllock.Querier, sqllock.Grant) error {
	if b.check == nil {
		return nil
	}
	return b.check()
}

func (b *plain) Holder(context.Context, sqllock.Querier, string) (sqllock.Holder, error) {
	return sqllock.Holder{}, sqllock.ErrNotHeld
}

// leases is a backend whose grants have a token, and end after an hour, though a
// test says how much of it is left.
type leases struct {
	plain

	left time.Duration
}

func (b *leases) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	g, err := b.plain.Acquire(ctx, conn, req)
	g.Token, g.Until = 42, time.Now().Add(time.Hour)
	return g, err
}

func (b *leases) Extend(context.Context, *sql.Conn, sqllock.Grant, time.Duration) (time.Time, error) {
	return time.Time{}, errors.New("not expected: Extend")
}

func (b *leases) TimeLeft(context.Context, sqllock.Querier, sqllock.Grant) (time.Duration, error) {
	return b.left, b.Check(nil, nil, sqllock.Grant{}) //nolint:staticcheck // it looks at none of them
}

var _ sqllock.Leaser = (*leases)(nil)

func number(n uint16) error { return &mysql.MySQLError{Number: n, Message: "as the server puts it"} }

var (
	errOut   = errors.New("out of stock")
	errStop  = errors.New("the process is to stop")
	errBroke = errors.New("broken pipe")
)

// sell is the work.
func sell(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, update)
	return err
}

func outcomes() []error {
	return []error{txguard.ErrNotBegun, txguard.ErrRolledBack, txguard.ErrUnguarded, txguard.ErrUnknown}
}

// wantOutcome is nil for what was committed.
func wantOutcome(t *testing.T, err, outcome error, reasons ...error) {
	t.Helper()
	if outcome == nil {
		if err != nil {
			t.Errorf("got error %v, want none", err)
		}
		return
	}
	var o *txguard.OutcomeError
	if !errors.As(err, &o) || o.Name != "job" {
		t.Errorf("got error %v, want an OutcomeError about \"job\"", err)
		return
	}
	for _, other := range outcomes() {
		if want := errors.Is(outcome, other); errors.Is(err, other) != want {
			t.Errorf("%q matches %q: got %t, want %t", err, other, !want, want)
		}
	}
	for _, reason := range reasons {
		if n := userlock.Number(reason); n != 0 && userlock.Number(err) != n || n == 0 && !errors.Is(err, reason) {
			t.Errorf("got error %q, want one that matches %q", err, reason)
		}
	}
}

func evidenceOf(err error) *txguard.Evidence {
	var o *txguard.OutcomeError
	if !errors.As(err, &o) {
		return nil
	}
	return o.Evidence
}

// scene is what a case of a table finds.
type scene struct {
	*wire
	lock   *sqllock.Lock
	ctx    context.Context //nolint:containedctx // it is one's test
	cancel context.CancelCauseFunc
}

func newScene(t *testing.T, b sqllock.Backend) *scene {
	t.Helper()
	w := newWire(t, "", &wireLog{})
	s := &scene{wire: w}
	if b == nil {
		s.lock = w.lock()
	} else {
		s.lock = w.lockOf(b)
	}
	s.ctx, s.cancel = context.WithCancelCause(t.Context())
	t.Cleanup(func() { s.cancel(nil) })
	return s
}

func lines(parts ...any) (all []string) {
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			all = append(all, p)
		case []string:
			all = append(all, p...)
		}
	}
	return all
}

// asked is the question for a transaction.
var asked = []string{version, inside}

func TestRunStatements(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(*wire)
		opts   []txguard.Option
		want   []string
	}{
		{"MySQL", func(*wire) {}, nil, lines(asked, "BEGIN", update, asked, held, asked, "COMMIT", abort)},
		{
			"MariaDB",
			func(w *wire) { w.version = "10.11.19-MariaDB" },
			nil,
			[]string{version, inMaria, "BEGIN", update, version, inMaria, held, version, inMaria, "COMMIT", abort},
		},
		{
			"options of the transaction",
			func(*wire) {},
			[]txguard.Option{txguard.WithTxOptions(sql.TxOptions{Isolation: sql.LevelReadCommitted, ReadOnly: true})},
			lines(asked, "BEGIN READ ONLY Read Committed", update, asked, held, asked, "COMMIT", abort),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWire(t, "", &wireLog{})
			lock := w.lock()
			test.script(w)
			w.works()
			w.ExpectCommit()
			wantOutcome(t, txguard.Run(t.Context(), lock, sell, test.opts...), nil)
			w.log.sent(t, test.want...)
			if err := lock.Err(); err != nil {
				t.Errorf("the lock should go on: %v", err)
			}
		})
	}
}

func TestDoStatements(t *testing.T) {
	w := newWire(t, "", &wireLog{})
	w.grants()
	w.works()
	w.ExpectCommit()
	wantOutcome(t, txguard.Do(t.Context(), sqllock.New(mysqlnamed.New()), w.db, "job", sell), nil)
	got := w.log.lines
	if len(got) < 2 || !strings.HasPrefix(got[0], "SHOW GLOBAL VARIABLES") || !strings.Contains(got[1], "GET_LOCK(X'6a6f62',0)") {
		t.Fatalf("acquired by %q", got)
	}
	w.log.lines = got[2:]
	w.log.sent(t, lines(asked, "BEGIN", update, asked, held, asked, "COMMIT", abort, release)...)
	if n := w.db.Stats().InUse; n != 0 {
		t.Errorf("%d connections are in use", n)
	}
}

// TestNotBegun: the function does not run, and what has been sent changes nothing.
func TestNotBegun(t *testing.T) {
	questions := []string{}
	for _, test := range []struct {
		name    string
		prepare func(*scene)
		opts    []txguard.Option
		reasons []error
		text    string
		sent    []string // nil: not even questions
	}{
		{
			"ended lock",
			func(s *scene) { _ = s.lock.Release(s.ctx); s.log.clear() },
			nil,
			[]error{sqllock.ErrNotHeld},
			`txguard: "job": not begun: hold "job": the lock is not held: it has been released`,
			nil,
		},
		{
			"lost lock",
			func(s *scene) { s.checked(int64(0)); _ = s.lock.Check(s.ctx); s.log.clear() },
			nil,
			[]error{sqllock.ErrLost},
			"",
			nil,
		},
		{
			"dead ctx",
			func(s *scene) { s.cancel(errStop) },
			nil,
			[]error{context.Canceled, errStop},
			`txguard: "job": not begun: context canceled: the process is to stop`,
			nil,
		},
		{
			"open transaction on MySQL",
			func(s *scene) { s.session().set(func(s *session) { s.open = true }) },
			nil,
			[]error{sqllock.ErrInTransaction},
			"it was left as it is",
			questions,
		},
		{
			"open transaction on MariaDB",
			func(s *scene) {
				s.version = "11.8.2-MariaDB"
				s.session().set(func(s *session) { s.open = true })
			},
			nil,
			[]error{sqllock.ErrInTransaction},
			"it was left as it is",
			questions,
		},
		{
			"autocommit off",
			func(s *scene) { s.autocommit = false },
			nil,
			[]error{sqllock.ErrUnsupported},
			"SET autocommit=1",
			questions,
		},
		{
			"the server can't be asked",
			func(s *scene) { s.setDown(number(1317)) },
			nil,
			[]error{sqllock.ErrInterrupted},
			"",
			questions,
		},
		{
			"dead session",
			func(s *scene) { s.session().set(func(s *session) { s.dead = true }) },
			nil,
			[]error{sqllock.ErrSessionGone, driver.ErrBadConn},
			"",
			[]string{"CLOSE"},
		},
		{
			"closed conn",
			func(s *scene) { _ = s.lock.Conn().Close() },
			nil,
			[]error{sqllock.ErrSessionGone, sql.ErrConnDone},
			"",
			nil,
		},
		{
			"BEGIN fails",
			func(s *scene) { s.ExpectBegin().WillReturnError(number(1203)) },
			nil,
			[]error{number(1203)},
			"",
			[]string{"BEGIN"},
		},
		{
			"MinTTL for a lock without a TTL",
			func(*scene) {},
			[]txguard.Option{txguard.MinTTL(time.Second)},
			[]error{sqllock.ErrUnsupported},
			"the lock has no TTL",
			nil,
		},
		{
			"lock options",
			func(*scene) {},
			[]txguard.Option{txguard.WithLockOptions(sqllock.TTL(time.Second))},
			nil,
			"WithLockOptions is for Do and TryDo",
			nil,
		},
		{
			"an option in error",
			func(*scene) {},
			[]txguard.Option{txguard.Retries(-1)},
			nil,
			`txguard: "job": not begun: Retries(-1): it must not be negative`,
			nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, nil)
			test.prepare(s)
			open := s.session().isOpen()
			err := txguard.Run(s.ctx, s.lock, func(context.Context, *sql.Tx) error {
				t.Error("the function has run")
				return nil
			}, test.opts...)
			wantOutcome(t, err, txguard.ErrNotBegun, test.reasons...)
			if !strings.Contains(err.Error(), test.text) {
				t.Errorf("the error should say %q: %v", test.text, err)
			}
			if test.sent == nil {
				s.log.sent(t)
			} else {
				s.log.did(t, test.sent...)
			}
			if s.session().isOpen() != open {
				t.Error("the transaction has changed")
			}
		})
	}
	t.Run("no function", func(t *testing.T) {
		s := newScene(t, nil)
		wantOutcome(t, txguard.Run(s.ctx, s.lock, nil), txguard.ErrNotBegun)
		wantOutcome(t, txguard.Do(s.ctx, sqllock.New(&plain{}), s.db, "job", nil), txguard.ErrNotBegun)
		s.log.sent(t)
	})
}

// TestOneAtATime: another guarded transaction on the session is refused, and harms
// nothing.
func TestOneAtATime(t *testing.T) {
	s := newScene(t, &plain{})
	other, err := sqllock.New(&plain{}).TryLock(t.Context(), s.lock.Conn(), "other")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Release(t.Context()) })
	s.works()
	s.ExpectCommit()
	err = txguard.Run(s.ctx, s.lock, func(ctx context.Context, tx *sql.Tx) error {
		s.log.sent(t, lines(asked, "BEGIN")...)
		wantOutcome(t, txguard.Run(ctx, s.lock, sell), txguard.ErrNotBegun, sqllock.ErrInTransaction)
		if err := txguard.Run(ctx, other, sell); !errors.Is(err, txguard.ErrNotBegun) || !errors.Is(err, sqllock.ErrInTransaction) {
			t.Errorf("by another lock: %v", err)
		}
		s.log.sent(t) // not even a question, which might come between another's and its BEGIN
		return sell(ctx, tx)
	})
	wantOutcome(t, err, nil)
	s.log.did(t, update, "COMMIT")
}

func TestRolledBack(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(*scene)
		fn      func(*scene) txguard.Func
		reasons []error
		text    string
		sent    []string
	}{
		{
			"error of the function",
			func(s *scene) { s.works(); s.ExpectRollback() },
			func(*scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error {
					_ = sell(ctx, tx)
					return fmt.Errorf("sell: %w", errOut)
				}
			},
			[]error{errOut},
			`txguard: "job": rolled back: the function returned: sell: out of stock`,
			[]string{"BEGIN", update, "ROLLBACK"},
		},
		{
			"error of the function, and the ROLLBACK fails, for which the session is closed",
			func(s *scene) { s.works(); s.ExpectRollback().WillReturnError(mysql.ErrInvalidConn) },
			func(*scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error { _ = sell(ctx, tx); return errOut }
			},
			[]error{errOut, sqllock.ErrLost},
			"",
			[]string{"BEGIN", update, "ROLLBACK", "CLOSE"},
		},
		{
			"lock lost",
			func(s *scene) { s.works(); s.checked(int64(0)); s.ExpectRollback() },
			func(*scene) txguard.Func { return sell },
			[]error{sqllock.ErrLost},
			`txguard: "job": rolled back: check "job": the lock was lost: the session does not hold it any more`,
			[]string{"BEGIN", update, "ROLLBACK"},
		},
		{
			"lock lost, as the function has seen",
			func(s *scene) { s.works(); s.checked(int64(0)); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error {
					_ = sell(ctx, tx)
					_ = s.lock.Check(ctx)
					<-ctx.Done()
					if !errors.Is(context.Cause(ctx), sqllock.ErrLost) {
						s.t.Errorf("the cause of the end is %v", context.Cause(ctx))
					}
					return ctx.Err()
				}
			},
			[]error{sqllock.ErrLost, context.Canceled},
			"",
			[]string{"BEGIN", update, "ROLLBACK"},
		},
		{
			"lock released in the function",
			func(s *scene) { s.works(); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error {
					if err := s.lock.Release(ctx); err != nil {
						return err
					}
					_, err := tx.ExecContext(context.WithoutCancel(ctx), update)
					return err
				}
			},
			[]error{sqllock.ErrNotHeld},
			"the lock is not held: it has been released",
			[]string{"BEGIN", release, update, "ROLLBACK"},
		},
		{
			"the check can't be answered",
			func(s *scene) { s.works(); s.checked(number(1317)); s.ExpectRollback() },
			func(*scene) txguard.Func { return sell },
			[]error{sqllock.ErrUnknown, sqllock.ErrInterrupted},
			"",
			[]string{"BEGIN", update, "ROLLBACK"},
		},
		{
			"the connection breaks at the check",
			func(s *scene) {
				s.works()
				s.checked(mysql.ErrInvalidConn)
			},
			func(*scene) txguard.Func { return sell },
			[]error{sqllock.ErrLost, mysql.ErrInvalidConn},
			"",
			[]string{"BEGIN", update, "CLOSE"},
		},
		{
			"ctx cancelled in the function",
			func(s *scene) { s.works(); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error {
					err := sell(ctx, tx)
					s.cancel(errStop)
					<-ctx.Done()
					return err
				}
			},
			[]error{context.Canceled, errStop},
			`txguard: "job": rolled back: context canceled: the process is to stop`,
			[]string{"BEGIN", update, "ROLLBACK"},
		},
		{
			"ctx cancelled in the function, which returns its cause",
			func(s *scene) { s.works(); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error {
					_ = sell(ctx, tx)
					s.cancel(errStop)
					<-ctx.Done()
					return context.Cause(ctx)
				}
			},
			[]error{errStop},
			"",
			[]string{"BEGIN", update, "ROLLBACK"},
		},
		{
			"ctx cancelled between function and check",
			func(s *scene) { s.works(); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error {
					err := sell(ctx, tx)
					// The driver is asked for open rows after ctx, and before the check.
					s.session().set(func(se *session) { se.valid = func() { s.cancel(errStop) } })
					return err
				}
			},
			[]error{context.Canceled, errStop, sqllock.ErrUnknown},
			"",
			[]string{"BEGIN", update, "ROLLBACK"},
		},
		{
			"rows open",
			func(s *scene) { s.works(); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error {
					err := sell(ctx, tx)
					s.session().set(func(s *session) { s.rows = true })
					return err
				}
			},
			nil,
			"close rows before the function returns",
			[]string{"BEGIN", update, "ROLLBACK", "CLOSE"},
		},
		{
			"a deadlock at COMMIT",
			func(s *scene) { s.works(); s.ExpectCommit().WillReturnError(number(1213)) },
			func(*scene) txguard.Func { return sell },
			[]error{number(1213)},
			"COMMIT",
			[]string{"BEGIN", update, "COMMIT"},
		},
		{
			"a deadlock in a statement",
			func(s *scene) { s.ExpectBegin(); s.fails(update, number(1213)); s.ExpectRollback() },
			func(*scene) txguard.Func { return sell },
			[]error{number(1213)},
			"the function returned",
			nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, nil)
			test.prepare(s)
			err := txguard.Run(s.ctx, s.lock, test.fn(s))
			wantOutcome(t, err, txguard.ErrRolledBack, test.reasons...)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("the error should say %q: %v", test.text, err)
			}
			if test.sent != nil {
				s.log.did(t, test.sent...)
			}
			if s.session().isOpen() && !s.session().closed {
				t.Error("the session is left in a transaction")
			}
		})
	}
}

func TestTooLittleTTL(t *testing.T) {
	for _, test := range []struct {
		left    time.Duration
		outcome error
		reason  error
	}{
		{time.Minute, nil, nil},
		{time.Minute - 1, txguard.ErrRolledBack, sqllock.ErrTTLTooShort},
	} {
		s := newScene(t, &leases{left: test.left})
		s.works()
		if test.outcome == nil {
			s.ExpectCommit()
		} else {
			s.ExpectRollback()
		}
		wantOutcome(t, txguard.Run(s.ctx, s.lock, sell, txguard.MinTTL(time.Minute)), test.outcome, test.reason)
		if err := s.lock.Err(); err != nil {
			t.Errorf("the lock should go on: %v", err)
		}
	}
}

// TestCtxEndsTooLate: once the lock has been asked about, the ctx changes nothing.
func TestCtxEndsTooLate(t *testing.T) {
	for _, at := range []string{held, "COMMIT"} {
		s := newScene(t, nil)
		s.works()
		s.ExpectCommit()
		s.at(at, func() { s.cancel(errStop) })
		wantOutcome(t, txguard.Run(s.ctx, s.lock, sell), nil)
		s.log.did(t, "BEGIN", update, "COMMIT")
	}
}

func TestUnguarded(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(*scene)
		fn      func(*scene) txguard.Func
		reasons []error
		text    string
		sent    []string
	}{
		{
			"the function commits",
			func(s *scene) { s.works(); s.ExpectCommit() },
			func(*scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error { _ = sell(ctx, tx); return tx.Commit() }
			},
			nil,
			"the function ended the Tx itself",
			[]string{"BEGIN", update, "COMMIT"},
		},
		{
			"the function commits, and returns an error",
			func(s *scene) { s.works(); s.ExpectCommit() },
			func(*scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error {
					_ = sell(ctx, tx)
					_ = tx.Commit()
					return errOut
				}
			},
			[]error{errOut},
			`txguard: "job": not guarded: the function ended the Tx itself`,
			[]string{"BEGIN", update, "COMMIT"},
		},
		{
			"the function rolls back, and returns nil",
			func(s *scene) { s.works(); s.ExpectRollback() },
			func(*scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error { _ = sell(ctx, tx); return tx.Rollback() }
			},
			nil,
			"the function ended the Tx itself",
			[]string{"BEGIN", update, "ROLLBACK"},
		},
		{
			"a statement that commits",
			func(s *scene) { s.works(); s.done("CREATE TABLE", 0); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				s.at("CREATE TABLE", func() { s.session().set(func(s *session) { s.open = false }) })
				return func(ctx context.Context, tx *sql.Tx) error {
					_ = sell(ctx, tx)
					_, err := tx.ExecContext(ctx, "CREATE TABLE more (n INT)")
					return err
				}
			},
			nil,
			`txguard: "job": not guarded: the transaction had been ended before its end, by a statement that commits implicitly`,
			[]string{"BEGIN", update, "CREATE TABLE more (n INT)", "ROLLBACK"},
		},
		{
			"a statement that commits, and fails",
			func(s *scene) { s.works(); s.fails("CREATE TABLE", number(1050)); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				s.at("CREATE TABLE", func() { s.session().set(func(s *session) { s.open = false }) })
				return func(ctx context.Context, tx *sql.Tx) error {
					_ = sell(ctx, tx)
					_, err := tx.ExecContext(ctx, "CREATE TABLE more (n INT)")
					return err
				}
			},
			[]error{number(1050)},
			"by a statement that commits implicitly",
			[]string{"BEGIN", update, "CREATE TABLE more (n INT)", "ROLLBACK"},
		},
		{
			"a deadlock that is not returned",
			func(s *scene) {
				s.ExpectBegin()
				s.fails(update, number(1213))
				s.done(update, 0)
				s.ExpectRollback()
			},
			func(*scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error { _ = sell(ctx, tx); return sell(ctx, tx) }
			},
			nil,
			"such as a deadlock, and was not returned",
			[]string{"BEGIN", update, update, "ROLLBACK"},
		},
		{
			"autocommit switched off",
			func(s *scene) { s.works(); s.ExpectRollback() },
			func(s *scene) txguard.Func {
				return func(ctx context.Context, tx *sql.Tx) error { s.autocommit = false; return sell(ctx, tx) }
			},
			nil,
			"autocommit was switched off",
			[]string{"BEGIN", update, "ROLLBACK"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, nil)
			test.prepare(s)
			err := txguard.Run(s.ctx, s.lock, test.fn(s))
			wantOutcome(t, err, txguard.ErrUnguarded, test.reasons...)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("the error should say %q: %v", test.text, err)
			}
			s.log.did(t, test.sent...)
		})
	}
}

// TestUnknown: without evidence nobody can tell. The session is closed, so that the
// server decides, and the lock is lost with it.
func TestUnknown(t *testing.T) {
	s := newScene(t, nil)
	s.works()
	s.ExpectCommit().WillReturnError(mysql.ErrInvalidConn)
	err := txguard.Run(s.ctx, s.lock, sell)
	wantOutcome(t, err, txguard.ErrUnknown, mysql.ErrInvalidConn, sqllock.ErrLost)
	if e := evidenceOf(err); e != nil {
		t.Errorf("evidence %v of a transaction without", e)
	}
	s.log.did(t, "BEGIN", update, "COMMIT", "CLOSE")
	if err := s.lock.Err(); !errors.Is(err, sqllock.ErrLost) {
		t.Errorf("the handle says %v", err)
	}
}

// TestPanic: the panic goes on, the transaction is rolled back, and the ctx of the
// function, and what watched the lock for it, have ended though the lock lives.
func TestPanic(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func()
	}{
		{"panic", func() { panic(errOut) }},
		{"Goexit", runtime.Goexit},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, nil)
			s.works()
			s.ExpectRollback()
			before := goleak.IgnoreCurrent()
			var fnCtx context.Context
			over := make(chan any)
			go func() {
				defer func() { over <- recover() }()
				_ = txguard.Run(s.ctx, s.lock, func(ctx context.Context, tx *sql.Tx) error {
					fnCtx = ctx //nolint:fatcontext // to look at afterwards
					_ = sell(ctx, tx)
					test.end()
					return nil
				})
				t.Error("Run has returned")
			}()
			if got := <-over; test.name == "panic" && got != errOut || test.name != "panic" && got != nil { //nolint:errorlint // the very value
				t.Errorf("got panic %v", got)
			}
			s.log.did(t, []string{"BEGIN", update, "ROLLBACK"}...)
			if fnCtx.Err() == nil {
				t.Error("the ctx of the function goes on")
			}
			if err := goleak.Find(before); err != nil {
				t.Errorf("while the lock is held: %v", err)
			}
			// The session is free for the next one.
			s.works()
			s.ExpectCommit()
			wantOutcome(t, txguard.Run(s.ctx, s.lock, sell), nil)
		})
	}
}

// TestNoGoroutineLeft: nor after the other ends, while the lock lives.
func TestNoGoroutineLeft(t *testing.T) {
	s := newScene(t, nil)
	before := goleak.IgnoreCurrent()
	s.works()
	s.ExpectCommit()
	wantOutcome(t, txguard.Run(s.ctx, s.lock, sell), nil)
	s.ExpectBegin()
	s.ExpectRollback()
	wantOutcome(t, txguard.Run(s.ctx, s.lock, func(context.Context, *sql.Tx) error { return errOut }), txguard.ErrRolledBack, errOut)
	goleak.VerifyNone(t, before)
}

// TestPanicInDo: the lock is released, the connection goes back.
func TestPanicInDo(t *testing.T) {
	w := newWire(t, "", &wireLog{})
	released := 0
	b := &plain{release: func() error { released++; return nil }}
	w.ExpectBegin()
	w.ExpectRollback()
	func() {
		defer func() {
			if got := recover(); got != errOut { //nolint:errorlint // the very value
				t.Errorf("got panic %v", got)
			}
		}()
		_ = txguard.Do(t.Context(), sqllock.New(b), w.db, "job", func(context.Context, *sql.Tx) error { panic(errOut) })
	}()
	if n := w.db.Stats().InUse; n != 0 || released != 1 {
		t.Errorf("%d connections in use, released %d times", n, released)
	}
}

func TestRetries(t *testing.T) {
	first := lines(asked, "BEGIN", update)
	for _, test := range []struct {
		name    string
		retries int
		answers []error // to the statement, one a run
		checks  []any   // answers between, and at the end
		outcome error
		reasons []error
		runs    int
	}{
		{"1213 twice", 2, []error{number(1213), number(1213), nil}, nil, nil, nil, 3},
		{"1020", 1, []error{number(1020), nil}, nil, nil, nil, 2},
		{"no more than they may", 2, []error{number(1213), number(1213), number(1213)}, nil, txguard.ErrRolledBack, []error{number(1213)}, 3},
		{"none", 0, []error{number(1213)}, nil, txguard.ErrRolledBack, []error{number(1213)}, 1},
		{"another error of the server", 2, []error{number(1062)}, nil, txguard.ErrRolledBack, []error{number(1062)}, 1},
		{"no error of the server", 2, []error{errOut}, nil, txguard.ErrRolledBack, []error{errOut}, 1},
		{"the lock was lost between", 2, []error{number(1213)}, []any{int64(0)}, txguard.ErrRolledBack, []error{sqllock.ErrLost, number(1213)}, 1},
		{"the lock was lost at the end", 2, []error{number(1213), nil}, []any{int64(1), int64(0)}, txguard.ErrRolledBack, []error{sqllock.ErrLost}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, nil)
				s.checked(test.checks...)
				for _, err := range test.answers {
					s.ExpectBegin()
					if err != nil {
						s.fails(update, err)
						s.ExpectRollback()
						continue
					}
					s.done(update, 0)
					if test.outcome == nil {
						s.ExpectCommit()
					} else {
						s.ExpectRollback()
					}
				}
				runs := 0
				err := txguard.Run(s.ctx, s.lock, func(ctx context.Context, tx *sql.Tx) error {
					runs++
					if err := sell(ctx, tx); err != nil {
						return fmt.Errorf("sell: %w", err)
					}
					return nil
				}, txguard.Retries(test.retries))
				wantOutcome(t, err, test.outcome, test.reasons...)
				if runs != test.runs {
					t.Errorf("it has run %d times, want %d", runs, test.runs)
				}
				if len(s.log.lines) < len(first) || !slices.Equal(s.log.lines[:len(first)], first) {
					t.Errorf("sent %q", s.log.lines)
				}
			})
		})
	}
}

// TestRetryPauses: the pauses grow, and have a bound.
func TestRetryPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, &plain{})
		const retries = 9 // 10, 20, … 1280, of which no more than 1000
		for range retries + 1 {
			s.ExpectBegin()
			s.ExpectRollback()
		}
		var begun []time.Time
		err := txguard.Run(s.ctx, s.lock, func(context.Context, *sql.Tx) error {
			s.session().set(func(s *session) { s.open, s.failed = false, 1213 })
			begun = append(begun, time.Now())
			return number(1213)
		}, txguard.Retries(retries))
		wantOutcome(t, err, txguard.ErrRolledBack, number(1213))
		most := 10 * time.Millisecond
		for i := 1; i < len(begun); i++ {
			if pause := begun[i].Sub(begun[i-1]); pause < most/2 || pause > most {
				t.Errorf("pause %d is %v, want %v to %v", i, pause, most/2, most)
			}
			most = min(2*most, time.Second)
		}
		if len(begun) != retries+1 {
			t.Errorf("it has run %d times", len(begun))
		}
	})
}

// TestRetryAfterCommit: a deadlock that COMMIT is answered with counts, too.
func TestRetryAfterCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil)
		s.works()
		s.ExpectCommit().WillReturnError(number(1213))
		s.works()
		s.ExpectCommit()
		wantOutcome(t, txguard.Run(s.ctx, s.lock, sell, txguard.Retries(1)), nil)
		s.log.did(t, "BEGIN", update, "COMMIT", "BEGIN", update, "COMMIT")
	})
}

// TestRetryCtxEnds: a ctx that ends in the pause ends it, and the function has run
// nonetheless.
func TestRetryCtxEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil)
		s.works()
		s.ExpectCommit().WillReturnError(number(1213))
		ctx, cancel := context.WithTimeoutCause(s.ctx, time.Millisecond, errStop) // the pause is 5 or longer
		defer cancel()
		start := time.Now()
		err := txguard.Run(ctx, s.lock, sell, txguard.Retries(1))
		wantOutcome(t, err, txguard.ErrRolledBack, number(1213), context.DeadlineExceeded, errStop)
		if took := time.Since(start); took != time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// TestRetryCantBegin: of a function that has run nobody may say that it has not.
func TestRetryCantBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, nil)
		s.works()
		s.ExpectCommit().WillReturnError(number(1213))
		s.ExpectBegin().WillReturnError(number(1203))
		wantOutcome(t, txguard.Run(s.ctx, s.lock, sell, txguard.Retries(1)), txguard.ErrRolledBack)
	})
}

// TestRetryOfSomebodyElses: what became of another guarded transaction, whose error
// the function passes on, says nothing of this one.
func TestRetryOfSomebodyElses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, &plain{})
		for range 2 {
			s.ExpectBegin()
			s.ExpectCommit()
		}
		runs := 0
		err := txguard.Run(s.ctx, s.lock, func(_ context.Context, tx *sql.Tx) error {
			runs++
			_ = tx.Commit()
			return &txguard.OutcomeError{Name: "other", Outcome: txguard.ErrRolledBack, Err: number(1213)}
		}, txguard.Retries(1))
		if runs != 1 {
			t.Errorf("what was not guarded has run %d times: %v", runs, err)
		}
		for range 2 - runs {
			tx, err := s.lock.Conn().BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = tx.Commit()
		}
	})
}

// TestReleaseWaitsForCommit: nobody else can have the lock before it is decided
// whether the work is committed.
func TestReleaseWaitsForCommit(t *testing.T) {
	log := &wireLog{}
	w := newWire(t, "", log)
	reached, released := make(chan struct{}), make(chan error, 1)
	lock := w.lockOf(&plain{release: func() error { log.add("release"); close(reached); return nil }})
	w.works()
	w.ExpectCommit()
	w.at("COMMIT", func() {
		go func() { released <- lock.Release(t.Context()) }()
		for !waits("(*Lock).Release") {
			select {
			case <-reached:
				t.Error("released while COMMIT is under way")
				return
			default:
				runtime.Gosched()
			}
		}
		log.add("committed")
	})
	wantOutcome(t, txguard.Run(t.Context(), lock, sell), nil)
	if err := <-released; err != nil {
		t.Errorf("Release: %v", err)
	}
	log.did(t, "BEGIN", update, "COMMIT", "committed", "release")
}

// waits reports whether a goroutine in function waits to be woken.
func waits(function string) bool {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		head, _, _ := strings.Cut(g, "\n")
		if strings.Contains(head, "[sync.Cond.Wait") && strings.Contains(g, function) {
			return true
		}
	}
	return false
}

func TestWhileHeld(t *testing.T) {
	for _, test := range []struct {
		name    string
		backend sqllock.Backend
		atLeast time.Duration
		want    error // errOut is the function's
	}{
		{"held", &plain{}, 0, errOut},
		{"lost", &plain{check: func() error { return sqllock.ErrLost }}, 0, sqllock.ErrLost},
		{"not to be asked", &plain{check: func() error { return errBroke }}, 0, sqllock.ErrUnknown},
		{"no TTL", &plain{}, time.Second, sqllock.ErrUnsupported},
		{"TTL enough", &leases{left: time.Second}, time.Second, errOut},
		{"TTL too short", &leases{left: time.Second}, time.Minute, sqllock.ErrTTLTooShort},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, test.backend)
			called := false
			err := s.lock.WhileHeld(s.ctx, s.lock.Conn(), test.atLeast, func() error { called = true; return errOut })
			if !errors.Is(err, test.want) || called != errors.Is(test.want, errOut) {
				t.Errorf("got %v, called: %t; want %v", err, called, test.want)
			}
			if called && err != errOut { //nolint:errorlint // as it is
				t.Errorf("the error of the function comes as %v", err)
			}
		})
	}
	s := newScene(t, &plain{})
	_ = s.lock.Release(s.ctx)
	err := s.lock.WhileHeld(s.ctx, s.lock.Conn(), 0, func() error { t.Error("called after the release"); return nil })
	if !errors.Is(err, sqllock.ErrNotHeld) {
		t.Errorf("after the release: %v", err)
	}
}

func TestDoOutcomes(t *testing.T) {
	for _, test := range []struct {
		name    string
		backend *plain
		fn      txguard.Func // nil: must not run
		script  func(*wire)
		outcome error
		reasons []error
		sent    []string
	}{
		{
			"committed, and the release fails",
			&plain{release: func() error { return errBroke }},
			sell,
			func(w *wire) { w.works(); w.ExpectCommit() },
			nil,
			nil,
			[]string{"BEGIN", update, "COMMIT", "CLOSE"},
		},
		{
			"committed, and lost at the release",
			&plain{release: func() error { return sqllock.ErrLost }},
			sell,
			func(w *wire) { w.works(); w.ExpectCommit() },
			nil,
			nil,
			[]string{"BEGIN", update, "COMMIT"},
		},
		{
			"rolled back, and the release fails",
			&plain{release: func() error { return errBroke }},
			func(context.Context, *sql.Tx) error { return errOut },
			func(w *wire) { w.ExpectBegin(); w.ExpectRollback() },
			txguard.ErrRolledBack,
			[]error{errOut},
			[]string{"BEGIN", "ROLLBACK", "CLOSE"},
		},
		{
			"not acquired",
			&plain{acquire: func(sqllock.Request) error { return sqllock.ErrPermission }},
			nil,
			func(*wire) {},
			txguard.ErrNotBegun,
			[]error{sqllock.ErrPermission},
			nil,
		},
		{
			"no session",
			&plain{acquire: func(sqllock.Request) error { return sqllock.ErrSessionGone }},
			nil,
			func(*wire) {},
			txguard.ErrNotBegun,
			[]error{sqllock.ErrSessionGone},
			[]string{"CLOSE", "CLOSE", "CLOSE"},
		},
		{
			"autocommit off",
			&plain{},
			nil,
			func(w *wire) { w.autocommit = false },
			txguard.ErrNotBegun,
			[]error{sqllock.ErrUnsupported},
			nil,
		},
	} {
		for _, form := range []string{"Do", "TryDo"} {
			t.Run(test.name+" in "+form, func(t *testing.T) {
				w := newWire(t, "", &wireLog{})
				test.script(w)
				fn := test.fn
				if fn == nil {
					fn = func(context.Context, *sql.Tx) error { t.Error("the function has run"); return nil }
				}
				var err error
				k := sqllock.New(test.backend)
				if form == "Do" {
					err = txguard.Do(t.Context(), k, w.db, "job", fn)
				} else {
					var ran bool
					ran, err = txguard.TryDo(t.Context(), k, w.db, "job", fn)
					if want := test.fn != nil; ran != want {
						t.Errorf("ran: got %t, want %t", ran, want)
					}
				}
				wantOutcome(t, err, test.outcome, test.reasons...)
				w.log.did(t, test.sent...)
				if n := w.db.Stats().InUse; n != 0 {
					t.Errorf("%d connections are in use", n)
				}
			})
		}
	}
}

func TestBusy(t *testing.T) {
	w := newWire(t, "", &wireLog{})
	k := sqllock.New(&plain{acquire: func(sqllock.Request) error { return sqllock.ErrBusy }})
	fn := func(context.Context, *sql.Tx) error { t.Error("the function has run"); return nil }
	if ran, err := txguard.TryDo(t.Context(), k, w.db, "job", fn); ran || err != nil {
		t.Errorf("TryDo: got %t, %v, want false, nil", ran, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	k = sqllock.New(&plain{acquire: func(sqllock.Request) error { cancel(errStop); return sqllock.ErrBusy }})
	wantOutcome(t, txguard.Do(ctx, k, w.db, "job", fn), txguard.ErrNotBegun, sqllock.ErrBusy, context.Canceled, errStop)
}

// TestDoPassesLockOptions: and the watch of Do ends the work.
func TestDoPassesLockOptions(t *testing.T) {
	w := newWire(t, "", &wireLog{})
	var ttl time.Duration
	b := &leases{left: time.Minute, plain: plain{acquire: func(r sqllock.Request) error { ttl = r.TTL; return nil }}}
	w.works()
	w.ExpectCommit()
	err := txguard.Do(t.Context(), sqllock.New(b), w.db, "job", sell, txguard.WithLockOptions(sqllock.TTL(time.Hour)), txguard.MinTTL(time.Second))
	wantOutcome(t, err, nil)
	if ttl != time.Hour {
		t.Errorf("acquired with TTL %v", ttl)
	}
}

// TestDoLeavesTheSessionAlone: the watch of Do asks nothing on it while the function
// may have rows open there, and the loss is found at the end.
func TestDoLeavesTheSessionAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t, "", &wireLog{})
		inside := false
		b := &plain{check: func() error {
			if inside {
				t.Error("asked while the function runs")
			}
			return sqllock.ErrLost
		}}
		w.ExpectBegin()
		w.ExpectRollback()
		err := txguard.Do(t.Context(), sqllock.New(b), w.db, "job", func(context.Context, *sql.Tx) error {
			inside = true
			time.Sleep(time.Hour)
			inside = false
			return nil
		})
		wantOutcome(t, err, txguard.ErrRolledBack, sqllock.ErrLost)
	})
}
