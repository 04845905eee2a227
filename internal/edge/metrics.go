package edge

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	refused     *prometheus.CounterVec   // by listener, reason
	connections *prometheus.GaugeVec     // by listener
	handshaking *prometheus.GaugeVec     // by listener
	handshakes  *prometheus.HistogramVec // by listener
	dials       *prometheus.CounterVec   // by result
}

// The results of a dial, as a metric label.
const (
	dialConnected   = "connected"
	dialUnreachable = "unreachable"
	dialRefused     = "refused"
	dialDropped     = "dropped"
	dialHeldBack    = "held_back"
	dialCancelled   = "cancelled"
)

func newMetrics(reg prometheus.Registerer, b *breakers) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_edge_refused_total",
			Help: "Connections, requests and messages refused, by listener and reason.",
		}, []string{"listener", "reason"}),
		connections: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "qs_edge_connections",
			Help: "Open connections that were accepted, by listener. Those in a handshake are not among them.",
		}, []string{"listener"}),
		handshaking: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "qs_edge_handshakes_in_flight",
			Help: "Accepted connections whose TLS handshake is not done, by listener.",
		}, []string{"listener"}),
		handshakes: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "qs_edge_handshake_seconds",
			Help:    "From accepting a connection to the end of its TLS handshake, of those that succeeded, by listener.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"listener"}),
		dials: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_edge_dials_total",
			Help: "Attempts to connect, by result: connected, unreachable (or it broke in the handshake), refused (by either side's check), cancelled, held_back (not tried: earlier ones failed); of those connected, dropped ended before the other side said anything.",
		}, []string{"result"}),
	}
	for _, r := range []string{dialConnected, dialUnreachable, dialRefused, dialDropped, dialHeldBack, dialCancelled} {
		m.dials.WithLabelValues(r)
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_edge_failing_addresses",
		Help: "Addresses whose last attempts to connect failed.",
	}, b.count)
	return m
}
