package table

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	defaultName = "shared_locks"

	// killTime is how long a killed session has to end while a TryLock looks on.
	killTime = 2 * time.Second

	// blind is how long a waiter rings before it looks: among many for one name a
	// look before each wait would cost more than the rest.
	blind = 100 * time.Millisecond

	// The pauses while a PHP process is about to take the doorbell.
	minPause = 5 * time.Millisecond
	maxPause = 200 * time.Millisecond
)

// Backend is the lock backend on a table. It is safe for concurrent use.
type Backend struct {
	ttl        time.Duration
	name       string
	pool       *sql.DB
	unmigrated bool
	allowed    Risk
	process    string

	crowd    crowd
	admitted userlock.Admitted[string, *server] // by kindExpr in hex
	last     atomic.Pointer[server]             // the one of the latest acquisition
	floor    atomic.Int64                       // the greatest token seen
	left     leavings
	doomed   doomed
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
		panic(fmt.Sprintf("table: New(%v): the TTL must be positive", ttl))
	}
	b := &Backend{ttl: ttl, name: defaultName, process: session.Process()}
	for _, o := range opts {
		o.apply(b)
	}
	return b
}

// server is what a look has found out.
type server struct {
	kind          string // in hex
	version       string
	transactional bool // the table joins transactions
	queries       queries
}

// attempt is an Acquire under way. Between two of its steps the session holds
// nothing new.
type attempt struct {
	b        *Backend
	req      sqllock.Request
	bell     string // the doorbell, as an expression
	ttl      int64  // in seconds
	s        *session.Session
	srv      *server
	id       int64 // of the session, 0 if not known
	rung     bool  // the doorbell is ours, taken in this step
	pooled   bool  // rows are written over the pool, in this step
	refused  bool  // and in all that follow, since the session has been refused
	tried    bool  // the first step is over; the others begin with a look
	floor    int64 // the token has to be greater
	pause    time.Duration
	killed   *row      // whose session was told to end
	taking   bool      // a takeover is under way
	giveUp   time.Time // when a TryLock has waited long enough for that
	repaired bool      // once is enough
	reshaped bool      // the table has been looked at again, since it had changed
	granted  bool
	grant    sqllock.Grant
}

// Acquire tries, and then waits, or takes over. See the package's documentation.
func (b *Backend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	a := &attempt{b: b, req: req, bell: text(req.Key), ttl: b.lease(req)}
	for {
		err := userlock.Use(conn, func(s *session.Session) error { return a.step(ctx, s) })
		switch {
		case a.granted && err == nil:
			return a.grant, nil
		case reshaped(err) && !a.reshaped:
			a.reshaped, a.tried, a.srv = true, false, nil
			b.last.Store(nil)
		case damaged(err) && !a.repaired:
			a.repaired, a.tried = true, false
			err = b.repair(ctx, req, err)
			if err != nil {
				return sqllock.Grant{}, err
			}
		case err != nil:
			return sqllock.Grant{}, err
		case !a.again(ctx):
			return sqllock.Grant{}, a.busy()
		}
	}
}

