package locktest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// optionalTests are those of the interfaces that a backend need not have.
func optionalTests(backend sqllock.Backend) (tests []subtest) {
	if w, ok := backend.(sqllock.Watcher); ok {
		tests = append(tests, subtest{"Watch", func(t *testing.T, b *bench) { testWatch(t, b, w) }})
		if _, leases := backend.(sqllock.Leaser); leases {
			tests = append(tests, subtest{"WatchExpiry", func(t *testing.T, b *bench) { testWatchExpiry(t, b, w) }})
		}
	}
	if p, ok := backend.(sqllock.Passer); ok {
		tests = append(tests, subtest{"Pass", func(t *testing.T, b *bench) { testPass(t, b, p) }})
		if l, leases := backend.(sqllock.Leaser); leases {
			tests = append(tests, subtest{"PassOfALease", func(t *testing.T, b *bench) { testPassOfALease(t, b, p, l) }})
		}
	}
	if e, ok := backend.(sqllock.GroupExtender); ok {
		tests = append(tests, subtest{"ExtendAll", func(t *testing.T, b *bench) { testExtendAll(t, b, e) }})
	}
	if g, ok := backend.(sqllock.GroupAcquirer); ok {
		tests = append(tests,
			subtest{"AcquireAll", func(t *testing.T, b *bench) { testAcquireAll(t, b, g) }},
			subtest{"AcquireAllBusy", func(t *testing.T, b *bench) { testAcquireAllBusy(t, b, g) }},
			subtest{"AcquireAllExclusion", func(t *testing.T, b *bench) { testAcquireAllExclusion(t, b, g) }},
		)
	}
	return tests
}

// testWatch has grants on three sessions, more than one statement asks about.
func testWatch(t *testing.T, b *bench, w sqllock.Watcher) {
	const n = 150
	conns := []*sql.Conn{b.conn(t), b.conn(t), b.conn(t)}
	session := b.session(t, conns[0])
	grants, want := make([]sqllock.Grant, n), make([]bool, n)
	for i := range grants {
		grants[i] = b.grant(t, conns[i%3], b.numbered(i), 0)
		want[i] = true
	}
	watched := func(q sqllock.Querier) []bool {
		t.Helper()
		held, err := w.Watch(t.Context(), q, grants)
		if err != nil {
			t.Fatalf("Watch: %v", err)
		}
		return held
	}
	wantHeld := func(what string) {
		t.Helper()
		for over, q := range map[string]sqllock.Querier{"the pool": b.db, "a session with locks": conns[0]} {
			if got := watched(q); !slices.Equal(got, want) {
				t.Errorf("%s, asked over %s: got %v", what, over, got)
			}
		}
	}
	wantHeld("all are held")
	if held, err := w.Watch(t.Context(), b.db, nil); err != nil || len(held) != 0 {
		t.Errorf("Watch of no grants: %v, %v", held, err)
	}

	const released = 103
	b.end(t, conns[released%3], grants[released])
	want[released] = false
	wantHeld("one was released")
	newer := b.grant(t, conns[0], b.numbered(released), 0) // conns[1] had it
	wantHeld("one was released, and another session has it")
	b.end(t, conns[0], newer)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	held, err := w.Watch(ctx, conns[0], grants)
	if err == nil && !slices.Equal(held, want) {
		t.Errorf("with a ctx that has ended: got %v", held)
	}
	b.usable(t, conns[0], session)

	if b.Kill == nil {
		return
	}
	b.killHolder(t, grants[2])
	for i := 2; i < n; i += 3 {
		want[i] = false
	}
	b.eventually(t, "the locks of the session that was killed to be gone", func() bool { return slices.Equal(watched(b.db), want) })
	wantHeld("a session was killed")
}

