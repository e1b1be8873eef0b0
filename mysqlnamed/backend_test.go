package mysqlnamed_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The statements that the backend sends, as the mock compares them. The lock is
// called "job".
const (
	look    = "SHOW GLOBAL VARIABLES"
	try     = "SELECT IF(IS_USED_LOCK(X'6a6f62')=CONNECTION_ID(),-1,GET_LOCK(X'6a6f62',0)) v,CONNECTION_ID() c,@@hostname h,@@port p,@@read_only r"
	wait    = "IF(IS_USED_LOCK(X'6a6f62')=CONNECTION_ID(),-1,GET_LOCK(X'6a6f62',"
	release = "SELECT RELEASE_LOCK(X'6a6f62')"
	check   = "SELECT IS_USED_LOCK(X'6a6f62')=CONNECTION_ID()"
)

var contains = sqlmock.QueryMatcherFunc(func(want, got string) error {
	if !strings.Contains(got, want) {
		return errors.New("got " + got + ", want " + want)
	}
	return nil
})

// server is a mock that expects its statements in their order.
type server struct {
	sqlmock.Sqlmock
	conn *sql.Conn
}

func newServer(t *testing.T) *server {
	t.Helper()
	db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(contains))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mock.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		mock.ExpectClose()
		_ = conn.Close()
		_ = db.Close()
	})
	return &server{mock, conn}
}

// answer has the next statement answered with a row, or with an error.
func (s *server) answer(statement string, answer ...driver.Value) {
	q := s.ExpectQuery(statement)
	if err, ok := answer[0].(error); ok {
		q.WillReturnError(err)
		return
	}
	columns := make([]string, len(answer))
	q.WillReturnRows(sqlmock.NewRows(columns).AddRow(answer...))
}

func (s *server) variables(pairs ...string) {
	rows := sqlmock.NewRows([]string{"Variable_name", "Value"})
	for i := 0; i < len(pairs); i += 2 {
		rows.AddRow(pairs[i], pairs[i+1])
	}
	s.ExpectQuery(look).WillReturnRows(rows)
}

func (s *server) admitted() {
	s.variables("version", "9.7.4", "version_comment", "(Debian)", "read_only", "OFF")
}

func (s *server) tried(verdict driver.Value) { s.answer(try, verdict, 7, "db1", 3306, "0") }

func number(n uint16) error { return &mysql.MySQLError{Number: n, Message: "as the server puts it"} }

// errNone stands for "no error at all".
var errNone = errors.New("no error")

func wantError(t *testing.T, err, want error, not ...error) {
	t.Helper()
	if errors.Is(want, errNone) {
		if err != nil {
			t.Errorf("got error %v, want errNone", err)
		}
		return
	}
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want one that matches %q", err, want)
	}
	for _, n := range not {
		if !errors.Is(want, n) && errors.Is(err, n) {
			t.Errorf("got error %v, which should not match %q", err, n)
		}
	}
}

