// Package table is the lock backend on a table of leases in MySQL or MariaDB,
// shared_locks: a lock ends by itself when its TTL is over, even if its holder
// hangs, since the next one kills the holder's session and waits until the server
// has rolled its transaction back. Grants have fencing tokens, and processes of
// PHP with its-mieger/mysql-shared-locks take part on the same table. The tables
// are made by the package migrations; the driver is github.com/go-sql-driver/mysql.
//
// # Two things make a lock
//
// The row (name, connection_id, created, ttl, lock_acquired, token, holder) is
// what others see: who, since when, for how long, by the server's clock in whole
// seconds. A row is obsolete from second created+ttl+1 on, so a lease lasts its
// TTL, and up to a second longer.
//
// The doorbell is the user-level lock of the same name (GET_LOCK), held by the
// session of the lock as long as the row is. Waiters sleep on it, and it is the
// proof of life: a row whose session does not hold the doorbell is obsolete at
// once, since the server frees user-level locks when a session ends, after it has
// rolled its transaction back. Only who holds the doorbell makes a row.
//
// # Protocol
//
// n is the name as a hex literal, so that sql_mode and character sets do not
// matter and a statement is one round trip under every DSN.
//
//	try      INSERT … VALUES (IF(doorbell = 1, n, NULL), CONNECTION_ID(), UNIX_TIMESTAMP(), ttl, 1, …)
//	         where doorbell is IF(IS_USED_LOCK(n)=CONNECTION_ID(), -1, GET_LOCK(n, 0))
//	look     SELECT the row, who holds the doorbell, the clock
//	wait     SELECT GET_LOCK(n, until the row is obsolete, ctx ends, or a slice is over)
//	claim    INSERT … VALUES (IF(IS_USED_LOCK(n) = session, n, NULL), …)
//	remove   DELETE … WHERE every column is as it was read
//	condemn  UPDATE … SET lock_acquired = 2 to 126 WHERE every column is as it was read
//	kill     KILL CONNECTION IF(IS_USED_LOCK(n) = id AND created >= start of the server, id, 0)
//	release  DELETE … WHERE IF(the row is of this grant, RELEASE_LOCK(n), 0) = 1
//	extend   UPDATE … SET created, ttl WHERE the row is of this grant, alive and in time
//	pass     UPDATE … SET created, ttl, token WHERE as for extend
//	watch    SELECT of a hundred grants whether the row is there, alive and in time
//	check    SELECT what is left WHERE the row is of this grant and alive; for package
//	         txguard, SET of @go_sqllock to what is out of range unless the session has
//	         the doorbell
//
// Acquire is a try: granted in one round trip, or not for one of two reasons. The
// doorbell was taken (error 1048), or it was free and a row is there (error 1062), in
// which case the doorbell is now ours. A request that waits then waits on the doorbell
// for a tenth of a second. A look then tells:
//
//   - The session holds the lock already: ErrHeld.
//   - The row is not obsolete, and its session holds the doorbell: it is held. Wait
//     on the doorbell until the row would be obsolete, or a slice (one second, four
//     with [WithPool]) is over, and look again. Who gets the doorbell claims.
//   - The row is not obsolete and not yet acquired: a PHP process has inserted it
//     and is about to take the doorbell. Let go of the doorbell at once, and look
//     again after a pause that grows from 5 to 200 ms; nobody of ours queues there.
//   - The row's session does not hold the doorbell, and the row is acquired or
//     obsolete: remove it and claim, if the doorbell is ours; else wait for it.
//   - The row is obsolete and its session holds the doorbell: the holder hangs.
//     Wait on the doorbell for a tenth of a second, look again, condemn the row, kill
//     the session, wait on the doorbell, remove, claim.
//   - There is no row: claim, if the doorbell is ours; else wait for it. Somebody is
//     between two statements, or another program has a GET_LOCK of that name.
//
// Several locks are acquired one by one: an INSERT of several rows into a MyISAM table
// keeps the first ones when a later one fails, so it is not all or nothing.
//
// # What can happen between two statements
//
//   - The holder extends, or somebody else takes over, after the look: condemn and
//     remove compare every column and find nothing; look again.
//   - The holder extends, passes or releases after it has been condemned: none finds
//     its row, all say ErrLost, and the session is closed rather than used again. So
//     who is killed is the stale holder, never a session that has got the lock anew
//     or waits for it. A session that acquires anew where its own row of a lock it has
//     released was left behind (see Transactions) looks like a hung holder for a
//     moment: the process removes such a row before it rings, and the tenth of a second
//     is for one that could not. (A PHP holder knows no condemned rows. If it releases and
//     acquires anew on the same connection between condemn and kill, one round trip,
//     with its time over, it is killed in its new tenancy.)
//   - The kill is refused (1095): the mark is taken back, and the error is
//     ErrPermission. If another one condemns at the same time, its mark stays,
//     unless the two connection ids are a multiple of 125 apart.
//   - Who condemned dies before the kill: the row stays obsolete; the next waiter
//     condemns it again.
//   - The killed session rolls back for long: the doorbell is not free before that is
//     done. Lock waits as long as ctx allows, TryLock two seconds; then ErrBusy and
//     ErrHolderAlive.
//   - The server restarts: rows stay, their connection ids may belong to others now.
//     None of those holds the doorbell, so the rows are obsolete; and if one is
//     about to get it, it is not killed, since the row is older than the server.
//   - Who holds the doorbell dies before the claim, or between remove and claim: the
//     doorbell is free and there is no row, or one that is obsolete.
//   - The answer to a claim over the pool is lost: the doorbell is let go, so the
//     row, if it is there, is obsolete.
//   - A pass is interrupted when it has changed the row: nobody knows the new token,
//     so the release that follows does not find its row, says ErrLost, and the session
//     is closed.
//   - The process dies anywhere: as above. The host dies, or the network to it: the
//     row is obsolete when its TTL is over, and the session is killed.
//   - The row is removed behind the back of its holder (an operator, TRUNCATE, PHP's
//     cleaning after the TTL): the holder's next check, extend or release says
//     ErrLost and closes the session, which frees the doorbell.
//   - On InnoDB the doorbell of a release rings before the row is gone: the waiter's
//     claim gets 1062, and it looks again.
//
// A waiter knows the TTL of the holder that it has last looked at. If a later holder
// has a shorter one, and hangs, it finds out at the end of its slice: one second, four
// with a pool.
//
// # Fencing tokens
//
// A token is the server's clock in microseconds, read in the granting statement
// after the doorbell is taken, and in any case greater than the token of a row that
// the grant replaces and than all tokens that this Backend has seen. It needs no
// memory in the engine, so REPAIR TABLE, TRUNCATE, or a crash make none repeat. What
// could is a server whose clock is set back after a release, by longer than it takes
// until the next grant by another process; or a server started with sysdate-is-now
// under contention. A token goes to the client as LAST_INSERT_ID, which it changes
// for the session, as an INSERT with AUTO_INCREMENT does.
//
// # Transactions
//
// A MyISAM table takes no part in transactions: a lock may be acquired inside the
// caller's, and is kept when that is rolled back. MySQL with GTIDs refuses such a
// write after one to an InnoDB table (1785), and every server refuses it in a READ
// ONLY transaction (1792). Statements on an InnoDB table would join the transaction,
// so the session is asked first, which costs one round trip (MariaDB) or two (MySQL).
// In all these cases the row is written over the pool of [WithPool]; without one,
// Acquire and Extend return ErrInTransaction, and Release frees the doorbell and
// leaves the row, which is obsolete, to the next one. Check does not read an InnoDB
// row in a transaction, which would be a part of it: without a pool, and for package
// txguard, it answers by the doorbell and the local time. Pass and Watch are not to be
// called while their session is in one. A pending SET TRANSACTION of the caller's is used
// up on InnoDB and MySQL.
//
// # Names
//
// The table compares names without letter case and, for what PHP stores, without
// accents and trailing spaces; MariaDB's GET_LOCK compares bytes. Two spellings that
// the table takes for one are one lock: the proof of life is asked for, and the
// wait takes place, under the name that the row has. Names as made by [sqllock.Key]
// differ in more than that, so only letter case makes one lock of two names.
//
// # With PHP
//
// PHP's cleaning deletes the row of a hung holder when its TTL is over, but does not
// kill it; PHP then can't get the doorbell, and gives up. From then on the row does
// not say whom to kill, and the lock is free when that session ends; Break ends it.
// PHP asks for the proof of life under its own spelling of the name, so it takes the
// row of a Go lock of another spelling ("cafe" for "café", on MariaDB "Job" for
// "job") for a dead one's; Go then finds out by its next check.
// PHP waits without a place in a queue. A row that a PHP process left between its
// INSERT and its UPDATE blocks until its TTL is over.
//
// # Limits
//
// Those of user-level locks: one server, no replication, GET_LOCK is global to the
// server, so locks in tables of two schemas exclude each other where their names are
// the same, as does the package mysqlnamed; use a namespace. The session's clock must
// not be set (SET timestamp). The engine of the table must not be changed while
// processes run. KILL does not end work that was prepared by XA PREPARE.
package table
