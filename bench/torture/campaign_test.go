package torture

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// quietProgress is for nobody.
type quietProgress struct{}

func (quietProgress) Step(string)       {}
func (quietProgress) Advance([]float64) {}
func (quietProgress) Result(string)     {}

// TestCampaigns runs the short form of each campaign, all at once, for they wait most of
// the time: the binary is QS_PEER, and QS_SEED repeats a run.
func TestCampaigns(t *testing.T) {
	binary := os.Getenv("QS_PEER")
	if binary == "" {
		t.Skip("QS_PEER names no binary: see make torture-short")
	}
	seed := rand.Uint64N(1 << 32)
	if s := os.Getenv("QS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		count int
		run   func(context.Context, Options) (*Report, error)
	}{
		{"kill", 16, Kill}, {"damage", 12, Damage}, {"net", 4, Net},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			t.Logf("QS_SEED=%d", seed)
			report, err := c.run(t.Context(), Options{
				Binary: binary, Seed: seed, Count: c.count, Fleets: 1, Workers: 2, Every: c.count, Progress: quietProgress{},
			})
			if errors.Is(err, lab.ErrNotPermitted) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range report.Violations {
				t.Error(v)
			}
			hit := 0
			for kind, tally := range report.Kinds {
				t.Logf("%s: %d tried, %d hit", kind, tally.Tried, tally.Hit)
				hit += tally.Hit
			}
			if report.Faults != c.count || hit < c.count/2 || report.Acked == 0 || report.Reads == 0 || report.Rests < 2 {
				t.Errorf("%d of %d faults, %d hit; %d writes, %d reads, %d rests", report.Faults, c.count, hit, report.Acked, report.Reads, report.Rests)
			}
			for _, name := range report.Strange {
				t.Errorf("a node keeps %s, of which nobody says how it is damaged, or why it is not: see fileKinds", name)
			}
			if len(report.Violations) > 0 {
				t.Logf("kept: %s", report.Dir)
			}
		})
	}
}
