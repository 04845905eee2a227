package bench

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// plain is a run that makes sense.
func plain(t *testing.T) SwarmOptions {
	return SwarmOptions{Dir: t.TempDir(), Workers: 8, Managers: 1, Colos: 1, Rate: 100e6 / 8, ManagerRate: 100e6 / 8,
		Size: 8 << 20, Runs: 1, Limit: time.Minute}
}

// Each option that makes no sense is refused, by its name.
func TestValidate(t *testing.T) {
	o := plain(t)
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flag, says string
		change     func(*SwarmOptions)
	}{
		{"workers", "want 1 to 200", func(o *SwarmOptions) { o.Workers = 0 }},
		{"workers", "want 1 to 200", func(o *SwarmOptions) { o.Workers = 201 }},
		{"managers", "at least 1", func(o *SwarmOptions) { o.Managers = 0 }},
		{"managers", "at most 250 nodes", func(o *SwarmOptions) { o.Workers, o.Managers = 200, 51 }},
		{"managers", "at most 250 nodes", func(o *SwarmOptions) { o.Workers, o.JoinLate = 200, 50 }},
		{"colos", "as many as there are workers", func(o *SwarmOptions) { o.Colos = 9 }},
		{"colos", "as many as there are workers", func(o *SwarmOptions) { o.Colos = 0 }},
		{"rate", "negative", func(o *SwarmOptions) { o.Rate = -1 }},
		{"intercolo-rate", "only one colo", func(o *SwarmOptions) { o.Between = 1e6 }},
		{"size", "at least 1MiB", func(o *SwarmOptions) { o.Size = 1<<20 - 1 }},
		{"kill-fraction", "less than 1", func(o *SwarmOptions) { o.KillFraction = 1 }},
		{"kill-fraction", "less than 1", func(o *SwarmOptions) { o.KillFraction = math.NaN() }},
		{"kill-fraction", "survives", func(o *SwarmOptions) { o.KillFraction = 0.99 }},
		{"join-late", "0 or more", func(o *SwarmOptions) { o.JoinLate = -1 }},
		{"slow", "all but one", func(o *SwarmOptions) { o.Slow = 8 }},
		{"slow", "no tenth", func(o *SwarmOptions) { o.Slow, o.Rate = 1, 0 }},
		{"slow", "no other mishap", func(o *SwarmOptions) { o.Slow, o.KillManager = 1, true }},
		{"against", `unknown contender "scp": there are rsync, aria2, libtorrent, uftp, redis`, func(o *SwarmOptions) { o.Against = []string{"rsync", "scp"} }},
		{"against", "named twice", func(o *SwarmOptions) { o.Against = []string{"rsync", "rsync"} }},
		{"against", "without mishaps", func(o *SwarmOptions) { o.Against, o.KillFraction = []string{"rsync"}, 0.25 }},
		{"against", "without mishaps", func(o *SwarmOptions) { o.Against, o.KillManager = []string{"rsync"}, true }},
		{"against", "without mishaps", func(o *SwarmOptions) { o.Against, o.JoinLate = []string{"rsync"}, 1 }},
		{"against", "without mishaps", func(o *SwarmOptions) { o.Against, o.Slow = []string{"rsync"}, 1 }},
		{"against", "one source", func(o *SwarmOptions) { o.Against, o.Managers = []string{"rsync"}, 2 }},
		{"runs", "at least 1", func(o *SwarmOptions) { o.Runs = 0 }},
		{"limit", "more than 0", func(o *SwarmOptions) { o.Limit = 0 }},
		{"limit", "less than 10m44.2s (F/u_s)", func(o *SwarmOptions) { o.Size, o.ManagerRate, o.Limit = 768<<20, 10e6/8, 10*time.Minute }},
		{"limit", "less than 1m47.4s (F/d_min)", func(o *SwarmOptions) { o.Size, o.Rate, o.Slow = 8<<20, 781000, 1; o.Limit = time.Minute }},
		{"dir", "is no directory", func(o *SwarmOptions) { o.Dir += "/nowhere" }},
		{"dir", "has room for", func(o *SwarmOptions) { o.Size, o.Limit = 1<<50, math.MaxInt64; o.Rate, o.ManagerRate = 0, 0 }},
	} {
		o := plain(t)
		c.change(&o)
		var wrong *OptionError
		if err := o.Validate(); !errors.As(err, &wrong) || wrong.Flag != c.flag || !strings.Contains(wrong.Reason, c.says) {
			t.Errorf("want --%s refused with %q, got %v", c.flag, c.says, err)
		}
	}
}

