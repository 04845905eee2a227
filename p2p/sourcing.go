package p2p

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/anacrolix/torrent"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/p2p/lease"
)

const (
	// workerWindow is how many blocks are requested at a time from a worker.
	workerWindow = 4
	// sourcingInterval is how often a fetch looks for whom else to ask.
	sourcingInterval = 100 * time.Millisecond
	// holdingsInterval is how often a source that is not complete is asked what
	// it has.
	holdingsInterval = 500 * time.Millisecond
	holdingsTimeout  = 10 * time.Second
	// A piece that does not come in crawlAfter and at crawlRate, in bytes per
	// second, is asked from another source, if there is one.
	crawlAfter = 15 * time.Second
	crawlRate  = 64 << 10
	// connectGrace is how long a fetch waits for a connection to a worker of its
	// colo that has the snapshot before it asks anybody else.
	connectGrace = 2 * time.Second
	// maxAsked bounds the pieces that are being received from sources, in bytes.
	maxAsked = 32 << 20
)

// PieceClient asks sources, outside the colo's swarm, for pieces. *Client is one.
type PieceClient interface {
	// Piece fills buf with a piece. The errors that matter are ErrNotHeld,
	// *LeasedError and *BusyError.
	Piece(ctx context.Context, from Target, ih chunker.InfoHash, index int, buf []byte) error
	// Have returns which of so many pieces a source has.
	Have(ctx context.Context, from Target, ih chunker.InfoHash, pieces int) ([]bool, error)
}

// sourcing gets a fetch the pieces that are not in its colo yet, as package
// lease decides.
type sourcing struct {
	swarm *Swarm
	h     *holding
	epoch time.Time // lease's times are since then
	wake  chan struct{}
	tasks sync.WaitGroup

	mu       sync.Mutex // below Swarm.mu; guards what follows
	plan     *lease.Plan
	sources  []origin
	fetchers []string
	colos    []string
	asked    int64 // bytes of pieces being received
}

// origin is a source as it is reached.
type origin struct {
	lease.Source
	id     torrent.PeerID
	addr   string
	polled time.Time // when it was last asked what it has; far ahead while it is
}

func (o origin) target() Target { return Target{Name: o.Name, Addr: o.addr} }

// source makes ready to ask for the pieces that are not good.
func (h *holding) source(good []bool) {
	s := h.swarm
	so := &sourcing{
		swarm: s, h: h, epoch: time.Now(), wake: make(chan struct{}, 1),
		plan: lease.NewPlan(s.o.Name, s.o.Colo, h.torrent.InfoHash(), h.torrent.Pieces()),
	}
	for i, ok := range good {
		if ok {
			so.plan.Held(i)
		}
	}
	s.mu.Lock()
	h.sourcing, h.seen, h.pending = so, make([]int, h.torrent.Pieces()), make(map[int]pending)
	h.coming = make(map[int]time.Time)
	h.offers = newOffers(good)
	h.offerAny()
	s.mu.Unlock()
}

// start asks until stop is called, which waits.
func (so *sourcing) start() (stop func()) {
	if so.swarm.o.Pieces == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(so.h.ctx)
	so.tasks.Go(func() { so.run(ctx) })
	return func() {
		cancel()
		so.tasks.Wait()
	}
}

func (so *sourcing) now() time.Duration { return time.Since(so.epoch) }

// run asks sources until ctx ends.
func (so *sourcing) run(ctx context.Context) {
	ticker := time.NewTicker(sourcingInterval)
	defer ticker.Stop()
	for {
		so.survey(time.Now())
		so.ask(ctx)
		for again := true; again; {
			select {
			case <-ctx.Done():
				return
			case <-so.wake:
				so.ask(ctx)
			case <-ticker.C:
				again = false
			}
		}
	}
}

func (so *sourcing) poke() {
	select {
	case so.wake <- struct{}{}:
	default:
	}
}

