package lease

import (
	"cmp"
	"slices"
)

// gateways is how many workers of other colos a colo asks.
const gateways = 8

// Candidate is a worker of another colo that has pieces of the snapshot.
type Candidate struct {
	Name, Colo string
	Complete   bool // it has all
}

// Gateways returns which workers of other colos a colo asks: those that have
// all before others, otherwise pseudo-randomly but the same ones for all of the colo,
// so that its leases hold at them, and of as many colos as possible. Its time is linear in the candidates.
func Gateways(colo string, candidates []Candidate) []string {
	type ranked struct {
		name     string
		complete bool
		score    uint64
		round    int // how many of its colo come before
	}
	before := func(a, b ranked) int {
		if a.round != b.round {
			return cmp.Compare(a.round, b.round)
		}
		if a.complete != b.complete {
			if a.complete {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.score, b.score)
	}
	insert := func(list []ranked, r ranked) []ranked {
		at, _ := slices.BinarySearchFunc(list, r, before)
		if at == gateways {
			return list
		}
		list = slices.Insert(list, at, r)
		return list[:min(len(list), gateways)]
	}
	own := hashName("qs-colo-v1", colo)
	colos := make(map[string][]ranked)
	for _, c := range candidates {
		colos[c.Colo] = insert(colos[c.Colo], ranked{name: c.Name, complete: c.Complete, score: score(hashName("qs-gateway-v1", c.Name), own)})
	}
	var best []ranked
	for _, list := range colos {
		for i, r := range list {
			r.round = i
			best = insert(best, r)
		}
	}
	names := make([]string, len(best))
	for i, r := range best {
		names[i] = r.name
	}
	return names
}
