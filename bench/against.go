package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/bench/contender"
	"github.com/qs-peer/qs-peer/bench/lab"
)

// ContenderReport is what another program did in the same runs, on networks of
// the same links.
type ContenderReport struct {
	Name     string             `json:"name"`
	Settings string             `json:"settings"`           // how it is run
	Packages []string           `json:"missing,omitempty"`  // of Debian, that it was skipped for
	Failures []string           `json:"failures,omitempty"` // runs that have no figures
	Runs     []ContenderFigures `json:"runs,omitempty"`
	Median   ContenderFigures   `json:"median"` // of each figure by itself
	Worst    ContenderFigures   `json:"worst"`
}

// ContenderFigures are what one of its runs comes to, as SwarmFigures has them.
// The clock starts when the sinks' processes do.
type ContenderFigures struct {
	First         float64 `json:"first"`
	Middle        float64 `json:"median"`
	Last          float64 `json:"last"`
	Ratio         float64 `json:"last_over_t_star,omitempty"`
	EgressPayload float64 `json:"egress_payload,omitempty"` // 0 if the program does not tell
	EgressWire    float64 `json:"egress_wire"`
	CPU           float64 `json:"cpu_seconds_per_gb"`
}

// Skip tells why there are no figures, or nothing.
func (r *ContenderReport) Skip() string {
	switch {
	case len(r.Packages) > 0:
		return "skipped: apt-get install " + strings.Join(r.Packages, " ")
	case len(r.Runs) == 0 && len(r.Failures) > 0:
		return "failed"
	}
	return ""
}

// validateAgainst refuses contenders that there are not, and runs in which they
// would have another task than our nodes.
func (o *SwarmOptions) validateAgainst() error {
	if _, err := contender.Choose(o.Against); err != nil {
		return wrong("against", "%v", err)
	}
	switch {
	case len(o.Against) == 0:
		return nil
	case o.KillFraction > 0 || o.KillManager || o.JoinLate > 0 || o.Slow > 0:
		return wrong("against", "contenders are compared without mishaps: leave out --kill-fraction, --kill-manager, --join-late and --slow")
	case o.Managers > 1:
		return wrong("against", "contenders have one source: leave out --managers")
	}
	return nil
}

// rivals are the contenders of a bench, and what they distribute.
type rivals struct {
	o       *SwarmOptions
	dir     string
	file    *contender.File
	present []*contender.Contender
	reports []*ContenderReport
}

// newRivals makes a file of size bytes for them, if there are any, in dir.
func newRivals(ctx context.Context, o *SwarmOptions, dir string, size int64) (*rivals, error) {
	chosen, err := contender.Choose(o.Against)
	if err != nil {
		return nil, err
	}
	// Their processes run in directories of their own.
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	v := &rivals{o: o, dir: dir}
	for _, c := range chosen {
		missing := c.Missing(ctx)
		report := &ContenderReport{Name: c.Name, Settings: c.Settings, Packages: missing}
		if v.reports = append(v.reports, report); missing != nil {
			o.Progress.Step(c.Name)
			o.Progress.Result(report.Skip())
			continue
		}
		v.present = append(v.present, c)
	}
	if len(v.present) == 0 {
		return v, nil
	}
	source := filepath.Join(dir, "source")
	if err := os.MkdirAll(source, 0o755); err != nil {
		return nil, err
	}
	v.file, err = contender.NewFile(source, size)
	return v, err
}

// run has each contender do one run. What goes wrong with one of them is
// reported, and does not keep the others from running.
func (v *rivals) run(ctx context.Context, title string) error {
	for _, c := range v.present {
		v.o.Progress.Step(title + ", " + c.Name)
		report := v.reports[slices.IndexFunc(v.reports, func(r *ContenderReport) bool { return r.Name == c.Name })]
		figures, err := v.measure(ctx, c)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			report.Failures = append(report.Failures, err.Error())
			v.o.Progress.Result(err.Error())
		default:
			report.Runs = append(report.Runs, *figures)
			v.o.Progress.Result(outcome(figures.Last, figures.Ratio, figures.EgressWire, "source's frames were"))
		}
	}
	return nil
}

// measure does a contender's run, on a site of its own.
func (v *rivals) measure(ctx context.Context, c *contender.Contender) (_ *ContenderFigures, err error) {
	site, err := newSite(v.o)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(v.dir, c.Name)
	defer func() { err = errors.Join(err, site.net.Close(), os.RemoveAll(dir)) }()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	before, err := site.frames()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, v.o.Limit, errLimit)
	defer cancel()
	type answer struct {
		*contender.Result
		err error
	}
	done := make(chan answer, 1)
	go func() {
		result, err := c.Run(ctx, contender.Site{Source: site.sources[0], Sinks: site.sinks, Rate: v.o.slowest(), File: v.file, Dir: dir})
		done <- answer{result, err}
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			v.look(site)
		case a := <-done:
			if a.err != nil {
				return nil, a.err
			}
			after, err := site.frames()
			if err != nil {
				return nil, err
			}
			return v.figures(a.Result, after.out-before.out), nil
		}
	}
}

// look shows what each sink has received, by the frames on its link.
func (v *rivals) look(site *site) {
	shares := make([]float64, len(site.sinks))
	for i, h := range site.sinks {
		if t, err := h.Traffic(); err == nil {
			shares[i] = min(1, float64(t.Received)/FrameOverhead/float64(v.file.Size))
		}
	}
	v.o.Progress.Advance(shares)
}

// slowest is the rate of the slowest link from the source to a sink.
func (o *SwarmOptions) slowest() (r lab.Rate) {
	for _, link := range []lab.Rate{o.Rate, o.ManagerRate, o.Between} {
		if link > 0 && (r == 0 || link < r) {
			r = link
		}
	}
	return r
}

func (v *rivals) figures(r *contender.Result, wire int64) *ContenderFigures {
	var seconds []float64
	for _, d := range r.Complete {
		seconds = append(seconds, d.Seconds())
	}
	size := float64(v.file.Size)
	f := &ContenderFigures{First: slices.Min(seconds), Middle: median(seconds), Last: slices.Max(seconds),
		EgressPayload: float64(r.Payload) / size, EgressWire: float64(wire) / size,
		CPU: r.CPU.Seconds() / (size * float64(len(r.Complete)) / 1e9)}
	if least := v.o.least(v.file.Size).Time.Seconds(); least > 0 {
		f.Ratio = f.Last / least
	}
	return f
}

// summarise makes up medians and worst values.
func (v *rivals) summarise() []*ContenderReport {
	for _, r := range v.reports {
		if len(r.Runs) > 0 {
			r.Median, r.Worst = combine(r.Runs, median), combine(r.Runs, slices.Max[[]float64])
		}
	}
	return v.reports
}

// outcome tells a run in a few words.
func outcome(last, ratio, copies float64, whose string) string {
	s := fmt.Sprintf("the last is complete after %.2fs", last)
	if ratio > 0 {
		s += fmt.Sprintf(", %.3f × T*", ratio)
	}
	return s + fmt.Sprintf("; the %s %.3f copies", whose, copies)
}
