// Package demo shows the whole path on one machine: real processes on loopback
// are built from nothing, hurt, and compared.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/jsonl"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
)

// stepLimit is how long any one step may take.
const stepLimit = 5 * time.Minute

// silence is how long a node may say nothing.
const silence = 30 * time.Second

const managerName = "manager"

// Options configure a demo.
type Options struct {
	Binary  string // qs-peer
	Workers int
	Keys    int
	Dir     string    // where the nodes live; empty: a temporary directory
	Keep    bool      // leave what is there
	TLS     bool      // mutual TLS, by an authority of the demo's own
	Output  io.Writer // gets the progress
}

// show is a demo in progress.
type show struct {
	Options
	fleet   *fleet.Fleet
	manager *fleet.Node
	workers []string
	writer  *writer
	report  *Report
	steps   int
}

// Run runs the demo. A report that is not Matched is no error.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	remove, err := o.prepareDir()
	if err != nil {
		return nil, err
	}
	s := &show{Options: o, fleet: fleet.New(o.Binary, o.Dir), report: &Report{Dir: o.Dir, TLS: o.TLS, Keys: o.Keys, Workers: o.Workers}}
	for i := range o.Workers {
		s.workers = append(s.workers, fmt.Sprintf("worker-%d", i+1))
	}
	// Children do not outlive us: not an error, not a panic (the deferred calls
	// run), and not our being killed (fleet has the kernel see to that).
	defer func() {
		s.fleet.Close()
		if o.Keep {
			fmt.Fprintf(o.Output, "\nkept: the nodes' data and logs are in %s\n", o.Dir)
		} else {
			err = errors.Join(err, remove())
		}
	}()
	begun := time.Now()
	if o.TLS {
		if err := s.secure(); err != nil {
			return nil, err
		}
	}
	if err := s.play(ctx); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // whatever it was that this interrupted
		}
		return nil, err
	}
	s.report.Seconds = time.Since(begun).Seconds()
	if o.Keep {
		s.report.Commands, err = s.commands()
	}
	return s.report, err
}

// play is the plot.
func (s *show) play(ctx context.Context) error {
	how := "over plain TCP"
	if s.TLS {
		how = "over mutual TLS, snapshots and log signed"
	}
	fmt.Fprintf(s.Output, "A manager and %s on this machine, %s, in %s\n\n", term.Plural(s.Workers, "worker"), how, s.Dir)
	for _, act := range []func(context.Context) error{
		s.startManager, s.importData, s.publish, s.buildWorkers, s.loseWorker, s.restartManager, s.settle, s.compare,
	} {
		if err := act(ctx); err != nil {
			if s.writer != nil {
				s.writer.stop()
			}
			return err
		}
	}
	return nil
}

func (s *show) startManager(ctx context.Context) error {
	st := s.begin(ctx, "The manager starts")
	defer st.spinner.Done()
	var err error
	if s.manager, err = s.fleet.Start(ctx, "manager", managerName, "--snapshot-every", "0"); err != nil {
		return err
	}
	st.end("The manager listens at %s", s.manager.Addrs.HTTP)
	fmt.Fprintf(s.Output, "   to look on: %s\n", strings.Join(s.with(s.fleet.Client(), "status", "--watch", "--addr", s.manager.Addrs.HTTP), "; "))
	return nil
}

// client returns a client of a node, that may read and write.
func (s *show) client(n *fleet.Node) (*client.Client, error) {
	return newClient(n, s.fleet.Client())
}

// newClient returns a client of a node with somebody's certificate, if that is not nil.
func newClient(n *fleet.Node, who *ca.Issued) (*client.Client, error) {
	o := client.Options{Addr: n.Addrs.HTTP, Silence: silence}
	if who != nil {
		o.TLS = who.Files
	}
	return client.New(o)
}

func (s *show) importData(ctx context.Context) error {
	c, err := s.client(s.manager)
	if err != nil {
		return err
	}
	defer c.Close()
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(writePairs(w, s.Keys)) }()

	st := s.begin(ctx, "Data is imported")
	defer st.spinner.Done()
	sum, err := jsonl.Import(ctx, c, r, false, func(sum jsonl.Summary) {
		st.now("%s pairs of %s", term.Count(sum.Operations), term.Count(s.Keys))
	})
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	took := st.end("%s imported", term.Plural(sum.Operations, "pair"))
	s.report.Import = Import{Pairs: sum.Operations, Seconds: took.Seconds()}
	return nil
}

func (s *show) publish(ctx context.Context) error {
	c, err := newClient(s.manager, s.fleet.Operator())
	if err != nil {
		return err
	}
	defer c.Close()
	st := s.begin(ctx, "A snapshot is minted")
	defer st.spinner.Done()
	snap, err := c.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("publish a snapshot: %w", err)
	}
	took := st.end("A snapshot of %s is published, infohash %s", term.Bytes(snap.Size), short(snap.InfoHash))
	s.report.Snapshot = Snapshot{Snapshot: snap, Seconds: took.Seconds()}
	return nil
}

