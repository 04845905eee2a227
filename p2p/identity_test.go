package p2p

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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qs-peer/qs-peer/internal/edge"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// secureListener is a listener of an edge's.
type secureListener struct {
	net.Listener
	edge *edge.Edge
}

func (l secureListener) another(ln net.Listener) net.Listener { return listenTLS(ln, l.edge) }

func listenTLS(ln net.Listener, e *edge.Edge) net.Listener {
	return secureListener{e.Listen(ln, edge.ListenOptions{Name: "test"}), e}
}

func newEdge(creds *trust.Credentials) *edge.Edge { return edge.New(edge.Options{Credentials: creds}) }

// dialTLS connects without a circuit breaker.
func dialTLS(creds *trust.Credentials) DialFunc {
	return func(ctx context.Context, addr string, check func(trust.Identity) error) (net.Conn, error) {
		return overTLS(ctx, new(net.Dialer), addr, creds.ClientConfig(check))
	}
}

func overTLS(ctx context.Context, d *net.Dialer, addr string, config *tls.Config) (net.Conn, error) {
	return (&tls.Dialer{NetDialer: d, Config: config}).DialContext(ctx, "tcp", addr)
}

// refusals are what a RefusedFunc heard.
type refusals struct {
	mu  sync.Mutex // guards all
	all map[string]int
}

func (r *refusals) add(reason trust.Reason, who string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = make(map[string]int)
	}
	r.all[fmt.Sprintf("%s %s", reason, who)]++
}

func (r *refusals) count(reason trust.Reason, who string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[fmt.Sprintf("%s %s", reason, who)]
}

// secured has a node speak TLS, as one of role.
func secured(t testing.TB, a *trusttest.Authority, role trust.Role, heard *refusals) func(*SwarmOptions) {
	return func(o *SwarmOptions) {
		e := newEdge(a.Open(t, role, o.Name))
		o.Colo = "default" // as in the certificate
		o.Listener = listenTLS(o.Listener, e)
		o.Dial = e.Dial
		o.Refused = heard.add
	}
}

func identity(role trust.Role, name string) string { return trusttest.Identity(role, name).String() }

// handshakeAs is what a peer sends first.
func handshakeAs(id torrent.PeerID, p payload) []byte {
	ih := p.torrent.InfoHash()
	return bytes.Join([][]byte{[]byte("\x13BitTorrent protocol"), make([]byte, 8), ih[:], id[:]}, nil)
}

// answers reports whether the node answers what was sent with its own handshake, and
// then keeps the connection.
func answers(t *testing.T, c net.Conn, sent []byte) bool {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(sent); err != nil {
		return false
	}
	// A torrent's handshake is followed by what the peer has.
	if _, err := io.ReadFull(c, make([]byte, handshakeSize+1)); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection was left open without an answer")
		}
		return false
	}
	return true
}

// TestSwarmAdmission: who may connect to a node's swarm, and as whom.
func TestSwarmAdmission(t *testing.T) {
	a := trusttest.New(t)
	p := newPayload(t, 1<<20)
	var heard refusals
	n := newNode(t, "seeder", false, secured(t, a, trust.RoleWorker, &heard))
	seed(t, n, p)
	for _, c := range []struct {
		name   string
		role   trust.Role
		as     string // whose peer id it sends
		reason trust.Reason
	}{
		{"w1", trust.RoleWorker, "w1", ""},
		{"m1", trust.RoleManager, "m1", ""},
		{"w2", trust.RoleWorker, "w1", trust.WrongName},
		{"w3", trust.RoleWorker, "seeder", trust.WrongName},
		{"r1", trust.RoleClientRead, "r1", trust.WrongRole},
		{"rw1", trust.RoleClientWrite, "rw1", trust.WrongRole},
		{"o1", trust.RoleOperator, "o1", trust.WrongRole},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := dialTLS(a.Open(t, c.role, c.name))(t.Context(), n.Addr, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := answers(t, conn, handshakeAs(peerID(c.as), p)); got != (c.reason == "") {
				t.Errorf("served: %v", got)
			}
			want := 0
			if c.reason != "" {
				want = 1
			}
			if got := heard.count(c.reason, identity(c.role, c.name)); got != want {
				t.Errorf("refused %d times, want %d: %v", got, want, heard.all)
			}
		})
	}
}

