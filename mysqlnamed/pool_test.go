package mysqlnamed_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
)

// The statements about two locks, "job" and "k1".
const (
	tryBoth = "SELECT IF(IF(IS_USED_LOCK(X'6a6f62')=CONNECTION_ID(),-1,GET_LOCK(X'6a6f62',0))=1," +
		"IF(IF(IS_USED_LOCK(X'6b31')=CONNECTION_ID(),-1,GET_LOCK(X'6b31',0))=1,1,IF(RELEASE_LOCK(X'6a6f62')=1,0,NULL)),0) v," +
		"CONNECTION_ID() c,@@hostname h,@@port p,@@read_only r"
	anyOfBoth   = "SELECT IS_USED_LOCK(X'6a6f62')=CONNECTION_ID() OR IS_USED_LOCK(X'6b31')=CONNECTION_ID() v"
	releaseBoth = "SELECT RELEASE_LOCK(X'6a6f62') v,RELEASE_LOCK(X'6b31') v"
	watchBoth   = "SELECT CONCAT_WS('/',@@hostname,@@port) h,UUID_SHORT()&0xFFFFFFFFFFFFFF s,IS_USED_LOCK(X'6a6f62')=7 v,IS_USED_LOCK(X'6b31')=8 v"
)

func both() []sqllock.Request { return []sqllock.Request{{Key: "job"}, {Key: "k1"}} }

func TestAcquireAllVerdicts(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer driver.Value
		then   func(*server) // what is sent after the try
		want   error
	}{
		{"1", 1, nil, errNone},
		{"0", 0, nil, sqllock.ErrBusy},
		{"-1", -1, nil, sqllock.ErrBusy},
		{"NULL, not held", nil, func(s *server) { s.answer(anyOfBoth, nil) }, sqllock.ErrInterrupted},
		{"NULL, held", nil, func(s *server) { s.answer(anyOfBoth, 1) }, sqllock.ErrSessionGone},
		{"1317, not held", number(1317), func(s *server) { s.answer(anyOfBoth, 0) }, sqllock.ErrInterrupted},
		{"1317, held", number(1317), func(s *server) { s.answer(anyOfBoth, 1) }, sqllock.ErrSessionGone},
		{"1317, then broken", number(1317), func(s *server) { s.answer(anyOfBoth, mysql.ErrInvalidConn) }, sqllock.ErrSessionGone},
		{"1317, twice", number(1317), func(s *server) { s.answer(anyOfBoth, number(1317)) }, sqllock.ErrSessionGone},
		{"3024", number(3024), func(s *server) { s.answer(anyOfBoth, 0) }, sqllock.ErrInterrupted},
		{"4163, not held", number(4163), func(s *server) { s.answer(anyOfBoth, 0) }, sqllock.ErrInvalidName},
		{"4163, held", number(4163), func(s *server) { s.answer(anyOfBoth, 1) }, sqllock.ErrSessionGone},
		{"3058", number(3058), func(s *server) { s.answer(anyOfBoth, 0) }, sqllock.ErrDeadlock},
		{"4031", number(4031), nil, sqllock.ErrSessionGone},
		{"ErrInvalidConn", mysql.ErrInvalidConn, nil, sqllock.ErrSessionGone},
		{"ErrBadConn", driver.ErrBadConn, nil, sqllock.ErrSessionGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.admitted()
			if err, ok := test.answer.(error); ok {
				s.answer(tryBoth, err)
			} else {
				s.answer(tryBoth, test.answer, 7, "db1", 3306, "0")
			}
			if test.then != nil {
				test.then(s)
			}
			grants, err := mysqlnamed.New().AcquireAll(t.Context(), s.conn, both())
			wantError(t, err, test.want, sqllock.ErrBusy, sqllock.ErrHeld, sqllock.ErrSessionGone, sqllock.ErrLost)
			var want []sqllock.Grant
			if err == nil {
				want = []sqllock.Grant{{Key: "job", Session: 7}, {Key: "k1", Session: 7}}
			}
			same := func(a, b sqllock.Grant) bool { return a.Key == b.Key && a.Session == b.Session }
			if !slices.EqualFunc(grants, want, same) {
				t.Errorf("got grants %+v, want %+v", grants, want)
			}
		})
	}
}

