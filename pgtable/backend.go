package pgtable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	defaultName = "shared_locks"

	// slice is the longest wait in one statement. A waiter knows the TTL of the holder
	// that it has last looked at.
	slice = 5 * time.Second

	// killTime is how long a session that was told to end has for that while a TryLock
	// looks on.
	killTime = 2 * time.Second

	// forever is no limit to a wait but those of the slice and of ctx.
	forever = time.Hour
)

// Backend is the lock backend on a table. It is safe for concurrent use.
type Backend struct {
	ttl     time.Duration
	name    string
	queries queries
	pool    *sql.DB
	allowed Risk
	process string
}

var (
	_ sqllock.Leaser  = (*Backend)(nil)
	_ sqllock.Breaker = (*Backend)(nil)
)

// New returns a backend whose locks are held for ttl, unless [sqllock.TTL] says
// otherwise. TTLs are rounded up to whole seconds. It does nothing until the first
// lock. It panics if ttl is not positive.
func New(ttl time.Duration, opts ...Option) *Backend {
	if ttl <= 0 {
		panic(fmt.Sprintf("pgtable: New(%v): the TTL must be positive", ttl))
	}
	b := &Backend{ttl: ttl, name: defaultName, process: session.Process()}
	for _, o := range opts {
		o.apply(b)
	}
	b.queries = newQueries(b.name)
	return b
}

// grant is what a grant keeps beside what everybody may know.
type grant struct {
	start int64 // when its session began
	plain bool  // its session's defaults fit no statement that is prepared
}

func startOf(g sqllock.Grant) int64 {
	own, _ := g.State.(grant)
	return own.start
}

// ours returns an error for a grant of another backend, whose row we would not find.
func ours(g sqllock.Grant) error {
	if _, ok := g.State.(grant); !ok {
		return errors.New("the grant is not one of this backend")
	}
	return nil
}

// attempt is an Acquire under way. Between two of its steps the session holds
// nothing new.
type attempt struct {
	b       *Backend
	req     sqllock.Request
	bell    pgsession.Lock // the doorbell
	ttl     int64          // in seconds
	s       *pgsession.Session
	state   *pgsession.State
	pooled  bool // rows are read and written over the pool, in this step
	plain   bool // what is prepared does not fit the session's defaults
	tried   bool // the first step is over; the others begin with a look
	row     row  // as it was last seen
	killed  *row // whose session was told to end
	giveUp  time.Time
	granted bool
	grant   sqllock.Grant
}

// Acquire tries, and then waits, or takes over. See the package's documentation.
func (b *Backend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	a := &attempt{b: b, req: req, bell: bellOf(req.Key), ttl: b.lease(req)}
	for {
		err := pgsession.Use(conn, func(s *pgsession.Session) error { return a.step(ctx, s) })
		switch {
		case errors.Is(err, session.ErrNoSpare) && ctx.Err() != nil && !errors.Is(err, sqllock.ErrSessionGone):
			return sqllock.Grant{}, a.busy() // the wait has ended
		case err != nil:
			return sqllock.Grant{}, err
		case a.granted:
			return a.grant, nil
		case !a.again(ctx):
			return sqllock.Grant{}, a.busy()
		}
	}
}

// again reports whether there is to be another step.
func (a *attempt) again(ctx context.Context) bool {
	return !pgsession.Ended(ctx) && (a.req.Wait || a.killed != nil && time.Now().Before(a.giveUp))
}

func (a *attempt) busy() error {
	if a.killed == nil {
		return sqllock.ErrBusy
	}
	return fmt.Errorf("%w: %w: session %d (%s) has been told to end, and may be rolling back",
		sqllock.ErrBusy, sqllock.ErrHolderAlive, a.killed.session, a.killed.process)
}

