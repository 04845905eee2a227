package p2p

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// TestNoMessageIsWaitedFor: over TLS a message arrives when it was sent, though the reader
// waits for much at a time, and nothing is sent after it until it was answered. Messages
// of all sizes go in both directions, in records of all sizes.
func TestNoMessageIsWaitedFor(t *testing.T) {
	a := trusttest.New(t)
	ln := listenTLS(listenTCP(t), newEdge(a.Open(t, trust.RoleWorker, "s")))
	defer ln.Close()
	dialled := make(chan net.Conn, 1)
	go func() {
		c, err := newEdge(a.Open(t, trust.RoleWorker, "c")).Dial(t.Context(), ln.Addr().String(), nil)
		if err != nil {
			t.Error(err)
		}
		dialled <- c
	}()
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := newNetwork(ctx, &Swarm{})
	end := func(c net.Conn) net.Conn {
		wrapped, err := n.wrap(c, inboundAddr(1), caller{})
		if err != nil {
			t.Fatal(err)
		}
		if wrapped.(*conn).expecter == nil {
			t.Fatal("the socket below TLS can not be told what to wait for")
		}
		t.Cleanup(func() { wrapped.Close() })
		return wrapped
	}
	ends := [2]net.Conn{end(in), end(<-dialled)}

	const seed = 3
	r := rand.New(rand.NewPCG(seed, 0))
	const rounds = 400
	type message struct{ size, piece int } // sent in writes of so many bytes at most
	var messages []message
	for range rounds {
		messages = append(messages, message{r.IntN(1 << (1 + r.IntN(20))), 1 + r.IntN(1<<(1+r.IntN(18)))})
	}
	messages[0].size = handshakeSize - 4 // which has no length before it
	send := func(c net.Conn, m message) error {
		b := append(binary.BigEndian.AppendUint32(nil, uint32(m.size)), make([]byte, m.size)...)
		for len(b) > 0 {
			n := min(len(b), m.piece)
			if m.size > 1<<16 {
				n = min(len(b), m.piece+1<<12) // or it would take all day
			}
			if _, err := c.Write(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	}
	receive := func(c net.Conn, m message) error {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err := io.CopyN(io.Discard, c, 4+int64(m.size))
		return err
	}
	for i, m := range messages {
		from, to := ends[i/2%2], ends[1-i/2%2] // each sends two, one after the other
		if i == 1 {
			from, to = to, from
			m = messages[0]
		}
		sent := make(chan error, 1)
		go func() { sent <- send(from, m) }()
		if err := errors.Join(receive(to, m), <-sent); err != nil {
			t.Fatalf("seed %d, message %d of %d bytes in writes of %d: %v", seed, i, m.size, m.piece, err)
		}
	}
}