// again waits for the pause before the next step, and reports whether there is to
// be one.
func (a *attempt) again(ctx context.Context) bool {
	if userlock.Ended(ctx) {
		return false
	}
	if !a.req.Wait && (!a.taking || time.Now().After(a.giveUp)) {
		return false
	}
	if a.pause == 0 {
		return true
	}
	timer := time.NewTimer(a.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return !userlock.Ended(ctx)
}

func (a *attempt) busy() error {
	if a.killed == nil {
		return sqllock.ErrBusy
	}
	return fmt.Errorf("%w: %w: session %d (%s) has been killed, and may be rolling back",
		sqllock.ErrBusy, sqllock.ErrHolderAlive, a.killed.session, a.killed.process)
}

// step tries, and goes as far as one wait on the server. It leaves the session
// with the lock granted, or with nothing new.
func (a *attempt) step(ctx context.Context, s *session.Session) error {
	a.s, a.rung, a.pooled = s, false, a.refused
	pause := a.pause
	a.pause = 0
	err := a.begin(ctx)
	for turns := 0; err == nil && !a.granted; turns++ {
		var r *row
		if r, err = a.look(ctx); err != nil {
			break
		}
		var more bool
		if more, err = a.judge(ctx, r, pause); err != nil || !more {
			break
		}
		if turns == 16 { // somebody is always faster; let others have the session
			a.pause = minPause
			break
		}
	}
	if a.rung && !a.granted {
		a.rung = false
		return userlock.LetGo(ctx, s, a.bell, err)
	}
	return err
}

func (a *attempt) begin(ctx context.Context) error {
	if a.srv == nil {
		a.srv = a.b.last.Load()
	}
	if a.srv == nil {
		if err := a.admit(ctx); err != nil {
			return err
		}
	}
	if err := a.prepare(ctx); err != nil || a.tried {
		return err
	}
	a.tried = true
	if err := a.tidy(ctx); err != nil {
		return err
	}
	if !a.req.Wait || !a.b.crowd.expects(a.req.Key) {
		if err := a.try(ctx); err != nil || a.granted || a.rung || !a.req.Wait {
			return err
		}
		a.b.crowd.met(a.req.Key)
	}
	// Some of a short ctx has to be left for a takeover.
	d := blind
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline)/4)
	}
	_, err := a.wait(ctx, a.bell, d)
	return err
}

// tidy removes what an earlier release of this process has left of the name.
func (a *attempt) tidy(ctx context.Context) error {
	g, ok := a.b.left.get(a.req.Key)
	if !ok {
		return nil
	}
	if _, err := a.exec(ctx, func() string { return a.srv.queries.drop(g) }); err != nil {
		return err
	}
	a.b.left.drop(g)
	return nil
}

// try takes the doorbell and makes the row, if both are free.
func (a *attempt) try(ctx context.Context) error {
	if a.pooled {
		return a.ring(ctx)
	}
	start := time.Now()
	res, err := userlock.Exec(ctx, a.s, a.srv.queries.try(a.req.Key, a.srv.kind, a.ttl, a.tokenFloor(), a.b.process))
	switch n := userlock.Number(err); {
	case err == nil:
		return a.made(res, start)
	case n == noDoorbell: // it is taken, or ours, or the session is of another kind
		return nil
	case n == duplicate:
		a.rung = true
		return nil
	case n == deadlock: // on InnoDB; the look tells whether the doorbell is ours
		return a.afterTry(ctx, nil)
	case inTransaction(n):
		if err := a.refuse(ctx, err); err != nil {
			return err
		}
		return a.ring(ctx)
	}
	return a.afterTry(ctx, a.b.explain(err))
}

// prepare finds out what a try can't tell by itself: whether the session is in a
// transaction that an InnoDB table would join, and its id, where no token names
// the grant.
func (a *attempt) prepare(ctx context.Context) error {
	if !a.srv.transactional && a.srv.queries.migrated {
		return nil
	}
	inside, id, err := inside(ctx, a.s, a.srv)
	if err != nil {
		return err
	}
	a.id = id
	a.pooled = a.refused || inside && a.srv.transactional
	if a.pooled && a.b.pool == nil {
		return errInTransaction(errors.New("the table is of an engine with transactions"))
	}
	return nil
}

// ring takes the doorbell only; the row is then made over the pool.
func (a *attempt) ring(ctx context.Context) error {
	var verdict, id sql.NullInt64
	err := userlock.Ask(ctx, a.s, "SELECT "+userlock.GetLock(a.bell, "0")+" v,CONNECTION_ID() c", &verdict, &id)
	if err == nil && !verdict.Valid {
		err = userlock.Interrupted()
	}
	if err != nil {
		return a.afterTry(ctx, err)
	}
	a.id = id.Int64
	if verdict.Int64 != userlock.Granted {
		return nil
	}
	a.rung = true
	return a.claim(ctx)
}

