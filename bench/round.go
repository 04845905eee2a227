package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/fleet"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// readyLimit is how long managers may take to offer their snapshot.
const readyLimit = 10 * time.Minute

// minted is the snapshot that is distributed.
type minted struct {
	Size     int64  `json:"size"`
	InfoHash string `json:"infohash"`
}

// round is one run: a site and the nodes on it, all made anew, but for the
// managers' data.
type round struct {
	*site
	fleet    *fleet.Fleet
	managers []*swarmNode
	workers  []*swarmNode       // those that join late at the end
	uplink   []Sample           // frames that left the managers
	asks     *trust.Credentials // of the bench, when it asks workers what they hold; nil: no TLS
}

// newRound prepares a run in dir; with an authority, over TLS.
func newRound(o *SwarmOptions, dir string, authority *ca.Authority) (_ *round, err error) {
	s, err := newSite(o)
	if err != nil {
		return nil, err
	}
	r := &round{site: s, fleet: fleet.New(o.Binary, dir)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	for m, host := range s.sources {
		r.managers = append(r.managers, &swarmNode{role: "manager", name: fmt.Sprintf("m%d", m+1), colo: "core", number: m, host: host, fleet: r.fleet})
	}
	for w, host := range s.sinks {
		r.workers = append(r.workers, &swarmNode{role: "worker", name: fmt.Sprintf("w%d", w+1), colo: coloName(o.coloOf(w)), number: w, host: host, fleet: r.fleet})
	}
	if authority != nil {
		if err := r.fleet.UseTLS(authority); err != nil {
			return nil, err
		}
		// Before the clock starts, and managers first: nodes know their keys from the start.
		for _, n := range slices.Concat(r.managers, r.workers) {
			if err := r.fleet.Enrol(n.role, n.name, n.colo); err != nil {
				return nil, err
			}
		}
		if r.asks, err = r.fleet.Credentials(trust.RoleWorker, "bench"); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// close ends all processes and takes the network away.
func (r *round) close() error {
	r.fleet.Close()
	return r.net.Close()
}

// startManagers starts them, the first of which writes, and waits until all
// offer the snapshot, or, before there is one, serve.
func (r *round) startManagers(ctx context.Context, infohash string) error {
	for _, m := range r.managers {
		if err := m.start(ctx, "--snapshot-every", "0"); err != nil {
			return err
		}
	}
	return r.offered(ctx, infohash)
}

// offered waits until all managers, as each of them sees it, serve and offer a
// snapshot.
func (r *round) offered(ctx context.Context, infohash string) error {
	return fleet.Until(ctx, readyLimit, func() error {
		for _, m := range r.managers {
			members, err := m.node.Status(ctx)
			if err != nil {
				return err
			}
			for _, other := range r.managers {
				if s := members[other.name]; s.State != "serving" || s.SnapshotInfohash != infohash {
					return fmt.Errorf("%s is %q and offers %q, as %s sees it", other.name, s.State, s.SnapshotInfohash, m.name)
				}
			}
		}
		return nil
	})
}

// prepare makes the managers' data: one is loaded and mints, the others follow.
// No link is limited.
func prepare(ctx context.Context, o *SwarmOptions, dir string, authority *ca.Authority) (_ *minted, err error) {
	free := *o
	free.Workers, free.Colos, free.JoinLate, free.ManagerRate, free.Between = 0, 0, 0, 0, 0
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	r, err := newRound(&free, dir, authority)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	o.Progress.Step("the managers are filled")
	if err := r.startManagers(ctx, ""); err != nil {
		return nil, err
	}
	writer := r.managers[0].node
	if err := load(ctx, writer, o.Size, func(done int64) { o.Progress.Advance([]float64{float64(done) / float64(o.Size)}) }); err != nil {
		return nil, err
	}
	snap := &minted{}
	if err := writer.Call(ctx, http.MethodPost, "/v1/snapshots", nil, snap); err != nil {
		return nil, err
	}
	if err := r.offered(ctx, snap.InfoHash); err != nil {
		return nil, err
	}
	for i := len(r.managers) - 1; i >= 0; i-- {
		if err := r.managers[i].node.Stop(); err != nil {
			return nil, err
		}
	}
	return snap, nil
}

// measure does one run in dir, which holds the managers' data.
func measure(ctx context.Context, o *SwarmOptions, dir string, authority *ca.Authority, snap *minted) (_ *SwarmRun, err error) {
	r, err := newRound(o, dir, authority)
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, r.close())
		for _, w := range r.workers {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, w.name)))
		}
	}()
	if err := r.startManagers(ctx, snap.InfoHash); err != nil {
		return nil, err
	}
	before, err := r.meters()
	if err != nil {
		return nil, err
	}
	for _, m := range r.managers {
		if err := m.count(); err != nil {
			return nil, err
		}
	}
	limited, cancel := context.WithTimeoutCause(ctx, o.Limit, errLimit)
	defer cancel()
	began := time.Now()
	if err := r.distribute(limited, snap, began); err != nil {
		return nil, err
	}
	after, err := r.meters()
	if err != nil {
		return nil, err
	}
	return r.result(began, snap.Size, before, after)
}

