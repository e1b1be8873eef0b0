package integration

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
	"github.com/sqllock/go-sqllock/integration/internal/torture"
)

// TestTorture is a short `make torture` on each server, and its control. That of
// PostgreSQL, which recovers from a crash in a moment, is shorter, and alone.
func TestTorture(t *testing.T) {
	for _, kind := range torture.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			needed(t, kind)
			guarded, control := 5*time.Second, 3*time.Second
			if kind != testdb.Postgres {
				t.Parallel()
				guarded, control = 14*time.Second, 5*time.Second
			}
			t.Run("guarded", func(t *testing.T) {
				r := runTorture(t, kind, guarded, true)
				if err := r.Verdict(); err != nil {
					t.Errorf("%v: %q", err, r.First)
				}
			})
			t.Run("without the guard", func(t *testing.T) {
				for range 3 {
					if r := runTorture(t, kind, control, false); r.Violations > 0 {
						return
					}
				}
				t.Error("no update was lost without the guard, so this test shows nothing")
			})
		})
	}
}

func runTorture(t *testing.T, kind testdb.Kind, duration time.Duration, guarded bool) *torture.Result {
	t.Helper()
	r, err := torture.Run(t.Context(), torture.Config{
		Kind: kind, Seed: rand.Uint64(), Duration: duration, Processes: 6, Guarded: guarded,
		Args: []string{"-test.run=^TestTortureProcess$", "-test.timeout=5m"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", *r)
	return r
}

// TestTortureProcess is what each process of TestTorture does.
func TestTortureProcess(t *testing.T) {
	if !torture.IsProcess() {
		t.Skip("is run by TestTorture, in processes of its own")
	}
	if err := torture.Process(t.Context(), os.Stdin, os.Stdout); err != nil {
		t.Fatal(err)
	}
}
