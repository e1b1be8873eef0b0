package table_test

import (
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What tells the statements of the backend apart. The lock is called "job".
const (
	try     = "IF(IS_USED_LOCK(_latin1 X'6a6f62')=CONNECTION_ID(),-1,GET_LOCK(_latin1 X'6a6f62',0))"
	held    = "SELECT IS_USED_LOCK(_latin1 X'6a6f62')=CONNECTION_ID() v"
	look    = "LEFT JOIN `shared_locks` r"
	as      = " WHERE name=_latin1 X'6a6f62' AND COALESCE(connection_id,0)=3 AND COALESCE(created,0)=1000 AND COALESCE(ttl,0)=10"
	remove  = "DELETE FROM `shared_locks`" + as
	claim   = "VALUES (IF(IS_USED_LOCK(_latin1 X'6a6f62')=CONNECTION_ID(),"
	condemn = "UPDATE `shared_locks` SET lock_acquired=9" + as + " AND COALESCE(lock_acquired,0)=1 AND token=41"
	wait    = "GET_LOCK(_latin1 X'6a6f62',"
	kill    = "KILL CONNECTION IF(IF(COALESCE(_latin1 X'6a6f62','')='',NULL,COALESCE(IS_USED_LOCK(CONVERT(_latin1 X'6a6f62' USING utf8mb4))," +
		"IS_USED_LOCK(_latin1 X'6a6f62')))=3 AND 1000>=((UUID_SHORT()>>24)&0xFFFFFFFF),3,0)"
	undo  = "UPDATE `shared_locks` SET lock_acquired=1" + as + " AND COALESCE(lock_acquired,0)=9 AND token=41"
	letGo = "SELECT RELEASE_LOCK(_latin1 X'6a6f62')"
	free  = "DELETE FROM `shared_locks` WHERE name=_latin1 X'6a6f62'" +
		" AND IF(token=42 AND lock_acquired=1 AND connection_id=CONNECTION_ID(),RELEASE_LOCK(_latin1 X'6a6f62'),0)=1"
	still = "SELECT COUNT(*) v FROM `shared_locks` WHERE name=_latin1 X'6a6f62' AND token=42 AND lock_acquired=1" +
		" AND connection_id=CONNECTION_ID() AND IS_USED_LOCK(_latin1 X'6a6f62')=CONNECTION_ID()"
	check = "FROM `shared_locks` WHERE name=_latin1 X'6a6f62' AND token=42 AND lock_acquired=1 AND connection_id=IS_USED_LOCK(_latin1 X'6a6f62')"
	over  = "(COALESCE(created,0)+GREATEST(LEAST(COALESCE(ttl,0),99999999999),-1)+1)"
	mine  = " WHERE name=_latin1 X'6a6f62' AND token=42 AND lock_acquired=1 AND connection_id=IS_USED_LOCK(_latin1 X'6a6f62') AND " + over + ">UNIX_TIMESTAMP()"
)

// ours is the id of the mocked session.
const ours = 7

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

func (s *server) answer(statement string, answer ...driver.Value) {
	columns := make([]string, len(answer))
	rows := sqlmock.NewRows(columns)
	rows.AddRow(answer...)
	s.ExpectQuery(statement).WillReturnRows(rows)
}

// looked expects the look at the server and the table that the first lock brings.
func (s *server) looked() { s.shape("MyISAM", 5, 2) }

func (s *server) shape(engine string, needed, added int) {
	s.ExpectQuery("SHOW GLOBAL VARIABLES").WillReturnRows(sqlmock.NewRows([]string{"n", "v"}).AddRow("version", "9.7.0"))
	s.answer("information_schema.tables", engine, needed, added, "", "shop", "9.7.0", "AB")
}

func (s *server) done(statement string, id, rows int64) {
	s.ExpectExec(statement).WillReturnResult(sqlmock.NewResult(id, rows))
}

func (s *server) fails(statement string, number uint16) {
	s.ExpectExec(statement).WillReturnError(errNumber(number))
}

// row answers a look with a row of session 3.
func (s *server) row(acquired int64, used, bell any, left time.Duration) {
	s.answer(look, hex.EncodeToString([]byte("job")), 3, 1000, 10, acquired, 41, "web1/77 cron", used, bell, left.Microseconds(), 500, ours, "AB")
}

func (s *server) noRow(bell any) {
	s.answer(look, nil, nil, nil, nil, nil, 0, "", nil, bell, nil, 500, ours, "AB")
}

func errNumber(n uint16) error { return &mysql.MySQLError{Number: n, Message: "as the server puts it"} }

func wantError(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want one that matches %v", err, want)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error should say %q: %v", text, err)
		}
	}
}