// step tries, or looks at what has become of the row, and goes as far as one wait on the
// server.
func (a *attempt) step(ctx context.Context, s *pgsession.Session) (err error) {
	a.s = s
	if err := a.prepare(); err != nil {
		return err
	}
	switch {
	case a.tried:
		err = a.look(ctx)
	case a.pooled:
		err = a.tryPooled(ctx)
	default:
		err = a.try()
	}
	a.tried = true
	if err != nil || a.granted {
		return err
	}
	limit := forever
	switch {
	case !a.row.there: // somebody is on his way, or it is the lock of another backend
	case a.row.left > 0:
		limit = a.row.left
	default:
		if err := a.takeOver(ctx); err != nil {
			return err
		}
	}
	return a.wait(ctx, limit)
}

// prepare finds out what is known of the session without asking it.
func (a *attempt) prepare() (err error) {
	switch a.s.Tx() {
	case pgsession.Aborted:
		return pgsession.ErrAborted
	case pgsession.Open:
		a.pooled = true
		if a.b.pool == nil {
			return errInTransaction()
		}
	default:
		a.pooled = false
	}
	if a.tried {
		return nil
	}
	if a.state, err = a.s.State(a.b.allowed|pgsession.ReadOnly, "pgtable"); err != nil {
		return err
	}
	return a.s.Unheld(a.req.Key) // by package pgadvisory, too: the doorbell would ring for it again
}

// claimed is what a claim answers.
type claimed struct {
	rung, replaced sql.NullBool
	waited, token  sql.NullInt64
	old            rowOf
}

func (c *claimed) dest() []sql.Scanner {
	return append([]sql.Scanner{&c.rung, &c.waited, &c.token, &c.replaced}, c.old.dest()...)
}

// try takes the doorbell and makes the row, in one round trip, if the doorbell is free.
func (a *attempt) try() error {
	var c claimed
	start := time.Now()
	q := a.b.queries
	ran, err := a.s.AskPrepared("try_"+q.short, q.tryPrepared, []string{a.req.Key, num(a.ttl), a.b.process}, c.dest()...)
	a.plain = ran && (unfit(err) || err == nil && !c.rung.Valid)
	left := ran && err == nil && !c.rung.Bool && c.old.session.Int64 == a.state.PID // to be removed before a wait rings
	if !ran || a.plain || left {
		c = claimed{}
		err = a.s.Apart(q.try(a.req.Key, a.ttl, a.b.process), c.dest()...)
	}
	if err != nil {
		return a.failed(a.b.explain(err))
	}
	a.made(&c, start)
	return nil
}

// unfit reports whether a statement that was prepared could not run in a transaction as
// the session's defaults make it, READ ONLY or with a snapshot. It has changed nothing.
func unfit(err error) bool {
	code := pgsession.Code(err)
	return code == pgsession.ReadOnlyTx || code == pgsession.Serialization
}

// failed lets go of what a statement that has failed with err may have taken.
func (a *attempt) failed(err error) error {
	if errors.Is(err, sqllock.ErrSessionGone) {
		return err
	}
	if failed := a.s.LetGo(a.bell); failed != nil {
		return fmt.Errorf("%w: %w", err, failed)
	}
	return err
}

// made notes what a claim has granted, or else the row that it found. The lease is
// counted from when the server had the doorbell, which is as long after the start as the
// server says, and no later than now.
func (a *attempt) made(c *claimed, start time.Time) {
	a.saw(c.old.row())
	if !c.token.Valid {
		return
	}
	waited := min(max(length(c.waited.Int64, time.Microsecond), 0), time.Since(start))
	a.granted, a.state.Held[a.req.Key] = true, true
	a.grant = sqllock.Grant{
		Key: a.req.Key, Session: a.state.PID, Token: c.token.Int64, State: grant{a.state.Start, a.plain},
		Until: start.Add(waited).Add(length(a.ttl, time.Second)),
	}
	if c.replaced.Bool && a.row.there {
		a.req.Observe(sqllock.Event{Kind: sqllock.TakenOver, Holder: a.row.holder(a.req.Key)})
	}
}

// saw notes how the row is. If it is another one, who was to be ended has ended.
func (a *attempt) saw(r row) {
	a.row = r
	if a.killed != nil && (!r.there || r.token != a.killed.token) {
		a.killed = nil
	}
}

