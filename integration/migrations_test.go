package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/pressly/goose/v3"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// The table as the README of its-mieger/mysql-shared-locks has it, and the
// INSERT of its registerLock.
const (
	documentedTable = "CREATE TABLE `shared_locks` (" +
		"`name` varchar(64) NOT NULL," +
		"`connection_id` bigint(20) NOT NULL," +
		"`created` bigint(20) NOT NULL," +
		"`ttl` bigint(20) NOT NULL," +
		"`lock_acquired` tinyint(1) NOT NULL," +
		"UNIQUE KEY `shared_locks_ix1` (`name`)" +
		") ENGINE=MyISAM DEFAULT CHARSET=latin1"
	documentedInsert = "INSERT INTO `shared_locks` (`name`, `created`, `ttl`, `connection_id`, `lock_acquired`) " +
		"VALUES (?, unix_timestamp(), 10, connection_id(), false)"
)

// What both servers say of the columns: name, type, nullable, default, charset.
// MariaDB shows display widths and quotes defaults; that is taken off.
var (
	fiveColumns = []string{
		"name varchar(64) NO - latin1",
		"connection_id bigint NO - -",
		"created bigint NO - -",
		"ttl bigint NO - -",
		"lock_acquired tinyint(1) NO - -",
	}
	sevenColumns = append(
		slices.Clone(fiveColumns),
		"token bigint NO 0 -",
		"holder varchar(255) NO '' utf8mb4",
	)
)

// migrationDB opens a pool on a schema of the test's own, which is dropped in
// the end.
func migrationDB(t *testing.T, s *testdb.Server, change ...func(*mysql.Config)) (db *sql.DB, schema string) {
	t.Helper()
	schema = "migrations_" + strings.ToLower(rand.Text()[:12])
	admin := open(t, s)
	runSQL(t, admin, "CREATE DATABASE "+schema+" CHARACTER SET utf8mb4")
	ctx := context.WithoutCancel(t.Context())
	t.Cleanup(func() {
		if _, err := admin.ExecContext(ctx, "DROP DATABASE "+schema); err != nil {
			t.Error(err)
		}
	})
	return open(t, s, append(change, func(c *mysql.Config) { c.DBName = schema })...), schema
}

func runSQL(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// listSQL returns the first column of what a query answers.
func listSQL(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var value string
		if err := rows.Scan(&value); err != nil {
			t.Fatal(err)
		}
		found = append(found, value)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return found
}

func wantList(t *testing.T, db *sql.DB, what, query string, want ...string) {
	t.Helper()
	if got := listSQL(t, db, query); !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func wantTables(t *testing.T, db *sql.DB, want ...string) {
	t.Helper()
	wantList(t, db, "tables", "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY 1", want...)
}

func wantVersions(t *testing.T, db *sql.DB, table string, want ...string) {
	t.Helper()
	wantList(t, db, "versions", "SELECT version_id FROM `"+table+"_version` ORDER BY id", want...)
}

func wantColumns(t *testing.T, db *sql.DB, table string, want []string) {
	t.Helper()
	query := "SELECT CONCAT_WS(' ', column_name, REPLACE(column_type, 'bigint(20)', 'bigint'), is_nullable," +
		" CASE WHEN column_default IS NULL THEN '-' WHEN column_default = '' THEN '''''' ELSE column_default END," +
		" COALESCE(character_set_name, '-'))" +
		" FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = '" + table + "' ORDER BY ordinal_position"
	wantList(t, db, "columns of "+table, query, want...)
}

// wantTable compares what else there is to a table: "engine charset unique-keys".
func wantTable(t *testing.T, db *sql.DB, table, want string) {
	t.Helper()
	wantList(t, db, table, "SELECT CONCAT_WS(' ', engine, SUBSTRING_INDEX(table_collation, '_', 1),"+
		" (SELECT GROUP_CONCAT(CONCAT(index_name, '(', column_name, ')', IF(non_unique, '?', ''))) FROM information_schema.statistics s"+
		"  WHERE s.table_schema = DATABASE() AND s.table_name = '"+table+"'))"+
		" FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '"+table+"'", want)
}

func migrateUp(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	if err := migrations.Up(t.Context(), db, opts...); err != nil {
		t.Fatal(err)
	}
}

func migrateDown(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	if err := migrations.Down(t.Context(), db, opts...); err != nil {
		t.Fatal(err)
	}
}

// refused wants an error of the operation that has all the texts, and says
// everything on one line.
func refused(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want one with %q", texts)
	}
	for _, text := range append(texts, "migrations: ") {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error %q should have %q", err, text)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has several lines: %q", err)
	}
}

