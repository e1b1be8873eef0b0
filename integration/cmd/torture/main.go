// Command torture has processes do guarded work on a server while they, their
// connections and the server are killed, stopped and reset, and checks what is left:
// see package torture. It prints one line of JSON, and fails if a promise of package
// txguard was broken, or if it could not have been.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
	"github.com/sqllock/go-sqllock/integration/internal/torture"
)

func main() {
	_ = mysql.SetLogger(&mysql.NopLogger{})
	if torture.IsProcess() {
		exit(torture.Process(context.Background(), os.Stdin, os.Stdout))
	}
	seed := flag.Uint64("seed", 0, "what to do when is drawn from it; 0 for a random one")
	duration := flag.Duration("duration", time.Minute, "how long, on each server: a number with a unit, as 90s or 5m")
	server := flag.String("server", "", "mysql, mariadb or postgres; all if empty")
	control := flag.Bool("control", false, "without the guard, which has to fail")
	processes := flag.Int("processes", 10, "how many on a server")
	journal := flag.String("journal", "", "a file for what the processes were told")
	flag.Parse()
	if *duration <= 0 || *processes <= 0 {
		exit(fmt.Errorf("the duration (%v) and the number of processes (%d) must be positive", *duration, *processes))
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	cfg := torture.Config{Seed: *seed, Duration: *duration, Processes: *processes, Guarded: !*control}
	if *journal != "" {
		file, err := os.Create(*journal)
		if err != nil {
			exit(err)
		}
		cfg.Journal = file
	}
	err := run(ctx, cfg, testdb.Kind(*server), os.Stdout, os.Stderr)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run runs on one server after the other, which makes two cores do more of it
// than both at a time.
func run(ctx context.Context, cfg torture.Config, server testdb.Kind, out io.Writer, screen *os.File) error {
	kinds, err := kindsOf(server)
	if err != nil {
		return err
	}
	fmt.Fprintf(screen, "torture: SEED=%d DURATION=%v\n", cfg.Seed, cfg.Duration)
	var all *torture.Result
	for _, kind := range kinds {
		cfg.Kind = kind
		show := newScreen(screen, string(kind), cfg.Duration)
		cfg.Progress = show.progress
		r, err := torture.Run(ctx, cfg)
		show.stop(err)
		if err != nil {
			return err
		}
		if err := r.Verdict(); err != nil {
			fmt.Fprintf(screen, "torture: %s: %v\n", kind, err)
		}
		if all == nil {
			all = r
		} else {
			all.Add(r)
		}
	}
	if err := json.NewEncoder(out).Encode(all); err != nil {
		return err
	}
	return all.Verdict()
}

func kindsOf(server testdb.Kind) (kinds []testdb.Kind, err error) {
	for _, kind := range torture.Kinds() {
		if server == kind || server == "" && !kind.Skipped() {
			kinds = append(kinds, kind)
		}
	}
	switch {
	case len(kinds) > 0:
		return kinds, nil
	case server != "":
		return nil, fmt.Errorf("SERVER=%s: it is mysql, mariadb or postgres", server)
	}
	return nil, errors.New("SKIP_SERVERS leaves no server")
}
