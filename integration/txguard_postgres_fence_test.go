package integration

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// lose ends the session of l, and has the next holder acquire it.
func (g *pgGuarded) lose(l *sqllock.Lock) *sqllock.Lock {
	g.t.Helper()
	g.kill(l.Grant().Session)
	return g.lockOn(g.db, l.Name())
}

// TestPGFenceNaive is why a fence takes more than a comparison: where the token is read
// by a plain SELECT, the next holder reads what the last one is about to overwrite. Only
// SERIALIZABLE, if both are, notices.
func TestPGFenceNaive(t *testing.T) {
	onEachPGIsolation(t, func(t *testing.T, g *pgGuarded, opts sql.TxOptions) {
		if opts.Isolation == sql.LevelSerializable {
			return
		}
		ctx := t.Context()
		naive := func(tx *sql.Tx, token int) {
			t.Helper()
			if got := ask[int](t, tx, "SELECT token FROM lock_fences WHERE name='job'"); got > token {
				t.Fatalf("the fence has token %d, and refuses %d", got, token)
			}
		}
		do(t, g.db, "INSERT INTO lock_fences (name,token) VALUES ('job',1)")
		first, err := g.db.BeginTx(ctx, &opts)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Rollback() //nolint:errcheck // it is committed by then
		if n := ask[int](t, first, "SELECT n FROM work WHERE id=1"); n != 0 {
			t.Fatal(n)
		}
		naive(first, 1)

		// The first holder's lock is lost here, and the second one is admitted.
		do(t, g.db, "UPDATE lock_fences SET token=2 WHERE name='job'")
		second, err := g.db.BeginTx(ctx, &opts)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Rollback() //nolint:errcheck // it is committed by then
		n := ask[int](t, second, "SELECT n FROM work WHERE id=1")
		do(t, first, "INSERT INTO work VALUES (10,1)")
		if err := first.Commit(); err != nil {
			t.Fatal(err)
		}
		do(t, second, "UPDATE work SET n=$1 WHERE id=1", n+1)
		naive(second, 2)
		if err := second.Commit(); err != nil {
			t.Fatal(err)
		}
		// The second one was admitted, and the first one has committed after that.
		if got := ask[int](t, g.db, "SELECT count(*) FROM work WHERE id=10"); got != 1 {
			t.Error("the first one was refused; then the other tests show nothing")
		}
		do(t, g.db, "DELETE FROM work WHERE id=10")
	})
}

// TestPGFenceWaitsForCommit: the next holder is admitted only when a transaction of
// the last one that is in its commit has been decided, so nothing is lost.
func TestPGFenceWaitsForCommit(t *testing.T) {
	onEachPGIsolation(t, func(t *testing.T, g *pgGuarded, opts sql.TxOptions) {
		for _, minted := range []bool{false, true} { // the next one's token while the row is locked
			do(t, g.db, "UPDATE work SET n=0")
			pool, gate := g.gated()
			l := g.lock()
			first, err := txguard.NewFence(pool).Raise(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			var session int64
			wg.Go(func() {
				err := first.Run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
					session = pgBackend(t, tx)
					return pgReadAndWrite(ctx, tx)
				}, txguard.WithTxOptions(opts))
				if err != nil {
					t.Errorf("the first: %v", err)
				}
			})
			<-gate.reached
			next := g.lose(l)
			if minted {
				if _, err := next.TokenFrom(func() (int64, error) { return first.Token() + 1, nil }); err != nil {
					t.Fatal(err)
				}
			}
			raised := make(chan error, 1)
			wg.Go(func() {
				second, err := g.fence.Raise(t.Context(), next)
				raised <- err
				if err == nil {
					err = second.Run(t.Context(), pgReadAndWrite, txguard.WithTxOptions(opts))
				}
				if err != nil {
					t.Errorf("the second: %v", err)
				}
			})
			pgRowWait(t, g.db, "lock_fences")
			if got := ask[int64](t, g.db, pgOperator); got != session {
				t.Errorf("the operator is told of session %d, and %d is in its commit", got, session)
			}
			stillWaits(t, raised)
			gate.pass <- struct{}{}
			wg.Wait()
			g.wantN("after two increments", 2)
			release(t, next)
		}
	})
}