// phpRow inserts a row as the PHP package does.
func phpRow(t *testing.T, db *sql.DB, name string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), documentedInsert, name); err != nil {
		t.Errorf("PHP's INSERT: %v", err)
	}
}

// TestMigrationsFromNothing: Up makes the documented table, once; Down leaves
// nothing.
func TestMigrationsFromNothing(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		migrateDown(t, db)
		wantTables(t, db)
		for range 2 {
			migrateUp(t, db)
			wantTables(t, db, "shared_locks", "shared_locks_version")
			wantColumns(t, db, "shared_locks", sevenColumns)
			wantTable(t, db, "shared_locks", "MyISAM latin1 shared_locks_ix1(name)")
			wantVersions(t, db, "shared_locks", "0", "1", "2")
		}
		phpRow(t, db, "invoices")
		wantList(t, db, "PHP's row", "SELECT CONCAT(token, holder) FROM shared_locks", "0")
		migrateDown(t, db)
		wantTables(t, db)
		migrateUp(t, db)
		wantColumns(t, db, "shared_locks", sevenColumns)
	})
}

// TestMigrationsAdoptPHP: a table of the PHP package gets two columns, and loses
// them again, and keeps its rows.
func TestMigrationsAdoptPHP(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s, func(c *mysql.Config) {
			c.Params = map[string]string{"sql_mode": "'STRICT_ALL_TABLES,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO'"}
		})
		const rows = "SELECT CONCAT_WS(' ', name, connection_id > 0, created > 0, ttl, lock_acquired) FROM shared_locks ORDER BY name"
		runSQL(t, db, documentedTable)
		phpRow(t, db, "invoices")
		phpRow(t, db, "reports")
		migrateUp(t, db)
		wantColumns(t, db, "shared_locks", sevenColumns)
		wantTable(t, db, "shared_locks", "MyISAM latin1 shared_locks_ix1(name)")
		wantList(t, db, "rows after Up", rows, "invoices 1 1 10 0", "reports 1 1 10 0")
		phpRow(t, db, "salaries")
		migrateDown(t, db)
		wantTables(t, db, "shared_locks")
		wantColumns(t, db, "shared_locks", fiveColumns)
		wantTable(t, db, "shared_locks", "MyISAM latin1 shared_locks_ix1(name)")
		wantList(t, db, "rows after Down", rows, "invoices 1 1 10 0", "reports 1 1 10 0", "salaries 1 1 10 0")
		phpRow(t, db, "taxes")
	})
}

