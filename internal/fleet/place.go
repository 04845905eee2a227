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
var Loopback Place = loopback{}

var localhost = netip.AddrFrom4([4]byte{127, 0, 0, 1})

type loopback struct{}

func (loopback) Addr() netip.Addr          { return localhost }
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