// pgOperator is how an operator finds the session that others wait for at a fence.
const pgOperator = `SELECT b.pid FROM pg_stat_activity w, LATERAL unnest(pg_blocking_pids(w.pid)) AS p(pid), pg_stat_activity b
  WHERE b.pid = p.pid AND w.query LIKE '%lock_fences%'`

// TestPGFenceRefusesStale: a holder that is not in its commit when the next one is
// admitted can't commit any more, says so whatever its snapshot shows it, and does not
// keep the next one from working.
func TestPGFenceRefusesStale(t *testing.T) {
	onEachPGIsolation(t, func(t *testing.T, g *pgGuarded, opts sql.TxOptions) {
		l := g.lock()
		first, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		for _, retries := range []int{0, 3} {
			do(t, g.db, "UPDATE work SET n=0")
			tries := 0
			err = first.Run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
				tries++
				if n := ask[int](t, tx, "SELECT n+0*(SELECT max(token) FROM lock_fences) FROM work WHERE id=2"); n != 0 {
					t.Errorf("n is %d", n)
				}
				// A lock that its session has, and that the fence alone knows to be stale.
				do(t, g.db, "UPDATE lock_fences SET token=token+1")
				do(t, g.db, "UPDATE work SET n=n+1 WHERE id=1")
				_, err := tx.ExecContext(ctx, "UPDATE work SET n=7 WHERE id=2")
				return err
			}, txguard.WithTxOptions(opts), txguard.Retries(retries))
			wantErr(t, "the stale holder", err, txguard.ErrRolledBack, sqllock.ErrLost)
			if tries != 1 {
				t.Errorf("with %d retries: %d tries, and the first one was hopeless", retries, tries)
			}
			g.wantN("the next one's", 1)
			if got := ask[int](t, g.db, "SELECT n FROM work WHERE id=2"); got != 0 {
				t.Errorf("the stale holder has written %d", got)
			}
		}
		_, err = g.fence.Raise(t.Context(), l)
		wantErr(t, "a stale Raise", err, txguard.ErrNotBegun, sqllock.ErrLost)
		release(t, l)
	})
}

// TestPGFenceStaleRaise: who comes late is not admitted, and lets nobody else down,
// neither one who has a snapshot already.
func TestPGFenceStaleRaise(t *testing.T) {
	onEachPGIsolation(t, func(t *testing.T, g *pgGuarded, opts sql.TxOptions) {
		l := g.lock()
		_, err := l.TokenFrom(func() (int64, error) { return 1, nil })
		if err != nil {
			t.Fatal(err)
		}
		stale := g.lockOn(g.db, lockName("other")) // a handle with the key of l would do
		if _, err := stale.TokenFrom(func() (int64, error) { return 1, nil }); err != nil {
			t.Fatal(err)
		}
		next := g.lose(l)
		second, err := g.fence.Raise(t.Context(), next)
		if err != nil {
			t.Fatal(err)
		}
		err = second.Run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
			err := increment(ctx, tx)
			_, late := g.fence.Raise(ctx, l)
			wantErr(t, "a late Raise", late, txguard.ErrNotBegun, sqllock.ErrLost)
			_, again := g.fence.Raise(ctx, next)
			return errors.Join(err, again)
		}, txguard.WithTxOptions(opts))
		if err != nil {
			t.Errorf("the second, beside a late Raise and one of its own: %v", err)
		}
		g.clean("the second", next, 1)
		release(t, next)
	})
}

