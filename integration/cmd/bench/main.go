// Command bench measures what a lock costs, as ratios against a floor or a peer
// in the same run. Both sides take turns on one server, so that what else the
// machine does hits both alike; a ratio is one of medians.
//
// It prints a table, and writes the same as a list of objects to bench.json.
// The environment variable BENCH, a regular expression, picks rows by name.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"time"

	"github.com/aclements/go-moremath/stats"
	"github.com/go-sql-driver/mysql"
	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// result is a row of the table, and an object of bench.json.
type result struct {
	Name   string   `json:"name"`
	Ours   string   `json:"ours"`
	Peer   string   `json:"peer"`
	Ratio  float64  `json:"ratio"`
	Target *float64 `json:"target"` // null where there is none
	Met    *bool    `json:"met"`
}

func main() {
	out := flag.String("o", "bench.json", "file to write the results to")
	waiters := flag.String("plot", "", "instead, plot grants per second against waiters to this file, .svg or .png")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	measure := func() error { return run(ctx, os.Getenv("BENCH"), *out, os.Stdout) }
	if *waiters != "" {
		measure = func() error { return plotWaiters(ctx, fullSweep, *waiters, os.Stdout) }
	}
	err := measure()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, pattern, file string, out io.Writer) (err error) {
	_ = mysql.SetLogger(&mysql.NopLogger{})
	pick, err := regexp.Compile(pattern)
	if err != nil {
		return fmt.Errorf("BENCH is no regular expression: %w", err)
	}
	results := []result{}
	for _, kind := range append(testdb.Kinds(), testdb.Postgres) {
		if kind.Skipped() {
			fmt.Fprintf(os.Stderr, "bench: %s is left out, as SKIP_SERVERS says\n", kind)
			continue
		}
		picked := rows(kind, pick)
		if len(picked) == 0 {
			continue
		}
		s, err := testdb.Open(ctx, kind)
		if err != nil {
			return err
		}
		for _, r := range picked {
			fmt.Fprintf(os.Stderr, "bench: %s\n", r.name)
			res, err := r.measure(ctx, s)
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", r.name, err), s.Stop())
			}
			res.Name, res.Target = r.name, r.target
			if r.target != nil {
				met := res.Ratio <= *r.target
				res.Met = &met
			}
			results = append(results, res)
		}
		if err := s.Stop(); err != nil {
			return err
		}
	}
	if len(results) == 0 {
		return fmt.Errorf("BENCH=%q picks no row", pattern)
	}
	show(out, results)
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644) //nolint:gosec // for everybody to read
}

func show(out io.Writer, results []result) {
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.SetStyle(table.StyleRounded)
	t.AppendHeader(table.Row{"name", "ours", "floor or peer", "ratio", "target", "met"})
	for _, r := range results {
		target, met := "-", "-"
		if r.Target != nil {
			target, met = fmt.Sprintf("≤ %.2f", *r.Target), "no"
			if *r.Met {
				met = "yes"
			}
		}
		t.AppendRow(table.Row{r.Name, r.Ours, r.Peer, ratio(r.Ratio), target, met})
	}
	t.Render()
}

// ratio has two digits at least, of a small one, too.
func ratio(r float64) string {
	if r < 0.1 {
		return fmt.Sprintf("%.4f", r)
	}
	return fmt.Sprintf("%.2f", r)
}

// measurement is what the turns of one side took.
type measurement []float64 // µs

func (m measurement) quantile(q float64) float64 { return stats.Sample{Xs: m}.Quantile(q) }

// takeTurns times a and b alternately, n times each, after a tenth of that to
// warm up. Which goes first changes with every turn.
func takeTurns(n int, a, b func() (time.Duration, error)) (as, bs measurement, err error) {
	for i := -n / 10; i < n; i++ {
		sides := [2]struct {
			do  func() (time.Duration, error)
			out *measurement
		}{{a, &as}, {b, &bs}}
		for j := range sides {
			side := sides[(i+j)&1]
			d, err := side.do()
			if err != nil {
				return nil, nil, err
			}
			if i >= 0 {
				*side.out = append(*side.out, float64(d.Nanoseconds())/1000)
			}
		}
	}
	return as, bs, nil
}

// compare makes a result of a quantile of both sides.
func compare(ours, peer measurement, q float64, peerName string) result {
	o, p := ours.quantile(q), peer.quantile(q)
	return result{Ours: fmt.Sprintf("%.0f µs", o), Peer: fmt.Sprintf("%s %.0f µs", peerName, p), Ratio: o / p}
}
