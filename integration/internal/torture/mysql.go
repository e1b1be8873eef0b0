package torture

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// mySQL is MySQL and MariaDB.
type mySQL struct{}

// The lock tables, one on each engine.
const (
	onMyISAM = "locks_MyISAM"
	onInnoDB = "locks_InnoDB"
)

func (mySQL) forms() []form {
	return []form{
		{leases: onMyISAM},
		{leases: onInnoDB, do: true},
		{do: true},
		{leases: onMyISAM, fenced: true},
		{fenced: true},
	}
}

func (mySQL) backend(f form, pool *sql.DB) sqllock.Backend {
	switch {
	case f.leases != "" && pool != nil:
		return table.New(ttl, table.WithTable(f.leases), table.WithPool(pool))
	case f.leases != "":
		return table.New(ttl, table.WithTable(f.leases))
	case pool != nil:
		return mysqlnamed.New(mysqlnamed.WithControl(pool))
	}
	return mysqlnamed.New()
}

func (mySQL) levels(bool) []sql.IsolationLevel {
	return []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadCommitted, sql.LevelRepeatableRead}
}

func (mySQL) serverOptions() []string {
	return []string{"--innodb-flush-log-at-trx-commit=1", "--innodb-doublewrite=ON"}
}

func (mySQL) address(dsn string) (string, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return "", err
	}
	return cfg.Addr, nil
}

func (mySQL) open(dsn, database string) (*sql.DB, error) {
	return testdb.OpenDB(dsn, func(c *mysql.Config) {
		c.Timeout, c.ReadTimeout = 5*time.Second, 30*time.Second
		if database != "" {
			c.DBName = database
		}
	})
}

func (mySQL) join(j job, wires *wire, rng *rand.Rand) (*sql.DB, error) {
	return testdb.OpenDB(j.DSN, func(c *mysql.Config) {
		c.Timeout, c.ReadTimeout = 5*time.Second, 30*time.Second
		c.DBName, c.DialFunc = j.Namespace, wires.dial
		c.Params = map[string]string{"innodb_lock_wait_timeout": "3"}
		c.InterpolateParams = rng.IntN(2) == 0
	})
}

func (mySQL) migrate(ctx context.Context, db *sql.DB) error {
	for engine, name := range map[string]string{"MyISAM": onMyISAM, "InnoDB": onInnoDB} {
		if err := migrations.Up(ctx, db, migrations.WithTable(name), migrations.WithEngine(engine)); err != nil {
			return err
		}
	}
	return migrations.Up(ctx, db, migrations.Fences())
}

func (mySQL) ddl() (serial, end string) { return "bigint NOT NULL AUTO_INCREMENT", " ENGINE=InnoDB" }

func (mySQL) bind(query string) string { return query }

func (mySQL) self() string { return "CONNECTION_ID()" }

func (mySQL) others() string {
	return "SELECT COUNT(*) FROM information_schema.processlist WHERE db=? AND id<>CONNECTION_ID()"
}

func (mySQL) end(ctx context.Context, db *sql.DB, session int64) error {
	_, err := db.ExecContext(ctx, fmt.Sprintf("KILL CONNECTION %d", session))
	return err
}

func (mySQL) point(sent []byte) point {
	const header = 4
	switch query := sent[min(header, len(sent)):]; {
	case bytes.HasPrefix(query, []byte("\x03UPDATE `lock_fences`")):
		return atFence
	case bytes.Equal(query, []byte("\x03COMMIT")):
		return atCommit
	}
	return ""
}

// undecided: an error packet, as of a session that was killed.
func (mySQL) undecided(answer []byte) bool { return len(answer) > 4 && answer[4] == 0xff }
