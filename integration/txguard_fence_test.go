package integration

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// gate lets packets with COMMIT pass one by one, when it is told to.
type gate struct {
	reached chan struct{} // a COMMIT is about to be sent
	pass    chan struct{}
}

type gatedConn struct {
	net.Conn

	gate *gate
}

func (c gatedConn) Write(p []byte) (int, error) {
	if bytes.HasSuffix(p, []byte("\x03COMMIT")) {
		c.gate.reached <- struct{}{}
		<-c.gate.pass
	}
	return c.Conn.Write(p)
}

// gated opens a pool on the database of db with a gate in front of COMMIT.
func gated(t *testing.T, s *testdb.Server, db *sql.DB) (*sql.DB, *gate) {
	t.Helper()
	g := &gate{make(chan struct{}), make(chan struct{})}
	name := database(t, db)
	return open(t, s, func(c *mysql.Config) {
		c.DBName = name
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return gatedConn{conn, g}, err
		}
	}), g
}

func isolations() map[string]sql.TxOptions {
	return map[string]sql.TxOptions{
		"READ COMMITTED":  {Isolation: sql.LevelReadCommitted},
		"REPEATABLE READ": {Isolation: sql.LevelRepeatableRead},
	}
}

// onEachIsolation runs a test of two holders of one lock, of which the second gets it
// while the first is in its commit.
func onEachIsolation(t *testing.T, test func(t *testing.T, s *testdb.Server, db *sql.DB, opts sql.TxOptions)) {
	t.Helper()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := lockTable(t, s, "MyISAM")
		fenceTable(t, db)
		for name, opts := range isolations() {
			t.Run(name, func(t *testing.T) {
				do(t, db, "UPDATE work SET n=0")
				do(t, db, "DELETE FROM lock_fences")
				test(t, s, db, opts)
			})
		}
	})
}

// readAndWrite adds one to what it has read, as programs do.
func readAndWrite(ctx context.Context, tx *sql.Tx) error {
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT n FROM work WHERE id=1").Scan(&n); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "UPDATE work SET n=? WHERE id=1", n+1)
	return err
}