func (s *show) buildWorkers(ctx context.Context) error {
	c, err := s.client(s.manager)
	if err != nil {
		return err
	}
	s.writer = startWriter(ctx, c)
	s.steps++
	s.say(s.steps, "%s that own nothing are built from it, while writes arrive:", term.Plural(s.Workers, "worker"))
	begun := time.Now()
	builds, err := s.build(ctx, s.workers)
	if err != nil {
		return err
	}
	took := time.Since(begun)
	r := Rebuild{Builds: builds, Seconds: took.Seconds()}
	for _, b := range builds {
		r.add(b.Sources)
	}
	if size := s.report.Snapshot.Size; size > 0 {
		r.ManagerCopies = float64(r.BytesFromManagers) / float64(size)
	}
	s.report.Rebuild = r
	fmt.Fprintf(s.Output, "   all serve after %s; the manager sent %.2f copies\n", term.Duration(took), r.ManagerCopies)
	return nil
}

// loseWorker kills a worker, takes its data away, and has it rebuilt.
func (s *show) loseWorker(ctx context.Context) error {
	name := s.workers[len(s.workers)/2]
	n := s.fleet.Node(name)
	n.Kill()
	if err := n.Wipe(); err != nil {
		return err
	}
	s.steps++
	s.say(s.steps, "%s is killed (SIGKILL), its data wiped, and built again:", name)
	builds, err := s.build(ctx, []string{name})
	if err != nil {
		return err
	}
	s.report.Killed = builds[0]
	return nil
}

// build starts workers and watches them until all serve.
func (s *show) build(ctx context.Context, names []string) ([]Build, error) {
	board := term.NewBoard(ctx, s.Output, names)
	defer board.Close()
	builds := make([]Build, len(names))
	g, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		g.Go(func() error {
			n, err := s.fleet.Start(ctx, "worker", name)
			if err != nil {
				return err
			}
			m, err := s.serving(ctx, n, func(m client.Member) {
				fraction := m.Progress
				if m.State == "catching-up" {
					fraction = 1
				}
				board.Set(i, fraction, m.State, term.Yellow, origin(m))
			})
			if err != nil {
				return err
			}
			took := board.Finish(i, m.State, term.Green, origin(m))
			builds[i] = Build{Name: name, Seconds: took.Seconds(), Sources: sourcesOf(m)}
			return nil
		})
	}
	return builds, g.Wait()
}

func origin(m client.Member) string {
	all := m.BytesFromManagers + m.BytesFromWorkers
	if all == 0 {
		return ""
	}
	share := func(n int64) float64 { return 100 * float64(n) / float64(all) }
	return fmt.Sprintf("manager %.0f%%, own colo %.0f%%", share(m.BytesFromManagers), share(m.BytesFromOwnColo))
}

// serving waits until a node says of itself that it serves.
func (s *show) serving(ctx context.Context, n *fleet.Node, watch func(client.Member)) (client.Member, error) {
	c, err := s.client(n)
	if err != nil {
		return client.Member{}, err
	}
	defer c.Close()
	var me client.Member
	err = fleet.Until(ctx, stepLimit, func() error {
		select {
		case <-n.Exited():
			return fleet.Stop(fmt.Errorf("%s ended by itself; the end of its log:\n%s", n.Name, n.Tail(10)))
		default:
		}
		status, _, err := c.Status(ctx)
		if err != nil {
			return err
		}
		var ok bool
		if me, ok = status.Me(); !ok {
			return fmt.Errorf("%s does not list itself", n.Name)
		}
		if me.State != "serving" {
			watch(me)
			return fmt.Errorf("%s is %s", n.Name, me.State)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w (its log is %s)", err, n.Log)
	}
	return me, err
}

func (s *show) restartManager(ctx context.Context) error {
	st := s.begin(ctx, "The manager is restarted")
	defer st.spinner.Done()
	if err := s.manager.Stop(); err != nil {
		return err
	}
	var err error
	if s.manager, err = s.fleet.Start(ctx, "manager", managerName); err != nil {
		return err
	}
	if _, err := s.serving(ctx, s.manager, func(client.Member) {}); err != nil {
		return err
	}
	c, err := s.client(s.manager)
	if err != nil {
		return err
	}
	s.writer.moveTo(c)
	took := st.end("The manager is stopped (SIGTERM) and started again on its directory")
	s.report.Restart = Restart{Name: managerName, Seconds: took.Seconds()}
	return nil
}

// settle ends the writes and waits until every node has applied the last one.
func (s *show) settle(ctx context.Context) error {
	st := s.begin(ctx, "Writes end, and every node applies the last one")
	defer st.spinner.Done()
	last, err := s.writer.finish(ctx)
	if err != nil {
		return err
	}
	s.report.Writes = last
	names := append([]string{managerName}, s.workers...)
	members, err := s.manager.Converged(ctx, stepLimit, names, func(members map[string]fleet.Member) {
		head := members[managerName].HeadSeq
		there := 0
		for _, name := range names {
			if members[name].AppliedSeq == head {
				there++
			}
		}
		st.now("%d of %d nodes are there", there, len(names))
	})
	if err != nil {
		return fmt.Errorf("the nodes did not reach one position: %w", err)
	}
	took := st.end("Writes end after %s; every node is at entry %s", term.Count(last.Acknowledged),
		term.Count(members[managerName].AppliedSeq))
	s.report.Settle = Settle{Seq: members[managerName].AppliedSeq, Seconds: took.Seconds()}
	return nil
}
