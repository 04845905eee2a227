package edge

import (
	"sync"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// occupants remember who answered at addresses where somebody else was wanted. Attempts
// of those who want others there have a breaker of their own, so that a member who
// says that it lives at another's address cuts nobody off from that one.
type occupants struct {
	mu sync.Mutex // guards by
	by map[string]trust.Identity
}

func newOccupants() *occupants { return &occupants{by: map[string]trust.Identity{}} }

// key returns the breaker's name for an attempt at an address.
func (o *occupants) key(addr string, check func(trust.Identity) error) string {
	o.mu.Lock()
	id, known := o.by[addr]
	o.mu.Unlock()
	if known && check != nil && check(id) != nil {
		return misnamed(addr)
	}
	return addr
}

// misnamed is what a breaker of those who want somebody else at an address is called.
func misnamed(addr string) string { return addr + " by another name" }

func (o *occupants) set(addr string, id trust.Identity) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.by) >= maxFailing {
		clear(o.by) // they are found out anew
	}
	o.by[addr] = id
}

func (o *occupants) forget(addr string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.by, addr)
}