func TestAcquireVerdicts(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer driver.Value
		then   func(*server) // what is sent after the try
		want   error
	}{
		{"1", 1, nil, errNone},
		{"0", 0, nil, sqllock.ErrBusy},
		{"-1", -1, nil, sqllock.ErrHeld},
		{"NULL, not held", nil, func(s *server) { s.answer(check, nil) }, sqllock.ErrInterrupted},
		{"NULL, held", nil, func(s *server) { s.answer(check, 1) }, sqllock.ErrSessionGone},
		{"1317, not held", number(1317), func(s *server) { s.answer(check, 0) }, sqllock.ErrInterrupted},
		{"1317, held", number(1317), func(s *server) { s.answer(check, 1) }, sqllock.ErrSessionGone},
		{"1317, then broken", number(1317), func(s *server) { s.answer(check, mysql.ErrInvalidConn) }, sqllock.ErrSessionGone},
		{"3024", number(3024), func(s *server) { s.answer(check, 0) }, sqllock.ErrInterrupted},
		{"1969", number(1969), func(s *server) { s.answer(check, 0) }, sqllock.ErrInterrupted},
		{"3057", number(3057), nil, sqllock.ErrInvalidName},
		{"4163", number(4163), nil, sqllock.ErrInvalidName},
		{"1059", number(1059), nil, sqllock.ErrInvalidName},
		{"1213", number(1213), nil, sqllock.ErrDeadlock},
		{"3058", number(3058), nil, sqllock.ErrDeadlock},
		{"4031", number(4031), nil, sqllock.ErrSessionGone},
		{"1053", number(1053), nil, sqllock.ErrSessionGone},
		{"1927", number(1927), nil, sqllock.ErrSessionGone},
		{"3169", number(3169), nil, sqllock.ErrSessionGone},
		{"ErrInvalidConn", mysql.ErrInvalidConn, nil, sqllock.ErrSessionGone},
		{"ErrBadConn", driver.ErrBadConn, nil, sqllock.ErrSessionGone},
		{"ErrBusyBuffer", mysql.ErrBusyBuffer, nil, sqllock.ErrSessionGone},
		{"another error of the server", number(1226), nil, number(1226)},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.admitted()
			if err, ok := test.answer.(error); ok {
				s.answer(try, err)
			} else {
				s.tried(test.answer)
			}
			if test.then != nil {
				test.then(s)
			}
			g, err := mysqlnamed.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
			if mine, ok := test.want.(*mysql.MySQLError); ok { //nolint:errorlint // the table's own
				var got *mysql.MySQLError
				if !errors.As(err, &got) || got.Number != mine.Number {
					t.Errorf("got error %v, want number %d", err, mine.Number)
				}
				wantError(t, err, err, sqllock.ErrSessionGone, sqllock.ErrBusy)
				return
			}
			wantError(t, err, test.want, sqllock.ErrBusy, sqllock.ErrHeld, sqllock.ErrSessionGone, sqllock.ErrLost)
			if err == nil && (g.Key != "job" || g.Session != 7) {
				t.Errorf("got grant %+v", g)
			}
		})
	}
}

func TestAcquireOnAClosedConn(t *testing.T) {
	s := newServer(t)
	_ = s.conn.Close()
	_, err := mysqlnamed.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
	wantError(t, err, sqllock.ErrSessionGone)
	wantError(t, err, sql.ErrConnDone)
}

// TestWaitVerdicts has the wait end in the ways that a server has, without the
// ctx having ended.
func TestWaitVerdicts(t *testing.T) {
	for _, test := range []struct {
		name string
		then func(*server)
		want error
	}{
		{"1", func(s *server) { s.answer(wait, 1) }, errNone},
		{"0, then 1", func(s *server) { s.answer(wait, 0); s.answer(wait, 1) }, errNone},
		{"-1", func(s *server) { s.answer(wait, -1) }, sqllock.ErrHeld},
		{"NULL", func(s *server) { s.answer(wait, nil); s.answer(release, nil) }, sqllock.ErrInterrupted},
		{"NULL, and granted", func(s *server) { s.answer(wait, nil); s.answer(release, 1) }, sqllock.ErrInterrupted},
		{"1317", func(s *server) { s.answer(wait, number(1317)); s.answer(release, nil) }, sqllock.ErrInterrupted},
		{"1317, and again", func(s *server) {
			s.answer(wait, number(1317))
			s.answer(release, number(1317))
			s.answer(release, 0)
		}, sqllock.ErrInterrupted},
		{"1317, then broken", func(s *server) {
			s.answer(wait, number(1317))
			s.answer(release, mysql.ErrInvalidConn)
		}, sqllock.ErrSessionGone},
		{"3024, then 1", func(s *server) { s.answer(wait, number(3024)); s.answer(release, nil); s.answer(wait, 1) }, errNone},
		{"3058", func(s *server) { s.answer(wait, number(3058)) }, sqllock.ErrDeadlock},
		{"1213", func(s *server) { s.answer(wait, number(1213)) }, sqllock.ErrDeadlock},
		{"4031", func(s *server) { s.answer(wait, number(4031)) }, sqllock.ErrSessionGone},
		{"ErrInvalidConn", func(s *server) { s.answer(wait, mysql.ErrInvalidConn) }, sqllock.ErrSessionGone},
		{"ErrBadConn", func(s *server) { s.answer(wait, driver.ErrBadConn) }, sqllock.ErrSessionGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.admitted()
			s.tried(0)
			test.then(s)
			_, err := mysqlnamed.New().Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Wait: true})
			wantError(t, err, test.want, sqllock.ErrBusy, sqllock.ErrHeld, sqllock.ErrSessionGone, sqllock.ErrLost)
		})
	}
}

