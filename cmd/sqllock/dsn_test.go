package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestParseDSN(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ dsn, want, user, password string }{
		{"mysql://app:secret@db.internal/billing", "MySQL at db.internal:3306, database billing", "app", "secret"},
		{"mariadb://app:secret@db.internal:3307/billing", "MySQL at db.internal:3307, database billing", "app", "secret"},
		{"mysql://app@db", "MySQL at db:3306", "app", ""},
		{"mysql://app:secret@db/", "MySQL at db:3306", "app", "secret"},
		{"mysql://[::1]:3307/billing", "MySQL at [::1]:3307, database billing", "", ""},
		{"mysql://[::1]/billing", "MySQL at [::1]:3306, database billing", "", ""},
		{"mysql://app:p%40ss%3Aw%2Fo%3Fr%23d%25@db/bill%2Fing", "MySQL at db:3306, database bill/ing", "app", "p@ss:w/o?r#d%"},
		{"mysql://app@localhost/billing?socket=/run/mysqld/mysqld.sock", "MySQL at /run/mysqld/mysqld.sock, database billing", "app", ""},
		{"mysql://app@/billing?socket=/run/mysqld/mysqld.sock", "MySQL at /run/mysqld/mysqld.sock, database billing", "app", ""},
		{"mysql://app:secret@db/billing?tls=skip-verify&timeout=3s&time_zone=%27%2B00:00%27", "MySQL at db:3306, database billing", "app", "secret"},
		{"app:p@s:w/d@tcp(db)/billing", "MySQL at db:3306, database billing", "app", "p@s:w/d"},
		{"app:secret@unix(/run/my.sock)/billing?parseTime=true", "MySQL at /run/my.sock, database billing", "app", "secret"},
		{" app:secret@tcp(db)/billing\n", "MySQL at db:3306, database billing", "app", "secret"},
		{"/", "MySQL at 127.0.0.1:3306", "", ""},
		{"postgres://app:secret@db/billing", "PostgreSQL at db:5432, database billing", "app", "secret"},
		{"postgresql://app:p%40ss%3Aw%2Fo%3Fr%23d%25@[::1]:5433/billing?sslmode=disable", "PostgreSQL at [::1]:5433, database billing", "app", "p@ss:w/o?r#d%"},
		{"postgres://app:secret@db1:5433,db2:5434/billing", "PostgreSQL at db1:5433, database billing", "app", "secret"},
		{"postgres://app@/billing?host=/run/postgresql", "PostgreSQL at /run/postgresql, database billing", "app", ""},
	} {
		got, err := parseDSN(c.dsn)
		if err != nil {
			t.Errorf("%s: %v", c.dsn, err)
			continue
		}
		var user, password string
		if got.mysql != nil {
			user, password = got.mysql.User, got.mysql.Passwd
		} else {
			user, password = got.postgres.User, got.postgres.Password
		}
		if got.String() != c.want || user != c.user || password != c.password {
			t.Errorf("%s: got %s for %q with %q, want %s for %q with %q", c.dsn, got, user, password, c.want, c.user, c.password)
		}
	}
	got, err := parseDSN("mysql://db.internal/billing?tls=true&timeout=3s&time_zone=%27%2B00:00%27")
	if err != nil {
		t.Fatal(err)
	}
	if c := got.mysql; c.TLS == nil || c.TLS.ServerName != "db.internal" || c.Timeout.Seconds() != 3 || c.Params["time_zone"] != "'+00:00'" {
		t.Errorf("the parameters are %+v", c)
	}
}

