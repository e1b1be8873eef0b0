package torture

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// postgres is PostgreSQL.
type postgres struct{}

// onPostgres is the lock table.
const onPostgres = "locks"

func (postgres) forms() []form {
	return []form{
		{leases: onPostgres},
		{leases: onPostgres, do: true},
		{do: true},
		{leases: onPostgres, fenced: true},
		{fenced: true},
	}
}

func (postgres) backend(f form, pool *sql.DB) sqllock.Backend {
	switch {
	case f.leases != "" && pool != nil:
		return pgtable.New(ttl, pgtable.WithTable(f.leases), pgtable.WithPool(pool))
	case f.leases != "":
		return pgtable.New(ttl, pgtable.WithTable(f.leases))
	}
	return pgadvisory.New()
}

// levels are READ COMMITTED, which is the default, for the most part. In the others the
// server itself keeps a transaction from changing what another one has changed since it
// began, and a mistake of txguard from being seen.
func (postgres) levels(guarded bool) []sql.IsolationLevel {
	levels := slices.Repeat([]sql.IsolationLevel{sql.LevelDefault, sql.LevelReadCommitted}, 3)
	if guarded {
		levels = append(levels, sql.LevelRepeatableRead, sql.LevelSerializable)
	}
	return levels
}

// serverOptions: a commit is answered when the log was written, and half a page that was
// being written is mended from there. That it is not synced to the disk is well: what
// a process has written before kill -9 is the operating system's, which lives on.
func (postgres) serverOptions() []string {
	return []string{"-c", "synchronous_commit=on", "-c", "full_page_writes=on"}
}

func (postgres) address(dsn string) (string, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port))), nil
}

func (postgres) open(dsn, database string) (*sql.DB, error) {
	return testdb.OpenPostgres(dsn, func(c *pgx.ConnConfig) {
		c.ConnectTimeout = 5 * time.Second
		if database != "" {
			c.Database = database
		}
	})
}

func (postgres) join(j job, wires *wire, rng *rand.Rand) (*sql.DB, error) {
	return testdb.OpenPostgres(j.DSN, func(c *pgx.ConnConfig) {
		c.ConnectTimeout = 5 * time.Second
		c.Database, c.DialFunc = j.Namespace, wires.dial
		c.TLSConfig, c.Fallbacks = nil, nil // or there would be nothing to see on the wire
		c.RuntimeParams["lock_timeout"] = "3s"
		modes := []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol}
		c.DefaultQueryExecMode = modes[rng.IntN(len(modes))]
	})
}

func (postgres) migrate(ctx context.Context, db *sql.DB) error {
	if err := migrations.Up(ctx, db, migrations.Postgres(), migrations.WithTable(onPostgres)); err != nil {
		return err
	}
	return migrations.Up(ctx, db, migrations.Postgres(), migrations.Fences())
}

func (postgres) ddl() (serial, end string) { return "bigint GENERATED ALWAYS AS IDENTITY", "" }

func (postgres) bind(query string) string {
	var b strings.Builder
	for i, part := range strings.Split(query, "?") {
		if i > 0 {
			fmt.Fprintf(&b, "$%d", i)
		}
		b.WriteString(part)
	}
	return b.String()
}

func (postgres) self() string { return "pg_backend_pid()" }

// others counts no autovacuum, which decides nothing.
func (postgres) others() string {
	return "SELECT count(*) FROM pg_stat_activity WHERE datname=$1 AND pid<>pg_backend_pid() AND backend_type='client backend'"
}

var errNoSession = errors.New("there is no such session")

// end leaves a session of another database alone: ids are used again.
func (postgres) end(ctx context.Context, db *sql.DB, session int64) error {
	var told bool
	err := db.QueryRowContext(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid=$1 AND datname=current_database()", session).Scan(&told)
	if err == nil && !told {
		return errNoSession
	}
	return err
}

func (postgres) point(sent []byte) point {
	const header = 5
	if !bytes.HasPrefix(sent, []byte("Q")) {
		return ""
	}
	switch query := sent[min(header, len(sent)):]; {
	case bytes.HasPrefix(query, []byte(`UPDATE "lock_fences"`)):
		return atFence
	case bytes.Equal(query, []byte("commit\x00")):
		return atCommit
	}
	return ""
}

// undecided: the server has not said that the session goes on, outside of a transaction.
// What it says before that can be that it was ended, which may be after the commit;
// any other error tells that nothing was committed.
func (postgres) undecided(answer []byte) bool {
	return !bytes.HasSuffix(answer, []byte("Z\x00\x00\x00\x05I"))
}
