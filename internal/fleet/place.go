package fleet

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"sync"
)

// Place is where a node runs: this machine's loopback, or a host of some network.
type Place interface {
	// Addr is the address at which nodes of other places reach this one.
	Addr() netip.Addr
	// Start starts a process there.
	Start(cmd *exec.Cmd) error
	// Dial connects from there, to loopback addresses too.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
}

// Loopback is this machine, seen by itself only.
var Loopback Place = loopback{localhost}

var localhost = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// homes gives out addresses of loopback, 127.0.0.0/8, one to a node. A node keeps its ports while
// it is down; at 127.0.0.1 the kernel would give them to others meanwhile. Where fleets begin is drawn,
// for they run in processes that do not know of each other.
type homes struct {
	net  byte
	host uint16

	mu     sync.Mutex
	byName map[string]Place
}

func newHomes() *homes {
	return &homes{net: byte(96 + rand.N(31)), host: uint16(rand.Uint32()), byName: map[string]Place{}}
}

func (h *homes) of(name string) Place {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.byName[name]
	if at == nil {
		h.host++
		at = loopback{netip.AddrFrom4([4]byte{127, h.net, byte(h.host >> 8), byte(h.host)})}
		h.byName[name] = at
	}
	return at
}

// loopbackOf returns where a node at ip listens for those on its own machine.
func loopbackOf(ip netip.Addr) netip.Addr {
	if ip.IsLoopback() {
		return ip
	}
	return localhost
}

type loopback struct{ addr netip.Addr }

func (l loopback) Addr() netip.Addr        { return l.addr }
func (loopback) Start(cmd *exec.Cmd) error { return cmd.Start() }

func (loopback) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// moveTo makes at the place where the node runs next.
func (n *Node) moveTo(at Place, s *security) {
	if n.place == at {
		return
	}
	if n.caller != nil {
		n.caller.close()
	}
	n.place, n.caller = at, newCaller(at, s, n.Name)
}
