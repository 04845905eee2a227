package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
)

// refill stands for a fetch: it writes those pieces of the partial file that are bad,
// and returns how many.
func refill(t *testing.T, r *Repo, m *Manifest, torrent *chunker.Torrent, data []byte) (pieces int) {
	t.Helper()
	f, err := os.OpenFile(r.Partial(m), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	good, err := torrent.Check(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, ok := range good {
		if ok {
			continue
		}
		pieces++
		at := int64(i) * torrent.PieceLength()
		if _, err := f.WriteAt(data[at:at+torrent.PieceSize(i)], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	return pieces
}

// edit changes a file's content.
func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMend damages a snapshot's file in every way and mends it: a scrub finds just
// what is bad, and nothing else has to come again.
func TestMend(t *testing.T) {
	const piece = 64 << 10
	s := storeAt(10, 20*piece+4096)
	flip := func(offsets ...int) func([]byte) []byte {
		return func(b []byte) []byte {
			for _, at := range offsets {
				b[at] ^= 0x10
			}
			return b
		}
	}
	for _, c := range []struct {
		name   string
		damage func([]byte) []byte
		bad    []int
	}{
		{"one bit", flip(5*piece + 7), []int{5}},
		{"bits all over", flip(0, 3*piece, 4*piece-1, 20*piece+4095), []int{0, 3, 20}},
		{"zeroed page", func(b []byte) []byte { clear(b[7*piece+4096 : 7*piece+8192]); return b }, []int{7}},
		{"swapped pages of one piece", func(b []byte) []byte {
			page := bytes.Clone(b[piece : piece+4096])
			copy(b[piece:], b[piece+4096:piece+8192])
			copy(b[piece+4096:], page)
			return b
		}, []int{1}},
		{"swapped pieces", func(b []byte) []byte {
			first := bytes.Clone(b[2*piece : 3*piece])
			copy(b[2*piece:], b[9*piece:10*piece])
			copy(b[9*piece:], first)
			return b
		}, []int{2, 9}},
		{"cut short in a page", func(b []byte) []byte { return b[:18*piece+100] }, []int{18, 19, 20}},
		{"cut short between pieces", func(b []byte) []byte { return b[:19*piece] }, []int{19, 20}},
		{"empty", func([]byte) []byte { return nil }, allOf(21)},
		{"grown", func(b []byte) []byte { return append(b, "and more"...) }, nil},
		{"grown, and a bit", func(b []byte) []byte { return append(flip(0)(b), make([]byte, 2*piece)...) }, []int{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, dir, Options{})
			snap := mint(t, r, s)
			if err := snap.Scrub(t.Context(), NewScrubLimit(100<<20)); err != nil {
				t.Fatalf("a sound snapshot: %v", err)
			}
			edit(t, snap.Path, c.damage)
			err := snap.Scrub(t.Context(), nil)
			altered, ok := errors.AsType[*AlteredError](err)
			if !ok || !slices.Equal(altered.Bad, c.bad) {
				t.Fatalf("Scrub = %v, want bad pieces %v", err, c.bad)
			}
			if verified, ok := errors.AsType[*AlteredError](snap.Verify(t.Context())); !ok || !slices.Equal(verified.Bad, c.bad) {
				t.Errorf("Verify = %v, want bad pieces %v", verified, c.bad)
			}
			b, err := r.Break(s.state.Pos, altered)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.List()) != 0 || len(r.Broken()) != 1 || b.Torrent == nil || b.Manifest == nil {
				t.Errorf("broken: %+v, listed: %v", b, r.List())
			}
			if kept := evidence(t, dir); kept > min(len(c.bad), maxBadKept) || c.name == "one bit" && kept == 0 {
				t.Errorf("%d pieces were kept as evidence", kept)
			}
			if c.name != "empty" {
				r.Close() // and the process goes on as another
				r = open(t, dir, Options{})
				if len(r.List()) != 0 || len(r.Broken()) != 1 {
					t.Fatalf("reopened: listed %v, broken %v", r.List(), r.Broken())
				}
				b = r.Broken()[0]
			}
			if n := refill(t, r, b.Manifest, b.Torrent, s.data); n != len(c.bad) {
				t.Errorf("%d pieces had to come again, of %d bad ones", n, len(c.bad))
			}
			again, err := r.Adopt(t.Context(), b.Note, b.Torrent)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Scrub(t.Context(), nil); err != nil || len(r.List()) != 1 || len(r.Broken()) != 0 {
				t.Errorf("mended: %v, listed %v, broken %v", err, r.List(), r.Broken())
			}
		})
	}
}

func evidence(t *testing.T, dir string) (n int) {
	for _, f := range files(t, dir) {
		if strings.Contains(f, ".piece-") {
			n++
		}
	}
	return n
}

// TestOpenDamaged opens directories in which one file of a snapshot is damaged: what
// is sound is kept, what is damaged is set aside, and both are enough to mend it.
func TestOpenDamaged(t *testing.T) {
	s := storeAt(10, 200<<10)
	name := Name(s.state.Pos)
	write := func(ext, text string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name+ext), []byte(text), 0o644) }
	}
	remove := func(ext string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name+ext)) }
	}
	for title, c := range map[string]struct {
		spoil func(dir string) error
		want  string
		left  []string // extensions
		knows func(*Broken) bool
		again int // pieces that have to come again
	}{
		"file grown": {func(dir string) error { return os.Truncate(filepath.Join(dir, name+".mdb"), 300<<10) }, "307200 bytes long",
			[]string{".manifest", ".part", ".torrent"}, func(b *Broken) bool { return b.Torrent != nil }, 0},
		"file cut short": {func(dir string) error { return os.Truncate(filepath.Join(dir, name+".mdb"), 150<<10) }, "153600 bytes long",
			[]string{".manifest", ".part", ".torrent"}, func(b *Broken) bool { return b.Torrent != nil }, 2},
		"file missing": {remove(".mdb"), ".mdb is missing",
			[]string{".manifest", ".torrent"}, func(b *Broken) bool { return b.Torrent != nil }, 4},
		"torrent missing": {remove(".torrent"), ".torrent is missing",
			[]string{".manifest", ".part"}, func(b *Broken) bool { return b.Manifest != nil && b.Torrent == nil }, 0},
		"torrent garbage": {write(".torrent", "d4:infoe"), "torrent",
			[]string{".manifest", ".part", ".torrent.damaged"}, func(b *Broken) bool { return b.Manifest != nil && b.Torrent == nil }, 0},
		"manifest garbage": {write(".manifest", "x"), "begins with",
			[]string{".manifest.damaged", ".part", ".torrent.damaged"}, func(b *Broken) bool { return b.Manifest == nil }, 0},
		"manifest of another": {func(dir string) error {
			return write(".manifest", string(exampleManifest().Encode()))(dir)
		}, "its manifest is of", []string{".manifest.damaged", ".part", ".torrent.damaged"}, func(b *Broken) bool { return b.Manifest == nil }, 0},
		"manifest too long": {write(".manifest", strings.Repeat("x", MaxManifest+1)), "at most",
			[]string{".manifest.damaged", ".part", ".torrent.damaged"}, func(b *Broken) bool { return b.Manifest == nil }, 0},
	} {
		t.Run(title, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, dir, Options{})
			snap := mint(t, r, s)
			r.Close()
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			before := files(t, dir)
			sound, damaged, err := Find(dir)
			if err != nil || len(sound) != 0 || len(damaged) != 1 || !strings.Contains(damaged[0].Error(), c.want) {
				t.Errorf("Find = %v, %v, %v", sound, damaged, err)
			}
			if after := files(t, dir); !slices.Equal(before, after) {
				t.Errorf("Find changed %q to %q", before, after)
			}
			r = open(t, dir, Options{})
			var want []string
			for _, ext := range c.left {
				want = append(want, name+ext)
			}
			wantFiles(t, dir, want...)
			broken := r.Broken()
			if len(r.List()) != 0 || len(broken) != 1 || broken[0].Name != name || broken[0].Seq != 10 || !c.knows(broken[0]) {
				t.Fatalf("listed %v, broken %v", r.List(), broken)
			}
			if b := broken[0]; b.Manifest != nil && b.Torrent == nil {
				if _, err := r.Redescribe(t.Context(), b); err != nil {
					t.Fatal(err)
				}
			} else {
				if n := refill(t, r, &snap.Manifest, snap.Torrent, s.data); n != c.again {
					t.Errorf("%d pieces had to come again, want %d", n, c.again)
				}
				if _, err := r.Adopt(t.Context(), snap.Note, snap.Torrent); err != nil {
					t.Fatal(err)
				}
			}
			if len(r.List()) != 1 || len(r.Broken()) != 0 {
				t.Fatalf("mended: listed %v, broken %v", r.List(), r.Broken())
			}
			r.Close()
			r = open(t, dir, Options{})
			if len(r.List()) != 1 || r.List()[0].Verify(t.Context()) != nil {
				t.Error("what was mended is not sound after a restart")
			}
		})
	}
}

