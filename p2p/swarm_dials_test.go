package p2p

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
	"github.com/qs-peer/qs-peer/p2p/graph"
)

// TestDialsOfAFleetThatStarts: nodes that start at once, hear of each other little by little and
// need long for handshakes do not all connect to each other, nor twice.
func TestDialsOfAFleetThatStarts(t *testing.T) {
	const (
		workers = 24
		apart   = 40 * time.Millisecond // from one start to the next
		hearing = 10                    // such times at most it takes until somebody is heard of
		watched = 3500 * time.Millisecond
	)
	a, p := trusttest.New(t), newPayload(t, 1<<20)
	random := rand.New(rand.NewPCG(1, 2))
	var heard refusals
	var dials atomic.Int64
	nodes := make([]*node, workers)
	var known [workers][workers]int // from when on, by who hears and of whom
	for i := range nodes {
		nodes[i] = newNode(t, fmt.Sprint("worker-", i), false, secured(t, a, trust.RoleWorker, &heard), func(o *SwarmOptions) {
			dial := o.Dial
			o.Dial = func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
				dials.Add(1)
				time.Sleep(50*time.Millisecond + rand.N(250*time.Millisecond))
				return dial(ctx, addr, check)
			}
		})
		for j := range i {
			known[i][j], known[j][i] = i, i+1+random.IntN(hearing)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var fetches sync.WaitGroup
	defer fetches.Wait()
	defer stop()
	for tick := range workers + hearing {
		for i, n := range nodes[:min(tick+1, workers)] {
			var peers []Peer
			for j, other := range nodes {
				if j != i && known[i][j] <= tick {
					peers = append(peers, other.facts())
				}
			}
			n.SetPeers(peers)
			if i == tick {
				fetches.Go(func() { n.Fetch(ctx, p.torrent, n.path(), nil) })
			}
		}
		time.Sleep(apart)
	}
	time.Sleep(watched - (workers+hearing)*apart)

	linked := make(map[string]map[string]bool) // both ways
	for _, n := range nodes {
		linked[n.Name] = make(map[string]bool)
		for _, other := range nodes {
			if n.linksTo(peerID(other.Name)) > 0 {
				linked[n.Name][other.Name] = true
			}
		}
	}
	links := 0
	for name, to := range linked {
		links += len(to)
		if len(to) < graph.Degree-2 {
			t.Errorf("%s is connected to %d others", name, len(to))
		}
	}
	reached, edge := map[string]bool{nodes[0].Name: true}, []string{nodes[0].Name}
	for ; len(edge) > 0; edge = edge[1:] {
		for to := range linked[edge[0]] {
			if !reached[to] {
				reached[to] = true
				edge = append(edge, to)
			}
		}
	}
	if len(reached) != workers {
		t.Errorf("only %d nodes are connected to each other, be it by others", len(reached))
	}
	t.Logf("%d dials, %.1f connections a node", dials.Load(), float64(links)/workers)
	if got := dials.Load(); got > 200 {
		t.Errorf("%d dials for %d connections; %d would do", got, links/2, workers*graph.Degree/2)
	}
}
