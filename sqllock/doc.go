// Package sqllock is the core of a layer of distributed locks for applications
// that already have a [database/sql] pool: one process in the fleet does the
// work, the others wait or skip.
//
// # The life of a lock
//
// A [Locker] puts a [Backend] to work under a namespace. It has two layers:
//
//   - [Locker.Do] and [Locker.TryDo] run a function while a lock is held. They
//     take a connection from the pool, acquire, watch the lock, release, and
//     give the connection back clean. This is the form to start with.
//   - [Locker.Lock] and [Locker.TryLock] work on a *sql.Conn of the caller and
//     return a [Lock], a handle that the caller releases.
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
// with what was begun on it, since it must not outlive the lock. [Lock.Token] is a
// number that grows with every grant, for stores that refuse late writes.
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
//     server: Check, Release, and the watch that Do keeps.
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
