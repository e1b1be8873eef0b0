package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// Config says what to run.
type Config struct {
	Kind      testdb.Kind
	Seed      uint64
	Duration  time.Duration
	Processes int
	Guarded   bool     // false for the control
	Args      []string // have this program call Process where IsProcess

	// Journal gets what the processes were told, one object of JSON on a line; nil
	// for nowhere.
	Journal io.Writer

	// Progress is told now and then how far the run is; nil for nobody.
	Progress func(gone time.Duration, transactions, faults int)
}

// Result is what came of it.
type Result struct {
	Seed         uint64          `json:"seed"`
	Server       string          `json:"server"`
	Duration     string          `json:"duration"` // of the faults, on each server
	Seconds      float64         `json:"seconds"`  // in all
	Transactions int             `json:"transactions"`
	Attempts     map[outcome]int `json:"attempts"`
	Faults       map[string]int  `json:"faults"`
	Unknowns     Unknowns        `json:"unknowns"`
	Violations   int             `json:"violations"`
	First        []string        `json:"first_violations"`
}

// Unknowns counts the COMMITs whose answer was lost, and what became of them.
type Unknowns struct {
	All          int `json:"all"`
	Committed    int `json:"settled_committed"`
	NotCommitted int `json:"settled_not_committed"`
	Unsettled    int `json:"unsettled"` // without evidence, as txguard.Run, or forgotten
}

// shown is how many violations a Result has as text.
const shown = 5

// Add adds what came of a run on another server.
func (r *Result) Add(o *Result) {
	r.Server += "," + o.Server
	r.Seconds += o.Seconds
	r.Transactions += o.Transactions
	for k, n := range o.Attempts {
		r.Attempts[k] += n
	}
	for k, n := range o.Faults {
		r.Faults[k] += n
	}
	r.Unknowns.All += o.Unknowns.All
	r.Unknowns.Committed += o.Unknowns.Committed
	r.Unknowns.NotCommitted += o.Unknowns.NotCommitted
	r.Unknowns.Unsettled += o.Unknowns.Unsettled
	r.Violations += o.Violations
	r.First = append(r.First, o.First...)
	r.First = r.First[:min(len(r.First), shown)]
}

// Verdict is an error if the promise was broken, or nothing was shown.
func (r *Result) Verdict() error {
	switch {
	case r.Violations > 0:
		return fmt.Errorf("%d violations", r.Violations)
	case r.Transactions == 0:
		return errors.New("nothing was committed, so nothing was shown")
	case len(r.Faults) == 0:
		return errors.New("nothing was done to the processes, so nothing was shown")
	}
	return nil
}

// Run runs processes and faults on a server for a while, and checks what is left.
// A server of its own is one that does not forget what was committed when it is
// crashed; one of the environment is not crashed.
func Run(ctx context.Context, cfg Config) (_ *Result, err error) {
	begun := time.Now()
	language, err := dialectOf(cfg.Kind)
	if err != nil {
		return nil, err
	}
	s, err := start(ctx, cfg.Kind, language)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	d, err := newDatabase(ctx, language, s.DSN)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	r, err := cfg.run(ctx, s, d)
	if err != nil {
		return nil, fmt.Errorf("%s, seed %d: %w", cfg.Kind, cfg.Seed, err)
	}
	r.Seconds = float64(time.Since(begun).Milliseconds()) / 1000
	return r, nil
}

func start(ctx context.Context, kind testdb.Kind, language dialect) (*testdb.Server, error) {
	if kind.EnvDSN() != "" {
		return testdb.Open(ctx, kind)
	}
	return testdb.Start(ctx, kind, language.serverOptions()...)
}

func (cfg Config) run(ctx context.Context, s *testdb.Server, d *database) (*Result, error) {
	addr, err := d.address(s.DSN)
	if err != nil {
		return nil, err
	}
	f, err := newFleet(ctx, cfg, d, addr)
	if err != nil {
		return nil, errors.Join(err, f.end(ctx))
	}
	dir := newDirector(f, s)
	cfg.storm(ctx, f, dir)
	if err := errors.Join(f.end(ctx), dir.err, ctx.Err()); err != nil {
		return nil, err
	}
	if err := d.alone(ctx); err != nil {
		return nil, err
	}
	h, err := d.read(ctx)
	if err != nil {
		return nil, err
	}
	return cfg.result(f, h, dir.count), nil
}

// storm lets the faults happen for as long as it was asked to.
func (cfg Config) storm(ctx context.Context, f *fleet, dir *director) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, cfg.Duration)
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		dir.run(ctx)
	}()
	for {
		select {
		case <-over:
			return
		case <-time.After(200 * time.Millisecond):
			if cfg.Progress != nil {
				_, total := f.committed(0)
				cfg.Progress(min(cfg.Duration, time.Since(begun)), total, dir.faults())
			}
		}
	}
}

// result counts, and checks. All processes have ended.
func (cfg Config) result(f *fleet, h *history, faults map[string]int) *Result {
	r := &Result{
		Seed: cfg.Seed, Server: string(cfg.Kind), Duration: cfg.Duration.String(),
		Transactions: len(h.rows), Attempts: map[outcome]int{}, Faults: maps.Clone(faults), First: []string{},
	}
	h.killed = f.killed
	for _, e := range f.journal {
		r.Attempts[e.Outcome]++
		if e.Lost || e.Outcome == unknown {
			r.Unknowns.add(e)
		}
		h.told = append(h.told, e.told()...)
	}
	violations := slices.Concat(f.violations, h.check())
	r.Violations = len(violations)
	r.First = append(r.First, violations[:min(len(violations), shown)]...)
	return r
}

func (u *Unknowns) add(e event) {
	u.All++
	switch {
	case e.Outcome == committed, e.Settled == committed:
		u.Committed++
	case e.Outcome == unknown && e.Settled == "":
		u.Unsettled++
	default:
		u.NotCommitted++
	}
}

// told is what an event says about each run of the function.
func (e event) told() (ts []told) {
	for i := 1; i <= e.Runs; i++ {
		t := told{attempt: fmt.Sprintf("%s/%d", e.Attempt, i), outcome: rolledBack}
		if i == e.Runs {
			t.outcome = e.Outcome
			if e.Settled != "" {
				t.outcome, t.settled = e.Settled, true
			}
		}
		ts = append(ts, t)
	}
	return ts
}