// T* is about those whose times are reported.
func TestLeastIsOfThoseWhoCount(t *testing.T) {
	o := plain(t)
	full := o.least(1e6)
	o.Slow = 1
	if got := o.least(1e6); got != full {
		t.Errorf("with a slow worker T* of the others is %v, not %v", got, full)
	}
	o.Slow, o.KillFraction = 0, 0.25
	if n := o.killed(); n != 2 {
		t.Fatalf("a quarter of 8 are %d", n)
	}
	var counts []string
	for w := range o.Workers {
		counts = append(counts, o.fate(w))
	}
	if got := strings.Join(counts, ","); got != "killed,killed,,,,,," {
		t.Errorf("fates are %s", got)
	}
	// Survivors who give little: their problem has six uploads, not eight.
	o.Rate = 10
	o.ManagerRate = 1000
	want := o.fluid(1000, func(w int) bool { return w >= 2 }).Least()
	if got := o.least(1000); got != want || got.Formula != "F/d_min" {
		t.Errorf("T* of the survivors is %v, want %v", got, want)
	}
}

// Workers are dealt out to colos in turn, so that each colo loses some.
func TestColos(t *testing.T) {
	o := plain(t)
	o.Colos, o.KillFraction, o.Between = 2, 0.25, 20e6/8
	died := map[int]int{}
	for w := range o.Workers {
		if o.dies(w) {
			died[o.coloOf(w)]++
		}
	}
	if died[0] != 1 || died[1] != 1 {
		t.Errorf("killed by colo: %v", died)
	}
	if got := o.least(50e6).Formula; got != "F/l" {
		t.Errorf("T* is by %s", got)
	}
	if got := len(o.all().Colos[1]); got != 4 {
		t.Errorf("%d workers in the second colo", got)
	}
}

// The median and the worst are of each figure by itself.
func TestSummarise(t *testing.T) {
	r := &SwarmReport{Colos: 2}
	for i, last := range []float64{5, 3, 4, 9} {
		r.Runs = append(r.Runs, &SwarmRun{SwarmFigures: SwarmFigures{Last: last, CPU: float64(i), Wasted: int64(100 * i),
			Into: []float64{1, last}, IntoWire: []float64{2, 2 * last}}})
		r.Without = append(r.Without, &SwarmRun{SwarmFigures: SwarmFigures{Last: 2}})
	}
	r.summarise()
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"median last", r.Median.Last, 4.5}, {"worst last", r.Worst.Last, 9},
		{"median processor time", r.Median.CPU, 1.5}, {"worst", r.Worst.CPU, 3},
		{"wasted", float64(r.Median.Wasted), 150}, {"worst", float64(r.Worst.Wasted), 300},
		{"into the second colo", r.Median.Into[1], 4.5}, {"frames", r.Worst.IntoWire[1], 18},
		{"delay", r.Worst.Delay, 4.5}, {"the run in the middle", r.MedianRun().Last, 4},
	} {
		if c.got != c.want {
			t.Errorf("%s: %g, want %g", c.what, c.got, c.want)
		}
	}
}

func TestRates(t *testing.T) {
	for _, c := range []struct {
		rate lab.Rate
		want string
	}{{0, "unlimited"}, {100e6 / 8, "100mbit"}, {1e9 / 8, "1gbit"}, {12.5e6 / 10, "10mbit"}, {8000, "64kbit"}, {1, "8bit"}} {
		if got := c.rate.String(); got != c.want {
			t.Errorf("%d bytes/s is %s, want %s", c.rate, got, c.want)
		}
	}
}
