package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/verify"
	"github.com/qs-peer/qs-peer/internal/signing"
)

func newVerify() *cobra.Command {
	var data, trusted string
	var need int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify --data DIR [flags]",
		Short: "Check a stopped node's data directory",
		Long: `Verify reads everything in the data directory of a node that is not running: every
entry of the log and its link to the one before, every page of the store, every
piece of every snapshot, every signed head; and compares them with each other. With
--trusted-keys signatures are verified, and every snapshot has to be signed. Evidence
of a fork is reported. It changes nothing.
Exit status: 0 sound, 1 not sound (or in use), 2 usage.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if data == "" {
				return usagef("--data is missing: which directory is to be checked?")
			}
			o := verify.Options{Need: max(need, 1)}
			switch {
			case need < 0 || need > 0 && trusted == "":
				return usagef("--require-signatures %d: want 1 or more, of those in --trusted-keys", need)
			case trusted != "":
				var err error
				if o.Trusted, err = signing.LoadTrusted(trusted); err != nil {
					return &usageError{fmt.Errorf("--trusted-keys: %w", err)}
				}
			}
			// What runs is shown where nobody mistakes it for a result.
			progress := term.NewSpinner(cmd.Context(), cmd.ErrOrStderr(), "verify")
			o.Step = progress.Say
			report, err := verify.Dir(cmd.Context(), data, o)
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
	f.StringVar(&trusted, "trusted-keys", "", "`file` of the keys of which some have to have signed each snapshot (default none: signatures are not looked at)")
	f.IntVar(&need, "require-signatures", 0, "how many of them (default 1 with --trusted-keys)")
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
		signed := ""
		if len(s.SignedBy) > 0 {
			signed = ", signed by " + strings.Join(s.SignedBy, " and ")
		}
		ew.printf("snapshot  entry %d, %s, %s, infohash %s%s: %s\n", s.Seq, term.Plural(s.Pairs, "pair"), term.Bytes(s.Bytes), s.InfoHash, signed, sound)
	}
	if h := r.Heads; h != nil {
		if h.Count > 0 {
			ew.printf("heads     %s, the newest of entry %d at %s\n", term.Plural(h.Count, "signed head"), h.Newest, h.Signed)
		}
		if h.Strange > 0 {
			ew.printf("          %s by none of the trusted keys\n", term.Plural(h.Strange, "signed head"))
		}
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
