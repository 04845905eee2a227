package main

import (
	"testing"

	"github.com/spf13/cobra"
)

// TestDeployExamples parses the files in deploy/ as the nodes do.
func TestDeployExamples(t *testing.T) {
	for file, cmd := range map[string]*cobra.Command{
		"../../deploy/manager.yaml": newManager(),
		"../../deploy/worker.yaml":  newWorker(),
	} {
		if err := applyConfig(cmd.Flags(), file); err != nil {
			t.Error(err)
		}
		for name, want := range map[string]string{"data": "/var/lib/qs-peer", "insecure": "true", "peer-addr": "0.0.0.0:7947"} {
			if got := cmd.Flags().Lookup(name).Value.String(); got != want {
				t.Errorf("%s: %s is %q, want %q", file, name, got, want)
			}
		}
	}
}
