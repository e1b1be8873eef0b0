package migrations

import (
	"github.com/pressly/goose/v3/database"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
)

// mysqlDialect is that of MySQL and MariaDB.
func mysqlDialect() *dialect {
	return &dialect{
		goose:     database.DialectMySQL,
		other:     "this is no MySQL or MariaDB: on PostgreSQL, give Postgres() in all calls",
		backend:   func() sqllock.Backend { return mysqlnamed.New() },
		locks:     mysqlLocks(),
		fences:    mysqlFences(),
		quote:     "`",
		limit:     64,
		reserved:  func(string) bool { return false },
		look:      mysqlLook,
		schema:    "SELECT DATABASE()",
		nowhere:   "the DSN has to name the database of the %s table",
		elsewhere: "the table is in the database of the DSN: connect to that one",
		renew:     "COMMIT", // with autocommit off it may have a snapshot
	}
}

// mysqlLocks are the migrations of the lock table. PHP may have made it, with types
// that are not quite these.
func mysqlLocks() *set {
	text := []string{"char", "varchar", "binary", "varbinary"}
	number := []string{"tinyint", "smallint", "mediumint", "int", "bigint"}
	return &set{
		table:   "shared_locks",
		folder:  "mysql",
		comment: "go-sqllock: locks",
		row:     "lock",
		key:     "unique",
		columns: []need{
			{name: "name", types: text, length: nameLength, holds: "names"},
			{name: "connection_id", types: number},
			{name: "created", types: number},
			{name: "ttl", types: number},
			{name: "lock_acquired", types: number},
		},
		added: []need{
			{name: "token", types: number},
			{name: "holder", types: text},
		},
	}
}

// mysqlFences are the migrations of the fence table. Where its key or its
// transactions are missing, a fence admits everybody without a word, so Up looks
// again.
func mysqlFences() *set {
	number := []string{"bigint"}
	return &set{
		table:   "lock_fences",
		folder:  "mysql/fences",
		comment: "go-sqllock: fences",
		row:     "fence",
		form:    "the engine",
		engine:  "InnoDB",
		key:     "primary",
		again:   true,
		columns: []need{
			{name: "name", types: []string{"char", "varchar", "varbinary"}, length: nameLength, holds: "names"},
			{name: "token", types: number},
			{name: "seq", types: number},
			{name: "commits", types: []string{"varbinary"}, length: 64 * 8, holds: "the ids of commits"},
			{name: "session", types: number},
			{name: "updated", types: number},
		},
	}
}

// mysqlLook asks for what definition has, a row for each column.
func mysqlLook(table string) string {
	return "SELECT column_name, data_type, COALESCE(LEAST(character_maximum_length,65535),0), column_key, " +
		"extra LIKE '%auto_increment%', is_nullable='NO' AND column_default IS NULL AND extra='', COALESCE(engine,''), '', table_comment " +
		"FROM information_schema.columns c, information_schema.tables t " +
		"WHERE c.table_schema = DATABASE() AND c.table_name = '" + table + "' AND t.table_schema = DATABASE() AND t.table_name = '" + table + "'"
}
