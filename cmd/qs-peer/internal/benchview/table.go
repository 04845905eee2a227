package benchview

import (
	"fmt"
	"io"
	"strings"

	"github.com/qs-peer/qs-peer/bench"
	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// columns is how many runs get a column of their own.
const columns = 6

// PrintSwarm writes what bench swarm measured: the conditions, and a table with
// a line for each figure.
func PrintSwarm(w io.Writer, r *bench.SwarmReport) error {
	lines := conditions(r)
	lines = append(lines, "")
	lines = append(lines, swarmTable(r).Lines(term.Colours(w), 0)...)
	lines = append(lines, against(r, term.Colours(w))...)
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func conditions(r *bench.SwarmReport) []string {
	lines := []string{fmt.Sprintf("%s in %s, %s, a snapshot of %s",
		term.Plural(r.Workers, "empty worker"), term.Plural(r.Colos, "colo"), term.Plural(r.Managers, "manager"), term.Bytes(r.Size))}
	var mishaps []string
	if r.Killed > 0 {
		mishaps = append(mishaps, term.Plural(r.Killed, "worker")+" killed when all held half on average")
	}
	if r.ManagerKilled {
		mishaps = append(mishaps, "all managers killed when every piece was with some worker")
	}
	if r.Late > 0 {
		mishaps = append(mishaps, term.Plural(r.Late, "worker")+" more joined when the others held half on average")
	}
	if r.Slow > 0 {
		mishaps = append(mishaps, term.Plural(r.Slow, "worker")+" at a tenth of the rate; times are the others'")
	}
	for _, m := range mishaps {
		lines = append(lines, "  "+m)
	}
	links := "links    unlimited"
	if r.Rate > 0 || r.ManagerRate > 0 || r.Between > 0 {
		links = fmt.Sprintf("links    workers %s, managers %s, between colos %s, each way, by tbf", lab.Rate(r.Rate), lab.Rate(r.ManagerRate), lab.Rate(r.Between))
		if r.Burst > 0 {
			links += fmt.Sprintf(" (bucket %s)", term.Bytes(int64(r.Burst)))
		}
	}
	channel := "TCP without TLS"
	if r.TLS {
		channel = "mutual TLS 1.3, snapshots and log signed"
	}
	lines = append(lines, "  "+links, fmt.Sprintf("  peers    %s, %s, %d frames of 1,514 bytes at a time", channel, lab.Congestion, lab.FramesAtOnce))
	disk := "data     in " + r.Dir
	if r.Dir == bench.MemoryDir {
		disk += ", which is memory: these machines would all share one disk"
	}
	lines = append(lines, "  "+disk)
	if r.Least > 0 {
		lines = append(lines, fmt.Sprintf("  T*       %.2fs = %s; the headers of frames alone make it %.2fs", r.Least, r.Formula, r.Least*bench.FrameOverhead))
	}
	return lines
}

// swarmTable has a line for each figure that applies.
func swarmTable(r *bench.SwarmReport) *term.Table {
	t := &term.Table{Header: []string{""}}
	var figures []*bench.SwarmFigures
	column := func(name string, f *bench.SwarmFigures) {
		t.Header = append(t.Header, ">"+name)
		figures = append(figures, f)
	}
	if len(r.Runs) <= columns {
		for i, run := range r.Runs {
			column(fmt.Sprintf("run %d", i+1), &run.SwarmFigures)
		}
	}
	if len(r.Runs) > 1 {
		column("median", &r.Median)
		column("worst", &r.Worst)
	}
	line := func(style term.Style, name string, value func(*bench.SwarmFigures) string) {
		row := []term.Cell{{Text: name, Style: style}}
		for _, f := range figures {
			row = append(row, term.Cell{Text: value(f), Style: style})
		}
		t.Rows = append(t.Rows, row)
	}
	number := func(style term.Style, name, format string, value func(*bench.SwarmFigures) float64) {
		line(style, name, func(f *bench.SwarmFigures) string { return fmt.Sprintf(format, value(f)) })
	}
	bytes := func(name string, value func(*bench.SwarmFigures) int64) {
		line(term.Plain, name, func(f *bench.SwarmFigures) string { return term.Bytes(value(f)) })
	}
	type F = bench.SwarmFigures
	const s, copies = "%.2fs", "%.3f"
	number(term.Plain, "first complete", s, func(f *F) float64 { return f.First })
	number(term.Plain, "median complete", s, func(f *F) float64 { return f.Middle })
	number(term.Plain, "last complete", s, func(f *F) float64 { return f.Last })
	if r.Least > 0 {
		number(term.Bold, "last / T*", "%.3f", func(f *F) float64 { return f.Ratio })
	}
	number(term.Plain, "last serving", s, func(f *F) float64 { return f.Serving })
	if r.Late > 0 && r.Rate > 0 {
		number(term.Bold, "late, of its own F/d", "%.3f", func(f *F) float64 { return f.LateRatio })
	}
	if r.Slow > 0 {
		number(term.Bold, "others / others without it", "%.3f", func(f *F) float64 { return f.Delay })
		number(term.Plain, "slow one complete", s, func(f *F) float64 { return f.SlowLast })
	}
	number(term.Bold, "managers sent, copies", copies, func(f *F) float64 { return f.EgressPayload })
	number(term.Plain, "  of use to workers", copies, func(f *F) float64 { return f.EgressUseful })
	number(term.Plain, "  frames", copies, func(f *F) float64 { return f.EgressWire })
	for c := range r.Colos {
		if r.Colos == 1 {
			break // the same as what is of use
		}
		number(term.Plain, fmt.Sprintf("into colo %d, copies", c+1), copies, func(f *F) float64 { return f.Into[c] })
		number(term.Plain, "  frames", copies, func(f *F) float64 { return f.IntoWire[c] })
	}
	number(term.Bold, "CPU-s per GB delivered", "%.2f", func(f *F) float64 { return f.CPU })
	number(term.Plain, "processors busy", "%.0f%%", func(f *F) float64 { return 100 * f.Busy })
	number(term.Plain, "  not by nodes", "%.0f%%", func(f *F) float64 { return 100 * f.Others })
	bytes("worker: RssAnon, peak", func(f *F) int64 { return f.Anon })
	bytes("worker: VmHWM", func(f *F) int64 { return f.RSS })
	bytes("manager: RssAnon, peak", func(f *F) int64 { return f.ManagerAnon })
	bytes("manager: VmHWM", func(f *F) int64 { return f.ManagerRSS })
	bytes("wasted, all workers", func(f *F) int64 { return f.Wasted })
	return t
}
