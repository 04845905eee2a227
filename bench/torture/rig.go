package torture

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// restLimit is how long a fleet may take to come to rest once nothing is done to it.
const restLimit = 90 * time.Second

// rig is a fleet under torture, its clients, and what is known of it.
type rig struct {
	dir      string
	fleet    *fleet.Fleet
	nodes    []*node // the writer, the manager that follows, workers
	observer *trust.Credentials
	truth    *Truth
	history  *History
	checker  *Checker
	load     *load
	site     site
	figures  figures

	stop    context.CancelFunc // of what runs in the background
	running sync.WaitGroup

	mu    sync.Mutex // guards what follows
	wrong []Violation
	notes strings.Builder // what was done

	strange map[string]bool // kinds of files
}

// node is one of a rig's, through all its lives.
type node struct {
	*endpoint
	rig  *rig
	role string
	at   fleet.Place
	proc *fleet.Node

	flags   []string           // of all its processes
	doomed  *atomic.Bool       // its present process is about to be ended on purpose
	read    int64              // of its log, in bytes
	counted map[string]float64 // its present process's metrics, as last added up
}

func (n *node) data() string    { return n.proc.Data }
func (n *node) isManager() bool { return n.role == "manager" }

// rigOptions say what a fleet is made of.
type rigOptions struct {
	binary  string
	dir     string
	seed    uint64
	workers int
	site    site     // nil: all at home
	flags   []string // of every node
}

// newRig starts a fleet, fills it, and sets its clients going.
func newRig(ctx context.Context, o rigOptions) (_ *rig, err error) {
	r := &rig{dir: o.dir, fleet: fleet.New(o.binary, o.dir), truth: NewTruth(), history: &History{}, site: o.site}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	r.stop = stop
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	authority, err := ca.Init(filepath.Join(o.dir, "ca"), ca.Options{TrustDomain: "torture.internal"})
	if err != nil {
		return nil, err
	}
	if err := r.fleet.UseTLS(authority); err != nil {
		return nil, err
	}
	who := map[trust.Role]*trust.Credentials{}
	for _, role := range []trust.Role{trust.RoleClientWrite, trust.RoleOperator, trust.RoleWorker} {
		if who[role], err = r.fleet.Credentials(role, "observer"); err != nil {
			return nil, err
		}
	}
	r.observer = who[trust.RoleWorker]
	names := []string{"m1", "m2"}
	for i := range o.workers {
		names = append(names, fmt.Sprintf("w%d", i+1))
	}
	for _, name := range names { // all keys are known to all from the beginning
		if err := r.fleet.Enrol(roleOf(name), name, "default"); err != nil {
			return nil, err
		}
	}
	for i, name := range names {
		at := r.fleet.Home(name)
		if o.site != nil {
			at = o.site.place(i)
		}
		n := &node{rig: r, role: roleOf(name), at: at, flags: append([]string{"--log-format", "json"}, o.flags...)}
		if n.isManager() {
			n.flags = append(n.flags, "--snapshot-every", "0", "--keep-snapshots", "2")
		}
		if n.proc, err = r.fleet.StartAt(ctx, at, n.role, name, n.flags...); err != nil {
			return nil, err
		}
		n.endpoint = newEndpoint(n.proc, at, who[trust.RoleClientWrite], who[trust.RoleOperator])
		n.guard()
		r.nodes = append(r.nodes, n)
		if i == 0 {
			if err := r.fill(ctx, background, o.seed); err != nil {
				return nil, err
			}
		}
	}
	var all []*endpoint
	for _, n := range r.nodes {
		all = append(all, n.endpoint)
	}
	r.load.start(background, all)
	return r, nil
}

func roleOf(name string) string {
	if name[0] == 'm' {
		return "manager"
	}
	return "worker"
}

// fill gives the writer something to hold, and a snapshot of it.
func (r *rig) fill(ctx, background context.Context, seed uint64) error {
	w := r.writer()
	r.checker = NewChecker(r.truth, w.name)
	r.load = newLoad(r.history, w.endpoint, seed)
	r.running.Go(func() { r.tail(background) })
	if err := r.load.newClient("fill").fill(ctx); err != nil {
		return err
	}
	return w.publish(ctx)
}

func (r *rig) writer() *node { return r.nodes[0] }

func (r *rig) violate(v Violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, v)
}

// say notes what is done to the fleet, for whoever looks into what came of it.
func (r *rig) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(&r.notes, "%s %s\n", time.Now().UTC().Format(time.RFC3339Nano), fmt.Sprintf(format, args...))
}

// close ends the clients and all processes.
func (r *rig) close() {
	for _, n := range r.nodes {
		n.doomed.Store(true)
	}
	r.stop()
	if r.load != nil {
		r.load.wg.Wait()
	}
	r.fleet.Close()
	r.running.Wait()
	for _, n := range r.nodes {
		n.endpoint.close()
	}
}

// guard notes when the process that was just launched ends by itself.
func (n *node) guard() {
	n.doomed = &atomic.Bool{}
	doomed, exited, pid := n.doomed, n.proc.Exited(), n.proc.PID()
	n.rig.running.Go(func() {
		<-exited
		if !doomed.Load() {
			n.rig.history.death(Death{n.name, time.Now(), fmt.Sprintf("process %d ended by itself; the end of its output:\n%s", pid, n.proc.Tail(30))})
		}
	})
}