// testExtendAll has grants on two sessions, more than one statement extends, and asks
// over a third one.
func testExtendAll(t *testing.T, b *bench, e sqllock.GroupExtender) {
	const n, released = 130, 104
	conns := []*sql.Conn{b.conn(t), b.conn(t)}
	grants, want := make([]sqllock.Grant, n), make([]bool, n)
	for i := range grants {
		grants[i] = b.grant(t, conns[i%2], b.numbered(i), long)
		want[i] = i != released && (i%2 == 0 || b.Kill == nil)
	}
	b.end(t, conns[0], grants[released])
	if b.Kill != nil {
		b.killHolder(t, grants[1])
	}
	over := b.conn(t)
	session := b.session(t, over)
	b.eventually(t, "the killed session's leases to be over", func() bool {
		before := time.Now()
		held, until, err := e.ExtendAll(t.Context(), over, grants, 3*long)
		if err != nil {
			t.Fatalf("ExtendAll: %v", err)
		}
		if until.Before(before.Add(3*long)) || until.After(time.Now().Add(3*long+time.Second)) {
			t.Errorf("ExtendAll until %v, called at %v", until, before)
		}
		return slices.Equal(held, want)
	})
	for i, g := range grants {
		if !want[i] {
			continue // to ask about one that is gone may cost the session
		}
		left, err := e.TimeLeft(t.Context(), conns[0], g)
		if err != nil || left < 2*long {
			t.Fatalf("grant %d after ExtendAll: %v left, %v", i, left, err)
		}
	}
	b.usable(t, over, session)
}

// testWatchExpiry: as to Check, a grant whose time is over is lost.
func testWatchExpiry(t *testing.T, b *bench, w sqllock.Watcher) {
	conn := b.conn(t)
	grants := []sqllock.Grant{b.grant(t, conn, b.name, ttl), b.grant(t, conn, b.numbered(1), long)}
	b.eventually(t, "the TTL to be over", func() bool {
		held, err := w.Watch(t.Context(), b.db, grants)
		if err != nil || len(held) != 2 || !held[1] {
			t.Fatalf("Watch: %v, %v", held, err)
		}
		if held[0] != (b.Backend.Check(t.Context(), conn, grants[0]) == nil) && time.Until(grants[0].Until) > 0 {
			t.Error("Watch and Check do not agree")
		}
		return !held[0]
	})
	wantIs(t, "Check", b.Backend.Check(t.Context(), conn, grants[0]), sqllock.ErrLost)
}

