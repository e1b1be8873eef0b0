package rowlock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// The pauses of a waiter between two looks. A row that has come to be another one's begins
// them anew, since then more of that is to be expected.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// guardPause is between two tries to lock a row that somebody else has locked for a moment,
// and guardTime how long they go on.
const (
	guardPause = 5 * time.Millisecond
	guardTime  = 4 * time.Second
)

// Backend is the lock backend on a table of a format. It is safe for concurrent use.
type Backend struct {
	format   Format
	ttl      time.Duration
	prefix   string
	names    map[string]string // by key
	pool     *sql.DB
	mysql    *queries
	postgres *queries
	admitted userlock.Admitted[string, table]
}

// New returns a Backend whose locks are held for ttl, unless [sqllock.TTL] says otherwise.
func New(f Format, ttl time.Duration, pool *sql.DB, opts ...Option) *Backend {
	if ttl <= 0 {
		panic(fmt.Sprintf("%s: New(%v): the TTL must be positive", f.Package, ttl))
	}
	b := &Backend{format: f, ttl: ttl, pool: pool}
	for _, o := range opts {
		o(b)
	}
	b.mysql, b.postgres = newQueries(&b.format, false), newQueries(&b.format, true)
	return b
}

// grant is what a grant keeps beside what everybody may know.
type grant struct{ part }

func own(g sqllock.Grant) (part, error) {
	if own, ok := g.State.(grant); ok {
		return own.part, nil
	}
	return part{}, errors.New("the grant is not one of this backend")
}

// holdings tell which driver's connection has acquired what, by token, since the row does
// not: a session that has a lock is to be told so.
var holdings = struct { //nolint:gochecknoglobals // a session is one for the whole process
	sync.Mutex

	by map[string]any
}{by: make(map[string]any)}

func holding(token string) any {
	holdings.Lock()
	defer holdings.Unlock()
	return holdings.by[token]
}

func hold(token string, dc any) {
	holdings.Lock()
	defer holdings.Unlock()
	if dc == nil {
		delete(holdings.by, token)
		return
	}
	holdings.by[token] = dc
}

// attempt is an Acquire under way. Between two of its steps nothing is held.
type attempt struct {
	b       *Backend
	req     sqllock.Request
	conn    *sql.Conn
	dc      any // under conn
	part    part
	ttl     int64 // in seconds
	row     row   // as it was last seen
	pause   time.Duration
	sent    bool // a claim, which may have made a row
	granted bool
	until   time.Time
}

// Acquire looks, and claims what is free, or waits and looks again; over the pool, if the
// session turns out to be gone before a claim. After an error that leaves open whether it has
// been granted the lock it removes the row.
func (b *Backend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	id, err := b.id(req.Key)
	if err != nil {
		return sqllock.Grant{}, err
	}
	a := &attempt{b: b, req: req, conn: conn, part: part{id, b.format.NewToken()}, ttl: b.lease(req)}
	for {
		step := func(o *on) error { return a.step(ctx, o) }
		err := b.apart(ctx, conn, func(dc any) { a.dc = dc }, step)
		if errors.Is(err, sqllock.ErrSessionGone) && b.pool != nil && !errors.Is(err, errConnClosed) && !a.sent {
			// To a Pool an error would say that the other locks of the session are gone, too.
			if failed := b.withPool(ctx, poolTime, step); failed != nil {
				err = fmt.Errorf("%w; %w", err, failed)
			} else {
				err = nil
			}
		}
		switch {
		case errors.Is(err, session.ErrNoSpare) && ctx.Err() != nil:
			return sqllock.Grant{}, sqllock.ErrBusy // the wait has ended
		case err != nil:
			return sqllock.Grant{}, a.undone(ctx, err)
		case a.granted:
			return sqllock.Grant{Key: req.Key, Until: a.until, State: grant{a.part}}, nil
		case !req.Wait || !a.wait(ctx):
			return sqllock.Grant{}, sqllock.ErrBusy
		}
	}
}

