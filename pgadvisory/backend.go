package pgadvisory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

// Backend is the lock backend on advisory locks. It is safe for concurrent use.
type Backend struct{ allowed Risk }

var (
	_ sqllock.Backend  = (*Backend)(nil)
	_ sqllock.Sharer   = (*Backend)(nil)
	_ sqllock.Breaker  = (*Backend)(nil)
	_ sqllock.TxLocker = (*Backend)(nil)
)

// New returns a backend. It does nothing until the first lock.
func New(opts ...Option) *Backend {
	b := &Backend{}
	for _, o := range opts {
		o.apply(b)
	}
	return b
}

// grant is what a grant keeps beside what everybody may know.
type grant struct {
	start int64 // when its session began
	lock  lock
}

// Acquire tries, and then waits. See the package's documentation.
func (b *Backend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	a := attempt{b: b, key: req.Key, lock: lock{req.Key, req.Shared}}
	err := pgsession.Use(conn, a.try)
	for err == nil && !a.granted && req.Wait && !pgsession.Ended(ctx) {
		err = pgsession.Use(conn, func(s *pgsession.Session) error { return a.wait(ctx, s) })
	}
	switch {
	case err != nil:
		return sqllock.Grant{}, err
	case !a.granted:
		return sqllock.Grant{}, sqllock.ErrBusy
	}
	return a.grant(), nil
}

// attempt is an Acquire under way. Each of its steps leaves the session either with the
// lock, or as it was before.
type attempt struct {
	b       *Backend
	key     string
	lock    lock
	state   *pgsession.State
	granted bool
}

func (a *attempt) grant() sqllock.Grant {
	return sqllock.Grant{Key: a.key, Session: a.state.PID, State: grant{a.state.Start, a.lock}}
}

// try takes the lock if it is free.
func (a *attempt) try(s *pgsession.Session) (err error) {
	if a.state, err = ready(s, a.b.allowed); err != nil {
		return err
	}
	if err := s.Unheld(a.key); err != nil {
		return err
	}
	var got sql.NullBool
	if err := s.AskOften("try"+a.lock.it().Suffix(), a.key, a.lock.try, &got); err != nil {
		return afterTry(s, []lock{a.lock}, err)
	}
	a.took(got.Bool)
	return nil
}

func (a *attempt) took(granted bool) {
	if granted {
		a.granted, a.state.Held[a.key] = true, true
	}
}

// ready returns the state of a session that a lock can be acquired on.
func ready(s *pgsession.Session, allowed Risk) (*pgsession.State, error) {
	if err := s.Ready(); err != nil {
		return nil, err
	}
	return s.State(allowed, "pgadvisory")
}

// wait waits on the server until the lock is granted, ctx ends, or a slice is over. The
// try before it has failed, so the session had no part of the lock, and what it has of
// it after an error is of this wait.
func (a *attempt) wait(ctx context.Context, s *pgsession.Session) error {
	if err := s.Ready(); err != nil {
		return err
	}
	err := s.Wait(ctx, pgsession.Slice(ctx, forever), a.lock.it().Wait())
	switch {
	case errors.Is(err, sqllock.ErrSessionGone):
		return err
	case err == nil && ctx.Err() == nil:
		a.took(true)
		return nil
	}
	if failed := s.LetGo(a.lock.it()); failed != nil {
		return failed
	}
	if ctx.Err() == nil && pgsession.Code(err) != pgsession.LockTimeout {
		return err
	}
	return nil // given up, or the end of a slice
}

// forever is no limit to a slice but its own and that of ctx.
const forever = time.Hour

// afterTry returns err, by which a try has failed. If the session holds any of the locks
// now, nobody knows whether it had done so before.
func afterTry(s *pgsession.Session, locks []lock, err error) error {
	if errors.Is(err, sqllock.ErrSessionGone) {
		return err
	}
	if s.Tx() == pgsession.Aborted { // it was interrupted in the caller's transaction
		return fmt.Errorf("%w: the try failed in a transaction, and it can't be asked whether it holds the lock: %w", sqllock.ErrSessionGone, err)
	}
	keys := make([]string, len(locks))
	for i, l := range locks {
		keys[i] = l.key
	}
	var held sql.NullBool
	failed := s.Ask("SELECT "+pgsession.AnyHeld(keys...), &held)
	if failed != nil {
		return fmt.Errorf("%w: it may hold the lock after a try that failed (%w): %w", sqllock.ErrSessionGone, err, failed)
	}
	if held.Bool {
		return fmt.Errorf("%w: it holds the lock after a try that failed, maybe for the second time: %w", sqllock.ErrSessionGone, err)
	}
	return err
}

