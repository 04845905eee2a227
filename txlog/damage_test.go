package txlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/faultfs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sample writes a log of several small segments and returns its entries.
func sample(t testing.TB, dir string, clean bool) []Entry {
	t.Helper()
	o := Options{SegmentBytes: minSegmentBytes}
	l := created(t, dir, o)
	appendN(t, l, 25, 600)
	appendN(t, l, 3, 20)
	entries := readTo(t, l, Pos{}, l.Head().Seq)
	if !clean {
		// As a killed process leaves it: without the mark that Close adds.
		st := l.snapshot()
		size := st.tail().size
		must(t, l.Close())
		must(t, os.Truncate(st.tail().path, size))
	}
	must(t, l.Close())
	return entries
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	return found
}

// copyLog copies a log with one file changed.
func copyLog(t testing.TB, dir string, file string, content []byte) string {
	t.Helper()
	to := t.TempDir()
	for _, name := range names(t, dir) {
		b, err := os.ReadFile(name)
		must(t, err)
		if name == file {
			b = content
		}
		must(t, os.WriteFile(filepath.Join(to, filepath.Base(name)), b, 0o600))
	}
	return to
}

// TestEveryFlippedByte flips each byte of a log. In a log that was closed every
// flip is a CorruptError: at Open in headers and in the tail, and at the latest
// when the entry is read. Only the mark at the very end counts as torn when it is
// hit, and costs nothing. In one whose process was killed, flips in the last
// batch may pass for a torn write, and cost just that batch.
func TestEveryFlippedByte(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed=%t", clean), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			want := sample(t, dir, clean)
			paths := names(t, dir)
			files := map[string][]byte{}
			for _, path := range paths {
				b, err := os.ReadFile(path)
				must(t, err)
				files[filepath.Base(path)] = b
			}
			if len(files) < 4 {
				t.Fatalf("only %d segments", len(files))
			}
			for i, path := range paths {
				name := filepath.Base(path)
				isTail := i == len(files)-1
				if !isTail && (i > 0 || !clean) {
					continue // as the first of the closed log
				}
				b := files[name]
				for off := range b {
					mayTear := isTail && (!clean || off >= len(b)-markSize)
					b[off] ^= 1 << (off % 8)
					checkDamaged(t, inMemory(t, files), want, mayTear, fmt.Sprintf("%s, byte %d", name, off))
					b[off] ^= 1 << (off % 8)
				}
			}
		})
	}
}

// inMemory returns a file system with a log of these segments.
func inMemory(t testing.TB, files map[string][]byte) *faultfs.FS {
	t.Helper()
	to := faultfs.New()
	must(t, to.MkdirAll("log", 0))
	for name, content := range files {
		f, err := to.OpenFile("log/"+name, os.O_RDWR|os.O_CREATE, 0)
		must(t, err)
		_, err = f.WriteAt(content, 0)
		must(t, err)
	}
	return to
}