// TestTryLock: what a TryLock makes of what it finds, statement by statement.
func TestTryLock(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(s *server)
		want   error // nil: granted token 42
		text   string
	}{
		{"free", func(s *server) { s.done(try, 42, 1) }, nil, ""},
		{"held", func(s *server) { s.fails(try, 1048); s.row(1, 3, 3, time.Second) }, sqllock.ErrBusy, ""},
		{"held by this session", func(s *server) { s.fails(try, 1048); s.row(1, 3, ours, time.Second) }, sqllock.ErrHeld, ""},
		{"somebody between two statements", func(s *server) { s.fails(try, 1048); s.noRow(4) }, sqllock.ErrBusy, ""},
		{"dead holder", func(s *server) {
			s.fails(try, 1062)
			s.row(1, nil, ours, time.Second)
			s.done(remove, 0, 1)
			s.done(claim, 42, 1)
		}, nil, ""},
		{"dead holder, whose row another one removed", func(s *server) {
			s.fails(try, 1062)
			s.row(1, nil, ours, time.Second)
			s.done(remove, 0, 0)
			s.noRow(ours)
			s.done(claim, 42, 1)
		}, nil, ""},
		{"PHP about to take the doorbell", func(s *server) {
			s.fails(try, 1062)
			s.row(0, nil, ours, time.Second)
			s.answer(letGo, 1)
		}, sqllock.ErrBusy, ""},
		{"PHP's row, and its time is over", func(s *server) {
			s.fails(try, 1062)
			s.row(0, nil, ours, 0)
			s.done(remove, 0, 1)
			s.done(claim, 42, 1)
		}, nil, ""},
		{"PHP was faster after the removal", func(s *server) {
			s.fails(try, 1062)
			s.row(1, nil, ours, time.Second)
			s.done(remove, 0, 1)
			s.fails(claim, 1062)
			s.row(0, nil, ours, time.Second)
			s.answer(letGo, 1)
		}, sqllock.ErrBusy, ""},
		{"hung holder", func(s *server) {
			s.fails(try, 1048)
			s.row(1, 3, 3, 0)
			s.answer(wait, 0)
			s.row(1, 3, 3, 0)
			s.done(condemn, 0, 1)
			s.done(kill, 0, 0)
			s.answer(wait, 1)
			s.fails(claim, 1062)
			s.row(9, nil, ours, 0)
			s.done(remove, 0, 1)
			s.done(claim, 42, 1)
		}, nil, ""},
		{"one that is only passing through", func(s *server) {
			s.fails(try, 1048)
			s.row(1, 3, 3, 0)
			s.answer(wait, 0)
			s.answer(look, hex.EncodeToString([]byte("job")), 3, 2000, 10, 1, 43, "", 3, 3, int64(9000000), 500, ours, "AB")
		}, sqllock.ErrBusy, ""},
		{"hung holder that extends after the look", func(s *server) {
			s.fails(try, 1048)
			s.row(1, 3, 3, 0)
			s.answer(wait, 0)
			s.row(1, 3, 3, 0)
			s.done(condemn, 0, 0)
			s.row(1, 3, 3, time.Second)
		}, sqllock.ErrBusy, ""},
		{"KILL is refused", func(s *server) {
			s.fails(try, 1048)
			s.row(1, 3, 3, 0)
			s.answer(wait, 0)
			s.row(1, 3, 3, 0)
			s.done(condemn, 0, 1)
			s.fails(kill, 1095)
			s.done(undo, 0, 1)
		}, sqllock.ErrPermission, "session 3"},
		{"no table", func(s *server) {
			s.fails(try, 1146)
			s.answer(held, 0)
			s.shape("", 0, 0)
		}, sqllock.ErrNoTable, "migrations.Up"},
		{"no column any more", func(s *server) {
			s.fails(try, 1054)
			s.answer(held, 0)
			s.shape("MyISAM", 5, 0)
		}, sqllock.ErrNoTable, "migrations.Up"},
		{"another table now", func(s *server) {
			s.fails(try, 1054)
			s.answer(held, 0)
			s.shape("MyISAM", 5, 2)
			s.done(try, 42, 1)
		}, nil, ""},
		{"no database", func(s *server) { s.fails(try, 1046); s.answer(held, 0) }, sqllock.ErrNoTable, "DSN"},
		{"no privilege on the table", func(s *server) { s.fails(try, 1142); s.answer(held, 0) }, sqllock.ErrPermission, "INSERT"},
		{"read-only", func(s *server) { s.fails(try, 1290); s.answer(held, 0) }, sqllock.ErrUnsupported, "primary"},
		{"in a transaction that has written", func(s *server) { s.fails(try, 1785) }, sqllock.ErrInTransaction, "table.WithPool"},
		{"in a read-only transaction", func(s *server) { s.fails(try, 1792) }, sqllock.ErrInTransaction, "table.WithPool"},
		{"under LOCK TABLES", func(s *server) { s.fails(try, 1100) }, sqllock.ErrInTransaction, "table.WithPool"},
		{"locked row", func(s *server) {
			s.fails(try, 1205)
			s.answer(held, 1)
			s.noRow(ours)
			s.answer(letGo, 1)
		}, errNumber(1205), "open transaction"},
		{"interrupted, not held", func(s *server) { s.fails(try, 1317); s.answer(held, 0) }, sqllock.ErrInterrupted, ""},
		{"interrupted, held before", func(s *server) {
			s.fails(try, 1317)
			s.answer(held, 1)
			s.answer(look, hex.EncodeToString([]byte("job")), ours, 1000, 10, 1, 41, "", ours, ours, 1000000, 500, ours, "AB")
		}, sqllock.ErrInterrupted, ""},
		{"interrupted, and then it can't be asked", func(s *server) {
			s.fails(try, 1317)
			s.ExpectQuery(held).WillReturnError(errNumber(1317))
			s.ExpectClose()
		}, sqllock.ErrSessionGone, ""},
		{"damaged table", func(s *server) { s.fails(try, 1194); s.answer(held, 0) }, errNumber(1194), "REPAIR TABLE"},
		{"killed", func(s *server) { s.fails(try, 1927); s.ExpectClose() }, sqllock.ErrSessionGone, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.looked()
			test.script(s)
			l, err := sqllock.New(table.New(time.Minute)).TryLock(t.Context(), s.conn, "job")
			if test.want == nil {
				if err != nil || l.Token() != 42 {
					t.Fatalf("got %v, %v", l, err)
				}
				return
			}
			var number *mysql.MySQLError
			if errors.As(test.want, &number) {
				var got *mysql.MySQLError
				if !errors.As(err, &got) || got.Number != number.Number || !strings.Contains(err.Error(), test.text) {
					t.Errorf("got error %v, want number %d and %q", err, number.Number, test.text)
				}
				return
			}
			wantError(t, err, test.want, test.text)
		})
	}
}

