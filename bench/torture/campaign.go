package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// Progress is told how far a campaign is.
type Progress interface {
	Step(what string)
	Advance(done []float64) // of each fleet, from 0 to 1
	Result(what string)
}

// Options configure a campaign.
type Options struct {
	Binary  string // qs-peer
	Dir     string // where it puts a directory of its own; empty: the system's for temporary files
	Seed    uint64 // of the schedule, and of what clients do
	Count   int    // faults, all fleets together
	Fleets  int    // that are tortured at the same time
	Workers int    // of each fleet, besides its two managers
	// Every is after how many faults a fleet is left alone and checked.
	Every    int
	Progress Progress
}

// OptionError is an option that makes no sense.
type OptionError struct{ reason string }

func (e *OptionError) Error() string { return e.reason }

func (o *Options) validate() error {
	for _, n := range []struct {
		name               string
		value, least, most int
	}{
		{"--count", o.Count, 1, 1_000_000}, {"--fleets", o.Fleets, 1, 50}, {"--workers", o.Workers, 1, 50}, {"--every", o.Every, 1, 1_000_000},
	} {
		if n.value < n.least || n.value > n.most {
			return &OptionError{fmt.Sprintf("%s %d: want %d to %d", n.name, n.value, n.least, n.most)}
		}
	}
	return nil
}

// Tally counts faults of one kind.
type Tally struct {
	Tried int `json:"tried"`
	Hit   int `json:"hit"` // what was aimed at was really hit
}

// Report is what came of a campaign. Without violations everything held.
type Report struct {
	Campaign   string             `json:"campaign"`
	Seed       uint64             `json:"seed"`
	Seconds    float64            `json:"seconds"`
	Faults     int                `json:"faults"`
	Kinds      map[string]*Tally  `json:"kinds"`
	Figures    map[string]float64 `json:"figures,omitempty"`
	Rests      int                `json:"rests"` // how often a fleet came to rest and was checked
	Acked      int64              `json:"writes_acknowledged"`
	Unknown    int64              `json:"writes_unanswered"`
	Refused    int64              `json:"writes_refused"`
	Reads      int64              `json:"reads_checked"`
	Failed     int64              `json:"reads_failed"`
	Entries    uint64             `json:"entries"`
	Violations []Violation        `json:"violations"`
	// Strange are kinds of files in data directories that no campaign knows.
	Strange []string `json:"strange_files,omitempty"`
	Dir     string   `json:"dir,omitempty"` // what is kept, if there are violations
}

// fault is one thing that is done to a fleet.
type fault interface {
	// kind groups faults in the report.
	kind() string
	// inflict does it, and sees to it that the node goes on. hit says whether it was done
	// when it was meant to be.
	inflict(ctx context.Context, r *rig) (hit bool, err error)
}

type scheduler func(rng *rand.Rand, workers, count int) [][]fault

// campaign is a kind of torture.
type campaign struct {
	name string
	// schedule returns what is done to a fleet: waves of faults that are done at
	// once, count in all. It is a function of rng and the sizes alone.
	schedule scheduler
	// site makes the place of a fleet of so many nodes; nil: its nodes are at home.
	site  func(ctx context.Context, nodes int) (site, error)
	flags []string // of every node
}

// site is where a fleet is that is not at home.
type site interface {
	place(i int) fleet.Place
	close() error
}

// torture is a campaign under way.
type torture struct {
	Options
	*campaign
	dir string

	mu     sync.Mutex // guards what follows
	report *Report
	done   []float64
}

