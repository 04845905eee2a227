package p2p

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
	"github.com/qs-peer/qs-peer/txlog"
)

// secureSource is a peer that has everything to be asked for, and speaks TLS.
type secureSource struct {
	*stockpile
	authority *trusttest.Authority
	server    *Server
	addr      string
	heard     refusals
	dataset   txlog.DatasetID
	asked     int // pieces: each is given to one node only
}

func newSecureSource(t testing.TB) *secureSource { return newSecureSourceOn(t, listenTCP(t)) }

func newSecureSourceOn(t testing.TB, ln net.Listener) *secureSource {
	t.Helper()
	s := &secureSource{stockpile: newStockpile(t, 1<<20), authority: trusttest.New(t), dataset: txlog.DatasetID{7}}
	log, err := txlog.Open(t.TempDir(), txlog.Options{})
	if err == nil {
		_, err = log.Create(s.dataset)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	creds := s.authority.Open(t, trust.RoleManager, "source")
	s.server, s.addr = serveSource(t, listenTLS(ln, newEdge(creds)), ServerOptions{
		Log: log, Pieces: s.stockpile, Refused: s.heard.add,
		Snapshot: func(ih chunker.InfoHash) (manifest, metainfo []byte, ok bool) {
			return []byte("manifest"), s.torrent.Metainfo(), ih == s.torrent.InfoHash()
		},
	})
	return s
}

// client asks as one of a role.
func (s *secureSource) client(t testing.TB, role trust.Role, name string) *Client {
	c := NewClient(ClientOptions{Name: name, Dial: dialTLS(s.authority.Open(t, role, name))})
	t.Cleanup(c.Close)
	return c
}

// requests are one of each kind.
func (s *secureSource) requests() map[string]func(context.Context, *Client, Target) error {
	ih := s.torrent.InfoHash()
	return map[string]func(context.Context, *Client, Target) error{
		"log": func(ctx context.Context, c *Client, from Target) error {
			st, err := c.Stream(ctx, from, s.dataset, txlog.Pos{})
			if err == nil {
				st.Close()
			}
			return err
		},
		"manifest": func(ctx context.Context, c *Client, from Target) error {
			_, err := c.Manifest(ctx, from, ih)
			return err
		},
		"torrent": func(ctx context.Context, c *Client, from Target) error {
			_, err := c.Torrent(ctx, from, ih)
			return err
		},
		"have": func(ctx context.Context, c *Client, from Target) error {
			_, err := c.Have(ctx, from, ih, s.torrent.Pieces())
			return err
		},
		"piece": func(ctx context.Context, c *Client, from Target) error {
			s.asked++
			return c.Piece(ctx, from, ih, s.asked, make([]byte, s.torrent.PieceSize(s.asked)))
		},
	}
}

// TestServerAdmission: which role may ask for what, and that nobody is asked who is not
// the one that is meant.
func TestServerAdmission(t *testing.T) {
	s := newSecureSource(t)
	for _, role := range trust.Roles() {
		name := "a-" + string(role)
		c := s.client(t, role, name)
		refused := 0
		for kind, ask := range s.requests() {
			t.Run(fmt.Sprintf("%s/%s", role, kind), func(t *testing.T) {
				err := ask(t.Context(), c, Target{Name: "source", Addr: s.addr})
				if role.May(trust.VerbFetch) {
					if err != nil {
						t.Error(err)
					}
					return
				}
				refused++
				if !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), string(role)) || errors.Is(err, ErrProtocol) {
					t.Errorf("got %v, want ErrForbidden that names the role", err)
				}
				if n := s.heard.count(trust.WrongRole, identity(role, name)); n != refused {
					t.Errorf("%d refusals were heard of, want %d", n, refused)
				}
			})
		}
	}
	w := s.client(t, trust.RoleWorker, "w")
	for kind, ask := range s.requests() {
		err := ask(t.Context(), w, Target{Name: "another", Addr: s.addr})
		if trust.ReasonOf(err) != trust.WrongName || errors.Is(err, ErrProtocol) {
			t.Errorf("%s, asked from another than who is there: %v", kind, err)
		}
	}
	stranger := NewClient(ClientOptions{Name: "w"})
	t.Cleanup(stranger.Close)
	foreign := NewClient(ClientOptions{Name: "w", Dial: dialTLS(trusttest.New(t).Open(t, trust.RoleWorker, "w"))})
	t.Cleanup(foreign.Close)
	for kind, ask := range s.requests() {
		if err := ask(t.Context(), stranger, Target{Addr: s.addr}); err == nil {
			t.Errorf("%s was served without TLS", kind)
		}
		if err := ask(t.Context(), foreign, Target{Addr: s.addr}); trust.ReasonOf(err) != trust.UnknownAuthority {
			t.Errorf("%s, by an unknown authority: %v", kind, err)
		}
	}
}

