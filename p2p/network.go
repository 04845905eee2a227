package p2p

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anacrolix/torrent"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// acceptPause is how long the listener rests after it could not accept (no file
// descriptors left, say).
const acceptPause = 100 * time.Millisecond

// network is the torrent client's only way to other peers, as its dialer and
// its listener.
//
// The client bans peers by IP address for ever. Here many peers may share an
// address, and a peer with a damaged disk must be able to come back, so it does
// not get to see addresses: a peer that is dialled is called by its peer id,
// and each connection that comes in by a made-up address of its own. Swarm
// shuns peers that send damaged data, by peer id.
type network struct {
	swarm   *Swarm
	ctx     context.Context // ends at close
	inbound atomic.Uint64   // connections accepted

	mu      sync.Mutex // guards what follows
	conns   map[*conn]struct{}
	dialing map[torrent.PeerID]int // dials under way
	closed  bool
	idle    sync.WaitGroup // open connections

	announcer  *time.Timer
	announcing map[*conn]struct{} // that hold announcements; nil: the timer is not set
}

func newNetwork(ctx context.Context, s *Swarm) *network {
	n := &network{swarm: s, ctx: ctx, conns: make(map[*conn]struct{}), dialing: make(map[torrent.PeerID]int)}
	n.announcer = time.AfterFunc(announceAfter, n.announce)
	return n
}

// dialName is what a peer is called towards the torrent client. It is no
// host:port on purpose.
type dialName torrent.PeerID

func (dialName) Network() string  { return "tcp" }
func (d dialName) String() string { return hex.EncodeToString(d[:]) }

// inboundAddr makes up an address, in a range for local use (RFC 4193), that no
// other connection has.
func inboundAddr(n uint64) *net.TCPAddr {
	ip := net.IP{0xfd, 'q', 's', '-', 'p', 'e', 'e', 'r', 15: 0}
	for i := range 8 {
		ip[8+i] = byte(n >> (56 - 8*i))
	}
	return &net.TCPAddr{IP: ip, Port: 1}
}

// DialerNetwork implements torrent.Dialer.
func (n *network) DialerNetwork() string { return "tcp" }

// Dial implements torrent.Dialer. Only peers on the list are dialled.
func (n *network) Dial(ctx context.Context, name string) (net.Conn, error) {
	var id torrent.PeerID
	if b, err := hex.DecodeString(name); err != nil || len(b) != copy(id[:], b) {
		return nil, fmt.Errorf("dial %q: not a peer id", name)
	}
	n.swarm.mu.Lock()
	peer, listed := n.swarm.roster[id]
	n.swarm.mu.Unlock()
	if !listed {
		return nil, fmt.Errorf("dial %s: no longer listed", name)
	}
	if err := n.swarm.checkShunned(id); err != nil {
		return nil, fmt.Errorf("dial %s: %w", peer.Name, err)
	}
	n.dials(id, 1)
	defer n.dials(id, -1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	c, err := n.swarm.o.Dial(ctx, peer.Addr, wantPeer(peer.Name))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", peer.Name, err)
	}
	return n.wrap(c, dialName(id), caller{&id, peer.Name})
}

// dials counts a dial that begins, or ends.
func (n *network) dials(id torrent.PeerID, change int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dialing[id] += change; n.dialing[id] == 0 {
		delete(n.dialing, id)
	}
}

// connecting returns the peers to or from whom a connection is being made: that has
// begun, and the client does not know them by it yet.
func (n *network) connecting() map[torrent.PeerID]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := make(map[torrent.PeerID]bool)
	for id := range n.dialing {
		ids[id] = true
	}
	for c := range n.conns {
		if id := c.peer.Load(); id != nil && !c.known {
			ids[*id] = true
		}
	}
	return ids
}

// Accept implements torrent.Listener. With TLS it returns connections of nodes that
// are welcome.
func (n *network) Accept() (net.Conn, error) {
	for {
		c, err := n.swarm.o.Listener.Accept()
		if err == nil {
			from, err := n.swarm.callerOf(c)
			if err != nil {
				n.swarm.o.Refused(trust.ReasonOf(err), from.who, err)
				c.Close()
				continue
			}
			return n.wrap(c, inboundAddr(n.inbound.Add(1)), from)
		}
		// The client calls again at once, whatever the error.
		select {
		case <-n.ctx.Done():
			return nil, err
		case <-time.After(acceptPause):
			n.swarm.o.Logger.Debug("accept failed", "err", err)
		}
	}
}

// Addr implements torrent.Listener.
func (n *network) Addr() net.Addr { return n.swarm.o.Listener.Addr() }

// close ends every connection and waits until the client let go of them.
func (n *network) close() error {
	err := n.swarm.o.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	n.mu.Lock()
	n.closed = true
	n.announcer.Stop()
	for c := range n.conns {
		go c.Close()
	}
	n.mu.Unlock()
	n.idle.Wait()
	return err
}

func (n *network) wrap(nc net.Conn, remote net.Addr, from caller) (net.Conn, error) {
	keepShort(nc)
	c := &conn{
		Conn: nc, network: n, remote: remote, who: from.who, cork: corkOf(nc),
		expecter: expecterOf(nc), framing: newFraming(), hello: hello{want: from.id},
	}
	c.peer.Store(from.id)
	c.ctx, c.cancel = context.WithCancel(n.ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		c.cancel()
		return nil, errors.Join(net.ErrClosed, nc.Close())
	}
	n.conns[c] = struct{}{}
	n.idle.Add(1)
	return c, nil
}

