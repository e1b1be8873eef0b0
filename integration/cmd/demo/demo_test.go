package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// TestMain is also a web server, when the director starts this program as one.
func TestMain(m *testing.M) {
	if os.Getenv(nameEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestDemo plays it, in process and on real servers, and reads the picture.
func TestDemo(t *testing.T) {
	play := func(t *testing.T, dsn, where string) {
		t.Helper()
		var out bytes.Buffer
		if err := demo(t.Context(), dsn, &out); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		for _, want := range []string{
			where, "got the lock", "skips: another one has the lock", "is killed with kill -9",
			"the server freed the lock", "took over where the killed one had stopped",
			"WITHOUT THE LOCK", "With the lock: 40 invoices, 0 duplicates. Without:",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the picture should have %q:\n%s", want, out.String())
			}
		}
		if regexp.MustCompile(`Without: 0 duplicates`).MatchString(out.String()) {
			t.Error("the control has no duplicates")
		}
	}
	t.Run("in process", func(t *testing.T) {
		play(t, "", "an in-process MySQL")
		if err := os.Unsetenv(likeEnv); err != nil { // which the demo sets for its web servers
			t.Fatal(err)
		}
	})
	for _, kind := range append(testdb.Kinds(), testdb.Postgres) {
		t.Run(string(kind), func(t *testing.T) {
			if testing.Short() || kind.Skipped() {
				t.Skip("needs a server")
			}
			s, err := testdb.Open(t.Context(), kind)
			if err != nil {
				t.Fatal(err)
			}
			play(t, s.DSN, "your server at")
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBadDSN(t *testing.T) {
	for dsn, want := range map[string]string{
		"garbage":                "it looks like user:password@tcp(127.0.0.1:3306)/database",
		"root@tcp(127.0.0.1:1)/": "can't be reached",

		"postgres://nobody@127.0.0.1:1/db":  "can't be reached",
		"postgres://nobody@127.0.0.1:pg/db": "the DSN in the environment",
	} {
		var out bytes.Buffer
		if err := demo(t.Context(), dsn, &out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("DSN %q: got %v, want %q", dsn, err, want)
		}
	}
}
