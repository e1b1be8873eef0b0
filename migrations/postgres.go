package migrations

import (
	"strings"

	"github.com/pressly/goose/v3/database"

	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
)

// postgresDialect is that of PostgreSQL. The files have names between "$$", and
// pg_catalog is searched before every other schema.
func postgresDialect() *dialect {
	return &dialect{
		goose:     database.DialectPostgres,
		other:     "this is no PostgreSQL: on MySQL and MariaDB, leave Postgres() out of all calls",
		backend:   func() sqllock.Backend { return pgadvisory.New() },
		locks:     postgresLocks(),
		fences:    postgresFences(),
		quote:     `"`,
		limit:     63,
		reserved:  func(name string) bool { return strings.HasPrefix(name, "pg_") || strings.Contains(name, "$$") },
		look:      postgresLook,
		schema:    "SELECT quote_ident(current_schema())",
		nowhere:   "there is no schema for the %s table: search_path has to name one that exists, and that this role may use",
		elsewhere: "the table is in the current schema: have search_path begin with that one",
		searched:  true,
	}
}

// postgresLocks are the migrations of the lock table.
func postgresLocks() *set {
	number := []string{"bigint"}
	return &set{
		table:    "shared_locks",
		folder:   "postgres",
		comment:  "go-sqllock: locks",
		row:      "lock",
		form:     "the form of",
		engine:   plainTable,
		key:      "unique",
		again:    true,
		sequence: true,
		columns: []need{
			{name: "name", types: postgresText(), length: nameLength, holds: "names"},
			{name: "connection_id", types: number},
			{name: "created", types: number},
			{name: "ttl", types: number},
			{name: "lock_acquired", types: []string{"smallint", "integer", "bigint"}},
			{name: "token", types: number},
			{name: "holder", types: postgresText(), length: 255, holds: "descriptions of processes"},
		},
	}
}

// postgresFences are the migrations of the fence table.
func postgresFences() *set {
	number := []string{"bigint"}
	return &set{
		table:   "lock_fences",
		folder:  "postgres/fences",
		comment: "go-sqllock: fences",
		row:     "fence",
		form:    "the form of",
		engine:  plainTable,
		key:     "unique",
		again:   true,
		columns: []need{
			{name: "name", types: postgresText(), length: nameLength, holds: "names"},
			{name: "token", types: number},
			{name: "seq", types: number},
			{name: "commits", types: []string{"bytea"}},
			{name: "session", types: number},
			{name: "updated", types: number},
		},
	}
}

// postgresText pads nothing with spaces.
func postgresText() []string { return []string{"character varying", "text"} }

// plainTable is logged, and one table: no key of a partitioned one has to be on the
// name alone.
const plainTable = "a plain table"

// postgresLook asks for what definition has, a row for each column. It reads
// pg_catalog, which tells everybody everything. A key that is partial or deferrable
// does not count: ON CONFLICT (name) takes neither. Where two names are equal that are
// not the same, one lock would take the row of another.
func postgresLook(table string) string {
	return `SELECT attname::text,
  format_type(atttypid, NULL) || CASE WHEN attgenerated <> '' OR attidentity = 'a' THEN ' GENERATED ALWAYS'
    WHEN EXISTS (SELECT FROM pg_collation l WHERE l.oid = attcollation AND NOT collisdeterministic) THEN ' of a nondeterministic collation' ELSE '' END,
  CASE WHEN atttypid = 'varchar'::regtype AND atttypmod > 4 THEN atttypmod - 4 ELSE 65535 END,
  CASE WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisunique AND indisvalid AND indimmediate
    AND indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = attnum) THEN 'UNI' ELSE '' END,
  false,
  attnotnull AND NOT atthasdef AND attidentity = '',
  CASE c.relkind WHEN 'r' THEN CASE c.relpersistence WHEN 'p' THEN '` + plainTable + `' WHEN 'u' THEN 'an unlogged table' ELSE 'a temporary table' END
    WHEN 'p' THEN 'a partitioned table' WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view' WHEN 'f' THEN 'a foreign table'
    WHEN 'S' THEN 'a sequence' WHEN 'c' THEN 'a composite type' ELSE 'an index' END,
  CASE WHEN s.oid IS NULL THEN '` + missing + `' WHEN s.relpersistence = 'p' AND EXISTS (SELECT FROM pg_sequence WHERE seqrelid = s.oid
      AND seqtypid = 'bigint'::regtype AND seqincrement > 0 AND seqcache = 1 AND NOT seqcycle)
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = s.oid AND deptype IN ('a', 'i')) THEN '' ELSE '` + unfit + `' END,
  COALESCE(obj_description(c.oid, 'pg_class'), '')
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = '` + table + `'
  JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_class s ON s.relnamespace = n.oid AND s.relname = '` + table + tokenSuffix + `'
WHERE nspname = current_schema()`
}
