package rowlock

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/sqllock"
)

func format() Format {
	return Format{
		Package: "laravel", Owner: "Laravel", Table: "cache_locks",
		ID: Column{"key", "varchar(255)", "varchar(255)"}, Token: Column{"owner", "varchar(255)", "varchar(255)"}, Until: Column{"expiration", "int", "integer"},
		Seconds: true, Longest: 255, NewToken: func() string { return "mine" }, Process: Itself,
	}
}

func mock(t *testing.T) (*sql.DB, sqlmock.Sqlmock) {
	t.Helper()
	db, m, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		_ = db.Close()
	})
	return db, m
}

func expectIdle(m sqlmock.Sqlmock) {
	m.ExpectQuery("SELECT VERSION").WillReturnRows(sqlmock.NewRows([]string{"v", "a"}).AddRow("10.11.6-MariaDB", 1))
	m.ExpectQuery("in_transaction").WillReturnRows(sqlmock.NewRows([]string{"v"}).AddRow(0))
}

func expectLook(m sqlmock.Sqlmock, token, left any) {
	m.ExpectQuery("LEFT JOIN `cache_locks`").WillReturnRows(sqlmock.NewRows([]string{"t", "l", "k", "o"}).AddRow(token, left, "6B", nil))
}

func expectSet(m sqlmock.Sqlmock) { m.ExpectExec("SET ").WillReturnResult(sqlmock.NewResult(0, 0)) }

// expectLost has the answer to an INSERT be lost.
func expectLost(m sqlmock.Sqlmock) {
	expectIdle(m)
	expectLook(m, nil, nil)
	m.ExpectQuery("SHOW GLOBAL VARIABLES").WillReturnRows(sqlmock.NewRows([]string{"n", "v"}).AddRow("read_only", "OFF"))
	m.ExpectQuery("information_schema.tables").WillReturnRows(sqlmock.NewRows([]string{"e", "u", "t"}).AddRow("InnoDB", 1, "int"))
	expectSet(m)
	m.ExpectExec("INSERT INTO `cache_locks`").WillReturnError(mysql.ErrInvalidConn)
}

func try(t *testing.T, db *sql.DB, b *Backend) error {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing depends on it
	_, err = b.Acquire(t.Context(), conn, sqllock.Request{Key: "job", Observe: func(sqllock.Event) {}})
	return err
}

// TestLostAnswer: a row that may have been made is removed over the pool, by its token.
func TestLostAnswer(t *testing.T) {
	db, m := mock(t)
	expectLost(m)
	pool, p := mock(t)
	expectSet(p)
	p.ExpectExec("DELETE FROM `cache_locks` WHERE `key`=_utf8mb4 X'6a6f62' AND `owner`=_utf8mb4 X'6d696e65'").WillReturnResult(sqlmock.NewResult(0, 1))
	expectSet(p)
	err := try(t, db, New(format(), time.Minute, pool))
	if !errors.Is(err, sqllock.ErrSessionGone) || strings.Contains(err.Error(), "could not be removed") {
		t.Errorf("got %v", err)
	}
}

// TestLostAnswerWithoutPool: then it ends with its TTL, as the error says.
func TestLostAnswerWithoutPool(t *testing.T) {
	db, m := mock(t)
	expectLost(m)
	err := try(t, db, New(format(), time.Minute, nil))
	if !errors.Is(err, sqllock.ErrSessionGone) || !strings.Contains(err.Error(), "could not be removed, and ends with its TTL of 1m0s") {
		t.Errorf("got %v", err)
	}
}

// TestRefused: what the server has refused has left nothing, and the settings are put back.
func TestRefused(t *testing.T) {
	db, m := mock(t)
	expectIdle(m)
	expectLook(m, "theirs", -5_000_000)
	m.ExpectQuery("SHOW GLOBAL VARIABLES").WillReturnRows(sqlmock.NewRows([]string{"n", "v"}).AddRow("read_only", "OFF"))
	m.ExpectQuery("information_schema.tables").WillReturnRows(sqlmock.NewRows([]string{"e", "u", "t"}).AddRow("InnoDB", 1, "int"))
	expectSet(m)
	m.ExpectExec("UPDATE `cache_locks`").WillReturnError(&mysql.MySQLError{Number: 1142})
	m.ExpectExec("SET SESSION innodb_lock_wait_timeout=@").WillReturnResult(sqlmock.NewResult(0, 0))
	if err := try(t, db, New(format(), time.Minute, nil)); !errors.Is(err, sqllock.ErrPermission) || strings.Contains(err.Error(), "TTL") {
		t.Errorf("got %v", err)
	}
}

// TestBadOptions: what can't be meant is refused when it is said.
func TestBadOptions(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(){
		"no TTL":                func() { New(format(), 0, nil) },
		"a table with a quote":  func() { Table("laravel", "a`b") },
		"no table":              func() { Table("laravel", "") },
		"three parts":           func() { Table("laravel", "a.b.c") },
		"a column with a dot":   func() { Columns("shedlock", "a.b", "c", "d", "e") },
		"an empty column":       func() { Columns("shedlock", "a", "b", "c", "") },
		"a prefix with NUL":     func() { Prefix("laravel", "a\x00") },
		"a prefix not in UTF-8": func() { Prefix("laravel", "\xff") },
		"a name of nothing":     func() { Name("laravel", "", "x") },
		"for nothing":           func() { Name("laravel", "x", "") },
		"a skew below zero":     func() { Skew("laravel", -1) },
		"a skew of a day":       func() { Skew("laravel", 24*time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if said, ok := recover().(string); !ok || !strings.Contains(said, ": ") {
					t.Errorf("it should panic and say why: %q", said)
				}
			}()
			f()
		})
	}
}

// TestDeadlock: what the server has undone is run again.
func TestDeadlock(t *testing.T) {
	db, m := mock(t)
	expectIdle(m)
	expectSet(m)
	expectLook(m, "mine", 5_000_000)
	m.ExpectExec("DELETE").WillReturnError(&mysql.MySQLError{Number: 1213})
	expectSet(m)
	expectSet(m)
	expectLook(m, "mine", 5_000_000)
	m.ExpectExec("DELETE").WillReturnResult(sqlmock.NewResult(0, 1))
	expectSet(m)
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing depends on it
	g := sqllock.Grant{Key: "job", Until: time.Now().Add(time.Minute), State: grant{part{"job", "mine"}}}
	if err := New(format(), time.Minute, nil).Release(t.Context(), conn, g); err != nil {
		t.Error(err)
	}
}
