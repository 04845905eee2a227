package p2p

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anacrolix/torrent"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// eventually polls until ok, for at most half a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// running is a Fetch in the background.
type running struct {
	done   chan struct{}
	err    error
	last   atomic.Pointer[Progress]
	cancel context.CancelFunc
}

func start(t testing.TB, n *node, p payload) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	r := &running{done: make(chan struct{}), cancel: cancel}
	r.last.Store(new(Progress))
	go func() {
		defer close(r.done)
		r.err = n.Fetch(ctx, p.torrent, n.path(), func(p Progress) { r.last.Store(&p) })
	}()
	t.Cleanup(func() { cancel(); <-r.done })
	return r
}

func (r *running) wait(t testing.TB) {
	t.Helper()
	<-r.done
	if r.err != nil {
		t.Fatal(r.err)
	}
}

func seed(t testing.TB, n *node, p payload) string {
	t.Helper()
	path := p.file(t)
	if err := n.Seed(p.torrent, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func slow(rate int64) func(*SwarmOptions) {
	return func(o *SwarmOptions) { o.Upload = limit(rate) }
}

func at(addr string) func(*SwarmOptions) {
	return func(o *SwarmOptions) {
		o.Listener.Close()
		l, err := net.Listen("tcp", addr)
		if err != nil {
			panic(err)
		}
		o.Listener = l
	}
}

func TestFetchKeepsGoodPieces(t *testing.T) {
	p := newPayload(t, 4<<20+100)
	piece := p.torrent.PieceLength()
	for _, c := range []struct {
		name   string
		before func([]byte) []byte
		pieces int64 // to be fetched
	}{
		{"nothing", func([]byte) []byte { return nil }, -1},
		{"everything", func(b []byte) []byte { return b }, 0},
		{"longer", func(b []byte) []byte { return append(b, "and more"...) }, 0},
		{"two bad pieces", func(b []byte) []byte { b[0] ^= 1; b[5*piece+1] ^= 1; return b }, 2},
		{"half", func(b []byte) []byte { return b[:32*piece] }, 33},
	} {
		t.Run(c.name, func(t *testing.T) {
			manager, workers := newFleet(t, 1)
			seed(t, manager, p)
			w := workers[0]
			if b := c.before(append([]byte(nil), p.data...)); b != nil {
				if err := os.WriteFile(w.path(), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			r := start(t, w, p)
			r.wait(t)
			p.checkFile(t, w.path())
			want := c.pieces * piece
			if c.name == "half" {
				want = 32*piece + 100
			} else if c.pieces < 0 {
				want = p.torrent.Size()
			}
			last := r.last.Load()
			from := [numSources]Received{FromManagers: {Bytes: want, Pieces: int((want + piece - 1) / piece)}}
			if last.From != from || last.PiecesDone != p.torrent.Pieces() || last.Done != last.Total || last.Wasted != 0 {
				t.Errorf("progress %+v, want %d bytes from managers and nothing wasted", *last, want)
			}
		})
	}
}

func TestFetchCancelledAndResumed(t *testing.T) {
	p := newPayload(t, 8<<20)
	manager := newNode(t, "seeder", false, slow(4<<20))
	w := newNode(t, "worker", false)
	introduce(t, manager, w)
	seed(t, manager, p)
	r := start(t, w, p)
	eventually(t, "some pieces", func() bool { return r.last.Load().Done > 0 })
	r.cancel()
	<-r.done
	if !errors.Is(r.err, context.Canceled) {
		t.Fatalf("cancelled fetch ended with %v", r.err)
	}
	// The torrent is gone, and its file closed: it can be had again.
	again := start(t, w, p)
	again.wait(t)
	p.checkFile(t, w.path())
	if got := again.last.Load().From[FromManagers].Bytes; got >= p.torrent.Size() {
		t.Errorf("the second fetch received all %d bytes again", got)
	}
}

func TestSeederComesBack(t *testing.T) {
	p := newPayload(t, 8<<20)
	manager := newNode(t, "seeder", false, slow(2<<20))
	w := newNode(t, "worker", false)
	introduce(t, manager, w)
	seed(t, manager, p)
	r := start(t, w, p)
	eventually(t, "some pieces", func() bool { return r.last.Load().Done > 0 })
	manager.Close()
	eventually(t, "loss of the seeder", func() bool { return r.last.Load().Peers == 0 })
	back := newNode(t, "seeder", false, at(manager.Addr))
	seed(t, back, p)
	r.wait(t)
	p.checkFile(t, w.path())
}

func TestSeederAppears(t *testing.T) {
	p := newPayload(t, 1<<20)
	w := newNode(t, "worker", false)
	r := start(t, w, p)
	eventually(t, "progress", func() bool { return r.last.Load().Total > 0 })
	manager := newNode(t, "seeder", false)
	seed(t, manager, p)
	w.SetPeers([]Peer{manager.Peer})
	r.wait(t)
	p.checkFile(t, w.path())
}

// TestSeederLeavesAfterOneCopy kills the only seeder once the workers together
// have every piece.
func TestSeederLeavesAfterOneCopy(t *testing.T) {
	p := newPayload(t, 16<<20)
	manager := newNode(t, "seeder", false, slow(16<<20))
	var workers []*node
	var runs []*running
	for _, name := range []string{"a", "b", "c", "d"} {
		workers = append(workers, newNode(t, name, false, slow(8<<20)))
	}
	introduce(t, append([]*node{manager}, workers...)...)
	seed(t, manager, p)
	for _, w := range workers {
		runs = append(runs, start(t, w, p))
	}
	eventually(t, "one copy among the workers", func() bool {
		have := make([]bool, p.torrent.Pieces())
		for _, w := range workers {
			w.mu.Lock()
			if h := w.holdings[p.torrent.InfoHash()]; h != nil && h.store != nil {
				for i := range have {
					have[i] = have[i] || h.store.isGood(i)
				}
			}
			w.mu.Unlock()
		}
		for _, ok := range have {
			if !ok {
				return false
			}
		}
		return true
	})
	manager.Close()
	for i, r := range runs {
		r.wait(t)
		p.checkFile(t, workers[i].path())
	}
}

// TestWorkersRestart kills workers in the middle and starts them again.
func TestWorkersRestart(t *testing.T) {
	p := newPayload(t, 16<<20)
	manager := newNode(t, "seeder", false, slow(16<<20))
	a, b := newNode(t, "a", false), newNode(t, "b", false)
	introduce(t, manager, a, b)
	seed(t, manager, p)
	ra, rb := start(t, a, p), start(t, b, p)
	eventually(t, "some pieces", func() bool { return rb.last.Load().Done > 0 })
	b.Close()
	<-rb.done
	if rb.err != nil && !errors.Is(rb.err, ErrSwarmClosed) {
		t.Errorf("fetch on a closed swarm ended with %v", rb.err)
	}
	b2 := newNode(t, "b", false, at(b.Addr))
	b2.dir = b.dir
	b2.SetPeers([]Peer{manager.Peer, a.Peer})
	rb2 := start(t, b2, p)
	ra.wait(t)
	rb2.wait(t)
	p.checkFile(t, a.path())
	p.checkFile(t, b2.path())
}

// TestDamagedSeeder has one of two seeders, at one IP address, send damaged
// data. The fetch completes from the other, and the bad one is not banned for
// ever.
func TestDamagedSeeder(t *testing.T) {
	p := newPayload(t, 8<<20)
	for _, sole := range []bool{false, true} {
		name := "beside a good one"
		if sole {
			name = "alone, then mended"
		}
		t.Run(name, func(t *testing.T) {
			bad := newNode(t, "bad", false)
			w := newNode(t, "worker", false)
			peers := []*node{bad, w}
			if !sole {
				good := newNode(t, "good", false, slow(8<<20))
				seed(t, good, p)
				peers = append(peers, good)
			}
			path := seed(t, bad, p)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for off := int64(0); off < p.torrent.Size(); off += 8 * p.torrent.PieceLength() {
				if _, err := f.WriteAt([]byte{p.data[off] ^ 1}, off); err != nil {
					t.Fatal(err)
				}
			}
			introduce(t, peers...)
			r := start(t, w, p)
			if sole {
				eventually(t, "waste", func() bool { return r.last.Load().Wasted > 0 })
				if _, err := f.WriteAt(p.data, 0); err != nil {
					t.Fatal(err)
				}
			}
			r.wait(t)
			p.checkFile(t, w.path())
			if last := r.last.Load(); sole && last.Wasted == 0 {
				t.Errorf("progress %+v: nothing wasted", *last)
			}
		})
	}
}

// TestDamagedIncomingPeer has the fetching side accept connections only, so that
// the bad peer is one that the client does not trust.
func TestDamagedIncomingPeer(t *testing.T) {
	p := newPayload(t, 2<<20)
	w := newNode(t, "worker", false)
	bad := newNode(t, "bad", false)
	good := newNode(t, "good", false)
	// The bad peer has most pieces damaged and fetches one, hence dials.
	damaged := append([]byte(nil), p.data...)
	path := filepath.Join(bad.dir, "fetched.mdb")
	if err := os.WriteFile(path, damaged[:p.torrent.Size()-1], 0o644); err != nil {
		t.Fatal(err)
	}
	rb := start(t, bad, p)
	eventually(t, "check", func() bool { return rb.last.Load().Done > 0 })
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off := int64(0); off < p.torrent.Size(); off += p.torrent.PieceLength() {
		f.WriteAt([]byte{p.data[off] ^ 1}, off)
	}
	rw := start(t, w, p)
	eventually(t, "start", func() bool { return rw.last.Load().Total > 0 })
	bad.SetPeers([]Peer{w.Peer}) // w knows nobody
	eventually(t, "waste", func() bool { return rw.last.Load().Wasted > 0 })
	seed(t, good, p)
	w.SetPeers([]Peer{good.Peer})
	rw.wait(t)
	p.checkFile(t, w.path())
}

// TestSeededFileCutShort cuts a seeded file short: nobody crashes, and the rest
// of it is still to be had.
func TestSeededFileCutShort(t *testing.T) {
	p := newPayload(t, 4<<20)
	cut := newNode(t, "cut", false)
	w := newNode(t, "worker", false)
	path := seed(t, cut, p)
	if err := os.Truncate(path, 2<<20+5); err != nil {
		t.Fatal(err)
	}
	introduce(t, cut, w)
	r := start(t, w, p)
	eventually(t, "the first half", func() bool { return r.last.Load().Done == 2<<20 })
	whole := newNode(t, "whole", false)
	seed(t, whole, p)
	introduce(t, cut, w, whole)
	r.wait(t)
	p.checkFile(t, w.path())
}

func TestSeededFileMayBeRenamed(t *testing.T) {
	p := newPayload(t, 4<<20)
	manager, workers := newFleet(t, 2)
	path := seed(t, manager, p)
	if err := os.Rename(path, path+".renamed"); err != nil {
		t.Fatal(err)
	}
	start(t, workers[0], p).wait(t)
	if err := os.Rename(workers[0].path(), workers[0].path()+".renamed"); err != nil {
		t.Fatal(err)
	}
	manager.Close()
	start(t, workers[1], p).wait(t)
	p.checkFile(t, workers[1].path())
	p.checkFile(t, workers[0].path()+".renamed")
}

// brokenFS fails writes once n bytes have been written.
type brokenFS struct {
	durable.FS
	left atomic.Int64
	err  error
}

func (b *brokenFS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := b.FS.OpenFile(name, flag, perm)
	return &brokenFile{f, b}, err
}

type brokenFile struct {
	durable.File
	fs *brokenFS
}

func (f *brokenFile) WriteAt(p []byte, off int64) (int, error) {
	if f.fs.left.Add(-int64(len(p))) < 0 {
		return 0, &fs.PathError{Op: "write", Path: "f", Err: f.fs.err}
	}
	return f.File.WriteAt(p, off)
}

func (f *brokenFile) Sync() error {
	if f.fs.left.Load() < 0 {
		return f.fs.err
	}
	return f.File.Sync()
}

func TestFetchEndsWithTheDisksError(t *testing.T) {
	p := newPayload(t, 4<<20)
	for _, errno := range []error{syscall.ENOSPC, syscall.EIO} {
		t.Run(errno.Error(), func(t *testing.T) {
			broken := &brokenFS{FS: durable.OS, err: errno}
			broken.left.Store(1 << 20)
			manager := newNode(t, "seeder", false)
			w := newNode(t, "worker", false, func(o *SwarmOptions) { o.FS = broken })
			introduce(t, manager, w)
			seed(t, manager, p)
			r := start(t, w, p)
			<-r.done
			if !errors.Is(r.err, errno) {
				t.Fatalf("fetch ended with %v, want %v", r.err, errno)
			}
			if !strings.Contains(r.err.Error(), w.path()) {
				t.Errorf("%q does not name the file", r.err)
			}
			broken.left.Store(1 << 40)
			start(t, w, p).wait(t)
			p.checkFile(t, w.path())
		})
	}
}

// TestLastPiecesUntold: a fetch ends as soon as the file has all, which may be before the
// torrent client was told of the last pieces. It must not go on wanting them: it compares
// what it wants with what it may request, less and less often, and panics if they differ.
func TestLastPiecesUntold(t *testing.T) {
	p := newPayload(t, 1<<20)
	w := newNode(t, "worker", false)
	r := start(t, w, p)
	var h *holding
	eventually(t, "a fetch", func() bool {
		w.Swarm.mu.Lock()
		defer w.Swarm.mu.Unlock()
		h = w.holdings[p.torrent.InfoHash()]
		return h != nil && h.fetching
	})
	pieces := p.torrent.Pieces()
	for i := range pieces {
		h.store.tell(i)
		h.lib.Piece(i).UpdateCompletion() // it lacks each
	}
	eventually(t, "the client wants all", func() bool {
		return h.lib.PieceState(pieces-1).Priority != torrent.PiecePriorityNone
	})
	for i := range pieces {
		size := p.torrent.PieceLength()
		data := p.data[int64(i)*size:][:p.torrent.PieceSize(i)]
		if good, err := h.store.put(i, data, torrent.PeerID{}); !good || err != nil {
			t.Fatalf("put %d: %t, %v", i, good, err)
		}
	}
	r.wait(t)
	for i := range 1 << 16 {
		h.lib.SetMaxEstablishedConns(10 + i%2) // compares
	}
	p.checkFile(t, w.path())
}

func TestCheckRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := checkRoom(path, 1<<60); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("an exabyte: %v", err)
	}
	if err := checkRoom(path, 1<<10); err != nil {
		t.Errorf("a kilobyte: %v", err)
	}
}

func TestHeldTorrents(t *testing.T) {
	p := newPayload(t, 1<<20)
	n := newNode(t, "seeder", false)
	path := seed(t, n, p)
	if err := n.Seed(p.torrent, path); !errors.Is(err, ErrHeld) {
		t.Errorf("second Seed: %v", err)
	}
	if err := n.Fetch(t.Context(), p.torrent, n.path(), nil); !errors.Is(err, ErrHeld) {
		t.Errorf("Fetch of what is seeded: %v", err)
	}
	n.Drop(p.torrent.InfoHash())
	n.Drop(p.torrent.InfoHash())
	if err := os.Truncate(path, 5); err != nil {
		t.Fatal(err)
	}
	if err := n.Seed(p.torrent, path); err == nil || !strings.Contains(err.Error(), "5 bytes long") {
		t.Errorf("Seed of a short file: %v", err)
	}
	if err := n.Seed(p.torrent, path+".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Seed of no file: %v", err)
	}
	r := start(t, n, p) // from nobody
	eventually(t, "start", func() bool { return r.last.Load().Total > 0 })
	n.Drop(p.torrent.InfoHash())
	<-r.done
	if !errors.Is(r.err, ErrDropped) {
		t.Errorf("dropped fetch ended with %v", r.err)
	}
	r = start(t, n, p)
	eventually(t, "start", func() bool { return r.last.Load().Total > 0 })
	n.Close()
	<-r.done
	if !errors.Is(r.err, ErrSwarmClosed) {
		t.Errorf("fetch on a closing swarm ended with %v", r.err)
	}
	if err := n.Seed(p.torrent, path); !errors.Is(err, ErrSwarmClosed) {
		t.Errorf("Seed on a closed swarm: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}
