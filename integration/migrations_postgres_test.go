package integration

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// Tables that the migrations have not made, and would take as they are.
const (
	somebodysPGLocks = `CREATE TABLE shared_locks (` +
		`name text NOT NULL,` +
		`connection_id bigint NOT NULL,` +
		`created bigint NOT NULL,` +
		`ttl bigint NOT NULL,` +
		`lock_acquired integer NOT NULL,` +
		`token bigint NOT NULL,` +
		`holder varchar(300),` +
		`UNIQUE (name)` +
		`)`
	somebodysPGFences = `CREATE TABLE lock_fences (` +
		`name varchar(64) NOT NULL,` +
		`token bigint NOT NULL,` +
		`seq bigint NOT NULL,` +
		`commits bytea NOT NULL,` +
		`session bigint NOT NULL,` +
		`updated bigint NOT NULL,` +
		`PRIMARY KEY (name)` +
		`)`
)

// What PostgreSQL says of the columns: name, type, nullable, default, collation.
var (
	pgmLockColumns = []string{
		"name character varying(64) NO - C",
		"connection_id bigint NO - -",
		"created bigint NO - -",
		"ttl bigint NO - -",
		"lock_acquired smallint NO - -",
		"token bigint NO 0 -",
		"holder character varying(255) NO ''::character varying -",
	}
	pgmFenceColumns = []string{
		"name character varying(64) NO - C",
		"token bigint NO - -",
		"seq bigint NO 0 -",
		"commits bytea NO 'x'::bytea -",
		"session bigint NO 0 -",
		"updated bigint NO 0 -",
	}
)

// pgmSet is what Up makes.
type pgmSet struct {
	table, comment string
	opts           []migrations.Option
	columns        []string
}

func pgmSets() []pgmSet {
	return []pgmSet{
		{"shared_locks", "go-sqllock: locks", nil, pgmLockColumns},
		{"lock_fences", "go-sqllock: fences", []migrations.Option{migrations.Fences()}, pgmFenceColumns},
	}
}

// pgmRelations has what there is in the current schema but indexes, and the sequences
// of goose's tables.
const pgmRelations = "SELECT relname::text FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace" +
	" WHERE nspname = current_schema() AND relkind <> 'i' AND relname NOT LIKE '%\\_id\\_seq' ORDER BY 1"

// pgmDefinition is all that a migration could change of what there is.
const pgmDefinition = "SELECT concat_ws(' ', relname, relkind, relpersistence, obj_description(c.oid, 'pg_class'), attname," +
	" format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid), attidentity)" +
	" FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute ON attrelid = c.oid" +
	" LEFT JOIN pg_attrdef ON adrelid = c.oid AND adnum = attnum" +
	" WHERE nspname = current_schema() AND attnum > 0 ORDER BY relname, attnum"

func pgmWant(t *testing.T, db *sql.DB, want ...string) {
	t.Helper()
	wantList(t, db, "relations", pgmRelations, want...)
}

func pgmWantColumns(t *testing.T, db *sql.DB, table string, want []string) {
	t.Helper()
	wantList(t, db, "columns of "+table, "SELECT concat_ws(' ', attname, format_type(atttypid, atttypmod),"+
		" CASE WHEN attnotnull THEN 'NO' ELSE 'YES' END, COALESCE(translate(pg_get_expr(adbin, adrelid), chr(92), ''), '-'),"+
		" (SELECT CASE WHEN attcollation = typcollation THEN '-' ELSE (SELECT collname FROM pg_collation l WHERE l.oid = attcollation) END FROM pg_type y WHERE y.oid = atttypid))"+
		" FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute ON attrelid = c.oid AND attnum > 0"+
		" LEFT JOIN pg_attrdef ON adrelid = c.oid AND adnum = attnum"+
		" WHERE nspname = current_schema() AND relname = '"+table+"' ORDER BY attnum", want...)
}

func pgmWantVersions(t *testing.T, db *sql.DB, table string) {
	t.Helper()
	wantList(t, db, "versions", `SELECT version_id::text FROM "`+table+`_version" ORDER BY id`, "0", "1")
}

// pgmWantTable wants a plain table with its key, and a comment of ours.
func pgmWantTable(t *testing.T, db *sql.DB, table, comment string) {
	t.Helper()
	wantList(t, db, table, "SELECT concat(relkind, relpersistence, ' ', obj_description(c.oid, 'pg_class'), ' ', pg_get_constraintdef(k.oid))"+
		" FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_constraint k ON conrelid = c.oid"+
		" WHERE nspname = current_schema() AND relname = '"+table+"' AND contype = 'p'", "rp "+comment+" PRIMARY KEY (name)")
}

// pgmAdvisory has the advisory locks of the database, and who waits for one.
const pgmAdvisory = "SELECT pid::text FROM pg_locks" +
	" WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"

// pgmWantClean wants no lock to be left, and one session in the pool.
func pgmWantClean(t *testing.T, db *sql.DB) {
	t.Helper()
	wantList(t, db, "advisory locks", pgmAdvisory)
	wantList(t, db, "the session", "SELECT concat(current_setting('lock_timeout'), pg_current_xact_id_if_assigned())", "0")
	if n := db.Stats().OpenConnections; n != 1 {
		t.Errorf("the pool has %d connections", n)
	}
}

// pgmToken draws a token as package table does.
func pgmToken(t *testing.T, db *sql.DB, table string) (token int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT nextval($1::regclass)", `"`+table+`_token"`).Scan(&token); err != nil {
		t.Fatal(err)
	}
	return token
}

