// Guarded plays the three forms of package txguard on a real server: a private
// MariaDB from the cache of make servers, or the one of -dsn, where it makes the
// tables of the locks and fences, and drops its own table stock again.
//
//	cd integration && go run ./examples/guarded
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

func main() {
	dsn := flag.String("dsn", "", "user:password@tcp(host:port)/database of a server to use in place of a private one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *dsn, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guarded:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dsn string, out io.Writer) error {
	if dsn != "" {
		return play(ctx, dsn, out)
	}
	s, err := testdb.Start(ctx, testdb.MariaDB)
	if err != nil {
		return err
	}
	defer s.Stop() //nolint:errcheck // it ends with the process
	dsn, err = database(ctx, s)
	if err != nil {
		return err
	}
	return play(ctx, dsn, out)
}

// database makes one on a server of our own.
func database(ctx context.Context, s *testdb.Server) (dsn string, err error) {
	db, err := testdb.OpenDB(s.DSN, nil)
	if err != nil {
		return "", err
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	if _, err := db.ExecContext(ctx, "CREATE DATABASE shop"); err != nil {
		return "", err
	}
	c, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		return "", err
	}
	c.DBName = "shop"
	return c.FormatDSN(), nil
}

// play runs the examples in the database of dsn.
func play(ctx context.Context, dsn string, out io.Writer) (err error) {
	_ = mysql.SetLogger(&mysql.NopLogger{}) // sessions are killed here on purpose
	db, err := testdb.OpenDB(dsn, nil)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	if err := prepare(ctx, db); err != nil {
		return err
	}
	defer func() {
		_, dropped := db.ExecContext(context.WithoutCancel(ctx), "DROP TABLE stock")
		err = errors.Join(err, dropped)
	}()
	for _, example := range []func(context.Context, *sql.DB, io.Writer) error{sameSession, fenced, unknownOutcome} {
		if err := example(ctx, db, out); err != nil {
			return err
		}
	}
	return nil
}

func prepare(ctx context.Context, db *sql.DB) error {
	if err := migrations.Up(ctx, db); err != nil {
		return err
	}
	if err := migrations.Up(ctx, db, migrations.Fences()); err != nil {
		return err
	}
	_, err := db.ExecContext(ctx, "CREATE TABLE stock (item bigint NOT NULL PRIMARY KEY, n bigint NOT NULL) ENGINE=InnoDB")
	if err == nil {
		_, err = db.ExecContext(ctx, "INSERT INTO stock VALUES (7, 100)")
	}
	return err
}

// sell takes one from the stock, as programs do that read before they write.
func sell(ctx context.Context, tx *sql.Tx) error {
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT n FROM stock WHERE item = 7").Scan(&n); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "UPDATE stock SET n = ? WHERE item = 7", n-1)
	return err
}

func left(ctx context.Context, db *sql.DB) (n int, err error) {
	err = db.QueryRowContext(ctx, "SELECT n FROM stock WHERE item = 7").Scan(&n)
	return n, err
}

// sameSession: a holder hangs in its transaction for longer than its TTL, the next
// one takes over, and the first can't commit any more.
func sameSession(ctx context.Context, db *sql.DB, out io.Writer) error {
	locker := sqllock.New(table.New(time.Second))
	err := txguard.Do(ctx, locker, db, "stock", func(ctx context.Context, tx *sql.Tx) error {
		if err := sell(ctx, tx); err != nil {
			return err
		}
		return txguard.Do(ctx, locker, db, "stock", sell) // the next one, while this one hangs
	})
	if !errors.Is(err, txguard.ErrRolledBack) || !errors.Is(err, sqllock.ErrLost) {
		return fmt.Errorf("the holder that hung should have been rolled back: %w", err)
	}
	n, err := left(ctx, db)
	fmt.Fprintf(out, "same session: the holder that hung was rolled back, the next one committed: %d left\n", n)
	return err
}

// fenced: the work runs on another connection than the lock's, and goes on when the
// lock has been lost. The fence does not let it pass.
func fenced(ctx context.Context, db *sql.DB, out io.Writer) error {
	locker := sqllock.New(table.New(time.Second))
	fence := txguard.NewFence(db)
	var first, second int64
	err := locker.Do(ctx, db, "stock, fenced", func(ctx context.Context, lock *sqllock.Lock) error {
		holder, err := fence.Raise(ctx, lock)
		if err != nil {
			return err
		}
		first = holder.Token()
		return holder.Run(ctx, func(_ context.Context, tx *sql.Tx) error {
			ctx := context.WithoutCancel(ctx) // a program that does not notice
			err := locker.Do(ctx, db, "stock, fenced", func(ctx context.Context, lock *sqllock.Lock) error {
				next, err := fence.Raise(ctx, lock)
				if err != nil {
					return err
				}
				second = next.Token()
				return next.Run(ctx, sell)
			})
			return errors.Join(err, sell(ctx, tx))
		})
	})
	if !errors.Is(err, sqllock.ErrLost) {
		return fmt.Errorf("the holder that hung should have been refused: %w", err)
	}
	if second <= first {
		return fmt.Errorf("the tokens are %d and %d", first, second)
	}
	n, err := left(ctx, db)
	fmt.Fprintf(out, "fenced: the holder with the smaller token was refused, the next one committed: %d left\n", n)
	return err
}

// unknownOutcome: sessions are killed around their COMMIT, and each time it is found
// out what has become of the work.
func unknownOutcome(ctx context.Context, db *sql.DB, out io.Writer) error {
	const rounds = 200
	locker := sqllock.New(mysqlnamed.New())
	evidence := txguard.WithEvidence(txguard.NewFence(db))
	committed, rolledBack := 0, 0
	before, err := left(ctx, db)
	if err != nil {
		return err
	}
	for range rounds {
		killed := make(chan struct{})
		err := txguard.Do(ctx, locker, db, "stock", func(ctx context.Context, tx *sql.Tx) error {
			var session int64
			if err := tx.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&session); err != nil {
				return err
			}
			go func() {
				defer close(killed)
				time.Sleep(rand.N(2 * time.Millisecond))
				_, _ = db.ExecContext(context.WithoutCancel(ctx), fmt.Sprintf("KILL %d", session)) // too late for some
			}()
			return sell(ctx, tx)
		}, evidence)
		<-killed
		switch {
		case err == nil:
			committed++
		case errors.Is(err, txguard.ErrRolledBack):
			rolledBack++
		default:
			return err
		}
	}
	db.SetMaxIdleConns(0) // a KILL that came too late may have hit a session that was back in the pool
	after, err := left(ctx, db)
	if err != nil {
		return err
	}
	if before-after != committed {
		return fmt.Errorf("%d were said to be committed, and %d were", committed, before-after)
	}
	fmt.Fprintf(out, "unknown outcome: %d sessions killed around their COMMIT; every answer was right\n", committed+rolledBack)
	return nil
}
