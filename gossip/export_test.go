package gossip

import (
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// AdvanceClock makes g's record as new as if g had started with a clock that is
// d ahead.
func (g *Gossip) AdvanceClock(d time.Duration) {
	g.view.mu.Lock()
	g.view.self.incarnation += uint64(d)
	g.view.encodeSelf()
	g.view.mu.Unlock()
	g.publishSoon()
}

// Sealed is a signed record that a test may spoil.
type Sealed struct{ e envelope }

// Seal returns the record of facts at a gossip address, signed by c.
func Seal(c *trust.Credentials, f Facts, addr string, incarnation uint64) (*Sealed, error) {
	r := record{key: key{name: f.Name, addr: addr}, version: version{incarnation: incarnation}, facts: f}
	if err := r.encode(); err != nil {
		return nil, err
	}
	if err := newNotary(c).sign(&r, time.Now()); err != nil {
		return nil, err
	}
	return &Sealed{envelope{record: r.raw, signature: r.signature, chain: r.chain.raw, hash: r.chain.hash}}, nil
}

// Bytes returns the record as it travels: with its certificates, or with their hash.
func (s *Sealed) Bytes(full bool) []byte {
	e := s.e
	if !full {
		e.chain = nil
	}
	return e.encode()
}

// Record returns the bytes that are signed, which may be changed.
func (s *Sealed) Record() []byte { return s.e.record }

// WithChainOf returns s with the certificates of another.
func (s *Sealed) WithChainOf(other *Sealed) *Sealed {
	e := s.e
	e.chain, e.hash = other.e.chain, other.e.hash
	return &Sealed{e}
}

// State returns what a push-pull carries.
func State(records ...[]byte) []byte {
	b := []byte{stateVersion}
	for _, r := range records {
		b = append16(b, r)
	}
	return b
}
