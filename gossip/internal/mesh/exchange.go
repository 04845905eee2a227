package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// maxHeld is how many bytes of requests and answers may be in memory. Until they are
// handled, memberlist holds about as many again.
const maxHeld = 2 * MaxState

// exchange is one request and its answer. memberlist writes each of its messages
// with one Write, which makes a frame, and reads one, which is received whole and
// looked at before the first byte is given out.
type exchange struct {
	net.Conn
	t      *Transport
	id     trust.Identity
	in     io.Reader
	greet  bool    // the first byte is still to be sent
	member *member // whose stream it is; nil if this side began it

	received *bytes.Reader
	err      error // instead of received

	unbind func() bool
	mu     sync.Mutex // guards what follows
	held   int64      // bytes
	closed bool
}

// newExchange wraps a connection that this side made.
func (t *Transport) newExchange(conn net.Conn, id trust.Identity) *exchange {
	x := &exchange{Conn: conn, t: t, id: id, in: conn, greet: true}
	x.unbind = context.AfterFunc(t.ctx, func() { conn.Close() })
	return x
}

// Write sends a message.
func (x *exchange) Write(b []byte) (int, error) {
	if len(b) > MaxState {
		return 0, fmt.Errorf("a message of %d bytes; at most %d are allowed: the fleet is too large for one gossip", len(b), MaxState)
	}
	var head []byte
	if x.greet {
		head, x.greet = []byte{kindStream}, false
	}
	if _, err := x.Conn.Write(binary.LittleEndian.AppendUint32(head, uint32(len(b)))); err != nil {
		return 0, err
	}
	return x.Conn.Write(b)
}

// Read reads the message of the other side.
func (x *exchange) Read(b []byte) (int, error) {
	if x.received == nil && x.err == nil {
		if x.err = x.receive(ackMsg, pushPullMsg, errorMsg); x.err != nil && trust.ReasonOf(x.err) != trust.Failed {
			x.t.dropped(x.id.String(), x.err)
		}
	}
	if x.err != nil {
		return 0, x.err
	}
	return x.received.Read(b)
}

// receive takes the other side's message, of one of the types.
func (x *exchange) receive(types ...byte) error {
	b, err := readFrame(x.in, MaxState, x.hold)
	if err != nil {
		return err
	}
	if !slices.Contains(types, b[0]) {
		return malformed("a message of type %d in an exchange", b[0])
	}
	switch b[0] {
	case pingMsg:
		if err := checkMessage(b, x.id.Name); err != nil {
			return err
		}
	case pushPullMsg:
		s, err := decodeState(b)
		if err != nil {
			return err
		}
		bad := x.t.o.State(x.id, s.user)
		if x.member != nil {
			x.member.fine(bad, time.Now())
		}
		if bad >= MaxBad {
			return malformed("a state with %d bad items", bad)
		}
		if s.temper(x.t.o.Left) {
			if b, err = s.encode(); err != nil {
				return err
			}
		}
	case ackMsg:
		if err := decodeAll(b, &ack{}); err != nil {
			return err
		}
	case errorMsg:
		if err := decodeAll(b, &remoteError{}); err != nil {
			return err
		}
	}
	x.received = bytes.NewReader(b)
	return nil
}

// hold accounts for memory that the message needs.
func (x *exchange) hold(n int) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return net.ErrClosed
	}
	x.held += int64(n)
	if x.t.held.Add(int64(n)) > maxHeld {
		return tooMany("%d bytes of exchanges are in memory already", maxHeld)
	}
	return nil
}

// Close ends the exchange.
func (x *exchange) Close() error {
	x.release()
	return x.Conn.Close()
}

// release gives back what the exchange took, but for the connection.
func (x *exchange) release() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return
	}
	x.closed = true
	x.unbind()
	x.t.held.Add(-x.held)
	if x.member != nil {
		x.t.roster.closeStream(x.member)
	}
}
