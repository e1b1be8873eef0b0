package otellock

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/sqllock/go-sqllock/sqllock"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// scope is the name of the meter.
const scope = "github.com/sqllock/go-sqllock/adapter/otellock"

// The attributes.
const (
	nameKey    = attribute.Key("sqllock.lock.name")
	outcomeKey = attribute.Key("sqllock.lock.outcome")
	poolKey    = attribute.Key("sqllock.pool.name")
)

// Metrics are the instruments, and the names that have been seen. They are safe for
// concurrent use, start no goroutine, and there is nothing to close.
type Metrics struct {
	limit int
	group func(string) string
	attrs []attribute.KeyValue

	wait, hold                                  metric.Float64Histogram
	ends, extensions, takeovers, kills, starved metric.Int64Counter
	repairs                                     metric.Int64Counter
	locks, waiters, connections                 metric.Int64ObservableUpDownCounter
	lockAge, waiterAge                          metric.Float64ObservableGauge
	meter                                       metric.Meter
	all                                         []metric.AddOption // of what has no name

	names names

	mu    sync.Mutex // guards pools
	pools map[string]bool
}

// New makes the instruments, by a Meter of mp. The error is that of an option, or of an
// instrument that the SDK refuses.
//
// One for each Locker, or one for all of them: locks of one name count as one then. What
// two of them report with the same attributes is added up.
func New(mp metric.MeterProvider, opts ...Option) (*Metrics, error) {
	if mp == nil {
		return nil, errors.New("otellock: the MeterProvider is nil: pass otel.GetMeterProvider(), or one of the SDK")
	}
	m := &Metrics{limit: DefaultNames, meter: mp.Meter(scope), pools: make(map[string]bool)}
	for _, o := range opts {
		if err := o.apply(m); err != nil {
			return nil, err
		}
	}
	if err := m.instruments(); err != nil {
		return nil, fmt.Errorf("otellock: an instrument could not be made: %w", err)
	}
	m.names.series, m.names.limit = make(map[string]*series), m.limit
	m.all = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(m.attrs...))}
	m.repairs.Add(context.Background(), 0, m.all...) //nolint:forbidigo // none is at hand
	return m, nil
}

// buckets are those of both histograms: from a lock that is free, on loopback, to a batch
// job. About three for a power of ten, since each is a series for each name.
func buckets() metric.HistogramOption {
	return metric.WithExplicitBucketBoundaries(.0001, .0003, .001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 60, 300, 1800)
}

func (m *Metrics) instruments() error {
	var errs []error
	histogram := func(to *metric.Float64Histogram, name, description string) {
		var err error
		*to, err = m.meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description), buckets())
		errs = append(errs, err)
	}
	counter := func(to *metric.Int64Counter, name, unit, description string) {
		var err error
		*to, err = m.meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
	}
	count := func(to *metric.Int64ObservableUpDownCounter, name, unit, description string) {
		var err error
		*to, err = m.meter.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
	}
	age := func(to *metric.Float64ObservableGauge, name, description string) {
		var err error
		*to, err = m.meter.Float64ObservableGauge(name, metric.WithUnit("s"), metric.WithDescription(description))
		errs = append(errs, err)
	}
	histogram(&m.wait, "sqllock.lock.wait.duration", "How long calls took until they had the lock, or did not get it because another one had it.")
	histogram(&m.hold, "sqllock.lock.hold.duration", "How long locks were held, from the grant to their end, whatever that was.")
	counter(&m.ends, "sqllock.lock.ends", "{lock}", "Locks that ended.")
	counter(&m.extensions, "sqllock.lock.extensions", "{extension}", "Extensions of leases.")
	counter(&m.takeovers, "sqllock.lock.takeovers", "{takeover}", "Locks taken over from a holder that had died or hung.")
	counter(&m.kills, "sqllock.lock.kills", "{session}", "Sessions of holders, beyond their TTL, that were ended.")
	counter(&m.starved, "sqllock.lock.starved", "{call}", "Calls that waited for a connection for more than a second.")
	counter(&m.repairs, "sqllock.table.repairs", "{repair}", "Repairs of a damaged lock table.")
	count(&m.locks, "sqllock.pool.lock.count", "{lock}", "Locks that the Pool holds.")
	count(&m.waiters, "sqllock.pool.waiter.count", "{call}", "Calls that wait for a lock of the Pool.")
	count(&m.connections, "sqllock.pool.connection.count", "{connection}", "Connections that the Pool has.")
	age(&m.lockAge, "sqllock.pool.lock.age", "How long the oldest lock of the Pool has been held; 0 if there is none.")
	age(&m.waiterAge, "sqllock.pool.waiter.age", "How long the call that waits longest for a lock of the Pool has done so; 0 if there is none.")
	return errors.Join(errs...)
}

// Observe takes an event; give it to [sqllock.WithObserver]. It does not block.
func (m *Metrics) Observe(e sqllock.Event) {
	ctx := context.Background() //nolint:forbidigo // none is at hand: the SDK takes a trace from it only
	s := m.of(ctx, e.Name)
	switch e.Kind {
	case sqllock.Acquired:
		m.wait.Record(ctx, e.Waited.Seconds(), s.acquired...)
	case sqllock.Busy:
		outcome := s.busy
		if errors.Is(e.Err, context.DeadlineExceeded) || errors.Is(e.Err, context.Canceled) {
			outcome = s.gaveUp
		}
		m.wait.Record(ctx, e.Waited.Seconds(), outcome...)
	case sqllock.Released:
		outcome := s.released
		if e.Err != nil {
			outcome = s.closed
		}
		m.ended(ctx, e, s, outcome)
	case sqllock.Expired:
		m.ended(ctx, e, s, s.expired)
	case sqllock.Lost:
		m.ended(ctx, e, s, s.lost)
	case sqllock.Extended:
		s.extends.Do(func() {
			m.extensions.Add(ctx, 0, s.extended...)
			m.extensions.Add(ctx, 0, s.failed...)
		})
		outcome := s.extended
		if e.Err != nil {
			outcome = s.failed
		}
		m.extensions.Add(ctx, 1, outcome...)
	case sqllock.TakenOver:
		m.takeovers.Add(ctx, 1, s.name...)
	case sqllock.Killed:
		m.kills.Add(ctx, 1, s.name...)
	case sqllock.Starved:
		m.starved.Add(ctx, 1, s.name...)
	case sqllock.Repaired:
		m.repairs.Add(ctx, 1, m.all...)
	}
}

func (m *Metrics) ended(ctx context.Context, e sqllock.Event, s *series, outcome []metric.AddOption) {
	m.hold.Record(ctx, e.Held.Seconds(), s.held...)
	m.ends.Add(ctx, 1, outcome...)
}