// TestWaitCancelled has the ctx end while a wait is on the server, and the wait
// end in every way it can all the same: nothing may be left held.
func TestWaitCancelled(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer driver.Value
		then   func(*server)
		want   error
	}{
		{"0", 0, func(s *server) { s.answer(release, 0) }, sqllock.ErrBusy},
		{"1", 1, func(s *server) { s.answer(release, 1) }, sqllock.ErrBusy},
		{"NULL", nil, func(s *server) { s.answer(release, nil) }, sqllock.ErrBusy},
		{"1317", number(1317), func(s *server) { s.answer(release, nil) }, sqllock.ErrBusy},
		{"3024", number(3024), func(s *server) { s.answer(release, nil) }, sqllock.ErrBusy},
		{"-1", -1, nil, sqllock.ErrHeld},
		{"1, then broken", 1, func(s *server) { s.answer(release, mysql.ErrInvalidConn) }, sqllock.ErrSessionGone},
		{"3058", number(3058), nil, sqllock.ErrDeadlock},
		{"ErrInvalidConn", mysql.ErrInvalidConn, nil, sqllock.ErrSessionGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.admitted()
			s.tried(0)
			ctx, cancel := context.WithCancel(t.Context())
			s.answer(wait, test.answer)
			if test.then != nil {
				test.then(s)
			}
			_, err := mysqlnamed.New().Acquire(&cancelOnDone{ctx, cancel}, s.conn, sqllock.Request{Key: "job", Wait: true})
			wantError(t, err, test.want, sqllock.ErrBusy, sqllock.ErrHeld, sqllock.ErrSessionGone, sqllock.ErrLost)
		})
	}
}

// cancelOnDone ends when somebody starts to watch it, as the wait does.
type cancelOnDone struct {
	context.Context //nolint:containedctx // it is one
	cancel          context.CancelFunc
}

func (c *cancelOnDone) Done() <-chan struct{} {
	c.cancel()
	return c.Context.Done()
}

func TestReleaseVerdicts(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer driver.Value
		want   error
		not    []error
	}{
		{"1", 1, errNone, nil},
		{"0", 0, sqllock.ErrLost, []error{sqllock.ErrSessionGone}},
		{"NULL", nil, sqllock.ErrLost, []error{sqllock.ErrSessionGone}},
		{"1317", number(1317), sqllock.ErrInterrupted, []error{sqllock.ErrLost}},
		{"4031", number(4031), sqllock.ErrLost, nil},
		{"1927", number(1927), sqllock.ErrLost, nil},
		{"ErrBadConn", driver.ErrBadConn, sqllock.ErrLost, nil},
		{"ErrInvalidConn", mysql.ErrInvalidConn, sqllock.ErrSessionGone, []error{sqllock.ErrLost}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.answer(release, test.answer)
			err := mysqlnamed.New().Release(t.Context(), s.conn, sqllock.Grant{Key: "job", Session: 7})
			wantError(t, err, test.want, test.not...)
		})
	}
	t.Run("ErrConnDone", func(t *testing.T) {
		s := newServer(t)
		_ = s.conn.Close()
		err := mysqlnamed.New().Release(t.Context(), s.conn, sqllock.Grant{Key: "job", Session: 7})
		wantError(t, err, sql.ErrConnDone, sqllock.ErrLost)
	})
}

