package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// watchInterval is how often a watched status is refreshed.
const watchInterval = time.Second

func newStatus() *cobra.Command {
	var t target
	var watch, asJSON bool
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Show the whole fleet as one node sees it",
		Long: `Status shows every node: its state, the log entry it has applied and how far that
is behind, its newest snapshot, and what it fetched from whom. The node that was
asked is marked with *; the manager that takes the writes is called the writer.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			show := func(ctx context.Context, w io.Writer) (int, error) {
				s, raw, err := c.Status(ctx)
				if err != nil {
					return 0, err
				}
				if asJSON {
					return 1, printJSON(w, raw)
				}
				return showStatus(w, s)
			}
			if !watch {
				_, err := show(cmd.Context(), cmd.OutOrStdout())
				return err
			}
			return watchStatus(cmd.Context(), cmd.OutOrStdout(), show)
		},
	}
	t.flags(cmd, 10*time.Second)
	f := cmd.Flags()
	f.BoolVar(&watch, "watch", false, "refresh every second until interrupted (default false)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object, a line (default false)")
	return cmd
}

// watchStatus shows the status again and again: in place on a terminal, one
// after the other otherwise. A node that does not answer may come back; being
// interrupted is how a watch ends.
func watchStatus(ctx context.Context, w io.Writer, show func(context.Context, io.Writer) (int, error)) error {
	out := bufio.NewWriter(w)
	inPlace := term.Is(w)
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for above := 0; ; {
		var text strings.Builder
		lines, err := show(ctx, &sized{&text, w})
		if ctx.Err() != nil {
			return nil
		}
		if usage := (*usageError)(nil); errors.As(err, &usage) {
			return err
		}
		if err != nil {
			if !inPlace {
				return err
			}
			width, _ := term.Size(w)
			text.Reset()
			fmt.Fprintln(&text, term.Clip(err.Error(), width))
			lines = 1
		}
		if inPlace && above > 0 {
			fmt.Fprintf(out, "\x1b[%dA", above) // up to the first line
		}
		if inPlace {
			out.WriteString("\x1b[J") // and clear from there
			above = lines
		}
		out.WriteString(text.String())
		if err := out.Flush(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sized is a text to be shown on a terminal.
type sized struct {
	io.Writer
	on io.Writer
}

// showStatus prints the fleet as a table and returns how many lines that took.
func showStatus(w io.Writer, s *client.Status) (int, error) {
	screen := w
	if s, ok := w.(*sized); ok {
		screen = s.on
	}
	width, height := 0, 0
	if term.Is(screen) {
		width, height = term.Size(screen)
	}
	colours := term.Colours(screen)
	lines := statusTable(s).Lines(colours, width)
	if _, watching := w.(*sized); watching && height > 4 && len(lines) >= height-1 {
		more := len(lines) - (height - 3)
		lines = append(lines[:height-3], fmt.Sprintf("… and %d more", more))
	}
	if me, ok := s.Me(); ok && me.Error != "" {
		line := me.Name + ": " + me.Error
		if width > 0 {
			line = term.Clip(line, width)
		}
		if colours {
			line = term.Red.In(line)
		}
		lines = append(lines, line)
	}
	_, err := io.WriteString(w, strings.Join(lines, "\n")+"\n")
	return len(lines), err
}

func statusTable(s *client.Status) *term.Table {
	t := &term.Table{Header: []string{"NAME", "ROLE", "COLO", "STATE", ">APPLIED", ">LAG", ">SNAPSHOT", ">FROM MANAGERS", ">FROM WORKERS", "VERSION"}}
	for _, m := range s.Members {
		name := term.Cell{Text: m.Name}
		if m.Name == s.Self {
			name = term.Cell{Text: m.Name + " *", Style: term.Bold}
		}
		role := m.Role
		if m.Writer {
			role = "writer"
		}
		t.Rows = append(t.Rows, []term.Cell{
			name, {Text: role}, {Text: m.Colo}, stateCell(m),
			{Text: term.Count(m.AppliedSeq)}, lagCell(m), {Text: dash(term.Count(m.SnapshotSeq), m.SnapshotSeq == 0)},
			{Text: term.Bytes(m.BytesFromManagers)}, {Text: term.Bytes(m.BytesFromWorkers)},
			{Text: m.Version, Style: term.Dim},
		})
	}
	return t
}

// stateCell is a member's state, with a bar while it fetches.
func stateCell(m client.Member) term.Cell {
	c := term.Cell{Text: m.State, Style: stateStyle(m.State)}
	if m.State == "bootstrapping" || m.State == "repairing" {
		c.Text += fmt.Sprintf(" %s %3.0f%%", term.Bar(m.Progress, 10), 100*m.Progress)
	}
	return c
}

func stateStyle(state string) term.Style {
	switch state {
	case "serving":
		return term.Green
	case "joining", "bootstrapping", "catching-up":
		return term.Yellow
	case "quarantined", "repairing", "failed":
		return term.Red
	}
	return term.Dim
}

func lagCell(m client.Member) term.Cell {
	if m.LagEntries == 0 {
		return term.Cell{Text: "0"}
	}
	text := term.Count(m.LagEntries)
	if m.LagSeconds > 0 {
		text += " (" + term.Duration(time.Duration(m.LagSeconds*float64(time.Second))) + ")"
	}
	return term.Cell{Text: text, Style: term.Yellow}
}

func dash(text string, none bool) string {
	if none {
		return "-"
	}
	return text
}
