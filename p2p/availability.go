package p2p

import (
	"time"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"
)

// hideFor is how long the client is not told who else has a piece that it has
// just asked somebody for.
const hideFor = time.Second

// pending is a piece that the client has asked a peer for.
type pending struct {
	link *link // nil: that connection is closed
	at   time.Time
}

// announced notes which pieces a connected peer says it has, so that nobody
// outside the colo is asked for what is inside. s.mu is held.
func (s *Swarm) announced(l *link, m *pp.Message) {
	so := l.holding.sourcing
	if so == nil {
		return // seeding: nothing is missing here
	}
	if l.has == nil {
		l.has = make([]bool, l.holding.torrent.Pieces())
	}
	switch m.Type {
	case pp.Have:
		if i := int(m.Index); i < len(l.has) {
			l.set(i, true)
			s.hide(l, i, m)
		}
	case pp.HaveAll, pp.HaveNone:
		for i := range l.has {
			l.set(i, m.Type == pp.HaveAll)
		}
	case pp.Bitfield:
		for i := range l.has {
			l.set(i, i < len(m.Bitfield) && m.Bitfield[i])
		}
	}
	l.holding.offerSome(l)
}

// hide keeps from the client that a peer has a piece which it gets from another
// just now: it would move its request there, when the other is already sending,
// and at each such message it considers anew what to ask of whom, which is most of its
// work. s.mu is held.
func (s *Swarm) hide(l *link, i int, m *pp.Message) {
	h := l.holding
	if h.store.isGood(i) || !h.waits(i, l, time.Now()) {
		return
	}
	if l.hidden == nil {
		l.hidden = make(map[int]struct{})
	}
	l.hidden[i] = struct{}{}
	*m = pp.Message{Keepalive: true}
}

// waits says whether a piece is coming from another peer than l. Swarm.mu is held.
func (h *holding) waits(i int, l *link, now time.Time) bool {
	p, asked := h.pending[i]
	return asked && p.link != nil && p.link != l && now.Sub(p.at) < hideFor
}

// overdue reports whether a hidden piece did not come from elsewhere in time. Then the
// connection is nudged: peers say nothing of their own accord who want nothing. Swarm.mu is held.
func (l *link) overdue(now time.Time) bool {
	for i := range l.hidden {
		if l.holding.store.isGood(i) {
			delete(l.hidden, i)
		} else if !l.holding.waits(i, l, now) {
			return true
		}
	}
	return false
}

// reveal makes a message that says nothing say which hidden pieces the peer has that did
// not come from elsewhere in time. s.mu is held.
func (s *Swarm) reveal(l *link, m *pp.Message) {
	now := time.Now()
	if !l.overdue(now) {
		return
	}
	for i := range l.hidden {
		if !l.holding.waits(i, l, now) {
			delete(l.hidden, i)
		}
	}
	bits := make([]bool, (len(l.has)+7)/8*8) // the client wants whole bytes
	for i, has := range l.has {
		_, hidden := l.hidden[i]
		bits[i] = has && !hidden
	}
	*m = pp.Message{Type: pp.Bitfield, Bitfield: bits}
}

// requested follows each request that the client sends, which calls it with its
// lock held.
func (s *Swarm) requested(e torrent.PeerRequestEvent) {
	c, ok := e.Peer.TryAsPeerConn()
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.links[c]; l != nil && l.holding.sourcing != nil {
		l.holding.pending[int(e.Index)] = pending{l, time.Now()}
	}
}

// set counts a piece that the peer has, or has no more. Swarm.mu is held.
func (l *link) set(i int, has bool) {
	if l.has[i] == has {
		return
	}
	l.has[i] = has
	n := change(has)
	l.count += n
	l.offers[l.holding.offers.state[i]] += n
	l.holding.seen[i] += n
	l.holding.sourcing.see(i, l.holding.seen[i])
}

func change(up bool) int {
	if up {
		return 1
	}
	return -1
}

// forget takes back what a peer that is gone had. Swarm.mu is held.
func (l *link) forget() {
	for i, p := range l.holding.pending {
		if p.link == l {
			l.holding.pending[i] = pending{}
		}
	}
	for i := range l.has {
		l.set(i, false)
	}
}
