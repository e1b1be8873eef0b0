// Package otellock reports what happens to locks by OpenTelemetry metrics.
package otellock
