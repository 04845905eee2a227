package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

func newScrub() *cobra.Command {
	var t target
	var asJSON bool
	var parts []string
	var pace rate
	cmd := &cobra.Command{
		Use:   "scrub [flags]",
		Short: "Have a node read and verify everything it holds, now",
		Long: `Scrub has a running node read everything that it holds from the disk: every pair
of the store and their digest, every entry of the log, every piece of every snapshot;
and compare the store with the newest snapshot that it holds, in all that was not
changed since (mint). Where that is impossible the part is skipped, and why is said.
It goes on serving meanwhile. What is damaged is taken out of service and repaired
with what the node's disk or others hold; the writer's own damage is for qs-peer
restore. Nodes do this by themselves once in --scrub-every.
Exit status: 0 sound, 1 damage was found (or something could not be read), 2 usage.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			own := int64(pace)
			if !cmd.Flags().Changed("rate") {
				own = -1
			}
			progress := term.NewSpinner(cmd.Context(), cmd.ErrOrStderr(), "scrub")
			progress.Say("the node reads everything it holds")
			s, raw, err := c.Scrub(cmd.Context(), parts, own)
			progress.Done()
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), raw)
			} else {
				err = printScrubbed(cmd.OutOrStdout(), s)
			}
			if err == nil && !s.Sound {
				err = fmt.Errorf("the node at %s is not sound", c.Addr())
			}
			return err
		},
	}
	f := cmd.Flags()
	t.flags(cmd, 0)
	f.StringSliceVar(&parts, "part", nil, "read only these: store, log, snapshots, mint (default all)")
	f.Var(&pace, "rate", "read at most so fast, like 16MiB/s; 0 is no limit (default the node's --scrub-rate)")
	f.BoolVar(&asJSON, "json", false, "print {sound,parts:[{part,bytes,seconds,read,damage,skipped}]} (default false)")
	return cmd
}

func printScrubbed(w io.Writer, s *client.Scrubbed) error {
	ew := &errWriter{w: w}
	var skipped []string
	for _, p := range s.Parts {
		took := time.Duration(p.Seconds * float64(time.Second)).Round(time.Millisecond)
		ew.printf("%-10s %s, %s in %v\n", p.Part, p.Read, term.Bytes(p.Bytes), took)
		for _, d := range p.Damage {
			ew.printf("           DAMAGED: %s\n", d)
		}
		if p.Error != "" {
			ew.printf("           not read to the end: %s\n", p.Error)
		}
		if p.Skipped != "" {
			ew.printf("           skipped: %s\n", p.Skipped)
			skipped = append(skipped, p.Part)
		}
	}
	switch {
	case s.Sound && len(skipped) > 0:
		ew.printf("sound, but for what was skipped: %s\n", strings.Join(skipped, ", "))
	case s.Sound:
		ew.printf("sound\n")
	}
	return ew.err
}
