// Command takeover records what happens when the holder of a lease hangs, on a private
// MySQL, and draws it.
//
//	cd integration && go run ./cmd/takeover -o ../docs/takeover.svg
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

func main() {
	out := flag.String("o", "takeover.svg", "the file to write")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "takeover:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string) error {
	s, err := testdb.Start(ctx, testdb.MySQL)
	if err != nil {
		return err
	}
	defer s.Stop() //nolint:errcheck // it ends with the process
	rec, err := record(ctx, s, settings{ttl: 2 * time.Second, work: 400 * time.Millisecond, rows: 60_000})
	if err != nil {
		return err
	}
	return os.WriteFile(out, []byte(rec.svg()), 0o644) //nolint:gosec // for everybody to read
}
