package table

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

var (
	_ sqllock.Watcher = (*Backend)(nil)
	_ sqllock.Passer  = (*Backend)(nil)
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
