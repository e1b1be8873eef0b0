package integration

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// TestPGGuardKillDuringCommit has the answers to 300 COMMITs lost, and compares what Run
// says became of them with what did. A backend that is told to end in its commit answers
// before it does, so what is lost by pg_terminate_backend was not committed; what is
// lost with the connection was, as a rule.
func TestPGGuardKillDuringCommit(t *testing.T) {
	const wanted = 150 // of each
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		do(t, g.db, "DELETE FROM work")
		terminate := newPGCommitKiller(g, func(k *pgCommitKiller, c *net.TCPConn, p []byte) (int, error) {
			go func() { k.killed <- pgKill(t.Context(), g.db, k.session) }()
			k.pause()
			return c.Write(p)
		})
		cut := newPGCommitKiller(g, func(k *pgCommitKiller, c *net.TCPConn, p []byte) (int, error) {
			n, err := c.Write(p)
			go func() {
				k.pause()
				_ = c.SetLinger(0)
				_ = c.Close() // the driver may have done so before
				k.killed <- nil
			}()
			return n, err
		})
		for rounds := 0; terminate.lost() < wanted || cut.lost() < wanted; rounds++ {
			if terminate.lost() < wanted {
				terminate.round(2 * rounds)
			}
			if cut.lost() < wanted {
				cut.round(2*rounds + 1)
			}
		}
		for how, k := range map[string]*pgCommitKiller{"pg_terminate_backend": terminate, "a connection that is cut": cut} {
			t.Logf("%s: %d answers to COMMIT were lost, of which %d were found to be committed and %d not; %d COMMITs were answered",
				how, k.lost(), k.settledCommitted, k.settledRolledBack, k.answered)
		}
		if cut.settledCommitted == 0 || terminate.settledRolledBack == 0 {
			t.Error("the ends came all before, or all after the commit, so this shows nothing")
		}
	})
}

// pgCommitKiller ends sessions when they send COMMIT.
type pgCommitKiller struct {
	*pgGuarded

	pool    *sql.DB
	window  time.Duration // the end comes at a random moment within it
	session int64         // that is in its commit
	killed  chan error

	settledCommitted, settledRolledBack, answered int
}

// pgKilledConn has kill send COMMITs.
type pgKilledConn struct {
	*net.TCPConn

	kill func(*net.TCPConn, []byte) (int, error)
}

func (c pgKilledConn) Write(p []byte) (int, error) {
	if bytes.HasSuffix(p, pgCommit) {
		return c.kill(c.TCPConn, p)
	}
	return c.TCPConn.Write(p)
}

func newPGCommitKiller(g *pgGuarded, kill func(k *pgCommitKiller, c *net.TCPConn, p []byte) (int, error)) *pgCommitKiller {
	k := &pgCommitKiller{pgGuarded: g, window: 200 * time.Microsecond, killed: make(chan error, 1)}
	k.pool = g.pool(dialed(func(c net.Conn) net.Conn {
		return pgKilledConn{c.(*net.TCPConn), func(c *net.TCPConn, p []byte) (int, error) { return kill(k, c, p) }} //nolint:forcetypeassert,errcheck // it is one
	}))
	return k
}

func (k *pgCommitKiller) lost() int { return k.settledCommitted + k.settledRolledBack }

func (k *pgCommitKiller) pause() {
	for end := time.Now().Add(rand.N(k.window)); time.Now().Before(end); {
	}
}

func (k *pgCommitKiller) round(id int) {
	k.t.Helper()
	c, err := k.pool.Conn(k.t.Context())
	if err != nil {
		k.t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the session has ended
	l := acquire(k.t, k.locker, c, "commit killer")
	k.session = l.Grant().Session
	err = txguard.Run(k.t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO work VALUES (%d,0)", id))
		return err
	}, txguard.WithEvidence(k.fence))
	if err := <-k.killed; err != nil {
		k.t.Fatal(err)
	}
	k.judge(l, id, err)
}

