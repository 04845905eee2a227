package peer

import (
	"cmp"
	"slices"
	"sync"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// fleet reads what the others are good for out of the gossip.
type fleet struct {
	gossip *gossip.Gossip
	colo   string

	mu  sync.Mutex // guards now
	now outlook
}

// outlook is what follows from a list of members. Many ask for it, and make it once.
type outlook struct {
	members          []gossip.Member
	others           []gossip.Member
	possible, future []replica.Offer
}

// look returns what follows from the members that there are. Nobody writes to it.
func (f *fleet) look() outlook {
	members := f.gossip.Members()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.now.members) == len(members) && &f.now.members[0] == &members[0] {
		return f.now
	}
	others := make([]gossip.Member, 0, len(members)-1)
	for _, m := range members[1:] {
		if m.Liveness == gossip.Alive {
			others = append(others, m)
		}
	}
	f.now = outlook{members: members, others: others}
	f.now.possible, f.now.future = withinHeads(offersOf(others), members[0], others)
	return f.now
}

var _ replica.Fleet = (*fleet)(nil)

// others returns the live members without this node. The caller does not write to it.
func (f *fleet) others() []gossip.Member { return f.look().others }

// Changed implements replica.Fleet.
func (f *fleet) Changed() <-chan struct{} { return f.gossip.Changed() }

// Upstreams implements replica.Fleet: everybody who holds a log that is not in
// doubt.
func (f *fleet) Upstreams() []replica.Upstream {
	var ups []replica.Upstream
	for _, m := range f.others() {
		if m.PeerAddr == "" || m.LogFirst == 0 || m.Dataset.IsZero() {
			continue
		}
		if s := replica.State(m.State); s == replica.Quarantined || s == replica.Repairing {
			continue
		}
		ups = append(ups, replica.Upstream{
			Name: m.Name, Addr: m.PeerAddr, Dataset: m.Dataset, First: m.LogFirst, Head: m.Head, HeadTime: m.HeadTime,
			Writer: isWriter(m), Manager: m.Role == gossip.Manager, Near: m.Colo == f.colo,
		})
	}
	return ups
}

// Offers implements replica.Fleet: one offer per snapshot, newest first, its
// holders managers first. Those that beyond returns are not among them.
func (f *fleet) Offers() []replica.Offer { return slices.Clone(f.look().possible) }

// beyond returns the offers of snapshots from the future: at entries that no
// manager's log holds.
func (f *fleet) beyond() []replica.Offer { return f.look().future }

// withinHeads separates offers of what exists from those beyond the heads of all
// managers of their dataset, or this node's own, which it has verified. Without any
// manager in reach nothing is known of heads, and nothing is separated: a place that
// is cut off must be able to rebuild its machines from each other, and that managers
// minted the snapshot is proved by their signatures alone.
func withinHeads(offers []replica.Offer, self gossip.Member, others []gossip.Member) (possible, future []replica.Offer) {
	heads := map[txlog.DatasetID]uint64{}
	for _, m := range others {
		if m.Role == gossip.Manager && !m.Head.IsZero() {
			heads[m.Dataset] = max(heads[m.Dataset], m.Head.Seq)
		}
	}
	for _, o := range offers {
		head, known := heads[o.Dataset]
		if o.Dataset == self.Dataset {
			head = max(head, self.Head.Seq)
		}
		if known && o.Pos.Seq > head {
			future = append(future, o)
		} else {
			possible = append(possible, o)
		}
	}
	return possible, future
}

// offersOf gathers what members announce: one offer for each claim, its holders
// managers first. Who claims something else of a snapshot than the others makes an
// offer of their own: they neither hide the others' nor lend them a holder.
func offersOf(members []gossip.Member) []replica.Offer {
	type key struct {
		dataset txlog.DatasetID
		what    gossip.Announcement
	}
	members = slices.Clone(members)
	slices.SortStableFunc(members, func(a, b gossip.Member) int {
		return cmp.Compare(roleRank(a.Role), roleRank(b.Role))
	})
	byKey := map[key]*replica.Offer{}
	for _, m := range members {
		for _, a := range m.Snapshots {
			k := key{m.Dataset, a}
			o := byKey[k]
			if o == nil {
				o = &replica.Offer{Dataset: m.Dataset, Pos: a.Pos, InfoHash: a.InfoHash, Size: a.Size}
				byKey[k] = o
			}
			o.Manager = o.Manager || m.Role == gossip.Manager
			o.Holders = append(o.Holders, replica.Holder{Name: m.Name, Addr: m.PeerAddr, Manager: m.Role == gossip.Manager})
		}
	}
	offers := make([]replica.Offer, 0, len(byKey))
	for _, o := range byKey {
		offers = append(offers, *o)
	}
	slices.SortFunc(offers, func(a, b replica.Offer) int {
		return cmp.Or(cmp.Compare(b.Pos.Seq, a.Pos.Seq), cmp.Compare(a.InfoHash.String(), b.InfoHash.String()), cmp.Compare(a.Size, b.Size))
	})
	return offers
}

func roleRank(r gossip.Role) int {
	if r == gossip.Manager {
		return 0
	}
	return 1
}

// isWriter reports whether a member takes writes: a worker may claim so, but is
// not believed.
func isWriter(m gossip.Member) bool { return m.Writer && m.Role == gossip.Manager }

// writer returns the live manager that takes writes for a dataset.
func (f *fleet) writer(dataset txlog.DatasetID) (gossip.Member, bool) {
	for _, m := range f.others() {
		if isWriter(m) && (dataset.IsZero() || m.Dataset == dataset) {
			return m, true
		}
	}
	return gossip.Member{}, false
}

// swarmPeers returns whom the swarm may connect to.
func (f *fleet) swarmPeers() []p2p.Peer { return peersOf(f.others()) }

func peersOf(members []gossip.Member) []p2p.Peer {
	var peers []p2p.Peer
	for _, m := range members {
		if m.SwarmAddr == "" {
			continue
		}
		p := p2p.Peer{
			Name: m.Name, Addr: m.SwarmAddr, PeerAddr: m.PeerAddr, Colo: m.Colo, Manager: m.Role == gossip.Manager,
			Fetching: m.Fetching, Repairing: replica.State(m.State) == replica.Repairing,
		}
		for _, a := range m.Snapshots {
			p.Holds = append(p.Holds, a.InfoHash)
		}
		peers = append(peers, p)
	}
	return peers
}