// afterTry returns err, by which a try or a ring has failed. If the doorbell is
// ours now, it was taken in that statement, unless the row is ours as well; then
// the session held the lock before.
func (a *attempt) afterTry(ctx context.Context, err error) error {
	if errors.Is(err, sqllock.ErrSessionGone) {
		return err
	}
	var held sql.NullBool
	failed := userlock.Ask(ctx, a.s, "SELECT IS_USED_LOCK("+a.bell+")=CONNECTION_ID() v", &held)
	if failed == nil && !held.Bool {
		return err
	}
	if failed == nil {
		var r *row
		// Servers crash when two sessions read at a time what is missing of an index.
		if failed = err; !damaged(err) || a.repaired || a.b.pool == nil {
			r, failed = a.look(ctx)
		}
		if damaged(failed) && !a.repaired {
			a.repaired = true
			if failed = a.b.repair(ctx, a.req, failed); failed == nil {
				err = nil // go on
				r, failed = a.look(ctx)
			}
		}
		if failed == nil {
			a.rung = !r.there || r.session != a.self(r) || r.acquired == 0
			return err
		}
	}
	return fmt.Errorf("%w: it may hold the lock after a try that failed (%w): %w", sqllock.ErrSessionGone, err, failed)
}

// self is the id of our session, which has looked, unless the pool has.
func (a *attempt) self(r *row) int64 {
	if !a.pooled {
		a.id = r.own
	}
	return a.id
}

// made notes what an INSERT has granted.
func (a *attempt) made(res result, start time.Time) (err error) {
	var token int64
	if a.srv.queries.migrated {
		if token, err = res.LastInsertId(); err != nil {
			return err
		}
		a.b.saw(token)
	}
	a.b.last.Store(a.srv)
	a.b.doomed.forget(a.req.Key)
	a.granted = true
	a.grant = sqllock.Grant{
		Key: a.req.Key, Session: a.id, Token: token, Until: start.Add(length(a.ttl, time.Second)), State: a.srv,
	}
	return nil
}

// saw has the tokens that follow be greater.
func (b *Backend) saw(token int64) {
	for seen := b.floor.Load(); seen < token && !b.floor.CompareAndSwap(seen, token); seen = b.floor.Load() {
	}
}

func (a *attempt) tokenFloor() int64 { return max(a.floor, a.b.floor.Load()) + 1 }

// claim makes the row; the doorbell is ours. It is not granted if a row is there.
func (a *attempt) claim(ctx context.Context) error {
	start := time.Now()
	res, err := a.exec(ctx, func() string {
		return a.srv.queries.claim(a.req.Key, a.claimant(), a.ttl, a.tokenFloor(), a.b.process)
	})
	switch userlock.Number(err) {
	case duplicate, deadlock, noDoorbell:
		return nil // the look tells
	}
	if err != nil {
		return err
	}
	return a.made(res, start)
}

// claimant is the session as claim takes it.
func (a *attempt) claimant() int64 {
	if a.pooled {
		return a.id
	}
	return 0
}

// exec changes rows: on the session, or over the pool, where the statement may be
// another one.
func (a *attempt) exec(ctx context.Context, query func() string) (result, error) {
	if a.pooled {
		return a.b.overPool(ctx, poolTime, query())
	}
	res, err := userlock.Exec(ctx, a.s, query())
	if !inTransaction(userlock.Number(err)) {
		return res, a.b.explain(err)
	}
	if err := a.refuse(ctx, err); err != nil {
		return nil, err
	}
	return a.b.overPool(ctx, poolTime, query())
}

