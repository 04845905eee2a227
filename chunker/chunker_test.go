package chunker

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/anacrolix/torrent/metainfo"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// content returns n bytes that follow from n.
func content(n int64) []byte {
	b := make([]byte, n)
	seed := [32]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
	rand.NewChaCha8(seed).Read(b)
	return b
}

func hashed(t testing.TB, name string, data []byte, write int) (*Torrent, [32]byte) {
	t.Helper()
	h, err := NewHasher(name, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Abort()
	scratch := make([]byte, write)
	for rest := data; len(rest) > 0; {
		n := copy(scratch, rest)
		if _, err := h.Write(scratch[:n]); err != nil {
			t.Fatal(err)
		}
		clear(scratch) // the hasher must have copied
		rest = rest[n:]
	}
	tor, sum, err := h.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return tor, sum
}

func TestPieceLength(t *testing.T) {
	const KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
	for _, c := range []struct{ size, want int64 }{
		{1, 64 * KiB},
		{64 * MiB, 64 * KiB},
		{64*MiB + 1, 128 * KiB},
		{256 * MiB, 256 * KiB},
		{256*MiB + 1, 512 * KiB},
		{GiB, MiB},
		{8 * GiB, 8 * MiB},
		{8*GiB + 1, 8 * MiB},
		{MaxSize, 8 * MiB},
	} {
		if got := PieceLength(c.size); got != c.want {
			t.Errorf("PieceLength(%d) = %d, want %d", c.size, got, c.want)
		}
	}
}

func TestHasher(t *testing.T) {
	for _, size := range []int64{1, 100, minPieceLength - 1, minPieceLength, minPieceLength + 1, hashBuffer, hashBuffer + 1,
		hashBuffer*hashBuffers + 12345, 3*hashBuffer*hashBuffers + 1} {
		for _, write := range []int{7919, 4096, 1 << 20} {
			t.Run(fmt.Sprintf("size=%d/write=%d", size, write), func(t *testing.T) {
				data := content(size)
				tor, sum := hashed(t, "file.mdb", data, write)
				if sum != sha256.Sum256(data) {
					t.Error("SHA-256 differs from that of the whole")
				}
				if tor.Size() != size || tor.Name() != "file.mdb" || tor.PieceLength() != PieceLength(size) {
					t.Errorf("got size %d, name %q, piece length %d", tor.Size(), tor.Name(), tor.PieceLength())
				}
				var off int64
				for i := range tor.Pieces() {
					n := tor.PieceSize(i)
					if tor.PieceSHA1(i) != sha1.Sum(data[off:off+n]) || tor.PieceSHA256(i) != sha256.Sum256(data[off:off+n]) {
						t.Errorf("piece %d has other hashes", i)
					}
					off += n
				}
				if off != size {
					t.Errorf("pieces cover %d bytes, want %d", off, size)
				}
				again, err := Parse(tor.Metainfo())
				if err != nil {
					t.Fatal(err)
				}
				if again.InfoHash() != tor.InfoHash() || again.PieceRoot() != tor.PieceRoot() {
					t.Error("infohash or piece root changed in a round trip")
				}
			})
		}
	}
}

func TestHasherRefuses(t *testing.T) {
	for _, c := range []struct {
		what, name string
		size       int64
		want       string
	}{
		{"an empty file", "f", 0, "out of bounds"},
		{"a negative size", "f", -1, "out of bounds"},
		{"too long a file", "f", MaxSize + 1, "out of bounds"},
		{"no name", "", 1, "0 bytes long"},
		{"a long name", strings.Repeat("n", MaxName+1), 1, "256 bytes long"},
		{"a path", "a/b", 1, "one path element"},
		{"a Windows path", `a\b`, 1, "one path element"},
		{"the parent directory", "..", 1, "one path element"},
		{"broken UTF-8", "a\xff", 1, "UTF-8"},
		{"a newline", "a\nb", 1, "control"},
	} {
		t.Run(c.what, func(t *testing.T) {
			if _, err := NewHasher(c.name, c.size); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}

	t.Run("more than announced", func(t *testing.T) {
		h, err := NewHasher("f", 10)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Abort()
		if n, err := h.Write(make([]byte, 11)); n != 0 || err == nil {
			t.Errorf("Write took %d bytes, error %v", n, err)
		}
	})
	t.Run("fewer than announced", func(t *testing.T) {
		h, err := NewHasher("f", 10)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(make([]byte, 9))
		if _, _, err := h.Finish(); err == nil || !strings.Contains(err.Error(), "9 bytes written of the 10") {
			t.Errorf("got error %v", err)
		}
		h.Abort()
		h.Abort()
	})
	t.Run("use after the end", func(t *testing.T) {
		h, err := NewHasher("f", 10)
		if err != nil {
			t.Fatal(err)
		}
		h.Abort()
		if _, err := h.Write([]byte{1}); err == nil {
			t.Error("Write after Abort succeeded")
		}
		if _, _, err := h.Finish(); err == nil {
			t.Error("Finish after Abort succeeded")
		}
	})
}

func TestWriteDoesNotAllocate(t *testing.T) {
	const size = 64 << 20
	h, err := NewHasher("f", size)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Abort()
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(1000, func() { h.Write(p) }); n != 0 {
		t.Errorf("a write allocates %v times", n)
	}
}

// TestGolden pins the format: these bytes must never change, because the
// infohash is over them.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "golden.torrent")
	tor, _ := hashed(t, "snapshot-00000000000000000042-0123456789abcdef.mdb", content(200_000), 4096)
	if *update {
		if err := os.WriteFile(path, tor.Metainfo(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(tor.Metainfo(), golden) {
		t.Errorf("metainfo is\n%q, want\n%q", tor.Metainfo(), golden)
	}
	if got, want := tor.InfoHash().String(), goldenInfoHash; got != want {
		t.Errorf("infohash %s, want %s", got, want)
	}
	parsed, err := Parse(golden)
	if err != nil {
		t.Fatal(err)
	}
	root := tor.PieceRoot()
	if got, want := hex.EncodeToString(root[:]), goldenPieceRoot; got != want {
		t.Errorf("piece root %s, want %s", got, want)
	}
	if parsed.InfoHash() != tor.InfoHash() || parsed.PieceRoot() != root || parsed.Size() != 200_000 || parsed.Pieces() != 4 || parsed.PieceSize(3) != 200_000-3*minPieceLength {
		t.Errorf("parsed to %+v", parsed)
	}
}

const (
	goldenInfoHash  = "dfec7b86b64bed3843914c5e10cdcfe2bdc602d4"
	goldenPieceRoot = "241925ce5c2ea2cc1f392bd72b70407dc8e0c527646038ec9887df7a5e6fef3d"
)

// TestOthersAgree reads the metainfo with another implementation.
func TestOthersAgree(t *testing.T) {
	tor, _ := hashed(t, "f.mdb", content(1_000_000), 65536)
	mi, err := metainfo.Load(bytes.NewReader(tor.Metainfo()))
	if err != nil {
		t.Fatal(err)
	}
	if got := mi.HashInfoBytes(); InfoHash(got) != tor.InfoHash() {
		t.Errorf("infohash %s, want %s", got, tor.InfoHash())
	}
	info, err := mi.UnmarshalInfo()
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != "f.mdb" || info.TotalLength() != 1_000_000 || info.NumPieces() != tor.Pieces() || info.PieceLength != tor.PieceLength() {
		t.Errorf("read as %+v", info)
	}
}

func TestParseRefuses(t *testing.T) {
	h := strings.Repeat("h", 20)
	list := "15:qs-piece-sha25632:" + strings.Repeat("H", 32)
	info := "d4:infod6:lengthi1e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "e"
	if _, err := Parse([]byte(info + list + "e")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, in, want string }{
		{"nothing", "", `want "d"`},
		{"other bytes", "hello", `want "d"`},
		{"too much", strings.Repeat("x", MaxMetainfo+1), "at most 16777216"},
		{"a tracker", "d8:announce3:url4:infode", "names a tracker"},
		{"several files", "d4:infod5:filesle4:name1:f12:piece lengthi65536e6:pieces20:" + h + "ee", "several files"},
		{"v2", "d4:infod9:file treede12:meta versioni2e4:name1:f12:piece lengthi65536eee", "v2 or hybrid"},
		{"a hybrid", "d4:infod6:lengthi1e12:meta versioni2e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "ee", "v2 or hybrid"},
		{"a private flag", "d4:infod6:lengthi1e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "7:privatei1eee", `want "e"`},
		{"a size of 0", "d4:infod6:lengthi0e4:name1:f12:piece lengthi65536e6:pieces0:e" + list + "e", "out of bounds"},
		{"a negative size", "d4:infod6:lengthi-1e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "e" + list + "e", "out of bounds"},
		{"a huge size", "d4:infod6:lengthi9223372036854775807e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "e" + list + "e", "out of bounds"},
		{"a size over 64 bits", "d4:infod6:lengthi9223372036854775808e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "ee", "value out of range"},
		{"an endless number", "d4:infod6:lengthi" + strings.Repeat("1", 99), "want a number"},
		{"no number", "d4:infod6:lengthixe", "invalid syntax"},
		{"a leading zero", "d4:infod6:lengthi01e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "e" + list + "e", "not canonical"},
		{"a signed number", "d4:infod6:lengthi+1e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "e" + list + "e", "not canonical"},
		{"a traversal", "d4:infod6:lengthi1e4:name4:../f12:piece lengthi65536e6:pieces20:" + h + "e" + list + "e", "one path element"},
		{"another piece length", "d4:infod6:lengthi1e4:name1:f12:piece lengthi16384e6:pieces20:" + h + "e" + list + "e", "piece length is 16384 bytes: want 65536"},
		{"too few hashes", "d4:infod6:lengthi65537e4:name1:f12:piece lengthi65536e6:pieces20:" + h + "e" + list + "e", "20 bytes of SHA-1s: want 40 for 2 pieces"},
		{"too many hashes", "d4:infod6:lengthi1e4:name1:f12:piece lengthi65536e6:pieces40:" + h + h + "e" + list + "e", "40 bytes of SHA-1s: want 20 for 1 pieces"},
		{"a string past the end", "d4:infod6:lengthi1e4:name2000000000:f", "only 1 are left"},
		{"a string of 2^63 bytes", "d4:infod6:lengthi1e4:name9223372036854775808:f", "value out of range"},
		{"cut short", "d4:infod6:lengthi1e4:name1:f12:piece lengthi65536e6:pieces20:" + h, `want "e"`},
		{"bytes after the end", info + list + "ex", "1 bytes after the end"},
		{"no SHA-256s", info + "e", `no "qs-piece-sha256": without the SHA-256 of each piece`},
		{"cut before the SHA-256s", info, "want a number"},
		{"another key there", info + "8:url-list3:urle", `want key "qs-piece-sha256", got "url-list"`},
		{"BEP 52's layers there", info + "12:piece layersdee", `want key "qs-piece-sha256", got "piece layers"`},
		{"SHA-256s inside the info", info[:len(info)-1] + list + "ee", `want "e"`},
		{"too few SHA-256s", info + "15:qs-piece-sha2560:e", "0 bytes of SHA-256s: want 32 for 1 pieces"},
		{"too many SHA-256s", info + "15:qs-piece-sha25664:" + strings.Repeat("H", 64) + "e", "64 bytes of SHA-256s: want 32 for 1 pieces"},
		{"SHA-256s cut short", info + list[:len(list)-1], "only 31 are left"},
		{"SHA-256s without an end", info + list, `want "e"`},
		{"keys out of order", "d4:infod4:name1:f6:lengthi1e12:piece lengthi65536e6:pieces20:" + h + "ee", `want key "length", got "name"`},
	} {
		t.Run(c.what, func(t *testing.T) {
			if _, err := Parse([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	tor, _ := hashed(f, "f.mdb", content(200_000), 4096)
	f.Add(tor.Metainfo())
	f.Add([]byte("d4:infod6:lengthi1e4:name1:f12:piece lengthi65536e6:pieces20:hhhhhhhhhhhhhhhhhhhhee"))
	f.Add([]byte("d4:infod6:lengthi01e4:name1:f12:piece lengthi65536e6:pieces20:hhhhhhhhhhhhhhhhhhhhee"))
	f.Add([]byte("d4:infod5:files"))
	f.Add([]byte("d4:infod6:lengthi1e4:name1:f12:piece lengthi65536e6:pieces20:hhhhhhhhhhhhhhhhhhhhe15:qs-piece-sha25632:HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHHe"))
	f.Fuzz(func(t *testing.T, in []byte) {
		tor, err := Parse(in)
		if err != nil {
			return
		}
		if !bytes.Equal(tor.Metainfo(), in) {
			t.Fatalf("%q parsed, but encodes to %q", in, tor.Metainfo())
		}
		var sum int64
		for i := range tor.Pieces() {
			sum += tor.PieceSize(i)
		}
		if sum != tor.Size() {
			t.Fatalf("%q: pieces cover %d bytes of %d", in, sum, tor.Size())
		}
	})
}

func TestCheck(t *testing.T) {
	const size = 10*minPieceLength + 100
	data := content(size)
	tor, _ := hashed(t, "f", data, 1<<20)
	damaged := func(change func([]byte) []byte) []byte { return change(bytes.Clone(data)) }
	for _, c := range []struct {
		what string
		data []byte
		bad  []int
	}{
		{"sound", data, nil},
		{"longer", append(bytes.Clone(data), 1, 2, 3), nil},
		{"one bit", damaged(func(b []byte) []byte { b[3*minPieceLength] ^= 1; return b }), []int{3}},
		{"last byte", damaged(func(b []byte) []byte { b[size-1] ^= 0x80; return b }), []int{10}},
		{"cut short", data[:8*minPieceLength+5], []int{8, 9, 10}},
		{"empty", nil, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
	} {
		t.Run(c.what, func(t *testing.T) {
			var last int64
			good, err := tor.Check(t.Context(), bytes.NewReader(c.data), func(done int64) {
				if done <= last {
					t.Errorf("progress went from %d to %d", last, done)
				}
				last = done
			})
			if err != nil {
				t.Fatal(err)
			}
			var bad []int
			for i, ok := range good {
				if !ok {
					bad = append(bad, i)
				}
			}
			if fmt.Sprint(bad) != fmt.Sprint(c.bad) || len(good) != 11 {
				t.Errorf("bad pieces %v of %d, want %v of 11", bad, len(good), c.bad)
			}
			if last != size {
				t.Errorf("progress ended at %d, want %d", last, size)
			}
		})
	}

	t.Run("read error", func(t *testing.T) {
		broken := errors.New("input/output error")
		_, err := tor.Check(t.Context(), failingReader{broken}, nil)
		if !errors.Is(err, broken) {
			t.Errorf("got error %v, want %v", err, broken)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := tor.Check(ctx, bytes.NewReader(data), func(int64) { cancel() })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got error %v, want %v", err, context.Canceled)
		}
	})
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

func TestParseInfoHash(t *testing.T) {
	h := InfoHash{1, 2, 0xff}
	got, err := ParseInfoHash(h.String())
	if err != nil || got != h || h.IsZero() || !(InfoHash{}).IsZero() {
		t.Errorf("got %v, error %v", got, err)
	}
	for _, bad := range []string{"", "00", strings.Repeat("g", 40)} {
		if _, err := ParseInfoHash(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
}

// BenchmarkHasher compares hashing beside the writer with each hash alone, in
// one run.
func BenchmarkHasher(b *testing.B) {
	const size = 64 << 20
	data := content(size)
	b.Run("hasher", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			hashed(b, "f", data, 64<<10)
		}
	})
	b.Run("sha1", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			sha1.Sum(data)
		}
	})
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			sha256.Sum256(data)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	const size = 64 << 20
	data := content(size)
	tor, _ := hashed(b, "f", data, 1<<20)
	b.SetBytes(size)
	for b.Loop() {
		if _, err := tor.Check(b.Context(), io.NewSectionReader(bytes.NewReader(data), 0, size), nil); err != nil {
			b.Fatal(err)
		}
	}
}
