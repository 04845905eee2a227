package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/p2p"
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
	addrs Addrs
	done  chan struct{}

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
	reg := newRegistry(&o)
	disk, err := openStorage(&o, reg, &p.stop)
	if err != nil {
		return nil, err
	}
	ls, err := listen(&o, &p.stop)
	if err != nil {
		return nil, err
	}
	p.addrs = ls.addresses
	if err := p.live(ctx, &o, disk, ls, reg); err != nil {
		return nil, err
	}
	path := filepath.Join(o.Data, addrsName)
	if err := writeJSON(path, p.addrs); err != nil {
		return nil, err
	}
	p.stop.addClose("remove "+addrsName, func() error { return removeIfThere(path) })
	o.Logger.Info("node started", "name", o.Name, "role", o.Role, "writer", disk.node.writer(),
		"dataset", disk.log.Dataset(), "applied", disk.store.State().Pos, "http", p.addrs.HTTP, "gossip", p.addrs.Gossip)
	return p, nil
}

// live wires the parts together and sets them going.
func (p *Peer) live(ctx context.Context, o *Options, disk *storage, ls *listeners, reg *prometheus.Registry) error {
	logger := func(part string) *slog.Logger { return o.Logger.With("part", part) }
	changed := newSignal()
	ready := make(chan struct{})
	becameReady := sync.OnceFunc(func() { close(ready) })

	swarm, err := p2p.NewSwarm(p2p.SwarmOptions{
		Name: o.Name, Listener: ls.take(&ls.swarm), UploadRate: o.UploadRate, DownloadRate: o.DownloadRate,
		Logger: logger("swarm"), Registerer: reg,
	})
	if err != nil {
		return fmt.Errorf("start swarm: %w", err)
	}
	p.stop.addClose("close swarm", swarm.Close)
	shelf := &shelf{repo: disk.repo, swarm: swarm, logger: logger("snapshots"), changed: changed}

	client := p2p.NewClient(p2p.ClientOptions{Logger: logger("p2p"), Registerer: reg})
	p.stop.addClose("close peer client", func() error { client.Close(); return nil })
	server := p2p.NewServer(p2p.ServerOptions{Log: disk.log, Snapshot: shelf.describe, Logger: logger("p2p"), Registerer: reg})
	p.stop.add("stop peer server", serveStreams(ls.take(&ls.peer), server, logger("p2p")))

	addrs := p.addrs
	g, err := gossip.Start(gossip.Options{
		Facts: gossip.Facts{
			Name: o.Name, Role: o.Role, Colo: o.Colo, Version: o.Version, Writer: disk.node.writer(),
			SwarmAddr: addrs.Swarm, PeerAddr: addrs.Peer, HTTPAddr: addrs.HTTP,
			Dataset: disk.log.Dataset(), State: string(replica.Joining),
		},
		Addr: o.GossipAddr, Join: o.Join, Logger: logger("gossip"), Registerer: reg,
	})
	if err != nil {
		return listenError("--gossip-addr", o.GossipAddr, err)
	}
	p.stop.addClose("leave gossip", func() error { return errors.Join(g.Leave(leaveTimeout), g.Close()) })
	p.addrs.Gossip = g.Addr().String()
	fleet := &fleet{gossip: g, colo: o.Colo}
	network := &network{fleet: fleet, client: client, swarm: swarm, shelf: shelf, fetching: map[chunker.InfoHash]chan struct{}{}}

	cfg := replica.Config{
		Name: o.Name, Manager: o.Role == gossip.Manager, Log: replicaLog{disk.log}, Store: replicaStore{disk.store},
		Logger: logger("replica"), Registerer: reg,
		OnChange: func(st replica.Status) {
			if st.Ready {
				becameReady()
			}
			changed.notify()
		},
	}
	if !disk.node.writer() {
		cfg.Fleet, cfg.Network = fleet, network
	}
	rep, err := replica.New(cfg)
	if err != nil {
		return fmt.Errorf("start replica: %w", err)
	}
	registerReplica(reg, disk, rep.Status)

	keep := &keeper{
		storage: disk, fleet: fleet, network: network, shelf: shelf,
		manager: o.Role == gossip.Manager, keep: o.KeepSnapshots, logger: logger("keeper"),
		conflicts: newConflictsGauge(reg), warned: map[string]bool{},
	}
	writer := &writer{node: disk.node, self: o.Name, log: disk.log, fleet: fleet, applied: rep.WaitApplied, fail: p.fail}
	publish := &publisher{
		role: o.Role, writer: writer, store: disk.store, shelf: shelf, keeper: keep, status: rep.Status, logger: logger("publisher"),
	}
	advertise := &advertiser{
		storage: disk, swarm: swarm, shelf: shelf, gossip: g, status: rep.Status, fail: p.fail, logger: logger("gossip"), changed: changed,
	}

	life := newLife()
	p.stop.add("stop background work", life.stop)
	life.run(func(ctx context.Context) {
		if err := rep.Run(ctx); err != nil {
			p.fail(fmt.Errorf("replica stopped: %w", err))
		}
	})
	life.run(func(ctx context.Context) { followSwarm(ctx, fleet, swarm) })
	life.run(advertise.run)
	life.run(func(ctx context.Context) {
		// What this node holds comes first: what is not offered yet would be fetched again.
		if err := shelf.restock(ctx, disk.log.Dataset(), disk.linked); err != nil {
			o.Logger.Error("offering the snapshots on disk failed", "err", err)
		}
		if o.Role == gossip.Manager && !disk.node.writer() {
			life.run(func(ctx context.Context) { keep.mirror(ctx, rep.Status) })
		}
		keep.run(ctx)
	})
	if disk.node.writer() && o.SnapshotEvery > 0 {
		life.run(func(ctx context.Context) { publish.run(ctx, o.SnapshotEvery) })
	}
	if o.Role == gossip.Manager && !disk.node.writer() && disk.log.Dataset().IsZero() {
		o.Logger.Info("this manager holds no dataset: it waits for a writer's, to follow it; to create a new dataset here instead, start it with --init",
			"join", o.Join)
	}

	reads := &reads{store: disk.store, status: rep.Status}
	api := &api{
		reads: reads, writer: writer, shelf: shelf, publisher: publish,
		members: func() []gossip.Member {
			members := g.Members()
			advertise.fill(&members[0].Facts) // fresher than what gossip was told last
			return members
		},
		status: rep.Status, health: p.Err,
		scans: make(chan struct{}, maxScans), logger: logger("http"),
	}
	p.stop.add("stop HTTP server", serveHTTP(ls.take(&ls.http), api.handler(reg), logger("http")))

	resp := newRESPServer(reads, writer, o, reg, logger("resp"))
	for _, ln := range ls.takeRESP() {
		resp.serve(ln)
	}
	p.stop.add("stop RESP server", resp.stop)

	if !disk.node.writer() {
		return nil
	}
	// The writer needs nobody to be ready: whoever sees its addresses can use it.
	select {
	case <-ready:
		return nil
	case <-p.done:
		return p.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait until the log is applied: %w", ctx.Err())
	}
}

// followSwarm keeps the swarm's list of peers as gossip has it.
func followSwarm(ctx context.Context, f *fleet, swarm *p2p.Swarm) {
	var known []p2p.Peer
	for {
		changed := f.Changed()
		if peers := f.swarmPeers(); !slices.Equal(peers, known) {
			swarm.SetPeers(peers)
			known = peers
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Addrs returns where the node listens.
func (p *Peer) Addrs() Addrs { return p.addrs }

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
