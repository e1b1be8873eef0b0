// Package mysqlnamed is the lock backend on the user-level locks of MySQL and
// MariaDB: GET_LOCK and RELEASE_LOCK on a session that stays pinned to a
// *sql.Conn of github.com/go-sql-driver/mysql. It needs no table and no
// privilege. The lock lives exactly as long as its session: it is free as soon
// as the server has noticed that the session ended, and it has no TTL.
//
// # Protocol
//
// The name of a lock, as made by [sqllock.Key], stands in the statement text as
// a hex literal. A statement is therefore one round trip under every DSN, with
// no quoting that sql_mode could change; a "?" would cost three round trips
// (prepare, execute, close) without interpolateParams.
//
//	try      SELECT IF(IS_USED_LOCK(n) = CONNECTION_ID(), -1, GET_LOCK(n, 0)), …
//	wait     the same with a timeout, after a try that found the lock taken
//	release  SELECT RELEASE_LOCK(n)
//	check    SELECT IS_USED_LOCK(n) = CONNECTION_ID(); for package txguard, SET of the
//	         user variable @go_sqllock to what is out of range unless that is so
//	watch    SELECT IS_USED_LOCK(n1) = id1, IS_USED_LOCK(n2) = id2, … of a hundred grants
//	group    SELECT IF(try n1 = 1, IF(group of the others = 1, 1, IF(RELEASE_LOCK(n1) = 1, 0, NULL)), 0), …
//	break    KILL CONNECTION IF(IS_USED_LOCK(n) = id, id, 0), then IS_USED_LOCK(n) until it is another one
//
// Acquire is a try. The server evaluates one branch of the IF only, so -1 means
// that the session had the lock already and that no second reference was taken
// (a session that acquires twice would have to release twice). 1 is granted.
// NULL and 0 are not; only 0 means that another session has the lock. A Request
// that waits then repeats the wait until it is granted or ctx ends, in slices:
// one second each, or four where a cancellation can end the wait from outside
// ([WithControl]). The last slice is as long as the deadline of ctx allows, in
// milliseconds: MariaDB takes a fraction as the timeout; MySQL rounds it to
// whole seconds, so there it is rounded up and cut short by the hint
// MAX_EXECUTION_TIME. The timeout is never negative.
//
// Between two slices the waiter is out of the server's queue for a moment, and
// other statements on the conn get their turn. So among waiters that wait for
// longer than a slice the order is not strict.
//
// A group is [Backend.AcquireAll] of up to sixteen locks: all, or none, since the
// server frees what it has taken when it comes to one that is taken. More locks are
// several statements; what the earlier ones have taken is let go when a later one
// fails. Of two names that differ in letter case only MySQL grants none together,
// since they are one lock. [Backend.Pass] sends nothing: a lock without a token and a
// TTL is the same lock in the hands of the next tenant.
//
// # What can happen between two statements
//
// What Acquire sends in one piece (a try, or a slice of a wait, with all that
// settles it) holds the session alone: the caller's other statements on the conn
// come before or after. The ctx of the caller is never given to the driver for
// a statement on a *sql.Conn or a *sql.Tx, since the driver would answer its end
// by closing the connection, with every lock in it. Instead:
//
//   - ctx has ended before the call: nothing is sent.
//   - ctx ends during a wait. Without [WithControl], the slice runs out: within
//     a second. With it, KILL QUERY ends the wait at once. In both cases
//     RELEASE_LOCK follows, since the grant may have come at the same moment;
//     the session stays, without the lock.
//   - KILL QUERY must not hit a later statement of the caller's. It is sent when
//     the statement, found by a mark in its text, is seen running, and again
//     until it has ended. The session is not given back before the KILL has been
//     answered and a RELEASE_LOCK has come after it. Where the KILL is not
//     answered, or does not end the statement, the session is closed:
//     ErrSessionGone.
//   - Somebody else interrupts the wait (KILL QUERY, a limit on execution time
//     that a proxy imposes): RELEASE_LOCK, then ErrInterrupted. If that hits a
//     try, and the session holds the lock afterwards, it can't be told whether
//     it did before; the session is closed. So it is with a group that fails in
//     any way, if the session then holds one of its locks.
//   - The server does not answer for five seconds beyond what was asked of it:
//     the session is closed, ErrSessionGone. The server may still grant the lock
//     to the session that was left behind. It notices within about a second
//     that a waiting client is gone, unless the network hides that.
//   - Rows of a query are open on the conn: the driver can't send a statement
//     then without breaking the connection. The session is closed, ErrSessionGone.
//   - The process dies anywhere: its sessions end, and the server frees what
//     they hold after rolling their transactions back. A session that runs
//     another statement than GET_LOCK ends with that statement.
//   - The host dies, or the network to it: the server knows nothing of it, and
//     keeps the lock until wait_timeout (eight hours by default) or the keepalive
//     of TCP ends the session. A wait_timeout of some seconds in the DSN of a pool
//     that serves nothing but Do bounds that; the check of a Do each second keeps
//     its session from being idle.
//
// # Servers
//
// GET_LOCK is only as good as the server. Before a Backend's first acquire, and
// again whenever a session turns out to be of another kind, one SHOW GLOBAL
// VARIABLES (about a millisecond) looks at the server. The kind of a session is
// the server's host name, port and read_only, which come with every try at no
// further round trip. Refused with ErrUnsupported, unless allowed by [Allow]:
//
//	OneLockPerSession  MySQL before 5.7.5, MariaDB before 10.0.2: a second GET_LOCK
//	                   frees the first
//	ReadOnly           read_only or innodb_read_only: probably a replica, whose
//	                   locks exclude nobody on the primary
//	PerNode            Galera (wsrep_on), group replication with several primaries,
//	                   NDB Cluster: each node has locks of its own
//	Lookalike          servers that call themselves something else in version or
//	                   version_comment: Dolt, TiDB, Vitess, OceanBase, SingleStore,
//	                   StarRocks, Doris, ClickHouse and others
//
// Not detected: a replica that is writable, a proxy that sends the statements of
// one connection to several servers, and look-alikes that hide their name.
//
// # Limits
//
// Locks live on one server and are not replicated: a fail-over frees them all.
// They are global to the server: every schema, every user; see
// [sqllock.WithNamespace]. MySQL ignores letter case in names, MariaDB does not.
// Two sessions that each wait for a GET_LOCK of the other get
// [sqllock.ErrDeadlock] at once; a cycle of a GET_LOCK and a row lock is not
// detected by either server and ends by timeout. A transaction that is open when
// the lock is acquired may have its snapshot from before. MariaDB's cost of
// acquiring grows with the number of locks that one session holds. The
// readTimeout of a DSN has to be longer than a slice, or it ends sessions that
// wait.
package mysqlnamed
