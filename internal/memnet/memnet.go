// Package memnet is a network in memory that loses, delays and partitions, for
// tests of gossip in testing/synctest: it has no sockets and its only sense of
// time is package time's. What it loses and how long it delays follows from a
// seed and the order of the calls.
//
// Packets (WriteTo) are lost, delayed and so reordered; streams (DialTimeout)
// are reliable, as TCP is, and break when a partition divides their ends.
package memnet

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// queueLen is how many packets or new streams wait for a receiver. More are
// lost, as in a socket's buffer.
const queueLen = 1024

// Network connects transports.
type Network struct {
	mu       sync.Mutex // guards what follows
	rand     *rand.Rand
	hosts    map[string]*Transport
	loss     float64
	min, max time.Duration
	group    map[string]int // by address; unlisted ones are in group 0
	conns    map[*conn]struct{}
	stats    Stats
}

// Stats count what the network saw.
type Stats struct {
	Packets     int // sent
	Lost        int // of them, by loss, partition, overflow, or nobody listening
	LargestPack int // bytes
	Dials       int
	StreamBytes int64 // written to streams
}

// New returns a network without loss, delay or partition.
func New(seed uint64) *Network {
	return &Network{
		rand:  rand.New(rand.NewPCG(seed, seed)),
		hosts: make(map[string]*Transport),
		conns: make(map[*conn]struct{}),
	}
}

// SetLoss makes the network lose packets with probability p.
func (n *Network) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = p
}

// SetDelay makes packets, and the opening of streams, take from least to most.
func (n *Network) SetDelay(least, most time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.min, n.max = least, max(least, most)
}

// Partition divides the network: each group reaches itself only, and those in
// no group form one more. It replaces an earlier partition; without groups it
// heals the network. Streams across the new borders break.
func (n *Network) Partition(groups ...[]string) {
	n.mu.Lock()
	n.group = make(map[string]int)
	for i, g := range groups {
		for _, addr := range g {
			n.group[addr] = i + 1
		}
	}
	var cut []*conn
	for c := range n.conns {
		if n.group[c.local] != n.group[c.remote] {
			cut = append(cut, c)
		}
	}
	n.mu.Unlock()
	for _, c := range cut {
		c.Close()
	}
}

// Heal ends a partition.
func (n *Network) Heal() { n.Partition() }

// Stats returns what was counted so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// Listen attaches a transport at addr, an IP and a port.
func (n *Network) Listen(addr string) (*Transport, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts[addr] != nil {
		return nil, fmt.Errorf("listen %s: address already in use", addr)
	}
	t := &Transport{
		net: n, addr: tcp,
		packets: make(chan *memberlist.Packet, queueLen),
		streams: make(chan net.Conn, queueLen),
		down:    make(chan struct{}),
	}
	n.hosts[addr] = t
	return t, nil
}

// route returns the transport at addr and how long the way takes, nil if
// nothing gets through. n.mu is held.
func (n *Network) route(from, to string) (*Transport, time.Duration) {
	if n.group[from] != n.group[to] {
		return nil, 0
	}
	delay := n.min
	if n.max > n.min {
		delay += time.Duration(n.rand.Int64N(int64(n.max - n.min)))
	}
	return n.hosts[to], delay
}

// Transport is one host's part of the network.
type Transport struct {
	net     *Network
	addr    *net.TCPAddr
	packets chan *memberlist.Packet
	streams chan net.Conn

	closing sync.Mutex // guards down against late deliveries
	down    chan struct{}
}

var _ memberlist.Transport = (*Transport)(nil)

// FinalAdvertiseAddr returns the address that was listened on.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.IP, t.addr.Port, nil
}

// WriteTo sends a packet that may not arrive.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	n := t.net
	n.mu.Lock()
	n.stats.Packets++
	n.stats.LargestPack = max(n.stats.LargestPack, len(b))
	to, delay := n.route(t.addr.String(), addr)
	if to == nil || n.rand.Float64() < n.loss {
		n.stats.Lost++
		n.mu.Unlock()
		return now, nil
	}
	n.mu.Unlock()
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: t.addr}
	if delay > 0 {
		time.AfterFunc(delay, func() { to.deliver(p) })
	} else {
		to.deliver(p)
	}
	return now, nil
}

func (t *Transport) deliver(p *memberlist.Packet) {
	p.Timestamp = time.Now()
	t.closing.Lock()
	defer t.closing.Unlock()
	select {
	case <-t.down:
	default:
		select {
		case t.packets <- p:
			return
		default:
		}
	}
	t.net.mu.Lock()
	t.net.stats.Lost++
	t.net.mu.Unlock()
}

// PacketCh returns the packets that arrive.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout opens a stream. Across a partition it takes the whole timeout to
// fail; where nobody listens it fails at once.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	n := t.net
	from := t.addr.String()
	n.mu.Lock()
	n.stats.Dials++
	divided := n.group[from] != n.group[addr]
	to, delay := n.route(from, addr)
	n.mu.Unlock()
	wait := delay
	if divided {
		wait = timeout
	}
	select {
	case <-time.After(wait):
	case <-t.down:
		return nil, net.ErrClosed
	}
	if divided {
		return nil, fmt.Errorf("dial %s: i/o timeout", addr)
	}
	if to == nil {
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	a, b := net.Pipe()
	near := &conn{Conn: a, net: n, local: from, remote: addr}
	far := &conn{Conn: b, net: n, local: addr, remote: from}
	n.mu.Lock()
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	n.mu.Unlock()
	to.closing.Lock()
	defer to.closing.Unlock()
	select {
	case <-to.down:
	default:
		select {
		case to.streams <- far:
			return near, nil
		default:
		}
	}
	near.Close()
	far.Close()
	return nil, fmt.Errorf("dial %s: connection refused", addr)
}

// StreamCh returns the streams that others open.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown detaches the transport and breaks its streams. It may be called twice.
func (t *Transport) Shutdown() error {
	n, addr := t.net, t.addr.String()
	t.closing.Lock()
	defer t.closing.Unlock()
	select {
	case <-t.down:
		return nil
	default:
		close(t.down)
	}
	n.mu.Lock()
	delete(n.hosts, addr)
	var cut []*conn
	for c := range n.conns {
		if c.local == addr || c.remote == addr {
			cut = append(cut, c)
		}
	}
	n.mu.Unlock()
	for _, c := range cut {
		c.Close()
	}
	return nil
}

// conn is one end of a stream.
type conn struct {
	net.Conn
	net           *Network
	local, remote string
}

func (c *conn) Write(b []byte) (int, error) {
	k, err := c.Conn.Write(b)
	c.net.mu.Lock()
	c.net.stats.StreamBytes += int64(k)
	c.net.mu.Unlock()
	return k, err
}

func (c *conn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	return c.Conn.Close()
}

func (c *conn) LocalAddr() net.Addr  { return hostAddr(c.local) }
func (c *conn) RemoteAddr() net.Addr { return hostAddr(c.remote) }

// hostAddr is the address of a stream's end.
type hostAddr string

func (hostAddr) Network() string  { return "memnet" }
func (a hostAddr) String() string { return string(a) }