// TestFenceNaive is why a fence takes more than a comparison: where the token is
// read by a plain SELECT, the next holder reads what the last one is about to
// overwrite.
func TestFenceNaive(t *testing.T) {
	onEachIsolation(t, func(t *testing.T, _ *testdb.Server, db *sql.DB, opts sql.TxOptions) {
		ctx := t.Context()
		naive := func(tx *sql.Tx, token int) {
			t.Helper()
			if got := ask[int](t, tx, "SELECT token FROM lock_fences WHERE name='job'"); got > token {
				t.Fatalf("the fence has token %d, and refuses %d", got, token)
			}
		}
		do(t, db, "INSERT INTO lock_fences (name,token) VALUES ('job',1)")
		first, err := db.BeginTx(ctx, &opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := readAndWrite(ctx, first); err != nil {
			t.Fatal(err)
		}
		naive(first, 1)

		// The first holder's lock is lost here, and the second one is admitted.
		do(t, db, "UPDATE lock_fences SET token=2 WHERE name='job'")
		second, err := db.BeginTx(ctx, &opts)
		if err != nil {
			t.Fatal(err)
		}
		n := ask[int](t, second, "SELECT n FROM work WHERE id=1")
		if err := first.Commit(); err != nil {
			t.Fatal(err)
		}
		do(t, second, "UPDATE work SET n=? WHERE id=1", n+1)
		naive(second, 2)
		if err := second.Commit(); err != nil {
			t.Fatal(err)
		}
		if got := ask[int](t, db, "SELECT n FROM work WHERE id=1"); got != 1 {
			t.Errorf("after two increments: %d; if none is lost, the other tests show nothing", got)
		}
	})
}

// rowWait returns when a statement with that text waits for the lock of a row. The
// servers look anew only for who has not looked for a tenth of a second.
func rowWait(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	waitFor(t, "a statement to wait for a row: "+statement, func() bool {
		time.Sleep(110 * time.Millisecond)
		return ask[int](t, db, "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state='LOCK WAIT' AND trx_query LIKE ?", "%"+statement+"%") > 0
	})
}

// holders are the first and the second holder of a lock, and pools for the work of
// each, where the first one's commits wait.
type holders struct {
	t      *testing.T
	db     *sql.DB
	gate   *gate
	first  *txguard.Fenced
	work   *txguard.Fence // of the second
	locker *sqllock.Locker
	lock   *sqllock.Lock // of the first
}

func newHolders(t *testing.T, s *testdb.Server, db *sql.DB, locker *sqllock.Locker) *holders {
	t.Helper()
	pool, g := gated(t, s, db)
	h := &holders{t: t, db: db, gate: g, work: txguard.NewFence(db), locker: locker}
	h.lock = acquire(t, locker, conn(t, db), "job")
	var err error
	if h.first, err = txguard.NewFence(pool).Raise(t.Context(), h.lock); err != nil {
		t.Fatal(err)
	}
	return h
}

// lose ends the session of the first one's lock, and has the second one acquire it.
func (h *holders) lose() *sqllock.Lock {
	h.t.Helper()
	if err := mysqlKill(h.t.Context(), h.db, sessionID(h.t, h.lock.Conn())); err != nil {
		h.t.Fatal(err)
	}
	return acquire(h.t, h.locker, conn(h.t, h.db), "job")
}

// TestFenceWaitsForCommit: the next holder is admitted only when a transaction of
// the last one that is in its commit has been decided, so nothing is lost.
func TestFenceWaitsForCommit(t *testing.T) {
	onEachIsolation(t, func(t *testing.T, s *testdb.Server, db *sql.DB, opts sql.TxOptions) {
		for name, locker := range map[string]*sqllock.Locker{
			"table": sqllock.New(table.New(time.Minute)), "mysqlnamed": sqllock.New(mysqlnamed.New()),
		} {
			t.Run(name, func(t *testing.T) {
				do(t, db, "UPDATE work SET n=0")
				h := newHolders(t, s, db, locker)
				var wg sync.WaitGroup
				var session int64
				wg.Go(func() {
					err := h.first.Run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
						session = ask[int64](t, tx, "SELECT CONNECTION_ID()")
						return readAndWrite(ctx, tx)
					}, txguard.WithTxOptions(opts))
					if err != nil {
						t.Errorf("the first: %v", err)
					}
				})
				<-h.gate.reached
				operatorSees(t, db, session)
				next := h.lose()
				raised := make(chan error, 1)
				wg.Go(func() {
					second, err := h.work.Raise(t.Context(), next)
					raised <- err
					if err == nil {
						err = second.Run(t.Context(), readAndWrite, txguard.WithTxOptions(opts))
					}
					if err != nil {
						t.Errorf("the second: %v", err)
					}
				})
				if name == "table" {
					rowWait(t, db, "lock_fences")
				} else { // it asks again and again, so as not to lose the session that it asks on
					time.Sleep(300 * time.Millisecond)
				}
				stillWaits(t, raised)
				h.gate.pass <- struct{}{}
				wg.Wait()
				if got := ask[int](t, db, "SELECT n FROM work WHERE id=1"); got != 2 {
					t.Errorf("after two increments: %d", got)
				}
				release(t, next)
			})
		}
	})
}

// operatorSees runs what the documentation has for the operator, while the session is
// in its commit.
func operatorSees(t *testing.T, db *sql.DB, session int64) {
	t.Helper()
	page, err := os.ReadFile("../docs/guarded-work.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "```sql\n")
	block, _, _ = strings.Cut(block, "```")
	level, listing, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(block), ";"), ";\n")
	c := conn(t, db)
	do(t, c, level)
	defer do(t, c, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
	var name, started string
	var token, told int64
	waitFor(t, "the session in its commit to be seen", func() bool {
		time.Sleep(110 * time.Millisecond) // as in rowWait
		err := c.QueryRowContext(t.Context(), listing).Scan(&name, &token, &told, &started)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			t.Fatalf("%s: %v", listing, err)
		}
		return err == nil
	})
	if name != "job" || told != session {
		t.Errorf("the row says %q, session %d; the session in its commit is %d", name, told, session)
	}
}

