package otellock

import (
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
)

// DefaultNames is how many names have time series of their own, unless [WithNames] says
// otherwise.
const DefaultNames = 100

// Option configures [New].
type Option interface{ apply(*Metrics) error }

type option func(*Metrics) error

func (o option) apply(m *Metrics) error { return o(m) }

// WithNames sets how many names, or groups of them, have time series of their own: those
// that come first. The rest are counted as [sqllock.OtherNames]; with 0 all are. With more
// than about 400, raise the limit of the SDK, too, which is 2,000 combinations of
// attributes for an instrument.
func WithNames(n int) Option {
	return option(func(m *Metrics) error {
		if n < 0 {
			return fmt.Errorf("otellock: WithNames(%d): the number of names must not be negative", n)
		}
		m.limit = n
		return nil
	})
}

// WithGroups has f say by which name a lock is counted: "account:*" for "account:7", for
// example. What f makes "" is counted as [sqllock.OtherNames]. f is called with every
// event, concurrently, and must not block.
func WithGroups(f func(name string) string) Option {
	return option(func(m *Metrics) error {
		if f == nil {
			return errors.New("otellock: WithGroups(nil): give it a function, or leave it out to count each name by itself")
		}
		m.group = f
		return nil
	})
}

// WithAttributes adds attributes to everything that is reported. They keep apart what
// Metrics for different servers, or namespaces, report in one process.
func WithAttributes(attrs ...attribute.KeyValue) Option {
	return option(func(m *Metrics) error {
		for _, a := range attrs {
			if !a.Valid() {
				return fmt.Errorf("otellock: WithAttributes: the attribute %q has no key or no value", a.Key)
			}
		}
		m.attrs = append(m.attrs, attrs...)
		return nil
	})
}
