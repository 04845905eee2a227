package peer

import (
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
)

func TestPacer(t *testing.T) {
	for nodes, every := range map[int]time.Duration{
		2: figuresEvery, figuresNodes: figuresEvery, 2 * figuresNodes: 2 * figuresEvery, 1000 * figuresNodes: figuresMost,
	} {
		testPacer(t, nodes, every)
	}
}

// testPacer tells every so often in a fleet of so many.
func testPacer(t *testing.T, nodes int, every time.Duration) {
	t.Helper()
	const fetching = string(replica.Bootstrapping)
	var p pacer
	var told gossip.Facts
	now := time.Unix(0, 0)
	for _, step := range []struct {
		name     string
		after    time.Duration
		infoHash byte
		state    string
		applied  uint64
		bytes    int64
		want     int64 // bytes told
	}{
		{"at first", time.Second, 0, fetching, 0, 0, 0},
		{"a fetch begins", 0, 1, fetching, 0, 10, 10},
		{"too early", every / 5, 1, fetching, 7, 20, 10},
		{"too early still", 3 * every / 5, 1, fetching, 8, 30, 10},
		{"in time", every / 5, 1, fetching, 8, 40, 40},
		{"the fetch ends", 0, 0, fetching, 8, 50, 50},
		{"another state", 0, 0, string(replica.Serving), 8, 60, 60},
	} {
		now = now.Add(step.after)
		f := told
		f.State, f.Fetching[0], f.Applied.Seq, f.FromOwnColo.Bytes = step.state, step.infoHash, step.applied, step.bytes
		p.pace(&f, told, nodes, now)
		told = f
		if f.FromOwnColo.Bytes != step.want || f.Applied.Seq != step.applied {
			t.Errorf("%d nodes, %s: told %d bytes at entry %d, want %d at %d", nodes, step.name, f.FromOwnColo.Bytes, f.Applied.Seq, step.want, step.applied)
		}
	}
}

func TestPeersOf(t *testing.T) {
	a, b := gossip.Announcement{InfoHash: [20]byte{1}}, gossip.Announcement{InfoHash: [20]byte{2}}
	peers := peersOf([]gossip.Member{
		{Facts: gossip.Facts{Name: "not heard yet"}},
		{Facts: gossip.Facts{Name: "m", Role: gossip.Manager, Colo: "x", SwarmAddr: "h:1", PeerAddr: "h:2", State: "serving", Snapshots: []gossip.Announcement{b, a}}},
		{Facts: gossip.Facts{Name: "w", Role: gossip.Worker, Colo: "y", SwarmAddr: "i:1", PeerAddr: "i:2", State: "repairing", Fetching: b.InfoHash}},
		{Facts: gossip.Facts{Name: "q", Role: gossip.Worker, Colo: "y", SwarmAddr: "j:1", State: "quarantined"}},
	})
	if len(peers) != 3 {
		t.Fatalf("got %+v", peers)
	}
	m, w, q := peers[0], peers[1], peers[2]
	if !m.Manager || m.Addr != "h:1" || m.PeerAddr != "h:2" || m.Colo != "x" || len(m.Holds) != 2 || m.Holds[0] != b.InfoHash || m.Repairing {
		t.Errorf("manager: %+v", m)
	}
	if w.Manager || w.Fetching != b.InfoHash || !w.Repairing || w.Holds != nil {
		t.Errorf("worker: %+v", w)
	}
	if !q.Fetching.IsZero() || q.Repairing {
		t.Errorf("quarantined: %+v", q)
	}
}