// identify says who is on the other end of a connection, which the client knows now, and
// returns that: nil if it is closed.
func (n *network) identify(remote fmt.Stringer, id torrent.PeerID) *conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.remote == remote {
			c.peer.Store(&id)
			c.known = true
			return c
		}
	}
	return nil
}

// class tells how urgent pieces for a peer are.
func (n *network) class(id *torrent.PeerID) Class {
	if id == nil {
		return Rebuild
	}
	n.swarm.mu.Lock()
	defer n.swarm.mu.Unlock()
	return n.swarm.roster[*id].class()
}

// conn is a connection as the torrent client sees it.
type conn struct {
	net.Conn
	network *network
	remote  net.Addr
	who     string                         // for messages
	peer    atomic.Pointer[torrent.PeerID] // nil: not known yet
	known   bool                           // to the client, as one of a torrent's; guarded by network.mu
	ctx     context.Context                // ends when it is closed
	cancel  context.CancelFunc
	closing sync.Once
	err     error

	expecter expecter // nil: it can not be told; this, framing and hello are the reader's
	framing  framing
	hello    hello
	nudge    nudge

	cork    corker // nil: there is nothing to be gained
	writing sync.Mutex
	held    []byte // announcements that wait for something to go with; guarded by writing
}

func (c *conn) RemoteAddr() net.Addr { return c.remote }

// shortMessages is how many bytes are written without a piece among them: what
// is shorter goes before pieces.
const shortMessages = 1 << 10

// writeChunk is how much is written at once: a block with its header.
const writeChunk = blockSize + 13

// Write waits for the upload budget first, a chunk at a time. The client writes
// whole messages; announcements of pieces may wait. A peer that does not take a chunk
// within stuckAfter is given up.
func (c *conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.hold(p) {
		return len(p), nil
	}
	return c.send(p)
}

// send sends the announcements that were held back, and p. c.writing is held.
func (c *conn) send(p []byte) (int, error) {
	upload := c.network.swarm.o.Upload
	short := len(p) <= shortMessages
	written := 0
	for held := c.held; len(p)+len(held) > 0; held = nil {
		n := min(len(p), upload.chunk(), writeChunk)
		class := Urgent
		if !short {
			class = c.network.class(c.peer.Load())
		}
		if err := upload.Wait(c.ctx, class, n+len(held)); err != nil {
			return written, net.ErrClosed
		}
		c.held = c.held[:0]
		c.Conn.SetWriteDeadline(time.Now().Add(stuckAfter))
		m := 0
		err := together(c.cork, func() (err error) {
			m, err = writeBoth(c.Conn, held, p[:n])
			return err
		})
		written += m
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

// writeBoth writes one after the other, in one system call if it can, and returns
// how much of the second was written. Nothing empty is written.
func writeBoth(c net.Conn, first, second []byte) (int, error) {
	switch {
	case len(first) == 0:
		return c.Write(second)
	case len(second) == 0:
		_, err := c.Write(first)
		return 0, err
	}
	n, err := (&net.Buffers{first, second}).WriteTo(c)
	return max(0, int(n)-len(first)), err
}

// Read waits for the download budget after the fact: the peer is slowed down by
// TCP.
func (c *conn) Read(p []byte) (int, error) {
	download := c.network.swarm.o.Download
	n, err := 0, error(nil)
	for woken := true; woken; woken = c.nudge.woke(c.Conn, n, err) {
		if c.framing.between() && len(p) >= len(keepAlive) && c.nudge.take() {
			return copy(p, keepAlive), nil
		}
		if c.expecter != nil {
			c.expecter.Expect(c.framing.rest)
		}
		n, err = c.Conn.Read(p[:min(len(p), download.chunk())])
	}
	if !c.hello.check(p[:n]) {
		err := fmt.Errorf("handshake of %s: the peer id in it is another's", c.who)
		c.network.swarm.o.Refused(trust.WrongName, c.who, err)
		return 0, err // the client hangs up
	}
	c.framing.advance(p[:n])
	if n > 0 {
		if werr := download.Wait(c.ctx, download.ownClass(), n); werr != nil && err == nil {
			err = net.ErrClosed
		}
	}
	return n, err
}

// The torrent client panics when a deadline can not be set, which is so when
// the connection was closed meanwhile. The next read or write will tell.

func (c *conn) SetDeadline(t time.Time) error {
	c.SetWriteDeadline(t)
	return c.SetReadDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.nudge.deadline(c.Conn, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.Conn.SetWriteDeadline(t)
	return nil
}

// Close does not take leave as TLS does, which would wait for up to 5 s for a peer that
// takes nothing, and the client waits with it. Messages tell where they end.
func (c *conn) Close() error {
	c.closing.Do(func() {
		c.cancel()
		if outer, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
			outer.NetConn().Close()
		}
		if c.err = c.Conn.Close(); errors.Is(c.err, net.ErrClosed) {
			c.err = nil
		}
		c.network.mu.Lock()
		delete(c.network.conns, c)
		c.network.mu.Unlock()
		c.network.idle.Done()
	})
	return c.err
}