// TestRedescribeGrown: a file that is longer than its snapshot holds all of it.
func TestRedescribeGrown(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, Options{})
	snap := mint(t, r, storeAt(10, 200<<10))
	r.Close()
	edit(t, snap.Path, func(b []byte) []byte { return append(b, "more"...) })
	r = open(t, dir, Options{})
	broken := r.Broken()
	if len(r.List()) != 0 || len(broken) != 1 || broken[0].Manifest == nil {
		t.Fatalf("listed %v, broken %v", r.List(), broken)
	}
	got, err := r.Redescribe(t.Context(), broken[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(t.Context()); err != nil || len(r.List()) != 1 || len(r.Broken()) != 0 {
		t.Errorf("%v; listed %v, broken %v", err, r.List(), r.Broken())
	}
}

// TestRedescribeRefuses does not take a damaged file for what a manifest describes.
func TestRedescribeRefuses(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, Options{})
	snap := mint(t, r, storeAt(10, 200<<10))
	r.Close()
	edit(t, snap.Path, func(b []byte) []byte { b[100] ^= 1; return b })
	if err := os.Remove(strings.TrimSuffix(snap.Path, dataExt) + torrentExt); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir, Options{})
	if _, err := r.Redescribe(t.Context(), r.Broken()[0]); err == nil || !strings.Contains(err.Error(), "infohash") {
		t.Errorf("Redescribe = %v", err)
	}
	if len(r.List()) != 0 || len(r.Broken()) != 1 {
		t.Error("it is listed")
	}
}