// pgmAgain opens another pool on the database of db.
func pgmAgain(t *testing.T, s *testdb.Server, db *sql.DB, change ...func(*pgx.ConnConfig)) *sql.DB {
	t.Helper()
	name := listSQL(t, db, "SELECT current_database()::text")[0]
	return openPG(t, s, append([]func(*pgx.ConnConfig){func(c *pgx.ConnConfig) { c.Database = name }}, change...)...)
}

func pgmParam(name, value string) func(*pgx.ConnConfig) {
	return func(c *pgx.ConnConfig) { c.RuntimeParams[name] = value }
}

func pgmUp(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	migrateUp(t, db, append(opts, migrations.Postgres())...)
}

func pgmDown(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	migrateDown(t, db, append(opts, migrations.Postgres())...)
}

// TestMigrationsPostgres: Up makes table and sequence, once, and Down leaves nothing,
// under every name, over a pool of one, and however the application talks to the
// server.
func TestMigrationsPostgres(t *testing.T) {
	t.Parallel()
	mode := func(m pgx.QueryExecMode) func(*pgx.ConnConfig) {
		return func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = m }
	}
	plain := func(*pgx.ConnConfig) {}
	longest := strings.Repeat("x", 55)
	for _, test := range []struct {
		name, table string
		change      func(*pgx.ConnConfig)
	}{
		{"default", "", plain},
		{"letter case", "Billing$locks", plain},
		{"a number", "1e5", plain},
		{"a dollar", "$x$", plain},
		{"reserved", "select", plain},
		{"the longest name", longest, plain},
		{"cache_describe", "", mode(pgx.QueryExecModeCacheDescribe)},
		{"describe_exec", "", mode(pgx.QueryExecModeDescribeExec)},
		{"exec", "", mode(pgx.QueryExecModeExec)},
		{"simple_protocol", "", mode(pgx.QueryExecModeSimpleProtocol)},
		{"serializable", "", pgmParam("default_transaction_isolation", "serializable")},
		{"backslashes", "", pgmParam("standard_conforming_strings", "off")},
		{"no catalog in front", "", pgmParam("search_path", "public, pg_catalog")},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db := pgDatabase(t, postgres(t), test.change)
			db.SetMaxOpenConns(1)
			for _, set := range pgmSets() {
				table, opts := set.table, set.opts
				if test.table != "" {
					table, opts = test.table, append(opts, migrations.WithTable(test.table))
				}
				relations := []string{table, table + "_token", table + "_version"}
				if set.table == "lock_fences" {
					relations = slices.Delete(relations, 1, 2)
				}
				pgmDown(t, db, opts...)
				pgmWant(t, db)
				before := listSQL(t, db, "SELECT pg_backend_pid()::text")
				for range 2 {
					pgmUp(t, db, opts...)
					pgmWant(t, db, relations...)
					pgmWantColumns(t, db, table, set.columns)
					pgmWantTable(t, db, table, set.comment)
					pgmWantVersions(t, db, table)
				}
				pgmWantClean(t, db)
				pgmDown(t, db, opts...)
				pgmWant(t, db)
				pgmUp(t, db, opts...)
				pgmWantColumns(t, db, table, set.columns)
				pgmDown(t, db, opts...)
				pgmWantClean(t, db)
				wantList(t, db, "the session", "SELECT pg_backend_pid()::text", before...)
			}
		})
	}
}

// TestMigrationsPostgresRows: what PHP and the backends rely on: letter case counts,
// the defaults are there, and a name is there once.
func TestMigrationsPostgresRows(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	pgmUp(t, db)
	pgmUp(t, db, migrations.Fences())
	runSQL(t, db,
		"INSERT INTO shared_locks (name, connection_id, created, ttl, lock_acquired) VALUES ('Job', 1, 2, 3, 1), ('job', 1, 2, 3, 1)",
		"INSERT INTO lock_fences (name, token) VALUES ('Job', 7), ('job', 8)",
		"INSERT INTO lock_fences (name, token) VALUES ('job', 9) ON CONFLICT (name) DO UPDATE SET token = excluded.token",
	)
	wantList(t, db, "locks", "SELECT concat(name, token, holder) FROM shared_locks ORDER BY name", "Job0", "job0")
	wantList(t, db, "fences", "SELECT concat(name, token, seq, length(commits), session, updated) FROM lock_fences ORDER BY name", "Job70000", "job90000")
}

// TestMigrationsPostgresTokens: they are greater than those that MySQL, whose tokens
// are its clock in microseconds, has given, and than those of a sequence that was
// dropped; nothing that empties the table has them start again.
func TestMigrationsPostgresTokens(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	clock := func() (micros int64) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").Scan(&micros); err != nil {
			t.Fatal(err)
		}
		return micros
	}
	last := clock()
	next := func(after string) {
		t.Helper()
		token := pgmToken(t, db, "shared_locks")
		if now := clock(); token <= last || token > now {
			t.Errorf("%s: token %d, after %d, and at %d by the clock", after, token, last, now)
		}
		last = token
	}
	pgmUp(t, db)
	next("Up")
	for _, statement := range []string{
		"TRUNCATE shared_locks RESTART IDENTITY",
		"DROP TABLE shared_locks, shared_locks_version",
		"DELETE FROM shared_locks_version",
		"DROP SEQUENCE shared_locks_token; DELETE FROM shared_locks_version",
	} {
		for part := range strings.SplitSeq(statement, "; ") {
			runSQL(t, db, part)
		}
		pgmUp(t, db)
		next(statement)
	}
	pgmDown(t, db)
	pgmUp(t, db)
	next("Down and Up")
	wantList(t, db, "the sequence", "SELECT concat_ws(' ', seqtypid::regtype, seqincrement, seqcache, seqcycle, relpersistence)"+
		" FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid WHERE relname = 'shared_locks_token'", "bigint 1 1 f p")
}

