package main

import (
	"encoding/base64"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

func newGet() *cobra.Command {
	var t target
	var enc codec
	cmd := &cobra.Command{
		Use:   "get KEY [flags]",
		Short: "Print the value of a key",
		Long: `Get prints the value of KEY, byte for byte; on a terminal a newline follows.
A key that is not there is a failure (exit status 1).`,
		Args: wantArgs(1, 1, "one KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := enc.key(args[0])
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			value, ok, err := c.Get(cmd.Context(), key)
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("no such key: %q", args[0])
			}
			out := cmd.OutOrStdout()
			if enc.base64 {
				_, err = fmt.Fprintln(out, base64.StdEncoding.EncodeToString(value))
				return err
			}
			if term.Is(out) {
				value = append(value, '\n')
			}
			_, err = out.Write(value)
			return err
		},
	}
	t.flags(cmd, answerTimeout)
	enc.flags(cmd, "KEY is base64, and the value is printed so")
	return cmd
}
