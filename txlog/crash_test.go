package txlog

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/faultfs"
)

var errCut = errors.New("power cut")

// history is what a log's callers know of it.
type history struct {
	dataset DatasetID
	base    uint64
	acked   map[uint64]Hash // of every entry that was acknowledged
	head    uint64          // the last of them, or the base
	trimmed uint64          // entries up to here may be gone
}

func (h history) clone() history {
	acked := map[uint64]Hash{}
	for seq, hash := range h.acked {
		acked[seq] = hash
	}
	h.acked = acked
	return h
}

func (h *history) ack(p Pos) {
	h.acked[p.Seq], h.head = p.Hash, p.Seq
}

// check reads the whole log and compares.
func (h *history) check(l *Log) error {
	if l.Dataset() != h.dataset {
		return fmt.Errorf("dataset is %s, want %s", l.Dataset(), h.dataset)
	}
	if h.dataset.IsZero() {
		return nil
	}
	first, head := l.First(), l.Head()
	if head.Seq < h.head {
		return fmt.Errorf("head is %d, but %d was acknowledged", head.Seq, h.head)
	}
	if first <= h.base || first > h.trimmed+1 {
		return fmt.Errorf("first is %d; base is %d, and up to %d was trimmed", first, h.base, h.trimmed)
	}
	st := l.snapshot()
	at := st.segments[0].base()
	r, err := l.Reader(at)
	if err != nil {
		return err
	}
	defer r.Close()
	for at.Seq < head.Seq {
		entries, err := r.Next(context.Background(), 1000)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if want, ok := h.acked[e.Seq]; ok && want != e.Hash {
				return fmt.Errorf("entry %d is %s, acknowledged was %s", e.Seq, e.Hash, want)
			}
			if e.Prev != at.Hash || e.Seq != at.Seq+1 {
				return fmt.Errorf("%v follows %v", e.Pos(), at)
			}
			at = e.Pos()
		}
	}
	if at != head {
		return fmt.Errorf("read up to %v, head is %v", at, head)
	}
	return nil
}

// life runs a log through everything that changes files, as far as fs lets it,
// and returns what may be there afterwards: during a Create or Reset one thing
// or another. A log that failed is opened again.
func life(t *testing.T, fs *faultfs.FS) []history {
	now := time.Unix(1_000_000, 0)
	o := Options{FS: fs, SegmentBytes: minSegmentBytes, Now: func() time.Time { now = now.Add(time.Second); return now }}
	h := history{acked: map[uint64]Hash{}}
	var either []history // instead of h while it is not known
	l, err := Open("log", o)
	for tries := 0; err != nil; tries++ {
		if errors.Is(err, errCut) {
			return []history{h}
		}
		if tries == 3 {
			t.Fatalf("cannot open: %v", err)
		}
		l, err = Open("log", o)
	}
	// reopen closes and opens the log, and finds out which it is.
	reopen := func() bool {
		for tries := 0; ; tries++ {
			l.Close() // what it cannot do is checked by what is there
			again, err := Open("log", o)
			if errors.Is(err, errCut) {
				return false
			}
			if err != nil {
				if tries == 3 {
					t.Fatalf("cannot open again: %v", err)
				}
				continue
			}
			l = again
			for _, e := range either {
				if e.check(l) == nil {
					h, either = e, nil
					break
				}
			}
			if either != nil {
				t.Fatalf("neither the old log nor the new one: %v, %v", either[0].check(l), either[1].check(l))
			}
			if err := h.check(l); err != nil {
				t.Fatalf("opened again: %v", err)
			}
			return true
		}
	}
	// step returns false when the power is cut. Other errors are followed by a
	// second try on a log that was opened again if it failed.
	step := func(do func() error) bool {
		for tries := 0; ; tries++ {
			err := do()
			if err == nil {
				return true
			}
			if errors.Is(err, errCut) {
				return false
			}
			if tries == 3 {
				t.Fatal(err)
			}
			if errors.Is(err, ErrFailed) && !reopen() {
				return false
			}
		}
	}
	appendSome := func(n, size int) func() error {
		return func() error {
			for range n {
				p, err := l.Append(context.Background(), put("key", string(make([]byte, size))))
				if err != nil {
					return err
				}
				h.ack(p)
			}
			return nil
		}
	}
	appendSealed := func(n, size int) func() error {
		return func() error {
			var entries []Entry
			at := l.Head()
			for range n {
				e, err := Seal(at, writerEpoch, o.Now(), put("sealed", string(make([]byte, size))))
				must(t, err)
				entries, at = append(entries, e), e.Pos()
			}
			if _, err := l.AppendEntries(entries); err != nil {
				return err
			}
			for _, e := range entries {
				h.ack(e.Pos())
			}
			return nil
		}
	}
	replace := func(next history, do func() error) func() error {
		return func() error {
			if l.Dataset() == next.dataset && l.First() == next.base+1 && l.Head().Seq == next.head {
				h, either = next, nil // an earlier try did it
				return nil
			}
			either = []history{h.clone(), next}
			err := do()
			if err == nil {
				h, either = next, nil
			} else if !errors.Is(err, ErrFailed) && !errors.Is(err, errCut) {
				either = nil
			}
			return err
		}
	}
	resetBase := Pos{Seq: 12, Hash: Hash{12}}
	other := DatasetID{7}
	steps := []func() error{
		replace(history{dataset: testID, acked: map[uint64]Hash{}, head: 1}, func() error { _, err := l.Create(testID); return err }),
		appendSome(4, 10),
		appendSome(1, 2000),
		appendSealed(6, 200),
		appendSome(3, 1500),
		func() error { return boolErr(reopen()) },
		appendSome(1, 9000),
		appendSome(5, 1200),
		func() error {
			upTo := uint64(15)
			h.trimmed = upTo
			_, err := l.Trim(upTo)
			return err
		},
		appendSome(2, 100),
		replace(history{dataset: other, base: 12, head: 12, trimmed: 12, acked: map[uint64]Hash{}}, func() error { return l.Reset(other, resetBase) }),
		appendSealed(7, 1000),
		appendSome(2, 100),
		func() error { return boolErr(reopen()) },
		appendSome(2, 100),
	}
	defer func() { l.Close() }()
	for _, do := range steps {
		if !step(do) {
			break
		}
	}
	if either != nil {
		return either
	}
	return []history{h}
}

