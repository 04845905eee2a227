package p2p

import (
	"bytes"
	"time"
)

// announceAfter is how long a connection waits for something to send along with
// announcements of pieces (BEP 3's have).
//
// In a colo of 24 most packets were an announcement each: to send, to
// acknowledge and to wake up for it cost both ends more than the pieces. A
// neighbour asks a little later for what is announced a little later, which
// costs nothing while it has something else to ask for.
var announceAfter = 100 * time.Millisecond

// maxHeld bounds the announcements that wait on a connection, in bytes.
const maxHeld = 64 * haveSize

const haveSize = 9

var havePrefix = []byte{0, 0, 0, 5, 4} // length, type

// onlyHaves reports whether p is announcements and nothing else.
func onlyHaves(p []byte) bool {
	if len(p)%haveSize != 0 {
		return false
	}
	for ; len(p) > 0; p = p[haveSize:] {
		if !bytes.HasPrefix(p, havePrefix) {
			return false
		}
	}
	return true
}

// announceLater has the announcements that c holds sent after announceAfter,
// together with those of all other connections, so that the process wakes up once.
func (n *network) announceLater(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	if n.announcing == nil {
		n.announcing = make(map[*conn]struct{})
		n.announcer.Reset(announceAfter)
	}
	n.announcing[c] = struct{}{}
}

// announce sends what connections hold back. Each has its own goroutine: a peer
// that does not read must not keep announcements from the others.
func (n *network) announce() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.announcing {
		if _, open := n.conns[c]; open {
			n.idle.Go(c.flush)
		}
	}
	n.announcing = nil
}

// flush sends the announcements that are held back, if there are any yet.
func (c *conn) flush() {
	c.writing.Lock()
	defer c.writing.Unlock()
	if len(c.held) > 0 {
		c.send(nil) // the writer will hear of an error
	}
}

// hold takes announcements to be sent later. c.writing is held.
func (c *conn) hold(p []byte) bool {
	if !onlyHaves(p) || len(c.held)+len(p) > maxHeld {
		return false
	}
	if len(c.held) == 0 {
		c.network.announceLater(c)
	}
	c.held = append(c.held, p...)
	return true
}
