package bench

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/p2p"
)

// askEvery is how often workers are asked at most which pieces they hold.
const askEvery = 50 * time.Millisecond

// oneCopyOut says whether every piece is with some worker that lives, so that
// the managers are not needed any more.
func (r *round) oneCopyOut(ctx context.Context, ih chunker.InfoHash) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var missing []bool
	for _, w := range r.workers[:r.o.Workers] {
		p, dead := w.state()
		if dead || p.Pieces == 0 {
			continue
		}
		have, err := w.have(ctx, ih, p.Pieces)
		if err != nil {
			continue // others may hold the same
		}
		if missing == nil {
			missing = slices.Repeat([]bool{true}, len(have))
		}
		for i := range have {
			missing[i] = missing[i] && !have[i]
		}
	}
	return len(missing) > 0 && !slices.Contains(missing, true)
}

// have asks a worker which pieces it holds, over its own loopback.
func (n *swarmNode) have(ctx context.Context, ih chunker.InfoHash, pieces int) ([]bool, error) {
	client := p2p.NewClient(p2p.ClientOptions{Name: "bench", Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		return n.host.Dial(ctx, "tcp", addr)
	}})
	defer client.Close()
	return client.Have(ctx, n.node.Addrs.Peer, ih, pieces)
}
