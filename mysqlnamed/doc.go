// Package mysqlnamed is the lock backend on the user-level locks of MySQL and
// MariaDB: GET_LOCK and RELEASE_LOCK on a session that stays pinned to a
// *sql.Conn. It needs no table and no privilege. The lock lives exactly as long
// as its session: it is free as soon as the server has noticed that the session
// ended, and it has no TTL.
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
//	check    SELECT IS_USED_LOCK(n) = CONNECTION_ID()
//
// Acquire is a try. The server evaluates one branch of the IF only, so -1 means
// that the session had the lock already and that no second reference was taken
// (a session that acquires twice would have to release twice). 1 is granted.
// NULL and 0 are not; only 0 means that another session has the lock. A Request
// that waits then repeats the wait until it is granted or ctx ends, in slices:
// one second each, or four where a cancellation can end the wait from outside
// (see below). The last slice is as long as the deadline of ctx
// allows, to the millisecond: MariaDB takes a fraction as the timeout; MySQL
// rounds it to whole seconds, so there it is rounded up and cut short by the
// hint MAX_EXECUTION_TIME. The timeout is never negative.
//
// Between the slices the waiter is out of the server's queue for a moment, so
// among waiters that wait for longer than a slice the order is not strict.
//
// # What can happen between two statements
//
// The ctx of the caller is never given to the driver, which would answer its
// end by closing the connection, with every lock in it. Instead:
//
//   - ctx has ended before the call: nothing is sent.
//   - ctx ends during a wait. Without [WithControl], the slice runs out: within
//     a second. With it, KILL QUERY ends the wait at once. In both cases
//     Acquire then sends RELEASE_LOCK, since the grant may have come at the same
//     moment; the session stays, without the lock.
//   - KILL QUERY must not hit a later statement of the caller's. It is sent once
//     the statement, found by a mark in its text, is seen running, again until
//     it has ended; Acquire does not return before the KILL has been
//     answered, and the RELEASE_LOCK comes after it. Where it is not answered, or
//     does not end the statement, the session is closed: ErrSessionGone.
//   - Somebody else interrupts the wait (KILL QUERY, a limit on execution time
//     that a proxy imposes): RELEASE_LOCK, then ErrInterrupted. If that hits a
//     try, and the session holds the lock afterwards, it can't be told whether
//     it did before; the session is closed.
//   - The server does not answer for five seconds beyond what was asked of it:
//     the session is closed, ErrSessionGone. The server may still grant the lock
//     to the session that was left behind; it notices within about a second
//     that the client is gone, and frees it, unless the network hides that.
//   - The process dies anywhere: its sessions end, and the server frees what
//     they hold after rolling their transactions back. While a session runs
//     another statement than GET_LOCK it ends with that statement.
//
// # Servers
//
// GET_LOCK is only as good as the server. Before a Locker's first acquire, and
// again whenever a session turns out to be of another kind, one SHOW GLOBAL
// VARIABLES (about a millisecond) looks at the server. The kind of a session is
// its version string and its read_only; both come with every try at no further
// round trip. Refused with ErrUnsupported, unless allowed by [Allow]:
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
// Not detected: a replica that is writable, and a proxy that sends statements of
// one connection to several servers.
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
// acquiring grows with the number of locks that one session holds. A DSN whose
// readTimeout is shorter than a slice ends sessions that wait.
package mysqlnamed
