package mesh

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/qs-peer/qs-peer/internal/trust"
)

const (
	helloTimeout   = 5 * time.Second  // for a connection's first byte
	packetTimeout  = 5 * time.Second  // for a packet that began
	requestTimeout = 10 * time.Second // for the request of an exchange
)

// connection is one that somebody else made, or one that carries packets.
type connection struct {
	net.Conn
	r      *bufio.Reader
	id     trust.Identity
	member *member
	born   time.Time
	// The side that made it ends it once it was idle or is old; the other side does so
	// when that did not happen.
	ours bool
	from string // if it is not ours: the gossip address of who made it

	used  atomic.Int64  // when a packet came or went last: after born, in ns
	ended chan struct{} // closed when no more packets come
	// strikes are packets of a flood in a row.
	strikes int
}

func newConnection(conn net.Conn, id trust.Identity, m *member) *connection {
	return &connection{Conn: conn, r: bufio.NewReader(conn), id: id, member: m, born: time.Now(), ended: make(chan struct{})}
}

// use says that a packet comes or goes.
func (c *connection) use() { c.used.Store(int64(time.Since(c.born))) }

// idle returns for how long none did.
func (c *connection) idle() time.Duration { return time.Since(c.born) - time.Duration(c.used.Load()) }

// accept takes connections until the listener is closed.
func (t *Transport) accept() {
	defer t.wg.Done()
	var delay time.Duration
	for {
		conn, err := t.o.Listener.Accept()
		switch {
		case err == nil:
			delay = 0
			t.wg.Add(1)
			go t.welcome(conn)
			continue
		case t.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		}
		delay = min(max(2*delay, 10*time.Millisecond), time.Second)
		t.o.Logger.Debug("gossip accepts no connection", "error", err)
		t.pause(delay)
	}
}

// pause waits. An error means that the transport ends.
func (t *Transport) pause(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}

// handshaker is a connection that may not know yet who is at its other end.
type handshaker interface {
	HandshakeContext(context.Context) error
}

// welcome serves a connection.
func (t *Transport) welcome(conn net.Conn) {
	defer t.wg.Done()
	defer context.AfterFunc(t.ctx, func() { conn.Close() })()
	who := conn.RemoteAddr().String()
	refuse := func(err error) {
		if t.ctx.Err() == nil {
			t.dropped(who, err)
		}
		conn.Close()
	}
	conn.SetDeadline(time.Now().Add(helloTimeout))
	if h, ok := conn.(handshaker); ok {
		if err := h.HandshakeContext(t.ctx); err != nil {
			refuse(err)
			return
		}
	}
	id, err := t.identify(conn)
	if !id.IsZero() {
		who = id.String()
	}
	if err != nil {
		refuse(err)
		return
	}
	m, err := t.roster.enter(id, time.Now())
	if err != nil {
		refuse(err)
		return
	}
	c := newConnection(conn, id, m)
	defer func() { t.roster.leave(c, time.Now()) }()
	kind, err := c.r.ReadByte()
	switch {
	case err != nil:
	case kind == kindPackets:
		if err = c.readFrom(); err == nil {
			err = t.receive(c)
		}
	case kind == kindStream:
		if err = t.answer(c); err == nil {
			return // it is memberlist's now
		}
	default:
		err = malformed("a connection of kind %q", kind)
	}
	if err = late(err); trust.ReasonOf(err) != trust.Failed {
		refuse(err)
		return
	}
	conn.Close()
	t.o.Logger.Debug("gossip connection ended", "from", who, "error", err)
}

// readFrom reads at which port who made the connection listens.
func (c *connection) readFrom() error {
	var port [2]byte
	if _, err := io.ReadFull(c.r, port[:]); err != nil {
		return noEOF(err)
	}
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return err
	}
	c.from = net.JoinHostPort(host, strconv.Itoa(int(binary.LittleEndian.Uint16(port[:]))))
	return nil
}

// late makes a deadline that passed a reason.
func late(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &trust.RefusedError{Reason: Slow, Err: err}
	}
	return err
}

// receive takes packets until the connection ends.
func (t *Transport) receive(c *connection) error {
	defer close(c.ended)
	if oldest := t.roster.carryPackets(c); oldest != nil {
		oldest.Close()
	}
	defer t.roster.dropPackets(c)
	end := c.born.Add(inboundAge)
	for {
		now := time.Now()
		c.SetReadDeadline(earlier(now.Add(inboundIdle-c.idle()), end))
		if !now.Before(end) {
			return errors.New("the connection is old")
		}
		if _, err := c.r.Peek(1); err != nil {
			switch {
			case !errors.Is(err, os.ErrDeadlineExceeded):
				return err
			case c.idle() < inboundIdle:
				continue
			}
			return errors.New("no packet for a long time")
		}
		c.SetReadDeadline(time.Now().Add(packetTimeout))
		b, err := readFrame(c.r, MaxPacket, nil)
		if err != nil {
			return err
		}
		c.use()
		if err := t.takePacket(c, b, time.Now()); err != nil {
			return err
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// takePacket passes on what is in a packet, and drops the rest. An error means that
// the connection is to be closed.
func (t *Transport) takePacket(c *connection, b []byte, now time.Time) error {
	parts, err := splitPacket(b)
	if err := c.member.take(max(len(parts), 1), len(b), now); err != nil {
		return t.strike(c, err)
	}
	bad := 0
	drop := func(err error) {
		bad++
		t.dropped(c.id.String(), err)
	}
	defer func() { c.member.fine(bad, now) }()
	if err != nil {
		drop(err)
	}
	var flooded error
	// Who is told of becomes known before others say that it is alive.
	for _, m := range parts {
		if m[0] == userMsg && t.o.Message(c.id, m[1:]) {
			bad++
		}
	}
	for _, m := range parts {
		if m[0] == userMsg {
			continue
		}
		if err := c.member.takeMessage(m[0], now); err != nil {
			flooded = err
			continue
		}
		if err := checkMessage(m, c.id.Name); err != nil {
			drop(err)
			continue
		}
		if m[0] == suspectMsg || m[0] == deadMsg {
			if err := temper(m, t.o.Left); err != nil {
				drop(err)
				continue
			}
		}
		p := &memberlist.Packet{Buf: m, From: c.RemoteAddr(), Timestamp: now}
		if m[0] == aliveMsg {
			about, err := aliveOf(m)
			if err != nil {
				drop(err)
				continue
			}
			if there, _ := t.o.Where(about.Name, about.Addr); !there {
				t.wait(about, p, c.id)
				continue
			}
		}
		if err := t.deliver(p); err != nil {
			return err
		}
	}
	if flooded != nil {
		return t.strike(c, flooded)
	}
	c.strikes = 0
	return nil
}

// strike drops what was too much, and does not read on for a moment. An error means
// that this goes on.
func (t *Transport) strike(c *connection, err error) error {
	if c.strikes++; c.strikes > maxStrikes {
		return err
	}
	t.dropped(c.id.String(), err)
	return t.pause(floodPause)
}

// answer receives the request of an exchange and gives it to memberlist.
func (t *Transport) answer(c *connection) error {
	if err := t.roster.openStream(c.member); err != nil {
		return err
	}
	x := t.newExchange(c.Conn, c.id)
	x.in, x.greet, x.member = c.r, false, c.member
	c.SetDeadline(time.Now().Add(requestTimeout))
	if err := x.receive(pingMsg, pushPullMsg); err != nil {
		x.release()
		return err
	}
	select {
	case t.streams <- x:
		return nil
	case <-t.ctx.Done():
		x.release()
		return t.ctx.Err()
	}
}