// tryPooled is try for a session in a transaction: it takes the doorbell there, and makes
// the row over the pool.
func (a *attempt) tryPooled(ctx context.Context) error {
	err := a.b.withPool(ctx, poolTime, func(s *pgsession.Session) error {
		return s.Apart(a.b.queries.tidy(a.req.Key, a.state.PID))
	})
	if err != nil {
		return a.b.explain(err)
	}
	var rung sql.NullBool
	if err := a.s.Ask("SELECT "+a.bell.Take(), &rung); err != nil {
		return a.failed(err)
	}
	if rung.Bool {
		return a.claimPooled(ctx)
	}
	return a.look(ctx)
}

// claimPooled makes the row over the pool; the session has the doorbell.
func (a *attempt) claimPooled(ctx context.Context) error {
	var c claimed
	var start time.Time
	err := a.b.withPool(ctx, poolTime, func(s *pgsession.Session) error {
		c, start = claimed{}, time.Now()
		return s.Apart(a.b.queries.claimFor(a.req.Key, a.state.PID, a.state.Start, a.ttl, a.b.process), c.dest()...)
	})
	if err != nil {
		return a.failed(a.b.explain(err))
	}
	a.made(&c, start)
	if a.granted {
		return nil
	}
	if c.rung.Bool { // the row was changed at that moment
		return a.failed(nil)
	}
	var held sql.NullBool
	if err := a.s.Ask("SELECT "+a.bell.Held(), &held); err != nil || !held.Bool {
		return a.failed(err)
	}
	return a.failed(fmt.Errorf("%w: over the pool of pgtable.WithPool the session of the lock (process %d) can't be seen with its advisory lock: "+
		"it must lead to the same server and database", sqllock.ErrUnsupported, a.state.PID))
}

// look asks for the row, on the session or over the pool.
func (a *attempt) look(ctx context.Context) error {
	var c rowOf
	err := a.apart(ctx, func(s *pgsession.Session) error { return s.Apart(a.b.queries.look(a.req.Key), c.dest()...) })
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return a.b.explain(err)
	}
	a.saw(c.row())
	return nil
}

// apart runs f where the caller's transaction is not.
func (a *attempt) apart(ctx context.Context, f func(*pgsession.Session) error) error {
	if a.pooled {
		return a.b.withPool(ctx, poolTime, f)
	}
	return f(a.s)
}

