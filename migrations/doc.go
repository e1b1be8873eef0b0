// Package migrations makes the lock table that package table works with on MySQL and
// MariaDB, or with [Postgres] that of package pgtable on PostgreSQL, and with [Fences]
// the fence table of package txguard on either: [Up] creates it or brings it to the
// newest version, [Down] takes that back. The migrations are files for goose
// (github.com/pressly/goose/v3), embedded here; [FS] returns them for the goose command
// and the like, and [SQL] as plain SQL for other tools.
//
// # The lock table on MySQL and MariaDB
//
// Its first five columns are those of the PHP package
// its-mieger/mysql-shared-locks, on whose table Go and PHP exclude each other. A
// table of that package is adopted: its rows stay, and so does its engine unless
// [WithEngine] says otherwise. The two columns that are added have defaults, so
// PHP goes on as before. A table with a column that an INSERT may not leave out, with
// AUTO_INCREMENT, or with names of less than 64 characters is refused. Tables that
// Up creates have a comment that starts with "go-sqllock"; by that Down knows what
// it may drop.
//
// Up without options comes to this. It is what SQL returns, and may run again:
//
//	-- The table that the PHP package its-mieger/mysql-shared-locks documents. One
//	-- that is there already is adopted, with its rows; it lacks our comment.
//	CREATE TABLE IF NOT EXISTS `shared_locks` (
//	  `name` varchar(64) NOT NULL,
//	  `connection_id` bigint NOT NULL,
//	  `created` bigint NOT NULL,
//	  `ttl` bigint NOT NULL,
//	  `lock_acquired` tinyint(1) NOT NULL,
//	  UNIQUE KEY `shared_locks_ix1` (`name`)
//	) ENGINE=MyISAM DEFAULT CHARSET=latin1 COMMENT='go-sqllock: locks';
//
//	-- The defaults let the PHP package go on to insert its five columns. MySQL has
//	-- no ADD COLUMN IF NOT EXISTS, and this may have to run again, after a crash.
//	SET @go_sqllock = IF(
//	  (SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE()
//	    AND table_name = 'shared_locks' AND column_name IN ('token', 'holder')) = 2,
//	  'DO 0',
//	  'ALTER TABLE `shared_locks`
//	    ADD COLUMN `token` bigint NOT NULL DEFAULT 0 AFTER `lock_acquired`,
//	    ADD COLUMN `holder` varchar(255) CHARACTER SET utf8mb4 NOT NULL DEFAULT '''' AFTER `token`');
//	PREPARE go_sqllock FROM @go_sqllock;
//	EXECUTE go_sqllock;
//	DEALLOCATE PREPARE go_sqllock;
//
// Adding columns copies the table, which is small, and needs it for itself for
// that moment: Up waits for transactions that have used the table, and whoever
// comes after waits for Up.
//
// # The lock table on PostgreSQL
//
// It has the same columns, and beside it is the sequence that tokens come from. A table
// or a sequence that is there already is taken as it is, if it serves: the columns
// of these types (text will do for varchar, and any integer for lock_acquired), a
// primary or unique key on the name alone, whose collation takes no two names for one,
// and no other column that an INSERT may not leave out; a plain table, logged and not
// partitioned; a sequence that neither repeats a token nor swaps two. Up looks for all of that each time. What Up creates has a
// comment that starts with "go-sqllock"; by that Down knows what it may drop.
// SQL(Postgres()):
//
//	-- What is there already stays as it is; it lacks our comment.
//	DO $$
//	BEGIN
//	  IF NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'shared_locks') THEN
//	    CREATE TABLE "shared_locks" (
//	      name varchar(64) COLLATE "C" PRIMARY KEY,
//	      connection_id bigint NOT NULL,
//	      created bigint NOT NULL,
//	      ttl bigint NOT NULL,
//	      lock_acquired smallint NOT NULL,
//	      token bigint NOT NULL DEFAULT 0,
//	      holder varchar(255) NOT NULL DEFAULT ''
//	    );
//	    COMMENT ON TABLE "shared_locks" IS 'go-sqllock: locks';
//	  END IF;
//	  -- It starts with the clock in microseconds, which the tokens of MySQL are, and so
//	  -- goes on from those of a table there, or of a sequence that was dropped. If a column
//	  -- owned it, TRUNCATE with RESTART IDENTITY would have tokens repeat; with a cache,
//	  -- each session would have numbers of its own, out of order.
//	  IF NOT EXISTS (SELECT FROM pg_sequences WHERE schemaname = current_schema() AND sequencename = 'shared_locks_token') THEN
//	    EXECUTE format('CREATE SEQUENCE "shared_locks_token" START %s CACHE 1', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
//	    COMMENT ON SEQUENCE "shared_locks_token" IS 'go-sqllock: tokens';
//	  END IF;
//	END
//	$$;
//
// Whoever works with the table in another role than the one that has migrated needs
// SELECT, INSERT, UPDATE and DELETE on the table and USAGE on the sequence; for Up on a
// table that is up to date, SELECT on the version table.
//
// # The fence table
//
// It belongs in the database where the guarded work is done, which need not be that
// of the locks; where both are in one database, neither set of migrations minds the
// other. A table that is there already is taken as it is if it has these columns
// (integers as bigint, commits of 512 bytes or more), its primary key on the name
// alone, no AUTO_INCREMENT, no other column that an INSERT may not leave out, and
// is InnoDB; on PostgreSQL, if it serves as is said of the lock table. Up looks for all of that each time: a fence without its key, or
// outside of the transaction, would let everybody pass. What an older holder may
// not do any more is known from the rows, so nobody may be at work when Down drops
// them. SQL(Fences()):
//
//	-- InnoDB, since a row is written in the transaction that it guards.
//	CREATE TABLE IF NOT EXISTS `lock_fences` (
//	  `name` varchar(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
//	  `token` bigint NOT NULL,                      -- greatest fencing token admitted
//	  `seq` bigint NOT NULL DEFAULT 0,              -- number of guarded commits so far
//	  `commits` varbinary(512) NOT NULL DEFAULT '', -- ids (8 bytes each) of the last 64, newest first
//	  `session` bigint NOT NULL DEFAULT 0,          -- connection id of the last writer
//	  `updated` bigint NOT NULL DEFAULT 0,          -- seconds, by the server's clock
//	  PRIMARY KEY (`name`)
//	) ENGINE=InnoDB COMMENT='go-sqllock: fences';
//
// And SQL(Postgres(), Fences()):
//
//	-- A table that is there already stays as it is; it lacks our comment.
//	DO $$
//	BEGIN
//	  IF NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'lock_fences') THEN
//	    CREATE TABLE "lock_fences" (
//	      name varchar(64) COLLATE "C" PRIMARY KEY,
//	      token bigint NOT NULL,             -- greatest fencing token admitted
//	      seq bigint NOT NULL DEFAULT 0,     -- number of guarded commits so far
//	      commits bytea NOT NULL DEFAULT '', -- ids (8 bytes each) of the last 64, newest first
//	      session bigint NOT NULL DEFAULT 0, -- process id of the session of the last writer
//	      updated bigint NOT NULL DEFAULT 0  -- seconds, by the server's clock
//	    );
//	    COMMENT ON TABLE "lock_fences" IS 'go-sqllock: fences';
//	  END IF;
//	END
//	$$;
//
// # Versions, and who migrates
//
// The versions are kept in a table of their own, the name of the lock table, or the
// fence table, with "_version" behind it, in the form that goose has for the server.
// The table goose_db_version of the application is not touched.
//
// Any number of processes may call Up when they start. They take turns under a lock, on
// the session that migrates: "go-sqllock:migrations database.table" of package
// mysqlnamed, or "go-sqllock:migrations schema.table" of package pgadvisory (a longer
// name is hashed, see [sqllock.Key]). Nothing is written without that lock. It is not
// taken if the table is up to date.
//
// A process may die between two statements. On MySQL each migration can run again; on
// PostgreSQL each is a transaction. So the next Up goes on from there.
//
// # Schemas
//
// All tables are in the database of the DSN, or in the current schema of PostgreSQL:
// the first one of search_path that exists. What the schemas after it have is not
// touched, even under the same name, and locks in two schemas exclude nobody in the
// other. So all processes need the same search_path.
//
// # Limits
//
// Servers that package mysqlnamed refuses, such as the nodes of a Galera cluster, or
// package pgadvisory, such as PgBouncer in transaction mode, are refused here, too; run
// the files or the SQL by other means there. A table that is up to date Up only reads,
// without a lock, so that works on all of them.
//
// MyISAM has no transactions and is not replicated by Galera: use WithEngine("InnoDB")
// for the lock table. Servers with sql_require_primary_key need that as well, and Up
// says so before it creates anything; a table that was there before needs a primary key
// first.
//
// PostgreSQL has to be version 12 or later, with plpgsql, which it has unless somebody
// drops it.
package migrations
