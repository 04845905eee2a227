package p2p

import (
	"encoding/binary"
	"net"
)

// expecter is a connection, or what is below TLS, whose reader can be spared being woken for
// little (package edge). n bytes are to come at least, all of which the reader needs.
type expecter interface{ Expect(n int64) }

// expecterOf returns it, or nil: nothing is lost but time.
func expecterOf(c net.Conn) expecter {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = outer.NetConn()
	}
	e, _ := c.(expecter)
	return e
}

// framing follows BitTorrent's messages (BEP 3) in what is read from a connection.
type framing struct {
	rest   int64 // of the message, or the handshake, that is being received
	length [4]byte
	n      int // bytes of length that are known
}

const handshakeSize = 68

func newFraming() framing { return framing{rest: handshakeSize} }

// between reports whether what was read ends where a message does.
func (f *framing) between() bool { return f.rest == 0 && f.n == 0 }

// advance notes what was read.
func (f *framing) advance(p []byte) {
	for len(p) > 0 {
		if f.rest > 0 {
			n := min(f.rest, int64(len(p)))
			f.rest -= n
			p = p[n:]
			continue
		}
		n := copy(f.length[f.n:], p)
		f.n += n
		p = p[n:]
		if f.n == len(f.length) {
			f.rest = int64(binary.BigEndian.Uint32(f.length[:]))
			f.n = 0
		}
	}
}
