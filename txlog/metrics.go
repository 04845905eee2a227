package txlog

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	entries, bytes  prometheus.Counter
	fsyncSeconds    prometheus.Histogram
	entriesPerFsync prometheus.Histogram

	registerer prometheus.Registerer
	registered []prometheus.Collector
}

func newMetrics(r prometheus.Registerer, l *Log) (*metrics, error) {
	m := &metrics{
		entries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "qs_log_entries_appended_total",
			Help: "Entries that were appended to the log and fsynced.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "qs_log_written_bytes_total",
			Help: "Bytes of entries that were appended to the log and fsynced.",
		}),
		fsyncSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "qs_log_fsync_seconds",
			Help:    "Duration of the log's fsync calls.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		entriesPerFsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "qs_log_fsync_entries",
			Help:    "Entries that shared an fsync.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 14),
		}),
		registerer: r,
	}
	gauge := func(name, help string, value func(*state) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return value(&l.state)
		})
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.entries, m.bytes, m.fsyncSeconds, m.entriesPerFsync,
		gauge("qs_log_segments", "Segment files of the log.", func(s *state) float64 { return float64(len(s.all())) }),
		gauge("qs_log_size_bytes", "Size of the log on disk.", func(s *state) float64 { return float64(s.bytes()) }),
		gauge("qs_log_head_seq", "Seq of the last entry on stable storage.", func(s *state) float64 { return float64(s.head.Seq) }),
		gauge("qs_log_first_seq", "Seq of the first entry that is kept.", func(s *state) float64 { return float64(s.first()) }),
		gauge("qs_log_holes", "Ranges of the log that were damaged and are not filled again.", func(s *state) (n float64) {
			for _, seg := range s.old {
				if seg.gap != nil {
					n++
				}
			}
			return n
		}),
		gauge("qs_log_failed", "1 when the log stopped after a failed fsync.", func(s *state) float64 {
			if s.failed != nil {
				return 1
			}
			return 0
		}),
	} {
		if err := r.Register(c); err != nil {
			m.unregister()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}

func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registerer.Unregister(c)
	}
}
