package otellock

import (
	"context"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/sqllock/go-sqllock/sqllock"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// maxNameLen is how much of a name is told. Names may be of any length, and of anybody.
const maxNameLen = 100

// names are the names, or groups, that have series of their own.
type names struct {
	limit int

	mu     sync.RWMutex // guards series
	series map[string]*series
}

// series are the attributes of a name, made once: an event then takes no memory.
type series struct {
	acquired, busy, gaveUp          []metric.RecordOption
	held                            []metric.RecordOption
	released, expired, lost, closed []metric.AddOption
	extended, failed                []metric.AddOption
	name                            []metric.AddOption

	extends sync.Once // most locks are never extended
}

// of returns the series by which a lock is counted.
func (m *Metrics) of(ctx context.Context, name string) *series {
	if m.group != nil {
		name = m.group(name)
	}
	if name == "" {
		name = sqllock.OtherNames
	}
	name = cut(name)
	s, full := m.names.find(name)
	if s == nil && full {
		name = sqllock.OtherNames
		s, _ = m.names.find(name)
	}
	if s == nil {
		s = m.add(ctx, name)
	}
	return s
}

// find returns nil for a name that is not there, and whether there can't be more.
func (n *names) find(name string) (s *series, full bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.series[name], n.full(name)
}

// full leaves room for the others. The caller has mu.
func (n *names) full(name string) bool {
	used := len(n.series)
	if n.series[sqllock.OtherNames] != nil {
		used--
	}
	return used >= n.limit && name != sqllock.OtherNames
}

// add gives name a series, or returns that of the others if there can't be more.
func (m *Metrics) add(ctx context.Context, name string) *series {
	m.names.mu.Lock()
	defer m.names.mu.Unlock()
	if m.names.full(name) {
		name = sqllock.OtherNames
	}
	if s := m.names.series[name]; s != nil {
		return s
	}
	s := m.newSeries(name)
	// A series that begins with 1 is no increase to those who look at increases.
	for _, outcome := range [][]metric.AddOption{s.released, s.expired, s.lost, s.closed} {
		m.ends.Add(ctx, 0, outcome...)
	}
	for _, c := range []metric.Int64Counter{m.takeovers, m.kills, m.starved} {
		c.Add(ctx, 0, s.name...)
	}
	m.names.series[strings.Clone(name)] = s // not the whole of what it was cut from
	return s
}

func (m *Metrics) newSeries(name string) *series {
	set := func(outcome ...attribute.KeyValue) metric.MeasurementOption {
		attrs := append([]attribute.KeyValue{nameKey.String(strings.ToValidUTF8(name, "\uFFFD"))}, outcome...)
		return metric.WithAttributeSet(attribute.NewSet(append(attrs, m.attrs...)...))
	}
	record := func(outcome string) []metric.RecordOption {
		return []metric.RecordOption{set(outcomeKey.String(outcome))}
	}
	add := func(outcome string) []metric.AddOption {
		return []metric.AddOption{set(outcomeKey.String(outcome))}
	}
	return &series{
		acquired: record("acquired"), busy: record("busy"), gaveUp: record("gave_up"),
		held:     []metric.RecordOption{set()},
		released: add("released"), expired: add("expired"), lost: add("lost"), closed: add("closed"),
		extended: add("extended"), failed: add("failed"),
		name: []metric.AddOption{set()},
	}
}

// cut shortens a name, not within a character.
func cut(name string) string {
	if len(name) <= maxNameLen {
		return name
	}
	end := maxNameLen
	for end > maxNameLen-utf8.UTFMax && !utf8.RuneStart(name[end]) {
		end--
	}
	return name[:end]
}
