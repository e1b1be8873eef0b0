package migrations_test

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOptions(t *testing.T) {
	for _, test := range []struct {
		name string
		opt  migrations.Option
		want string // in the error, "" for none
	}{
		{"a table", migrations.WithTable("Locks_2$"), ""},
		{"digits", migrations.WithTable("1e5"), ""},
		{"the longest table", migrations.WithTable(strings.Repeat("x", 56)), ""},
		{"too long", migrations.WithTable(strings.Repeat("x", 57)), "1 to 56"},
		{"empty", migrations.WithTable(""), "1 to 56"},
		{"qualified", migrations.WithTable("app.locks"), "connect to that one"},
		{"a backtick", migrations.WithTable("a`b"), "ASCII letters"},
		{"a quote", migrations.WithTable("a'b"), "ASCII letters"},
		{"a newline", migrations.WithTable("locks\n"), "ASCII letters"},
		{"a space", migrations.WithTable("my locks"), "ASCII letters"},
		{"not ASCII", migrations.WithTable("schlösser"), "ASCII letters"},
		{"InnoDB", migrations.WithEngine("InnoDB"), ""},
		{"MyISAM", migrations.WithEngine("MyISAM"), ""},
		{"another engine", migrations.WithEngine("MEMORY"), "InnoDB or MyISAM"},
		{"no engine", migrations.WithEngine(""), "InnoDB or MyISAM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := migrations.FS(test.opt)
			check(t, "FS", err, "migrations: With", test.want)
			_, err = migrations.SQL(test.opt)
			check(t, "SQL", err, "migrations: With", test.want)
			if test.want != "" {
				db := pool(t)
				check(t, "Up", migrations.Up(t.Context(), db, test.opt), "migrations: up: With", test.want)
				check(t, "Down", migrations.Down(t.Context(), db, test.opt), "migrations: down: With", test.want)
			}
		})
	}
}

// check wants an error with both texts, or none if want is empty.
func check(t *testing.T, what string, err error, prefix, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (err == nil || !strings.HasPrefix(err.Error(), prefix) || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: got %v, want an error that starts with %q and has %q", what, err, prefix, want)
	}
}

// pool is one that expects nothing to be sent.
func pool(t *testing.T) *sql.DB {
	t.Helper()
	db, mock, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	mock.ExpectClose()
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestNoPool(t *testing.T) {
	check(t, "Up", migrations.Up(t.Context(), nil), "migrations: up: ", "*sql.DB is nil")
	check(t, "Down", migrations.Down(t.Context(), nil), "migrations: down: ", "*sql.DB is nil")
}

func TestEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, opts := range [][]migrations.Option{nil, {migrations.Postgres()}} {
		check(t, "Up", migrations.Up(ctx, pool(t), opts...), "migrations: up: ", context.Canceled.Error())
		check(t, "Down", migrations.Down(ctx, pool(t), opts...), "migrations: down: ", context.Canceled.Error())
	}
}

