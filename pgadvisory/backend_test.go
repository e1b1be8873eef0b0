package pgadvisory_test

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The statements that the backend sends, as the scripted server tells them apart.
const (
	look    = "look"
	version = "version"
	held    = "held"
	try     = "try"
	wait    = "wait"
	letGo   = "let go"
	release = "release"
	check   = "check"
	undo    = "undo"
	other   = "other"
)

func kind(query string) string {
	has := func(s string) bool { return strings.Contains(query, s) }
	switch {
	case has("xact_lock"):
		return "tx"
	case has("pg_is_in_recovery"):
		return look
	case query == "SELECT version()":
		return version
	case has("pg_advisory_lock(") || has("pg_advisory_lock_shared("):
		return wait
	case has("pg_locks") && has("pg_advisory_unlock"):
		return letGo
	case has("pg_locks"):
		return held
	case has("THEN 2 ELSE 1") && !has("pg_try_advisory_lock"):
		return release
	case strings.HasPrefix(query, "SELECT CASE WHEN pg_advisory_unlock"):
		return check
	case has("pg_try_advisory_lock"):
		return try
	case strings.HasPrefix(query, "ROLLBACK TO"):
		return undo
	}
	return other
}

// reply is what the server answers a statement with.
type reply struct {
	row      []any // texts, or nil for NULL
	noRow    bool
	code     string // of an error
	severity string // ERROR if it is empty
	local    string // what the severity is called in the server's language, as it is if it is empty
	message  string
	cut      bool // the connection ends without an answer
	silent   bool
	garbage  bool // what is not the protocol
	then     byte // the state of the transaction, as it was if it is 0
}

func row(values ...any) reply   { return reply{row: values} }
func failure(code string) reply { return reply{code: code} }
func fatal(code string) reply   { return reply{code: code, severity: "FATAL"} }
func admitted() reply {
	return row("PostgreSQL 15.8 on x86_64-pc-linux-gnu", "7", "f", "1700000000000000")
}
func failedTx(code string) reply { return reply{code: code, then: 'E'} }
func memory() reply              { return reply{code: "53200", message: "out of shared memory"} }
func (r reply) text(i int) []byte {
	if s, ok := r.row[i].(string); ok {
		return []byte(s)
	}
	return nil
}

// server is a PostgreSQL that answers as it is told.
type server struct {
	t      *testing.T
	params map[string]string
	db     *sql.DB
	conn   *sql.Conn
	pg     *pgconn.PgConn
	ended  sync.WaitGroup
	hangs  atomic.Bool // new connections do

	mu       sync.Mutex // guards the following
	script   map[string][]reply
	always   func(query string) *reply
	sent     []string // kinds
	queries  []string
	cancels  int
	onCancel func()
	socket   net.Conn
}

