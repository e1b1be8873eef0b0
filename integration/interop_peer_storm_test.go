package integration

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/interop/symfony"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// peerUnder runs f under the lock of a peer, which asks again and again.
func peerUnder(ctx context.Context, p interopPeer, name string, locked bool, f func(*sql.Conn) error) error {
	if !locked {
		return f(p.session())
	}
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		ok, err := p.acquire(ctx, name, 60)
		if err != nil {
			return err
		}
		if ok {
			err := f(p.session())
			released := p.release(ctx, name)
			for peerConflict(released) { // which PHP throws
				released = p.release(ctx, name)
			}
			return errors.Join(err, released)
		}
		if time.Since(start) > time.Minute {
			return errors.New("the peer was not granted the lock for a minute")
		}
	}
}

// TestInteropExclusion has processes of both kinds count, under one lock.
func TestInteropExclusion(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		const peers, ours, rounds = 3, 3, 6
		name, k := lockName("count"), sqllock.New(c.backend(time.Minute, nil))
		var others []interopPeer
		var conns []*sql.Conn
		db := c.open(c.T)
		for range peers {
			others = append(others, c.newPeer(c.T))
		}
		for range ours {
			conns = append(conns, conn(c.T, db))
		}
		exclusion(c.T, rounds, peers+ours, func(i int, locked bool, increment func(*sql.Conn) error) error {
			if i < peers {
				return peerUnder(c.Context(), others[i], name, locked, increment)
			}
			return goUnder(c.T, k, conns[i-peers], name, locked, increment)
		})
	})
}

// foundRows is a pool whose counts of rows are those that match, on MySQL.
func (c *interopCase) foundRows(t *testing.T) *sql.DB {
	t.Helper()
	if c.pg() {
		return c.open(t)
	}
	name := database(t, c.db)
	return open(t, c.s, func(cfg *mysql.Config) { cfg.DBName, cfg.ClientFoundRows, cfg.InterpolateParams = name, true, true })
}

func granting1(t *testing.T, p interopPeer, name string, seconds int, want bool) {
	t.Helper()
	got, err := p.acquire(t.Context(), name, seconds)
	if err != nil || got != want {
		t.Errorf("the peer's acquire: %v, %v; want %v", got, err, want)
	}
}

func (c *interopCase) held() int64 {
	c.Helper()
	left := c.pick("SELECT COUNT(*) FROM shedlock WHERE lock_until > UTC_TIMESTAMP(3)", "SELECT COUNT(*) FROM shedlock WHERE lock_until > timezone('utc', CURRENT_TIMESTAMP)")
	if c.name != "shedlock" {
		left = "SELECT COUNT(*) FROM " + c.table
	}
	return ask[int64](c.T, c.db, left)
}

// TestInteropBothWays: who holds keeps the other out, and lets it in.
func TestInteropBothWays(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		name, p := lockName("job"), c.newPeer(c.T)
		b := c.backend(time.Minute, nil)
		k, ours := sqllock.New(b), conn(c.T, c.foundRows(c.T))
		for range 2 { // the second time over the row that ShedLock leaves
			l := acquire(c.T, k, ours, name)
			granting1(c.T, p, name, 60, false)
			wantHeld(c.T, l)
			for range 3 { // to the same end, too
				if err := l.Extend(c.Context(), time.Minute); err != nil {
					c.Fatalf("Extend: %v", err)
				}
			}
			release(c.T, l)
			granting1(c.T, p, name, 60, true)
			_, err := k.TryLock(c.Context(), ours, name)
			wantErr(c.T, "TryLock while the peer holds", err, sqllock.ErrBusy)
			if h, err := k.Holder(c.Context(), c.db, name); err != nil || h.Key != name || !h.Alive || h.TimeLeft <= 0 || h.TimeLeft > 62*time.Second {
				c.Errorf("Holder: %+v, %v", h, err)
			}
			waiting := granting(c.T, k, ours, name)
			stillWaits(c.T, waiting)
			if err := p.release(c.Context(), name); err != nil {
				c.Fatal(err)
			}
			release(c.T, granted(c.T, waiting))
		}
		if n := c.held(); n != 0 {
			c.Errorf("%d locks are left", n)
		}
		if _, err := k.Holder(c.Context(), c.db, name); !errors.Is(err, sqllock.ErrNotHeld) {
			c.Errorf("Holder of what is free: %v", err)
		}
		if c.name == "shedlock" && ask[int64](c.T, c.db, "SELECT COUNT(*) FROM shedlock") != 1 {
			c.Error("the row has to stay: Java remembers that it is there, and only updates it")
		}
	})
}

