package peer

import (
	"slices"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
)

// DefaultRetainSeeds is how many nodes have to offer a snapshot for the log to reach
// back to it.
const DefaultRetainSeeds = 2

// cheapLog is how long a log may always get, in bytes, before a worker gives up the
// snapshot that it was made of.
const cheapLog = 64 << 20

// superseded returns those of a worker's snapshots that it need not keep any more.
// No live manager announces them, and
//
//   - the worker holds a newer one that it may open. What managers merely announce proves
//     nothing; or
//   - its log has become longer than the snapshot, so that to go from there is dearer
//     than to fetch a newer one, and of one that managers announce enough signatures
//     were seen (proved).
//
// Otherwise it is what this worker mends itself from, without asking anybody.
func superseded(own []*snapshot.Snapshot, offers []replica.Offer, logBytes int64, enough func(*snapshot.Snapshot) bool, proved func(replica.Offer) bool) []*snapshot.Snapshot {
	announced := map[[20]byte]bool{}
	var newest, held uint64
	for _, o := range offers {
		if o.Manager {
			announced[o.InfoHash] = true
			if proved(o) {
				newest = max(newest, o.Pos.Seq)
			}
		}
	}
	for _, s := range own {
		if enough(s) {
			held = max(held, s.Manifest.Pos.Seq)
		}
	}
	return slices.DeleteFunc(slices.Clone(own), func(s *snapshot.Snapshot) bool {
		seq, dear := s.Manifest.Pos.Seq, logBytes > max(s.Manifest.Size, cheapLog)
		return announced[s.Manifest.InfoHash] || !(seq < held || dear && seq < newest)
	})
}

// holds returns the seqs, ascending, of the snapshots for which a log is kept: this node's
// own, those that a manager offers, and those that at least seeds nodes do, or
// all others there are. Nobody can catch up here from what is before base, or is not of
// this history, so such claims hold nothing.
func holds(own []*snapshot.Snapshot, offers []replica.Offer, seeds, others int, base uint64, linked func(replica.Offer) bool) (seqs []uint64) {
	for _, s := range own {
		if seq := s.Manifest.Pos.Seq; seq >= base {
			seqs = append(seqs, seq)
		}
	}
	for _, o := range offers {
		if o.Pos.Seq < base || !o.Manager && len(o.Holders) < min(seeds, max(others, 1)) || !linked(o) {
			continue
		}
		seqs = append(seqs, o.Pos.Seq)
	}
	slices.Sort(seqs)
	return slices.Compact(seqs)
}
