package edge

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// handshakes are those in flight at a node, whichever listener they came to.
type handshakes struct {
	max int
	// running has an element for each goroutine: those that gave way may need a moment
	// to see it.
	running chan struct{}

	mu     sync.Mutex // guards what follows, and what handshake says
	n      int
	byHost map[netip.Prefix][]*handshake // oldest first
}

// door is where handshakes come in: a listener.
type door struct {
	gauge  prometheus.Gauge
	closed bool // guarded by handshakes.mu
}

func newHandshakes(most int) *handshakes {
	return &handshakes{max: most, running: make(chan struct{}, 2*most), byHost: make(map[netip.Prefix][]*handshake)}
}

// handshake is one in flight. Its goroutine is the only one that uses left and busy.
type handshake struct {
	all      *handshakes
	door     *door
	host     netip.Prefix
	conn     *socket
	gate     gate
	deadline time.Time
	left     int  // bytes that the client may still send
	busy     bool // is through the gate

	// Guarded by all.mu.
	ours bool // it waits for us, not for the client
	gone bool // it had to give way
}

var (
	errGaveWay = errors.New("too many handshakes were in flight, and this host had most of them")
	errLate    = errors.New("the handshake took too long")
)

// begin adds one. If there are too many then, a host with most of them gives way:
// the one that has been silent longest, or else, when all wait for us, the
// latest, which may be the new one. It returns nil if so, or if its door is closed.
func (hs *handshakes) begin(h *handshake) *handshake {
	hs.mu.Lock()
	if h.door.closed {
		hs.mu.Unlock()
		return nil
	}
	h.all = hs
	hs.byHost[h.host] = append(hs.byHost[h.host], h)
	hs.n++
	var victim *handshake
	if hs.n > hs.max {
		victim = hs.victim(h)
		victim.gone = true
		hs.remove(victim)
	}
	h.door.gauge.Inc() // after the victim's Dec, so that it never says more than max
	hs.mu.Unlock()
	if victim == h {
		return nil
	}
	if victim != nil {
		victim.conn.Close()
	}
	hs.running <- struct{}{}
	return h
}

// victim chooses who gives way to newcomer. hs.mu is held.
func (hs *handshakes) victim(newcomer *handshake) *handshake {
	most := 0
	for _, host := range hs.byHost {
		most = max(most, len(host))
	}
	var silent, latest *handshake
	for _, host := range hs.byHost {
		if len(host) < most {
			continue
		}
		if latest == nil || host[most-1] == newcomer {
			latest = host[most-1]
		}
		i := slices.IndexFunc(host, func(h *handshake) bool { return !h.ours && h != newcomer })
		if i >= 0 && (silent == nil || host[i].deadline.Before(silent.deadline)) {
			silent = host[i]
		}
	}
	return cmp.Or(silent, latest)
}

// remove forgets one, unless it was. hs.mu is held.
func (hs *handshakes) remove(h *handshake) {
	host := hs.byHost[h.host]
	i := slices.Index(host, h)
	if i < 0 {
		return
	}
	if host = slices.Delete(host, i, i+1); len(host) == 0 {
		delete(hs.byHost, h.host)
	} else {
		hs.byHost[h.host] = host
	}
	hs.n--
	h.door.gauge.Dec()
}

// close ends all that came in at a door, and there will be no more.
func (hs *handshakes) close(d *door) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	d.closed = true
	for _, host := range hs.byHost {
		for _, h := range host {
			if h.door == d {
				h.conn.Close()
			}
		}
	}
}

// compute is called when the client's greeting is there, and again when its
// certificates are. It waits until there is processor time for them.
func (h *handshake) compute() error {
	if h.busy {
		return nil
	}
	if !h.turn(true) {
		return errGaveWay
	}
	h.gate.enter()
	h.busy = true
	switch {
	case h.gaveWay():
		return errGaveWay
	case !time.Now().Before(h.deadline):
		return errLate
	}
	return nil
}

// computed is called when the answer is ready, or the handshake is over.
func (h *handshake) computed() {
	if !h.busy {
		return
	}
	h.busy = false
	h.gate.leave()
	h.turn(false)
}

// turn notes whose turn it is, and reports whether it goes on at all.
func (h *handshake) turn(ours bool) bool {
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	h.ours = ours
	return !h.gone
}

func (h *handshake) gaveWay() bool {
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	return h.gone
}

// end takes h out, and reports whether it had to give way before. Its goroutine calls
// leave when it is done with it.
func (h *handshake) end() (gone bool) {
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	h.all.remove(h)
	return h.gone
}

func (h *handshake) leave() { <-h.all.running }

// hostPrefix returns what stands for one host: an IPv4 address, or the first half of an
// IPv6 one, whose other half a host may choose.
func hostPrefix(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	bits, addr := 64, tcp.AddrPort().Addr().Unmap()
	if addr.Is4() {
		bits = 32
	}
	p, _ := addr.Prefix(bits) // without a zone
	return p
}