// changed is exec for what must have changed a row.
func (a *attempt) changed(ctx context.Context, query string) (bool, error) {
	res, err := a.exec(ctx, func() string { return query })
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// judge goes on from what a look has found. It reports whether to look again
// right away.
func (a *attempt) judge(ctx context.Context, r *row, pause time.Duration) (more bool, err error) {
	ours := r.bell.Valid && r.bell.Int64 == a.self(r)
	if !a.pooled && r.kind != a.srv.kind {
		return true, a.moved(ctx, r)
	}
	mine := r.session == a.id
	live := r.there && r.used.Valid && r.used.Int64 == r.session && (!a.rang(r) || !mine)
	if !live || r.left > 0 {
		a.taking, a.killed = false, nil // who was to be killed is gone
	}
	switch {
	case ours && !a.rung, live && mine:
		return false, sqllock.ErrHeld
	case !r.there && a.rung:
		return true, a.claim(ctx)
	case !r.there:
		return a.wait(ctx, a.bell, forever)
	case r.acquired == 0 && r.left > 0:
		a.pause = min(max(2*pause, minPause), maxPause)
		return false, nil // without the doorbell, as step leaves it
	case live && r.left > 0:
		return a.wait(ctx, r.doorbell(), max(r.left, time.Millisecond))
	case live && r.created >= r.started:
		return a.takeOver(ctx, r)
	case a.rung:
		return true, a.replace(ctx, r)
	}
	return a.wait(ctx, a.bell, forever)
}

// rang reports whether the doorbell that was taken in this step is that of r, whose
// name may be spelt in another way: on MySQL that is the same doorbell.
func (a *attempt) rang(r *row) bool {
	return a.rung && (r.name == a.req.Key || !userlock.IsMariaDB(a.srv.version) && strings.EqualFold(r.name, a.req.Key))
}

// forever is no limit to a wait but those of the slice and of ctx.
const forever = time.Hour

// moved goes on with a session of another kind than the one that was expected;
// the guard in the statement has kept the try from doing anything.
func (a *attempt) moved(ctx context.Context, r *row) error {
	if srv, ok := a.b.admitted.Get(r.kind); ok {
		a.srv = srv
	} else if err := a.admit(ctx); err != nil {
		return err
	}
	if err := a.prepare(ctx); err != nil {
		return err
	}
	return a.try(ctx)
}

// wait waits on a doorbell for a slice, no longer than limit, where the request
// allows it. If it gets ours, it claims; another one only tells that its holder
// has gone.
func (a *attempt) wait(ctx context.Context, bell string, limit time.Duration) (more bool, err error) {
	if a.rung {
		a.rung = false
		if err := userlock.LetGo(ctx, a.s, a.bell, nil); err != nil {
			return false, err
		}
	}
	if !a.req.Wait {
		if !a.taking {
			return false, nil
		}
		limit = min(limit, time.Until(a.giveUp))
	}
	if limit < time.Millisecond || userlock.Ended(ctx) {
		return false, nil
	}
	w := userlock.Waiter{Version: a.srv.version, Control: a.b.pool}
	if !a.pooled {
		w.Guard = isKind(a.srv.kind)
	}
	verdict, err := w.Wait(ctx, a.s, bell, w.Slice(ctx, limit))
	if err != nil || verdict != userlock.Granted {
		return false, err
	}
	if bell != a.bell {
		a.pause = minPause
		return false, userlock.LetGo(ctx, a.s, bell, nil)
	}
	a.rung = true
	return true, a.claim(ctx)
}

// replace removes an obsolete row and makes ours; the doorbell is ours.
func (a *attempt) replace(ctx context.Context, r *row) error {
	removed, err := a.changed(ctx, a.srv.queries.remove(r))
	if err != nil || !removed {
		return err // somebody else was faster, or the name has another spelling
	}
	a.floor = max(a.floor, r.token)
	if err := a.claim(ctx); err != nil || !a.granted {
		return err
	}
	a.req.Observe(sqllock.Event{Kind: sqllock.TakenOver, Holder: r.holder()})
	return nil
}

// takeOver waits whether the session of a row whose time is over keeps the doorbell
// for longer than somebody who is only passing through. If so it condemns the row,
// kills the session, and waits on the doorbell.
func (a *attempt) takeOver(ctx context.Context, r *row) (more bool, err error) {
	if !a.taking {
		a.taking, a.giveUp = true, time.Now().Add(killTime)
		if passing := blind - a.b.doomed.since(a.req.Key, r); passing > 0 {
			return a.wait(ctx, r.doorbell(), passing)
		}
	}
	before, mark := r.acquired, condemned(a.id)
	if before != mark {
		marked, err := a.changed(ctx, a.srv.queries.mark(r, mark))
		if err != nil || !marked {
			return true, err
		}
		r.acquired = mark
	}
	_, err = userlock.Exec(ctx, a.s, kill(r))
	// A session that is rolling back may be unknown already (1094).
	if err == nil || userlock.Number(err) == userlock.UnknownThread {
		if err == nil && a.killed == nil {
			a.req.Observe(sqllock.Event{Kind: sqllock.Killed, Holder: r.holder()})
		}
		a.killed, a.floor = r, max(a.floor, r.token)
		return a.wait(ctx, r.doorbell(), forever)
	}
	if errors.Is(err, sqllock.ErrSessionGone) {
		return false, err
	}
	_, undone := a.changed(ctx, a.srv.queries.mark(r, before))
	return false, errors.Join(userlock.ErrKill("a holder whose time is over", r.session, err), undone)
}

// condemned is the mark of a session in lock_acquired: true for PHP, and neither
// 0 nor 1.
func condemned(by int64) int64 { return 2 + by%125 }

// look asks for the row, the doorbell and the clock: on the session, or over the
// pool.
func (a *attempt) look(ctx context.Context) (r *row, err error) {
	if !a.pooled {
		r, err = look(ctx, a.s, a.b, a.srv, a.req.Key)
		if !inTransaction(userlock.Number(err)) {
			return r, err
		}
		if err := a.refuse(ctx, err); err != nil {
			return nil, err
		}
	}
	err = a.b.withPool(ctx, poolTime, func(s *session.Session) (err error) {
		r, err = look(ctx, s, a.b, a.srv, a.req.Key)
		return err
	})
	return r, err
}

// refuse turns to the pool, since the session was refused a statement on the table.
func (a *attempt) refuse(ctx context.Context, cause error) error {
	a.pooled, a.refused = true, true
	if a.b.pool == nil {
		return errInTransaction(cause)
	}
	var id sql.NullInt64
	err := userlock.Ask(ctx, a.s, "SELECT CONNECTION_ID() c", &id)
	a.id = id.Int64
	return err
}

func look(ctx context.Context, s *session.Session, b *Backend, srv *server, key string) (*row, error) {
	var name, process, kind sql.NullString
	var holder, created, ttl, acquired, token, left, started, own sql.NullInt64
	r := &row{}
	err := userlock.Ask(ctx, s, srv.queries.look(key), &name, &holder, &created, &ttl, &acquired, &token, &process,
		&r.used, &r.bell, &left, &started, &own, &kind)
	if err != nil {
		return nil, b.explain(err)
	}
	r.there, r.name, r.process, r.kind = name.Valid, unhex(name.String), process.String, kind.String
	r.session, r.created, r.ttl, r.acquired, r.token = holder.Int64, created.Int64, ttl.Int64, acquired.Int64, token.Int64
	r.left, r.started, r.own = length(left.Int64, time.Microsecond), started.Int64, own.Int64
	return r, nil
}

// Release frees g in one round trip. See the package's documentation for what it
// does inside a transaction.
func (b *Backend) Release(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	err := session.Use(conn, func(s *session.Session) error {
		if err := s.Alive(ctx); err != nil {
			return fmt.Errorf("%w: %w: %w", sqllock.ErrLost, sqllock.ErrSessionGone, err)
		}
		return b.release(ctx, s, g)
	})
	if err != nil && !errors.Is(err, sqllock.ErrLost) && userlock.NotSent(err) {
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	}
	return err
}

func (b *Backend) release(ctx context.Context, s *session.Session, g sqllock.Grant) error {
	srv, err := serverOf(g)
	if err != nil {
		return err
	}
	if srv.transactional {
		inside, _, err := inside(ctx, s, srv)
		if err != nil {
			return err
		}
		if inside {
			return b.releaseApart(ctx, s, srv, g)
		}
	}
	// A statement that was interrupted may have changed nothing and say nothing of it.
	for range 3 {
		res, err := userlock.Exec(ctx, s, srv.queries.release(g))
		if errors.Is(err, sqllock.ErrSessionGone) {
			return b.explain(err)
		}
		if err != nil {
			return b.releaseApart(ctx, s, srv, g)
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			return err
		}
		var held sql.NullInt64
		if err := userlock.Ask(ctx, s, srv.queries.held(g), &held); err != nil {
			return err
		}
		if held.Int64 == 0 {
			break
		}
	}
	return lost("its row is gone, or has been taken over")
}

// releaseApart frees a lock whose row can't be removed on its session. A row
// that stays is obsolete as soon as the doorbell is free. Only before its time is
// over is it certain that nobody is about to kill the session for it.
func (b *Backend) releaseApart(ctx context.Context, s *session.Session, srv *server, g sqllock.Grant) error {
	dropped := false
	if b.pool != nil {
		res, err := b.overPool(ctx, spareTime, srv.queries.drop(g))
		if err == nil {
			if n, err := res.RowsAffected(); err == nil && n == 0 {
				return lost("its row is gone, or has been taken over")
			}
			dropped = true
		}
	}
	if !dropped && time.Until(g.Until) <= 0 {
		return lost("its TTL is over, and its row could not be removed")
	}
	var freed sql.NullInt64
	if err := userlock.Ask(ctx, s, userlock.Release(text(g.Key)), &freed); err != nil {
		return err
	}
	if !dropped {
		b.left.put(g)
	}
	if freed.Int64 != userlock.Granted {
		return errors.New("it was freed before, by a statement that failed or otherwise")
	}
	return nil
}

// serverOf returns what is known of the server and the table of g.
func serverOf(g sqllock.Grant) (*server, error) {
	if srv, ok := g.State.(*server); ok {
		return srv, nil
	}
	return nil, errors.New("the grant is not one of this backend")
}

// lost is the end of a lock whose session may hold the doorbell, and may be
// about to be killed for it: nobody is to use it any more.
func lost(why string) error {
	return fmt.Errorf("%w: %s; %w", sqllock.ErrLost, why, sqllock.ErrSessionGone)
}

// Check asks whether g is held, and its time not over: in one round trip, or, on an
// InnoDB table, two or three, since the session is asked for its transaction.
func (b *Backend) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	_, err := b.TimeLeft(ctx, q, g)
	return err
}

