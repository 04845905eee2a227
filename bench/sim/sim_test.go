package sim

import (
	"errors"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/bench"
)

// plain is a colo for which T* is 21.5 s, with as many pieces as a file of any size has.
func plain(workers int) Options {
	return Options{Workers: workers, Colos: 1, Managers: 1, Rate: 25e6 / 8, ManagerRate: 25e6 / 8, Size: 64 << 20, Seed: 1, Limit: 10 * time.Minute}
}

func run(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Run(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// atMost fails if a figure is over its bar, or impossible.
func atMost(t *testing.T, what string, got, bar, least float64) {
	t.Helper()
	if got > bar || got < least || math.IsNaN(got) {
		t.Errorf("%s: %.4f, want %v to %v", what, got, least, bar)
	}
}

// TestBars holds the simulated figures against the bars of the real ones.
func TestBars(t *testing.T) {
	for _, c := range []struct {
		name          string
		change        func(*Options)
		ratio, egress float64
	}{
		{"8 workers", func(o *Options) {}, 1.15, 1.02},
		{"24 workers", func(o *Options) { o.Workers = 24 }, 1.20, 1.02},
		{"two managers", func(o *Options) { o.Managers = 2 }, 1.15, 1.02},
		{"100 workers", func(o *Options) { o.Workers = 100 }, 1.20, 1.02},
		{"a quarter is killed", func(o *Options) { o.KillFraction = 0.25 }, 1.25, 1.10},
		{"a quarter of 24 is killed", func(o *Options) { o.Workers, o.KillFraction = 24, 0.25 }, 1.25, 1.10},
		{"one of two managers is killed", func(o *Options) { o.Managers, o.LoseManager = 2, true }, 1.25, 1.15},
		{"the manager is killed after a copy", func(o *Options) { o.KillManager = true }, 1.30, 1.02},
		{"one is slow", func(o *Options) { o.Slow = 1 }, 1.20, 1.10},
		{"twelve colos before a fast manager", func(o *Options) {
			o.Workers, o.Colos, o.ManagerRate, o.Size = 120, 12, 10*o.Rate, 32<<20
		}, 1.50, 1.20},
		{"two colos, thin links", func(o *Options) {
			o.Colos, o.Between = 2, o.Rate/5
		}, 1.20, 2.1},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := plain(8)
			c.change(&o)
			r := run(t, o)
			t.Logf("last/T* %.3f (%s), egress %.3f, into %.3f, wasted %.2f, %d own, %d takeovers, %d hedges, %d refused",
				r.Ratio, r.Formula, r.Egress, r.Into, r.Wasted, r.Own, r.Takeover, r.Hedge, r.Refused)
			atMost(t, "last/T*", r.Ratio, c.ratio, 1)
			atMost(t, "egress", r.Egress, c.egress, 0.99)
			if o.Between > 0 {
				for _, copies := range r.Into {
					atMost(t, "into a colo", copies, 1.05, 1)
				}
			}
		})
	}
}

func TestLateJoiner(t *testing.T) {
	o := plain(8)
	o.Late = 1
	r := run(t, o)
	atMost(t, "late/(F/d)", r.LateRatio, 1.2, 1)
	atMost(t, "last/T*", r.Ratio, 1.15, 1)
}

// TestSlowSpoilsNobody compares with the same fleet without the slow one.
func TestSlowSpoilsNobody(t *testing.T) {
	o := plain(8)
	without := run(t, o)
	o.Workers, o.Slow = 9, 1
	with := run(t, o)
	atMost(t, "the others' last", with.Last/without.Last, 1.05, 0.9)
	if with.SlowLast < 10*with.Least {
		t.Errorf("the slow one had everything after %.1f s", with.SlowLast)
	}
}

// TestSeeds: a seed gives one result, and the results do not hang on the seed.
func TestSeeds(t *testing.T) {
	o := plain(24)
	first := run(t, o)
	second := run(t, o)
	first.Wall, second.Wall = 0, 0
	if !reflect.DeepEqual(first, second) {
		t.Errorf("one seed, two results:\n%+v\n%+v", first, second)
	}
	o.Seed = 2
	other := run(t, o)
	if other.Last == first.Last {
		t.Error("two seeds, one result")
	}
	atMost(t, "another seed", other.Last/first.Last, 1.03, 0.97)
}

func TestOptions(t *testing.T) {
	for flag, change := range map[string]func(*Options){
		"workers":        func(o *Options) { o.Workers = 0 },
		"colos":          func(o *Options) { o.Colos = 9 },
		"managers":       func(o *Options) { o.Managers = 0 },
		"join-late":      func(o *Options) { o.Late = -1 },
		"slow":           func(o *Options) { o.Slow = 8 },
		"rate":           func(o *Options) { o.Rate = 0 },
		"manager-rate":   func(o *Options) { o.ManagerRate = -1 },
		"intercolo-rate": func(o *Options) { o.Between = -1 },
		"size":           func(o *Options) { o.Size = 0 },
		"kill-fraction":  func(o *Options) { o.KillFraction = 1 },
		"lose-manager":   func(o *Options) { o.LoseManager = true },
		"latency":        func(o *Options) { o.Latency = time.Minute },
	} {
		o := plain(8)
		change(&o)
		var wrong *bench.OptionError
		if _, err := Run(o); !errors.As(err, &wrong) || wrong.Flag != flag {
			t.Errorf("want --%s refused, got %v", flag, err)
		}
	}
}

// TestAgenda takes events in order of time, and of one time in order of arrival.
func TestAgenda(t *testing.T) {
	var q agenda
	for i := range int32(1000) {
		q.add(time.Duration(mix(uint64(i))%50), look, i, 0)
	}
	var last event
	for i := range 1000 {
		e, ok := q.next()
		if !ok || i > 0 && !last.before(&e) {
			t.Fatalf("event %d: %+v after %+v", i, e, last)
		}
		last = e
	}
	if _, ok := q.next(); ok {
		t.Error("more events than were added")
	}
}

// TestLinkRates: a worker alone gets its file at the rate of the links, and no faster.
func TestLinkRates(t *testing.T) {
	o := plain(1)
	r := run(t, o)
	atMost(t, "alone", r.Ratio/bench.FrameOverhead, 1.02, 1)
	o.ManagerRate *= 10
	r = run(t, o)
	atMost(t, "alone, before a fast manager", r.Ratio/bench.FrameOverhead, 1.02, 1)
	o.Workers, o.Colos, o.Between = 2, 2, o.Rate/2
	r = run(t, o)
	atMost(t, "thin links", r.Ratio/bench.FrameOverhead, 1.02, 1)
}

func BenchmarkRun(b *testing.B) {
	for b.Loop() {
		if _, err := Run(plain(100)); err != nil {
			b.Fatal(err)
		}
	}
}
