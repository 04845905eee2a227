package compare

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	compared    *prometheus.CounterVec // by result
	convictions prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *Comparer) metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_digest_parted", Help: "Statements of others, the writer's signature among them, that differ now from what this node's copy holds there."},
		func() float64 { return float64(len(c.Partings())) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "qs_publish_stopped", Help: "1 while this manager publishes no snapshots, because it and another manager differ."},
		func() float64 {
			if c.Stopped() != nil {
				return 1
			}
			return 0
		})
	return metrics{
		compared: f.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_digest_compared_total", Help: "Digests of others that were compared with this node's at the same entry, by result: agrees, differs."}, []string{"result"}),
		convictions: f.NewCounter(prometheus.CounterOpts{
			Name: "qs_digest_convictions_total", Help: "Times this node's copy was found to differ from what it should be."}),
	}
}

func resultOf(agrees bool) string {
	if agrees {
		return "agrees"
	}
	return "differs"
}

func isUnknown(err error) bool { return errors.Is(err, ErrUnknown) }