// TimeLeft asks the server how long it is until another one may take g. In a
// transaction the row of an InnoDB table may be seen as it was, and would be locked
// if SERIALIZABLE: on a *sql.Conn it is then read over the pool. Without one, and
// over a *sql.Tx or an InTx whatever the engine, it is not read: the answer is whether the
// session has the doorbell, without which nobody is granted the lock, and what is
// left at least.
func (b *Backend) TimeLeft(ctx context.Context, q sqllock.Querier, g sqllock.Grant) (time.Duration, error) {
	switch q.(type) {
	case *sql.Tx, sqllock.InTx:
		return b.leftByDoorbell(ctx, q, g)
	}
	srv, err := serverOf(g)
	if err != nil {
		return 0, err
	}
	if srv.transactional {
		inside, err := b.inside(ctx, q, srv)
		switch {
		case errors.Is(err, sqllock.ErrSessionGone):
			return 0, fmt.Errorf("%w: %w", sqllock.ErrLost, err)
		case err != nil:
			return 0, err
		case inside && b.pool != nil:
			q = b.pool
		case inside:
			return b.leftByDoorbell(ctx, q, g)
		}
	}
	var micros sql.NullInt64
	err = userlock.AskOver(ctx, q, srv.queries.left(g), &micros)
	left := length(micros.Int64, time.Microsecond)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, lost("its row is gone, or has been taken over")
	case errors.Is(err, sqllock.ErrSessionGone):
		return 0, fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	case err != nil:
		return 0, b.explain(err)
	case left <= 0:
		return 0, lost("its TTL is over")
	}
	return left, nil
}

