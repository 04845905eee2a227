package bench

import (
	"cmp"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// Fluid is a distribution problem of which the least possible time is known:
// every rate is in bytes per second, 0 is no limit. Nothing in it takes time but
// the links.
type Fluid struct {
	Size     int64        // F: bytes that every worker wants
	Managers []lab.Rate   // u_s: upload rates of those that hold it
	Colos    [][]lab.Link // the workers of each colo
	Between  lab.Rate     // rate of the link of each colo, each way
}

// Bound is a lower bound of the time, and which formula gave it.
type Bound struct {
	Time    time.Duration
	Formula string
}

// Least returns T*, the greatest of the lower bounds:
//
//	F/u_s                     a copy has to leave the managers
//	F/d_min                   the slowest worker has to receive it
//	N·F/(u_s + Σu_i)          all copies have to leave somebody
//	F/l                       a copy has to pass each colo's link, of rate l
//	N_c·F/(l + Σ_c u_i)       the copies of colo c pass its link or leave its workers
//	C·F/(u_s + C·l)           the copies that enter the C colos leave managers or colos
//
// The first three are T* of Kumar and Ross (Peer-assisted file distribution: the
// minimum distribution time, 2006), who show that it can be reached when bits
// flow like a fluid. The others bound it from below where colos are linked at
// limited rates; they need not be within reach together. The time is 0 where no
// link has a rate.
func (f *Fluid) Least() Bound {
	var bounds []Bound
	add := func(formula string, bytes, rate float64) {
		bounds = append(bounds, Bound{time.Duration(bytes / rate * float64(time.Second)), formula})
	}
	size := float64(f.Size)
	source, sourceFree := sum(f.Managers)
	workers, colos, all, allFree := 0, 0, source, sourceFree
	if !sourceFree {
		add("F/u_s", size, source)
	}
	for _, colo := range f.Colos {
		if len(colo) == 0 {
			continue
		}
		workers, colos = workers+len(colo), colos+1
		uploads := make([]lab.Rate, len(colo))
		for i, l := range colo {
			uploads[i] = l.Up
			if l.Down > 0 {
				add("F/d_min", size, float64(l.Down))
			}
		}
		up, free := sum(uploads)
		all, allFree = all+up, allFree || free
		if f.Between > 0 {
			add("F/l", size, float64(f.Between))
			if !free {
				add("N_c·F/(l + Σ_c u_i)", float64(len(colo))*size, float64(f.Between)+up)
			}
		}
	}
	if !allFree {
		add("N·F/(u_s + Σu_i)", float64(workers)*size, all)
	}
	if c := float64(colos); f.Between > 0 && !sourceFree {
		add("C·F/(u_s + C·l)", c*size, source+c*float64(f.Between))
	}
	if len(bounds) == 0 {
		return Bound{}
	}
	return slices.MaxFunc(bounds, func(a, b Bound) int { return cmp.Compare(a.Time, b.Time) })
}

// FrameOverhead is what the headers of Ethernet, IP and TCP (with timestamps) make
// of a payload in full frames: T* counts a link's rate as if it carried payload only.
const FrameOverhead = 1514.0 / 1448

// sum adds rates up; free says that one of them has no limit.
func sum(rates []lab.Rate) (total float64, free bool) {
	for _, r := range rates {
		total, free = total+float64(r), free || r == 0
	}
	return total, free
}
