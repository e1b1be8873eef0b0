package integration

import (
	"context"
	"database/sql"
	"testing"

	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/locktest"
)

// pgNumber is what a lock is called on the server.
const pgNumber = "hashtextextended($1,0)"

// pgIsLock is the condition that a row of pg_locks is of the lock called $1.
const pgIsLock = "locktype='advisory' AND objsubid=1 AND database=(SELECT oid FROM pg_database WHERE datname=current_database())" +
	" AND (classid::bigint<<32|objid::bigint)=" + pgNumber

// pgWaiters counts the sessions that wait for key.
func pgWaiters(ctx context.Context, db *sql.DB, key string) (n int, err error) {
	err = db.QueryRowContext(ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted AND "+pgIsLock, key).Scan(&n)
	return n, err
}

func pgKill(ctx context.Context, db *sql.DB, session int64) error {
	_, err := db.ExecContext(ctx, "SELECT pg_terminate_backend($1)", session)
	return err
}

func TestConformancePGAdvisory(t *testing.T) {
	s := postgres(t)
	run := func(name string, backend sqllock.Backend) {
		t.Run(name, func(t *testing.T) {
			locktest.Run(t, locktest.Config{
				Backend: backend,
				Open:    func(t *testing.T) *sql.DB { t.Helper(); return openPG(t, s) },
				Kill:    pgKill,
				Waiters: pgWaiters,
			})
		})
	}
	run("plain", pgadvisory.New())
}
