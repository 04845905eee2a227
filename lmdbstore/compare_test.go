package lmdbstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/txlog"
)

// comparedStore is a store that follows a log, and snapshots of it.
type comparedStore struct {
	*Store
	t   *testing.T
	dir string
	log *txlog.Log
	h   *history
}

func newCompared(t *testing.T, o Options) *comparedStore {
	t.Helper()
	c := &comparedStore{t: t, dir: t.TempDir(), h: newHistory()}
	var err error
	if c.log, err = txlog.Open(filepath.Join(t.TempDir(), "log"), txlog.Options{SegmentBytes: 256 << 10}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.log.Close() })
	c.Store = open(t, c.dir, o)
	c.add(c.h.begin())
	return c
}

func (c *comparedStore) add(entries ...txlog.Entry) {
	c.t.Helper()
	if _, err := c.log.AppendEntries(entries); err != nil {
		c.t.Fatal(err)
	}
	apply(c.t, c.Store, entries...)
}

// snapshot mints, and returns what to compare with.
func (c *comparedStore) snapshot() Comparing {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "snapshot.mdb")
	info, _ := minted(c.t, c.Store, file)
	data, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	return Comparing{Want: info.Pos, Size: info.Size, PieceLength: testPiece, Published: bytes.NewReader(data), Log: c.log}
}

// TestCompare changes a store in every way, and compares it with what it was.
func TestCompare(t *testing.T) {
	r := seeded(t)
	c := newCompared(t, Options{})
	empty := c.snapshot()
	if got, err := c.Compare(t.Context(), empty); err != nil || got.Err() != nil || got.Pairs+got.Since != 0 {
		t.Errorf("no pairs: %+v, %v", got, err)
	}
	c.add(c.h.randoms(r, 1000)...)
	was := len(c.h.model)
	s := c.snapshot()
	got, err := c.Compare(t.Context(), s)
	if err != nil || got.Err() != nil || got.Pairs != uint64(was) || got.Live != got.Pieces || got.Pieces < 10 {
		t.Errorf("at the snapshot's position: %+v, %v", got, err)
	}
	if got.Pos != s.Want || got.Bytes < s.Size/2 || got.Generation != 1 {
		t.Errorf("%+v", got)
	}
	for _, n := range []int{1, 20, 200} {
		c.add(c.h.randoms(r, n)...)
		got, err = c.Compare(t.Context(), s)
		t.Logf("%d entries later: %+v", n, got)
		if err != nil || got.Err() != nil || got.Pairs+got.Since != uint64(was) || got.Pos != c.h.pos {
			t.Errorf("%d entries later: %+v, %v", n, got, err)
		}
		if got.Live+got.Partly+got.File != got.Pieces || n == 200 && got.Since == 0 || got.Pairs == 0 {
			t.Errorf("%d entries later: %+v", n, got)
		}
	}
	// All of it changes.
	var ops []txlog.Op
	for key := range c.h.model {
		ops = append(ops, del(key))
	}
	c.add(c.h.entry(ops...))
	if got, err = c.Compare(t.Context(), s); err != nil || got.Err() != nil || got.Pairs > uint64(was)/10 {
		t.Errorf("everything was deleted: %+v, %v", got, err)
	}
	if got, err = c.Compare(t.Context(), empty); err != nil || got.Err() != nil || got.Pairs != 0 {
		t.Errorf("with the first: %+v, %v", got, err)
	}
}

