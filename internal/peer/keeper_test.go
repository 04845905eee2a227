package peer

import (
	"fmt"
	"slices"
	"testing"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/txlog"
)

func testPos(seq uint64) txlog.Pos { return txlog.Pos{Seq: seq, Hash: txlog.Hash{byte(seq)}} }

// own makes snapshots at seqs, newest first.
func own(seqs ...uint64) (snaps []*snapshot.Snapshot) {
	for _, seq := range seqs {
		snaps = append(snaps, &snapshot.Snapshot{Manifest: snapshot.Manifest{Pos: testPos(seq), InfoHash: chunker.InfoHash{byte(seq)}}})
	}
	return snaps
}

// offered makes offers at seqs; a negative one is by a worker only.
func offered(seqs ...int) (offers []replica.Offer) {
	for _, s := range seqs {
		seq := uint64(max(s, -s))
		offers = append(offers, replica.Offer{Pos: testPos(seq), InfoHash: chunker.InfoHash{byte(seq)}, Manager: s > 0})
	}
	return offers
}

func seqsOf(snaps []*snapshot.Snapshot) string {
	seqs := []uint64{}
	for _, s := range snaps {
		seqs = append(seqs, s.Manifest.Pos.Seq)
	}
	return fmt.Sprint(seqs)
}

