// Package benchview shows what the bench command measures, while it runs and
// when it is done.
package benchview

import (
	"context"
	"fmt"
	"io"

	"github.com/qs-peer/qs-peer/bench"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// Progress shows on a terminal what a bench is at, elsewhere a line per step.
// It implements bench.Progress.
type Progress struct {
	ctx   context.Context
	out   io.Writer
	meter *term.Meter
}

// NewProgress shows on w.
func NewProgress(ctx context.Context, w io.Writer) *Progress { return &Progress{ctx: ctx, out: w} }

const meterSteps = 1000

// Step implements bench.Progress.
func (p *Progress) Step(what string) {
	p.Close()
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
	p.meter.Set(int64(sum/float64(len(done))*meterSteps), "%.1fs, the last at %.0f%%", p.meter.Elapsed().Seconds(), 100*least)
}

// Close takes away what is shown. It may be called twice.
func (p *Progress) Close() {
	p.meter.Done()
	p.meter = nil
}

// Print writes the report as a table.
func Print(w io.Writer, r *bench.SwarmReport) error {
	table := term.Table{Header: []string{"", ">FIRST", ">MEDIAN", ">LAST", ">LAST/T*", ">SERVING", ">EGRESS", ">USEFUL", ">WIRE", ">CPU-S/GB", ">ANON", ">WASTED"}}
	row := func(name string, f *bench.SwarmFigures) {
		cells := []term.Cell{{Text: name}}
		for _, text := range []string{
			fmt.Sprintf("%.2fs", f.First), fmt.Sprintf("%.2fs", f.Middle), fmt.Sprintf("%.2fs", f.Last),
			fmt.Sprintf("%.3f", f.Ratio), fmt.Sprintf("%.2fs", f.Serving),
			fmt.Sprintf("%.3f", f.EgressPayload), fmt.Sprintf("%.3f", f.EgressUseful), fmt.Sprintf("%.3f", f.EgressWire),
			fmt.Sprintf("%.2f", f.CPU), term.Bytes(f.Anon), term.Bytes(f.Wasted),
		} {
			cells = append(cells, term.Cell{Text: text})
		}
		table.Rows = append(table.Rows, cells)
	}
	for i, run := range r.Runs {
		row(fmt.Sprintf("run %d", i+1), &run.SwarmFigures)
	}
	row("median", &r.Median)
	row("worst", &r.Worst)
	fmt.Fprintf(w, "%s, %s, a snapshot of %s: T* = %s = %.2fs\n\n", term.Plural(r.Workers, "worker"), term.Plural(r.Managers, "manager"), term.Bytes(r.Size), r.Formula, r.Least)
	for _, line := range table.Lines(term.Colours(w), 0) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