// TestCompareCannot: what says nothing of the store is neither damage nor equality.
func TestCompareCannot(t *testing.T) {
	r := seeded(t)
	c := newCompared(t, Options{})
	c.add(c.h.randoms(r, 300)...)
	first := c.snapshot()
	c.add(c.h.randoms(r, 100)...)
	s := c.snapshot()
	c.add(c.h.randoms(r, 100)...)
	data := make([]byte, s.Size)
	if _, err := s.Published.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	fails := errors.New("no permission")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	slow, cancelSlow := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancelSlow()
	for _, tt := range []struct {
		name   string
		ctx    context.Context
		change func(*Comparing)
		want   error
	}{
		{"the store is before the snapshot", t.Context(), func(s *Comparing) { s.Want.Seq += 1000 }, ErrIncomparable},
		{"another history", t.Context(), func(s *Comparing) { s.Want.Hash[0] ^= 1 }, nil},
		{"another snapshot's file", t.Context(), func(s *Comparing) { s.Published, s.Size = first.Published, first.Size }, nil},
		{"the file can not be read", t.Context(), func(s *Comparing) { s.Published = readFails{fails} }, fails},
		{"the file is cut short", t.Context(), func(s *Comparing) { s.Published = bytes.NewReader(data[:len(data)/2]) }, nil},
		{"the file is garbage", t.Context(), func(s *Comparing) { s.Published = bytes.NewReader(make([]byte, len(data))) }, nil},
		{"cancelled", cancelled, func(*Comparing) {}, context.Canceled},
		{"slow", slow, func(s *Comparing) { s.Limit = rate.NewLimiter(1000, diskChunk) }, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := s
			tt.change(&s)
			got, err := c.Compare(tt.ctx, s)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || errors.Is(err, ErrDamaged) || got.Err() != nil {
				t.Errorf("%+v, %v; want %v", got, err, tt.want)
			}
			if err := c.Damage(); err != nil {
				t.Errorf("the store is said to be damaged: %v", err)
			}
		})
	}
	for i := 0; c.log.First() <= first.Want.Seq+1; i++ {
		c.add(c.h.randoms(r, 50)...)
		if _, err := c.log.Trim(c.log.Head().Seq); err != nil || i > 100 {
			t.Fatal(i, err)
		}
	}
	if _, err := c.Compare(t.Context(), first); !errors.Is(err, ErrIncomparable) {
		t.Errorf("the log was trimmed: %v", err)
	}
	closed(t, c.Store)
	if _, err := c.Compare(t.Context(), s); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

type readFails struct{ err error }

func (f readFails) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// writing applies entries to a store until the function that it returns is called.
func (c *comparedStore) writing(entries func() []txlog.Entry) (stop func()) {
	var running sync.WaitGroup
	done := make(chan struct{})
	running.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				e := entries()
				_, err := c.log.AppendEntries(e)
				if err == nil {
					err = c.Apply(e)
				}
				if err != nil {
					if !errors.Is(err, ErrDamaged) {
						c.t.Error(err)
					}
					return
				}
			}
		}
	})
	return func() { close(done); running.Wait() }
}

// TestCompareWhileWriting: whatever is written meanwhile, in whatever pages, nothing
// differs: in a small map that is remapped, and in one that is not.
func TestCompareWhileWriting(t *testing.T) {
	for name, o := range map[string]Options{"growing": {MapSize: minMapBytes}, "large": {}} {
		t.Run(name, func(t *testing.T) {
			r := seeded(t)
			c := newCompared(t, o)
			c.add(c.h.randoms(r, 400)...)
			snapshots := []Comparing{c.snapshot()}
			stop := c.writing(func() []txlog.Entry { return c.h.randoms(r, 5) })
			rounds, pairs, since, moved := 0, uint64(0), uint64(0), 0
			shown := func() bool { return pairs > 0 && since > 0 && moved > 0 }
			for began := time.Now(); rounds < 100 && (time.Since(began) < 4*time.Second || !shown()); rounds++ {
				if rounds%5 == 4 {
					snapshots = append(snapshots, c.snapshot())
				}
				s := snapshots[rand.IntN(len(snapshots))]
				if rounds%3 == 0 {
					s.Limit = rate.NewLimiter(64<<20, diskChunk)
				}
				got, err := c.Compare(t.Context(), s)
				if err != nil || got.Err() != nil {
					t.Errorf("round %d, from %d to %d: %+v, %v", rounds, s.Want.Seq, c.State().Pos.Seq, got, err)
					break
				}
				pairs, since = pairs+got.Pairs, since+got.Since
				if c.State().Pos != got.Pos {
					moved++
				}
			}
			stop()
			t.Logf("%d rounds, %d of them overtaken by writes; %d pairs compared, %d changed since", rounds, moved, pairs, since)
			if !shown() {
				t.Error("that shows nothing")
			}
			matches(t, c.Store, c.h)
		})
	}
}

