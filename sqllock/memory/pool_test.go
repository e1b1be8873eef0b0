package memory_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// newPool is a Pool of a process of its own.
func newPool(tb testing.TB, b *bench) *sqllock.Pool {
	tb.Helper()
	db := b.DB()
	p := sqllock.NewPool(db, b.locker)
	tb.Cleanup(func() {
		if err := errors.Join(p.Close(context.WithoutCancel(tb.Context())), db.Close()); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// TestPools has two processes count, each with more goroutines than connections.
func TestPools(t *testing.T) {
	const names, goroutines, rounds = 4, 40, 10
	onBoth(t, func(t *testing.T, b *bench, _ optional) {
		var counters [names]int // -race finds two holders at a time
		var wg sync.WaitGroup
		for _, p := range []*sqllock.Pool{newPool(t, b), newPool(t, b)} {
			for i := range goroutines {
				wg.Go(func() {
					for round := range rounds {
						n := (i + round) % names
						err := p.Do(t.Context(), fmt.Sprint(n), func(context.Context, *sqllock.Lock) error {
							counters[n]++
							return nil
						})
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		if want := [names]int{200, 200, 200, 200}; counters != want {
			t.Errorf("got %v, want %v", counters, want)
		}
	})
}

// TestPoolLoses: what is lost under a Pool ends the ctx of its function.
func TestPoolLoses(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench, _ optional) {
		err := newPool(t, b).Do(t.Context(), "job", func(ctx context.Context, _ *sqllock.Lock) error {
			if err := b.Lose("job"); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			return context.Cause(ctx)
		})
		want(t, err, sqllock.ErrLost)
	})
}

// TestKeepAlive: a lease is extended, and outlives a failure that passes in time, but
// no other.
func TestKeepAlive(t *testing.T) {
	for _, test := range []struct {
		failure time.Duration
		want    error
	}{
		{30 * time.Minute, nil},
		{90 * time.Minute, sqllock.ErrLost},
	} {
		t.Run(test.failure.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.locker = sqllock.New(b.Leases(hour), sqllock.WithCheckInterval(time.Minute))
				err := newPool(t, b).Do(t.Context(), "job", func(ctx context.Context, _ *sqllock.Lock) error {
					work := func(d time.Duration) {
						select {
						case <-time.After(d):
						case <-ctx.Done():
						}
					}
					work(5 * hour)
					b.Fail(errors.New("no route to host"))
					work(test.failure)
					b.Fail(nil)
					work(5 * hour)
					return context.Cause(ctx)
				}, sqllock.KeepAlive(24*hour))
				if !errors.Is(err, test.want) {
					t.Errorf("got error %v, want %v", err, test.want)
				}
			})
		})
	}
}
