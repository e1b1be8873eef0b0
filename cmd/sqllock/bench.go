package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/sqllock"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure how fast locks are on this server, from here",
		Description: "It measures a round trip, and for each backend that works: to acquire and release on a connection that is there,\n" +
			"and a hand-off, from the release by one session until another one has the lock that it waited for. It takes locks\n" +
			"of names that nobody else has, and leaves nothing behind. ROUND TRIPS is the median in medians of SELECT 1. The exit code is 1 if no\n" +
			"backend works.",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.DurationFlag{Name: "duration", Value: 2 * time.Second, Usage: "how long to measure for each line"},
			&cli.IntFlag{Name: "concurrency", Value: 1, Usage: "how many sessions acquire and release at a time, each a name of its own"},
		},
		OnUsageError: onUsageError,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			switch {
			case cmd.Duration("duration") <= 0:
				return usage("--duration has to be more than 0, and is %v", cmd.Duration("duration"))
			case cmd.Int("concurrency") < 1:
				return usage("--concurrency has to be 1 or more, and is %d", cmd.Int("concurrency"))
			}
			if err := noArgs(cmd); err != nil {
				return err
			}
			s, err := open(ctx, cmd, "sqllock bench")
			if err != nil {
				return err
			}
			defer s.close()
			return s.bench(ctx, cmd)
		},
	}
}

// figures are what was measured of one thing. Times are in seconds.
type figures struct {
	Backend   string  `json:"backend"` // "" for the round trip
	Operation string  `json:"operation"`
	Sessions  int     `json:"sessions"`
	Count     int     `json:"count"`
	P50       float64 `json:"p50_seconds"`
	P99       float64 `json:"p99_seconds"`
	PerSecond float64 `json:"per_second"`
	Trips     float64 `json:"p50_round_trips"`
}

func (s *server) bench(ctx context.Context, cmd *cli.Command) error {
	d, n := cmd.Duration("duration"), cmd.Int("concurrency")
	trip, err := s.roundTrip(ctx, d)
	if err != nil {
		return err
	}
	all, refusals := []figures{trip}, []verdict{}
	for _, p := range s.probes(cmd.String("table")) {
		if err := (&doctor{server: s}).try(ctx, p); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			refusals = append(refusals, judge(p.name, err))
			continue
		}
		turns, err := s.turns(ctx, p, d, n)
		if err != nil {
			return err
		}
		handOffs, err := s.handOffs(ctx, p, d)
		if err != nil {
			return err
		}
		all = append(all, turns, handOffs)
	}
	for i := range all {
		if trip.P50 > 0 {
			all[i].Trips = all[i].P50 / trip.P50
		}
	}
	if err := printBench(cmd, s.String(), all, refusals); err != nil {
		return err
	}
	if len(all) == 1 {
		return &exitError{code: exitNo}
	}
	return nil
}

func printBench(cmd *cli.Command, server string, all []figures, refusals []verdict) error {
	w := cmd.Root().Writer
	if cmd.Bool("json") {
		return printJSON(w, map[string]any{"server": server, "figures": all, "not_measured": refusals})
	}
	rows := make([][]string, len(all))
	for i, f := range all {
		perSecond := ""
		if f.PerSecond > 0 {
			perSecond = fmt.Sprintf("%.0f", f.PerSecond)
		}
		rows[i] = []string{f.Backend, f.Operation, fmt.Sprint(f.Sessions), seconds(f.P50), seconds(f.P99), perSecond, fmt.Sprintf("%.1f", f.Trips)}
	}
	if err := printTable(w, []string{"BACKEND", "OPERATION", "SESSIONS", "P50", "P99", "PER SECOND", "ROUND TRIPS"}, rows); err != nil {
		return err
	}
	for _, r := range refusals {
		fmt.Fprintf(w, "%s was not measured: %s\n", r.Backend, printable(r.Why))
	}
	return nil
}

// seconds is a time in three digits or so.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Millisecond:
		d = d.Round(time.Microsecond)
	case d < time.Second:
		d = d.Round(10 * time.Microsecond)
	default:
		d = d.Round(time.Millisecond)
	}
	return d.String()
}

// warmUp is how many times something is done before it is measured.
const warmUp = 20

