package gocronlock_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/sqllock/go-sqllock/sqllock/memory"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a pool of connections to the server, as another process has it.
func open(t *testing.T, server *memory.Server) *sql.DB {
	t.Helper()
	db := server.DB()
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func want(t *testing.T, what string, err error, matches []error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	for _, target := range matches {
		if !errors.Is(err, target) {
			t.Errorf("%s: %q does not match %v", what, err, target)
		}
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %q does not say %q", what, err, text)
		}
	}
}

func panics(t *testing.T, text string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if got, _ := recover().(string); !strings.Contains(got, text) {
			t.Errorf("the panic is %q, want %q", got, text)
		}
	}()
	f()
}
