package pgtable

import (
	"math"
	"strings"
	"testing"
	"time"
)

func panics(f func()) (does bool) {
	defer func() { does = recover() != nil }()
	f()
	return false
}

func TestNewPanics(t *testing.T) {
	t.Parallel()
	for what, f := range map[string]func(){
		"no TTL":       func() { New(0) },
		"negative TTL": func() { New(-time.Second) },
		"no name":      func() { WithTable("") },
		"quote":        func() { WithTable(`a"b`) },
		"three parts":  func() { WithTable("a.b.c") },
		"too long":     func() { WithTable(strings.Repeat("x", 58)) },
	} {
		if !panics(f) {
			t.Errorf("%s: it should panic", what)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct{ table, sequence, up string }{
		"shared_locks":       {`"shared_locks"`, `E'"shared_locks_token"'::regclass`, "migrations.Up(ctx, db, migrations.Postgres())"},
		"Jobs":               {`"Jobs"`, `E'"Jobs_token"'::regclass`, `migrations.Up(ctx, db, migrations.Postgres(), migrations.WithTable("Jobs"))`},
		"locks.shared_locks": {`"locks"."shared_locks"`, `E'"locks"."shared_locks_token"'::regclass`, "migrations.Up(ctx, db, migrations.Postgres()) on a pool whose search_path begins with locks"},
	} {
		b := New(time.Minute, WithTable(name))
		if b.queries.table != want.table || b.queries.sequence != want.sequence || b.up() != want.up {
			t.Errorf("%s: got %s, %s, %s", name, b.queries.table, b.queries.sequence, b.up())
		}
	}
}

func TestWholeSeconds(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]int64{
		1: 1, time.Millisecond: 1, time.Second: 1, time.Second + 1: 2, time.Hour: 3600, math.MaxInt64: 9223372037,
	} {
		if got := wholeSeconds(d); got != want {
			t.Errorf("%v: got %d, want %d", d, got, want)
		}
	}
	for _, n := range []int64{math.MaxInt64, math.MinInt64} {
		if got := length(n, time.Second); (got > 0) != (n > 0) {
			t.Errorf("%d seconds are %v", n, got)
		}
	}
}
