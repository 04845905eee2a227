package main

import "github.com/spf13/cobra"

// defaultAuthority is the directory of an authority that is given none.
const defaultAuthority = "qs-ca"

func newCA() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca COMMAND [flags]",
		Short: "Make certificates and keys to try mutual TLS with",
		Long: `Ca is a certificate authority in a directory: enough to try a fleet over mutual TLS
on one machine. Its key is a file, and nothing renews by itself: in earnest use
step-ca, SPIRE, cert-manager or what your machines have already, and give every node
and client one URI name, spiffe://TRUST-DOMAIN/qs/ROLE/COLO/NAME.`,
		Example: `  qs-peer ca init
  qs-peer ca issue --role manager --name m1
  qs-peer ca issue --role worker --name w1
  qs-peer ca issue --role client-write --name me`,
		Args: wantArgs(1, 1, "a COMMAND: init or issue"),
		RunE: func(_ *cobra.Command, args []string) error {
			return usagef("there is no command %q: want init or issue", args[0])
		},
	}
	for _, c := range []*cobra.Command{newCAInit(), newCAIssue()} {
		c.Flags().SortFlags = false
		c.DisableFlagsInUseLine = true
		cmd.AddCommand(c)
	}
	return cmd
}
