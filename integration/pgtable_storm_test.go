package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
)

// TestPGTableStorm has sessions count to a number, each round under one and the same lock
// with a TTL of a second, while some of the holders hang for so long that the lock is taken
// from them, and some sessions are killed. What they have written tells whether two of them
// ever held it at the same time. The control, without the lock, must lose updates.
func TestPGTableStorm(t *testing.T) {
	t.Parallel()
	t.Run("locked", func(t *testing.T) {
		t.Parallel()
		st := newPGStorm(t)
		st.locker = sqllock.New(pgtable.New(time.Second, pgtable.WithPool(st.db)), onHolders(func(e sqllock.Event) {
			if e.Kind == sqllock.Killed {
				st.ended.Add(1)
			}
		}))
		const sessions, rounds = 16, 30
		stop := make(chan struct{})
		var chaos sync.WaitGroup
		chaos.Go(func() { st.kills(t, stop) })
		st.run(t, sessions, rounds, st.locked)
		close(stop)
		chaos.Wait()
		st.check(t, sessions*rounds)
		if st.hangs.Load() == 0 || st.killed.Load() == 0 || st.ended.Load() == 0 || st.lost.Load() < st.hangs.Load() {
			t.Errorf("the storm was none: %d hung, %d ended, %d killed, %d lost", st.hangs.Load(), st.ended.Load(), st.killed.Load(), st.lost.Load())
		}
		t.Logf("%d hung, %d ended, %d killed, %d rounds lost", st.hangs.Load(), st.ended.Load(), st.killed.Load(), st.lost.Load())
	})
	t.Run("unlocked", func(t *testing.T) {
		t.Parallel()
		st := newPGStorm(t)
		for range 10 {
			st.run(t, 8, 25, func(ctx context.Context, c *sql.Conn, _ int) (bool, error) { return true, st.count(ctx, c, 0) })
			if n := ask[int](t, st.db, "SELECT n FROM work"); n < 8*25 {
				return
			}
			do(t, st.db, "UPDATE work SET n=0")
		}
		t.Error("no update was lost without the lock, so this test shows nothing")
	})
}

type pgStorm struct {
	db                         *sql.DB
	locker                     *sqllock.Locker
	hangs, ended, killed, lost atomic.Int64
	hanging                    atomic.Bool // so that its TTL ends it, and nothing else
}

func newPGStorm(t *testing.T) *pgStorm {
	t.Helper()
	db := pgLockTable(t, postgres(t))
	do(t, db, "CREATE TABLE work (n bigint NOT NULL)")
	do(t, db, "INSERT INTO work VALUES (0)")
	do(t, db, "CREATE TABLE journal (n bigint PRIMARY KEY, token bigint NOT NULL)")
	return &pgStorm{db: db}
}

// run has each of the sessions do its rounds, on another connection after one that was lost.
func (st *pgStorm) run(t *testing.T, sessions, rounds int, round func(context.Context, *sql.Conn, int) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			for n := 0; n < rounds && ctx.Err() == nil; {
				c, err := st.db.Conn(ctx)
				if err != nil {
					t.Errorf("session %d: %v", i, err)
					return
				}
				done, err := round(ctx, c, i*rounds+n)
				if done {
					n++
				}
				if err != nil {
					t.Errorf("session %d, round %d: %v", i, n, err)
					cancel()
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
}

// locked is a round in a transaction under the lock. It is done if it was committed.
func (st *pgStorm) locked(ctx context.Context, c *sql.Conn, n int) (done bool, err error) {
	l, err := st.locker.Lock(ctx, c, "storm")
	if errors.Is(err, sqllock.ErrSessionGone) { // killed as a waiter
		st.lost.Add(1)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	tx, err := c.BeginTx(ctx, nil)
	if err == nil {
		err = st.count(ctx, tx, l.Token())
		if n%240 == 120 && err == nil && st.hangs.Load() < 3 {
			st.hangs.Add(1)
			st.hanging.Store(true)
			for ctx.Err() == nil && err == nil { // until the session has been ended
				time.Sleep(10 * time.Millisecond)
				_, err = tx.ExecContext(ctx, "SELECT 1")
			}
			st.hanging.Store(false)
		}
		if err == nil {
			err = tx.Commit()
			done = err == nil
		} else {
			_ = tx.Rollback()
		}
	}
	released := l.Release(ctx)
	switch code := pgtState(err); {
	case err != nil && code != "" && code != "57P01":
		return done, fmt.Errorf("a session that lives was refused: %w", err)
	case err == nil && released != nil && !errors.Is(released, sqllock.ErrLost) && !errors.Is(released, sqllock.ErrUnknown):
		return done, released
	case err != nil:
		st.lost.Add(1)
		// A commit that was answered by the end of the session may have been done.
		var token int64
		asked := st.db.QueryRowContext(ctx, "SELECT token FROM journal WHERE token=$1", l.Token()).Scan(&token)
		return asked == nil, nil //nolint:nilerr // it is what was to be done to it
	}
	return done, nil
}

func pgtState(err error) string {
	var answer interface{ SQLState() string }
	if errors.As(err, &answer) {
		return answer.SQLState()
	}
	return ""
}

// count reads a number, works for a moment, and writes the next one.
func (st *pgStorm) count(ctx context.Context, q interface {
	sqllock.Querier
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, token int64,
) error {
	var n int64
	if err := q.QueryRowContext(ctx, "SELECT n FROM work").Scan(&n); err != nil {
		return err
	}
	time.Sleep(time.Millisecond) // the work
	if _, err := q.ExecContext(ctx, "UPDATE work SET n=$1", n+1); err != nil || token == 0 {
		return err
	}
	_, err := q.ExecContext(ctx, "INSERT INTO journal VALUES ($1,$2)", n+1, token)
	return err
}

// kills ends sessions that hold the lock, or wait for it.
func (st *pgStorm) kills(t *testing.T, stop <-chan struct{}) {
	for st.killed.Load() < 12 {
		select {
		case <-stop:
			return
		case <-time.After(rand.N(100 * time.Millisecond)):
		}
		var told sql.NullBool
		err := st.db.QueryRowContext(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype='advisory' AND granted=$1"+
			" AND database=(SELECT oid FROM pg_database WHERE datname=current_database()) ORDER BY random() LIMIT 1", !st.hanging.Load() && rand.N(2) == 0).Scan(&told)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("the killer: %v", err)
			return
		}
		if told.Bool {
			st.killed.Add(1)
		}
	}
}

// check: they have counted one by one, with tokens that grow.
func (st *pgStorm) check(t *testing.T, want int) {
	t.Helper()
	if n := ask[int](t, st.db, "SELECT n FROM work"); n != want {
		t.Errorf("they have counted to %d, want %d", n, want)
	}
	if n := ask[int](t, st.db, "SELECT count(*) FROM journal"); n != want {
		t.Errorf("the journal has %d rounds, want %d", n, want)
	}
	if n := ask[int](t, st.db, "SELECT count(*) FROM (SELECT token<=lag(token) OVER (ORDER BY n) AS back FROM journal) j WHERE back"); n != 0 {
		t.Errorf("%d rounds have no greater token than the one before", n)
	}
	pgtClean(t, st.db)
}
