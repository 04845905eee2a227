package p2p

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// witness is a storeWatcher that writes down what it hears.
type witness struct {
	mu    sync.Mutex
	heard []string
}

func (w *witness) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = append(w.heard, fmt.Sprintf(format, args...))
}

func (w *witness) pieceChecked(piece int, good bool) { w.note("checked %d %t", piece, good) }
func (w *witness) pieceArrived(piece int, from torrent.PeerID, good, missing bool) {
	w.note("arrived %d from %s good=%t missing=%t", piece, from[:1], good, missing)
}
func (w *witness) storeFailed(err error)  { w.note("failed: %v", err) }
func (w *witness) storeDamaged(err error) { w.note("damaged") }

// expect compares what was heard since the last call.
func (w *witness) expect(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.heard, want) {
		t.Errorf("the watcher heard %q, want %q", w.heard, want)
	}
	w.heard = nil
}

var sourceA, sourceB = torrent.PeerID{'a'}, torrent.PeerID{'b'}

// storeUnderTest is a store of a file that is to be received.
type storeUnderTest struct {
	*store
	payload
	witness *witness
	path    string
}

func newStoreUnderTest(t *testing.T, p payload, fsys durable.FS) *storeUnderTest {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fetched.mdb")
	f, good, err := openPartial(t.Context(), fsys, path, p.torrent)
	if err != nil {
		t.Fatal(err)
	}
	w := new(witness)
	s := newStore(p.torrent, f, good, w)
	t.Cleanup(func() { s.close() })
	return &storeUnderTest{s, p, w, path}
}

// of returns piece i as it should be.
func (s *storeUnderTest) of(i int) []byte {
	off := int64(i) * s.store.torrent.PieceLength()
	return s.data[off : off+s.store.torrent.PieceSize(i)]
}

func (s *storeUnderTest) piece(i int) storePiece { return storePiece{s.store, i} }

// write sends bytes [from, to) of piece i, damaged by flip.
func (s *storeUnderTest) write(t *testing.T, i int, from, to int64, flip byte) {
	t.Helper()
	b := slices.Clone(s.of(i)[from:to])
	b[0] ^= flip
	if n, err := s.piece(i).WriteAt(b, from); n != len(b) || err != nil {
		t.Fatalf("write of piece %d: %d, %v", i, n, err)
	}
}

func (s *storeUnderTest) selfHash(t *testing.T, i int, good bool) {
	t.Helper()
	sum, err := s.piece(i).SelfHash()
	if err != nil {
		t.Fatal(err)
	}
	if got := sum == metainfo.Hash(s.store.torrent.PieceSHA1(i)); got != good {
		t.Errorf("piece %d: the client is told %t, want %t", i, got, good)
	}
	if s.isGood(i) != good || s.piece(i).Completion().Complete != good {
		t.Errorf("piece %d is good: %t, want %t", i, s.isGood(i), good)
	}
}

func (s *storeUnderTest) put(t *testing.T, i int, data []byte, from torrent.PeerID, want bool) {
	t.Helper()
	if good, err := s.store.put(i, data, from); good != want || err != nil {
		t.Errorf("put of piece %d: %t, %v, want %t", i, good, err, want)
	}
}

// content checks the bytes of piece i in the file.
func (s *storeUnderTest) content(t *testing.T, i int, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := s.store.file.ReadAt(got, int64(i)*s.store.torrent.PieceLength()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the file holds something else as piece %d", i)
	}
}

func (s *storeUnderTest) isComplete() bool {
	select {
	case <-s.complete:
		return true
	default:
		return false
	}
}

