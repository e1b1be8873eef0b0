package otellock_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/sqllock/go-sqllock/adapter/otellock"
)

func newMetrics(tb testing.TB, opts ...otellock.Option) (*otellock.Metrics, *sdk.ManualReader) {
	tb.Helper()
	r := sdk.NewManualReader()
	m, err := otellock.New(sdk.NewMeterProvider(sdk.WithReader(r)), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return m, r
}

func collect(tb testing.TB, r *sdk.ManualReader) []metricdata.Metrics {
	tb.Helper()
	var data metricdata.ResourceMetrics
	if err := r.Collect(tb.Context(), &data); err != nil {
		tb.Fatal(err)
	}
	if len(data.ScopeMetrics) != 1 || data.ScopeMetrics[0].Scope.Name != "github.com/sqllock/go-sqllock/adapter/otellock" {
		tb.Fatalf("scopes: %+v", data.ScopeMetrics)
	}
	return data.ScopeMetrics[0].Metrics
}

// attributes are those of a point, without the prefixes of their names.
func attributes(set attribute.Set) string {
	var as []string
	for _, a := range set.ToSlice() {
		key := string(a.Key)
		as = append(as, key[strings.LastIndex(key, ".")+1:]+"="+a.Value.String())
	}
	return strings.Join(as, " ")
}

// points are all that was collected: "lock.ends name=job outcome=lost: 1", of a histogram
// the count and the sum. Zeros of counters are left out.
func points(tb testing.TB, r *sdk.ManualReader) (lines []string) {
	tb.Helper()
	for _, m := range collect(tb, r) {
		name := strings.TrimPrefix(m.Name, "sqllock.")
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				if p.Value != 0 || !data.IsMonotonic {
					lines = append(lines, fmt.Sprintf("%s %s: %d", name, attributes(p.Attributes), p.Value))
				}
			}
		case metricdata.Gauge[float64]:
			for _, p := range data.DataPoints {
				lines = append(lines, fmt.Sprintf("%s %s: %gs", name, attributes(p.Attributes), p.Value))
			}
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				lines = append(lines, fmt.Sprintf("%s %s: %d, %gs", name, attributes(p.Attributes), p.Count, p.Sum))
			}
		default:
			tb.Errorf("%s is a %T", m.Name, data)
		}
	}
	slices.Sort(lines)
	return lines
}

