package peer

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/compare"
	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/p2p"
)

// wiring connects the parts of a node, bottom up, and sets them going. What it
// starts is stopped by stop, in reverse order.
type wiring struct {
	o     *Options
	creds *trust.Credentials // nil: no TLS
	edge  *edge.Edge
	sigs  *signatures
	disk  *storage
	ls    *listeners
	reg   *prometheus.Registry
	stop  *cleanup
	fail  func(error) // the node can not go on
	life  *life

	changed  *signal // something happened that the others should hear of
	swarm    *p2p.Swarm
	client   *p2p.Client
	download *p2p.Budget
	shelf    *shelf
	gossip   *gossip.Gossip
	fleet    *fleet
	replica  *replica.Replica
	mender   *mender
	scrubber *scrubber
	compare  *compare.Comparer
	served   *served
	ready    chan struct{} // closed once reads have been served
}

func (w *wiring) logger(part string) *slog.Logger { return w.o.Logger.With("part", part) }

// refused returns what is told of those who are refused at a listener.
func (w *wiring) refused(listener string) func(trust.Reason, string, error) {
	return func(reason trust.Reason, who string, err error) { w.edge.Refused(listener, reason, who, err) }
}

// transfer starts what moves bytes between nodes.
func (w *wiring) transfer() error {
	budget := func(direction string, rate int64, within *p2p.Budget) *p2p.Budget {
		return p2p.NewBudget(p2p.BudgetOptions{Direction: direction, Rate: rate, Within: within, Registerer: w.reg})
	}
	upload := budget("upload", w.o.UploadRate, nil)
	pieces := upload
	if w.o.Role == gossip.Manager {
		pieces = budget("egress", w.o.EgressRate, upload)
	}
	w.download = budget("download", w.o.DownloadRate, nil)
	client := p2p.ClientOptions{Name: w.o.Name, Digests: w.disk.proof == nil, Dial: w.edge.Dial, Download: w.download, Logger: w.logger("p2p"), Registerer: w.reg}
	w.disk.proof.ask(&client)
	w.client = p2p.NewClient(client)
	w.stop.addClose("close peer client", func() error { w.client.Close(); return nil })
	var order []p2p.Source
	for _, word := range w.o.Sources {
		order = append(order, sources[word])
	}
	swarm, err := p2p.NewSwarm(p2p.SwarmOptions{
		Name: w.o.Name, Colo: w.o.Colo, Pieces: w.client, Sources: order, Listener: w.ls.take(&w.ls.swarm), Dial: w.edge.Dial, Refused: w.refused("swarm"),
		Upload: pieces, Download: w.download,
		Logger: w.logger("swarm"), Registerer: w.reg,
	})
	if err != nil {
		return fmt.Errorf("start swarm: %w", err)
	}
	w.stop.addClose("close swarm", swarm.Close)
	w.swarm = swarm
	w.disk.infirmary.fetched = func() (n int64) {
		for _, from := range swarm.Totals() {
			n += from.Bytes
		}
		return n
	}
	w.shelf = &shelf{
		repo: w.disk.repo, swarm: swarm, sigs: w.sigs, logger: w.logger("snapshots"), changed: w.changed, broken: newSignal(), stocked: make(chan struct{}),
	}
	serve := p2p.ServerOptions{
		Log: w.disk.log, Digests: said{ownCopy{w.disk.store}, w.disk.infirmary}, Snapshot: w.shelf.describe, Pieces: swarm, Upload: upload, Egress: pieces,
		Refused: w.refused("peer"), Logger: w.logger("p2p"), Registerer: w.reg,
	}
	w.disk.proof.serve(&serve)
	server := p2p.NewServer(serve)
	w.stop.add("stop peer server", servePeers(w.ls.take(&w.ls.peer), server, w.logger("p2p")))
	return nil
}

// join starts the gossip.
func (w *wiring) join() error {
	addrs := w.ls.addresses
	var secured *gossip.TLS
	if w.creds != nil {
		secured = &gossip.TLS{
			Credentials: w.creds, Listener: w.ls.take(&w.ls.gossip), Dial: w.edge.Dial, Refused: w.refused("gossip"),
		}
	}
	g, err := gossip.Start(gossip.Options{
		Facts: gossip.Facts{
			Name: w.o.Name, Role: w.o.Role, Colo: w.o.Colo, Version: w.o.Version, Writer: w.disk.node.writer(),
			SwarmAddr: addrs.Swarm, PeerAddr: addrs.Peer, HTTPAddr: addrs.HTTP,
			Dataset: w.disk.log.Dataset(), State: string(replica.Joining),
		},
		Addr: w.o.GossipAddr, TLS: secured, Join: w.o.Join, Logger: w.logger("gossip"), Registerer: w.reg,
	})
	if err != nil {
		return listenError("--gossip-addr", w.o.GossipAddr, err)
	}
	w.stop.addClose("leave gossip", func() error {
		if err := g.Leave(leaveTimeout); err != nil {
			// Such as when the others go at the same time.
			w.o.Logger.Warn("could not tell the others that this node leaves; they will notice", "err", err)
		}
		return g.Close()
	})
	w.gossip, w.fleet = g, &fleet{gossip: g, colo: w.o.Colo}
	return nil
}

