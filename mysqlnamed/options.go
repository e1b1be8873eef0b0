package mysqlnamed

import (
	"database/sql"

	"github.com/sqllock/go-sqllock/internal/userlock"
)

// Option configures a [Backend].
type Option interface{ apply(*Backend) }

type option func(*Backend)

func (o option) apply(b *Backend) { o(b) }

// WithControl lends the backend a pool for ending waits: when the ctx of a Lock
// is cancelled, KILL QUERY over a connection of control ends the wait at once,
// and the caller's session stays. It must lead to the same server, as the same
// user or one with the privilege to see and kill that user's sessions. The
// application's own pool will do where it has a connection to spare at that
// moment; in a shutdown with as many waiters as connections it has none. A wait
// that can't be ended within two seconds costs its session, and the error says
// why.
//
// Without it a cancelled wait ends within a second. With it waits also stay
// longer in the server's queue, four seconds and not one, which the readTimeout
// of the DSN must exceed.
func WithControl(control *sql.DB) Option {
	return option(func(b *Backend) { b.control = control })
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

// Risk is a property of a server that keeps GET_LOCK from being a lock that
// excludes everybody.
type Risk = userlock.Risk

const (
	// OneLockPerSession is MySQL before 5.7.5 and MariaDB before 10.0.2, where
	// acquiring a second lock in a session silently frees the first.
	OneLockPerSession = userlock.OneLockPerSession

	// ReadOnly is a server that takes no writes, probably a replica: a lock
	// there excludes nobody who locks on the primary.
	ReadOnly = userlock.ReadOnly

	// PerNode is a node of a cluster whose nodes each have locks of their own:
	// Galera, group replication with several primaries, NDB Cluster. Allow it
	// only if every process of the application uses one and the same node.
	PerNode = userlock.PerNode

	// Lookalike is a server that speaks the protocol of MySQL and is another
	// program, whose user-level locks have not been tried with this package.
	Lookalike = userlock.Lookalike
)
