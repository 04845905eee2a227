package sim

import (
	"slices"
	"time"
)

// Report is what a run came to. Times are in seconds of simulated time from the
// start of the first worker, copies in sizes of the snapshot. The times are about the
// workers that are there from the start, live to the end and are not slow.
type Report struct {
	Workers  int    `json:"workers"`
	Colos    int    `json:"colos"`
	Managers int    `json:"managers"`
	Size     int64  `json:"size"`
	Pieces   int    `json:"pieces"`
	Seed     uint64 `json:"seed"`

	Least   float64 `json:"t_star"`
	Formula string  `json:"t_star_is"`
	First   float64 `json:"first"`
	Middle  float64 `json:"median"`
	Last    float64 `json:"last"`
	Ratio   float64 `json:"last_over_t_star"`

	SlowLast  float64 `json:"slow_last,omitempty"`     // when the last slow worker had everything
	LateRatio float64 `json:"late_over_f_d,omitempty"` // the slowest late worker's time against F/d

	// Copies that left the managers, entered each colo (each one's, by number), came
	// from other colos on average, and were received in vain by all together.
	Egress     float64   `json:"egress"`
	Into       []float64 `json:"into_colos"`
	FromOthers float64   `json:"from_other_colos"`
	Wasted     float64   `json:"wasted"`

	// Requests to sources, by p2p/lease's reason, and how many were refused.
	Own      int64 `json:"requests_own"`
	Takeover int64 `json:"requests_takeover"`
	Hedge    int64 `json:"requests_hedge"`
	Refused  int64 `json:"requests_refused"`

	Events int64   `json:"events"`
	Wall   float64 `json:"wall_seconds"` // that the simulation took; the only figure that is not the same each time
}

// Run simulates the rebuild of a fleet. Impossible options are a *bench.OptionError.
func Run(o Options) (*Report, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	began := time.Now()
	f := newFleet(o)
	if err := f.run(); err != nil {
		return nil, err
	}
	r := f.report()
	r.Wall = time.Since(began).Seconds()
	return r, nil
}

func (f *fleet) report() *Report {
	least := f.o.least()
	r := &Report{
		Workers: f.o.Workers, Colos: f.o.Colos, Managers: f.o.Managers, Size: f.o.Size, Pieces: f.pieces, Seed: f.o.Seed,
		Least: least.Time.Seconds(), Formula: least.Formula,
		Own: f.reasons[0], Takeover: f.reasons[1], Hedge: f.reasons[2], Refused: f.refused, Events: f.events,
	}
	copies := func(pieces int64) float64 { return float64(pieces) / float64(f.pieces) }
	var times []float64
	into := make([]int64, len(f.colos))
	var others, wasted int64
	for i := range f.nodes {
		n := &f.nodes[i]
		w := i - f.o.Managers
		if w < 0 {
			r.Egress += float64(n.up.bytes) / float64(f.o.Size)
			continue
		}
		into[n.colo] += n.from[fromManagers] + n.from[fromOtherColos]
		others += n.from[fromOtherColos]
		wasted += n.wasted
		switch {
		case f.o.counts(w):
			times = append(times, n.done.Seconds())
		case f.o.slow(w):
			r.SlowLast = max(r.SlowLast, n.done.Seconds())
		case w >= f.o.Workers:
			r.LateRatio = max(r.LateRatio, (n.done-n.began).Seconds()*float64(f.o.Rate)/float64(f.o.Size))
		}
	}
	slices.Sort(times)
	r.First, r.Middle, r.Last = times[0], times[len(times)/2], times[len(times)-1]
	r.Ratio = r.Last / r.Least
	for _, pieces := range into {
		r.Into = append(r.Into, copies(pieces))
	}
	r.FromOthers, r.Wasted = copies(others)/float64(f.o.Colos), copies(wasted)
	return r
}
