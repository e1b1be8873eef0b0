// Package gooselock has processes that start together migrate one database by
// github.com/pressly/goose/v3 one after the other: a lock.SessionLocker on any backend of
// package sqllock. goose itself has one for PostgreSQL only, which asks every five seconds.
//
//	locker := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop"))
//	provider, err := goose.NewProvider(goose.DialectMySQL, db, files,
//		goose.WithSessionLocker(gooselock.New(locker, "migrations")),
//	)
//
// goose takes one connection, and locks, migrates and unlocks on it. So the lock lives as
// long as the session that migrates, and no longer.
//
// # What happens when
//
//   - Another process migrates: SessionLock waits for it on the server, and goes on as
//     soon as that one is done. goose then finds the migrations applied. Where the wait
//     ends before (the ctx of Up, or [WithMaxWait]), nothing has been migrated, and the
//     error matches sqllock.ErrBusy and tells who has the lock.
//   - The process dies: the server ends its session, rolls back the migration that was in a
//     transaction, then frees the lock, and the next process goes on from there. DDL on
//     MySQL and MariaDB is not rolled back, lock or not.
//   - The session ends in the middle (KILL, pg_terminate_backend, a cut network): goose's
//     next statement on it fails, so it stops there, and SessionUnlock adds an error that
//     matches sqllock.ErrLost. A Go migration without a transaction works on other
//     connections: nobody stops it, and goose records it as applied when it returns.
//   - The ctx of Up ends: goose stops, and the lock is released, or goes with the session,
//     which drivers close when that comes in the middle of a statement. The server keeps
//     the lock for as long as it goes on running that statement. In both cases nobody
//     else migrates before.
//   - A migration frees the lock by itself (RELEASE_ALL_LOCKS, pg_advisory_unlock_all,
//     DISCARD ALL): sqllock.ErrLost, too, but only in the end, and the others have gone on.
//   - A migration without a transaction leaves one open, or LOCK TABLES: the lock is
//     released all the same, and the session goes back to the pool as it is, which is so
//     without the lock, too. It should end what it begins.
//
// # The empty database
//
// Up and UpByOne first look whether there is anything to do, and for that goose makes its
// version table, before it locks. On an empty database two processes may do so at one
// moment; goose then tries again after a second, and on MySQL and MariaDB may find the table
// without its first row ("missing zero version migration"). No migration runs twice, but
// Up fails. GetDBVersion makes the table under the lock, so call it first:
//
//	if _, err := provider.GetDBVersion(ctx); err != nil {
//		return err
//	}
//	_, err := provider.Up(ctx)
//
// # Leases
//
// A lock of package table or pgtable has a TTL, and is extended by that for as long as goose
// migrates, however long a statement takes. For this the backend needs WithPool, with a
// connection to spare: goose uses the lock's own. A process that is stopped, or cut off, for
// longer than the TTL loses the lock to the next one, which ends its session first. Package
// mysqlnamed or pgadvisory does without a table, which is one less to migrate.
//
// # CREATE INDEX CONCURRENTLY
//
// On PostgreSQL that waits for every older snapshot, and one who waits for an advisory lock
// has a snapshot: each would wait for the other, and the server would end one of them, which
// may leave an invalid index. SessionLock therefore waits half a second at a time there,
// which is less than deadlock_timeout. The lock wakes it within that, too.
package gooselock
