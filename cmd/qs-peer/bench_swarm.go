package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/bench"
	"github.com/qs-peer/qs-peer/bench/contender"
	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/benchview"
)

func newBenchSwarm() *cobra.Command {
	o := bench.SwarmOptions{}
	rate, manager, between := linkRate(100e6/8), linkRate(0), linkRate(0)
	size := byteSize(256 << 20)
	var unshaped, asJSON, clean bool
	var svg string
	cmd := &cobra.Command{
		Use:   "swarm [flags]",
		Short: "Measure how fast a colo of empty workers is rebuilt",
		Long: `Swarm runs managers and workers as processes on this machine, each in a network
namespace of its own, on links whose rates the kernel holds (tbf). The managers
are filled with random data and mint a snapshot. Then all workers start at once
with nothing, and are watched until the last one serves. Every run has new
workers and a new network.

What it prints:
  T*              the least time in which it can be done, whatever the protocol:
                  max(F/u_s, F/d_min, N·F/(u_s + Σu_i)), F being the snapshot's
                  size, u_s what the managers can send, d and u what workers can
                  receive and send; of the survivors when workers are killed, and
                  with the links between colos taken into account
  first, median,  when workers had every piece, verified, counted from the start
  last complete   of the processes; late and slow workers are told apart
  last serving    when the last of them served reads
  managers sent   payload of pieces, in copies of the snapshot, as the managers
                  count it; what of it workers verified; and the frames that left
                  their links, headers included
  into colo       the same for what entered a colo
  CPU-s per GB    processor time of all processes, killed ones too, from the
                  start of the workers, per 10^9 bytes verified
  processors      how much of the machine was in use, and how much of that was
                  not by nodes: the bench, the kernel, and whoever else was there;
                  times are worth little when that is much
  RssAnon, VmHWM  the most memory that a process held, without and with files it
                  had mapped
  wasted          what workers received twice or damaged

With --against other programs do each run too, after our nodes, from one source to
as many sinks on a new network of the same links, and one table compares. The file
is random bytes, as long as the snapshot; in Redis they are values. Their clock
starts with the sinks' processes (uftp: with the sender's), and stops when a
program says that all is there; then the copies are compared with the source's. The
table says how each was run. A program that is not installed is skipped.

Nodes speak mutual TLS as they do in earnest; --tls=false goes without. What TLS costs
is the difference of the two.

Workers are watched over the loopback of their own namespace, which costs their
links nothing. Nothing is put into the machine's own network, and nothing is left
when the bench ends; but if it is killed, its directory, which the next one, or
--clean, removes.

It needs root: CAP_NET_ADMIN and CAP_SYS_ADMIN.`,
		Example: `  sudo qs-peer bench swarm
  sudo qs-peer bench swarm --workers 24 --size 128MiB --rate 50mbit --svg curve.svg
  sudo qs-peer bench swarm --colos 2 --intercolo-rate 20mbit
  sudo qs-peer bench swarm --kill-fraction 0.25 --runs 1
  sudo qs-peer bench swarm --size 64MiB --against aria2,libtorrent`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if clean {
				removed, err := bench.Clean(o.Dir)
				for _, path := range removed {
					fmt.Fprintf(cmd.OutOrStdout(), "removed %s\n", path)
				}
				return err
			}
			flags := cmd.Flags()
			if unshaped {
				for _, name := range []string{"rate", "manager-rate", "intercolo-rate"} {
					if flags.Changed(name) {
						return usagef("--unshaped and --%s: with the one, links have no rate", name)
					}
				}
				rate = 0
			} else if !flags.Changed("manager-rate") {
				manager = rate
			}
			o.Rate, o.ManagerRate, o.Between, o.Size = lab.Rate(rate), lab.Rate(manager), lab.Rate(between), int64(size)
			var err error
			if o.Binary, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			view := benchview.NewProgress(cmd.Context(), cmd.ErrOrStderr())
			o.Progress = view
			report, err := bench.Swarm(cmd.Context(), o)
			view.Close()
			if wrong := (*bench.OptionError)(nil); errors.As(err, &wrong) {
				return &usageError{err}
			}
			if errors.Is(err, lab.ErrNotPermitted) {
				return fmt.Errorf("%w: run it with sudo, or in a container that has these two", err)
			}
			if err != nil {
				return sayLastWords(cmd.ErrOrStderr(), err)
			}
			if svg != "" {
				if err := os.WriteFile(svg, report.Curve(), 0o644); err != nil {
					return fmt.Errorf("write the picture: %w", err)
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), report)
			}
			return benchview.PrintSwarm(cmd.OutOrStdout(), report)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Workers, "workers", 8, "how many workers start at once")
	f.IntVar(&o.Managers, "managers", 1, "how many managers hold the snapshot")
	f.IntVar(&o.Colos, "colos", 1, "how many colos the workers are dealt out to; managers are outside of all")
	f.Var(&rate, "rate", "each worker's link, up and down, like 100mbit; 0 is no limit")
	f.Var(&manager, "manager-rate", "each manager's link (default: --rate)")
	f.Var(&between, "intercolo-rate", "each colo's link to the others and the managers, each way; 0 is no limit (default 0)")
	f.Var(&size, "size", "about how long the snapshot is")
	f.Float64Var(&o.KillFraction, "kill-fraction", 0, "kill this share of the workers once all hold half on average, like 0.25 (default 0)")
	f.BoolVar(&o.KillManager, "kill-manager", false, "kill all managers once every piece is with some worker (default false)")
	f.IntVar(&o.JoinLate, "join-late", 0, "so many workers more start when the others hold half on average (default 0)")
	f.IntVar(&o.Slow, "slow", 0, "so many of the workers have a tenth of --rate; each run is also made without them (default 0)")
	f.BoolVar(&o.TLS, "tls", true, "mutual TLS between all nodes, certificates and signing keys by an authority of the bench's own; --tls=false compares")
	f.BoolVar(&unshaped, "unshaped", false, "links without a rate: what the processes can do (default false)")
	f.IntVar(&o.Runs, "runs", 5, "how often")
	f.DurationVar(&o.Limit, "limit", 10*time.Minute, "give a run up after so long")
	f.StringVar(&o.Dir, "dir", bench.MemoryDir, "`directory` for the nodes' data, in one of its own; the default is in memory, because here all share one disk")
	f.BoolVar(&clean, "clean", false, "remove what killed benches left in --dir, and do nothing else; every run does that first (default false)")
	f.StringSliceVar(&o.Against, "against", nil, "programs that do every run too, on the same links, one table for all: "+strings.Join(contender.Names(), ", ")+" (default none)")
	f.StringVar(&svg, "svg", "", "draw into this `file` how much each worker held over time, in the run in the middle (default none)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object with all figures; progress goes to standard error (default false)")
	return cmd
}
