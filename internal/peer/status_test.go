package peer

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/compare"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/txlog"
)

func TestStatusOf(t *testing.T) {
	set, other := txlog.DatasetID{1}, txlog.DatasetID{2}
	at := func(seq uint64) txlog.Pos { return txlog.Pos{Seq: seq, Hash: txlog.Hash{byte(seq)}} }
	// The writer's clock is hours away from this machine's: only differences count.
	clock := time.Now().Add(-9 * time.Hour)
	members := []gossip.Member{
		{Facts: gossip.Facts{Name: "w1", Role: gossip.Worker, Dataset: set, State: "serving", Applied: at(8), AppliedTime: clock.Add(-2 * time.Second), Head: at(9)}},
		{Facts: gossip.Facts{Name: "m1", Role: gossip.Manager, Writer: true, Dataset: set, State: "serving", Applied: at(10), AppliedTime: clock, Head: at(10), HeadTime: clock,
			Snapshots: []gossip.Announcement{{Pos: at(3), InfoHash: [20]byte{3}}, {Pos: at(7), InfoHash: [20]byte{7}}}}},
		{Facts: gossip.Facts{Name: "w2", Role: gossip.Worker, State: "bootstrapping", Progress: 0.5,
			Fetching: [20]byte{7}, FetchDone: 400, FetchTotal: 1000, FetchRate: 50,
			FromManagers: gossip.Payload{Bytes: 100, Pieces: 1}, FromOwnColo: gossip.Payload{Bytes: 200, Pieces: 2}, FromOtherColos: gossip.Payload{Bytes: 300, Pieces: 3}}},
		{Facts: gossip.Facts{Name: "w3", Role: gossip.Worker, Dataset: set, State: "serving", Applied: at(10), AppliedTime: clock}, Liveness: gossip.Failed},
		{Facts: gossip.Facts{Name: "w4", Role: gossip.Worker, Dataset: set, State: "serving"}, Liveness: gossip.Left},
	}
	s := statusOf(members, replica.Status{State: replica.CatchingUp, Upstream: "m1"}, partedFrom("m1"))
	if s.Self != "w1" || len(s.Members) != len(members) {
		t.Fatalf("got %+v", s)
	}
	for i, want := range []struct {
		state    string
		head     uint64
		lag      uint64
		seconds  float64
		snapshot uint64
	}{
		{"catching-up", 10, 2, 2, 0},
		{"serving", 10, 0, 0, 7},
		{"bootstrapping", 10, 10, 0, 0},
		{"failed", 10, 0, 0, 0},
		{"left", 10, 10, 0, 0},
	} {
		m := s.Members[i]
		if m.State != want.state || m.HeadSeq != want.head || m.LagEntries != want.lag || m.LagSeconds != want.seconds || m.SnapshotSeq != want.snapshot {
			t.Errorf("%s: got %+v, want %+v", m.Name, m, want)
		}
	}

	if s.Members[1].PartsAt != 7 || s.Members[0].PartsAt != 0 || s.Members[0].PublishStopped == "" || s.Members[1].PublishStopped != "" {
		t.Errorf("what differs: %+v", s.Members[:2])
	}
	fetcher := s.Members[2]
	if fetcher.Fetching == "" || fetcher.FetchDone != 400 || fetcher.FetchTotal != 1000 || fetcher.Rate != 50 ||
		fetcher.SecondsLeft == nil || *fetcher.SecondsLeft != 12 ||
		fetcher.BytesFromManagers != 100 || fetcher.BytesFromOwnColo != 200 || fetcher.BytesFromOtherColos != 300 || fetcher.BytesFromWorkers != 500 ||
		fetcher.PiecesFromManagers != 1 || fetcher.PiecesFromOwnColo != 2 || fetcher.PiecesFromOtherColos != 3 {
		t.Errorf("the one that fetches: %+v", fetcher)
	}
	if m := s.Members[1]; m.Fetching != "" || m.SecondsLeft != nil {
		t.Errorf("one that does not fetch: %+v", m)
	}

	// Two datasets: a member of one does not lag behind the other.
	members = append(members, gossip.Member{Facts: gossip.Facts{Name: "x", Dataset: other, Applied: at(1), Head: at(99)}})
	s = statusOf(members, replica.Status{}, partedFrom())
	if m := s.Members[1]; m.HeadSeq != 10 {
		t.Errorf("head is %d", m.HeadSeq)
	}
	if m := s.Members[2]; m.HeadSeq != 0 {
		t.Errorf("head of a node without data is %d, and there are two datasets", m.HeadSeq)
	}

	text, err := json.Marshal(s.Members[1])
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"name", "role", "colo", "state", "applied_seq", "applied_hash", "head_seq", "lag_entries", "lag_seconds",
		"snapshot_seq", "snapshot_infohash", "progress", "bytes_from_managers", "bytes_from_workers", "version",
		"fetching", "fetch_done", "fetch_total", "rate", "seconds_left", "bytes_from_own_colo", "bytes_from_other_colos",
		"pieces_from_managers", "pieces_from_own_colo", "pieces_from_other_colos"} {
		if _, ok := fields[name]; !ok {
			t.Errorf("the status has no %q", name)
		}
	}
}

// parted is a copy that differs from some others.
type parted []compare.Parting

func partedFrom(names ...string) (p parted) {
	for _, n := range names {
		p = append(p, compare.Parting{Who: n, Manager: true, Entry: 7})
	}
	return p
}

func (p parted) Partings() []compare.Parting { return p }

func (p parted) Stopped() error {
	if len(p) == 0 {
		return nil
	}
	return &compare.StoppedError{Partings: p}
}