// TestMigrationsOptions: name and engine of a new table, and of one that is
// adopted.
func TestMigrationsOptions(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		longest := strings.Repeat("x", 56)
		for _, name := range []string{"Billing$locks", "1e5", "2024", "$x", "select", longest} {
			table := migrations.WithTable(name)
			migrateUp(t, db, table)
			wantTables(t, db, name, name+"_version")
			wantColumns(t, db, name, sevenColumns)
			wantVersions(t, db, name, "0", "1", "2")
			migrateUp(t, db, table)
			migrateDown(t, db, table)
			wantTables(t, db)
		}
		migrateUp(t, db, migrations.WithTable("rows"), migrations.WithEngine("InnoDB"))
		wantTable(t, db, "rows", "InnoDB latin1 PRIMARY(name)")
		wantColumns(t, db, "rows", sevenColumns)
		migrateUp(t, db, migrations.WithTable("rows"), migrations.WithEngine("MyISAM")) // up to date
		wantTable(t, db, "rows", "InnoDB latin1 PRIMARY(name)")
		migrateDown(t, db, migrations.WithTable("rows"))

		for _, test := range []struct{ engine, opts, want string }{
			{"MyISAM", "InnoDB", "InnoDB"},
			{"InnoDB", "MyISAM", "MyISAM"},
			{"InnoDB", "", "InnoDB"},
		} {
			runSQL(t, db, strings.Replace(documentedTable, "MyISAM", test.engine, 1))
			phpRow(t, db, "invoices")
			var opts []migrations.Option
			if test.opts != "" {
				opts = append(opts, migrations.WithEngine(test.opts))
			}
			migrateUp(t, db, opts...)
			wantTable(t, db, "shared_locks", test.want+" latin1 shared_locks_ix1(name)")
			migrateDown(t, db, opts...)
			wantTable(t, db, "shared_locks", test.want+" latin1 shared_locks_ix1(name)")
			wantList(t, db, "rows", "SELECT name FROM shared_locks", "invoices")
			runSQL(t, db, "DROP TABLE shared_locks")
		}
	})
}

// TestMigrationsDSN: nothing depends on how the application talks to the server.
func TestMigrationsDSN(t *testing.T) {
	t.Parallel()
	mode := func(mode string) func(*mysql.Config) {
		return func(c *mysql.Config) { c.Params = map[string]string{"sql_mode": "'" + mode + "'"} }
	}
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, dsn := range []struct {
			name   string
			change func(*mysql.Config)
		}{
			{"default", func(*mysql.Config) {}},
			{"parseTime", func(c *mysql.Config) { c.ParseTime = true }},
			{"multiStatements", func(c *mysql.Config) { c.MultiStatements = true }},
			{"interpolateParams", func(c *mysql.Config) { c.InterpolateParams = true }},
			{"clientFoundRows", func(c *mysql.Config) { c.ClientFoundRows = true }},
			{"autocommit off", func(c *mysql.Config) { c.Params = map[string]string{"autocommit": "0"} }},
			{"latin1", func(c *mysql.Config) { c.Collation = "latin1_swedish_ci" }},
			{"gbk", func(c *mysql.Config) { c.Collation = "gbk_chinese_ci" }},
			{"ANSI", mode("ANSI,STRICT_TRANS_TABLES")},
			{"ANSI_QUOTES", mode("ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,STRICT_ALL_TABLES")},
			{"TRADITIONAL", mode("TRADITIONAL,NO_AUTO_VALUE_ON_ZERO")},
			{"no mode", mode("")},
		} {
			t.Run(dsn.name, func(t *testing.T) {
				db, _ := migrationDB(t, s, dsn.change)
				db.SetMaxOpenConns(1)
				for range 2 {
					migrateUp(t, db)
				}
				wantColumns(t, db, "shared_locks", sevenColumns)
				wantVersions(t, db, "shared_locks", "0", "1", "2")
				phpRow(t, db, "invoices")
				migrateDown(t, db)
				wantTables(t, db)
				if open := db.Stats().OpenConnections; open != 1 {
					t.Errorf("the pool has %d connections", open)
				}
			})
		}
	})
}

const migrationChild = "SQLLOCK_MIGRATION_DSN"

