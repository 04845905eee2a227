package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// open connects and has a line echoed, so that the connection is counted.
func open(t *testing.T, n *node, addr string) (net.Conn, error) {
	t.Helper()
	c, err := n.Dial(t.Context(), addr, nil)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, call(c)
}

func TestMaxConns(t *testing.T) {
	for _, secure := range []bool{true, false} {
		t.Run(fmt.Sprintf("TLS=%v", secure), func(t *testing.T) {
			_, sc, cc := fleet(t)
			if !secure {
				sc, cc = nil, nil
			}
			server := newNode(sc)
			addr := serveEcho(t, server, ListenOptions{MaxConns: 3})
			var conns []net.Conn
			for i := range 3 {
				c, err := open(t, newNode(cc), addr)
				if err != nil {
					t.Fatalf("connection %d: %v", i, err)
				}
				conns = append(conns, c)
			}
			if _, err := open(t, newNode(cc), addr); err == nil {
				t.Error("one too many was let in")
			}
			eventually(t, "one is counted as refused", func() bool {
				return server.metric(t, "qs_edge_refused_total", "echo", string(TooManyConnections)) == 1
			})
			for i, c := range conns {
				if err := call(c); err != nil {
					t.Errorf("connection %d was harmed: %v", i, err)
				}
			}
			conns[0].Close()
			eventually(t, "there is room again", func() bool { return server.metric(t, "qs_edge_connections", "echo") == 2 })
			if _, err := open(t, newNode(cc), addr); err != nil {
				t.Errorf("in place of one that left: %v", err)
			}
		})
	}
}

func TestMaxPerIdentity(t *testing.T) {
	authority, sc, cc := fleet(t)
	server := newNode(sc)
	addr := serveEcho(t, server, ListenOptions{MaxPerIdentity: 2})
	first, err := open(t, newNode(cc), addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, newNode(cc), addr); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := open(t, newNode(cc), addr); err == nil {
			t.Error("a third of one identity was let in")
		}
	}
	eventually(t, "five are counted as refused", func() bool {
		return server.metric(t, "qs_edge_refused_total", string(TooManyOfIdentity)) == 5
	})
	if got := server.log.with("reason=too_many_of_identity", "who="+cc.Identity().String()); got != 1 {
		t.Errorf("%d lines, want 1:\n%s", got, server.log)
	}
	if _, err := open(t, newNode(authority.Open(t, trust.RoleWorker, "w2")), addr); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	first.Close()
	eventually(t, "there is room again", func() bool { return server.metric(t, "qs_edge_connections") == 2 })
	if _, err := open(t, newNode(cc), addr); err != nil {
		t.Errorf("in place of one that left: %v", err)
	}
}

// TestBusiestHostGivesWay: strangers who say nothing push each other out, and never
// one from another host who is as slow as they are.
func TestBusiestHostGivesWay(t *testing.T) {
	_, sc, _ := fleet(t)
	server := newNodeWith(Options{Credentials: sc, MaxHandshakes: 4})
	addr := serveEcho(t, server, ListenOptions{HandshakeTimeout: time.Minute})
	silent := func(host string) net.Conn {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}).Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	quiet := silent("127.0.0.3")
	var busy []net.Conn
	for range 10 {
		busy = append(busy, silent("127.0.0.2"))
	}
	eventually(t, "seven gave way", func() bool {
		return server.metric(t, "qs_edge_refused_total", string(TooManyHandshakes)) == 7
	})
	for i, c := range busy {
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		if gone := !isTimeout(err); gone != (i < 7) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	quiet.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := quiet.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("the one from another host: %v", err)
	}
}

// TestManyHosts: of strangers who have a host for each connection, the first gives way.
func TestManyHosts(t *testing.T) {
	_, sc, cc := fleet(t)
	server := newNodeWith(Options{Credentials: sc, MaxHandshakes: 4})
	addr := serveEcho(t, server, ListenOptions{HandshakeTimeout: time.Minute})
	for i := range 20 {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}}).Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := dialCall(t.Context(), newNode(cc).Edge, addr); err != nil {
			t.Errorf("after %d strangers: %v", i+1, err)
		}
	}
	if got := server.metric(t, "qs_edge_refused_total", string(TooManyHandshakes)); got < 16 {
		t.Errorf("%v strangers gave way", got)
	}
}