// TestFenceRefusesStale: a holder that is not in its commit when the next one is
// admitted can't commit any more, and does not keep the next one from working,
// whatever its snapshot shows it.
func TestFenceRefusesStale(t *testing.T) {
	onEachIsolation(t, func(t *testing.T, s *testdb.Server, db *sql.DB, opts sql.TxOptions) {
		// A lock that its session has, and that the fence alone knows to be stale.
		h := newHolders(t, s, db, sqllock.New(mysqlnamed.New()))
		err := h.first.Run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
			if n := ask[int](t, tx, "SELECT n+0*(SELECT MAX(token) FROM lock_fences) FROM work WHERE id=1"); n != 0 {
				t.Errorf("n is %d", n)
			}
			do(t, db, "UPDATE lock_fences SET token=token+1")
			do(t, db, "UPDATE work SET n=n+1 WHERE id=1")
			_, err := tx.ExecContext(ctx, "UPDATE work SET n=1 WHERE id=1")
			return err
		}, txguard.WithTxOptions(opts))
		wantErr(t, "the stale holder", err, txguard.ErrRolledBack, sqllock.ErrLost)
		if got := ask[int](t, db, "SELECT n FROM work WHERE id=1"); got != 1 {
			t.Errorf("n is %d", got)
		}
		release(t, h.lock)
	})
}

// TestFenceStaleRaise: who comes late is not admitted, and lets nobody else down.
func TestFenceStaleRaise(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := lockTable(t, s, "MyISAM")
		fenceTable(t, db)
		for name, locker := range map[string]*sqllock.Locker{
			"table": sqllock.New(table.New(time.Minute)), "mysqlnamed": sqllock.New(mysqlnamed.New()),
		} {
			t.Run(name, func(t *testing.T) {
				h := &holders{t: t, db: db, locker: locker, work: txguard.NewFence(db)}
				h.lock = acquire(t, locker, conn(t, db), "job")
				next := h.lose()
				second, err := h.work.Raise(t.Context(), next)
				if err != nil {
					t.Fatal(err)
				}
				_, err = h.work.Raise(t.Context(), h.lock)
				wantErr(t, "a stale Raise", err, txguard.ErrNotBegun, sqllock.ErrLost)
				if err := second.Run(t.Context(), increment); err != nil {
					t.Errorf("the second, afterwards: %v", err)
				}
				again, err := h.work.Raise(t.Context(), next)
				if err != nil {
					t.Fatalf("Raise for the second time: %v", err)
				}
				if err := again.Run(t.Context(), increment); err != nil {
					t.Errorf("the second, raised again: %v", err)
				}
				release(t, next)
			})
		}
	})
}

// TestFenceTokensGrow: also those that are minted, over releases, kills, processes
// and rows that have been swept.
func TestFenceTokensGrow(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := lockTable(t, s, "MyISAM")
		fenceTable(t, db)
		f := txguard.NewFence(db)
		for name, locker := range map[string]*sqllock.Locker{
			"table": sqllock.New(table.New(time.Minute)), "mysqlnamed": sqllock.New(mysqlnamed.New()),
		} {
			t.Run(name, func(t *testing.T) {
				var last int64
				for i := range 30 {
					l := acquire(t, locker, conn(t, db), "job")
					fenced, err := f.Raise(t.Context(), l)
					if err != nil {
						t.Fatal(err)
					}
					if fenced.Token() <= last {
						t.Errorf("token %d after %d", fenced.Token(), last)
					}
					last = fenced.Token()
					switch i % 3 {
					case 0:
						release(t, l)
					case 1:
						if err := mysqlKill(t.Context(), db, sessionID(t, l.Conn())); err != nil {
							t.Fatal(err)
						}
					case 2:
						release(t, l)
						do(t, db, "UPDATE lock_fences SET updated=updated-100")
						if n, err := f.Sweep(t.Context(), time.Minute); n != 1 || err != nil {
							t.Errorf("Sweep: %d, %v", n, err)
						}
					}
				}
			})
		}
	})
}

// TestFenceElsewhere: the work is done on another server than the lock is on.
func TestFenceElsewhere(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, kind := range testdb.Kinds() {
			if kind == s.Kind {
				continue
			}
			locks, there := lockTable(t, s, "MyISAM"), schema(t, server(t, kind))
			fenceTable(t, there)
			f := txguard.NewFence(there)

			l := acquire(t, sqllock.New(table.New(time.Minute)), conn(t, locks), "job")
			fenced, err := f.Raise(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if err := fenced.Run(t.Context(), increment); err != nil {
				t.Error(err)
			}
			release(t, l)
			wantErr(t, "after the release", fenced.Run(t.Context(), increment), txguard.ErrNotBegun, sqllock.ErrNotHeld)

			named := acquire(t, sqllock.New(mysqlnamed.New()), conn(t, locks), "named job")
			_, err = f.Raise(t.Context(), named)
			wantErr(t, "a token without a table for it", err, txguard.ErrNotBegun, sqllock.ErrNoTable)
			fenceTable(t, locks)
			fenced, err = f.Raise(t.Context(), named)
			if err != nil {
				t.Fatal(err)
			}
			if err := fenced.Run(t.Context(), increment); err != nil {
				t.Error(err)
			}
			release(t, named)
			if got := ask[int](t, there, "SELECT n FROM work WHERE id=1"); got != 2 {
				t.Errorf("after two increments: %d", got)
			}
		}
	})
}

