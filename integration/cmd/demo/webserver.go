package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	customers = 20
	workTime  = 25 * time.Millisecond // what one invoice takes
)

// firing is what cron is in the demo: it comes to every web server at one time.
type firing struct {
	Month  string
	Locked bool
}

// event is what a web server reports while a job runs.
type event struct {
	What   string // one of the constants below
	Server string
	Took   time.Duration // since the firing
	Made   int           // invoices of this run so far
	Text   string        // of an error
}

const (
	ready   = "ready"
	got     = "got the lock"
	skipped = "skipped"
	made    = "made an invoice"
	done    = "done"
	failed  = "failed"
)

// webServer runs the job at each firing that comes in, until the input ends.
func webServer(ctx context.Context, name, dsn, table string, in io.Reader, out io.Writer) error {
	_ = mysql.SetLogger(&mysql.NopLogger{})
	db, err := open(dsn)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // the process ends
	if err := db.PingContext(ctx); err != nil {
		return err
	}
	locker := newLocker(dsn)
	firings, events := json.NewDecoder(in), json.NewEncoder(out)
	if err := events.Encode(event{What: ready, Server: name}); err != nil {
		return err
	}
	for {
		var f firing
		if err := firings.Decode(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		fired := time.Now()
		report := func(e event) {
			e.Server, e.Took = name, time.Since(fired)
			_ = events.Encode(e) // the director will miss it
		}
		job := func(ctx context.Context, _ *sqllock.Lock) error {
			report(event{What: got})
			n, err := makeInvoices(ctx, db, table, f.Month, name, func(n int) { report(event{What: made, Made: n}) })
			if err == nil {
				report(event{What: done, Made: n})
			}
			return err
		}
		ran := true
		if f.Locked {
			ran, err = locker.TryDo(ctx, db, "invoices", job)
		} else {
			err = job(ctx, nil)
		}
		switch {
		case err != nil:
			report(event{What: failed, Text: err.Error()})
		case !ran:
			report(event{What: skipped})
		}
	}
}

// makeInvoices is the job: an invoice for every customer who has none for the
// month yet. Two of it at one time see the same customers.
func makeInvoices(ctx context.Context, db *sql.DB, table, month, by string, progress func(int)) (n int, err error) {
	have, err := invoiced(ctx, db, table, month)
	if err != nil {
		return 0, err
	}
	for customer := range customers {
		if have[customer] {
			continue
		}
		select {
		case <-time.After(workTime):
		case <-ctx.Done():
			return n, context.Cause(ctx)
		}
		_, err := db.ExecContext(ctx, fmt.Sprintf("INSERT INTO %s (month, customer, made_by) VALUES ('%s', %d, '%s')", table, month, customer, by))
		if err != nil {
			return n, fmt.Errorf("invoice for customer %d: %w", customer, err)
		}
		n++
		progress(n)
	}
	return n, nil
}

// invoiced returns the customers who have an invoice for the month.
func invoiced(ctx context.Context, db *sql.DB, table, month string) (map[int]bool, error) {
	rows, err := db.QueryContext(ctx, "SELECT customer FROM "+table+" WHERE month = '"+month+"'")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	have := make(map[int]bool)
	for rows.Next() {
		var customer int
		if err := rows.Scan(&customer); err != nil {
			return nil, err
		}
		have[customer] = true
	}
	return have, rows.Err()
}