// newServer makes a server, and a session on it.
func newServer(t *testing.T, params ...string) *server {
	t.Helper()
	s := &server{t: t, script: make(map[string][]reply), params: map[string]string{
		"server_version": "15.8", "client_encoding": "UTF8", "standard_conforming_strings": "on",
	}}
	for i := 0; i < len(params); i += 2 {
		s.params[params[i]] = params[i+1]
	}
	cfg, err := pgx.ParseConfig("postgres://user@127.0.0.1:5432/db?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if s.hangs.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		mine, theirs := net.Pipe()
		s.ended.Go(func() { s.serve(mine) })
		return theirs, nil
	}
	s.db = stdlib.OpenDB(*cfg)
	if s.conn, err = s.db.Conn(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = s.conn.Raw(func(dc any) error {
		s.pg = dc.(*stdlib.Conn).Conn().PgConn() //nolint:forcetypeassert,errcheck // it is
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// end checks that all that was expected has been sent.
func (s *server) end() {
	s.t.Helper()
	s.mu.Lock()
	for k, replies := range s.script {
		if len(replies) > 0 {
			s.t.Errorf("%d times %q was expected and not sent; sent was %v", len(replies), k, s.sent)
		}
	}
	_ = s.socket.Close()
	s.mu.Unlock()
	_ = s.conn.Close()
	_ = s.db.Close()
	<-s.pg.CleanupDone()
	s.ended.Wait()
}

// on has the next statement of a kind answered, after those that it was called for before.
func (s *server) on(kind string, replies ...reply) *server {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script[kind] = append(s.script[kind], replies...)
	return s
}

func (s *server) next(query string) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := kind(query)
	s.sent = append(s.sent, k)
	s.queries = append(s.queries, query)
	if s.always != nil {
		if r := s.always(query); r != nil {
			return *r
		}
	}
	if len(s.script[k]) == 0 {
		s.t.Errorf("%q was sent and not expected: %s", k, query)
		return failure("XX000")
	}
	r := s.script[k][0]
	s.script[k] = s.script[k][1:]
	return r
}

func (s *server) serve(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // a pipe
	b := pgproto3.NewBackend(conn, conn)
	first, err := b.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if _, ok := first.(*pgproto3.CancelRequest); ok {
		s.mu.Lock()
		s.cancels++
		f := s.onCancel
		s.mu.Unlock()
		if f != nil {
			f()
		}
		return
	}
	s.mu.Lock()
	s.socket = conn
	s.mu.Unlock()
	b.Send(&pgproto3.AuthenticationOk{})
	for k, v := range s.params {
		b.Send(&pgproto3.ParameterStatus{Name: k, Value: v})
	}
	b.Send(&pgproto3.BackendKeyData{ProcessID: 7, SecretKey: []byte{1, 2, 3, 4}})
	status := byte('I')
	b.Send(&pgproto3.ReadyForQuery{TxStatus: status})
	for b.Flush() == nil {
		m, err := b.Receive()
		if err != nil {
			return
		}
		q, ok := m.(*pgproto3.Query)
		if !ok {
			if _, over := m.(*pgproto3.Terminate); !over {
				s.t.Errorf("the scripted server does not understand %T", m)
			}
			return
		}
		if strings.HasPrefix(q.String, "begin") {
			status = 'T'
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("BEGIN")})
			b.Send(&pgproto3.ReadyForQuery{TxStatus: status})
			continue
		}
		if q.String == "rollback" || q.String == "commit" {
			status = 'I'
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("ROLLBACK")})
			b.Send(&pgproto3.ReadyForQuery{TxStatus: status})
			continue
		}
		r := s.next(q.String)
		if r.then != 0 {
			status = r.then
		}
		switch {
		case r.cut:
			return
		case r.silent:
			_, _ = conn.Read(make([]byte, 1)) // until the end
			return
		case r.garbage:
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			return
		case r.code != "":
			severity, local := r.severity, r.severity
			switch {
			case severity == "":
				severity, local = "ERROR", "FEHLER"
			case r.local != "":
				local = r.local
			}
			b.Send(&pgproto3.ErrorResponse{Severity: local, SeverityUnlocalized: severity, Code: r.code, Message: r.message + " as the server puts it"})
			if severity != "ERROR" {
				_ = b.Flush()
				return
			}
		case r.row != nil:
			d := &pgproto3.RowDescription{}
			values := make([][]byte, len(r.row))
			for i := range r.row {
				d.Fields = append(d.Fields, pgproto3.FieldDescription{Name: []byte("c"), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1})
				values[i] = r.text(i)
			}
			b.Send(d)
			if !r.noRow {
				b.Send(&pgproto3.DataRow{Values: values})
			}
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		default:
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SET")})
		}
		b.Send(&pgproto3.ReadyForQuery{TxStatus: status})
	}
}

// errNone stands for "no error at all".
var errNone = errors.New("no error")

// all are the sentinels that errors are told apart by.
var all = []error{
	sqllock.ErrBusy, sqllock.ErrHeld, sqllock.ErrNotHeld, sqllock.ErrLost, sqllock.ErrSessionGone, sqllock.ErrInterrupted, sqllock.ErrDeadlock,
	sqllock.ErrInTransaction, sqllock.ErrUnsupported, sqllock.ErrPermission,
}

// wantError wants err to match those of want, and no other sentinel.
func wantError(t *testing.T, err error, want ...error) {
	t.Helper()
	if len(want) == 1 && errors.Is(want[0], errNone) {
		if err != nil {
			t.Errorf("got error %v, want none", err)
		}
		return
	}
	if err == nil {
		t.Errorf("got no error, want %v", want)
		return
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("got error %v, want one that matches %q", err, w)
		}
	}
	for _, n := range all {
		if errors.Is(err, n) && !slices.ContainsFunc(want, func(w error) bool { return errors.Is(w, n) }) {
			t.Errorf("got error %v, which should not match %q", err, n)
		}
	}
}

