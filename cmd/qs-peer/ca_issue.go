package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/peer"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// issued is what `ca issue --json` prints.
type issued struct {
	Identity    string    `json:"identity"`
	Role        string    `json:"role"`
	Colo        string    `json:"colo"`
	Name        string    `json:"name"`
	Hosts       []string  `json:"hosts"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	KeptKey     bool      `json:"kept_key"`
	CA          string    `json:"ca"`
	Cert        string    `json:"cert"`
	Key         string    `json:"key"`
	TrustedKeys string    `json:"trusted_keys,omitempty"`
	SigningKey  string    `json:"signing_key,omitempty"`
	Env         string    `json:"env,omitempty"`
	Updated     []string  `json:"updated,omitempty"`
	Stale       []string  `json:"stale,omitempty"`
}

func newCAIssue() *cobra.Command {
	var dir, role string
	var r ca.Request
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "issue --role ROLE --name NAME [flags]",
		Short: "Issue a certificate for a node or a client",
		Long: `Issue writes ca.pem, cert.pem and key.pem into a directory: who somebody is, for
--tls-ca, --tls-cert and --tls-key. Nodes get trusted-keys, too, and a manager
signing.key, its own; clients get env, for a shell to read. What a manager's key signs is believed by every node: their
trusted-keys are brought up to date where they were issued.

Issuing for the same identity into the same directory again renews the certificate
under its key; a node that runs takes it up within seconds, and no connection drops.
With --force there is a new key, too, or another identity in the place of what is
there.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case role == "":
				return usagef("--role is missing: want one of %s", strings.Join(roleWords(), ", "))
			case r.Name == "":
				return usagef("--name is missing: who is the certificate of?")
			}
			r.Role = trust.Role(role)
			if !cmd.Flags().Changed("host") {
				r.Hosts = nil
			}
			a, err := ca.Open(dir)
			if err != nil {
				return err
			}
			done, err := a.Issue(r)
			if err != nil {
				return caError(err)
			}
			if len(done.Stale) > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "qs-peer: can not write trusted-keys in %s: copy %s there\n",
					strings.Join(done.Stale, ", "), done.TrustedKeys)
			}
			if asJSON {
				id := done.Identity
				return printJSON(cmd.OutOrStdout(), issued{id.String(), string(id.Role), id.Colo, id.Name, done.Hosts, done.Serial,
					done.NotBefore, done.NotAfter, done.KeptKey, done.Files.CA, done.Files.Cert, done.Files.Key, done.TrustedKeys, done.SigningKey, done.Env,
					done.Updated, done.Stale})
			}
			return printIssued(cmd.OutOrStdout(), done)
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", strings.Join(roleWords(), ", ")+" (required)")
	f.StringVar(&r.Name, "name", "", "`name` of the node, unique in the fleet, or of the client (required)")
	f.StringVar(&r.Colo, "colo", peer.DefaultColo, "`place` of the node or client")
	f.StringVar(&dir, "dir", defaultAuthority, "`directory` of the authority")
	f.StringVar(&r.Out, "out", "", "`directory` for the files (default: NAME in the authority's directory)")
	f.StringSliceVar(&r.Hosts, "host", ca.DefaultHosts, "`names` or addresses of a node that programs like curl ask for; nodes do not care")
	f.DurationVar(&r.TTL, "ttl", ca.DefaultTTL, "how long the certificate lives, at most as long as the authority")
	f.BoolVar(&r.NewKey, "force", false, "make a new key, also in the place of another identity (default false: the key that is there is kept)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object: the identity, the paths, the times (default false)")
	return cmd
}

func roleWords() []string {
	var words []string
	for _, r := range trust.Roles() {
		words = append(words, string(r))
	}
	return words
}

// printIssued says what was issued, and with what flags it is used.
func printIssued(w io.Writer, done *ca.Issued) error {
	ew := &errWriter{w: w}
	key := "a new key"
	if done.KeptKey {
		key = "the key that was there"
	}
	ew.printf("%s, until %s, for %s\n", done.Identity, done.NotAfter.UTC().Format(time.DateTime), key)
	if len(done.Updated) > 0 {
		ew.printf("trusted-keys brought up to date in %s\n", strings.Join(done.Updated, ", "))
	}
	for _, l := range []struct{ flag, path string }{
		{"--tls-ca", done.Files.CA}, {"--tls-cert", done.Files.Cert}, {"--tls-key", done.Files.Key},
		{"--trusted-keys", done.TrustedKeys}, {"--signing-key", done.SigningKey},
	} {
		if l.path != "" {
			ew.printf("  %-14s %s\n", l.flag, term.ShellWord(l.path))
		}
	}
	if done.Env != "" {
		ew.printf("for the commands of this shell:  . %s\n", term.ShellWord(done.Env))
	}
	if done.Identity.Role.IsNode() && done.TrustedKeys == "" {
		ew.printf("no manager has a signing key yet: trusted-keys comes here when one is issued\n")
	}
	return ew.err
}

// caError tells a request that makes no sense from one that failed.
func caError(err error) error {
	if wrong := (*ca.RequestError)(nil); errors.As(err, &wrong) {
		return &usageError{err}
	}
	return err
}