// takeOver ends the session of a row whose time is over, unless it has extended, released
// or ended meanwhile. It is told so; until it has ended it keeps the doorbell.
func (a *attempt) takeOver(ctx context.Context) error {
	var c rowOf
	var marks sql.NullInt64
	var told sql.NullBool
	err := a.apart(ctx, func(s *pgsession.Session) error {
		c = rowOf{}
		return s.Apart(a.b.queries.takeOver(a.req.Key), append(c.dest(), &marks, &told)...)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil // it was faster
	case pgsession.Code(err) == pgsession.NoPrivilege: // the table's have been needed before
		return errKill("a holder whose time is over", a.row.session, err)
	case err != nil:
		return a.b.explain(err)
	}
	r := c.row()
	a.saw(r)
	if !told.Bool {
		return nil // its session has not the doorbell
	}
	if a.killed == nil {
		a.killed = &r
		if a.giveUp.IsZero() {
			a.giveUp = time.Now().Add(killTime)
		}
		if marks.Int64 == 1 {
			a.req.Observe(sqllock.Event{Kind: sqllock.Killed, Holder: r.holder(a.req.Key)})
		}
	}
	return nil
}

// wait waits on the doorbell for a slice, no longer than limit, where the request allows
// it, and makes the row in the same round trip.
func (a *attempt) wait(ctx context.Context, limit time.Duration) error {
	if !a.req.Wait {
		if a.killed == nil {
			return nil
		}
		limit = min(limit, time.Until(a.giveUp))
	}
	if limit < time.Millisecond || pgsession.Ended(ctx) {
		return nil
	}
	d := pgsession.Slice(ctx, min(limit, slice))
	var c claimed
	var err error
	start := time.Now()
	if a.pooled {
		err = a.s.Wait(ctx, d, a.bell.Wait())
	} else {
		err = a.s.Claim(ctx, d, a.bell.WaitOne(), a.b.queries.claim(a.req.Key, a.bell.Try(), a.ttl, a.b.process), c.dest()...)
	}
	switch {
	case errors.Is(err, sqllock.ErrSessionGone):
		return err
	case err == nil && a.pooled && ctx.Err() == nil:
		return a.claimPooled(ctx)
	case err == nil && !a.pooled && ctx.Err() == nil:
		a.made(&c, start)
		return nil
	case err == nil && !a.pooled:
		// The grant and the end of ctx have met.
		if failed := a.s.Apart(a.b.queries.relinquish(a.req.Key)); errors.Is(failed, sqllock.ErrSessionGone) {
			return failed
		} // of another failure letGo makes the row obsolete
	}
	if failed := a.s.LetGo(a.bell); failed != nil {
		return failed
	}
	if ctx.Err() == nil && pgsession.Code(err) != pgsession.LockTimeout {
		return a.b.explain(err)
	}
	return nil // given up, or the end of a slice
}

// Release frees g in one round trip. See the package's documentation for what it does
// inside a transaction.
func (b *Backend) Release(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	if err := ours(g); err != nil {
		return err
	}
	err := pgsession.Use(conn, func(s *pgsession.Session) error {
		if s.Tx() != pgsession.Idle {
			return b.releaseApart(ctx, s, g)
		}
		var freed sql.NullInt64
		var setting sql.NullString
		q := b.queries
		ran, err := false, error(nil)
		if own, _ := g.State.(grant); !own.plain { // a transaction that is SERIALIZABLE may fail when the doorbell is free
			ran, err = s.AskPrepared("release_"+q.short, q.releasePrepared, []string{g.Key, num(g.Token), num(g.Session)}, &freed, &setting)
		}
		if !ran || unfit(err) {
			err = s.Apart(q.release(g), &freed, &setting)
		}
		if err != nil {
			return b.explain(err)
		}
		return released(s, g, freed.Int64)
	})
	if pgsession.NotSent(err) {
		return gone(err)
	}
	return err
}

// released says what the answer to a release means.
func released(s *pgsession.Session, g sqllock.Grant, freed int64) error {
	switch freed {
	case -1:
		return lost("the session has it by another grant, or is about to be ended")
	case -2:
		delete(s.Known().Held, g.Key)
		return fmt.Errorf("%w: %s", sqllock.ErrLost, whyGone)
	case 0:
		delete(s.Known().Held, g.Key)
		return fmt.Errorf("%w: the session did not have its doorbell any more", sqllock.ErrLost)
	}
	delete(s.Known().Held, g.Key)
	return nil
}

// releaseApart frees a lock whose session is in a transaction. A row that stays is
// obsolete as soon as the doorbell is free. Only before its time is over is it certain
// that nobody is about to end the session for it.
func (b *Backend) releaseApart(ctx context.Context, s *pgsession.Session, g sqllock.Grant) error {
	var answer sql.NullInt64
	var setting sql.NullString
	dropped := false
	if b.pool != nil {
		err := b.withPool(ctx, spareTime, func(s *pgsession.Session) error { return s.Apart(b.queries.drop(g), &answer, &setting) })
		dropped = err == nil
	}
	switch {
	case s.Tx() == pgsession.Aborted:
		return fmt.Errorf("%w: %w, and its lock can't be freed otherwise", sqllock.ErrSessionGone, pgsession.ErrAborted)
	case answer.Int64 == -1:
		return released(s, g, -1)
	case !dropped && time.Until(g.Until) <= 0:
		return lost("its TTL is over, and its row could not be removed in the transaction of the session")
	}
	var freed sql.NullInt64
	if err := s.Ask("SELECT "+bellOf(g.Key).Freed(), &freed); err != nil {
		return err
	}
	if answer.Int64 == -2 {
		return released(s, g, -2)
	}
	return released(s, g, freed.Int64)
}

// Check asks whether g is held, and its time not over.
func (b *Backend) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	_, err := b.TimeLeft(ctx, q, g)
	return err
}

