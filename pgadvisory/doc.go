// Package pgadvisory is the lock backend on the advisory locks of PostgreSQL: those of
// a session that stays pinned to a *sql.Conn of github.com/jackc/pgx/v5/stdlib, alone or
// shared, and, by [sqllock.Locker.LockTx], those of a transaction. It needs no table and
// no privilege. A lock lives exactly as long as its session, or its transaction: it is
// free as soon as the server has noticed that the session ended, and it has no TTL.
//
// # Names
//
// The server knows advisory locks by 64 bits. The number of a lock is
// hashtextextended(key, 0) of the key that [sqllock.Key] makes, computed by the server,
// where that function is what hash partitions rest on and so does not change. Programs
// that call pg_advisory_lock(hashtextextended('billing:invoices', 0)) take part in the
// lock "invoices" of the namespace "billing".
//
// Two names of one number are one lock: of 10,000 names any two are so with a chance of 1
// in 370,000,000,000, of a million with 1 in 37,000,000. They then exclude each other
// without need, and nothing worse. A session that holds the one may acquire the other,
// which the server counts; that it holds the same name already is [sqllock.ErrHeld], and
// is told from such a collision by what the session was granted, which is kept with the
// driver's connection, and confirmed by the server. References that the application
// takes by SQL of its own on the same session are not known, and are counted apart.
//
// # Protocol
//
// k is hashtextextended(E'…', 0), and each line is one round trip, whatever
// default_query_exec_mode is: by the simple protocol, where what is in one message is one
// implicit transaction. Outside of a transaction a session prepares try, release and check
// the second time that it sends them, once, in a round trip of its own: to parse and to
// plan them takes the server as long as to run them.
//
//	look     SELECT version(), pg_backend_pid(), pg_is_in_recovery(), when the session began
//	         once for each session
//	try      SELECT CASE WHEN pg_try_advisory_lock(k) THEN pg_try_advisory_lock(k) ELSE false END
//	wait     SELECT set_config('lock_timeout', …, true), … ; SELECT pg_advisory_lock(k), and then pg_try_advisory_lock(k)
//	let go   the rest of pg_locks that is ours is given back by pg_advisory_unlock(k), after an error
//	release  SELECT pg_advisory_unlock(k), and again if that was true
//	check    SELECT CASE WHEN pg_advisory_unlock(k) THEN pg_try_advisory_lock(k) ELSE false END
//	watch    SELECT of a thousand grants those that are in pg_locks, and are of the session they were granted to
//	group    the try of up to sixteen locks: all, or none
//	tx       SELECT pg_try_advisory_xact_lock(k), and then, in slices of a second,
//	         SAVEPOINT; settings; SELECT pg_advisory_xact_lock(k); settings back; RELEASE SAVEPOINT
//
// A lock that is shared has the same by the functions whose names end in _shared.
//
// A session takes two references on its lock. So to ask whether it holds it can give one
// back and take it again: while it has the other one nobody else can be granted the lock,
// and a session that has lost it has none to give back. To look into pg_locks takes some
// two hundred microseconds more, as it locks all of the server's lock table.
//
// Acquire is a try. A request that waits then waits on the server, in its queue, until
// the lock is granted, the deadline of ctx has passed, which is sent along as
// lock_timeout, or a minute is over; then it queues again, so that a connection that
// something on its way has forgotten is found out. The settings are the message's own:
// lock_timeout, and, put aside, statement_timeout and transaction_timeout; a server of
// version 14 or later also looks each second whether the waiter's process is still there.
//
// # What can happen between two statements
//
// What is sent in one piece (a try, or a wait with all that settles it) holds the session
// alone. The ctx of the caller is never given to the driver for a statement on a *sql.Conn
// or a *sql.Tx, since pgx answers its end by closing the connection. Instead:
//
//   - ctx has ended before the call: nothing is sent.
//   - ctx is cancelled during a wait: a cancel request on a connection of its own ends it,
//     as the protocol has it; nothing has to be lent for that. It is sent again until the
//     wait has ended, and answered before anything else is sent. If that does not work
//     within five seconds, the session is closed: ErrSessionGone.
//   - The wait ends with an error: that does not mean that the lock was not granted at the
//     same moment, and a session keeps what it was granted, whatever the error and the
//     rollback. It is let go. The try before the wait had failed, so nothing of the
//     session's own can be meant. The statement that lets go also takes a cancel
//     request that comes late, so that the caller's next one does not.
//   - Somebody else cancels the wait (pg_cancel_backend): it is let go, ErrInterrupted. If
//     that hits a try, and the session then holds the lock, it can't be told whether it
//     did before; the session is closed. So it is with a group.
//   - The caller's transaction is open on the session: the try raises no error; the wait
//     is behind a savepoint, and taken back to it, which undoes the settings and not the
//     lock. A transaction that has failed takes no statement: Acquire and Check return
//     ErrInTransaction, Release closes the session, and says so.
//   - Rows of a query are open on the conn: nothing is sent. Acquire and Check return an
//     error and the session goes on; Release can't, and closes it.
//   - The server does not answer for five seconds beyond what was asked of it: the session
//     is closed, ErrSessionGone.
//   - The application frees all locks of its session (pg_advisory_unlock_all, DISCARD
//     ALL): the next check says ErrLost.
//   - The process dies anywhere: its sessions end, and the server frees what they hold
//     after rolling their transactions back. A session that runs a statement ends with
//     that statement; client_connection_check_interval bounds that.
//   - The host dies, or the network to it: the server keeps the lock until TCP gives up.
//     tcp_keepalives_idle, _interval and _count, which a role or a DSN can set, bound that.
//   - The server is promoted, restarted or fails over: sessions end, and their locks with
//     them. Advisory locks are not replicated.
//
// # Servers, and what is on the way
//
// Before its first lock each session is looked at. Refused with ErrUnsupported, unless
// allowed by [Allow]:
//
//	Pooler     the process id that the driver was told is not that of the session: PgBouncer
//	           and the like, in whose transaction mode sessions change hands
//	ReadOnly   a standby, whose locks exclude nobody on the primary
//	Lookalike  another product by what version() says, or CockroachDB by its crdb_version
//
// Versions before 11, which lack hashtextextended, are refused as well. Not detected: a
// pooler that hands on the server's own process ids, a cluster with several primaries.
// [sqllock.Locker.LockTx] works behind any pooler.
//
// # Limits
//
// Advisory locks are of one database of one server. Each takes a place in the server's
// lock table, which has max_locks_per_transaction (64) times as many as sessions are
// allowed. Two sessions that wait for each other, in row locks, too, are found by the
// server after deadlock_timeout (a second), [sqllock.ErrDeadlock]; the transaction that is
// open on the session is then taken back to before the wait. A transaction that has begun
// to read before it waits for the lock may have its snapshot from before; that of
// [sqllock.Locker.LockTx] has to be READ COMMITTED, and take the lock before any savepoint. Before version 13
// the session's own statement_timeout ends a wait. Each deadline that passes is in the server's
// log, and, where log_lock_waits is on, each wait of more than deadlock_timeout.
package pgadvisory
