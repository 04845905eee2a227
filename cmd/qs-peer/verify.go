package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/verify"
)

func newVerify() *cobra.Command {
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify --data DIR [flags]",
		Short: "Check a stopped node's data directory",
		Long: `Verify reads everything in the data directory of a node that is not running: every
entry of the log and its link to the one before, every page of the store, every
piece of every snapshot; and compares them with each other. It changes nothing.
Exit status: 0 sound, 1 not sound (or in use), 2 usage.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if data == "" {
				return usagef("--data is missing: which directory is to be checked?")
			}
			// What runs is shown where nobody mistakes it for a result.
			progress := term.NewSpinner(cmd.Context(), cmd.ErrOrStderr(), "verify")
			report, err := verify.Dir(cmd.Context(), data, progress.Say)
			progress.Done()
			if errors.Is(err, verify.ErrNoData) {
				return &usageError{err}
			}
			if err != nil {
				return fmt.Errorf("verify: %w", err)
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = printVerified(cmd.OutOrStdout(), report)
			}
			if err == nil && !report.Sound {
				err = fmt.Errorf("%s is not sound: %s", data, term.Plural(len(report.Findings), "finding"))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "data `directory` (required)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object (default false)")
	return cmd
}

func printVerified(w io.Writer, r *verify.Report) error {
	ew := &errWriter{w: w}
	if r.Name != "" {
		ew.printf("node      %s, a %s, dataset %s\n", r.Name, r.Role, dash(r.Dataset, r.Dataset == ""))
	}
	if l := r.Log; l == nil {
		ew.printf("log       none\n")
	} else {
		held := fmt.Sprintf("entries %d to %d", l.First, l.Head)
		if l.Entries == 0 {
			held = fmt.Sprintf("no entries after %d", l.Head)
		}
		ew.printf("log       %s in %s, %s\n", held, term.Plural(l.Segments, "segment"), term.Bytes(l.Bytes))
		if l.TornTail > 0 {
			ew.printf("          %d bytes at the end were torn by a crash, never acknowledged, and will be cut off\n", l.TornTail)
		}
	}
	if s := r.Store; s == nil {
		ew.printf("store     none\n")
	} else {
		ew.printf("store     entry %d, %s, %s, %s of which %d free\n", s.Applied,
			term.Plural(s.Pairs, "pair"), term.Bytes(s.Bytes), term.Plural(s.Pages, "page"), s.FreePages)
	}
	for _, s := range r.Snapshots {
		sound := "sound"
		if !s.Sound {
			sound = "NOT SOUND"
		}
		ew.printf("snapshot  entry %d, %s, %s, infohash %s: %s\n", s.Seq, term.Plural(s.Pairs, "pair"), term.Bytes(s.Bytes), s.InfoHash, sound)
	}
	for _, f := range r.Findings {
		ew.printf("FINDING   %s\n", f)
	}
	if r.Sound {
		ew.printf("sound\n")
	}
	return ew.err
}

// errWriter keeps the first error of a row of prints.
type errWriter struct {
	w   io.Writer
	err error
}

func (e *errWriter) printf(format string, args ...any) {
	if e.err == nil {
		_, e.err = fmt.Fprintf(e.w, format, args...)
	}
}
