package p2p

import (
	"encoding/binary"
	"math/bits"
	"net"
	"syscall"
)

const (
	// wakeBytes is how much of a long message is to arrive before the process is
	// woken to read it. On a link of 100 Mbit/s it would otherwise be woken for
	// every few packets, which cost two to three times the processor time.
	wakeBytes = 64 << 10
	// tlsBuffered bounds what a TLS connection has read and not yet returned: crypto/tls
	// reads a record, of 16,645 bytes at most, into a bytes.Buffer, as far as there is room
	// in that, and a bytes.Buffer that is asked for 512 bytes more than that grows
	// to 56 KiB at most.
	tlsBuffered = 64 << 10
)

// waker sets how much has to have arrived before a reader of a connection is woken
// (SO_RCVLOWAT). The end of the connection and deadlines wake it in any case.
//
// A reader must never wait for more than what was sent before the other end waits
// for an answer. Over TLS it does not, although records do not end where messages do:
// of n bytes that are still to be returned at least n-tlsBuffered are still to
// come through the socket, because encryption only adds to them; and should one Read
// of the TLS connection wait more than once, in the middle of a record, it has
// not taken more from the socket meanwhile than tlsBuffered.
type waker struct {
	raw      syscall.RawConn // nil: the connection is not the kernel's
	buffered int             // what may have left the kernel without having been read
	low      int             // as set
}

// newWaker returns the waker of a connection. buffered bounds what its reader
// buffers.
func newWaker(c net.Conn, buffered int) *waker {
	w := &waker{buffered: buffered, low: 1}
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = outer.NetConn()
		w.buffered += tlsBuffered
	}
	if sc, ok := c.(syscall.Conn); ok {
		w.raw, _ = sc.SyscallConn()
	}
	return w
}

// expect says that at least n more bytes are to come, and wanted.
func (w *waker) expect(n int64) {
	if w.raw == nil {
		return
	}
	most := int(max(1, min(n-int64(w.buffered), wakeBytes)))
	if w.low <= most && w.low > most/4 {
		return // near enough for a system call
	}
	low := 1 << (bits.Len(uint(most)) - 1)
	w.low = low
	// Where it is not supported, nothing is lost but time.
	w.raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, low)
	})
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
