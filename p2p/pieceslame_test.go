package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// hallway is a listener for pipes, for virtual time.
type hallway struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newHallway() *hallway { return &hallway{make(chan net.Conn), make(chan struct{})} }

func (h *hallway) dial(context.Context, string, func(trust.Identity) error) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case h.conns <- b:
		return a, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *hallway) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *hallway) Close() error   { close(h.closed); return nil }
func (h *hallway) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// lazy takes so many bytes from a connection, rests, takes more …
type lazy struct {
	net.Conn
	take int
	rest time.Duration
	left int
}

func (l *lazy) Read(p []byte) (int, error) {
	if l.left == 0 {
		time.Sleep(l.rest)
		l.left = max(l.take, 1)
	}
	n, err := l.Conn.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// TestLameReceivers: one that takes nothing is given up after 30 s, and its next
// request is then served; one that takes a little now and then is not given up;
// nobody else waits for them.
func TestLameReceivers(t *testing.T) {
	s := newStockpile(t, 1<<20)
	for name, test := range map[string]struct {
		take    int // bytes, first at once
		rest    time.Duration
		givenUp time.Duration // 0: it gets all
	}{
		"takes nothing":        {0, time.Hour, stuckAfter},
		"stops in the middle":  {10_000, time.Hour, stuckAfter},
		"takes a little":       {30_000, 9 * time.Second, 0},
		"takes it all at once": {1 << 20, time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in := newHallway()
				serveSource(t, in, ServerOptions{Pieces: s})
				began := time.Now()
				size := s.torrent.PieceSize(0)
				ask := func(name string, i int, dial DialFunc) error {
					c := NewClient(ClientOptions{Name: name, Dial: dial})
					defer c.Close()
					return c.Piece(t.Context(), Target{Addr: "source:1"}, s.torrent.InfoHash(), i, make([]byte, size))
				}
				conn, err := in.dial(t.Context(), "", nil)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nQs-Protocol: 1\r\nQs-Node: a1\r\n\r\n", piecePath(s.torrent.InfoHash(), 0))
				ended := make(chan int64)
				go func() {
					resp, err := http.ReadResponse(bufio.NewReader(&lazy{conn, test.take, test.rest, test.take}), nil)
					if err != nil {
						ended <- 0
						return
					}
					n, _ := io.Copy(io.Discard, resp.Body)
					ended <- n
				}()
				synctest.Wait() // it has its turn
				if err := ask("b1", 1, in.dial); err != nil || time.Since(began) > 0 {
					t.Errorf("another asker waited %v: %v", time.Since(began), err)
				}
				// Its own next piece comes when the first is out of the way.
				for err = errTimeout; errors.Is(err, errTimeout); { // its patience is 10 s
					err = ask("a1", 2, in.dial)
				}
				if err != nil {
					t.Error(err)
				}
				if waited := time.Since(began); test.givenUp > 0 && (waited < test.givenUp || waited > test.givenUp+stallTimeout) {
					t.Errorf("it was given up after %v, want %v", waited, test.givenUp)
				}
				if got := <-ended; (got == size) != (test.givenUp == 0) {
					t.Errorf("it got %d bytes of %d", got, size)
				}
			})
		})
	}
}

// TestShunnedIsServed: who sent damaged data can still get good data.
func TestShunnedIsServed(t *testing.T) {
	p := newPayload(t, 100_000)
	source := newNode(t, "source", false)
	seed(t, source, p)
	source.SetPeers([]Peer{{Name: "w1", Addr: "127.0.0.1:1"}})
	source.mu.Lock()
	source.blame(peerID("w1"), true)
	shunned := source.isShunned(peerID("w1"), time.Now())
	source.mu.Unlock()
	if !shunned {
		t.Fatal("it is not shunned")
	}
	_, addr := serveSource(t, listenTCP(t), ServerOptions{Pieces: source.Swarm})
	if err := askAs(t, "w1").Piece(t.Context(), Target{Addr: addr}, p.torrent.InfoHash(), 0, make([]byte, p.torrent.PieceSize(0))); err != nil {
		t.Error(err)
	}
}

