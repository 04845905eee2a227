package p2p

import (
	pp "github.com/anacrolix/torrent/peer_protocol"
)

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
}

// set counts a piece that the peer has, or has no more. Swarm.mu is held.
func (l *link) set(i int, has bool) {
	if l.has[i] == has {
		return
	}
	l.has[i] = has
	n := 1
	if !has {
		n = -1
	}
	l.count += n
	l.holding.seen[i] += n
	l.holding.sourcing.see(i, l.holding.seen[i])
}

// forget takes back what a peer that is gone had. Swarm.mu is held.
func (l *link) forget() {
	for i := range l.has {
		l.set(i, false)
	}
}
