package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

func TestRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bench.json")
	var out bytes.Buffer
	for pattern, want := range map[string]string{"no such row": "picks no row", "(": "no regular expression"} {
		if err := run(t.Context(), pattern, file, &out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("BENCH=%q: got %v, want %q", pattern, err, want)
		}
	}
	if testing.Short() || testdb.MariaDB.Skipped() {
		t.Skip("needs a server")
	}
	if err := run(t.Context(), "^mariadb: allocations", file, &out); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("%d rows, want 1: %s", len(got), b)
	}
	for _, field := range []string{"name", "ratio", "target", "met"} {
		if _, ok := got[0][field]; !ok {
			t.Errorf("a row should have %q: %s", field, b)
		}
	}
	if !strings.Contains(out.String(), "mariadb: allocations") {
		t.Errorf("the table should have the row:\n%s", out.String())
	}
}

// TestTakeTurns: both sides as often, neither always first, without the warm-up.
func TestTakeTurns(t *testing.T) {
	var order []byte
	side := func(name byte, d time.Duration) func() (time.Duration, error) {
		return func() (time.Duration, error) { order = append(order, name); return d, nil }
	}
	a, b, err := takeTurns(20, side('a', 3*time.Microsecond), side('b', 2*time.Microsecond))
	if err != nil || len(a) != 20 || len(b) != 20 {
		t.Fatalf("%d and %d measurements, %v", len(a), len(b), err)
	}
	if got := string(order[:8]); got != "abbaabba" {
		t.Errorf("the order starts %q", got)
	}
	if got := compare(a, b, 0.5, "peer:").Ratio; got != 1.5 {
		t.Errorf("ratio %v, want 1.5", got)
	}
}
