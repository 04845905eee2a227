package graph

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func nodes(n int) []ID {
	ids := make([]ID, n)
	for i := range ids {
		sum := sha256.Sum256(fmt.Appendf(nil, "node-%d", i))
		copy(ids[i][:], sum[:])
	}
	return ids
}

func without(ids []ID, i int) []ID {
	return slices.Delete(slices.Clone(ids), i, i+1)
}

// neighbours returns whom each node should connect to.
func neighbours(snapshot [20]byte, ids []ID) map[ID]map[ID]bool {
	g := make(map[ID]map[ID]bool)
	for i, id := range ids {
		order, want := Order(snapshot, id, without(ids, i))
		g[id] = make(map[ID]bool)
		for _, p := range order[:want] {
			g[id][p] = true
		}
	}
	return g
}

func TestOrderIsAPermutation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := nodes(rapid.IntRange(1, 60).Draw(t, "nodes"))
		order, want := Order([20]byte{1}, ids[0], ids[1:])
		if want < min(len(order), 1) || want > len(order) {
			t.Fatalf("want %d of %d", want, len(order))
		}
		slices.SortFunc(order, func(a, b ID) int { return slices.Compare(a[:], b[:]) })
		peers := slices.Clone(ids[1:])
		slices.SortFunc(peers, func(a, b ID) int { return slices.Compare(a[:], b[:]) })
		if !slices.Equal(order, peers) {
			t.Fatal("the order is not one of the peers")
		}
	})
}

// TestGraph checks what the package promises: both ends agree, degrees are bounded,
// everybody is reached.
func TestGraph(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 200).Draw(t, "nodes")
		snapshot := [20]byte{byte(rapid.Int().Draw(t, "snapshot"))}
		ids := nodes(n)
		g := neighbours(snapshot, ids)
		for a, peers := range g {
			if n <= FullMesh && len(peers) != n-1 {
				t.Fatalf("%d of %d are connected", len(peers), n-1)
			}
			if n > FullMesh && (len(peers) > Degree || len(peers) < Degree-2) {
				t.Fatalf("%d of %d nodes are neighbours", len(peers), n)
			}
			for b := range peers {
				if !g[b][a] {
					t.Fatal("only one end wants a connection")
				}
			}
		}
		reached := map[ID]bool{ids[0]: true}
		for queue := []ID{ids[0]}; len(queue) > 0; queue = queue[1:] {
			for p := range g[queue[0]] {
				if !reached[p] {
					reached[p] = true
					queue = append(queue, p)
				}
			}
		}
		if len(reached) != n {
			t.Fatalf("%d of %d reached", len(reached), n)
		}
	})
}

// TestRegular finds all but a few nodes with as many neighbours as they should have.
func TestRegular(t *testing.T) {
	for _, n := range []int{13, 16, 24, 50, 200} {
		const snapshots = 20
		short := 0
		for s := range snapshots {
			for _, peers := range neighbours([20]byte{byte(s), 1}, nodes(n)) {
				short += Degree - len(peers)
			}
		}
		if share := float64(short) / (snapshots * float64(n) * Degree); share > 0.02 {
			t.Errorf("%d nodes: %.1f%% of the connections are missing", n, 100*share)
		}
	}
}

// TestDeathIsLocal removes a node: only those next to it get new neighbours.
func TestDeathIsLocal(t *testing.T) {
	ids := nodes(100)
	before := neighbours([20]byte{7}, ids)
	after := neighbours([20]byte{7}, ids[1:])
	changed := 0
	for id, peers := range after {
		for p := range peers {
			if !before[id][p] {
				changed++
				if !before[ids[0]][id] {
					t.Fatal("a node that was not next to the dead one changed")
				}
			}
		}
	}
	if changed == 0 || changed > Degree {
		t.Fatalf("%d new connections, want 1 to %d", changed, Degree)
	}
}

// TestShort finds the graph's diameter to be that of a random one.
func TestShort(t *testing.T) {
	ids := nodes(300)
	g := neighbours([20]byte{3}, ids)
	far := map[ID]int{ids[0]: 0}
	longest := 0
	for queue := []ID{ids[0]}; len(queue) > 0; queue = queue[1:] {
		for p := range g[queue[0]] {
			if _, ok := far[p]; !ok {
				far[p] = far[queue[0]] + 1
				longest = max(longest, far[p])
				queue = append(queue, p)
			}
		}
	}
	if longest > 5 {
		t.Fatalf("%d steps between two of 300 nodes", longest)
	}
}

func BenchmarkOrder(b *testing.B) {
	ids := nodes(500)
	for b.Loop() {
		Order([20]byte{1}, ids[0], ids[1:])
	}
}