func TestLook(t *testing.T) {
	const pg15 = "PostgreSQL 15.8 on x86_64-pc-linux-gnu, compiled by gcc"
	type param = []string
	for _, test := range []struct {
		name    string
		params  param
		replies map[string]reply
		allow   pgadvisory.Risk
		want    error
		text    string
	}{
		{"PostgreSQL", nil, map[string]reply{look: row(pg15, "7", "f", "1")}, 0, errNone, ""},
		{"EnterpriseDB", nil, map[string]reply{look: row("EnterpriseDB 15.8.0", "7", "f", "1")}, 0, errNone, ""},
		{"PostgreSQL 11", param{"server_version", "11.2 (Debian 11.2-1)"}, map[string]reply{look: row("PostgreSQL 11.2", "7", "f", "1")}, 0, errNone, ""},
		{"PostgreSQL 19devel", param{"server_version", "19devel"}, map[string]reply{look: row("PostgreSQL 19devel", "7", "f", "1")}, 0, errNone, ""},
		{"a server that does not say its version", param{"server_version", ""}, map[string]reply{look: row(pg15, "7", "f", "1")}, 0, errNone, ""},
		{"PostgreSQL 9.6", param{"server_version", "9.6.24"}, map[string]reply{look: row("PostgreSQL 9.6.24 on x86_64", "7", "f", "1")}, 0, sqllock.ErrUnsupported, "hashtextextended"},
		{"PostgreSQL 10", param{"server_version", "10.23"}, map[string]reply{look: row("PostgreSQL 10.23 on x86_64", "7", "f", "1")}, 0, sqllock.ErrUnsupported, "hashtextextended"},
		{
			"CockroachDB that can't answer",
			param{"crdb_version", "CockroachDB CCL v23.1.11", "server_version", "13.0.0"},
			map[string]reply{look: failure("42883"), version: row("CockroachDB CCL v23.1.11")},
			0, sqllock.ErrUnsupported, "CockroachDB",
		},
		{
			"CockroachDB that knows not even its version",
			param{"crdb_version", "CockroachDB CCL v23.1.11", "server_version", "13.0.0"},
			map[string]reply{look: failure("42883"), version: failure("42883")},
			0, sqllock.ErrUnsupported, "CockroachDB",
		},
		{
			"CockroachDB that calls itself PostgreSQL",
			param{"crdb_version", "CockroachDB CCL v23.1.11", "server_version", "13.0.0"},
			map[string]reply{look: row("PostgreSQL 13.0.0 on x86_64", "7", "f", "1")},
			0, sqllock.ErrUnsupported, "pgadvisory.Allow(pgadvisory.Lookalike)",
		},
		{"CockroachDB by its version", nil, map[string]reply{look: row("CockroachDB CCL v23.1.11 (x86_64)", "7", "f", "1")}, 0, sqllock.ErrUnsupported, "CockroachDB"},
		{"YugabyteDB", nil, map[string]reply{look: row("PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64", "7", "f", "1")}, 0, sqllock.ErrUnsupported, "YB"},
		{"Redshift", param{"server_version", "8.0.2"}, map[string]reply{look: failure("42883"), version: row("PostgreSQL 8.0.2 on i686, compiled by GCC, Redshift 1.0.7")}, 0, sqllock.ErrUnsupported, "Redshift"},
		{"Materialize", nil, map[string]reply{look: row("PostgreSQL 9.5.0 on x86_64 (Materialize v0.60)", "7", "f", "1")}, 0, sqllock.ErrUnsupported, "Materialize"},
		{"openGauss", nil, map[string]reply{look: row("(openGauss 5.0.0 build a07d57c3)", "7", "f", "1")}, 0, sqllock.ErrUnsupported, "openGauss"},
		{"a look-alike that is allowed", nil, map[string]reply{look: row("(openGauss 5.0.0 build a07d57c3)", "7", "f", "1")}, pgadvisory.Lookalike, errNone, ""},
		{"a standby", nil, map[string]reply{look: row(pg15, "7", "t", "1")}, 0, sqllock.ErrUnsupported, "target_session_attrs=read-write"},
		{"a standby that is allowed", nil, map[string]reply{look: row(pg15, "7", "t", "1")}, pgadvisory.ReadOnly, errNone, ""},
		{"a standby where a pooler is allowed", nil, map[string]reply{look: row(pg15, "7", "t", "1")}, pgadvisory.Pooler, sqllock.ErrUnsupported, "standby"},
		{"a pooler", nil, map[string]reply{look: row(pg15, "8", "f", "1")}, 0, sqllock.ErrUnsupported, "Locker.LockTx"},
		{"a pooler that is allowed", nil, map[string]reply{look: row(pg15, "8", "f", "1")}, pgadvisory.Pooler, errNone, ""},
		{"a pooler where a standby is allowed", nil, map[string]reply{look: row(pg15, "8", "f", "1")}, pgadvisory.ReadOnly | pgadvisory.Lookalike, sqllock.ErrUnsupported, "pooler"},
		{"no process id", nil, map[string]reply{look: row(pg15, nil, "f", "1")}, 0, sqllock.ErrUnsupported, "pooler"},
		{"a look that fails", nil, map[string]reply{look: failure("42501"), version: row(pg15)}, 0, nil, "42501"},
		{"a look that is interrupted", nil, map[string]reply{look: failure("57014"), version: row(pg15)}, 0, sqllock.ErrInterrupted, ""},
		{"a look that ends the session", nil, map[string]reply{look: fatal("57P01")}, 0, sqllock.ErrSessionGone, ""},
		{"a look that is cut", nil, map[string]reply{look: {cut: true}}, 0, sqllock.ErrSessionGone, ""},
		{"a column too few", nil, map[string]reply{look: row(pg15, "7", "f"), version: row(pg15)}, 0, nil, "3 columns, not 4"},
		{"no number", nil, map[string]reply{look: row(pg15, "seven", "f", "1"), version: row(pg15)}, 0, nil, "column 2"},
		{"no row", nil, map[string]reply{look: {row: []any{"", "", "", ""}, noRow: true}, version: row(pg15)}, 0, sql.ErrNoRows, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t, test.params...)
			defer s.end()
			for k, r := range test.replies {
				s.on(k, r)
			}
			if errors.Is(test.want, errNone) {
				s.on(try, row("t"), row("t"))
			}
			b := pgadvisory.New(pgadvisory.Allow(test.allow))
			g, err := b.Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
			if test.want != nil {
				wantError(t, err, test.want)
			} else {
				wantError(t, err)
			}
			if err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want one that names %s", err, test.text)
			}
			if err == nil {
				if g.Session == 0 {
					t.Errorf("got grant %+v", g)
				}
				// Once for each session.
				if _, err := b.Acquire(t.Context(), s.conn, sqllock.Request{Key: "another", Shared: true}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestTryVerdicts(t *testing.T) {
	for _, test := range []struct {
		name string
		try  reply
		held []reply // what is asked after it
		want []error
		text string
	}{
		{"true", row("t"), nil, []error{errNone}, ""},
		{"false", row("f"), nil, []error{sqllock.ErrBusy}, ""},
		{"NULL", row(nil), nil, []error{sqllock.ErrBusy}, ""},
		{"interrupted, not held", failure("57014"), []reply{row("f")}, []error{sqllock.ErrInterrupted}, ""},
		{"interrupted, held", failure("57014"), []reply{row("t")}, []error{sqllock.ErrSessionGone, sqllock.ErrInterrupted}, ""},
		{"interrupted, then again", failure("57014"), []reply{failure("57014")}, []error{sqllock.ErrSessionGone, sqllock.ErrInterrupted}, ""},
		{"interrupted, then cut", failure("57014"), []reply{{cut: true}}, []error{sqllock.ErrSessionGone, sqllock.ErrInterrupted}, ""},
		{"another error, not held", failure("XX000"), []reply{row("f")}, nil, "XX000"},
		{"no room, not held", memory(), []reply{row("f")}, nil, "max_locks_per_transaction"},
		{"no memory otherwise", failure("53200"), []reply{row("f")}, nil, "53200"},
		{"no row", reply{row: []any{""}, noRow: true}, []reply{row("t")}, []error{sqllock.ErrSessionGone, sql.ErrNoRows}, ""},
		{"two columns", row("t", "t"), []reply{row("t")}, []error{sqllock.ErrSessionGone}, "2 columns, not 1"},
		{"no truth", row("maybe"), []reply{row("f")}, nil, "column 1"},
		{"no answer at all", reply{}, []reply{row("f")}, []error{sql.ErrNoRows}, ""},
		{"FATAL", fatal("57P01"), nil, []error{sqllock.ErrSessionGone}, ""},
		{"FATAL, interrupted", fatal("57014"), nil, []error{sqllock.ErrSessionGone}, ""},
		{"FATAL in another language", reply{code: "57P01", severity: "FATAL", local: "SCHWERWIEGEND"}, nil, []error{sqllock.ErrSessionGone}, ""},
		{"PANIC", reply{code: "XX000", severity: "PANIC"}, nil, []error{sqllock.ErrSessionGone}, ""},
		{"cut", reply{cut: true}, nil, []error{sqllock.ErrSessionGone}, ""},
		{"garbage", reply{garbage: true}, nil, []error{sqllock.ErrSessionGone}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t).on(look, admitted()).on(try, test.try).on(held, test.held...)
			defer s.end()
			g, err := pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
			wantError(t, err, test.want...)
			if err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want one that names %s", err, test.text)
			}
			if err == nil && (g.Key != "job" || g.Session != 7) {
				t.Errorf("got grant %+v", g)
			}
		})
	}
}

