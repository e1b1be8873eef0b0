// Command sqllock brings locks in MySQL, MariaDB and PostgreSQL to the shell: it runs
// a command while a lock is held, and tells an operator who holds what.
//
//	sqllock run --name invoices -- php generateInvoices.php
//	sqllock who invoices
//
// sqllock help, and sqllock help COMMAND, have all of it.
//
// # Which lock
//
// A name, under --namespace where one is given, is the same lock as in package sqllock.
// Without a TTL it is a lock of package mysqlnamed, or pgadvisory: no table, and it ends
// with the session. With one (--ttl) it is a lease of package table, or pgtable. The two
// exclude each other: a lease holds the lock of its name, too.
//
// # The life of sqllock run
//
//	connect    SQLLOCK_DSN, --dsn-file or --dsn; a DSN of the command line is taken out of
//	           the process list before anything else
//	acquire    without waiting, or for --wait
//	start      the command in a process group of its own; on Linux the kernel kills it when
//	           sqllock is killed (PR_SET_PDEATHSIG)
//	hold       signals go on to the command; the lock is watched
//	release    when the command has ended; not before --min-hold is over
//
// What can happen between two steps:
//
//   - The lock is lost (KILL, restart of the server, network): the command gets SIGTERM, and
//     SIGKILL after --grace. sqllock exits with [exitLost].
//   - The TTL comes to its end: SIGTERM goes out --grace before it, SIGKILL at the end, so
//     that the command is dead when another may take over.
//   - sqllock is killed by SIGKILL: the session ends and frees the lock; the kernel
//     kills the command, but not what the command has started in turn.
//   - The command leaves processes behind in its group: they are killed when it has ended
//     and the lock is lost, and left alone when the lock was released.
//   - The host dies, or the network: see docs/moments.md; the TTL, or TCP, ends the lock.
//
// # Exit codes
//
// Those of sysexits(3) where they have one; sqllock run hands on that of the command, or
// 128 and the number of the signal that ended it.
package main
