package pgtable

import (
	"database/sql"
	"regexp"

	"github.com/sqllock/go-sqllock/internal/pgsession"
)

// Option configures a [Backend].
type Option interface{ apply(*Backend) }

type option func(*Backend)

func (o option) apply(b *Backend) { o(b) }

var identifiers = regexp.MustCompile(`^([0-9A-Za-z_$]{1,63}\.)?[0-9A-Za-z_$]{1,55}$`)

// WithTable names the table, with its schema in front if it is not in the search_path
// of the sessions: "locks.shared_locks". Without it the table is called shared_locks. The
// sequence of the tokens is called as the table, with "_token" behind it. Letter case
// counts. It panics unless the schema is 1 to 63, and the table 1 to 55, ASCII letters,
// digits, "_" or "$".
func WithTable(name string) Option {
	if !identifiers.MatchString(name) {
		panic("pgtable: WithTable(\"" + name + "\"): a table is named by up to 55 letters, digits, _ and $, with a schema and a dot in front if need be")
	}
	return option(func(b *Backend) { b.name = name })
}

// WithPool lends the backend connections of db, each for one statement or a few, for
// what the session of a lock can't do, or must not: extend a lease, since that session
// may be busy or in a transaction (where no connection is to be had for a quarter of a
// second, Extend runs on the session after all), and whatever reads or writes the table
// while the session is in a transaction of the caller's.
//
// It must lead to the same database, as the same role. The application's own pool will
// do where it has a connection to spare at that moment; what can't be done within five
// seconds fails with an error that says so.
func WithPool(db *sql.DB) Option {
	return option(func(b *Backend) { b.pool = db })
}

// Allow accepts servers, and ways to them, that would be refused with
// [sqllock.ErrUnsupported]. Each [Risk] says what is at stake. A standby takes no
// writes, so nothing makes it a place for these locks.
func Allow(risks ...Risk) Option {
	return option(func(b *Backend) {
		for _, r := range risks {
			b.allowed |= r
		}
	})
}

// Risk is a property of a server, or of what is on the way to it, that keeps the
// advisory lock of a session, on which the doorbell rests, from being a lock that
// excludes everybody.
type Risk = pgsession.Risk

const (
	// Pooler is something between this process and the server that ends connections
	// itself, as PgBouncer does. Allow it only if it is in session mode: in transaction
	// mode two clients are both granted one lock, and it stays when they have gone.
	Pooler = pgsession.Pooler

	// Lookalike is a server that speaks the protocol of PostgreSQL and is another
	// program, whose advisory locks have not been tried with this package, or, as those
	// of CockroachDB, do nothing.
	Lookalike = pgsession.Lookalike
)