// TestTryFailsInTransaction: the session can't be asked any more.
func TestTryFailsInTransaction(t *testing.T) {
	s := newServer(t).on(look, admitted()).on(try, failedTx("57014"))
	defer s.end()
	tx, err := s.conn.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // the test is about the lock
	_, err = pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
	wantError(t, err, sqllock.ErrSessionGone, sqllock.ErrInterrupted)
}

// TestWaitVerdicts has the wait end in the ways that a server has, without the ctx having
// ended.
func TestWaitVerdicts(t *testing.T) {
	granted := row("t")
	for _, test := range []struct {
		name string
		then func(*server)
		want []error
	}{
		{"granted", func(s *server) { s.on(wait, granted) }, []error{errNone}},
		{"the end of a slice, then granted", func(s *server) { s.on(wait, failure("55P03"), granted).on(letGo, row("f")) }, []error{errNone}},
		{"the end of a slice, and granted at that moment", func(s *server) { s.on(wait, failure("55P03"), granted).on(letGo, row("t")) }, []error{errNone}},
		{"interrupted", func(s *server) { s.on(wait, failure("57014")).on(letGo, row("t")) }, []error{sqllock.ErrInterrupted}},
		{"interrupted, and nothing to let go", func(s *server) { s.on(wait, failure("57014")).on(letGo, reply{row: []any{""}, noRow: true}) }, []error{sqllock.ErrInterrupted}},
		{"interrupted, and again", func(s *server) { s.on(wait, failure("57014")).on(letGo, failure("57014"), row("t")) }, []error{sqllock.ErrInterrupted}},
		{"interrupted, and again, and again", func(s *server) { s.on(wait, failure("57014")).on(letGo, failure("57014"), failure("57014")) }, []error{sqllock.ErrSessionGone, sqllock.ErrInterrupted}},
		{"interrupted, and then an error", func(s *server) { s.on(wait, failure("57014")).on(letGo, failure("XX000")) }, []error{sqllock.ErrSessionGone}},
		{"interrupted, and then FATAL", func(s *server) { s.on(wait, failure("57014")).on(letGo, fatal("57P01")) }, []error{sqllock.ErrSessionGone}},
		{"interrupted, and then cut", func(s *server) { s.on(wait, failure("57014")).on(letGo, reply{cut: true}) }, []error{sqllock.ErrSessionGone}},
		{"deadlock", func(s *server) { s.on(wait, failure("40P01")).on(letGo, row("f")) }, []error{sqllock.ErrDeadlock}},
		{"no room", func(s *server) { s.on(wait, memory()).on(letGo, row("f")) }, nil},
		{"another error", func(s *server) { s.on(wait, failure("XX000")).on(letGo, row("f")) }, nil},
		{"FATAL", func(s *server) { s.on(wait, fatal("57P01")) }, []error{sqllock.ErrSessionGone}},
		{"cut", func(s *server) { s.on(wait, reply{cut: true}) }, []error{sqllock.ErrSessionGone}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t).on(look, admitted()).on(try, row("f"))
			defer s.end()
			test.then(s)
			_, err := pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Wait: true})
			wantError(t, err, test.want...)
		})
	}
}

