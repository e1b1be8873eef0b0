// Package sqllock is the core of a layer of distributed locks for applications
// that already have a [database/sql] pool: one process in the fleet does the
// work, the others wait or skip.
//
// # The life of a lock
//
// A [Locker] puts a [Backend] to work under a namespace. Backends are packages of their own:
// mysqlnamed and table for MySQL and MariaDB, pgadvisory and pgtable for PostgreSQL, and
// memory for unit tests. The folder examples of the module has whole programs. A Locker has
// two layers:
//
//   - [Locker.Do] and [Locker.TryDo] run a function while a lock is held. They
//     take a connection from the pool, acquire, watch the lock, release, and
//     give the connection back clean. This is the form to start with.
//   - [Locker.Lock] and [Locker.TryLock] work on a *sql.Conn of the caller and
//     return a [Lock], a handle that the caller releases.
//
// A [Pool] does the same for many goroutines, over few connections; see below.
//
// A lock lives in a database session, so a handle is bound to the *sql.Conn it
// was acquired on. The handle ends in exactly one of three ways, and
// [Lock.Err] tells which:
//
//	ErrNotHeld   released by its owner
//	ErrLost      gone without having been released
//	ErrUnknown   the release could not be confirmed; the session was discarded
//
// # Leases
//
// A lock of a [Leaser] backend also ends when its TTL is over, by the clock of the
// server, even if its holder hangs. [TTL] sets it for one acquisition,
// [Lock.Extend] prolongs it, [Lock.AssertTTL] asks how much is left, and
// [Lock.Remaining] estimates that without asking. Whoever finds out by a call on
// the handle that the time was over gets [ErrLost]; the session is closed then,
// with what was begun on it, since it must not outlive the lock (unless it is one that
// locks of a Pool share). [Lock.Token] is a
// number that grows with every grant, for stores that refuse late writes.
//
// # Many locks, many waiters
//
// A Locker takes a connection for each lock and for each wait. A Pool does not:
//
//	goroutines          queue for a key, first come, first served; one has the turn
//	who has the turn    tries on a shared session; if another process has the lock, an
//	                    attempt waits for it on the server, in a goroutine and on a session
//	                    of its own, and stays with the queue when its caller gives up
//	release             hands the lock to the next in the queue, on the same session: without
//	                    a statement, or, for a lease, by one that gives it the next one's
//	                    TTL and a new token; after 100 of these or 10 ms, or if nobody
//	                    waits, it is released on the server
//	locks               share sessions, about 500 each; one with OwnSession has its own
//	watch               one statement each interval, over one of the sessions: for each
//	                    session, whether it still holds one of its locks, as which it lives
//
// What can happen between two steps:
//
//   - A caller gives up in the queue: it leaves at once. If it has just been given the
//     turn, or the lock, that goes on to the next, or is released, without the caller.
//   - A caller gives up while its attempt waits on the server: the next in the queue
//     gets the attempt. If there is none, it is called off; what it was granted at that
//     moment is released.
//   - There is no connection to wait on: the name is tried at intervals. To wait on one is
//     a convenience that nobody else may have to wait for, since who holds the lock may
//     be waiting for a lock of ours, for which there is no connection: an OwnSession that
//     needs it ends the wait. What holds a connection is either held itself,
//     or over soon.
//   - Functions that hold an OwnSession each wait for a further one: the call that
//     closes the circle gets [ErrPoolTooSmall]. It is known from the ctx that fn gets,
//     so pass that on.
//   - A shared session ends (KILL, wait_timeout, a broken network, an operator's Break):
//     all of its locks are lost, and their functions are told. That is the price of
//     sharing; a lock with OwnSession ends alone.
//   - A lease ends under its tenant: by the local clock, before anybody else can take it.
//     The Pool frees it on the server at once, so that nobody has a reason to kill the
//     session that others share, and the next in the queue goes on. (A process that
//     is stopped for longer than the TTL can't; its session is killed, with all on it.)
//   - The watch is not answered within [WithAnswerTime]: it has asked over a second
//     session after half of that. What no session has vouched for is lost to us.
//   - The application uses all of its connections: the watch asks over the Pool's own.
//     If these are all in use by their tenants, too, it can't tell, and asks again.
//   - The function of an OwnSession works on that session: nothing is sent there.
//     The watch asks about it elsewhere.
//   - The process dies: the server frees all, as ever.
//
// # Work that must not be committed after a loss
//
// Package txguard runs it in a transaction on [Lock.Conn], or behind a fence, and
// tells what became of it. It stands on [Lock.WhileHeld].
//
// # What the core promises, whatever the backend
//
//   - A session never goes back to its pool with a lock of ours in it: when a
//     release can't be confirmed, the session is closed, and the server frees
//     its locks. The exception is a caller who closes the *sql.Conn first;
//     Release then says so.
//   - Loss is never silent. A lost lock closes [Lock.Done], and every later
//     call on the handle returns [ErrLost]. Losses are found by asking the
//     server: Check, Release, and the watch that a Do, or a Pool, keeps.
//   - An acquire that is busy, times out or is cancelled leaves the caller's
//     session usable and without the lock. Where that is not possible the error
//     matches [ErrSessionGone] and the session has been closed.
//   - A ctx bounds the wait for a lock, never its tenancy. Release works with a
//     ctx that has ended.
//   - The pool belongs to the caller: it is never opened, closed or tuned.
//
// # Names
//
// See [Key]: a short name of printable ASCII characters is used as it is, so
// that other programs that use the same name on the same server are excluded
// too; anything else becomes a readable prefix and a hash.
//
// # Errors
//
// Every error of a Locker or a Lock is an [*OpError] with operation and name,
// apart from those of the function given to Do; match the sentinels with
// [errors.Is]. The error of a ctx that has ended stays matchable too.
//
// A driver may log broken connections by itself: github.com/go-sql-driver/mysql
// does, to stderr, unless its SetLogger says otherwise.
package sqllock