// TestPGFenceSideBySide: transactions of one holder under one fence do not fail each
// other for good; those with a snapshot have to be tried again.
func TestPGFenceSideBySide(t *testing.T) {
	const workers, each = 4, 5
	onEachPGIsolation(t, func(t *testing.T, g *pgGuarded, opts sql.TxOptions) {
		runSQL(t, g.db, "DROP TABLE IF EXISTS rows", "CREATE TABLE rows (id bigserial)")
		l := g.lock()
		f, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range each {
					err := f.Run(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
						_, err := tx.ExecContext(ctx, "INSERT INTO rows DEFAULT VALUES")
						return err
					}, txguard.WithTxOptions(opts), txguard.Retries(100))
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if got := ask[int](t, g.db, "SELECT count(*) FROM rows"); got != workers*each {
			t.Errorf("%d rows, want %d", got, workers*each)
		}
		release(t, l)
	})
}

// TestPGFenceTokensGrow: over releases, kills, and rows that have been swept.
func TestPGFenceTokensGrow(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		var last int64
		for i := range 30 {
			l := g.lockOn(g.db, "job")
			fenced, err := g.fence.Raise(t.Context(), l)
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
				g.kill(l.Grant().Session)
			case 2:
				release(t, l)
				do(t, g.db, "UPDATE lock_fences SET updated=updated-100")
				if n, err := g.fence.Sweep(t.Context(), time.Minute); n != 1 || err != nil {
					t.Errorf("Sweep: %d, %v", n, err)
				}
			}
		}
		// A clock that is set back makes no smaller tokens.
		l := g.lockOn(g.db, "job")
		if _, err := g.fence.Raise(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		release(t, l)
		if !g.mints(l) {
			return
		}
		do(t, g.db, "UPDATE lock_fences SET token=token*2")
		l = g.lockOn(g.db, "job")
		fenced, err := g.fence.Raise(t.Context(), l)
		if err != nil || fenced.Token() <= 2*last {
			t.Errorf("after a token from the future: %+v, %v", fenced, err)
		}
	})
}

// TestPGFenceElsewhere: the work is done in another database, or on a server of another
// kind, than the lock is on.
func TestPGFenceElsewhere(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		there := pgGuardDB(t, g.s)
		mysql := schema(t, server(t, testdb.MariaDB))
		fenceTable(t, mysql)
		for what, test := range map[string]struct {
			lock  *sqllock.Lock
			there *sql.DB
			n     int
		}{
			"another database":                 {g.lock(), there, 1},
			"work on MariaDB":                  {g.lock(), mysql, 1},
			"work on PostgreSQL, GET_LOCK":     {acquire(t, sqllock.New(mysqlnamed.New()), conn(t, mysql), lockName("job")), there, 2},
			"work on PostgreSQL, shared_locks": {acquire(t, sqllock.New(table.New(time.Minute)), conn(t, lockTable(t, server(t, testdb.MariaDB), "InnoDB")), lockName("job")), there, 3},
		} {
			do(t, test.there, "UPDATE work SET n=0")
			fenced, err := txguard.NewFence(test.there).Raise(t.Context(), test.lock)
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			if err := fenced.Run(t.Context(), increment); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if got := ask[int](t, test.there, "SELECT n FROM work WHERE id=1"); got != 1 {
				t.Errorf("%s: after an increment: %d", what, got)
			}
			release(t, test.lock)
			wantErr(t, what+", after the release", fenced.Run(t.Context(), increment), txguard.ErrNotBegun, sqllock.ErrNotHeld)
		}
		runSQL(t, g.db, "DROP TABLE lock_fences")
		l := g.lock()
		_, err := txguard.NewFence(there).Raise(t.Context(), l)
		if g.mints(l) {
			wantErr(t, "a token without a table for it", err, txguard.ErrNotBegun, sqllock.ErrNoTable)
		} else if err != nil {
			t.Errorf("with a token of the backend's: %v", err)
		}
	})
}