// TestMigrationProcess is what each process of TestMigrationsAtOnce does.
func TestMigrationProcess(t *testing.T) {
	dsn := os.Getenv(migrationChild)
	if dsn == "" {
		t.Skip("is run by TestMigrationsAtOnce, in processes of its own")
	}
	db, err := testdb.OpenDB(dsn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	migrateUp(t, db)
}

// holdMigrations takes the lock of the migrations as another process would.
func holdMigrations(t *testing.T, s *testdb.Server, schema string) *sqllock.Lock {
	t.Helper()
	locker := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("go-sqllock"))
	l, err := locker.TryLock(t.Context(), conn(t, open(t, s)), "migrations "+schema+".shared_locks")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// awaited polls until something is so.
func awaited(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestMigrationsAtOnce: twenty processes that start together, from nothing and
// after a crash on PHP's table.
func TestMigrationsAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		for _, autocommit := range []string{"1", "0"} { // with 0, sessions have snapshots from before the lock
			db, schema := migrationDB(t, s)
			if autocommit == "0" {
				runSQL(t, db, documentedTable)
				migrateUp(t, db)
				runSQL(t, db, "DELETE FROM shared_locks_version WHERE version_id > 0")
			}
			cfg, err := mysql.ParseDSN(s.DSN)
			if err != nil {
				t.Fatal(err)
			}
			cfg.DBName = schema
			cfg.Params = map[string]string{"autocommit": autocommit}
			l := holdMigrations(t, s, schema)
			const processes = 20
			var all sync.WaitGroup
			for i := range processes {
				all.Go(func() {
					child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMigrationProcess$", "-test.v", "-test.timeout=100s")
					child.Env = append(os.Environ(), migrationChild+"="+cfg.FormatDSN())
					out, err := child.CombinedOutput()
					if err != nil || !bytes.Contains(out, []byte("--- PASS: TestMigrationProcess")) {
						t.Errorf("process %d: %v\n%s", i, err, out)
					}
				})
			}
			awaited(t, "all processes to be connected", func() bool {
				n := listSQL(t, db, "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
				return n[0] == fmt.Sprint(processes)
			})
			if err := l.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			all.Wait()
			wantColumns(t, db, "shared_locks", sevenColumns)
			wantVersions(t, db, "shared_locks", "0", "1", "2")
		}
	})
}

// TestMigrationsWait: while another process holds the lock nothing is written,
// and a wait that is given up leaves the pool usable.
func TestMigrationsWait(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, schema := migrationDB(t, s)
		db.SetMaxOpenConns(1)
		before := listSQL(t, db, "SELECT CONNECTION_ID()")
		l := holdMigrations(t, s, schema)
		for _, way := range []func(context.Context, *sql.DB, ...migrations.Option) error{migrations.Up, migrations.Down} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			err := way(ctx, db)
			cancel()
			refused(t, err)
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, sqllock.ErrBusy) {
				t.Errorf("at the deadline: %v", err)
			}
			ctx, cancel = context.WithCancel(t.Context())
			stop := time.AfterFunc(100*time.Millisecond, cancel)
			begun := time.Now()
			if err := way(ctx, db); !errors.Is(err, context.Canceled) {
				t.Errorf("when cancelled: %v", err)
			}
			if took := time.Since(begun); took > 3*time.Second {
				t.Errorf("a cancelled wait took %v", took)
			}
			stop.Stop()
		}
		wantTables(t, db)
		if after := listSQL(t, db, "SELECT CONNECTION_ID()"); !slices.Equal(before, after) {
			t.Errorf("the session was given up: %v, before %v", after, before)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		migrateUp(t, db)
		holdMigrations(t, s, schema) // Up on a current table needs no lock
		current, writes := counted(t, s, func(c *mysql.Config) { c.DBName = schema })
		migrateUp(t, current)
		connected := writes.Load()
		migrateUp(t, current)
		if sent := writes.Load() - connected; sent != 2 {
			t.Errorf("Up on a current table sent %d packets, want 2", sent)
		}
	})
}