func TestPut(t *testing.T) {
	s := newStoreUnderTest(t, newPayload(t, 3*64<<10+100), durable.OS)
	damaged := slices.Clone(s.of(1))
	damaged[len(damaged)-1] ^= 1
	zeros := make([]byte, len(damaged))

	s.put(t, 0, s.of(0), sourceA, true)
	s.witness.expect(t, "arrived 0 from a good=true missing=true")
	s.content(t, 0, s.of(0))

	for _, bad := range [][]byte{damaged, s.of(1)[1:], append(slices.Clone(s.of(1)), 0), nil} {
		s.put(t, 1, bad, sourceA, false)
		s.witness.expect(t, "arrived 1 from a good=false missing=true")
		s.content(t, 1, zeros)
	}

	s.put(t, 0, s.of(0), sourceB, true)
	s.witness.expect(t, "arrived 0 from b good=true missing=false")
	s.put(t, 0, damaged, sourceB, false)
	s.witness.expect(t, "arrived 0 from b good=false missing=false")
	s.content(t, 0, s.of(0))
	if bytes, pieces := s.verified(); !s.isGood(0) || s.isGood(1) || bytes != 64<<10 || pieces != 1 {
		t.Errorf("good: %v, %d bytes in %d pieces", s.good, bytes, pieces)
	}

	for _, i := range []int{3, 2, 1} {
		if s.isComplete() {
			t.Errorf("complete without piece %d", i)
		}
		s.put(t, i, s.of(i), sourceB, true)
	}
	if bytes, pieces := s.verified(); !s.isComplete() || bytes != s.store.torrent.Size() || pieces != 4 {
		t.Errorf("not complete: %d bytes in %d pieces", bytes, pieces)
	}
	s.checkFile(t, s.path)
}

// TestPutAmongBlocks has a piece come both ways.
func TestPutAmongBlocks(t *testing.T) {
	const all = 64 << 10
	p := newPayload(t, 2*all)
	t.Run("put between two blocks, of which the later is damaged", func(t *testing.T) {
		s := newStoreUnderTest(t, p, durable.OS)
		s.write(t, 0, 0, all/2, 0)
		s.put(t, 0, s.of(0), sourceA, true)
		s.write(t, 0, all/2, all, 1)
		s.content(t, 0, s.of(0))
		s.witness.expect(t, "arrived 0 from a good=true missing=true")
		s.selfHash(t, 0, true)
		s.witness.expect(t)
	})
	t.Run("put between the client's verdict and its notice", func(t *testing.T) {
		s := newStoreUnderTest(t, p, durable.OS)
		s.write(t, 0, 0, all, 1)
		s.selfHash(t, 0, false)
		s.put(t, 0, s.of(0), sourceA, true)
		if err := s.piece(0).MarkNotComplete(); err != nil || !s.isGood(0) {
			t.Errorf("a good piece was forgotten (%v)", err)
		}
		s.witness.expect(t, "checked 0 false", "arrived 0 from a good=true missing=true")
	})
	t.Run("at the same time", func(t *testing.T) {
		for range 200 {
			s := newStoreUnderTest(t, p, durable.OS)
			var both sync.WaitGroup
			both.Go(func() {
				s.write(t, 0, 0, all/2, 1)
				s.write(t, 0, all/2, all, 1)
				if _, err := s.piece(0).SelfHash(); err != nil {
					t.Error(err)
				}
				s.piece(0).MarkNotComplete()
			})
			both.Go(func() { s.put(t, 0, s.of(0), sourceA, true) })
			both.Wait()
			if !s.isGood(0) {
				t.Fatal("the piece is not good")
			}
			s.content(t, 0, s.of(0))
			s.close()
		}
	})
}

// readCounter counts what is read of files.
type readCounter struct {
	durable.FS
	bytes atomic.Int64
}

func (r *readCounter) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := r.FS.OpenFile(name, flag, perm)
	return &countedFile{f, r}, err
}

type countedFile struct {
	durable.File
	fs *readCounter
}

func (f *countedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.fs.bytes.Add(int64(n))
	return n, err
}

