package benchview

import (
	"fmt"
	"strings"

	"github.com/qs-peer/qs-peer/bench"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// against compares us with the contenders: a table, and under it how they were run
// and what went wrong.
func against(r *bench.SwarmReport, colours bool) []string {
	if len(r.Against) == 0 {
		return nil
	}
	t := &term.Table{Header: []string{"", ">median complete", ">last", ">worst"}}
	if r.Least > 0 {
		t.Header = append(t.Header, ">last / T*", ">worst")
	}
	t.Header = append(t.Header, ">source sent", ">in frames", ">CPU-s/GB", "")
	row := func(style term.Style, name string, median, worst bench.ContenderFigures, note string) {
		cells := []string{name, fmt.Sprintf("%.2fs", median.Middle), fmt.Sprintf("%.2fs", median.Last), fmt.Sprintf("%.2fs", worst.Last)}
		if r.Least > 0 {
			cells = append(cells, fmt.Sprintf("%.3f", median.Ratio), fmt.Sprintf("%.3f", worst.Ratio))
		}
		payload := "unknown"
		if median.EgressPayload > 0 {
			payload = fmt.Sprintf("%.3f", median.EgressPayload)
		}
		cells = append(cells, payload, fmt.Sprintf("%.3f", median.EgressWire), fmt.Sprintf("%.2f", median.CPU))
		if median.Last == 0 {
			for i := range cells[1:] {
				cells[1+i] = "-"
			}
		}
		var line []term.Cell
		for _, text := range append(cells, note) {
			line = append(line, term.Cell{Text: text, Style: style})
		}
		t.Rows = append(t.Rows, line)
	}
	row(term.Bold, "qs-peer", ours(&r.Median), ours(&r.Worst), "")
	var notes []string
	for _, c := range r.Against {
		note := c.Skip()
		if note == "" && len(c.Failures) > 0 {
			note = fmt.Sprintf("%d of %d runs failed", len(c.Failures), len(c.Failures)+len(c.Runs))
		}
		row(term.Plain, c.Name, c.Median, c.Worst, note)
		notes = append(notes, fmt.Sprintf("  %-11s %s", c.Name, c.Settings))
		for _, f := range c.Failures {
			notes = append(notes, "              failed: "+strings.ReplaceAll(f, "\n", "\n              "))
		}
	}
	lines := append([]string{"", "against others: medians and worst, copies of the file that left the source", ""}, t.Lines(colours, 0)...)
	return append(append(lines, ""), notes...)
}

// ours are the figures that contenders have too.
func ours(f *bench.SwarmFigures) bench.ContenderFigures {
	return bench.ContenderFigures{First: f.First, Middle: f.Middle, Last: f.Last, Ratio: f.Ratio,
		EgressPayload: f.EgressPayload, EgressWire: f.EgressWire, CPU: f.CPU}
}