// TestWaitInTransaction: it is behind a savepoint, to which a failure is taken back.
func TestWaitInTransaction(t *testing.T) {
	for _, test := range []struct {
		name string
		then func(*server)
		want []error
	}{
		{"granted", func(s *server) { s.on(wait, row("t")) }, []error{errNone}},
		{"interrupted", func(s *server) { s.on(wait, failedTx("57014")).on(undo, reply{then: 'T'}).on(letGo, row("t")) }, []error{sqllock.ErrInterrupted}},
		{"can't be taken back", func(s *server) { s.on(wait, failedTx("57014")).on(undo, failure("3B001")) }, []error{sqllock.ErrSessionGone}},
		{"cut when it is taken back", func(s *server) { s.on(wait, failedTx("57014")).on(undo, reply{cut: true}) }, []error{sqllock.ErrSessionGone}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t).on(look, admitted()).on(try, row("f"))
			defer s.end()
			tx, err := s.conn.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback() //nolint:errcheck // the test is about the lock
			test.then(s)
			_, err = pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Wait: true})
			wantError(t, err, test.want...)
			for _, q := range s.queries {
				if kind(q) == wait && (!strings.HasPrefix(q, "SAVEPOINT ") || !strings.Contains(q, "ROLLBACK TO SAVEPOINT ")) {
					t.Errorf("the wait is not behind a savepoint: %s", q)
				}
			}
		})
	}
}

