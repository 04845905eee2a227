package heads

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// Whatever a relay does, nothing is handed on that the writer did not sign, the
// relay is left with a reason that is counted, and an honest one brings the rest.
func TestRelaysThatCheat(t *testing.T) {
	h := history(300, 1<<30, "")
	other := history(300, 150, "forged")
	head := func(k *keys, key string, of []txlog.Entry, seq int) []byte {
		return k.sign(key, Head{Dataset: dataset, Pos: at(of, seq), Time: time.Unix(6000, 0).UTC()}).Note
	}
	script := func(parts ...part) func(txlog.Pos) []part {
		return func(after txlog.Pos) []part { return parts }
	}
	join := func(some ...[]txlog.Entry) []txlog.Entry { return slices.Concat(some...) }
	for _, c := range []struct {
		name   string
		script func(k *keys) func(txlog.Pos) []part
		silent bool
		want   Reason // of the *FaultError; empty: another error
		got    int    // how far it brings us, from 100
		within time.Duration
	}{
		{"alters an entry", func(k *keys) func(txlog.Pos) []part {
			// From 150 on the chain is another one, as p2p makes sure that it is one.
			return script(part{entries: other[100:200], notes: [][]byte{head(k, "m1", h, 200)}})
		}, false, Altered, 100, 0},
		{"alters an entry, having said the truth before", func(k *keys) func(txlog.Pos) []part {
			return script(part{notes: [][]byte{head(k, "m1", h, 200)}}, part{entries: other[100:200]})
		}, false, Altered, 100, 0},
		{"alters what follows a signed head", func(k *keys) func(txlog.Pos) []part {
			return script(part{entries: h[100:120], notes: [][]byte{head(k, "m1", h, 120)}}, part{entries: other[120:200], notes: [][]byte{head(k, "m1", h, 200)}})
		}, false, Altered, 120, 0},
		{"invents a tail", func(k *keys) func(txlog.Pos) []part {
			return script(part{entries: join(h[100:149], other[149:300]), notes: [][]byte{head(k, "m1", h, 140)}})
		}, false, Uncovered, 140, 3 * time.Second},
		{"invents a tail, drop by drop", func(k *keys) func(txlog.Pos) []part {
			parts := []part{{notes: [][]byte{head(k, "m1", h, 100)}}}
			for i := 100; i < 300; i++ {
				parts = append(parts, part{entries: other[i : i+1], after: 100 * time.Millisecond})
			}
			return script(parts...)
		}, false, Uncovered, 100, 4 * time.Second},
		{"replays an old head", func(k *keys) func(txlog.Pos) []part {
			return script(part{notes: [][]byte{head(k, "m1", h, 50)}}, part{entries: other[100:200], notes: [][]byte{head(k, "m1", h, 50)}},
				part{notes: [][]byte{head(k, "m1", h, 90)}}, part{notes: [][]byte{head(k, "m1", h, 100)}})
		}, false, Uncovered, 100, 3 * time.Second},
		{"withholds heads", func(k *keys) func(txlog.Pos) []part {
			return script(part{entries: h[100:200]})
		}, false, Uncovered, 100, 3 * time.Second},
		{"withholds heads and says nothing more", func(k *keys) func(txlog.Pos) []part {
			return script(part{entries: h[100:200]})
		}, true, "", 100, 4 * time.Second},
		{"shows no head at all", func(k *keys) func(txlog.Pos) []part { return script() }, false, Uncovered, 100, 3 * time.Second},
		{"signs itself", func(k *keys) func(txlog.Pos) []part {
			return script(part{entries: other[100:200], notes: [][]byte{head(k, "stranger", other, 200)}})
		}, false, UnknownKey, 100, 3 * time.Second},
		{"shows an unsigned head", func(k *keys) func(txlog.Pos) []part {
			return script(part{entries: other[100:200], notes: [][]byte{Head{Dataset: dataset, Pos: at(other, 200), Time: time.Unix(1, 0)}.Encode()}})
		}, false, Unsigned, 100, 3 * time.Second},
		{"puts another position into a signed head", func(k *keys) func(txlog.Pos) []part {
			note := head(k, "m1", h, 200)
			note = bytes.Replace(note, []byte(at(h, 200).String()), []byte(at(other, 200).String()), 1)
			return script(part{entries: other[100:200], notes: [][]byte{note}})
		}, false, BadSignature, 100, 0},
		{"shows a head of another dataset", func(k *keys) func(txlog.Pos) []part {
			note := k.sign("m1", Head{Dataset: txlog.DatasetID{7}, Pos: at(h, 200), Time: time.Unix(1, 0).UTC()}).Note
			return script(part{entries: h[100:200], notes: [][]byte{note}})
		}, false, WrongDataset, 100, 0},
		{"shows something else that was signed", func(k *keys) func(txlog.Pos) []part {
			note, err := k.signer("m1").Sign([]byte("qs-snapshot-v1\ndataset " + dataset.String() + "\n"))
			if err != nil {
				t.Fatal(err)
			}
			return script(part{entries: h[100:200], notes: [][]byte{note}})
		}, false, Malformed, 100, 0},
		{"shows noise", func(k *keys) func(txlog.Pos) []part {
			return script(part{notes: [][]byte{[]byte("\n\n— x\n")}})
		}, false, Malformed, 100, 0},
		{"sends more than can be held back", func(k *keys) func(txlog.Pos) []part {
			return func(txlog.Pos) []part {
				big := padded(140, 300_000, "")
				// The same 40 large entries over and over: the guard leaves links to p2p.
				parts := []part{{notes: [][]byte{head(k, "m1", h, 100)}}}
				for range 4 {
					parts = append(parts, part{entries: big[100:140]})
				}
				return parts
			}
		}, false, Uncovered, 100, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKeys(t, "m1", "stranger")
				f := newFollower(t, k.trusted("m1"), h[:100])
				f.guard.redeem(k.sign("m1", Head{Dataset: dataset, Pos: at(h, 100), Time: time.Unix(1, 0).UTC()}), 0)
				began := time.Now()
				err := f.follow(&upstream{name: "relay", holds: h, script: c.script(k), silent: c.silent}, at(h, 300))
				if took := time.Since(began); took > c.within {
					t.Errorf("it took %v to notice, want %v at most", took, c.within)
				}
				var fault *FaultError
				switch {
				case c.want == "" && !errors.Is(err, io.ErrUnexpectedEOF):
					t.Errorf("error %v", err)
				case c.want != "" && (!errors.As(err, &fault) || fault.Reason != c.want):
					t.Errorf("error %v, want a fault: %s", err, c.want)
				case c.want != "" && f.metric("qs_heads_refused_total", string(c.want)) == 0:
					t.Errorf("%s is not counted", c.want)
				}
				if got := f.log.Head(); got != at(h, c.got) {
					t.Errorf("the log ends at %v, want %v", got, at(h, c.got))
				}
				if f.guard.Halt() != nil {
					t.Error("took that for a fork")
				}
				if err := f.follow(honest(k, "good", h, 150, 250, 300), at(h, 300)); err != nil {
					t.Errorf("an honest upstream afterwards: %v", err)
				}
				if newest := f.book.Newest(); newest.Pos != at(h, 300) {
					t.Errorf("the book's newest is %v", newest.Pos)
				}
			})
		})
	}
}