// TimeLeft asks the server how long it is until another session can take g: on the session
// of g in one round trip. In a transaction the row is read over the pool, beside the
// doorbell on the session. Without a pool, and over a *sql.Tx or an InTx, it is not read:
// the answer is whether the session has the doorbell, without which nobody is granted the
// lock, and what is left at least.
func (b *Backend) TimeLeft(ctx context.Context, q sqllock.Querier, g sqllock.Grant) (time.Duration, error) {
	if err := ours(g); err != nil {
		return 0, err
	}
	conn, ok := q.(*sql.Conn)
	if !ok {
		return b.leftByDoorbell(ctx, q, g)
	}
	var left sql.NullInt64
	inside, spared := false, false
	err := pgsession.Use(conn, func(s *pgsession.Session) error {
		inside = s.Tx() != pgsession.Idle
		if !inside {
			return s.Apart(b.queries.left(g, true), &left)
		}
		spared = s.Tx() == pgsession.Aborted && b.pool != nil // it takes no statement
		return nil
	})
	var atLeast time.Duration
	if inside && !spared {
		if atLeast, err = b.leftByDoorbell(ctx, q, g); err != nil || b.pool == nil {
			return atLeast, err
		}
	}
	if inside {
		patience := spareTime
		if spared {
			patience = poolTime // nothing else will do
		}
		err = b.withPool(ctx, patience, func(s *pgsession.Session) error { return s.Apart(b.queries.left(g, false), &left) })
	}
	rest := length(left.Int64, time.Microsecond)
	switch {
	case errors.Is(err, session.ErrNoSpare) && !spared:
		return atLeast, nil
	case errors.Is(err, sql.ErrNoRows):
		return 0, lost(whyGone)
	case err != nil:
		return 0, gone(b.explain(err))
	case rest <= 0:
		return 0, lost("its TTL is over")
	}
	return rest, nil
}

// leftByDoorbell answers without the row, which to read would be a part of the caller's
// transaction.
func (b *Backend) leftByDoorbell(ctx context.Context, q sqllock.Querier, g sqllock.Grant) (time.Duration, error) {
	var held sql.NullBool
	err := pgsession.AskOver(ctx, q, "SELECT "+bellOf(g.Key).Held(), &held)
	left := time.Until(g.Until)
	switch {
	case err != nil:
		return 0, gone(err)
	case !held.Bool:
		return 0, lost("the session does not hold it any more")
	case left <= 0:
		return 0, lost("its TTL is over")
	}
	return left, nil
}

// Extend has g end ttl from now, rounded up to whole seconds. It runs over the pool, if
// there is one, so the session of g may be busy or in a transaction; where the pool has
// no connection to spare, it runs on that session.
func (b *Backend) Extend(ctx context.Context, conn *sql.Conn, g sqllock.Grant, ttl time.Duration) (until time.Time, err error) {
	if err := ours(g); err != nil {
		return time.Time{}, err
	}
	var start time.Time
	var one sql.NullInt64
	n := wholeSeconds(ttl)
	extend := func(there bool) func(s *pgsession.Session) error {
		return func(s *pgsession.Session) error {
			if s.Tx() != pgsession.Idle {
				return errInTransaction()
			}
			start = time.Now()
			return s.Apart(b.queries.extend(g, n, there), &one)
		}
	}
	err = session.ErrNoSpare
	if b.pool != nil {
		err = b.withPool(ctx, spareTime, extend(false))
	}
	if errors.Is(err, session.ErrNoSpare) && ctx.Err() == nil {
		err = gone(pgsession.Use(conn, extend(true)))
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = lost(whyOver)
	}
	if err != nil {
		return time.Time{}, b.explain(err)
	}
	return start.Add(length(n, time.Second)), nil
}

// lease is the TTL that a grant for req has, in seconds.
func (b *Backend) lease(req sqllock.Request) int64 {
	if req.TTL == 0 {
		return wholeSeconds(b.ttl)
	}
	return wholeSeconds(req.TTL)
}
