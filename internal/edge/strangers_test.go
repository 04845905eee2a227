package edge

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// stranger is somebody who tries to get in.
type stranger struct {
	name   string
	reason trust.Reason
	// try connects to addr, does its worst, and returns what it got back.
	try func(t *testing.T, addr string) []byte
}

// withFiles tries with a certificate.
func withFiles(f trust.Files) func(*testing.T, string) []byte {
	return func(t *testing.T, addr string) []byte {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if f.Cert != "" {
			cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
			if err != nil {
				t.Fatal(err)
			}
			// Whatever the server asks for.
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
		}
		return withTLS(cfg)(t, addr)
	}
}

func withTLS(cfg *tls.Config) func(*testing.T, string) []byte {
	return func(t *testing.T, addr string) []byte {
		c, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			return nil
		}
		defer c.Close()
		return converse(c, []byte("ping\n"))
	}
}

func withBytes(b []byte) func(*testing.T, string) []byte {
	return func(t *testing.T, addr string) []byte {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return converse(c, b)
	}
}

// converse writes, and reads until the other end closes.
func converse(c net.Conn, b []byte) []byte {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	c.Write(b)
	got, _ := io.ReadAll(c)
	return got
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

// record begins a TLS record of 1 KiB with a handshake message of a length.
func record(kind byte, length int) []byte {
	return []byte{22, 3, 1, 4, 0, kind, byte(length >> 16), byte(length >> 8), byte(length)}
}

func TestStrangersAreRefused(t *testing.T) {
	authority, server, worker := fleet(t)
	other := trusttest.New(t)
	id := trusttest.Identity(trust.RoleWorker, "w2")
	foreign := id
	foreign.Domain = "elsewhere.example"

	strangers := []stranger{
		{"no certificate", trust.NoCertificate, withFiles(trust.Files{})},
		{"another authority", trust.UnknownAuthority, withFiles(other.Node(t, trust.RoleManager, "m1"))},
		{"expired", trust.Expired, withFiles(authority.Issue(t, t.TempDir(), id, time.Now().Add(-time.Minute)))},
		{"another trust domain", trust.WrongDomain, withFiles(authority.Issue(t, t.TempDir(), foreign, time.Now().Add(time.Hour)))},
		{"no identity", trust.BadIdentity, withFiles(authority.IssueURIs(t, t.TempDir(), nil, time.Now().Add(time.Hour)))},
		{"a role that is not admitted", trust.WrongRole, withFiles(authority.Node(t, trust.RoleClientWrite, "c1"))},
		{"TLS 1.2", BadHandshake, withTLS(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})},
		{"plain text", trust.NotTLS, withBytes([]byte("PING\r\nPING\r\nPING\r\n"))},
		{"HTTP", trust.NotTLS, func(t *testing.T, addr string) []byte {
			got := withBytes([]byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))(t, addr)
			if !bytes.Contains(got, []byte("client certificate")) {
				t.Errorf("a person who forgot TLS is told %q", got)
			}
			return nil
		}},
		{"random bytes", trust.NotTLS, withBytes(randomBytes(4, 1<<20))},
		{"a greeting of nothing", BadHandshake, withBytes(append(record(1, 1<<10-4), randomBytes(5, 1<<10-4)...))},
		{"a greeting that never ends", BadHandshake, withBytes(endless())},
		{"one byte at a time", SlowHandshake, dripping},
		{"silence", SlowHandshake, withBytes(nil)},
	}
	for _, s := range strangers {
		t.Run(s.name, func(t *testing.T) {
			n := newNode(server)
			addr := serveEcho(t, n, ListenOptions{
				HandshakeTimeout: time.Second, Admit: trust.Want("", trust.NodeRoles()...),
			})
			client := newNode(worker)
			friend, err := client.Dial(t.Context(), addr, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer friend.Close()
			if err := call(friend); err != nil {
				t.Fatal(err)
			}

			const attempts = 3
			for range attempts {
				if got := s.try(t, addr); len(got) > 0 && s.reason != trust.NotTLS && s.reason != BadHandshake {
					t.Errorf("the stranger got %q", got)
				} else if bytes.Contains(got, []byte("ping")) || bytes.Contains(got, []byte("PING")) {
					t.Errorf("what the stranger sent came back: %q", got)
				}
			}
			eventually(t, "each attempt is counted: "+n.log.String(), func() bool {
				return n.metric(t, "qs_edge_refused_total", "echo", string(s.reason)) == attempts
			})
			if all := n.metric(t, "qs_edge_refused_total"); all != attempts {
				t.Errorf("%v refusals are counted, want %d\n%s", all, attempts, n.log)
			}
			if got := n.log.with("refused", "listener=echo", "reason="+string(s.reason), "who=127.0.0.1"); got != 1 {
				t.Errorf("%d lines in the log, want 1:\n%s", got, n.log)
			}
			if strings.Count(n.log.String(), "\n") != 1 {
				t.Errorf("want one line:\n%s", n.log)
			}
			if err := call(friend); err != nil {
				t.Errorf("a connection that was there: %v", err)
			}
			if err := dialCall(t.Context(), client.Edge, addr); err != nil {
				t.Errorf("a new connection of a friend: %v", err)
			}
			if got := n.metric(t, "qs_edge_handshakes_in_flight"); got != 0 {
				t.Errorf("%v handshakes are in flight", got)
			}
		})
	}
}

