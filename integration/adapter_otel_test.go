package integration

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/sqllock/go-sqllock/adapter/otellock"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/metric"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// scraped is what Prometheus gets from the exporter of OpenTelemetry.
type scraped struct {
	families map[string]*dto.MetricFamily
}

// exported are metrics as an application has them, and what scrapes them over HTTP.
func exported(t *testing.T) (m *otellock.Metrics, scrape func() scraped) {
	t.Helper()
	registry := prometheus.NewRegistry()
	reader, err := exporter.New(exporter.WithRegisterer(registry))
	if err != nil {
		t.Fatal(err)
	}
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	t.Cleanup(func() {
		if err := provider.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	m, err = otellock.New(provider, otellock.WithGroups(func(name string) string {
		group, _, _ := strings.Cut(name, "-") // lockName
		return group
	}))
	if err != nil {
		t.Fatal(err)
	}
	site := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	t.Cleanup(site.Close)
	return m, func() scraped {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, site.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := site.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		parser := expfmt.NewTextParser(model.LegacyValidation) // what every Prometheus takes
		families, err := parser.TextToMetricFamilies(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return scraped{families}
	}
}

// value is that of the series of a metric with these labels: of a histogram, how many.
func (s scraped) value(metric, labels string) (v float64, there bool) {
	family := s.families[metric]
	for _, m := range family.GetMetric() {
		var ls []string
		for _, l := range m.GetLabel() {
			if !strings.HasPrefix(l.GetName(), "otel_scope_") {
				ls = append(ls, l.GetName()[strings.LastIndex(l.GetName(), "_")+1:]+"="+l.GetValue())
			}
		}
		if strings.Join(ls, " ") != labels {
			continue
		}
		switch {
		case m.GetHistogram() != nil:
			return float64(m.GetHistogram().GetSampleCount()), true
		case m.GetCounter() != nil:
			return m.GetCounter().GetValue(), true
		default:
			return m.GetGauge().GetValue(), true
		}
	}
	return 0, false
}

// want compares "metric labels" with values.
func (s scraped) want(t *testing.T, want map[string]float64) {
	t.Helper()
	for _, series := range slices.Sorted(maps.Keys(want)) {
		metric, labels, _ := strings.Cut(series, " ")
		if v, ok := s.value("sqllock_"+metric, labels); !ok || v != want[series] {
			t.Errorf("%s: %v, %t; want %v", series, v, ok, want[series])
		}
	}
}

// TestOTel: what happens to locks on a real server is counted exactly, and the dashboard
// and the alerts of the documentation ask for what is there.
func TestOTel(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		t.Parallel()
		name := database(t, lockTable(t, s, "InnoDB"))
		testOTel(t, table.New(time.Minute), func() *sql.DB { return open(t, s, inDatabase(name)) }, mysqlKill)
	})
}

func TestOTelPG(t *testing.T) {
	s := postgres(t)
	db := pgLockTable(t, s)
	testOTel(t, pgtable.New(time.Minute), func() *sql.DB { return sameDatabase(t, s, db) }, pgKill)
}

func testOTel(t *testing.T, backend sqllock.Backend, open func() *sql.DB, kill func(context.Context, *sql.DB, int64) error) {
	m, scrape := exported(t)
	db, hangs := open(), open()
	locker := sqllock.New(backend, sqllock.WithObserver(m.Observe))
	p, other := poolOf(t, db, locker, sqllock.WithMaxConns(2)), pool(t, open(), backend)
	if _, err := m.ObservePool("shop", p); err != nil {
		t.Fatal(err)
	}
	lock := func(p *sqllock.Pool, name string, opts ...sqllock.LockOption) *sqllock.Lock {
		l, err := p.Lock(t.Context(), name, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}

	// Nine goroutines of two processes on one name.
	work := lockName("work")
	var wg sync.WaitGroup
	for g := range 9 {
		of := p
		if g == 8 {
			of = other
		}
		wg.Go(func() {
			for range 25 {
				if err := of.Do(t.Context(), work, func(context.Context, *sqllock.Lock) error { return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()

	// Another process has one: three do without, one gives up, one waits.
	busy := lockName("busy")
	theirs := lock(other, busy)
	for range 3 {
		if ran, err := p.TryDo(t.Context(), busy, func(context.Context, *sqllock.Lock) error { return nil }); ran || err != nil {
			t.Error(ran, err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	if _, err := p.Lock(short, busy); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, sqllock.ErrBusy) {
		t.Error(err)
	}
	cancel()
	wg.Go(func() {
		l, err := p.Lock(t.Context(), busy)
		if err == nil {
			err = l.Release(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
	})
	kept := lock(p, lockName("kept"))
	waitFor(t, "one to wait", func() bool { return p.Stats().Waits == 1 })
	during := scrape()
	during.want(t, map[string]float64{"pool_lock_count name=shop": 1, "pool_waiter_count name=shop": 1})
	for _, age := range []string{"sqllock_pool_lock_age_seconds", "sqllock_pool_waiter_age_seconds"} {
		if v, _ := during.value(age, "name=shop"); v <= 0 || v > 60 {
			t.Errorf("%s: %v", age, v)
		}
	}
	if v, _ := during.value("sqllock_pool_connection_count", "name=shop"); v < 1 || v > 2 {
		t.Errorf("%v connections", v)
	}
	if err := theirs.Release(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()

	// One is extended, one ends by its TTL. Meanwhile a call waits for a connection.
	if err := kept.Extend(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	expires := lock(p, lockName("expires"), sqllock.TTL(time.Second), sqllock.OwnSession())
	short, cancel = context.WithTimeout(t.Context(), 1500*time.Millisecond)
	wg.Go(func() {
		defer cancel()
		if l, err := p.Lock(short, lockName("starved"), sqllock.OwnSession()); err == nil {
			t.Error("there was a connection")
			_ = l.Release(t.Context())
		}
	})

	// A process hangs with a lock. It is killed for it, and learns that it has lost it.
	hung := lockName("hung")
	hanging := acquire(t, locker, conn(t, hangs), hung, sqllock.TTL(time.Second))
	<-expires.Done()
	wg.Wait()
	if err := expires.Release(t.Context()); !errors.Is(err, sqllock.ErrLost) {
		t.Error(err)
	}
	if err := p.Do(t.Context(), hung, func(context.Context, *sqllock.Lock) error { return nil }); err != nil {
		t.Error(err)
	}
	wantErr(t, "Check of the holder that hung", hanging.Check(t.Context()), sqllock.ErrLost)

	// A session is ended, and the Pool.
	lost := lock(p, lockName("lost"), sqllock.OwnSession())
	if err := kill(t.Context(), db, lost.Grant().Session); err != nil {
		t.Fatal(err)
	}
	<-lost.Done()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Close(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	after := scrape()
	want := map[string]float64{
		"lock_wait_duration_seconds name=work outcome=acquired": 200,
		"lock_hold_duration_seconds name=work":                  200,
		"lock_ends_total name=work outcome=released":            200,
		"lock_wait_duration_seconds name=busy outcome=acquired": 1,
		"lock_wait_duration_seconds name=busy outcome=busy":     3,
		"lock_wait_duration_seconds name=busy outcome=gave_up":  1,
		"lock_extensions_total name=kept outcome=extended":      1,
		"lock_extensions_total name=kept outcome=failed":        0,
		"lock_takeovers_total name=hung":                        1,
		"lock_kills_total name=hung":                            1,
		"lock_takeovers_total name=work":                        0,
		"lock_starved_total name=starved":                       1,
		"table_repairs_total ":                                  0,
		"pool_lock_count name=shop":                             0,
		"pool_waiter_count name=shop":                           0,
		"pool_connection_count name=shop":                       0,
		"pool_lock_age_seconds name=shop":                       0,
		"pool_waiter_age_seconds name=shop":                     0,
	}
	for name, ends := range map[string]string{"work": "", "busy": "released", "kept": "closed", "expires": "expired", "hung": "released lost", "lost": "lost"} {
		for _, outcome := range []string{"released", "expired", "lost", "closed"} {
			if name != "work" {
				n := 0.
				if slices.Contains(strings.Fields(ends), outcome) {
					n = 1
				}
				want["lock_ends_total name="+name+" outcome="+outcome] = n
			}
		}
	}
	after.want(t, want)
	t.Run("dashboard", func(t *testing.T) { testDashboard(t, after) })
	t.Run("alerts", func(t *testing.T) { testAlerts(t, after) })
}

// selector is one of PromQL, as far as the dashboard and the alerts have them: each metric
// is followed by braces.
var (
	selector = regexp.MustCompile(`(sqllock_\w+)\{([^}]*)\}`)
	matcher  = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	grouped  = regexp.MustCompile(`\bby \(([^)]*)\)`)
	variable = regexp.MustCompile(`\$\w+`)
	suffix   = regexp.MustCompile(`_(bucket|count|sum)$`)
)

// addedLabels are those that are not the exporter's: Prometheus and histograms have them.
var addedLabels = []string{"job", "instance", "le"}

// asked fails the test if an expression asks for what was not scraped, and returns the
// metrics that it asks for.
func (s scraped) asked(t *testing.T, expr string) (metrics []string) {
	t.Helper()
	rest := selector.ReplaceAllString(expr, "")
	rest = grouped.ReplaceAllString(rest, "")
	if strings.Contains(rest, "sqllock_") {
		t.Errorf("%s: a metric without braces, or a label out of place, which this test does not see", expr)
	}
	var labels []string
	for _, g := range grouped.FindAllStringSubmatch(expr, -1) {
		labels = append(labels, strings.Split(g[1], ", ")...)
	}
	for _, sel := range selector.FindAllStringSubmatch(expr, -1) {
		name := sel[1]
		if s.families[name] == nil || s.families[name].GetType() == dto.MetricType_HISTOGRAM {
			name = suffix.ReplaceAllString(name, "")
			if s.families[name].GetType() != dto.MetricType_HISTOGRAM || name == sel[1] {
				t.Errorf("%s: there is no metric %s", expr, sel[1])
				continue
			}
		}
		metrics = append(metrics, name)
		found := false
		for _, m := range s.families[name].GetMetric() {
			found = found || has(t, m, sel[2], labels)
		}
		if !found {
			t.Errorf("%s: no series of %s has {%s}, and the labels %q", expr, name, sel[2], labels)
		}
	}
	if len(metrics) == 0 {
		t.Errorf("%s: asks for nothing", expr)
	}
	return metrics
}

// has tells whether a series has what the matchers want, and all labels.
func has(t *testing.T, m *dto.Metric, matchers string, labels []string) bool {
	t.Helper()
	of := make(map[string]string)
	for _, l := range m.GetLabel() {
		of[l.GetName()] = l.GetValue()
	}
	for _, match := range matcher.FindAllStringSubmatch(matchers, -1) {
		label, op, value := match[1], match[2], match[3]
		if slices.Contains(addedLabels, label) {
			continue
		}
		v, ok := of[label]
		if !ok {
			return false
		}
		is := v == value
		if strings.HasSuffix(op, "~") {
			is = regexp.MustCompile("^(?:" + variable.ReplaceAllString(value, ".*") + ")$").MatchString(v)
		}
		if is == strings.HasPrefix(op, "!") {
			return false
		}
	}
	for _, l := range labels {
		if _, ok := of[l]; !ok && !slices.Contains(addedLabels, l) {
			return false
		}
	}
	return true
}

// dashboard is what the test reads of a dashboard of Grafana.
type dashboard struct {
	UID           string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Query      json.RawMessage
		}
	}
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               struct{ Type, UID string }
		GridPos                  struct{ X, Y, W, H int }
		Targets                  []struct {
			RefID, Expr, LegendFormat string
			Datasource                struct{ Type, UID string }
		}
	}
}

// testDashboard: each panel shows something, and all that is exported is shown.
func testDashboard(t *testing.T, s scraped) {
	text, err := os.ReadFile("../adapter/otellock/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || d.SchemaVersion < 39 {
		t.Errorf("uid %q, schema version %d", d.UID, d.SchemaVersion)
	}
	variables := make(map[string]bool)
	for _, v := range d.Templating.List {
		variables[v.Name] = true
		if v.Type != "query" {
			continue
		}
		var q struct{ Query string }
		if err := json.Unmarshal(v.Query, &q); err != nil {
			t.Fatal(err)
		}
		values := regexp.MustCompile(`^label_values\((sqllock_\w+\{[^}]*\}), (\w+)\)$`).FindStringSubmatch(q.Query)
		if values == nil {
			t.Fatalf("the variable %s: %s", v.Name, q.Query)
		}
		s.asked(t, fmt.Sprintf("sum by (%s) (%s)", values[2], values[1]))
	}
	shown, ids, taken := make(map[string]bool), make(map[int]bool), make(map[[2]int]string)
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: the id %d is there twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if by := taken[[2]int{x, y}]; by != "" || x >= 24 {
					t.Errorf("%s is over %q at %d,%d", p.Title, by, x, y)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
			t.Errorf("the panel %d, %q, lacks something", p.ID, p.Title)
		}
		for _, target := range p.Targets {
			if target.RefID == "" || target.Datasource.UID != "${datasource}" || target.Datasource.Type != "prometheus" {
				t.Errorf("%s: %+v", p.Title, target)
			}
			for _, name := range s.asked(t, target.Expr) {
				shown[name] = true
			}
			for _, v := range variable.FindAllString(target.Expr, -1) {
				if !variables[v[1:]] && v != "$__rate_interval" {
					t.Errorf("%s: there is no variable %s", p.Title, v)
				}
			}
			for _, legend := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if by := grouped.FindStringSubmatch(target.Expr); len(by) < 2 || !slices.Contains(strings.Split(by[1], ", "), legend[1]) {
					t.Errorf("%s: the legend has %s, the expression has not", p.Title, legend[0])
				}
			}
		}
	}
	for name := range s.families {
		if strings.HasPrefix(name, "sqllock_") && !shown[name] {
			t.Errorf("no panel shows %s", name)
		}
	}
}

// testAlerts: those of the documentation ask for what is there.
func testAlerts(t *testing.T, s scraped) {
	text, err := os.ReadFile("../docs/adapters.md")
	if err != nil {
		t.Fatal(err)
	}
	exprs := regexp.MustCompile(`(?m)^ +expr: (.*sqllock_.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(exprs) < 5 {
		t.Errorf("%d alerts", len(exprs))
	}
	for _, expr := range exprs {
		s.asked(t, expr[1])
	}
}
