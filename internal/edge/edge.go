package edge

import (
	"cmp"
	"log/slog"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// Options configure an Edge. The zero value is plain TCP.
type Options struct {
	// Credentials make every connection mutual TLS. Nil: plain TCP.
	Credentials *trust.Credentials
	// MaxHandshakes bounds the handshakes in flight at all listeners together; at the
	// worst, each takes about 64 KiB of memory. Default: 512.
	MaxHandshakes int
	// Logger is told who was refused. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_edge_* metrics; one Edge per Registerer. Default: none.
	Registerer prometheus.Registerer
}

// Edge makes and accepts a node's connections. Its methods may be called
// concurrently. It runs nothing by itself and needs no Close; its listeners do.
type Edge struct {
	credentials *trust.Credentials
	log         *slog.Logger
	metrics     *metrics
	refusals    refusals
	breakers    *breakers
	occupants   *occupants
	handshakes  *handshakes
	computing   gate
}

// New returns an Edge.
func New(o Options) *Edge {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Edge{
		credentials: o.Credentials,
		log:         o.Logger,
		breakers:    newBreakers(),
		occupants:   newOccupants(),
		handshakes:  newHandshakes(cmp.Or(o.MaxHandshakes, 512)),
		computing:   make(gate, max(1, runtime.GOMAXPROCS(0)/2)),
	}
	e.metrics = newMetrics(o.Registerer, e.breakers)
	return e
}

// gate bounds how many handshakes compute at a time.
type gate chan struct{}

func (g gate) enter() { g <- struct{}{} }
func (g gate) leave() { <-g }
