package table_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

const (
	clock = "(UNIX_TIMESTAMP()*1000000+MICROSECOND(NOW(6)))"
	pass  = "UPDATE `shared_locks` SET created=UNIX_TIMESTAMP(),ttl=60,token=LAST_INSERT_ID(GREATEST(" + clock + ",43))" + mine
	watch = "SELECT COALESCE(MAX(name=_latin1 X'6a6f62' AND token=42 AND lock_acquired=1 AND connection_id=IS_USED_LOCK(_latin1 X'6a6f62')),0) v," +
		"COALESCE(MAX(name=_latin1 X'6b31' AND connection_id=9 AND lock_acquired=1 AND connection_id=IS_USED_LOCK(_latin1 X'6b31')),0) v" +
		" FROM `shared_locks` WHERE name IN (_latin1 X'6a6f62',_latin1 X'6b31') AND " + over + ">UNIX_TIMESTAMP()"
)

// granted returns a grant with token 42.
func granted(t *testing.T, s *server, opts ...table.Option) (*table.Backend, sqllock.Grant) {
	t.Helper()
	s.looked()
	s.done(try, 42, 1)
	b := table.New(time.Minute, opts...)
	g, err := b.Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Observe: func(sqllock.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	return b, g
}

func TestPass(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(s *server)
		want   error
		not    error
	}{
		{"held", func(s *server) { s.done(pass, 77, 1) }, nil, nil},
		{"held, and rows are counted otherwise", func(s *server) { s.done(pass, 77, 0) }, nil, nil},
		{"gone", func(s *server) { s.done(pass, 0, 0) }, sqllock.ErrLost, nil},
		{"gone, and the session is not to be used", func(s *server) { s.done(pass, 0, 0) }, sqllock.ErrSessionGone, nil},
		{"interrupted", func(s *server) { s.fails(pass, 1317) }, sqllock.ErrInterrupted, sqllock.ErrLost},
		{"locked table", func(s *server) { s.fails(pass, 1205) }, errAny, sqllock.ErrLost},
		{"deadlock", func(s *server) { s.fails(pass, 1213) }, sqllock.ErrDeadlock, sqllock.ErrLost},
		{"no table", func(s *server) { s.fails(pass, 1146) }, sqllock.ErrNoTable, sqllock.ErrLost},
		{"in a transaction", func(s *server) { s.fails(pass, 1785) }, sqllock.ErrInTransaction, sqllock.ErrLost},
		{"killed", func(s *server) { s.fails(pass, 1927) }, sqllock.ErrLost, nil},
		{"no answer", func(s *server) { s.ExpectExec(pass).WillReturnError(mysql.ErrInvalidConn) }, sqllock.ErrSessionGone, nil},
		{"no insert id", func(s *server) {
			s.ExpectExec(pass).WillReturnResult(sqlmock.NewErrorResult(errAny))
		}, errAny, sqllock.ErrLost},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			b, g := granted(t, s)
			test.script(s)
			before := time.Now()
			next, err := b.Pass(t.Context(), s.conn, g, sqllock.Request{Key: "job"})
			switch {
			case test.want == nil:
				if err != nil || next.Token != 77 || next.Key != "job" || next.State != g.State || next.Until.Sub(before).Round(time.Second) != time.Minute {
					t.Errorf("got %+v, %v", next, err)
				}
			case err == nil || test.want != errAny && !errors.Is(err, test.want): //nolint:errorlint // it is the table's own
				t.Errorf("got %v, want %v", err, test.want)
			case test.not != nil && errors.Is(err, test.not):
				t.Errorf("got %v, which should not match %v", err, test.not)
			}
		})
	}
}

// errAny stands for any error.
var errAny = errors.New("any")

// TestPassTTL: that of the request, and tokens go on from the one that was seen.
func TestPassTTL(t *testing.T) {
	s := newServer(t)
	b, g := granted(t, s)
	next := func(statement string, d time.Duration, token int64) {
		t.Helper()
		s.done(statement, token, 1)
		var err error
		if g, err = b.Pass(t.Context(), s.conn, g, sqllock.Request{Key: "job", TTL: d}); err != nil || g.Token != token {
			t.Fatalf("got %+v, %v", g, err)
		}
	}
	next("ttl=90,token=LAST_INSERT_ID(GREATEST("+clock+",43))", 89001*time.Millisecond, 50)
	next("ttl=60,token=LAST_INSERT_ID(GREATEST("+clock+",51)) WHERE name=_latin1 X'6a6f62' AND token=50", 0, 51)
	g.Token = 99 // of another process
	next(",100)) WHERE", 0, 100)
	s.done(",101)),_latin1", 101, 1)
	if _, err := b.Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Observe: func(sqllock.Event) {}}); err != nil {
		t.Fatal(err)
	}
}