func want(tb testing.TB, r *sdk.ManualReader, want ...string) {
	tb.Helper()
	slices.Sort(want)
	if got := points(tb, r); !slices.Equal(got, want) {
		tb.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestEvents: what each kind of event is counted as.
func TestEvents(t *testing.T) {
	busy := fmt.Errorf("%w: some session", sqllock.ErrBusy)
	for _, test := range []struct {
		e    sqllock.Event
		want []string
	}{
		{sqllock.Event{Kind: sqllock.Acquired, Waited: 2 * time.Second}, []string{"lock.wait.duration name=job outcome=acquired: 1, 2s"}},
		{sqllock.Event{Kind: sqllock.Busy, Waited: time.Millisecond, Err: busy}, []string{"lock.wait.duration name=job outcome=busy: 1, 0.001s"}},
		{sqllock.Event{Kind: sqllock.Busy, Waited: time.Minute, Err: fmt.Errorf("%w: %w", busy, context.DeadlineExceeded)}, []string{"lock.wait.duration name=job outcome=gave_up: 1, 60s"}},
		{sqllock.Event{Kind: sqllock.Busy, Waited: time.Minute, Err: fmt.Errorf("%w: %w", busy, context.Canceled)}, []string{"lock.wait.duration name=job outcome=gave_up: 1, 60s"}},
		{sqllock.Event{Kind: sqllock.Released, Held: time.Hour}, []string{"lock.ends name=job outcome=released: 1", "lock.hold.duration name=job: 1, 3600s"}},
		{sqllock.Event{Kind: sqllock.Released, Held: time.Hour, Err: sqllock.ErrClosed}, []string{"lock.ends name=job outcome=closed: 1", "lock.hold.duration name=job: 1, 3600s"}},
		{sqllock.Event{Kind: sqllock.Expired, Held: time.Hour, Err: sqllock.ErrLost}, []string{"lock.ends name=job outcome=expired: 1", "lock.hold.duration name=job: 1, 3600s"}},
		{sqllock.Event{Kind: sqllock.Lost, Held: time.Hour, Err: sqllock.ErrLost}, []string{"lock.ends name=job outcome=lost: 1", "lock.hold.duration name=job: 1, 3600s"}},
		{sqllock.Event{Kind: sqllock.Extended}, []string{"lock.extensions name=job outcome=extended: 1"}},
		{sqllock.Event{Kind: sqllock.Extended, Err: sqllock.ErrUnknown}, []string{"lock.extensions name=job outcome=failed: 1"}},
		{sqllock.Event{Kind: sqllock.Starved, Waited: time.Second, Err: sqllock.ErrPoolTooSmall}, []string{"lock.starved name=job: 1"}},
		{sqllock.Event{Kind: sqllock.TakenOver}, []string{"lock.takeovers name=job: 1"}},
		{sqllock.Event{Kind: sqllock.Killed}, []string{"lock.kills name=job: 1"}},
		{sqllock.Event{Kind: sqllock.Repaired, Err: sqllock.ErrNoTable}, []string{"table.repairs : 1"}},
	} {
		t.Run(fmt.Sprintf("%s %v", test.e.Kind, test.e.Err), func(t *testing.T) {
			m, r := newMetrics(t)
			test.e.Name = "job"
			m.Observe(test.e)
			want(t, r, test.want...)
		})
	}
}

// TestKinds: there is no kind of event that is not reported.
func TestKinds(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../../sqllock/event.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if is, ok := spec.Type.(*ast.Ident); ok && is.Name == "EventKind" {
			lit, _ := spec.Values[0].(*ast.BasicLit)
			kinds = append(kinds, strings.Trim(lit.Value, `"`))
		}
		return true
	})
	if len(kinds) < 10 {
		t.Fatalf("found %q only", kinds)
	}
	for _, kind := range kinds {
		m, r := newMetrics(t)
		m.Observe(sqllock.Event{Kind: sqllock.EventKind(kind), Name: "job"})
		if len(points(t, r)) == 0 {
			t.Errorf("nothing tells of an event %q", kind)
		}
	}
}

