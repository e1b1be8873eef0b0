package integration

import (
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

// TestPostgresOperatorSQL runs what the documentation gives the operator.
func TestPostgresOperatorSQL(t *testing.T) {
	t.Parallel()
	named, listing := operatorSQL(t)[2], operatorSQL(t)[3]
	db := pgDatabase(t, postgres(t))
	if err := migrations.Up(t.Context(), db, migrations.Postgres()); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(t.Context(), db, migrations.Postgres(), migrations.Fences()); err != nil {
		t.Fatal(err)
	}
	runSQL(t, db, "CREATE ROLE app", operatorSQL(t)[5])
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP OWNED BY app; DROP ROLE app", pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
	count := func(statement, where string) int {
		t.Helper()
		return ask[int](t, db, "SELECT count(*) FROM ("+statement+") s WHERE "+where)
	}
	if n := count(named, "true"); n != 0 {
		t.Errorf("nobody has that lock, and there are %d rows", n)
	}
	c, dead := conn(t, db), conn(t, db)
	billing := acquire(t, sqllock.New(pgadvisory.New(), sqllock.WithNamespace("billing")), c, "invoices")
	if n := count(named, "granted AND pid=(SELECT pid FROM pg_stat_activity WHERE usename=s.usename AND pid=s.pid)"); n != 1 {
		t.Errorf("the lock is held, and there are %d rows", n)
	}
	release(t, billing)

	gone := acquire(t, sqllock.New(pgtable.New(time.Hour)), dead, "dead")
	if err := pgKill(t.Context(), db, gone.Grant().Session); err != nil {
		t.Fatal(err)
	}
	l := acquire(t, sqllock.New(pgtable.New(time.Hour)), c, "job")
	defer release(t, l)
	waitFor(t, "the session to end", func() bool { return count(listing, "name='dead' AND NOT alive") == 1 })
	if n := count(listing, "name='job' AND alive AND pid="+ask[string](t, db, "SELECT connection_id::text FROM shared_locks WHERE name='job'")); n != 1 {
		t.Errorf("the listing has %d rows of the lock that is held", n)
	}
	if n := count(listing, "until > since + interval '1 hour' AND holder <> ''"); n != 2 {
		t.Errorf("the listing has %d good rows, want 2", n)
	}
}

// TestPGTxIsolation: a transaction whose snapshot would be from before the lock is refused.
func TestPGTxIsolation(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	k := sqllock.New(pgadvisory.New())
	for level, want := range map[sql.IsolationLevel]error{
		sql.LevelDefault: nil, sql.LevelReadUncommitted: nil, sql.LevelReadCommitted: nil,
		sql.LevelRepeatableRead: sqllock.ErrUnsupported, sql.LevelSerializable: sqllock.ErrUnsupported,
	} {
		tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
		if err != nil {
			t.Fatal(err)
		}
		err = k.LockTx(t.Context(), tx, "job")
		wantErr(t, level.String(), err, want)
		if want != nil && !strings.Contains(err.Error(), "sql.LevelReadCommitted") {
			t.Errorf("%v: the error should say what to do: %v", level, err)
		}
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// TestPGWrongBackend: the backends of the other servers say which ones to use.
func TestPGWrongBackend(t *testing.T) {
	t.Parallel()
	c := conn(t, pgDatabase(t, postgres(t)))
	for name, backend := range map[string]sqllock.Backend{"mysqlnamed": mysqlnamed.New(), "table": table.New(time.Minute)} {
		_, err := sqllock.New(backend).TryLock(t.Context(), c, "job")
		wantErr(t, name, err, sqllock.ErrUnsupported)
		wantNotErr(t, name, err, sqllock.ErrSessionGone)
		if err == nil || !strings.Contains(err.Error(), "pgadvisory") {
			t.Errorf("%s: the error should say what to use: %v", name, err)
		}
	}
}
