package integration

import (
	"context"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
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
		ttl := 2 * time.Second
		k := pool(c.T, c.open(c.T), c.backend(ttl, c.db))
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
			start := time.Now()
			waitFor(c.T, "the lock to be extended", func() bool {
				return ctx.Err() != nil || time.Since(start) > ttl
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
