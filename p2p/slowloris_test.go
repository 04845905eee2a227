package p2p

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// hurriedListener returns connections that have little room to send and on which
// deadlines that are further off than a handshake's come hurry times as soon.
type hurriedListener struct {
	net.Listener
	open *sync.Map // by remote address
}

func newHurriedListener(ln net.Listener) hurriedListener { return hurriedListener{ln, new(sync.Map)} }

type hurriedConn struct {
	*net.TCPConn
	open *sync.Map
}

const hurry = 30

func (l hurriedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Store(c.RemoteAddr().String(), true)
	tcp := c.(*net.TCPConn)
	return hurriedConn{tcp, l.open}, tcp.SetWriteBuffer(4 << 10)
}

func (c hurriedConn) Close() error {
	c.open.Delete(c.RemoteAddr().String())
	return c.TCPConn.Close()
}

// hangsUp waits until the listener's end of a client's connection is closed. The client's
// does not tell while there is something to be read.
func (l hurriedListener) hangsUp(client net.Conn, within time.Duration) error {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, open := l.open.Load(client.LocalAddr().String()); !open {
			return nil
		}
	}
	return fmt.Errorf("still open after %v", within)
}

func sooner(t time.Time) time.Time {
	if d := time.Until(t); d > 6*time.Second {
		return time.Now().Add(d / hurry)
	}
	return t
}

func (c hurriedConn) SetDeadline(t time.Time) error     { return c.TCPConn.SetDeadline(sooner(t)) }
func (c hurriedConn) SetReadDeadline(t time.Time) error { return c.TCPConn.SetReadDeadline(sooner(t)) }
func (c hurriedConn) SetWriteDeadline(t time.Time) error {
	return c.TCPConn.SetWriteDeadline(sooner(t))
}

// dialNarrow connects with little room to receive.
func dialNarrow(creds *trust.Credentials) DialFunc {
	return func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) })
		}}
		return overTLS(ctx, &d, addr, creds.ClientConfig(check))
	}
}