// endless returns many records of one handshake message, which is never complete: more
// than crypto/tls takes.
func endless() []byte {
	var b bytes.Buffer
	for range 40 {
		b.Write([]byte{22, 3, 1, 0x04, 0x00})
		b.Write(append([]byte{1, 0, 0xff, 0xff}, make([]byte, 1020)...))
	}
	return b.Bytes()
}

func dripping(t *testing.T, addr string) []byte {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	greeting := record(1, 1<<10)
	for i := 0; ; i++ {
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		var b [1]byte
		if _, err := c.Read(b[:]); err != nil && !isTimeout(err) {
			return nil
		}
		if i < len(greeting) {
			if _, err := c.Write(greeting[i : i+1]); err != nil {
				return nil
			}
		}
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// TestClientIsToldWhy: a client that sent its request at once gets the alert, not
// a reset.
func TestClientIsToldWhy(t *testing.T) {
	authority, server, _ := fleet(t)
	n := newNode(server)
	addr := serveEcho(t, n, ListenOptions{Admit: trust.Want("", trust.NodeRoles()...)})
	client := newNode(authority.Open(t, trust.RoleClientRead, "c1"))
	c, err := client.Dial(t.Context(), addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := call(c); trust.ReasonOf(err) != trust.Refused {
		t.Errorf("the client saw: %v", err)
	}
	if got := client.metric(t, "qs_edge_dials_total", dialRefused); got != 1 {
		t.Errorf("%v dials count as refused", got)
	}
}

func TestPeerOfBothEnds(t *testing.T) {
	_, server, worker := fleet(t)
	n := newNode(server)
	inner := listen(t)
	ln := n.Listen(inner, ListenOptions{Name: "echo"})
	defer ln.Close()
	c, err := newNode(worker).Dial(t.Context(), inner.Addr().String(), trust.Want("m1", trust.RoleManager))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, ok := s.(*tls.Conn); !ok {
		t.Errorf("accepted a %T; net/http wants a *tls.Conn", s)
	}
	if id, ok := trust.PeerOf(s); !ok || id != worker.Identity() {
		t.Errorf("the server sees %v, %v", id, ok)
	}
	if id, ok := trust.PeerOf(c); !ok || id != server.Identity() {
		t.Errorf("the client sees %v, %v", id, ok)
	}
}

func TestWrongNameIsNotTalkedTo(t *testing.T) {
	_, server, worker := fleet(t)
	addr := serveEcho(t, newNode(server), ListenOptions{})
	client := newNode(worker)
	_, err := client.Dial(t.Context(), addr, trust.Want("m2", trust.RoleManager))
	if trust.ReasonOf(err) != trust.WrongName {
		t.Errorf("dialled m2, found m1: %v", err)
	}
	if got := client.metric(t, "qs_edge_dials_total", dialRefused); got != 1 {
		t.Errorf("%v dials count as refused", got)
	}
}
