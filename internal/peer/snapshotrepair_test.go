package peer

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
)

// gotPieces is how many pieces a node received since it started.
func gotPieces(n *testNode) (sum int) {
	n.t.Helper()
	for _, from := range []string{"managers", "own_colo", "other_colos"} {
		v, err := strconv.Atoi(n.metric(fmt.Sprintf("qs_swarm_received_pieces_total{from=%q}", from)))
		if err != nil {
			v = 0 // nothing came from there
		}
		sum += v
	}
	return sum
}

// damagePieces flips a bit in each of the pieces.
func damagePieces(pieces ...int) func([]byte) []byte {
	return func(b []byte) []byte {
		for _, i := range pieces {
			b[i*(64<<10)+12345] ^= 4
		}
		return b
	}
}

// TestMendSnapshots damages the snapshots of nodes in turn, and starts them again:
// each gets what is bad from another, and no more.
func TestMendSnapshots(t *testing.T) {
	m := newNode(t, "m1", gossip.Manager)
	m.o.KeepSnapshots = 1
	m.start()
	m.putMany("k", 10000)
	s := m.mint()
	m.put("later", "1") // or the manager mints it again if it was not told in time who else has it
	w1 := startNode(t, "w1", gossip.Worker, m)
	w2 := startNode(t, "w2", gossip.Worker, m)
	for _, w := range []*testNode{w1, w2} {
		eventually(t, "workers offer the snapshot", func() bool { return slices.Equal(w.offers(), []string{s.InfoHash}) })
		w.caughtUp(s.Seq) // or the bootstrap fetches what is bad, which is no repair
	}
	swapped := func(b []byte) []byte {
		const piece = 64 << 10
		one := bytes.Clone(b[3*piece : 4*piece])
		copy(b[3*piece:], b[8*piece:9*piece])
		copy(b[8*piece:], one)
		return b
	}
	for _, c := range []struct {
		name string
		node *testNode
		file string
		harm func([]byte) []byte
		bad  int // pieces
	}{
		{"three pieces at a worker", w1, ".mdb", damagePieces(1, 7, 20), 3},
		{"swapped pieces at a worker", w2, ".mdb", swapped, 2},
		{"a worker's file is grown", w1, ".mdb", func(b []byte) []byte { return append(b, b...) }, 0},
		{"a worker's file lost its end", w2, ".mdb", func(b []byte) []byte { return b[:len(b)-2*(64<<10)] }, 3},
		{"a manager, from the workers", m, ".mdb", damagePieces(0, 5), 2},
		{"a manager's manifest, one digit", m, ".manifest", func(b []byte) []byte { b[30] ^= 1; return b }, 0},
		{"a worker's manifest", w2, ".manifest", func(b []byte) []byte { clear(b[20:]); return b }, 0},
		{"a worker's torrent", w1, ".torrent", func(b []byte) []byte { clear(b[100:300]); return b }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.node.stop()
			edit(t, oneFile(t, filepath.Join(c.node.o.Data, snapshotsDir), c.file), c.harm)
			c.node.o.Join = nil
			for _, other := range []*testNode{m, w1, w2} {
				if other != c.node {
					c.node.o.Join = append(c.node.o.Join, other.p.Addrs().Gossip)
				}
			}
			c.node.start()
			eventually(t, "the snapshot is offered again", func() bool { return slices.Equal(c.node.offers(), []string{s.InfoHash}) })
			if got := gotPieces(c.node); got > c.bad+1 || got < c.bad {
				t.Errorf("%d pieces were fetched, %d were bad", got, c.bad)
			}
			eventually(t, "the repair is counted", func() bool { return c.node.metric(`qs_repairs_total{kind="snapshot_pieces",result="ok"}`) == "1" })
			count := func(what string) float64 {
				v, err := strconv.ParseFloat(c.node.metric(fmt.Sprintf("qs_repair_bytes_%s_total{kind=%q}", what, kindSnapshotPieces)), 64)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			if fetched, damaged := count("fetched"), count("damaged"); damaged == 0 || fetched > damaged || c.bad > 0 && (fetched == 0 || damaged > float64(c.bad*64<<10)) {
				t.Errorf("%v bytes were fetched for %v damaged ones, %d pieces", fetched, damaged, c.bad)
			}
			if wasted := c.node.metric("qs_swarm_wasted_bytes_total"); wasted != "0" && wasted != "" {
				t.Errorf("%s bytes were received in vain", wasted)
			}
			sum := oneFile(t, filepath.Join(c.node.o.Data, snapshotsDir), ".mdb")
			if info, err := os.Stat(sum); err != nil || info.Size() != s.Size {
				t.Errorf("%v, %v; want %d bytes", info, err, s.Size)
			}
		})
	}
	t.Run("under a running worker", func(t *testing.T) {
		scrub := func() (r ScrubReport) {
			w2.do(http.MethodPost, "/v1/scrub?part=snapshots&rate=0", nil).json(t, &r)
			return r
		}
		if r := scrub(); !r.Sound {
			t.Errorf("nothing is damaged: %+v", r)
		}
		before := gotPieces(w2)
		edit(t, oneFile(t, filepath.Join(w2.o.Data, snapshotsDir), ".mdb"), damagePieces(2, 3, 30))
		if r := scrub(); r.Sound || len(r.Parts) != 1 || len(r.Parts[0].Damage) == 0 {
			t.Errorf("three pieces are damaged: %+v", r)
		}
		eventually(t, "the snapshot is offered again", func() bool { return slices.Equal(w2.offers(), []string{s.InfoHash}) })
		if got := gotPieces(w2) - before; got < 3 || got > 4 {
			t.Errorf("%d pieces were fetched, 3 were bad", got)
		}
		eventually(t, "the repair is counted", func() bool { return w2.metric(`qs_repairs_total{kind="snapshot_pieces",result="ok"}`) != "0" })
		if r := scrub(); !r.Sound {
			t.Errorf("it was mended: %+v", r)
		}
	})
	t.Run("nobody else has it", func(t *testing.T) {
		w1.stop()
		w2.stop()
		s = m.mint()
		m.stop()
		path := oneFile(t, filepath.Join(m.o.Data, snapshotsDir), ".mdb")
		edit(t, path, damagePieces(4))
		m.o.Join = nil
		m.start()
		eventually(t, "the manager mints it again", func() bool { return slices.Equal(m.offers(), []string{s.InfoHash}) })
		// Once it went on it can not.
		m.put("one", "more")
		m.stop()
		m.o.KeepSnapshots = 0 // the default, or the next one takes its place
		edit(t, path, damagePieces(4))
		m.start()
		if offers := m.offers(); len(offers) != 0 {
			t.Errorf("offered: %v", offers)
		}
		if a := m.get("/v1/snapshots/" + s.InfoHash + "/manifest"); a.code != 404 {
			t.Errorf("the damaged snapshot: %d", a.code)
		}
		again := m.mint()
		eventually(t, "the new one is offered", func() bool { return slices.Equal(m.offers(), []string{again.InfoHash}) })
		if _, err := os.Stat(strings.TrimSuffix(path, ".mdb") + ".part"); err != nil {
			t.Errorf("what is good of the old one, should somebody come back: %v", err)
		}
	})
}

