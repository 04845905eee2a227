package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/peer"
)

func newRestore() *cobra.Command {
	n := &node{peer: peer.Options{Role: gossip.Manager, Version: release()}}
	var from string
	var acceptLoss, asJSON bool
	cmd := &cobra.Command{
		Use:   "restore --data DIR --from HTTP_ADDR [flags]",
		Short: "Give a writer whose data is damaged or lost what its followers hold",
		Long: `Restore gets a stopped writer's data back from the fleet, by way of the running node
at --from: the newest snapshot, the log after it, and what of the damaged log goes on
from there. Everything is verified as by any follower. Nothing in the directory changes
before all of it is there; then what was there is kept beside it, in damaged-TIME. It
may be interrupted and run again. Afterwards start the manager as before.

It takes the manager's own flags, or its --config. It refuses when entries are known
of, by the writer's signatures or from other managers, that nobody sends: start a
follower that has them, or give them up with --accept-loss.`,
		Args: wantArgs(0, 0, ""),
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := n.complete(cmd); err != nil {
			return err
		}
		if from == "" {
			return usagef("--from is missing: the HTTP address of which running node?")
		}
		if n.peer.Init {
			return usagef("--init creates a dataset, and restore gets one back")
		}
		o := peer.RestoreOptions{Options: n.peer, AcceptLoss: acceptLoss}
		var err error
		if o.From, err = meet(cmd, from, &o.Options); err != nil {
			return err
		}
		if o.Logger, _, err = n.logger(cmd); err != nil {
			return err
		}
		r, err := peer.Restore(cmd.Context(), o)
		if wrong := (*peer.OptionError)(nil); errors.As(err, &wrong) {
			return &usageError{err}
		}
		if err != nil {
			return err
		}
		return printRestored(cmd, r, asJSON)
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "HTTP `address` of a running node of the fleet, host:port or a URL (required)")
	f.BoolVar(&acceptLoss, "accept-loss", false, "give up entries that are known of and that nobody sends (default false)")
	f.BoolVar(&asJSON, "json", false, "print {dataset,first,head,hash,salvaged,lost,aside} (default false)")
	n.flags(cmd)
	return cmd
}

// meet asks the node at addr who is in the fleet, to join them, and returns its name.
func meet(cmd *cobra.Command, addr string, o *peer.Options) (name string, err error) {
	c, err := client.New(client.Options{Addr: addr, TLS: o.TLS, Silence: answerTimeout})
	if wrong := (*client.UsageError)(nil); errors.As(err, &wrong) {
		return "", &usageError{err}
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	_, text, err := c.Status(cmd.Context())
	if err != nil {
		return "", err
	}
	var fleet peer.FleetStatus
	if err := json.Unmarshal(text, &fleet); err != nil {
		return "", fmt.Errorf("the status of %s: %w", addr, err)
	}
	for _, m := range fleet.Members {
		if m.State != "left" && m.State != "failed" && m.GossipAddr != "" && !slices.Contains(o.Join, m.GossipAddr) {
			o.Join = append(o.Join, m.GossipAddr)
		}
	}
	return fleet.Self, nil
}

func printRestored(cmd *cobra.Command, r peer.Restored, asJSON bool) error {
	out := cmd.OutOrStdout()
	if asJSON {
		return printJSON(out, struct {
			Dataset  string `json:"dataset"`
			First    uint64 `json:"first"`
			Head     uint64 `json:"head"`
			Hash     string `json:"hash"`
			Salvaged uint64 `json:"salvaged"`
			Lost     uint64 `json:"lost"`
			Aside    string `json:"aside"`
		}{r.Dataset.String(), r.First, r.Head.Seq, r.Head.Hash.String(), r.Salvaged, r.Lost, r.Aside})
	}
	ew := &errWriter{w: out}
	ew.printf("restored to entry %d of dataset %s\n  hash      %s\n  log       from entry %d on\n", r.Head.Seq, r.Dataset, r.Head.Hash, r.First)
	if r.Salvaged > 0 {
		ew.printf("  salvaged  %d entries that only the damaged log had\n", r.Salvaged)
	}
	if r.Lost > 0 {
		ew.printf("  LOST      %d entries, given up\n", r.Lost)
	}
	ew.printf("  before    %s\n", cmp.Or(r.Aside, "nothing was there"))
	return ew.err
}