// survey tells the plan who else fetches and who can be asked.
func (so *sourcing) survey(now time.Time) {
	fetchers, colos, sources := so.swarm.around(so.h, now)
	so.mu.Lock()
	defer so.mu.Unlock()
	if !slices.Equal(fetchers, so.fetchers) || !slices.Equal(colos, so.colos) {
		so.fetchers, so.colos = fetchers, colos
		so.plan.SetFetchers(fetchers, colos)
	}
	list := make([]lease.Source, len(sources))
	for i := range sources {
		list[i] = sources[i].Source
		if j := slices.IndexFunc(so.sources, func(old origin) bool { return old.Name == sources[i].Name }); j >= 0 {
			sources[i].polled = so.sources[j].polled
		}
	}
	if !slices.EqualFunc(sources, so.sources, func(a, b origin) bool { return a.Source == b.Source }) {
		so.plan.SetSources(list)
	}
	so.sources = sources
}

// around returns the workers of the colo that fetch the same snapshot, the
// colos in which somebody does, and the sources there are.
func (s *Swarm) around(h *holding, now time.Time) (fetchers, colos []string, sources []origin) {
	ih := h.torrent.InfoHash()
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := now.Sub(h.sourcing.epoch) < connectGrace && !s.seederLinked(h)
	var others []lease.Candidate
	for id, p := range s.roster {
		holds, fetches := slices.Contains(p.Holds, ih), p.Fetching == ih
		switch {
		case s.inColo(p, ih):
			if holds && waiting {
				return nil, nil, nil // it is about to be connected
			}
			if fetches {
				fetchers = append(fetchers, p.Name)
			}
		case s.isShunned(id, now):
		case p.Manager && holds:
			sources = append(sources, s.origin(id, p, true))
		case !p.Manager && (holds || fetches):
			others = append(others, lease.Candidate{Name: p.Name, Colo: p.Colo, Complete: holds})
		}
		if fetches && !slices.Contains(colos, p.Colo) {
			colos = append(colos, p.Colo)
		}
	}
	for _, l := range s.links {
		if p, listed := s.roster[l.peer]; l.holding == h && listed && l.has != nil && l.count < len(l.has) && s.inColo(p, ih) {
			fetchers = append(fetchers, p.Name) // gossip may be late
		}
	}
	slices.Sort(fetchers)
	slices.Sort(colos)
	for _, name := range lease.Gateways(s.o.Colo, others) {
		id := peerID(name)
		p := s.roster[id]
		sources = append(sources, s.origin(id, p, slices.Contains(p.Holds, ih)))
	}
	slices.SortFunc(sources, func(a, b origin) int { return cmp.Compare(a.Name, b.Name) })
	return slices.Compact(fetchers), colos, slices.DeleteFunc(sources, func(src origin) bool { return src.Cost < 0 || src.addr == "" })
}

func (s *Swarm) origin(id torrent.PeerID, p Peer, complete bool) origin {
	return origin{
		Source: lease.Source{Name: p.Name, Cost: slices.Index(s.o.Sources, s.source(p)), Complete: complete},
		id:     id, addr: p.PeerAddr,
	}
}

// inColo says whether a peer belongs to the swarm inside this node's colo. s.mu
// is held.
func (s *Swarm) inColo(p Peer, ih chunker.InfoHash) bool {
	return p.Colo == s.o.Colo && (!p.Manager || p.Fetching == ih)
}

// seederLinked says whether somebody who has everything is connected. s.mu is held.
func (s *Swarm) seederLinked(h *holding) bool {
	for _, l := range s.links {
		if l.holding == h && l.has != nil && l.count == len(l.has) {
			return true
		}
	}
	return false
}

// ask sends every source as many requests as it should have.
func (so *sourcing) ask(ctx context.Context) {
	so.mu.Lock()
	defer so.mu.Unlock()
	now := so.now()
	for k := range so.sources {
		src := &so.sources[k]
		from := *src
		if !src.Complete && time.Since(src.polled) >= holdingsInterval {
			src.polled = time.Now().Add(holdingsTimeout)
			so.tasks.Go(func() { so.poll(ctx, from) })
		}
		for so.asked == 0 || so.asked < maxAsked {
			i, why, ok := so.plan.Next(src.Name, now)
			if !ok {
				break
			}
			size := so.h.torrent.PieceSize(i)
			so.asked += size
			so.swarm.metrics.asked.WithLabelValues(why.String()).Inc()
			so.tasks.Go(func() { so.get(ctx, from, i, size) })
		}
	}
}

