package integration

import (
	"strings"
	"sync"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/pressly/goose/v3"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// somebodysFences is a fence table that the migrations have not made.
const somebodysFences = "CREATE TABLE `lock_fences` (" +
	"`name` varchar(64) NOT NULL," +
	"`token` bigint NOT NULL," +
	"`seq` bigint NOT NULL," +
	"`commits` varbinary(600) NOT NULL," +
	"`session` bigint unsigned NOT NULL," +
	"`updated` bigint NOT NULL," +
	"PRIMARY KEY (`name`)" +
	") ENGINE=InnoDB COMMENT='of somebody else'"

// What both servers say of the columns, as in sevenColumns.
var fenceColumns = []string{
	"name varchar(64) NO - ascii",
	"token bigint NO - -",
	"seq bigint NO 0 -",
	"commits varbinary(512) NO '' -",
	"session bigint NO 0 -",
	"updated bigint NO 0 -",
}

// tableDefinition is all that a migration could change of a table.
const tableDefinition = "SELECT CONCAT_WS(' ', t.table_name, t.engine, t.table_comment, c.column_name, c.column_type, c.column_key, c.extra)" +
	" FROM information_schema.tables t JOIN information_schema.columns c USING (table_schema, table_name)" +
	" WHERE t.table_schema = DATABASE() ORDER BY t.table_name, c.ordinal_position"

// TestMigrationsFences: Up makes the table, once, and Down leaves nothing, under
// every name, and however the application talks to the server.
func TestMigrationsFences(t *testing.T) {
	t.Parallel()
	params := func(name, value string) func(*mysql.Config) {
		return func(c *mysql.Config) { c.Params = map[string]string{name: value} }
	}
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, test := range []struct {
			name, table string
			kind        testdb.Kind // "" for any
			change      func(*mysql.Config)
		}{
			{"default", "", "", func(*mysql.Config) {}},
			{"another table", "Billing$fences", "", func(*mysql.Config) {}},
			{"a number", "1e5", "", func(*mysql.Config) {}},
			{"the longest name", strings.Repeat("x", 56), "", func(*mysql.Config) {}},
			{"autocommit off", "", "", params("autocommit", "0")},
			{"ANSI", "", "", params("sql_mode", "'ANSI,NO_BACKSLASH_ESCAPES,TRADITIONAL'")},
			{"MyISAM by default", "", "", params("default_storage_engine", "MyISAM")},
			{"primary keys wanted", "", testdb.MySQL, params("sql_require_primary_key", "1")},
		} {
			t.Run(test.name, func(t *testing.T) {
				if test.kind != "" && test.kind != s.Kind {
					t.Skip("this server has no such setting")
				}
				table, opts := "lock_fences", []migrations.Option{migrations.Fences()}
				if test.table != "" {
					table, opts = test.table, append(opts, migrations.WithTable(test.table))
				}
				db, _ := migrationDB(t, s, test.change)
				db.SetMaxOpenConns(1)
				migrateDown(t, db, opts...)
				wantTables(t, db)
				for range 2 {
					migrateUp(t, db, opts...)
					wantTables(t, db, table, table+"_version")
					wantColumns(t, db, table, fenceColumns)
					wantTable(t, db, table, "InnoDB utf8mb4 PRIMARY(name)")
					wantVersions(t, db, table, "0", "1")
				}
				wantList(t, db, "collation", "SELECT collation_name FROM information_schema.columns"+
					" WHERE table_schema = DATABASE() AND table_name = '"+table+"' AND column_name = 'name'", "ascii_bin")
				wantList(t, db, "comment", "SELECT table_comment FROM information_schema.tables"+
					" WHERE table_schema = DATABASE() AND table_name = '"+table+"'", "go-sqllock: fences")
				runSQL(t, db, "INSERT INTO `"+table+"` (name, token) VALUES ('Job', 7), ('job', 8)")
				wantList(t, db, "rows", "SELECT CONCAT(name, token, seq, commits, session, updated) FROM `"+table+"` ORDER BY name", "Job7000", "job8000")
				migrateDown(t, db, opts...)
				wantTables(t, db)
			})
		}
		refused(t, migrations.Up(t.Context(), open(t, s), migrations.Fences()), "name the database of the fence table")
		refused(t, migrations.Down(t.Context(), open(t, s), migrations.Fences()), "name the database of the fence table")
	})
}

