package txguard

import (
	"context"
	"database/sql"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/internal/session"
)

// dialect is what differs between the servers: how a session tells of its
// transaction, what errors mean, and the statements of a fence. Those run on the
// session under conn, bounded by themselves, where they belong to a transaction or
// to a lock, and by ctx where they are on the pool of the fence.
type dialect interface {
	// vacant returns an error unless the session is alive, in no transaction, and
	// tells when a later one ends. It matches sqllock.ErrInTransaction or
	// sqllock.ErrUnsupported if nothing is wrong with the session otherwise.
	vacant(ctx context.Context, conn *sql.Conn) error

	// notBegun is err, of BEGIN, which matches sqllock.ErrSessionGone if the session
	// was found to be over, and driver.ErrBadConn if another one may do.
	notBegun(conn *sql.Conn, err error) error

	// idle returns an error if no statement can be sent on the session now.
	idle(conn *sql.Conn) error

	// stillOpen returns errEndedEarly if the session is in no transaction any more,
	// errFailed if that can only be rolled back, and another error if that can't be told.
	stillOpen(ctx context.Context, conn *sql.Conn) error

	// endedEarly returns errEndedEarly if the transaction had ended when it came to
	// be undone because of why. If the session is broken, the server rolls back.
	endedEarly(ctx context.Context, conn *sql.Conn, why error) error

	// tidying are the statements, after a rollback and after a commit, that leave the
	// session in no transaction, and, if it had ended early, as it was before the function.
	tidying(conn *sql.Conn, early bool) []string
	chained(conn *sql.Conn) []string
	execute(ctx context.Context, conn *sql.Conn, query string) error

	// transient reports whether a transaction that failed with err, and was rolled back, may
	// succeed next time; refused whether err is the answer to COMMIT that nothing was
	// committed; and unsent whether COMMIT was not sent.
	transient(err error) bool
	refused(conn *sql.Conn, err error) bool
	unsent(err error) bool

	// mint makes a token greater than every one of key before, by statements that
	// send runs while the lock is held.
	mint(ctx context.Context, conn *sql.Conn, table, key string, send func(func() error) error) (token int64, err error)

	// raise returns the greatest token of key, this one included. blocked reports
	// whether somebody else's lock on the row has kept it from that.
	raise(ctx context.Context, conn *sql.Conn, table, key string, token int64) (latest int64, err error)
	blocked(err error) bool

	// note writes evidence, whatever the token, and pass if there is none but token; it
	// writes nothing otherwise, and seq is 0.
	note(ctx context.Context, conn *sql.Conn, table, key string, id []byte) (seq int64, place uint32, err error)
	pass(ctx context.Context, conn *sql.Conn, table, key string, token int64, id []byte) (seq int64, place uint32, err error)

	// superseded returns the token that has been raised, after a pass that failed with err and
	// was rolled back, if that may be why.
	superseded(ctx context.Context, conn *sql.Conn, table, key string, err error) (latest int64, known bool)

	// look reads the row of key when nobody is about to commit what it has written
	// there, and sweep removes those that have not been written for so many seconds.
	look(ctx context.Context, db *sql.DB, table, key string) (seq int64, commits []byte, place uint32, err error)
	sweep(ctx context.Context, db *sql.DB, table string, seconds int64) (removed int64, err error)

	// explain says what to do about an error of the table.
	explain(table string, err error) error
}

// dialectOf is that of the driver under conn. It sends nothing. Who has wrapped the
// one for MySQL may be hiding it; that for PostgreSQL is to be seen in any case.
func dialectOf(conn *sql.Conn) dialect {
	var d dialect = mySQL{}
	_ = session.Use(conn, func(s *session.Session) error {
		if pgsession.Is(s.Driver()) {
			d = postgres{}
		}
		return nil
	})
	return d
}
