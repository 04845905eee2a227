package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/bench/torture"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/benchview"
)

// errTortured is the end of a campaign that found something.
var errTortured = errors.New("something did not hold")

// checked says what every campaign's help ends with.
const checked = `

Each fleet is a writer, a manager that follows, and workers: processes over mutual TLS,
with signatures. Clients write and read on all of them, over HTTP and RESP. After every
few faults a fleet is left alone, and has to come to rest at one position by itself. Then
the history is checked against the writer's log: every acknowledged write is there, in
order, once; every read is what was there at the position that it is of; positions never
went back, unless a node had declared its replica wrong; no process ended by itself; all
nodes hold the same pairs, digests and snapshots.

The schedule is a function of the seed; when each thing happens to a process is not. The
exit status is 1 if something did not hold; the fleets' data, their logs and the history are
kept then.`

func newBenchKill() *cobra.Command {
	return tortureCommand("kill", "Kill processes in the middle of everything, and check that nothing is lost",
		`Kill ends processes with SIGKILL while they import, publish, fetch, open, switch, catch
up, repair, start and serve, one to three at a time, and starts them again. What a process
was in the middle of is read off its status and what it left on the disk.`+checked,
		torture.Options{Count: 200, Fleets: 2, Workers: 3, Every: 25}, torture.Kill)
}

func newBenchNet() *cobra.Command {
	return tortureCommand("net", "Cut, break, slow and reset what joins nodes, and check that nothing is lost",
		`Net gives each node a network namespace, and has the kernel lose what nodes send to each
other, in both directions or in one, for moments and until gossip takes them for dead; hold it
up in queues; break connections off with a RST; and keep from nodes that another one died and
started again, so that they go on with connections that are half open. Gossip, log streams and
the swarm all go over these links; clients talk to nodes beside them. That a fault is really in
force is measured with datagrams between the hosts, before and after.

It needs root: CAP_NET_ADMIN, CAP_SYS_ADMIN, and CAP_SYS_PTRACE for resets.`+checked,
		torture.Options{Count: 50, Fleets: 2, Workers: 3, Every: 10}, torture.Net)
}

func newBenchDamage() *cobra.Command {
	return tortureCommand("damage", "Alter files of nodes, live and at rest, and check that nothing wrong is served",
		`Damage flips bits, zeroes and swaps pages, cuts files short and lets them grow: segments of
the log, the store's environment, snapshots, their metainfo and manifests, signed heads, and the
small files; while a node runs, after it ended in order, and after it was killed. Then the node is
asked to scrub itself, and has to serve again, with everything repaired, without anybody's help.
What repairs took is told by the nodes' metrics. The writer has to refuse its own damage, which
qs-peer restore then makes good.`+checked,
		torture.Options{Count: 60, Fleets: 2, Workers: 3, Every: 15}, torture.Damage)
}

// tortureCommand returns a campaign's command.
func tortureCommand(name, short, long string, o torture.Options, run func(context.Context, torture.Options) (*torture.Report, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     name + " [flags]",
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf("  qs-peer bench %[1]s\n  qs-peer bench %[1]s --seed 7 --count 1000 --json", name),
		Args:    wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("seed") {
				o.Seed = rand.Uint64N(1 << 32)
			}
			var err error
			if o.Binary, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			view := benchview.NewProgress(cmd.Context(), cmd.ErrOrStderr())
			o.Progress = view
			report, err := run(cmd.Context(), o)
			view.Close()
			if wrong := (*torture.OptionError)(nil); errors.As(err, &wrong) {
				return &usageError{err}
			}
			if errors.Is(err, lab.ErrNotPermitted) {
				return fmt.Errorf("%w: run it with sudo, or in a container that has these two", err)
			}
			if err != nil {
				return sayLastWords(cmd.ErrOrStderr(), err)
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = benchview.PrintTorture(cmd.OutOrStdout(), report)
			}
			if err == nil && len(report.Violations) > 0 {
				err = fmt.Errorf("%w: %d violations; what was there is kept in %s", errTortured, len(report.Violations), report.Dir)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&o.Seed, "seed", 0, "of the schedule (default: another each time)")
	f.IntVar(&o.Count, "count", o.Count, "how many faults, all fleets together")
	f.IntVar(&o.Fleets, "fleets", o.Fleets, "how many fleets at the same time")
	f.IntVar(&o.Workers, "workers", o.Workers, "how many workers each has, besides two managers")
	f.IntVar(&o.Every, "every", o.Every, "check a fleet after so many faults")
	f.StringVar(&o.Dir, "dir", "", "`directory` for one with the nodes' data (default: the system's for temporary files)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object with all figures; progress goes to standard error (default false)")
	return cmd
}
