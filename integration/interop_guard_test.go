package integration

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"
)

// expired has the time of every row be over.
func (c *interopCase) expired() {
	c.Helper()
	do(c.T, c.db, map[string]string{
		"symfony":  "UPDATE lock_keys SET key_expiration = key_expiration - 600",
		"laravel":  "UPDATE cache_locks SET expiration = expiration - 600",
		"shedlock": "UPDATE shedlock SET lock_until = locked_at",
	}[c.name])
}

// blocked returns when the session waits for a lock.
func (c *interopCase) blocked(id int64) {
	c.Helper()
	waitFor(c.T, "the peer to wait for the row", func() bool {
		if c.pg() {
			return ask[bool](c.T, c.db, "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'", id)
		}
		time.Sleep(120 * time.Millisecond) // it answers from a cache that is not renewed while it is asked more often
		return ask[bool](c.T, c.db, "SELECT COUNT(*) = 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = ? AND trx_state = 'LOCK WAIT'", id)
	})
}

func (c *interopCase) id(s *sql.Conn) int64 {
	c.Helper()
	return ask[int64](c.T, s, c.pick("SELECT CONNECTION_ID()", "SELECT pg_backend_pid()"))
}

// TestInteropGuard: who is about to commit has the row locked, so the statement by which a
// peer takes over waits for the commit; and a holder whose time is over, or whose lock was
// taken over, commits nothing.
func TestInteropGuard(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		do(c.T, c.db, "CREATE TABLE work (n int)")
		n := func() int64 { return ask[int64](c.T, c.db, "SELECT COUNT(*) FROM work") }
		work := func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO work VALUES (1)")
			return err
		}
		name, p, ours := lockName("job"), c.newPeer(c.T), conn(c.T, c.db)
		k := sqllock.New(c.backend(time.Minute, c.db))
		id := c.id(p.session())

		l := acquire(c.T, k, ours, name)
		if err := txguard.Run(c.Context(), l, work); err != nil || n() != 1 {
			c.Fatalf("the guarded work: %v, %d rows", err, n())
		}
		release(c.T, l)

		// The take-over and the commit meet: the time ends between the check and the commit.
		l = acquire(c.T, k, ours, name, sqllock.TTL(time.Second))
		tx, err := ours.BeginTx(c.Context(), nil)
		if err != nil {
			c.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // it is committed
		if err := work(c.Context(), tx); err != nil {
			c.Fatal(err)
		}
		taken := make(chan error, 1)
		var saw int64
		err = l.WhileHeld(c.Context(), sqllock.InTx{Conn: ours}, 0, func() error {
			waitFor(c.T, "the time to be over", func() bool {
				_, err := k.Holder(c.Context(), c.db, name)
				return errors.Is(err, sqllock.ErrNotHeld)
			})
			go func() {
				for {
					ok, err := p.acquire(c.Context(), name, 60)
					if err != nil || ok {
						if err == nil {
							err = p.session().QueryRowContext(c.Context(), "SELECT COUNT(*) FROM work").Scan(&saw)
						}
						taken <- err
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			c.blocked(id)
			stillWaits(c.T, taken)
			return tx.Commit()
		})
		if err != nil {
			c.Fatalf("the commit: %v", err)
		}
		if err := <-taken; err != nil || saw != 2 {
			c.Fatalf("the peer's take-over: %v; it saw %d rows, want 2", err, saw)
		}

		// The lock is the peer's now.
		err = txguard.Run(c.Context(), l, work)
		wantErr(c.T, "work under a lock that was taken over", err, txguard.ErrRolledBack, sqllock.ErrLost)
		if n() != 2 {
			c.Errorf("a stale holder has committed: %d rows", n())
		}
		if err := p.release(c.Context(), name); err != nil {
			c.Fatal(err)
		}

		// Nobody has taken it, but its time is over.
		over := acquire(c.T, k, ours, name)
		err = txguard.Run(c.Context(), over, func(ctx context.Context, tx *sql.Tx) error {
			c.expired()
			return work(ctx, tx)
		})
		wantErr(c.T, "work beyond the TTL", err, txguard.ErrRolledBack, sqllock.ErrLost)

		// The control: without the guard it is committed.
		stale := acquire(c.T, k, ours, name)
		if tx, err = ours.BeginTx(c.Context(), nil); err != nil {
			c.Fatal(err)
		}
		c.expired()
		granting1(c.T, p, name, 60, true)
		if err := errors.Join(work(c.Context(), tx), tx.Commit()); err != nil || n() != 3 {
			c.Errorf("the control: %v, %d rows", err, n())
		}
		wantErr(c.T, "Release", stale.Release(c.Context()), sqllock.ErrLost)
	})
}