// locked returns a lock with token 42.
func locked(t *testing.T, s *server, opts ...table.Option) *sqllock.Lock {
	t.Helper()
	s.looked()
	s.done(try, 42, 1)
	l, err := sqllock.New(table.New(time.Minute, opts...)).TryLock(t.Context(), s.conn, "job")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRelease(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(s *server)
		want   error
	}{
		{"held", func(s *server) { s.done(free, 0, 1) }, nil},
		{"gone", func(s *server) { s.done(free, 0, 0); s.answer(still, 0); s.ExpectClose() }, sqllock.ErrLost},
		{"interrupted in silence", func(s *server) { s.done(free, 0, 0); s.answer(still, 1); s.done(free, 0, 1) }, nil},
		{"in a transaction", func(s *server) { s.fails(free, 1785); s.answer(letGo, 1) }, nil},
		{"damaged", func(s *server) { s.fails(free, 1194); s.answer(letGo, 1) }, nil},
		{"failed after it was freed", func(s *server) { s.fails(free, 1194); s.answer(letGo, nil); s.ExpectClose() }, sqllock.ErrUnknown},
		{"killed", func(s *server) { s.fails(free, 1927); s.ExpectClose() }, sqllock.ErrLost},
		{"no answer", func(s *server) {
			s.ExpectExec(free).WillReturnError(mysql.ErrInvalidConn)
			s.ExpectClose()
		}, sqllock.ErrUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			l := locked(t, s)
			test.script(s)
			if err := l.Release(t.Context()); test.want == nil && err != nil || !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestCheckAndExtend(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(s *server)
		ask    func(l *sqllock.Lock) error
		want   error
	}{
		{"check", func(s *server) { s.answer(check, 1) }, func(l *sqllock.Lock) error { return l.Check(t.Context()) }, nil},
		{"check, over", func(s *server) { s.answer(check, 0); s.ExpectClose() }, func(l *sqllock.Lock) error { return l.Check(t.Context()) }, sqllock.ErrLost},
		{"check, gone", func(s *server) {
			s.ExpectQuery(check).WillReturnRows(sqlmock.NewRows([]string{"l"}))
			s.ExpectClose()
		}, func(l *sqllock.Lock) error { return l.Check(t.Context()) }, sqllock.ErrLost},
		{
			"check, no answer about it", func(s *server) { s.ExpectQuery(check).WillReturnError(errNumber(1146)) },
			func(l *sqllock.Lock) error { return l.Check(t.Context()) }, sqllock.ErrUnknown,
		},
		{"extend", func(s *server) { s.done("SET created=UNIX_TIMESTAMP()+0*LAST_INSERT_ID(1),ttl=90"+mine, 1, 0) }, func(l *sqllock.Lock) error { return l.Extend(t.Context(), 89001*time.Millisecond) }, nil},
		{
			"extend, gone", func(s *server) { s.done(mine, 0, 0); s.ExpectClose() },
			func(l *sqllock.Lock) error { return l.Extend(t.Context(), time.Minute) }, sqllock.ErrLost,
		},
		{
			"extend, in a transaction", func(s *server) { s.fails(mine, 1785) },
			func(l *sqllock.Lock) error { return l.Extend(t.Context(), time.Minute) }, sqllock.ErrInTransaction,
		},
		{
			"assert, too little", func(s *server) { s.answer(check, int64(5000000)) },
			func(l *sqllock.Lock) error { return l.AssertTTL(t.Context(), 6*time.Second) }, sqllock.ErrTTLTooShort,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			l := locked(t, s)
			test.script(s)
			if err := test.ask(l); test.want == nil && err != nil || !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// TestLeavings: a row that could not be removed by a release is removed before the
// session rings again.
func TestLeavings(t *testing.T) {
	s := newServer(t)
	k := sqllock.New(table.New(time.Minute))
	s.looked()
	s.done(try, 42, 1)
	l, err := k.TryLock(t.Context(), s.conn, "job")
	if err != nil {
		t.Fatal(err)
	}
	s.fails(free, 1785)
	s.answer(letGo, 1)
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.done("DELETE FROM `shared_locks` WHERE name=_latin1 X'6a6f62' AND token=42 AND lock_acquired=1", 0, 1)
	s.done(try, 43, 1)
	if l, err = k.TryLock(t.Context(), s.conn, "job"); err != nil {
		t.Fatal(err)
	}
	s.done("DELETE FROM", 0, 1)
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.done(try, 44, 1) // nothing is left any more
	if _, err = k.TryLock(t.Context(), s.conn, "job"); err != nil {
		t.Fatal(err)
	}
}

// TestTokenFloor: a grant that follows on one that this Backend has seen asks for
// a greater token, whatever the clock of the server.
func TestTokenFloor(t *testing.T) {
	s := newServer(t)
	k := sqllock.New(table.New(time.Minute))
	s.looked()
	lock := func(floor string, token int64) {
		t.Helper()
		s.done(","+floor+")),_latin1", token, 1)
		l, err := k.TryLock(t.Context(), s.conn, "job")
		if err != nil {
			t.Fatal(err)
		}
		s.done("DELETE FROM", 0, 1)
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	lock("1", 42)
	lock("43", 50)
	lock("51", 51)
}

func TestOptions(t *testing.T) {
	panics := func(what string, f func()) {
		t.Helper()
		defer func() {
			if got, ok := recover().(string); !ok || !strings.HasPrefix(got, "table: ") {
				t.Errorf("%s: got the panic %q", what, got)
			}
		}()
		f()
	}
	panics("no TTL", func() { table.New(0) })
	panics("a negative TTL", func() { table.New(-time.Second) })
	for _, name := range []string{"", "a b", "a`b", "a.b.c", ".a", "a.", strings.Repeat("x", 65), "café", "a;b", "a'b"} {
		panics("the table "+name, func() { table.WithTable(name) })
	}
	for _, name := range []string{"a", "a.b", "0", "$x_1", strings.Repeat("x", 64) + "." + strings.Repeat("y", 64)} {
		table.WithTable(name)
	}
}

// TestShapes: what a look at the table says of one that will not do.
func TestShapes(t *testing.T) {
	for _, test := range []struct {
		name          string
		engine        string
		needed, added int
		odd           string
		database      any
		opts          []table.Option
		texts         []string
	}{
		{"none", "", 0, 0, "", "shop", nil, []string{"no table shared_locks", "migrations.Up(ctx, db)"}},
		{"none of that name", "", 0, 0, "", "shop", []table.Option{table.WithTable("mine")}, []string{`migrations.WithTable("mine")`}},
		{"none in that schema", "", 0, 0, "", "locks", []table.Option{table.WithTable("locks.shared_locks")}, []string{"names the database locks"}},
		{"no database", "", 0, 0, "", nil, nil, []string{"no database is selected", "DSN"}},
		{"another table", "InnoDB", 1, 0, "", "shop", nil, []string{"not one of locks", "table.WithTable"}},
		{"a column that nobody fills", "MyISAM", 5, 2, "extra", "shop", nil, []string{"extra", "default"}},
		{"not migrated", "MyISAM", 5, 0, "", "shop", nil, []string{"migrations.Up(ctx, db), which adds them", "table.AllowUnmigrated()"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.ExpectQuery("SHOW GLOBAL VARIABLES").WillReturnRows(sqlmock.NewRows([]string{"n", "v"}).AddRow("version", "9.7.0"))
			s.answer("information_schema.tables", test.engine, test.needed, test.added, test.odd, test.database, "9.7.0", "AB")
			_, err := sqllock.New(table.New(time.Minute, test.opts...)).TryLock(t.Context(), s.conn, "job")
			wantError(t, err, sqllock.ErrNoTable, test.texts...)
		})
	}
}

// TestServers: a server whose user-level locks are not to be trusted.
func TestServers(t *testing.T) {
	s := newServer(t)
	s.ExpectQuery("SHOW GLOBAL VARIABLES").WillReturnRows(sqlmock.NewRows([]string{"n", "v"}).AddRow("version", "10.11.6-MariaDB").AddRow("wsrep_on", "ON"))
	_, err := sqllock.New(table.New(time.Minute)).TryLock(t.Context(), s.conn, "job")
	wantError(t, err, sqllock.ErrUnsupported, "Galera", "table.Allow(table.PerNode)")
}