// TestMigrationsPostgresEncodings: nothing in the files is beyond ASCII, which a
// database of another encoding would refuse.
func TestMigrationsPostgresEncodings(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, encoding := range []string{"LATIN1", "SQL_ASCII", "UTF8"} {
		name := strings.ToLower("migrations_" + encoding)
		admin := openPG(t, s)
		runSQL(t, admin, "DROP DATABASE IF EXISTS "+name, "CREATE DATABASE "+name+" TEMPLATE template0 LOCALE 'C' ENCODING '"+encoding+"'")
		ctx := context.WithoutCancel(t.Context())
		t.Cleanup(func() { _, _ = admin.ExecContext(ctx, "DROP DATABASE "+name+" WITH (FORCE)") })
		db := openPG(t, s, func(c *pgx.ConnConfig) { c.Database = name }, pgmParam("client_encoding", "UTF8"))
		for _, opts := range [][]migrations.Option{nil, {migrations.Fences()}} {
			pgmUp(t, db, opts...)
			pgmDown(t, db, opts...)
		}
		pgmWant(t, db)
	}
}

// TestMigrationsPostgresSchemas: each schema has its own, whatever there is in those
// that come after it in the path, and under every name; without one there is an error.
func TestMigrationsPostgresSchemas(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgDatabase(t, s)
	pgmUp(t, db)
	pgmUp(t, db, migrations.Fences())
	locks := []string{"shared_locks", "shared_locks_token", "shared_locks_version"}
	before := listSQL(t, db, pgmDefinition)
	odd := `My "own" schema's, $$ and %s`
	quoted := pgx.Identifier{odd}.Sanitize()
	runSQL(t, db, "CREATE SCHEMA "+quoted, "CREATE SCHEMA tenant",
		"CREATE SCHEMA other", "CREATE TABLE other.shared_locks (id text NOT NULL)", "CREATE TABLE other.lock_fences (id text NOT NULL)")
	for _, path := range []string{"tenant, public", quoted + ", public", `"$user", tenant, public`} {
		own := pgmAgain(t, s, db, pgmParam("search_path", path))
		own.SetMaxOpenConns(1)
		pgmDown(t, own)
		pgmWant(t, own)
		for range 2 {
			pgmUp(t, own)
			pgmWant(t, own, locks...)
			pgmWantVersions(t, own, "shared_locks")
		}
		pgmUp(t, own, migrations.Fences())
		pgmDown(t, own, migrations.Fences())
		pgmDown(t, own)
		pgmWant(t, own)
		for _, set := range pgmSets() { // Down without a table is not for that of another schema
			pgmUp(t, own, set.opts...)
			runSQL(t, own, "DROP TABLE "+set.table, "DROP SEQUENCE IF EXISTS "+set.table+"_token")
			pgmDown(t, own, set.opts...)
		}
		pgmWant(t, own)
		pgmWantClean(t, own)
		wantList(t, db, "public", pgmDefinition, before...)
		pgmWantVersions(t, db, "shared_locks")
		pgmWantVersions(t, db, "lock_fences")
	}
	for _, path := range []string{"", "nowhere", "nowhere, neither"} {
		none := pgmAgain(t, s, db, pgmParam("search_path", path))
		for _, way := range []func(context.Context, *sql.DB, ...migrations.Option) error{migrations.Up, migrations.Down} {
			refused(t, way(t.Context(), none, migrations.Postgres()), "no schema for the lock table", "search_path")
			refused(t, way(t.Context(), none, migrations.Postgres(), migrations.Fences()), "no schema for the fence table", "search_path")
		}
	}
	wantList(t, db, "public", pgmDefinition, before...)
}

// TestMigrationsPostgresBesideLocks: in one database, neither set minds the other, and
// Fences forgotten, or given for the lock table, costs neither table anything.
func TestMigrationsPostgresBesideLocks(t *testing.T) {
	t.Parallel()
	fenced := []string{"lock_fences", "lock_fences_version"}
	locked := []string{"shared_locks", "shared_locks_token", "shared_locks_version"}
	db := pgDatabase(t, postgres(t))
	pgmUp(t, db)
	pgmUp(t, db, migrations.Fences())
	pgmWant(t, db, slices.Concat(fenced, locked)...)
	runSQL(t, db, "INSERT INTO lock_fences (name, token) VALUES ('invoices', 7)",
		"INSERT INTO shared_locks (name, connection_id, created, ttl, lock_acquired) VALUES ('invoices', 1, 2, 3, 1)")

	before := listSQL(t, db, pgmDefinition)
	for _, test := range []struct {
		opts []migrations.Option
		want []string
	}{
		{[]migrations.Option{migrations.WithTable("lock_fences")}, []string{"lock_fences is one for fences", "not for locks", "give Fences()"}},
		{[]migrations.Option{migrations.Fences(), migrations.WithTable("shared_locks")}, []string{"shared_locks is one for locks", "not for fences", "give Fences()"}},
	} {
		test.opts = append(test.opts, migrations.Postgres())
		refused(t, migrations.Up(t.Context(), db, test.opts...), test.want...)
		refused(t, migrations.Down(t.Context(), db, test.opts...), test.want...)
		wantList(t, db, "what there is", pgmDefinition, before...)
	}

	pgmDown(t, db)
	pgmWant(t, db, fenced...)
	wantList(t, db, "fences", "SELECT token::text FROM lock_fences", "7")
	pgmUp(t, db)
	pgmDown(t, db, migrations.Fences())
	pgmWant(t, db, locked...)
	pgmUp(t, db)
	pgmWantVersions(t, db, "shared_locks")
}

