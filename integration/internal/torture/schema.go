package torture

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	accounts = 8    // of a shard
	opening  = 1000 // balance of each
)

// account is the id of the i-th account of a shard.
func account(shard, i int) int64 { return int64(shard*accounts + i) }

// database is one of its own on a server.
type database struct {
	dialect
	dsn  string // of the server
	name string
	db   *sql.DB // not through a proxy
}

// newDatabase makes a database with everything at its opening state.
func newDatabase(ctx context.Context, language dialect, dsn string) (d *database, err error) {
	d = &database{dialect: language, dsn: dsn, name: "torture_" + strings.ToLower(rand.Text()[:10])}
	if err := d.admin(ctx, "CREATE DATABASE "+d.name); err != nil {
		return nil, err
	}
	if d.db, err = d.open(dsn, d.name); err != nil {
		return nil, err
	}
	if err := d.fill(ctx); err != nil {
		return nil, errors.Join(err, d.drop(ctx))
	}
	return d, nil
}

// admin runs a statement outside of the database.
func (d *database) admin(ctx context.Context, statement string) error {
	db, err := d.open(d.dsn, "")
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, statement)
	return errors.Join(err, db.Close())
}

func (d *database) fill(ctx context.Context) error {
	if err := d.migrate(ctx, d.db); err != nil {
		return err
	}
	serial, end := d.ddl()
	statements := []string{
		"CREATE TABLE shards (shard int NOT NULL PRIMARY KEY, n bigint NOT NULL)" + end,
		"CREATE TABLE accounts (id bigint NOT NULL PRIMARY KEY, shard int NOT NULL, balance bigint NOT NULL)" + end,
		// No key but the order of arrival, so that the ledger takes everything.
		"CREATE TABLE ledger (id " + serial + " PRIMARY KEY, shard int NOT NULL, n bigint NOT NULL, token bigint NOT NULL, " +
			"attempt varchar(40) NOT NULL, a bigint NOT NULL, a_before bigint NOT NULL, a_after bigint NOT NULL, " +
			"b bigint NOT NULL, b_before bigint NOT NULL, b_after bigint NOT NULL)" + end,
	}
	for shard := range d.forms() {
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
	return errors.Join(d.db.Close(), d.admin(context.WithoutCancel(ctx), "DROP DATABASE "+d.name))
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
		err := conn.QueryRowContext(ctx, d.others(), d.name).Scan(&others)
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
