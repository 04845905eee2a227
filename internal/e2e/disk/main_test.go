// Package disk runs real nodes on disks that fill up, turn read-only, fail, return
// nothing of what is on them, and stall, and out of descriptors: what they hold they go on serving, nothing
// half-made stands under a final name, and when the disk is well again so are
// they, without anybody's help. `make e2e` runs it. It needs root, for file
// systems of its own in a mount namespace of its own, and strace, which makes
// system calls fail.
package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inNamespace is set in the environment of the process whose mounts nobody else sees.
const inNamespace = "QS_DISK_NAMESPACE"

func TestMain(m *testing.M) {
	if os.Getenv("QS_E2E") == "" || os.Geteuid() != 0 || os.Getenv(inNamespace) != "" {
		os.Exit(m.Run())
	}
	// Again in a mount namespace, which goes with the last process in it: whatever
	// happens, nothing stays mounted.
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run in a mount namespace:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv("QS_E2E") == "":
		t.Skip("needs the built binary: run make e2e")
	case os.Getenv(inNamespace) == "":
		t.Skip("needs root, to mount file systems")
	}
}
