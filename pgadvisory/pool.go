package pgadvisory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

var (
	_ sqllock.Watcher       = (*Backend)(nil)
	_ sqllock.Passer        = (*Backend)(nil)
	_ sqllock.GroupAcquirer = (*Backend)(nil)
)

// atOnce is how many grants one statement asks about. pg_locks takes the longer the more
// locks and sessions the server has, whatever is asked of it, so it is many.
const atOnce = 1000

// Watch asks for a thousand grants in one statement over pg_locks, over any session of
// the same database.
func (b *Backend) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) (held []bool, err error) {
	held = make([]bool, 0, len(grants))
	for some := range slices.Chunk(grants, atOnce) {
		var there sql.NullString
		if err := pgsession.AskOver(ctx, q, watchQuery(some), &there); err != nil {
			return nil, err
		}
		answers, err := pgsession.Numbered(there.String, len(some))
		if err != nil {
			return nil, err
		}
		held = append(held, answers...)
	}
	return held, nil
}

// Pass returns g, which has neither a token nor a TTL, without a round trip.
func (b *Backend) Pass(_ context.Context, conn *sql.Conn, g sqllock.Grant, req sqllock.Request) (sqllock.Grant, error) {
	l, err := lockOf(g)
	if err != nil {
		return sqllock.Grant{}, err
	}
	if l.shared != req.Shared {
		return sqllock.Grant{}, fmt.Errorf("%w: a shared lock is not passed on as another one", sqllock.ErrUnsupported)
	}
	if err := pgsession.Use(conn, func(*pgsession.Session) error { return nil }); err != nil {
		return sqllock.Grant{}, fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	}
	return g, nil
}

// together is how many locks one statement takes.
const together = 16

// AcquireAll takes all locks or none, sixteen in one round trip. See the package's
// documentation.
func (b *Backend) AcquireAll(_ context.Context, conn *sql.Conn, reqs []sqllock.Request) ([]sqllock.Grant, error) {
	grants := make([]sqllock.Grant, 0, len(reqs))
	err := pgsession.Use(conn, func(s *pgsession.Session) error {
		st, err := ready(s, b.allowed)
		if err != nil {
			return err
		}
		for some := range slices.Chunk(reqs, together) {
			taken, err := takeSome(s, st, some)
			if err != nil {
				return undo(s, st, grants, err)
			}
			grants = append(grants, taken...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return grants, nil
}

func takeSome(s *pgsession.Session, st *pgsession.State, reqs []sqllock.Request) ([]sqllock.Grant, error) {
	locks := make([]lock, len(reqs))
	for i, req := range reqs {
		err := s.Unheld(req.Key)
		if errors.Is(err, sqllock.ErrHeld) {
			return nil, sqllock.ErrBusy // as for one that another session holds
		}
		if err != nil {
			return nil, err
		}
		locks[i] = lock{req.Key, req.Shared}
	}
	var got sql.NullBool
	if err := s.Ask("SELECT "+takeAll(locks), &got); err != nil {
		return nil, afterTry(s, locks, err)
	}
	if !got.Bool {
		return nil, sqllock.ErrBusy
	}
	grants := make([]sqllock.Grant, len(locks))
	for i, l := range locks {
		grants[i] = (&attempt{key: l.key, lock: l, state: st}).grant()
		st.Held[l.key] = true
	}
	return grants, nil
}

// undo frees what the statements before the one that failed have taken.
func undo(s *pgsession.Session, st *pgsession.State, grants []sqllock.Grant, err error) error {
	for _, g := range grants {
		l, failed := lockOf(g)
		if failed == nil {
			failed = s.LetGo(l.it())
		}
		if failed != nil {
			return failed
		}
		delete(st.Held, g.Key)
	}
	return err
}
