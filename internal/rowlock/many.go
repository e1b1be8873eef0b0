package rowlock

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

var (
	_ sqllock.Leaser        = (*Backend)(nil)
	_ sqllock.Breaker       = (*Backend)(nil)
	_ sqllock.Watcher       = (*Backend)(nil)
	_ sqllock.Passer        = (*Backend)(nil)
	_ sqllock.GroupExtender = (*Backend)(nil)
	_ sqllock.Relinquisher  = (*Backend)(nil)
)

// atOnce is how many grants one statement is about.
const atOnce = 100

func parts(grants []sqllock.Grant) ([]part, error) {
	all := make([]part, len(grants))
	for i, g := range grants {
		var err error
		if all[i], err = own(g); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Watch asks for a hundred grants in one statement, over any session of the same database.
func (b *Backend) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) (held []bool, err error) {
	held = make([]bool, 0, len(grants))
	for some := range slices.Chunk(grants, atOnce) {
		all, err := parts(some)
		if err != nil {
			return nil, err
		}
		var answers []bool
		err = b.over(ctx, q, func(o *on) (err error) {
			answers, err = o.watch(ctx, all)
			return err
		})
		if err != nil {
			return nil, err
		}
		held = append(held, answers...)
	}
	return held, nil
}

// watch asks which of all are held, after the statements.
func (o *on) watch(ctx context.Context, all []part, before ...string) ([]bool, error) {
	statements := slices.Concat(before, []string{o.q.watch(all)})
	if o.pg != nil {
		var numbers sql.NullString
		if err := o.run(ctx, []sql.Scanner{&numbers}, statements...); err != nil {
			return nil, err
		}
		return pgsession.Numbered(numbers.String, len(all))
	}
	answers := make([]sql.NullBool, len(all))
	dest, held := make([]sql.Scanner, len(all)), make([]bool, len(all))
	for i := range answers {
		dest[i] = &answers[i]
	}
	err := o.run(ctx, dest, statements...)
	for i, a := range answers {
		held[i] = a.Bool
	}
	return held, err
}

// ExtendAll extends a hundred grants by one statement, and asks which are held: what is held
// then had been when it was extended, since what has ended stays so. Where the session is gone
// it goes over the pool: the rows are still there, and so are the locks.
func (b *Backend) ExtendAll(ctx context.Context, conn *sql.Conn, grants []sqllock.Grant, ttl time.Duration) (held []bool, until time.Time, err error) {
	n := seconds(ttl)
	until = time.Now().Add(length(n))
	for some := range slices.Chunk(grants, atOnce) {
		all, err := parts(some)
		if err != nil {
			return nil, time.Time{}, err
		}
		var answers []bool
		err = b.over(ctx, conn, func(o *on) (err error) {
			answers, err = o.watch(ctx, all, o.q.extendAll(all, n))
			return err
		})
		if err != nil {
			return nil, time.Time{}, err
		}
		held = append(held, answers...)
	}
	return held, until, nil
}

// Pass gives the row a new token and the TTL of req.
func (b *Backend) Pass(ctx context.Context, conn *sql.Conn, g sqllock.Grant, req sqllock.Request) (sqllock.Grant, error) {
	p, err := own(g)
	if err != nil {
		return sqllock.Grant{}, err
	}
	next, ttl := part{p.id, b.format.NewToken()}, b.lease(req)
	var now row
	var start time.Time
	var dc any
	err = b.alone(ctx, conn, func(o *on) (err error) {
		start, dc = time.Now(), o.dc
		now, err = o.look(ctx, p.id, o.q.pass(p.id, p.token, next.token, ttl))
		return err
	})
	switch {
	case err != nil && time.Until(g.Until) <= 0:
		return sqllock.Grant{}, unasked(err)
	case err != nil:
		return sqllock.Grant{}, err
	case now.token != next.token, now.left <= 0:
		return sqllock.Grant{}, lost(whyOver + ", or " + whyGone)
	}
	hold(p.token, nil)
	hold(next.token, dc)
	g.Until, g.State = start.Add(min(length(ttl), now.left)), grant{next}
	return g, nil
}

// Relinquish has nothing to do: a session has no part of a lock.
func (b *Backend) Relinquish(_ context.Context, _ *sql.Conn, g sqllock.Grant) error {
	p, err := own(g)
	hold(p.token, nil)
	return err
}
