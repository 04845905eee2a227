package benchview

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/qs-peer/qs-peer/bench/sim"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// PrintSim writes what bench sim found.
func PrintSim(w io.Writer, r *sim.Report) error {
	fmt.Fprintf(w, "simulated: %s in %s, %s, a snapshot of %s in %s, seed %d\n",
		term.Plural(r.Workers, "empty worker"), term.Plural(r.Colos, "colo"), term.Plural(r.Managers, "manager"),
		term.Bytes(r.Size), term.Plural(r.Pieces, "piece"), r.Seed)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(t, "  %s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	line("T*", "%.2f s = %s", r.Least, r.Formula)
	line("first, median, last", "%.2f s, %.2f s, %.2f s", r.First, r.Middle, r.Last)
	line("last/T*", "%.3f", r.Ratio)
	if r.SlowLast > 0 {
		line("last of the slow", "%.2f s", r.SlowLast)
	}
	if r.LateRatio > 0 {
		line("late, since its start", "%.3f × F/d", r.LateRatio)
	}
	line("egress of managers", "%.3f copies", r.Egress)
	into := slices.Sorted(slices.Values(r.Into))
	if len(into) == 1 {
		line("into the colo", "%.3f copies", into[0])
	} else {
		line("into each colo", "%.3f to %.3f copies, %.3f of them from other colos", into[0], into[len(into)-1], r.FromOthers)
	}
	line("received in vain", "%.3f copies by all together", r.Wasted)
	line("requests to sources", "%d own, %d takeovers, %d hedges; %d refused", r.Own, r.Takeover, r.Hedge, r.Refused)
	return t.Flush()
}

// PrintLike writes a comparison with a measurement.
func PrintLike(w io.Writer, figures []sim.Comparison) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, strings.Join([]string{"", "measured", "simulated", "difference", ""}, "\t"))
	for _, c := range figures {
		fmt.Fprintf(t, "%s\t%.3f\t%.3f\t%+.1f%%\t\n", c.Figure, c.Measured, c.Simulated, 100*c.Difference())
	}
	return t.Flush()
}
