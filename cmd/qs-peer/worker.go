package main

import (
	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/gossip"
)

func newWorker() *cobra.Command {
	return nodeCommand(gossip.Worker, &cobra.Command{
		Use:   "worker --data DIR --join HOST:PORT [flags]",
		Short: "Run a worker in the foreground",
		Long: `Worker runs a node that holds a copy and serves reads: it fetches a snapshot from
the other nodes, verifies it, catches up from the log, and follows it.

SIGINT or SIGTERM: leave the fleet and stop, within 10 seconds; again: stop at once.
The addresses it listens on are in addrs.json in the data directory.`,
	})
}
