package edge

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// writes counts what is written to a connection, and how often.
type writes struct {
	net.Conn
	n     int
	bytes bytes.Buffer
}

func (w *writes) Write(p []byte) (int, error) {
	w.n++
	return w.bytes.Write(p)
}

// TestCork: what is written while corked is passed on when there is much of it, and
// when it is uncorked, all of it and in order.
func TestCork(t *testing.T) {
	to := new(writes)
	s := &socket{Conn: to}
	var want []byte
	write := func(n int) {
		t.Helper()
		p := bytes.Repeat([]byte{byte(len(want))}, n)
		want = append(want, p...)
		if m, err := s.Write(p); m != n || err != nil {
			t.Fatal(m, err)
		}
	}
	passed := func(step string, writes, size int) {
		t.Helper()
		if to.n != writes || to.bytes.Len() != size || !bytes.HasPrefix(want, to.bytes.Bytes()) {
			t.Errorf("%s: %d bytes were passed on in %d writes, want %d in %d", step, to.bytes.Len(), to.n, size, writes)
		}
	}
	write(10)
	passed("without cork", 1, 10)
	s.Cork()
	write(10)
	write(16 << 10)
	passed("corked", 1, 10)
	write(48 << 10)
	passed("much", 2, 20+64<<10)
	write(7)
	if err := s.Uncork(); err != nil {
		t.Fatal(err)
	}
	passed("uncorked", 3, 27+64<<10)
	if err := s.Uncork(); err != nil {
		t.Fatal(err)
	}
	write(3)
	passed("without cork again", 4, 30+64<<10)
}

// TestCorkBelowTLS: both ends of a connection can be corked, and one that is closed
// while it waits for room says so.
func TestCorkBelowTLS(t *testing.T) {
	a := trusttest.New(t)
	open := func(name string) *Edge {
		return New(Options{Credentials: a.Open(t, trust.RoleWorker, name)})
	}
	tcp := listen(t)
	ln := open("w1").Listen(tcp, ListenOptions{Name: "test"})
	defer ln.Close()
	out, err := open("w2").Dial(context.Background(), tcp.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for _, c := range []struct{ from, to net.Conn }{{in, out}, {out, in}} {
		below := c.from.(interface{ NetConn() net.Conn }).NetConn().(*socket)
		message := bytes.Repeat([]byte("0123456789abcdef"), 100_001)
		go func() {
			below.Cork()
			c.from.Write(message)
			below.Uncork()
		}()
		got := make([]byte, len(message))
		if _, err := io.ReadFull(c.to, got); err != nil || !bytes.Equal(got, message) {
			t.Errorf("what was read is not what was written: %v", err)
		}
	}
	below := out.(*dialledTLS).NetConn().(*socket)
	done := make(chan error)
	go func() {
		for {
			below.Cork()
			_, err := out.Write(make([]byte, 40<<10))
			if flushed := below.Uncork(); err == nil {
				err = flushed
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	below.Close()
	if err := <-done; err == nil {
		t.Error("no error")
	}
}
