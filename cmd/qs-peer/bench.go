package main

import "github.com/spf13/cobra"

func newBench() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench SCENARIO [flags]",
		Short: "Measure how fast a fleet is, against the least possible time",
		Long: `Bench measures with real processes on this machine, or simulates what does not fit.
Each scenario says in its own help what it measures, and how.`,
		Args: wantArgs(1, 1, "a SCENARIO: see 'qs-peer bench --help'"),
		RunE: func(_ *cobra.Command, args []string) error {
			return usagef("there is no scenario %q", args[0])
		},
	}
	for _, scenario := range []*cobra.Command{newBenchSwarm(), newBenchSim(), newBenchKill(), newBenchNet(), newBenchDamage()} {
		scenario.Flags().SortFlags = false
		scenario.DisableFlagsInUseLine = true
		cmd.AddCommand(scenario)
	}
	return cmd
}