// TestMigrationsPostgresAdopt: a table that was there is taken as it is, with what an
// INSERT can leave out, gets a sequence if it has none, and stays when the migrations
// go.
func TestMigrationsPostgresAdopt(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	const (
		more   = "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text, many int NOT NULL DEFAULT 7, UNIQUE (note), UNIQUE"
		lock   = "INSERT INTO shared_locks (name, connection_id, created, ttl, lock_acquired, token) VALUES ('invoices', 1, 2, 3, 1, 7)"
		fence  = "INSERT INTO lock_fences (name, token, seq, commits, session, updated) VALUES ('invoices', 7, 0, '', 0, 0)"
		tokens = "CREATE SEQUENCE shared_locks_token START 1000"
	)
	fences := []migrations.Option{migrations.Fences()}
	for _, test := range []struct {
		name   string
		create []string
		opts   []migrations.Option
		left   []string
	}{
		{"locks", []string{somebodysPGLocks, lock}, nil, []string{"shared_locks"}},
		{"locks with a sequence", []string{somebodysPGLocks, lock, tokens}, nil, []string{"shared_locks", "shared_locks_token"}},
		{"locks with more", []string{strings.Replace(somebodysPGLocks, "UNIQUE", more, 1), lock}, nil, []string{"shared_locks"}},
		{"fences", []string{somebodysPGFences, fence}, fences, []string{"lock_fences"}},
		{"fences with a covering key", []string{strings.Replace(somebodysPGFences, "(name)", "(name) INCLUDE (token)", 1), fence}, fences, []string{"lock_fences"}},
		{"fences with another key", []string{strings.Replace(somebodysPGFences, "PRIMARY KEY", more, 1), fence}, fences, []string{"lock_fences"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			table := test.left[0]
			runSQL(t, db, test.create...)
			before := listSQL(t, db, pgmDefinition)
			for range 2 {
				pgmUp(t, db, test.opts...)
			}
			pgmWantVersions(t, db, table)
			if test.opts == nil {
				pgmToken(t, db, table)
			}
			pgmDown(t, db, test.opts...)
			wantList(t, db, "what there is after Down", pgmDefinition, before...)
			wantList(t, db, "rows", "SELECT concat(name, token) FROM "+table, "invoices7")
			pgmWant(t, db, slices.DeleteFunc(listSQL(t, db, pgmRelations), func(name string) bool { return !slices.Contains(test.left, name) })...)
			runSQL(t, db, "DROP TABLE "+table, "DROP SEQUENCE IF EXISTS shared_locks_token")
		})
	}
}

