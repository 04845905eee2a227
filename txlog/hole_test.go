package txlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/qs-peer/qs-peer/internal/faultfs"
)

// heal brings a log that others have back to what they have.
func heal(l *Log, want []Entry) error {
	for range 100 {
		holes := l.Holes()
		if len(holes) == 0 {
			break
		}
		h := holes[0]
		if _, err := l.Fill(want[h.After.Seq:min(h.After.Seq+2, h.Until.Seq)]); err != nil {
			return fmt.Errorf("fill %+v: %w", h, err)
		}
	}
	if n := len(l.Holes()); n > 0 {
		return fmt.Errorf("%d holes can not be filled", n)
	}
	if l.Dataset().IsZero() {
		if err := l.Reset(testID, Pos{}); err != nil {
			return err
		}
	}
	if missing := want[l.Head().Seq:]; len(missing) > 0 {
		if _, err := l.AppendEntries(missing); err != nil {
			return err
		}
	}
	return nil
}

// framesOf returns how many bytes entries have.
func framesOf(entries []Entry) (n int64) {
	for i := range entries {
		n += int64(len(entries[i].frame))
	}
	return n
}

// readAll reads what the log holds, compares it with what it should hold, and
// returns the damage it meets.
func readAll(t testing.TB, l *Log, want []Entry) *CorruptError {
	t.Helper()
	first := l.First()
	if first == 0 {
		return nil
	}
	r, err := l.Reader(l.Base())
	must(t, err)
	defer r.Close()
	for seq := first - 1; seq < l.Head().Seq; {
		entries, err := r.Next(t.Context(), 1<<20)
		var corrupt *CorruptError
		if errors.As(err, &corrupt) {
			return corrupt
		}
		must(t, err)
		for _, e := range entries {
			if !bytes.Equal(e.frame, want[seq].frame) {
				t.Fatalf("entry %d is another", e.Seq)
			}
			seq = e.Seq
		}
	}
	return nil
}

