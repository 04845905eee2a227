package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
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
is behind, its newest snapshot, and how much it received from managers, from workers
of its own colo and from those of other colos since it started. While nodes fetch a
snapshot, it shows how far each is, its rate, an estimate, and pieces by source; a
narrow terminal gets less of all this, a pipe everything. The node that was asked
is marked with *; the manager that takes the writes is called the writer.`,
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
// On a terminal that is being watched no more is shown than fits.
func showStatus(w io.Writer, s *client.Status) (int, error) {
	screen := w
	sized, watching := w.(*sized)
	if watching {
		screen = sized.on
	}
	width, height := 0, 0
	if term.Is(screen) {
		width, height = term.Size(screen)
	}
	colours := term.Colours(screen)
	var below []string
	note := func(text string, style term.Style) {
		if width > 0 {
			text = term.Clip(text, width)
		}
		if colours {
			text = style.In(text)
		}
		below = append(below, text)
	}
	if text := fetchSummary(s); text != "" {
		note(text, term.Yellow)
	}
	if me, ok := s.Me(); ok && me.Error != "" {
		note(me.Name+": "+me.Error, term.Red)
	}
	if me, ok := s.Me(); ok && me.PublishStopped != "" {
		note(me.Name+": "+me.PublishStopped, term.Red)
	}
	for _, m := range s.Members {
		if m.PartsAt > 0 {
			note(fmt.Sprintf("%s holds something else than %s from entry %d on", m.Name, s.Self, m.PartsAt), term.Red)
		}
	}
	room := height - 1 - len(below) // the cursor takes a line
	members := s.Members
	if watching && room > 2 && len(s.Members)+1 > room {
		more := len(s.Members) - (room - 2)
		members = watchFirst(s.Members, s.Self)[:room-2]
		below = slices.Insert(below, 0, fmt.Sprintf("… and %d more", more))
	}
	lines := append(statusTable(s, members, width).Lines(colours, width), below...)
	_, err := io.WriteString(w, strings.Join(lines, "\n")+"\n")
	return len(lines), err
}