// TestUnreachable: that somebody can not be connected to, now or since a moment ago, is
// not taken for something that he sent.
func TestUnreachable(t *testing.T) {
	s := newSecureSource(t)
	ln := listenTCP(t)
	ln.Close()
	c := NewClient(ClientOptions{Name: "w", Dial: newEdge(s.authority.Open(t, trust.RoleWorker, "w")).Dial})
	t.Cleanup(c.Close)
	var held *edge.BreakerError
	for n := 0; held == nil; n++ {
		_, err := c.Manifest(t.Context(), Target{Name: "gone", Addr: ln.Addr().String()}, s.torrent.InfoHash())
		if err == nil || errors.Is(err, ErrProtocol) {
			t.Fatalf("attempt %d: %v", n, err)
		}
		if n > 100 {
			t.Fatalf("after %d attempts it is still dialled: %v", n, err)
		}
		errors.As(err, &held)
	}
}

// raw is an HTTP client that speaks for itself.
func (s *secureSource) raw(t testing.TB, role trust.Role, name string) *http.Client {
	dial := dialTLS(s.authority.Open(t, role, name))
	transport := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return dial(ctx, addr, nil)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (s *secureSource) get(t testing.TB, c *http.Client, path string, header ...string) (status int, body refusal) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(protocolHeader, protocolVersion)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		if err := json.Unmarshal(b, &body); err != nil {
			t.Fatalf("%s: %q: %v", resp.Status, b, err)
		}
	}
	return resp.StatusCode, body
}

// TestAskerIsWhoTheCertificateSays: not who the request says.
func TestAskerIsWhoTheCertificateSays(t *testing.T) {
	s := newSecureSource(t)
	path := piecePath(s.torrent.InfoHash(), 3)
	for _, header := range [][]string{{nodeHeader, "b1"}, {nodeHeader, strings.Repeat("x", 1000)}, nil} {
		if status, body := s.get(t, s.raw(t, trust.RoleWorker, "w1"), path, header...); status != http.StatusOK {
			t.Fatalf("%d %+v", status, body)
		}
	}
	// Another node of the same colo, which claims to be one of another.
	status, body := s.get(t, s.raw(t, trust.RoleWorker, "w2"), path, nodeHeader, "b1")
	if status != http.StatusConflict || body.Holder != "w1" {
		t.Errorf("%d %+v, want a conflict with w1", status, body)
	}
	if _, body := s.get(t, s.raw(t, trust.RoleOperator, "o"), path); !strings.Contains(body.Error, "operator") {
		t.Errorf("an operator was told %+v", body)
	}
}

// TestQuotas: one that asks for too much at once or too often is told to wait, and the
// others are not.
func TestQuotas(t *testing.T) {
	s := newSecureSource(t)
	from := Target{Addr: s.addr}
	greedy, modest := s.client(t, trust.RoleWorker, "greedy"), s.client(t, trust.RoleWorker, "modest")
	var busy *BusyError
	for i := range maxPeerStreams + 1 {
		st, err := greedy.Stream(t.Context(), from, s.dataset, txlog.Pos{})
		if i < maxPeerStreams {
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
		} else if !errors.As(err, &busy) || busy.Retry != busyRetry {
			t.Errorf("log stream %d: %v", i+1, err)
		}
	}
	if n := s.heard.count(TooMany, identity(trust.RoleWorker, "greedy")); n != 1 {
		t.Errorf("%d refusals were heard of: %v", n, s.heard.all)
	}
	for kind, ask := range s.requests() {
		if err := ask(t.Context(), modest, from); err != nil {
			t.Errorf("%s for another: %v", kind, err)
		}
	}

	began := time.Now()
	asked := 0
	for busy = nil; busy == nil; asked++ {
		if _, err := greedy.Manifest(t.Context(), from, s.torrent.InfoHash()); err != nil && !errors.As(err, &busy) {
			t.Fatal(err)
		}
	}
	most := (requestBurst + requestRate*(1+int(time.Since(began)/time.Second))) / dear
	if asked > most {
		t.Errorf("%d manifests were sent in %v, want at most %d", asked, time.Since(began), most)
	}
	if _, err := modest.Manifest(t.Context(), from, s.torrent.InfoHash()); err != nil {
		t.Errorf("for another: %v", err)
	}
}