// renameFails lets the rename of a snapshot to its partial file fail as often as it says.
type renameFails struct {
	durable.FS
	times int
}

func (f *renameFails) Rename(from, to string) error {
	if f.times > 0 && strings.HasSuffix(to, ".part") {
		f.times--
		return syscall.EROFS
	}
	return f.FS.Rename(from, to)
}

// TestBreakAndFetch: a snapshot that is found damaged is not broken up while somebody
// fetches it into the very file that its good pieces go to, and nobody begins to meanwhile.
func TestBreakAndFetch(t *testing.T) {
	network, _ := lone(t)
	s, store := network.shelf, openStore(t)
	s.repo = openRepo(t, snapshot.Options{FS: durable.OS})
	if err := store.Apply(chain(t, 200)); err != nil {
		t.Fatal(err)
	}
	snap, err := s.mint(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	m := &mender{network: network, shelf: s, logger: s.logger}
	offer := replica.Offer{Pos: snap.Manifest.Pos, InfoHash: snap.Manifest.InfoHash}
	over, err := network.begin(t.Context(), offer.InfoHash)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- m.withdraw(t.Context(), snap, &snapshot.AlteredError{Bad: []int{0}, Size: -1}) }()
	select {
	case err := <-done:
		t.Errorf("it was broken up while it was fetched: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if len(s.list()) != 1 || s.mending(offer) {
		t.Errorf("offered: %d, to be mended: %t", len(s.list()), s.mending(offer))
	}
	over()
	if err := <-done; err != nil || len(s.list()) != 0 || !s.mending(offer) {
		t.Errorf("then: %v, offered: %d, to be mended: %t", err, len(s.list()), s.mending(offer))
	}
	if over, err = network.begin(t.Context(), offer.InfoHash); err != nil {
		t.Fatal(err)
	}
	over()
}

// TestPutOff lets what says nothing of a snapshot's file fail: the file is neither taken
// for damaged nor changed, and a damaged one is made ready to be mended later.
func TestPutOff(t *testing.T) {
	network, _ := lone(t)
	s, fsys, store := network.shelf, &renameFails{FS: durable.OS}, openStore(t)
	s.repo = openRepo(t, snapshot.Options{FS: fsys})
	if err := store.Apply(chain(t, 200)); err != nil {
		t.Fatal(err)
	}
	snap, err := s.mint(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	infirmary, err := openInfirmary(t.TempDir(), s.logger, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	alone, err := gossip.Start(gossip.Options{Addr: "127.0.0.1:0", Facts: gossip.Facts{Name: "here", Role: gossip.Worker}})
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	m := &mender{
		storage: &storage{store: store}, fleet: &fleet{gossip: alone}, network: network, shelf: s, logger: s.logger, infirmary: infirmary,
		tries: map[string]*attempt{},
	}
	due := func() {
		if len(s.later) != 1 || !m.mendAll(t.Context()) {
			t.Fatalf("%d are put off; it is to be tried again", len(s.later))
		}
		s.later[0].next = time.Time{}
	}
	// A link to itself can not be opened, and that is neither missing nor a bad disk.
	away := snap.Path + ".away"
	hide := func() {
		if err := errors.Join(os.Rename(snap.Path, away), os.Symlink(snap.Path, snap.Path)); err != nil {
			t.Fatal(err)
		}
	}
	show := func() {
		if err := os.Rename(away, snap.Path); err != nil {
			t.Fatal(err)
		}
	}

	hide()
	if r, err := m.scrub(t.Context(), 0); !errors.Is(err, syscall.ELOOP) || r != (snapshotScrub{}) || len(s.list()) != 1 {
		t.Errorf("a scrub that could not open the file: %+v, %v, offered: %d", r, err, len(s.list()))
	}
	if whole, reason, err := s.examine(t.Context(), snap); whole || reason != "" || !errors.Is(err, syscall.ELOOP) {
		t.Errorf("examine = %t, %q, %v", whole, reason, err)
	}
	due()
	due() // after a try that failed
	show()
	if m.mendAll(t.Context()) || len(s.list()) != 1 || len(s.all()) != 1 {
		t.Errorf("it can be read again: offered %d of %d", len(s.list()), len(s.all()))
	}
	if r, err := m.scrub(t.Context(), 0); err != nil || r.Damaged != 0 {
		t.Errorf("the file: %+v, %v", r, err)
	}

	if err := store.Apply(chain(t, 201)[200:]); err != nil {
		t.Fatal(err)
	}
	other, err := s.repo.Mint(t.Context(), store, nil)
	if err != nil {
		t.Fatal(err)
	}
	fsys.times = 1
	if err := s.breakManifest(other, errors.New("it says something else")); !errors.Is(err, syscall.EROFS) || len(s.repo.List()) != 2 {
		t.Errorf("a manifest that could not be set aside: %v, held %v", err, s.repo.List())
	}
	due()
	if m.mendAll(t.Context()); len(s.repo.Broken()) != 1 || len(s.repo.List()) != 1 || len(s.later) != 0 {
		t.Errorf("the manifest is not set aside: broken %v, held %v", s.repo.Broken(), s.repo.List())
	}
	if err := s.repo.Discard(s.repo.Broken()[0]); err != nil {
		t.Fatal(err)
	}

	edit(t, snap.Path, func(b []byte) []byte { b[100] ^= 1; return b })
	fsys.times = 1
	if r, err := m.scrub(t.Context(), 0); err != nil || r.Damaged != 1 || len(s.all()) != 0 || len(s.repo.Broken()) != 0 {
		t.Errorf("a scrub of a damaged file that can not be renamed: %+v, %v", r, err)
	}
	due()
	if m.mendAll(t.Context()); len(s.repo.Broken()) != 1 || len(s.repo.List()) != 0 || len(s.later) != 0 {
		t.Errorf("it is not made ready to be mended: broken %v, held %v", s.repo.Broken(), s.repo.List())
	}
}
