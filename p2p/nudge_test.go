package p2p

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// bareMessages are numbers of messages that peers send each other (BEP 3).
const (
	unchokeMessage = 1
	haveMessage    = 4
	requestMessage = 6
)

// barePeer is a peer that says nothing of its own accord, keep-alives neither.
type barePeer struct {
	net.Conn
	t *testing.T
}

func connectBare(t *testing.T, dial func(name string) net.Conn, name string, p payload) barePeer {
	t.Helper()
	c := dial(name)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	b := barePeer{c, t}
	b.say(handshakeAs(peerID(name), p))
	if _, err := io.ReadFull(c, make([]byte, handshakeSize)); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b barePeer) say(p []byte) {
	b.t.Helper()
	if _, err := b.Write(p); err != nil {
		b.t.Fatal(err)
	}
}

// asked waits until the peer is asked for a piece.
func (b barePeer) asked() (piece uint32) {
	b.t.Helper()
	for {
		var length [4]byte
		_, err := io.ReadFull(b, length[:])
		body := make([]byte, binary.BigEndian.Uint32(length[:]))
		if err == nil {
			_, err = io.ReadFull(b, body)
		}
		if err != nil {
			b.t.Fatalf("it is not asked for the piece: %v", err)
		}
		if len(body) > 4 && body[0] == requestMessage {
			return binary.BigEndian.Uint32(body[1:])
		}
	}
}

// TestHiddenIsRevealed: who has a piece that was just asked for elsewhere is asked for it
// when the other goes away, or does not send it, even if nothing more is heard of
// either.
func TestHiddenIsRevealed(t *testing.T) {
	a := trusttest.New(t)
	var heard refusals
	for name, tls := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPayload(t, 1<<10) // one piece
			var options []func(*SwarmOptions)
			if tls {
				options = append(options, secured(t, a, trust.RoleWorker, &heard))
			}
			w := newNode(t, "w", false, options...)
			r := start(t, w, p)
			defer r.cancel()
			eventually(t, "the fetch", func() bool { return r.last.Load().Total > 0 })
			dial := func(name string) net.Conn {
				var c net.Conn
				var err error
				if tls {
					c, err = dialTLS(a.Open(t, trust.RoleWorker, name))(t.Context(), w.Addr, nil)
				} else {
					c, err = net.Dial("tcp", w.Addr)
				}
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			first, second := connectBare(t, dial, "first", p), connectBare(t, dial, "second", p)
			first.say(append(torrentMessage(unchokeMessage), torrentMessage(haveMessage, 0)...))
			first.asked()
			second.say(append(torrentMessage(unchokeMessage), torrentMessage(haveMessage, 0)...))
			eventually(t, "the announcement", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				h := w.holdings[p.torrent.InfoHash()]
				return h.seen[0] == 2
			})
			first.Close()
			began := time.Now()
			second.asked()
			if took := time.Since(began); took > stallAfter/2 {
				t.Errorf("it was asked after %v", took)
			}
		})
	}
}