// judge looks when the next holder has the lock: by then it must have been decided.
func (k *pgCommitKiller) judge(l *sqllock.Lock, id int, err error) {
	k.t.Helper()
	lost := l.Err() != nil       // which Run has found out, if it was not told by COMMIT
	_ = l.Release(k.t.Context()) // its session has ended
	committed := false
	next := k.locker.Do(k.t.Context(), k.db, "commit killer", func(context.Context, *sqllock.Lock) error {
		committed = ask[int](k.t, k.db, fmt.Sprintf("SELECT count(*) FROM work WHERE id=%d", id)) == 1
		return nil
	})
	if next != nil {
		k.t.Fatal(next)
	}
	if committed != (err == nil) || err != nil && (!errors.Is(err, txguard.ErrRolledBack) || !commitSent(err)) {
		k.t.Fatalf("row %d: committed: %v, and Run says %v", id, committed, err)
	}
	switch {
	case err == nil && lost:
		k.settledCommitted++
	case err == nil:
		k.answered++
		k.window = max(k.window*97/100, 20*time.Microsecond)
	default:
		k.settledRolledBack++
		k.window = min(k.window*103/100, time.Millisecond)
	}
}

// TestPGGuardCommittedWithoutAnAnswer: a server that waits for a standby has committed,
// and ends the session without saying so when that is terminated.
func TestPGGuardCommittedWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.Postgres, "-c", "synchronous_standby_names=nobody", "-c", "synchronous_commit=local")
	for name, backend := range pgGuardBackends() {
		t.Run(name, func(t *testing.T) {
			g := newPGGuarded(t, s, backend)
			db := g.db
			terminated := func(run func(txguard.Func) error) error {
				waits := "SELECT coalesce(min(pid),0) FROM pg_stat_activity WHERE datname=current_database() AND wait_event='SyncRep'"
				var wg sync.WaitGroup
				err := run(func(ctx context.Context, tx *sql.Tx) error {
					wg.Go(func() {
						var pid int64
						waitFor(t, "the commit to wait", func() bool { pid = ask[int64](t, db, waits); return pid != 0 })
						if err := pgKill(t.Context(), db, pid); err != nil {
							t.Error(err)
						}
					})
					do(t, tx, "SET LOCAL synchronous_commit=on")
					return increment(ctx, tx)
				})
				wg.Wait()
				return err
			}
			l := g.lock()
			err := terminated(func(fn txguard.Func) error { return txguard.Run(t.Context(), l, fn) })
			wantErr(t, "without evidence", err, txguard.ErrUnknown, sqllock.ErrLost)
			g.wantN("without evidence", 1)
			l = g.lock()
			if err := terminated(func(fn txguard.Func) error { return txguard.Run(t.Context(), l, fn, txguard.WithEvidence(g.fence)) }); err != nil {
				t.Errorf("with evidence: %v", err)
			}
			if l.Err() == nil {
				t.Error("the session was not lost, so this shows nothing")
			}
			g.wantN("with evidence", 2)
			l = g.lock()
			f, err := g.fence.Raise(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if err := terminated(func(fn txguard.Func) error { return f.Run(t.Context(), fn) }); err != nil {
				t.Errorf("fenced: %v", err)
			}
			g.clean("fenced", l, 3)
		})
	}
}

// TestPGGuardKilledBeforeCommit: an answer that ends the session is none to COMMIT.
func TestPGGuardKilledBeforeCommit(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		pool, gate := g.gated()
		for what, test := range map[string]struct {
			opts    []txguard.Option
			outcome error
		}{
			"without evidence": {nil, txguard.ErrUnknown},
			"with evidence":    {[]txguard.Option{txguard.WithEvidence(g.fence)}, txguard.ErrRolledBack},
		} {
			l := g.lockOn(pool, lockName("guarded"))
			ran := make(chan error, 1)
			go func() { ran <- txguard.Run(t.Context(), l, increment, test.opts...) }()
			<-gate.reached
			g.kill(l.Grant().Session)
			gate.pass <- struct{}{}
			err := <-ran
			wantErr(t, what, err, test.outcome, sqllock.ErrLost)
			if !commitSent(err) {
				t.Errorf("%s: it was noticed before COMMIT: %v", what, err)
			}
			g.wantN(what, 0)
		}
	})
}

// pgSilentAt stops passing on what is sent from a COMMIT on, or drops the COMMIT and
// resets the connection, or passes it on and drops the answer.
type pgSilentAt struct {
	net.Conn

	how    string
	silent *atomic.Bool
}

