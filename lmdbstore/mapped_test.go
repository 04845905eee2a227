package lmdbstore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestMappedFileCutShort reads behind the end that a file had when it was
// mapped, which is a SIGBUS for a program that does not expect it.
func TestMappedFileCutShort(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 4*4096/16)
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	m, err := mapFile(f, int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	got := make([]byte, 4096)
	for off := int64(0); off < int64(len(want)); off += 1000 {
		n, err := m.ReadAt(got, off)
		if rest := int64(len(want)) - off; rest < int64(len(got)) {
			if err != io.EOF || int64(n) != rest {
				t.Fatalf("at %d, %d before the end: %d bytes, %v", off, rest, n, err)
			}
		} else if err != nil {
			t.Fatalf("at %d: %v", off, err)
		}
		if !bytes.Equal(got[:n], want[off:off+int64(n)]) {
			t.Fatalf("at %d: other bytes", off)
		}
	}
	for _, off := range []int64{-1, int64(len(want))} {
		if n, err := m.ReadAt(got, off); n != 0 || err != io.EOF {
			t.Errorf("at %d: %d bytes, %v", off, n, err)
		}
	}
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadAt(got, 0); err != nil {
		t.Errorf("what is left: %v", err)
	}
	if n, err := m.ReadAt(got, 8192); n != 0 || !errors.Is(err, ErrDamaged) {
		t.Errorf("what was cut off: %d bytes, %v", n, err)
	}
}
