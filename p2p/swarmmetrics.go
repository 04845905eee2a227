package p2p

import (
	"fmt"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/p2p/lease"
)

// swarmMetrics are the qs_swarm_* metrics.
type swarmMetrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector

	receivedBytes  *prometheus.CounterVec // by Source
	receivedPieces *prometheus.CounterVec // by Source
	wasted         prometheus.Counter
	pieces         *prometheus.CounterVec // by verdict
	stalls         prometheus.Counter
	asked          *prometheus.CounterVec // by lease.Reason
}

func newSwarmMetrics(s *Swarm, r prometheus.Registerer) (*swarmMetrics, error) {
	m := &swarmMetrics{
		registerer: r,
		receivedBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_swarm_received_bytes_total",
			Help: "Payload received in verified pieces, by source.",
		}, []string{"from"}),
		receivedPieces: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_swarm_received_pieces_total",
			Help: "Verified pieces, by the source that sent most of each.",
		}, []string{"from"}),
		wasted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "qs_swarm_wasted_bytes_total",
			Help: "Payload received twice or in damaged pieces.",
		}),
		pieces: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_swarm_pieces_total",
			Help: "Received pieces checked, by verdict.",
		}, []string{"verdict"}),
		stalls: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "qs_swarm_stalls_total",
			Help: "Times a fetch received nothing for so long that its connections were made anew.",
		}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_swarm_pieces_asked_total",
			Help: "Pieces asked from managers and other colos, by why: own lease, takeover of another's, hedge.",
		}, []string{"reason"}),
	}
	sent := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "qs_swarm_sent_bytes_total",
		Help: "Payload sent over the torrent protocol, which workers of one colo speak.",
	}, func() float64 {
		stats := s.client.ConnStats()
		return float64(stats.BytesWrittenData.Int64())
	})
	peers := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_swarm_connections",
		Help: "Open connections, over all torrents.",
	}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(len(s.links))
	})
	shunned := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_swarm_shunned_peers",
		Help: "Peers that are shunned now because they sent damaged pieces.",
	}, func() (n float64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for id := range s.shunned {
			if s.isShunned(id, time.Now()) {
				n++
			}
		}
		return n
	})
	m.collectors = []prometheus.Collector{m.receivedBytes, m.receivedPieces, m.wasted, m.pieces, m.stalls, m.asked, sent, peers, shunned,
		torrentsGauge(s, "seeding", false), torrentsGauge(s, "fetching", true)}
	m.collectors = append(m.collectors, fetchGauges(s)...)
	for from := range numSources {
		m.receivedBytes.WithLabelValues(from.String())
		m.receivedPieces.WithLabelValues(from.String())
	}
	for _, why := range []lease.Reason{lease.Own, lease.Takeover, lease.Hedge} {
		m.asked.WithLabelValues(why.String())
	}
	for _, good := range []bool{true, false} {
		m.pieces.WithLabelValues(verdict(good))
	}
	if r == nil {
		return m, nil
	}
	for i, c := range m.collectors {
		if err := r.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			m.unregister()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func torrentsGauge(s *Swarm, state string, fetching bool) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "qs_swarm_torrents",
		Help:        "Torrents held, by what is done with them.",
		ConstLabels: prometheus.Labels{"state": state},
	}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for _, h := range s.holdings {
			if h.fetching == fetching {
				n++
			}
		}
		return float64(n)
	})
}

// fetchGauges show the fetch that runs; all are 0 when there is none.
func fetchGauges(s *Swarm) []prometheus.Collector {
	gauge := func(name, help string, value func(Progress) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			p, ok := s.Progress()
			if !ok || !p.Running {
				return 0
			}
			return value(p)
		})
	}
	return []prometheus.Collector{
		gauge("qs_swarm_fetch_size_bytes", "Size of the snapshot that is being fetched.",
			func(p Progress) float64 { return float64(p.Total) }),
		gauge("qs_swarm_fetch_done_bytes", "Verified bytes of the snapshot that is being fetched, those found on disk included.",
			func(p Progress) float64 { return float64(p.Done) }),
		gauge("qs_swarm_fetch_bytes_per_second", "Rate of the fetch over the last 5 s.",
			func(p Progress) float64 { return float64(p.Rate) }),
		gauge("qs_swarm_fetch_left_seconds", "Estimate of when the fetch will be done, by its rate. NaN without one.",
			func(p Progress) float64 {
				left, ok := p.Left()
				if !ok {
					return math.NaN()
				}
				return left.Seconds()
			}),
	}
}

// unregister makes room for another swarm with the same registerer.
func (m *swarmMetrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}

func verdict(good bool) string {
	if good {
		return "verified"
	}
	return "failed"
}
