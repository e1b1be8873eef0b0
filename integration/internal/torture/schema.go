package torture

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

const (
	accounts = 8    // of a shard
	opening  = 1000 // balance of each
)

// account is the id of the i-th account of a shard.
func account(shard, i int) int64 { return int64(shard*accounts + i) }

// database is one of its own on a server.
type database struct {
	name string
	dsn  string
	db   *sql.DB // not through a proxy
}

// newDatabase makes a database with everything at its opening state.
func newDatabase(ctx context.Context, s *testdb.Server) (d *database, err error) {
	admin, err := testdb.OpenDB(s.DSN, nil)
	if err != nil {
		return nil, err
	}
	defer admin.Close() //nolint:errcheck // nothing depends on it
	d = &database{name: "torture_" + strings.ToLower(rand.Text()[:10])}
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+d.name); err != nil {
		return nil, err
	}
	d.db, err = testdb.OpenDB(s.DSN, func(c *mysql.Config) {
		c.DBName, c.Timeout, c.ReadTimeout = d.name, 5*time.Second, 30*time.Second
		d.dsn = c.FormatDSN()
	})
	if err != nil {
		return nil, err
	}
	if err := d.fill(ctx); err != nil {
		return nil, errors.Join(err, d.drop(ctx))
	}
	return d, nil
}

func (d *database) fill(ctx context.Context) error {
	for _, engine := range []string{"MyISAM", "InnoDB"} {
		if err := migrations.Up(ctx, d.db, migrations.WithTable(lockTable(engine)), migrations.WithEngine(engine)); err != nil {
			return err
		}
	}
	if err := migrations.Up(ctx, d.db, migrations.Fences()); err != nil {
		return err
	}
	statements := []string{
		"CREATE TABLE shards (shard int NOT NULL PRIMARY KEY, n bigint NOT NULL) ENGINE=InnoDB",
		"CREATE TABLE accounts (id bigint NOT NULL PRIMARY KEY, shard int NOT NULL, balance bigint NOT NULL) ENGINE=InnoDB",
		// No key but the order of arrival, so that the ledger takes everything.
		"CREATE TABLE ledger (id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY, shard int NOT NULL, n bigint NOT NULL, token bigint NOT NULL, " +
			"attempt varchar(40) NOT NULL, a bigint NOT NULL, a_before bigint NOT NULL, a_after bigint NOT NULL, " +
			"b bigint NOT NULL, b_before bigint NOT NULL, b_after bigint NOT NULL) ENGINE=InnoDB",
	}
	for shard := range forms() {
		statements = append(statements, fmt.Sprintf("INSERT INTO shards VALUES (%d,0)", shard))
		for i := range accounts {
			statements = append(statements, fmt.Sprintf("INSERT INTO accounts VALUES (%d,%d,%d)", account(shard, i), shard, opening))
		}
	}
	for _, s := range statements {
		if _, err := d.db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (d *database) drop(ctx context.Context) error {
	_, err := d.db.ExecContext(context.WithoutCancel(ctx), "DROP DATABASE "+d.name)
	return errors.Join(err, d.db.Close())
}

// alone returns when no session but ours works in the database, so that all that
// was begun there is decided.
func (d *database) alone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := d.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // back to the pool
	d.db.SetMaxIdleConns(0)
	return poll(ctx, "the sessions of the processes to end", func() (bool, error) {
		var others int
		err := conn.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.processlist WHERE db=? AND id<>CONNECTION_ID()", d.name).Scan(&others)
		return others == 0, err
	})
}

// patience bounds what takes moments.
const patience = 30 * time.Second

// poll returns when done says so, or the error of done or ctx.
func poll(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