// leftByDoorbell answers without the row, which to read might be a part of the
// caller's transaction.
func (b *Backend) leftByDoorbell(ctx context.Context, q sqllock.Querier, g sqllock.Grant) (time.Duration, error) {
	held, err := hasDoorbell(ctx, q, g)
	left := time.Until(g.Until)
	switch {
	case errors.Is(err, sqllock.ErrSessionGone):
		return 0, fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	case err != nil:
		return 0, err
	case !held:
		return 0, lost("the session does not hold it any more")
	case left <= 0:
		return 0, lost("its TTL is over")
	}
	return left, nil
}

func hasDoorbell(ctx context.Context, q sqllock.Querier, g sqllock.Grant) (bool, error) {
	if tx, ok := q.(sqllock.InTx); ok {
		return userlock.HeldIn(ctx, tx, text(g.Key))
	}
	var held sql.NullBool
	err := userlock.AskOver(ctx, q, "SELECT IS_USED_LOCK("+text(g.Key)+")=CONNECTION_ID() v", &held)
	return held.Bool, err
}

// inside reports whether q is in a transaction. A *sql.Conn is asked, which also
// keeps its session from being idle for too long.
func (b *Backend) inside(ctx context.Context, q sqllock.Querier, srv *server) (in bool, err error) {
	conn, ok := q.(*sql.Conn)
	if !ok {
		return true, nil
	}
	err = session.Use(conn, func(s *session.Session) (err error) {
		in, _, err = inside(ctx, s, srv)
		return err
	})
	return in, err
}

