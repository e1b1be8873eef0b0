package symfony

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"time"

	"github.com/sqllock/go-sqllock/internal/rowlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

type engine = rowlock.Backend

// Backend is the lock backend on Symfony's table. It is safe for concurrent use.
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
		Package: "symfony", Owner: "Symfony", Table: "lock_keys",
		ID:      rowlock.Column{Name: "key_id", MySQL: "varchar(64)", Postgres: "varchar(64)"},
		Token:   rowlock.Column{Name: "key_token", MySQL: "varchar(44)", Postgres: "varchar(64)"},
		Until:   rowlock.Column{Name: "key_expiration", MySQL: "int unsigned", Postgres: "integer"},
		Seconds: true, Hashed: true, Rounds: true,
		Tail:     " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
		NewToken: newToken, Process: func(string) string { return "" },
	}, ttl, o.pool, o.row...)}
}

// newToken is as long as the column.
func newToken() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // it never fails
	return base64.StdEncoding.EncodeToString(b)
}

// List tells of all locks that are held, by whomever. Key is what the table has, the hash of
// a name, and nothing there tells who holds it. It asks over a connection of db. Errors match
// ErrNoTable and ErrPermission. It is safe for concurrent use.
func (b *Backend) List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error) {
	return b.engine.List(ctx, db)
}

// Break removes the row of key, whoever has made it, and returns what it said, or ErrNotHeld.
// It ends no session: the holder goes on until it asks, which a Do does every second, and a
// process of PHP when it refreshes. The next one may hold the lock before that. It is safe for
// concurrent use.
func (b *Backend) Break(ctx context.Context, db *sql.DB, key string) (sqllock.Holder, error) {
	return b.engine.Break(ctx, db, key)
}
