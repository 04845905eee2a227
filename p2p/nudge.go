package p2p

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// keepAlive is the message that says nothing (BEP 3).
var keepAlive = []byte{0, 0, 0, 0}

// nudge has a connection's reader see a message that nobody sent, which says nothing, so
// that messageRead has one to say something with. The reader waits in the kernel
// meanwhile: a deadline that has passed gets it out, and neither TCP nor crypto/tls
// loses anything by that.
type nudge struct {
	mu      sync.Mutex // guards what follows, and is held while the deadline is set
	pending bool       // given, and not taken
	past    bool       // the deadline is not the client's
	reading time.Time  // the client's
}

// give is called by anybody but the reader.
func (n *nudge) give(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.pending { // else the reader is in the middle of a message, and takes it after that
		n.pending, n.past = true, true
		c.SetReadDeadline(time.Unix(1, 0))
	}
}

// take reports whether the message is to be seen now.
func (n *nudge) take() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.pending
	n.pending = false
	return was
}

// woke reports whether a read returned because of a nudge, and is to be repeated.
func (n *nudge) woke(c net.Conn, read int, err error) bool {
	if read > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	woke := n.past
	if n.past = false; woke {
		c.SetReadDeadline(n.reading)
	}
	return woke
}

// deadlineSlack is how much too early a deadline may be. The client sets another one, in
// 150 s, before each read.
const deadlineSlack = 10 * time.Second

// deadline sets the client's deadline. It does not get in the way of a nudge.
func (n *nudge) deadline(c net.Conn, t time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if later := t.Sub(n.reading); !n.past && !n.reading.IsZero() && later >= 0 && later < deadlineSlack {
		return
	}
	n.reading, n.past = t, false
	c.SetReadDeadline(t)
}