func checkDamaged(t *testing.T, fs *faultfs.FS, want []Entry, mayTear bool, where string) {
	t.Helper()
	var corrupt *CorruptError
	rep, verifyErr := verify(fs, "log")
	if verifyErr != nil && !errors.As(verifyErr, &corrupt) {
		t.Fatalf("%s: Verify: %v", where, verifyErr)
	}
	last := want[len(want)-1].Seq
	if verifyErr == nil && (!mayTear || rep.TornTail == 0 || rep.Head.Seq < last-1 || rep.TornTail <= markSize && rep.Head.Seq < last) {
		t.Fatalf("%s: Verify noticed nothing: %+v", where, rep)
	}
	l, err := Open("log", Options{SegmentBytes: minSegmentBytes, FS: fs})
	if err != nil {
		if !errors.As(err, &corrupt) {
			t.Fatalf("%s: Open: %v", where, err)
		}
		return
	}
	defer l.Close()
	r, err := l.Reader(Pos{})
	must(t, err)
	defer r.Close()
	for seq := uint64(0); seq < l.Head().Seq; {
		entries, err := r.Next(t.Context(), 1<<20)
		if errors.As(err, &corrupt) {
			if corrupt.Seq != seq+1 {
				t.Fatalf("%s: after entry %d: %v", where, seq, err)
			}
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		for _, e := range entries {
			if !bytes.Equal(e.frame, want[seq].frame) {
				t.Fatalf("%s: entry %d is another", where, e.Seq)
			}
			seq = e.Seq
		}
	}
	if verifyErr != nil {
		t.Fatalf("%s: Verify said %v, but everything could be read", where, verifyErr)
	}
}

func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	want := sample(t, dir, false)
	files := names(t, dir)
	tail := files[len(files)-1]
	sound, err := os.ReadFile(tail)
	must(t, err)
	last := want[len(want)-1]
	lastFrame := len(last.frame) + markSize
	cases := map[string][]byte{
		"cut within the last frame":           sound[:len(sound)-10],
		"cut within the last mark":            sound[:len(sound)-lastFrame+5],
		"zeros follow":                        append(bytes.Clone(sound), make([]byte, 5000)...),
		"garbage follows":                     append(bytes.Clone(sound), bytes.Repeat([]byte{0xa5}, 700)...),
		"a copy of the last batch follows":    append(bytes.Clone(sound), sound[len(sound)-lastFrame:]...),
		"a length over the limit follows":     append(bytes.Clone(sound), 0xff, 0xff, 0xff, 0xff),
		"a frame of another chain follows":    append(bytes.Clone(sound), want[4].frame...),
		"the last batch has a sector of zero": append(bytes.Clone(sound[:len(sound)-lastFrame+30]), make([]byte, lastFrame-30)...),
	}
	for name, content := range cases {
		t.Run(name, func(t *testing.T) {
			work := copyLog(t, dir, tail, content)
			rep, err := Verify(work)
			must(t, err)
			if rep.TornTail == 0 {
				t.Fatal("Verify reports no torn tail")
			}
			l := open(t, work, Options{})
			if l.Head() != rep.Head || rep.Head.Seq < last.Seq-1 {
				t.Fatalf("head %v, Verify said %v", l.Head(), rep.Head)
			}
			appendN(t, l, 2, 10)
			must(t, l.Close())
			if rep, err := Verify(work); err != nil || rep.TornTail != 0 || rep.Head != l.Head() {
				t.Fatal(rep, err)
			}
		})
	}
}

// resum recomputes a header's checksum.
func resum(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[92:], crc32.Checksum(b[:92], castagnoli))
	return b
}

func TestRefusedFiles(t *testing.T) {
	dir := t.TempDir()
	want := sample(t, dir, true)
	files := names(t, dir)
	for name, c := range map[string]struct {
		file   int
		change func(b []byte) []byte
		newer  bool
		offset int64
		seq    uint64
	}{
		"newer version":            {file: 1, change: func(b []byte) []byte { b[8] = 2; return resum(b) }, newer: true},
		"version 0":                {file: 1, change: func(b []byte) []byte { b[8] = 0; return resum(b) }, seq: 8},
		"another dataset":          {file: 2, change: func(b []byte) []byte { b[12]++; return resum(b) }, seq: 14},
		"another first seq":        {file: 1, change: func(b []byte) []byte { b[36]++; return resum(b) }, seq: 8},
		"another previous hash":    {file: 1, change: func(b []byte) []byte { b[44]++; return resum(b) }, seq: 7, offset: -1},
		"empty file":               {file: 1, change: func(b []byte) []byte { return nil }, seq: 8},
		"part of a header":         {file: 4, change: func(b []byte) []byte { return b[:50] }, seq: 26},
		"garbage":                  {file: 0, change: func(b []byte) []byte { return bytes.Repeat([]byte("?"), 5000) }, seq: 1},
		"sealed segment cut short": {file: 0, change: func(b []byte) []byte { return b[:len(b)-1] }, seq: 7, offset: -1},
		"sealed segment grown":     {file: 0, change: func(b []byte) []byte { return append(b, 0) }, seq: 7, offset: -1},
		"sealed segment is header": {file: 0, change: func(b []byte) []byte { return b[:segmentHeader] }, seq: 1, offset: segmentHeader},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(files[c.file])
			must(t, err)
			b = c.change(b)
			work := copyLog(t, dir, files[c.file], b)
			if c.offset < 0 {
				c.offset = int64(len(b))
				if name == "another previous hash" {
					info, err := os.Stat(files[c.file-1])
					must(t, err)
					c.offset = info.Size()
				}
			}
			_, err = Open(work, Options{})
			var corrupt *CorruptError
			if c.newer {
				if !errors.Is(err, ErrNewerFormat) {
					t.Fatal(err)
				}
			} else if !errors.As(err, &corrupt) || corrupt.Seq != c.seq || corrupt.Offset != c.offset {
				t.Fatalf("got %v, want damage at offset %d, entry %d", err, c.offset, c.seq)
			}
			after, err := os.ReadFile(filepath.Join(work, filepath.Base(files[c.file])))
			if err != nil || !bytes.Equal(after, b) {
				t.Fatal("the refused file was changed", err)
			}
			if _, err := Verify(work); err == nil {
				t.Fatal("Verify noticed nothing")
			}
		})
	}
	t.Run("missing segment", func(t *testing.T) {
		work := copyLog(t, dir, "", nil)
		must(t, os.Remove(filepath.Join(work, filepath.Base(files[1]))))
		var corrupt *CorruptError
		if _, err := Open(work, Options{}); !errors.As(err, &corrupt) {
			t.Fatal(err)
		}
	})
	t.Run("what is no segment is left alone", func(t *testing.T) {
		work := copyLog(t, dir, "", nil)
		for _, name := range []string{"notes.txt", "1.log", "00000000000000000001.log.bak"} {
			must(t, os.WriteFile(filepath.Join(work, name), []byte("?"), 0o600))
		}
		stale := filepath.Join(work, segmentName(99)+stagedSuffix+".tmp")
		must(t, os.WriteFile(stale, []byte("?"), 0o600))
		if l := open(t, work, Options{}); l.Head() != want[len(want)-1].Pos() {
			t.Fatal(l.Head())
		}
		if n := len(names(t, work)); n != len(files)+3 {
			t.Fatalf("%d files are left", n)
		}
	})
}

