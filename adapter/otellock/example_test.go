package otellock_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/sqllock/go-sqllock/adapter/otellock"
)

// Locks of accounts are counted as one name, since there may be millions of them.
func Example() {
	ctx := context.Background()
	reader := metric.NewManualReader() // in place of an exporter
	provider := metric.NewMeterProvider(metric.WithReader(reader))
	defer provider.Shutdown(ctx)

	metrics, err := otellock.New(provider, otellock.WithGroups(func(name string) string {
		kind, _, numbered := strings.Cut(name, ":")
		if numbered {
			return kind + ":*"
		}
		return name
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	server := memory.New()
	db := server.DB() // in place of sql.Open
	defer db.Close()
	locker := sqllock.New(server.Backend(), sqllock.WithObserver(metrics.Observe))
	pool := sqllock.NewPool(db, locker)
	defer pool.Close(ctx)
	registration, err := metrics.ObservePool("shop", pool)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer registration.Unregister()

	for _, name := range []string{"account:7", "account:9", "invoices"} {
		err = pool.Do(ctx, name, func(context.Context, *sqllock.Lock) error { return nil })
		if err != nil {
			fmt.Println(err)
		}
	}

	var data metricdata.ResourceMetrics
	if err := reader.Collect(ctx, &data); err != nil {
		fmt.Println(err)
	}
	for _, m := range data.ScopeMetrics[0].Metrics {
		d, _ := m.Data.(metricdata.Histogram[float64])
		for _, p := range d.DataPoints {
			name, _ := p.Attributes.Value("sqllock.lock.name")
			fmt.Println(m.Name, name.AsString(), p.Count)
		}
	}
	// Unordered output:
	// sqllock.lock.wait.duration account:* 2
	// sqllock.lock.wait.duration invoices 1
	// sqllock.lock.hold.duration account:* 2
	// sqllock.lock.hold.duration invoices 1
}

// What an application sets up beside its SDK of OpenTelemetry.
func ExampleNew() {
	setUp := func(db *sql.DB) error {
		metrics, err := otellock.New(otel.GetMeterProvider(), otellock.WithGroups(func(name string) string {
			kind, _, _ := strings.Cut(name, ":") // account:7 is counted as account
			return kind
		}))
		if err != nil {
			return err
		}
		locker := sqllock.New(mysqlnamed.New(), sqllock.WithObserver(metrics.Observe))
		pool := sqllock.NewPool(db, locker)
		registration, err := metrics.ObservePool("shop", pool) // Unregister it when the Pool is closed
		_ = registration
		return err
	}
	_ = setUp
}