// kill ends a node's process as a crash does.
func (n *node) kill() {
	n.doomed.Store(true)
	n.proc.Kill()
}

// wipe removes all that a killed node held.
func (n *node) wipe() error {
	n.rig.history.setback(Setback{n.name, time.Now(), "emptied"})
	return n.proc.Wipe()
}

// launch starts a node's process again, with more flags this time only.
func (n *node) launch(more ...string) error {
	_, err := n.rig.fleet.Launch(n.at, n.role, n.name, slices.Concat(n.flags, more)...)
	if err == nil {
		n.guard()
	}
	return err
}

// up waits until a launched node listens.
func (n *node) up(ctx context.Context) error { return n.rig.fleet.Listening(ctx, n.proc) }

// running reports whether a node's process runs.
func (n *node) alive() bool {
	select {
	case <-n.proc.Exited():
		return false
	default:
		return true
	}
}

// look notes what kinds of files a node has that no campaign knows.
func (n *node) look() {
	n.rig.mu.Lock()
	defer n.rig.mu.Unlock()
	for _, name := range strangeFiles(n.data()) {
		if n.rig.strange == nil {
			n.rig.strange = map[string]bool{}
		}
		n.rig.strange[name] = true
	}
}

// rest stops the writes, waits until the fleet is at rest, checks the history and
// what every node holds, and lets clients write again. It returns what is wrong, and the
// history; an error says that it could not be found out.
func (r *rig) rest(ctx context.Context) (wrong []Violation, h *History, err error) {
	r.load.quiet.Lock()
	defer r.load.quiet.Unlock()
	if err := errors.Join(r.takesWrites(ctx), r.settled(ctx)); err != nil {
		if ctx.Err() != nil {
			return nil, nil, err
		}
		wrong = append(wrong, Violation{Rule: NoRest, At: time.Now(), Text: err.Error()})
	}
	if err := r.declared(); err != nil {
		return nil, nil, err
	}
	h = r.history.take()
	wrong = append(wrong, r.checker.Check(h)...)
	rests, err := r.rests(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil, err
		}
		wrong = append(wrong, Violation{Rule: NoRest, At: time.Now(), Text: err.Error()})
	}
	wrong = append(wrong, r.checker.CheckRest(rests)...)
	r.mu.Lock()
	wrong = append(r.wrong, wrong...)
	r.wrong = nil
	r.mu.Unlock()
	return wrong, h, nil
}

// takesWrites waits until the writer does. One that refuses them for good is quiet, too.
func (r *rig) takesWrites(ctx context.Context) error {
	c := r.load.newClient("rest")
	return fleet.Until(ctx, restLimit, func() error {
		if c.put(ctx) != Acked {
			return errors.New("the writer takes no writes")
		}
		return nil
	})
}

// settled waits until every node serves the writer's last entry, and the truth has it.
func (r *rig) settled(ctx context.Context) error {
	return fleet.Until(ctx, restLimit, func() error {
		w, err := r.writer().status(ctx)
		if err != nil {
			return err
		}
		for _, n := range r.nodes {
			s, err := n.status(ctx)
			if err != nil {
				return err
			}
			if s.State != "serving" || s.AppliedSeq != w.HeadSeq || s.AppliedHash != w.AppliedHash {
				return fmt.Errorf("%s is %s at entry %d of %d: %s", n.name, s.State, s.AppliedSeq, w.HeadSeq, s.Error)
			}
			if err := n.ready(ctx); err != nil {
				return err
			}
		}
		if head := r.truth.Head(); head.Seq != w.HeadSeq {
			return fmt.Errorf("the writer's log was read up to entry %d of %d", head.Seq, w.HeadSeq)
		}
		return nil
	})
}

// rests reads what the nodes hold. Both managers mint what they hold.
func (r *rig) rests(ctx context.Context) ([]Rest, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	rests := make([]Rest, len(r.nodes))
	for i, n := range r.nodes {
		n.count(ctx)
		n.look()
		group.Go(func() (err error) {
			if n.isManager() {
				if err := n.publish(ctx); err != nil {
					return err
				}
			}
			if rests[i], err = n.pairs(ctx); err != nil {
				return err
			}
			s, err := n.status(ctx)
			if err != nil {
				return err
			}
			rests[i].Digest = s.Digest
			rests[i].Snapshots, err = n.snapshots(ctx)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return rests, nil
}

// declarations are what nodes log when they find their own replica wrong, which is when
// positions may go back. Damage of a snapshot or of the log is no such reason.
var declarations = []string{
	"this replica diverged",
	"out of service until this replica is repaired",
}

// declared adds what nodes declared since the last time to the history.
func (r *rig) declared() error {
	for _, n := range r.nodes {
		if err := n.eachLogLine(func(at time.Time, level, message string) {
			if slices.Contains(declarations, message) {
				r.history.setback(Setback{n.name, at, message})
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// eachLogLine calls f with what the node has logged since the last time.
func (n *node) eachLogLine(f func(at time.Time, level, message string)) (err error) {
	log, err := os.Open(n.proc.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if _, err := log.Seek(n.read, io.SeekStart); err != nil {
		return err
	}
	in := bufio.NewReader(log)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		n.read += int64(len(line))
		var record struct {
			Time  time.Time `json:"time"`
			Level string    `json:"level"`
			Msg   string    `json:"msg"`
		}
		if json.Unmarshal(line, &record) == nil { // what is none is a runtime's last words
			f(record.Time, record.Level, record.Msg)
		}
	}
}
