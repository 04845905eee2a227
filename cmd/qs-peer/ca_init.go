package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/internal/ca"
)

// madeAuthority is what `ca init --json` prints.
type madeAuthority struct {
	Dir         string    `json:"dir"`
	CA          string    `json:"ca"`
	TrustDomain string    `json:"trust_domain"`
	NotAfter    time.Time `json:"not_after"`
	SHA256      string    `json:"sha256"` // of the certificate
}

func newCAInit() *cobra.Command {
	var dir string
	var o ca.Options
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "init [flags]",
		Short: "Make an authority",
		Long: `Init makes a certificate authority: ca.pem, which every node and client gets, and
ca.key, which stays where it is. It vouches for identities of one trust domain, and
never overwrites an authority.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := ca.Init(dir, o)
			if err != nil {
				return caError(err)
			}
			cert := a.Certificate()
			sum := sha256.Sum256(cert.Raw)
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, madeAuthority{a.Dir(), a.File(), a.TrustDomain(), cert.NotAfter, hex.EncodeToString(sum[:])})
			}
			_, err = fmt.Fprintf(out, "authority of %s in %s, until %s\n  certificate  %s\n  sha256       %x\n"+
				"next, for each node and client: qs-peer ca issue --dir %s --role manager --name m1\n",
				a.TrustDomain(), a.Dir(), cert.NotAfter.UTC().Format(time.DateTime), a.File(), sum, term.ShellWord(dir))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", defaultAuthority, "`directory` of the authority, made if need be")
	f.StringVar(&o.TrustDomain, "trust-domain", "qs.internal", "`name` that all identities of the fleet begin with")
	f.DurationVar(&o.TTL, "ttl", ca.DefaultAuthorityTTL, "how long the authority lives")
	f.BoolVar(&asJSON, "json", false, "print {dir,ca,trust_domain,not_after,sha256} (default false)")
	return cmd
}
