package integration

import (
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
)

// TestPostgresOperatorSQL runs what the documentation gives the operator.
func TestPostgresOperatorSQL(t *testing.T) {
	t.Parallel()
	named, listing := operatorSQL(t)[2], operatorSQL(t)[3]
	db := pgDatabase(t, postgres(t))
	if err := migrations.Up(t.Context(), db, migrations.Postgres()); err != nil {
		t.Fatal(err)
	}
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
