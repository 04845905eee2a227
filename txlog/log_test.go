package txlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testID = DatasetID{0xda, 0x7a}

func open(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

// created opens a log that holds entry 1.
func created(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l := open(t, dir, o)
	if _, err := l.Create(testID); err != nil {
		t.Fatal(err)
	}
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(key, value string) []Op { return []Op{{Kind: Put, Key: []byte(key), Value: []byte(value)}} }

// appendN appends n entries one after the other and returns their positions.
func appendN(t testing.TB, l *Log, n, valueSize int) []Pos {
	t.Helper()
	var all []Pos
	for range n {
		seq := l.Head().Seq + 1
		p, err := l.Append(t.Context(), put(fmt.Sprintf("key-%d", seq), string(make([]byte, valueSize))))
		must(t, err)
		if p != l.Head() || p.Seq != seq {
			t.Fatalf("appended %v as entry %d, head is %v", p, seq, l.Head())
		}
		all = append(all, p)
	}
	return all
}

// readTo returns the entries after pos up to seq.
func readTo(t testing.TB, l *Log, pos Pos, seq uint64) []Entry {
	t.Helper()
	r, err := l.Reader(pos)
	must(t, err)
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all []Entry
	for pos.Seq < seq {
		some, err := r.Next(ctx, 1<<16)
		if err != nil {
			t.Fatalf("read after %d: %v", pos.Seq, err)
		}
		for _, e := range some {
			if e.Prev != pos.Hash || e.Seq != pos.Seq+1 {
				t.Fatalf("entry %v follows %v", e.Pos(), pos)
			}
			pos = e.Pos()
		}
		all = append(all, some...)
	}
	return all
}

func TestAppendAndReadAcrossSegments(t *testing.T) {
	dir := t.TempDir()
	reg := prometheus.NewRegistry()
	o := Options{SegmentBytes: minSegmentBytes, Registerer: reg}
	l := created(t, dir, o)
	want := append([]Pos{l.Head()}, appendN(t, l, 200, 100)...)
	for i := range want {
		from := Pos{}
		if i > 0 {
			from = want[i-1]
		}
		got := readTo(t, l, from, want[len(want)-1].Seq)
		for j, e := range got {
			if e.Pos() != want[i+j] {
				t.Fatalf("after %v entry %d is %v, want %v", from, j, e.Pos(), want[i+j])
			}
		}
	}
	for range 3 {
		head, at, size := l.Head(), l.HeadTime(), l.Bytes()
		must(t, l.Close())
		must(t, l.Close())
		rep, err := Verify(dir)
		must(t, err)
		if rep.Head != head || rep.Entries != head.Seq || rep.TornTail != 0 || rep.Dataset != testID || rep.Segments < 5 {
			t.Fatalf("%+v, head was %v", rep, head)
		}
		l = open(t, dir, o)
		if l.Head() != head || l.Dataset() != testID || l.First() != 1 || !l.HeadTime().Equal(at) || l.Bytes() < size {
			t.Fatalf("reopened at %v of %v, first %d, time %v", l.Head(), l.Dataset(), l.First(), l.HeadTime())
		}
		appendN(t, l, 1, 10)
	}
}

func TestConcurrentAppendsAreAllThereOnce(t *testing.T) {
	l := created(t, t.TempDir(), Options{SegmentBytes: 1 << 16})
	const writers, each = 16, 50
	var wg sync.WaitGroup
	var mu sync.Mutex
	at := map[string]Pos{}
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 0))
			for i := range each {
				key := fmt.Sprintf("%d-%d", w, i)
				p, err := l.Append(t.Context(), put(key, string(make([]byte, rng.IntN(300)))))
				if err != nil {
					t.Error(err)
					return
				}
				if l.Head().Seq < p.Seq {
					t.Errorf("acknowledged %v, but head is %v", p, l.Head())
				}
				mu.Lock()
				at[key] = p
				mu.Unlock()
			}
		})
	}
	all := readTo(t, l, Pos{}, 1+writers*each)
	wg.Wait()
	for _, e := range all[1:] {
		if at[string(e.Ops[0].Key)] != e.Pos() {
			t.Fatalf("%s was acknowledged at %v, read at %v", e.Ops[0].Key, at[string(e.Ops[0].Key)], e.Pos())
		}
	}
	if len(all) != 1+writers*each {
		t.Fatalf("%d entries", len(all))
	}
}

func TestFollow(t *testing.T) {
	leader := created(t, t.TempDir(), Options{SegmentBytes: minSegmentBytes})
	appendN(t, leader, 100, 100)
	follower := open(t, t.TempDir(), Options{SegmentBytes: minSegmentBytes * 2})
	entries := readTo(t, leader, Pos{}, leader.Head().Seq)
	p, err := follower.AppendEntries(entries)
	must(t, err)
	if p != leader.Head() || follower.Dataset() != testID || !follower.HeadTime().Equal(leader.HeadTime()) {
		t.Fatalf("followed to %v", p)
	}
	for i, e := range readTo(t, follower, Pos{}, p.Seq) {
		if string(e.Frame()) != string(entries[i].Frame()) {
			t.Fatalf("entry %d has another frame", e.Seq)
		}
	}

	var diverged *DivergedError
	for _, bad := range [][]Entry{entries[:1], entries[50:], {entries[100]}} {
		if _, err := follower.AppendEntries(bad); !errors.As(err, &diverged) {
			t.Fatalf("appending entries %d…: %v", bad[0].Seq, err)
		}
	}
	must(t, follower.Reset(testID, entries[9].Pos()))
	if _, err := follower.AppendEntries(entries[11:20]); !errors.As(err, &diverged) || !diverged.Have.IsZero() {
		t.Fatal(err)
	}
	if follower.First() != 11 || follower.Head() != entries[9].Pos() || !follower.HeadTime().IsZero() {
		t.Fatalf("first %d, head %v", follower.First(), follower.Head())
	}
	if p, err := follower.AppendEntries(entries[10:]); err != nil || p != leader.Head() {
		t.Fatal(p, err)
	}
	var trimmed *TrimmedError
	if _, err := follower.Reader(entries[8].Pos()); !errors.As(err, &trimmed) || trimmed.First != 11 {
		t.Fatal(err)
	}
	readTo(t, follower, entries[9].Pos(), p.Seq)
}
