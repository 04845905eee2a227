package p2p

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/anacrolix/torrent"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/p2p/graph"
)

const (
	// keepInterval is how often the keeper looks at what is being fetched.
	keepInterval = 200 * time.Millisecond

	// A peer is dialled again after redialMin, doubled with each failure up to
	// redialMax, ± 50%.
	redialMin = 250 * time.Millisecond
	redialMax = 8 * time.Second
	// A connection that delivered something, or lasted for provenAfter, makes
	// the failures before it forgotten.
	provenAfter = 5 * time.Second
	// politeDelay is how long the peer that should be dialled waits for the
	// other to do it, so that two do not dial each other at once.
	politeDelay = 100 * time.Millisecond

	// stallAfter is how long a fetch may receive nothing, while connected to
	// peers that have what it lacks, before their connections are made anew. It
	// doubles with each time in a row, up to stallMax.
	stallAfter = 10 * time.Second
	stallMax   = 2 * time.Minute

	// A peer that sent damaged data is shunned for shunMin, doubled with each
	// time up to shunMax.
	shunMin = 5 * time.Second
	shunMax = 5 * time.Minute
	// shunMemory is how long after it damage is remembered.
	shunMemory = 30 * time.Minute
)

// dial is what is known about reaching a peer for one torrent.
type dial struct {
	failures int
	next     time.Time
}

// shun is what a peer has earned by sending damaged data. It is kept by peer id,
// which follows from the name, hence with TLS from the certificate.
type shun struct {
	strikes int // pieces that it alone, or perhaps it, spoilt
	struck  time.Time
	until   time.Time
}

// praise forgives one strike for a good piece.
func (s *shun) praise() { s.strikes = max(0, s.strikes-1) }

// blame notes that a peer contributed to a damaged piece. If others did too,
// it takes two such pieces to be shunned. s.mu is held.
func (s *Swarm) blame(id torrent.PeerID, alone bool) {
	sh := s.shunned[id]
	if sh == nil {
		sh = new(shun)
		s.shunned[id] = sh
	}
	sh.strikes++
	sh.struck = time.Now()
	if alone || sh.strikes > 1 {
		sh.until = sh.struck.Add(backoff(shunMin, shunMax, sh.strikes))
		s.o.Refused(Damaged, s.called(id), fmt.Errorf("it sent a damaged piece and is shunned for %v", sh.until.Sub(sh.struck).Round(time.Second)))
	}
}

// called returns what a peer is called in messages. s.mu is held.
func (s *Swarm) called(id torrent.PeerID) string {
	if p, listed := s.roster[id]; listed {
		return p.Name
	}
	return "peer id " + dialName(id).String()
}

// checkShunned returns an error if a peer is not to be connected to.
func (s *Swarm) checkShunned(id torrent.PeerID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.isShunned(id, now) {
		left := s.shunned[id].until.Sub(now).Round(time.Second)
		return &trust.RefusedError{Reason: Shunned, Err: fmt.Errorf("it sent damaged pieces and is shunned for another %v", left)}
	}
	return nil
}

// forgetShuns forgets peers that did no damage for long. s.mu is held.
func (s *Swarm) forgetShuns(now time.Time) {
	for id, sh := range s.shunned {
		if now.Sub(sh.struck) > shunMemory {
			delete(s.shunned, id)
		}
	}
}

// isShunned reports whether a peer is not to be connected to. s.mu is held.
func (s *Swarm) isShunned(id torrent.PeerID, now time.Time) bool {
	sh := s.shunned[id]
	return sh != nil && now.Before(sh.until)
}

// backoff returns least × 2^(n-1), at most most, ± 50%.
func backoff(least, most time.Duration, n int) time.Duration {
	d := least << min(max(n-1, 0), 16)
	return time.Duration(float64(min(d, most)) * (0.5 + rand.Float64()))
}

// keep looks after connections until ctx ends.
func (s *Swarm) keep(ctx context.Context) {
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-ticker.C:
		}
		s.tend(time.Now())
	}
}

// tend decides with mu held and acts without it.
func (s *Swarm) tend(now time.Time) {
	type work struct {
		holding *holding
		dial    []torrent.PeerID
		stalled []*torrent.PeerConn
	}
	var todo []work
	var damaged []*holding
	var hangUp []*torrent.PeerConn
	s.mu.Lock()
	s.forgetShuns(now)
	for c, l := range s.links {
		// After damage here, peers connect again and hear what is left.
		if s.isShunned(l.peer, now) || l.holding.damaged {
			hangUp = append(hangUp, c)
		}
	}
	for _, h := range s.holdings {
		if h.damaged {
			h.damaged = false
			damaged = append(damaged, h)
		}
		if h.fetching {
			todo = append(todo, work{h, s.toDial(h, now), s.stalled(h, now)})
		}
	}
	s.mu.Unlock()

	for _, h := range damaged {
		for _, i := range h.store.bad() {
			s.lose(h, i)
			h.lib.Piece(i).UpdateCompletion()
		}
	}
	for _, c := range hangUp {
		c.Close()
	}
	for _, w := range todo {
		var infos []torrent.PeerInfo
		for _, id := range w.dial {
			infos = append(infos, torrent.PeerInfo{Id: id, Addr: dialName(id), Source: torrent.PeerSourceDirect, Trusted: true})
		}
		if len(infos) > 0 {
			w.holding.lib.AddPeers(infos)
		}
		s.unstall(w.holding, w.stalled)
	}
}

