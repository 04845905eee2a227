package edge

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// FuzzStranger: whatever somebody without a certificate sends, nothing is accepted, and
// the connection ends.
func FuzzStranger(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(record(1, 1<<10))
	f.Add(append(record(1, 1<<10-4), randomBytes(1, 1<<10-4)...))
	f.Add(append(record(11, 1<<10-4), randomBytes(2, 1<<10-4)...))
	f.Add([]byte{21, 3, 3, 0, 2, 2, 42}) // an alert
	f.Add([]byte{20, 3, 3, 0, 1, 1})     // change cipher spec
	f.Add([]byte{})
	f.Add(greeting(f))
	_, server, _ := fleet(f)
	n := newNode(server)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	ln := n.Listen(inner, ListenOptions{Name: "fuzz"})
	f.Cleanup(func() { ln.Close() })
	accepted := make(chan net.Conn, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		before := n.metric(t, "qs_edge_refused_total")
		c.Write(b)
		c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Error("the connection stayed open")
		}
		eventually(t, "it is counted", func() bool { return n.metric(t, "qs_edge_refused_total") > before })
		select {
		case c := <-accepted:
			id, ok := trust.PeerOf(c)
			t.Errorf("accepted %v (%v)", id, ok)
		default:
		}
	})
}

// greeting returns a client's true greeting.
func greeting(t testing.TB) []byte {
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		c := &firstWrite{Conn: b}
		tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
		b.Close()
	}()
	buf := make([]byte, 16<<10)
	n, err := a.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}