func TestSuperseded(t *testing.T) {
	all := func(replica.Offer) bool { return true }
	none := func(replica.Offer) bool { return false }
	signed := func(*snapshot.Snapshot) bool { return true }
	for _, tt := range []struct {
		name   string
		own    []*snapshot.Snapshot
		offers []replica.Offer
		log    int64
		proved func(replica.Offer) bool
		want   string
	}{
		{"announced", own(5, 3), offered(5, 3), 1 << 40, all, "[]"},
		{"a newer one is here, and managers gave it up", own(7, 3), offered(7), 0, none, "[3]"},
		{"a newer one is here, managers hold both", own(7, 3), offered(7, 3), 0, none, "[]"},
		{"managers announce a newer one", own(3), offered(7, 5), 0, all, "[]"},
		{"and the log became long", own(3), offered(7, 5), cheapLog + 1, all, "[3]"},
		{"but nobody saw signatures", own(3), offered(7, 5), 1 << 40, none, "[]"},
		{"only workers announce a newer one", own(3), offered(-7), 1 << 40, all, "[]"},
		{"nobody else", own(3), nil, 1 << 40, all, "[]"},
		{"managers are behind", own(5), offered(3), 1 << 40, all, "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := seqsOf(superseded(tt.own, tt.offers, tt.log, signed, tt.proved)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	lacking := func(*snapshot.Snapshot) bool { return false }
	if got := seqsOf(superseded(own(7, 3), nil, 0, lacking, none)); got != "[]" {
		t.Errorf("%s went for one that lacks signatures", got)
	}
}

func TestConflicts(t *testing.T) {
	wrong := offered(5)
	wrong[0].InfoHash[19] = 1
	for _, tt := range []struct {
		name   string
		own    []*snapshot.Snapshot
		offers []replica.Offer
		want   int
	}{
		{"all the same", own(5, 3), offered(5, 3, 7), 0},
		{"another than ours", own(5), append(offered(3), wrong...), 1},
		{"another than another's", own(3), append(offered(5), wrong...), 1},
		{"nothing known", nil, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := conflicts(tt.own, tt.offers); len(got) != tt.want {
				t.Errorf("got %v, want %d", got, tt.want)
			}
		})
	}
}

// How far back the log reaches.
func TestTrimFloor(t *testing.T) {
	by := func(offers []replica.Offer, n int) []replica.Offer {
		for i := range offers {
			offers[i].Holders = make([]replica.Holder, n)
		}
		return offers
	}
	for _, tt := range []struct {
		name   string
		own    []*snapshot.Snapshot
		offers []replica.Offer
		others int
		base   uint64
		want   string
	}{
		{"no snapshot", nil, nil, 5, 0, "[]"},
		{"own", own(5, 3), nil, 5, 0, "[3 5]"},
		{"a manager's", own(5), by(offered(4), 1), 5, 0, "[4 5]"},
		{"enough workers'", own(5), by(offered(-2), 2), 5, 0, "[2 5]"},
		{"one worker's, true or not", own(5), by(offered(-2), 1), 5, 0, "[5]"},
		{"one worker's, and there is no other node", own(5), by(offered(-2), 1), 1, 0, "[2 5]"},
		{"others' only", nil, by(offered(6), 1), 5, 0, "[6]"},
		{"from before the log", own(5), by(offered(2, 3), 3), 5, 4, "[5]"},
		{"of another history", own(5), by(offered(4), 3), 5, 0, "[5]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			linked := func(replica.Offer) bool { return tt.name != "of another history" }
			if got := holds(tt.own, tt.offers, 2, tt.others, tt.base, linked); fmt.Sprint(got) != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		own    []*snapshot.Snapshot
		offers []replica.Offer
		want   uint64 // 0: nothing
	}{
		{"nothing here", nil, offered(5, 3), 5},
		{"the newest is here", own(5), offered(5, 3), 3},
		{"all is here", own(5, 3), offered(5, 3), 0},
		{"a newer one", own(5, 3), offered(7, 5), 7},
		{"older than what would be kept", own(7, 5), offered(3), 0},
		{"a worker's only", own(5), offered(-7), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, ok := missing(tt.own, tt.offers, 2)
			if ok != (tt.want != 0) || o.Pos.Seq != tt.want {
				t.Errorf("got %v %v, want %d", o.Pos, ok, tt.want)
			}
		})
	}
}

func TestOffersOf(t *testing.T) {
	set := txlog.DatasetID{1}
	member := func(name string, role gossip.Role, as ...gossip.Announcement) gossip.Member {
		return gossip.Member{Facts: gossip.Facts{Name: name, Role: role, PeerAddr: name + ":1", Dataset: set, Snapshots: as}}
	}
	a3 := gossip.Announcement{Pos: testPos(3), InfoHash: [20]byte{3}, Size: 30}
	a5 := gossip.Announcement{Pos: testPos(5), InfoHash: [20]byte{5}, Size: 50}
	lie := gossip.Announcement{Pos: testPos(9), InfoHash: [20]byte{5}, Size: 50}
	got := offersOf([]gossip.Member{
		member("w1", gossip.Worker, a3, a5), member("m1", gossip.Manager, a5), member("w2", gossip.Worker, lie),
	})
	if len(got) != 3 {
		t.Fatalf("got %+v", got)
	}
	// A false claim gets no holder of the true one, and takes none away.
	if o := got[0]; o.Pos != lie.Pos || fmt.Sprint(o.Holders) != "[w2 at w2:1]" || o.Manager {
		t.Errorf("the lie is %+v", o)
	}
	if o := got[1]; o.Pos != a5.Pos || fmt.Sprint(o.Holders) != "[m1 at m1:1 w1 at w1:1]" || !o.Manager || o.Size != 50 || o.Dataset != set {
		t.Errorf("second is %+v", o)
	}
	if o := got[2]; o.Pos != a3.Pos || o.Manager {
		t.Errorf("third is %+v", o)
	}
}

// A false claim of a snapshot, whosever, is an offer of its own: it neither hides
// the true one nor has its holders.
func TestFalseClaim(t *testing.T) {
	member := func(name string, role gossip.Role, size int64) gossip.Member {
		return gossip.Member{Facts: gossip.Facts{
			Name: name, Role: role, PeerAddr: name + ":1", Dataset: txlog.DatasetID{1},
			Snapshots: []gossip.Announcement{{Pos: testPos(5), InfoHash: [20]byte{5}, Size: size}},
		}}
	}
	for name, c := range map[string]struct {
		members []gossip.Member
		want    string // the true one's holders
	}{
		"a manager's":   {[]gossip.Member{member("a", gossip.Manager, 51), member("m", gossip.Manager, 50), member("w", gossip.Worker, 50)}, "[m at m:1 w at w:1]"},
		"many workers'": {[]gossip.Member{member("a", gossip.Worker, 51), member("b", gossip.Worker, 51), member("m", gossip.Manager, 50)}, "[m at m:1]"},
	} {
		t.Run(name, func(t *testing.T) {
			got := offersOf(c.members)
			if len(got) != 2 || got[0].Size != 50 || got[1].Size != 51 {
				t.Fatalf("got %+v", got)
			}
			if holders := fmt.Sprint(got[0].Holders); holders != c.want {
				t.Errorf("its holders are %s", holders)
			}
		})
	}
}

// A snapshot beyond all managers' heads is not offered; without managers in reach
// everything is.
func TestWithinHeads(t *testing.T) {
	set, otherSet := txlog.DatasetID{1}, txlog.DatasetID{2}
	member := func(role gossip.Role, dataset txlog.DatasetID, head uint64) gossip.Member {
		m := gossip.Member{Facts: gossip.Facts{Role: role, Dataset: dataset}}
		if head > 0 {
			m.Head = testPos(head)
		}
		return m
	}
	for _, tt := range []struct {
		name   string
		self   gossip.Member
		others []gossip.Member
		want   string
	}{
		{"a manager is as far", member(gossip.Worker, set, 0), []gossip.Member{member(gossip.Manager, set, 9)}, "[9 5 3]"},
		{"one of the managers is", member(gossip.Worker, set, 0), []gossip.Member{member(gossip.Manager, set, 2), member(gossip.Manager, set, 9)}, "[9 5 3]"},
		{"managers are behind", member(gossip.Worker, set, 0), []gossip.Member{member(gossip.Manager, set, 5)}, "[5 3]"},
		{"a worker claims more", member(gossip.Worker, set, 0), []gossip.Member{member(gossip.Manager, set, 5), member(gossip.Worker, set, 9)}, "[5 3]"},
		{"its own log is as far", member(gossip.Worker, set, 9), []gossip.Member{member(gossip.Manager, set, 5)}, "[9 5 3]"},
		{"its own log is another's", member(gossip.Worker, otherSet, 9), []gossip.Member{member(gossip.Manager, set, 5)}, "[5 3]"},
		{"a manager that holds nothing yet", member(gossip.Worker, set, 0), []gossip.Member{member(gossip.Manager, set, 0)}, "[9 5 3]"},
		{"a manager of another dataset", member(gossip.Worker, set, 0), []gossip.Member{member(gossip.Manager, otherSet, 5)}, "[9 5 3]"},
		{"no manager in reach", member(gossip.Worker, set, 3), []gossip.Member{member(gossip.Worker, set, 3)}, "[9 5 3]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			offers := offered(9, 5, 3)
			for i := range offers {
				offers[i].Dataset = set
			}
			possible, future := withinHeads(offers, tt.self, tt.others)
			seqs := []uint64{}
			for _, o := range possible {
				seqs = append(seqs, o.Pos.Seq)
			}
			if got := fmt.Sprint(seqs); got != tt.want || len(possible)+len(future) != 3 {
				t.Errorf("possible are %s and %d are not, want %s", got, len(future), tt.want)
			}
		})
	}
}

