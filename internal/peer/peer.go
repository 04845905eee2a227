package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// leaveTimeout bounds telling the others that the node goes.
const leaveTimeout = 2 * time.Second

// Addrs are the addresses a running node listens on, as in addrs.json.
type Addrs struct {
	PID      int    `json:"pid"`
	Gossip   string `json:"gossip"`
	Swarm    string `json:"swarm"`
	Peer     string `json:"peer"`
	HTTP     string `json:"http"`
	RESP     string `json:"resp,omitempty"`
	RESPUnix string `json:"resp_unix,omitempty"` // path
}

// Peer is a running node.
type Peer struct {
	addrs    Addrs
	progress func() (FetchProgress, bool)
	parts    *wiring
	done     chan struct{}

	mu  sync.Mutex // guards err
	err error

	stop     cleanup
	closing  sync.Once
	closeErr error
}

// Start opens the data directory, listens, joins and begins to live. What makes
// a start impossible (a directory of another dataset or of a newer format, in
// use or read-only; a taken port; a damaged log) is an error that names it.
// ctx bounds the start only.
func Start(ctx context.Context, o Options) (_ *Peer, err error) {
	o = o.withDefaults()
	if err := o.validate(ctx); err != nil {
		return nil, &OptionError{err}
	}
	p := &Peer{done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop.run(ctx))
		}
	}()
	reg, creds, err := introduce(&o)
	if err != nil {
		return nil, err
	}
	sigs, err := openSignatures(&o, reg)
	if err != nil {
		return nil, err
	}
	disk, err := openStorage(ctx, &o, sigs, reg, &p.stop)
	if err != nil {
		return nil, err
	}
	border := edge.New(edge.Options{Credentials: creds, Logger: o.Logger.With("part", "edge"), Registerer: reg})
	ls, err := listen(&o, border, &p.stop)
	if err != nil {
		return nil, err
	}
	w := &wiring{
		o: &o, creds: creds, edge: border, sigs: sigs, disk: disk, ls: ls, reg: reg, stop: &p.stop, fail: p.fail, life: newLife(),
		changed: newSignal(), ready: make(chan struct{}),
	}
	p.parts = w
	if err := w.transfer(); err != nil {
		return nil, err
	}
	if err := w.join(); err != nil {
		return nil, err
	}
	publish, advertise, err := w.live()
	if err != nil {
		return nil, err
	}
	w.serve(publish, advertise, p.Err)
	if err := p.settle(ctx, w); err != nil {
		return nil, err
	}
	p.progress = w.progress
	p.addrs = ls.addresses
	p.addrs.Gossip = w.gossip.Addr().String()
	path := filepath.Join(o.Data, addrsName)
	p.stop.addClose("remove "+addrsName, func() error { return removeIfThere(path) })
	if err := writeJSON(path, p.addrs); noRoom(err) {
		// What the node holds it can serve all the same.
		o.Logger.Error("the disk is full: the addresses could not be written down", "file", path, "err", err)
	} else if err != nil {
		return nil, err
	}
	dataset := "none yet"
	if id := disk.log.Dataset(); !id.IsZero() {
		dataset = id.String()
	}
	o.Logger.Info("node started", "name", o.Name, "role", o.Role, "writer", disk.node.writer(),
		"dataset", dataset, "applied", disk.store.State().Pos.Seq, "http", p.addrs.HTTP, "gossip", p.addrs.Gossip)
	return p, nil
}

// introduce opens the node's credentials, if it has some, which say who it is, and
// makes its registry, which says that to others.
func introduce(o *Options) (*prometheus.Registry, *trust.Credentials, error) {
	reg := prometheus.NewRegistry()
	if !o.tls() {
		o.Colo = cmp.Or(o.Colo, DefaultColo)
		registerNode(reg, o)
		return reg, nil, nil
	}
	creds, err := trust.Open(trust.Options{Files: o.TLS, Logger: o.Logger.With("part", "tls"), Registerer: reg})
	if err != nil {
		return nil, nil, fmt.Errorf("open TLS files: %w", err)
	}
	if err := o.identify(creds.Identity()); err != nil {
		return nil, nil, &OptionError{err}
	}
	registerNode(reg, o)
	return reg, creds, nil
}

// settle waits until a writer serves: it needs nobody for that, so whoever sees
// its addresses can use it. The others may have to wait for the fleet.
func (p *Peer) settle(ctx context.Context, w *wiring) error {
	if !w.disk.node.writer() {
		switch {
		case len(w.o.Join) == 0:
			w.o.Logger.Warn("this node joins nobody: it learns of new entries only if a member of the fleet joins it; give members with --join")
		case w.o.Role == gossip.Manager && w.disk.log.Dataset().IsZero():
			w.o.Logger.Info("this manager holds no dataset: it waits for a writer's, to follow it; to create a new dataset here instead, start it with --init",
				"join", w.o.Join)
		}
		return nil
	}
	select {
	case <-w.ready:
		return nil
	case <-p.done:
		return p.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait until the log is applied: %w", ctx.Err())
	}
}

// Addrs returns where the node listens.
func (p *Peer) Addrs() Addrs { return p.addrs }

// Progress returns the present or else the last fetch of a snapshot; ok is false
// when there was none since the start.
func (p *Peer) Progress() (f FetchProgress, ok bool) { return p.progress() }

// Done is closed when the node can not go on; Err then says why. It still has
// to be closed.
func (p *Peer) Done() <-chan struct{} { return p.done }

// Err returns why the node stopped by itself, nil otherwise.
func (p *Peer) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// fail says that the node can not go on.
func (p *Peer) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
		close(p.done)
	}
}

// Close leaves the fleet, finishes what is in flight until ctx ends, and frees
// everything. It may be called twice.
func (p *Peer) Close(ctx context.Context) error {
	p.closing.Do(func() { p.closeErr = p.stop.run(ctx) })
	return p.closeErr
}
