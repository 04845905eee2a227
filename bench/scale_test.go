package bench

import (
	"os"
	"slices"
	"strconv"
	"testing"
)

// scaled returns n times QS_BENCH_SCALE.
func scaled(n int) int {
	scale, err := strconv.ParseFloat(os.Getenv("QS_BENCH_SCALE"), 64)
	if err != nil {
		scale = 1
	}
	return int(float64(n) * scale)
}

// figures collects what each round of a benchmark measured, and reports the
// median and the worst: on a shared machine one round says little.
type figures map[string][]float64

func (f figures) add(unit string, value float64) { f[unit] = append(f[unit], value) }

// report takes the least for the worst, as all figures here are rates.
func (f figures) report(b *testing.B) {
	b.Helper()
	for unit, values := range f {
		slices.Sort(values)
		b.ReportMetric(values[len(values)/2], unit)
		if len(values) > 1 {
			b.ReportMetric(values[0], "worst-"+unit)
		}
	}
}
