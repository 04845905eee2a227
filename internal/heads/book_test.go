package heads

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/faultfs"
	"github.com/qs-peer/qs-peer/txlog"
)

// fakeSigned makes heads that nobody verifies: the book does not.
func fakeSigned(seq int) Signed {
	h := Head{Dataset: dataset, Pos: txlog.Pos{Seq: uint64(seq), Hash: txlog.Hash{1, byte(seq), byte(seq >> 8)}}, Time: time.Unix(int64(seq), 0).UTC()}
	return Signed{h, append(h.Encode(), "\n— m1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"...)}
}

// same checks that b keeps just these heads, and which is the newest.
func same(t *testing.T, b *Book, newest int, kept ...int) {
	t.Helper()
	var got []int
	for seq := uint64(0); ; {
		h, ok := b.After(seq)
		if !ok || len(got) == b.Len() {
			break
		}
		if want := fakeSigned(int(h.Pos.Seq)); h.Head != want.Head || string(h.Note) != string(want.Note) {
			t.Fatalf("head %d came back as %+v", h.Pos.Seq, h)
		}
		got, seq = append(got, int(h.Pos.Seq)), h.Pos.Seq
	}
	if !slices.Equal(got, kept) || b.Len() != len(kept) {
		t.Errorf("kept are %v, want %v", got, kept)
	}
	if got := b.Newest().Pos.Seq; got != uint64(newest) {
		t.Errorf("the newest is %d, want %d", got, newest)
	}
}

func TestBook(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "heads")
	b := newBook(t, dir)
	same(t, b, 0)
	if _, ok := b.After(0); ok {
		t.Error("an empty book has a head")
	}
	changed := b.Changed()
	b.Add(fakeSigned(10), 100)
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	same(t, b, 10)
	if h, ok := b.After(9); !ok || h.Pos.Seq != 10 {
		t.Error("the newest is not found")
	}
	if _, ok := b.After(10); ok {
		t.Error("something is after the newest")
	}
	b.Add(fakeSigned(20), Spacing-101)
	same(t, b, 20)
	b.Add(fakeSigned(30), 1)
	same(t, b, 30, 30)
	b.Add(fakeSigned(25), Spacing) // late: neither
	same(t, b, 30, 30)
	changed = b.Changed()
	b.Add(fakeSigned(30), 0) // again
	select {
	case <-changed:
		t.Error("told of nothing new")
	default:
	}
	later := fakeSigned(30)
	later.Time = later.Time.Add(time.Second)
	later.Note = append(later.Encode(), "\n— m1 AAAAAAAA\n"...)
	b.Add(later, 0)
	if !b.Newest().Time.Equal(later.Time) {
		t.Error("the same position at a later time is not the newest")
	}
	b.Add(fakeSigned(50), Spacing)
	b.Add(fakeSigned(60), 1)
	for range 2 {
		same(t, b, 60, 30, 50)
		for _, c := range []struct{ seq, before, after int }{{1, 0, 30}, {30, 0, 50}, {31, 30, 50}, {50, 30, 60}, {55, 50, 60}, {99, 50, 0}} {
			before, _ := b.Before(uint64(c.seq))
			after, _ := b.After(uint64(c.seq))
			if int(before.Pos.Seq) != c.before || c.after > 0 && int(after.Pos.Seq) != c.after {
				t.Errorf("around %d: %d, %d", c.seq, before.Pos.Seq, after.Pos.Seq)
			}
		}
		if err := errors.Join(b.Close(), b.Close()); err != nil {
			t.Fatal(err)
		}
		b.Add(fakeSigned(70), Spacing) // too late
		b = newBook(t, dir)
	}
	other := fakeSigned(5)
	other.Dataset = txlog.DatasetID{1}
	b.Add(other, 0)
	if b.Len() != 0 || b.Newest().Pos.Seq != 5 {
		t.Error("heads of another dataset are kept")
	}
}

