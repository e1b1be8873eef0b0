package migrations_test

import (
	"context"
	"database/sql"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
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
	check(t, "Up", migrations.Up(ctx, pool(t)), "migrations: up: ", context.Canceled.Error())
	check(t, "Down", migrations.Down(ctx, pool(t)), "migrations: down: ", context.Canceled.Error())
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

// TestDocumentation: doc.go has what SQL returns, of both sets.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	shown := blocks(string(text))
	for i, opts := range [][]migrations.Option{nil, {migrations.Fences()}} {
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
