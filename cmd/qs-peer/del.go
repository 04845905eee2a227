package main

import "github.com/spf13/cobra"

func newDel() *cobra.Command {
	var t target
	var enc codec
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "del KEY... [flags]",
		Short: "Remove keys",
		Long: `Del removes all the given keys in one transaction and prints the number of its
log entry. A key that is not there is no failure.`,
		Args: wantArgs(1, -1, "at least one KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys := make([][]byte, len(args))
			for i, arg := range args {
				var err error
				if keys[i], err = enc.key(arg); err != nil {
					return err
				}
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			pos, err := c.Delete(cmd.Context(), keys...)
			if err != nil {
				return err
			}
			return printPos(cmd.OutOrStdout(), pos, asJSON)
		},
	}
	t.flags(cmd, answerTimeout)
	enc.flags(cmd, "each KEY is base64")
	cmd.Flags().BoolVar(&asJSON, "json", false, `print {"seq":…,"hash":…} (default false)`)
	return cmd
}