// TestMigrationsFencesBesideLocks: in one database, neither set minds the other.
func TestMigrationsFencesBesideLocks(t *testing.T) {
	t.Parallel()
	both := []string{"lock_fences", "lock_fences_version", "shared_locks", "shared_locks_version"}
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		locks, fences := []migrations.Option{}, []migrations.Option{migrations.Fences()}
		up := func(opts []migrations.Option) {
			t.Helper()
			migrateUp(t, db, opts...)
		}
		up(locks)
		wantTables(t, db, both[2:]...)
		up(fences)
		wantTables(t, db, both...)
		runSQL(t, db, "INSERT INTO lock_fences (name, token) VALUES ('invoices', 7)")
		phpRow(t, db, "invoices")

		migrateDown(t, db, locks...)
		wantTables(t, db, both[:2]...)
		wantList(t, db, "fences", "SELECT token FROM lock_fences", "7")
		wantVersions(t, db, "lock_fences", "0", "1")
		up(fences)
		up(locks)
		wantTables(t, db, both...)
		wantVersions(t, db, "shared_locks", "0", "1", "2")
		phpRow(t, db, "invoices")

		migrateDown(t, db, fences...)
		wantTables(t, db, both[2:]...)
		wantList(t, db, "locks", "SELECT name FROM shared_locks", "invoices")
		wantVersions(t, db, "shared_locks", "0", "1", "2")
		wantColumns(t, db, "shared_locks", sevenColumns)
		up(locks)
		up(fences)
		wantTables(t, db, both...)
	})
}

// TestMigrationsFencesMistaken: Fences forgotten, or given for the lock table,
// costs neither table anything.
func TestMigrationsFencesMistaken(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, engine := range engines {
			db, _ := migrationDB(t, s)
			migrateUp(t, db, migrations.WithEngine(engine))
			migrateUp(t, db, migrations.Fences())
			before := listSQL(t, db, tableDefinition)
			for _, test := range []struct {
				opts []migrations.Option
				want []string
			}{
				{[]migrations.Option{migrations.WithTable("lock_fences")}, []string{"lock_fences is one for fences", "not for locks", "give Fences()"}},
				{[]migrations.Option{migrations.Fences(), migrations.WithTable("shared_locks")}, []string{"shared_locks is one for locks", "not for fences", "give Fences()"}},
			} {
				refused(t, migrations.Up(t.Context(), db, test.opts...), test.want...)
				refused(t, migrations.Down(t.Context(), db, test.opts...), test.want...)
				wantList(t, db, "the tables", tableDefinition, before...)
			}
			wantVersions(t, db, "lock_fences", "0", "1")
			wantVersions(t, db, "shared_locks", "0", "1", "2")
		}
	})
}

