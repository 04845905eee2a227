package p2p

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qs-peer/qs-peer/p2p/graph"
)

// TestMembersOfALargeSwarm checks who is dialled when there are too many peers
// for everybody to know everybody.
func TestMembersOfALargeSwarm(t *testing.T) {
	p := newPayload(t, 1<<10)
	n := newNode(t, "self", false)
	h, err := n.hold(t.Context(), p.torrent)
	if err != nil {
		t.Fatal(err)
	}
	defer n.settle(h, context.Canceled)
	dialled := func(workers, failures int) int {
		n.mu.Lock()
		defer n.mu.Unlock()
		clear(n.roster)
		for _, p := range []Peer{{Name: "manager", Manager: true}, {Name: "far", Colo: "elsewhere"}} {
			n.roster[peerID(p.Name)] = p
		}
		for i := range workers {
			name := fmt.Sprint("peer-", i)
			n.roster[peerID(name)] = Peer{Name: name}
		}
		now := time.Now()
		clear(h.dials)
		n.toDial(h, nil, now) // those that should dial us get time to do so
		clear(h.dials)
		for id := range n.roster {
			h.dials[id] = &dial{failures: failures}
		}
		ids := n.toDial(h, nil, now)
		for _, id := range ids {
			if p := n.roster[id]; p.Manager || p.Colo != "" {
				t.Errorf("%s is dialled, which is not of the colo's swarm", p.Name)
			}
		}
		return len(ids)
	}
	for _, workers := range []int{0, 1, 2, 11, 12, 50, 300} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			got := dialled(workers, 0)
			if workers < graph.FullMesh {
				if got != workers {
					t.Errorf("%d peers dialled", got)
				}
				return
			}
			if got > graph.Degree || got < graph.Degree-2 {
				t.Errorf("%d workers dialled, want about %d", got, graph.Degree)
			}
			// When those are out of reach, as many others are dialled too.
			if more := dialled(workers, 2); more != min(2*got, workers) {
				t.Errorf("%d workers dialled when the first %d are out of reach", more, got)
			}
		})
	}
}

// TestNetworkHidesAddresses: the client must neither ban an address that peers
// share nor trip over a connection that is closed under it.
func TestNetworkHidesAddresses(t *testing.T) {
	n := newNode(t, "self", false)
	if a, b := inboundAddr(1), inboundAddr(2); a.IP.Equal(b.IP) || !a.IP.IsPrivate() || len(a.IP) != net.IPv6len {
		t.Errorf("made-up addresses %v and %v", a, b)
	}
	if _, err := n.network.Dial(t.Context(), dialName(peerID("stranger")).String()); err == nil || !strings.Contains(err.Error(), "no longer listed") {
		t.Errorf("dialling a stranger: %v", err)
	}
	if _, err := n.network.Dial(t.Context(), "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "not a peer id") {
		t.Errorf("dialling an address: %v", err)
	}
	other := newNode(t, "other", false)
	n.SetPeers([]Peer{other.Peer, n.Peer})
	c, err := n.network.Dial(t.Context(), dialName(peerID("other")).String())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().String(); strings.Contains(got, "127.0.0.1") {
		t.Errorf("remote address %s", got)
	}
	c.Close()
	c.Close()
	if err := c.SetDeadline(time.Now()); err != nil {
		t.Errorf("deadline on a closed connection: %v", err)
	}
}

func TestPeerID(t *testing.T) {
	if got := fmt.Sprintf("%x", [20]byte(peerID("worker-1"))); got != peerIDOfWorker1 {
		t.Errorf("peer id %s, want %s: nodes of other versions would not recognise it", got, peerIDOfWorker1)
	}
}

const peerIDOfWorker1 = "2d5153303030312dc3ce0b5131407feb27d6f3c8"

func TestSwarmMetrics(t *testing.T) {
	p := newPayload(t, 1<<20)
	registry := prometheus.NewPedanticRegistry()
	manager := newNode(t, "manager", true)
	w := newNode(t, "worker", false, func(o *SwarmOptions) { o.Registerer = registry })
	introduce(t, manager, w)
	seed(t, manager, p)
	start(t, w, p).wait(t)
	want := fmt.Sprintf(`
# HELP qs_swarm_pieces_total Received pieces checked, by verdict.
# TYPE qs_swarm_pieces_total counter
qs_swarm_pieces_total{verdict="failed"} 0
qs_swarm_pieces_total{verdict="verified"} %[1]d
# HELP qs_swarm_received_bytes_total Payload received in verified pieces, by source.
# TYPE qs_swarm_received_bytes_total counter
qs_swarm_received_bytes_total{from="managers"} 1.048576e+06
qs_swarm_received_bytes_total{from="other_colos"} 0
qs_swarm_received_bytes_total{from="own_colo"} 0
# HELP qs_swarm_received_pieces_total Verified pieces, by the source that sent most of each.
# TYPE qs_swarm_received_pieces_total counter
qs_swarm_received_pieces_total{from="managers"} %[1]d
qs_swarm_received_pieces_total{from="other_colos"} 0
qs_swarm_received_pieces_total{from="own_colo"} 0
# HELP qs_swarm_torrents Torrents held, by what is done with them.
# TYPE qs_swarm_torrents gauge
qs_swarm_torrents{state="fetching"} 0
qs_swarm_torrents{state="seeding"} 1
# HELP qs_swarm_wasted_bytes_total Payload received twice or in damaged pieces.
# TYPE qs_swarm_wasted_bytes_total counter
qs_swarm_wasted_bytes_total 0
`, p.torrent.Pieces())
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "qs_swarm_pieces_total", "qs_swarm_received_bytes_total",
		"qs_swarm_received_pieces_total",
		"qs_swarm_torrents", "qs_swarm_wasted_bytes_total"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// TestRates: beyond the burst, a transfer takes as long as the rate says.
func TestRates(t *testing.T) {
	const rate = 4 << 20
	p := newPayload(t, 3<<20)
	least := time.Duration(float64(p.torrent.Size()) / rate * float64(time.Second))
	for _, c := range []struct {
		name     string
		up, down int64
	}{{"upload", rate, 0}, {"download", 0, rate}} {
		t.Run(c.name, func(t *testing.T) {
			manager := newNode(t, "manager", true, func(o *SwarmOptions) { o.Upload = limit(c.up) })
			w := newNode(t, "worker", false, func(o *SwarmOptions) { o.Download = limit(c.down) })
			introduce(t, manager, w)
			seed(t, manager, p)
			began := time.Now()
			start(t, w, p).wait(t)
			if took := time.Since(began); took < least*9/10 {
				t.Errorf("%d bytes took %v, want at least %v", p.torrent.Size(), took, least)
			}
		})
	}
}

func TestSwarmOptions(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for want, o := range map[string]SwarmOptions{
		"Name is required":     {Listener: l},
		"Listener is required": {Name: "n"},
	} {
		if _, err := NewSwarm(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want one with %q", err, want)
		}
	}
	registry := prometheus.NewRegistry()
	n := newNode(t, "n", false, func(o *SwarmOptions) { o.Registerer = registry })
	if _, err := NewSwarm(SwarmOptions{Name: "n", Listener: l, Registerer: registry}); err == nil || !strings.Contains(err.Error(), "metrics") {
		t.Errorf("two swarms with one registerer: %v", err)
	}
	n.Close()
	newNode(t, "n", false, func(o *SwarmOptions) { o.Registerer = registry })
}
