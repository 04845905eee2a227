package txlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/internal/faultfs"
)

// inMemoryLog returns a log of small segments that needs no disk.
func inMemoryLog(t testing.TB) *Log {
	return created(t, "log", Options{FS: faultfs.New(), SegmentBytes: minSegmentBytes})
}

func reader(t testing.TB, l *Log, pos Pos) *Reader {
	t.Helper()
	r, err := l.Reader(pos)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

type result struct {
	entries []Entry
	err     error
}

// next calls Next in the background.
func next(ctx context.Context, r *Reader) <-chan result {
	c := make(chan result, 1)
	go func() {
		entries, err := r.Next(ctx, 1<<20)
		c <- result{entries, err}
	}()
	return c
}

func await[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("timed out")
		panic("unreachable")
	}
}

func TestReaderWaitsAtTheHead(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(l *Log, r *Reader, cancel func()) error
		want error // nil: one entry
	}{
		{"until an entry comes", func(l *Log, r *Reader, _ func()) error { _, err := l.Append(t.Context(), put("k", "v")); return err }, nil},
		{"until its context ends", func(_ *Log, _ *Reader, cancel func()) error { cancel(); return nil }, context.Canceled},
		{"until it is closed", func(_ *Log, r *Reader, _ func()) error { return r.Close() }, ErrClosed},
		{"until the log is closed", func(l *Log, _ *Reader, _ func()) error { return l.Close() }, ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := inMemoryLog(t)
			r := reader(t, l, l.Head())
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			got := next(ctx, r)
			select {
			case g := <-got:
				t.Fatalf("did not wait: %v", g)
			case <-time.After(10 * time.Millisecond): // time to go wrong
			}
			must(t, c.do(l, r, cancel))
			g := await(t, got)
			if !errors.Is(g.err, c.want) || c.want == nil && (g.err != nil || len(g.entries) != 1) {
				t.Fatalf("%d entries, %v", len(g.entries), g.err)
			}
		})
	}
	t.Run("of an empty log", func(t *testing.T) {
		l := open(t, "log", Options{FS: faultfs.New()})
		if l.First() != 0 || !l.Head().IsZero() || !l.Dataset().IsZero() || !l.HeadTime().IsZero() || l.Bytes() != 0 {
			t.Fatal("not empty")
		}
		got := next(t.Context(), reader(t, l, Pos{}))
		late := reader(t, l, Pos{})
		pos, err := l.Create(testID)
		must(t, err)
		if g := await(t, got); g.err != nil || g.entries[0].Pos() != pos {
			t.Fatal(g)
		}
		must(t, l.Reset(testID, Pos{Seq: 5, Hash: Hash{5}}))
		var trimmed *TrimmedError
		if _, err := late.Next(t.Context(), 1); !errors.As(err, &trimmed) || *trimmed != (TrimmedError{Asked: 0, First: 6}) {
			t.Fatal(err)
		}
	})
}

