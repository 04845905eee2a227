package bench

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/p2p"
)

// event is something that happens once its time has come.
type event struct {
	what string
	due  func(held) bool
	do   func()
}

// held is what the workers that are there from the start have together.
type held struct {
	share float64 // mean, from 0 to 1
	all   bool    // they all have begun
}

func act(plot []event, h held) (rest []event) {
	for _, e := range plot {
		if e.due(h) {
			e.do()
		} else {
			rest = append(rest, e)
		}
	}
	return rest
}

// plot returns what is to happen in this run.
func (r *round) plot(ctx context.Context, snap *minted, run func(*swarmNode)) (plot []event) {
	half := func(h held) bool { return h.all && h.share >= 0.5 }
	if r.o.killed() > 0 {
		plot = append(plot, event{"to kill workers", half, func() {
			for _, w := range r.workers[:r.o.Workers] {
				if r.o.dies(w.number) {
					w.kill()
				}
			}
		}})
	}
	if r.o.JoinLate > 0 {
		plot = append(plot, event{"for a worker to join", half, func() {
			for _, w := range r.workers[r.o.Workers:] {
				run(w)
			}
		}})
	}
	if r.o.KillManager {
		ih, _ := chunker.ParseInfoHash(snap.InfoHash) // as a node wrote it
		var asked time.Time
		plot = append(plot, event{"to kill the managers", func(h held) bool {
			if h.share < 0.5 || time.Since(asked) < askEvery {
				return false
			}
			asked = time.Now()
			return r.oneCopyOut(ctx, ih)
		}, func() {
			for _, m := range r.managers {
				// What it counted goes with it. Should it not answer, its last word stands.
				_, _ = m.sent()
				m.kill()
			}
		}})
	}
	return plot
}

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
		have, err := w.have(ctx, r.asks, ih, p.Pieces)
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
func (n *swarmNode) have(ctx context.Context, creds *trust.Credentials, ih chunker.InfoHash, pieces int) ([]bool, error) {
	client := p2p.NewClient(p2p.ClientOptions{Name: "bench", Dial: func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
		conn, err := n.host.Dial(ctx, "tcp", addr)
		if err != nil || creds == nil {
			return conn, err
		}
		return tls.Client(conn, creds.ClientConfig(check)), nil
	}})
	defer client.Close()
	return client.Have(ctx, p2p.Target{Addr: n.node.Addrs.Peer}, ih, pieces)
}
