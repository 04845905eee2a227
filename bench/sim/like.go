package sim

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/bench"
	"github.com/qs-peer/qs-peer/bench/lab"
)

// Comparison is a measured figure beside the simulated one.
type Comparison struct {
	Figure    string  `json:"figure"`
	Measured  float64 `json:"measured"`
	Simulated float64 `json:"simulated"`
}

// Difference returns by how much the simulated figure is larger, as a fraction.
func (c Comparison) Difference() float64 { return c.Simulated/c.Measured - 1 }

// Like simulates what was measured by bench.Swarm, and compares its run in the
// middle, by Last. From the measurement it takes, besides the fleet and its network, how
// long nodes need before the first of them holds a piece, and what is sent on the manager's link
// per byte of payload.
func Like(m *bench.SwarmReport, seed uint64) (*Report, []Comparison, error) {
	if len(m.Runs) == 0 {
		return nil, nil, errors.New("the result has no runs")
	}
	runs := slices.Clone(m.Runs)
	slices.SortFunc(runs, func(a, b *bench.SwarmRun) int { return cmp.Compare(a.Last, b.Last) })
	run := runs[len(runs)/2]
	o := OptionsOf(m, seed)
	o.Startup = firstPiece(run)
	if run.EgressPayload > 0 && run.EgressWire > run.EgressPayload {
		o.Overhead = run.EgressWire / run.EgressPayload
	}
	r, err := Run(o)
	if err != nil {
		return nil, nil, err
	}
	var into, simInto float64
	for c := range run.Into {
		into, simInto = max(into, run.Into[c]), max(simInto, r.Into[c])
	}
	figures := []Comparison{
		{"first, s", run.First, r.First},
		{"median, s", run.Middle, r.Middle},
		{"last, s", run.Last, r.Last},
		{"last/T*", run.Ratio, r.Ratio},
		{"egress, copies", run.EgressPayload, r.Egress},
		{"into a colo, copies", into, simInto},
	}
	return r, slices.DeleteFunc(figures, func(c Comparison) bool { return c.Measured == 0 }), nil
}

// OptionsOf returns the fleet and the network of a measurement.
func OptionsOf(m *bench.SwarmReport, seed uint64) Options {
	o := Options{
		Workers: m.Workers, Colos: m.Colos, Managers: m.Managers, Late: m.Late, Slow: m.Slow,
		Rate: lab.Rate(m.Rate), ManagerRate: lab.Rate(m.ManagerRate), Between: lab.Rate(m.Between),
		Size: m.Size, KillManager: m.ManagerKilled, Seed: seed,
	}
	if m.Killed > 0 {
		o.KillFraction = float64(m.Killed) / float64(m.Workers)
	}
	return o
}

// firstPiece returns when the first worker of a run held something.
func firstPiece(run *bench.SwarmRun) time.Duration {
	first := time.Duration(0)
	for _, n := range run.Nodes {
		for _, s := range n.Curve {
			if at := time.Duration(s.At * float64(time.Second)); s.Done > 0 && (first == 0 || at < first) {
				first = at
			}
		}
	}
	return first
}