// measure does f again and again for d, and returns how long each time took.
func measure(ctx context.Context, d time.Duration, f func() error) (took []time.Duration, err error) {
	for range warmUp {
		if err := f(); err != nil {
			return nil, err
		}
	}
	for end := time.Now().Add(d); len(took) == 0 || time.Now().Before(end); {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		begun := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begun))
	}
	return took, nil
}

// quantile is the smallest of took, which are sorted, that so many of them do not exceed.
func quantile(took []time.Duration, q float64) float64 {
	i := int(q*float64(len(took))+0.999999) - 1
	return took[min(max(i, 0), len(took)-1)].Seconds()
}

// figure makes figures of what n sessions have measured, together in d, if that is not 0.
func figure(backend, operation string, n int, took []time.Duration, d time.Duration) figures {
	slices.Sort(took)
	f := figures{Backend: backend, Operation: operation, Sessions: n, Count: len(took), P50: quantile(took, 0.5), P99: quantile(took, 0.99)}
	if d > 0 {
		f.PerSecond = float64(len(took)) / d.Seconds()
	}
	return f
}

func (s *server) roundTrip(ctx context.Context, d time.Duration) (figures, error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return figures{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	took, err := measure(ctx, d, func() error { return s.ask(ctx, conn, "SELECT 1", new(int)) })
	if err != nil {
		return figures{}, err
	}
	return figure("", "round trip", 1, took, d), nil
}

// turns has n sessions acquire and release, each a name of its own.
func (s *server) turns(ctx context.Context, p probe, d time.Duration, n int) (figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex // guards all and failed
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			took, err := s.turnsOfOne(ctx, p, d)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil && failed == nil {
				failed = err
				cancel()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return figures{}, fmt.Errorf("%s: %w", p.name, failed)
	}
	return figure(p.name, "acquire and release", n, all, d), nil
}

func (s *server) turnsOfOne(ctx context.Context, p probe, d time.Duration) ([]time.Duration, error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	k, name := sqllock.New(p.Backend), ownName("bench")
	return measure(ctx, d, func() error {
		l, err := k.TryLock(ctx, conn, name)
		if err != nil {
			return err
		}
		return l.Release(ctx)
	})
}

// handOffs has two sessions take turns on one name: one waits, the other lets go.
func (s *server) handOffs(ctx context.Context, p probe, d time.Duration) (f figures, err error) {
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	one, err := s.db.Conn(ctx)
	if err != nil {
		return f, err
	}
	defer one.Close() //nolint:errcheck // nothing is left on it
	two, err := s.db.Conn(ctx)
	if err != nil {
		return f, err
	}
	defer two.Close() //nolint:errcheck // nothing is left on it
	k, name := sqllock.New(p.Backend), ownName("bench")
	var took []time.Duration
	for end, i := time.Now().Add(d), 0; len(took) == 0 || time.Now().Before(end); i++ {
		t, err := s.handOff(ctx, k, name, one, two)
		if err != nil {
			return f, fmt.Errorf("%s, hand-off: %w", p.name, err)
		}
		if i > 0 { // the first one warms up
			took = append(took, t)
		}
		one, two = two, one
	}
	return figure(p.name, "hand-off", 2, took, 0), nil
}

// queueTime is how long a session gets to begin its wait.
const queueTime = 20 * time.Millisecond

// handOff is how long it takes from the call that releases until the other one's returns.
func (s *server) handOff(ctx context.Context, k *sqllock.Locker, name string, from, to *sql.Conn) (time.Duration, error) {
	l, err := k.TryLock(ctx, from, name)
	if err != nil {
		return 0, err
	}
	type result struct {
		lock *sqllock.Lock
		at   time.Time
		err  error
	}
	waiting := make(chan result, 1)
	go func() {
		next, err := k.Lock(ctx, to, name)
		waiting <- result{next, time.Now(), err}
	}()
	select {
	case <-time.After(queueTime):
	case <-ctx.Done():
	}
	begun := time.Now()
	err = l.Release(ctx)
	next := <-waiting
	if next.err != nil {
		return 0, errors.Join(err, next.err)
	}
	return next.at.Sub(begun), errors.Join(err, next.lock.Release(ctx))
}