func TestPassUnmigrated(t *testing.T) {
	s := newServer(t)
	s.shape("MyISAM", 5, 0)
	s.answer("CONNECTION_ID() c", 0, ours)
	s.done(try, 0, 1)
	b := table.New(time.Minute, table.AllowUnmigrated())
	g, err := b.Acquire(t.Context(), s.conn, sqllock.Request{Key: "job", Observe: func(sqllock.Event) {}})
	if err != nil || g.Session != ours {
		t.Fatalf("got %+v, %v", g, err)
	}
	const renew = "SET created=UNIX_TIMESTAMP()+0*LAST_INSERT_ID(1),ttl=5 WHERE name=_latin1 X'6a6f62' AND connection_id=7 AND lock_acquired=1"
	s.done(renew, 1, 1)
	next, err := b.Pass(t.Context(), s.conn, g, sqllock.Request{Key: "job", TTL: 5 * time.Second})
	if err != nil || next.Token != 0 || next.Session != ours || !next.Until.Before(g.Until) {
		t.Errorf("got %+v, %v", next, err)
	}
	s.done(renew, 0, 0)
	_, err = b.Pass(t.Context(), s.conn, next, sqllock.Request{Key: "job", TTL: 5 * time.Second})
	wantError(t, err, sqllock.ErrLost)
}

func TestPassOfAStrangeGrant(t *testing.T) {
	s := newServer(t)
	b := table.New(time.Minute)
	if _, err := b.Pass(t.Context(), s.conn, sqllock.Grant{Key: "job"}, sqllock.Request{Key: "job"}); err == nil || errors.Is(err, sqllock.ErrLost) {
		t.Errorf("Pass: %v", err)
	}
	if _, err := b.Watch(t.Context(), s.conn, []sqllock.Grant{{Key: "job"}}); err == nil || errors.Is(err, sqllock.ErrLost) {
		t.Errorf("Watch: %v", err)
	}
}

func TestWatch(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer []driver.Value
		err    error
		held   []bool
		want   error
	}{
		{"held", []driver.Value{1, 1}, nil, []bool{true, true}, nil},
		{"one", []driver.Value{0, 1}, nil, []bool{false, true}, nil},
		{"interrupted", nil, errNumber(1317), nil, sqllock.ErrInterrupted},
		{"no table", nil, errNumber(1146), nil, sqllock.ErrNoTable},
		{"broken", nil, mysql.ErrInvalidConn, nil, sqllock.ErrSessionGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			b, g := granted(t, s)
			if test.err != nil {
				s.ExpectQuery(watch).WillReturnError(test.err)
			} else {
				s.answer(watch, test.answer...)
			}
			old := sqllock.Grant{Key: "k1", Session: 9, State: g.State} // of before the table was migrated
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // it does not reach a session of the caller's
			held, err := b.Watch(ctx, s.conn, []sqllock.Grant{g, old})
			if !errors.Is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
			if !slices.Equal(held, test.held) {
				t.Errorf("got %v, want %v", held, test.held)
			}
		})
	}
}

// TestWatchOfMany asks for a hundred grants at a time.
func TestWatchOfMany(t *testing.T) {
	s := newServer(t)
	b, g := granted(t, s)
	if held, err := b.Watch(t.Context(), s.conn, nil); err != nil || len(held) != 0 {
		t.Errorf("of none: %v, %v", held, err)
	}
	grants := make([]sqllock.Grant, 150)
	for i := range grants {
		grants[i] = g
		grants[i].Token = int64(1000 + i)
	}
	s.answer("SELECT COALESCE(MAX(name=_latin1 X'6a6f62' AND token=1000 ", make([]driver.Value, 100)...)
	s.answer("SELECT COALESCE(MAX(name=_latin1 X'6a6f62' AND token=1100 ", make([]driver.Value, 50)...)
	held, err := b.Watch(t.Context(), s.conn, grants)
	if err != nil || len(held) != len(grants) || slices.Contains(held, true) {
		t.Errorf("got %d answers, %v", len(held), err)
	}
}