// TestInteropExpiry: a lock of ours that is not extended lasts as long as the handle says,
// by the clock of the peer, whatever the fraction of the second; and the peer's ends, too.
func TestInteropExpiry(t *testing.T) {
	t.Parallel()
	onInterop(t, func(c *interopCase) {
		k := sqllock.New(c.backend(time.Minute, nil))
		ends := make(chan struct{})
		const parts = 3
		for i := range parts {
			go func() {
				defer func() { ends <- struct{}{} }()
				time.Sleep(time.Duration(i) * time.Second / parts) // where in the second it begins
				name, p, ours := lockName("job"), c.newPeer(c.T), conn(c.T, c.db)
				l, err := k.TryLock(c.Context(), ours, name, sqllock.TTL(time.Second))
				if err != nil {
					c.Error(err)
					return
				}
				for {
					ok, err := p.acquire(c.Context(), name, 1)
					if left := l.Remaining(); err != nil || ok && left > 0 {
						c.Errorf("the peer was granted the lock while %v were left of it; %v", left, err)
						return
					}
					if ok {
						break
					}
					time.Sleep(time.Millisecond)
				}
				for what, err := range map[string]error{"Check": l.Check(c.Context()), "Extend": l.Extend(c.Context(), time.Minute), "Release": l.Release(c.Context())} {
					if !errors.Is(err, sqllock.ErrLost) {
						c.Errorf("%s of what the peer has taken over: %v", what, err)
					}
				}
				if i > 0 {
					return
				}
				newer := granted(c.T, granting(c.T, k, ours, name)) // when the peer's second is over
				if err := newer.Release(c.Context()); err != nil {
					c.Error(err)
				}
			}()
		}
		for range parts {
			<-ends
		}
	})
}

// TestInteropSymfonyRefresh: a peer that refreshes keeps its lock; when it comes too late it
// takes back what nobody has taken over, as we never do, and nothing else.
func TestInteropSymfonyRefresh(t *testing.T) {
	t.Parallel()
	onInteropKinds(t, func(t *testing.T, kind testdb.Kind) {
		c := newInterop(t, kind, interopFormats[0])
		name, ours := lockName("job"), conn(t, c.db)
		p := newSymfonyPeer(c, conn(t, c.db)).(*symfonyPeer) //nolint:errcheck // it is one
		k := sqllock.New(symfony.New(time.Second))
		putOff := func(want bool) {
			t.Helper()
			if ok, err := p.putOff(t.Context(), name, 60); err != nil || ok != want {
				t.Fatalf("the peer's refresh: %v, %v; want %v", ok, err, want)
			}
		}
		granting1(t, p, name, 2, true)
		waiting := granting(t, k, conn(t, c.db), name)
		putOff(true)
		for start := time.Now(); time.Since(start) < 2500*time.Millisecond; time.Sleep(50 * time.Millisecond) {
			stillWaits(t, waiting) // though it may have seen the first end
		}
		if err := p.release(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		release(t, granted(t, waiting))
		granting1(t, p, name, 60, true)
		expire := func() {
			do(t, c.db, "UPDATE lock_keys SET key_expiration = key_expiration - 600")
		}
		expire()
		putOff(true)
		expire()
		l := acquire(t, k, ours, name, sqllock.TTL(time.Minute))
		putOff(false)
		expire()
		wantErr(t, "Extend of what is over, and nobody's", l.Extend(t.Context(), time.Minute), sqllock.ErrLost)
		putOff(true)
		_, err := k.TryLock(t.Context(), ours, name)
		wantErr(t, "TryLock after the refresh", err, sqllock.ErrBusy)
	})
}
