package memory

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Backend is a backend without TTLs: a lock lives as long as its session. It is
// safe for concurrent use. [Server.Backend] returns it.
type Backend struct{ server *Server }

var (
	_ sqllock.Watcher       = (*Backend)(nil)
	_ sqllock.Passer        = (*Backend)(nil)
	_ sqllock.GroupAcquirer = (*Backend)(nil)
)

func noTTL(sqllock.Request) time.Duration { return 0 }

// Acquire tries, and waits in the queue of the lock if that is wanted. The end of ctx
// ends the wait at once, and costs nothing. Other statements on conn wait meanwhile.
func (b *Backend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	return b.server.acquire(ctx, conn, req, noTTL)
}

// AcquireAll is Acquire for all of reqs or for none.
func (b *Backend) AcquireAll(ctx context.Context, conn *sql.Conn, reqs []sqllock.Request) ([]sqllock.Grant, error) {
	return b.server.acquireAll(ctx, conn, reqs, noTTL)
}

// Release frees g, and gives the lock to the first who waits for it.
func (b *Backend) Release(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	return b.server.release(ctx, conn, g, errNotHeld)
}

// Check asks over q, the session that holds g, whether it does.
func (b *Backend) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	_, err := b.server.left(ctx, q, g, errNotHeld)
	return err
}

// Watch asks about many grants at a time, over any session of the server.
func (b *Backend) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) ([]bool, error) {
	return b.server.watch(ctx, q, grants)
}

// Pass makes g the grant of its next tenant, for which nothing has to change.
func (b *Backend) Pass(ctx context.Context, conn *sql.Conn, g sqllock.Grant, req sqllock.Request) (sqllock.Grant, error) {
	return b.server.pass(ctx, conn, g, noTTL(req), errNotHeld)
}

// Holder tells which session of the server holds key.
func (b *Backend) Holder(ctx context.Context, q sqllock.Querier, key string) (sqllock.Holder, error) {
	return b.server.holder(ctx, q, key, false)
}

// errNotHeld is the end of a lock whose session is as good as before.
var errNotHeld = fmt.Errorf("%w: the session does not hold it any more", sqllock.ErrLost)
