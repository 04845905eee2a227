package bench

import (
	"math"
	"slices"
	"testing"

	"github.com/qs-peer/qs-peer/bench/lab"
)

func TestLeast(t *testing.T) {
	const F = 1000 // bytes; rates are in bytes per second
	equal := func(n int, r lab.Rate) []lab.Link { return slices.Repeat([]lab.Link{{Up: r, Down: r}}, n) }
	for _, c := range []struct {
		name    string
		problem Fluid
		want    float64
		formula string
	}{
		{"all equal", Fluid{Managers: []lab.Rate{100}, Colos: [][]lab.Link{equal(8, 100)}}, 10, "F/u_s"},
		{"a slow manager", Fluid{Managers: []lab.Rate{50}, Colos: [][]lab.Link{equal(8, 100)}}, 20, "F/u_s"},
		{"two managers", Fluid{Managers: []lab.Rate{100, 100}, Colos: [][]lab.Link{equal(8, 100)}}, 10, "F/d_min"},
		{"a slow worker", Fluid{Managers: []lab.Rate{100}, Colos: [][]lab.Link{append(equal(7, 100), lab.Link{Up: 10, Down: 10})}}, 100, "F/d_min"},
		{"workers that give little", Fluid{Managers: []lab.Rate{100}, Colos: [][]lab.Link{slices.Repeat([]lab.Link{{Up: 25, Down: 100}}, 8)}}, 8 * 10. / 3, "N·F/(u_s + Σu_i)"},
		{"a fast manager alone", Fluid{Managers: []lab.Rate{1000}, Colos: [][]lab.Link{slices.Repeat([]lab.Link{{Up: 1, Down: 1000}}, 8)}}, 8000. / 1008, "N·F/(u_s + Σu_i)"},
		{"two colos, a fifth between", Fluid{Managers: []lab.Rate{100}, Colos: [][]lab.Link{equal(4, 100), equal(4, 100)}, Between: 20}, 50, "F/l"},
		{"two colos that give little", Fluid{Managers: []lab.Rate{100}, Colos: [][]lab.Link{slices.Repeat([]lab.Link{{Up: 5, Down: 100}}, 9), nil}, Between: 60}, 9000. / 105, "N_c·F/(l + Σ_c u_i)"},
		{"many colos", Fluid{Managers: []lab.Rate{100}, Colos: slices.Repeat([][]lab.Link{equal(1, 1000)}, 8), Between: 500}, 10, "F/u_s"},
		{"no limits", Fluid{Managers: []lab.Rate{0}, Colos: [][]lab.Link{equal(8, 0)}}, 0, ""},
		{"only the manager has one", Fluid{Managers: []lab.Rate{100}, Colos: [][]lab.Link{equal(8, 0)}}, 10, "F/u_s"},
		{"only workers have one", Fluid{Managers: []lab.Rate{0}, Colos: [][]lab.Link{equal(8, 100)}}, 10, "F/d_min"},
	} {
		c.problem.Size = F
		got := c.problem.Least()
		if math.Abs(got.Time.Seconds()-c.want) > 1e-6 || got.Formula != c.formula {
			t.Errorf("%s: %v by %s, want %.3fs by %s", c.name, got.Time, got.Formula, c.want, c.formula)
		}
	}
}

// The figure of the issue: 256 MiB at 100 Mbit/s are 21.5 s.
func TestLeastInTheLargest(t *testing.T) {
	f := Fluid{Size: 256 << 20, Managers: []lab.Rate{100e6 / 8}, Colos: [][]lab.Link{slices.Repeat([]lab.Link{{Up: 100e6 / 8, Down: 100e6 / 8}}, 8)}}
	if got := f.Least().Time.Seconds(); math.Abs(got-21.4748) > 1e-3 {
		t.Errorf("T* of 256 MiB at 100 Mbit/s is %.4f s", got)
	}
}