func read(t *testing.T, files fs.FS, name string) string {
	t.Helper()
	text, err := fs.ReadFile(files, name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestFS: the default files are those in the folder, and every place that an
// option changes is changed.
func TestFS(t *testing.T) {
	names := []string{"00001_shared_locks.sql", "00002_token_holder.sql"}
	plain, err := migrations.FS()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fs.Glob(plain, "*"); err != nil || !slices.Equal(got, names) {
		t.Errorf("the files are %v (%v), want %v", got, err, names)
	}
	changed, err := migrations.FS(migrations.WithTable("app$locks"), migrations.WithEngine("InnoDB"))
	if err != nil {
		t.Fatal(err)
	}
	var all string
	for _, name := range names {
		text, err := os.ReadFile("mysql/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, plain, name); got != string(text) {
			t.Errorf("%s differs from the one in the folder:\n%s", name, got)
		}
		all += read(t, changed, name)
	}
	for _, gone := range []string{"`shared_locks`", "'shared_locks'", "MyISAM", "UNIQUE KEY"} {
		if strings.Contains(all, gone) {
			t.Errorf("with table and engine given, there should be no %q:\n%s", gone, all)
		}
	}
	for _, want := range []string{"CREATE TABLE IF NOT EXISTS `app$locks`", "table_name = 'app$locks'", "PRIMARY KEY (`name`)", "ALTER TABLE `app$locks` ENGINE=InnoDB;"} {
		if !strings.Contains(all, want) {
			t.Errorf("with table and engine given, there should be %q:\n%s", want, all)
		}
	}
	if strings.Contains(read(t, plain, names[0]), "ALTER TABLE") {
		t.Error("without an engine given, no table is converted")
	}
}

// TestFencesOptions: Fences takes a table's name and no engine, whichever comes
// first.
func TestFencesOptions(t *testing.T) {
	fences := migrations.Fences()
	for _, test := range []struct {
		name string
		opts []migrations.Option
		want string // in the error, or with a backtick in the SQL
	}{
		{"alone", []migrations.Option{fences}, "TABLE IF NOT EXISTS `lock_fences` ("},
		{"twice", []migrations.Option{fences, fences}, "TABLE IF NOT EXISTS `lock_fences` ("},
		{"a table", []migrations.Option{fences, migrations.WithTable("app$fences")}, "TABLE IF NOT EXISTS `app$fences` ("},
		{"a table first", []migrations.Option{migrations.WithTable("app$fences"), fences}, "TABLE IF NOT EXISTS `app$fences` ("},
		{"too long", []migrations.Option{fences, migrations.WithTable(strings.Repeat("x", 57))}, "1 to 56"},
		{"too long first", []migrations.Option{migrations.WithTable(strings.Repeat("x", 57)), fences}, "1 to 56"},
		{"InnoDB", []migrations.Option{fences, migrations.WithEngine("InnoDB")}, "leave WithEngine out"},
		{"MyISAM first", []migrations.Option{migrations.WithEngine("MyISAM"), fences}, "leave WithEngine out"},
		{"another engine", []migrations.Option{fences, migrations.WithEngine("MEMORY")}, "InnoDB or MyISAM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if strings.Contains(test.want, "`") {
				if text, err := migrations.SQL(test.opts...); err != nil || !strings.Contains(text, test.want) {
					t.Errorf("SQL returns %v, and no %q:\n%s", err, test.want, text)
				}
				return
			}
			db := pool(t)
			_, err := migrations.FS(test.opts...)
			check(t, "FS", err, "migrations: With", test.want)
			_, err = migrations.SQL(test.opts...)
			check(t, "SQL", err, "migrations: With", test.want)
			check(t, "Up", migrations.Up(t.Context(), db, test.opts...), "migrations: up: With", test.want)
			check(t, "Down", migrations.Down(t.Context(), db, test.opts...), "migrations: down: With", test.want)
		})
	}
}

// TestFencesFS: the files are those in the folder of the fences, the table's name
// is changed wherever it is, and nothing else is.
func TestFencesFS(t *testing.T) {
	const name = "00001_lock_fences.sql"
	plain, err := migrations.FS(migrations.Fences())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fs.Glob(plain, "*"); err != nil || !slices.Equal(got, []string{name}) {
		t.Errorf("the files are %v (%v), want %s", got, err, name)
	}
	text, err := os.ReadFile("mysql/fences/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, plain, name); got != string(text) {
		t.Errorf("%s differs from the one in the folder:\n%s", name, got)
	}
	renamed, err := migrations.FS(migrations.Fences(), migrations.WithTable("app$fences"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, renamed, name), strings.ReplaceAll(string(text), "lock_fences", "app$fences"); got != want {
		t.Errorf("with a table given:\n%s\nwant\n%s", got, want)
	}
}

// TestPostgresOptions: Postgres takes a table's name, which may be shorter and less than
// on MySQL, and no engine, whichever comes first.
func TestPostgresOptions(t *testing.T) {
	postgres, fences := migrations.Postgres(), migrations.Fences()
	longest := strings.Repeat("x", 55)
	for _, test := range []struct {
		name string
		opt  migrations.Option
		want string // in the error, or with a quote in the SQL
	}{
		{"twice", postgres, `TABLE "shared_locks" (`},
		{"fences", fences, `TABLE "lock_fences" (`},
		{"a table", migrations.WithTable("Locks_2$"), `TABLE "Locks_2$" (`},
		{"digits", migrations.WithTable("1e5"), `SEQUENCE "1e5_token" START`},
		{"pg_ inside", migrations.WithTable("a_pg_b"), `TABLE "a_pg_b" (`},
		{"the longest table", migrations.WithTable(longest), `TABLE "` + longest + `" (`},
		{"too long", migrations.WithTable(longest + "x"), "1 to 55"},
		{"empty", migrations.WithTable(""), "1 to 55"},
		{"qualified", migrations.WithTable("app.locks"), "have search_path begin with that one"},
		{"a quote", migrations.WithTable(`a'b`), "ASCII letters"},
		{"a double quote", migrations.WithTable(`a"b`), "ASCII letters"},
		{"a space", migrations.WithTable("my locks"), "ASCII letters"},
		{"not ASCII", migrations.WithTable("schlösser"), "ASCII letters"},
		{"the end of the block", migrations.WithTable("a$$b"), "must not begin"},
		{"a table of the catalog", migrations.WithTable("pg_class"), "must not begin"},
		{"InnoDB", migrations.WithEngine("InnoDB"), "PostgreSQL has no engines"},
		{"another engine", migrations.WithEngine("heap"), "InnoDB or MyISAM"},
	} {
		for _, opts := range [][]migrations.Option{{postgres, test.opt}, {test.opt, postgres}, {fences, test.opt, postgres}} {
			t.Run(test.name, func(t *testing.T) {
				text, err := migrations.SQL(opts...)
				if strings.Contains(test.want, `"`) {
					if err != nil || len(opts) == 2 && !strings.Contains(text, test.want) {
						t.Errorf("SQL returns %v, and no %q:\n%s", err, test.want, text)
					}
					return
				}
				check(t, "SQL", err, "migrations: With", test.want)
				_, err = migrations.FS(opts...)
				check(t, "FS", err, "migrations: With", test.want)
				db := pool(t)
				check(t, "Up", migrations.Up(t.Context(), db, opts...), "migrations: up: With", test.want)
				check(t, "Down", migrations.Down(t.Context(), db, opts...), "migrations: down: With", test.want)
			})
		}
	}
}

// TestPostgresFS: the files are those in the folders, in ASCII (a database may have an
// encoding without more), and the table's name is changed wherever it is, and nothing
// else is.
func TestPostgresFS(t *testing.T) {
	for _, set := range []struct {
		folder, name, table string
		opts                []migrations.Option
	}{
		{"postgres/", "00001_shared_locks.sql", "shared_locks", []migrations.Option{migrations.Postgres()}},
		{"postgres/fences/", "00001_lock_fences.sql", "lock_fences", []migrations.Option{migrations.Postgres(), migrations.Fences()}},
	} {
		plain, err := migrations.FS(set.opts...)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := fs.Glob(plain, "*"); err != nil || !slices.Equal(got, []string{set.name}) {
			t.Errorf("the files are %v (%v), want %s", got, err, set.name)
		}
		text, err := os.ReadFile(set.folder + set.name)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, plain, set.name); got != string(text) {
			t.Errorf("%s differs from the one in the folder:\n%s", set.name, got)
		}
		if i := strings.IndexFunc(string(text), func(c rune) bool { return c > '~' }); i >= 0 {
			t.Errorf("%s is not in ASCII at %q", set.name, text[i:])
		}
		renamed, err := migrations.FS(append(set.opts, migrations.WithTable("App$locks"))...)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := read(t, renamed, set.name), strings.ReplaceAll(string(text), set.table, "App$locks"); got != want {
			t.Errorf("with a table given:\n%s\nwant\n%s", got, want)
		}
		script, err := migrations.SQL(set.opts...)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(script, "+goose") || strings.Contains(script, "DROP") {
			t.Errorf("the plain SQL is not that of Up alone:\n%s", script)
		}
	}
}

// answered is an error of PostgreSQL, as its drivers return it.
type answered string

func (a answered) Error() string    { return "ERROR: no (SQLSTATE " + string(a) + ")" }
func (a answered) SQLState() string { return string(a) }

// TestDialects: an error in the language of the other kind of server says so, whatever
// it is, and one in the right language does not.
func TestDialects(t *testing.T) {
	const left, given = "give Postgres() in all calls", "leave Postgres() out of all calls"
	for _, test := range []struct {
		name  string
		opts  []migrations.Option
		err   error
		first string // statement
		want  string
		not   string
	}{
		{"left out", nil, answered("42601"), "SELECT version_id", left, given},
		{"left out, and refused", nil, answered("42501"), "SELECT version_id", left, "GRANT"},
		{"given for MySQL", []migrations.Option{migrations.Postgres()}, &mysql.MySQLError{Number: 1305}, "SELECT quote_ident", given, left},
		{"given for MySQL, and refused", []migrations.Option{migrations.Postgres()}, &mysql.MySQLError{Number: 1142}, "SELECT quote_ident", given, "GRANT"},
		{"right on MySQL", nil, &mysql.MySQLError{Number: 1142}, "SELECT version_id", "GRANT SELECT, INSERT", "Postgres()"},
		{"right on PostgreSQL", []migrations.Option{migrations.Postgres()}, answered("42501"), "SELECT quote_ident", "GRANT USAGE, CREATE", "Postgres()"},
		{"neither", nil, errors.New("no such host"), "SELECT version_id", "no such host", "Postgres()"},
	} {
		t.Run(test.name, func(t *testing.T) {
			db, mock, err := sqlmock.New()
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close() //nolint:errcheck // nothing depends on it
			mock.ExpectQuery(test.first).WillReturnError(test.err)
			mock.ExpectClose()
			err = migrations.Up(t.Context(), db, test.opts...)
			check(t, "Up", err, "migrations: up: ", test.want)
			if err != nil && strings.Contains(err.Error(), test.not) {
				t.Errorf("the error %q should not have %q", err, test.not)
			}
			if !errors.Is(err, test.err) {
				t.Errorf("%v does not match the error of the driver", err)
			}
		})
	}
}

// TestDocumentation: doc.go has what SQL returns, of both sets in both dialects.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	shown := blocks(string(text))
	for i, opts := range [][]migrations.Option{
		nil, {migrations.Postgres()}, {migrations.Fences()}, {migrations.Postgres(), migrations.Fences()},
	} {
		want, err := migrations.SQL(opts...)
		if err != nil {
			t.Fatal(err)
		}
		if i >= len(shown) {
			t.Fatalf("doc.go has no SQL like\n%s", want)
		}
		if got := shown[i]; got != want {
			t.Errorf("doc.go has\n%s\nand SQL returns\n%s", got, want)
		}
	}
}

// blocks returns the indented blocks of a doc comment.
func blocks(text string) (all []string) {
	var block strings.Builder
	for line := range strings.Lines(text) {
		code, ok := strings.CutPrefix(line, "//\t")
		switch {
		case ok:
			block.WriteString(code)
		case line == "//\n" && block.Len() > 0:
			block.WriteString("\n")
		case block.Len() > 0:
			all = append(all, strings.TrimSpace(block.String())+"\n")
			block.Reset()
		}
	}
	return all
}
