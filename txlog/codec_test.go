package txlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"
)

func TestSealedEntriesDecodeToThemselves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		op := rapid.Custom(func(t *rapid.T) Op {
			o := Op{Kind: Put, Key: rapid.SliceOfN(rapid.Byte(), 1, MaxKey).Draw(t, "key"), Value: []byte{}}
			if rapid.Bool().Draw(t, "delete") {
				o.Kind = Delete
			} else {
				o.Value = rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(t, "value")
			}
			return o
		})
		ops := rapid.SliceOfN(op, 1, 20).Draw(t, "ops")
		prev := Pos{Seq: rapid.Uint64Range(1, math.MaxUint64-1).Draw(t, "seq"), Hash: Hash{9}}
		epoch := rapid.Uint64().Draw(t, "epoch")
		nanos := rapid.Int64().Draw(t, "time")
		e, err := Seal(prev, epoch, time.Unix(0, nanos), ops)
		if err != nil {
			t.Fatal(err)
		}
		if e.Seq != prev.Seq+1 || e.Prev != prev.Hash || e.Epoch != epoch || e.Time.UnixNano() != nanos || !reflect.DeepEqual(e.Ops, ops) {
			t.Fatalf("sealed %+v", e)
		}
		got, err := Decode(e.Frame())
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Fatalf("decoded %+v, %v", got, err)
		}
		off := rapid.IntRange(0, len(e.frame)-1).Draw(t, "flip")
		damaged := bytes.Clone(e.frame)
		damaged[off] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := Decode(damaged); err == nil {
			t.Fatalf("byte %d was flipped, and nobody noticed", off)
		}
	})
}

func TestSealCopiesWhatItIsGiven(t *testing.T) {
	ops := put("key", "value")
	e, err := Seal(Pos{Seq: 1}, 1, time.Now(), ops)
	must(t, err)
	ops[0].Key[0], ops[0].Value[0] = 'X', 'X'
	if string(e.Ops[0].Key) != "key" || string(e.Ops[0].Value) != "value" {
		t.Fatalf("%q", e.Ops)
	}
	if key := e.Ops[0].Key; cap(key) != len(key) {
		t.Fatal("appending to a key would overwrite the frame")
	}
}

