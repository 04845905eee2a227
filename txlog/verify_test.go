package txlog

import (
	"testing"
)

func TestVerifyEachTellsEveryPosition(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, Options{SegmentBytes: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Create(DatasetID{1}); err != nil {
		t.Fatal(err)
	}
	want := []Pos{l.Head()}
	for range 50 {
		pos, err := l.Append(t.Context(), []Op{{Kind: Put, Key: []byte("k"), Value: make([]byte, 500)}})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, pos)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	rep, err := VerifyEach(dir, func(pos Pos) {
		if n < len(want) && pos != want[n] {
			t.Errorf("position %d is %v, want %v", n, pos, want[n])
		}
		n++
	})
	if err != nil || n != len(want) || rep.Segments < 2 {
		t.Errorf("%d positions of %d in %d segments, error %v", n, len(want), rep.Segments, err)
	}
}
