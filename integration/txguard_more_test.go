package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// guardDB makes a database for guarded work.
func guardDB(t *testing.T, s *testdb.Server) *sql.DB {
	t.Helper()
	db := lockTable(t, s, "MyISAM")
	fenceTable(t, db)
	return db
}

// TestGuardRoundTrips: one more than the transaction alone, whatever the backend; one
// more for evidence.
func TestGuardRoundTrips(t *testing.T) {
	onEachGuarded(t, func(t *testing.T, g *guarded) {
		name := database(t, g.db)
		db, writes := counted(t, g.s, func(c *mysql.Config) { c.DBName = name })
		l := acquire(t, g.locker, conn(t, db), lockName("guarded"))
		for what, test := range map[string]struct {
			want int64
			run  func() error
		}{
			"alone": {3, func() error {
				tx, err := l.Conn().BeginTx(t.Context(), nil)
				if err != nil {
					return err
				}
				return errors.Join(increment(t.Context(), tx), tx.Commit())
			}},
			"guarded":       {4, func() error { return txguard.Run(t.Context(), l, increment) }},
			"with evidence": {5, func() error { return txguard.Run(t.Context(), l, increment, txguard.WithEvidence(g.fence)) }},
		} {
			before := writes.Load()
			if err := test.run(); err != nil {
				t.Fatal(err)
			}
			if got := writes.Load() - before; got != test.want {
				t.Errorf("%s: %d round trips, want %d", what, got, test.want)
			}
		}
		apart, writes := counted(t, g.s, func(c *mysql.Config) { c.DBName = name })
		fenced, err := txguard.NewFence(apart).Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		before := writes.Load()
		if err := fenced.Run(t.Context(), increment); err != nil {
			t.Fatal(err)
		}
		if got := writes.Load() - before; got != 4 {
			t.Errorf("fenced: %d round trips on the connection of the work, want 4", got)
		}
		release(t, l)
	})
}

// TestGuardDo: acquire, work, commit and release in one call.
func TestGuardDo(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		for name, backend := range map[string]sqllock.Backend{"mysqlnamed": mysqlnamed.New(), "table": table.New(time.Minute)} {
			t.Run(name, func(t *testing.T) {
				do(t, db, "UPDATE work SET n=0")
				k := sqllock.New(backend, sqllock.WithCheckInterval(time.Millisecond))
				name := lockName("do")

				// Rows are open while the watch of Do looks at the same session.
				err := txguard.Do(t.Context(), k, db, name, func(ctx context.Context, tx *sql.Tx) error {
					rows, err := tx.QueryContext(ctx, "SELECT SLEEP(0.02),REPEAT('x',100000) UNION ALL SELECT SLEEP(0.02),REPEAT('x',100000) UNION ALL SELECT 3,4")
					if err != nil {
						return err
					}
					defer rows.Close()
					for rows.Next() {
						time.Sleep(20 * time.Millisecond)
					}
					if err := errors.Join(rows.Err(), rows.Close()); err != nil {
						return err
					}
					return increment(ctx, tx)
				})
				if err != nil {
					t.Error(err)
				}

				err = txguard.Do(t.Context(), k, db, name, func(ctx context.Context, tx *sql.Tx) error {
					ran, err := txguard.TryDo(ctx, k, db, name, increment)
					if ran || err != nil {
						t.Errorf("TryDo of what is held: %v, %v", ran, err)
					}
					if err := mysqlKill(t.Context(), db, ask[int64](t, tx, "SELECT CONNECTION_ID()")); err != nil {
						t.Error(err)
					}
					return nil
				})
				wantErr(t, "killed", err, txguard.ErrRolledBack, sqllock.ErrLost)

				if err := txguard.Do(t.Context(), k, db, name, func(context.Context, *sql.Tx) error { return nil }); err != nil {
					t.Errorf("Do, when the session has ended: %v", err)
				}
				if ran, err := txguard.TryDo(t.Context(), k, db, name, increment); !ran || err != nil {
					t.Errorf("TryDo: %v, %v", ran, err)
				}
				if n := ask[int](t, db, "SELECT n FROM work WHERE id=1"); n != 2 {
					t.Errorf("%d increments were committed, want 2", n)
				}

				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				holder := acquire(t, k, conn(t, db), name)
				wantErr(t, "busy", txguard.Do(ctx, k, db, name, increment), txguard.ErrNotBegun, sqllock.ErrBusy, context.DeadlineExceeded)
				release(t, holder)
				if name == "table" {
					err := txguard.Do(t.Context(), k, db, name, increment, txguard.WithLockOptions(sqllock.TTL(time.Hour)), txguard.MinTTL(30*time.Minute))
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	})
}

// TestGuardTxOptions: they are those of the transaction.
func TestGuardTxOptions(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		l := acquire(t, sqllock.New(mysqlnamed.New()), conn(t, db), lockName("options"))
		for name, opts := range isolations() {
			err := txguard.Run(t.Context(), l, func(_ context.Context, tx *sql.Tx) error {
				before := ask[int](t, tx, "SELECT n FROM work WHERE id=2")
				do(t, db, "UPDATE work SET n=n+1 WHERE id=2")
				after := ask[int](t, tx, "SELECT n FROM work WHERE id=2")
				if (after == before) != (opts.Isolation == sql.LevelRepeatableRead) {
					t.Errorf("%s: read %d, then %d", name, before, after)
				}
				return nil
			}, txguard.WithTxOptions(opts))
			if err != nil {
				t.Error(err)
			}
		}
		err := txguard.Run(t.Context(), l, increment, txguard.WithTxOptions(sql.TxOptions{ReadOnly: true}))
		var answer *mysql.MySQLError
		wantErr(t, "a write", err, txguard.ErrRolledBack)
		if !errors.As(err, &answer) || answer.Number != 1792 {
			t.Errorf("a write in a read-only transaction: %v", err)
		}
		release(t, l)
	})
}