// TestMigrationsGivenUp: ctx ends while the server waits for a transaction that
// has used the table, so the ALTER TABLE may run after Up has returned.
func TestMigrationsGivenUp(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		runSQL(t, db, documentedTable)
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck // it has been
		if _, err := tx.ExecContext(t.Context(), "SELECT name FROM shared_locks"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		begun := time.Now()
		err = migrations.Up(ctx, db)
		refused(t, err)
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took > 3*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		migrateUp(t, db)
		wantColumns(t, db, "shared_locks", sevenColumns)
		wantVersions(t, db, "shared_locks", "0", "1", "2")
	})
}

// TestMigrationsAfterCrash: whatever statement was the last, Up and Down go on.
func TestMigrationsAfterCrash(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		for _, undo := range []string{
			"DELETE FROM shared_locks_version",
			"DELETE FROM shared_locks_version WHERE version_id > 0",
			"DELETE FROM shared_locks_version WHERE version_id = 2",
			"DROP TABLE shared_locks_version",
		} {
			migrateUp(t, db)
			runSQL(t, db, undo)
			migrateUp(t, db)
			wantColumns(t, db, "shared_locks", sevenColumns)
			wantVersions(t, db, "shared_locks", "0", "1", "2")
		}
		for _, undo := range []string{
			"ALTER TABLE shared_locks DROP COLUMN token, DROP COLUMN holder",
			"DROP TABLE shared_locks",
		} {
			migrateUp(t, db)
			runSQL(t, db, undo)
			migrateDown(t, db)
			wantTables(t, db)
		}
	})
}

// TestMigrationsWithGoose: the files serve goose's own Provider, whose version
// table is the same as ours, and the plain SQL may come first, and twice.
func TestMigrationsWithGoose(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s, func(c *mysql.Config) { c.MultiStatements = true })
		files, err := migrations.FS()
		if err != nil {
			t.Fatal(err)
		}
		p, err := goose.NewProvider(goose.DialectMySQL, db, files, goose.WithTableName("shared_locks_version"), goose.WithDisableGlobalRegistry(true))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantColumns(t, db, "shared_locks", sevenColumns)
		definition := listSQL(t, db, "SELECT GROUP_CONCAT(CONCAT(column_name, column_type, is_nullable, extra) ORDER BY ordinal_position) "+
			"FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'shared_locks_version'")
		migrateUp(t, db)
		wantVersions(t, db, "shared_locks", "0", "1", "2")
		migrateDown(t, db)
		wantTables(t, db)
		migrateUp(t, db)
		wantList(t, db, "the version table", "SELECT GROUP_CONCAT(CONCAT(column_name, column_type, is_nullable, extra) ORDER BY ordinal_position) "+
			"FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'shared_locks_version'", definition...)
		if _, err := p.DownTo(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		wantTables(t, db, "shared_locks_version")
		migrateDown(t, db)

		text, err := migrations.SQL()
		if err != nil {
			t.Fatal(err)
		}
		runSQL(t, db, text, text)
		wantColumns(t, db, "shared_locks", sevenColumns)
		migrateUp(t, db)
		wantVersions(t, db, "shared_locks", "0", "1", "2")
		migrateDown(t, db)
		wantTables(t, db)
	})
}

// TestMigrationsLeaveTheApplicationAlone: its own versions stay.
func TestMigrationsLeaveTheApplicationAlone(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		runSQL(t, db,
			"CREATE TABLE goose_db_version (id bigint unsigned NOT NULL AUTO_INCREMENT PRIMARY KEY, version_id bigint NOT NULL, is_applied boolean NOT NULL, tstamp timestamp NULL DEFAULT now())",
			"INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1), (1, 1), (20240101, 1)")
		const rows = "SELECT CONCAT_WS(' ', id, version_id, is_applied, tstamp) FROM goose_db_version ORDER BY id"
		before := listSQL(t, db, rows)
		migrateUp(t, db)
		wantList(t, db, "after Up", rows, before...)
		wantVersions(t, db, "shared_locks", "0", "1", "2")
		migrateDown(t, db)
		wantList(t, db, "after Down", rows, before...)
		wantTables(t, db, "goose_db_version")
	})
}

