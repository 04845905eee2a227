package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

func newSnapshot() *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "snapshot [flags]",
		Short: "Mint a snapshot on a manager and publish it now",
		Long: `Snapshot has a manager write a snapshot of its data, seed it, and announce it to
the fleet. Writes go on meanwhile. If there is one at the present position
already, that is what is printed.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			s, err := c.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, s)
			}
			_, err = fmt.Fprintf(out, "snapshot at entry %d: %s, %s\n  hash      %s\n  infohash  %s\n  sha256    %s\n",
				s.Seq, term.Plural(s.Pairs, "pair"), term.Bytes(s.Size), s.Hash, s.InfoHash, s.SHA256)
			return err
		},
	}
	t.flags(cmd, time.Hour)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print {seq,hash,infohash,sha256,size,pairs} (default false)")
	return cmd
}