// slowOnes are ways to keep a peer's listener busy.
func (s *secureSource) slowOnes() map[string]func(net.Conn) {
	get := func(path string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: x\r\nQs-Protocol: 1\r\n"
	}
	drip := func(c net.Conn, what string) {
		for {
			if _, err := io.WriteString(c, what); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	ih := s.torrent.InfoHash()
	return map[string]func(net.Conn){
		"says nothing":                 func(net.Conn) {},
		"stops in the request":         func(c net.Conn) { io.WriteString(c, "GET /p2p") },
		"sends a header after another": func(c net.Conn) { io.WriteString(c, get(logPath)); drip(c, "X: y\r\n") },
		"sends a body byte by byte":    func(c net.Conn) { io.WriteString(c, get(logPath)+"Content-Length: 1000\r\n\r\n"); drip(c, "x") },
		"sends a body without an end": func(c net.Conn) {
			io.WriteString(c, get(logPath)+"Transfer-Encoding: chunked\r\n\r\n")
			drip(c, "1\r\nx\r\n")
		},
		"asks again and again, no end":  func(c net.Conn) { drip(c, get(havePath(ih))+"X: ") },
		"sends endless headers at once": func(c net.Conn) { io.WriteString(c, get(logPath)+strings.Repeat("X: y\r\n", 10_000)) },
		"does not read a piece":         func(c net.Conn) { io.WriteString(c, get(piecePath(ih, 0))+"\r\n") },
		"does not read a metainfo": func(c net.Conn) {
			io.WriteString(c, strings.Repeat(get(snapshotPath+ih.String()+torrentLeaf)+"\r\n", 60))
		},
	}
}

// TestSlowLorisPeers: whoever is slow, or stuck, loses its connection, and others are
// served meanwhile.
func TestSlowLorisPeers(t *testing.T) {
	ln := newHurriedListener(listenTCP(t))
	s := newSecureSourceOn(t, ln)
	creds := s.authority.Open(t, trust.RoleWorker, "slow")
	var waiting sync.WaitGroup
	for name, be := range s.slowOnes() {
		c, err := dialNarrow(creds)(t.Context(), s.addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		waiting.Go(func() {
			defer c.Close()
			var slow sync.WaitGroup
			slow.Go(func() { be(c) })
			began := time.Now()
			if err := ln.hangsUp(c, 10*time.Second); err != nil {
				t.Errorf("one that %s: %v", name, err)
			}
			t.Logf("one that %s: %v", name, time.Since(began).Round(time.Millisecond))
			c.Close()
			slow.Wait()
		})
	}
	w := s.client(t, trust.RoleWorker, "w")
	for kind, ask := range s.requests() {
		if err := ask(t.Context(), w, Target{Addr: s.addr}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	waiting.Wait()
}

// torrentMessage is one of BitTorrent's.
func torrentMessage(id byte, fields ...uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(1+4*len(fields)))
	b = append(b, id)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, f)
	}
	return b
}

// TestSlowLorisSwarm: the same for the swarm's listener.
func TestSlowLorisSwarm(t *testing.T) {
	a := trusttest.New(t)
	p := newPayload(t, 4<<20)
	var heard refusals
	var ln hurriedListener
	hurried := func(o *SwarmOptions) {
		ln = newHurriedListener(o.Listener)
		o.Listener = ln
	}
	n := newNode(t, "seeder", false, hurried, secured(t, a, trust.RoleWorker, &heard))
	seed(t, n, p)
	var waiting sync.WaitGroup
	for name, be := range map[string]func(c net.Conn, hello []byte){
		"says nothing":             func(net.Conn, []byte) {},
		"stops in the handshake":   func(c net.Conn, hello []byte) { c.Write(hello[:30]) },
		"says nothing after it":    func(c net.Conn, hello []byte) { c.Write(hello) },
		"stops in a message":       func(c net.Conn, hello []byte) { c.Write(append(hello, 0, 0, 0, 200, 7, 1)) },
		"sends a huge message":     func(c net.Conn, hello []byte) { c.Write(append(hello, 255, 255, 255, 255, 7)) },
		"sends an unknown message": func(c net.Conn, hello []byte) { c.Write(append(hello, torrentMessage(99, 1, 2)...)) },
		"sends a handshake drop-wise": func(c net.Conn, hello []byte) {
			for _, b := range hello {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		},
		"does not read what it asks for": func(c net.Conn, hello []byte) {
			c.Write(append(hello, torrentMessage(2)...)) // interested
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			io.ReadFull(c, hello)
			var head [5]byte
			for head[4] != 1 { // unchoke
				if _, err := io.ReadFull(c, head[:]); err != nil {
					t.Error(err)
					return
				}
				io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[:]))-1)
			}
			for i := range 64 {
				c.Write(torrentMessage(6, uint32(i), 0, 16<<10))
			}
		},
	} {
		who := strings.ReplaceAll(name, " ", "-")
		c, err := dialNarrow(a.Open(t, trust.RoleWorker, who))(t.Context(), n.Addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		waiting.Go(func() {
			defer c.Close()
			began := time.Now()
			be(c, handshakeAs(peerID(who), p))
			if err := ln.hangsUp(c, 15*time.Second); err != nil {
				t.Errorf("one that %s: %v", name, err)
			}
			t.Logf("one that %s: %v", name, time.Since(began).Round(time.Millisecond))
		})
	}
	w := newNode(t, "w", false, secured(t, a, trust.RoleWorker, &heard))
	introduce(t, n, w)
	start(t, w, p).wait(t)
	waiting.Wait()
}

// TestManySlowConnections: what hundreds of them take is bounded.
func TestManySlowConnections(t *testing.T) {
	const conns = 150
	s := newSecureSource(t)
	n := newNode(t, "seeder", false, secured(t, s.authority, trust.RoleWorker, new(refusals)))
	if err := n.Seed(s.torrent, s.file(t)); err != nil {
		t.Fatal(err)
	}
	creds := s.authority.Open(t, trust.RoleWorker, "slow")
	for name, c := range map[string]struct {
		addr  string
		first []byte
	}{
		"peer":  {s.addr, []byte("GET /p2p/v1/log HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("y", 4<<10))},
		"swarm": {n.Addr, handshakeAs(peerID("slow"), s.payload)[:40]},
	} {
		t.Run(name, func(t *testing.T) {
			before := inUse()
			for range conns {
				conn, err := dialTLS(creds)(t.Context(), c.addr, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := conn.Write(c.first); err != nil {
					t.Fatal(err)
				}
			}
			each := (inUse() - before) / conns
			t.Logf("%d KiB for each connection, both ends together", each>>10)
			if each > 128<<10 {
				t.Errorf("%d bytes for each connection", each)
			}
		})
	}
}

// inUse returns the memory in use, in bytes.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestServerLimits: Attach sets what keeps slow ones off.
func TestServerLimits(t *testing.T) {
	srv := new(http.Server)
	NewServer(ServerOptions{}).Attach(srv)
	if srv.ReadHeaderTimeout != requestTimeout || srv.IdleTimeout != idleTimeout || srv.MaxHeaderBytes != maxRequestHeader {
		t.Errorf("%+v", srv)
	}
}
