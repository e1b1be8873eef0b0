package otellock

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sqllock/go-sqllock/sqllock"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// ObservePool has the state of a Pool reported, under name, whenever metrics are
// collected, until Unregister of what it returns. No statement is sent for it. Events of
// the Pool's locks come from the observer of its Locker. It is an error to give one name
// to two Pools at a time.
func (m *Metrics) ObservePool(name string, pool *sqllock.Pool) (metric.Registration, error) {
	switch {
	case name == "":
		return nil, errors.New("otellock: ObservePool needs a name for the Pool, such as that of its database")
	case pool == nil:
		return nil, fmt.Errorf("otellock: ObservePool(%q): the Pool is nil", name)
	}
	name = cut(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pools[name] {
		return nil, fmt.Errorf("otellock: ObservePool(%q): there is a Pool of this name; give this one another, or Unregister that one", name)
	}
	attrs := append([]attribute.KeyValue{poolKey.String(strings.ToValidUTF8(name, "\uFFFD"))}, m.attrs...)
	of := metric.WithAttributeSet(attribute.NewSet(attrs...))
	r, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := pool.Stats()
		o.ObserveInt64(m.locks, int64(s.Held), of)
		o.ObserveInt64(m.waiters, int64(s.Waits), of)
		o.ObserveInt64(m.connections, int64(s.Conns), of)
		o.ObserveFloat64(m.lockAge, s.OldestLock.Seconds(), of)
		o.ObserveFloat64(m.waiterAge, s.OldestWait.Seconds(), of)
		return nil
	}, m.locks, m.waiters, m.connections, m.lockAge, m.waiterAge)
	if err != nil {
		return nil, fmt.Errorf("otellock: ObservePool(%q): %w", name, err)
	}
	m.pools[name] = true
	return &registration{Registration: r, metrics: m, name: name}, nil
}

// registration gives the name of its Pool back.
type registration struct {
	metric.Registration

	metrics *Metrics
	name    string
}

// Unregister ends the reports of the Pool. Later calls do nothing.
func (r *registration) Unregister() error {
	r.metrics.mu.Lock()
	defer r.metrics.mu.Unlock()
	if r.name == "" {
		return nil
	}
	if err := r.Registration.Unregister(); err != nil {
		return fmt.Errorf("otellock: the reports of the Pool %q could not be ended: %w", r.name, err)
	}
	delete(r.metrics.pools, r.name)
	r.name = ""
	return nil
}