// TestHandshakesOfAllListeners: the limit is one for the node, so that memory is bounded
// however many listeners are attacked; who is silent at one listener gives way to
// those who come to another.
func TestHandshakesOfAllListeners(t *testing.T) {
	_, sc, cc := fleet(t)
	server := newNodeWith(Options{Credentials: sc, MaxHandshakes: 4})
	var addrs []string
	for _, name := range []string{"http", "peer"} {
		addrs = append(addrs, serveEcho(t, server, ListenOptions{Name: name, HandshakeTimeout: time.Minute}))
	}
	for range 10 {
		c, err := net.Dial("tcp", addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "six gave way at the first", func() bool {
		return server.metric(t, "qs_edge_refused_total", "http", string(TooManyHandshakes)) == 6
	})
	for range 4 {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}).Dial("tcp", addrs[1])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "both have their part of the four", func() bool {
		http, peer := server.metric(t, "qs_edge_handshakes_in_flight", "http"), server.metric(t, "qs_edge_handshakes_in_flight", "peer")
		return http+peer == 4 && peer >= 2
	})
	if err := dialCall(t.Context(), newNode(cc).Edge, addrs[1]); err != nil {
		t.Errorf("one with a certificate: %v", err)
	}
}

func TestHostPrefix(t *testing.T) {
	for addr, want := range map[string]string{
		"10.1.2.3:4":          "10.1.2.3/32",
		"[::ffff:10.1.2.3]:4": "10.1.2.3/32",
		"[2001:db8::1]:4":     "2001:db8::/64",
		"[2001:db8::2:1]:4":   "2001:db8::/64",
		"[2001:db8:0:1::1]:4": "2001:db8:0:1::/64",
		"[fe80::1%lo]:4":      "fe80::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := hostPrefix(a).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestCloseStopsAndWaits(t *testing.T) {
	_, sc, cc := fleet(t)
	server := newNode(sc)
	inner := listen(t)
	ln := server.Listen(inner, ListenOptions{Name: "echo", HandshakeTimeout: time.Minute})
	var inFlight []net.Conn
	for range 10 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		inFlight = append(inFlight, c)
	}
	unaccepted, err := newNode(cc).Dial(t.Context(), inner.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unaccepted.Close()
	eventually(t, "the handshakes are in flight, and a connection waits for Accept", func() bool {
		return server.metric(t, "qs_edge_handshakes_in_flight") == 10 && server.metric(t, "qs_edge_connections") == 1
	})
	for range 2 {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, c := range append(inFlight, unaccepted) {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("a connection was not closed: %v", err)
		}
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if got := server.metric(t, "qs_edge_connections") + server.metric(t, "qs_edge_handshakes_in_flight"); got != 0 {
		t.Errorf("%v are still counted", got)
	}
	if got := server.metric(t, "qs_edge_refused_total"); got != 0 {
		t.Errorf("%v count as refused because the listener was closed\n%s", got, server.log)
	}
}

// failing is a listener that runs out of descriptors for a time.
type failing struct {
	net.Listener
	mu    sync.Mutex
	times int
}

func (f *failing) Accept() (net.Conn, error) {
	f.mu.Lock()
	f.times--
	fail := f.times >= 0
	f.mu.Unlock()
	if fail {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return f.Listener.Accept()
}

func TestAcceptOutlastsLackOfDescriptors(t *testing.T) {
	inner := listen(t)
	server := newNode(nil)
	addr := serveEchoOn(t, server, &failing{Listener: inner, times: 3}, ListenOptions{})
	if err := dialCall(t.Context(), newNode(nil).Edge, addr); err != nil {
		t.Error(err)
	}
	if got := server.metric(t, "qs_edge_refused_total", string(AcceptFailed)); got != 3 {
		t.Errorf("%v failures are counted, want 3", got)
	}
}

func TestAcceptEndsWithTheListenerBelow(t *testing.T) {
	inner := listen(t)
	ln := newNode(nil).Listen(inner, ListenOptions{Name: "echo"})
	defer ln.Close()
	inner.Close()
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestSockets: what is done to sockets elsewhere (options, sendfile) works on what
// comes from here.
func TestSockets(t *testing.T) {
	_, sc, cc := fleet(t)
	for _, secure := range []bool{true, false} {
		t.Run(fmt.Sprintf("TLS=%v", secure), func(t *testing.T) {
			server, client := newNode(nil), newNode(nil)
			if secure {
				server, client = newNode(sc), newNode(cc)
			}
			inner := listen(t)
			ln := server.Listen(inner, ListenOptions{Name: "echo"})
			defer ln.Close()
			out, err := client.Dial(t.Context(), inner.Addr().String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			in, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			for side, c := range map[string]net.Conn{"in": in, "out": out} {
				if outer, ok := c.(interface{ NetConn() net.Conn }); ok != secure {
					t.Errorf("%s: has NetConn: %v", side, ok)
				} else if ok {
					c = outer.NetConn()
				}
				raw, err := c.(syscall.Conn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				var got int
				raw.Control(func(fd uintptr) {
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 4321)
					got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
				})
				if got != 4321 || err != nil {
					t.Errorf("%s: the option is %d, %v", side, got, err)
				}
				if !secure {
					if _, ok := c.(io.ReaderFrom); !ok {
						t.Errorf("%s: %T has no ReadFrom: no sendfile", side, c)
					}
					if _, ok := c.(interface{ CloseWrite() error }); !ok {
						t.Errorf("%s: %T has no CloseWrite", side, c)
					}
				}
			}
		})
	}
}

func TestUnixSocketHasNoTLS(t *testing.T) {
	_, sc, _ := fleet(t)
	path := filepath.Join(t.TempDir(), "s")
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := newNode(sc)
	serveEchoOn(t, server, inner, ListenOptions{MaxConns: 1})
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := call(c); err != nil {
		t.Error(err)
	}
	if got := server.metric(t, "qs_edge_connections"); got != 1 {
		t.Errorf("%v connections are counted", got)
	}
	second, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := call(second); err == nil {
		t.Error("one too many was let in")
	}
}

// TestHTTP: net/http knows who asks, and sends files as it does without TLS.
func TestHTTP(t *testing.T) {
	_, sc, cc := fleet(t)
	file := filepath.Join(t.TempDir(), "f")
	content := bytes.Repeat([]byte("qs-peer "), 1<<17)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, secure := range []bool{true, false} {
		t.Run(fmt.Sprintf("TLS=%v", secure), func(t *testing.T) {
			server, client := newNode(nil), newNode(nil)
			if secure {
				server, client = newNode(sc), newNode(cc)
			}
			inner := listen(t)
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				id, ok := trust.FromState(r.TLS)
				if ok != secure || secure && id != cc.Identity() {
					t.Errorf("the server sees %v, %v", id, ok)
				}
				http.ServeFile(w, r, file)
			})}
			served := make(chan error, 1)
			go func() { served <- srv.Serve(server.Listen(inner, ListenOptions{Name: "http"})) }()
			defer func() {
				srv.Close()
				<-served
			}()
			transport := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return client.Dial(ctx, addr, nil)
			}}
			defer transport.CloseIdleConnections()
			for range 3 {
				resp, err := (&http.Client{Transport: transport}).Get("http://" + inner.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
			if got := server.metric(t, "qs_edge_connections"); got != 1 {
				t.Errorf("%v connections for three requests", got)
			}
		})
	}
}

// TestNothingPlainWithCredentials: with credentials nothing passes without TLS.
func TestNothingPlainWithCredentials(t *testing.T) {
	_, sc, _ := fleet(t)
	server := newNode(sc)
	inner := listen(t)
	ln := server.Listen(inner, ListenOptions{Name: "echo"})
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := ln.Accept(); err == nil {
			accepted <- c
		}
	}()
	if err := dialCall(t.Context(), newNode(nil).Edge, inner.Addr().String()); err == nil {
		t.Error("a plain connection was served")
	}
	select {
	case c := <-accepted:
		_, isTLS := c.(*tls.Conn)
		t.Errorf("Accept returned a %T (TLS: %v)", c, isTLS)
	default:
	}
}
