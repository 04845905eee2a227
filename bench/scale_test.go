package bench

import (
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
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
type figures struct{ rates, costs map[string][]float64 }

func newFigures() figures {
	return figures{make(map[string][]float64), make(map[string][]float64)}
}

// rate adds a figure of which more is better.
func (f figures) rate(unit string, value float64) { f.rates[unit] = append(f.rates[unit], value) }

// cost adds a figure of which less is better.
func (f figures) cost(unit string, value float64) { f.costs[unit] = append(f.costs[unit], value) }

func (f figures) report(b *testing.B) {
	b.Helper()
	report := func(unit string, values []float64, worst float64) {
		slices.Sort(values)
		n := len(values)
		b.ReportMetric((values[(n-1)/2]+values[n/2])/2, unit)
		if n > 1 {
			b.ReportMetric(worst, "worst-"+unit)
		}
	}
	for unit, values := range f.rates {
		report(unit, values, slices.Min(values))
	}
	for unit, values := range f.costs {
		report(unit, values, slices.Max(values))
	}
}

// processorTime returns what this process has used: on a busy machine it says
// more about the work than the time that passed.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	check(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
