package lease

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestGateways: all workers of a colo get the same, of different colos if there
// are enough, and those that have all first.
func TestGateways(t *testing.T) {
	var all []Candidate
	for c := range 20 {
		for w := range 5 {
			all = append(all, Candidate{Name: fmt.Sprintf("w%d-%d", c, w), Colo: fmt.Sprint("c", c)})
		}
	}
	colo := make(map[string]string)
	for _, c := range all {
		colo[c.Name] = c.Colo
	}
	first := Gateways("here", all)
	used := make(map[string]bool)
	for _, name := range first {
		used[colo[name]] = true
	}
	if len(first) != gateways || len(used) != gateways {
		t.Errorf("gateways %v", first)
	}
	for range 5 {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if again := Gateways("here", all); !slices.Equal(again, first) {
			t.Errorf("in another order: %v, want %v", again, first)
		}
	}
	if there := Gateways("there", all); slices.Equal(there, first) {
		t.Error("two colos ask the same")
	}
	all[50].Complete = true
	if now := Gateways("here", all); now[0] != all[50].Name {
		t.Errorf("%v: %s has everything and is not the first", now, all[50].Name)
	}
	if two := Gateways("here", []Candidate{{Name: "a", Colo: "x"}, {Name: "b", Colo: "x"}}); len(two) != 2 {
		t.Errorf("of two workers of one colo: %v", two)
	}
	if none := Gateways("here", nil); len(none) != 0 {
		t.Errorf("of nobody: %v", none)
	}
}

// TestHomes: managers are asked for what a colo is to bring in, and for other pieces
// only when nothing comes from other colos any more, the next colo in rank first.
func TestHomes(t *testing.T) {
	p := NewPlan("w0", "c0", [20]byte{1}, 200)
	p.SetFetchers(nil, names("c", 4))
	p.SetSources([]Source{manager, {Name: "gate", Cost: 1}})
	drain := func(now time.Duration) (ranks [4]int) {
		for {
			i, _, ok := take(p, "m0", now)
			if !ok {
				return ranks
			}
			ranks[p.pieces[i].colo]++
		}
	}
	if got := drain(0); got[0] == 0 || got[1]+got[2]+got[3] > 0 {
		t.Fatalf("at first the managers are asked for pieces of ranks %v", got)
	}
	supply := settleWithin + 10*time.Second // until then other colos bring something in
	for i := range p.pieces {
		if p.pieces[i].colo > 0 {
			p.Seen(i, 1, supply)
			p.Seen(i, 0, supply)
			break
		}
	}
	if got := drain(supply + yieldFor - 1); got != [4]int{} {
		t.Fatalf("while pieces come from other colos the managers are asked for those of ranks %v", got)
	}
	if got := drain(supply + yieldFor); got[1] == 0 || got[2]+got[3] > 0 {
		t.Fatalf("then the managers are asked for pieces of ranks %v", got)
	}
	if got := drain(supply + 3*yieldFor); got[2] == 0 || got[3] == 0 || p.Missing() != 0 {
		t.Fatalf("at last for those of ranks %v, %d missing", got, p.Missing())
	}
}

// TestRipening: what another colo begins to have is left to its holder for a while.
func TestRipening(t *testing.T) {
	p := NewPlan("w0", "c0", [20]byte{1}, 100)
	p.SetFetchers(names("w", 2), names("c", 2))
	p.SetSources([]Source{{Name: "gate", Cost: 1}})
	p.Seen(0, 0, 0)
	held := make([]bool, 100)
	for i := range held {
		held[i] = true
	}
	p.Seen(0, 0, settleWithin)
	p.Holds("gate", held)
	for {
		i, why, ok := take(p, "gate", settleWithin)
		if !ok {
			break
		}
		p.Seen(i, 1, settleWithin) // the other one gets it from here
		if why != Own {
			t.Fatal("taken over at once")
		}
	}
	if _, why, ok := take(p, "gate", settleWithin+ripenFor); !ok || why != Takeover {
		t.Error("not taken over later")
	}
}
