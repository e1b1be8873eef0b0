package integration

import (
	"context"
	"database/sql"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// endAll ends every session on the database but those of c.db.
func (c *interopCase) endAll() {
	c.Helper()
	mine := conn(c.T, c.db)
	rows, err := mine.QueryContext(c.Context(), c.pick(
		"SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
		"SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"))
	if err != nil {
		c.Fatal(err)
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			c.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil || len(ids) == 0 {
		c.Fatalf("%d sessions, %v", len(ids), err)
	}
	for _, id := range ids {
		if c.pg() {
			err = pgKill(c.Context(), c.db, id)
		} else {
			err = mysqlKill(c.Context(), c.db, id)
		}
		if err != nil {
			c.Fatal(err)
		}
	}
}

// TestInteropPoolSession: the end of a session that locks of a Pool share is the end of none
// of them, neither by an extension nor by another call that comes to use it.
func TestInteropPoolSession(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		k := pool(c.T, c.open(c.T), c.backend(6*time.Second, c.db))
		err := k.Do(c.Context(), "kept", func(ctx context.Context, l *sqllock.Lock) error {
			c.endAll()
			for range 2 { // the first one finds out
				other, err := k.TryLock(ctx, "other") // on the same session
				if err != nil {
					c.Errorf("TryLock: %v", err)
					continue
				}
				release(c.T, other)
			}
			first := l.Grant().Until
			waitFor(c.T, "the lock to be extended", func() bool {
				return ctx.Err() != nil || l.Grant().Until.After(first)
			})
			if ctx.Err() != nil {
				c.Errorf("the lock has ended: %v", context.Cause(ctx))
			}
			return l.Check(ctx)
		}, sqllock.KeepAlive(time.Minute))
		if err != nil {
			c.Errorf("Do: %v", err)
		}
		if n := c.held(); n != 0 {
			c.Errorf("%d locks are left behind", n)
		}
	})
}

// TestInteropHolderSilent: the holder is asked for no longer than ctx allows.
func TestInteropHolderSilent(t *testing.T) {
	t.Parallel()
	onInteropKinds(t, func(t *testing.T, kind testdb.Kind) {
		c := newInterop(t, kind, interopFormats[0])
		var silent atomic.Bool
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return silentConn{conn, &silent}, err
		}
		var db *sql.DB
		if c.pg() {
			db = sameDatabase(t, c.s, c.db, func(cfg *pgx.ConnConfig) { cfg.DialFunc = dial })
		} else {
			name := database(t, c.db)
			db = open(t, c.s, func(cfg *mysql.Config) { cfg.DBName, cfg.DialFunc = name, dial })
		}
		k := sqllock.New(c.backend(time.Minute, nil))
		_, err := k.Holder(t.Context(), db, "job")
		wantErr(t, "Holder", err, sqllock.ErrNotHeld)
		silent.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = k.Holder(ctx, db, "job")
		wantErr(t, "Holder of a server that is silent", err, context.DeadlineExceeded)
	})
}

// TestInteropPostgresRounding: what was released is free at once, even where the column has
// less than microseconds.
func TestInteropPostgresRounding(t *testing.T) {
	t.Parallel()
	c := newInterop(t, testdb.Postgres, interopFormats[1])
	do(t, c.db, "ALTER TABLE shedlock ALTER lock_until TYPE timestamp(0)")
	k, ours := sqllock.New(c.backend(time.Minute, nil)), conn(t, c.db)
	for range 20 {
		l, err := k.TryLock(t.Context(), ours, "job")
		if err != nil {
			t.Fatalf("TryLock, after a Release: %v", err)
		}
		release(t, l)
	}
}

// TestInteropNobody: to ask who holds what is free costs no session, and the answer is the
// same with a pool.
func TestInteropNobody(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		db := c.open(c.T)
		db.SetMaxOpenConns(1)
		id := ask[int64](c.T, db, c.pick("SELECT CONNECTION_ID()", "SELECT pg_backend_pid()"))
		ours := conn(c.T, c.db)
		for what, k := range map[string]*sqllock.Locker{
			"without a pool": sqllock.New(c.backend(time.Minute, nil)), "with a pool": sqllock.New(c.backend(time.Minute, db)),
		} {
			_, err := k.Holder(c.Context(), ours, "free")
			wantErr(c.T, "Holder "+what, err, sqllock.ErrNotHeld)
			wantNotErr(c.T, "Holder "+what, err, sqllock.ErrSessionGone)
			_, err = k.Holder(c.Context(), db, "free")
			wantErr(c.T, "Holder over the *sql.DB "+what, err, sqllock.ErrNotHeld)
			_, err = k.Break(c.Context(), c.db, "free")
			wantErr(c.T, "Break "+what, err, sqllock.ErrNotHeld)
		}
		if ask[int64](c.T, db, c.pick("SELECT CONNECTION_ID()", "SELECT pg_backend_pid()")) != id {
			c.Error("the session of the *sql.DB has been closed")
		}
	})
}

// TestInteropReadOnlySession: the error says which setting it is.
func TestInteropReadOnlySession(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		c := newInterop(t, s.Kind, interopFormats[0])
		ours := conn(t, c.db)
		do(t, ours, "SET SESSION TRANSACTION READ ONLY")
		_, err := sqllock.New(c.backend(time.Minute, nil)).TryLock(t.Context(), ours, "job")
		wantErr(t, "TryLock", err, sqllock.ErrUnsupported)
		wantSays(t, "TryLock", err, "READ ONLY by default", "DSN")
	})
}
