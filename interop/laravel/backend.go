package laravel

import (
	"context"
	"database/sql"
	"time"

	"github.com/sqllock/go-sqllock/internal/rowlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

type engine = rowlock.Backend

// Backend is the lock backend on Laravel's table. It is safe for concurrent use.
type Backend struct{ *engine }

var (
	_ sqllock.Leaser  = (*Backend)(nil)
	_ sqllock.Breaker = (*Backend)(nil)
)

// New returns a backend whose locks are held for ttl, unless [sqllock.TTL] says otherwise.
// TTLs are rounded up to whole seconds. It does nothing until the first lock. It panics if
// ttl is not positive.
func New(ttl time.Duration, opts ...Option) *Backend {
	var o options
	for _, opt := range opts {
		opt.apply(&o)
	}
	return &Backend{rowlock.New(rowlock.Format{
		Package: "laravel", Owner: "Laravel", Table: "cache_locks",
		ID:      rowlock.Column{Name: "key", MySQL: "varchar(255)", Postgres: "varchar(255)"},
		Token:   rowlock.Column{Name: "owner", MySQL: "varchar(255)", Postgres: "varchar(255)"},
		Until:   rowlock.Column{Name: "expiration", MySQL: "int", Postgres: "integer"},
		Seconds: true, Longest: 255, Skew: defaultSkew,
		Tail:     " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci",
		NewToken: rowlock.Signed, Process: rowlock.Itself,
	}, ttl, o.pool, o.row...)}
}

// List tells of all locks that are held, by whomever, ordered by key; Process is the owner,
// which a process of this package begins with "host/pid program", and Laravel makes of random
// letters. It asks over a connection of db. Errors match ErrNoTable and ErrPermission. It is
// safe for concurrent use.
func (b *Backend) List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error) {
	return b.engine.List(ctx, db)
}

// Break removes the row of key, whoever has made it, as Laravel's forceRelease does, and
// returns what it said, or ErrNotHeld. It ends no session: a holder in Go goes on until it
// asks, which a Do does every second, and one in PHP to its end. The next one may hold the
// lock before that. It is safe for concurrent use.
func (b *Backend) Break(ctx context.Context, db *sql.DB, key string) (sqllock.Holder, error) {
	return b.engine.Break(ctx, db, key)
}