// TestMigrationsFencesForeignTable: what is no fence table is refused and stays as
// it is; what is one is taken, and stays when the migrations go.
func TestMigrationsFencesForeignTable(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		refuses := func(create, want string) {
			t.Helper()
			runSQL(t, db, create)
			before := listSQL(t, db, tableDefinition)
			refused(t, migrations.Up(t.Context(), db, migrations.Fences()),
				"lock_fences is there", "no table for fences", "was not altered", want, "alter it, or name another one by WithTable")
			wantList(t, db, "the table", tableDefinition, before...)
			migrateDown(t, db, migrations.Fences())
			wantList(t, db, "the table after Down", tableDefinition, before...)
		}
		const key = "PRIMARY KEY (`name`)"
		for _, test := range []struct{ old, changed, want string }{
			{"ENGINE=InnoDB", "ENGINE=MyISAM", "the engine MyISAM, and fences need InnoDB"},
			{"`name` varchar(64)", "`key` varchar(64) NOT NULL DEFAULT '', `name` int", "a column name of type int"},
			{"varchar(64)", "binary(64)", "a column name of type binary"}, // pads with zeros
			{"varchar(64)", "varchar(63)", "a column name of 63 characters, and names have up to 64"},
			{"`token` bigint NOT NULL,", "", "no column token"},
			{"`token` bigint", "`token` int", "a column token of type int"},
			{"`token` bigint", "`token` varchar(20)", "a column token of type varchar"},
			{"`seq` bigint NOT NULL,", "", "no column seq"},
			{"`seq` bigint", "`seq` double", "a column seq of type double"},
			{"`commits` varbinary(600) NOT NULL,", "", "no column commits"},
			{"varbinary(600)", "varchar(600)", "a column commits of type varchar"},
			{"varbinary(600)", "varbinary(511)", "a column commits of 511 characters, and the ids of commits have up to 512"},
			{"`session` bigint unsigned NOT NULL,", "", "no column session"},
			{"`updated` bigint NOT NULL,", "", "no column updated"},
			{"`updated` bigint", "`updated` timestamp", "a column updated of type timestamp"},
			{key, "KEY (`name`)", "no primary key on the column name alone"},
			{key, "PRIMARY KEY (`name`, `token`)", "no primary key on the column name alone"},
			{key, "PRIMARY KEY (`token`, `name`)", "no primary key on the column name alone"},
			{key, "PRIMARY KEY (`token`), UNIQUE KEY (`name`)", "no primary key on the column name alone"},
			{"`seq` bigint NOT NULL", "`seq` bigint NOT NULL AUTO_INCREMENT, KEY (`seq`)", "a column seq with AUTO_INCREMENT"},
			{key, key + ", `id` int NOT NULL AUTO_INCREMENT, KEY (`id`)", "a column id with AUTO_INCREMENT"},
			{key, key + ", `extra` int NOT NULL", "a column extra without a default, which fences do not fill"},
		} {
			create := strings.Replace(somebodysFences, test.old, test.changed, 1)
			if create == somebodysFences {
				t.Fatalf("there is no %q to change", test.old)
			}
			refuses(create, test.want)
			runSQL(t, db, "DROP TABLE lock_fences")
		}
		runSQL(t, db, strings.ReplaceAll(somebodysFences, "lock_fences", "others"))
		refuses("CREATE VIEW lock_fences AS SELECT * FROM others", "no primary key") //nolint:unqueryvet // all of them
		runSQL(t, db, "DROP VIEW lock_fences", "DROP TABLE others")

		runSQL(t, db, strings.Replace(somebodysFences, key, key+", `note` varchar(9), `many` int NOT NULL DEFAULT 7, KEY (`session`)", 1),
			"INSERT INTO lock_fences (name, token, seq, commits, session, updated) VALUES ('invoices', 7, 0, '', 0, 0)")
		before := listSQL(t, db, tableDefinition)
		for range 2 {
			migrateUp(t, db, migrations.Fences())
		}
		wantVersions(t, db, "lock_fences", "0", "1")
		migrateDown(t, db, migrations.Fences())
		wantList(t, db, "the table after Down", tableDefinition, before...)
		wantList(t, db, "rows", "SELECT token FROM lock_fences", "7")
	})
}

// TestMigrationsFencesTamperedWith: Up tells that the table is not what the
// versions say, each time, and what it advises helps.
func TestMigrationsFencesTamperedWith(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		migrateUp(t, db, migrations.Fences())
		for _, test := range []struct{ alter, want string }{
			{"DROP TABLE lock_fences", "no column name"},
			{"ALTER TABLE lock_fences DROP COLUMN commits", "no column commits"},
			{"ALTER TABLE lock_fences ENGINE=MyISAM", "the engine MyISAM, and fences need InnoDB"},
			{"ALTER TABLE lock_fences DROP PRIMARY KEY", "no primary key"},
			{"ALTER TABLE lock_fences ADD COLUMN extra int NOT NULL", "a column extra without a default"},
		} {
			runSQL(t, db, test.alter)
			for range 2 {
				refused(t, migrations.Up(t.Context(), db, migrations.Fences()),
					"lock_fences has "+test.want, "dropped or altered since", "drop lock_fences_version, and call Up again")
			}
			runSQL(t, db, "DROP TABLE lock_fences_version", "DROP TABLE IF EXISTS lock_fences")
			migrateUp(t, db, migrations.Fences())
			wantColumns(t, db, "lock_fences", fenceColumns)
		}
		runSQL(t, db, "DROP TABLE lock_fences")
		migrateDown(t, db, migrations.Fences())
		wantTables(t, db)
	})
}

