package gocronlock_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"

	"github.com/sqllock/go-sqllock/adapter/gocronlock"
)

// candidate is an Elector in a process of its own, with the answers that it has told of.
type candidate struct {
	*gocronlock.Elector

	mu   sync.Mutex
	told []string // "leads", or a part of an error
}

func elector(t *testing.T, server *memory.Server, b sqllock.Backend) *candidate {
	t.Helper()
	c := new(candidate)
	c.Elector = gocronlock.NewElector(open(t, server), sqllock.New(b, sqllock.WithNamespace("shop")), "cron", gocronlock.OnChange(func(err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case err == nil:
			c.told = append(c.told, "leads")
		case errors.Is(err, sqllock.ErrBusy):
			c.told = append(c.told, "follows")
		default:
			c.told = append(c.told, err.Error())
		}
	}))
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *candidate) start(t *testing.T) {
	t.Helper()
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (c *candidate) wantLeader(t *testing.T, is bool) {
	t.Helper()
	if err := c.IsLeader(t.Context()); (err == nil) != is {
		t.Errorf("IsLeader: %v", err)
	}
}

func (c *candidate) wantTold(t *testing.T, texts ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.EqualFunc(c.told, texts, strings.Contains) {
		t.Errorf("told of %q, want %q", c.told, texts)
	}
}

// TestElection: the first one leads, the others know who, and the next one leads when it
// goes.
func TestElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		a, b := elector(t, server, server.Backend()), elector(t, server, server.Backend())
		want(t, "before", a.IsLeader(t.Context()), nil, "call Start before the scheduler's")
		a.start(t)
		b.start(t)
		a.wantLeader(t, true)
		want(t, "the second one", b.IsLeader(t.Context()), []error{sqllock.ErrBusy}, "not the leader, as session ", `is, by the lock "cron"`)
		time.Sleep(time.Hour + time.Millisecond) // b is not about to ask who leads
		a.wantLeader(t, true)
		b.wantLeader(t, false)

		dead, cancel := context.WithCancel(t.Context())
		cancel()
		server.Fail(errors.New("nothing is to be asked"))
		if err := a.IsLeader(dead); err != nil {
			t.Errorf("IsLeader does not answer from memory: %v", err)
		}
		server.Fail(nil)

		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
		want(t, "closed", a.IsLeader(t.Context()), nil, "the Elector is closed")
		synctest.Wait()
		b.wantLeader(t, true)
		a.wantTold(t, "leads", "the Elector is closed")
		b.wantTold(t, "follows", "leads")
	})
}

// TestElectorLosesSession: who loses the session knows within a second, and campaigns
// again.
func TestElectorLosesSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		a, b := elector(t, server, server.Backend()), elector(t, server, server.Backend())
		a.start(t)
		b.start(t)
		if err := server.Lose("shop:cron"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.wantLeader(t, true)
		time.Sleep(time.Second)
		synctest.Wait()
		want(t, "the old leader", a.IsLeader(t.Context()), []error{sqllock.ErrLost}, "not the leader, and about to try again")
		time.Sleep(6 * time.Second)
		want(t, "the old leader", a.IsLeader(t.Context()), []error{sqllock.ErrBusy})
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		a.wantLeader(t, true)
		a.wantTold(t, "leads", "the lock was lost", "follows", "leads")
	})
}

// TestElectorTrust: an answer of the server is good for ten seconds. Then nobody is
// asked any more whether it holds, and when the server answers again, one leads again.
func TestElectorTrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		a := elector(t, server, server.Backend())
		a.start(t)
		time.Sleep(time.Minute + time.Millisecond)
		server.Fail(errors.New("no route to host"))
		time.Sleep(9 * time.Second)
		a.wantLeader(t, true)
		time.Sleep(1100 * time.Millisecond)
		a.wantLeader(t, false)
		time.Sleep(time.Hour)
		want(t, "an hour later", a.IsLeader(t.Context()), nil, "no route to host", "not the leader, and about to try again")
		server.Fail(nil)
		time.Sleep(6 * time.Second)
		a.wantLeader(t, true)
	})
}

// TestElectorLease: at no time can another one get the lock of one who says that it leads,
// while the server can be asked by anybody but the leader.
func TestElectorLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		b := server.Leases(3 * time.Second)
		a := elector(t, server, b)
		a.start(t)
		time.Sleep(time.Hour)
		a.wantLeader(t, true) // it has been extended

		other, locker := open(t, server), sqllock.New(b, sqllock.WithNamespace("shop"))
		cut := errors.New("no route to host")
		server.Fail(cut)
		led := 0
		for range 50 {
			time.Sleep(100*time.Millisecond + time.Microsecond)
			leads := a.IsLeader(t.Context()) == nil
			server.Fail(nil)
			ran, err := locker.TryDo(t.Context(), other, "cron", func(context.Context, *sqllock.Lock) error { return nil })
			server.Fail(cut)
			if err != nil {
				t.Fatal(err)
			}
			if leads {
				led++
				if ran {
					t.Fatal("another one has got the lock of one who leads")
				}
			} else if !ran && led == 0 {
				t.Fatal("it does not lead at all")
			}
			if ran {
				want(t, "then", a.IsLeader(t.Context()), nil)
				if led < 10 {
					t.Errorf("it has led for %d tenths of a second of its TTL only", led)
				}
				server.Fail(nil)
				return
			}
		}
		t.Error("the lease did not end")
	})
}

// TestElectorStart: what is wrong at the start is an error of Start.
func TestElectorStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		a := elector(t, server, server.Backend())
		server.Fail(errors.New("no route to host"))
		want(t, "Start", a.Start(t.Context()), nil, "the Elector has not been started", "no route to host")
		want(t, "IsLeader", a.IsLeader(t.Context()), nil, "has not been started")
		server.Fail(nil)
		a.start(t)
		a.wantLeader(t, true)
		want(t, "a second Start", a.Start(t.Context()), nil, "has been started already")
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := a.Close(t.Context()); err != nil {
			t.Errorf("a second Close: %v", err)
		}
		want(t, "Start after Close", a.Start(t.Context()), nil, "the Elector is closed")

		c := elector(t, server, server.Backend())
		if err := c.Close(t.Context()); err != nil {
			t.Errorf("Close before Start: %v", err)
		}
		want(t, "Start after Close", c.Start(t.Context()), nil, "the Elector is closed")
		panics(t, "NewElector needs a *sql.DB and a Locker", func() { gocronlock.NewElector(nil, sqllock.New(server.Backend()), "cron") })
		panics(t, "NewElector needs a *sql.DB and a Locker", func() { gocronlock.NewElector(open(t, server), nil, "cron") })
	})
}