// TestWaitWithoutPolling: a server on a system that can't tell whether a client is still
// there (PostgreSQL on Windows, and 14 on macOS) refuses client_connection_check_interval.
func TestWaitWithoutPolling(t *testing.T) {
	s := newServer(t, "server_version", "17.2").on(look, row("PostgreSQL 17.2 on x86_64-windows, compiled by msvc-19.42.34433, 64-bit", "7", "f", "1")).on(try, row("f"))
	defer s.end()
	s.always = func(query string) *reply {
		switch {
		case strings.Contains(query, "'client_connection_check_interval','1"):
			r := failure("22023")
			return &r
		case kind(query) == wait:
			r := row("t")
			return &r
		case kind(query) == letGo:
			r := row("f")
			return &r
		}
		return nil
	}
	_, err := pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Wait: true})
	wantError(t, err, errNone)
}

// TestSettingsOfAWait: those that the version knows, as each other would be an error.
func TestSettingsOfAWait(t *testing.T) {
	for version, want := range map[string][3]bool{ // statement_timeout, client_connection_check_interval, transaction_timeout
		"11.22": {true, false, false}, "13.9": {true, false, false}, "14.0": {true, true, false}, "16.4": {true, true, false}, "17.0": {true, true, true}, "18beta1": {true, true, true},
	} {
		s := newServer(t, "server_version", version).on(look, admitted()).on(try, row("f")).on(wait, row("t"))
		if _, err := pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Wait: true}); err != nil {
			t.Error(err)
		}
		q := s.queries[len(s.queries)-1]
		got := [3]bool{strings.Contains(q, "'statement_timeout'"), strings.Contains(q, "'client_connection_check_interval'"), strings.Contains(q, "'transaction_timeout'")}
		if got != want {
			t.Errorf("version %s: got %v, want %v: %s", version, got, want, q)
		}
		s.end()
	}
}

// grant acquires the lock that the rest of a test is about.
func grant(t *testing.T, s *server) sqllock.Grant {
	t.Helper()
	s.on(look, admitted()).on(try, row("t"))
	g, err := pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestReleaseVerdicts(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer reply
		want   []error
	}{
		{"both", row("2"), []error{errNone}},
		{"one", row("1"), []error{errNone}},
		{"none", row("0"), []error{sqllock.ErrLost}},
		{"NULL", row(nil), []error{sqllock.ErrLost}},
		{"interrupted", failure("57014"), []error{sqllock.ErrInterrupted}},
		{"another error", failure("XX000"), nil},
		{"no row", reply{row: []any{""}, noRow: true}, []error{sql.ErrNoRows}},
		{"no number", row("two"), nil},
		{"FATAL", fatal("57P01"), []error{sqllock.ErrLost, sqllock.ErrSessionGone}},
		{"cut", reply{cut: true}, []error{sqllock.ErrSessionGone}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			defer s.end()
			g := grant(t, s)
			s.on(release, test.answer)
			wantError(t, pgadvisory.New().Release(t.Context(), s.conn, g), test.want...)
		})
	}
}