// checkMended opens a damaged log of a node that can repair it, and repairs it.
// It returns how many entries had to come from others.
func checkMended(t *testing.T, files *faultfs.FS, want []Entry, mayTear bool, where string) (fetched int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log("damaged:", where)
		}
	}()
	var told []Damage
	o := Options{SegmentBytes: minSegmentBytes, FS: files, Repair: true, Damaged: func(d Damage) { told = append(told, d) }}
	l, err := Open("log", o)
	must(t, err)
	defer func() { must(t, l.Close()) }()
	// Whoever meets it first, entries that are read are the right ones.
	if rand.IntN(2) == 0 {
		for range 10 {
			if readAll(t, l, want) == nil {
				break
			}
		}
	}
	rep, err := l.Scrub(t.Context(), 0)
	must(t, err)
	if again, err := l.Scrub(t.Context(), 0); err != nil || len(again.Damaged) > 0 {
		t.Fatalf("damage is still there after the scrub that found %v: %v %v", rep.Damaged, again.Damaged, err)
	}
	if corrupt := readAll(t, l, want); corrupt != nil {
		t.Fatalf("after a scrub: %v", corrupt)
	}
	if len(told) == 0 && len(l.Holes()) == 0 {
		t.Fatalf("nobody was told: %+v", rep)
	}
	for _, d := range told {
		if d.Kind == TornTail && !mayTear {
			t.Fatalf("acknowledged entries passed for a torn tail: %+v", d)
		}
		if d.Evidence != "" {
			if _, err := files.Stat(d.Evidence); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, h := range l.Holes() {
		fetched += int(h.Until.Seq - h.Start.Seq)
	}
	fetched += int(want[len(want)-1].Seq - l.Head().Seq)
	must(t, heal(l, want))
	if l.First() != 1 || l.Head() != want[len(want)-1].Pos() {
		t.Fatalf("repaired, it holds %d to %v", l.First(), l.Head())
	}
	if corrupt := readAll(t, l, want); corrupt != nil {
		t.Fatal(corrupt)
	}
	must(t, l.Close())
	if rep, err := verify(files, "log"); err != nil || rep.Entries != uint64(len(want)) {
		t.Fatalf("repaired, but Verify says %+v, %v", rep, err)
	}
	left := files.AfterPowerCut(rand.New(rand.NewPCG(1, 2)))
	again, err := Open("log", Options{SegmentBytes: minSegmentBytes, FS: left})
	if err != nil {
		t.Fatalf("repaired, but refused after a power cut: %v", err)
	}
	defer again.Close()
	if corrupt := readAll(t, again, want); corrupt != nil || again.First() != 1 || again.Head() != l.Head() {
		t.Fatalf("after a power cut it holds %d to %v, %v", again.First(), again.Head(), corrupt)
	}
	return fetched
}

// load returns the files of a log.
func loadFiles(t testing.TB, dir string) (files map[string][]byte, order []string) {
	t.Helper()
	files = map[string][]byte{}
	for _, path := range names(t, dir) {
		b, err := os.ReadFile(path)
		must(t, err)
		files[filepath.Base(path)] = b
		order = append(order, filepath.Base(path))
	}
	return files, order
}

// TestFlippedBytesAreMended flips bytes of a log that others have, too: it
// is found, nothing wrong is read, and what the others have to send is the batch
// that was hit (here an entry), or the tail from there on.
func TestFlippedBytesAreMended(t *testing.T) {
	dir := t.TempDir()
	want := sample(t, dir, true)
	files, order := loadFiles(t, dir)
	step := 5 // with the header's bytes
	if testing.Short() {
		step = 23
	}
	for _, name := range []string{order[0], order[2], order[len(order)-1]} {
		b := files[name]
		isTail := name == order[len(order)-1]
		for off := 0; off < len(b); off++ {
			if off > segmentHeader && off < len(b)-markSize && off%step > 0 {
				continue
			}
			b[off] ^= 1 << (off % 8)
			fetched := checkMended(t, synced(t, files), want, isTail && off >= len(b)-markSize, fmt.Sprintf("%s, byte %d", name, off))
			b[off] ^= 1 << (off % 8)
			if most := 1; !isTail && fetched > most {
				t.Fatalf("%s, byte %d: %d entries had to come from others", name, off, fetched)
			}
		}
	}
}

// TestAllKindsOfDamageAreMended damages one to three files of a log that others
// have, too, in any way.
func TestAllKindsOfDamageAreMended(t *testing.T) {
	dir := t.TempDir()
	want := sample(t, dir, true)
	sound, order := loadFiles(t, dir)
	times := 3000
	if testing.Short() {
		times = 600
	}
	kinds := map[string]int{}
	for seed := range uint64(times) {
		rng := rand.New(rand.NewPCG(seed, 5))
		files := map[string][]byte{}
		for name, b := range sound {
			files[name] = bytes.Clone(b)
		}
		var what []string
		onlyTail := true
		for range 1 + rng.IntN(3) {
			name := order[rng.IntN(len(order))]
			b, ok := files[name]
			if !ok || len(b) == 0 {
				continue
			}
			onlyTail = onlyTail && name == order[len(order)-1]
			at := rng.IntN(len(b))
			n := 1 + rng.IntN(min(len(b)-at, 700))
			kind := []string{"flip", "zeros", "noise", "cut", "empty", "grown", "gone", "swapped", "another's"}[rng.IntN(9)]
			switch kind {
			case "flip":
				b[at] ^= 1 << rng.IntN(8)
			case "zeros":
				clear(b[at : at+n])
			case "noise":
				for i := range b[at : at+n] {
					b[at+i] = byte(rng.Uint32())
				}
			case "cut":
				b = b[:at]
			case "empty":
				b = nil
			case "grown":
				b = append(b, make([]byte, n)...)
			case "swapped":
				to := rng.IntN(len(b) - n + 1)
				b = slices.Concat(b[:at], b[to:to+n], b[at+n:])
			case "another's":
				b = bytes.Clone(sound[order[rng.IntN(len(order))]])
			}
			if kind == "gone" {
				delete(files, name)
			} else {
				files[name] = b
			}
			kinds[kind]++
			what = append(what, fmt.Sprintf("%s %s at %d, %d bytes", name, kind, at, n))
		}
		if same(files, sound) {
			continue
		}
		t.Run("", func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d: %s", seed, strings.Join(what, "; "))
				}
			}()
			checkMendedSomehow(t, inMemory(t, files), want)
		})
		if t.Failed() {
			return
		}
	}
	t.Log(kinds)
}

func same(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if other, ok := b[name]; !ok || !bytes.Equal(a[name], other) {
			return false
		}
	}
	return true
}

