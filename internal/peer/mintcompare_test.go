package peer

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// TestMintAndCompare damages an environment, lays out what it still holds of a
// snapshot that another node offers, and fetches the rest from there: little more than
// what was damaged. It is killed half-way and goes on.
func TestMintAndCompare(t *testing.T) {
	log, err := txlog.Open(filepath.Join(t.TempDir(), "log"), txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := log.Create(txlog.DatasetID{7}); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		ops := make([]txlog.Op, 1000)
		for i := range ops {
			ops[i] = txlog.Op{Kind: txlog.Put, Key: fmt.Appendf(nil, "key-%06d", r.IntN(30_000)), Value: []byte(strings.Repeat(fmt.Sprint(r.IntN(10)), r.IntN(400)))}
		}
		if _, err := log.Append(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "store")
	store, err := lmdbstore.Open(dir, lmdbstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := log.Reader(txlog.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	defer entries.Close()
	for store.State().Pos != log.Head() {
		batch, err := entries.Next(t.Context(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Apply(batch); err != nil {
			t.Fatal(err)
		}
	}
	minted, err := openRepo(t, snapshot.Options{}).Mint(t.Context(), store, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	// The environment of a worker that was rebuilt: all its pages are in use.
	dir = filepath.Join(t.TempDir(), "rebuilt")
	if store, err = lmdbstore.Open(dir, lmdbstore.Options{}); err != nil {
		t.Fatal(err)
	}
	g, err := store.Install(t.Context(), minted.Path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Activate(); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	const damaged = 5
	edit(t, oneFile(t, dir, "data.mdb"), func(b []byte) []byte {
		for i := range damaged {
			page := (len(b) / 4096 * (2*i + 1) / (2 * damaged)) * 4096
			for b[page+10] != 2 { // a leaf
				page += 4096
			}
			clear(b[page : page+4096])
		}
		return b
	})
	env := filepath.Dir(oneFile(t, dir, "data.mdb"))

	holder, holderPeer := offering(t, minted)
	for _, c := range []struct {
		name    string
		salvage bool
	}{{"with what is there", true}, {"from nothing", false}} {
		t.Run(c.name, func(t *testing.T) {
			n, swarm := lone(t)
			swarm.SetPeers([]p2p.Peer{holderPeer})
			m := &minted.Manifest
			o := replica.Offer{Dataset: m.Dataset, Pos: m.Pos, InfoHash: m.InfoHash, Size: m.Size, Manager: true, Holders: []replica.Holder{holder}}
			var s salvaged
			if c.salvage {
				if s, err = n.salvage(t.Context(), env, log.Head(), o, log); err != nil {
					t.Fatal(err)
				}
				if s.Damaged != damaged*4096 {
					t.Errorf("%d bytes were found to be damaged, want %d", s.Damaged, damaged*4096)
				}
				again, err := n.salvage(t.Context(), filepath.Join(env, "data.mdb"), log.Head(), o, log)
				if err != nil || again.Asked != 0 {
					t.Errorf("once more: %+v, %v; nothing is to be asked for twice", again, err)
				}
			}
			path, err := n.Fetch(t.Context(), o, nil)
			if err != nil {
				t.Fatal(err)
			}
			var fetched p2p.Received
			for _, from := range swarm.Totals() {
				fetched.Bytes += from.Bytes
				fetched.Pieces += from.Pieces
			}
			want, got := readFile(t, minted.Path), readFile(t, path)
			if want != got {
				t.Error("it is not the snapshot")
			}
			total := s.Asked + fetched.Pieces
			t.Logf("%d pieces; salvage: %+v; then %d fetched; %d bytes in all, %d were damaged", minted.Torrent.Pieces(), s, fetched.Pieces, s.Fetched+fetched.Bytes, damaged*4096)
			if c.salvage && (total > 2*damaged+1 || total == 0 || s.Different != fetched.Pieces) {
				t.Errorf("%d pieces were asked for and %d fetched, with %d pages damaged: %+v", s.Asked, fetched.Pieces, damaged, s)
			}
			if !c.salvage && total != minted.Torrent.Pieces() {
				t.Errorf("%d pieces were fetched of %d", total, minted.Torrent.Pieces())
			}
		})
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// offering is a manager that offers a snapshot.
func offering(t *testing.T, snap *snapshot.Snapshot) (replica.Holder, p2p.Peer) {
	t.Helper()
	swarm, addr := listening(t, "holder")
	if err := swarm.Seed(snap.Torrent, snap.Path); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(nil)
	p2p.NewServer(p2p.ServerOptions{Pieces: swarm, Snapshot: func(h chunker.InfoHash) ([]byte, []byte, bool) {
		return snap.Note, snap.Torrent.Metainfo(), h == snap.Manifest.InfoHash
	}}).Attach(server.Config)
	server.Start()
	t.Cleanup(server.Close)
	at := server.Listener.Addr().String()
	return replica.Holder{Name: "holder", Addr: at, Manager: true},
		p2p.Peer{Name: "holder", Addr: addr, PeerAddr: at, Manager: true, Holds: []chunker.InfoHash{snap.Manifest.InfoHash}}
}

func listening(t *testing.T, name string) (*p2p.Swarm, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client := p2p.NewClient(p2p.ClientOptions{Name: name})
	t.Cleanup(client.Close)
	swarm, err := p2p.NewSwarm(p2p.SwarmOptions{Name: name, Listener: ln, Pieces: client})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { swarm.Close() })
	return swarm, ln.Addr().String()
}

// lone is the network of a node that has nothing.
func lone(t *testing.T) (*network, *p2p.Swarm) {
	t.Helper()
	swarm, _ := listening(t, "here")
	client := p2p.NewClient(p2p.ClientOptions{Name: "here"})
	t.Cleanup(client.Close)
	stocked := make(chan struct{})
	close(stocked)
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	sigs := &signatures{need: 1, logger: logger, changed: newSignal(), told: map[refusal]bool{}}
	return &network{
		client: client, swarm: swarm, sigs: sigs, refuted: newDoubts(), changed: newSignal(), fetching: map[chunker.InfoHash]chan struct{}{},
		shelf: &shelf{repo: openRepo(t, snapshot.Options{}), swarm: swarm, sigs: sigs, logger: logger, changed: newSignal(), broken: newSignal(), stocked: stocked},
	}, swarm
}
