package lmdbstore

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/guard"
)

// metrics are the qs_store_* series of one store.
type metrics struct {
	entries prometheus.Counter
	commits prometheus.Histogram
	all     []prometheus.Collector
	reg     prometheus.Registerer
}

func (m *metrics) committed(entries int, took time.Duration) {
	m.entries.Add(float64(entries))
	m.commits.Observe(took.Seconds())
}

func newMetrics(s *Store, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{reg: reg}
	m.entries = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "qs_store_entries_applied_total", Help: "Log entries applied.",
	})
	m.commits = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "qs_store_commit_seconds", Help: "Duration of write transactions with their fsync.",
		Buckets: prometheus.ExponentialBuckets(100e-6, 2, 16),
	})
	gauge := func(name, help string, value func(*generation) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return value(s.current.Load()) })
	}
	m.all = []prometheus.Collector{m.entries, m.commits,
		gauge("qs_store_applied_seq", "Seq of the last entry applied.", func(g *generation) float64 {
			return float64(g.state.Load().Pos.Seq)
		}),
		gauge("qs_store_generation", "Number of the current generation.", func(g *generation) float64 {
			return float64(g.number)
		}),
		gauge("qs_store_map_bytes", "Address space of the current environment.", func(g *generation) float64 {
			return float64(g.env.mapBytes.Load())
		}),
		gauge("qs_store_file_bytes", "Size of the current environment's file.", func(g *generation) float64 {
			info, err := os.Stat(filepath.Join(g.dir, dataFile))
			if err != nil {
				return 0 // removed by a switch this moment
			}
			return float64(info.Size())
		}),
		gauge("qs_store_readers", "Read transactions running.", func(g *generation) float64 {
			n, _ := g.env.readers.load()
			return float64(n)
		}),
		gauge("qs_store_oldest_reader_seconds", "Age of the oldest read transaction; pages freed since it began cannot be reused.", func(g *generation) float64 {
			_, oldest := g.env.readers.load()
			if oldest.IsZero() {
				return 0
			}
			return time.Since(oldest).Seconds()
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "qs_store_stale_readers_cleared_total", Help: "Slots of dead processes freed in the reader table.",
		}, func() float64 { return float64(s.stale.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "qs_store_environments_kept_total", Help: "Environments of this process that LMDB could not close: each keeps some memory and a descriptor.",
		}, func() float64 { return float64(guard.Kept()) }),
	}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := reg.Register(c); err != nil {
			m.all = m.all[:i]
			m.unregister()
			return nil, errors.Join(errors.New("register metrics"), err)
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}
