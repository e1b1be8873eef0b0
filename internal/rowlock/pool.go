package rowlock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// How long to wait for a connection of the pool: where nothing else will do, and where the
// session of the lock may do as well.
const (
	poolTime  = userlock.AnswerTime
	spareTime = 250 * time.Millisecond
)

// alone runs f on the session under conn, outside of transactions.
func (b *Backend) alone(ctx context.Context, conn *sql.Conn, f func(*on) error) error {
	return b.use(conn, func(o *on) error {
		inside, err := o.inside(ctx)
		switch {
		case err != nil:
			return err
		case inside:
			return b.errInTransaction()
		}
		return f(o)
	})
}

// apart runs f on the session under conn, or, where that is in a transaction or has rows
// open, over the pool.
// It first tells which session that is.
func (b *Backend) apart(ctx context.Context, conn *sql.Conn, tell func(dc any), f func(*on) error) error {
	aside := false
	err := b.use(conn, func(o *on) error {
		tell(o.dc)
		if b.pool != nil && o.occupied() {
			aside = true
			return nil
		}
		inside, err := o.inside(ctx)
		switch {
		case err != nil:
			return err
		case inside && b.pool != nil:
			aside = true
			return nil
		case inside:
			return b.errInTransaction()
		}
		return f(o)
	})
	if aside {
		return b.withPool(ctx, poolTime, f)
	}
	return err
}

// over runs f over whatever there is but a transaction: over the pool where a session is in
// one, or is gone.
func (b *Backend) over(ctx context.Context, q sqllock.Querier, f func(*on) error) error {
	switch q := q.(type) {
	case *sql.DB:
		conn, err := q.Conn(ctx)
		if err != nil {
			return err
		}
		return b.once(conn, f)
	case *sql.Conn:
		err := b.apart(ctx, q, func(any) {}, f)
		if errors.Is(err, sqllock.ErrSessionGone) && b.pool != nil {
			return b.withPool(ctx, poolTime, f)
		}
		return err
	}
	return fmt.Errorf("%w: it can't be asked over a %T", sqllock.ErrUnsupported, q)
}

// withPool runs f on a session of the pool. What becomes of that session says nothing about
// the session of the lock, so neither does the error.
func (b *Backend) withPool(ctx context.Context, patience time.Duration, f func(*on) error) error {
	for try := 1; ; try++ {
		conn, err := session.Spare(ctx, b.format.Package, b.pool, patience)
		if err != nil {
			return err
		}
		err = b.once(conn, f)
		gone := errors.Is(err, sqllock.ErrSessionGone)
		switch {
		case gone && notSent(err) && try < 3: // a dead connection of the pool
		case gone:
			return fmt.Errorf("over the pool of %s.WithPool: %v", b.format.Package, err) //nolint:errorlint // see above
		case errors.Is(err, sqllock.ErrNoTable):
			return fmt.Errorf("over the pool of %s.WithPool, which must lead to the same server and database: %w", b.format.Package, err)
		default:
			return err
		}
	}
}

// once runs f on a session of a pool, and puts it back, unless it is gone.
func (b *Backend) once(conn *sql.Conn, f func(*on) error) error {
	err := b.use(conn, f)
	if errors.Is(err, sqllock.ErrSessionGone) {
		_ = session.Close(conn)
	}
	_ = conn.Close() // one that was closed says so
	return err
}

// queriesOf are those for the server of q, which a *sql.Tx does not tell without being asked.
func (b *Backend) queriesOf(ctx context.Context, q sqllock.Querier) (*queries, error) {
	if in, ok := q.(sqllock.InTx); ok {
		q = in.Conn
	}
	if conn, ok := q.(*sql.Conn); ok {
		var qs *queries
		err := b.use(conn, func(o *on) error {
			qs = o.q
			return nil
		})
		return qs, err
	}
	var version sql.NullString
	if err := userlock.AskOver(ctx, q, "SELECT version() v", &version); err != nil {
		return nil, err
	}
	if len(version.String) > 10 && version.String[:10] == "PostgreSQL" || len(version.String) > 12 && version.String[:12] == "EnterpriseDB" {
		return b.postgres, nil
	}
	return b.mysql, nil
}

// askOver runs a statement in the transaction of q, or wherever q leads.
func (q *queries) askOver(ctx context.Context, over sqllock.Querier, query string, dest ...sql.Scanner) error {
	if q.pg {
		return pgsession.AskOver(ctx, over, query, dest...)
	}
	return userlock.AskOver(ctx, over, query, dest...)
}
