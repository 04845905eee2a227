package gossip

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// The ways that records travel, as a metric label.
const (
	viaBroadcast = "broadcast"
	viaPushPull  = "push_pull"
)

type metrics struct {
	records   *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	joins     *prometheus.CounterVec
	published prometheus.Counter
	dropped   *prometheus.CounterVec

	registerer prometheus.Registerer
	registered []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer, g *Gossip) (*metrics, error) {
	m := &metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_gossip_records_total",
			Help: "Records received, by what became of them: applied, stale, bad, newer (made by newer software), reborn (about this node, from before its start), overflow (of an unknown node, one too many), unknown_chain (signed with a certificate that is still to be asked for).",
		}, []string{"outcome"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_gossip_bytes_total",
			Help: "Bytes of records, by direction and by way: broadcast or push_pull.",
		}, []string{"direction", "via"}),
		joins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_gossip_joins_total",
			Help: "Attempts to reach a node to join or to find again, by outcome: reached or failed.",
		}, []string{"outcome"}),
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "qs_gossip_broadcasts_total",
			Help: "Broadcasts of this node's own record.",
		}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qs_gossip_dropped_total",
			Help: "Connections, messages and records that were refused, with TLS, by reason: of the certificate (no_certificate, unknown_authority, expired, wrong_domain, wrong_role, …); unsigned, bad_signature, bad_record; wrong_name, wrong_role, wrong_colo: a record that says other than its certificate; no_record: a member without a verified one; false_source: a ping that is not of who sent it; flood, too_many, slow, malformed.",
		}, []string{"reason"}),
		registerer: reg,
	}
	return m, m.register(m.records, m.bytes, m.joins, m.published, m.dropped,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "qs_gossip_queue_records",
			Help: "Records that wait to be broadcast.",
		}, func() float64 { return float64(g.queue.NumQueued()) }),
		memberCollector{g})
}

// register adds collectors, all or none.
func (m *metrics) register(collectors ...prometheus.Collector) error {
	if m.registerer == nil {
		return nil
	}
	for _, c := range collectors {
		if err := m.registerer.Register(c); err != nil {
			m.unregister()
			return errors.Join(errors.New("register metrics"), err)
		}
		m.registered = append(m.registered, c)
	}
	return nil
}

// unregister lets a node be started again with the same registerer.
func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registerer.Unregister(c)
	}
	m.registered = nil
}

func (m *metrics) sent(via string, n int) { m.bytes.WithLabelValues("sent", via).Add(float64(n)) }

func (m *metrics) received(via string, n int) {
	m.bytes.WithLabelValues("received", via).Add(float64(n))
}

// memberCollector counts members when asked.
type memberCollector struct{ *Gossip }

var membersDesc = prometheus.NewDesc("qs_gossip_members",
	"Members by role and liveness: alive, failed or left. The role of a member that was not heard yet is empty.",
	[]string{"role", "liveness"}, nil)

func (c memberCollector) Describe(ch chan<- *prometheus.Desc) { ch <- membersDesc }

func (c memberCollector) Collect(ch chan<- prometheus.Metric) {
	type group struct {
		role     Role
		liveness Liveness
	}
	counts := make(map[group]int)
	for _, m := range c.Members() {
		counts[group{m.Role, m.Liveness}]++
	}
	for k, n := range counts {
		ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(n), string(k.role), k.liveness.String())
	}
}