// live starts the replica and what keeps house around it.
func (w *wiring) live() (*publisher, *advertiser, error) {
	writes, manager := w.disk.node.writer(), w.o.Role == gossip.Manager
	var err error
	if w.compare, err = w.newComparer(); err != nil {
		return nil, nil, err
	}
	network := &network{
		compare: w.compare, fleet: w.fleet, client: w.client, swarm: w.swarm, shelf: w.shelf, sigs: w.sigs, proof: w.disk.proof, infirmary: w.disk.infirmary, log: w.disk.log, refuted: newDoubts(),
		changed: w.changed, fetching: map[chunker.InfoHash]chan struct{}{},
	}
	served := &served{fetch: w.swarm.Progress}
	becameReady := sync.OnceFunc(func() { close(w.ready) })
	c := replica.Config{
		Name: w.o.Name, Manager: manager, Log: replicaLog{w.disk.log}, Store: replicaStore{w.disk.store, network},
		Quarantine: w.disk.infirmary, Logger: w.logger("replica"), Registerer: w.reg,
		OnChange: func(st replica.Status) {
			if st.Ready {
				becameReady()
			}
			served.observe(st, time.Now())
			w.download.SetOwn(urgency(st))
			w.changed.notify()
		},
	}
	if !writes {
		c.Fleet, c.Network = w.fleet, network
	}
	w.disk.proof.follow(&c)
	rep, err := replica.New(c)
	if err != nil {
		return nil, nil, fmt.Errorf("start replica: %w", err)
	}
	w.replica, w.served = rep, served
	registerReplica(w.reg, w.disk, rep.Status)

	keep := &keeper{
		storage: w.disk, fleet: w.fleet, network: network, shelf: w.shelf, manager: manager, keep: w.o.KeepSnapshots, seeds: w.o.RetainSeeds, disk: newDiskBudget(w.o.Data, w.o.DiskBudget, w.logger("keeper"), w.reg),
		logger: w.logger("keeper"), sigs: w.sigs, disputed: newDoubts(), conflicts: newConflictsGauge(w.reg), warned: map[string]bool{}, warnings: rate.NewLimiter(rate.Every(time.Minute/10), 10), future: map[chunker.InfoHash]time.Time{},
	}
	w.mender = &mender{
		storage: w.disk, fleet: w.fleet, network: network, shelf: w.shelf, manager: manager, keep: w.o.KeepSnapshots, status: rep.Status,
		infirmary: w.disk.infirmary, logger: w.logger("snapshots"), tries: map[string]*attempt{},
	}
	w.sigs.register(w.reg, w.shelf)
	witness := &notary{
		storage: w.disk, fleet: w.fleet, network: network, shelf: w.shelf, sigs: w.sigs, keeper: keep, disputed: keep.disputed,
		stopped: w.compare.Stopped, logger: w.logger("signing"), tries: map[chunker.InfoHash]*attempt{}, verdicts: newNotaryMetric(w.reg),
	}
	if w.sigs.signer != nil && w.sigs.need > 1 {
		witness.replayer = &replayer{storage: w.disk, shelf: w.shelf, sigs: w.sigs, rate: w.o.MintRate}
	}
	publish := &publisher{
		role: w.o.Role, stopped: w.compare.Stopped, store: w.disk.store, shelf: w.shelf, keeper: keep, status: rep.Status, logger: w.logger("publisher"),
		writer: &writer{
			node: w.disk.node, self: w.o.Name, log: w.disk.log, fleet: w.fleet, tls: w.o.tls(), applied: rep.WaitApplied, halt: w.disk.halt, stuck: rep.Stuck,
		},
	}
	advertise := &advertiser{
		storage: w.disk, swarm: w.swarm, shelf: w.shelf, gossip: w.gossip, status: rep.Status,
		fail: w.fail, logger: w.logger("gossip"), changed: w.changed,
	}

	w.stop.add("stop background work", w.life.stop)
	if w.creds != nil {
		w.life.run(w.creds.Watch)
	}
	w.life.run(w.sigs.watch)
	w.life.run(witness.run)
	w.life.run(w.mender.run)
	w.life.run(w.disk.proof.run)
	w.life.run(w.disk.infirmary.watch)
	w.scrubber = newScrubber(w.o, filepath.Join(w.o.Data, scrubName), w.scrubbedParts(), w.logger("scrub"), w.reg)
	w.life.run(w.scrubber.run)
	w.life.run(w.compare.Run)
	mend := w.disk.logMender
	mend.fleet, mend.client, mend.log = w.fleet, w.client, w.disk.log
	w.life.run(mend.run)
	w.life.run(func(ctx context.Context) {
		if err := rep.Run(ctx); err != nil {
			w.fail(fmt.Errorf("replica stopped: %w", err))
		}
	})
	w.life.run(func(ctx context.Context) { followSwarm(ctx, w.fleet, w.swarm) })
	w.life.run(func(ctx context.Context) {
		retryReturned(ctx, func() ([]gossip.Member, <-chan struct{}) {
			changed := w.fleet.Changed()
			return w.fleet.others(), changed
		}, w.edge.Retry)
	})
	w.life.run(advertise.run)
	w.life.run(func(ctx context.Context) {
		if err := w.shelf.restock(ctx, w.disk.log.Dataset(), w.disk.linked); err != nil {
			w.o.Logger.Error("offering the snapshots on disk failed", "err", err)
		}
		keep.run(ctx)
	})
	switch {
	case writes && w.o.SnapshotEvery > 0:
		w.life.run(func(ctx context.Context) { publish.run(ctx, w.o.SnapshotEvery) })
	case manager && !writes:
		w.life.run(func(ctx context.Context) { keep.mirror(ctx, rep.Status) })
	}
	return publish, advertise, nil
}

