package table

import (
	"database/sql"
	"regexp"

	"github.com/sqllock/go-sqllock/internal/userlock"
)

// Option configures a [Backend].
type Option interface{ apply(*Backend) }

type option func(*Backend)

func (o option) apply(b *Backend) { o(b) }

var identifiers = regexp.MustCompile(`^[0-9A-Za-z_$]{1,64}(\.[0-9A-Za-z_$]{1,64})?$`)

// WithTable names the table, with its schema in front if it is not in the
// default database of the sessions: "locks.shared_locks". Without it the table is
// called shared_locks. It panics unless each name is 1 to 64 ASCII letters, digits,
// "_" or "$".
func WithTable(name string) Option {
	if !identifiers.MatchString(name) {
		panic("table: WithTable(\"" + name + "\"): a table is named by letters, digits, _ and $, with a schema and a dot in front if need be")
	}
	return option(func(b *Backend) { b.name = name })
}

// WithPool lends the backend connections of db, each for one statement or a
// few, for what the session of a lock can't do, or should not: extend a lease, since
// that session may be busy or in a transaction (where no connection is to be had
// for a quarter of a second, Extend runs on the session after all), keep rows of
// an InnoDB table, and writes that the server refuses there, out of the caller's
// transaction, repair a damaged table, and end a wait at once when its ctx is
// cancelled (by KILL QUERY; without a pool a cancelled wait ends within a second).
//
// It must lead to the same server and default database, as the same user. The
// application's own pool will do where it has a connection to spare at that
// moment; what can't be done within five seconds fails with an error that says so.
// With it waits stay longer in the server's queue, four seconds and not one, which
// the readTimeout of the DSN must exceed.
func WithPool(db *sql.DB) Option {
	return option(func(b *Backend) { b.pool = db })
}

// AllowUnmigrated accepts a table of the PHP package as it is, without the
// columns that migrations.Up adds. Its locks have no fencing tokens and do not
// say which process holds them; each acquisition costs one more round trip.
func AllowUnmigrated() Option {
	return option(func(b *Backend) { b.unmigrated = true })
}

// Allow accepts servers that would be refused with [sqllock.ErrUnsupported].
// Each [Risk] says what is at stake.
func Allow(risks ...Risk) Option {
	return option(func(b *Backend) {
		for _, r := range risks {
			b.allowed |= r
		}
	})
}

// Risk is a property of a server that keeps GET_LOCK, on which the doorbell
// rests, from being a lock that excludes everybody.
type Risk = userlock.Risk

const (
	// OneLockPerSession is MySQL before 5.7.5 and MariaDB before 10.0.2, where
	// acquiring a second lock in a session silently frees the first.
	OneLockPerSession = userlock.OneLockPerSession

	// ReadOnly is a server that takes no writes of ordinary users, probably a
	// replica: a lock there excludes nobody who locks on the primary.
	ReadOnly = userlock.ReadOnly

	// PerNode is a node of a cluster whose nodes each have user-level locks of
	// their own: Galera, group replication with several primaries, NDB Cluster.
	// Allow it only if every process of the application uses one and the same
	// node.
	PerNode = userlock.PerNode

	// Lookalike is a server that speaks the protocol of MySQL and is another
	// program, whose user-level locks have not been tried with this package.
	Lookalike = userlock.Lookalike
)