// onLeaf reports whether a page is a leaf that has a node which begins so.
func onLeaf(page []byte, pgno uint64, node []byte) bool {
	if binary.LittleEndian.Uint64(page) != pgno || binary.LittleEndian.Uint16(page[10:]) != 2 {
		return false
	}
	for at := 16; at < int(binary.LittleEndian.Uint16(page[12:])); at += 2 {
		if bytes.HasPrefix(page[binary.LittleEndian.Uint16(page[at:])+8:], node) {
			return true
		}
	}
	return false
}

// TestCompareFinds damages pages of an environment to which is written, so that their
// structure is right, and so are the checksums.
func TestCompareFinds(t *testing.T) {
	value := func(i, version int) string {
		return fmt.Sprintf("value %06d, version %d%s", i, version, strings.Repeat(".", 100))
	}
	stored := func(key, value string) []byte {
		return append([]byte(key), appendValue(nil, []byte(key), []byte(value))...)
	}
	const needle, long = 1000, "stable-long"
	key := func(i int) string { return fmt.Sprintf("stable-%06d", i) }
	leafOf := func(t *testing.T, b []byte, holds []byte) (at int) {
		t.Helper()
		found := -1
		for at := 0; at < len(b); at += 4096 {
			if onLeaf(b[at:at+4096], uint64(at/4096), holds) {
				if found >= 0 {
					t.Fatal("two pages hold it")
				}
				found = at
			}
		}
		if found < 0 {
			t.Fatal("no page holds it")
		}
		return found
	}
	replace := func(old, with []byte) func(*testing.T, []byte, []byte) []byte {
		return func(t *testing.T, b, _ []byte) []byte {
			at := leafOf(t, b, old)
			copy(b[at:at+4096], bytes.Replace(b[at:at+4096], old, with, 1))
			return b
		}
	}
	for _, tt := range []struct {
		name    string
		harm    func(t *testing.T, now, before []byte) []byte
		damaged bool // the digest, or the structure, shows it too
		differ  bool
	}{
		{"a value", replace(stored(key(needle), value(needle, 2)), stored(key(needle), value(needle, 9))), true, true},
		{"a key", replace(stored(key(needle), value(needle, 2)), stored("stable-0009:0", value(needle, 2))), true, true},
		{"a byte of a key", replace(stored(key(needle), value(needle, 2)), append([]byte(key(needle)[:12]+"1"), stored(key(needle), value(needle, 2))[13:]...)), true, false},
		{"a stale page", func(t *testing.T, now, before []byte) []byte {
			at := leafOf(t, now, stored(key(needle), value(needle, 2)))
			old := leafOf(t, before, stored(key(needle), value(needle, 1)))
			copy(now[at+8:at+4096], before[old+8:old+4096]) // but for its number
			return now
		}, true, true},
		{"swapped pages", func(t *testing.T, now, _ []byte) []byte {
			a := leafOf(t, now, stored(key(needle), value(needle, 2)))
			b := leafOf(t, now, stored(key(2*needle), value(2*needle, 1)))
			page := bytes.Clone(now[a+8 : a+4096])
			copy(now[a+8:a+4096], now[b+8:b+4096])
			copy(now[b+8:], page)
			return now
		}, true, false},
		{"a long value", func(t *testing.T, now, _ []byte) []byte {
			i := bytes.Index(now, bytes.Repeat([]byte("L"), 9000))
			for b := now[i:]; b[0] == 'L'; b = b[1:] {
				b[0] = 'M'
			}
			copy(now[i-checkedLen:i], appendValue(nil, []byte(long), bytes.Repeat([]byte("M"), 50_000))) // its checksum
			return now
		}, true, true},
		{"nothing", func(_ *testing.T, now, _ []byte) []byte { return now }, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := seeded(t)
			c := newCompared(t, Options{})
			ops := []txlog.Op{put(long, strings.Repeat("L", 50_000))}
			for i := range 3000 {
				ops = append(ops, put(key(i), value(i, 1)))
			}
			c.add(c.h.entry(ops...))
			file := filepath.Join(c.dir, nameOf(1), dataFile)
			read := func() []byte {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			before := read()
			c.add(c.h.entry(put(key(needle), value(needle, 2))))
			s := c.snapshot()
			busy := func() []txlog.Entry {
				var ops []txlog.Op
				for range 20 {
					k := fmt.Sprintf("volatile-%03d", r.IntN(500))
					if r.IntN(4) == 0 {
						ops = append(ops, del(k))
					} else {
						ops = append(ops, put(k, strings.Repeat("v", r.IntN(6000))))
					}
				}
				return []txlog.Entry{c.h.entry(ops...)}
			}
			for range 20 {
				c.add(busy()...)
			}
			b := read()
			was := bytes.Clone(b)
			harmed := tt.harm(t, b, before)
			stop := c.writing(busy)
			defer stop()
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for at := 0; at < len(was); at += 4096 { // what is written meanwhile stays
				if !bytes.Equal(was[at:at+4096], harmed[at:at+4096]) {
					if _, err := f.WriteAt(harmed[at:at+4096], int64(at)); err != nil {
						t.Fatal(err)
					}
				}
			}
			got, err := c.Compare(t.Context(), s)
			t.Logf("%+v, %v", got, err)
			if errors.Is(err, ErrDamaged) != tt.damaged || (err == nil) == tt.damaged {
				t.Errorf("error %v", err)
			}
			if differ := got.Err() != nil; differ != tt.differ {
				t.Errorf("differs: %v", got.Err())
			}
			if tt.differ && (got.Damaged != 4096 || len(got.Differ) > 2) {
				t.Errorf("%d bytes are damaged, in pieces %v", got.Damaged, got.Differ)
			}
		})
	}
}

