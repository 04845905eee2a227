package p2p

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/anacrolix/torrent"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// ErrForbidden means that a peer refuses this node, because of what its certificate says.
var ErrForbidden = errors.New("peer refuses this node")

// Why this package refuses a peer whose certificate is good, beside trust's reasons.
const (
	// Damaged is a peer that sent a piece which is not the snapshot's.
	Damaged trust.Reason = "damaged_piece"
	// Shunned is a peer that connects although it is shunned for that.
	Shunned trust.Reason = "shunned"
	// TooMany is a peer that asks for more at once, or more often, than it may.
	TooMany trust.Reason = "too_many_requests"
)

// RefusedFunc hears of a peer that was refused: who it is, as its certificate says or else
// its address, and why. It must not block.
type RefusedFunc func(reason trust.Reason, who string, err error)

// logRefused is what a RefusedFunc is by default.
func logRefused(log *slog.Logger) RefusedFunc {
	return func(reason trust.Reason, who string, err error) {
		log.Info("peer refused", "peer", who, "reason", reason, "err", err)
	}
}

// authorise returns who is at the other end of a connection. Without TLS (s is nil)
// that is nobody, and with TLS a node that may be in the fleet.
func authorise(s *tls.ConnectionState) (trust.Identity, error) {
	if s == nil {
		return trust.Identity{}, nil
	}
	id, ok := trust.FromState(s)
	if !ok {
		return id, &trust.RefusedError{Reason: trust.BadIdentity, Err: errors.New("the connection has no identity")}
	}
	return id, wantPeer("")(id)
}

// tlsState returns the state of the TLS connection in c, nil if there is none.
func tlsState(c net.Conn) *tls.ConnectionState {
	for {
		switch t := c.(type) {
		case interface{ ConnectionState() tls.ConnectionState }:
			s := t.ConnectionState()
			return &s
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return nil
		}
	}
}

// nameOf returns what somebody is called in messages.
func nameOf(id trust.Identity, addr string) string {
	if id.IsZero() {
		return addr
	}
	return id.String()
}

// askerOf returns who sent a request: what its certificate says, or without TLS what
// it says itself, and then its colo is not known.
func askerOf(r *http.Request) (name, colo string, err error) {
	if r.TLS != nil {
		id, err := authorise(r.TLS)
		return id.Name, id.Colo, err
	}
	name = r.Header.Get(nodeHeader)
	if err := checkNode(name); err != nil {
		return "", "", fmt.Errorf("%s: %w", nodeHeader, err)
	}
	return name, "", nil
}

// caller is who is at the other end of a connection of the swarm.
type caller struct {
	id  *torrent.PeerID // nil: the handshake will tell
	who string          // for messages
}

// callerOf checks a connection that came in. What it says later is nobody's but its
// identity's.
func (s *Swarm) callerOf(c net.Conn) (caller, error) {
	id, err := authorise(tlsState(c))
	from := caller{who: nameOf(id, c.RemoteAddr().String())}
	if id.IsZero() || err != nil {
		return from, err
	}
	pid := peerID(id.Name)
	from.id = &pid
	return from, s.checkShunned(pid)
}

// hello follows the handshake (BEP 3) of a peer that is known: its last 20 bytes
// have to be the peer's own id.
type hello struct {
	want *torrent.PeerID // nil: anybody's
	at   int             // bytes of the handshake that were read
}

// check returns false once something else was read.
func (h *hello) check(p []byte) bool {
	const idAt = handshakeSize - len(torrent.PeerID{})
	if h.want == nil {
		return true
	}
	for ; len(p) > 0 && h.at < handshakeSize; p = p[1:] {
		if h.at >= idAt && p[0] != h.want[h.at-idAt] {
			return false
		}
		h.at++
	}
	return true
}