// TestAcquireAllOfMany takes two statements: what the first one has taken is let go
// when the second one fails.
func TestAcquireAllOfMany(t *testing.T) {
	reqs := make([]sqllock.Request, 18)
	columns := make([]driver.Value, 16)
	for i := range reqs {
		reqs[i].Key = "k" + string(rune('a'+i))
	}
	const last = "GET_LOCK(X'6b72',0))=1,1,IF(RELEASE_LOCK(X'6b71')=1,0,NULL)),0)"
	letGo := "SELECT RELEASE_LOCK(X'6b61') v,"
	for _, test := range []struct {
		name   string
		script func(*server)
		want   error
	}{
		{"granted", func(s *server) { s.answer(last, 1, 7, "db1", 3306, "0") }, errNone},
		{"busy", func(s *server) { s.answer(last, 0, 7, "db1", 3306, "0"); s.answer(letGo, columns...) }, sqllock.ErrBusy},
		{"interrupted", func(s *server) {
			s.answer(last, number(1317))
			s.answer("SELECT IS_USED_LOCK(X'6b71')=CONNECTION_ID() OR", 0)
			s.answer(letGo, number(1317))
			s.answer(letGo, columns...)
		}, sqllock.ErrInterrupted},
		{"busy, then broken", func(s *server) {
			s.answer(last, 0, 7, "db1", 3306, "0")
			s.answer(letGo, mysql.ErrInvalidConn)
		}, sqllock.ErrSessionGone},
		{"killed", func(s *server) { s.answer(last, number(1927)) }, sqllock.ErrSessionGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.admitted()
			s.answer("RELEASE_LOCK(X'6b6f')", 1, 7, "db1", 3306, "0")
			test.script(s)
			grants, err := mysqlnamed.New().AcquireAll(t.Context(), s.conn, reqs)
			wantError(t, err, test.want, sqllock.ErrBusy, sqllock.ErrSessionGone)
			if want := len(reqs); err == nil && len(grants) != want || err != nil && grants != nil {
				t.Errorf("got %d grants", len(grants))
			}
		})
	}
}

// TestAcquireAllLooks: servers are admitted as by Acquire.
func TestAcquireAllLooks(t *testing.T) {
	b := mysqlnamed.New()
	s := newServer(t)
	acquire := func(want error) {
		t.Helper()
		_, err := b.AcquireAll(t.Context(), s.conn, both())
		wantError(t, err, want)
	}
	s.variables("version", "9.7.4", "read_only", "ON")
	acquire(sqllock.ErrUnsupported)
	s.admitted()
	s.answer(tryBoth, 1, 7, "db1", 3306, "0")
	acquire(errNone)
	s.answer(tryBoth, 1, 7, "db1", 3306, "1") // it has become a replica
	s.variables("version", "9.7.4", "read_only", "ON")
	s.answer(releaseBoth, 1, 1)
	acquire(sqllock.ErrUnsupported)
	s.answer(tryBoth, 0, 7, "db1", 3306, "1")
	s.variables("version", "9.7.4", "read_only", "ON")
	acquire(sqllock.ErrUnsupported)
}

func TestAcquireAllOfFew(t *testing.T) {
	b := mysqlnamed.New()
	s := newServer(t)
	if grants, err := b.AcquireAll(t.Context(), s.conn, nil); err != nil || len(grants) != 0 {
		t.Errorf("of none: %v, %v", grants, err)
	}
	s.admitted()
	for answer, want := range map[int]error{1: errNone, 0: sqllock.ErrBusy, -1: sqllock.ErrBusy} {
		s.tried(answer)
		_, err := b.AcquireAll(t.Context(), s.conn, []sqllock.Request{{Key: "job"}})
		wantError(t, err, want, sqllock.ErrHeld)
	}
	_ = s.conn.Close()
	_, err := b.AcquireAll(t.Context(), s.conn, both())
	wantError(t, err, sqllock.ErrSessionGone)
	wantError(t, err, sql.ErrConnDone)
}

