package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// protocol is the version of memberlist's protocol that the fleet speaks.
const protocol = memberlist.ProtocolVersion2Compatible

// listen creates memberlist, which begins to listen.
func (g *Gossip) listen(o Options) error {
	g.bridge = &logBridge{log: o.Logger}
	logger := log.New(g.bridge, "", 0)
	transport, local := o.Transport, false
	if o.TLS != nil {
		var err error
		if transport, local, err = g.listenTLS(o); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	if transport == nil {
		addr := o.Addr
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			return fmt.Errorf("gossip address %q: %w", addr, err)
		}
		local = tcp.IP.IsLoopback()
		if transport, err = listenNet(g.ctx, tcp, logger); err != nil {
			return fmt.Errorf("gossip: listen on %s: %w", addr, err)
		}
	}
	lan := memberlist.DefaultLANConfig()
	c := lan
	if local {
		c = memberlist.DefaultLocalConfig()
	}
	// Few nodes wait long for others to confirm a suspicion, by default 18 to
	// 24 s. A wrong one is refuted soon and costs little here.
	c.SuspicionMaxTimeoutMult = 2
	c.PushPullInterval = 15 * time.Second
	// Records are small and mostly hashes: LZW costs more than what it saves.
	c.EnableCompression = false
	c.UDPBufferSize -= 5 // the checksum before a packet, which memberlist does not count
	if o.TLS != nil {
		// No datagram limits a packet; a new connection takes a moment.
		c.UDPBufferSize = packetSize
		c.ProbeTimeout, c.TCPTimeout = lan.ProbeTimeout, lan.TCPTimeout
	}
	c.Name = o.Facts.Name
	c.Transport = transport
	c.ProtocolVersion = protocol
	c.Delegate, c.Events, c.Conflict, c.Alive = delegate{g}, delegate{g}, delegate{g}, delegate{g}
	c.Logger = logger
	// A node that died may come back at another address at once.
	c.DeadNodeReclaimTime = time.Nanosecond
	list, err := memberlist.Create(c)
	if err != nil {
		return errors.Join(fmt.Errorf("gossip: %w (if there is no address to advertise, listen on one of this machine's instead of %q)", err, o.Addr), transport.Shutdown())
	}
	g.list = list
	self := list.LocalNode()
	g.addr = &net.TCPAddr{IP: slices.Clone(self.Addr), Port: int(self.Port)}
	return nil
}

// listenNet listens on TCP and UDP at one port. Port 0 takes one that is free
// for both. Connections that it dials break when ctx ends.
func listenNet(ctx context.Context, addr *net.TCPAddr, logger *log.Logger) (memberlist.Transport, error) {
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
			return &tcpudp{NetTransport: t, ctx: ctx}, nil
		}
	}
	return nil, err
}

// tcpudp is memberlist's transport with connections that do not hold up Close.
type tcpudp struct {
	*memberlist.NetTransport
	ctx context.Context
}

var _ memberlist.NodeAwareTransport = (*tcpudp)(nil)

func (t *tcpudp) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *tcpudp) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return &boundConn{Conn: conn, release: context.AfterFunc(t.ctx, func() { conn.Close() })}, nil
}

// boundConn is a connection that a context's end closes.
type boundConn struct {
	net.Conn
	release func() bool
}

func (c *boundConn) Close() error {
	c.release()
	return c.Conn.Close()
}
