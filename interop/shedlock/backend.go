package shedlock

import (
	"context"
	"database/sql"
	"time"

	"github.com/sqllock/go-sqllock/internal/rowlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

type engine = rowlock.Backend

// Backend is the lock backend on ShedLock's table. It is safe for concurrent use.
type Backend struct{ *engine }

var (
	_ sqllock.Leaser  = (*Backend)(nil)
	_ sqllock.Breaker = (*Backend)(nil)
)

// New returns a backend whose locks are held for ttl (lockAtMostFor), unless [sqllock.TTL]
// says otherwise. TTLs are rounded up to whole seconds. It does nothing until the first lock.
// It panics if ttl is not positive.
func New(ttl time.Duration, opts ...Option) *Backend {
	var o options
	for _, opt := range opts {
		opt.apply(&o)
	}
	return &Backend{rowlock.New(rowlock.Format{
		Package: "shedlock", Owner: "ShedLock", Table: "shedlock",
		ID:    rowlock.Column{Name: "name", MySQL: "varchar(64)", Postgres: "varchar(64)"},
		Token: rowlock.Column{Name: "locked_by", MySQL: "varchar(255)", Postgres: "varchar(255)"},
		Until: rowlock.Column{Name: "lock_until", MySQL: "timestamp(3)", Postgres: "timestamp"},
		At:    rowlock.Column{Name: "locked_at", MySQL: "timestamp(3)", Postgres: "timestamp"},
		Keeps: true, Longest: 64,
		NewToken: rowlock.Signed, Process: rowlock.Itself,
	}, ttl, o.pool, o.row...)}
}

// List tells of all locks that are held, by whomever, ordered by key; Process is locked_by,
// the host of a process in Java. It asks over a connection of db. Errors match ErrNoTable and
// ErrPermission. It is safe for concurrent use.
func (b *Backend) List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error) {
	return b.engine.List(ctx, db)
}

// Break sets lock_until of key to now, whoever has it, and returns what it said before, or
// ErrNotHeld. It ends no session: a holder in Go goes on until it asks, which a Do does every
// second, and one in Java to its end. The next one may hold the lock before that. It is safe
// for concurrent use.
func (b *Backend) Break(ctx context.Context, db *sql.DB, key string) (sqllock.Holder, error) {
	return b.engine.Break(ctx, db, key)
}