// TestBlocks receives a piece block by block.
func TestBlocks(t *testing.T) {
	const all = 64 << 10
	const q = all / 4
	p := newPayload(t, 2*all+100)
	type block struct {
		from, to int64
		flip     byte // damages it
	}
	for _, c := range []struct {
		name     string
		blocks   []block
		good     bool
		readBack int64 // bytes of the file that had to be read
	}{
		{"at once", []block{{0, all, 0}}, true, 0},
		{"in order", []block{{0, q, 0}, {q, 2 * q, 0}, {2 * q, 3 * q, 0}, {3 * q, all, 0}}, true, 0},
		{"of odd lengths", []block{{0, 1, 0}, {1, 100, 0}, {100, all, 0}}, true, 0},
		{"backwards", []block{{3 * q, all, 0}, {2 * q, 3 * q, 0}, {q, 2 * q, 0}, {0, q, 0}}, true, 3 * q},
		{"two peers interleaved", []block{{0, q, 0}, {2 * q, 3 * q, 0}, {q, 2 * q, 0}, {3 * q, all, 0}}, true, 2 * q},
		{"first block damaged", []block{{0, q, 1}, {q, all, 0}}, false, 0},
		{"last block damaged", []block{{0, 3 * q, 0}, {3 * q, all, 0x80}}, false, 0},
		{"early block damaged", []block{{2 * q, all, 1}, {0, 2 * q, 0}}, false, 2 * q},
		{"hashed block sent again, mended", []block{{0, q, 1}, {q, 2 * q, 0}, {0, q, 0}, {2 * q, all, 0}}, true, all},
		{"hashed block sent again, damaged", []block{{0, q, 0}, {q, 2 * q, 0}, {0, q, 1}, {2 * q, all, 0}}, false, all},
		{"block not hashed sent again, damaged", []block{{2 * q, all, 0}, {2 * q, all, 1}, {0, 2 * q, 0}}, false, 2 * q},
		{"overlapping", []block{{0, 2 * q, 0}, {q, 3 * q, 0}, {3 * q, all, 0}}, true, all},
		{"with a hole", []block{{0, q, 0}, {2 * q, all, 0}}, false, 3 * q},
	} {
		t.Run(c.name, func(t *testing.T) {
			reads := &readCounter{FS: durable.OS}
			s := newStoreUnderTest(t, p, reads)
			for _, b := range c.blocks {
				s.write(t, 1, b.from, b.to, b.flip)
			}
			s.selfHash(t, 1, c.good)
			s.witness.expect(t, fmt.Sprintf("checked 1 %t", c.good))
			if got := reads.bytes.Load(); got != c.readBack {
				t.Errorf("%d bytes were read back, want %d", got, c.readBack)
			}
			if in := &s.incoming[1]; in.sum != nil || in.upTo != 0 {
				t.Error("the hash was not forgotten")
			}
			if c.good {
				s.content(t, 1, s.of(1))
				return
			}
			// The next attempt starts afresh.
			s.write(t, 1, 0, all, 0)
			s.selfHash(t, 1, true)
			s.content(t, 1, s.of(1))
		})
	}
	t.Run("the last, short piece", func(t *testing.T) {
		s := newStoreUnderTest(t, p, durable.OS)
		s.write(t, 2, 50, 100, 0)
		s.write(t, 2, 0, 50, 0)
		s.selfHash(t, 2, true)
	})
	t.Run("two peers at the same time", func(t *testing.T) {
		s := newStoreUnderTest(t, p, durable.OS)
		var peers sync.WaitGroup
		for parity := range int64(2) {
			peers.Go(func() {
				for from := parity * 1024; from < all; from += 2048 {
					s.write(t, 1, from, from+1024, 0)
				}
			})
		}
		peers.Wait()
		s.selfHash(t, 1, true)
	})
}

func TestPutReportsTheDisk(t *testing.T) {
	p := newPayload(t, 2*64<<10)
	broken := &brokenFS{FS: durable.OS, err: syscall.ENOSPC}
	s := newStoreUnderTest(t, p, broken)
	if good, err := s.store.put(0, s.of(0), sourceA); !good || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("put: %t, %v", good, err)
	}
	if s.isGood(0) {
		t.Error("what was not written is good")
	}
	s.witness.expect(t, "failed: write piece 0: write f: no space left on device")
}

// TestReadCutShort reads pieces of a file that somebody cuts short.
func TestReadCutShort(t *testing.T) {
	s := newStoreUnderTest(t, newPayload(t, 3*64<<10+100), durable.OS)
	buf := make([]byte, 64<<10)
	for i := range s.store.torrent.Pieces() {
		s.put(t, i, s.of(i), sourceA, true)
		if n, err := s.piece(i).ReadAt(buf[:len(s.of(i))], 0); err != nil || !slices.Equal(buf[:n], s.of(i)) {
			t.Errorf("piece %d read as %d bytes, %v", i, n, err)
		}
	}
	s.witness.heard = nil
	if err := os.Truncate(s.path, 2*64<<10); err != nil {
		t.Fatal(err)
	}
	if n, err := s.piece(2).ReadAt(buf, 0); n != 0 || err == nil {
		t.Errorf("a piece that is gone was read: %d bytes, %v", n, err)
	}
	if s.isGood(2) || s.isGood(3) || !s.isGood(1) {
		t.Errorf("good: %v", s.good)
	}
	s.witness.expect(t, "damaged")
}
