package lmdbstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
	"github.com/qs-peer/qs-peer/txlog"
)

// digestOf computes what DigestAt and State should say, from nothing but the model.
func (h *history) digestOf() Digest {
	var s sum
	for k, v := range h.model {
		s.add([]byte(k), []byte(v))
	}
	return s.Digest
}

func TestScrub(t *testing.T) {
	r := seeded(t)
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	report, err := s.Scrub(t.Context(), ScrubOptions{})
	if err != nil || report.Pairs != 0 || !report.Pos.IsZero() {
		t.Fatalf("an empty store: %+v, %v", report, err)
	}
	apply(t, s, h.begin())
	for range 10 {
		apply(t, s, h.randoms(r, 200)...)
	}
	seen := int64(-1)
	report, err = s.Scrub(t.Context(), ScrubOptions{Rate: -1, Progress: func(done, total int64) { seen = done }})
	if err != nil || report.Pos != h.pos || report.Digest != h.digestOf() || report.Pairs != uint64(len(h.model)) {
		t.Fatalf("a sound store: %+v, %v", report, err)
	}
	if report.Bytes < 1<<20 {
		t.Errorf("%d bytes were read, progress said %d", report.Bytes, seen)
	}
	t.Logf("%+v", report)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Scrub(ctx, ScrubOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.Scrub(ctx, ScrubOptions{Rate: 1000}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at 1,000 bytes a second: %v", err)
	}
	if s.Damage() != nil {
		t.Errorf("damage: %v", s.Damage())
	}
	closed(t, s)
	if _, err := s.Scrub(t.Context(), ScrubOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestScrubWhileWriting scrubs at a rate that keeps it busy while the
// environment changes under it.
func TestScrubWhileWriting(t *testing.T) {
	r := seeded(t)
	h := newHistory()
	s := open(t, t.TempDir(), Options{MapSize: minMapBytes})
	apply(t, s, h.begin())
	apply(t, s, h.randoms(r, 300)...)
	stop := make(chan struct{})
	scrubs := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				scrubs <- nil
				return
			default:
				_, err = s.Scrub(t.Context(), ScrubOptions{Rate: 64 << 20})
			}
		}
		scrubs <- err
	}()
	for range 40 {
		apply(t, s, h.randoms(r, 25)...)
	}
	close(stop)
	if err := <-scrubs; err != nil {
		t.Fatal(err)
	}
	matches(t, s, h)
}

// TestScrubFinds damages a live environment's file, as a disk would, in places
// that no read looks at.
func TestScrubFinds(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(b []byte) []byte // at most the file's length
		key  string
	}{
		{"a value", func(b []byte) []byte {
			return bytes.Replace(b, []byte("value of needle"), []byte("value of noodle"), 1)
		}, "needle"},
		{"a key", func(b []byte) []byte {
			stored := appendValue([]byte("needle"), []byte("needle"), []byte("value of needle"))
			return bytes.ReplaceAll(b, stored, append([]byte("needlf"), stored[6:]...))
		}, "needlf"},
		{"a long value", func(b []byte) []byte {
			return bytes.Replace(b, bytes.Repeat([]byte("L"), 9000), append(bytes.Repeat([]byte("L"), 8999), 'l'), 1)
		}, "long"},
		{"a page of zeros", func(b []byte) []byte {
			at := bytes.Index(b, []byte("value of needle")) &^ 4095
			clear(b[at : at+4096])
			return b
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHistory()
			dir := t.TempDir()
			s := open(t, dir, Options{})
			ops := []txlog.Op{put("needle", "value of needle"), put("long", string(bytes.Repeat([]byte("L"), 20_000)))}
			for i := range 2000 {
				ops = append(ops, txlog.Op{Kind: txlog.Put, Key: benchKey(i), Value: benchKey(i)})
			}
			apply(t, s, h.begin(), h.entry(ops...))
			if _, err := s.Scrub(t.Context(), ScrubOptions{}); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, nameOf(1), dataFile)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			changed := c.do(bytes.Clone(b))
			if bytes.Equal(b, changed) {
				t.Fatal("nothing was changed")
			}
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(changed, 0); err != nil {
				t.Fatal(err)
			}
			closed(t, f)
			var damage *DamageError
			if _, err = s.Scrub(t.Context(), ScrubOptions{}); !errors.As(err, &damage) || !errors.Is(err, ErrDamaged) {
				t.Fatalf("scrub: %v", err)
			}
			if string(damage.Key) != c.key {
				t.Errorf("it is the key %q: %v", damage.Key, err)
			}
			if !errors.Is(s.Damage(), ErrDamaged) {
				t.Errorf("damage: %v", s.Damage())
			}
			if _, err := s.Scrub(t.Context(), ScrubOptions{}); !errors.Is(err, ErrDamaged) {
				t.Errorf("scrub again: %v", err)
			}
		})
	}
}