// checkMendedSomehow is checkMended for damage that may cost the beginning of the
// log, as if it had been trimmed, or pass for a torn tail.
func checkMendedSomehow(t *testing.T, files *faultfs.FS, want []Entry) {
	t.Helper()
	o := Options{SegmentBytes: minSegmentBytes, FS: files, Repair: true}
	l, err := Open("log", o)
	must(t, err)
	for l != nil {
		_, err = l.Scrub(t.Context(), 0)
		must(t, err)
		if corrupt := readAll(t, l, want); corrupt != nil {
			t.Fatalf("after a scrub: %v", corrupt)
		}
		must(t, heal(l, want))
		if l.Head() != want[len(want)-1].Pos() {
			t.Fatalf("repaired, it ends at %v", l.Head())
		}
		if corrupt := readAll(t, l, want); corrupt != nil {
			t.Fatal(corrupt)
		}
		must(t, l.Close())
		if o.Repair {
			o.Repair = false
			l, err = Open("log", o)
			must(t, err)
		} else {
			l = nil
		}
	}
	rep, err := verify(files, "log")
	if err != nil || rep.Head != want[len(want)-1].Pos() {
		t.Fatalf("Verify says %+v, %v", rep, err)
	}
}

// damaged returns a log of which the third segment has a damaged place.
func damaged(t testing.TB, o Options) (l *Log, files *faultfs.FS, want []Entry) {
	t.Helper()
	dir := t.TempDir()
	want = sample(t, dir, true)
	content, order := loadFiles(t, dir)
	content[order[2]][2000] ^= 4
	files = inMemory(t, content)
	o.FS, o.SegmentBytes = files, minSegmentBytes
	return open(t, "log", o), files, want
}

