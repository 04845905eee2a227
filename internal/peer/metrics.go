package peer

import (
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/lmdbstore"
)

// registerNode registers what is the process's, and who the node is.
func registerNode(reg prometheus.Registerer, o *Options) {
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "qs_build_info",
		Help: "1, labelled with the software's version, and the node's role and colo.",
		ConstLabels: prometheus.Labels{
			"version": o.Version, "goversion": runtime.Version(), "role": string(o.Role), "colo": o.Colo,
		},
	})
	info.Set(1)
	reg.MustRegister(info)
}

// registerReplica exposes the replica's and the store's positions as they are
// when somebody looks.
func registerReplica(reg prometheus.Registerer, s *storage, status func() replica.Status) {
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("qs_replica_applied_seq", "Last entry that reads see.",
		func() float64 { return float64(s.store.State().Pos.Seq) })
	gauge("qs_replica_known_head_seq", "Last entry known to exist.",
		func() float64 { return float64(status().Head.Seq) })
	gauge("qs_replica_lag_entries", "Entries that are known to exist and not applied yet.", func() float64 {
		entries, _ := lag(s.store.State(), status())
		return float64(entries)
	})
	gauge("qs_replica_lag_seconds", "Time between the last entry applied and the last one known, by the writer's clock.", func() float64 {
		_, seconds := lag(s.store.State(), status())
		return seconds
	})
	gauge("qs_replica_ready", "1 when reads are served.", func() float64 {
		if status().Ready {
			return 1
		}
		return 0
	})
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "qs_replica_rebuilds_total", Help: "Bootstraps from a snapshot begun since the start.",
	}, func() float64 { return float64(status().Rebuilds) }))
	reg.MustRegister(stateCollector{status})
}

// lag returns how far the store is behind the head that the replica knows.
func lag(store lmdbstore.State, known replica.Status) (entries uint64, seconds float64) {
	if known.Head.Seq <= store.Pos.Seq {
		return 0, 0
	}
	if !known.HeadTime.IsZero() && !store.Time.IsZero() {
		seconds = max(0, known.HeadTime.Sub(store.Time).Seconds())
	}
	return known.Head.Seq - store.Pos.Seq, seconds
}

// stateCollector shows the replica's state as one series per state, of which
// one is 1.
type stateCollector struct{ status func() replica.Status }

var stateDesc = prometheus.NewDesc("qs_replica_state", "1 for the state that the replica is in.", []string{"state"}, nil)

func (c stateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- stateDesc }

func (c stateCollector) Collect(ch chan<- prometheus.Metric) {
	now := c.status().State
	for _, s := range []replica.State{
		replica.Joining, replica.Bootstrapping, replica.CatchingUp, replica.Serving, replica.Quarantined, replica.Repairing,
	} {
		v := 0.0
		if s == now {
			v = 1
		}
		ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, v, string(s))
	}
}

// httpMetrics count requests by route.
type httpMetrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newHTTPMetrics(reg prometheus.Registerer) *httpMetrics {
	m := &httpMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_http_requests_total", Help: "HTTP requests answered, by route, method and status code.",
		}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "qs_http_request_duration_seconds", Help: "Time from a request's header to the end of its answer.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30},
		}, []string{"route"}),
	}
	reg.MustRegister(m.requests, m.duration)
	return m
}

func (m *httpMetrics) observe(route, method string, code int, took time.Duration) {
	m.requests.WithLabelValues(route, method, strconv.Itoa(code)).Inc()
	m.duration.WithLabelValues(route).Observe(took.Seconds())
}
