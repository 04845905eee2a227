package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestDeployExamples parses the configuration in deploy/ as the nodes do, and holds
// its paths against those that the unit gives a node.
func TestDeployExamples(t *testing.T) {
	for role, cmd := range map[string]*cobra.Command{"manager": newManager(), "worker": newWorker()} {
		file := "../../deploy/" + role + ".yaml"
		if err := applyConfig(cmd.Flags(), file); err != nil {
			t.Error(err)
		}
		want := map[string]string{
			"data": "/var/lib/qs-peer/" + role, "insecure": "false", "peer-addr": "0.0.0.0:7947",
			"tls-ca": "/etc/qs-peer/" + role + "/ca.pem", "tls-cert": "/etc/qs-peer/" + role + "/cert.pem", "tls-key": "/etc/qs-peer/" + role + "/key.pem",
			"trusted-keys": "/etc/qs-peer/" + role + "/trusted-keys",
		}
		if role == "worker" {
			want["resp-unix"] = "/run/qs-peer/worker/resp.sock"
		} else {
			want["signing-key"] = "/etc/qs-peer/manager/signing.key"
		}
		for name, want := range want {
			if got := cmd.Flags().Lookup(name).Value.String(); got != want {
				t.Errorf("%s: %s is %q, want %q", file, name, got, want)
			}
		}
	}
}

// TestUnit has systemd check the unit, and rate what a node that was taken over could do.
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze")
	}
	text, err := os.ReadFile("../../deploy/systemd/qs-peer@.service")
	if err != nil {
		t.Fatal(err)
	}
	const program = "/usr/bin/qs-peer"
	if !strings.Contains(string(text), "ExecStart="+program+" %i ") {
		t.Fatalf("the unit does not start %s", program)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "qs-peer@.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), program, self)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// 100 is a service without any restriction; 15 is 1.5 of the 10 that it prints.
	if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=15", "--no-pager", unit).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