// TestPGFenceWhileOthersCommit: a token is not made by a statement that waits for long, and
// the end of ctx does not reach it.
func TestPGFenceWhileOthersCommit(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		blocker, err := g.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		do(t, blocker, "INSERT INTO lock_fences (name,token) VALUES ($1,7)", l.Grant().Key)
		for range 2 { // where a token is to be made, and where there is one
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			_, err = g.fence.Raise(ctx, l)
			cancel()
			wantErr(t, "Raise", err, txguard.ErrNotBegun, context.DeadlineExceeded)
			if err == nil || !strings.Contains(err.Error(), "about to commit") {
				t.Errorf("the error does not say what it waited for: %v", err)
			}
			wantHeld(t, l)
			if _, err := l.TokenFrom(func() (int64, error) { return 8, nil }); err != nil {
				t.Fatal(err)
			}
		}
		if err := blocker.Commit(); err != nil {
			t.Fatal(err)
		}
		f, err := g.fence.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Run(t.Context(), increment); err != nil {
			t.Error(err)
		}
		g.clean("in the end", l, 1)
	})
}

// TestPGFenceSettings: what a pool's sessions are set to makes no difference.
func TestPGFenceSettings(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		for what, change := range map[string]func(*pgx.ConnConfig){
			"serializable": func(c *pgx.ConnConfig) { c.RuntimeParams["default_transaction_isolation"] = "serializable" },
			"repeatable":   func(c *pgx.ConnConfig) { c.RuntimeParams["default_transaction_isolation"] = "repeatable read" },
			"read only":    func(c *pgx.ConnConfig) { c.RuntimeParams["default_transaction_read_only"] = "on" },
			"old strings":  func(c *pgx.ConnConfig) { c.RuntimeParams["standard_conforming_strings"] = "off" },
			"lock timeout": func(c *pgx.ConnConfig) { c.RuntimeParams["lock_timeout"] = "50ms" },
			"simple":       func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol },
			"exec":         func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = pgx.QueryExecModeExec },
			"describe":     func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec },
		} {
			pool := g.pool(change)
			fence := txguard.NewFence(pool)
			l := g.lockOn(pool, `a \' "job" of `+what)
			f, err := fence.Raise(t.Context(), l)
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			writes := func(ctx context.Context, tx *sql.Tx) error {
				if what == "read only" {
					if _, err := tx.ExecContext(ctx, "SET TRANSACTION READ WRITE"); err != nil {
						return err
					}
				}
				return increment(ctx, tx)
			}
			err = errors.Join(txguard.Run(t.Context(), l, writes, txguard.WithEvidence(fence)), f.Run(t.Context(), writes))
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			seq := ask[int64](t, g.db, "SELECT seq FROM lock_fences WHERE name=$1", l.Grant().Key)
			id := ask[[]byte](t, g.db, "SELECT substring(commits from 1 for 8) FROM lock_fences WHERE name=$1", l.Grant().Key)
			committed, err := fence.Settle(t.Context(), txguard.Evidence{Key: l.Grant().Key, ID: id, Seq: seq, Place: pgPlaceOf(t, g.db)})
			if !committed || err != nil || seq != 2 {
				t.Errorf("%s: Settle of commit %d: %v, %v", what, seq, committed, err)
			}
			do(t, g.db, "UPDATE lock_fences SET updated=0")
			if n, err := fence.Sweep(t.Context(), time.Hour); n != 1 || err != nil {
				t.Errorf("%s: Sweep: %d, %v", what, n, err)
			}
			g.wantN(what, 2)
			wantHeld(t, l)
			do(t, g.db, "UPDATE work SET n=0")
		}
	})
}

// pgPlaceOf is the place of lock_fences, computed in another way.
func pgPlaceOf(t *testing.T, db *sql.DB) uint32 {
	t.Helper()
	return uint32(ask[int32](t, db, `SELECT hashtext((SELECT system_identifier::text FROM pg_control_system())||'/'||current_database()||'/'||'lock_fences'::regclass::oid)`)) //nolint:gosec // the same bits
}

