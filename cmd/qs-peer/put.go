package main

import (
	"encoding/base64"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/txlog"
)

func newPut() *cobra.Command {
	var t target
	var enc codec
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "put KEY VALUE [flags]",
		Short: "Set a key to a value",
		Long: `Put sets KEY to VALUE ("-": to what standard input holds, byte for byte) and
prints the number of the log entry, which is then on stable storage in the
writer's log.`,
		Args: wantArgs(2, 2, "KEY and VALUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := enc.key(args[0])
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			var value []byte
			if args[1] == "-" {
				value, err = readValue(cmd.InOrStdin(), enc.base64)
			} else {
				value, err = enc.decode("VALUE", args[1])
			}
			if err != nil {
				return err
			}
			pos, err := c.Put(cmd.Context(), key, value)
			if err != nil {
				return err
			}
			return printPos(cmd.OutOrStdout(), pos, asJSON)
		},
	}
	t.flags(cmd, answerTimeout)
	enc.flags(cmd, "KEY and VALUE (also from standard input) are base64")
	cmd.Flags().BoolVar(&asJSON, "json", false, `print {"seq":…,"hash":…} (default false)`)
	return cmd
}

// readValue reads a value, but no more than a value may hold.
func readValue(r io.Reader, b64 bool) ([]byte, error) {
	if b64 {
		r = base64.NewDecoder(base64.StdEncoding, r) // which skips newlines
	}
	value, err := io.ReadAll(io.LimitReader(r, txlog.MaxValue+1))
	if err != nil {
		return nil, fmt.Errorf("read the value from standard input: %w", err)
	}
	if len(value) > txlog.MaxValue {
		return nil, fmt.Errorf("the value on standard input is longer than %d bytes, the most that a value may be", txlog.MaxValue)
	}
	return value, nil
}

// printPos says where a write stands.
func printPos(w io.Writer, pos client.Pos, asJSON bool) error {
	if asJSON {
		return printJSON(w, pos)
	}
	_, err := fmt.Fprintln(w, pos.Seq)
	return err
}
