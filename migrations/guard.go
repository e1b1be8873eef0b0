package migrations

import (
	"context"
	"database/sql"
	"errors"

	"github.com/pressly/goose/v3/lock"

	"github.com/sqllock/go-sqllock/sqllock"
)

// guard is the lock under which goose migrates one table, on the session that
// goose migrates it on. It serves one call of Up or Down.
type guard struct {
	config  *config
	prepare func(context.Context, *sql.Conn) error
	lock    *sqllock.Lock
}

var _ lock.SessionLocker = (*guard)(nil)

// SessionLock waits for the lock as long as ctx allows, and prepares. On failure
// the lock is not held: goose calls no SessionUnlock then.
func (g *guard) SessionLock(ctx context.Context, conn *sql.Conn) (err error) {
	schema, err := g.config.schema(ctx, conn)
	if err != nil {
		return err
	}
	locker := sqllock.New(g.config.dialect.backend(), sqllock.WithNamespace("go-sqllock"))
	g.lock, err = locker.Lock(ctx, conn, "migrations "+schema+"."+g.config.table)
	if err != nil {
		return err
	}
	if renew := g.config.dialect.renew; renew != "" {
		_, err = conn.ExecContext(ctx, renew)
	}
	if err == nil {
		err = g.prepare(ctx, conn)
	}
	if err != nil {
		return errors.Join(err, g.SessionUnlock(ctx, conn))
	}
	return nil
}

// SessionUnlock frees the lock. A session that ctx has cost is gone, with the
// lock: there is nothing to add to what has been reported of that.
func (g *guard) SessionUnlock(ctx context.Context, _ *sql.Conn) error {
	err := g.lock.Release(ctx)
	if errors.Is(err, sqllock.ErrSessionGone) || errors.Is(err, sql.ErrConnDone) {
		return nil
	}
	return err
}