// TestParseDSNErrors wants texts that help, and that show nothing of a password.
func TestParseDSNErrors(t *testing.T) {
	t.Parallel()
	const encode = "have to be written as %40 and the like"
	for _, c := range []struct{ dsn, want string }{
		{"", "no database is named: set SQLLOCK_DSN, or --dsn-file; it looks like mysql://user:password@host:3306/database"},
		{" \n", "no database is named"},
		{"mysql://app:hush@db/billing\nmysql://app:hush@db/other", "the DSN has more than one line"},
		{"oracle://app:hush@db/billing", "the DSN begins with oracle://, which is none of mysql, mariadb and postgres"},
		{"db.internal", "the DSN can't be understood: it has no / before the name of the database"},
		{"host=db user=app password=hush", "it has no / before the name of the database"},
		{"app:hush@tcp(db)", "it has no / before the name of the database"},
		{"app:hush@tcp(db/billing", "an @, a / or a parenthesis is where none belongs"},
		{"app:hu/sh@tcp(db)", "an @, a / or a parenthesis is where none belongs"},
		{"app:@/hush@tcp(db)", "an @, a / or a parenthesis is where none belongs"},
		{"app:hush@hush(db)/billing", "what is before the parenthesis is neither tcp nor unix"},
		{"app:hush/billing", "an @, a / or a parenthesis is where none belongs"},
		{"app:hush@tcp(db)/billing?parseTime=maybe", "the value of its parameter parseTime can't be used"},
		{"app:hush@tcp(db)/billing?strict=true", "there is no parameter strict any more; sql_mode is one"},
		{"app:hush@tcp(db)/billing?hush@x=1", "it has a parameter that is no word"},
		{"app:hush@tcp(db)/billing?parseTime", "its parameter parseTime has no value"},
		{"mysql://app:hu#sh@db/billing", encode},
		{"mysql://app:hu/sh@db/billing", encode},
		{"mysql://app:12/hush@db/billing", encode},
		{"mysql://app:hu?sh@db/billing", encode},
		{"mysql://app:12?hush@db/billing", encode},
		{"mysql://app:hu@sh@db/billing", encode},
		{"mysql://app:hu%sh@db/billing", encode},
		{"mysql://app:hush@db/billing?tls=%zz", encode},
		{"mysql://app:hush@db:hush/billing", encode},
		{"mysql:///billing", "it names no host, as in mysql://user:password@host/database, and no parameter socket="},
		{"mysql://app:hush@db/billing?tls=hush", "the value of its parameter tls can't be used"},
		{"mysql://app:hush@db/billing?timeout=10", "the value of its parameter timeout can't be used"},
		{"postgres://app:hu#sh@db/billing", encode},
		{"postgres://app:hu/sh@db/billing", encode},
		{"postgres://app:12/hush@db/billing", encode},
		{"postgres://app:hu?sh@db/billing", encode},
		{"postgres://app:hu@sh@db/billing", encode},
		{"postgres://app:hu%sh@db/billing", encode},
		{"postgres://app:hush@db/billing?sslmode=hush", "the value of its parameter sslmode can't be used"},
		{"postgres://app:hush@db:hush/billing", encode},
	} {
		_, err := parseDSN(c.dsn)
		if err == nil {
			t.Errorf("%s: no error", c.dsn)
			continue
		}
		text := explain(err)
		if !strings.Contains(text, c.want) || exitCode(err) != exitUsage {
			t.Errorf("%s: exit code %d: %s\nwant %s", c.dsn, exitCode(err), text, c.want)
		}
		for _, secret := range []string{"hush", "hu", "sh@", "%zz"} {
			if strings.Contains(strings.ReplaceAll(strings.ReplaceAll(text, dsnForms, ""), "the", ""), secret) {
				t.Errorf("%s: the error shows %q: %s", c.dsn, secret, text)
			}
		}
	}
}

func TestReadDSN(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, two, empty := file("one", "of one\n"), file("two", "of two\n"), file("empty", "\n")
	for _, c := range []struct {
		name, flag, file string
		env              map[string]string
		want, text       string
	}{
		{name: "nothing"},
		{name: "the flag comes first", flag: "of flag", env: map[string]string{"SQLLOCK_DSN": "of env", "SQLLOCK_DSN_FILE": one}, want: "of flag"},
		{name: "then the file", file: one, env: map[string]string{"SQLLOCK_DSN": "of env", "SQLLOCK_DSN_FILE": two}, want: "of one\n"},
		{name: "then the environment", env: map[string]string{"SQLLOCK_DSN": "of env", "SQLLOCK_DSN_FILE": two}, want: "of env"},
		{name: "then its file", env: map[string]string{"SQLLOCK_DSN_FILE": two}, want: "of two\n"},
		{name: "both flags", flag: "of flag", file: one, text: "--dsn and --dsn-file are both given: which is meant?"},
		{name: "an empty file", file: empty, text: "the file with the DSN, " + empty + ", is empty"},
		{name: "no file", env: map[string]string{"SQLLOCK_DSN_FILE": dir + "/none"}, text: "the file with the DSN: open " + dir + "/none: no such file or directory"},
	} {
		got, err := readDSN(c.flag, c.file, func(name string) string { return c.env[name] })
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
		if text := explain(err); text != c.text {
			t.Errorf("%s: got the error %q, want %q", c.name, text, c.text)
		}
	}
}

func TestWithoutDSN(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		rest int
		want string
	}{
		{"sqllock run --name x -- a", 1, "sqllock run --name x -- a"},
		{"sqllock --dsn D run --name x -- a --dsn b", 3, "sqllock run --name x -- a --dsn b"},
		{"sqllock --dsn=D -dsn D -dsn=D run --dsn D --name x a --dsn b --dsn=c", 4, "sqllock run --name x a --dsn b --dsn=c"},
		{"sqllock list --dsn D", 0, "sqllock list"},
		{"sqllock list --dsn-file F", 0, "sqllock list --dsn-file F"},
	} {
		if got := withoutDSN(strings.Fields(c.args), c.rest); !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: got %v", c.args, got)
		}
	}
}

// TestDocumentedDSNs parses what the documentation shows.
func TestDocumentedDSNs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/command.md")
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(mysql|postgres)://[^'\s]+|[A-Za-z]+:[A-Za-z]+@tcp\([^'`+"`"+`\s]+`).FindAllString(string(text)+rootManual+dsnForms, -1)
	for _, dsn := range all {
		dsn = strings.TrimRight(dsn, ",")
		if _, err := parseDSN(dsn); err != nil {
			t.Errorf("%s: %v", dsn, err)
		}
	}
	if len(all) < 9 {
		t.Errorf("found only %q", all)
	}
}