// TestMintOverBroken mints a broken snapshot anew.
func TestMintOverBroken(t *testing.T) {
	dir := t.TempDir()
	s := storeAt(10, 200<<10)
	r := open(t, dir, Options{})
	snap := mint(t, r, s)
	edit(t, snap.Path, func(b []byte) []byte { b[100] ^= 1; return b })
	altered, _ := errors.AsType[*AlteredError](snap.Scrub(t.Context(), nil))
	b, err := r.Break(s.state.Pos, altered)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Confirm(t.Context(), s, b.Note); err != nil {
		t.Fatal(err)
	}
	if len(r.List()) != 1 || len(r.Broken()) != 0 {
		t.Errorf("listed %v, broken %v", r.List(), r.Broken())
	}
	if err := r.Discard(b); err != nil || len(r.List()) != 1 {
		t.Errorf("discarding what is whole again: %v", err)
	}
}

// TestEvidenceIsBounded damages one snapshot after the other: what is set aside does
// not fill the disk.
func TestEvidenceIsBounded(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, Options{})
	for seq := range uint64(5) {
		s := storeAt(10+seq, 20*(64<<10))
		snap := mint(t, r, s)
		edit(t, snap.Path, func(b []byte) []byte { clear(b); return b })
		altered, _ := errors.AsType[*AlteredError](snap.Scrub(t.Context(), nil))
		b, err := r.Break(s.state.Pos, altered)
		if err != nil {
			t.Fatal(err)
		}
		if n := evidence(t, dir); n < maxBadKept || n > maxAside*maxBadKept {
			t.Errorf("%d pieces are kept", n)
		}
		if err := r.Discard(b); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files(t, dir) {
		if !strings.HasSuffix(f, damagedExt) || !strings.HasPrefix(f, namePrefix+fmt.Sprintf("%020d", 13)) && !strings.HasPrefix(f, namePrefix+fmt.Sprintf("%020d", 14)) {
			t.Errorf("%s is left", f)
		}
	}
}

