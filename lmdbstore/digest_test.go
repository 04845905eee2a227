package lmdbstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
	"github.com/qs-peer/qs-peer/txlog"
)

// TestDigestArithmetic compares with big numbers, and an element with its definition.
func TestDigestArithmetic(t *testing.T) {
	r := seeded(t)
	number := func(d Digest) *big.Int {
		b := slices.Clone(d[:])
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	modulus := new(big.Int).Lsh(big.NewInt(1), 256)
	random := func() (d Digest) {
		for i := range d {
			d[i] = byte(r.IntN(4)) - 2 // many carries
		}
		return d
	}
	for range 1000 {
		a, b := random(), random()
		sum := new(big.Int).Add(number(a), number(b))
		if got := a.plus(b); number(got).Cmp(sum.Mod(sum, modulus)) != 0 || got.minus(b) != a || a.plus(b) != b.plus(a) {
			t.Fatalf("%s + %s = %s", a, b, got)
		}
	}
	var h hasher
	for _, n := range []int{0, 1, 1000, 64 << 10, 1 << 20} {
		value := bytes.Repeat([]byte{7}, n)
		want := sha256.Sum256(slices.Concat([]byte("qs-pair-v1\x00\x03\x00key"), value))
		if got := h.element([]byte("key"), value); got != want {
			t.Errorf("element of %d bytes: %s, want %x", n, got, want)
		}
	}
	d := random()
	if got, err := ParseDigest(d.String()); err != nil || got != d {
		t.Errorf("parse: %s, %v", got, err)
	}
	for _, text := range []string{"", "00", d.String()[1:], d.String() + "00", "x" + d.String()[1:]} {
		if _, err := ParseDigest(text); err == nil {
			t.Errorf("%q was parsed", text)
		}
	}
}

// TestDigestAt holds the digest after each entry against the model, whatever
// transactions the entries came in.
func TestDigestAt(t *testing.T) {
	r := seeded(t)
	h := newHistory()
	dir := t.TempDir()
	stores := []*Store{open(t, dir, Options{}), open(t, t.TempDir(), Options{})}
	entries := []txlog.Entry{h.begin()}
	want := []stand{{}, {h.pos, h.digestOf()}}
	for range 300 {
		entries = append(entries, h.random(r))
		want = append(want, stand{h.pos, h.digestOf()})
	}
	for i, s := range stores {
		for at := 0; at < len(entries); {
			n := min(len(entries)-at, 1+r.IntN(1+40*i))
			apply(t, s, entries[at:at+n]...)
			at += n
		}
		for seq := uint64(1); seq < uint64(len(want)); seq++ {
			if pos, d, ok := s.DigestAt(seq); !ok || pos != want[seq].pos || d != want[seq].digest {
				t.Fatalf("store %d after entry %d: %v %s %v; want %v %s", i, seq, pos, d, ok, want[seq].pos, want[seq].digest)
			}
		}
		for _, seq := range []uint64{0, uint64(len(want))} {
			if _, _, ok := s.DigestAt(seq); ok {
				t.Errorf("there is a digest at %d", seq)
			}
		}
		if s.State().Digest != h.digestOf() {
			t.Errorf("state: %s", s.State().Digest)
		}
	}
	closed(t, stores[0])
	s := open(t, dir, Options{})
	if pos, d, ok := s.DigestAt(h.pos.Seq); !ok || pos != h.pos || d != h.digestOf() {
		t.Errorf("after opening again: %v %s %v", pos, d, ok)
	}
	if _, _, ok := s.DigestAt(h.pos.Seq - 1); ok {
		t.Error("after opening again there is a digest of the entry before")
	}
}

func TestStands(t *testing.T) {
	var s stands
	r := seeded(t)
	seq := uint64(1_000_000)
	s.add(stand{pos: txlog.Pos{Seq: seq}})
	for seq < 1_000_000+3*digestsKept {
		var next []stand
		for range 1 + r.IntN(5000) {
			seq++
			next = append(next, stand{pos: txlog.Pos{Seq: seq}})
		}
		s.add(next...)
		oldest := max(1_000_000, seq-digestsKept+1)
		for _, n := range []uint64{oldest, seq, oldest + rand.N(seq-oldest)} {
			if got, ok := s.at(n); !ok || got.pos.Seq != n {
				t.Fatalf("at %d of %d: %+v, %v", n, seq, got, ok)
			}
		}
		for _, n := range []uint64{0, oldest - 1, seq + 1} {
			if _, ok := s.at(n); ok {
				t.Fatalf("at %d of %d there is one", n, seq)
			}
		}
	}
}

// writeOld writes an environment of format 1 with the model's pairs.
func writeOld(t *testing.T, file string, h *history) {
	t.Helper()
	state := State{Dataset: testDataset, Pos: h.pos, Time: time.Unix(1_700_000_000, int64(h.pos.Seq))}
	type pair struct{ key, value []byte }
	dbs := map[string][]pair{}
	for _, k := range slices.Sorted(maps.Keys(h.model)) {
		dbs[dbKV] = append(dbs[dbKV], pair{[]byte(k), append([]byte{tagPlain}, h.model[k]...)})
	}
	for _, f := range metaFields {
		switch f.key {
		case metaDigest:
		case metaFormat:
			dbs[dbMeta] = append(dbs[dbMeta], pair{[]byte(f.key), []byte{1, 0, 0, 0}})
		default:
			dbs[dbMeta] = append(dbs[dbMeta], pair{[]byte(f.key), f.value(state)})
		}
	}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var planner mdbfile.Planner
	for _, db := range []string{dbKV, dbMeta} {
		check(planner.DB(db))
		for _, p := range dbs[db] {
			check(planner.Add(p.key, len(p.value)))
		}
	}
	plan, err := planner.Plan()
	check(err)
	var b bytes.Buffer
	w := mdbfile.NewWriter(&b, plan)
	for _, db := range []string{dbKV, dbMeta} {
		check(w.DB(db))
		for _, p := range dbs[db] {
			check(w.Add(p.key, p.value))
		}
	}
	check(w.Close())
	check(os.WriteFile(file, b.Bytes(), 0o644))
}

// place makes a generation of a file.
func place(t *testing.T, dir string, number uint64, file string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, nameOf(number)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := copyFile(t.Context(), filepath.Join(dir, nameOf(number), dataFile), file, nil); err != nil {
		t.Fatal(err)
	}
}

// TestUpgrade opens and installs what the version before wrote.
func TestUpgrade(t *testing.T) {
	r := seeded(t)
	h := newHistory()
	reference := open(t, t.TempDir(), Options{})
	apply(t, reference, h.begin())
	apply(t, reference, h.randoms(r, 300)...)
	want, wantSum := minted(t, reference, filepath.Join(t.TempDir(), "snapshot"))

	same := func(t *testing.T, s *Store) {
		t.Helper()
		matches(t, s, h)
		if s.State() != want.State {
			t.Errorf("state %+v, want %+v", s.State(), want.State)
		}
		if _, err := s.Scrub(t.Context(), ScrubOptions{}); err != nil {
			t.Error(err)
		}
		if _, sum := minted(t, s, filepath.Join(t.TempDir(), "snapshot")); sum != wantSum {
			t.Error("another snapshot")
		}
	}
	old := filepath.Join(t.TempDir(), dataFile)
	writeOld(t, old, h)
	if info, err := Inspect(old); err != nil || info.Format != 1 || info.Pairs != want.Pairs || !info.Digest.IsZero() {
		t.Errorf("inspect: %+v, %v", info, err)
	}
	if report, err := CheckFile(t.Context(), old); err != nil || report.Format != 1 {
		t.Errorf("check: %+v, %v", report, err)
	}
	layOut := func(t *testing.T) string {
		dir := t.TempDir()
		place(t, dir, 7, old)
		if err := writeCurrent(dir, 7); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Run("open", func(t *testing.T) {
		dir := layOut(t)
		reader, err := OpenReader(dir, ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		matches(t, reader, h)
		closed(t, reader)
		s := open(t, dir, Options{})
		same(t, s)
		if got, err := generations(dir); err != nil || !slices.Equal(got, []uint64{8}) {
			t.Errorf("generations %v, %v", got, err)
		}
		closed(t, s)
		same(t, open(t, dir, Options{}))
	})
	t.Run("a crash before the switch", func(t *testing.T) {
		dir := layOut(t)
		place(t, dir, 8, filepath.Join(dir, currentFile)) // not an environment
		same(t, open(t, dir, Options{}))
	})
	t.Run("install", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir, Options{})
		b, err := os.ReadFile(old)
		if err != nil {
			t.Fatal(err)
		}
		info, err := Inspect(old)
		if err != nil {
			t.Fatal(err)
		}
		g, err := s.Install(t.Context(), old, &Expected{SnapshotInfo: info, SHA256: sha256.Sum256(b)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Activate(); err != nil {
			t.Fatal(err)
		}
		same(t, s)
		if left, _ := filepath.Glob(filepath.Join(dir, "gen-*", "*.upgraded")); left != nil {
			t.Error(left)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		dir := layOut(t)
		file := filepath.Join(dir, nameOf(7), dataFile)
		edit(t, file, func(b []byte) []byte { clear(b[2*4096 : 3*4096]); return b })
		before := tree(t, dir)
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("open: %v", err)
		}
		if !maps.Equal(before, tree(t, dir)) {
			t.Error("the directory was changed")
		}
	})
}

// TestMissesAreVerified damages keys, and pages above them: what is then not
// found is never said to be absent.
func TestMissesAreVerified(t *testing.T) {
	const n = 3000
	r := seeded(t)
	h := newHistory()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	ops := make([]txlog.Op, n)
	for i := range ops {
		ops[i] = put(fmt.Sprintf("key-%06d", 2*i), fmt.Sprint(i))
	}
	apply(t, s, h.begin(), h.entry(ops...))
	for i := range n {
		if _, ok, err := s.Get(nil, fmt.Appendf(nil, "key-%06d", 2*i+1)); ok || err != nil {
			t.Fatalf("a key that is absent: %v, %v", ok, err)
		}
	}
	for _, key := range []string{"", "a", "z", "key-", string(bytes.Repeat([]byte("z"), 511)), string(bytes.Repeat([]byte("z"), 512))} {
		if _, ok, err := s.Get(nil, []byte(key)); ok || err != nil {
			t.Errorf("get %q: %v, %v", key, ok, err)
		}
	}
	closed(t, s)
	file := filepath.Join(dir, nameOf(1), dataFile)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for range 300 {
		i := r.IntN(n)
		key := fmt.Appendf(nil, "key-%06d", 2*i)
		var places []int // a leaf's, a branch's, and what they were copied from
		for at := 0; ; {
			next := bytes.Index(whole[at:], key)
			if next < 0 {
				break
			}
			places = append(places, at+next)
			at += next + 1
		}
		b := bytes.Clone(whole)
		for _, at := range places {
			b[at+r.IntN(len(key))] ^= 1 << r.IntN(8)
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		// A reader looks at little when it opens, and so gets to see damage.
		reader, err := OpenReader(dir, ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		switch _, ok, err := reader.Get(nil, key); {
		case err == nil && !ok:
			t.Fatalf("key %q with bits flipped at %d is said to be absent", key, places)
		case err != nil && !errors.Is(err, ErrDamaged):
			t.Fatal(err)
		case err != nil:
			found++
		}
		// Nor does a scan leave it out, or what stands beside it.
		for _, reverse := range []bool{false, true} {
			from, to := max(0, i-r.IntN(3)), min(n, i+1+r.IntN(3))
			at := 0
			closed(t, reader) // it may have met the damage already
			if reader, err = OpenReader(dir, ReaderOptions{}); err != nil {
				t.Fatal(err)
			}
			err := reader.View(func(tx *Tx) error {
				rng := Range{Start: fmt.Appendf(nil, "key-%06d", 2*from), End: fmt.Appendf(nil, "key-%06d", 2*to), Reverse: reverse}
				return tx.Scan(rng, func(_, _ []byte) error { at++; return nil })
			})
			switch {
			case err == nil && at != to-from:
				t.Fatalf("key %q with bits flipped at %d: a scan (reverse: %t) finds %d of %d pairs", key, places, reverse, at, to-from)
			case err != nil && !errors.Is(err, ErrDamaged):
				t.Fatal(err)
			}
		}
		closed(t, reader)
	}
	if found < 250 {
		t.Errorf("of 300 damaged keys %d were found", found)
	}
}