// TestMigrationsPostgresForeignTable: what is no lock table, or no fence table, is
// refused and stays as it is.
func TestMigrationsPostgresForeignTable(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	refuses := func(create, want string, opts ...migrations.Option) {
		t.Helper()
		for part := range strings.SplitSeq(create, "; ") {
			runSQL(t, db, part)
		}
		before := listSQL(t, db, pgmDefinition)
		refused(t, migrations.Up(t.Context(), db, append(opts, migrations.Postgres())...), "is there", "was not altered", want, "alter it, or name another one by WithTable")
		wantList(t, db, "what there is", pgmDefinition, before...)
		pgmDown(t, db, opts...)
		wantList(t, db, "what there is after Down", pgmDefinition, before...)
		runSQL(t, db, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
	}
	changed := func(text, old, to string) string {
		t.Helper()
		if !strings.Contains(text, old) {
			t.Fatalf("there is no %q to change", old)
		}
		return strings.Replace(text, old, to, 1)
	}
	const (
		key      = "UNIQUE (name)"
		noKey    = "no unique key on the column name alone"
		tokens   = somebodysPGLocks + "; CREATE SEQUENCE shared_locks_token"
		noTokens = "a sequence shared_locks_token that may repeat a token or swap two"
	)
	for _, test := range []struct{ create, want string }{
		{changed(somebodysPGLocks, "ttl bigint NOT NULL,", ""), "no column ttl"},
		{changed(somebodysPGLocks, "token bigint NOT NULL,", ""), "no column token"},
		{changed(somebodysPGLocks, "created bigint", "created timestamptz"), "a column created of type timestamp with time zone"},
		{changed(somebodysPGLocks, "connection_id bigint", "connection_id integer"), "a column connection_id of type integer"},
		{changed(somebodysPGLocks, "token bigint NOT NULL", "token bigint GENERATED ALWAYS AS IDENTITY"), "a column token of type bigint GENERATED ALWAYS"},
		{changed(somebodysPGLocks, "token bigint NOT NULL", "token bigint GENERATED ALWAYS AS (ttl) STORED"), "a column token of type bigint GENERATED ALWAYS"},
		{changed(somebodysPGLocks, "lock_acquired integer", "lock_acquired boolean"), "a column lock_acquired of type boolean"},
		{changed(somebodysPGLocks, "name text", "name char(64)"), "a column name of type character"}, // pads with spaces
		{changed(somebodysPGLocks, "name text", "name varchar(63)"), "a column name of 63 characters, and names have up to 64"},
		{"CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false); " +
			changed(somebodysPGLocks, "name text", "name text COLLATE nocase"), "a column name of type text of a nondeterministic collation"},
		{changed(somebodysPGLocks, "varchar(300)", "varchar(254)"), "a column holder of 254 characters"},
		{changed(somebodysPGLocks, key, "UNIQUE (name, created)"), noKey},
		{changed(somebodysPGLocks, key, "PRIMARY KEY (created), UNIQUE (token, name)"), noKey},
		{changed(somebodysPGLocks, key, "UNIQUE (name) DEFERRABLE"), noKey},
		{changed(somebodysPGLocks, ","+key, ""), noKey},
		{changed(somebodysPGLocks, ","+key, "") + "; CREATE INDEX ON shared_locks (name)", noKey},
		{changed(somebodysPGLocks, ","+key, "") + "; CREATE UNIQUE INDEX ON shared_locks (name) WHERE token > 0", noKey},
		{changed(somebodysPGLocks, ","+key, "") + "; CREATE UNIQUE INDEX ON shared_locks (lower(name))", noKey},
		{changed(somebodysPGLocks, key, "extra int NOT NULL, "+key), "a column extra without a default, which locks do not fill"},
		{changed(somebodysPGLocks, "CREATE TABLE", "CREATE UNLOGGED TABLE"), "the form of an unlogged table, and locks need a plain table"},
		{changed(somebodysPGLocks, ","+key, "") + " PARTITION BY HASH (name)", "the form of a partitioned table"},
		{changed(somebodysPGLocks, "shared_locks", "others") + "; CREATE VIEW shared_locks AS TABLE others", "the form of a view"},
		{"CREATE VIEW shared_locks AS SELECT 1 AS one", "the form of a view"},
		{changed(somebodysPGLocks, "shared_locks", "others") + "; CREATE MATERIALIZED VIEW shared_locks AS TABLE others", "the form of a materialized view"},
		{changed(somebodysPGLocks, "shared_locks", "others") + "; CREATE INDEX shared_locks ON others (name)", "the form of an index"},
		{"CREATE SEQUENCE shared_locks", "the form of a sequence"},
		{"CREATE TYPE shared_locks AS (name text)", "the form of a composite type"},
		{tokens + " CACHE 2", noTokens},
		{tokens + " CYCLE", noTokens},
		{tokens + " INCREMENT -1", noTokens},
		{tokens + " AS integer", noTokens},
		{tokens + " OWNED BY shared_locks.token", noTokens},
		{strings.Replace(tokens, "CREATE SEQ", "CREATE UNLOGGED SEQ", 1), noTokens}, // from PostgreSQL 15 on
		{somebodysPGLocks + "; CREATE TABLE shared_locks_token (name text)", noTokens},
	} {
		if strings.Contains(test.create, "UNLOGGED SEQ") && listSQL(t, db, "SELECT current_setting('server_version_num')")[0] < "150000" {
			continue
		}
		refuses(test.create, test.want)
	}
	for _, test := range []struct{ create, want string }{
		{changed(somebodysPGFences, "seq bigint NOT NULL,", ""), "no column seq"},
		{changed(somebodysPGFences, "commits bytea", "commits text"), "a column commits of type text"},
		{changed(somebodysPGFences, "token bigint", "token numeric"), "a column token of type numeric"},
		{changed(somebodysPGFences, "varchar(64)", "varchar(63)"), "a column name of 63 characters, and names have up to 64"},
		{changed(somebodysPGFences, "(name)", "(name, token)"), noKey},
		{changed(somebodysPGFences, "PRIMARY", "extra int NOT NULL, PRIMARY"), "a column extra without a default, which fences do not fill"},
		{changed(somebodysPGFences, "CREATE TABLE", "CREATE UNLOGGED TABLE"), "the form of an unlogged table, and fences need a plain table"},
		{somebodysPGFences + " PARTITION BY HASH (name)", "the form of a partitioned table, and fences need a plain table"},
		{changed(somebodysPGFences, "lock_fences", "others") + "; CREATE VIEW lock_fences AS TABLE others", "the form of a view, and fences need a plain table"},
	} {
		refuses(test.create, test.want, migrations.Fences())
	}
	runSQL(t, db, "CREATE TABLE shared_locks_token (name text)") // with no table beside it
	refused(t, migrations.Up(t.Context(), db, migrations.Postgres()), "shared_locks_token", "already exists")
	runSQL(t, db, "DROP TABLE shared_locks_token")
	pgmUp(t, db)
}

// TestMigrationsPostgresTamperedWith: Up tells that the table is not what the versions
// say, each time, and what it advises helps.
func TestMigrationsPostgresTamperedWith(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	for _, set := range []struct {
		table string
		opts  []migrations.Option
		tests [][2]string
	}{
		{"shared_locks", nil, [][2]string{
			{"DROP TABLE shared_locks", "no column name"},
			{"ALTER TABLE shared_locks DROP COLUMN holder", "no column holder"},
			{"ALTER TABLE shared_locks DROP CONSTRAINT shared_locks_pkey", "no unique key"},
			{"ALTER TABLE shared_locks SET UNLOGGED", "the form of an unlogged table"},
			{"ALTER TABLE shared_locks ADD COLUMN extra int NOT NULL", "a column extra without a default"},
			{"DROP SEQUENCE shared_locks_token", "no sequence shared_locks_token"},
			{"ALTER SEQUENCE shared_locks_token CACHE 10", "a sequence shared_locks_token that may"},
			{"ALTER SEQUENCE shared_locks_token OWNED BY shared_locks.token", "a sequence shared_locks_token that may"},
		}},
		{"lock_fences", []migrations.Option{migrations.Fences()}, [][2]string{
			{"DROP TABLE lock_fences", "no column name"},
			{"ALTER TABLE lock_fences DROP COLUMN commits", "no column commits"},
			{"ALTER TABLE lock_fences DROP CONSTRAINT lock_fences_pkey", "no unique key"},
			{"ALTER TABLE lock_fences SET UNLOGGED", "the form of an unlogged table"},
			{"ALTER TABLE lock_fences ADD COLUMN extra int NOT NULL", "a column extra without a default"},
		}},
	} {
		for _, test := range set.tests {
			pgmUp(t, db, set.opts...)
			runSQL(t, db, test[0])
			for range 2 {
				refused(t, migrations.Up(t.Context(), db, append(set.opts, migrations.Postgres())...),
					set.table+" has "+test[1], "dropped or altered since", "drop "+set.table+"_version, and call Up again")
			}
			runSQL(t, db, "DROP TABLE "+set.table+"_version")
			if strings.HasPrefix(test[0], "DROP") {
				pgmUp(t, db, set.opts...) // as advised
				continue
			}
			refused(t, migrations.Up(t.Context(), db, append(set.opts, migrations.Postgres())...), test[1], "alter it, or name another one")
			runSQL(t, db, "DROP TABLE "+set.table, "DROP SEQUENCE IF EXISTS shared_locks_token", "DROP TABLE IF EXISTS "+set.table+"_version")
		}
		pgmUp(t, db, set.opts...)
		pgmDown(t, db, set.opts...)
		pgmWant(t, db)
	}
}

// TestMigrationsPostgresAfterCrash: whatever statement was the last, Up and Down go
// on.
func TestMigrationsPostgresAfterCrash(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	for _, set := range pgmSets() {
		for _, undo := range []string{
			"DELETE FROM " + set.table + "_version",
			"DELETE FROM " + set.table + "_version WHERE version_id > 0",
			"DROP TABLE " + set.table + "_version",
			"DROP TABLE " + set.table + "; DELETE FROM " + set.table + "_version WHERE version_id > 0",
			"DROP TABLE " + set.table + "; DELETE FROM " + set.table + "_version",
		} {
			pgmUp(t, db, set.opts...)
			for part := range strings.SplitSeq(undo, "; ") {
				runSQL(t, db, part)
			}
			pgmUp(t, db, set.opts...)
			pgmWantTable(t, db, set.table, set.comment)
			pgmWantVersions(t, db, set.table)
		}
		runSQL(t, db, "DROP TABLE "+set.table)
		pgmDown(t, db, set.opts...)
		pgmWant(t, db)
	}
}

// TestMigrationsPostgresKilled: the session ends, by a kill or with ctx, while the
// server is in the middle of the migration; that leaves the versions, and nothing
// else.
func TestMigrationsPostgresKilled(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"a kill", "ctx"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			s := postgres(t)
			db := pgDatabase(t, s)
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback() //nolint:errcheck // it has been
			if _, err := tx.ExecContext(t.Context(), "CREATE SEQUENCE shared_locks_token"); err != nil {
				t.Fatal(err)
			}
			const stuck = "SELECT pid::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			own := pgmAgain(t, s, db)
			own.SetMaxOpenConns(1)
			go func() { ended <- migrations.Up(ctx, own, migrations.Postgres()) }()
			var pids []string
			awaited(t, "the migration to wait", func() bool { pids = listSQL(t, db, stuck); return len(pids) == 1 })
			if by == "ctx" {
				cancel()
			} else {
				runSQL(t, db, "SELECT pg_terminate_backend("+pids[0]+")")
			}
			err = <-ended
			refused(t, err)
			if by == "ctx" && !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want one that is context.Canceled", err)
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			awaited(t, "the session to end", func() bool { return len(listSQL(t, db, stuck)) == 0 })
			pgmWant(t, db, "shared_locks_version")
			wantList(t, db, "versions", "SELECT version_id::text FROM shared_locks_version", "0")
			pgmUp(t, own)
			pgmWantColumns(t, db, "shared_locks", pgmLockColumns)
			pgmWantVersions(t, db, "shared_locks")
			pgmWantClean(t, own)
		})
	}
}

