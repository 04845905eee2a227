package p2p

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/qs-peer/qs-peer/chunker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// payload is a file that follows from its size, and its torrent.
type payload struct {
	torrent *chunker.Torrent
	sum     [sha256.Size]byte
	data    []byte
}

func newPayload(t testing.TB, size int64) payload {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16), byte(size >> 24)}).Read(data)
	h, err := chunker.NewHasher("snapshot.mdb", size)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Abort()
	if _, err := h.Write(data); err != nil {
		t.Fatal(err)
	}
	tor, sum, err := h.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return payload{tor, sum, data}
}

func (p payload) file(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seeded.mdb")
	if err := os.WriteFile(path, p.data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func (p payload) checkFile(t testing.TB, path string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, p.data) {
		t.Errorf("%s is not the file that was seeded", path)
	}
}

// node is a swarm under test, which other nodes can ask for pieces.
type node struct {
	*Swarm
	Peer
	dir    string
	circle atomic.Pointer[struct{ _ int }] // those that it was introduced to last
}

func (n *node) path() string { return filepath.Join(n.dir, "fetched.mdb") }

func newNode(t testing.TB, name string, manager bool, configure ...func(*SwarmOptions)) *node {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := SwarmOptions{Name: name, Listener: l, Logger: slog.New(slog.DiscardHandler)}
	if os.Getenv("QS_TEST_LOG") != "" {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
	}
	for _, f := range configure {
		f(&o)
	}
	client := NewClient(ClientOptions{Name: name, Download: o.Download, Dial: o.Dial})
	t.Cleanup(client.Close)
	o.Pieces = &counted{PieceClient: client, from: make(map[string]int64)}
	s, err := NewSwarm(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close %s: %v", name, err)
		}
	})
	asked := httptest.NewUnstartedServer(nil)
	NewServer(ServerOptions{Pieces: s, Upload: o.Upload, Egress: o.Upload, Refused: o.Refused}).Attach(asked.Config)
	if secure, ok := o.Listener.(secureListener); ok {
		asked.Listener = secure.another(asked.Listener)
	}
	asked.Start()
	t.Cleanup(asked.Close)
	return &node{Swarm: s, Peer: Peer{
		Name: name, Addr: o.Listener.Addr().String(), PeerAddr: asked.Listener.Addr().String(), Colo: o.Colo, Manager: manager,
	}, dir: t.TempDir()}
}

// newFleet is a manager and some workers that all know each other.
func newFleet(t testing.TB, workers int, configure ...func(*SwarmOptions)) (manager *node, rest []*node) {
	t.Helper()
	manager = newNode(t, "manager", true, configure...)
	for i := range workers {
		rest = append(rest, newNode(t, fmt.Sprintf("worker-%d", i), false, configure...))
	}
	introduce(t, append([]*node{manager}, rest...)...)
	return manager, rest
}

// introduce makes the nodes each other's peers, and as gossip would keeps
// telling each what the others hold and fetch, until it is introduced to others.
func introduce(t testing.TB, nodes ...*node) {
	circle := new(struct{ _ int })
	for _, n := range nodes {
		n.circle.Store(circle)
	}
	talk := func() {
		var peers []Peer
		for _, n := range nodes {
			peers = append(peers, n.facts())
		}
		for _, n := range nodes {
			if n.circle.Load() == circle {
				n.Swarm.SetPeers(peers)
			}
		}
	}
	talk()
	ticker := time.NewTicker(20 * time.Millisecond)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				talk()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped; ticker.Stop() })
}

// facts is what gossip says of the node now.
func (n *node) facts() Peer {
	p := n.Peer
	n.mu.Lock()
	defer n.mu.Unlock()
	for ih, h := range n.holdings {
		if h.fetching {
			p.Fetching = ih
		} else if h.store != nil {
			p.Holds = append(p.Holds, ih)
		}
	}
	return p
}

// SetPeers ends the introduction.
func (n *node) SetPeers(peers []Peer) {
	n.circle.Store(nil)
	n.Swarm.SetPeers(peers)
}

// fetchAll fetches on all nodes at once.
func fetchAll(t testing.TB, p payload, nodes []*node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error { return n.Fetch(ctx, p.torrent, n.path(), nil) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		p.checkFile(t, n.path())
	}
}

func TestFetch(t *testing.T) {
	for _, size := range []int64{1, 100_000, 3<<20 + 7, 20 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := newPayload(t, size)
			manager, workers := newFleet(t, 3)
			if err := manager.Seed(p.torrent, p.file(t)); err != nil {
				t.Fatal(err)
			}
			fetchAll(t, p, workers)
			for _, w := range workers {
				got := w.Totals()
				if got[FromManagers].Bytes+got[FromOwnColo].Bytes != size || got[FromManagers].Pieces+got[FromOwnColo].Pieces != p.torrent.Pieces() {
					t.Errorf("%s received %+v, want %d bytes in %d pieces", w.Name, got, size, p.torrent.Pieces())
				}
			}
		})
	}
}