// TestMigrationsForeignTable: what is not a lock table is refused and stays as
// it is, and so is one that was tampered with.
func TestMigrationsForeignTable(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, _ := migrationDB(t, s)
		for _, test := range []struct{ create, want string }{
			{strings.Replace(documentedTable, "`ttl` bigint(20) NOT NULL,", "", 1), "no column ttl"},
			{strings.Replace(documentedTable, "`created` bigint(20)", "`created` datetime", 1), "a column created of type datetime"},
			{strings.Replace(documentedTable, "`name` varchar(64)", "`name` int", 1), "a column name of type int"},
			{strings.Replace(documentedTable, "UNIQUE KEY `shared_locks_ix1` (`name`)", "KEY (`name`)", 1), "no unique key"},
			{strings.Replace(documentedTable, "UNIQUE KEY `shared_locks_ix1` (`name`)", "UNIQUE KEY (`name`, `created`)", 1), "no unique key"},
			{strings.Replace(documentedTable, "UNIQUE KEY `shared_locks_ix1` (`name`)", "PRIMARY KEY (`name`, `created`)", 1), "no unique key"},
			{strings.Replace(documentedTable, "UNIQUE", "`token` varchar(9), UNIQUE", 1), "a column token of type varchar"},
			{strings.Replace(documentedTable, "UNIQUE", "`token` int, UNIQUE", 1), "no column holder"},
			{strings.Replace(documentedTable, "UNIQUE KEY", "`id` int NOT NULL AUTO_INCREMENT PRIMARY KEY, UNIQUE KEY", 1), "a column id with AUTO_INCREMENT"},
			{strings.Replace(documentedTable, "UNIQUE", "`extra` int NOT NULL, UNIQUE", 1), "a column extra without a default"},
			{strings.Replace(documentedTable, "varchar(64)", "varchar(63)", 1), "a column name of 63 characters"},
		} {
			runSQL(t, db, test.create)
			const definition = "SELECT CONCAT_WS(' ', column_name, column_type, column_key) FROM information_schema.columns WHERE table_schema = DATABASE() ORDER BY ordinal_position"
			before := listSQL(t, db, definition)
			refused(t, migrations.Up(t.Context(), db), "shared_locks", "was not altered", test.want, "WithTable")
			wantTables(t, db, "shared_locks")
			wantList(t, db, "the table", definition, before...)
			migrateDown(t, db)
			wantTables(t, db, "shared_locks")
			runSQL(t, db, "DROP TABLE shared_locks")
		}
		runSQL(t, db, strings.Replace(documentedTable, "UNIQUE", "`note` varchar(9), `many` int NOT NULL DEFAULT 7, UNIQUE", 1))
		migrateUp(t, db) // columns that an INSERT can leave out do no harm
		runSQL(t, db, "ALTER TABLE shared_locks DROP COLUMN holder")
		refused(t, migrations.Up(t.Context(), db), "no column holder", "drop shared_locks_version")
		runSQL(t, db, "DROP TABLE shared_locks")
		refused(t, migrations.Up(t.Context(), db), "no column name", "drop shared_locks_version")
		runSQL(t, db, "DROP TABLE shared_locks_version")
		migrateUp(t, db)
	})
}

