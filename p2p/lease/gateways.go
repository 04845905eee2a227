package lease

import (
	"cmp"
	"slices"
)

// gateways is how many workers of other colos a colo asks.
const gateways = 4

// Candidate is a worker of another colo that has pieces of the snapshot.
type Candidate struct {
	Name, Colo string
	Complete   bool // it has all
}

// Gateways returns which workers of other colos a colo asks: those that have
// all before others, otherwise pseudo-randomly but the same ones for all of the colo,
// so that its leases hold at them, and of as many colos as possible.
func Gateways(colo string, candidates []Candidate) []string {
	type ranked struct {
		Candidate
		score uint64
		round int // how many of its colo come before
	}
	own := hashName("qs-colo-v1", colo)
	all := make([]ranked, 0, len(candidates))
	for _, c := range candidates {
		all = append(all, ranked{Candidate: c, score: score(hashName("qs-gateway-v1", c.Name), own)})
	}
	less := func(a, b ranked) int {
		if a.Complete != b.Complete {
			if a.Complete {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.score, b.score)
	}
	slices.SortFunc(all, less)
	rounds := make(map[string]int)
	for i := range all {
		all[i].round = rounds[all[i].Colo]
		rounds[all[i].Colo]++
	}
	slices.SortStableFunc(all, func(a, b ranked) int { return cmp.Compare(a.round, b.round) })
	var names []string
	for _, c := range all[:min(gateways, len(all))] {
		names = append(names, c.Name)
	}
	return names
}
