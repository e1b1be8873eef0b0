// Package gocronlock has schedulers of github.com/go-co-op/gocron/v2 in several processes
// share their work by locks in the database that they have anyway. gocron has two ways for
// that, and there is one for each here:
//
//   - [Locker]: each run of each job takes a lock, so each tick runs on one of the processes,
//     whichever comes first. A process that dies costs nothing but the run that it was at.
//   - [Elector]: one process leads, and runs everything. It asks the database once a second,
//     however many jobs there are, and no tick waits for it.
//
// gocron ignores the Locker where it has an Elector.
//
// # Locker: what happens when
//
//   - Another process runs the job, or has just run it: the tick is skipped. gocron counts
//     that, and tells a listener of gocron.AfterLockError, with an error that matches
//     sqllock.ErrBusy. So it is where the run before is still at it on the same host.
//   - The clocks differ: the lock is held for atLeast from its grant on, however soon the job
//     is done, and nobody asks for it for longer than half of that. So a tick runs once as
//     long as the clocks of the hosts are less than half of atLeast apart. It must be less than the
//     time between two ticks, or the next one is skipped, too.
//   - The database can't be reached, the Pool has no connection, the table is missing: the tick is
//     skipped, and gocron says nothing of it but to that listener. Have one; an error that does
//     not match sqllock.ErrBusy is for somebody to read.
//   - The lock is lost while the job runs (its session was ended, its TTL is over): gocron can't
//     stop a job, but [Locker.Context] gives it a ctx that ends then. The observer of the
//     sqllock.Locker is told of it anyway.
//   - The process dies: its locks are free at once, and the next tick runs elsewhere. The rest
//     of the run that it was at is nobody's.
//   - The scheduler shuts down: gocron ends the ctx of its jobs, waits for them, and unlocks
//     with that ctx, which works. Close the Pool after that; it waits for the time of atLeast
//     to pass.
//
// The lock is named by the job. A job without gocron.WithName has the name of its function,
// which is the same for all functions made in one place, and may change with the next build.
// Two jobs of one name exclude each other.
//
// On the leases of package table or pgtable, give sqllock.KeepAlive for jobs that take longer
// than the TTL, which must not be less than atLeast.
//
// # Elector: what happens when
//
//   - Another process leads: IsLeader says which. It is asked for every five seconds.
//   - The leader dies: the server ends its session, and with that one of those who wait for the
//     lock leads, in milliseconds.
//   - The leader calls Close: the same.
//   - The session of the leader is ended on the server (KILL, pg_terminate_backend): it
//     knows within a second; until then two may lead.
//   - Its network is cut: it does not lead any more when the server has been silent for ten
//     seconds. The server frees the lock of a session when it notices (wait_timeout, TCP
//     keepalive), and nobody leads until then; a lease, of package table or pgtable, after its
//     TTL, which is over for the leader before it is for anybody else.
//   - The leader is stopped for more than ten seconds, or for the TTL: when it goes on, it
//     does not lead until the server has been asked.
//   - The database can't be reached: nobody leads, all try again, in pauses of up to five
//     seconds, and IsLeader returns the reason. gocron shows nothing of it: see [OnChange].
//   - Leadership changes at the moment of a tick: the tick may run twice if the clocks
//     differ, or not at all. With a Locker it runs once.
package gocronlock
