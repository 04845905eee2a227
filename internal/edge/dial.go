package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

const (
	// dialTimeout bounds connecting, handshake included.
	dialTimeout = 10 * time.Second
	// provenAfter is how long a connection stays up that was not refused.
	provenAfter = 5 * time.Second
)

// Dial connects to a TCP address, at most 10 s long. With TLS, check, if not nil, says
// whether the identity at the other end is the wanted one; trust.PeerOf tells it
// later. ctx is for the dialling only.
//
// After failures Dial fails at once, with a *BreakerError, until the address's back-off
// is over. It is a failure, too, when the other end ends the connection before it
// said anything: so it refuses certificates. Only what is read from the connection
// shows that: read, even if nothing is to come. That somebody else answers than check
// wants is a failure for those only who do not want that one.
func (e *Edge) Dial(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
	key := e.occupants.key(addr, check)
	t := &trial{edge: e, addr: addr, began: time.Now()}
	if err := e.breakers.allow(key, t.began); err != nil {
		e.dialled(dialHeldBack)
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	var there trust.Identity
	c, result, err := e.connect(ctx, addr, func(id trust.Identity) error {
		if there = id; check == nil {
			return nil
		}
		return check(id)
	})
	switch why := trust.ReasonOf(err); {
	case err == nil:
	case errors.Is(ctx.Err(), context.Canceled):
		result = dialCancelled
	case why == trust.WrongName || why == trust.WrongRole:
		e.occupants.set(addr, there)
		e.breakers.fail(misnamed(addr), t.began, time.Now(), err)
	default:
		e.breakers.fail(addr, t.began, time.Now(), err)
	}
	e.dialled(result)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if key != addr { // whoever was there before moved away
		e.occupants.forget(addr)
		e.breakers.succeed(key)
	}
	t.connected = time.Now()
	if c, ok := c.(*tls.Conn); ok {
		return &dialledTLS{c, t}, nil
	}
	return &dialledTCP{c.(*net.TCPConn), t, newWaker(c)}, nil
}

// Retry says that there is reason to believe that an address answers again: its back-off
// is over, and one attempt may be made out of turn.
func (e *Edge) Retry(addr string) {
	now := time.Now()
	e.breakers.forgive(addr, now)
	e.breakers.forgive(misnamed(addr), now)
}

func (e *Edge) dialled(result string) { e.metrics.dials.WithLabelValues(result).Inc() }

// connect returns a *tls.Conn or a *net.TCPConn.
func (e *Edge) connect(ctx context.Context, addr string, check func(trust.Identity) error) (c net.Conn, result string, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, dialUnreachable, err
	}
	if e.credentials == nil {
		return c, dialConnected, nil
	}
	c = &socket{Conn: c, waker: newWaker(c), tls: true}
	t := tls.Client(c, e.credentials.ClientConfig(check))
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		if trust.ReasonOf(err) == trust.Failed {
			return nil, dialUnreachable, err
		}
		return nil, dialRefused, err
	}
	return t, dialConnected, nil
}

// trial is a connection that has yet to show that it was not refused.
type trial struct {
	edge      *Edge
	addr      string
	began     time.Time
	connected time.Time
	over      atomic.Bool
}

// heard notes that something was read, or why not.
func (t *trial) heard(n int, err error) {
	if t.over.Load() {
		return
	}
	if n > 0 {
		t.settle(nil)
	} else {
		t.wrote(err)
	}
}

// wrote notes that something was written, or why not.
func (t *trial) wrote(err error) {
	switch {
	case t.over.Load():
	case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded): // not the other end's doing
	case err != nil, t.lasted():
		t.settle(err)
	}
}

// closed notes that this side closes the connection.
func (t *trial) closed() {
	if !t.over.Load() && t.lasted() {
		t.settle(nil)
	}
}

func (t *trial) lasted() bool { return time.Since(t.connected) >= provenAfter }

func (t *trial) settle(err error) {
	if !t.over.CompareAndSwap(false, true) {
		return
	}
	if err == nil || t.lasted() {
		t.edge.breakers.succeed(t.addr)
		return
	}
	result := dialDropped
	if trust.ReasonOf(err) == trust.Refused {
		result = dialRefused
	}
	t.edge.dialled(result)
	t.edge.breakers.fail(t.addr, t.began, time.Now(), err)
}

// dialledTLS is a connection that Dial made. NetConn returns the socket below TLS.
type dialledTLS struct {
	*tls.Conn
	trial *trial
}

func (c *dialledTLS) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.trial.heard(n, err)
	return n, err
}

func (c *dialledTLS) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.trial.wrote(err)
	return n, err
}

func (c *dialledTLS) Close() error {
	c.trial.closed()
	return c.Conn.Close()
}

// dialledTCP is a plain connection that Dial made.
type dialledTCP struct {
	*net.TCPConn
	trial *trial
	*waker
}

func (c *dialledTCP) Read(p []byte) (int, error) {
	c.reading()
	n, err := c.TCPConn.Read(p)
	c.trial.heard(n, err)
	return n, err
}

func (c *dialledTCP) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	c.trial.wrote(err)
	return n, err
}

func (c *dialledTCP) Close() error {
	c.trial.closed()
	return c.TCPConn.Close()
}
