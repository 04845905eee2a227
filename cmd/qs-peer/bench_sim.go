package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/qs-peer/qs-peer/bench"
	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/bench/sim"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/benchview"
)

func newBenchSim() *cobra.Command {
	var o sim.Options
	rate, manager, between := linkRate(100e6/8), linkRate(0), linkRate(0)
	size := byteSize(256 << 20)
	var like string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "sim [flags]",
		Short: "Simulate the rebuild of a fleet that does not fit on this machine",
		Long: `Sim is a discrete-event model of links in which the product's own code decides
which worker asks whom for what and who connects to whom. The torrent client's
choices among neighbours, links and processors are models: see
docs/bench/sim.md. The same seed gives the same figures.`,
		Args: wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("manager-rate") {
				manager = rate
			}
			o.Rate, o.ManagerRate, o.Between, o.Size = lab.Rate(rate), lab.Rate(manager), lab.Rate(between), int64(size)
			var report *sim.Report
			var figures []sim.Comparison
			var err error
			if like != "" {
				var measured *bench.SwarmReport
				if measured, err = readSwarmReport(like); err != nil {
					return err
				}
				report, figures, err = sim.Like(measured, o.Seed)
			} else {
				report, err = sim.Run(o)
			}
			if wrong := (*bench.OptionError)(nil); errors.As(err, &wrong) {
				return &usageError{err}
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, struct {
					*sim.Report
					Like []sim.Comparison `json:"like,omitempty"`
				}{report, figures})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "simulated %d events in %.1f s\n", report.Events, report.Wall)
			if err := benchview.PrintSim(out, report); err != nil || figures == nil {
				return err
			}
			return benchview.PrintLike(out, figures)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Workers, "workers", 100, "how many workers start at once")
	f.IntVar(&o.Managers, "managers", 1, "how many managers hold the snapshot")
	f.IntVar(&o.Colos, "colos", 1, "how many colos the workers are dealt out to; managers are outside of all")
	f.Var(&rate, "rate", "each worker's link, up and down, like 100mbit")
	f.Var(&manager, "manager-rate", "each manager's link (default: --rate)")
	f.Var(&between, "intercolo-rate", "each colo's link to the others and the managers, each way; 0 is no limit (default 0)")
	f.Var(&size, "size", "how long the snapshot is")
	f.DurationVar(&o.Latency, "latency", 200*time.Microsecond, "from a node to another of its colo, one way")
	f.DurationVar(&o.Far, "far-latency", 0, "to a manager or another colo (default: --latency)")
	f.BoolVar(&o.Isolated, "isolated", false, "colos get nothing from each other, all from the managers (default false)")
	f.DurationVar(&o.Poll, "poll", 500*time.Millisecond, "how often a worker hears what those of other colos hold that it may ask")
	f.IntVar(&o.Sending, "sending", 0, "how many pieces a source sends at once; 0 is no limit (default 0)")
	f.Float64Var(&o.KillFraction, "kill-fraction", 0, "kill this share of the workers once they hold half together, like 0.25 (default 0)")
	f.BoolVar(&o.KillManager, "kill-manager", false, "kill all managers once the workers hold a copy together (default false)")
	f.BoolVar(&o.LoseManager, "lose-manager", false, "kill one of several managers once the workers hold half a copy together (default false)")
	f.IntVar(&o.Late, "join-late", 0, "so many workers more start when the others hold half (default 0)")
	f.IntVar(&o.Slow, "slow", 0, "so many of the workers have a tenth of --rate (default 0)")
	f.Uint64Var(&o.Seed, "seed", 1, "of everything that is random")
	f.StringVar(&like, "like", "", "simulate what 'bench swarm --json' measured and put into this `file`, and compare; other flags but --seed do not apply (default none)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object with all figures (default false)")
	return cmd
}

func readSwarmReport(path string) (*bench.SwarmReport, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, usagef("--like: %w", err)
	}
	var r bench.SwarmReport
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, usagef("--like %s: not a result of 'bench swarm --json': %w", path, err)
	}
	return &r, nil
}
