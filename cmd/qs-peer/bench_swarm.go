package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/bench"
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
are filled with random data and mint a snapshot; then all workers start at once
with nothing, and are watched until the last one holds every piece, verified,
and serves.`,
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
				return err
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
	f.Float64Var(&o.KillFraction, "kill-fraction", 0, "kill this share of the workers once they hold half together, like 0.25 (default 0)")
	f.BoolVar(&o.KillManager, "kill-manager", false, "kill all managers once the workers hold a copy together (default false)")
	f.IntVar(&o.JoinLate, "join-late", 0, "so many workers more start when the others hold half (default 0)")
	f.IntVar(&o.Slow, "slow", 0, "so many of the workers have a tenth of --rate; each run is also made without them (default 0)")
	f.BoolVar(&unshaped, "unshaped", false, "links without a rate: what the processes can do (default false)")
	f.IntVar(&o.Runs, "runs", 5, "how often")
	f.DurationVar(&o.Limit, "limit", 10*time.Minute, "give a run up after so long")
	f.StringVar(&o.Dir, "dir", bench.MemoryDir, "`directory` for the nodes' data, in one of its own; the default is in memory, because here all share one disk")
	f.BoolVar(&clean, "clean", false, "remove what killed benches left in --dir, and do nothing else; every run does that first (default false)")
	f.StringVar(&svg, "svg", "", "draw into this `file` how much each worker held over time, in the run in the middle (default none)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object with all figures; progress goes to standard error (default false)")
	return cmd
}
