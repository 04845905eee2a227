package lmdbstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

var testDataset = txlog.DatasetID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// history makes entries that link, and knows the data they lead to.
type history struct {
	pos   txlog.Pos
	model map[string]string
}

func newHistory() *history { return &history{model: make(map[string]string)} }

func (h *history) entry(ops ...txlog.Op) txlog.Entry {
	e, err := txlog.Seal(h.pos, 1, time.Unix(1_700_000_000, int64(h.pos.Seq)+1), ops)
	if err != nil {
		panic(err)
	}
	for _, op := range ops {
		switch op.Kind {
		case txlog.Put:
			h.model[string(op.Key)] = string(op.Value)
		case txlog.Delete:
			delete(h.model, string(op.Key))
		}
	}
	h.pos = e.Pos()
	return e
}

func (h *history) begin() txlog.Entry {
	return h.entry(txlog.Op{Kind: txlog.Init, Value: testDataset[:]})
}

func put(key, value string) txlog.Op {
	return txlog.Op{Kind: txlog.Put, Key: []byte(key), Value: []byte(value)}
}

func del(key string) txlog.Op { return txlog.Op{Kind: txlog.Delete, Key: []byte(key)} }

// random makes one entry of random operations on a small key space, so that
// keys are overwritten and deleted.
func (h *history) random(r *rand.Rand) txlog.Entry {
	ops := make([]txlog.Op, 1+r.IntN(8))
	for i := range ops {
		key := fmt.Sprintf("key-%0*d", 1+r.IntN(30), r.IntN(2000))
		switch r.IntN(10) {
		case 0, 1, 2:
			ops[i] = del(key)
		case 3:
			ops[i] = put(key, "")
		case 4:
			ops[i] = put(key, string(bytes.Repeat([]byte{byte(r.IntN(256))}, r.IntN(20_000))))
		default:
			ops[i] = put(key, fmt.Sprint(r.Uint64()))
		}
	}
	return h.entry(ops...)
}

func (h *history) randoms(r *rand.Rand, n int) []txlog.Entry {
	entries := make([]txlog.Entry, n)
	for i := range entries {
		entries[i] = h.random(r)
	}
	return entries
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, s) })
	return s
}