// TestGuardTables: what is said where a table or a right is missing; nothing is
// committed then.
func TestGuardTables(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		do(t, db, "RENAME TABLE lock_fences TO elsewhere")
		l := acquire(t, sqllock.New(mysqlnamed.New()), conn(t, db), lockName("tables"))
		f := txguard.NewFence(db)
		err := txguard.Run(t.Context(), l, increment, txguard.WithEvidence(f))
		wantErr(t, "Run", err, txguard.ErrRolledBack, sqllock.ErrNoTable)
		_, err = f.Raise(t.Context(), l)
		wantErr(t, "Raise", err, txguard.ErrNotBegun, sqllock.ErrNoTable)
		_, err = f.Settle(t.Context(), txguard.Evidence{Key: "x", ID: []byte("nowhere!"), Seq: 1})
		wantErr(t, "Settle", err, sqllock.ErrNoTable)
		_, err = f.Sweep(t.Context(), time.Hour)
		wantErr(t, "Sweep", err, sqllock.ErrNoTable)
		if err == nil || !strings.Contains(err.Error(), "migrations.Fences()") {
			t.Errorf("the error does not say what to do: %v", err)
		}
		do(t, db, "RENAME TABLE elsewhere TO lock_fences")
		poor := user(t, s, db, "SELECT")
		other := acquire(t, sqllock.New(mysqlnamed.New()), conn(t, poor), lockName("tables"))
		err = txguard.Run(t.Context(), other, func(context.Context, *sql.Tx) error { return nil }, txguard.WithEvidence(f))
		wantErr(t, "without a right", err, txguard.ErrRolledBack, sqllock.ErrPermission)
		if n := ask[int](t, db, "SELECT n FROM work WHERE id=1"); n != 0 {
			t.Errorf("%d was committed", n)
		}
		release(t, other)
		release(t, l)
	})
}

// silentAt stops passing on what is sent from a COMMIT on, or drops the COMMIT and
// resets the connection.
type silentAt struct {
	net.Conn

	reset  bool
	silent *atomic.Bool
}

func (c silentAt) Write(p []byte) (int, error) {
	if strings.HasSuffix(string(p), "\x03COMMIT") {
		if c.reset {
			if tcp, ok := c.Conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
			}
			return len(p), c.Close()
		}
		c.silent.Store(true)
	}
	if c.silent.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// TestGuardNetworkFailsAtCommit: a COMMIT that the server never sees is not taken for