// TestMigrationsPrivileges: the error says what to grant, at once, and that is
// enough.
func TestMigrationsPrivileges(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db, schema := migrationDB(t, s)
		user := "u" + schema[len(schema)-12:]
		runSQL(t, db, "CREATE USER "+user+" IDENTIFIED BY 'secret'")
		ctx := context.WithoutCancel(t.Context())
		t.Cleanup(func() { _, _ = db.ExecContext(ctx, "DROP USER "+user) })
		as := func(database string) *sql.DB {
			return open(t, s, func(c *mysql.Config) { c.User, c.Passwd, c.DBName = user, "secret", database })
		}
		try := func(want uint16, texts ...string) {
			t.Helper()
			begun := time.Now()
			err := migrations.Up(t.Context(), as(schema))
			refused(t, err, texts...)
			var answer *mysql.MySQLError
			if !errors.As(err, &answer) || answer.Number != want {
				t.Errorf("got %v, want error %d", err, want)
			}
			if took := time.Since(begun); took > 900*time.Millisecond {
				t.Errorf("it took %v: was it tried again?", took)
			}
		}
		try(1044, "GRANT SELECT, INSERT, DELETE, CREATE, ALTER, DROP")
		runSQL(t, db, "GRANT SELECT ON "+schema+".* TO "+user) //nolint:unqueryvet // no query
		try(1142, "GRANT SELECT", "migrations.SQL")
		wantTables(t, db)
		runSQL(t, db, documentedTable, "GRANT CREATE, INSERT, DELETE ON "+schema+".* TO "+user)
		try(1142, "GRANT SELECT", "migrations.SQL")
		wantColumns(t, db, "shared_locks", fiveColumns)
		runSQL(t, db, "GRANT ALTER, DROP ON "+schema+".* TO "+user)
		migrateUp(t, as(schema))
		migrateDown(t, as(schema))
		runSQL(t, db, "DROP TABLE shared_locks")
		migrateUp(t, as(schema))
		migrateDown(t, as(schema))
		refused(t, migrations.Up(t.Context(), as("")), "name the database")
		refused(t, migrations.Down(t.Context(), as("")), "name the database")
	})
}

// TestMigrationsPrimaryKey: a server that wants primary keys, or has no MyISAM.
func TestMigrationsPrimaryKey(t *testing.T) {
	t.Parallel()
	s := private(t, testdb.MySQL, "--disabled-storage-engines=MyISAM")
	db, schema := migrationDB(t, s)
	refused(t, migrations.Up(t.Context(), db), `WithEngine("InnoDB")`)
	innodb := migrations.WithEngine("InnoDB")
	runSQL(t, db, strings.Replace(documentedTable, "MyISAM", "InnoDB", 1), "SET GLOBAL sql_require_primary_key = ON")
	db = open(t, s, func(c *mysql.Config) { c.DBName = schema }) // sessions that know of it
	refused(t, migrations.Up(t.Context(), db, innodb), "ADD PRIMARY KEY")
	wantColumns(t, db, "shared_locks", fiveColumns)
	runSQL(t, db, "ALTER TABLE shared_locks ADD PRIMARY KEY (name)")
	migrateUp(t, db, innodb)
	wantColumns(t, db, "shared_locks", sevenColumns)
	migrateDown(t, db, innodb)
	wantColumns(t, db, "shared_locks", fiveColumns)
	runSQL(t, db, "DROP TABLE shared_locks")
	migrateUp(t, db, innodb)
	wantTable(t, db, "shared_locks", "InnoDB latin1 PRIMARY(name)")
	migrateDown(t, db, innodb)
	wantTables(t, db)
}

// BenchmarkMigrationsCurrent is what Up costs at every start but the first.
func BenchmarkMigrationsCurrent(b *testing.B) {
	for _, kind := range testdb.Kinds() {
		b.Run(string(kind), func(b *testing.B) {
			admin := open(b, server(b, kind))
			schema := "migrations_" + strings.ToLower(rand.Text()[:12])
			if _, err := admin.ExecContext(b.Context(), "CREATE DATABASE "+schema); err != nil {
				b.Fatal(err)
			}
			defer admin.ExecContext(context.Background(), "DROP DATABASE "+schema) //nolint:errcheck // the server goes, too
			db := open(b, server(b, kind), func(c *mysql.Config) { c.DBName = schema })
			if err := migrations.Up(b.Context(), db); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := migrations.Up(b.Context(), db); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