// poll asks a source what it has.
func (so *sourcing) poll(ctx context.Context, src origin) {
	t := so.h.torrent
	ctx, cancel := context.WithTimeout(ctx, holdingsTimeout)
	defer cancel()
	has, err := so.swarm.o.Pieces.Have(ctx, src.target(), t.InfoHash(), t.Pieces())
	so.mu.Lock()
	for k := range so.sources {
		if so.sources[k].Name == src.Name {
			so.sources[k].polled = time.Now()
		}
	}
	if err == nil {
		so.plan.Holds(src.Name, has)
	}
	so.mu.Unlock()
	if err != nil {
		so.swarm.o.Logger.Debug("a source does not tell what it has", "peer", src.Name, "err", err)
		return
	}
	so.poke()
}

// get asks a source for a piece.
func (so *sourcing) get(ctx context.Context, src origin, i int, size int64) {
	buf := pieceBuffers.Get().(*[]byte)
	defer pieceBuffers.Put(buf)
	*buf = slices.Grow((*buf)[:0], int(size))[:size]
	asking, cancel := so.patience(ctx, size)
	defer cancel()
	so.swarm.expect(so.h, i, true)
	defer so.swarm.expect(so.h, i, false)
	err := so.swarm.o.Pieces.Piece(asking, src.target(), so.h.torrent.InfoHash(), i, *buf)
	result, retry := lease.Received, time.Duration(0)
	var leased *LeasedError
	var busy *BusyError
	switch {
	case err == nil:
		if !so.take(src, i, *buf) {
			result = lease.Failed
		}
	case errors.Is(err, ErrNotHeld):
		result = lease.NotHeld
	case errors.As(err, &leased):
		result, retry = lease.Leased, leased.Retry
	case errors.As(err, &busy):
		result, retry = lease.Busy, busy.Retry
	default:
		result = lease.Failed
		if ctx.Err() == nil {
			so.swarm.o.Logger.Debug("a source failed", "peer", src.Name, "piece", i, "err", err)
		}
	}
	so.mu.Lock()
	so.asked -= size
	so.plan.Finish(src.Name, i, result, retry, so.now())
	so.mu.Unlock()
	so.poke()
}

// patience bounds how long a source may take for a piece that another could give.
func (so *sourcing) patience(ctx context.Context, size int64) (context.Context, context.CancelFunc) {
	so.mu.Lock()
	defer so.mu.Unlock()
	if len(so.sources) == 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, crawlAfter+time.Duration(size)*time.Second/crawlRate)
}

var pieceBuffers = sync.Pool{New: func() any { return new([]byte) }}

// take puts a piece that a source sent into the torrent and tells its swarm.
func (so *sourcing) take(src origin, i int, data []byte) (good bool) {
	good, err := so.h.store.put(i, data, src.id)
	if err != nil || !good {
		return false // the store has told the holding
	}
	so.h.lib.Piece(i).UpdateCompletion()
	return true
}

// have, lost, see and active tell the plan what happened. Swarm.mu may be held.

func (so *sourcing) have(i int) {
	so.mu.Lock()
	defer so.mu.Unlock()
	so.plan.Have(i, so.now())
}

func (so *sourcing) lost(i int) {
	so.mu.Lock()
	defer so.mu.Unlock()
	so.plan.Lost(i)
}

func (so *sourcing) see(i, workers int) {
	so.mu.Lock()
	defer so.mu.Unlock()
	so.plan.Seen(i, workers, so.now())
}

func (so *sourcing) active() {
	so.mu.Lock()
	defer so.mu.Unlock()
	so.plan.Active(so.now())
}
