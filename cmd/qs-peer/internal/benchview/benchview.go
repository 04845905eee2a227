// Package benchview shows what the bench command measures, while it runs and
// when it is done.
package benchview

import (
	"context"
	"fmt"
	"io"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// Progress shows on a terminal what a bench is at, elsewhere a line per step.
// It implements bench.Progress.
type Progress struct {
	ctx   context.Context
	out   io.Writer
	step  string
	meter *term.Meter
}

// NewProgress shows on w.
func NewProgress(ctx context.Context, w io.Writer) *Progress { return &Progress{ctx: ctx, out: w} }

const meterSteps = 1000

// Step implements bench.Progress.
func (p *Progress) Step(what string) {
	p.Close()
	p.step = what
	if term.Is(p.out) {
		p.meter = term.NewMeter(p.ctx, p.out, what, meterSteps)
		return
	}
	fmt.Fprintln(p.out, what)
}

// Advance implements bench.Progress.
func (p *Progress) Advance(done []float64) {
	if p.meter == nil || len(done) == 0 {
		return
	}
	least, sum := 1.0, 0.0
	for _, d := range done {
		least, sum = min(least, d), sum+d
	}
	note := fmt.Sprintf("%.1fs", p.meter.Elapsed().Seconds())
	if len(done) > 1 {
		note += fmt.Sprintf(", the last at %.0f%%", 100*least)
	}
	p.meter.Set(int64(sum/float64(len(done))*meterSteps), "%s", note)
}

// Result implements bench.Progress.
func (p *Progress) Result(what string) {
	p.Close()
	fmt.Fprintf(p.out, "%s: %s\n", p.step, what)
}

// Close takes away what is shown. It may be called twice.
func (p *Progress) Close() {
	p.meter.Done()
	p.meter = nil
}