// lose notes that a piece is missing again, unless it came in just now.
func (s *Swarm) lose(h *holding, i int) {
	in := &h.store.incoming[i]
	in.mu.Lock() // held from when a piece is told to be good until it counts as such
	defer in.mu.Unlock()
	if h.sourcing == nil || h.store.isGood(i) {
		return
	}
	s.mu.Lock()
	h.missAgain(i)
	s.mu.Unlock()
	h.sourcing.lost(i)
}

// toDial returns the peers to be dialled now for a torrent: the neighbours in
// this node's colo that the graph wants, and others in their place while some
// are out of reach. s.mu is held.
func (s *Swarm) toDial(h *holding, now time.Time) []torrent.PeerID {
	connected := make(map[torrent.PeerID]bool)
	for _, l := range s.links {
		if l.holding != h {
			continue
		}
		connected[l.peer] = true
		if d := h.dials[l.peer]; d != nil && now.Sub(l.since) > provenAfter {
			d.failures = 0
		}
	}
	var peers []torrent.PeerID
	for id, p := range s.roster {
		if s.inColo(p, h.torrent.InfoHash()) {
			peers = append(peers, id)
		}
	}
	order, want := graph.Order(h.torrent.InfoHash(), s.self, peers)
	return s.dialAmong(h, order, want, connected, now)
}

// dialAmong chooses among the first want of an order, and for each of them that
// is out of reach one of those after them. s.mu is held.
func (s *Swarm) dialAmong(h *holding, order []torrent.PeerID, want int, connected map[torrent.PeerID]bool, now time.Time) (ids []torrent.PeerID) {
	spare, lost := 0, 0
	for _, id := range order[min(want, len(order)):] {
		if connected[id] {
			spare++
		}
	}
	for i, id := range order {
		if i >= want && spare >= lost {
			break
		}
		if connected[id] {
			continue
		}
		shunned := s.isShunned(id, now)
		if d := h.dials[id]; i < want && (shunned || d != nil && d.failures > 1) {
			lost++
		}
		if shunned || !h.due(id, s.self, now) {
			continue
		}
		if i >= want {
			spare++
		}
		ids = append(ids, id)
	}
	return ids
}

// due reports whether a peer that is not connected is to be dialled now, and
// notes that it is. Swarm.mu is held.
func (h *holding) due(id, self torrent.PeerID, now time.Time) bool {
	d := h.dials[id]
	if d == nil {
		d = new(dial)
		h.dials[id] = d
		// Of two connections between a pair the client keeps the one that the
		// higher id opened.
		if bytes.Compare(self[:], id[:]) < 0 {
			d.next = now.Add(politeDelay)
		}
	}
	if now.Before(d.next) {
		return false
	}
	d.failures++
	d.next = now.Add(backoff(redialMin, redialMax, d.failures))
	return true
}

// stalled returns the connections of a torrent if it received nothing for too
// long. s.mu is held.
func (s *Swarm) stalled(h *holding, now time.Time) []*torrent.PeerConn {
	patience := min(stallAfter<<min(h.stalls, 8), stallMax)
	if now.Sub(h.lastData) < patience {
		return nil
	}
	var conns []*torrent.PeerConn
	for c, l := range s.links {
		if l.holding == h && now.Sub(l.since) >= stallAfter {
			conns = append(conns, c)
		}
	}
	return conns
}

// unstall closes those connections whose peer has pieces that are missing here:
// something is wrong with them. They are dialled again.
func (s *Swarm) unstall(h *holding, conns []*torrent.PeerConn) {
	closed := 0
	for _, c := range conns {
		if h.store.lacksAnyOf(c.PeerPieces()) {
			c.Close()
			closed++
		}
	}
	if closed == 0 {
		return
	}
	s.metrics.stalls.Inc()
	s.o.Logger.Warn("fetch stalled: connections are made anew", "torrent", h.torrent.Name(), "connections", closed)
	s.mu.Lock()
	h.stalls++
	h.lastData = time.Now()
	s.mu.Unlock()
}
