// Package pgtable is the lock backend on a table of leases in PostgreSQL, shared_locks:
// a lock ends by itself when its TTL is over, even if its holder hangs, since the next one
// ends the holder's session and waits until the server has rolled its transaction back.
// Grants have fencing tokens. It is to PostgreSQL what package table is to MySQL: columns,
// calls and errors are the same. The table and the sequence of the tokens are made by the
// package migrations; the driver is github.com/jackc/pgx/v5/stdlib.
//
// # Two things make a lock
//
// The row (name, connection_id, created, ttl, lock_acquired, token, holder) is what others
// see: who, since when, for how long, by the server's clock in whole seconds. A row is
// obsolete from second created+ttl+1 on, so a lease lasts its TTL, and up to a second longer.
//
// The doorbell is the advisory lock of the session that package pgadvisory has for the same
// name (so the two exclude each other), held as long as the row is there. Waiters sleep on
// it, in a queue, and it is the proof of life: a row whose session does not have the doorbell
// is obsolete at once, since the server frees the locks of a session that ends, after it has
// rolled its transaction back.
//
// Only who has the doorbell makes a row, or replaces one. So who has got it may replace
// any row that it finds: the session of that has lost the doorbell, or let go of it.
//
// # Protocol
//
// Each line is one message to the server, and one transaction that is nobody else's: READ
// COMMITTED and READ WRITE, whatever the defaults of the session. It waits four seconds at
// most for a row or the table, if somebody else has locked that.
//
//	try      DELETE the row of this name that names this session, a leaving of before;
//	         WITH bell AS (pg_try_advisory_lock), INSERT … SELECT … FROM bell ON CONFLICT
//	         DO UPDATE; it answers with the token, or else with the row that is there
//	look     SELECT the row, and what is left of it
//	wait     pg_advisory_lock, with a lock_timeout until the row is obsolete, ctx ends, or
//	         five seconds are over; the same INSERT
//	end      UPDATE … SET lock_acquired = 2 WHERE the time of the row is over RETURNING
//	         pg_terminate_backend, if its session has the doorbell, and neither that nor
//	         the server has begun after the row was made
//	release  DELETE … WHERE the row is of this grant; pg_advisory_unlock
//	extend   UPDATE … SET created, ttl WHERE the row is of this grant, not marked and in
//	         time, and the session has the doorbell
//	pass     UPDATE … SET created, ttl, token WHERE as for extend
//	watch    SELECT of a thousand grants which of them extend would find
//	check    SELECT what is left WHERE the row is of this grant and its session has the
//	         doorbell; in a transaction, whether the session has it
//
// Outside of transactions a session prepares try and release when it runs them for the
// second time, which takes one more round trip, once. A try that is prepared is one
// statement: it locks the leaving until it is replaced, and has DELETE follow if it did not
// get the doorbell. Where the defaults of the session are not READ COMMITTED, it tells so
// and takes nothing, and the message follows: two round trips. READ ONLY ones likewise.
//
// Acquire is a try: granted in one round trip, or, where the doorbell is taken, busy in
// one. A request that waits goes on with a wait, whose answer is the grant. If the row is
// obsolete, and its session has the doorbell, that holder hangs: end, then wait. A TryLock
// waits for that, too, for two seconds. A Lock looks again after each wait.
//
// A holder has two references on its doorbell. To give one back, and to take it again,
// tells in a microsecond whether the session has the doorbell, and nobody can take it
// meanwhile; pg_locks takes two hundred times as long.
//
// # What can happen between two statements
//
//   - A statement fails after it has taken the doorbell: a session's lock survives that,
//     and the row does not. After every error the doorbell is let go.
//   - The unlock of a release is seen before its DELETE is: the INSERT of the next holder
//     waits for the row.
//   - The holder extends, passes or releases while its session is being ended: all of them
//     want the row, so they come before the end, which then finds nothing to end, or after
//     it, and find none that is not marked: ErrLost, and the session is given up. What
//     ends the session is evaluated when the row is marked. So who is ended is the stale
//     holder, never a session that has got the lock anew, or waits for it.
//   - A session acquires anew where its own row was left behind (see Transactions), or that
//     of a session that had its id: the try has removed such a row, and keeps others from
//     it while it rings.
//   - The end is refused (42501): the mark is taken back with it, and the error is
//     ErrPermission. It needs the role of the holder, or pg_signal_backend, and a
//     superuser for the session of one.
//   - The ended session rolls back for long: the doorbell is not free before that is done.
//     Lock waits as long as ctx allows, TryLock two seconds; then ErrBusy and
//     ErrHolderAlive.
//   - The server restarts, or crashes: rows stay, their sessions are gone, so they are
//     obsolete. A session of the same id that gets the doorbell, by package pgadvisory for
//     one, is not ended for a row that is older than it. (Where this role may not see when
//     it began, a row that is younger than the server looks like its own.)
//   - Who has the doorbell dies before the row is made: there is no row, or one that is
//     obsolete.
//   - The answer to a claim over the pool is lost: the doorbell is let go, so the row, if
//     it is there, is obsolete. If the claim comes late, it replaces no row of a later holder.
//   - A pass is interrupted when it has changed the row: nobody knows the new token, so the
//     release that follows says ErrLost, and the session is closed.
//   - The process dies anywhere: the server frees the doorbell when it finds out. The host
//     dies, or the network to it: the row is obsolete when its TTL is over, and the session
//     is ended.
//   - The row is removed behind the back of its holder: its next check or extend says ErrLost
//     and closes the session, which frees the doorbell; a release says ErrLost, and frees it.
//
// # Fencing tokens
//
// A token is of the sequence, taken after the doorbell, and in any case greater than that of
// a row that the grant replaces. The sequence begins at the clock in microseconds, so one
// that was dropped and made anew goes on. A grant is written to the disk before it is
// answered, and the sequence with it, even if synchronous_commit is off; a release is not,
// since nothing depends on it. The sequence must not be set back, nor have a CACHE.
//
// # Transactions
//
// No statement on the table is ever a part of the caller's transaction. While there is one,
// the doorbell alone is taken and freed on the session, and a wait takes place behind a
// savepoint; everything else goes over the pool of [WithPool]. Without one, Acquire and Extend
// return ErrInTransaction; Release frees the doorbell and leaves the row, which is
// obsolete, to the next one; Check answers by the doorbell and the local time, as it does
// for package txguard whether there is a pool or not. Until that row is replaced, or its
// session acquires the name with this package, it must not be acquired on that session with
// package pgadvisory: it would look like the holder of the row.
//
// In a transaction that has failed no statement runs at all: Acquire returns
// ErrInTransaction, and a Release costs the session. In REPEATABLE READ and SERIALIZABLE the
// statement that takes the doorbell fixes what the transaction sees, if it is the first:
// acquire before BEGIN.
//
// # Limits
//
// Those of advisory locks: one primary and one database, to which a fail-over takes the rows,
// but not the locks; no PgBouncer in transaction mode, which is refused, as is a standby. Two
// names of one hash (64 bits) exclude each other. The clock of the server must not be set
// back by more than a TTL. pg_terminate_backend does not end work that was prepared by
// PREPARE TRANSACTION. All processes use one role, or roles that may end each other's
// sessions; it needs SELECT, INSERT, UPDATE and DELETE on the table and USAGE on the sequence.
package pgtable
