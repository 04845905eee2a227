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
	"golang.org/x/time/rate"
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
	swarm     *Swarm
	ctx       context.Context // ends at close
	downloads *rate.Limiter   // nil: no limit
	inbound   atomic.Uint64   // connections accepted

	mu     sync.Mutex // guards what follows
	conns  map[*conn]struct{}
	closed bool
	idle   sync.WaitGroup // open connections
}

func newNetwork(ctx context.Context, s *Swarm) *network {
	n := &network{swarm: s, ctx: ctx, conns: make(map[*conn]struct{})}
	if r := s.o.DownloadRate; r > 0 {
		n.downloads = rate.NewLimiter(rate.Limit(r), maxBuffered)
	}
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	c, err := n.swarm.o.Dial(ctx, peer.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", peer.Name, err)
	}
	return n.wrap(c, dialName(id))
}

// Accept implements torrent.Listener.
func (n *network) Accept() (net.Conn, error) {
	for {
		c, err := n.swarm.o.Listener.Accept()
		if err == nil {
			return n.wrap(c, inboundAddr(n.inbound.Add(1)))
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
	for c := range n.conns {
		go c.Close()
	}
	n.mu.Unlock()
	n.idle.Wait()
	return err
}

func (n *network) wrap(nc net.Conn, remote net.Addr) (net.Conn, error) {
	c := &conn{Conn: nc, network: n, remote: remote}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, errors.Join(net.ErrClosed, nc.Close())
	}
	n.conns[c] = struct{}{}
	n.idle.Add(1)
	return c, nil
}

// conn is a connection as the torrent client sees it.
type conn struct {
	net.Conn
	network *network
	remote  net.Addr
	closing sync.Once
	err     error
}

func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Read waits for the download rate after the fact: the peer is slowed down by
// TCP.
func (c *conn) Read(p []byte) (int, error) {
	limit := c.network.downloads
	if limit == nil {
		return c.Conn.Read(p)
	}
	n, err := c.Conn.Read(p[:min(len(p), limit.Burst())])
	if n > 0 {
		if werr := limit.WaitN(c.network.ctx, n); werr != nil && err == nil {
			err = net.ErrClosed
		}
	}
	return n, err
}

// The torrent client panics when a deadline can not be set, which is so when
// the connection was closed meanwhile. The next read or write will tell.

func (c *conn) SetDeadline(t time.Time) error {
	c.Conn.SetDeadline(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.Conn.SetReadDeadline(t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.Conn.SetWriteDeadline(t)
	return nil
}

func (c *conn) Close() error {
	c.closing.Do(func() {
		c.err = c.Conn.Close()
		c.network.mu.Lock()
		delete(c.network.conns, c)
		c.network.mu.Unlock()
		c.network.idle.Done()
	})
	return c.err
}
