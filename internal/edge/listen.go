package edge

import (
	"cmp"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// ListenOptions configure a listener. Name is required; zero limits are the defaults.
type ListenOptions struct {
	Name string // in metrics and in the log: gossip, swarm, peer, http, resp
	// MaxConns bounds open connections, those in a handshake aside. Default: 4096.
	MaxConns int
	// MaxPerIdentity bounds open connections of one identity. Without TLS there are
	// none, and it does not apply. Default: 512.
	MaxPerIdentity int
	// HandshakeTimeout bounds each of them. Default: 5 s.
	HandshakeTimeout time.Duration
	// Admit, if not nil, says whether somebody whose certificate is good may connect
	// at all; if it is a *trust.RefusedError, its reason is counted.
	Admit func(trust.Identity) error
}

func (o ListenOptions) withDefaults() ListenOptions {
	o.MaxConns = cmp.Or(o.MaxConns, 4096)
	o.MaxPerIdentity = cmp.Or(o.MaxPerIdentity, 512)
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, 5*time.Second)
	return o
}

// Listen returns a listener that accepts from ln, which it owns, what may come in. With
// TLS these are *tls.Conn whose handshake is done, else TCP connections with
// the methods of *net.TCPConn. On a Unix socket, who may connect is decided by the
// file's mode: there is no TLS on it.
//
// Accept does not fail for lack of file descriptors: it waits. Close closes
// connections that were not accepted yet, and waits for what it started.
func (e *Edge) Listen(ln net.Listener, o ListenOptions) net.Listener {
	o = o.withDefaults()
	l := &listener{
		Listener: ln,
		edge:     e,
		o:        o,
		ready:    make(chan net.Conn),
		done:     make(chan struct{}),
		seats:    newSeats(o.MaxConns, o.MaxPerIdentity, e.metrics.connections.WithLabelValues(o.Name)),
		door:     &door{gauge: e.metrics.handshaking.WithLabelValues(o.Name)},
	}
	for _, why := range reasons {
		e.metrics.refused.WithLabelValues(o.Name, string(why)) // from zero on
	}
	if e.credentials != nil && ln.Addr().Network() != "unix" {
		l.tls = l.config()
	}
	l.running.Go(l.run)
	return l
}

type listener struct {
	net.Listener
	edge  *Edge
	o     ListenOptions
	tls   *tls.Config // nil: plain
	seats *seats
	door  *door

	ready    chan net.Conn
	done     chan struct{} // closed by Close
	closing  sync.Once
	closeErr error
	running  sync.WaitGroup
}

// config lets in who is admitted, so that others are told in the handshake. What is
// computed for a client, the answer to its greeting and the look at its certificates,
// waits for its turn.
func (l *listener) config() *tls.Config {
	cfg := l.edge.credentials.ServerConfig()
	verify := cfg.VerifyConnection
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		h := hello.Conn.(*socket).handshake
		own := cfg.Clone()
		own.VerifyConnection = func(s tls.ConnectionState) error {
			if err := h.compute(); err != nil {
				return err
			}
			if err := verify(s); err != nil || l.o.Admit == nil {
				return err
			}
			id, err := trust.FromCertificate(s.PeerCertificates[0])
			if err != nil {
				return err
			}
			return l.o.Admit(id)
		}
		return own, h.compute()
	}
	return cfg
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.stop()
	l.running.Wait()
	return l.closeErr
}

func (l *listener) stop() {
	l.closing.Do(func() {
		close(l.done)
		l.closeErr = l.Listener.Close()
		l.edge.handshakes.close(l.door)
	})
}

// acceptPause is how long the listener rests after it could not accept.
const acceptPause = 50 * time.Millisecond

func (l *listener) run() {
	defer l.stop() // if somebody closed what is below
	for {
		c, err := l.Listener.Accept()
		switch {
		case err == nil:
			l.receive(c)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Out of descriptors, say: others give theirs back.
			l.edge.Refused(l.o.Name, AcceptFailed, "", err)
			select {
			case <-l.done:
				return
			case <-time.After(acceptPause):
			}
		}
	}
}