// step looks, and claims what is free.
func (a *attempt) step(ctx context.Context, o *on) error {
	seen, err := o.look(ctx, a.part.id)
	if err != nil {
		return err
	}
	if err := o.admit(ctx, seen); err != nil {
		return err
	}
	if free := !seen.there || seen.left.Microseconds() <= o.q.grace(); !free {
		return a.taken(seen)
	}
	o.wrote = false
	start := time.Now()
	now, err := o.look(ctx, a.part.id, o.q.claim(a.part.id, a.part.token, a.ttl, seen.there))
	switch {
	case err != nil && o.wrote:
		a.sent = true
		return err
	case crossed(err), locked(err): // by somebody who is about to take it, or by the guard of its holder
		return nil
	case err != nil:
		return err
	}
	if now.token != a.part.token {
		return a.taken(now)
	}
	a.granted, a.until = true, start.Add(min(length(a.ttl), now.left))
	hold(a.part.token, a.dc)
	if seen.there && !a.b.format.Keeps {
		a.req.Observe(sqllock.Event{Kind: sqllock.TakenOver, Holder: sqllock.Holder{Key: a.req.Key, Process: a.b.format.Process(seen.token)}})
	}
	return nil
}

// taken notes who has the lock.
func (a *attempt) taken(r row) error {
	if r.left > 0 && holding(r.token) == a.dc && a.dc != nil {
		return sqllock.ErrHeld
	}
	if r.token != a.row.token {
		a.pause = 0
	}
	a.row = r
	return nil
}

// wait lets a pause pass that grows, and is over when the time of the row is. It reports
// whether ctx goes on.
func (a *attempt) wait(ctx context.Context) bool {
	if userlock.Ended(ctx) {
		return false
	}
	a.pause = min(max(a.pause*3/2, firstPause), lastPause)
	d := a.pause/2 + rand.N(a.pause/2)
	if a.row.left > 0 {
		d = min(d, a.row.left+time.Millisecond)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return !userlock.Ended(ctx)
}

// undone returns err, by which an attempt has failed, after removing what it may have left.
func (a *attempt) undone(ctx context.Context, err error) error {
	if !a.sent {
		return err
	}
	remove := func(o *on) error { return o.run(ctx, nil, o.q.free(a.part.id, a.part.token)) }
	failed := errNoPool
	if !errors.Is(err, sqllock.ErrSessionGone) {
		failed = a.b.alone(ctx, a.conn, remove)
	}
	if failed != nil && a.b.pool != nil {
		failed = a.b.withPool(context.WithoutCancel(ctx), poolTime, remove)
	}
	if failed != nil {
		return fmt.Errorf("%w; a row that it may have made could not be removed, and ends with its TTL of %v (%v)", err, length(a.ttl), failed) //nolint:errorlint // the first one counts
	}
	return err
}

var errNoPool = errors.New("there is no pool to remove it over")

// Release frees the row of g: on its session, or, where that is in a transaction, busy or
// gone, over the pool.
func (b *Backend) Release(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	p, err := own(g)
	if err != nil {
		return err
	}
	defer hold(p.token, nil)
	var seen row
	free := func(o *on) (err error) {
		seen, err = o.lookFirst(ctx, p.id, o.q.free(p.id, p.token))
		return err
	}
	sent := false
	err = b.use(conn, func(o *on) error {
		inside, err := o.inside(ctx)
		switch {
		case err != nil:
			return err
		case inside:
			return b.errInTransaction()
		}
		sent = true
		err = free(o)
		sent = err != nil && !notSent(err)
		return err
	})
	if err != nil && b.pool != nil {
		if failed := b.withPool(ctx, poolTime, free); failed != nil {
			return fmt.Errorf("%w; over the pool: %w", err, failed)
		}
		if sent && seen.token != p.token {
			return fmt.Errorf("the row is gone, by this release or before it: %w", err)
		}
		err = nil
	}
	switch {
	case err != nil && time.Until(g.Until) <= 0:
		return unasked(err)
	case err != nil:
		return fmt.Errorf("%w; the lock ends with its TTL, in %v", err, time.Until(g.Until).Round(time.Millisecond))
	case seen.token != p.token, b.format.Keeps && seen.left <= 0 && time.Until(g.Until) > 0:
		return lost(whyGone)
	}
	return nil
}

// Check asks whether the row is that of g, and its time not over. In a transaction (over a
// *sql.Tx or an InTx) it locks the row until that ends.
func (b *Backend) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	_, err := b.TimeLeft(ctx, q, g)
	return err
}