// A manager never gives up the newest snapshot that others may open.
func TestSurplus(t *testing.T) {
	for _, tt := range []struct {
		name   string
		own    []*snapshot.Snapshot
		enough []uint64 // seqs of those that are signed enough
		want   string
	}{
		{"all signed", own(9, 7, 5, 3), []uint64{9, 7, 5, 3}, "[5 3]"},
		{"the newest are not", own(9, 7, 5, 3), []uint64{5, 3}, "[3]"},
		{"only the oldest is", own(9, 7, 5, 3), []uint64{3}, "[5]"},
		{"none is", own(9, 7, 5), nil, "[5]"},
		{"few", own(9), nil, "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := seqsOf(surplus(tt.own, 2, func(s *snapshot.Snapshot) bool { return slices.Contains(tt.enough, s.Manifest.Pos.Seq) }))
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// The log is trimmed only up to what somebody can begin with.
func TestMayTrim(t *testing.T) {
	r := newRig(t, 2)
	note := func(names ...string) *snapshot.Snapshot {
		return &snapshot.Snapshot{Manifest: r.truth.Manifest, Note: r.signedAs(&r.truth.Manifest, names...)}
	}
	held := func(managers, workers int) []replica.Offer {
		o := replica.Offer{}
		for i := range managers + workers {
			o.Holders = append(o.Holders, replica.Holder{Manager: i < managers})
		}
		return []replica.Offer{o}
	}
	for name, c := range map[string]struct {
		own    []*snapshot.Snapshot
		offers []replica.Offer
		want   bool
	}{
		"an own one with enough":     {own: []*snapshot.Snapshot{note("m1"), note("m1", "m2")}, want: true},
		"own ones with too few":      {own: []*snapshot.Snapshot{note("m1"), note()}},
		"two managers offer one":     {offers: held(2, 0), want: true},
		"a manager and workers":      {offers: held(1, 5)},
		"too few, and two managers'": {own: []*snapshot.Snapshot{note("m1")}, offers: held(2, 0), want: true},
		"nothing":                    {},
	} {
		if got := r.network.sigs.mayTrim(c.own, c.offers); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if !(&signatures{}).mayTrim(nil, nil) {
		t.Error("without trusted keys: false")
	}
}