func TestCheckVerdicts(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer driver.Value
		want   error
	}{
		{"1", 1, errNone},
		{"0", 0, sqllock.ErrLost},
		{"NULL", nil, sqllock.ErrLost},
		{"1317", number(1317), sqllock.ErrInterrupted},
		{"4031", number(4031), sqllock.ErrLost},
		{"ErrInvalidConn", mysql.ErrInvalidConn, sqllock.ErrLost},
		{"ErrBadConn", driver.ErrBadConn, sqllock.ErrLost},
		{"ErrBusyBuffer", mysql.ErrBusyBuffer, sqllock.ErrLost},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.answer(check, test.answer)
			err := mysqlnamed.New().Check(t.Context(), s.conn, sqllock.Grant{Key: "job", Session: 7})
			wantError(t, err, test.want)
			if !errors.Is(test.want, sqllock.ErrLost) {
				wantError(t, err, test.want, sqllock.ErrLost)
			}
		})
	}
	t.Run("ErrConnDone", func(t *testing.T) {
		s := newServer(t)
		_ = s.conn.Close()
		err := mysqlnamed.New().Check(t.Context(), s.conn, sqllock.Grant{Key: "job", Session: 7})
		wantError(t, err, sql.ErrConnDone, sqllock.ErrLost)
	})
}

// TestServers shows what is refused, why, and what accepts it.
func TestServers(t *testing.T) {
	for _, test := range []struct {
		name string
		vars []string
		risk mysqlnamed.Risk // what accepts it, 0 if nothing needs to
		why  string
	}{
		{"MySQL", []string{"version", "9.7.4", "version_comment", "(Debian)", "read_only", "OFF"}, 0, ""},
		{"MySQL 5.7.5", []string{"version", "5.7.5-log", "read_only", "OFF"}, 0, ""},
		{"MySQL 5.7.4", []string{"version", "5.7.4-m14"}, mysqlnamed.OneLockPerSession, "5.7.4"},
		{"MySQL 5.6", []string{"version", "5.6.51"}, mysqlnamed.OneLockPerSession, "frees the first"},
		{"MariaDB 10.0.2", []string{"version", "10.0.2-MariaDB"}, 0, ""},
		{"MariaDB 10.0.1", []string{"version", "10.0.1-MariaDB"}, mysqlnamed.OneLockPerSession, "10.0.1"},
		{"MariaDB 5.5", []string{"version", "5.5.68-MariaDB"}, mysqlnamed.OneLockPerSession, "5.5.68"},
		{"MariaDB behind an old prefix", []string{"version", "5.5.5-10.11.19-MariaDB"}, 0, ""},
		{"MariaDB", []string{"version", "11.8.2-MariaDB", "wsrep_on", "OFF"}, 0, ""},
		{"Percona Server", []string{"version", "8.0.36-28", "version_comment", "Percona Server (GPL)"}, 0, ""},
		{"read-only", []string{"version", "9.7.4", "read_only", "ON"}, mysqlnamed.ReadOnly, "read-only"},
		{"read-only engine", []string{"version", "8.0.36", "innodb_read_only", "ON"}, mysqlnamed.ReadOnly, "read-only"},
		{"Galera", []string{"version", "10.11.19-MariaDB", "wsrep_on", "ON"}, mysqlnamed.PerNode, "Galera"},
		{"several primaries", []string{"version", "8.4.0", "group_replication_group_name", "aaaa", "group_replication_single_primary_mode", "OFF"}, mysqlnamed.PerNode, "several primaries"},
		{"one primary", []string{"version", "8.4.0", "group_replication_group_name", "aaaa", "group_replication_single_primary_mode", "ON"}, 0, ""},
		{"no group", []string{"version", "8.4.0", "group_replication_group_name", "", "group_replication_single_primary_mode", "OFF"}, 0, ""},
		{"NDB Cluster", []string{"version", "8.0.36-cluster"}, mysqlnamed.PerNode, "NDB"},
		{"TiDB", []string{"version", "8.0.11-TiDB-v8.5.0"}, mysqlnamed.Lookalike, "TiDB"},
		{"Vitess", []string{"version", "8.0.30-Vitess"}, mysqlnamed.Lookalike, "Vitess"},
		{"Dolt", []string{"version", "8.0.31", "version_comment", "Dolt"}, mysqlnamed.Lookalike, "Dolt"},
		{"unreadable version", []string{"version", "trunk"}, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			acquire := func(opts ...mysqlnamed.Option) error {
				s := newServer(t)
				s.variables(test.vars...)
				if test.risk == 0 || len(opts) > 0 {
					s.tried(1)
				}
				_, err := mysqlnamed.New(opts...).Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
				return err
			}
			err := acquire()
			if test.risk == 0 {
				wantError(t, err, errNone)
				return
			}
			wantError(t, err, sqllock.ErrUnsupported)
			if !strings.Contains(err.Error(), test.why) || !strings.Contains(err.Error(), "mysqlnamed.Allow(") {
				t.Errorf("the error should say %q and what accepts it: %v", test.why, err)
			}
			wantError(t, acquire(mysqlnamed.Allow(test.risk)), errNone)
			all := mysqlnamed.OneLockPerSession | mysqlnamed.ReadOnly | mysqlnamed.PerNode | mysqlnamed.Lookalike
			s := newServer(t)
			s.variables(test.vars...)
			_, err = mysqlnamed.New(mysqlnamed.Allow(all&^test.risk)).Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
			wantError(t, err, sqllock.ErrUnsupported)
		})
	}
}