func TestHole(t *testing.T) {
	var told []Damage
	l, files, want := damaged(t, Options{Repair: true, Damaged: func(d Damage) { told = append(told, d) }})
	if l.First() != 1 || len(l.Holes()) != 0 {
		t.Fatal("damage within a sealed segment is found at open: does it read everything?")
	}
	r, err := l.Reader(Pos{})
	must(t, err)
	defer r.Close()
	var met *CorruptError
	last := uint64(0)
	for met == nil {
		entries, err := r.Next(t.Context(), 1000)
		if !errors.As(err, &met) {
			must(t, err)
			last = entries[len(entries)-1].Seq
		}
	}
	holes := l.Holes()
	if len(holes) != 1 || holes[0].Start != want[last-1].Pos() || holes[0].After != holes[0].Start || holes[0].Until != want[last].Pos() {
		t.Fatalf("a reader met %v after entry %d; holes %+v", met, last, holes)
	}
	h := holes[0]
	if len(told) != 1 || told[0].Kind != DamagedSegment || told[0].Hole != h || told[0].Err.Seq != last+1 || told[0].Lost == 0 || told[0].Lost > 1000 {
		t.Fatalf("told of %+v", told)
	}
	evidence, err := files.OpenFile(told[0].Evidence, os.O_RDONLY, 0)
	must(t, err)
	b := make([]byte, 2001)
	_, err = evidence.ReadAt(b, 0)
	must(t, err)
	must(t, evidence.Close())

	if l.First() != h.Until.Seq+1 || l.Base() != h.Until {
		t.Fatalf("the log begins at %d, behind %v", l.First(), l.Base())
	}
	var trimmed *TrimmedError
	for _, p := range []Pos{{}, h.Start} {
		if _, err := l.Reader(p); !errors.As(err, &trimmed) || trimmed.First != l.First() {
			t.Fatal(p, err)
		}
	}
	if got := readTo(t, l, h.Until, l.Head().Seq); len(got) != int(l.Head().Seq-h.Until.Seq) {
		t.Fatal(len(got))
	}
	appendN(t, l, 10, 500)
	changed := l.Changed()
	filled, err := l.Fill(want[h.After.Seq:])
	if err != nil || !filled || l.First() != 1 || len(l.Holes()) != 0 {
		t.Fatal(filled, err, l.First(), l.Holes())
	}
	select {
	case <-changed:
	default:
		t.Fatal("First changed, and nobody was told")
	}
	if got := readTo(t, l, Pos{}, l.Head().Seq); !bytes.Equal(got[last].frame, want[last].frame) {
		t.Fatal("another entry")
	}
	if _, err := l.Fill(want[h.After.Seq:h.Until.Seq]); err == nil {
		t.Fatal("filled a hole that is not there")
	}
	must(t, l.Close())
	if rep, err := verify(files, "log"); err != nil || rep.Base != (Pos{}) || rep.Head != l.Head() {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// hollow returns a log with a hole of several entries.
func hollow(t testing.TB, files *faultfs.FS) (*Log, []Entry) {
	t.Helper()
	dir := t.TempDir()
	want := sample(t, dir, true)
	content, order := loadFiles(t, dir)
	must(t, files.MkdirAll("log", 0))
	for _, name := range order {
		if name == order[1] {
			continue
		}
		f, err := files.OpenFile("log/"+name, os.O_RDWR|os.O_CREATE, 0)
		must(t, err)
		_, err = f.WriteAt(content[name], 0)
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
	must(t, files.SyncDir("log"))
	must(t, files.SyncDir("."))
	return open(t, "log", Options{FS: files, SegmentBytes: minSegmentBytes, Repair: true}), want
}

// TestFillRefuses: what does not lead from one side of the hole to the other is
// never part of the log.
func TestFillRefuses(t *testing.T) {
	l, want := hollow(t, faultfs.New())
	h := l.Holes()[0]
	if h.Until.Seq-h.Start.Seq < 4 {
		t.Fatalf("a small hole: %+v", h)
	}
	lies := []Entry{}
	at := h.Start
	for at.Seq < h.Until.Seq {
		e, err := Seal(at, 1, want[at.Seq].Time, put("key", "a lie"))
		must(t, err)
		lies, at = append(lies, e), e.Pos()
	}
	var diverged *DivergedError
	for name, c := range map[string][]Entry{
		"entries that do not follow the hole's start": want[h.Start.Seq+1 : h.Until.Seq],
		"entries before the hole":                     want[:h.Start.Seq],
		"entries behind it":                           want[h.Until.Seq:],
		"entries with a gap":                          {want[h.Start.Seq], want[h.Start.Seq+2]},
		"an entry that was not made by Seal":          {{Seq: h.Start.Seq + 1, Prev: h.Start.Hash}},
	} {
		if filled, err := l.Fill(c); err == nil || filled {
			t.Errorf("%s: %t, %v", name, filled, err)
		}
	}
	if got := l.Holes(); len(got) != 1 || got[0] != h {
		t.Fatalf("%+v", got)
	}
	// A liar whose entries link is found out at the end …
	if filled, err := l.Fill(lies[:2]); err != nil || filled {
		t.Fatal(filled, err)
	}
	if _, err := l.Fill(want[h.Start.Seq+2 : h.Until.Seq]); !errors.As(err, &diverged) {
		t.Fatal(err)
	}
	if filled, err := l.Fill(lies[2:]); filled || !errors.As(err, &diverged) || diverged.Seq != h.Until.Seq || diverged.Have != h.Until.Hash {
		t.Fatal(filled, err)
	}
	if got := l.Holes(); len(got) != 1 || got[0] != h {
		t.Fatalf("what the liar sent is kept: %+v", got)
	}
	// … or by one who tells the truth and begins anew.
	if filled, err := l.Fill(lies[:2]); err != nil || filled {
		t.Fatal(filled, err)
	}
	if filled, err := l.Fill(want[h.Start.Seq : h.Start.Seq+1]); err != nil || filled {
		t.Fatal(filled, err)
	}
	if got := l.Holes()[0]; got.After != want[h.Start.Seq].Pos() || got.Start != h.Start {
		t.Fatalf("%+v", got)
	}
	if filled, err := l.Fill(want[h.Start.Seq+1:]); err != nil || !filled {
		t.Fatal(filled, err)
	}
	if corrupt := readAll(t, l, want); corrupt != nil || l.First() != 1 {
		t.Fatal(corrupt, l.First())
	}
}

// TestFillClosesLater: a hole that was filled when the disk refused its last step is
// closed by the next attempt, which needs nobody's entries.
func TestFillClosesLater(t *testing.T) {
	files := faultfs.New()
	l, want := hollow(t, files)
	h := l.Holes()[0]
	if filled, err := l.Fill(nil); filled || err != nil {
		t.Fatal("nothing was to be closed:", filled, err)
	}
	files.Inject(func(op faultfs.Op) faultfs.Fault {
		if op.Kind == faultfs.Rename && strings.HasSuffix(op.Name, segmentSuffix) {
			return faultfs.Fault{Err: syscall.EIO}
		}
		return faultfs.Fault{}
	})
	for _, entries := range [][]Entry{want[h.Start.Seq:h.Until.Seq], nil} {
		if filled, err := l.Fill(entries); filled || !errors.Is(err, syscall.EIO) {
			t.Fatal(filled, err)
		}
		if got := l.Holes(); len(got) != 1 || got[0] != (Hole{h.Start, h.Until, h.Until, framesOf(want[h.Start.Seq:h.Until.Seq])}) {
			t.Fatalf("%+v", got)
		}
	}
	files.Inject(nil)
	if filled, err := l.Fill(nil); !filled || err != nil || len(l.Holes()) != 0 || l.First() != 1 {
		t.Fatal(filled, err, l.Holes(), l.First())
	}
	if corrupt := readAll(t, l, want); corrupt != nil {
		t.Fatal(corrupt)
	}
	must(t, l.Close())
	if rep, err := verify(files, "log"); err != nil || rep.Base != (Pos{}) || rep.Head != l.Head() {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// TestRenameInDoubt: a name that can not be looked up is neither given nor gone.
func TestRenameInDoubt(t *testing.T) {
	files := faultfs.New()
	l, want := hollow(t, files)
	h := l.Holes()[0]
	tried := false
	files.Inject(func(op faultfs.Op) faultfs.Fault {
		tried = tried || op.Kind == faultfs.Rename && strings.HasSuffix(op.Name, segmentSuffix)
		if tried && (op.Kind == faultfs.Rename || op.Kind == faultfs.Stat) {
			return faultfs.Fault{Err: syscall.EIO}
		}
		return faultfs.Fault{}
	})
	if filled, err := l.Fill(want[h.Start.Seq:h.Until.Seq]); filled || !errors.Is(err, syscall.EIO) {
		t.Fatal("taken as renamed:", filled, err)
	}
	if got := l.Holes(); len(got) != 1 || got[0] != (Hole{h.Start, h.Until, h.Until, framesOf(want[h.Start.Seq:h.Until.Seq])}) {
		t.Fatalf("%+v", got)
	}
	// What fills it is taken away meanwhile: it has to come again.
	files.Inject(nil)
	must(t, files.Remove("log/"+segmentName(h.Start.Seq+1)+fillSuffix))
	if filled, err := l.Fill(nil); filled || err == nil {
		t.Fatal(filled, err)
	}
	if got := l.Holes(); len(got) != 1 || got[0] != h {
		t.Fatalf("%+v", got)
	}
	must(t, heal(l, want))
	if corrupt := readAll(t, l, want); corrupt != nil || l.First() != 1 {
		t.Fatal(corrupt, l.First())
	}
}

// TestTrimInDoubt: a segment that could not be removed stays, also when it can not be
// looked up: without it a later trim would leave a gap.
func TestTrimInDoubt(t *testing.T) {
	files := faultfs.New()
	l := created(t, "log", Options{FS: files, SegmentBytes: minSegmentBytes})
	appendN(t, l, 20, 700)
	files.Inject(func(op faultfs.Op) faultfs.Fault {
		if op.Kind == faultfs.Remove || op.Kind == faultfs.Stat {
			return faultfs.Fault{Err: syscall.EIO}
		}
		return faultfs.Fault{}
	})
	if first, err := l.Trim(15); first != 1 || !errors.Is(err, syscall.EIO) {
		t.Fatal(first, err)
	}
	files.Inject(nil)
	if first, err := l.Trim(15); first < 5 || err != nil {
		t.Fatal(first, err)
	}
	must(t, l.Close())
	if _, err := verify(files, "log"); err != nil {
		t.Fatal(err)
	}
}

func TestFillGoesOnAfterARestart(t *testing.T) {
	files := faultfs.New()
	l, want := hollow(t, files)
	h := l.Holes()[0]
	if _, err := l.Fill(want[h.Start.Seq : h.Start.Seq+3]); err != nil {
		t.Fatal(err)
	}
	must(t, l.Close())
	left := files.AfterPowerCut(rand.New(rand.NewPCG(3, 3)))
	l = open(t, "log", Options{FS: left, SegmentBytes: minSegmentBytes, Repair: true})
	if got := l.Holes()[0]; got.Start != h.Start || got.Until != h.Until || got.After != want[h.Start.Seq+2].Pos() {
		t.Fatalf("%+v", got)
	}
	must(t, heal(l, want))
	if corrupt := readAll(t, l, want); corrupt != nil || l.First() != 1 {
		t.Fatal(corrupt, l.First())
	}
}

// TestPowerCutsWhileMending cuts the power at every step of setting damage aside
// and of filling the hole: what is there afterwards is right, and can be mended.
func TestPowerCutsWhileMending(t *testing.T) {
	dir := t.TempDir()
	want := sample(t, dir, true)
	content, order := loadFiles(t, dir)
	for name, damage := range map[string]func(map[string][]byte){
		"an entry":       func(f map[string][]byte) { f[order[1]][1500] ^= 1 },
		"a header":       func(f map[string][]byte) { f[order[1]][20] ^= 1 },
		"a first header": func(f map[string][]byte) { f[order[0]][20] ^= 1 },
		"the tail":       func(f map[string][]byte) { f[order[len(order)-1]][900] ^= 1 },
		"a tail header":  func(f map[string][]byte) { f[order[len(order)-1]][10] ^= 1 },
		"a file is gone": func(f map[string][]byte) { delete(f, order[2]) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				files := map[string][]byte{}
				for name, b := range content {
					files[name] = bytes.Clone(b)
				}
				damage(files)
				fs := synced(t, files)
				begun := fs.Ops()
				fs.Inject(faultfs.From(begun+n, faultfs.Fault{Err: errCut, Applied: n%2 == 0, Short: 100}))
				o := Options{FS: fs, SegmentBytes: minSegmentBytes, Repair: true}
				if l, err := Open("log", o); err == nil {
					l.Scrub(t.Context(), 0)
					heal(l, want)
					l.Close() // all as far as it goes
				} else if !errors.Is(err, errCut) {
					t.Fatal(err)
				}
				done := fs.Ops() < begun+n
				for seed := range uint64(3) {
					left := fs.AfterPowerCut(rand.New(rand.NewPCG(seed, uint64(n))))
					t.Run("", func(t *testing.T) {
						defer func() {
							if t.Failed() {
								t.Logf("power cut at operation %d, seed %d", n, seed)
							}
						}()
						checkMendedSomehow(t, left, want)
					})
					if t.Failed() {
						return
					}
				}
				if done {
					if n < 10 {
						t.Fatalf("only %d operations", n)
					}
					return
				}
			}
		})
	}
}

// synced is inMemory, on stable storage.
func synced(t testing.TB, content map[string][]byte) *faultfs.FS {
	t.Helper()
	files := inMemory(t, content)
	for name := range content {
		f, err := files.OpenFile("log/"+name, os.O_RDWR, 0)
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
	must(t, files.SyncDir("log"))
	must(t, files.SyncDir("."))
	return files
}

func TestSkip(t *testing.T) {
	files := faultfs.New()
	o := Options{FS: files, SegmentBytes: minSegmentBytes, Repair: true}
	whole := created(t, t.TempDir(), Options{})
	appendN(t, whole, 30, 500)
	want := readTo(t, whole, Pos{}, 31)
	l := open(t, "log", o)
	if err := l.Skip(want[3].Pos()); !errors.Is(err, ErrEmpty) {
		t.Fatal(err)
	}
	_, err := l.AppendEntries(want[:12])
	must(t, err)
	for _, to := range []Pos{want[11].Pos(), want[3].Pos()} {
		if err := l.Skip(to); err == nil {
			t.Fatal("skipped back to", to)
		}
	}
	must(t, l.Skip(want[19].Pos()))
	hole := Hole{Start: want[11].Pos(), After: want[11].Pos(), Until: want[19].Pos()}
	for range 2 {
		if got := l.Holes(); len(got) != 1 || got[0] != hole || l.First() != 21 || l.Head() != want[19].Pos() {
			t.Fatalf("%+v, %d to %v", got, l.First(), l.Head())
		}
		must(t, l.Close())
		l = open(t, "log", o)
	}
	_, err = l.AppendEntries(want[20:25])
	must(t, err)
	must(t, heal(l, want))
	if corrupt := readAll(t, l, want); corrupt != nil || l.First() != 1 {
		t.Fatal(corrupt, l.First())
	}
}

func TestTrimAcrossHoles(t *testing.T) {
	files := faultfs.New()
	l, want := hollow(t, files)
	h := l.Holes()[0]
	if _, err := l.Fill(want[h.Start.Seq : h.Start.Seq+3]); err != nil {
		t.Fatal(err)
	}
	if first, err := l.Trim(h.Until.Seq - 1); err != nil || first != h.Until.Seq+1 || len(l.Holes()) != 1 {
		t.Fatal("a hole was trimmed that is still needed", first, err)
	}
	if first, err := l.Trim(h.Until.Seq); err != nil || first != h.Until.Seq+1 || len(l.Holes()) != 0 {
		t.Fatal(first, err, l.Holes())
	}
	entries, err := files.ReadDir("log")
	must(t, err)
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), fillSuffix) }) {
		t.Fatal("what was filled of the hole is left")
	}
	if corrupt := readAll(t, l, want); corrupt != nil {
		t.Fatal(corrupt)
	}
	// Reset drops holes, too.
	l, want = hollow(t, faultfs.New())
	must(t, l.Reset(testID, want[5].Pos()))
	if len(l.Holes()) != 0 || l.Head() != want[5].Pos() {
		t.Fatal(l.Holes(), l.Head())
	}
}