// What an honest upstream sends is handed on, however it comes.
func TestHonestUpstreams(t *testing.T) {
	h := history(300, 1<<30, "")
	for _, c := range []struct {
		name   string
		begin  int // entries in the log
		signed []int
	}{
		{"from nothing", 0, []int{300}},
		{"from an old state that nobody signed", 120, []int{50, 100, 200, 300}},
		{"level", 300, []int{300}},
		{"many heads", 1, []int{2, 3, 4, 100, 101, 300}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKeys(t, "m1")
				f := newFollower(t, k.trusted("m1"), h[:c.begin])
				if err := f.follow(honest(k, "m1", h, c.signed...), at(h, 300)); err != nil {
					t.Fatal(err)
				}
				if far := f.guard.Furthest(); far.Pos != at(h, 300) {
					t.Errorf("the furthest head is %v", far.Pos)
				}
				if n := f.metric("qs_heads_verified_total", ""); n == 0 {
					t.Error("no head was counted")
				}
			})
		})
	}
}

// After a snapshot the log begins behind entry 1.
func TestFromASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history(300, 1<<30, "")
		k := newKeys(t, "m1")
		f := newFollower(t, k.trusted("m1"), nil)
		if err := f.log.Reset(dataset, at(h, 200)); err != nil {
			t.Fatal(err)
		}
		if err := f.follow(honest(k, "m1", h, 150, 300), at(h, 300)); err != nil {
			t.Fatal(err)
		}
	})
}