// TestMigrationsFencesAfterCrash: whatever statement was the last, Up goes on.
func TestMigrationsFencesAfterCrash(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		for _, undo := range []string{
			"DELETE FROM lock_fences_version",
			"DELETE FROM lock_fences_version WHERE version_id = 1",
			"DROP TABLE lock_fences_version",
		} {
			migrateUp(t, db, migrations.Fences())
			runSQL(t, db, "REPLACE INTO lock_fences (name, token) VALUES ('invoices', 7)", undo)
			migrateUp(t, db, migrations.Fences())
			wantList(t, db, "rows", "SELECT token FROM lock_fences", "7")
			wantVersions(t, db, "lock_fences", "0", "1")
		}
	})
}

// TestMigrationsFencesAtOnce: eight, each with a pool of its own, wait for one
// lock, which is not that of the lock table.
func TestMigrationsFencesAtOnce(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, schema := migrationDB(t, s)
		key, err := sqllock.Key("go-sqllock", "migrations "+schema+".lock_fences")
		if err != nil {
			t.Fatal(err)
		}
		l, err := sqllock.New(mysqlnamed.New()).TryLock(t.Context(), conn(t, open(t, s)), key)
		if err != nil {
			t.Fatal(err)
		}
		const many = 8
		var all sync.WaitGroup
		for range many {
			pool := open(t, s, func(c *mysql.Config) { c.DBName = schema })
			all.Go(func() {
				if err := migrations.Up(t.Context(), pool, migrations.Fences()); err != nil {
					t.Error(err)
				}
			})
		}
		awaited(t, "all to wait for the lock", func() bool {
			n, err := mysqlWaiters(t.Context(), db, key)
			if err != nil {
				t.Fatal(err)
			}
			return n == many
		})
		wantTables(t, db)
		migrateUp(t, db) // the lock table does not wait
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		wantTables(t, db, "lock_fences", "lock_fences_version", "shared_locks", "shared_locks_version")
		wantColumns(t, db, "lock_fences", fenceColumns)
		wantVersions(t, db, "lock_fences", "0", "1")
	})
}

// TestMigrationsFencesByOtherTools: the plain SQL may come first, and twice, and
// so may goose with the files; Up follows and Down takes it back.
func TestMigrationsFencesByOtherTools(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s) // one statement at a time: SQL has but one
		text, err := migrations.SQL(migrations.Fences())
		if err != nil {
			t.Fatal(err)
		}
		runSQL(t, db, text, text)
		wantTables(t, db, "lock_fences")
		wantColumns(t, db, "lock_fences", fenceColumns)
		runSQL(t, db, "INSERT INTO lock_fences (name, token) VALUES ('invoices', 7)")
		migrateUp(t, db, migrations.Fences())
		wantList(t, db, "rows", "SELECT token FROM lock_fences", "7")
		wantVersions(t, db, "lock_fences", "0", "1")
		migrateDown(t, db, migrations.Fences())
		wantTables(t, db)

		files, err := migrations.FS(migrations.Fences())
		if err != nil {
			t.Fatal(err)
		}
		p, err := goose.NewProvider(goose.DialectMySQL, db, files, goose.WithTableName("lock_fences_version"), goose.WithDisableGlobalRegistry(true))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantColumns(t, db, "lock_fences", fenceColumns)
		migrateUp(t, db, migrations.Fences())
		wantVersions(t, db, "lock_fences", "0", "1")
		migrateDown(t, db, migrations.Fences())
		wantTables(t, db)
	})
}
