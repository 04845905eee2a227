package lmdbstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/qs-peer/qs-peer/txlog"
)

// golden is the SHA-256 of the snapshot of goldenHistory, on every machine and
// with either binding.
const golden = "347a3db976b6454393b41ce7c83495e04cb2ae260a04422eb125220ff84a015f"

// goldenHistory makes the same entries each time.
func goldenHistory() (entries []txlog.Entry, h *history) {
	r := rand.New(rand.NewPCG(7, 7))
	h = newHistory()
	entries = append(entries, h.begin())
	return append(entries, h.randoms(r, 1500)...), h
}

// minted mints to a file and returns its SHA-256.
func minted(t testing.TB, s *Store, file string) (SnapshotInfo, string) {
	t.Helper()
	var sum hash.Hash
	var f *os.File
	info, err := s.Mint(t.Context(), func(SnapshotInfo) (w io.Writer, err error) {
		sum = sha256.New()
		f, err = os.Create(file)
		return io.MultiWriter(f, sum), err
	})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != info.Size {
		t.Errorf("%d bytes announced, %v written", info.Size, st.Size())
	}
	closed(t, f)
	return info, hex.EncodeToString(sum.Sum(nil))
}

func TestMintIsCanonical(t *testing.T) {
	entries, h := goldenHistory()
	half := len(entries) / 2
	snapshot := filepath.Join(t.TempDir(), "half.mdb")

	batches := func(size int) func(*testing.T, *Store, []txlog.Entry) {
		return func(t *testing.T, s *Store, entries []txlog.Entry) {
			for len(entries) > 0 {
				n := min(size, len(entries))
				apply(t, s, entries[:n]...)
				entries = entries[n:]
			}
		}
	}
	for _, c := range []struct {
		name string
		run  func(t *testing.T) *Store
	}{
		{"one batch", func(t *testing.T) *Store {
			s := open(t, t.TempDir(), Options{})
			apply(t, s, entries...)
			return s
		}},
		{"batches of 7, a snapshot half-way", func(t *testing.T) *Store {
			s := open(t, t.TempDir(), Options{})
			batches(7)(t, s, entries[:half])
			minted(t, s, snapshot)
			batches(7)(t, s, entries[half:])
			return s
		}},
		{"map growth and restarts", func(t *testing.T) *Store {
			dir := t.TempDir()
			for rest := entries; len(rest) > 0; {
				s := open(t, dir, Options{MapSize: minMapBytes})
				n := min(100, len(rest))
				batches(33)(t, s, rest[:n])
				rest = rest[n:]
				closed(t, s)
			}
			return open(t, dir, Options{MapSize: minMapBytes})
		}},
		{"from the snapshot, then caught up", func(t *testing.T) *Store {
			s := open(t, t.TempDir(), Options{})
			g, err := s.Install(t.Context(), snapshot, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			apply(t, g, entries[half:half+100]...)
			if err := g.Activate(); err != nil {
				t.Fatal(err)
			}
			batches(11)(t, s, entries[half+100:])
			return s
		}},
		{"from a snapshot of the end", func(t *testing.T) *Store {
			s := open(t, t.TempDir(), Options{})
			apply(t, s, entries...)
			file := filepath.Join(t.TempDir(), "end.mdb")
			minted(t, s, file)
			s = open(t, t.TempDir(), Options{})
			g, err := s.Install(t.Context(), file, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Activate(); err != nil {
				t.Fatal(err)
			}
			return s
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.run(t)
			matches(t, s, h)
			file := filepath.Join(t.TempDir(), "out.mdb")
			info, sum := minted(t, s, file)
			if sum != golden {
				t.Errorf("SHA-256 is %s, want %s", sum, golden)
			}
			if info.Pos != h.pos || info.Pairs != uint64(len(h.model)) || info.Dataset != testDataset || info.Format != Format {
				t.Errorf("info is %+v", info)
			}
			report, err := CheckFile(t.Context(), file)
			if err != nil || report.SnapshotInfo != info {
				t.Errorf("check: %+v, %v", report, err)
			}
		})
	}
}

// gate is a writer that stops at its first byte until it is opened.
type gate struct {
	reached, open chan struct{}
	once, passing sync.Once
	io.Writer
}

func (g *gate) pass() { g.passing.Do(func() { close(g.open) }) }

func newGate(w io.Writer) *gate {
	return &gate{reached: make(chan struct{}), open: make(chan struct{}), Writer: w}
}

func (g *gate) Write(b []byte) (int, error) {
	g.once.Do(func() { close(g.reached) })
	<-g.open
	return g.Writer.Write(b)
}

// TestMintWhileWriting holds a mint at its first byte while the store moves on.
func TestMintWhileWriting(t *testing.T) {
	entries, h := goldenHistory()
	for _, c := range []struct {
		name    string
		mapSize int64
		starts  int
	}{{"without remapping", 0, 1}, {"giving way to growth", 32 << 20, 2}} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, t.TempDir(), Options{MapSize: c.mapSize})
			apply(t, s, entries...)
			after := history{h.pos, map[string]string{}}

			g := newGate(io.Discard)
			t.Cleanup(g.pass)
			var enough atomic.Bool
			begun := 0
			var out bytes.Buffer
			var info SnapshotInfo
			var mintErr error
			var wg sync.WaitGroup
			wg.Go(func() {
				info, mintErr = s.Mint(t.Context(), func(SnapshotInfo) (io.Writer, error) {
					begun++
					out.Reset()
					return io.MultiWriter(g, &out), nil
				})
			})
			<-g.reached
			var applied sync.WaitGroup
			var applyErr error
			applied.Go(func() {
				for i := 0; !enough.Load(); i++ {
					e := after.entry(put(fmt.Sprintf("later-%d", i), string(bytes.Repeat([]byte{'x'}, 100_000))), del("key-1"))
					if applyErr = s.Apply([]txlog.Entry{e}); applyErr != nil {
						return
					}
				}
			})
			eventually(t, "the store moves on", func() bool {
				r := s.current.Load().env.readers
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.draining || c.starts == 1 && s.State().Pos.Seq > h.pos.Seq+100
			})
			enough.Store(true)
			g.pass()
			wg.Wait()
			applied.Wait()
			if mintErr != nil || applyErr != nil {
				t.Fatal(mintErr, applyErr)
			}
			if c.starts == 1 {
				if sum := sha256.Sum256(out.Bytes()); begun != 1 || hex.EncodeToString(sum[:]) != golden {
					t.Errorf("%d starts, SHA-256 %x", begun, sum)
				}
			} else if begun < c.starts || info.Pos == h.pos {
				t.Errorf("%d starts, position %v", begun, info.Pos)
			}
		})
	}
}

func TestMintRefuses(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	discard := func(SnapshotInfo) (io.Writer, error) { return io.Discard, nil }
	if _, err := s.Mint(t.Context(), discard); err == nil {
		t.Error("minted an empty store")
	}
	apply(t, s, h.begin())
	boom := errors.New("boom")
	if _, err := s.Mint(t.Context(), func(SnapshotInfo) (io.Writer, error) { return nil, boom }); !errors.Is(err, boom) {
		t.Errorf("begin failed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Mint(ctx, discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	g := newGate(io.Discard)
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { _, err = s.Mint(t.Context(), func(SnapshotInfo) (io.Writer, error) { return g, nil }) })
	<-g.reached
	wg.Go(func() { closed(t, s) })
	<-s.stopped.Done()
	g.pass()
	wg.Wait()
	if err != nil && !errors.Is(err, ErrClosed) { // it may have been the last byte
		t.Errorf("closed meanwhile: %v", err)
	}
	if _, err := s.Mint(t.Context(), discard); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