func TestLimits(t *testing.T) {
	id := testID[:]
	big := make([]byte, MaxValue)
	at := Pos{Seq: 1, Hash: Hash{1}}
	for _, c := range []struct {
		name string
		prev Pos
		ops  []Op
		want *LimitError // nil: any other error, unless ok
		ok   bool
	}{
		{name: "longest key", prev: at, ops: []Op{{Kind: Delete, Key: make([]byte, MaxKey)}}, ok: true},
		{name: "largest value", prev: at, ops: []Op{{Kind: Put, Key: []byte("k"), Value: big}}, ok: true},
		{name: "no key", prev: at, ops: []Op{{Kind: Put}}, want: &LimitError{What: "key", Got: 0, Min: 1, Max: MaxKey}},
		{name: "key too long", prev: at, ops: []Op{{Kind: Delete, Key: make([]byte, MaxKey+1)}}, want: &LimitError{What: "key", Got: MaxKey + 1, Min: 1, Max: MaxKey}},
		{name: "value too large", prev: at, ops: []Op{{Kind: Put, Key: []byte("k"), Value: append(big, 0)}}, want: &LimitError{What: "value", Got: MaxValue + 1, Min: 0, Max: MaxValue}},
		{
			name: "entry too large", prev: at,
			ops: []Op{
				{Kind: Put, Key: []byte("a"), Value: big}, {Kind: Put, Key: []byte("b"), Value: big},
				{Kind: Put, Key: []byte("c"), Value: big}, {Kind: Put, Key: []byte("d"), Value: big},
			},
			want: &LimitError{What: "entry", Got: 4*MaxValue + 4*8 + 96, Min: int64(minFrame), Max: MaxEntry},
		},
		{name: "most operations", prev: at, ops: slices.Repeat(put("k", ""), MaxOps), ok: true},
		{
			name: "too many operations", prev: at, ops: slices.Repeat(put("k", ""), MaxOps+1),
			want: &LimitError{What: LimitOps, Got: MaxOps + 1, Min: 1, Max: MaxOps},
		},
		{name: "nothing", prev: at},
		{name: "unknown kind", prev: at, ops: []Op{{Kind: 9, Key: []byte("k")}}},
		{name: "delete with a value", prev: at, ops: []Op{{Kind: Delete, Key: []byte("k"), Value: []byte("v")}}},
		{name: "init", ops: []Op{{Kind: Init, Value: id}}, ok: true},
		{name: "init later", prev: at, ops: []Op{{Kind: Init, Value: id}}},
		{name: "init with a key", ops: []Op{{Kind: Init, Key: []byte("k"), Value: id}}, want: &LimitError{What: "key", Got: 1, Min: 0, Max: 0}},
		{name: "init with a short id", ops: []Op{{Kind: Init, Value: id[1:]}}},
		{name: "init twice", ops: []Op{{Kind: Init, Value: id}, {Kind: Init, Value: id}}},
		{name: "put at first", ops: put("k", "v")},
		{name: "init after something", prev: Pos{Hash: Hash{1}}, ops: []Op{{Kind: Init, Value: id}}},
		{name: "after the last seq", prev: Pos{Seq: math.MaxUint64}, ops: put("k", "v")},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Seal(c.prev, 1, time.Now(), c.ops)
			var limit *LimitError
			switch {
			case c.ok != (err == nil):
				t.Fatal(err)
			case errors.As(err, &limit) != (c.want != nil):
				t.Fatal(err)
			case c.want != nil && *limit != *c.want:
				t.Fatalf("%v, want %v", err, c.want)
			case c.name == "nothing" && !errors.Is(err, ErrEmptyTransaction):
				t.Fatal(err)
			}
		})
	}
}