// holdPGMigrations takes the lock of the migrations as another process would.
func holdPGMigrations(t *testing.T, db *sql.DB, table string) *sqllock.Lock {
	t.Helper()
	locker := sqllock.New(pgadvisory.New(), sqllock.WithNamespace("go-sqllock"))
	l, err := locker.TryLock(t.Context(), conn(t, db), "migrations public."+table)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestMigrationsPostgresAtOnce: eight, each with a pool of its own, wait for one lock,
// which is not that of the other table.
func TestMigrationsPostgresAtOnce(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, set := range pgmSets() {
		db := pgDatabase(t, s)
		l := holdPGMigrations(t, db, set.table)
		const many = 8
		var all sync.WaitGroup
		for range many {
			pool := pgmAgain(t, s, db)
			all.Go(func() {
				if err := migrations.Up(t.Context(), pool, append(set.opts, migrations.Postgres())...); err != nil {
					t.Error(err)
				}
			})
		}
		awaited(t, "all to wait for the lock", func() bool { return len(listSQL(t, db, pgmAdvisory+" AND NOT granted")) == many })
		pgmWant(t, db)
		pgmUp(t, db, migrations.WithTable("others")) // does not wait
		pgmDown(t, db, migrations.WithTable("others"))
		pgmWant(t, db)
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		pgmWantColumns(t, db, set.table, set.columns)
		pgmWantVersions(t, db, set.table)
	}
}

// pgmStatements notes what a pool sends, one statement at a time.
type pgmStatements []string

func (s *pgmStatements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	*s = append(*s, data.SQL)
	return ctx
}

func (*pgmStatements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestMigrationsPostgresWait: while another process holds the lock nothing is written,
// a wait that is given up leaves the pool usable, and a current table is only read,
// without the lock.
func TestMigrationsPostgresWait(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	admin := pgDatabase(t, s)
	db := pgmAgain(t, s, admin)
	db.SetMaxOpenConns(1)
	before := listSQL(t, db, "SELECT pg_backend_pid()::text")
	l := holdPGMigrations(t, admin, "shared_locks")
	for _, way := range []func(context.Context, *sql.DB, ...migrations.Option) error{migrations.Up, migrations.Down} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := way(ctx, db, migrations.Postgres())
		cancel()
		refused(t, err)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, sqllock.ErrBusy) {
			t.Errorf("at the deadline: %v", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		stop := time.AfterFunc(100*time.Millisecond, cancel)
		begun := time.Now()
		if err := way(ctx, db, migrations.Postgres()); !errors.Is(err, context.Canceled) {
			t.Errorf("when cancelled: %v", err)
		}
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("a cancelled wait took %v", took)
		}
		stop.Stop()
	}
	pgmWant(t, db)
	if after := listSQL(t, db, "SELECT pg_backend_pid()::text"); !slices.Equal(before, after) {
		t.Errorf("the session was given up: %v, before %v", after, before)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgmUp(t, db)
	pgmUp(t, db, migrations.Fences())
	holdPGMigrations(t, admin, "shared_locks")
	holdPGMigrations(t, admin, "lock_fences")
	var sent pgmStatements
	reader := pgmAgain(t, s, admin, pgmParam("default_transaction_read_only", "on"), func(c *pgx.ConnConfig) { c.Tracer = &sent })
	for _, set := range pgmSets() {
		sent = nil
		pgmUp(t, reader, set.opts...)
		if len(sent) != 3 || slices.ContainsFunc(sent, func(text string) bool { return !strings.HasPrefix(text, "SELECT ") }) {
			t.Errorf("Up on a current table should be three queries: %q", sent)
		}
	}
	refused(t, migrations.Up(t.Context(), reader, migrations.Postgres(), migrations.WithTable("others")))
}

// TestMigrationsPostgresPrivileges: the error says what to grant, at once, and that is
// enough.
func TestMigrationsPostgresPrivileges(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	db := pgDatabase(t, s)
	role := "r" + strings.ReplaceAll(listSQL(t, db, "SELECT gen_random_uuid()::text")[0], "-", "")
	runSQL(t, db, "REVOKE ALL ON SCHEMA public FROM PUBLIC", // as PostgreSQL 15 has it for CREATE
		"CREATE ROLE "+role+"_a LOGIN PASSWORD 'secret'", "CREATE ROLE "+role+"_b LOGIN PASSWORD 'secret'")
	ctx := context.WithoutCancel(t.Context())
	t.Cleanup(func() {
		for _, user := range []string{role + "_a", role + "_b"} {
			for _, statement := range []string{"DROP OWNED BY ", "DROP ROLE "} {
				if _, err := db.ExecContext(ctx, statement+user); err != nil {
					t.Error(err)
				}
			}
		}
	})
	as := func(user string) *sql.DB {
		return pgmAgain(t, s, db, func(c *pgx.ConnConfig) { c.User, c.Password = role+user, "secret" })
	}
	try := func(user string) {
		t.Helper()
		begun := time.Now()
		err := migrations.Up(t.Context(), as(user), migrations.Postgres())
		refused(t, err, "GRANT USAGE, CREATE ON the SCHEMA", "own the tables", "GRANT SELECT ON shared_locks_version", "migrations.SQL")
		var answer *pgconn.PgError
		if !errors.As(err, &answer) || answer.Code != "42501" {
			t.Errorf("got %v, want SQLSTATE 42501", err)
		}
		if took := time.Since(begun); took > 900*time.Millisecond {
			t.Errorf("it took %v: was it tried again?", took)
		}
	}
	refused(t, migrations.Up(t.Context(), as("_a"), migrations.Postgres()), "no schema for the lock table", "this role may use")
	runSQL(t, db, "GRANT USAGE ON SCHEMA public TO PUBLIC")
	try("_a")
	pgmWant(t, db)
	runSQL(t, db, "GRANT CREATE ON SCHEMA public TO "+role+"_a")
	pgmUp(t, as("_a"))
	try("_b")
	runSQL(t, db, "GRANT SELECT ON shared_locks_version TO "+role+"_b")
	pgmUp(t, as("_b"))
	before := listSQL(t, db, pgmDefinition)
	err := migrations.Down(t.Context(), as("_b"), migrations.Postgres())
	refused(t, err, "must be owner", "own the tables")
	wantList(t, db, "what there is", pgmDefinition, before...)
	pgmDown(t, as("_a"))
	pgmWant(t, db)
}

// TestMigrationsPostgresDialect: Postgres left out, or given for MySQL, is told at
// once, and nothing is changed.
func TestMigrationsPostgresDialect(t *testing.T) {
	t.Parallel()
	ways := []func(context.Context, *sql.DB, ...migrations.Option) error{migrations.Up, migrations.Down}
	sets := [][]migrations.Option{nil, {migrations.Fences()}}
	t.Run("left out", func(t *testing.T) {
		t.Parallel()
		for _, migrated := range []bool{false, true} {
			db := pgDatabase(t, postgres(t))
			db.SetMaxOpenConns(1)
			if migrated {
				pgmUp(t, db)
				pgmUp(t, db, migrations.Fences())
			}
			before := listSQL(t, db, pgmDefinition)
			for _, way := range ways {
				for _, set := range sets {
					refused(t, way(t.Context(), db, set...), "this is no MySQL or MariaDB", "give Postgres()")
				}
			}
			wantList(t, db, "what there is", pgmDefinition, before...)
			pgmWantClean(t, db)
		}
	})
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, mode := range []string{"", "ANSI"} {
			db, _ := migrationDB(t, s, func(c *mysql.Config) { c.Params = map[string]string{"sql_mode": "'" + mode + "'"} })
			db.SetMaxOpenConns(1)
			for _, migrated := range []bool{false, true} {
				if migrated {
					migrateUp(t, db)
					migrateUp(t, db, migrations.Fences())
				}
				before := listSQL(t, db, tableDefinition)
				for _, way := range ways {
					for _, set := range sets {
						refused(t, way(t.Context(), db, append(set, migrations.Postgres())...), "this is no PostgreSQL", "leave Postgres() out")
					}
				}
				wantList(t, db, "the tables", tableDefinition, before...)
			}
		}
	})
}