func TestCheckVerdicts(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer reply
		want   []error
	}{
		{"true", row("t"), []error{errNone}},
		{"false", row("f"), []error{sqllock.ErrLost}},
		{"NULL", row(nil), []error{sqllock.ErrLost}},
		{"interrupted", failure("57014"), []error{sqllock.ErrInterrupted}},
		{"another error", failure("XX000"), nil},
		{"FATAL", fatal("57P01"), []error{sqllock.ErrLost, sqllock.ErrSessionGone}},
		{"cut", reply{cut: true}, []error{sqllock.ErrLost, sqllock.ErrSessionGone}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			defer s.end()
			g := grant(t, s)
			s.on(check, test.answer)
			wantError(t, pgadvisory.New().Check(t.Context(), s.conn, g), test.want...)
		})
	}
}

// TestClosedConn: the session is gone, whoever closed it.
func TestClosedConn(t *testing.T) {
	s := newServer(t)
	defer s.end()
	g := grant(t, s)
	_ = s.conn.Close()
	b := pgadvisory.New()
	_, err := b.Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
	wantError(t, err, sqllock.ErrSessionGone)
	wantError(t, b.Check(t.Context(), s.conn, g), sqllock.ErrLost, sqllock.ErrSessionGone, sql.ErrConnDone)
	if err := b.Release(t.Context(), s.conn, g); !errors.Is(err, sqllock.ErrSessionGone) || !errors.Is(err, sql.ErrConnDone) {
		t.Errorf("Release: %v", err)
	}
}

// TestForeignGrant: one that is not of this backend is refused, and nothing is sent.
func TestForeignGrant(t *testing.T) {
	s := newServer(t)
	defer s.end()
	b := pgadvisory.New()
	g := sqllock.Grant{Key: "job", Session: 7}
	wantError(t, b.Check(t.Context(), s.conn, g))
	wantError(t, b.Release(t.Context(), s.conn, g))
	_, err := b.Pass(t.Context(), s.conn, g, sqllock.Request{Key: "job"})
	wantError(t, err)
}

// TestSilence: each statement has a bound of its own, and the end of it is the session's.
func TestSilence(t *testing.T) {
	const limit = 8 * time.Second
	for name, run := range map[string]func(t *testing.T, s *server) (want []error, err error){
		"look": func(t *testing.T, s *server) ([]error, error) {
			s.on(look, reply{silent: true})
			_, err := pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
			return []error{sqllock.ErrSessionGone}, err
		},
		"try": func(t *testing.T, s *server) ([]error, error) {
			s.on(look, admitted()).on(try, reply{silent: true})
			_, err := pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
			return []error{sqllock.ErrSessionGone}, err
		},
		"wait": func(t *testing.T, s *server) ([]error, error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			s.on(look, admitted()).on(try, row("f")).on(wait, reply{silent: true})
			_, err := pgadvisory.New().Acquire(ctx, s.conn, sqllock.Request{Key: "job", Wait: true})
			return []error{sqllock.ErrSessionGone}, err
		},
		"let go": func(t *testing.T, s *server) ([]error, error) {
			s.on(look, admitted()).on(try, row("f")).on(wait, failure("57014")).on(letGo, reply{silent: true})
			_, err := pgadvisory.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Wait: true})
			return []error{sqllock.ErrSessionGone}, err
		},
		"check": func(t *testing.T, s *server) ([]error, error) {
			g := grant(t, s)
			s.on(check, reply{silent: true})
			return []error{sqllock.ErrLost, sqllock.ErrSessionGone}, pgadvisory.New().Check(t.Context(), s.conn, g)
		},
		"release": func(t *testing.T, s *server) ([]error, error) {
			g := grant(t, s)
			s.on(release, reply{silent: true})
			return []error{sqllock.ErrSessionGone}, pgadvisory.New().Release(t.Context(), s.conn, g)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t)
				defer s.end()
				start := time.Now()
				want, err := run(t, s)
				wantError(t, err, want...)
				if took := time.Since(start); took < 5*time.Second || took > limit {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// TestCancelRequests: they are sent until one has an effect, and none after it.
func TestCancelRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t).on(look, admitted()).on(try, row("f")).on(letGo, row("f"))
		ended := make(chan struct{})
		n := 0
		s.onCancel = func() {
			n++
			if n == 3 { // those before are as ones that come before the statement
				close(ended)
			}
		}
		s.always = func(query string) *reply {
			if kind(query) != wait {
				return nil
			}
			s.mu.Unlock()
			<-ended
			s.mu.Lock()
			r := failure("57014")
			return &r
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := pgadvisory.New().Acquire(ctx, s.conn, sqllock.Request{Key: "job", Wait: true})
		wantError(t, err, sqllock.ErrBusy)
		if s.cancels != 3 {
			t.Errorf("%d cancel requests, want 3", s.cancels)
		}
		s.end()
	})
}

