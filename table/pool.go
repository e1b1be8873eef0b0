package table

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

var (
	_ sqllock.Watcher       = (*Backend)(nil)
	_ sqllock.Passer        = (*Backend)(nil)
	_ sqllock.GroupExtender = (*Backend)(nil)
	_ sqllock.Relinquisher  = (*Backend)(nil)
)

// Watch asks for a hundred grants in one statement, over any session with the same
// default database: like Check whether each is held, and its time not over. A
// session in a transaction may see the rows of an InnoDB table as they were.
func (b *Backend) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) (held []bool, err error) {
	if len(grants) == 0 {
		return nil, nil
	}
	srv, err := serverOf(grants[0])
	if err != nil {
		return nil, err
	}
	held, err = userlock.Watch(ctx, q, grants, srv.queries.watch)
	return held, b.explain(err)
}

// Pass gives the row a new token and the TTL of req, in one statement. The session is
// not asked for a transaction, as Extend asks it where the table is of InnoDB: there
// is none. In an unmigrated table nothing tells the new grant from g.
func (b *Backend) Pass(ctx context.Context, conn *sql.Conn, g sqllock.Grant, req sqllock.Request) (sqllock.Grant, error) {
	srv, err := serverOf(g)
	if err != nil {
		return sqllock.Grant{}, err
	}
	ttl := b.lease(req)
	var start time.Time
	var res result
	err = session.Use(conn, func(s *session.Session) (err error) {
		start = time.Now()
		res, err = userlock.Exec(ctx, s, srv.queries.pass(g, ttl, b.floor.Load()+1))
		return err
	})
	switch {
	case errors.Is(err, sqllock.ErrSessionGone):
		return sqllock.Grant{}, fmt.Errorf("%w: %w", sqllock.ErrLost, b.explain(err))
	case inTransaction(userlock.Number(err)):
		return sqllock.Grant{}, errInTransaction(err)
	case err != nil:
		return sqllock.Grant{}, b.explain(err)
	}
	found, err := res.LastInsertId()
	switch {
	case err != nil:
		return sqllock.Grant{}, err
	case found == 0:
		return sqllock.Grant{}, lost("its TTL is over, or it has been taken over")
	}
	if srv.queries.migrated {
		g.Token = found
		b.saw(found)
	}
	g.Until = start.Add(length(ttl, time.Second))
	return g, nil
}

// extendAtOnce is how many leases one statement extends.
const extendAtOnce = 100

// ExtendAll extends a hundred grants by two statements: the first one extends, the
// second one asks which are held, since the number of rows that have been changed
// does not tell. What is held then had been held when it was extended: a grant whose
// time is over, or whose session has lost the doorbell, is so for ever.
func (b *Backend) ExtendAll(ctx context.Context, conn *sql.Conn, grants []sqllock.Grant, ttl time.Duration) (held []bool, until time.Time, err error) {
	s := seconds(ttl)
	until = time.Now().Add(length(s, time.Second))
	for some := range slices.Chunk(grants, extendAtOnce) {
		srv, err := serverOf(some[0])
		if err != nil {
			return nil, time.Time{}, err
		}
		err = session.Use(conn, func(ses *session.Session) error {
			_, err := userlock.Exec(ctx, ses, srv.queries.extendAll(some, s))
			return err
		})
		if err != nil {
			return nil, time.Time{}, b.explain(err)
		}
		kept, err := b.Watch(ctx, conn, some)
		if err != nil {
			return nil, time.Time{}, err
		}
		held = append(held, kept...)
	}
	return held, until, nil
}

// Relinquish lets go of the doorbell. From then on nobody kills the session for the
// lock, since the KILL depends on the doorbell; a session that has been killed before
// says so.
func (b *Backend) Relinquish(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	return userlock.Use(conn, func(s *session.Session) error { return userlock.LetGo(ctx, s, text(g.Key), nil) })
}
