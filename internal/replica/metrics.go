package replica

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	applied        prometheus.Counter
	batches        prometheus.Counter
	attempts       prometheus.Counter
	failures       *prometheus.CounterVec
	fetches        *prometheus.CounterVec
	contradictions prometheus.Counter
	diverged       prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "qs_replica_" + name, Help: help})
	}
	return &metrics{
		applied:  counter("applied_entries_total", "Entries applied to the store or to a generation being prepared."),
		batches:  counter("applied_batches_total", "Transactions in which entries were applied."),
		attempts: counter("streams_total", "Attempts to follow an upstream."),
		failures: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_replica_stream_ends_total", Help: "Streams that ended or were refused, by reason.",
		}, []string{"reason"}),
		fetches: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_replica_fetches_total", Help: "Snapshots fetched and installed, by result.",
		}, []string{"result"}),
		contradictions: counter("contradictions_total", "Times an upstream said that it holds another history."),
		diverged:       counter("divergences_total", "Times this replica was taken out of service because it diverged."),
	}
}
