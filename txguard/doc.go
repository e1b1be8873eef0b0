// Package txguard is for work in a database that must not be committed by a process
// that has lost its lock: through a pause, a KILL, a TTL that is over, or a broken
// network. A guarded transaction commits only while the lock is held, and nobody
// else is granted the lock, or, in the fenced form, admitted to the data, before it
// has been decided. It works with every backend on MySQL and MariaDB, over
// github.com/go-sql-driver/mysql, and on PostgreSQL, over
// github.com/jackc/pgx/v5/stdlib. Which of them it is, it sees by the driver of the
// session; a driver that wraps pgx's needs a method Raw() driver.Conn. The lock and
// the work of the fenced form may be on servers of different kinds.
//
// # Two forms
//
// Same session ([Run], [Do], [TryDo]): the transaction runs on the session that holds
// the lock. Who loses the lock loses the session, or has lost it, and the server has
// rolled back before it grants the lock to anybody. Take this one where the work is on
// the server of the lock, and one connection will do.
//
// Fenced ([Fence.Raise], [Fenced.Run]): the transaction runs on another connection,
// of another pool or on another server. A row there keeps the greatest token that has
// been admitted. Use one form for one name: a holder that works in the same session
// raises no fence.
//
// # Protocol: same session
//
//	begin    (the driver is asked whether a transaction is open)  START TRANSACTION
//	work     the caller's statements
//	check    in the transaction: SET @go_sqllock = …, which fails unless IS_USED_LOCK(n) =
//	         CONNECTION_ID(); a lease's time is counted locally, from before it was granted
//	note     with evidence: INSERT INTO lock_fences … ON DUPLICATE KEY UPDATE …
//	commit   (the driver is asked whether the transaction is still open)  COMMIT
//
// The server tells with each answer whether a transaction is open and whether
// autocommit is on; the driver keeps that, and asking it is no round trip. A driver
// that wraps the one for MySQL hides it; then it is asked by SQL, two round trips each.
//
// On PostgreSQL the check gives back one of two references to the advisory lock, and takes it
// again, which no session without the lock can; the note is an INSERT … ON CONFLICT
// (name) DO UPDATE.
//
// The lock is acquired before the transaction begins, and so before it has a snapshot:
// the function sees all that the holder before committed, under every isolation level. A
// transaction that locks in its own first statement, as by pg_advisory_xact_lock, takes its
// snapshot before it waits, and under REPEATABLE READ misses what was committed meanwhile.
//
// # Protocol: fenced
//
//	mint     for a lock without a token, once, on its session: SELECT … FOR UPDATE NOWAIT
//	         until nobody has the row locked, then INSERT … ON DUPLICATE KEY
//	         UPDATE token = the greater of token+1 and the clock in microseconds
//	raise    once, over the pool of the fence, in a transaction of its own:
//	         INSERT … ON DUPLICATE KEY UPDATE token = the greater of token and ours
//	begin, work   as above, on a connection of that pool
//	check    the backend's own, on the session of the lock
//	pass     UPDATE lock_fences SET … WHERE name = n AND token = ours
//	commit   as above
//
// On PostgreSQL INSERT … ON CONFLICT takes the place of ON DUPLICATE KEY, and mint, raise
// and Settle have transactions of their own, with READ COMMITTED, whatever the session's
// default is. Mint waits there in statements of half a second.
//
// The pass locks the row until the transaction ends, and the raise of the next
// holder waits for that lock, so what it reads afterwards has all that was committed
// before, and who passes later finds its token and is refused. A plain SELECT of the
// token in place of the UPDATE would let the next holder in between it and the commit,
// under every isolation level. A holder that hangs before its pass keeps nobody from
// being admitted, unless by locks on the data.
//
// On PostgreSQL a transaction with REPEATABLE READ or SERIALIZABLE can't pass if the row
// was written after its snapshot (40001). Where it was a later holder, that is
// [sqllock.ErrLost]; where it was another transaction of the same holder, which ran beside
// it, [Retries] does it again.
//
// # What can happen between two statements
//
//   - A transaction is open on the session before begin: refused, untouched
//     ([ErrNotBegun], [sqllock.ErrInTransaction]). On MySQL not noticed if it was left open by
//     the very last statement, and that failed: a CALL, as the only one.
//   - ctx ends, or the handle learns that its lock has ended: the ctx of the function
//     ends. If a statement with that ctx is running, the driver closes the
//     connection, and the server rolls back; the lock goes with it in the same-session
//     form. If none is, transaction and session live on until the function returns;
//     then all is rolled back, and the lock is kept.
//   - The function returns an error or panics: ROLLBACK; if that is not confirmed, the
//     session is closed.
//   - The session is killed, or its connection breaks, before COMMIT is sent: the
//     server rolls back, and frees the lock after that. The check, or what comes before
//     it, fails: [ErrRolledBack], [sqllock.ErrLost].
//   - The TTL is over, and the next holder kills the session: the same. It is over, and
//     nobody came: the check says [sqllock.ErrLost], and the session is closed.
//   - The lock is released: before the check, [ErrRolledBack] and [sqllock.ErrNotHeld];
//     after it, the release waits for the commit ([sqllock.Lock.WhileHeld]).
//   - The process stops, for however long, between any two statements: nothing goes on
//     without it, and what it sends afterwards goes to a session that is gone, or meets
//     the fence. It stops between check and COMMIT, and its session lives: it holds the
//     lock, and others wait; if its TTL ends meanwhile, it is killed.
//   - The process or its host dies: as a broken connection.
//   - COMMIT is answered with an error that leaves the session alive: PostgreSQL has
//     rolled back, because of a serialization failure (40001), a deferred constraint or
//     the like, and the lock is kept ([ErrRolledBack]). An answer that ends the session,
//     such as 57P01, is none: it may come after the commit.
//   - COMMIT is sent and its answer does not come: all was committed, or nothing.
//     The session is closed. Without evidence, that is the answer: [ErrUnknown]. With
//     it, the row is read over the pool of the fence, under a lock for which the old
//     session makes it wait until it is gone; that tells. If it does not within ten
//     seconds, as when the network swallows the end of the old connection, [Fence.Settle]
//     can go on asking.
//   - The transaction ends before its end: a statement that commits implicitly, COMMIT or
//     ROLLBACK as a statement, Commit or Rollback of the Tx, a deadlock (1213) whose
//     error the function keeps to itself, so that its next statements are committed one
//     by one. [ErrUnguarded]. On PostgreSQL nothing commits implicitly, and after an error
//     nothing is committed at all: a statement that failed, whose error the function keeps
//     to itself, is [ErrRolledBack]. (The 1213 that MariaDB has for a cycle of GET_LOCKs, 3058
//     on MySQL, leaves the transaction open, and nothing is unguarded after that.)
//
// # Evidence
//
// A row of lock_fences keeps the ids of the last 64 commits under its name, and their
// number; the evidence says which number its commit would have, and on which server and
// database it was written: by host name, port and schema on MySQL; on PostgreSQL by the
// identifier of the cluster (pg_control_system), database and table. So it can be told whether a transaction is among them, or was not committed,
// or that too many have come since. There is one row for a name for ever; [Fence.Sweep]
// is for names that are made up as one goes.
//
// # What it can't do
//
//   - Undo what the function does outside of the transaction: other connections, files,
//     HTTP. The token ([Fenced.Token], [sqllock.Lock.Token]) can be passed on, for the
//     other side to refuse what comes with a smaller one than it has seen.
//   - See START TRANSACTION, BEGIN, COMMIT AND CHAIN or ROLLBACK AND CHAIN sent as a
//     statement by the function, or a procedure that leaves such a transaction open: it
//     ends what was before, and looks the same afterwards. To notice would cost two
//     round trips more. What comes after it is guarded. (On PostgreSQL the first two
//     change nothing in a transaction; COMMIT and BEGIN after it look like the others.)
//   - Tell a deadlock inside of DDL, or of a procedure that commits, from one that
//     rolls back, on MySQL.
//   - Guard tables without transactions (MyISAM), whose changes stay, sequences, and XA or
//     PREPARE TRANSACTION: prepared work survives the end of its session, and must not be
//     done in a function.
//   - Bound the wait for the answers to BEGIN, COMMIT and ROLLBACK, which database/sql
//     sends: where networks fall silent, set readTimeout in the DSN for MySQL (above five
//     seconds). pgx has no such setting: give its ConnConfig a DialFunc whose connections
//     have TCP_USER_TIMEOUT, or deadlines of their own.
//   - Protect beyond one primary: after a fail-over to a replica that lacks the last
//     commits, fence rows are as old as the rest of the data.
//   - Fence off spellings: "Job" and "job" have a fence row each, and are one lock where
//     the backend takes them for one.
package txguard