// TestMendEveryStepFails fails each change of the directory on the way from a damaged
// snapshot to a whole one, and starts again: it is never listed while it is damaged,
// and can be mended in the end.
func TestMendEveryStepFails(t *testing.T) {
	s := storeAt(10, 200<<10)
	for _, file := range []string{dataExt, torrentExt, manifestExt} {
		for _, after := range []bool{false, true} {
			for n := 1; ; n++ {
				where := fmt.Sprintf("%s, step %d, after %t", file, n, after)
				dir := t.TempDir()
				fsys := &faulty{FS: durable.OS, after: after}
				r := open(t, dir, Options{FS: fsys})
				snap := mint(t, r, s)
				edit(t, filepath.Join(dir, Name(s.state.Pos)+file), func(b []byte) []byte { b[len(b)/2] ^= 1; b[1] ^= 1; return b })
				fsys.change, fsys.n = 0, n
				err := func() error {
					if file != dataExt {
						r.Close()
						var err error
						if r, err = Open(dir, Options{FS: fsys}); err != nil {
							return err
						}
					} else {
						altered, _ := errors.AsType[*AlteredError](snap.Scrub(t.Context(), nil))
						if _, err := r.Break(s.state.Pos, altered); err != nil {
							return err
						}
					}
					refill(t, r, &snap.Manifest, snap.Torrent, s.data)
					_, err := r.Adopt(t.Context(), snap.Note, snap.Torrent)
					return err
				}()
				reached := fsys.change >= n
				if r != nil {
					r.Close()
				}
				if !reached {
					if err != nil || n < 5 {
						t.Errorf("%s: %v, the last of the steps", where, err)
					}
					break
				}
				again := open(t, dir, Options{})
				for _, found := range again.List() {
					if err := found.Verify(t.Context()); err != nil && file != dataExt {
						t.Errorf("%s: listed after reopening: %v", where, err)
					} else if altered, ok := errors.AsType[*AlteredError](err); ok {
						if _, err := again.Break(s.state.Pos, altered); err != nil {
							t.Errorf("%s: %v", where, err)
						}
					}
				}
				if got := refill(t, again, &snap.Manifest, snap.Torrent, s.data); len(again.List()) == 0 && got > 2 {
					t.Errorf("%s: %d pieces have to come again", where, got)
				}
				if _, err := again.Adopt(t.Context(), snap.Note, snap.Torrent); err != nil {
					t.Errorf("%s: cannot be mended: %v", where, err)
				}
				if len(again.List()) != 1 || again.List()[0].Verify(t.Context()) != nil {
					t.Errorf("%s: not whole in the end", where)
				}
				again.Close()
			}
		}
	}
}

// TestBreakManifestAgain lets each step of setting a manifest aside fail: the snapshot
// stays listed, and the next call does it.
func TestBreakManifestAgain(t *testing.T) {
	s, wrong := storeAt(10, 200<<10), errors.New("it says something else")
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			fsys := &faulty{FS: durable.OS, after: after}
			r := open(t, t.TempDir(), Options{FS: fsys})
			snap := mint(t, r, s)
			fsys.change, fsys.n = 0, n
			err := r.BreakManifest(s.state.Pos, wrong)
			if reached := fsys.change >= n; !reached {
				if err != nil || n < 6 {
					t.Errorf("%d steps: %v", n-1, err)
				}
				break
			}
			if !errors.Is(err, errFault) || len(r.List()) != 1 || len(r.Broken()) != 0 {
				t.Errorf("step %d, after %t: %v, listed %v, broken %v", n, after, err, r.List(), r.Broken())
			}
			if err := r.BreakManifest(s.state.Pos, wrong); err != nil || len(r.List()) != 0 || len(r.Broken()) != 1 {
				t.Errorf("step %d, after %t, again: %v, listed %v, broken %v", n, after, err, r.List(), r.Broken())
			}
			if got := refill(t, r, &snap.Manifest, snap.Torrent, s.data); got != 0 {
				t.Errorf("step %d, after %t: %d pieces have to come again", n, after, got)
			}
		}
	}
}

