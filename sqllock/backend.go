package sqllock

import (
	"context"
	"database/sql"
	"time"
)

// Backend is what a lock implementation provides; to sqllock it is what
// [database/sql/driver.Driver] is to database/sql. Applications hand one to
// [New] and use the [Locker]. Implementations are safe for concurrent use.
//
// Three rules hold for every method that works on a *sql.Conn or a *sql.Tx.
//
//   - A ctx that has ended must not reach a statement on it, and one that ends
//     must not cut a statement short, since drivers answer both by closing the
//     session, and every lock in it is lost. Bounds of time are the backend's
//     own, and begin when the statement does, not while it waits for another
//     one on the conn.
//   - Statements on a *sql.Conn are run inside [database/sql.Conn.Raw], in a
//     function that returns nil whatever becomes of them. QueryContext and its
//     like close the conn after driver.ErrBadConn, and that waits for an open
//     transaction to end: a caller who defers its rollback waits for itself.
//   - Where the session can't be trusted any more, the error matches
//     [ErrSessionGone]: the core then closes the session.
type Backend interface {
	// Acquire makes the session under conn the holder of req.Key. A request
	// that does not wait gets ErrBusy when another session holds it; one that
	// waits does so on the server until the lock is granted, or until ctx has
	// ended or its deadline has passed, and gets ErrBusy then; the core adds the
	// error of ctx. After an error the session does not hold the key, unless
	// the error is ErrHeld: it had held it before the call.
	Acquire(ctx context.Context, conn *sql.Conn, req Request) (Grant, error)

	// Release frees what Acquire granted. It returns an error that matches
	// ErrLost when the session did not hold it any more, and any other error
	// when it can't tell. The core calls it once for each grant, with a ctx
	// that does not end by itself; Release sets its own bound.
	Release(ctx context.Context, conn *sql.Conn, g Grant) error

	// Check asks the server, over q (the session that holds g, or a
	// transaction on it), whether g is still held: nil, an error that matches
	// ErrLost, or any other error when it can't tell. Over an [InTx] it sends at
	// least one statement there, whose answer tells package txguard of the
	// transaction, and joins nothing to it.
	Check(ctx context.Context, q Querier, g Grant) error

	// Holder tells who holds key, asking over any session of the same server,
	// or returns ErrNotHeld.
	Holder(ctx context.Context, q Querier, key string) (Holder, error)
}

// Leaser is a Backend whose grants end by themselves when their TTL is over,
// unless they are extended. Its Check returns an error that matches ErrLost for a
// grant whose time is over, taken by another or not.
type Leaser interface {
	Backend

	// Extend has g end ttl from now. It returns an error that matches ErrLost
	// when g had ended, and any other error when it can't tell. It never
	// acquires. conn is the one that g was acquired on, and may be busy.
	Extend(ctx context.Context, conn *sql.Conn, g Grant, ttl time.Duration) (until time.Time, err error)

	// TimeLeft asks the server, over q as in Check, how long it is until
	// another session can take g.
	TimeLeft(ctx context.Context, q Querier, g Grant) (time.Duration, error)
}

// Breaker is a Backend that can take a lock from its holder.
type Breaker interface {
	Backend

	// Break ends the session that holds key, as the operator of db's user, and
	// returns when the lock is free of it. It returns whom it ended, or
	// ErrNotHeld.
	Break(ctx context.Context, db *sql.DB, key string) (Holder, error)
}

// Watcher is a Backend that can be asked about many grants at a time, which [Pool]
// does at its interval.
type Watcher interface {
	Backend

	// Watch asks over q, any session of the same server, which of the grants are
	// still held by their sessions. It takes one statement for a hundred grants or so,
	// and returns one answer for each, or an error when it can't tell. As with
	// Holder, ctx cuts nothing short on a *sql.Conn.
	Watch(ctx context.Context, q Querier, grants []Grant) (held []bool, err error)
}

// Passer is a Backend whose grants can go to the next one who waits in the same
// process without being released.
type Passer interface {
	Backend

	// Pass makes of g, which the session under conn holds outside of a transaction,
	// the grant of its next tenant, who asks for req: with a token that is greater
	// and the TTL of req, where the backend has such. It returns an error that
	// matches ErrLost when g had ended. After another error g may still be held, and
	// is to be released.
	Pass(ctx context.Context, conn *sql.Conn, g Grant, req Request) (Grant, error)
}