// serve starts what users talk to.
func (w *wiring) serve(publish *publisher, advertise *advertiser, health func() error) {
	reads := &reads{store: w.disk.store, status: w.replica.Status, infirmary: w.disk.infirmary}
	access := newAccess(w.o.tls(), w.o.Clients, w.edge.Refused, w.reg)
	api := &api{
		reads: reads, writer: publish.writer, shelf: w.shelf, publisher: publish, scrubber: w.scrubber,
		members: func() []gossip.Member {
			members := slices.Clone(w.gossip.Members())
			advertise.fill(&members[0].Facts) // fresher than what gossip was told last
			return members
		},
		status: w.replica.Status, compare: w.compare, disk: publish.keeper.disk, progress: w.progress, health: health, access: access, logger: w.logger("http"),
	}
	w.stop.add("stop HTTP server", serveHTTP(w.ls.take(&w.ls.http), api.handler(w.reg), access, w.logger("http")))

	resp := newRESPServer(reads, publish.writer, access, w.o, w.reg, w.logger("resp"))
	w.stop.add("stop RESP server", resp.stop)
	for _, ln := range w.ls.takeRESP() {
		resp.serve(ln)
	}
}

// followGap is the least time between two looks at the fleet: while a thousand
// nodes fetch, something changes all the time.
const followGap = 100 * time.Millisecond

// followSwarm keeps the swarm's list of peers as gossip has it.
func followSwarm(ctx context.Context, f *fleet, swarm *p2p.Swarm) {
	var known []p2p.Peer
	for {
		changed := f.Changed()
		if peers := f.swarmPeers(); !reflect.DeepEqual(peers, known) {
			swarm.SetPeers(peers)
			known = peers
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		if !pause(ctx, followGap) {
			return
		}
	}
}

// retryReturned ends the back-off of the addresses of nodes that came back, or came to
// life again: whoever follows a writer should not wait because that was away.
func retryReturned(ctx context.Context, others func() ([]gossip.Member, <-chan struct{}), retry func(addr string)) {
	type life struct {
		incarnation uint64
		since       time.Time
	}
	known := map[string]life{}
	for {
		members, changed := others()
		here := map[string]life{}
		for _, m := range members {
			l := life{m.Incarnation, m.Since}
			if here[m.Name] = l; known[m.Name] != l {
				for _, addr := range []string{m.Addr, m.PeerAddr, m.SwarmAddr} {
					retry(addr)
				}
			}
		}
		known = here
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		if !pause(ctx, followGap) {
			return
		}
	}
}

// urgency tells of which class the pieces are that a node fetches for itself.
func urgency(st replica.Status) p2p.Class {
	if st.State == replica.Repairing {
		return p2p.Repair
	}
	return p2p.Rebuild
}