// TestPGSettle: what has become of a transaction can be found out later, as long as
// the table remembers.
func TestPGSettle(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		pool, gate := g.gated()
		l := g.lockOn(pool, "job")

		// The answer is not there yet while the session that has sent COMMIT, or is
		// about to, is alive. The row is one that nobody else can see yet, and one that is.
		var e txguard.Evidence
		ran := make(chan error, 1)
		for seq := int64(1); seq <= 2; seq++ {
			go func() { ran <- txguard.Run(t.Context(), l, increment, txguard.WithEvidence(g.fence)) }()
			<-gate.reached
			id, err := hex.DecodeString(*gate.id.Load())
			if err != nil {
				t.Fatal(err)
			}
			e = txguard.Evidence{Key: l.Grant().Key, ID: id, Seq: seq, Place: pgPlaceOf(t, g.db)}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			_, err = g.fence.Settle(ctx, e)
			cancel()
			wantErr(t, "Settle of what is undecided", err, txguard.ErrUnknown, context.DeadlineExceeded)
			settled := make(chan bool, 1)
			go func() {
				committed, err := g.fence.Settle(t.Context(), e)
				settled <- committed && err == nil
			}()
			pgRowWait(t, g.db, "lock_fences")
			stillWaits(t, settled)
			gate.pass <- struct{}{}
			if err := <-ran; err != nil {
				t.Fatal(err)
			}
			if !<-settled {
				t.Errorf("Settle says that commit %d was not", seq)
			}
		}

		for i := range 64 {
			go func() { ran <- txguard.Run(t.Context(), l, increment, txguard.WithEvidence(g.fence)) }()
			<-gate.reached
			gate.pass <- struct{}{}
			if err := <-ran; err != nil {
				t.Fatal(err)
			}
			committed, err := g.fence.Settle(t.Context(), e)
			if i < 63 && (!committed || err != nil) || i == 63 && !errors.Is(err, txguard.ErrUnknown) {
				t.Errorf("after %d more: %v, %v", i+1, committed, err)
			}
		}
		for seq, want := range map[int64]error{2: txguard.ErrUnknown, 3: nil, 67: nil} {
			committed, err := g.fence.Settle(t.Context(), txguard.Evidence{Key: e.Key, ID: []byte("nowhere!"), Seq: seq, Place: e.Place})
			if committed || !errors.Is(err, want) {
				t.Errorf("Settle of commit %d, which was not: %v, %v", seq, committed, err)
			}
		}

		// What is not there any more, and what never was, is not taken for an answer, and
		// nothing is left of the question.
		do(t, g.db, "DELETE FROM lock_fences")
		committed, err := g.fence.Settle(t.Context(), txguard.Evidence{Key: e.Key, ID: e.ID, Seq: 1, Place: e.Place})
		if committed || err != nil {
			t.Errorf("Settle of a first commit, which was not: %v, %v", committed, err)
		}
		if n := ask[int](t, g.db, "SELECT count(*) FROM lock_fences"); n != 0 {
			t.Errorf("Settle has left %d rows", n)
		}
		for what, e := range map[string]txguard.Evidence{
			"of a row that was removed": {Key: e.Key, ID: e.ID, Seq: 2, Place: e.Place},
			"of another place":          {Key: e.Key, ID: e.ID, Seq: 1, Place: e.Place + 1},
			"of nothing":                {},
		} {
			if committed, err := g.fence.Settle(t.Context(), e); committed || !errors.Is(err, txguard.ErrUnknown) {
				t.Errorf("Settle %s: %v, %v", what, committed, err)
			}
		}
		e.Seq = 1
		elsewhere := pgGuardDB(t, g.s)
		committed, err = txguard.NewFence(elsewhere).Settle(t.Context(), e)
		if committed || !errors.Is(err, txguard.ErrUnknown) {
			t.Errorf("Settle in another database: %v, %v", committed, err)
		}
		runSQL(t, g.db, "CREATE SCHEMA other", "CREATE TABLE other.lock_fences (LIKE lock_fences INCLUDING ALL)")
		committed, err = txguard.NewFence(g.db, txguard.WithTable("other.lock_fences")).Settle(t.Context(), e)
		if committed || !errors.Is(err, txguard.ErrUnknown) {
			t.Errorf("Settle in another schema: %v, %v", committed, err)
		}
		committed, err = txguard.NewFence(g.db, txguard.WithTable("public.lock_fences")).Settle(t.Context(), e)
		if committed || err != nil {
			t.Errorf("Settle in the same table by another name: %v, %v", committed, err)
		}
		release(t, l)
	})
}