func TestReadFrame(t *testing.T) {
	small, err := Seal(Pos{Seq: 1}, 1, time.Now(), put("k", "v"))
	must(t, err)
	big, err := Seal(small.Pos(), 1, time.Now(), put("k", string(make([]byte, 5*readStep+1))))
	must(t, err)
	stream := append(bytes.Clone(small.frame), big.frame...)
	for _, r := range []io.Reader{bytes.NewReader(stream), iotest.HalfReader(bytes.NewReader(stream)), iotest.DataErrReader(bytes.NewReader(stream))} {
		for _, want := range []Entry{small, big} {
			got, err := ReadFrame(r)
			if err != nil || !bytes.Equal(got, want.frame) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		}
		if _, err := ReadFrame(r); err != io.EOF {
			t.Fatal(err)
		}
	}
	for cut := 1; cut < len(small.frame); cut++ {
		if _, err := ReadFrame(bytes.NewReader(small.frame[:cut])); err != io.ErrUnexpectedEOF {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	for _, n := range []uint32{0, uint32(minFrame) - 5, MaxEntry - 3, math.MaxUint32} {
		var limit *LimitError
		if _, err := ReadFrame(bytes.NewReader(binary.LittleEndian.AppendUint32(nil, n))); !errors.As(err, &limit) || limit.What != "entry" {
			t.Fatalf("length %d: %v", n, err)
		}
	}
	lying := binary.LittleEndian.AppendUint32(nil, MaxEntry-4)
	if got := testing.AllocsPerRun(1, func() { ReadFrame(bytes.NewReader(lying)) }); got > 20 {
		t.Fatal(got)
	}
}

// TestDecodeTooManyOperations decodes what a hostile peer may send: a frame of
// more operations than are allowed. It must not be made to hold them.
func TestDecodeTooManyOperations(t *testing.T) {
	ops := slices.Repeat([]Op{{Kind: Delete, Key: []byte("k")}}, MaxOps+1)
	frame := encode(frameHeader+len(ops)*(opHeader+1)+len(Hash{}), ops)
	finish(frame, Pos{Seq: 1, Hash: Hash{1}}, 1, 0)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Decode(frame)
	runtime.ReadMemStats(&after)
	var limit *LimitError
	if !errors.As(err, &limit) || limit.What != LimitOps || limit.Got != int64(len(ops)) {
		t.Fatal(err)
	}
	if want := "number of operations is 1048577; allowed are 1 to 1048576"; limit.Error() != want {
		t.Errorf("%q, want %q", limit, want)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("%d bytes allocated", got)
	}
}

func TestParse(t *testing.T) {
	p := Pos{Seq: 42, Hash: Hash{1, 2, 0xff}}
	if got, err := ParsePos(p.String()); err != nil || got != p {
		t.Fatal(got, err)
	}
	if got, err := ParseDatasetID(testID.String()); err != nil || got != testID {
		t.Fatal(got, err)
	}
	for _, bad := range []string{"", "1", "1/", "/" + p.Hash.String(), "-1/" + p.Hash.String(), "1/" + p.Hash.String() + "0", "1/" + p.Hash.String()[:62] + "zz"} {
		if _, err := ParsePos(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range goldenEntries(f) {
		f.Add(e.frame)
		f.Add(e.frame[:len(e.frame)-1])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		// Make the hash right, so that fuzzing gets past it.
		if len(b) >= minFrame && len(b) <= MaxEntry {
			binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
			h := hashFrame(b)
			copy(b[len(b)-len(h):], h[:])
		}
		e, err := Decode(b)
		if err != nil {
			return
		}
		// The encoding is canonical.
		again, err := Seal(Pos{Seq: e.Seq - 1, Hash: e.Prev}, e.Epoch, e.Time, e.Ops)
		if err != nil || !bytes.Equal(again.frame, b) || again.Hash != e.Hash {
			t.Fatalf("sealed again: %v", err)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	var all []byte
	for _, e := range goldenEntries(f) {
		f.Add(e.frame)
		all = append(all, e.frame...)
	}
	f.Add(all)
	f.Add(binary.LittleEndian.AppendUint32(nil, MaxEntry-4))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			left := r.Len()
			frame, err := ReadFrame(r)
			if err != nil {
				if err == io.EOF && left != 0 {
					t.Fatalf("io.EOF with %d bytes left", left)
				}
				return
			}
			if !bytes.Equal(frame, b[len(b)-left:][:len(frame)]) {
				t.Fatal("other bytes")
			}
		}
	})
}

// FuzzRecovery opens a log whose tail is arbitrary: it is refused, or it holds
// what Verify says, takes appends and is sound afterwards.
func FuzzRecovery(f *testing.F) {
	entries := goldenEntries(f)
	h := header{dataset: DatasetID(entries[0].Ops[0].Value), generation: 1, first: 1, salt: salt{1}}
	seed := []byte{}
	for _, e := range entries {
		f.Add(bytes.Clone(seed))
		seed = append(seed, e.frame...)
		f.Add(append(bytes.Clone(seed), "torn"...))
		seed = appendMark(seed, h.salt, int64(segmentHeader+len(seed)))
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, tail []byte) {
		fs := inMemory(t, map[string][]byte{h.name(): append(h.encode(), tail...)})
		rep, verifyErr := verify(fs, "log")
		l, err := Open("log", Options{FS: fs})
		var corrupt *CorruptError
		if err != nil {
			if !errors.As(err, &corrupt) || verifyErr == nil {
				t.Fatalf("Open: %v, Verify: %v", err, verifyErr)
			}
			return
		}
		defer l.Close()
		if verifyErr != nil || rep.Head != l.Head() || rep.Entries != l.Head().Seq {
			t.Fatalf("Open found %v, Verify %+v, %v", l.Head(), rep, verifyErr)
		}
		if l.Head().Seq == 0 {
			return
		}
		head, err := l.Append(t.Context(), put("k", "v"))
		must(t, err)
		readTo(t, l, Pos{}, head.Seq)
		must(t, l.Close())
		if rep, err := verify(fs, "log"); err != nil || rep.TornTail != 0 || rep.Head != head {
			t.Fatalf("%+v, %v", rep, err)
		}
	})
}
