package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/demo"
)

func newDemo() *cobra.Command {
	var o demo.Options
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo [flags]",
		Short: "Show it all: a fleet on this machine is built, hurt, and compared",
		Long: `Demo runs a manager and workers as processes on loopback, on free ports, over mutual
TLS with certificates of an authority that it makes (see qs-peer ca). Data is
imported and a snapshot published; workers that own nothing are rebuilt from it
while writes arrive; one worker is killed and rebuilt; the manager is restarted;
and in the end all nodes' data is compared. The exit status says whether all
matched.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Workers < 1 || o.Workers > 200:
				return usagef("--workers %d: want 1 to 200", o.Workers)
			case o.Keys < 1:
				return usagef("--keys %d: want at least 1", o.Keys)
			}
			var err error
			if o.Binary, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			out := cmd.OutOrStdout()
			o.Output = out
			if asJSON {
				o.Output = cmd.ErrOrStderr()
			}
			report, err := demo.Run(cmd.Context(), o)
			if dir := (*demo.DirError)(nil); errors.As(err, &dir) {
				return &usageError{err}
			}
			if err != nil {
				return demoFailed(cmd.ErrOrStderr(), err, o.Keep)
			}
			if asJSON {
				err = printJSON(out, report)
			} else {
				err = report.Print(out)
			}
			if err == nil && !report.Matched {
				err = errors.New("the nodes do not hold the same data")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Workers, "workers", 8, "how many workers")
	f.IntVar(&o.Keys, "keys", 100_000, "how many pairs, about 150 bytes each")
	f.StringVar(&o.Dir, "dir", "", "empty or new `directory` for the nodes' data (default: a temporary one)")
	f.BoolVar(&o.TLS, "tls", true, "mutual TLS and signed snapshots, by an authority made in the directory; --tls=false goes without")
	f.BoolVar(&o.Keep, "keep", false, "leave the data, the certificates and the nodes' logs, and say how to go on with them (default false: removed)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object with all figures; progress goes to standard error (default false)")
	return cmd
}

// demoFailed returns err with a hint.
func demoFailed(w io.Writer, err error, kept bool) error {
	err = sayLastWords(w, err)
	if kept || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w (--keep leaves the nodes' logs)", err)
}