func TestWatch(t *testing.T) {
	grants := []sqllock.Grant{{Key: "job", Session: 7}, {Key: "k1", Session: 8}}
	for _, test := range []struct {
		name   string
		answer []driver.Value
		held   []bool
		want   error
	}{
		{"held", []driver.Value{"db1/3306", 5, 1, 1}, []bool{true, true}, errNone},
		{"one by another session, one by none", []driver.Value{"db1/3306", 5, 0, nil}, []bool{false, false}, errNone},
		{"one", []driver.Value{"db1/3306", 5, nil, 1}, []bool{false, true}, errNone},
		{"1317", []driver.Value{number(1317)}, nil, sqllock.ErrInterrupted},
		{"ErrInvalidConn", []driver.Value{mysql.ErrInvalidConn}, nil, sqllock.ErrSessionGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.answer(watchBoth, test.answer...)
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // it does not reach a session of the caller's
			held, err := mysqlnamed.New().Watch(ctx, s.conn, grants)
			wantError(t, err, test.want)
			if !slices.Equal(held, test.held) {
				t.Errorf("got %v, want %v", held, test.held)
			}
		})
	}
	t.Run("a ctx that has ended, and a pool", func(t *testing.T) {
		db, mock, err := sqlmock.New(sqlmock.QueryMatcherOption(contains))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { mock.ExpectClose(); _ = db.Close() })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = mysqlnamed.New().Watch(ctx, db, grants)
		wantError(t, err, context.Canceled)
	})
	t.Run("none", func(t *testing.T) {
		held, err := mysqlnamed.New().Watch(t.Context(), newServer(t).conn, nil)
		if err != nil || len(held) != 0 {
			t.Errorf("got %v, %v", held, err)
		}
	})
}

// TestWatchAfterRestart: what was granted before the server was started is lost,
// whoever has its connection id now.
func TestWatchAfterRestart(t *testing.T) {
	const second = 1 << 24
	s := newServer(t)
	b := mysqlnamed.New()
	s.admitted()
	acquire := func() sqllock.Grant {
		t.Helper()
		s.tried(1)
		g, err := b.Acquire(t.Context(), s.conn, sqllock.Request{Key: "job"})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	old := acquire()
	for i, look := range []struct {
		server string
		serial int64
		held   bool
	}{
		{"db1/3306", 1000*second + 1, true},
		{"db1/3306", 1000*second + 1000, true},
		{"db1/3306", 1000*second + second/4, true}, // many calls of UUID_SHORT by others
		{"db2/3306", 5 * second, true},             // another server
		{"db1/3306", 1001*second + 7, false},
		{"db1/3306", 1001*second + 8, false},
	} {
		s.answer("UUID_SHORT", look.server, look.serial, 1)
		held, err := b.Watch(t.Context(), s.conn, []sqllock.Grant{old})
		if err != nil || held[0] != look.held {
			t.Errorf("look %d: %v, %v", i, held, err)
		}
	}
	newer := acquire()
	for _, serial := range []int64{1001*second + 9, 900 * second} { // a clock that was set back, in between
		s.answer("UUID_SHORT", "db1/3306", serial, 1)
		held, err := b.Watch(t.Context(), s.conn, []sqllock.Grant{newer})
		if want := serial > 1000*second; err != nil || held[0] != want {
			t.Errorf("serial %d: %v, %v", serial, held, err)
		}
	}
}

// TestWatchOfMany asks for a hundred grants at a time.
func TestWatchOfMany(t *testing.T) {
	grants := make([]sqllock.Grant, 201)
	for i := range grants {
		grants[i] = sqllock.Grant{Key: "job", Session: int64(i)}
	}
	s := newServer(t)
	for _, n := range []int{100, 100, 1} {
		answer := make([]driver.Value, 2+n)
		answer[1+n] = 1
		s.answer("UUID_SHORT()&0xFFFFFFFFFFFFFF s,IS_USED_LOCK(", answer...)
	}
	held, err := mysqlnamed.New().Watch(t.Context(), s.conn, grants)
	if err != nil || len(held) != len(grants) {
		t.Fatalf("got %d answers, %v", len(held), err)
	}
	for i, h := range held {
		if want := i == 99 || i == 199 || i == 200; h != want {
			t.Errorf("grant %d: %t", i, h)
		}
	}
	s.answer("IS_USED_LOCK(", make([]driver.Value, 102)...)
	s.answer("IS_USED_LOCK(", number(1317))
	if held, err = mysqlnamed.New().Watch(t.Context(), s.conn, grants); held != nil || !errors.Is(err, sqllock.ErrInterrupted) {
		t.Errorf("got %d answers, %v", len(held), err)
	}
}

// TestPass sends nothing.
func TestPass(t *testing.T) {
	s := newServer(t)
	b := mysqlnamed.New()
	g := sqllock.Grant{Key: "job", Session: 7}
	next, err := b.Pass(t.Context(), s.conn, g, sqllock.Request{Key: "job"})
	if err != nil || next != g {
		t.Errorf("got %+v, %v", next, err)
	}
	_ = s.conn.Close()
	_, err = b.Pass(t.Context(), s.conn, g, sqllock.Request{Key: "job"})
	wantError(t, err, sqllock.ErrLost)
}