var errLimit = errors.New("the time limit (--limit) is over")

// distribute starts the workers at once, does to them what the options ask for,
// and returns when all that live serve.
func (r *round) distribute(ctx context.Context, snap *minted, began time.Time) error {
	// What goes wrong ends the watch of all; what is to happen happens beside it.
	g, ctx := errgroup.WithContext(ctx)
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	run := func(w *swarmNode) {
		g.Go(func() error {
			err := w.start(ctx)
			if err == nil {
				err = w.watch(ctx, notify)
			}
			if err != nil && !errors.Is(err, errKilled) {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			return nil
		})
	}
	first := r.workers[:r.o.Workers]
	for _, w := range first {
		run(w)
	}
	g.Go(func() error {
		plot := r.plot(ctx, snap, run)
		tick := time.NewTicker(askEvery)
		defer tick.Stop()
		for {
			held, served := r.look(snap.Size)
			if err := r.sampleManagers(time.Since(began)); err != nil {
				return err
			}
			plot = act(plot, held)
			switch {
			case !served:
			case len(plot) > 0:
				return fmt.Errorf("all workers serve already, and it was not yet the time %s; raise --size", plot[0].what)
			default:
				return nil
			}
			select {
			case <-tick.C:
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	err := g.Wait()
	if errors.Is(err, errLimit) {
		err = r.lateness()
	}
	return err
}

// sampleManagers notes what the managers have sent, and the memory they hold, as
// often as workers are asked.
func (r *round) sampleManagers(now time.Duration) error {
	if n := len(r.uplink); n > 0 && now.Seconds()-r.uplink[n-1].At < lookEvery.Seconds() {
		return nil
	}
	for _, m := range r.managers {
		m.mu.Lock()
		m.weigh()
		m.mu.Unlock()
	}
	f, err := r.frames()
	r.uplink = append(r.uplink, Sample{At: now.Seconds(), Done: f.out})
	return err
}

// look tells how far the workers are, and whether all that live serve.
func (r *round) look(size int64) (h held, served bool) {
	shares := make([]float64, len(r.workers))
	served, h.all = true, true
	for i, w := range r.workers {
		p, dead := w.state()
		shares[i] = float64(p.Done) / float64(size)
		if i < r.o.Workers {
			h.share += shares[i] / float64(r.o.Workers)
			h.all = h.all && p.Total > 0
		}
		served = served && (dead || p.Serving != nil)
	}
	r.o.Progress.Advance(shares)
	return h, served
}

// lateness says who was not done when the time was over.
func (r *round) lateness() error {
	for _, w := range r.workers {
		switch p, dead := w.state(); {
		case dead || p.Serving != nil:
		case p.Total == 0:
			return fmt.Errorf("%w: %s has not begun", errLimit, w.name)
		case p.Done < p.Total:
			return fmt.Errorf("%w: %s holds %d of %d bytes", errLimit, w.name, p.Done, p.Total)
		default:
			return fmt.Errorf("%w: %s holds everything and does not serve yet", errLimit, w.name)
		}
	}
	return errLimit
}
