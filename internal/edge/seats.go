package edge

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// seats are the connections that a listener may have open.
type seats struct {
	max, maxEach int
	gauge        prometheus.Gauge

	mu    sync.Mutex // guards what follows
	taken int
	each  map[trust.Identity]int
}

func newSeats(most, each int, g prometheus.Gauge) *seats {
	return &seats{max: most, maxEach: each, gauge: g, each: make(map[trust.Identity]int)}
}

// full reports whether somebody new would have to be refused.
func (s *seats) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken >= s.max
}

// take takes a seat for id, which is zero without TLS. leave gives it back. Without
// a reason, it did.
func (s *seats) take(id trust.Identity) (leave func(), why trust.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.taken >= s.max:
		return nil, TooManyConnections
	case !id.IsZero() && s.each[id] >= s.maxEach:
		return nil, TooManyOfIdentity
	}
	s.taken++
	s.gauge.Inc()
	if id.IsZero() {
		return func() { s.leave(id) }, ""
	}
	s.each[id]++
	return func() { s.leave(id) }, ""
}

func (s *seats) leave(id trust.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	s.gauge.Dec()
	if id.IsZero() {
		return
	}
	if s.each[id]--; s.each[id] == 0 {
		delete(s.each, id)
	}
}
