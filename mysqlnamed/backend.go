package mysqlnamed

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

// Backend is the lock backend on GET_LOCK. It is safe for concurrent use.
type Backend struct {
	control  *sql.DB
	allowed  Risk
	admitted userlock.Admitted[userlock.Kind, string] // with the version seen
	starts   starts
}

var _ sqllock.Backend = (*Backend)(nil)

// New returns a backend. It does nothing until the first lock.
func New(opts ...Option) *Backend {
	b := &Backend{}
	for _, o := range opts {
		o.apply(b)
	}
	return b
}

// Acquire tries, and then waits in slices. See the package's documentation.
func (b *Backend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	a := attempt{b: b, keys: []string{req.Key}}
	err := userlock.Use(conn, func(s *session.Session) error { return a.try(ctx, s) })
	for err == nil && a.verdict == userlock.Taken && req.Wait && !userlock.Ended(ctx) {
		err = userlock.Use(conn, func(s *session.Session) error { return a.wait(ctx, s) })
	}
	switch {
	case err != nil:
		return sqllock.Grant{}, err
	case a.verdict == userlock.HeldBySession:
		return sqllock.Grant{}, sqllock.ErrHeld
	case a.verdict != userlock.Granted:
		return sqllock.Grant{}, sqllock.ErrBusy
	}
	return a.grant(req.Key), nil
}

// forever is no limit to a slice but those of the slice itself and of ctx.
const forever = time.Hour

// attempt is an Acquire under way, or a part of an AcquireAll. Each of its methods
// leaves the session either with all the locks, and the verdict granted, or as it was
// before.
type attempt struct {
	b       *Backend
	keys    []string
	id      int64  // of the session
	version string // of the server
	verdict int64
}

func (a *attempt) grant(key string) sqllock.Grant {
	return sqllock.Grant{Key: key, Session: a.id, State: time.Now()}
}

// try takes the locks if they are free, after a look at the server if that is due.
func (a *attempt) try(ctx context.Context, s *session.Session) (err error) {
	first := a.b.admitted.None()
	if first {
		if a.version, err = userlock.Look(ctx, s, a.b.allowed, "mysqlnamed"); err != nil {
			return err
		}
	}
	var verdict, id, port sql.NullInt64
	var host, readOnly sql.NullString
	err = userlock.Ask(ctx, s, tryQuery(a.keys), &verdict, &id, &host, &port, &readOnly)
	if err == nil && !verdict.Valid {
		err = userlock.Interrupted()
	}
	if err != nil {
		return a.afterTry(ctx, s, err)
	}
	a.verdict, a.id = verdict.Int64, id.Int64
	k := userlock.Kind{Host: host.String, Port: port.Int64, ReadOnly: readOnly.String}
	if version, ok := a.b.admitted.Get(k); ok {
		a.version = version
		return nil
	}
	if !first {
		a.version, err = userlock.Look(ctx, s, a.b.allowed, "mysqlnamed")
	}
	if err == nil {
		a.b.admitted.Put(k, a.version)
		return nil
	}
	if a.verdict == userlock.Granted {
		return userlock.LetGoAll(ctx, s, literals(a.keys), err)
	}
	return err
}

// wait waits on the server for one slice. If ctx ends meanwhile, the session is
// left without the lock, and the verdict is that it is taken.
func (a *attempt) wait(ctx context.Context, s *session.Session) (err error) {
	w := userlock.Waiter{Version: a.version, Control: a.b.control}
	a.verdict, err = w.Wait(ctx, s, userlock.Literal(a.keys[0]), w.Slice(ctx, forever))
	return err
}

// afterTry returns err, by which a try has failed. An error other than an interruption
// means that GET_LOCK granted nothing; with several locks it may be that of one after
// others were granted. If the session holds any of them now, nobody knows whether it
// had done so before.
func (a *attempt) afterTry(ctx context.Context, s *session.Session, err error) error {
	if errors.Is(err, sqllock.ErrSessionGone) || len(a.keys) == 1 && !errors.Is(err, sqllock.ErrInterrupted) {
		return err
	}
	var held sql.NullBool
	failed := userlock.Ask(ctx, s, checkQuery(a.keys...), &held)
	if failed != nil {
		return fmt.Errorf("%w: it may hold the lock after a try that failed (%w): %w", sqllock.ErrSessionGone, err, failed)
	}
	if held.Bool {
		return fmt.Errorf("%w: it holds the lock after a try that failed, maybe for the second time: %w", sqllock.ErrSessionGone, err)
	}
	return err
}

// Release frees g in one round trip. The driver is asked first whether the
// server has closed the connection, which tells a lock that was lost before
// from one whose release was cut off.
func (b *Backend) Release(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	var freed sql.NullInt64
	err := session.Use(conn, func(s *session.Session) error {
		if err := s.Alive(ctx); err != nil {
			return fmt.Errorf("%w: %w: %w", sqllock.ErrLost, sqllock.ErrSessionGone, err)
		}
		return userlock.Ask(ctx, s, userlock.Release(userlock.Literal(g.Key)), &freed)
	})
	switch {
	case errors.Is(err, sqllock.ErrLost):
		return err
	case userlock.NotSent(err):
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	case err != nil:
		return err
	case freed.Int64 != userlock.Granted:
		return fmt.Errorf("%w: the session did not hold it any more", sqllock.ErrLost)
	}
	return nil
}

// Check asks whether the session under q holds g, in one round trip.
func (b *Backend) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	held, err := check(ctx, q, g)
	switch {
	case errors.Is(err, sqllock.ErrSessionGone):
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	case err != nil:
		return err
	case !held:
		return fmt.Errorf("%w: the session does not hold it any more", sqllock.ErrLost)
	}
	return nil
}

func check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) (bool, error) {
	if tx, ok := q.(sqllock.InTx); ok {
		return userlock.HeldIn(ctx, tx, userlock.Literal(g.Key))
	}
	var held sql.NullBool
	err := userlock.AskOver(ctx, q, checkQuery(g.Key), &held)
	return held.Bool, err
}

// Holder tells which session of the server holds key.
func (b *Backend) Holder(ctx context.Context, q sqllock.Querier, key string) (sqllock.Holder, error) {
	var id, since sql.NullInt64
	var user, host, database, state sql.NullString
	if err := userlock.AskOver(ctx, q, holderQuery(key), &id, &user, &host, &database, &state, &since); err != nil {
		return sqllock.Holder{}, err
	}
	if !id.Valid {
		return sqllock.Holder{}, fmt.Errorf("%w: it is free", sqllock.ErrNotHeld)
	}
	h := sqllock.Holder{Key: key, Alive: true, Session: id.Int64, User: user.String, Host: host.String, Database: database.String, State: state.String}
	if since.Valid {
		h.Since = time.Unix(since.Int64, 0)
	}
	return h, nil
}