// Extend has g end ttl from now, rounded up to whole seconds. It runs over the
// pool, if there is one, so the session of g may be busy or in a transaction;
// where the pool has no connection to spare, it runs on that session.
func (b *Backend) Extend(ctx context.Context, conn *sql.Conn, g sqllock.Grant, ttl time.Duration) (until time.Time, err error) {
	srv, err := serverOf(g)
	if err != nil {
		return time.Time{}, err
	}
	s := seconds(ttl)
	query := srv.queries.extend(g, s)
	var start time.Time
	var res result
	err = session.ErrNoSpare
	if b.pool != nil {
		start = time.Now()
		res, err = b.overPool(ctx, spareTime, query)
	}
	if errors.Is(err, session.ErrNoSpare) && ctx.Err() == nil {
		err = session.Use(conn, func(s *session.Session) (err error) {
			start = time.Now()
			res, err = b.extend(ctx, s, srv, query)
			return err
		})
		if errors.Is(err, sqllock.ErrSessionGone) {
			err = fmt.Errorf("%w: %w", sqllock.ErrLost, err)
		}
	}
	if err != nil {
		return time.Time{}, err
	}
	found, err := res.LastInsertId()
	if err == nil && found == 0 {
		err = lost("its TTL is over, or it has been taken over")
	}
	return start.Add(length(s, time.Second)), err
}

func (b *Backend) extend(ctx context.Context, s *session.Session, srv *server, query string) (result, error) {
	if srv.transactional {
		inside, _, err := inside(ctx, s, srv)
		if err != nil {
			return nil, err
		}
		if inside {
			return nil, errInTransaction(errors.New("the table is of an engine with transactions"))
		}
	}
	res, err := userlock.Exec(ctx, s, query)
	if inTransaction(userlock.Number(err)) {
		return nil, errInTransaction(err)
	}
	return res, b.explain(err)
}

// length is n units, or the longest duration there is.
func length(n int64, unit time.Duration) time.Duration {
	return time.Duration(min(n, int64(math.MaxInt64/unit))) * unit
}

// lease is the TTL that a grant for req has, in seconds.
func (b *Backend) lease(req sqllock.Request) int64 {
	if req.TTL == 0 {
		return seconds(b.ttl)
	}
	return seconds(req.TTL)
}

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64((d-1)/time.Second) + 1 }
