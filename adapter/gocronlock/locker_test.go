package gocronlock_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"

	"github.com/sqllock/go-sqllock/adapter/gocronlock"
)

// pool is that of one host.
func pool(t *testing.T, db *sql.DB, b sqllock.Backend, opts ...sqllock.Option) *sqllock.Pool {
	t.Helper()
	return sqllock.NewPool(db, sqllock.New(b, opts...))
}

// scheduler starts one with one job.
func scheduler(t *testing.T, every time.Duration, start time.Time, task func(context.Context), opts ...gocron.SchedulerOption) gocron.Scheduler {
	t.Helper()
	s, err := gocron.NewScheduler(opts...)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.NewJob(gocron.DurationJob(every), gocron.NewTask(task), gocron.WithName("report"),
		gocron.WithStartAt(gocron.WithStartDateTime(start)))
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	return s
}

// TestTicks has three schedulers, whose clocks differ by up to two seconds, run a job
// of ten milliseconds each minute of an hour. Each tick runs once, as the time of
// AtLeast is for; the control holds the lock for little longer than the job.
func TestTicks(t *testing.T) {
	hour := func(t *testing.T, atLeast time.Duration) (runs, skipped int64) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			server := memory.New()
			var ran, busy atomic.Int64
			start := time.Now().Add(time.Minute)
			var stops []func()
			for _, skew := range []time.Duration{0, 700 * time.Millisecond, 2 * time.Second} {
				p := pool(t, open(t, server), server.Backend())
				listen := gocron.AfterLockError(func(_ uuid.UUID, job string, err error) {
					if !errors.Is(err, sqllock.ErrBusy) || job != "report" {
						t.Errorf("%s: %v", job, err)
					}
					busy.Add(1)
				})
				s := scheduler(t, time.Minute, start.Add(skew),
					func(context.Context) {
						ran.Add(1)
						time.Sleep(10 * time.Millisecond)
					},
					gocron.WithDistributedLocker(gocronlock.NewLocker(p, atLeast)),
					gocron.WithGlobalJobOptions(gocron.WithEventListeners(listen)))
				stops = append(stops, func() {
					if err := s.Shutdown(); err != nil {
						t.Error(err)
					}
					if err := p.Close(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			time.Sleep(time.Hour + 30*time.Second)
			for _, stop := range stops {
				stop()
			}
			runs, skipped = ran.Load(), busy.Load()
		})
		return runs, skipped
	}
	if runs, skipped := hour(t, 10*time.Second); runs != 60 || skipped != 120 {
		t.Errorf("%d runs and %d skips, want 60 and 120", runs, skipped)
	}
	if runs, _ := hour(t, 20*time.Millisecond); runs != 180 {
		t.Errorf("the control has %d runs, want 180: the test of the time shows nothing", runs)
	}
}

// TestOverlap: a run that takes longer than the time to the next tick has that
// skipped, on its own host, too.
func TestOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		p := pool(t, open(t, server), server.Backend())
		var running, most atomic.Int64
		s := scheduler(t, time.Minute, time.Now().Add(time.Minute), func(context.Context) {
			most.Store(max(most.Load(), running.Add(1)))
			time.Sleep(150 * time.Second)
			running.Add(-1)
		}, gocron.WithDistributedLocker(gocronlock.NewLocker(p, time.Second)), gocron.WithStopTimeout(time.Hour))
		time.Sleep(10 * time.Minute)
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
		if most.Load() != 1 {
			t.Errorf("up to %d runs at a time", most.Load())
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestContext: the job learns that its lock is lost, though gocron can't tell it.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		p := pool(t, open(t, server), server.Backend(), sqllock.WithNamespace("shop"))
		l := gocronlock.NewLocker(p, time.Second)
		lock, err := l.Lock(t.Context(), "report")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := l.Context(t.Context(), "report")
		defer cancel()
		other, cancelOther := l.Context(t.Context(), "another")
		defer cancelOther()
		want(t, "another job", context.Cause(other), []error{sqllock.ErrNotHeld}, `no job named "another" runs under this Locker`)
		time.Sleep(time.Hour)
		if ctx.Err() != nil {
			t.Errorf("the ctx has ended: %v", context.Cause(ctx))
		}
		if err := server.Lose("shop:report"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(sqllock.DefaultCheckInterval + time.Millisecond)
		want(t, "the ctx", context.Cause(ctx), []error{sqllock.ErrLost})
		want(t, "unlock", lock.Unlock(t.Context()), []error{sqllock.ErrLost})

		lock, err = l.Lock(t.Context(), "report")
		if err != nil {
			t.Fatal(err)
		}
		dead, kill := context.WithCancel(t.Context())
		kill()
		if err := lock.Unlock(dead); err != nil {
			t.Errorf("unlock with a dead ctx: %v", err)
		}
		after, cancelAfter := l.Context(t.Context(), "report")
		defer cancelAfter()
		want(t, "after the job", context.Cause(after), []error{sqllock.ErrNotHeld}, `no job named "report"`)
		want(t, "within the time of atLeast", second(l.Lock(t.Context(), "report")), []error{sqllock.ErrBusy}, "gocronlock: the run is skipped")
		time.Sleep(time.Second + time.Millisecond)
		if lock, err = l.Lock(t.Context(), "report"); err != nil {
			t.Fatal(err)
		}
		if err := lock.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func second(_ gocron.Lock, err error) error { return err }

// slow is a backend whose server takes its time.
type slow struct {
	sqllock.Backend

	took *atomic.Int64
}

func (s slow) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	time.Sleep(time.Duration(s.took.Load()))
	return s.Backend.Acquire(ctx, conn, req)
}

// TestLate: who is granted a lock too late does not run, since another host may have,
// and let go. So it is with one who can't ask.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		var took atomic.Int64
		db := open(t, server)
		db.SetMaxOpenConns(2)
		p := pool(t, db, slow{server.Backend(), &took})
		l := gocronlock.NewLocker(p, 10*time.Second)

		took.Store(int64(4 * time.Second))
		lock, err := l.Lock(t.Context(), "in time")
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		took.Store(int64(5 * time.Second))
		want(t, "late", second(l.Lock(t.Context(), "late")), []error{context.DeadlineExceeded})
		time.Sleep(time.Minute)
		took.Store(0)
		if lock, err = l.Lock(t.Context(), "late"); err != nil {
			t.Errorf("what came late is still held: %v", err)
		} else if err := lock.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute) // the Pool gives its connections back

		var app sync.WaitGroup
		for range 2 {
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			app.Go(func() {
				time.Sleep(time.Hour)
				_ = conn.Close()
			})
		}
		start := time.Now()
		want(t, "without a connection", second(l.Lock(t.Context(), "starved")), []error{context.DeadlineExceeded, sqllock.ErrPoolTooSmall})
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("it took %v, want half of the ten seconds", took)
		}
		app.Wait()
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestLease: the options go to the locks, so a lease lasts as long as the job.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		here, there := pool(t, open(t, server), server.Leases(10*time.Second)), pool(t, open(t, server), server.Leases(10*time.Second))
		l := gocronlock.NewLocker(here, time.Second, sqllock.KeepAlive(time.Hour))
		lock, err := l.Lock(t.Context(), "report")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Minute)
		want(t, "another host", second(gocronlock.NewLocker(there, time.Second).Lock(t.Context(), "report")), []error{sqllock.ErrBusy})
		if err := lock.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		want(t, "longer than the TTL", second(gocronlock.NewLocker(there, time.Minute).Lock(t.Context(), "report")), nil, "AtLeast(1m0s) is longer than the TTL, 10s")
		for _, p := range []*sqllock.Pool{here, there} {
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestLockerBadInput(t *testing.T) {
	server := memory.New()
	p := pool(t, open(t, server), server.Backend())
	panics(t, "NewLocker needs a Pool", func() { gocronlock.NewLocker(nil, time.Second) })
	panics(t, "NewLocker(0s): the time that a lock is held at least must be positive", func() { gocronlock.NewLocker(p, 0) })
	l := gocronlock.NewLocker(p, time.Second)
	want(t, "no name", second(l.Lock(t.Context(), "")), []error{sqllock.ErrInvalidName}, "the run is skipped")
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, "a dead ctx", second(l.Lock(dead, "report")), []error{context.Canceled})
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	want(t, "a closed Pool", second(l.Lock(t.Context(), "report")), []error{sqllock.ErrClosed})
}
