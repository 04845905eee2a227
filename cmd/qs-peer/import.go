package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/jsonl"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

func newImport() *cobra.Command {
	var t target
	var enc codec
	var quiet, asJSON bool
	cmd := &cobra.Command{
		Use:   "import [FILE|-] [flags]",
		Short: "Write pairs from JSON Lines",
		Long: `Import reads one pair a line, {"key":"…","value":"…"}, from FILE or standard input
("-", the default), and writes them in order, in transactions of up to 10,000.
{"key":"…","delete":true} removes a key. Empty lines are skipped.

At a line that is wrong it stops, after the lines before it were written, and
says which line that is: to go on, mend the line and import from there.`,
		Args: wantArgs(0, 1, "at most one FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			in, name, size, err := openInput(cmd, args)
			if err != nil {
				return err
			}
			defer in.Close()
			ctx := cmd.Context()
			defer context.AfterFunc(ctx, func() { in.Close() })() // a read of a pipe ends no other way

			var meter *jsonl.Meter
			if !quiet {
				meter = jsonl.NewMeter(ctx, cmd.ErrOrStderr(), "import", size)
			}
			begun := time.Now()
			sum, err := jsonl.Import(ctx, c, meter.Count(in), enc.base64, meter.Acknowledged)
			meter.Done()
			if err != nil {
				if ctx.Err() != nil {
					err = errors.New("interrupted")
				}
				return fmt.Errorf("import %s: %w; %s%s", name, err, acknowledged(sum), inDoubt(err))
			}
			took := time.Since(begun)
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, struct {
					jsonl.Summary
					Seconds float64 `json:"seconds"`
				}{sum, took.Seconds()})
			}
			if quiet {
				return nil
			}
			if sum.Operations == 0 {
				_, err = fmt.Fprintln(out, "imported nothing: no pairs in "+name)
				return err
			}
			_, err = fmt.Fprintf(out, "imported %s in %s (%s/s), through entry %d\n", term.Plural(sum.Operations, "pair"),
				term.Duration(took), term.Count(uint64(float64(sum.Operations)/took.Seconds())), sum.Seq)
			return err
		},
	}
	t.flags(cmd, answerTimeout)
	enc.flags(cmd, "keys and values are base64")
	f := cmd.Flags()
	f.BoolVar(&quiet, "quiet", false, "show no progress and no summary (default false)")
	f.BoolVar(&asJSON, "json", false, "print {operations,batches,line,seq,hash,seconds} (default false)")
	return cmd
}

// acknowledged says what an import that failed has left behind.
func acknowledged(s jsonl.Summary) string {
	if s.Operations == 0 {
		return "nothing was acknowledged"
	}
	return fmt.Sprintf("acknowledged, and kept: %s through line %d (entry %d)", term.Plural(s.Operations, "pair"), s.Line, s.Seq)
}

// inDoubt warns of the batch whose answer never came, if that is how an import
// ended.
func inDoubt(err error) string {
	if errors.As(err, new(*jsonl.LineError)) || errors.As(err, new(*client.Error)) || errors.Is(err, client.ErrNoConnection) {
		return ""
	}
	return "; the batch after that may have been written too, and it does no harm to import it again"
}

// openInput opens what a command reads; size is 0 when unknown.
func openInput(cmd *cobra.Command, args []string) (in io.ReadCloser, name string, size int64, err error) {
	if len(args) == 0 || args[0] == "-" {
		in, ok := cmd.InOrStdin().(*os.File)
		if !ok {
			return io.NopCloser(cmd.InOrStdin()), "standard input", 0, nil
		}
		return in, "standard input", regularSize(in), nil
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, "", 0, err
	}
	return f, args[0], regularSize(f), nil
}

func regularSize(f *os.File) int64 {
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		return info.Size()
	}
	return 0
}