// openFails lets files not be opened for writing.
type openFails struct {
	durable.FS
	err error
}

func (f *openFails) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if f.err != nil && flag&os.O_RDWR != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: f.err}
	}
	return f.FS.OpenFile(name, flag, perm)
}

// TestOpenFails runs out of file descriptors while a snapshot is read, and while it is
// made ready to be mended: neither says that its file is bad, and the file stays.
func TestOpenFails(t *testing.T) {
	dir, fsys, s := t.TempDir(), &openFails{FS: durable.OS}, storeAt(10, 200<<10)
	r := open(t, dir, Options{FS: fsys})
	snap := mint(t, r, s)
	for name, read := range map[string]func() error{
		"Scrub":  func() error { return snap.Scrub(t.Context(), nil) },
		"Verify": func() error { return snap.Verify(t.Context()) },
	} {
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		none := limit
		none.Cur = 0
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
			t.Fatal(err)
		}
		err := read()
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		if _, altered := errors.AsType[*AlteredError](err); altered || !errors.Is(err, syscall.EMFILE) {
			t.Errorf("%s = %v", name, err)
		}
	}
	unopened := &AlteredError{Bad: allOf(4), Pieces: 4, PieceLength: 64 << 10, Size: -1, Err: syscall.EMFILE}
	if _, err := r.Break(s.state.Pos, unopened); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Break of a file that was not read: %v", err)
	}
	if err := snap.Scrub(t.Context(), nil); err != nil || len(r.List()) != 1 {
		t.Fatalf("the file: %v, listed %v", err, r.List())
	}

	edit(t, snap.Path, func(b []byte) []byte { b[100] ^= 1; return b })
	before, _ := os.ReadFile(snap.Path)
	altered, _ := errors.AsType[*AlteredError](snap.Scrub(t.Context(), nil))
	fsys.err = syscall.EMFILE
	if _, err := r.Break(s.state.Pos, altered); !errors.Is(err, syscall.EMFILE) || len(r.List()) != 1 || len(r.Broken()) != 0 {
		t.Errorf("Break = %v, listed %v, broken %v", err, r.List(), r.Broken())
	}
	if after, err := os.ReadFile(snap.Path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed: %v", err)
	}
	fsys.err = nil
	if _, err := r.Break(s.state.Pos, altered); err != nil || len(r.Broken()) != 1 {
		t.Fatalf("Break again: %v", err)
	}
	if n := refill(t, r, &snap.Manifest, snap.Torrent, s.data); n != 1 {
		t.Errorf("%d pieces had to come again, 1 is bad", n)
	}
}

// TestRewriteSmall damages the small files under a running node.
func TestRewriteSmall(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, Options{})
	s := storeAt(10, 1000)
	snap := mint(t, r, s)
	if n, err := r.RewriteSmall(s.state.Pos); n != 0 || err != nil {
		t.Errorf("nothing is wrong: %d, %v", n, err)
	}
	base := filepath.Join(dir, Name(s.state.Pos))
	edit(t, base+torrentExt, func(b []byte) []byte { b[20] ^= 1; return b })
	if err := os.Remove(base + manifestExt); err != nil {
		t.Fatal(err)
	}
	if n, err := r.RewriteSmall(s.state.Pos); n != 2 || err != nil {
		t.Errorf("two are wrong: %d, %v", n, err)
	}
	r.Close()
	r = open(t, dir, Options{})
	if len(r.List()) != 1 || !bytes.Equal(r.List()[0].Note, snap.Note) {
		t.Error("it is not sound after a restart")
	}
}