// TimeLeft tells how long it is until somebody else may take the row. Where the server can't
// be asked, the time is over when it is over here.
func (b *Backend) TimeLeft(ctx context.Context, q sqllock.Querier, g sqllock.Grant) (time.Duration, error) {
	p, err := own(g)
	if err != nil {
		return 0, err
	}
	left, err := b.timeLeft(ctx, q, p)
	switch {
	case errors.Is(err, sqllock.ErrLost):
		hold(p.token, nil)
		return 0, err
	case err != nil && time.Until(g.Until) <= 0:
		hold(p.token, nil)
		return 0, unasked(err)
	}
	return left, err
}

func (b *Backend) timeLeft(ctx context.Context, q sqllock.Querier, p part) (time.Duration, error) {
	switch q.(type) {
	case *sql.Tx, sqllock.InTx:
		return b.guard(ctx, q, p)
	}
	var seen row
	look := func(o *on) (err error) {
		seen, err = o.look(ctx, p.id)
		return err
	}
	if err := b.over(ctx, q, look); err != nil {
		return 0, err
	}
	switch {
	case seen.token != p.token:
		return 0, lost(whyGone)
	case seen.left <= 0:
		return 0, lost(whyOver)
	}
	return seen.left, nil
}

// guard locks the row of p in the transaction of q.
func (b *Backend) guard(ctx context.Context, q sqllock.Querier, p part) (time.Duration, error) {
	qs, err := b.queriesOf(ctx, q)
	if err != nil {
		return 0, err
	}
	for start := time.Now(); ; {
		var left sql.NullInt64
		err := qs.askOver(ctx, q, qs.guard(p.id, p.token), &left)
		switch {
		case err == nil:
			return micros(left.Int64), nil
		case errors.Is(err, sql.ErrNoRows) && !qs.pg:
			return 0, lost(whyGone + ", or its TTL is over")
		case errors.Is(err, sql.ErrNoRows):
			// It is gone, or somebody has locked it.
			err = qs.askOver(ctx, q, qs.still(p.id, p.token), &left)
			if errors.Is(err, sql.ErrNoRows) {
				return 0, lost(whyGone + ", or its TTL is over")
			}
			if err != nil {
				return 0, qs.explain(err)
			}
			err = errors.New("its row is locked")
		case !locked(err):
			return 0, qs.errGuard(err)
		}
		if time.Since(start) > guardTime {
			return 0, fmt.Errorf("the transaction can't be guarded: another session has locked the row of the lock for %v, in a transaction of its own: %w", guardTime, err)
		}
		time.Sleep(guardPause)
	}
}

// Extend has g end ttl from now: over the pool, if there is one to spare, or else on its
// session.
func (b *Backend) Extend(ctx context.Context, conn *sql.Conn, g sqllock.Grant, ttl time.Duration) (until time.Time, err error) {
	p, err := own(g)
	if err != nil {
		return time.Time{}, err
	}
	n := seconds(ttl)
	var now row
	var start time.Time
	extend := func(o *on) (err error) {
		start = time.Now()
		now, err = o.look(ctx, p.id, o.q.extend(p.id, p.token, n))
		return err
	}
	err = session.ErrNoSpare
	if b.pool != nil {
		err = b.withPool(ctx, spareTime, extend)
	}
	if errors.Is(err, session.ErrNoSpare) && ctx.Err() == nil {
		err = b.alone(ctx, conn, extend)
	}
	switch {
	case err != nil && time.Until(g.Until) <= 0:
		return time.Time{}, unasked(err)
	case err != nil:
		return time.Time{}, err
	case now.token != p.token, now.left <= 0:
		hold(p.token, nil)
		return time.Time{}, lost(whyOver + ", or " + whyGone)
	}
	return start.Add(min(length(n), now.left)), nil
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

// length is n seconds, or the longest duration there is.
func length(n int64) time.Duration {
	return time.Duration(min(n, int64(math.MaxInt64/time.Second))) * time.Second
}
