// Package graph decides which nodes of a colo connect to which to exchange the
// pieces of a snapshot. It is pure, so that the simulator makes the same choices.
//
// Few nodes are all connected. Of many, each has about Degree neighbours: the nodes
// stand on Degree/2 rings, each in a pseudo-random order of its own, and everybody
// connects to the next and to the one before on every ring (Law and Siu, "Distributed construction
// of random expander networks", 2003). So both ends of a connection want it, nobody
// has many more connections than others, a join or a death concerns only the nodes next
// to it, and the graph is connected, since one ring already is.
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
)

// ID is a node's BitTorrent peer id, of which the last 8 bytes are taken for a
// hash of its name.
type ID = [20]byte

// Order returns the peers in the order in which a node should connect to them for
// a snapshot, and how many of the first it should be connected to. The others are for
// when some of those are out of reach. The node itself is not among the peers.
func Order[T ~ID](snapshot [20]byte, self T, peers []T) (order []T, want int) {
	type standing struct {
		peer T
		at   uint64 // distance in a ring's direction
	}
	seed := seedOf(snapshot)
	rings := make([][]standing, Degree/2)
	for r := range rings {
		seed = mix(seed)
		own := position(seed, self)
		ring := make([]standing, len(peers))
		for i, p := range peers {
			ring[i] = standing{p, position(seed, p) - own}
		}
		slices.SortFunc(ring, func(a, b standing) int {
			if c := cmp.Compare(a.at, b.at); c != 0 {
				return c
			}
			return slices.Compare(a.peer[:], b.peer[:])
		})
		rings[r] = ring
	}
	taken := make(map[T]bool, len(peers))
	for i := range peers {
		for _, ring := range rings {
			for _, at := range [2]int{i, len(ring) - 1 - i} {
				if p := ring[at].peer; !taken[p] {
					taken[p] = true
					order = append(order, p)
				}
			}
		}
		if i == 0 {
			want = len(order)
		}
	}
	if len(peers) < FullMesh {
		want = len(order)
	}
	return order, want
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