// TestCancelHasNoEffect: the session is given up after some seconds.
func TestCancelHasNoEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t).on(look, admitted()).on(try, row("f")).on(wait, reply{silent: true})
		defer s.end()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, err := pgadvisory.New().Acquire(ctx, s.conn, sqllock.Request{Key: "job", Wait: true})
		wantError(t, err, sqllock.ErrSessionGone)
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("it took %v, want some seconds", took)
		}
		if err != nil && !strings.Contains(err.Error(), "could not be cancelled") {
			t.Errorf("the error does not say why: %v", err)
		}
	})
}

// TestCancelHangs: there is no connection for it.
func TestCancelHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t).on(look, admitted()).on(try, row("f")).on(wait, reply{silent: true})
		defer s.end()
		s.hangs.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, err := pgadvisory.New().Acquire(ctx, s.conn, sqllock.Request{Key: "job", Wait: true})
		wantError(t, err, sqllock.ErrSessionGone)
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("it took %v, want some seconds", took)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no deadline of the caller's has passed: %v", err)
		}
	})
}

// TestGroupVerdicts: all or none, sixteen in one statement.
func TestGroupVerdicts(t *testing.T) {
	reqs := make([]sqllock.Request, 20)
	for i := range reqs {
		reqs[i] = sqllock.Request{Key: "job-" + string(rune('a'+i))}
	}
	frees := slices.Repeat([]reply{row("t")}, 16)
	for _, test := range []struct {
		name string
		then func(*server)
		want []error
	}{
		{"all", func(s *server) { s.on(try, row("t"), row("t")) }, []error{errNone}},
		{"not of the first", func(s *server) { s.on(try, row("f")) }, []error{sqllock.ErrBusy}},
		{"not of the second", func(s *server) { s.on(try, row("t"), row("f")).on(letGo, frees...) }, []error{sqllock.ErrBusy}},
		{"interrupted, nothing held", func(s *server) { s.on(try, failure("57014")).on(held, row("f")) }, []error{sqllock.ErrInterrupted}},
		{"interrupted, something held", func(s *server) { s.on(try, failure("57014")).on(held, row("t")) }, []error{sqllock.ErrSessionGone, sqllock.ErrInterrupted}},
		{"second interrupted", func(s *server) { s.on(try, row("t"), failure("57014")).on(held, row("f")).on(letGo, frees...) }, []error{sqllock.ErrInterrupted}},
		{"undone in vain", func(s *server) { s.on(try, row("t"), row("f")).on(letGo, failure("XX000")) }, []error{sqllock.ErrSessionGone}},
		{"second cut", func(s *server) { s.on(try, row("t"), reply{cut: true}) }, []error{sqllock.ErrSessionGone}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t).on(look, admitted())
			defer s.end()
			test.then(s)
			grants, err := pgadvisory.New().AcquireAll(t.Context(), s.conn, reqs)
			wantError(t, err, test.want...)
			if err == nil && len(grants) != len(reqs) || err != nil && grants != nil {
				t.Errorf("got %d grants, %v", len(grants), err)
			}
		})
	}
}