// TestLook shows when the server is looked at: before the first try, and when
// a session turns out to be of another kind; and that nothing stays locked.
func TestLook(t *testing.T) {
	req := sqllock.Request{Key: "job"}
	s := newServer(t)
	b := mysqlnamed.New()
	acquire := func(want error) {
		t.Helper()
		_, err := b.Acquire(t.Context(), s.conn, req)
		wantError(t, err, want)
	}
	s.variables("version", "9.7.4", "read_only", "ON")
	acquire(sqllock.ErrUnsupported)
	s.variables("version", "9.7.4", "read_only", "ON") // still before any try
	acquire(sqllock.ErrUnsupported)
	s.admitted()
	s.tried(1)
	acquire(errNone)
	s.tried(1) // no look
	acquire(errNone)
	s.answer(try, 1, 7, "db1", 3306, "1") // it has become a replica
	s.variables("version", "9.7.4", "read_only", "ON")
	s.answer(release, 1)
	acquire(sqllock.ErrUnsupported)
	s.answer(try, 0, 7, "db1", 3306, "1")
	s.variables("version", "9.7.4", "read_only", "ON")
	acquire(sqllock.ErrUnsupported)
	s.answer(try, 1, 7, "db2", 3306, "0")
	s.variables("version", "10.11.19-MariaDB", "read_only", "OFF")
	acquire(errNone)
	s.answer(try, 1, 7, "db2", 3306, "0")
	acquire(errNone)
}

// TestWaitStatements pins how a deadline becomes a wait on the server.
func TestWaitStatements(t *testing.T) {
	for _, test := range []struct {
		version  string
		deadline time.Duration
		want     string
	}{
		{"9.7.4", time.Hour, "SELECT /*+ MAX_EXECUTION_TIME(1000) */ "},
		{"9.7.4", time.Hour, "GET_LOCK(X'6a6f62',1)"},
		{"9.7.4", 700 * time.Millisecond, "GET_LOCK(X'6a6f62',1)"},
		{"10.11.19-MariaDB", time.Hour, "SET STATEMENT max_statement_time=0 FOR SELECT "},
		{"10.11.19-MariaDB", time.Hour, "GET_LOCK(X'6a6f62',1.000)"},
		{"10.11.19-MariaDB", 700 * time.Millisecond, "GET_LOCK(X'6a6f62',0.6"},
	} {
		s := newServer(t)
		s.variables("version", test.version, "read_only", "OFF")
		s.answer(try, 0, 7, "db1", 3306, "0")
		s.answer(test.want, 1)
		ctx, cancel := context.WithTimeout(t.Context(), test.deadline)
		_, err := mysqlnamed.New().Acquire(ctx, s.conn, sqllock.Request{Key: "job", Wait: true})
		cancel()
		wantError(t, err, errNone)
	}
}
