package integration

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/locktest"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// mysqlWaiters counts the sessions that are inside GET_LOCK for key.
func mysqlWaiters(ctx context.Context, db *sql.DB, key string) (n int, err error) {
	err = db.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.processlist"+
		" WHERE id<>CONNECTION_ID() AND state='User lock' AND info LIKE ?",
		"%GET_LOCK(X'"+hex.EncodeToString([]byte(key))+"'%").Scan(&n)
	return n, err
}

func mysqlKill(ctx context.Context, db *sql.DB, session int64) error {
	_, err := db.ExecContext(ctx, fmt.Sprintf("KILL CONNECTION %d", session))
	return err
}

func TestConformanceMySQLNamed(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		run := func(name string, backend sqllock.Backend) {
			t.Run(name, func(t *testing.T) {
				locktest.Run(t, locktest.Config{
					Backend: backend,
					Open:    func(t *testing.T) *sql.DB { t.Helper(); return open(t, s) },
					Kill:    mysqlKill,
					Waiters: mysqlWaiters,
				})
			})
		}
		run("plain", mysqlnamed.New())
		run("control", mysqlnamed.New(mysqlnamed.WithControl(open(t, s))))
	})
}