// TestSwarmOverTLS: a fleet fetches a snapshot, and a node does not talk to one that
// answers at another's address.
func TestSwarmOverTLS(t *testing.T) {
	a := trusttest.New(t)
	p := newPayload(t, 4<<20)
	var heard refusals
	worker := secured(t, a, trust.RoleWorker, &heard)
	s, w1, w2 := newNode(t, "seeder", false, worker), newNode(t, "w1", false, worker), newNode(t, "w2", false, worker)
	seed(t, s, p)
	introduce(t, s, w1, w2)
	fetchAll(t, p, []*node{w1, w2})

	w3 := newNode(t, "w3", false, worker)
	impostor := s.facts()
	impostor.Name = "somebody"
	w3.SetPeers([]Peer{impostor})
	if c, err := w3.network.Dial(t.Context(), dialName(peerID("somebody")).String()); trust.ReasonOf(err) != trust.WrongName {
		t.Errorf("dialling %s as somebody else: %v, %v", s.Name, c, err)
	}
	if len(heard.all) > 0 {
		t.Errorf("refused: %v", heard.all)
	}
}

// TestOneBitChanged: a piece with one changed bit is fetched again elsewhere, and who
// sent it is shunned by identity and for a time: it can connect neither at once nor
// from a new process, others at its IP address can, and it later can, too.
func TestOneBitChanged(t *testing.T) {
	a := trusttest.New(t)
	p := newPayload(t, 2<<20)
	var heard refusals
	worker := secured(t, a, trust.RoleWorker, &heard)
	reg := prometheus.NewRegistry()
	bad, w := newNode(t, "bad", false, worker), newNode(t, "w", false, worker, func(o *SwarmOptions) { o.Registerer = reg })
	path := seed(t, bad, p)
	flip(t, path, p, 5*p.torrent.PieceLength()+77)
	introduce(t, bad, w)
	r := start(t, w, p)
	who := peerID("bad")
	eventually(t, "the shunning", func() bool { return w.checkShunned(who) != nil })
	if heard.count(Damaged, "bad") == 0 {
		t.Errorf("nobody heard of the damage: %v", heard.all)
	}
	eventually(t, "the end of its connections", func() bool { return w.linksTo(who) == 0 })
	w.shunFor("bad", time.Hour)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP qs_swarm_shunned_peers Peers that are shunned now because they sent damaged pieces.
# TYPE qs_swarm_shunned_peers gauge
qs_swarm_shunned_peers 1
`), "qs_swarm_shunned_peers"); err != nil {
		t.Error(err)
	}

	creds := a.Open(t, trust.RoleWorker, "bad") // also with a new certificate
	connect := func(name string, creds *trust.Credentials) bool {
		conn, err := dialTLS(creds)(t.Context(), w.Addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return answers(t, conn, handshakeAs(peerID(name), p))
	}
	for range 3 {
		if connect("bad", creds) {
			t.Error("a shunned peer was let in")
		}
	}
	if n := heard.count(Shunned, identity(trust.RoleWorker, "bad")); n < 3 {
		t.Errorf("%d refusals of a shunned peer were heard of, want 3: %v", n, heard.all)
	}
	if _, err := w.network.Dial(t.Context(), dialName(who).String()); trust.ReasonOf(err) != Shunned {
		t.Errorf("dialling a shunned peer: %v", err)
	}
	if !connect("other", a.Open(t, trust.RoleWorker, "other")) {
		t.Error("another peer at the same IP address was not let in")
	}

	good := newNode(t, "good", false, worker)
	seed(t, good, p)
	introduce(t, bad, w, good)
	r.wait(t)
	p.checkFile(t, w.path())
	if last := r.last.Load(); last.Wasted == 0 {
		t.Errorf("progress %+v: nothing wasted", *last)
	}
	w.shunFor("bad", 0)
	if !connect("bad", creds) {
		t.Error("the peer was not let in when its time was over")
	}
}

// TestDamagedSource: the same for a piece that was asked for outside the swarm.
func TestDamagedSource(t *testing.T) {
	p := newPayload(t, 2<<20)
	bad, good, w := newNode(t, "bad", true), newNode(t, "good", true), newNode(t, "w", false)
	flip(t, seed(t, bad, p), p, 5*p.torrent.PieceLength()+77)
	introduce(t, bad, w)
	r := start(t, w, p)
	eventually(t, "the shunning", func() bool { return w.checkShunned(peerID("bad")) != nil })
	seed(t, good, p)
	introduce(t, bad, good, w)
	r.wait(t)
	p.checkFile(t, w.path())
	if last := r.last.Load(); last.Wasted == 0 {
		t.Errorf("progress %+v: nothing wasted", *last)
	}
}

func flip(t *testing.T, path string, p payload, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{p.data[off] ^ 1}, off); err != nil {
		t.Fatal(err)
	}
}

// shunFor changes how long a peer is shunned.
func (n *node) shunFor(name string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shunned[peerID(name)].until = time.Now().Add(d)
}

func (n *node) linksTo(id torrent.PeerID) (links int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		if l.peer == id {
			links++
		}
	}
	return links
}

// TestShunsAreForgotten: what is remembered of damage does not grow for ever.
func TestShunsAreForgotten(t *testing.T) {
	n := newNode(t, "n", false)
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range 10 {
		n.blame(peerID(fmt.Sprint(i)), i%2 == 0)
	}
	n.forgetShuns(time.Now().Add(shunMemory - time.Minute))
	if len(n.shunned) != 10 {
		t.Errorf("%d of 10 are remembered", len(n.shunned))
	}
	n.forgetShuns(time.Now().Add(shunMemory + time.Minute))
	if len(n.shunned) != 0 {
		t.Errorf("%d are remembered for ever", len(n.shunned))
	}
}

// FuzzHello: a handshake is accepted if the id in it is the wanted one, in whatever
// portions it is read.
func FuzzHello(f *testing.F) {
	id := peerID("worker-1")
	good := append(bytes.Repeat([]byte{1}, handshakeSize-len(id)), id[:]...)
	f.Add(good, 1)
	f.Add(append(good, "and more"...), 100)
	f.Add(good[:handshakeSize-1], 7)
	f.Add(bytes.Repeat([]byte{1}, 2*handshakeSize), 67)
	f.Fuzz(func(t *testing.T, b []byte, portion int) {
		if portion < 1 {
			return
		}
		h := hello{want: &id}
		accepted := true
		for p := range slices.Chunk(b, portion) {
			accepted = accepted && h.check(p)
		}
		sent := b[min(len(b), handshakeSize-len(id)):min(len(b), handshakeSize)]
		if want := bytes.HasPrefix(id[:], sent); accepted != want {
			t.Errorf("%x in portions of %d: accepted %v, want %v", b, portion, accepted, want)
		}
	})
}

// FuzzAnswer has the client read any answer: the error that it makes of it is bounded.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []struct {
		status int
		body   string
	}{
		{200, ""}, {403, `{"error":"no"}`}, {404, "{}"}, {409, `{"holder":"w","retry_ms":1}`}, {409, `{"have":"00"}`},
		{410, `{"asked":1,"first":2}`}, {421, `{"error":"peer holds another dataset: x"}`}, {503, `{"retry_ms":-1}`}, {500, "?"},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		err := accept(&http.Response{
			StatusCode: status, Header: http.Header{protocolHeader: {protocolVersion}}, Body: io.NopCloser(bytes.NewReader(body)),
		})
		if (err == nil) != (status == http.StatusOK) {
			t.Errorf("%d %q: %v", status, body, err)
		}
		var leased *LeasedError
		var busy *BusyError
		switch {
		case errors.As(err, &leased) && (leased.Retry < 0 || leased.Retry > maxRetry || checkNode(leased.Holder) != nil),
			errors.As(err, &busy) && (busy.Retry < 0 || busy.Retry > maxRetry),
			err != nil && len(err.Error()) > 2*maxErrorBody:
			t.Errorf("%d %q: %v", status, body, err)
		}
	})
}