// TestInstruments: names, units, kinds and buckets, as the documentation has them.
func TestInstruments(t *testing.T) {
	m, r := newMetrics(t)
	server := memory.New()
	db := server.DB()
	pool := sqllock.NewPool(db, sqllock.New(server.Backend()))
	t.Cleanup(func() { _ = db.Close() })
	if _, err := m.ObservePool("shop", pool); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []sqllock.EventKind{sqllock.Acquired, sqllock.Released, sqllock.Extended} {
		m.Observe(sqllock.Event{Kind: kind, Name: "job"})
	}
	var got []string
	for _, m := range collect(t, r) {
		kind := "?"
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			kind = "up-down counter"
			if data.IsMonotonic {
				kind = "counter"
			}
		case metricdata.Gauge[float64]:
			kind = "gauge"
		case metricdata.Histogram[float64]:
			kind = "histogram"
			want := []float64{.0001, .0003, .001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 60, 300, 1800}
			if got := data.DataPoints[0].Bounds; !slices.Equal(got, want) {
				t.Errorf("%s: buckets %v", m.Name, got)
			}
		}
		if !strings.HasSuffix(m.Description, ".") {
			t.Errorf("%s: description %q", m.Name, m.Description)
		}
		got = append(got, fmt.Sprintf("%s %s %s", m.Name, m.Unit, kind))
	}
	slices.Sort(got)
	want := []string{
		"sqllock.lock.ends {lock} counter",
		"sqllock.lock.extensions {extension} counter",
		"sqllock.lock.hold.duration s histogram",
		"sqllock.lock.kills {session} counter",
		"sqllock.lock.starved {call} counter",
		"sqllock.lock.takeovers {takeover} counter",
		"sqllock.lock.wait.duration s histogram",
		"sqllock.pool.connection.count {connection} up-down counter",
		"sqllock.pool.lock.age s gauge",
		"sqllock.pool.lock.count {lock} up-down counter",
		"sqllock.pool.waiter.age s gauge",
		"sqllock.pool.waiter.count {call} up-down counter",
		"sqllock.table.repairs {repair} counter",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestZeros: the counters of a name begin with 0, since one that begins with 1 is no
// increase.
func TestZeros(t *testing.T) {
	m, r := newMetrics(t)
	zeros := func() (zeros []string) {
		for _, m := range collect(t, r) {
			if data, ok := m.Data.(metricdata.Sum[int64]); ok {
				for _, p := range data.DataPoints {
					zeros = append(zeros, fmt.Sprintf("%s %s: %d", strings.TrimPrefix(m.Name, "sqllock."), attributes(p.Attributes), p.Value))
				}
			}
		}
		slices.Sort(zeros)
		return zeros
	}
	wants := func(want ...string) {
		t.Helper()
		if got := zeros(); !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	wants("table.repairs : 0")
	m.Observe(sqllock.Event{Kind: sqllock.Acquired, Name: "job"})
	named := []string{
		"lock.ends name=job outcome=closed: 0", "lock.ends name=job outcome=expired: 0", "lock.ends name=job outcome=lost: 0", "lock.ends name=job outcome=released: 0",
		"lock.kills name=job: 0", "lock.starved name=job: 0", "lock.takeovers name=job: 0", "table.repairs : 0",
	}
	wants(named...)
	m.Observe(sqllock.Event{Kind: sqllock.Extended, Name: "job"})
	wants(slices.Insert(named, 4, "lock.extensions name=job outcome=extended: 1", "lock.extensions name=job outcome=failed: 0")...)
}

// TestLife: a Pool on a server in memory, with what can happen to its locks. Time is that
// of the bubble, so every sum is exact.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		m, r := newMetrics(t)
		db, elsewhere := server.DB(), server.DB()
		db.SetMaxOpenConns(6)
		locker := sqllock.New(server.Leases(10*time.Second), sqllock.WithObserver(m.Observe))
		pool := sqllock.NewPool(db, locker)
		shop, err := m.ObservePool("shop", pool)
		if err != nil {
			t.Fatal(err)
		}
		state := func(locks, waiters, connections int, lockAge, waiterAge float64) []string {
			return []string{
				fmt.Sprintf("pool.lock.count name=shop: %d", locks), fmt.Sprintf("pool.waiter.count name=shop: %d", waiters),
				fmt.Sprintf("pool.connection.count name=shop: %d", connections),
				fmt.Sprintf("pool.lock.age name=shop: %gs", lockAge), fmt.Sprintf("pool.waiter.age name=shop: %gs", waiterAge),
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		want(t, r, state(0, 0, 0, 0, 0)...)

		// One holds for two seconds, one waits for that, one tries, one gives up.
		job, err := pool.Lock(t.Context(), "job")
		must(err)
		more, err := pool.Lock(t.Context(), "more")
		must(err)
		time.Sleep(500 * time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() {
			next, err := pool.Lock(t.Context(), "job")
			if err == nil {
				err = next.Release(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if ran, err := pool.TryDo(t.Context(), "job", func(context.Context, *sqllock.Lock) error { return nil }); ran || err != nil {
			t.Error(ran, err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := pool.Lock(short, "job"); !errors.Is(err, sqllock.ErrBusy) {
			t.Error(err)
		}
		cancel()
		time.Sleep(time.Second)
		want(t, r, append(state(2, 1, 1, 2.5, 2),
			"lock.wait.duration name=more outcome=acquired: 1, 0s",
			"lock.wait.duration name=job outcome=acquired: 1, 0s",
			"lock.wait.duration name=job outcome=busy: 1, 0s",
			"lock.wait.duration name=job outcome=gave_up: 1, 1s")...)
		must(job.Release(t.Context()))
		must(more.Release(t.Context()))
		wg.Wait()

		// One is lost with its session, one ends by its TTL, one is extended, one is held
		// when the Pool ends. Another process hangs, and is taken over from.
		lost, err := pool.Lock(t.Context(), "lost", sqllock.OwnSession())
		must(err)
		must(server.Lose("lost"))
		<-lost.Done()
		expires, err := pool.Lock(t.Context(), "expires")
		must(err)
		kept, err := pool.Lock(t.Context(), "kept")
		must(err)
		time.Sleep(9 * time.Second)
		must(kept.Extend(t.Context(), time.Minute))
		<-expires.Done()
		conn, err := elsewhere.Conn(t.Context())
		must(err)
		_, err = sqllock.New(server.Leases(time.Second)).Lock(t.Context(), conn, "hangs")
		must(err)
		must(pool.Do(t.Context(), "hangs", func(context.Context, *sqllock.Lock) error {
			time.Sleep(3 * time.Second)
			return nil
		}))
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := pool.Close(ended); err == nil {
			t.Error("closed, while a lock was held")
		}
		if err := conn.Close(); err != nil && !errors.Is(err, sqllock.ErrSessionGone) {
			t.Log(err)
		}
		lines := []string{
			"lock.wait.duration name=job outcome=acquired: 2, 2s",
			"lock.wait.duration name=job outcome=busy: 1, 0s",
			"lock.wait.duration name=job outcome=gave_up: 1, 1s",
			"lock.hold.duration name=job: 2, 2.5s",
			"lock.wait.duration name=more outcome=acquired: 1, 0s",
			"lock.hold.duration name=more: 1, 2.5s",
			"lock.ends name=more outcome=released: 1",
			"lock.ends name=job outcome=released: 2",
			"lock.wait.duration name=lost outcome=acquired: 1, 0s",
			"lock.hold.duration name=lost: 1, 0.5s",
			"lock.ends name=lost outcome=lost: 1",
			"lock.wait.duration name=expires outcome=acquired: 1, 0s",
			"lock.hold.duration name=expires: 1, 10s",
			"lock.ends name=expires outcome=expired: 1",
			"lock.wait.duration name=kept outcome=acquired: 1, 0s",
			"lock.extensions name=kept outcome=extended: 1",
			"lock.hold.duration name=kept: 1, 14s",
			"lock.ends name=kept outcome=closed: 1",
			"lock.wait.duration name=hangs outcome=acquired: 1, 1s",
			"lock.takeovers name=hangs: 1",
			"lock.kills name=hangs: 1",
			"lock.hold.duration name=hangs: 1, 3s",
			"lock.ends name=hangs outcome=released: 1",
		}
		want(t, r, append(slices.Clone(lines), state(0, 0, 0, 0, 0)...)...)
		for range 2 {
			must(shop.Unregister())
		}
		want(t, r, lines...)
		must(db.Close())
		must(elsewhere.Close())
	})
}

// TestNames: how many series there are does not depend on who makes up names.
func TestNames(t *testing.T) {
	acquire := func(m *otellock.Metrics, names ...string) {
		for _, name := range names {
			m.Observe(sqllock.Event{Kind: sqllock.Acquired, Name: name})
		}
	}
	grants := func(m ...string) (lines []string) {
		for i := 0; i < len(m); i += 2 {
			lines = append(lines, fmt.Sprintf("lock.wait.duration name=%s outcome=acquired: %s, 0s", m[i], m[i+1]))
		}
		return lines
	}
	t.Run("the first", func(t *testing.T) {
		m, r := newMetrics(t, otellock.WithNames(2))
		acquire(m, "a", "b", "c", "d", "a", sqllock.OtherNames, "c", "b")
		want(t, r, grants("a", "2", "b", "2", "(others)", "4")...)
	})
	t.Run("others first", func(t *testing.T) { // it takes nobody's place
		m, r := newMetrics(t, otellock.WithNames(1))
		acquire(m, sqllock.OtherNames, "a", "b")
		want(t, r, grants("a", "1", "(others)", "2")...)
	})
	t.Run("none", func(t *testing.T) {
		m, r := newMetrics(t, otellock.WithNames(0))
		acquire(m, "a", "b")
		want(t, r, grants("(others)", "2")...)
	})
	t.Run("groups", func(t *testing.T) {
		m, r := newMetrics(t, otellock.WithNames(2), otellock.WithGroups(func(name string) string {
			if name == "secret" {
				return ""
			}
			group, _, _ := strings.Cut(name, ":")
			return group + ":*"
		}))
		for i := range 1000 {
			acquire(m, fmt.Sprint("account:", i), "secret")
		}
		acquire(m, "shop:1")
		want(t, r, grants("account:*", "1000", "shop:*", "1", "(others)", "1000")...)
	})
	t.Run("attack", func(t *testing.T) {
		m, r := newMetrics(t)
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 300 {
					name := strings.Repeat("é", 3000) // all alike in the beginning
					if i%3 > 0 {
						name = fmt.Sprint(g, "\xff", i, name)
					}
					for _, kind := range []sqllock.EventKind{sqllock.Acquired, sqllock.Busy, sqllock.Released, sqllock.Lost, sqllock.Extended, sqllock.TakenOver} {
						m.Observe(sqllock.Event{Kind: kind, Name: name})
					}
				}
			})
		}
		wg.Wait()
		var n int64
		names := make(map[string]bool)
		for _, m := range collect(t, r) {
			if h, ok := m.Data.(metricdata.Histogram[float64]); ok && m.Name == "sqllock.lock.hold.duration" {
				for _, p := range h.DataPoints {
					name, _ := p.Attributes.Value("sqllock.lock.name")
					names[name.AsString()] = true
					n += int64(p.Count)
				}
			}
		}
		if len(names) != 101 || !names[sqllock.OtherNames] || n != 2*8*300 {
			t.Errorf("%d names, %d ends", len(names), n)
		}
		for name := range names {
			// A replacement is two bytes longer than what it replaces.
			if len(name) > 102 || !utf8.ValidString(name) {
				t.Errorf("%d bytes: %q", len(name), name)
			}
		}
	})
}

func TestAttributes(t *testing.T) {
	r := sdk.NewManualReader()
	mp := sdk.NewMeterProvider(sdk.WithReader(r))
	server := memory.New()
	db := server.DB()
	t.Cleanup(func() { _ = db.Close() })
	for _, namespace := range []string{"billing", "shop"} {
		m, err := otellock.New(mp, otellock.WithAttributes(attribute.String("service.namespace", namespace)))
		if err != nil {
			t.Fatal(err)
		}
		m.Observe(sqllock.Event{Kind: sqllock.Killed, Name: "job"})
		m.Observe(sqllock.Event{Kind: sqllock.Repaired, Name: "job"})
		if _, err := m.ObservePool("db", sqllock.NewPool(db, sqllock.New(server.Backend()))); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	for _, namespace := range []string{"billing", "shop"} {
		lines = append(lines, "lock.kills namespace="+namespace+" name=job: 1", "table.repairs namespace="+namespace+": 1")
		for _, pool := range []string{"pool.lock.count", "pool.waiter.count", "pool.connection.count"} {
			lines = append(lines, pool+" namespace="+namespace+" name=db: 0")
		}
		lines = append(lines, "pool.lock.age namespace="+namespace+" name=db: 0s", "pool.waiter.age namespace="+namespace+" name=db: 0s")
	}
	want(t, r, lines...)
}

// refusing is a Meter that makes no counters, and takes no callbacks.
type refusing struct{ noop.Meter }

func (refusing) Int64Counter(string, ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	return noop.Int64Counter{}, errors.New("no counters today")
}

type noCallbacks struct{ noop.Meter }

func (noCallbacks) RegisterCallback(metric.Callback, ...metric.Observable) (metric.Registration, error) {
	return nil, errors.New("no callbacks today")
}

type provider struct {
	noop.MeterProvider
	meter metric.Meter
}

func (p provider) Meter(string, ...metric.MeterOption) metric.Meter { return p.meter }

func TestErrors(t *testing.T) {
	server := memory.New()
	db := server.DB()
	t.Cleanup(func() { _ = db.Close() })
	pool := sqllock.NewPool(db, sqllock.New(server.Backend()))
	wants := func(err error, want string) {
		t.Helper()
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	made := func(mp metric.MeterProvider, opts ...otellock.Option) error {
		m, err := otellock.New(mp, opts...)
		if (m == nil) != (err != nil) {
			t.Errorf("%v and %v", m, err)
		}
		return err
	}
	none := noop.NewMeterProvider()
	wants(made(nil), "otellock: the MeterProvider is nil: pass otel.GetMeterProvider(), or one of the SDK")
	wants(made(none, otellock.WithNames(-1)), "otellock: WithNames(-1): the number of names must not be negative")
	wants(made(none, otellock.WithGroups(nil)), "otellock: WithGroups(nil): give it a function, or leave it out to count each name by itself")
	wants(made(none, otellock.WithAttributes(attribute.String("", "x"))), `otellock: WithAttributes: the attribute "" has no key or no value`)
	err := made(provider{meter: refusing{}})
	if err == nil || !strings.HasPrefix(err.Error(), "otellock: an instrument could not be made: no counters today") {
		t.Error(err)
	}

	m, r := newMetrics(t)
	observed := func(m *otellock.Metrics, name string, pool *sqllock.Pool) error {
		_, err := m.ObservePool(name, pool)
		return err
	}
	wants(observed(m, "", pool), "otellock: ObservePool needs a name for the Pool, such as that of its database")
	wants(observed(m, "shop", nil), `otellock: ObservePool("shop"): the Pool is nil`)
	shop, err := m.ObservePool("shop", pool)
	if err != nil {
		t.Fatal(err)
	}
	wants(observed(m, "shop", pool), `otellock: ObservePool("shop"): there is a Pool of this name; give this one another, or Unregister that one`)
	if err := shop.Unregister(); err != nil {
		t.Error(err)
	}
	if err := observed(m, "shop", pool); err != nil {
		t.Errorf("after the other one has been unregistered: %v", err)
	}
	if err := shop.Unregister(); err != nil { // again: it is not that of the second
		t.Error(err)
	}
	wants(observed(m, "shop", pool), `otellock: ObservePool("shop"): there is a Pool of this name; give this one another, or Unregister that one`)
	if len(points(t, r)) != 5 {
		t.Errorf("the second Pool is not reported: %q", points(t, r))
	}
	m, err = otellock.New(provider{meter: noCallbacks{}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the name is free still
		wants(observed(m, "shop", pool), `otellock: ObservePool("shop"): no callbacks today`)
	}
}

// TestCost: an event takes no memory, also when there are too many names.
func TestCost(t *testing.T) {
	m, _ := newMetrics(t, otellock.WithNames(10))
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprint("job", i)
		m.Observe(sqllock.Event{Kind: sqllock.Acquired, Name: many[i]})
	}
	long := strings.Repeat("x", 1000)
	i := 0
	for what, e := range map[string]sqllock.Event{
		"acquired": {Kind: sqllock.Acquired, Name: "job1", Waited: time.Second},
		"released": {Kind: sqllock.Released, Name: "job1", Held: time.Second},
		"busy":     {Kind: sqllock.Busy, Name: "job1", Err: sqllock.ErrBusy},
		"extended": {Kind: sqllock.Extended, Name: "job1"},
		"many":     {Kind: sqllock.Acquired},
		"long":     {Kind: sqllock.Acquired, Name: long},
	} {
		n := testing.AllocsPerRun(1000, func() {
			if what == "many" {
				i++
				e.Name = many[i%len(many)]
			}
			m.Observe(e)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	m, _ := newMetrics(b)
	acquired := sqllock.Event{Kind: sqllock.Acquired, Name: "job", Waited: time.Millisecond}
	released := sqllock.Event{Kind: sqllock.Released, Name: "job", Held: time.Millisecond}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Observe(acquired)
			m.Observe(released)
		}
	})
}
