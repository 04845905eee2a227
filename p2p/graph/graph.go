// Package graph decides which nodes of a colo connect to which to exchange the
// pieces of a snapshot. It is pure, so that the simulator makes the same choices.
//
// Few nodes are all connected. Of many, each has Degree neighbours (one or two fewer where a dozen nodes leave no choice): the nodes
// stand on Degree/2 rings, each in a pseudo-random order of its own, and everybody
// connects to the next and to the one before on every ring (Law and Siu, "Distributed construction
// of random expander networks", 2003). Where two nodes that are next to each other already
// would meet again on a later ring, the second trades places with the one after it: a node with
// fewer neighbours than others gets less of everybody's upload, and is the last. So both
// ends of a connection want it, a join or a death concerns few nodes, and
// the graph is connected, since one ring already is.
package graph

import (
	"cmp"
	"encoding/binary"
	"slices"
)

const (
	// FullMesh is the most nodes that are all connected to each other.
	FullMesh = 12
	// Degree is how many neighbours each of more nodes looks for. It is even.
	Degree = 8
	// FirstRing is how many of those, the first in a node's order, are enough to connect all.
	FirstRing = 2
)

// ID is a node's BitTorrent peer id, of which the last 8 bytes are taken for a
// hash of its name.
type ID = [20]byte

// Order returns the peers in the order in which a node should connect to them for
// a snapshot, and how many of the first it should be connected to. The others are for
// when some of those are out of reach. The node itself is not among the peers.
func Order[T ~ID](snapshot [20]byte, self T, peers []T) (order []T, want int) {
	all := append([]T{self}, peers...)
	rings := build(seedOf(snapshot), all)
	at := make([]int, len(rings)) // where the node stands on each
	for r, ring := range rings {
		at[r] = slices.Index(ring, 0)
	}
	taken := make([]bool, len(all))
	taken[0] = true
	for step := 1; len(order) < len(peers); step++ {
		for r, ring := range rings {
			for _, to := range [2]int{at[r] + step, at[r] - step + len(ring)} {
				if i := ring[to%len(ring)]; !taken[i] {
					taken[i] = true
					order = append(order, all[i])
				}
			}
		}
		if step == 1 {
			want = len(order)
		}
	}
	if len(all) <= FullMesh {
		want = len(order)
	}
	return order, want
}

// build returns the rings as indices of nodes. As long as there are enough of
// those, no two are next to each other on two rings.
func build[T ~ID](seed uint64, nodes []T) [Degree / 2][]int {
	var rings [Degree / 2][]int
	linked := make([][]int, len(nodes)) // by the rings before
	positions := make([]uint64, len(nodes))
	for r := range rings {
		seed = mix(seed)
		ring := make([]int, len(nodes))
		for i, n := range nodes {
			ring[i], positions[i] = i, position(seed, n)
		}
		slices.SortFunc(ring, func(a, b int) int {
			if c := cmp.Compare(positions[a], positions[b]); c != 0 {
				return c
			}
			return slices.Compare(nodes[a][:], nodes[b][:])
		})
		part(ring, linked)
		for i, a := range ring {
			b := ring[(i+1)%len(ring)]
			linked[a] = append(linked[a], b)
			linked[b] = append(linked[b], a)
		}
		rings[r] = ring
	}
	return rings
}

// part changes a ring's order so that nodes that are linked are not next to each
// other, if it can: from the first on, each linked to the one before trades places with the
// first after it that is not, and the last, which has nobody to trade with, goes
// where there is room.
func part(ring []int, linked [][]int) {
	meet := func(a, b int) bool { return slices.Contains(linked[a], b) }
	for i := 1; i < len(ring); i++ {
		for j := i; j < len(ring); j++ {
			if !meet(ring[i-1], ring[j]) {
				ring[i], ring[j] = ring[j], ring[i]
				break
			}
		}
	}
	n := len(ring)
	if n < 4 {
		return
	}
	last := ring[n-1]
	if !meet(ring[n-2], last) && !meet(last, ring[0]) || meet(ring[n-2], ring[0]) {
		return
	}
	for i := n - 2; i > 0; i-- {
		if !meet(ring[i-1], last) && !meet(last, ring[i]) {
			copy(ring[i+1:], ring[i:n-1])
			ring[i] = last
			return
		}
	}
}

// position is where a node stands on a ring.
func position[T ~ID](seed uint64, id T) uint64 {
	return mix(seed ^ hashOf(id))
}

func seedOf(snapshot [20]byte) uint64 { return binary.LittleEndian.Uint64(snapshot[:8]) }

func hashOf[T ~ID](id T) uint64 { return binary.LittleEndian.Uint64(id[len(id)-8:]) }

// mix is the finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