// TestScrubUnreadable: a block that the disk twice does not return is damage; one that
// it returns at the second try, and what fails for another reason, is not.
func TestScrubUnreadable(t *testing.T) {
	const bad = 40 * diskAlign
	for _, c := range []struct {
		name  string
		errs  []error // of the reads of the bad block, one after the other; the last one for ever
		lost  bool
		fails error
	}{
		{"once", []error{syscall.EIO, nil}, false, nil},
		{"lasting", []error{syscall.EIO}, true, syscall.EIO},
		{"checksum", []error{syscall.EBADMSG}, true, syscall.EBADMSG},
		{"no memory", []error{syscall.ENOMEM}, false, syscall.ENOMEM},
		{"no descriptors", []error{syscall.EIO, syscall.EMFILE}, false, syscall.EMFILE},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHistory()
			s := open(t, t.TempDir(), Options{})
			apply(t, s, h.begin())
			apply(t, s, benchEntries(h, 0, 4000)...)
			var mu sync.Mutex
			errs := c.errs
			_, err := s.Scrub(t.Context(), ScrubOptions{Rate: -1, fault: func(off int64, n int) error {
				if off > bad || off+int64(n) <= bad {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				err := errs[0]
				if len(errs) > 1 {
					errs = errs[1:]
				}
				return err
			}})
			if !errors.Is(err, c.fails) || c.fails == nil && err != nil {
				t.Errorf("scrub: %v", err)
			}
			if len(errs) > 1 {
				t.Errorf("the bad block was not read: %v", err)
			}
			var damage *DamageError
			if errors.As(err, &damage) != c.lost || errors.Is(err, ErrDamaged) != c.lost || errors.Is(s.Damage(), ErrDamaged) != c.lost {
				t.Errorf("damage: %v, %v", err, s.Damage())
			}
			if c.lost && (filepath.Base(damage.Where) != dataFile || !strings.Contains(err.Error(), fmt.Sprint("at offset ", bad))) {
				t.Errorf("where: %v", err)
			}
		})
	}
}

// TestDisk reads in every alignment.
func TestDisk(t *testing.T) {
	want := make([]byte, 3*diskChunk+diskAlign)
	for i := range want {
		want[i] = byte(i * i >> 8)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	d, size, err := openDisk(t.Context(), file, 0)
	if err != nil || size != int64(len(want)) {
		t.Fatal(size, err)
	}
	defer d.close()
	t.Logf("direct: %v", d.isDirect())
	for _, c := range []struct{ off, n int }{
		{0, 4096}, {0, 1}, {1, 1}, {4095, 2}, {100, diskChunk}, {16, 2*diskChunk + 5}, {diskAlign, diskChunk}, {len(want) - 10, 10},
	} {
		for _, p := range [][]byte{make([]byte, c.n), make([]byte, c.n+1)[1:], aligned(c.n)} {
			if n, err := d.ReadAt(p, int64(c.off)); n != c.n || err != nil || !bytes.Equal(p, want[c.off:c.off+c.n]) {
				t.Errorf("%d bytes at %d: %d, %v", c.n, c.off, n, err)
			}
		}
	}
	if n, err := d.ReadAt(make([]byte, 100), int64(len(want)-10)); n != 10 || err == nil {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// TestDiskLeavesNothing: there are so many descriptors for a process, and so many contexts of
// asynchronous reads for a machine (fs.aio-max-nr).
func TestDiskLeavesNothing(t *testing.T) {
	held := func() (fds, contexts int) {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Skip(err)
		}
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(entries), bytes.Count(maps, []byte("[aio]"))
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, make([]byte, 64*diskAlign), 0o644); err != nil {
		t.Fatal(err)
	}
	use := func(ctx context.Context) {
		d, _, err := openDisk(ctx, file, 0)
		if err != nil {
			t.Fatal(err)
		}
		d.ReadBatch([]mdbfile.Read{{Buf: aligned(diskAlign)}, {Buf: aligned(diskAlign), Off: 3 * diskAlign}})
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}
	use(t.Context()) // the runtime makes descriptors of its own
	fds, contexts := held()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for range 5 {
		use(t.Context())
		use(cancelled)
	}
	if fdsNow, contextsNow := held(); fdsNow != fds || contextsNow != 0 {
		t.Errorf("%d descriptors and %d contexts, before %d and %d", fdsNow, contextsNow, fds, contexts)
	}
}

// TestDiskBatch reads many parts at once.
func TestDiskBatch(t *testing.T) {
	const pages = 100
	want := make([]byte, pages*diskAlign)
	for i := range want {
		want[i] = byte(i * i >> 8)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	d, _, err := openDisk(t.Context(), file, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	var reads []mdbfile.Read
	for i := range 3 * aioReads {
		reads = append(reads, mdbfile.Read{Buf: aligned((1 + i%3) * diskAlign), Off: int64(i * 37 % (pages - 2) * diskAlign)})
	}
	for range 3 {
		for i := range reads {
			clear(reads[i].Buf)
		}
		if !d.ReadBatch(reads) {
			t.Skip("no direct or asynchronous reads here")
		}
		for i, r := range reads {
			if r.N != len(r.Buf) || r.Err != nil || !bytes.Equal(r.Buf, want[r.Off:int(r.Off)+r.N]) {
				t.Fatalf("read %d at %d: %d, %v", i, r.Off, r.N, r.Err)
			}
		}
	}
	end := []mdbfile.Read{{Buf: aligned(2 * diskAlign), Off: (pages - 1) * diskAlign}, {Buf: aligned(diskAlign), Off: 2 * pages * diskAlign}}
	if !d.ReadBatch(end) || end[0].N != diskAlign || !errors.Is(end[0].Err, io.EOF) || end[1].N != 0 || !errors.Is(end[1].Err, io.EOF) {
		t.Errorf("at the end: %+v", end)
	}
	if d.ReadBatch([]mdbfile.Read{{Buf: aligned(diskAlign)[1:100], Off: 0}}) {
		t.Error("a read that is not aligned was begun")
	}
}
