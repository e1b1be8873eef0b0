package pgadvisory

import "github.com/sqllock/go-sqllock/internal/pgsession"

// Option configures a [Backend].
type Option interface{ apply(*Backend) }

type option func(*Backend)

func (o option) apply(b *Backend) { o(b) }

// Allow accepts servers, and ways to them, that would be refused with
// [sqllock.ErrUnsupported]. Each [Risk] says what is at stake.
func Allow(risks ...Risk) Option {
	return option(func(b *Backend) {
		for _, r := range risks {
			b.allowed |= r
		}
	})
}

// Risk is a property of a server, or of what is on the way to it, that keeps the
// advisory lock of a session from being a lock that excludes everybody.
type Risk = pgsession.Risk

const (
	// ReadOnly is a standby: a lock there excludes nobody who locks on the primary.
	ReadOnly = pgsession.ReadOnly

	// Pooler is something between this process and the server that ends connections
	// itself, as PgBouncer does. Allow it only if it is in session mode: in transaction
	// mode two clients are both granted one lock, and it stays when they have gone.
	Pooler = pgsession.Pooler

	// Lookalike is a server that speaks the protocol of PostgreSQL and is another
	// program, whose advisory locks have not been tried with this package, or, as those
	// of CockroachDB, do nothing.
	Lookalike = pgsession.Lookalike
)
