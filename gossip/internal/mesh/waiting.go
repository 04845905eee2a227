package mesh

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// An alive message of a node of which nothing is known may be ahead of what makes it
// known: it waits, for so long at most, and not more than so many at a time.
const (
	maxWaiting  = 2048
	waitingTime = 30 * time.Second
)

// waiting are alive messages by whom they are about. The newest of each counts.
type waiting struct {
	mu    sync.Mutex // guards what follows
	all   map[memberlist.Address]waiter
	order []memberlist.Address // in which they came
}

type waiter struct {
	packet *memberlist.Packet
	from   trust.Identity // who sent it
}

// add lets a message wait. It returns who sent those that waited in vain.
func (w *waiting) add(about memberlist.Address, m waiter) (inVain []trust.Identity) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.order) > 0 {
		oldest := w.order[0]
		old, there := w.all[oldest]
		if there && len(w.order) < maxWaiting && m.packet.Timestamp.Sub(old.packet.Timestamp) < waitingTime {
			break
		}
		if there {
			delete(w.all, oldest)
			inVain = append(inVain, old.from)
		}
		w.order = w.order[1:]
	}
	if _, there := w.all[about]; !there {
		w.order = append(w.order, about)
	}
	w.all[about] = m
	return inVain
}

// take returns the message that waits for somebody to become known, or nil.
func (w *waiting) take(about memberlist.Address) *memberlist.Packet {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.all[about]
	delete(w.all, about)
	return m.packet
}

// Introduce says that a node became known to be at an address. It may take as long as
// memberlist takes for a packet.
func (t *Transport) Introduce(name, addr string) {
	if p := t.waiting.take(memberlist.Address{Name: name, Addr: addr}); p != nil {
		t.deliver(p)
	}
}

// wait lets an alive message wait.
func (t *Transport) wait(about memberlist.Address, p *memberlist.Packet, from trust.Identity) {
	for _, id := range t.waiting.add(about, waiter{p, from}) {
		t.dropped(id.String(), &trust.RefusedError{Reason: Unknown, Err: errors.New("a member of which there was no record in time")})
	}
	if there, _ := t.o.Where(about.Name, about.Addr); there { // since it was asked last
		t.Introduce(about.Name, about.Addr)
	}
}

// deliver gives memberlist a packet. An error means that the transport ends.
func (t *Transport) deliver(p *memberlist.Packet) error {
	select {
	case t.packets <- p:
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}
