package benchview

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/qs-peer/qs-peer/bench/torture"
)

// PrintTorture prints what came of a campaign.
func PrintTorture(w io.Writer, r *torture.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d faults in %.0f s (seed %d)\n\n", r.Campaign, r.Faults, r.Seconds, r.Seed)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\ttried\thit\t\n")
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		fmt.Fprintf(t, "%s\t%d\t%d\t\n", kind, r.Kinds[kind].Tried, r.Kinds[kind].Hit)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\nwrites: %d acknowledged, %d without an answer, %d refused; the logs have %d entries\n", r.Acked, r.Unknown, r.Refused, r.Entries)
	fmt.Fprintf(&b, "reads: %d checked, %d without an answer\n", r.Reads, r.Failed)
	for _, name := range slices.Sorted(maps.Keys(r.Figures)) {
		fmt.Fprintf(&b, "%s: %g\n", name, r.Figures[name])
	}
	fmt.Fprintf(&b, "checked at rest: %d times\n", r.Rests)
	for i, v := range r.Violations {
		if i == 20 {
			fmt.Fprintf(&b, "… and %d more\n", len(r.Violations)-i)
			break
		}
		fmt.Fprintf(&b, "VIOLATION: %s\n", v)
	}
	for _, name := range r.Strange {
		fmt.Fprintf(&b, "no campaign knows of this kind of file: %s\n", name)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