func boolErr(ok bool) error {
	if !ok {
		return errCut
	}
	return nil
}

// survives opens what a power cut left, after cutting the power once more in the
// middle of that, and compares with what may be there.
func survives(t *testing.T, left *faultfs.FS, rng *rand.Rand, may []history) {
	t.Helper()
	left.Inject(faultfs.From(1+rng.IntN(8), faultfs.Fault{Err: errCut, Applied: rng.IntN(2) == 0}))
	if l, err := Open("log", Options{FS: left}); err == nil {
		l.Close() // may be cut
	} else if !errors.Is(err, errCut) {
		t.Fatalf("opening: %v", err)
	}
	left = left.AfterPowerCut(rng)

	rep, err := verify(left, "log")
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		t.Fatalf("verifying: %v", err)
	}
	l, err := Open("log", Options{FS: left, SegmentBytes: minSegmentBytes})
	if err != nil {
		t.Fatalf("opening again: %v", err)
	}
	defer l.Close()
	if l.Head() != rep.Head {
		t.Fatalf("Open found %v, Verify %v", l.Head(), rep.Head)
	}
	var errs []error
	for _, h := range may {
		err := h.check(l)
		if err == nil {
			h = h.clone()
			if !l.Dataset().IsZero() {
				p, err := l.Append(context.Background(), put("after", "the cut"))
				must(t, err)
				h.ack(p)
			}
			must(t, l.Close())
			l, err = Open("log", Options{FS: left.AfterPowerCut(rng)})
			must(t, err)
			must(t, h.check(l))
			must(t, l.Close())
			return
		}
		errs = append(errs, err)
	}
	t.Fatal(errors.Join(errs...))
}

// TestPowerCutAtEveryStep cuts the power at each operation of a log's life.
func TestPowerCutAtEveryStep(t *testing.T) {
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied=%t", applied), func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				fs := faultfs.New()
				fs.Inject(faultfs.From(n, faultfs.Fault{Err: errCut, Applied: applied, Short: n % 700}))
				may := life(t, fs)
				for seed := range uint64(5) {
					rng := rand.New(rand.NewPCG(seed, uint64(n)))
					t.Run("", func(t *testing.T) {
						defer func() {
							if t.Failed() {
								t.Logf("power cut at operation %d, seed %d", n, seed)
							}
						}()
						survives(t, fs.AfterPowerCut(rng), rng, may)
					})
				}
				if fs.Ops() < n {
					if n < 100 {
						t.Fatalf("a life has only %d operations", n)
					}
					return
				}
			}
		})
	}
}

// TestOneFaultAtEveryStep fails one operation of a log's life, which must go on,
// and cuts the power at its end.
func TestOneFaultAtEveryStep(t *testing.T) {
	for _, fault := range []faultfs.Fault{
		{Err: syscall.EIO},
		{Err: syscall.EIO, Applied: true},
		{Err: syscall.ENOSPC, Short: 50},
	} {
		t.Run(fmt.Sprintf("%+v", fault), func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				fs := faultfs.New()
				fs.Inject(faultfs.At(n, fault))
				may := life(t, fs)
				for seed := range uint64(3) {
					rng := rand.New(rand.NewPCG(seed, uint64(n)))
					t.Run("", func(t *testing.T) {
						defer func() {
							if t.Failed() {
								t.Logf("fault at operation %d, seed %d", n, seed)
							}
						}()
						survives(t, fs.AfterPowerCut(rng), rng, may)
					})
				}
				if fs.Ops() < n {
					return
				}
			}
		})
	}
}
