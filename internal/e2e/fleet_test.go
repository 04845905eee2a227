package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fleet is a set of real qs-peer processes on loopback, each with a data
// directory of its own. What it starts ends with the test.
type fleet struct {
	t     *testing.T
	bin   string
	dir   string
	join  string // the first node's gossip address
	nodes map[string]*node
}

// node is one process and, after it ended, what is left to start it again.
type node struct {
	name, role, data string
	addrs            addrs
	cmd              *exec.Cmd
	exited           chan struct{}
}

// addrs is the running node's addrs.json.
type addrs struct {
	PID                       int
	Gossip, Swarm, Peer, HTTP string
}

// member is one row of `status --json`.
type member struct {
	Name, Role, State string
	AppliedSeq        uint64 `json:"applied_seq"`
	AppliedHash       string `json:"applied_hash"`
	HeadSeq           uint64 `json:"head_seq"`
	SnapshotInfohash  string `json:"snapshot_infohash"`
	FromManagers      int64  `json:"bytes_from_managers"`
	FromWorkers       int64  `json:"bytes_from_workers"`
}

func newFleet(t *testing.T, bin string) *fleet {
	return &fleet{t: t, bin: bin, dir: t.TempDir(), nodes: map[string]*node{}}
}

// start runs a node and waits until it listens. A name that ran before starts
// again on what its data directory holds.
func (f *fleet) start(role, name string) *node {
	f.t.Helper()
	n := f.nodes[name]
	if n == nil {
		n = &node{name: name, role: role, data: filepath.Join(f.dir, name)}
		f.nodes[name] = n
	}
	args := []string{role, "--data", n.data, "--name", name, "--colo", "e2e"}
	for _, a := range []string{"gossip", "swarm", "peer", "http", "resp"} {
		args = append(args, "--"+a+"-addr", "127.0.0.1:0")
	}
	if f.join != "" {
		args = append(args, "--join", f.join)
	}
	logFile, err := os.OpenFile(filepath.Join(f.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		f.t.Fatal(err)
	}
	defer logFile.Close()
	// A killed process leaves its addresses behind.
	if err := os.Remove(filepath.Join(n.data, "addrs.json")); err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
	n.cmd = exec.Command(f.bin, args...)
	n.cmd.Stdout, n.cmd.Stderr = logFile, logFile
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	n.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(n.cmd, n.exited)
	f.t.Cleanup(func() { f.kill(n) })
	f.eventually(30*time.Second, name+" listens", func() error {
		select {
		case <-n.exited:
			f.t.Fatalf("%s ended at once:\n%s", name, f.tail(name))
		default:
		}
		text, err := os.ReadFile(filepath.Join(n.data, "addrs.json"))
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &n.addrs)
	})
	if f.join == "" {
		f.join = n.addrs.Gossip
	}
	return n
}

// kill ends a node as a power failure would.
func (f *fleet) kill(n *node) {
	_ = n.cmd.Process.Kill()
	<-n.exited
}

// stop ends a node cleanly.
func (f *fleet) stop(n *node) {
	f.t.Helper()
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
		if code := n.cmd.ProcessState.ExitCode(); code != 0 {
			f.t.Fatalf("%s: exit status %d after SIGTERM:\n%s", n.name, code, f.tail(n.name))
		}
	case <-time.After(20 * time.Second):
		f.t.Fatalf("%s did not stop within 20 s of SIGTERM:\n%s", n.name, f.tail(n.name))
	}
}

// wipe removes all that a stopped node held.
func (f *fleet) wipe(n *node) {
	f.t.Helper()
	if err := os.RemoveAll(n.data); err != nil {
		f.t.Fatal(err)
	}
}

// run runs a command of the binary and returns what it printed.
func (f *fleet) run(args ...string) string {
	f.t.Helper()
	out, err := f.try(args...)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fleet) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, f.bin, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("qs-peer %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// status returns the fleet as one node sees it, by name.
func (f *fleet) status(from *node) (map[string]member, error) {
	out, err := f.try("status", "--addr", from.addrs.HTTP, "--json")
	if err != nil {
		return nil, err
	}
	var s struct{ Members []member }
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return nil, err
	}
	m := map[string]member{}
	for _, x := range s.Members {
		m[x.Name] = x
	}
	return m, nil
}

// converged waits until all named nodes serve the same position, that of the
// furthest head, and returns the status.
func (f *fleet) converged(limit time.Duration, from *node, names ...string) map[string]member {
	f.t.Helper()
	var last map[string]member
	f.eventually(limit, "all serve one position: "+strings.Join(names, " "), func() error {
		m, err := f.status(from)
		if err != nil {
			return err
		}
		last = m
		var head uint64
		for _, x := range m {
			head = max(head, x.HeadSeq)
		}
		for _, name := range names {
			x, ok := m[name]
			switch {
			case !ok:
				return fmt.Errorf("%s is not in the status", name)
			case x.State != "serving" || x.AppliedSeq != head:
				return fmt.Errorf("%s is %s at %d of %d", name, x.State, x.AppliedSeq, head)
			case x.AppliedHash != m[names[0]].AppliedHash:
				return fmt.Errorf("%s is at %s, %s at %s", name, x.AppliedHash, names[0], m[names[0]].AppliedHash)
			}
		}
		return nil
	})
	return last
}

// eventually asks again and again until ask succeeds, and fails after limit
// with its last error.
func (f *fleet) eventually(limit time.Duration, what string, ask func() error) {
	f.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			var logs strings.Builder
			for name := range f.nodes {
				fmt.Fprintf(&logs, "--- %s\n%s\n", name, f.tail(name))
			}
			f.t.Fatalf("not within %s: %s: %v\n%s", limit, what, err, logs.String())
		}
	}
}

// tail returns the last lines of a node's log.
func (f *fleet) tail(name string) string {
	text, err := os.ReadFile(filepath.Join(f.dir, name+".log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}