// Release frees g in one round trip. In a transaction that has failed no statement can:
// the session is then given up.
func (b *Backend) Release(_ context.Context, conn *sql.Conn, g sqllock.Grant) error {
	l, err := lockOf(g)
	if err != nil {
		return err
	}
	var freed sql.NullInt64
	err = pgsession.Use(conn, func(s *pgsession.Session) error {
		if s.Tx() == pgsession.Aborted {
			return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, pgsession.ErrAborted)
		}
		err := s.AskOften("release"+l.it().Suffix(), l.key, l.release, &freed)
		if err == nil {
			delete(s.Known().Held, g.Key)
		}
		return err
	})
	switch {
	case pgsession.NotSent(err):
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	case err != nil:
		return err
	case freed.Int64 == 0:
		return fmt.Errorf("%w: the session did not hold it any more", sqllock.ErrLost)
	}
	return nil
}

func lockOf(g sqllock.Grant) (lock, error) {
	if own, ok := g.State.(grant); ok {
		return own.lock, nil
	}
	return lock{}, errors.New("the grant is not one of this backend")
}

// Check asks whether the session under q holds g, in one round trip.
func (b *Backend) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	l, err := lockOf(g)
	if err != nil {
		return err
	}
	var held sql.NullBool
	if conn, ok := q.(*sql.Conn); ok {
		err = pgsession.Use(conn, func(s *pgsession.Session) error {
			if err := s.Ready(); err != nil {
				return err
			}
			err := s.AskOften("check"+l.it().Suffix(), l.key, l.check, &held)
			if err == nil && !held.Bool {
				delete(s.Known().Held, g.Key)
			}
			return err
		})
	} else {
		err = pgsession.AskOver(ctx, q, l.check(pgsession.Number(l.key)), &held)
	}
	switch {
	case errors.Is(err, sqllock.ErrSessionGone):
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	case err != nil:
		return err
	case !held.Bool:
		return fmt.Errorf("%w: the session does not hold it any more", sqllock.ErrLost)
	}
	return nil
}

// Holder tells which session holds the key; of several who share it, the one that has
// been in its state for longest.
func (b *Backend) Holder(ctx context.Context, q sqllock.Querier, key string) (sqllock.Holder, error) {
	return holder(ctx, q, key, holderQuery(key))
}

// holder runs a query that answers with whom to tell of, and scans what more it has.
func holder(ctx context.Context, q sqllock.Querier, key, query string, more ...sql.Scanner) (sqllock.Holder, error) {
	var id, since sql.NullInt64
	var user, host, database, state, program sql.NullString
	err := pgsession.AskOver(ctx, q, query, append([]sql.Scanner{&id, &user, &host, &database, &state, &program, &since}, more...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return sqllock.Holder{}, fmt.Errorf("%w: it is free", sqllock.ErrNotHeld)
	}
	if err != nil {
		return sqllock.Holder{}, err
	}
	h := sqllock.Holder{
		Key: key, Alive: true, Session: id.Int64, User: user.String, Host: host.String,
		Database: database.String, State: state.String, Process: program.String,
	}
	if since.Valid {
		h.Since = time.Unix(since.Int64, 0)
	}
	return h, nil
}

// breakPause is between two looks whether a session that was told to end has ended.
const breakPause = 5 * time.Millisecond

// Break ends the session that holds key by pg_terminate_backend, and of several who
// share it all, and returns when none of them holds it any more. It needs the role of the
// holder, or pg_signal_backend, and a superuser for the session of one: ErrPermission, in
// which case some of those who share it may have been ended.
// It waits, as long as ctx allows, for their transactions to be rolled back.
func (b *Backend) Break(ctx context.Context, db *sql.DB, key string) (sqllock.Holder, error) {
	var ids sql.NullString
	whom, err := holder(ctx, db, key, breakQuery(key), &ids)
	if pgsession.Code(err) == pgsession.NoPrivilege {
		return sqllock.Holder{}, errBreak(ctx, b, db, key, err)
	}
	if err == nil {
		err = b.ended(ctx, db, key, ids.String)
	}
	if err != nil {
		return sqllock.Holder{}, err
	}
	return whom, nil
}

// errBreak says whose session could not be ended.
func errBreak(ctx context.Context, b *Backend, db *sql.DB, key string, err error) error {
	of := ""
	if h, failed := b.Holder(ctx, db, key); failed == nil {
		of = fmt.Sprintf(" (%d, of %s)", h.Session, h.User)
	}
	return errPrivilege(of, err)
}

func errPrivilege(of string, err error) error {
	return fmt.Errorf("%w: this role may not end the session of the holder%s; use the holder's role, or GRANT pg_signal_backend to this one "+
		"(a superuser's session only a superuser can end): %w", sqllock.ErrPermission, of, err)
}