// TestQuotaAccounts: what is counted in is counted out, and forgotten after a while.
func TestQuotaAccounts(t *testing.T) {
	var q quotas
	var leave []func()
	for i := range maxPeerRequests {
		l, err := q.enter("w", havePath(chunker.InfoHash{}))
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		leave = append(leave, l)
	}
	if _, err := q.enter("w", logPath); err == nil {
		t.Error("one request too many was let in")
	}
	for _, l := range leave {
		l()
	}
	u := q.of["w"]
	if u.requests != 0 || u.streams != 0 {
		t.Errorf("%+v is left", u)
	}
	// Pieces cost nothing, unless they fail.
	piece := piecePath(chunker.InfoHash{}, 0)
	for range 2 * requestBurst {
		leave, err := q.enter("w", piece)
		if err != nil {
			t.Fatalf("pieces that were sent were counted: %v", err)
		}
		leave()
	}
	u.rate.SetLimit(0) // time stands still
	for n := 0; ; n++ {
		leave, err := q.enter("w", piece)
		if err != nil {
			if n < requestBurst/2 {
				t.Errorf("%d pieces failed, and another is refused", n)
			}
			break
		}
		leave()
		if n > requestBurst {
			t.Fatal("failures are not counted")
		}
		q.charge("w")
	}
	q.charge("nobody")
	u.rate.SetLimit(1e6)
	deadline := time.Now().Add(10 * time.Second)
	for n := 0; len(q.of) != 1 || q.of["w"] != nil; n++ {
		if time.Now().After(deadline) {
			t.Fatalf("%d peers are remembered", len(q.of))
		}
		delete(q.of, "other")
		l, err := q.enter("other", "")
		if err != nil {
			t.Fatal(err)
		}
		l()
	}
}

// TestRandomBytes writes random bytes into both listeners, with a good certificate and
// without TLS; service to others goes on.
func TestRandomBytes(t *testing.T) {
	const seed = 7
	r := rand.New(rand.NewPCG(seed, 0))
	s := newSecureSource(t)
	var heard refusals
	n := newNode(t, "seeder", false, secured(t, s.authority, trust.RoleWorker, &heard))
	if err := n.Seed(s.torrent, s.file(t)); err != nil {
		t.Fatal(err)
	}
	creds := s.authority.Open(t, trust.RoleWorker, "w")
	secure, plain := dialTLS(creds), DialFunc(dialPlain)
	good := handshakeAs(peerID("w"), s.payload)
	for i := range 80 {
		for _, addr := range []string{s.addr, n.Addr} {
			dial := secure
			if i%4 == 0 {
				dial = plain
			}
			c, err := dial(t.Context(), addr, nil)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, r.IntN(1<<r.IntN(14)))
			for k := range b {
				b[k] = byte(r.Uint32())
			}
			// After a good beginning it gets further.
			switch {
			case addr == n.Addr && i%2 == 1:
				b = append(good[:len(good):len(good)], b...)
			case addr == s.addr && i%2 == 1:
				b = append([]byte("GET /p2p/v1/log HTTP/1.1\r\n"), b...)
			}
			c.Write(b)
			c.Close()
		}
	}
	w := newNode(t, "w1", false, secured(t, s.authority, trust.RoleWorker, &heard))
	introduce(t, n, w)
	start(t, w, s.payload).wait(t)
	for kind, ask := range s.requests() {
		if err := ask(t.Context(), s.client(t, trust.RoleWorker, "w2"), Target{Addr: s.addr}); err != nil {
			t.Errorf("seed %d: %s: %v", seed, kind, err)
		}
	}
}