// TestWriterRefusesDamage: a log that nobody else has is not mended.
func TestWriterRefusesDamage(t *testing.T) {
	var told []Damage
	l, files, want := damaged(t, Options{Damaged: func(d Damage) { told = append(told, d) }})
	before, err := files.ReadDir("log")
	must(t, err)
	corrupt := readAll(t, l, want)
	rep, err := l.Scrub(t.Context(), 0)
	must(t, err)
	if corrupt == nil || len(rep.Damaged) != 1 || *rep.Damaged[0] != *corrupt || len(l.Holes()) != 0 || l.First() != 1 {
		t.Fatal(corrupt, rep, told, l.Holes())
	}
	// Whoever met it told, and of the same place.
	if len(told) != 2 || told[0].Kind != RefusedSegment || *told[0].Err != *corrupt || told[1].Kind != RefusedSegment || *told[1].Err != *corrupt {
		t.Fatalf("told %+v", told)
	}
	if after, err := files.ReadDir("log"); err != nil || len(after) != len(before) {
		t.Fatal("files were changed", err)
	}
}

// TestReadersTellWhatIsLost: what the disk does not return is damage also when a reader
// meets it, and what could not be read for another reason is not.
func TestReadersTellWhatIsLost(t *testing.T) {
	for _, kind := range []faultfs.Kind{faultfs.Read, faultfs.Open} {
		for _, err := range []error{syscall.EIO, syscall.EMFILE} {
			var told []Damage
			files := faultfs.New()
			l := created(t, "log", Options{FS: files, SegmentBytes: minSegmentBytes, Damaged: func(d Damage) { told = append(told, d) }})
			appendN(t, l, 30, 600)
			st := l.snapshot()
			bad := st.all()[2].name()
			files.Inject(func(op faultfs.Op) faultfs.Fault {
				if op.Kind == kind && strings.HasSuffix(op.Name, bad) {
					return faultfs.Fault{Err: err}
				}
				return faultfs.Fault{}
			})
			r := reader(t, l, Pos{})
			var met error
			for met == nil {
				_, met = r.Next(t.Context(), 1<<10)
			}
			if want := err == syscall.EIO; !errors.Is(met, err) || (len(told) == 1) != want || want && (told[0].Kind != RefusedSegment || told[0].Err.Segment != bad) {
				t.Errorf("%s %v: %v, told %+v", kind, err, met, told)
			}
		}
	}
}

