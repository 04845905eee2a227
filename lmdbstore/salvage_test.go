package lmdbstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
	"github.com/qs-peer/qs-peer/txlog"
)

const testPiece = 64 << 10

// published is a snapshot's file of which somebody pays for each piece.
type published struct {
	data  []byte
	asked map[int64]bool
}

func (p *published) ReadAt(b []byte, off int64) (int, error) {
	for piece := off / testPiece; piece <= (off+int64(len(b))-1)/testPiece; piece++ {
		p.asked[piece] = true
	}
	return bytes.NewReader(p.data).ReadAt(b, off)
}

// toFetch returns how many pieces come from elsewhere after a salvage that gave got:
// those that were asked for, and those that differ.
func (p *published) toFetch(got []byte) (pieces int) {
	for off := int64(0); off < int64(len(p.data)); off += testPiece {
		end := min(off+testPiece, int64(len(p.data)))
		same := int64(len(got)) >= end && bytes.Equal(got[off:end], p.data[off:end])
		if p.asked[off/testPiece] || !same {
			pieces++
		}
	}
	return pieces
}

// wreck is what salvage tests salvage: environments from before a snapshot, at it, and
// after it.
type wreck struct {
	log               *txlog.Log
	want              SnapshotInfo
	snapshot          []byte
	before, at, after string // files
	touched           int    // keys changed between before and at, and at and after
}

func newWreck(t *testing.T, keys int) *wreck {
	t.Helper()
	r := seeded(t)
	h := newHistory()
	w := &wreck{touched: 40}
	var err error
	if w.log, err = txlog.Open(filepath.Join(t.TempDir(), "log"), txlog.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.log.Close() })
	dir := t.TempDir()
	s := open(t, dir, Options{})
	add := func(entries ...txlog.Entry) {
		t.Helper()
		if _, err := w.log.AppendEntries(entries); err != nil {
			t.Fatal(err)
		}
		apply(t, s, entries...)
	}
	random := func() txlog.Op {
		key := fmt.Sprintf("key-%06d", r.IntN(keys))
		if r.IntN(8) == 0 {
			return del(key)
		}
		size := r.IntN(600)
		if r.IntN(200) == 0 {
			size = r.IntN(30_000)
		}
		return put(key, string(bytes.Repeat([]byte{byte(r.IntN(256))}, size)))
	}
	add(h.begin())
	for range 40 { // in no order, so that the pages are not either
		ops := make([]txlog.Op, keys/20)
		for i := range ops {
			ops[i] = random()
		}
		add(h.entry(ops...))
	}
	copied := func() string {
		closed(t, s)
		file := copyOf(t, dir)
		s = open(t, dir, Options{})
		return file
	}
	w.before = copied()
	for range w.touched {
		add(h.entry(random()))
	}
	w.at = copied()
	file := filepath.Join(t.TempDir(), "snapshot.mdb")
	w.want, _ = minted(t, s, file)
	if w.snapshot, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	for range w.touched {
		add(h.entry(random()))
	}
	w.after = copied()
	return w
}

// kinds returns the pages in use of an environment file, by what their header says.
func kinds(t *testing.T, data []byte) (leaves, branches, overflows []int) {
	t.Helper()
	for n := 2; n < len(data)/mdbfile.PageSize; n++ {
		p := data[n*mdbfile.PageSize:]
		if binary.LittleEndian.Uint64(p) != uint64(n) {
			continue
		}
		switch binary.LittleEndian.Uint16(p[10:]) {
		case 1:
			branches = append(branches, n)
		case 2:
			leaves = append(leaves, n)
		case 4:
			overflows = append(overflows, n)
		}
	}
	return leaves, branches, overflows
}