// testPass: a lock goes from tenant to tenant without ever being free.
func testPass(t *testing.T, b *bench, p sqllock.Passer) {
	conn, other := b.conn(t), b.conn(t)
	g := b.grant(t, conn, b.name, 0)
	for range 20 {
		next, err := p.Pass(t.Context(), conn, g, b.request(t, b.name, 0))
		if err != nil {
			t.Fatalf("Pass: %v", err)
		}
		if next.Key != g.Key || next.Session != g.Session || next.Token < g.Token || g.Token != 0 && next.Token == g.Token {
			t.Errorf("from %+v to %+v", g, next)
		}
		if err := p.Check(t.Context(), conn, next); err != nil {
			t.Errorf("Check of the next grant: %v", err)
		}
		if g.Token != 0 {
			wantIs(t, "Check of the grant before", p.Check(t.Context(), conn, g), sqllock.ErrLost)
			wantIs(t, "Release of the grant before", p.Release(t.Context(), conn, g), sqllock.ErrLost)
			if err := p.Check(t.Context(), conn, next); err != nil {
				t.Errorf("Check after the release of the grant before: %v", err)
			}
		}
		_, err = p.Acquire(t.Context(), other, b.request(t, b.name, 0))
		wantIs(t, "Acquire by another session", err, sqllock.ErrBusy)
		g = next
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if next, err := p.Pass(ctx, conn, g, b.request(t, b.name, 0)); err == nil {
		g = next
	}
	b.end(t, conn, g)
	last := b.grant(t, other, b.name, 0)
	if last.Token < g.Token || g.Token != 0 && last.Token == g.Token {
		t.Errorf("token %d after %d", last.Token, g.Token)
	}
	b.end(t, other, last)

	if b.Kill == nil {
		return
	}
	g = b.grant(t, conn, b.name, 0)
	b.killHolder(t, g)
	next, err := p.Pass(t.Context(), conn, g, b.request(t, b.name, 0))
	if err == nil { // the backend has not asked
		err = p.Check(t.Context(), conn, next)
	}
	wantIs(t, "Pass on a session that was killed", err, sqllock.ErrLost)
	b.freed(t, b.name)
}

// testPassOfALease: each tenant has a TTL of its own.
func testPassOfALease(t *testing.T, b *bench, p sqllock.Passer, l sqllock.Leaser) {
	conn := b.conn(t)
	g := b.grant(t, conn, b.name, ttl)
	pass := func(d time.Duration) {
		t.Helper()
		before := time.Now()
		next, err := p.Pass(t.Context(), conn, g, b.request(t, b.name, d))
		if err != nil {
			t.Fatalf("Pass: %v", err)
		}
		if next.Until.Before(before.Add(d)) || next.Until.After(time.Now().Add(d)) {
			t.Errorf("it ends in %v, after a Pass with a TTL of %v", time.Until(next.Until), d)
		}
		g = next
	}
	for _, d := range []time.Duration{long, 2 * ttl, 2 * long, ttl} {
		pass(d)
		left, err := l.TimeLeft(t.Context(), conn, g)
		if err != nil || left > d+2*time.Second || left < d/2 {
			t.Errorf("%v are left after a Pass with a TTL of %v; %v", left, d, err)
		}
	}
	if until, err := l.Extend(t.Context(), conn, g, ttl); err != nil || until.IsZero() {
		t.Errorf("Extend: %v, %v", until, err)
	}
	b.eventually(t, "the TTL to be over", func() bool { return p.Check(t.Context(), conn, g) != nil })
	_, err := p.Pass(t.Context(), conn, g, b.request(t, b.name, long))
	wantIs(t, "Pass after the TTL", err, sqllock.ErrLost)
	other := b.conn(t)
	b.release(t, b.lock(t, other, b.name))
}

func testAcquireAll(t *testing.T, b *bench, g sqllock.GroupAcquirer) {
	conn, other := b.conn(t), b.conn(t)
	session := b.session(t, conn)
	for _, n := range []int{0, 1, 2, 16, 17, 40} {
		reqs := b.requests(t, n)
		grants, err := g.AcquireAll(t.Context(), conn, reqs)
		if err != nil || len(grants) != n {
			t.Fatalf("AcquireAll of %d: %d grants, %v", n, len(grants), err)
		}
		for i, req := range reqs {
			if grants[i].Key != req.Key {
				t.Errorf("grant %d is of %q, want %q", i, grants[i].Key, req.Key)
			}
			_, err := g.Acquire(t.Context(), other, req)
			wantIs(t, "Acquire by another session", err, sqllock.ErrBusy)
			if err := g.Check(t.Context(), conn, grants[i]); err != nil {
				t.Errorf("Check: %v", err)
			}
		}
		for i := range reqs { // one release frees each
			b.end(t, conn, grants[i])
			b.end(t, other, b.grant(t, other, b.numbered(i), 0))
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if grants, err := g.AcquireAll(ctx, conn, b.requests(t, 2)); err == nil {
		for _, grant := range grants {
			b.end(t, conn, grant)
		}
	}
	b.usable(t, conn, session)
	b.allFree(t, other, 2)

	if b.Kill == nil {
		return
	}
	doomed := b.grant(t, conn, b.name, 0)
	b.killHolder(t, doomed)
	_, err := g.AcquireAll(t.Context(), conn, b.requests(t, 40))
	wantIs(t, "AcquireAll on a session that was killed", err, sqllock.ErrSessionGone)
	b.allFree(t, other, 40)
}

// testAcquireAllBusy: when one is not to be had, the session has none of the others
// afterwards, and what it had before it has no more than once.
func testAcquireAllBusy(t *testing.T, b *bench, g sqllock.GroupAcquirer) {
	const n = 40
	conn, other := b.conn(t), b.conn(t)
	session := b.session(t, conn)
	for _, taken := range []int{0, 1, 15, 16, 20, n - 1} {
		for _, holder := range []*sql.Conn{other, conn} {
			held := b.grant(t, holder, b.numbered(taken), 0)
			grants, err := g.AcquireAll(t.Context(), conn, b.requests(t, n))
			wantIs(t, fmt.Sprintf("AcquireAll where number %d is taken", taken), err, sqllock.ErrBusy)
			wantNot(t, "AcquireAll", err, sqllock.ErrHeld, sqllock.ErrSessionGone)
			if len(grants) != 0 {
				t.Errorf("it returned %d grants", len(grants))
			}
			if err := g.Check(t.Context(), holder, held); err != nil {
				t.Errorf("Check of number %d, which was held before: %v", taken, err)
			}
			b.end(t, holder, held)
			b.allFree(t, other, n)
			b.usable(t, conn, session)
		}
	}
}

// testAcquireAllExclusion has sessions that want the same locks in different orders.
func testAcquireAllExclusion(t *testing.T, b *bench, g sqllock.GroupAcquirer) {
	const sessions, n, enough = 4, 20, 25
	var holders, total, refused atomic.Int64
	var wg sync.WaitGroup
	stop := time.Now().Add(patience)
	for i := range sessions {
		conn, reqs := b.conn(t), b.requests(t, n)
		if i%2 == 1 {
			slices.Reverse(reqs)
		}
		wg.Go(func() {
			for got := 0; got < enough && time.Now().Before(stop); {
				grants, err := g.AcquireAll(t.Context(), conn, reqs)
				if errors.Is(err, sqllock.ErrBusy) {
					refused.Add(1)
					continue
				}
				if err != nil {
					t.Errorf("AcquireAll: %v", err)
					return
				}
				if holders.Add(1) != 1 {
					t.Error("two sessions have all locks")
				}
				if err := g.Check(t.Context(), conn, grants[n/2]); err != nil {
					t.Errorf("Check: %v", err)
				}
				got++
				total.Add(1)
				holders.Add(-1)
				for _, grant := range grants {
					if err := g.Release(t.Context(), conn, grant); err != nil {
						t.Errorf("Release: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d grants, %d refusals", total.Load(), refused.Load())
	if total.Load() == 0 {
		t.Error("nobody was granted anything")
	}
	b.allFree(t, b.conn(t), n)
}

func (b *bench) numbered(i int) string { return fmt.Sprintf("%s-%d", b.name, i) }

// request asks for name with a TTL, 0 for the backend's own.
func (b *bench) request(t *testing.T, name string, ttl time.Duration) sqllock.Request {
	t.Helper()
	return sqllock.Request{Key: b.key(t, name), TTL: ttl, Observe: func(sqllock.Event) {}}
}

func (b *bench) requests(t *testing.T, n int) []sqllock.Request {
	t.Helper()
	reqs := make([]sqllock.Request, n)
	for i := range reqs {
		reqs[i] = b.request(t, b.numbered(i), 0)
	}
	return reqs
}

// grant acquires name of the backend itself, and end releases it.
func (b *bench) grant(t *testing.T, conn *sql.Conn, name string, ttl time.Duration) sqllock.Grant {
	t.Helper()
	g, err := b.Backend.Acquire(t.Context(), conn, b.request(t, name, ttl))
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return g
}

func (b *bench) end(t *testing.T, conn *sql.Conn, g sqllock.Grant) {
	t.Helper()
	if err := b.Backend.Release(t.Context(), conn, g); err != nil {
		t.Fatalf("Release: %v", err)
	}
}

// allFree is free for the first n numbered names, by the session under conn.
func (b *bench) allFree(t *testing.T, conn *sql.Conn, n int) {
	t.Helper()
	for i := range n {
		b.end(t, conn, b.grant(t, conn, b.numbered(i), 0))
	}
}

// killHolder is kill for a grant of the backend itself.
func (b *bench) killHolder(t *testing.T, g sqllock.Grant) {
	t.Helper()
	h, err := b.Backend.Holder(t.Context(), b.db, g.Key)
	if err != nil {
		t.Fatalf("Holder: %v", err)
	}
	if err := b.Kill(t.Context(), b.db, h.Session); err != nil {
		t.Fatalf("Config.Kill: %v", err)
	}
	b.eventually(t, "the killed session to let go of its lock", func() bool {
		now, err := b.Backend.Holder(t.Context(), b.db, g.Key)
		return errors.Is(err, sqllock.ErrNotHeld) || err == nil && (now.Session != h.Session || !now.Alive)
	})
}