// TestEvidenceIsBounded: however much is damaged, only some of it is kept.
func TestEvidenceIsBounded(t *testing.T) {
	dir := t.TempDir()
	want := sample(t, dir, true)
	o := Options{SegmentBytes: minSegmentBytes, Repair: true}
	for round := range 12 {
		_, order := loadFiles(t, dir)
		order = slices.DeleteFunc(order, func(name string) bool { return !strings.HasSuffix(name, segmentSuffix) })
		path := filepath.Join(dir, order[round%(len(order)-1)])
		b, err := os.ReadFile(path)
		must(t, err)
		b[len(b)/2] ^= 1
		must(t, os.WriteFile(path, b, 0o600))
		l := open(t, dir, o)
		if rep, err := l.Scrub(t.Context(), 0); err != nil || len(rep.Damaged) != 1 {
			t.Fatal(rep, err)
		}
		must(t, heal(l, want))
		must(t, l.Close())
		kept, err := filepath.Glob(filepath.Join(dir, "*"+evidenceSuffix))
		if err != nil || len(kept) == 0 || len(kept) > maxEvidence {
			t.Fatalf("%d pieces of evidence, %v", len(kept), err)
		}
	}
}

// TestSalvage reads on in the files of a log that is damaged in several places.
func TestSalvage(t *testing.T) {
	dir := t.TempDir()
	want := sample(t, dir, true)
	content, order := loadFiles(t, dir)
	tail := order[len(order)-1]
	content[order[1]][1700] ^= 1
	content[order[2]][30] ^= 1 // its header
	content[tail][200] ^= 1    // the tail's first entry
	files := inMemory(t, content)
	first := uint64(0)
	var ends []uint64
	for from := uint64(0); from < uint64(len(want)); from++ {
		after := Pos{}
		if from > 0 {
			after = want[from-1].Pos()
		}
		next := from
		got, err := salvageAll(files, "log", after, func(entries []Entry) error {
			for _, e := range entries {
				if !bytes.Equal(e.frame, want[next].frame) {
					t.Fatalf("entry %d after %d is another", e.Seq, next)
				}
				next++
			}
			return nil
		})
		if end := got.End; err != nil || end.Seq != next || next > 0 && end != want[next-1].Pos() {
			t.Fatal(from, next, end, err)
		}
		if got.Told != uint64(len(want)) || got.Unread != nil {
			t.Fatalf("from %d: %+v", from, got)
		}
		if len(ends) == 0 || ends[len(ends)-1] != next {
			ends = append(ends, next)
		}
		if from == 0 {
			first = next
		}
	}
	// One entry is lost in the second segment, none in the third, one in the tail.
	if tailFirst, _ := parseSegmentName(tail); len(ends) != 3 || first < 8 || ends[1] != tailFirst-1 || ends[2] != uint64(len(want)) {
		t.Fatalf("salvaged up to %d", ends)
	}
	if got, err := salvageAll(files, "log", Pos{Seq: 3, Hash: Hash{1}}, nil); err != nil || got.End.Seq != 3 {
		t.Fatal("another history was continued", got, err)
	}
}

