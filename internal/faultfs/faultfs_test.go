package faultfs_test

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/faultfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, f durable.FS, name string) string {
	t.Helper()
	h, err := f.OpenFile(name, os.O_RDONLY, 0)
	must(t, err)
	size, err := h.Size()
	must(t, err)
	b := make([]byte, size)
	if _, err := h.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	must(t, h.Close())
	return string(b)
}

func write(t *testing.T, f durable.FS, name, data string) durable.File {
	t.Helper()
	h, err := f.OpenFile(name, os.O_RDWR|os.O_CREATE, 0)
	must(t, err)
	_, err = h.WriteAt([]byte(data), 0)
	must(t, err)
	return h
}

// outcomes returns what a file may hold after a power cut, "-" when it is gone.
func outcomes(t *testing.T, f *faultfs.FS, name string) map[string]bool {
	seen := map[string]bool{}
	for seed := range uint64(2000) {
		left := f.AfterPowerCut(rand.New(rand.NewPCG(seed, 0)))
		if _, err := left.Stat(name); errors.Is(err, fs.ErrNotExist) {
			seen["-"] = true
		} else {
			seen[read(t, left, name)] = true
		}
	}
	return seen
}

func expect(t *testing.T, step string, got map[string]bool, want ...string) {
	t.Helper()
	for _, w := range want {
		if !got[w] {
			t.Errorf("%s: never left %q", step, w)
		}
		delete(got, w)
	}
	for g := range got {
		t.Errorf("%s: left %q", step, g)
	}
}

func TestWhatAPowerCutLeaves(t *testing.T) {
	f := faultfs.New()
	h := write(t, f, "f", "ab")
	expect(t, "nothing synced", outcomes(t, f, "f"), "-", "", "a", "ab", "\x00\x00", "a\x00")
	must(t, h.Sync())
	expect(t, "content synced, name not", outcomes(t, f, "f"), "-", "ab")
	must(t, f.SyncDir("."))
	expect(t, "both synced", outcomes(t, f, "f"), "ab")

	must(t, f.Rename("f", "g"))
	expect(t, "renamed", outcomes(t, f, "g"), "-", "ab")
	for seed := range uint64(50) {
		left := f.AfterPowerCut(rand.New(rand.NewPCG(seed, 1)))
		if entries, _ := left.ReadDir("."); len(entries) != 1 {
			t.Fatalf("a rename is not atomic: %v", entries)
		}
	}
	must(t, f.SyncDir("."))

	must(t, h.Truncate(1))
	expect(t, "truncated", outcomes(t, f, "g"), "ab", "a")
	must(t, h.Sync())
	must(t, f.Remove("g"))
	expect(t, "removed", outcomes(t, f, "g"), "a", "-")
	must(t, f.SyncDir("."))
	expect(t, "removal synced", outcomes(t, f, "g"), "-")
}

func TestWriteFileIsAtomic(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for n := 1; ; n++ {
			f := faultfs.New()
			must(t, durable.WriteFile(f, "f", []byte("old"), 0))
			boom := errors.New("power cut")
			before := f.Ops()
			f.Inject(faultfs.From(before+n, faultfs.Fault{Err: boom, Applied: applied}))
			err := durable.WriteFile(f, "f", []byte("new"), 0)
			got := outcomes(t, f, "f")
			if err == nil {
				expect(t, "done", got, "new")
				if n < 4 {
					t.Fatalf("only %d steps", n)
				}
				break
			}
			delete(got, "old")
			delete(got, "new")
			expect(t, "in the middle", got)
		}
	}
}

func TestFailedFsyncLosesTheWrite(t *testing.T) {
	f := faultfs.New()
	h := write(t, f, "f", "a")
	must(t, h.Sync())
	must(t, f.SyncDir("."))
	_, err := h.WriteAt([]byte("b"), 1)
	must(t, err)
	boom := errors.New("boom")
	f.Inject(faultfs.At(f.Ops()+1, faultfs.Fault{Err: boom}))
	if err := h.Sync(); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	must(t, h.Sync())
	if got := read(t, f, "f"); got != "ab" {
		t.Fatalf("the page cache holds %q", got)
	}
	expect(t, "fsync again", outcomes(t, f, "f"), "a")
	_, err = h.WriteAt([]byte("b"), 1)
	must(t, err)
	must(t, h.Sync())
	expect(t, "write and fsync again", outcomes(t, f, "f"), "ab")
}

func TestSpaceAndShortWrites(t *testing.T) {
	f := faultfs.New()
	f.SetSpace(5)
	h := write(t, f, "f", "abc")
	if n, err := h.WriteAt([]byte("defg"), 3); n != 2 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(n, err)
	}
	must(t, h.Truncate(3))
	if n, err := h.WriteAt([]byte("de"), 3); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := h.WriteAt([]byte("x"), 0); n != 1 || err != nil {
		t.Fatal("overwriting needs no space:", n, err)
	}
	must(t, f.Remove("f"))
	write(t, f, "g", "12345")

	f.SetSpace(-1)
	h = write(t, f, "h", "")
	f.Inject(faultfs.At(f.Ops()+1, faultfs.Fault{Err: io.ErrShortWrite, Short: 2}))
	if n, err := h.WriteAt([]byte("abc"), 0); n != 2 || !errors.Is(err, io.ErrShortWrite) {
		t.Fatal(n, err)
	}
	if got := read(t, f, "h"); got != "ab" {
		t.Fatalf("%q", got)
	}
}

func TestPathsAndErrors(t *testing.T) {
	f := faultfs.New()
	must(t, durable.MkdirAll(f, "/a/b", 0))
	must(t, durable.WriteFile(f, "/a/b/f", []byte("x"), 0))
	if _, err := f.OpenFile("/a/none", os.O_RDONLY, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := f.OpenFile("/a/b/f", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	if _, err := f.OpenFile("/none/f", os.O_CREATE|os.O_RDWR, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := f.Remove("/a"); err == nil {
		t.Fatal("removed a directory that is not empty")
	}
	must(t, durable.Rename(f, "/a/b", "/c"))
	if got := read(t, f, "/c/f"); got != "x" {
		t.Fatalf("%q", got)
	}
	must(t, durable.RemoveAll(f, "/c"))
	if entries, err := f.ReadDir("/"); err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	boom := errors.New("unreadable")
	h := write(t, f, "/r", "x")
	f.Inject(func(op faultfs.Op) faultfs.Fault {
		if op.Kind == faultfs.Read {
			return faultfs.Fault{Err: boom}
		}
		return faultfs.Fault{}
	})
	if _, err := h.ReadAt(make([]byte, 1), 0); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	ops := f.Ops()
	f.Inject(func(op faultfs.Op) faultfs.Fault {
		if op.Kind == faultfs.Open {
			return faultfs.Fault{Err: boom}
		}
		return faultfs.Fault{}
	})
	if _, err := f.OpenFile("/r", os.O_RDONLY, 0); !errors.Is(err, boom) || f.Ops() != ops {
		t.Fatal(err, f.Ops()-ops)
	}
}