func closed(t testing.TB, s interface{ Close() error }) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func apply(t testing.TB, s interface{ Apply([]txlog.Entry) error }, entries ...txlog.Entry) {
	t.Helper()
	if err := s.Apply(entries); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

type viewer interface{ View(func(*Tx) error) error }

// matches compares what a view sees with the model, by scan and by get.
func matches(t testing.TB, s viewer, h *history) {
	t.Helper()
	err := s.View(func(tx *Tx) error {
		state, err := tx.State()
		if err != nil {
			return err
		}
		if state.Pos != h.pos {
			t.Errorf("position is %v, want %v", state.Pos, h.pos)
		}
		got := make(map[string]string)
		err = tx.Scan(Range{}, func(k, v []byte) error {
			got[string(k)] = string(v)
			return nil
		})
		if err != nil {
			return err
		}
		if !maps.Equal(got, h.model) {
			t.Errorf("scan found %d pairs that differ from the model's %d", len(got), len(h.model))
		}
		if n, err := tx.Pairs(); err != nil || n != uint64(len(h.model)) {
			t.Errorf("Pairs() = %d, %v; want %d", n, err, len(h.model))
		}
		for k, want := range h.model {
			v, ok, err := tx.Get([]byte(k))
			if err != nil || !ok || string(v) != want {
				t.Errorf("get %q: %d bytes, %v, %v; want %d bytes", k, len(v), ok, err, len(want))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestModel(t *testing.T) {
	r := seeded(t)
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{MapSize: minMapBytes})
	apply(t, s, h.begin())
	for range 40 {
		apply(t, s, h.randoms(r, 1+r.IntN(60))...)
		if r.IntN(4) == 0 {
			closed(t, s)
			s = open(t, dir, Options{MapSize: minMapBytes})
		}
		matches(t, s, h)
	}
	if got := s.State(); got.Dataset != testDataset || got.Pos != h.pos || got.Time.UnixNano() != 1_700_000_000e9+int64(h.pos.Seq) {
		t.Errorf("state is %+v", got)
	}
}

func TestGet(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	apply(t, s, h.begin(), h.entry(put("a", "1"), put("empty", ""), put(string(bytes.Repeat([]byte{'k'}, 511)), "long")))
	for _, c := range []struct {
		key, want string
		ok        bool
	}{
		{"a", "1", true}, {"empty", "", true}, {"b", "", false}, {"", "", false},
		{string(bytes.Repeat([]byte{'k'}, 511)), "long", true},
		{string(bytes.Repeat([]byte{'k'}, 512)), "", false},
	} {
		got, ok, err := s.Get([]byte("dst:"), []byte(c.key))
		if err != nil || ok != c.ok || string(got) != "dst:"+c.want {
			t.Errorf("Get(%.10q) = %q, %v, %v", c.key, got, ok, err)
		}
	}
}

func TestScan(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	long := string(bytes.Repeat([]byte{0xff}, 511))
	keys := []string{"\x00", "a", "a\x00", "ab", "abc", "b", "ba", "c", "\xff", "\xff\xff", long}
	ops := make([]txlog.Op, len(keys))
	for i, k := range keys {
		ops[i] = put(k, "v"+k)
	}
	apply(t, s, h.begin(), h.entry(ops...))
	bounds := append(slices.Clone(keys), "", "0", "aa", "abcd", "d", "\xfe", long+"\x00", "a"+long, "ab"+long+"x")
	for _, prefix := range bounds {
		for _, start := range bounds {
			for _, end := range append(bounds, "nil") {
				for _, limit := range []int{0, 1, 3} {
					for _, reverse := range []bool{false, true} {
						r := Range{Prefix: []byte(prefix), Start: []byte(start), End: []byte(end), Reverse: reverse, Limit: limit}
						if end == "nil" {
							r.End = nil
						}
						var want, got []string
						for _, k := range keys {
							b := []byte(k)
							if bytes.HasPrefix(b, r.Prefix) && bytes.Compare(b, r.Start) >= 0 && (r.End == nil || bytes.Compare(b, r.End) < 0) {
								want = append(want, k)
							}
						}
						if reverse {
							slices.Reverse(want)
						}
						if limit > 0 && len(want) > limit {
							want = want[:limit]
						}
						err := s.View(func(tx *Tx) error {
							return tx.Scan(r, func(k, v []byte) error {
								if string(v) != "v"+string(k) {
									t.Errorf("value of %q is %q", k, v)
								}
								got = append(got, string(k))
								return nil
							})
						})
						if err != nil || !slices.Equal(got, want) {
							t.Fatalf("%+v: got %.20q, %v; want %.20q", r, got, err, want)
						}
					}
				}
			}
		}
	}
	boom := errors.New("boom")
	for give, want := range map[error]error{ErrStop: nil, boom: boom} {
		n := 0
		err := s.View(func(tx *Tx) error {
			return tx.Scan(Range{}, func(_, _ []byte) error { n++; return give })
		})
		if err != want || n != 1 {
			t.Errorf("a scan whose fn returned %v: %v after %d pairs", give, err, n)
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	first := h.begin()
	apply(t, s, first)
	base := history{h.pos, maps.Clone(h.model)}
	a := h.entry(put("a", "1"))
	b := h.entry(put("b", "1"))
	gap := h.entry(put("c", "1"))
	fork := history{base.pos, maps.Clone(base.model)}
	other := fork.entry(put("other", "1"))
	second := txlog.Entry{Seq: fork.pos.Seq + 1, Prev: fork.pos.Hash, Ops: first.Ops}

	diverged := func(want txlog.DivergedError) func(error) bool {
		return func(err error) bool {
			var got *txlog.DivergedError
			return errors.As(err, &got) && *got == want
		}
	}
	plain := func(err error) bool { return err != nil && !diverged(txlog.DivergedError{})(err) }
	for _, c := range []struct {
		name    string
		entries []txlog.Entry
		want    func(error) bool
	}{
		{"applied before", []txlog.Entry{first}, plain},
		{"applied before, then new", []txlog.Entry{first, a}, plain},
		{"gap", []txlog.Entry{gap}, diverged(txlog.DivergedError{Seq: 3, Want: gap.Prev})},
		{"gap inside", []txlog.Entry{a, gap}, diverged(txlog.DivergedError{Seq: 3, Want: gap.Prev})},
		{"fork inside", []txlog.Entry{other, b}, diverged(txlog.DivergedError{Seq: 2, Have: other.Hash, Want: b.Prev})},
		{"another beginning", []txlog.Entry{other, second}, plain},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := s.Apply(c.entries); !c.want(err) {
				t.Errorf("error is %v", err)
			}
			matches(t, s, &base)
		})
	}
	apply(t, s, a, b, gap)
	if err := s.Apply([]txlog.Entry{other}); !plain(err) {
		t.Errorf("an entry before the position: %v", err)
	}
	matches(t, s, h)
	if err := s.Apply(nil); err != nil {
		t.Errorf("no entries: %v", err)
	}
}

func TestClosed(t *testing.T) {
	h := newHistory()
	s := open(t, t.TempDir(), Options{})
	apply(t, s, h.begin())
	closed(t, s)
	closed(t, s)
	for name, call := range map[string]func() error{
		"Apply":   func() error { return s.Apply([]txlog.Entry{h.entry(put("a", "b"))}) },
		"View":    func() error { return s.View(func(*Tx) error { return nil }) },
		"Get":     func() error { _, _, err := s.Get(nil, []byte("a")); return err },
		"Install": func() error { _, err := s.Install(context.Background(), "/nothing", nil, nil); return err },
	} {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if got := s.State().Pos.Seq; got != 1 {
		t.Errorf("state after Close is at %d", got)
	}
}

// copyOf returns a file that holds the environment of a store that is closed.
func copyOf(t testing.TB, dir string) string {
	t.Helper()
	n, err := readCurrent(dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "copy.mdb")
	if err := copyFile(t.Context(), file, filepath.Join(dir, nameOf(n), dataFile), nil); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestInstall(t *testing.T) {
	r := seeded(t)
	h := newHistory()
	source := t.TempDir()
	s := open(t, source, Options{})
	apply(t, s, h.begin())
	apply(t, s, h.randoms(r, 300)...)
	closed(t, s)
	file := copyOf(t, source)

	dir := t.TempDir()
	s = open(t, dir, Options{})
	var done int64
	g, err := s.Install(t.Context(), file, nil, func(n int64) { done = n })
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != done {
		t.Errorf("progress ended at %d: %v %v", done, info, err)
	}
	if g.State().Pos != h.pos || !s.State().Pos.IsZero() {
		t.Errorf("installed at %v beside %v", g.State().Pos, s.State().Pos)
	}
	if _, err := s.Install(t.Context(), file, nil, nil); err == nil {
		t.Error("a second generation is being prepared")
	}
	apply(t, g, h.randoms(r, 50)...)
	err = s.View(func(tx *Tx) error {
		if err := g.Activate(); err != nil {
			return err
		}
		if n, err := tx.Pairs(); n != 0 || err != nil {
			t.Errorf("a view that began before sees %d pairs, %v", n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	matches(t, s, h)
	apply(t, s, h.randoms(r, 50)...)
	if err := g.Apply(nil); !errors.Is(err, errNotPrepared) {
		t.Errorf("Apply after Activate: %v", err)
	}
	if err := g.Discard(); err != nil {
		t.Error(err)
	}
	matches(t, s, h)

	g, err = s.Install(t.Context(), file, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Discard(); err != nil {
		t.Fatal(err)
	}
	if _, err = s.Install(t.Context(), file, nil, nil); err != nil {
		t.Fatal(err)
	}
	closed(t, s) // with one prepared
	s = open(t, dir, Options{})
	matches(t, s, h)
	closed(t, s)
	if got, err := generations(dir); err != nil || len(got) != 1 {
		t.Errorf("generations left: %v %v", got, err)
	}
}