// TestMigrationsPostgresByOtherTools: the plain SQL may come first, and twice, and so
// may goose with the files; Up follows and Down takes it back.
func TestMigrationsPostgresByOtherTools(t *testing.T) {
	t.Parallel()
	s := postgres(t)
	for _, set := range pgmSets() {
		set.opts = append(set.opts, migrations.Postgres())
		db := pgDatabase(t, s)
		text, err := migrations.SQL(set.opts...)
		if err != nil {
			t.Fatal(err)
		}
		simple := pgmAgain(t, s, db, func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol })
		runSQL(t, simple, text, text)
		pgmWantColumns(t, db, set.table, set.columns)
		pgmWantTable(t, db, set.table, set.comment)
		migrateUp(t, db, set.opts...)
		pgmWantVersions(t, db, set.table)
		migrateDown(t, db, set.opts...)
		pgmWant(t, db)

		files, err := migrations.FS(set.opts...)
		if err != nil {
			t.Fatal(err)
		}
		p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(set.table+"_version"), goose.WithDisableGlobalRegistry(true))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		pgmWantColumns(t, db, set.table, set.columns)
		versions := listSQL(t, db, strings.Replace(pgmDefinition, "attnum > 0", "attnum > 0 AND relname LIKE '%version%'", 1))
		migrateUp(t, db, set.opts...)
		pgmWantVersions(t, db, set.table)
		migrateDown(t, db, set.opts...)
		pgmWant(t, db)
		migrateUp(t, db, set.opts...)
		wantList(t, db, "the version table", strings.Replace(pgmDefinition, "attnum > 0", "attnum > 0 AND relname LIKE '%version%'", 1), versions...)
		if _, err := p.DownTo(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		pgmWant(t, db, set.table+"_version")
		migrateDown(t, db, set.opts...)
	}
}

