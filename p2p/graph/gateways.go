package graph

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// Gateways returns up to n workers of as many other colos that the workers of a colo may ask
// for pieces that it lacks. colos are the others, by name. All workers of a colo have
// the same, so that each of them knows what it already gave to the colo; different
// colos have different ones, by rendezvous hashing, so that nobody is asked by many and a death
// concerns few.
func Gateways[T ~ID](snapshot [20]byte, colo string, colos map[string][]T, n int) []T {
	type ranked struct {
		score uint64
		among []T
	}
	best := make([]ranked, 0, n+1)
	own := seedOf(snapshot) ^ hashName(colo)
	for name, among := range colos {
		if len(among) == 0 {
			continue
		}
		r := ranked{mix(own ^ mix(hashName(name))), among}
		at, _ := slices.BinarySearchFunc(best, r, func(a, b ranked) int { return cmp.Compare(b.score, a.score) })
		if best = slices.Insert(best, at, r); len(best) > n {
			best = best[:n]
		}
	}
	gates := make([]T, len(best))
	for i, r := range best {
		gates[i] = slices.MaxFunc(r.among, func(a, b T) int {
			return cmp.Compare(mix(own^hashOf(a)), mix(own^hashOf(b)))
		})
	}
	return gates
}

func hashName(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return h.Sum64()
}
