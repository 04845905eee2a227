package main

import (
	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/gossip"
)

func newManager() *cobra.Command {
	return nodeCommand(gossip.Manager, &cobra.Command{
		Use:   "manager --data DIR [flags]",
		Short: "Run a manager in the foreground",
		Long: `Manager runs a node that holds the log and publishes snapshots. The first one of
a fleet creates the dataset and takes the writes; one that joins follows it and
seeds the same snapshots.

SIGINT or SIGTERM: leave the fleet and stop, within 10 seconds; again: stop at once.
The addresses it listens on are in addrs.json in the data directory.`,
	})
}