func TestReaderPositions(t *testing.T) {
	l := inMemoryLog(t)
	at := append([]Pos{{}, l.Head()}, appendN(t, l, 30, 700)...)
	first, err := l.Trim(12)
	must(t, err)
	if first < 2 || first > 13 {
		t.Fatal(first)
	}
	head := l.Head().Seq
	for _, c := range []struct {
		name    string
		pos     Pos
		trimmed *TrimmedError
		other   *DivergedError
	}{
		{name: "oldest", pos: at[first-1]},
		{name: "within a segment", pos: at[head-3]},
		{name: "head", pos: at[head]},
		{name: "trimmed", pos: at[first-2], trimmed: &TrimmedError{Asked: first - 2, First: first}},
		{name: "the beginning", trimmed: &TrimmedError{Asked: 0, First: first}},
		{name: "other hash at the oldest", pos: Pos{first - 1, Hash{1}}, other: &DivergedError{first - 1, at[first-1].Hash, Hash{1}}},
		{name: "other hash", pos: Pos{head - 2, Hash{1}}, other: &DivergedError{head - 2, at[head-2].Hash, Hash{1}}},
		{name: "other hash at the head", pos: Pos{head, Hash{1}}, other: &DivergedError{head, at[head].Hash, Hash{1}}},
		{name: "ahead", pos: Pos{head + 1, Hash{1}}, other: &DivergedError{head + 1, Hash{}, Hash{1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := l.Reader(c.pos)
			var trimmed *TrimmedError
			var diverged *DivergedError
			switch {
			case err == nil:
				defer r.Close()
				if c.trimmed != nil || c.other != nil {
					t.Fatal("no error")
				}
			case errors.As(err, &trimmed):
				if c.trimmed == nil || *trimmed != *c.trimmed {
					t.Fatal(err)
				}
			case errors.As(err, &diverged):
				if c.other == nil || *diverged != *c.other {
					t.Fatalf("%v, want %v", err, c.other)
				}
			default:
				t.Fatal(err)
			}
		})
	}
}

func TestTrim(t *testing.T) {
	l := inMemoryLog(t)
	at := append([]Pos{{}, l.Head()}, appendN(t, l, 40, 700)...)
	slow := reader(t, l, Pos{})
	fast := reader(t, l, at[20])
	if got, err := slow.Next(t.Context(), 1); err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	for _, upTo := range []uint64{0, 1, 3, 10, 10, 25} {
		before, size := l.First(), l.Bytes()
		first, err := l.Trim(upTo)
		must(t, err)
		if first != l.First() || first > upTo+1 || first < before || (first > before) != (l.Bytes() < size) {
			t.Fatalf("trimmed up to %d: first is %d, was %d", upTo, first, before)
		}
	}
	// The slow reader ends with the file that it has open, the fast one has lost nothing.
	seq, trimmed := uint64(1), (*TrimmedError)(nil)
	for {
		got, err := slow.Next(t.Context(), 1000)
		if errors.As(err, &trimmed) {
			break
		}
		must(t, err)
		for _, e := range got {
			if seq++; e.Pos() != at[seq] {
				t.Fatal(e.Pos())
			}
		}
	}
	if seq < 2 || trimmed.Asked != seq || trimmed.First != l.First() {
		t.Fatalf("after entry %d: %v", seq, trimmed)
	}
	for seq := uint64(20); seq < l.Head().Seq; {
		got, err := fast.Next(t.Context(), 1)
		must(t, err)
		if len(got) != 1 {
			t.Fatalf("%d entries for a byte", len(got))
		}
		if seq++; got[0].Pos() != at[seq] {
			t.Fatal(got[0].Pos())
		}
	}
	first, err := l.Trim(1 << 60)
	must(t, err)
	if st := l.snapshot(); len(st.segments) != 1 || first != st.tail().first {
		t.Fatal("the tail must stay:", first)
	}
	appendN(t, l, 1, 10)
	readTo(t, l, at[first-1], l.Head().Seq)
}

func TestResetEndsReaders(t *testing.T) {
	l := inMemoryLog(t)
	all := appendN(t, l, 20, 700)
	r := reader(t, l, all[2])
	behind := next(t.Context(), reader(t, l, l.Head()))
	base := Pos{Seq: 10, Hash: Hash{10}}
	must(t, l.Reset(testID, base))
	var trimmed *TrimmedError
	if _, err := r.Next(t.Context(), 1); !errors.As(err, &trimmed) || *trimmed != (TrimmedError{Asked: all[2].Seq, First: 11}) {
		t.Fatal(err)
	}
	if g := await(t, behind); !errors.As(g.err, &trimmed) {
		t.Fatal(g)
	}
	again := appendN(t, l, 20, 700)
	if got := readTo(t, l, base, l.Head().Seq); got[0].Prev != base.Hash || got[19].Pos() != again[19] {
		t.Fatal(got[0].Prev)
	}
}

// TestSeekEverywhere starts readers at every position of segments that are larger
// than a chunk and hold entries that are, too.
func TestSeekEverywhere(t *testing.T) {
	fs := faultfs.New()
	l := created(t, "log", Options{FS: fs, SegmentBytes: 4 << 20})
	rng := rand.New(rand.NewPCG(1, 2))
	var entries []Entry
	at := []Pos{{}, l.Head()}
	for i := range 400 {
		size := rng.IntN(20_000)
		if i%50 == 0 {
			size = chunkSize + rng.IntN(2*writeSize)
		}
		e, err := Seal(at[len(at)-1], 1, time.Unix(int64(i), 0), put("key", markMagic+string(make([]byte, size))))
		must(t, err)
		entries, at = append(entries, e), append(at, e.Pos())
	}
	_, err := l.AppendEntries(entries)
	must(t, err)
	for _, reopened := range []bool{false, true} {
		if reopened {
			must(t, l.Close())
			l = open(t, "log", Options{FS: fs, SegmentBytes: 4 << 20})
		}
		for _, i := range rng.Perm(len(at) - 1) {
			r := reader(t, l, at[i])
			got, err := r.Next(t.Context(), 1)
			if err != nil || len(got) != 1 || got[0].Pos() != at[i+1] {
				t.Fatalf("after %d: %v, %v", i, got, err)
			}
			must(t, r.Close())
		}
	}
	if n := len(readTo(t, l, Pos{}, l.Head().Seq)); n != len(at)-1 {
		t.Fatal(n)
	}
}

// TestEverythingAtOnce runs writers, readers and a trimmer together.
func TestEverythingAtOnce(t *testing.T) {
	l := inMemoryLog(t)
	const writers, each = 8, 150
	last := uint64(1 + writers*each)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := l.Append(t.Context(), put(fmt.Sprint(w, i), string(make([]byte, 100)))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			var at Pos
			for at.Seq < last {
				r, err := l.Reader(at)
				for err == nil && at.Seq < last {
					var got []Entry
					if got, err = r.Next(t.Context(), 5000); err == nil {
						if got[0].Prev != at.Hash {
							t.Errorf("%v follows %v", got[0].Pos(), at)
						}
						at = got[len(got)-1].Pos()
					}
				}
				if r != nil {
					r.Close()
				}
				var trimmed *TrimmedError
				if errors.As(err, &trimmed) { // overtaken: start where the log does
					st := l.snapshot()
					at = st.segments[0].base()
				} else if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for l.Head().Seq < last {
			if _, err := l.Trim(l.Head().Seq / 2); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}

func TestCloseAnswersEverybody(t *testing.T) {
	l := inMemoryLog(t)
	var wg sync.WaitGroup
	acked := make(chan Pos, 10_000)
	for range 16 {
		wg.Go(func() {
			for {
				p, err := l.Append(context.Background(), put("k", "v"))
				if err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
				select {
				case acked <- p:
				default:
				}
			}
		})
	}
	await(t, acked)
	must(t, l.Close())
	wg.Wait()
	_, appendErr := l.AppendEntries([]Entry{{Seq: 9, frame: []byte("x")}})
	_, createErr := l.Create(testID)
	_, trimErr := l.Trim(5)
	_, readErr := l.Reader(Pos{})
	for i, err := range []error{appendErr, createErr, trimErr, readErr, l.Reset(testID, Pos{})} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestAppendRefusals(t *testing.T) {
	l := inMemoryLog(t)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	empty := open(t, "log", Options{FS: faultfs.New()})
	var limit *LimitError
	for _, c := range []struct {
		name string
		do   func() error
		ok   func(error) bool
	}{
		{"no operations", func() error { _, err := l.Append(t.Context(), nil); return err }, func(err error) bool { return errors.Is(err, ErrEmptyTransaction) }},
		{"over a limit", func() error { _, err := l.Append(t.Context(), []Op{{Kind: Put}}); return err }, func(err error) bool { return errors.As(err, &limit) && limit.What == "key" }},
		{"init", func() error { _, err := l.Append(t.Context(), []Op{{Kind: Init, Value: testID[:]}}); return err }, func(err error) bool { return err != nil }},
		{"context over", func() error { _, err := l.Append(done, put("k", "v")); return err }, func(err error) bool { return errors.Is(err, context.Canceled) }},
		{"empty log", func() error { _, err := empty.Append(t.Context(), put("k", "v")); return err }, func(err error) bool { return errors.Is(err, ErrEmpty) }},
		{"created twice", func() error { _, err := l.Create(testID); return err }, func(err error) bool { return err != nil }},
		{"no dataset", func() error { _, err := empty.Create(DatasetID{}); return err }, func(err error) bool { return err != nil }},
		{"reset without a dataset", func() error { return l.Reset(DatasetID{}, Pos{}) }, func(err error) bool { return err != nil }},
		{"entry made by hand", func() error { _, err := l.AppendEntries([]Entry{{Seq: 2}}); return err }, func(err error) bool { return err != nil }},
		{"another dataset", func() error {
			e, err := Seal(Pos{}, 1, time.Now(), []Op{{Kind: Init, Value: make([]byte, 16)}})
			must(t, err)
			_, err = l.AppendEntries([]Entry{e})
			return err
		}, func(err error) bool { return err != nil }},
	} {
		if err := c.do(); !c.ok(err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if l.Head().Seq != 1 || empty.First() != 0 {
		t.Fatal("something was written")
	}
	if p, err := l.AppendEntries(nil); err != nil || p != l.Head() {
		t.Fatal(p, err)
	}
}

// TestBigEntries queues more than the queue may hold.
func TestBigEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("needs 500 MiB")
	}
	l := created(t, t.TempDir(), Options{})
	value := make([]byte, MaxValue)
	ops := []Op{{Put, []byte("a"), value}, {Put, []byte("b"), value}, {Put, []byte("c"), value}}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := l.Append(t.Context(), ops); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := readTo(t, l, Pos{}, 4); len(got[3].Frame()) < 3*MaxValue {
		t.Fatal(len(got[3].Frame()))
	}
}