// TestSalvage damages environments in every way: what comes out of them lacks little
// more of a snapshot than what was damaged.
func TestSalvage(t *testing.T) {
	w := newWreck(t, 20_000)
	r := seeded(t)
	pieces := len(w.snapshot)/testPiece + 1
	t.Logf("the snapshot has %d pieces, %d bytes", pieces, len(w.snapshot))
	pick := func(from []int, n int) (pages []int) {
		for _, i := range r.Perm(len(from))[:n] {
			pages = append(pages, from[i])
		}
		return pages
	}
	page := func(b []byte, n int) []byte { return b[n*mdbfile.PageSize:][:mdbfile.PageSize] }
	leaves := func(n int, harm func([]byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			all, _, _ := kinds(t, b)
			for _, p := range pick(all, n) {
				harm(page(b, p))
			}
			return b
		}
	}
	zero := func(p []byte) { clear(p) }
	garbage := func(p []byte) {
		for i := range p {
			p[i] = byte(r.Uint32())
		}
	}
	flip := func(p []byte) { p[r.IntN(len(p))] ^= 1 << r.IntN(8) }
	for _, c := range []struct {
		name string
		file string
		harm func([]byte) []byte
		most int // pieces that come from elsewhere
	}{
		{"nothing", w.at, func(b []byte) []byte { return b }, 0},
		{"one leaf", w.at, leaves(1, zero), 3},
		{"ten leaves", w.at, leaves(10, zero), 25},
		{"garbage in ten leaves", w.at, leaves(10, garbage), 25},
		{"a bit in each of ten leaves", w.at, leaves(10, flip), 25},
		{"swapped leaves", w.at, func(b []byte) []byte {
			all, _, _ := kinds(t, b)
			two := pick(all, 2)
			first := bytes.Clone(page(b, two[0]))
			copy(page(b, two[0]), page(b, two[1]))
			copy(page(b, two[1]), first)
			return b
		}, 6},
		{"a value in overflow pages", w.at, func(b []byte) []byte {
			_, _, big := kinds(t, b)
			clear(page(b, pick(big, 1)[0])[100:])
			return b
		}, 2},
		{"the older meta page", w.at, func(b []byte) []byte { clear(page(b, olderMeta(b))); return b }, 0},
		{"the newer meta page", w.at, func(b []byte) []byte { clear(page(b, 1-olderMeta(b))); return b }, 6},
		{"grown", w.at, func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) }, 0},
		{"from before", w.before, func(b []byte) []byte { return b }, 1},
		{"from before, and ten leaves", w.before, leaves(10, zero), 26},
		{"from after", w.after, func(b []byte) []byte { return b }, 2*w.touched + 1},
		{"cut short", w.at, func(b []byte) []byte { return b[:len(b)-5*mdbfile.PageSize-1] }, 20},
		{"half of it", w.at, func(b []byte) []byte { return b[:len(b)/2/4096*4096] }, pieces},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, err := os.ReadFile(c.file)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), dataFile)
			if err := os.WriteFile(file, c.harm(data), 0o644); err != nil {
				t.Fatal(err)
			}
			p := &published{data: w.snapshot, asked: map[int64]bool{}}
			var got bytes.Buffer
			s, err := Salvage(t.Context(), Salvaging{File: filepath.Dir(file), At: w.want.Pos, Want: w.want, Log: w.log, Published: p}, &got)
			n := p.toFetch(got.Bytes())
			t.Logf("%d of %d pieces come from elsewhere, %d of them were asked for: %+v, %v", n, pieces, len(p.asked), s, err)
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			if strings.Contains(c.name, "ten leaves") && len(p.asked) == 0 && n == 0 {
				t.Error("no page in use was damaged")
			}
			if n > c.most {
				t.Errorf("%d pieces come from elsewhere, want at most %d", n, c.most)
			}
			if c.most == 0 && !bytes.Equal(got.Bytes(), w.snapshot) {
				t.Error("it is not the snapshot")
			}
		})
	}
}

// olderMeta returns the meta page of the transaction before the last.
func olderMeta(b []byte) int {
	const at = 16 + 128 // of the transaction's id
	if binary.LittleEndian.Uint64(b[at:]) < binary.LittleEndian.Uint64(b[mdbfile.PageSize+at:]) {
		return 0
	}
	return 1
}

// TestSalvageAnything damages any pages in any way: whatever happens, it ends, and
// what is taken for the snapshot's is.
func TestSalvageAnything(t *testing.T) {
	w := newWreck(t, 3000)
	r := seeded(t)
	sound, err := os.ReadFile(w.at)
	if err != nil {
		t.Fatal(err)
	}
	pieces := len(w.snapshot)/testPiece + 1
	failed, whole := 0, 0
	for range 150 {
		b := bytes.Clone(sound)
		for range 1 + r.IntN(3) {
			harmAnywhere(r, b)
		}
		if r.IntN(4) == 0 {
			b = b[:r.IntN(len(b))]
		}
		file := filepath.Join(t.TempDir(), dataFile)
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		p := &published{data: w.snapshot, asked: map[int64]bool{}}
		var got bytes.Buffer
		if _, err := Salvage(t.Context(), Salvaging{File: file, At: w.want.Pos, Want: w.want, Log: w.log, Published: p}, &got); err != nil {
			failed++
		}
		if p.toFetch(got.Bytes()) == pieces {
			whole++
		}
	}
	t.Logf("of 150: %d could not be laid out, %d gave nothing", failed, whole)
	if failed > 75 {
		t.Errorf("%d of 150 could not be laid out", failed)
	}
}

func harmAnywhere(r *rand.Rand, b []byte) {
	n := r.IntN(len(b) / mdbfile.PageSize)
	p := b[n*mdbfile.PageSize:][:mdbfile.PageSize]
	switch r.IntN(4) {
	case 0:
		clear(p)
	case 1:
		p[r.IntN(len(p))] ^= 1 << r.IntN(8)
	case 2:
		for i := range 32 {
			p[i] = byte(r.Uint32()) // the header and some nodes
		}
	default:
		copy(p, b[r.IntN(len(b)/mdbfile.PageSize)*mdbfile.PageSize:][:mdbfile.PageSize])
	}
}

// TestSalvageRefuses has nothing to lay out.
func TestSalvageRefuses(t *testing.T) {
	w := newWreck(t, 400)
	base := Salvaging{File: w.at, At: w.want.Pos, Want: w.want, Log: w.log, Published: &published{data: w.snapshot, asked: map[int64]bool{}}}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	fails := errors.New("no room")
	for _, c := range []struct {
		name   string
		change func(*Salvaging)
		ctx    context.Context
		out    io.Writer
		want   error
	}{
		{"no file", func(s *Salvaging) { s.File = filepath.Join(t.TempDir(), "none") }, t.Context(), io.Discard, os.ErrNotExist},
		{"ended", func(*Salvaging) {}, cancelled, io.Discard, context.Canceled},
		{"out fails", func(*Salvaging) {}, t.Context(), failing{fails}, fails},
		{"another history", func(s *Salvaging) { s.File = w.before; s.Want.Pos.Hash[0] ^= 1 }, t.Context(), io.Discard, nil},
		{"beyond the log", func(s *Salvaging) { s.Want.Pos.Seq += 1000 }, t.Context(), io.Discard, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := base
			c.change(&s)
			if _, err := Salvage(c.ctx, s, c.out); err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("Salvage = %v, want %v", err, c.want)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
