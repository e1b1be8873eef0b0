package torture

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// row is one of the ledger.
type row struct {
	shard        int
	n, token     int64
	attempt      string
	a, aWas, aIs int64 // an account, and its balance before and after
	b, bWas, bIs int64 // the other one of a transfer; 0 for a deposit
	hasB         bool
}

// history is all that is left of a run.
type history struct {
	rows     []row
	counters map[int]int64   // of the shards
	balances map[int64]int64 // of the accounts
	told     []told
	killed   map[string]bool // processes that may have had something to tell
}

// told is what a process was told about one run of its function.
type told struct {
	attempt string
	outcome outcome
	settled bool // outcome is what a look into the fence table told later
}

// read reads the history of a database, save for what was told.
func (d *database) read(ctx context.Context) (*history, error) {
	h := &history{counters: map[int]int64{}, balances: map[int64]int64{}}
	var shard int
	var id, n int64
	var r row
	for _, q := range []struct {
		query string
		dest  []any
		add   func()
	}{
		{"SELECT shard,n FROM shards", []any{&shard, &n}, func() { h.counters[shard] = n }},
		{"SELECT id,balance FROM accounts", []any{&id, &n}, func() { h.balances[id] = n }},
		{
			"SELECT shard,n,token,attempt,a,a_before,a_after,b,b_before,b_after,b>=0 FROM ledger ORDER BY id",
			[]any{&r.shard, &r.n, &r.token, &r.attempt, &r.a, &r.aWas, &r.aIs, &r.b, &r.bWas, &r.bIs, &r.hasB},
			func() { h.rows = append(h.rows, r) },
		},
	} {
		if err := each(ctx, d.db, q.query, q.dest, q.add); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func each(ctx context.Context, db *sql.DB, query string, dest []any, add func()) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		add()
	}
	return rows.Err()
}

// check returns what in the history breaks the promise.
func (h *history) check() (violations []string) {
	say := func(format string, args ...any) { violations = append(violations, fmt.Sprintf(format, args...)) }
	byShard := map[int][]row{}
	for _, r := range h.rows {
		byShard[r.shard] = append(byShard[r.shard], r)
	}
	balances := map[int64]int64{}
	for id := range h.balances {
		balances[id] = opening
	}
	for shard := range h.counters {
		rows := byShard[shard]
		slices.SortStableFunc(rows, func(x, y row) int { return cmp.Compare(x.n, y.n) })
		checkChain(rows, h.counters[shard], balances, say)
	}
	var sum, want int64
	for id, is := range h.balances {
		sum += is
		if is != balances[id] {
			say("account %d has %d in the end, and by the ledger %d", id, is, balances[id])
		}
	}
	want = int64(len(h.balances)) * opening
	for _, r := range h.rows {
		want += r.aIs - r.aWas + r.bIs - r.bWas
	}
	if sum != want {
		say("all accounts have %d together, and by the ledger %d was paid in", sum, want)
	}
	h.checkTold(say)
	slices.Sort(violations) // the maps have no order
	return violations
}

// checkChain: the rows of a shard follow each other from its opening to its
// counter. balances are brought up to date.
func checkChain(rows []row, counter int64, balances map[int64]int64, say func(string, ...any)) {
	var last row
	for _, r := range rows {
		where := fmt.Sprintf("shard %d, number %d, %s", r.shard, r.n, r.attempt)
		switch {
		case r.n == last.n:
			say("%s: the number has been given already, to %s: one of them had read before the other was committed", where, last.attempt)
		case r.n != last.n+1:
			say("%s: the number before is %d", where, last.n)
		}
		if r.aWas != balances[r.a] {
			say("%s: has read %d in account %d, which had %d", where, r.aWas, r.a, balances[r.a])
		}
		balances[r.a] = r.aIs
		if r.hasB {
			if r.bWas != balances[r.b] {
				say("%s: has read %d in account %d, which had %d", where, r.bWas, r.b, balances[r.b])
			}
			balances[r.b] = r.bIs
		}
		switch {
		case r.token < last.token:
			say("%s: token %d after %d of %s: a holder that had lost the lock", where, r.token, last.token, last.attempt)
		case r.token == last.token && r.token != 0 && processOf(r.attempt) != processOf(last.attempt):
			say("%s: token %d is that of %s, another process", where, r.token, last.attempt)
		}
		last = r
	}
	if len(rows) > 0 && last.n != counter || len(rows) == 0 && counter != 0 {
		say("the last number in the ledger is %d, and the shard has counted to %d", last.n, counter)
	}
}

// processOf returns the process of an attempt, "process-number/run".
func processOf(attempt string) string {
	process, _, _ := strings.Cut(attempt, "-")
	return process
}

// checkTold: the ledger has what they were told that it has.
func (h *history) checkTold(say func(string, ...any)) {
	written := map[string]int{}
	for _, r := range h.rows {
		written[r.attempt]++
	}
	known := map[string]bool{}
	for _, t := range h.told {
		n := written[t.attempt]
		switch {
		case known[t.attempt]:
			say("%s was told about twice", t.attempt)
		case t.outcome == committed && n == 0:
			say("%s was told to be committed, and is not in the ledger (settled later: %v)", t.attempt, t.settled)
		case (t.outcome == rolledBack || t.outcome == notBegun) && n > 0:
			say("%s was told to be %s, and is in the ledger (settled later: %v)", t.attempt, t.outcome, t.settled)
		case t.outcome == unguarded:
			say("%s was told to be %s", t.attempt, t.outcome)
		}
		known[t.attempt] = true
	}
	for attempt, n := range written {
		if n > 1 {
			say("%s is in the ledger %d times", attempt, n)
		}
		if !known[attempt] && !h.killed[processOf(attempt)] {
			say("%s is in the ledger, and its process, which was not killed, has not told about it", attempt)
		}
	}
}
