package edge

import (
	"encoding/binary"
	"net"
	"sync"
	"syscall"
)

// wakeBytes is how much of what a reader expects is to arrive before it is woken. On a link
// of 100 Mbit/s it would otherwise be woken for every few packets, which cost two to three
// times the processor time.
const wakeBytes = 128 << 10

// waker sets how much has to have arrived before the reader of a socket is woken
// (SO_RCVLOWAT). The end of the connection and deadlines wake it in any case.
//
// A reader must never wait for more than what was sent before the other end waits for an
// answer. What it expects it says in bytes of the stream, and what of them is still to come
// through the socket is known when the socket is read: whoever is above reads only what it
// needs next, after it returned all that it had. Over TLS it may have a part of a record,
// the rest of which will come, too, since a record is sent whole; how long it is says
// its header; that is waited for in any case.
type waker struct {
	raw syscall.RawConn // nil: the socket is not the kernel's

	mu       sync.Mutex // guards what follows
	expected int64      // bytes of the stream, at least
	low      int        // as set, at least 1
	records  records    // stays zero without TLS
}

func newWaker(c net.Conn) *waker {
	w := &waker{low: 1}
	if sc, ok := c.(syscall.Conn); ok {
		w.raw, _ = sc.SyscallConn()
	}
	return w
}

// Expect says that at least n more bytes of the stream are to come that nobody has read
// yet, and that the reader can not go on without. Over TLS these are bytes in the clear. It
// holds until it is called again: the reader calls it before each Read, as
// long as it expects much, and then with 0. That may also be called by somebody else, and
// wakes a reader that waits for more than there is.
func (w *waker) Expect(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected = n
	if n == 0 && w.low > 1 {
		w.set(1)
	}
}

// reading is called before the socket is read.
func (w *waker) reading() {
	if w.raw == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	most := int(max(1, min(w.records.toCome(w.expected), wakeBytes)))
	if w.low <= most && w.low > most/2 {
		return // near enough for a system call
	}
	w.set(most)
}

// set sets the mark. w.mu is held.
func (w *waker) set(low int) {
	w.low = low
	// Where it is not supported, nothing is lost but time.
	w.raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, low)
	})
}

// received notes what of TLS records was read from the socket.
func (w *waker) received(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records.advance(p)
}

// records follows TLS records (RFC 8446, 5.1) in what is read from a socket.
type records struct {
	header [5]byte
	n      int // bytes of the header that are known
	size   int // of the record that is being received, without its header
	rest   int // of these, what is still to come
}

// recordExtra is by how much at least a protected record is longer than what is in it: the
// type and the authentication tag (RFC 8446, 5.2).
const recordExtra = 1 + 16

func (r *records) advance(p []byte) {
	for len(p) > 0 {
		if r.rest > 0 {
			n := min(r.rest, len(p))
			r.rest -= n
			p = p[n:]
			continue
		}
		n := copy(r.header[r.n:], p)
		r.n += n
		p = p[n:]
		if r.n == len(r.header) {
			r.size = int(binary.BigEndian.Uint16(r.header[3:]))
			r.rest, r.n = r.size, 0
		}
	}
}

// toCome returns how many bytes will come at least, of which n bytes are expected in the
// clear, when all records that came whole were returned.
func (r *records) toCome(n int64) int64 {
	if r.rest == 0 {
		return n // and a header or its rest, and what encryption adds
	}
	return int64(r.rest) + max(0, n-max(0, int64(r.size-recordExtra)))
}