// Entries that come slowly are no reason to leave, as long as heads come.
func TestSlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := padded(40, 100_000, "")
		k := newKeys(t, "m1")
		f := newFollower(t, k.trusted("m1"), nil)
		up := &upstream{name: "slow", holds: h}
		up.script = func(txlog.Pos) []part {
			parts := []part{{notes: [][]byte{k.sign("m1", Head{Dataset: dataset, Pos: at(h, 40), Time: time.Unix(1, 0)}).Note}}}
			for i := range h {
				parts = append(parts, part{entries: h[i : i+1], after: 700 * time.Millisecond}) // 140 KiB/s
			}
			return parts
		}
		if err := f.follow(up, at(h, 40)); err != nil {
			t.Fatal(err)
		}
	})
}

// While keys are replaced, heads by the old one count where it is still trusted,
// and newer ones cover what those covered.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history(300, 1<<30, "")
		k := newKeys(t, "m1", "m2")
		sign := func(key string, seq int) []byte {
			return k.sign(key, Head{Dataset: dataset, Pos: at(h, seq), Time: time.Unix(int64(seq), 0).UTC()}).Note
		}
		up := &upstream{name: "relay", holds: h}
		up.script = func(txlog.Pos) []part {
			return []part{{notes: [][]byte{sign("m1", 100)}}, {entries: h[:100], notes: [][]byte{sign("m1", 50)}}, {entries: h[100:300], notes: [][]byte{sign("m1", 200), sign("m2", 300)}}}
		}
		f := newFollower(t, k.trusted("m2"), nil)
		if err := f.follow(up, at(h, 300)); err != nil {
			t.Fatal(err)
		}
		if n := f.metric("qs_heads_refused_total", string(UnknownKey)); n != 3 {
			t.Errorf("%v heads by the old key were counted", n)
		}
		if f.book.Newest().Pos.Seq != 300 {
			t.Errorf("the book's newest: %v", f.book.Newest().Pos)
		}
	})
}

// A stream says nothing before the upstream has shown a signed head, so that no
// node takes itself for up to date because a relay says nothing.
func TestFirstTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history(300, 1<<30, "")
		k := newKeys(t, "m1")
		f := newFollower(t, k.trusted("m1"), h[:100])
		up := &upstream{name: "m1", holds: h}
		up.script = func(txlog.Pos) []part {
			return []part{{}, {after: time.Second, notes: [][]byte{k.sign("m1", Head{Dataset: dataset, Pos: at(h, 300), Time: time.Unix(9, 0).UTC()}).Note}}, {after: 20 * time.Second, entries: h[100:300]}}
		}
		s, err := f.guard.Follow(t.Context(), "m1", true, at(h, 100), up.open)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		began := time.Now()
		entries, head, err := s.Next(1 << 20)
		if err != nil || len(entries) > 0 || head.Pos != at(h, 300) || !head.Time.Equal(time.Unix(9, 0)) || time.Since(began) != time.Second {
			t.Errorf("after %v: %d entries, head %v, %v", time.Since(began), len(entries), head, err)
		}
		if entries, _, err = s.Next(1 << 20); err != nil || len(entries) != 200 {
			t.Errorf("%d entries, %v", len(entries), err)
		}
	})
}
