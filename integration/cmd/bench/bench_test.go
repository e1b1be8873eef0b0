package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

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

// TestPoolRows: the rows run, on less than they are meant for, and find no lost
// update.
func TestPoolRows(t *testing.T) {
	s := server(t)
	for name, measure := range map[string]func(context.Context, *testdb.Server) (result, error){
		"crowd": crowd{goroutines: 20, sessions: 4, grants: 100, turns: 2}.measure,
		"watch": watch{names: 200, time: 200 * time.Millisecond}.measure,
	} {
		got, err := measure(t.Context(), s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.Ours == "" || got.Peer == "" || name == "crowd" && got.Ratio <= 0 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func server(t *testing.T) *testdb.Server {
	t.Helper()
	if testing.Short() || testdb.MariaDB.Skipped() {
		t.Skip("needs a server")
	}
	s, err := testdb.Open(t.Context(), testdb.MariaDB)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestShare: what is no lock is found out.
func TestShare(t *testing.T) {
	var mu sync.Mutex
	if err := share(8, 10, func(_ int, work func()) error {
		mu.Lock()
		defer mu.Unlock()
		work()
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := share(1, 10, func(int, func()) error { return nil }); err == nil {
		t.Error("work that was not done should be an error")
	}
}

// TestPlotWaiters: each contender grants, and the plot has each of them.
func TestPlotWaiters(t *testing.T) {
	server(t)
	t.Setenv("SKIP_SERVERS", string(testdb.MySQL))
	file := filepath.Join(t.TempDir(), "waiters.svg")
	var out bytes.Buffer
	if err := plotWaiters(t.Context(), sweep{waiters: []int{1, 8}, window: 250 * time.Millisecond, rounds: 1}, file, &out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "fails") {
		t.Errorf("a contender fails:\n%s", out.String())
	}
	svg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contenders() {
		if !bytes.Contains(svg, []byte(c.name)) {
			t.Errorf("the plot should have %q", c.name)
		}
	}
}

// TestDrawPanels: a curve that ends is drawn as far as it goes, and the plot says why
// it ends.
func TestDrawPanels(t *testing.T) {
	sw := sweep{waiters: []int{1, 2, 4}}
	panels := []panel{
		{product: "MySQL", title: "MySQL 1", server: "of the one kind", curves: []curve{
			{name: "all", rates: []float64{900, 2000, 30000}},
			{name: "some", rates: []float64{900}, failedAt: 2, failure: fmt.Errorf("open: %w", &mysql.MySQLError{Number: 1040, Message: "Too many connections"})},
		}},
		{product: "MariaDB", title: "MariaDB 2", server: "of the other", curves: []curve{
			{name: "all", rates: []float64{1, 2, 3}},
			{name: "some", failedAt: 1, failure: errors.New("no way")},
		}},
	}
	for _, format := range []string{".svg", ".png"} {
		file := filepath.Join(t.TempDir(), "waiters"+format)
		if err := drawPanels(sw, panels, file); err != nil {
			t.Fatal(err)
		}
		drawn, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if format == ".png" {
			continue
		}
		for _, want := range []string{"MySQL 1", "MariaDB 2", "MySQL: some, fails at 2: error 1040, Too many connections", "MySQL: of the one kind", "MariaDB: some, fails at 1: no way", "50,000", "grants/s"} {
			if !bytes.Contains(drawn, []byte(">"+want+"<")) {
				t.Errorf("the plot should have %q", want)
			}
		}
	}
	if err := drawPanels(sw, panels, "waiters.bmp"); err == nil {
		t.Error("a format that can't be drawn should be an error")
	}
}
