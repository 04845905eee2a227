package gossip

import "time"

// AdvanceClock makes g's record as new as if g had started with a clock that is
// d ahead.
func (g *Gossip) AdvanceClock(d time.Duration) {
	g.view.mu.Lock()
	g.view.self.incarnation += uint64(d)
	g.view.encodeSelf()
	g.view.mu.Unlock()
	g.publishSoon()
}
