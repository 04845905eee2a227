package lease

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func names(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprint(prefix, i)
	}
	return list
}

// holders returns the hash of each piece's holder as a plan sees it.
func holders(p *Plan) []uint64 {
	list := make([]uint64, len(p.pieces))
	for i, pc := range p.pieces {
		list[i] = p.table.fetchers[pc.holder].hash
	}
	return list
}

// check compares what a plan keeps incrementally with what follows from the pieces.
func (p *Plan) check(t interface{ Fatalf(string, ...any) }) {
	left := make([]int, len(p.table.fetchers))
	missing := 0
	for i := range p.pieces {
		pc := &p.pieces[i]
		if pc.open() {
			left[pc.holder]++
		}
		if !pc.have {
			missing++
		}
	}
	if missing != p.missing {
		t.Fatalf("missing %d, want %d", p.missing, missing)
	}
	listed := 0
	for j, f := range p.table.fetchers {
		if f.left != left[j] {
			t.Fatalf("fetcher %d has %d left, want %d", j, f.left, left[j])
		}
		for k, i := range f.pieces {
			if int(p.pieces[i].holder) != j || k < f.from && !p.pieces[i].have {
				t.Fatalf("piece %d in the list of fetcher %d", i, j)
			}
		}
		listed += len(f.pieces)
	}
	if listed != len(p.pieces) {
		t.Fatalf("%d pieces listed of %d", listed, len(p.pieces))
	}
}

// TestHolders: whatever came before, all workers agree on who leases what, and it
// is what a worker that starts now finds.
func TestHolders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := names("w", 12)
		subset := rapid.Custom(func(t *rapid.T) []string {
			return rapid.Permutation(all).Draw(t, "order")[:rapid.IntRange(0, 12).Draw(t, "n")]
		})
		p := NewPlan("w0", "c", [20]byte{1}, 100)
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			live := subset.Draw(t, "live")
			p.Have(rapid.IntRange(0, 99).Draw(t, "have"), 0)
			p.Seen(rapid.IntRange(0, 99).Draw(t, "seen"), 1, 0)
			p.SetFetchers(live, nil)
			p.check(t)
			for _, other := range append(live, "w0") {
				q := NewPlan(other, "c", [20]byte{1}, 100)
				q.SetFetchers(append(live, "w0"), nil)
				if !slices.Equal(holders(p), holders(q)) {
					t.Fatalf("w0 and %s see different holders", other)
				}
			}
		}
	})
}

// TestOnlyASharesMoves: a join takes pieces for the one who joins, and nobody else.
func TestOnlyASharesMoves(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{2}, 1000)
	p.SetFetchers(names("w", 10), nil)
	before := holders(p)
	p.SetFetchers(names("w", 11), nil)
	joined, moved := hashName("qs-fetcher-v1", "w10"), 0
	for i, h := range holders(p) {
		if h != before[i] {
			if moved++; h != joined {
				t.Fatalf("piece %d went to somebody who was there before", i)
			}
		}
	}
	if moved < 50 || moved > 140 {
		t.Errorf("%d of 1000 pieces moved to one of 11", moved)
	}
	p.SetFetchers(names("w", 10), nil)
	if !slices.Equal(holders(p), before) {
		t.Error("a death moved more than what the dead one leased")
	}
}

func TestSharesAreEven(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{3}, 1024)
	p.SetFetchers(names("w", 8), nil)
	for j, f := range p.table.fetchers {
		if n := len(f.pieces); n < 128-40 || n > 128+40 {
			t.Errorf("fetcher %d leases %d of 1024 pieces, want about 128", j, n)
		}
	}
	home := 0
	for _, c := range names("c", 4) {
		p := NewPlan("w0", c, [20]byte{3}, 1024)
		p.SetFetchers(nil, names("c", 4))
		for i := range p.pieces {
			if p.pieces[i].colo == 0 {
				home++
			}
		}
	}
	if home != 1024 {
		t.Errorf("%d homes for 1024 pieces", home)
	}
}

func BenchmarkSetFetchers(b *testing.B) {
	for _, c := range []struct{ pieces, fetchers int }{{1024, 32}, {8192, 500}} {
		workers := names("w", c.fetchers)
		b.Run(fmt.Sprintf("%dx%d/first", c.pieces, c.fetchers), func(b *testing.B) {
			for b.Loop() {
				NewPlan("w0", "c", [20]byte{1}, c.pieces).SetFetchers(workers, nil)
			}
		})
		b.Run(fmt.Sprintf("%dx%d/join", c.pieces, c.fetchers), func(b *testing.B) {
			p := NewPlan("w0", "c", [20]byte{1}, c.pieces)
			p.SetFetchers(workers, nil)
			for n := 0; b.Loop(); n++ {
				p.SetFetchers(workers[:c.fetchers-n%2], nil)
			}
		})
		b.Run(fmt.Sprintf("%dx%d/same", c.pieces, c.fetchers), func(b *testing.B) {
			p := NewPlan("w0", "c", [20]byte{1}, c.pieces)
			for b.Loop() {
				p.SetFetchers(workers, nil)
			}
		})
	}
}