// TestCompareFindsAnotherCopy: a store whose digest is that of its pairs, and whose
// pairs are not those of the log.
func TestCompareFindsAnotherCopy(t *testing.T) {
	r := seeded(t)
	for _, tt := range []struct {
		name string
		do   func(w *writeTxn, d *Digest) error
	}{
		{"another value", func(w *writeTxn, d *Digest) error {
			*d = d.plus(w.env.hasher.element([]byte("stable-5"), []byte("six")))
			return w.put([]byte("stable-5"), []byte("six"), d)
		}},
		{"a pair more", func(w *writeTxn, d *Digest) error {
			*d = d.plus(w.env.hasher.element([]byte("stable-55"), []byte("more")))
			return w.put([]byte("stable-55"), []byte("more"), d)
		}},
		{"a pair less", func(w *writeTxn, d *Digest) error { return w.del([]byte("stable-5"), d) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCompared(t, Options{})
			for i := range 10 {
				c.add(c.h.entry(put(fmt.Sprintf("stable-%d", i), "five")))
			}
			s := c.snapshot()
			c.add(c.h.randoms(r, 100)...)
			g := c.current.Load()
			g.env.writer.Lock()
			state := *g.state.Load()
			err := g.env.update(func(w *writeTxn) error {
				return errors.Join(tt.do(w, &state.Digest), w.putState(state))
			})
			g.state.Store(&state)
			g.env.writer.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Scrub(t.Context(), ScrubOptions{Rate: -1}); err != nil {
				t.Fatalf("it does not look sound: %v", err)
			}
			got, err := c.Compare(t.Context(), s)
			if err != nil || len(got.Differ) != 1 || !strings.HasPrefix(string(got.Key), "stable-5") {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}
