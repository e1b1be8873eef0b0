// Command sqllock brings locks in MySQL, MariaDB and PostgreSQL to the shell: it runs
// a command while a lock is held, and tells an operator who holds what.
//
//	sqllock run --name invoices -- php generateInvoices.php
//	sqllock who invoices
//
// sqllock help, and sqllock help COMMAND, have all of it; docs/command.md is for who
// sets it up.
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
//	check      the command line; the program is looked up
//	connect    --dsn, --dsn-file, SQLLOCK_DSN or SQLLOCK_DSN_FILE; where the DSN was on the
//	           command line the process first executes itself without it, and reads it
//	           from a pipe
//	acquire    without waiting, or for --wait
//	start      the command, in a process group of its own, with our standard input, output
//	           and error; on Linux the kernel kills it when sqllock is killed
//	           (PR_SET_PDEATHSIG); at a terminal it gets that
//	hold       signals go on to the group; the lock is watched, and extended (--keep-alive)
//	release    when the command has ended; --min-hold may keep it, and us, for longer
//
// What can happen between two steps:
//
//   - A signal comes before the command is started: we exit, and what has been acquired at
//     that moment is released.
//   - The lock is lost (KILL, restart of the server, network): the group gets SIGTERM, and
//     SIGKILL after --grace. We exit with 79. So we do when the loss is found by the
//     release, after the command has ended.
//   - The lease comes to its end: SIGKILL goes out a second before it, by the local
//     clock, which counts from before the grant was asked for, and SIGTERM --grace before
//     that; so the command is dead when another one is granted the lock.
//   - We are stopped (SIGSTOP) for longer than that: then the command was not, and runs
//     beside the next holder until we are continued. It is killed at once then.
//   - The terminal's Ctrl-Z stops the command: we give our own group the same, so that the
//     shell has its prompt. When we are continued the server is asked, and the command goes
//     on only if the lock is not lost.
//   - We are killed by SIGKILL: the session ends and frees the lock; the kernel
//     kills the command, but not what the command has started in turn.
//   - The command ends and leaves processes behind in its group: they are left alone. If it
//     was ended by a signal, or stopped by us, they get SIGTERM and, after --grace, SIGKILL,
//     before the lock is released: a shell that gets a signal dies before its children do.
//   - The host dies, or the network: the TTL, or the server's TCP, ends the lock.
//
// # Exit codes
//
// sqllock run hands on that of the command, or 128 and the number of the signal that ended
// it. Its own are those of sysexits(3) where they have one: 64 the command line is wrong, 69
// the server can't be reached or refuses, 75 another one holds the lock; 79 the lock was
// lost. The other commands have 1 for a no, such as: nobody holds it. docs/command.md has
// all of them.
package main