// run runs a campaign. Violations are in the report and no error.
func (c *campaign) run(ctx context.Context, o Options) (_ *Report, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o.Fleets = min(o.Fleets, o.Count)
	began := time.Now()
	t := &torture{Options: o, campaign: c, done: make([]float64, o.Fleets), report: &Report{Campaign: c.name, Seed: o.Seed, Kinds: map[string]*Tally{}, Figures: map[string]float64{}, Violations: []Violation{}}}
	if o.Dir != "" {
		if err := os.MkdirAll(o.Dir, 0o755); err != nil {
			return nil, err
		}
	}
	if t.dir, err = os.MkdirTemp(o.Dir, "qs-peer-torture-"); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil && len(t.report.Violations) > 0 {
			t.report.Dir = t.dir
			return
		}
		err = errors.Join(err, os.RemoveAll(t.dir))
	}()
	o.Progress.Step(fmt.Sprintf("%s: %d faults on %d fleets, seed %d", c.name, o.Count, o.Fleets, o.Seed))
	group, ctx := errgroup.WithContext(ctx)
	for i := range o.Fleets {
		count := o.Count / o.Fleets
		if i < o.Count%o.Fleets {
			count++
		}
		group.Go(func() error { return t.torment(ctx, i, count) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	t.report.Seconds = time.Since(began).Seconds()
	result := "nothing was lost, nothing wrong was served"
	if n := len(t.report.Violations); n > 0 {
		result = fmt.Sprintf("%d violations", n)
	}
	o.Progress.Result(result)
	return t.report, nil
}

// torment does to one fleet what its schedule says.
func (t *torture) torment(ctx context.Context, number, count int) (err error) {
	rng := rand.New(rand.NewPCG(t.Seed, uint64(number)))
	schedule := t.schedule(rng, t.Workers, count)
	dir := filepath.Join(t.dir, "fleet-"+strconv.Itoa(number+1))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var at site
	if t.site != nil {
		if at, err = t.site(ctx, 2+t.Workers); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, at.close()) }()
	}
	r, err := newRig(ctx, rigOptions{binary: t.Binary, dir: dir, seed: rng.Uint64(), workers: t.Workers, site: at, flags: t.flags})
	if err != nil {
		return fmt.Errorf("fleet %d: %w", number+1, err)
	}
	defer t.end(r)
	if over, err := t.check(ctx, r); over || err != nil { // before anything is done to it
		return err
	}
	inflicted, since := 0, 0
	for _, wave := range schedule {
		if err := t.inflict(ctx, r, wave); err != nil {
			return fmt.Errorf("fleet %d: %w", number+1, err)
		}
		inflicted, since = inflicted+len(wave), since+len(wave)
		t.advance(number, float64(inflicted)/float64(count))
		if since >= t.Every || inflicted == count {
			since = 0
			if over, err := t.check(ctx, r); over || err != nil {
				return err
			}
		}
	}
	return nil
}

// inflict does a wave of faults.
func (t *torture) inflict(ctx context.Context, r *rig, wave []fault) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, f := range wave {
		group.Go(func() error {
			r.say("%v", f)
			hit, err := f.inflict(ctx, r)
			var died *fleet.ExitError
			if errors.As(err, &died) {
				r.violate(Violation{Died, died.Name, time.Now(), fmt.Sprintf("after %v: %v", f, err)})
				err = nil
			}
			if err != nil {
				return fmt.Errorf("%v: %w", f, err)
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			t.report.Faults++
			tally := t.report.Kinds[f.kind()]
			if tally == nil {
				tally = &Tally{}
				t.report.Kinds[f.kind()] = tally
			}
			tally.Tried++
			if hit {
				tally.Hit++
			}
			return nil
		})
	}
	return group.Wait()
}

// mostWrong is how many violations a campaign goes on with.
const mostWrong = 30

// check lets a fleet come to rest and reports what is wrong. The history is kept then.
// over says that it makes no sense to go on.
func (t *torture) check(ctx context.Context, r *rig) (over bool, err error) {
	violations, history, err := r.rest(ctx)
	if err != nil {
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Rests++
	if len(violations) == 0 {
		return false, nil
	}
	t.report.Violations = append(t.report.Violations, violations...)
	over = len(t.report.Violations) > mostWrong || violations[len(violations)-1].Rule == NoRest
	r.mu.Lock()
	notes := r.notes.String()
	r.mu.Unlock()
	return over, errors.Join(
		history.save(filepath.Join(r.dir, fmt.Sprintf("history-%d.json", t.report.Rests))),
		os.WriteFile(filepath.Join(r.dir, "faults.log"), []byte(notes), 0o644))
}

// save writes a history as JSON.
func (h *History) save(name string) error {
	text, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}

// end stops a fleet and adds up what its clients did.
func (t *torture) end(r *rig) {
	r.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Acked += r.load.acked.Load()
	t.report.Unknown += r.load.unknown.Load()
	t.report.Refused += r.load.refused.Load()
	t.report.Reads += r.load.reads.Load()
	t.report.Failed += r.load.failed.Load()
	t.report.Entries += r.truth.Head().Seq
	t.report.Strange = slices.Compact(slices.Sorted(slices.Values(append(t.report.Strange, slices.Collect(maps.Keys(r.strange))...))))
	for name, v := range r.figures.values {
		if strings.HasPrefix(name, "longest ") || strings.HasPrefix(name, "most ") {
			t.report.Figures[name] = max(t.report.Figures[name], v)
		} else {
			t.report.Figures[name] += v
		}
	}
}

func (t *torture) advance(fleet int, share float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done[fleet] = share
	t.Progress.Advance(t.done)
}