// TestSalvagePassesUnreadFiles: a file that can not be read keeps nothing from what the
// others hold, and what it may hold is told.
func TestSalvagePassesUnreadFiles(t *testing.T) {
	dir := t.TempDir()
	want := sample(t, dir, true)
	content, order := loadFiles(t, dir)
	files := inMemory(t, content)
	var firsts []uint64
	for _, name := range order {
		first, _ := parseSegmentName(name)
		firsts = append(firsts, first)
	}
	bad := ""
	files.Inject(func(op faultfs.Op) faultfs.Fault {
		if op.Kind == faultfs.Open && strings.HasSuffix(op.Name, bad) {
			return faultfs.Fault{Err: syscall.EIO}
		}
		return faultfs.Fault{}
	})
	last := len(order) - 1
	for _, c := range []struct {
		bad, from int // segments
		end       uint64
		unread    bool
	}{
		{bad: 1, from: 2, end: uint64(len(want))}, // it is behind
		{bad: 1, from: 0, end: firsts[1] - 1, unread: true},
		{bad: last, from: 0, end: firsts[last] - 1, unread: true},
	} {
		bad = order[c.bad]
		after := Pos{}
		if c.from > 0 {
			after = want[firsts[c.from]-2].Pos()
		}
		got, err := salvageAll(files, "log", after, func([]Entry) error { return nil })
		told := uint64(len(want))
		if c.bad == last {
			told = c.end
		}
		if err != nil || got.End.Seq != c.end || got.Told != told || (len(got.Unread) == 1) != c.unread {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
	if _, err := salvageAll(files, "log", Pos{}, func([]Entry) error { return errCut }); !errors.Is(err, errCut) {
		t.Error("an error of the taker is lost:", err)
	}
}