// goldenEntries are what testdata/golden holds.
func goldenEntries(t testing.TB) []Entry {
	t.Helper()
	id := DatasetID{0: 0x51, 15: 0x53}
	txs := [][]Op{
		{{Kind: Init, Value: id[:]}},
		{{Kind: Put, Key: []byte("k"), Value: []byte("v")}},
		{{Kind: Put, Key: []byte("empty")}, {Kind: Delete, Key: []byte("k")}},
		{{Kind: Put, Key: bytes.Repeat([]byte{0xff}, MaxKey), Value: []byte("MARK")}},
	}
	var entries []Entry
	var at Pos
	for i, ops := range txs {
		e, err := Seal(at, 1, time.Unix(1_700_000_000, int64(i)), ops)
		must(t, err)
		entries, at = append(entries, e), e.Pos()
	}
	return entries
}

// TestGolden reads a log that an earlier build wrote, and makes its bytes again.
func TestGolden(t *testing.T) {
	want := goldenEntries(t)
	id := DatasetID(want[0].Ops[0].Value)
	h := header{dataset: id, generation: 3, first: 1, salt: salt{1, 2, 3, 4, 5, 6, 7, 8}}
	first := h.encode()
	for _, e := range want[:2] {
		first = append(first, e.frame...)
	}
	first = appendMark(first, h.salt, int64(len(first)))
	h = header{dataset: id, generation: 3, first: 3, prev: want[1].Hash, prevNanos: frameNanos(want[1].frame), salt: salt{8, 7, 6, 5, 4, 3, 2, 1}}
	second := append(h.encode(), want[2].frame...)
	second = appendMark(second, h.salt, int64(len(second)))
	second = append(second, want[3].frame...)
	files := map[string][]byte{"00000000000000000001.log": first, "00000000000000000003.log": second}

	golden := filepath.Join("testdata", "golden")
	for name, content := range files {
		path := filepath.Join(golden, name)
		if *update {
			must(t, os.MkdirAll(golden, 0o755))
			must(t, os.WriteFile(path, content, 0o644))
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%s differs from what this build writes (%v)", path, err)
		}
	}
	rep, err := Verify(golden)
	must(t, err)
	if rep.Head.String() != goldenHead || rep.Entries != 4 || rep.Segments != 2 || rep.Dataset != id {
		t.Fatalf("%+v", rep)
	}
	l := open(t, copyLog(t, golden, "", nil), Options{})
	got := readTo(t, l, Pos{}, 4)
	if !slices.EqualFunc(got, want, func(a, b Entry) bool { return bytes.Equal(a.frame, b.frame) && a.Hash == b.Hash }) {
		t.Fatal("the entries differ")
	}
	if !l.HeadTime().Equal(time.Unix(1_700_000_000, 3)) {
		t.Fatal(l.HeadTime())
	}
}

const goldenHead = "4/0eacd6997d35d2b690dfc1e50ca19ab334bad5bfe0234d7cc56c35109b02899c"
