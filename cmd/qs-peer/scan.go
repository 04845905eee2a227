package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
)

func newScan() *cobra.Command {
	var t target
	var enc codec
	var start, end string
	var r client.Range
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "scan [PREFIX] [flags]",
		Short: "Print pairs in key order",
		Long: `Scan prints the pairs whose key begins with PREFIX, or all, in key order and from
one state: the key, a tab, the value, one pair a line. Control characters and
backslashes in keys and values are escaped as in JSON.`,
		Args: wantArgs(0, 1, "at most one PREFIX"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Limit < 0 {
				return usagef("--limit %d: want 0 or more", r.Limit)
			}
			var err error
			if len(args) == 1 {
				if r.Prefix, err = enc.decode("PREFIX", args[0]); err != nil {
					return err
				}
			}
			if cmd.Flags().Changed("start") {
				if r.Start, err = enc.decode("--start", start); err != nil {
					return err
				}
			}
			if cmd.Flags().Changed("end") {
				if r.End, err = enc.decode("--end", end); err != nil {
					return err
				}
			}
			r.Base64 = enc.base64
			c, err := t.client()
			if err != nil {
				return err
			}
			body, err := c.Scan(cmd.Context(), r)
			if err != nil {
				return withBase64Hint(err)
			}
			defer body.Close()
			if asJSON {
				_, err := io.Copy(cmd.OutOrStdout(), body)
				return withBase64Hint(err)
			}
			return withBase64Hint(printPairs(cmd.OutOrStdout(), body))
		},
	}
	t.flags(cmd, answerTimeout)
	f := cmd.Flags()
	f.StringVar(&start, "start", "", "only keys from this `KEY` on (default: from the first)")
	f.StringVar(&end, "end", "", "only keys before this `KEY` (default: to the last)")
	f.BoolVar(&r.Reverse, "reverse", false, "last key first (default false)")
	f.IntVar(&r.Limit, "limit", 0, "at most so many pairs; 0 is all (default 0)")
	f.BoolVar(&asJSON, "json", false, `print JSON Lines, {"key":…,"value":…} (default false)`)
	enc.flags(cmd, "PREFIX, --start and --end are base64, and keys and values are printed so")
	return cmd
}

// printPairs prints the JSON Lines in r for people.
func printPairs(w io.Writer, r io.Reader) error {
	out := bufio.NewWriterSize(w, 64<<10)
	lines := json.NewDecoder(bufio.NewReaderSize(r, 64<<10))
	for {
		var pair struct{ Key, Value string }
		if err := lines.Decode(&pair); err != nil {
			flushed := out.Flush()
			if err == io.EOF {
				return flushed
			}
			return err
		}
		writeEscaped(out, pair.Key)
		out.WriteByte('\t')
		writeEscaped(out, pair.Value)
		if err := out.WriteByte('\n'); err != nil {
			return err
		}
	}
}

// writeEscaped writes s so that it stays on its line and moves no cursor.
func writeEscaped(w *bufio.Writer, s string) {
	for _, r := range s {
		switch {
		case r == '\n':
			w.WriteString(`\n`)
		case r == '\t':
			w.WriteString(`\t`)
		case r == '\\':
			w.WriteString(`\\`)
		case r < ' ' || 0x7f <= r && r < 0xa0:
			fmt.Fprintf(w, `\u%04x`, r)
		default:
			w.WriteRune(r)
		}
	}
}

// withBase64Hint translates the node's advice into a flag.
func withBase64Hint(err error) error {
	if err != nil && strings.Contains(err.Error(), "base64=true") {
		return fmt.Errorf("%w (--base64)", err)
	}
	return err
}
