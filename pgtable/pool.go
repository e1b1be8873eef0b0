package pgtable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

var (
	_ sqllock.Watcher       = (*Backend)(nil)
	_ sqllock.Passer        = (*Backend)(nil)
	_ sqllock.GroupExtender = (*Backend)(nil)
	_ sqllock.Relinquisher  = (*Backend)(nil)
)

// atOnce is how many grants one statement is about. pg_locks takes the longer the more
// locks and sessions the server has, whatever is asked of it, so it is many.
const atOnce = 1000

// Watch asks for a thousand grants in one statement, over any session of the same
// database: like Check whether each is held, and its time not over. For a session in a
// transaction it asks over the pool, and without one returns ErrInTransaction.
func (b *Backend) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) (held []bool, err error) {
	held = make([]bool, 0, len(grants))
	for some := range slices.Chunk(grants, atOnce) {
		if err := ours(some[0]); err != nil {
			return nil, err
		}
		var numbers sql.NullString
		if err := b.ask(ctx, q, b.queries.watch(some), &numbers); err != nil {
			return nil, err
		}
		answers, err := pgsession.Numbered(numbers.String, len(some))
		if err != nil {
			return nil, err
		}
		held = append(held, answers...)
	}
	return held, nil
}

// Pass gives the row a new token and the TTL of req, in one round trip.
func (b *Backend) Pass(_ context.Context, conn *sql.Conn, g sqllock.Grant, req sqllock.Request) (sqllock.Grant, error) {
	if err := ours(g); err != nil {
		return sqllock.Grant{}, err
	}
	ttl := b.lease(req)
	var start time.Time
	var token sql.NullInt64
	var setting sql.NullString
	err := pgsession.Use(conn, func(s *pgsession.Session) error {
		if s.Tx() != pgsession.Idle {
			return errInTransaction()
		}
		start = time.Now()
		return s.Apart(b.queries.pass(g, ttl), &token, &setting)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return sqllock.Grant{}, lost(whyOver)
	case err != nil:
		return sqllock.Grant{}, gone(b.explain(err))
	}
	g.Token, g.Until = token.Int64, start.Add(length(ttl, time.Second))
	return g, nil
}

// ExtendAll extends a thousand grants by one statement.
func (b *Backend) ExtendAll(_ context.Context, conn *sql.Conn, grants []sqllock.Grant, ttl time.Duration) (held []bool, until time.Time, err error) {
	n := wholeSeconds(ttl)
	until = time.Now().Add(length(n, time.Second))
	for some := range slices.Chunk(grants, atOnce) {
		if err := ours(some[0]); err != nil {
			return nil, time.Time{}, err
		}
		var numbers sql.NullString
		err := pgsession.Use(conn, func(s *pgsession.Session) error {
			if s.Tx() != pgsession.Idle {
				return errInTransaction()
			}
			return s.Apart(b.queries.extendAll(some, n), &numbers)
		})
		if err != nil {
			return nil, time.Time{}, b.explain(err)
		}
		answers, err := pgsession.Numbered(numbers.String, len(some))
		if err != nil {
			return nil, time.Time{}, err
		}
		held = append(held, answers...)
	}
	return held, until, nil
}

// Relinquish removes the row of the session, if there is one, and lets go of the
// doorbell. From then on nobody ends the session for the lock; one that is being ended
// waits here for that.
func (b *Backend) Relinquish(_ context.Context, conn *sql.Conn, g sqllock.Grant) error {
	return pgsession.Use(conn, func(s *pgsession.Session) error {
		delete(s.Known().Held, g.Key)
		if s.Tx() == pgsession.Idle {
			return b.explain(s.Apart(b.queries.relinquish(g.Key)))
		}
		return s.LetGo(bellOf(g.Key))
	})
}

// How long to wait for a connection of the pool: where nothing else will do, and where
// the session of the lock may do as well.
const (
	poolTime  = pgsession.AnswerTime
	spareTime = 250 * time.Millisecond
)

// withPool runs f on a session of the pool. What becomes of that session says nothing
// about the session of the lock, so neither does the error.
func (b *Backend) withPool(ctx context.Context, patience time.Duration, f func(*pgsession.Session) error) error {
	for try := 1; ; try++ {
		conn, err := session.Spare(ctx, "pgtable", b.pool, patience)
		if err != nil {
			return err
		}
		err = use(conn, f)
		gone := errors.Is(err, sqllock.ErrSessionGone)
		switch {
		case gone && pgsession.NotSent(err) && try < 3: // a dead connection of the pool
		case gone:
			return fmt.Errorf("over the pool of pgtable.WithPool: %v", err) //nolint:errorlint // see above
		case pgsession.Code(err) == pgsession.NoTable || errors.Is(err, sqllock.ErrUnsupported):
			return fmt.Errorf("over the pool of pgtable.WithPool, which must lead to the same database, as the same role: %w", err)
		default:
			return err
		}
	}
}

// use runs f on a session of a pool, and puts it back, unless it is gone.
func use(conn *sql.Conn, f func(*pgsession.Session) error) error {
	err := pgsession.Use(conn, f)
	if errors.Is(err, sqllock.ErrSessionGone) {
		_ = session.Close(conn)
	}
	_ = conn.Close() // one that was closed says so
	return err
}

func (b *Backend) ask(ctx context.Context, q sqllock.Querier, query string, dest ...sql.Scanner) error {
	return b.explain(b.over(ctx, q, query, dest...))
}

// over runs a statement over whatever there is. A *sql.Tx is the caller's own choice.
func (b *Backend) over(ctx context.Context, q sqllock.Querier, query string, dest ...sql.Scanner) error {
	f := func(s *pgsession.Session) error { return s.Apart(query, dest...) }
	switch q := q.(type) {
	case *sql.DB:
		conn, err := q.Conn(ctx)
		if err != nil {
			return err
		}
		return use(conn, f)
	case *sql.Conn:
		err := pgsession.Use(q, f)
		if errors.Is(err, sqllock.ErrInTransaction) && b.pool != nil {
			return b.withPool(ctx, poolTime, f)
		}
		if errors.Is(err, sqllock.ErrInTransaction) {
			return errInTransaction()
		}
		return err
	}
	return pgsession.AskOver(ctx, q, query, dest...)
}
