package heads

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

func newSignedCounter(reg prometheus.Registerer) prometheus.Counter {
	return promauto.With(reg).NewCounter(prometheus.CounterOpts{
		Name: "qs_heads_signed_total", Help: "Heads of the log that this node signed."})
}

type guardMetrics struct {
	verified prometheus.Counter
	refused  *prometheus.CounterVec // by reason
	forks    prometheus.Counter
}

func newGuardMetrics(reg prometheus.Registerer, g *Guard) guardMetrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_heads_age_seconds", Help: "Time since a newer signed head was verified than all before (on the writer: was signed), by this node's clock; since the start, if none was."},
		func() float64 { return g.age().Seconds() })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_log_forked", Help: "1 while nothing is applied or written, because there is evidence of a fork in the dataset or, on the writer, of lost entries."},
		func() float64 {
			if g.Halt() != nil {
				return 1
			}
			return 0
		})
	return guardMetrics{
		verified: f.NewCounter(prometheus.CounterOpts{
			Name: "qs_heads_verified_total", Help: "Signed heads received that a trusted key signed."}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_heads_refused_total", Help: "Signed heads received that count for nothing, by reason."}, []string{"reason"}),
		forks: f.NewCounter(prometheus.CounterOpts{
			Name: "qs_log_forks_total", Help: "Times two signed heads were found to vouch for different entries at one seq."}),
	}
}
