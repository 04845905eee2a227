package gossip

import (
	"fmt"
	"log"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// listen creates memberlist, which begins to listen.
func (g *Gossip) listen(o Options) error {
	g.bridge = &logBridge{log: o.Logger}
	logger := log.New(g.bridge, "", 0)
	transport, local := o.Transport, false
	if transport == nil {
		addr := o.Addr
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			return fmt.Errorf("gossip address %q: %w", addr, err)
		}
		local = tcp.IP.IsLoopback()
		if transport, err = listenNet(tcp, logger); err != nil {
			return fmt.Errorf("gossip: listen on %s: %w", addr, err)
		}
	}
	c := memberlist.DefaultLANConfig()
	if local {
		c = memberlist.DefaultLocalConfig()
	}
	// Few nodes wait long for others to confirm a suspicion, by default 18 to
	// 24 s. A wrong one is refuted soon and costs little here.
	c.SuspicionMaxTimeoutMult = 2
	c.Name = o.Facts.Name
	c.Transport = transport
	c.Delegate, c.Events, c.Conflict = delegate{g}, delegate{g}, delegate{g}
	c.Logger = logger
	// A node that died may come back at another address at once.
	c.DeadNodeReclaimTime = time.Nanosecond
	list, err := memberlist.Create(c)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	g.list = list
	self := list.LocalNode()
	g.addr = &net.TCPAddr{IP: slices.Clone(self.Addr), Port: int(self.Port)}
	return nil
}

// listenNet listens on TCP and UDP at one port. Port 0 takes one that is free
// for both.
func listenNet(addr *net.TCPAddr, logger *log.Logger) (memberlist.Transport, error) {
	host := "0.0.0.0" // what memberlist takes for "any", and finds an address to advertise for
	if addr.IP != nil && !addr.IP.Equal(net.IPv4zero) {
		if addr.IP.IsUnspecified() {
			return nil, fmt.Errorf("%s names no address to advertise: use 0.0.0.0 or an address of this machine", addr.IP)
		}
		host = addr.IP.String()
	}
	attempts := 1
	if addr.Port == 0 {
		attempts = 10
	}
	var err error
	for range attempts {
		var t *memberlist.NetTransport
		t, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{host}, BindPort: addr.Port, Logger: logger,
		})
		if err == nil {
			return t, nil
		}
	}
	return nil, err
}
