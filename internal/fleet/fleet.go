// Package fleet runs real qs-peer processes, on loopback or in places of the
// caller's, each with a data directory of its own below one directory. The demo,
// the end-to-end run and the benches use it. It observes nodes only as anybody could: through their
// addrs.json, their HTTP status and their exit codes.
package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/internal/ca"
)

// startLimit is how long a node may take until it listens.
const startLimit = 60 * time.Second

// Fleet is a set of nodes of one binary. Its methods may be called concurrently.
type Fleet struct {
	bin, dir string

	tls *security // nil: plain TCP

	homes *homes

	mu       sync.Mutex // guards the maps
	nodes    map[string]*Node
	up       map[string]contact
	enrolled map[enrolment]*ca.Issued
}

// contact is where a node that was started can be joined while it runs.
type contact struct {
	addr   string
	exited <-chan struct{}
}

// Node is a process and, after it ended, what is left to start it again.
type Node struct {
	Name  string
	Role  string // "manager" or "worker"
	Data  string // its data directory
	Log   string // the file that gets its output, of all its lives
	Addrs Addrs

	place  Place
	caller *caller
	args   []string
	cmd    *exec.Cmd
	exited chan struct{}
}

// Addrs is a running node's addrs.json.
type Addrs struct {
	PID                             int
	Gossip, Swarm, Peer, HTTP, RESP string
}

// Member is one row of a node's status.
type Member struct {
	Name              string  `json:"name"`
	Role              string  `json:"role"`
	State             string  `json:"state"`
	AppliedSeq        uint64  `json:"applied_seq"`
	AppliedHash       string  `json:"applied_hash"`
	HeadSeq           uint64  `json:"head_seq"`
	SnapshotSeq       uint64  `json:"snapshot_seq"`
	SnapshotInfohash  string  `json:"snapshot_infohash"`
	Progress          float64 `json:"progress"`
	BytesFromManagers int64   `json:"bytes_from_managers"`
	BytesFromWorkers  int64   `json:"bytes_from_workers"`
}

// New prepares a fleet of the binary bin below dir, over plain TCP.
func New(bin, dir string) *Fleet {
	return &Fleet{bin: bin, dir: dir, homes: newHomes(), nodes: map[string]*Node{}, up: map[string]contact{}, enrolled: map[enrolment]*ca.Issued{}}
}

// Node returns a node that was started, nil if there is none of that name.
func (f *Fleet) Node(name string) *Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[name]
}

// contacts returns the gossip addresses of up to three nodes that run, without
// the named one.
func (f *Fleet) contacts(without string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var addrs []string
	for name, c := range f.up {
		select {
		case <-c.exited:
		default:
			if name != without && len(addrs) < 3 {
				addrs = append(addrs, c.addr)
			}
		}
	}
	return strings.Join(addrs, ",")
}

// Start runs a node at its Home, see StartAt.
func (f *Fleet) Start(ctx context.Context, role, name string, extra ...string) (*Node, error) {
	return f.StartAt(ctx, f.Home(name), role, name, extra...)
}

// Home is where a node runs if it runs nowhere else: an address of loopback that nobody
// else is likely to have.
func (f *Fleet) Home(name string) Place { return f.homes.of(name) }

// StartAt runs a node on free ports of a place and waits until it listens. It
// joins nodes that run, if there are any. A name that ran before starts again on
// what its data directory holds, at the addresses it had, as a configured node
// does, and with the same extra arguments if none are given.
func (f *Fleet) StartAt(ctx context.Context, at Place, role, name string, extra ...string) (*Node, error) {
	n, err := f.Launch(at, role, name, extra...)
	if err != nil {
		return nil, err
	}
	return n, f.Listening(ctx, n)
}

// Launch is StartAt without the wait: the node is killed, if need be, before it
// listens. Listening follows.
func (f *Fleet) Launch(at Place, role, name string, extra ...string) (*Node, error) {
	f.mu.Lock()
	n := f.nodes[name]
	if n == nil {
		n = &Node{Name: name, Role: role, Data: filepath.Join(f.dir, name), Log: filepath.Join(f.dir, name+".log")}
		f.nodes[name] = n
	}
	f.mu.Unlock()
	n.moveTo(at, f.tls)
	if len(extra) > 0 {
		n.args = extra
	}

	args, err := f.args(n, f.contacts(name))
	if err != nil {
		return nil, err
	}
	// A process that was killed leaves its addresses behind.
	if err := os.Remove(n.addrsFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	out, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	n.cmd = exec.Command(f.bin, args...)
	n.cmd.Stdout, n.cmd.Stderr = out, out
	// Its own process group, so that a Ctrl-C at the terminal reaches only us,
	// and no life beyond ours.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := at.Start(n.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	n.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait() // the exit status stays in cmd.ProcessState
		close(exited)
	}(n.cmd, n.exited)
	return n, nil
}

// Listening waits until a node that was launched listens. One that ended instead is
// an *ExitError.
func (f *Fleet) Listening(ctx context.Context, n *Node) error {
	err := Until(ctx, startLimit, func() error {
		select {
		case <-n.exited:
			return Stop(&ExitError{n.Name, n.cmd.ProcessState, n.Tail(12)})
		default:
		}
		text, err := os.ReadFile(n.addrsFile())
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &n.Addrs)
	})
	if exit := (*ExitError)(nil); errors.As(err, &exit) {
		return err // which names the node
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	f.mu.Lock()
	f.up[n.Name] = contact{n.Addrs.Gossip, n.exited}
	f.mu.Unlock()
	return nil
}

