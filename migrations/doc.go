// Package migrations makes the lock table that package table works with, and with
// [Fences] the fence table of package txguard, on MySQL and MariaDB: [Up] creates
// it or brings it to the newest version, [Down] takes that back. The migrations are
// files for goose (github.com/pressly/goose/v3), embedded here; [FS] returns them
// for the goose command and the like, and [SQL] as plain SQL for other tools.
//
// # The lock table
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
// # The fence table
//
// It belongs in the database where the guarded work is done, which need not be that
// of the locks; where both are in one database, neither set of migrations minds the
// other. A table that is there already is taken as it is if it has these columns
// (integers as bigint, commits of 512 bytes or more), its primary key on the name
// alone, no AUTO_INCREMENT, no other column that an INSERT may not leave out, and
// is InnoDB. Up looks for all of that each time: a fence without its key, or
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
// # Versions, and who migrates
//
// The versions are kept in a table of their own, the name of the lock table, or the
// fence table, with "_version" behind it, in the form that goose has for MySQL. The
// table goose_db_version of the application is not touched.
//
// Any number of processes may call Up when they start. They take turns under the
// lock "go-sqllock:migrations database.table" of package mysqlnamed (a longer
// name is hashed, see [sqllock.Key]), on the session that migrates. Nothing is
// written without that lock. It is not taken if the table is up to date.
//
// A process may die between two statements. Each migration can run again, so the
// next Up goes on from there.
//
// # Limits
//
// Servers that package mysqlnamed refuses, such as the nodes of a Galera cluster,
// are refused here, too; run the files or the SQL by other means there. MyISAM
// has no transactions and is not replicated by Galera: use WithEngine("InnoDB") for
// the lock table. Servers with sql_require_primary_key need that as well, and Up says
// so before it creates anything; a table that was there before needs a primary key
// first.
package migrations
