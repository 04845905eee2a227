package fleet

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
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

// LoopbackAt is another address of this machine's loopback network, 127.0.0.0/8. What
// listens there keeps its port over a restart: the ports of outgoing connections are those
// of 127.0.0.1.
func LoopbackAt(a, b, c byte) Place { return loopback{netip.AddrFrom4([4]byte{127, a, b, c})} }

var localhost = netip.AddrFrom4([4]byte{127, 0, 0, 1})

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
