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
	// other to do it, so that two do not dial each other at once; and politeLonger if
	// it is known that the other fetches the same, and so does. Handshakes of many
	// nodes that start at once take that long.
	politeDelay  = 100 * time.Millisecond
	politeLonger = 500 * time.Millisecond
	// settledAfter is how long nobody new was heard of when all are taken to be known.
	settledAfter = time.Second

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
	connecting := s.network.connecting()
	s.mu.Lock()
	s.forgetShuns(now)
	for c, l := range s.links {
		if l.conn != nil && l.overdue(now) {
			l.conn.nudge.give(l.conn.Conn)
		}
		if l.has != nil && l.holding.fetching {
			l.holding.offerSome(l)
		}
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
			todo = append(todo, work{h, s.toDial(h, connecting, now), s.stalled(h, now)})
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
// are out of reach. Those who are connecting are not: handshakes take seconds where
// processors are busy, and to dial again, or somebody else, makes them busier. s.mu is held.
func (s *Swarm) toDial(h *holding, connecting map[torrent.PeerID]bool, now time.Time) []torrent.PeerID {
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
	return s.dialAmong(h, order, want, connected, connecting, now)
}

// dialAmong chooses among the first want of an order, and for each of them that
// is out of reach one of those after them. s.mu is held.
//
// Nodes that start at once hear of each other little by little, and each one more
// makes others neighbours. Who would dial them all ended up with everybody. So beyond
// some connections only neighbours on the first ring are dialled, by which all
// are connected: beyond half of graph.Degree (others dial as many) as long as more are
// heard of, then graph.Degree, and all if they are few.
func (s *Swarm) dialAmong(h *holding, order []torrent.PeerID, want int, connected, connecting map[torrent.PeerID]bool, now time.Time) (ids []torrent.PeerID) {
	enough := graph.Degree
	if now.Sub(s.grown) < settledAfter {
		enough /= 2
	} else if want == len(order) {
		enough = want
	}
	spare, lost, have := 0, 0, 0
	for i, id := range order {
		if !connected[id] && (!connecting[id] || h.failed(id)) {
			continue
		}
		if have++; i >= want {
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
		failed := shunned || h.failed(id)
		if failed && i < want {
			lost++
		}
		if have >= enough && i >= graph.FirstRing || connecting[id] || shunned || !h.due(id, s.polite(h, id), now) {
			continue
		}
		if i >= want {
			spare++
		}
		if !failed {
			have++
		}
		ids = append(ids, id)
	}
	return ids
}

// failed reports whether a peer seems to be out of reach. Swarm.mu is held.
func (h *holding) failed(id torrent.PeerID) bool {
	d := h.dials[id]
	return d != nil && d.failures > 1
}

// polite returns for how long a peer is to be waited for before it is dialled. s.mu
// is held.
func (s *Swarm) polite(h *holding, id torrent.PeerID) time.Duration {
	// Of two connections between a pair the client keeps the one that the
	// higher id opened.
	switch {
	case bytes.Compare(s.self[:], id[:]) > 0:
		return 0
	case s.roster[id].Fetching == h.torrent.InfoHash():
		return politeLonger
	default:
		return politeDelay
	}
}

// due reports whether a peer that is not connected is to be dialled now, and
// notes that it is. The first time it is not before so long. Swarm.mu is held.
func (h *holding) due(id torrent.PeerID, first time.Duration, now time.Time) bool {
	d := h.dials[id]
	if d == nil {
		d = &dial{next: now.Add(first)}
		h.dials[id] = d
	}
	if now.Before(d.next) {
		return false
	}
	d.failures++
	d.next = now.Add(backoff(redialMin, redialMax, d.failures))
	return true
}

// stalled returns the connections of a torrent whose peers have what it lacks, if it
// received nothing for too long. s.mu is held.
func (s *Swarm) stalled(h *holding, now time.Time) []*torrent.PeerConn {
	patience := min(stallAfter<<min(h.stalls, 8), stallMax)
	if now.Sub(h.lastData) < patience {
		return nil
	}
	var conns []*torrent.PeerConn
	for c, l := range s.links {
		if l.holding == h && now.Sub(l.since) >= stallAfter && h.store.lacksAnyOf(l.has) {
			conns = append(conns, c)
		}
	}
	return conns
}

// unstall closes connections that brought nothing of what is missing here: something
// is wrong with them. They are dialled again.
func (s *Swarm) unstall(h *holding, conns []*torrent.PeerConn) {
	if len(conns) == 0 {
		return
	}
	for _, c := range conns {
		c.Close()
	}
	s.metrics.stalls.Inc()
	s.o.Logger.Warn("fetch stalled: connections are made anew", "torrent", h.torrent.Name(), "connections", len(conns))
	s.mu.Lock()
	h.stalls++
	h.lastData = time.Now()
	s.mu.Unlock()
}
