package fleet

import (
	"context"
	"net"
	"net/http"
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
func (n *Node) moveTo(at Place) {
	if n.place == at {
		return
	}
	if n.client != nil {
		n.client.CloseIdleConnections()
	}
	n.place, n.client = at, clientAt(at)
}

var loopbackClient = clientAt(Loopback)

// http returns what calls the node. A Node that was not started, such as one in
// this process, is on loopback.
func (n *Node) http() *http.Client {
	if n.client == nil {
		return loopbackClient
	}
	return n.client
}

func clientAt(at Place) *http.Client {
	// No compression: it would cost the node processor time that is measured.
	return &http.Client{Transport: &http.Transport{DialContext: at.Dial, DisableCompression: true}}
}