func (c pgSilentAt) Write(p []byte) (int, error) {
	if bytes.HasSuffix(p, pgCommit) {
		switch c.how {
		case "reset":
			if tcp, ok := c.Conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
			}
			return len(p), c.Close()
		case "no answer":
			n, err := c.Conn.Write(p)
			c.silent.Store(true)
			return n, err
		}
		c.silent.Store(true)
	}
	if c.silent.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// Read has the bound that a user gives a connection where networks can fall silent.
func (c pgSilentAt) Read(p []byte) (int, error) {
	if !c.silent.Load() {
		return c.Conn.Read(p)
	}
	if c.how == "no answer" {
		_, _ = c.Conn.Read(p) // it has been carried out
	}
	_ = c.Close()
	return 0, os.ErrDeadlineExceeded
}

// TestPGGuardNetworkFailsAtCommit: a COMMIT that the server never sees is not taken for
// one that it has carried out, nor the other way round.
func TestPGGuardNetworkFailsAtCommit(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		for how, committed := range map[string]int64{"reset": 0, "silence": 0, "no answer": 1} {
			broken := g.pool(dialed(func(c net.Conn) net.Conn { return pgSilentAt{c, how, new(atomic.Bool)} }))
			l := g.lockOn(broken, lockName("network"))
			wantErr(t, how+", without evidence", txguard.Run(t.Context(), l, increment), txguard.ErrUnknown, sqllock.ErrLost)
			l = g.lockOn(broken, l.Name())
			g.wantN(how, committed)
			err := txguard.Run(t.Context(), l, increment, txguard.WithEvidence(g.fence))
			if committed == 0 {
				wantErr(t, how+", with evidence", err, txguard.ErrRolledBack, sqllock.ErrLost)
			} else if err != nil {
				t.Errorf("%s, with evidence: %v", how, err)
			}
			g.wantN(how, 2*committed)

			l = g.lock()
			f, err := txguard.NewFence(broken).Raise(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Run(t.Context(), increment); (err == nil) != (committed == 1) || err != nil && !errors.Is(err, txguard.ErrRolledBack) {
				t.Errorf("%s, fenced: %v", how, err)
			}
			g.clean(how, l, 3*committed)
		}
	})
}

// TestPGGuardPoolOfOne: nothing waits for a connection that it holds itself.
func TestPGGuardPoolOfOne(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		pool := g.pool(dialed(func(c net.Conn) net.Conn { return pgSilentAt{c, "reset", new(atomic.Bool)} })) // every COMMIT is cut off
		pool.SetMaxOpenConns(1)
		f := txguard.NewFence(pool)
		err := txguard.Do(t.Context(), g.locker, pool, "job", increment, txguard.WithEvidence(f))
		wantErr(t, "Do", err, txguard.ErrRolledBack, sqllock.ErrLost)
		l := g.lock()
		fenced, err := f.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		wantErr(t, "fenced", fenced.Run(t.Context(), increment), txguard.ErrRolledBack)
		release(t, l)

		l = g.lockOn(pool, "job")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = f.Raise(ctx, l)
		wantErr(t, "Raise over the pool that the lock has emptied", err, txguard.ErrNotBegun, context.DeadlineExceeded)
		wantHeld(t, l)
		release(t, l)
	})
}

// pgWrapped is the driver of pgx as a tracer would wrap it.
type pgWrapped struct{ driver.Connector }

type pgWrappedConn struct {
	driver.Conn
	driver.QueryerContext
	driver.ExecerContext
	driver.ConnBeginTx
	driver.SessionResetter
	driver.NamedValueChecker
}

// Raw is how such drivers let others at what they have wrapped.
func (c pgWrappedConn) Raw() driver.Conn { return c.Conn }

func (w pgWrapped) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := w.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	pg := c.(*stdlib.Conn) //nolint:forcetypeassert,errcheck // nothing else
	return pgWrappedConn{pg, pg, pg, pg, pg, pg}, nil
}

func pgWrappedPool(t *testing.T, g *pgGuarded) *sql.DB {
	t.Helper()
	cfg, err := pgx.ParseConfig(g.s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Database = g.name
	pool := sql.OpenDB(pgWrapped{stdlib.GetConnector(*cfg)})
	t.Cleanup(func() { _ = pool.Close() })
	return pool
}
