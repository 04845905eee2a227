package lab

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// soon asks until ok is true.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// namespace returns the name of a process's namespace of a kind.
func namespace(t *testing.T, pid int, kind string) string {
	t.Helper()
	name, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/" + kind)
	check(t, err)
	return name
}

// holders returns who is in a namespace, or holds it open.
func holders(t *testing.T, name string) (found []string) {
	t.Helper()
	kind, _, _ := strings.Cut(name, ":")
	links, err := filepath.Glob("/proc/[0-9]*/ns/" + kind)
	check(t, err)
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	check(t, err)
	for _, link := range append(links, fds...) {
		if to, err := os.Readlink(link); err == nil && to == name {
			found = append(found, link)
		}
	}
	return found
}

// A process runs in its host, and ends with the network.
func TestProcessesEndWithTheNetwork(t *testing.T) {
	n := newNetwork(t)
	h := addHost(t, n, "", Link{})
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	check(t, err)
	defer out.Close()
	cmd := exec.Command("sh", "-c", "cat /proc/net/route; echo there; exec sleep 1000")
	cmd.Stdout = out
	check(t, h.Start(cmd))
	var text []byte
	soon(t, "the process runs", func() bool {
		text, err = os.ReadFile(out.Name())
		check(t, err)
		return strings.HasSuffix(string(text), "there\n")
	})
	if !strings.Contains(string(text), "0000AB0A") { // 10.171.0.0
		t.Errorf("the process does not see its host's route:\n%s", text)
	}
	check(t, n.Close())
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v", err)
	}
	if err := h.Start(exec.Command("true")); !errors.Is(err, errClosed) {
		t.Errorf("a process started in a closed network: %v", err)
	}
	if _, err := h.Traffic(); !errors.Is(err, errClosed) {
		t.Errorf("the traffic of a closed network: %v", err)
	}
	if _, err := n.AddHost("", Link{}); !errors.Is(err, errClosed) {
		t.Errorf("a host for a closed network: %v", err)
	}
	check(t, n.Close())
}

// The thread that starts processes ends, and with it they, only if it is not the first one.
func TestStarterThreads(t *testing.T) {
	for range 1000 {
		s, err := newStarter()
		check(t, err)
		thread := s.thread
		s.close()
		if thread == os.Getpid() {
			t.Fatal("the process's first thread starts processes")
		}
	}
}

// What a process leaves running ends with it.
func TestTreesEndTogether(t *testing.T) {
	n := newNetwork(t)
	h := addHost(t, n, "", Link{})
	cmd := exec.Command("sh", "-c", "setsid sleep 1000 & echo started; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, h.StartTree(cmd))
	_, err = out.Read(make([]byte, 8))
	check(t, err)
	tree := namespace(t, cmd.Process.Pid, "pid")
	if got := holders(t, tree); len(got) < 2 {
		t.Errorf("in the tree are only %q", got)
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
	soon(t, "all of the tree has ended", func() bool { return len(holders(t, tree)) == 0 })
}

const ownerEnv = "QS_LAB_TEST_OWNER"

// TestOwner is not a test: it is what TestNothingOutlivesItsOwner kills.
func TestOwner(t *testing.T) {
	if os.Getenv(ownerEnv) == "" {
		t.Skip("runs in a process of its own")
	}
	n := newNetwork(t)
	h := addHost(t, n, "", Link{})
	cmd := exec.Command("sleep", "1000")
	check(t, h.Start(cmd))
	_, err := os.Stdout.WriteString(strconv.Itoa(cmd.Process.Pid) + "\n")
	check(t, err)
	_, err = io.Copy(io.Discard, os.Stdin) // for ever
	check(t, err)
}

// When the process that made a network is killed, the kernel ends the rest.
func TestNothingOutlivesItsOwner(t *testing.T) {
	newNetwork(t)
	owner := exec.Command(os.Args[0], "-test.run=^TestOwner$")
	owner.Env = append(os.Environ(), ownerEnv+"=1")
	in, err := owner.StdinPipe()
	check(t, err)
	defer in.Close()
	out, err := owner.StdoutPipe()
	check(t, err)
	check(t, owner.Start())
	buf := make([]byte, 32)
	k, err := out.Read(buf)
	check(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:k])))
	check(t, err)
	ns := namespace(t, pid, "net")
	check(t, owner.Process.Kill())
	_ = owner.Wait()
	soon(t, "nobody holds the namespace", func() bool { return len(holders(t, ns)) == 0 })
}