// receive deals with a new connection without waiting for it.
func (l *listener) receive(c net.Conn) {
	if l.seats.full() {
		l.refuse(c, TooManyConnections, trust.Identity{}, nil)
		return
	}
	if l.tls == nil {
		l.receivePlain(c)
		return
	}
	h := &handshake{
		door:     l.door,
		host:     hostPrefix(c.RemoteAddr()),
		conn:     &socket{Conn: c, waker: newWaker(c), tls: true},
		gate:     l.edge.computing,
		deadline: time.Now().Add(l.o.HandshakeTimeout),
		left:     maxHandshake,
	}
	h.conn.handshake = h
	if l.edge.handshakes.begin(h) == nil {
		l.refuse(c, TooManyHandshakes, trust.Identity{}, errGaveWay)
		return
	}
	l.running.Go(func() {
		defer h.leave()
		l.shake(h)
	})
}

func (l *listener) receivePlain(c net.Conn) {
	leave, why := l.seats.take(trust.Identity{})
	switch tcp, ok := c.(*net.TCPConn); {
	case why != "":
		l.refuse(c, why, trust.Identity{}, nil)
	case ok:
		l.deliver(&tcpSocket{TCPConn: tcp, seat: seat{leave: leave}, waker: newWaker(tcp)})
	default:
		l.deliver(&socket{Conn: c, seat: seat{leave: leave}, waker: newWaker(c)})
	}
}

// shake does a handshake and delivers the connection, or refuses it.
func (l *listener) shake(h *handshake) {
	h.conn.SetDeadline(h.deadline)
	c := tls.Server(h.conn, l.tls)
	err := c.Handshake()
	h.computed()
	if err != nil {
		why := reasonOf(err)
		if why != HungUp && why != SlowHandshake {
			hint(err)
			h.conn.linger() // still counted, and may have to give way
		}
		if h.end() {
			why, err = TooManyHandshakes, errGaveWay
		}
		l.refuse(h.conn, why, trust.Identity{}, err)
		return
	}
	if h.end() {
		l.refuse(h.conn, TooManyHandshakes, trust.Identity{}, errGaveWay)
		return
	}
	h.conn.handshake = nil
	id, _ := trust.PeerOf(c)
	leave, why := l.seats.take(id)
	if why != "" {
		l.refuse(c, why, id, nil)
		return
	}
	h.conn.leave = leave
	c.SetDeadline(time.Time{})
	began := h.deadline.Add(-l.o.HandshakeTimeout)
	l.edge.metrics.handshakes.WithLabelValues(l.o.Name).Observe(time.Since(began).Seconds())
	l.deliver(c)
}

// hint tells a person who spoke HTTP what to do.
func hint(err error) {
	var record tls.RecordHeaderError
	if !errors.As(err, &record) || record.Conn == nil {
		return
	}
	switch string(record.RecordHeader[:4]) {
	case "GET ", "HEAD", "POST", "PUT ", "DELE":
		io.WriteString(record.Conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nThis port speaks TLS: use https, and a client certificate.\n")
	}
}

// deliver hands a connection over to Accept.
func (l *listener) deliver(c net.Conn) {
	select {
	case l.ready <- c:
	case <-l.done:
		c.Close()
	}
}

// refuse closes a connection. Those that end because the listener is closed are
// not refused.
func (l *listener) refuse(c net.Conn, why trust.Reason, id trust.Identity, err error) {
	c.Close()
	select {
	case <-l.done:
		return
	default:
	}
	who := hostOf(c.RemoteAddr())
	if !id.IsZero() {
		who = id.String()
	}
	l.edge.Refused(l.o.Name, why, who, err)
}

// reasonOf returns why a handshake failed.
func reasonOf(err error) trust.Reason {
	switch why := trust.ReasonOf(err); {
	case why != trust.Failed:
		return why
	case errors.Is(err, errGaveWay):
		return TooManyHandshakes
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errLate):
		return SlowHandshake
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return HungUp
	default:
		return BadHandshake
	}
}