func TestBookTrim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "heads")
	b := newBook(t, dir)
	var all []int
	for seq := range 1000 {
		b.Keep(fakeSigned(seq + 1))
		all = append(all, seq+1)
	}
	b.Add(fakeSigned(1000), 0)
	for _, c := range []struct{ first, left int }{{1, 1000}, {200, 1000}, {400, 1000}, {601, 400}, {700, 400}, {2000, 0}} {
		if err := b.Trim(uint64(c.first)); err != nil {
			t.Fatal(err)
		}
		same(t, b, 1000, all[len(all)-c.left:]...)
	}
	b.Keep(fakeSigned(1001))
	b.Close()
	same(t, newBook(t, dir), 1001, 1001)
}

// Whatever byte of the book changes, what is in front of it stays, and nothing
// that was not there appears.
func TestBookDamaged(t *testing.T) {
	open := func(contents map[string][]byte) (*Book, *faultfs.FS, error) {
		fsys := faultfs.New()
		for name, text := range contents {
			if err := fsys.MkdirAll("heads", 0o750); err != nil {
				t.Fatal(err)
			}
			if err := durable.WriteFile(fsys, filepath.Join("heads", name), text, 0o640); err != nil {
				t.Fatal(err)
			}
		}
		b, err := OpenBook("heads", BookOptions{FS: fsys})
		return b, fsys, err
	}
	b, fsys, err := open(nil)
	if err != nil {
		t.Fatal(err)
	}
	for seq := 1; seq <= 4; seq++ {
		b.Keep(fakeSigned(seq))
	}
	b.Add(fakeSigned(6), 0)
	b.Add(fakeSigned(7), 0)
	b.Close()
	good := map[string][]byte{}
	for _, name := range []string{keptName, newestName} {
		f, err := fsys.OpenFile(filepath.Join("heads", name), os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if good[name], err = readAll(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	check := func(what, name string, text []byte) {
		t.Helper()
		contents := maps.Clone(good)
		contents[name] = text
		b, fsys, err := open(contents)
		if err != nil {
			if name != keptName || len(text) < keptHeader { // it may have a version that is not known
				t.Errorf("%s of %s: %v", what, name, err)
			}
			return
		}
		n := b.Len()
		same(t, b, int(b.Newest().Pos.Seq), []int{1, 2, 3, 4}[:n]...)
		if got := b.Newest().Pos.Seq; !slices.Contains([]uint64{7, 6, 4}, got) {
			t.Errorf("%s of %s: the newest is %d", what, name, got)
		}
		b.Add(fakeSigned(8), Spacing) // it works on
		b.Close()
		again, err := OpenBook("heads", BookOptions{FS: fsys})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if again.Len() != n+1 || again.Newest().Pos.Seq != 8 {
			t.Errorf("%s of %s: afterwards %d kept, the newest is %d", what, name, again.Len(), again.Newest().Pos.Seq)
		}
	}
	for name, text := range good {
		for i := range text {
			changed := slices.Clone(text)
			changed[i] ^= 1 << (i % 8)
			check(fmt.Sprintf("byte %d", i), name, changed)
			if i%16 == 0 {
				check(fmt.Sprintf("the first %d bytes", i), name, text[:i])
			}
		}
	}
}

// A disk that fails costs heads, and nothing else.
func TestBookOnAFullDisk(t *testing.T) {
	fsys := faultfs.New()
	b, err := OpenBook("heads", BookOptions{FS: fsys, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b.Keep(fakeSigned(1))
	fsys.Inject(func(op faultfs.Op) faultfs.Fault {
		if op.Kind == faultfs.Write {
			return faultfs.Fault{Err: syscall.ENOSPC, Short: 7}
		}
		return faultfs.Fault{}
	})
	b.Keep(fakeSigned(2))
	b.Add(fakeSigned(3), Spacing)
	same(t, b, 3, 1)
	fsys.Inject(nil)
	b.Keep(fakeSigned(4))
	same(t, b, 3, 1, 4)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err = OpenBook("heads", BookOptions{FS: fsys}); err != nil {
		t.Fatal(err)
	}
	same(t, b, 4, 1, 4)
	b.Close()
}

// Trim leaves what was kept or what is to be kept, whatever step fails.
func TestBookTrimFails(t *testing.T) {
	for n := 1; ; n++ {
		fsys := faultfs.New()
		b, err := OpenBook("heads", BookOptions{FS: fsys})
		if err != nil {
			t.Fatal(err)
		}
		var all []int
		for seq := range 400 {
			b.Keep(fakeSigned(seq + 1))
			all = append(all, seq+1)
		}
		at := 0
		fsys.Inject(func(op faultfs.Op) faultfs.Fault {
			if op.Kind == faultfs.Read {
				return faultfs.Fault{}
			}
			if at++; at == n {
				return faultfs.Fault{Err: errors.New("broken")}
			}
			return faultfs.Fault{}
		})
		err = b.Trim(301)
		fsys.Inject(nil)
		if err == nil {
			same(t, b, 0, all[300:]...)
			b.Close()
			if n < 4 {
				t.Errorf("only %d steps", n)
			}
			return
		}
		same(t, b, 0, all...)
		b.Close()
		if b, err = OpenBook("heads", BookOptions{FS: fsys}); err != nil {
			t.Fatal(err)
		}
		if b.Len() != 400 && b.Len() != 100 {
			t.Errorf("step %d: %d heads are left", n, b.Len())
		}
		b.Close()
	}
}

// Whatever is on the disk, the book opens with what is sound of it, or says that it is
// of another version, and works on.
func FuzzBook(f *testing.F) {
	header := []byte(keptMagic + "\x01\x00\x00\x00")
	rec := appendRecord(nil, fakeSigned(3).Note)
	f.Add(header, rec)
	f.Add(slices.Concat(header, rec, appendRecord(nil, fakeSigned(4).Note)), slices.Concat(rec, make([]byte, slotSize-len(rec)), appendRecord(nil, fakeSigned(9).Note)))
	f.Add(slices.Concat(header, rec, rec), []byte{1, 0, 0, 0})
	f.Add([]byte(keptMagic), []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, kept, newest []byte) {
		fsys := faultfs.New()
		if err := fsys.MkdirAll("heads", 0o750); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string][]byte{keptName: kept, newestName: newest} {
			if err := durable.WriteFile(fsys, filepath.Join("heads", name), text, 0o640); err != nil {
				t.Fatal(err)
			}
		}
		b, err := OpenBook("heads", BookOptions{FS: fsys})
		if err != nil {
			return
		}
		defer b.Close()
		n := b.Len()
		next := fakeSigned(1 << 30)
		next.Pos.Seq = b.Newest().Pos.Seq + 1
		next.Note = next.Encode()
		next.Dataset = b.Newest().Dataset
		b.Add(next, Spacing)
		if b.Newest().Pos != next.Pos || next.Pos.Seq != 0 && b.Len() != n+1 {
			t.Errorf("%d heads were kept, now %d; the newest is %d, want %d", n, b.Len(), b.Newest().Pos.Seq, next.Pos.Seq)
		}
	})
}

func TestBookConcurrently(t *testing.T) {
	b := newBook(t, t.TempDir())
	var all sync.WaitGroup
	all.Go(func() {
		for seq := range 2000 {
			b.Add(fakeSigned(seq+1), Spacing/3)
		}
	})
	for range 3 {
		all.Go(func() {
			for seq := uint64(0); seq < 2000; {
				changed := b.Changed()
				h, ok := b.After(seq)
				if !ok {
					<-changed
					continue
				}
				if h.Pos.Seq <= seq {
					t.Errorf("%d is after %d", h.Pos.Seq, seq)
				}
				seq = h.Pos.Seq
				b.Before(seq)
				b.Newest()
			}
		})
	}
	all.Go(func() {
		for first := range uint64(500) {
			if err := b.Trim(first * 3); err != nil {
				t.Error(err)
			}
		}
	})
	all.Wait()
}