// TestMigrationsPostgresLeaveTheApplicationAlone: its own versions stay.
func TestMigrationsPostgresLeaveTheApplicationAlone(t *testing.T) {
	t.Parallel()
	db := pgDatabase(t, postgres(t))
	runSQL(t, db,
		"CREATE TABLE goose_db_version (id integer PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, version_id bigint NOT NULL, is_applied boolean NOT NULL, tstamp timestamp NOT NULL DEFAULT now())",
		"INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, true), (1, true), (20240101, true)")
	const rows = "SELECT concat_ws(' ', id, version_id, is_applied, tstamp) FROM goose_db_version ORDER BY id"
	before := listSQL(t, db, rows)
	pgmUp(t, db)
	pgmWantVersions(t, db, "shared_locks")
	pgmDown(t, db)
	wantList(t, db, "its versions", rows, before...)
	pgmWant(t, db, "goose_db_version")
}

// TestMigrationsPostgresBehindBouncer: in transaction mode, where the lock would be
// worth nothing, Up says what to do, and nothing is changed; what is up to date is.
func TestMigrationsPostgresBehindBouncer(t *testing.T) {
	t.Parallel()
	needed(t, testdb.PgBouncer)
	s := postgres(t)
	bouncer, err := testdb.StartBouncer(t.Context(), s, "transaction")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bouncer.Stop(); err != nil {
			t.Error(err)
		}
	})
	direct := pgDatabase(t, s)
	behind, err := testdb.OpenPostgres(bouncer.DSN, func(c *pgx.ConnConfig) {
		c.Database = listSQL(t, direct, "SELECT current_database()::text")[0]
		c.DefaultQueryExecMode = pgx.QueryExecModeExec
	})
	if err != nil {
		t.Fatal(err)
	}
	defer behind.Close() //nolint:errcheck // nothing depends on it
	for _, set := range pgmSets() {
		set.opts = append(set.opts, migrations.Postgres())
		err := migrations.Up(t.Context(), behind, set.opts...)
		refused(t, err, "use migrations.FS with goose, or the statements of migrations.SQL")
		if !errors.Is(err, sqllock.ErrUnsupported) {
			t.Errorf("got %v, want one that is ErrUnsupported", err)
		}
		pgmWant(t, direct)
		migrateUp(t, direct, set.opts...)
		migrateUp(t, behind, set.opts...)
		migrateDown(t, direct, set.opts...)
	}
}