// ExitError says that a process ended that should run.
type ExitError struct {
	Name  string
	State *os.ProcessState
	Tail  string // the last lines of its output
}

func (e *ExitError) Error() string {
	if e.Tail == "" {
		return fmt.Sprintf("%s ended with %s and had said nothing", e.Name, e.State)
	}
	return fmt.Sprintf("%s ended with %s; the end of its log:\n%s", e.Name, e.State, e.Tail)
}

func (n *Node) addrsFile() string { return filepath.Join(n.Data, "addrs.json") }

// args returns with what a node is started: at the addresses that it had, or else on
// free ports. join are addresses of others.
func (f *Fleet) args(n *Node, join string) ([]string, error) {
	args := []string{n.Role, "--data", n.Data, "--name", n.Name}
	ip := n.place.Addr()
	for _, l := range []struct {
		flag, before string
		ip           netip.Addr
	}{
		{"--gossip-addr", n.Addrs.Gossip, ip}, {"--swarm-addr", n.Addrs.Swarm, ip}, {"--peer-addr", n.Addrs.Peer, ip},
		// Only we talk to these, and not over what joins the places.
		{"--http-addr", n.Addrs.HTTP, loopbackOf(ip)}, {"--resp-addr", n.Addrs.RESP, loopbackOf(ip)},
	} {
		args = append(args, l.flag, cmp.Or(l.before, netip.AddrPortFrom(l.ip, 0).String()))
	}
	secure, err := f.tlsArgs(n.Role, n.Name, n.args)
	if err != nil {
		return nil, err
	}
	args = append(args, secure...)
	if f.tls == nil && !ip.IsLoopback() {
		args = append(args, "--insecure")
	}
	if join != "" {
		args = append(args, "--join", join)
	}
	return append(args, n.args...), nil
}

// Command returns the command line that starts a node again, which was started
// before, beside those at the gossip addresses join; the binary first.
func (f *Fleet) Command(n *Node, join ...string) ([]string, error) {
	args, err := f.args(n, strings.Join(join, ","))
	return append([]string{f.bin}, args...), err
}

// Kill ends a node as a power failure would (SIGKILL) and waits for its end.
func (n *Node) Kill() {
	if n.cmd != nil && n.exited != nil {
		_ = n.cmd.Process.Kill()
		<-n.exited
	}
}

// Stop ends a node with SIGTERM. An exit status other than 0, or none within
// 30 s, is an error.
func (n *Node) Stop() error {
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
	case <-time.After(30 * time.Second):
		n.Kill()
		return fmt.Errorf("%s did not stop within 30 s of SIGTERM:\n%s", n.Name, n.Tail(12))
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s: exit status %d after SIGTERM:\n%s", n.Name, code, n.Tail(12))
	}
	return nil
}

// Exited is closed when the node's process has ended.
func (n *Node) Exited() <-chan struct{} { return n.exited }

// Usage returns the processor time that an ended node used.
func (n *Node) Usage() time.Duration {
	return n.cmd.ProcessState.UserTime() + n.cmd.ProcessState.SystemTime()
}

// PID returns the id of the node's latest process.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Wipe removes all that an ended node held.
func (n *Node) Wipe() error { return os.RemoveAll(n.Data) }

// Tail returns the last lines of the node's output.
func (n *Node) Tail(lines int) string {
	text, err := os.ReadFile(n.Log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Close kills every node that still runs and waits.
func (f *Fleet) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		n.Kill()
		n.calls().close()
	}
}

// Status returns the fleet as the node sees it, by name.
func (n *Node) Status(ctx context.Context) (map[string]Member, error) {
	var s struct{ Members []Member }
	if err := n.Call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return nil, err
	}
	members := make(map[string]Member, len(s.Members))
	for _, m := range s.Members {
		members[m.Name] = m
	}
	return members, nil
}

// Converged waits until, as n sees it, all named nodes serve the furthest head,
// at one hash, and returns the status. Each look at the fleet is passed to
// watch, if that is not nil.
func (n *Node) Converged(ctx context.Context, limit time.Duration, names []string, watch func(map[string]Member)) (map[string]Member, error) {
	var members map[string]Member
	err := Until(ctx, limit, func() (err error) {
		if members, err = n.Status(ctx); err != nil {
			return err
		}
		if watch != nil {
			watch(members)
		}
		var head uint64
		for _, m := range members {
			head = max(head, m.HeadSeq)
		}
		first := members[names[0]]
		for _, name := range names {
			m, ok := members[name]
			switch {
			case !ok:
				return fmt.Errorf("%s is not in the status", name)
			case m.State != "serving" || m.AppliedSeq != head:
				return fmt.Errorf("%s is %s at entry %d of %d", name, m.State, m.AppliedSeq, head)
			case m.AppliedHash != first.AppliedHash:
				return fmt.Errorf("%s has %s at entry %d, %s has %s", name, m.AppliedHash, head, first.Name, first.AppliedHash)
			}
		}
		return nil
	})
	return members, err
}

type stop struct{ error }

// Stop wraps an error that makes Until give up at once.
func Stop(err error) error { return stop{err} }

// Until asks ten times a second until ask returns nil, and returns its last
// error after limit, or when ctx ends.
func Until(ctx context.Context, limit time.Duration, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		var final stop
		if errors.As(err, &final) {
			return final.error
		}
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}
