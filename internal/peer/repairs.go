package peer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/qs-peer/qs-peer/internal/replica"
)

// Kinds of repair, beside the replica's rungs.
const (
	kindLogTail        = "log_tail"
	kindLogSegment     = "log_segment"
	kindSnapshotPieces = "snapshot_pieces"
)

// repair is an attempt to mend something.
type repair struct {
	Kind    string
	Err     error
	Fetched int64 // bytes, from others
	Damaged int64 // bytes, as far as known
}

// repairMetrics count damage and what was done about it.
type repairMetrics struct {
	findings, repairs, fetched, damaged *prometheus.CounterVec
}

func newRepairMetrics(reg prometheus.Registerer) *repairMetrics {
	f := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &repairMetrics{
		findings: counter("qs_damage_findings_total", "Damage that was found, by part of the node; fork and chain are other histories.", "part"),
		repairs:  counter("qs_repairs_total", "Attempts to mend damage, by kind and result.", "kind", "result"),
		fetched:  counter("qs_repair_bytes_fetched_total", "Bytes that repairs got from other nodes.", "kind"),
		damaged:  counter("qs_repair_bytes_damaged_total", "Bytes that were found damaged and were mended, by kind: bad pieces, or what of a file is lacking, too much or unreadable; damaged log; of a store the pages that are known to be damaged, at least one.", "kind"),
	}
	for _, p := range parts {
		m.findings.WithLabelValues(string(p))
	}
	for _, kind := range []string{kindLogTail, kindLogSegment, kindSnapshotPieces, string(replica.Local), string(replica.Salvaged), string(replica.Fetched)} {
		m.repairs.WithLabelValues(kind, "ok")
		m.repairs.WithLabelValues(kind, "failed")
		m.fetched.WithLabelValues(kind)
		m.damaged.WithLabelValues(kind)
	}
	return m
}

func (m *repairMetrics) count(r repair) {
	result := "ok"
	if r.Err != nil {
		result = "failed"
	}
	m.repairs.WithLabelValues(r.Kind, result).Inc()
	m.fetched.WithLabelValues(r.Kind).Add(float64(r.Fetched))
	m.damaged.WithLabelValues(r.Kind).Add(float64(r.Damaged))
}