// Relinquisher is a Backend whose session may still have a part of a lock that is
// lost. Without it such a session is closed, with all other locks on it.
type Relinquisher interface {
	Backend

	// Relinquish frees what the session under conn may still have of g, which is
	// lost, and under which nothing was begun on that session.
	Relinquish(ctx context.Context, conn *sql.Conn, g Grant) error
}

// GroupExtender is a Leaser that extends many grants at a time, on whichever
// sessions they are, without asking those.
type GroupExtender interface {
	Leaser

	// ExtendAll is Extend for all of grants, which have different keys, over the session
	// under conn, which may hold none of them and is in no transaction. held tells of
	// each whether it ends at until now, or had ended before. After an error each of
	// them ends when it did before, or at until.
	ExtendAll(ctx context.Context, conn *sql.Conn, grants []Grant, ttl time.Duration) (held []bool, until time.Time, err error)
}

// GroupAcquirer is a Backend that acquires several keys at once in fewer round
// trips than one by one.
type GroupAcquirer interface {
	Backend

	// AcquireAll is Acquire for all of reqs, which do not wait and have different
	// keys, or for none: after an error the session holds none of them that it had
	// not held before. It returns ErrBusy if any of them is not to be had, held by
	// this session or another.
	AcquireAll(ctx context.Context, conn *sql.Conn, reqs []Request) ([]Grant, error)
}

// Sharer is a Backend whose locks can be shared ([Shared]): its Acquire, and what else
// takes requests, heeds Request.Shared. A session that holds a key in either way gets
// ErrHeld for it in the other.
type Sharer interface {
	Backend

	// CanShare does nothing, and says that it can.
	CanShare()
}

// TxLocker is a Backend that can lock for the length of a transaction.
type TxLocker interface {
	Backend

	// AcquireTx acquires in tx what ends with it, and returns no error if it is held. A
	// request that waits does so until ctx has ended. After an error nothing has been
	// acquired, and tx can go on unless the error matches ErrSessionGone.
	AcquireTx(ctx context.Context, tx *sql.Tx, req Request) error
}

// Request says what to acquire, and how.
type Request struct {
	Key     string        // as made by [Key]
	Wait    bool          // wait while another session holds it
	TTL     time.Duration // how long to hold it, for a Leaser; 0 for its default
	Shared  bool          // beside others who share it, for a Sharer
	Observe func(Event)   // takes what happens on the way; never nil, must not block

	pooled // what a Pool does with the lock
}

// Grant identifies one acquisition of a key.
type Grant struct {
	Key     string
	Session int64     // the server's id of the session that holds it; 0 if the backend would have to ask for it
	Token   int64     // a fencing token, greater than those of the key's earlier grants; 0 if the backend has none
	Until   time.Time // a lower bound of when it ends by itself, monotonic; zero if it does not
	State   any       // what else the backend wants to get back with it
}

// Holder describes the session that holds a lock. What the backend does not
// know, or the server does not show to the user that asks, is left at its zero
// value.
type Holder struct {
	Key      string // the name on the server
	Session  int64  // the server's id of the session, as KILL or pg_terminate_backend takes it
	User     string // the database user
	Host     string // where it is connected from, "host:port" on most servers
	Database string // its default database
	State    string // what it is doing; "Sleep", or on PostgreSQL "idle", when it runs no statement
	Process  string // what the process said of itself, as "host/pid program"
	Token    int64  // of its grant

	// Alive tells whether the session lives and has the lock. It is false for
	// what a dead session, or one that let go, has left behind; the next
	// Lock or TryLock takes that over.
	Alive bool

	// Since is when the lock was granted or last extended, by the server's
	// clock in whole seconds. A backend on user-level or advisory locks alone tells when the
	// session came into its State, its last statement if it is idle: the server
	// keeps no record of when a lock was granted, so the lock may be older; that
	// of a Do is checked every second or so, and looks no older than that.
	Since time.Time

	// Expires is when another session can take the lock, by the server's clock,
	// and TimeLeft how long that is from when the server was asked, negative if it
	// is over. They are zero for a lock without a TTL.
	Expires  time.Time
	TimeLeft time.Duration
}

// Querier is what *sql.DB, *sql.Conn and *sql.Tx have in common as far as the
// backends need it.
type Querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// InTx is a *sql.Conn with a transaction open on it, as package txguard asks over:
// what a backend can't tell from the conn, and would have to ask for.
type InTx struct{ *sql.Conn }
