package memory_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/locktest"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	s := memory.New()
	for name, backend := range map[string]sqllock.Backend{"backend": s.Backend(), "leases": s.Leases(time.Minute)} {
		t.Run(name, func(t *testing.T) {
			locktest.Run(t, locktest.Config{
				Backend: backend,
				Open:    func(*testing.T) *sql.DB { return s.DB() },
				Kill:    func(_ context.Context, _ *sql.DB, session int64) error { return s.Kill(session) },
				Waiters: func(_ context.Context, _ *sql.DB, key string) (int, error) { return s.Waiters(key), nil },
			})
		})
	}
}
