package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  wantArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "qs-peer %s\n", version())
			return nil
		},
	}
}

// release returns the module version: a tag, or a pseudo-version made of the
// commit, with "+dirty" when the tree was changed.
func release() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// version returns the release and what it was built from.
func version() string {
	var commit, date string
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = ", commit " + s.Value[:min(12, len(s.Value))]
			case "vcs.time":
				date = " of " + s.Value
			}
		}
	}
	return fmt.Sprintf("%s (%s %s/%s%s%s)", release(), runtime.Version(), runtime.GOOS, runtime.GOARCH, commit, date)
}