// TestTooManyConnections: those beyond the limit are closed, and make room when
// they go.
func TestTooManyConnections(t *testing.T) {
	s := newPieceServer(nil, nil, nil, nil)
	pipe := func() (net.Conn, net.Conn) {
		here, there := net.Pipe()
		s.opened(t.Context(), here)
		s.changed(here, http.StateNew)
		return here, there
	}
	isClosed := func(there net.Conn) bool {
		there.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := there.Read(make([]byte, 1))
		return errors.Is(err, io.EOF)
	}
	first, _ := pipe()
	for range maxServerConns - 1 {
		pipe()
	}
	beyond, there := pipe()
	if !isClosed(there) {
		t.Error("a connection beyond the limit stays")
	}
	for _, c := range []net.Conn{beyond, first} {
		s.changed(c, http.StateClosed)
	}
	if _, there := pipe(); isClosed(there) {
		t.Error("there is no room after one is gone")
	}
}

// sendfileConn sees what net.TCPConn is given to send.
type sendfileConn struct {
	*net.TCPConn
	files *atomic.Int64 // bytes that came from a file's descriptor
}

func (c sendfileConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.TCPConn.ReadFrom(r)
	if l, ok := r.(*io.LimitedReader); ok {
		if _, ok := l.R.(syscall.Conn); ok {
			c.files.Add(n)
		}
	}
	return n, err
}

type sendfileListener struct {
	net.Listener
	files *atomic.Int64
}

func (l sendfileListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return sendfileConn{c.(*net.TCPConn), l.files}, nil
}

// TestSendfile: without TLS the kernel sends pieces, with a budget or not.
func TestSendfile(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip(err)
	}
	for name, egress := range map[string]*Budget{"no limit": nil, "a limit": limit(100 << 20)} {
		t.Run(name, func(t *testing.T) {
			s := newStockpile(t, 1<<20)
			var files atomic.Int64
			_, addr := serveSource(t, sendfileListener{listenTCP(t), &files}, ServerOptions{Pieces: s, Egress: egress})
			c := askAs(t, "a1")
			for i := range s.torrent.Pieces() {
				if err := c.Piece(t.Context(), Target{Addr: addr}, s.torrent.InfoHash(), i, make([]byte, s.torrent.PieceSize(i))); err != nil {
					t.Fatal(err)
				}
			}
			// The first 512 bytes of each go with the header.
			eventually(t, "the kernel sent all but the beginnings", func() bool {
				return files.Load() == s.torrent.Size()-int64(s.torrent.Pieces())*512
			})
		})
	}
}

// TestPlainEdge: neither does an edge without TLS keep the kernel from it.
func TestPlainEdge(t *testing.T) {
	e := newEdge(nil)
	ln := e.Listen(listenTCP(t), edge.ListenOptions{Name: "test"})
	defer ln.Close()
	out, err := e.Dial(t.Context(), ln.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, ok := in.(io.ReaderFrom); !ok {
		t.Errorf("a %T does not send files", in)
	}
	for _, c := range []net.Conn{in, out} {
		if expecterOf(c) == nil {
			t.Errorf("a %T can not be told what to wait for", c)
		}
	}
}

func FuzzBitmap(f *testing.F) {
	f.Add([]byte{0x80}, 1)
	f.Add([]byte{0x80, 0x80}, 9)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, b []byte, pieces int) {
		if pieces < 0 || pieces > 1<<20 {
			return
		}
		have, err := parseBitmap(b, pieces)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Error(err)
			}
			return
		}
		if again := appendBitmap(nil, have); string(again) != string(b) || len(have) != pieces {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// FuzzPaths has the server parse any path and name.
func FuzzPaths(f *testing.F) {
	f.Add(piecePath(chunker.InfoHash{1}, 0), "n")
	f.Add(havePath(chunker.InfoHash{1}), "")
	f.Add("/p2p/v1/snapshot//piece/%00", "\xff")
	server := NewServer(ServerOptions{})
	f.Fuzz(func(t *testing.T, path, name string) {
		r, err := http.NewRequest(http.MethodGet, "http://x/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path = path
		r.Header.Set(protocolHeader, protocolVersion)
		r.Header[nodeHeader] = []string{name}
		w := &answer{header: http.Header{}}
		if path == logPath {
			return // there is no log
		}
		server.ServeHTTP(w, r)
		if w.status == 0 || w.status == http.StatusOK || w.status >= 500 {
			t.Errorf("%q: %d", path, w.status)
		}
	})
}

// answer is a ResponseWriter.
type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }
func (a *answer) WriteHeader(status int)      { a.status = status }
