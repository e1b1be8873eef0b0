package torture

import (
	"slices"
	"strings"
	"testing"
)

// goodHistory is of two deposits and a transfer on one shard.
func goodHistory() *history {
	return &history{
		rows: []row{
			{n: 1, token: 5, attempt: "1.1-1/1", a: 0, aWas: 1000, aIs: 1010, b: -1},
			{n: 2, token: 5, attempt: "1.1-2/1", a: 0, aWas: 1010, aIs: 1030, b: 1, bWas: 1000, bIs: 980, hasB: true},
			{n: 3, token: 7, attempt: "2.2-1/2", a: 1, aWas: 980, aIs: 981, b: -1},
		},
		counters: map[int]int64{0: 3, 1: 0},
		balances: map[int64]int64{0: 1030, 1: 981, 8: 1000},
		told: []told{
			{attempt: "1.1-1/1", outcome: committed},
			{attempt: "1.1-2/1", outcome: unknown},
			{attempt: "1.1-3/1", outcome: unknown},
			{attempt: "2.2-1/1", outcome: rolledBack},
			{attempt: "2.2-1/2", outcome: committed, settled: true},
		},
		killed: map[string]bool{},
	}
}

// TestCheck: the check finds what it is there to find, and nothing else.
func TestCheck(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(h *history)
		want  string // "" if the history is good
	}{
		"good": {func(*history) {}, ""},
		"nothing happened": {func(h *history) {
			*h = history{counters: map[int]int64{0: 0}, balances: map[int64]int64{0: opening}}
		}, ""},
		"two at one time on two shards": {func(h *history) {
			h.rows = append(h.rows, row{shard: 1, n: 1, token: 1, attempt: "1.1-4/1", a: 8, aWas: 1000, aIs: 1001, b: -1})
			h.counters[1], h.balances[8] = 1, 1001
			h.told = append(h.told, told{attempt: "1.1-4/1", outcome: committed})
		}, ""},
		"not told by a process that was killed": {func(h *history) {
			h.told, h.killed = h.told[1:], map[string]bool{"1.1": true}
		}, ""},
		"other order of arrival": {func(h *history) { slices.Reverse(h.rows) }, ""},

		"gap":                      {func(h *history) { h.rows[2].n, h.counters[0] = 4, 4 }, "the number before is 2"},
		"number given twice":       {func(h *history) { h.rows[2].n, h.counters[0] = 2, 2 }, "has been given already, to 1.1-2/1"},
		"counter ahead":            {func(h *history) { h.counters[0] = 4 }, "the shard has counted to 4"},
		"counter without rows":     {func(h *history) { h.counters[1] = 1 }, "the shard has counted to 1"},
		"token falls":              {func(h *history) { h.rows[2].token = 4 }, "token 4 after 5"},
		"token of another process": {func(h *history) { h.rows[2].token = 5 }, "is that of 1.1-2/1, another process"},
		"stale read": {func(h *history) {
			h.rows[1].aWas, h.rows[1].aIs, h.balances[0] = 1000, 1020, 1020
		}, "has read 1000 in account 0, which had 1010"},
		"stale read of the other account": {func(h *history) { h.rows[1].bWas = 999 }, "has read 999 in account 1, which had 1000"},
		"balance changed by nobody":       {func(h *history) { h.balances[8] = 999 }, "account 8 has 999 in the end, and by the ledger 1000"},
		"money lost":                      {func(h *history) { h.balances[8] = 999 }, "all accounts have 3010 together, and by the ledger 3011"},
		"committed, and missing": {func(h *history) {
			h.told = append(h.told, told{attempt: "2.2-2/1", outcome: committed})
		}, "2.2-2/1 was told to be committed, and is not in the ledger"},
		"rolled back, and there": {func(h *history) { h.told[0].outcome = rolledBack }, "1.1-1/1 was told to be rolled back, and is in the ledger"},
		"not begun, and there":   {func(h *history) { h.told[0].outcome = notBegun }, "1.1-1/1 was told to be not begun, and is in the ledger"},
		"settled as rolled back, and there": {func(h *history) {
			h.told[1] = told{attempt: "1.1-2/1", outcome: rolledBack, settled: true}
		}, "is in the ledger (settled later: true)"},
		"settled as committed, and missing": {func(h *history) {
			h.told[2] = told{attempt: "1.1-3/1", outcome: committed, settled: true}
		}, "is not in the ledger (settled later: true)"},
		"unguarded":     {func(h *history) { h.told[2].outcome = unguarded }, "1.1-3/1 was told to be unguarded"},
		"not told":      {func(h *history) { h.told = h.told[1:] }, "has not told about it"},
		"told twice":    {func(h *history) { h.told = append(h.told, h.told[0]) }, "was told about twice"},
		"written twice": {func(h *history) { h.rows = append(h.rows, h.rows[2]) }, "2.2-1/2 is in the ledger 2 times"},
	} {
		t.Run(name, func(t *testing.T) {
			h := goodHistory()
			test.spoil(h)
			got := h.check()
			if test.want == "" && len(got) > 0 || test.want != "" && !strings.Contains(strings.Join(got, "\n"), test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestVerdict: a run that has shown nothing is none that went well.
func TestVerdict(t *testing.T) {
	good := Result{Transactions: 1, Faults: map[string]int{"server crashed": 1}}
	if err := good.Verdict(); err != nil {
		t.Error(err)
	}
	for name, r := range map[string]Result{
		"violation":       {Transactions: 1, Faults: good.Faults, Violations: 1},
		"no transactions": {Faults: good.Faults},
		"no faults":       {Transactions: 1},
	} {
		if r.Verdict() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestTold: what an event says about each run of a function.
func TestTold(t *testing.T) {
	got := event{Attempt: "1.1-1", Runs: 2, Outcome: unknown, Settled: committed}.told()
	want := []told{{"1.1-1/1", rolledBack, false}, {"1.1-1/2", committed, true}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