// one that it has carried out.
func TestGuardNetworkFailsAtCommit(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		name := database(t, db)
		for _, reset := range []bool{true, false} {
			broken := open(t, s, func(c *mysql.Config) {
				c.DBName = name
				c.ReadTimeout = time.Second
				c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, network, addr)
					return silentAt{conn, reset, new(atomic.Bool)}, err
				}
			})
			k := sqllock.New(mysqlnamed.New())
			l := acquire(t, k, conn(t, broken), lockName("network"))
			wantErr(t, "without evidence", txguard.Run(t.Context(), l, increment), txguard.ErrUnknown, sqllock.ErrLost)
			l = acquire(t, k, conn(t, broken), l.Name())
			err := txguard.Run(t.Context(), l, increment, txguard.WithEvidence(txguard.NewFence(db)))
			wantErr(t, "with evidence", err, txguard.ErrRolledBack, sqllock.ErrLost)
			if n := ask[int](t, db, "SELECT n FROM work WHERE id=1"); n != 0 {
				t.Errorf("%d was committed", n)
			}
		}
	})
}

// wrapped is the driver of go-sql-driver as a tracer would wrap it: what the server
// says of its transaction is not to be seen.
type wrapped struct{ driver.Connector }

type wrappedConn struct {
	driver.Conn
	driver.QueryerContext
	driver.ExecerContext
	driver.ConnBeginTx
	driver.SessionResetter
	driver.Validator
}

func (w wrapped) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := w.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return wrappedConn{
		c, c.(driver.QueryerContext), c.(driver.ExecerContext), c.(driver.ConnBeginTx), c.(driver.SessionResetter), c.(driver.Validator), //nolint:forcetypeassert,errcheck // it is all of that
	}, nil
}

// TestGuardWrappedDriver: what the driver does not tell is asked of the server.
func TestGuardWrappedDriver(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		cfg, err := mysql.ParseDSN(s.DSN)
		if err != nil {
			t.Fatal(err)
		}
		cfg.DBName = database(t, db)
		connector, err := mysql.NewConnector(cfg)
		if err != nil {
			t.Fatal(err)
		}
		pool := sql.OpenDB(wrapped{connector})
		defer pool.Close() //nolint:errcheck // nothing depends on it
		l := acquire(t, sqllock.New(mysqlnamed.New()), conn(t, pool), lockName("wrapped"))
		if err := txguard.Run(t.Context(), l, increment); err != nil {
			t.Error(err)
		}
		for _, statement := range []string{"COMMIT", "SET autocommit=0"} {
			err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
				do(t, tx, statement)
				return increment(ctx, tx)
			})
			wantErr(t, statement, err, txguard.ErrUnguarded)
		}
		tx, err := l.Conn().BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		wantErr(t, "beside a Tx", txguard.Run(t.Context(), l, increment), txguard.ErrNotBegun, sqllock.ErrInTransaction)
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
		if n := ask[int](t, db, "SELECT n FROM work WHERE id=1"); n != 2 {
			t.Errorf("%d was committed, want 2", n)
		}
		release(t, l)
	})
}

// TestGuardInUse: what would wait for itself is refused.
func TestGuardInUse(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		l := acquire(t, sqllock.New(mysqlnamed.New()), conn(t, db), lockName("use"))
		err := l.Use(func(*sql.Conn) error { return txguard.Run(t.Context(), l, increment) })
		wantErr(t, "Run inside of Use", err, txguard.ErrNotBegun, sqllock.ErrInTransaction)

		// A release that waits does not keep a transaction inside from being decided.
		released := make(chan error, 1)
		err = l.WhileHeld(t.Context(), l.Conn(), 0, func() error {
			return txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
				go func() { released <- l.Release(t.Context()) }()
				time.Sleep(50 * time.Millisecond)
				return increment(ctx, tx)
			})
		})
		if err != nil {
			t.Errorf("Run inside of WhileHeld: %v", err)
		}
		if err := <-released; err != nil {
			t.Errorf("Release: %v", err)
		}
	})
}