// TestPGGuardTables: what is said where a table or a right is missing; nothing is
// committed then.
func TestPGGuardTables(t *testing.T) {
	onEachPGGuarded(t, func(t *testing.T, g *pgGuarded) {
		l := g.lock()
		nowhere := txguard.Evidence{Key: "x", ID: []byte("nowhere!"), Seq: 1}
		for what, f := range map[string]*txguard.Fence{
			"table": txguard.NewFence(g.db, txguard.WithTable("my_fences")), "schema": txguard.NewFence(g.db, txguard.WithTable("shop.fences")),
		} {
			_, raised := f.Raise(t.Context(), l)
			_, settled := f.Settle(t.Context(), nowhere)
			_, swept := f.Sweep(t.Context(), time.Hour)
			run := txguard.Run(t.Context(), l, increment, txguard.WithEvidence(f))
			wantErr(t, "Run", run, txguard.ErrRolledBack)
			wantErr(t, "Raise", raised, txguard.ErrNotBegun)
			for _, err := range []error{run, raised, settled, swept} {
				wantErr(t, "without the "+what, err, sqllock.ErrNoTable)
				if err == nil || !strings.Contains(err.Error(), "migrations.Up(ctx, db, migrations.Postgres(), migrations.Fences())") {
					t.Errorf("the error does not say what to do: %v", err)
				}
			}
		}
		g.clean("without a table", l, 0)

		role := strings.ToLower(strings.ReplaceAll(lockName("poor"), "-", "_"))
		runSQL(t, g.db, "CREATE ROLE "+role+" LOGIN", "GRANT ALL ON ALL TABLES IN SCHEMA public TO "+role,
			"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "+role, "REVOKE INSERT,UPDATE,DELETE ON lock_fences FROM "+role)
		t.Cleanup(func() {
			for _, statement := range []string{"DROP OWNED BY " + role, "DROP ROLE " + role} {
				if _, err := g.db.ExecContext(context.Background(), statement); err != nil {
					t.Error(err)
				}
			}
		})
		poor := g.pool(func(c *pgx.ConnConfig) { c.User = role })
		f := txguard.NewFence(poor)
		l = g.lockOn(poor, lockName("poor"))
		_, raised := f.Raise(t.Context(), l)
		_, settled := f.Settle(t.Context(), nowhere)
		_, swept := f.Sweep(t.Context(), time.Hour)
		for what, err := range map[string]error{
			"Run": txguard.Run(t.Context(), l, increment, txguard.WithEvidence(f)), "Raise": raised, "Settle": settled, "Sweep": swept,
		} {
			wantErr(t, what+" without a right", err, sqllock.ErrPermission)
		}
		g.clean("without a right", l, 0)
		runSQL(t, g.db, "GRANT SELECT,INSERT,UPDATE ON lock_fences TO "+role)
		fenced, err := f.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		_, settled = f.Settle(t.Context(), txguard.Evidence{Key: "x", ID: nowhere.ID, Seq: 1, Place: pgPlaceOf(t, g.db)})
		err = errors.Join(fenced.Run(t.Context(), increment), txguard.Run(t.Context(), l, increment, txguard.WithEvidence(f)), settled)
		if err != nil {
			t.Errorf("with the rights that are said to be enough: %v", err)
		}
		release(t, l)
	})
}
