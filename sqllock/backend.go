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
	// ErrLost, or any other error when it can't tell.
	Check(ctx context.Context, q Querier, g Grant) error

	// Holder tells who holds key, asking over any session of the same server,
	// or returns ErrNotHeld.
	Holder(ctx context.Context, q Querier, key string) (Holder, error)
}

// Request says what to acquire, and how.
type Request struct {
	Key  string // as made by [Key]
	Wait bool   // wait while another session holds it
}

// Grant identifies one acquisition of a key.
type Grant struct {
	Key     string
	Session int64 // the server's id of the session that holds it
}

// Holder describes the session that holds a lock. What the server does not
// show to the user that asks is left at its zero value.
type Holder struct {
	Session  int64  // the server's id of the session, as KILL takes it
	User     string // the database user
	Host     string // where it is connected from, "host:port" on most servers
	Database string // its default database
	State    string // what it is doing, "Sleep" when it runs no statement

	// Since is when the session came into its State, by the server's clock in
	// whole seconds: its last statement, if it is idle. The server keeps no
	// record of when a lock was granted, so the lock may be older; that of a Do
	// is checked every second or so, and its session looks no older than that.
	Since time.Time
}

// Querier is what *sql.DB, *sql.Conn and *sql.Tx have in common as far as the
// backends need it.
type Querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}