// TestGuardPoolOfOne: nothing waits for a connection that it holds itself.
func TestGuardPoolOfOne(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		name := database(t, db)
		pool := open(t, s, func(c *mysql.Config) {
			c.DBName = name
			c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				return silentAt{conn, true, new(atomic.Bool)}, err // every COMMIT is cut off
			}
		})
		pool.SetMaxOpenConns(1)
		k, f := sqllock.New(mysqlnamed.New()), txguard.NewFence(pool)
		err := txguard.Do(t.Context(), k, pool, "job", increment, txguard.WithEvidence(f))
		wantErr(t, "Do", err, txguard.ErrRolledBack, sqllock.ErrLost)
		l := acquire(t, k, conn(t, db), "fenced job")
		fenced, err := f.Raise(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		wantErr(t, "fenced", fenced.Run(t.Context(), increment), txguard.ErrRolledBack)
		release(t, l)

		c := conn(t, pool)
		l = acquire(t, k, c, "job")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = f.Raise(ctx, l)
		wantErr(t, "Raise over the pool that the lock has emptied", err, txguard.ErrNotBegun, context.DeadlineExceeded)
		if err == nil || !strings.Contains(err.Error(), "no connection for the fence") {
			t.Errorf("the error does not name the pool: %v", err)
		}
		release(t, l)
	})
}

// TestGuardVacant: what the driver remembers of a session may be of before an error,
// and of before its end.
func TestGuardVacant(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		k := sqllock.New(mysqlnamed.New())
		l := acquire(t, k, conn(t, db), lockName("vacant"))
		do(t, l.Conn(), "BEGIN")
		if _, err := l.Conn().ExecContext(t.Context(), "CREATE TABLE work (a int)"); err == nil {
			t.Fatal("the table should be there")
		}
		if err := txguard.Run(t.Context(), l, increment); err != nil {
			t.Errorf("after a transaction that a statement has ended that failed: %v", err)
		}
		id := sessionID(t, l.Conn())
		if err := mysqlKill(t.Context(), db, id); err != nil {
			t.Fatal(err)
		}
		sessionEnds(t, db, id)
		err := txguard.Run(t.Context(), l, func(context.Context, *sql.Tx) error {
			t.Error("the function was called")
			return nil
		})
		wantErr(t, "on a session that has ended", err, txguard.ErrNotBegun, sqllock.ErrLost)
	})
}

// TestGuardForeignDeadlock: the error of another transaction's deadlock does not hide
// what has become of this one.
func TestGuardForeignDeadlock(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		l := acquire(t, sqllock.New(mysqlnamed.New()), conn(t, db), lockName("foreign"))
		foreign := &mysql.MySQLError{Number: 1213}
		runs := 0
		err := txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			if err := increment(ctx, tx); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "CREATE TABLE work (a int)"); err == nil { // which has committed
				t.Error("the table should be there")
			}
			return foreign
		}, txguard.Retries(2))
		wantErr(t, "after a statement that commits, and fails", err, txguard.ErrUnguarded, foreign)
		err = txguard.Run(t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			return errors.Join(increment(ctx, tx), foreign)
		}, txguard.Retries(2))
		wantErr(t, "with nothing else", err, txguard.ErrRolledBack, foreign)
		if n := ask[int](t, db, "SELECT n FROM work WHERE id=1"); runs != 4 || n != 1 {
			t.Errorf("%d runs, and %d was committed", runs, n)
		}
		release(t, l)
	})
}

// TestGuardPanicIsTidied: what the function has done to the session is undone, too.
func TestGuardPanicIsTidied(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := guardDB(t, s)
		l := acquire(t, sqllock.New(mysqlnamed.New()), conn(t, db), lockName("panic"))
		for _, statement := range []string{"LOCK TABLES work WRITE", "SET autocommit=0"} {
			func() {
				defer func() { _ = recover() }()
				_ = txguard.Run(t.Context(), l, func(_ context.Context, tx *sql.Tx) error {
					do(t, tx, statement)
					panic(statement)
				})
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if _, err := db.ExecContext(ctx, "UPDATE work SET n=n+1 WHERE id=1"); err != nil {
				t.Errorf("another session, after %s: %v", statement, err)
			}
			cancel()
			if err := txguard.Run(t.Context(), l, increment); err != nil {
				t.Errorf("the next transaction, after %s: %v", statement, err)
			}
		}
		release(t, l)
	})
}
