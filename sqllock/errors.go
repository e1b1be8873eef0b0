package sqllock

import (
	"errors"
	"strconv"
	"strings"
)

var (
	// ErrBusy is returned by TryLock when another session holds the name, and,
	// together with the error of the ctx, by Lock when it held the name until
	// the wait ended. The session is unharmed and holds nothing new.
	ErrBusy = errors.New("sqllock: another session holds the lock")

	// ErrHeld is returned by TryLock and Lock when the session under the conn
	// holds the name already, or is acquiring it in another goroutine; by a [Pool]
	// when the ctx of the call is that of a function that runs under the lock. That
	// lock is not touched; no second reference is taken.
	ErrHeld = errors.New("sqllock: the caller holds the lock already")

	// ErrNotHeld is returned by the calls on a handle that has been released,
	// and by Holder when nobody holds the name.
	ErrNotHeld = errors.New("sqllock: the lock is not held")

	// ErrLost is returned by every call on a handle whose lock is gone without
	// having been released: its session ended, its TTL is over, or something else
	// freed it. Another session may hold the lock by now. Where the session may
	// still have had a part of it, it has been closed.
	ErrLost = errors.New("sqllock: the lock was lost")

	// ErrUnknown is returned by Check when the server could not be asked (the
	// handle goes on) and by Release when the server did not confirm it (the
	// handle has ended). In the second case the session has been closed, so the
	// server frees the lock as soon as it notices, unless the caller had closed
	// the conn before, which the error then says.
	ErrUnknown = errors.New("sqllock: could not tell whether the lock was held")

	// ErrSessionGone is returned when the session under the conn is over:
	// broken, killed, or closed because its state could not be trusted any
	// more. It holds nothing. Close the conn and take another one.
	ErrSessionGone = errors.New("sqllock: the session is gone")

	// ErrInterrupted is returned by TryLock and Lock when the statement was
	// ended from outside, by KILL QUERY, pg_cancel_backend or a limit on execution time. The
	// session is usable and does not hold the lock.
	ErrInterrupted = errors.New("sqllock: the statement was interrupted on the server")

	// ErrDeadlock is returned by Lock when waiting would close a cycle of
	// sessions that wait for each other. The session keeps what it had.
	// Release what it holds, then try again.
	ErrDeadlock = errors.New("sqllock: deadlock")

	// ErrHolderAlive is returned by TryLock and Lock, together with ErrBusy, when
	// the TTL of the holder is over, its session has been told to end, and had
	// not ended by the end of the wait: it may be rolling back. Nothing has been
	// acquired; try again.
	ErrHolderAlive = errors.New("sqllock: the holder, whose time is over, has not ended yet")

	// ErrPermission is returned when the database user lacks a privilege, for
	// one to end the session of a holder of another user. Nothing has been
	// acquired, nothing changed.
	ErrPermission = errors.New("sqllock: the database user lacks a privilege")

	// ErrInTransaction is returned when the session under the conn is in a
	// transaction, and the backend can't acquire or extend there without
	// breaking it, or without being undone by its rollback. Nothing changed.
	ErrInTransaction = errors.New("sqllock: the session is in a transaction")

	// ErrNoTable is returned when the table of the locks is not there, or not
	// of the needed shape; the text names what creates it. Nothing is held.
	ErrNoTable = errors.New("sqllock: there is no usable lock table")

	// ErrTTLTooShort is returned by AssertTTL when less time is left than was
	// asked for. The lock is still held.
	ErrTTLTooShort = errors.New("sqllock: too little of the TTL is left")

	// ErrClosed is returned by the calls on a [Pool] that has been closed, or is
	// closed while they wait. Nothing has been acquired.
	ErrClosed = errors.New("sqllock: the Pool is closed")

	// ErrPoolTooSmall is returned by the calls on a [Pool] that has too few
	// connections for what is asked: at once where waiting could not help, else
	// with the error of the ctx that has ended. The text says who has them. Nothing
	// has been acquired.
	ErrPoolTooSmall = errors.New("sqllock: too few connections for this lock")

	// ErrInvalidName is returned for a name that can't be locked. Nothing has
	// been sent to the server.
	ErrInvalidName = errors.New("sqllock: invalid lock name")

	// ErrUnsupported is returned when the server can't keep the promises of
	// the backend, or the backend has no such thing as is asked for; the text
	// says why. Nothing is held, nothing changed.
	ErrUnsupported = errors.New("sqllock: not supported")
)

// OpError says which operation on which lock failed. Every error of a [Locker]
// or a [Lock] is one, save that Do and TryDo return the error of the function as
// it is, or wrapped together with one.
type OpError struct {
	Op   string // "lock", "try lock", "hold" (how a lock ended), "check", "extend", "assert ttl", "use", "release", "holder", "break" or "do"
	Name string // the name as the caller gave it
	Err  error  // why; match it with errors.Is
}

// Error returns operation, name and cause on one line.
func (e *OpError) Error() string {
	cause := strings.ReplaceAll(e.Err.Error(), "sqllock: ", "")
	return "sqllock: " + e.Op + " " + strconv.Quote(e.Name) + ": " + cause
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
