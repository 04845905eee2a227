package p2p

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// offeredPerLink is how many missing pieces of each connected peer the torrent
// client may know to be missing.
//
// At each message the client considers anew all pieces it could ask for and, first,
// those it could not, because nobody has them yet. With 1,024 of them that was
// its dearest work. It passes over pieces whose completion the storage does not know,
// so that is what it hears of all but a few: of each peer's, as many as keep the peer busy,
// chosen at random, lest peers that are equally far ask for the same.
const offeredPerLink = 64

// offeredAlways is how many missing pieces the client knows of though no peer has
// them: while it lacks nothing it wants no connections.
const offeredAlways = 4

// offers is which pieces the client knows to be missing. Swarm.mu guards it.
type offers struct {
	state []offerState // by piece
	count [offerStates]int
	queue []int // offered, and not yet told
	wake  chan struct{}
}

type offerState uint8

const (
	untold  offerState = iota // missing, and the client does not know
	offered                   // missing, and the client does or is about to
	settled                   // not missing
	offerStates
)

func newOffers(good []bool) *offers {
	o := &offers{state: make([]offerState, len(good)), wake: make(chan struct{}, 1)}
	for i := range good {
		if good[i] {
			o.state[i] = settled
		}
		o.count[o.state[i]]++
	}
	return o
}

// move changes a piece's state, and what is counted of its peers. Swarm.mu is held.
func (h *holding) move(i int, to offerState) {
	from := h.offers.state[i]
	h.offers.state[i] = to
	h.offers.count[from]--
	h.offers.count[to]++
	for l := range h.linksWith(i) {
		l.offers[from]--
		l.offers[to]++
	}
}

// linksWith returns the connections to peers that have a piece. Swarm.mu is held.
func (h *holding) linksWith(i int) func(func(*link) bool) {
	return func(yield func(*link) bool) {
		for _, l := range h.swarm.links {
			if l.holding == h && l.has != nil && l.has[i] && !yield(l) {
				return
			}
		}
	}
}

// expect notes that a piece was asked of a source, or no longer is.
func (s *Swarm) expect(h *holding, i int, coming bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if coming {
		h.coming[i] = time.Now()
	} else {
		delete(h.coming, i)
	}
}

// offerSome sees to it that the client knows enough of what a peer has. Not of what
// comes from a source just now: it would ask for it a second time. The keeper
// looks again for what did not come. Swarm.mu is held.
func (h *holding) offerSome(l *link) {
	now := time.Now()
	h.offer(func(i int) bool {
		asked, coming := h.coming[i]
		return l.has[i] && !(coming && now.Sub(asked) < hideFor)
	}, func() bool {
		return l.offers[untold] > 0 && l.offers[offered] < offeredPerLink
	})
}

// offerAny sees to it that the client knows that something is missing. Swarm.mu is held.
func (h *holding) offerAny() {
	h.offer(func(int) bool { return true }, func() bool {
		return h.offers.count[untold] > 0 && h.offers.count[offered] < offeredAlways
	})
}

// offer offers pieces of a kind, of which there is one as long as more says so.
func (h *holding) offer(kind func(i int) bool, more func() bool) {
	o := h.offers
	if !more() {
		return
	}
	start := rand.IntN(len(o.state))
	for k := 0; k < len(o.state) && more(); k++ {
		if i := (start + k) % len(o.state); o.state[i] == untold && kind(i) {
			h.move(i, offered)
			o.queue = append(o.queue, i)
		}
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// settlePiece follows a piece that is no longer missing. Swarm.mu is held.
func (h *holding) settlePiece(i int) {
	if h.offers == nil || h.offers.state[i] == settled {
		return
	}
	h.move(i, settled)
	for l := range h.linksWith(i) {
		h.offerSome(l)
	}
	h.offerAny()
}

// missAgain follows a piece that was good and is not any more. Swarm.mu is held.
func (h *holding) missAgain(i int) {
	if h.offers != nil && h.offers.state[i] == settled {
		h.move(i, offered)
		h.store.tell(i)
	}
}

// start tells the client of offers until stop is called, which waits. The client
// calls back with its lock held, so it can not be told at once.
func (o *offers) start(h *holding) (stop func()) {
	ctx, cancel := context.WithCancel(h.ctx)
	var telling sync.WaitGroup
	telling.Go(func() { h.tell(ctx) })
	return func() {
		cancel()
		telling.Wait()
	}
}

func (h *holding) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.offers.wake:
		}
		h.swarm.mu.Lock()
		queue := h.offers.queue
		h.offers.queue = nil
		h.swarm.mu.Unlock()
		for _, i := range queue {
			h.store.tell(i)
			h.lib.Piece(i).UpdateCompletion()
		}
	}
}