// TestSettle: what has become of a transaction can be found out later, as long as
// the table remembers.
func TestSettle(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := lockTable(t, s, "MyISAM")
		fenceTable(t, db)
		f := txguard.NewFence(db)
		pool, g := gated(t, s, db)
		locker := sqllock.New(mysqlnamed.New())
		l := acquire(t, locker, conn(t, pool), "job")

		// The answer is not there yet while the session that has sent COMMIT, or is
		// about to, is alive.
		ran := make(chan error, 1)
		go func() { ran <- txguard.Run(t.Context(), l, increment, txguard.WithEvidence(f)) }()
		<-g.reached
		e := txguard.Evidence{Key: l.Grant().Key, Seq: 1, Place: ask[uint32](t, db, "SELECT CRC32(CONCAT_WS('/',@@hostname,@@port,DATABASE()))")}
		e.ID = dirty(t, s, db)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := f.Settle(ctx, e)
		wantErr(t, "Settle of what is undecided", err, txguard.ErrUnknown, context.DeadlineExceeded)
		settled := make(chan bool, 1)
		go func() {
			committed, err := f.Settle(t.Context(), e)
			settled <- committed && err == nil
		}()
		g.pass <- struct{}{}
		if err := <-ran; err != nil {
			t.Fatal(err)
		}
		if !<-settled {
			t.Error("Settle says that it was not committed")
		}

		for i := range 64 {
			go func() { ran <- txguard.Run(t.Context(), l, increment, txguard.WithEvidence(f)) }()
			<-g.reached
			g.pass <- struct{}{}
			if err := <-ran; err != nil {
				t.Fatal(err)
			}
			committed, err := f.Settle(t.Context(), e)
			if i < 63 && (!committed || err != nil) || i == 63 && !errors.Is(err, txguard.ErrUnknown) {
				t.Errorf("after %d more: %v, %v", i+1, committed, err)
			}
		}
		for seq, want := range map[int64]error{1: txguard.ErrUnknown, 2: nil, 66: nil} {
			committed, err := f.Settle(t.Context(), txguard.Evidence{Key: e.Key, ID: []byte("nowhere!"), Seq: seq, Place: e.Place})
			if committed || !errors.Is(err, want) {
				t.Errorf("Settle of commit %d, which was not: %v, %v", seq, committed, err)
			}
		}

		// What is not there any more, and what never was, is not taken for an answer.
		do(t, db, "DELETE FROM lock_fences")
		elsewhere := schema(t, s)
		fenceTable(t, elsewhere)
		for what, e := range map[string]txguard.Evidence{
			"of a row that was removed": {Key: e.Key, ID: e.ID, Seq: 2, Place: e.Place},
			"of another place":          {Key: e.Key, ID: e.ID, Seq: 1, Place: e.Place + 1},
			"of nothing":                {},
		} {
			if committed, err := f.Settle(t.Context(), e); committed || !errors.Is(err, txguard.ErrUnknown) {
				t.Errorf("Settle %s: %v, %v", what, committed, err)
			}
		}
		committed, err := txguard.NewFence(elsewhere).Settle(t.Context(), e)
		if committed || !errors.Is(err, txguard.ErrUnknown) {
			t.Errorf("Settle in another database: %v, %v", committed, err)
		}
		release(t, l)
	})
}

// dirty reads the id that an open transaction has written.
func dirty(t *testing.T, s *testdb.Server, db *sql.DB) (id []byte) {
	t.Helper()
	name := database(t, db)
	c := conn(t, open(t, s, func(c *mysql.Config) { c.DBName = name }))
	do(t, c, "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
	return ask[[]byte](t, c, "SELECT commits FROM lock_fences")
}
