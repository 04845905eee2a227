package torture

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// story is a log and a history of it in which nothing is wrong; tests spoil it.
type story struct {
	truth   *Truth
	history *History
	rests   []Rest
	pos     []txlog.Pos // of each entry, from 1
	start   time.Time
}

func (s *story) at(n int) time.Time { return s.start.Add(time.Duration(n) * time.Second) }

const (
	a Mark = 0x1_0000_0000_01 + iota
	b
	c
	d
	never
)

// newStory: entry 1 begins the dataset, 2 puts x=a, 3 puts x=b and y=c, 4 deletes y, 5 puts y=d.
// What takes second n ends half a second later.
func newStory(t *testing.T) *story {
	t.Helper()
	s := &story{truth: NewTruth(), history: &History{}, start: time.Unix(1_700_000_000, 0)}
	put := func(key string, m Mark) txlog.Op {
		return txlog.Op{Kind: txlog.Put, Key: []byte(key), Value: m.Value()}
	}
	var last txlog.Pos
	for _, ops := range [][]txlog.Op{
		{{Kind: txlog.Init, Value: make([]byte, 16)}},
		{put("x", a)},
		{put("x", b), put("y", c)},
		{{Kind: txlog.Delete, Key: []byte("y")}},
		{put("y", d)},
	} {
		e, err := txlog.Seal(last, 1, s.start, ops)
		if err != nil {
			t.Fatal(err)
		}
		if wrong := s.truth.Append(&e); len(wrong) > 0 {
			t.Fatal(wrong)
		}
		last = e.Pos()
		s.pos = append(s.pos, last)
	}
	write := func(second int, seq int, ops ...Op) {
		s.history.write(Write{Client: "c", Ops: ops, Began: s.at(second), Ended: s.half(second), Outcome: Acked, Pos: s.pos[seq-1]})
	}
	write(1, 2, Op{"x", a})
	write(3, 3, Op{"x", b}, Op{"y", c})
	write(7, 5, Op{"y", d})
	s.history.Writes[1].Pos.Hash = txlog.Hash{} // over RESP
	s.history.write(Write{Client: "c", Ops: []Op{{"x", never}}, Began: s.at(8), Ended: s.half(8)})
	s.history.write(Write{Client: "c", Ops: []Op{{"x", never + 1}}, Began: s.at(9), Ended: s.half(9), Outcome: Refused})
	for _, node := range []string{"writer", "worker"} {
		s.read(node, 2, "x", a, 2)
		s.read(node, 4, "y", c, 3)
		s.blind(node, 5, "x", b)
		s.read(node, 6, "y", 0, 4)
		s.read(node, 9, "y", d, 5)
	}
	for _, node := range []string{"writer", "worker"} {
		s.rests = append(s.rests, Rest{Node: node, Pos: last, Digest: "d1", Pairs: map[string]Mark{"x": b, "y": d}, Snapshots: map[uint64]string{5: "i5", 3: "i3"}})
	}
	return s
}

func (s *story) half(second int) time.Time { return s.at(second).Add(500 * time.Millisecond) }

func (s *story) read(node string, second int, key string, m Mark, seq int) {
	s.history.read(Read{Node: node, Key: key, Mark: m, Pos: s.pos[seq-1], Began: s.at(second), Ended: s.half(second)})
}

func (s *story) blind(node string, second int, key string, m Mark) {
	s.history.read(Read{Node: node, Key: key, Mark: m, Blind: true, Began: s.at(second), Ended: s.half(second)})
}

func (s *story) setback(second int) {
	s.history.setback(Setback{"worker", s.at(second), "emptied"})
}

// appendEntry adds an entry to the log; what is wrong with it is returned as text.
func (s *story) appendEntry(t *testing.T, prev txlog.Pos, ops ...txlog.Op) []Violation {
	t.Helper()
	e, err := txlog.Seal(prev, 1, s.start, ops)
	if err != nil {
		t.Fatal(err)
	}
	wrong := s.truth.Append(&e)
	for i := range s.rests {
		s.rests[i].Pos = s.truth.Head()
		for _, op := range ops {
			s.rests[i].Pairs[string(op.Key)] = s.truth.at(string(op.Key), e.Seq)
		}
	}
	return wrong
}

// TestChecker holds histories with every kind of violation, and such as look like one,
// against the checker.
func TestChecker(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, s *story) []Violation
		want  Rule // "": none
		text  string
	}{
		{"nothing is wrong", nil, "", ""},

		// the log
		{"an entry is missing", func(t *testing.T, s *story) []Violation {
			return s.appendEntry(t, txlog.Pos{Seq: 6, Hash: txlog.Hash{1}}, txlog.Op{Kind: txlog.Delete, Key: []byte("x")})
		}, BrokenChain, "entry 7"},
		{"an entry of another history", func(t *testing.T, s *story) []Violation {
			return s.appendEntry(t, txlog.Pos{Seq: 5, Hash: txlog.Hash{1}}, txlog.Op{Kind: txlog.Delete, Key: []byte("x")})
		}, BrokenChain, "entry 6"},
		{"a write is in the log twice", func(t *testing.T, s *story) []Violation {
			return s.appendEntry(t, s.pos[4], txlog.Op{Kind: txlog.Put, Key: []byte("x"), Value: a.Value()})
		}, Twice, "entry 2"},
		{"a bit of a value flipped on the way", func(t *testing.T, s *story) []Violation {
			v := never.Value()
			v[len(v)-1] ^= 1
			return s.appendEntry(t, s.pos[4], txlog.Op{Kind: txlog.Put, Key: []byte("x"), Value: v})
		}, WrongEntry, "nobody wrote"},

		// writes
		{"an acknowledged write is not there, and the log ends before it", func(_ *testing.T, s *story) []Violation {
			s.history.write(Write{Client: "c", Ops: []Op{{"x", never}}, Began: s.at(10), Ended: s.half(10), Outcome: Acked, Pos: txlog.Pos{Seq: 6}})
			return nil
		}, Lost, "ends at 5"},
		{"an acknowledged write is not there, another entry is", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[1].Ops = []Op{{"x", never}}
			return nil
		}, Lost, "entry 3"},
		{"acknowledged as another entry", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[2].Pos = s.pos[3]
			return nil
		}, WrongEntry, "is entry 5"},
		{"acknowledged under another hash", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[0].Pos.Hash = txlog.Hash{9}
			return nil
		}, WrongEntry, "hash"},
		{"half of a transaction is there", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[1].Ops = append(s.history.Writes[1].Ops, Op{"z", never})
			return nil
		}, WrongEntry, "not what entry 3 does"},
		{"a transaction did something else besides", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[1].Ops = s.history.Writes[1].Ops[:1]
			return nil
		}, WrongEntry, "not what entry 3 does"},
		{"the order within a transaction is another", func(_ *testing.T, s *story) []Violation {
			ops := s.history.Writes[1].Ops
			ops[0], ops[1] = ops[1], ops[0]
			return nil
		}, WrongEntry, "not what entry 3 does"},
		{"an unanswered write is there, and altered", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[2].Outcome = Unknown
			s.history.Writes[2].Ops = append(s.history.Writes[2].Ops, Op{"z", never})
			return nil
		}, WrongEntry, "not what entry 5 does"},
		{"a refused write is there", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[2].Outcome = Refused
			return nil
		}, Undead, "entry 5"},
		{"a write got behind one that began after it was acknowledged", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[0].Began, s.history.Writes[0].Ended = s.at(5), s.half(5)
			return nil
		}, Reordered, "entry 2"},
		{"an unanswered write came to be before what was acknowledged when it began", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[0].Began, s.history.Writes[0].Ended, s.history.Writes[0].Outcome = s.at(5), s.half(5), Unknown
			return nil
		}, Reordered, "entry 2"},
		{"writes at the same time may come in any order", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[1].Ended = s.half(7)
			s.history.Writes[2].Began = s.at(3)
			return nil
		}, "", ""},
		{"an unanswered write may be there", func(_ *testing.T, s *story) []Violation {
			s.history.Writes[2].Outcome = Unknown
			return nil
		}, "", ""},

		// reads
		{"a value that nobody wrote", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[7].Garbled = "bits"
			return nil
		}, WrongRead, "nobody wrote"},
		{"an earlier value than at its position", func(_ *testing.T, s *story) []Violation {
			s.read("worker", 10, "x", a, 5)
			return nil
		}, WrongRead, "of entry 2"},
		{"a later value than at its position", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[5].Mark = b
			return nil
		}, WrongRead, "of entry 3"},
		{"a value that was deleted", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[8].Mark = s.history.Reads[6].Mark
			return nil
		}, WrongRead, "was absent"},
		{"a key is missing", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[9].Mark = 0
			return nil
		}, WrongRead, "is absent"},
		{"a write that is in no log", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[9].Mark = never
			return nil
		}, WrongRead, "in no entry"},
		{"a position that the log never was at", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[9].Pos.Hash = txlog.Hash{1}
			return nil
		}, NoPosition, ""},
		{"a position beyond the log's end", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[9].Pos = txlog.Pos{Seq: 6, Hash: txlog.Hash{1}}
			return nil
		}, NoPosition, ""},
		{"a position that went back", func(_ *testing.T, s *story) []Violation {
			s.read("worker", 10, "x", b, 4)
			return nil
		}, WentBack, "entry 5 was seen"},
		{"a position that went back where it was declared", func(_ *testing.T, s *story) []Violation {
			s.setback(10)
			s.read("worker", 11, "x", b, 4)
			return nil
		}, "", ""},
		{"a position that went back before it was declared", func(_ *testing.T, s *story) []Violation {
			s.setback(11)
			s.read("worker", 10, "x", b, 4)
			return nil
		}, WentBack, ""},
		{"a position that went back twice, and was declared once", func(_ *testing.T, s *story) []Violation {
			s.setback(10)
			s.read("worker", 11, "x", b, 4)
			s.read("worker", 12, "x", b, 3)
			return nil
		}, WentBack, "entry 4 was seen"},
		{"answers to questions at the same time may overtake each other", func(_ *testing.T, s *story) []Violation {
			s.history.read(Read{Node: "worker", Key: "x", Mark: b, Pos: s.pos[3], Began: s.at(9), Ended: s.half(11)})
			return nil
		}, "", ""},
		{"the writer answers without what it acknowledged", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[3].Began, s.history.Reads[3].Ended = s.at(8), s.half(8)
			return nil
		}, StaleRead, "entry 5 was acknowledged"},
		{"a worker may be behind", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[8].Began, s.history.Reads[8].Ended = s.at(8), s.half(8)
			return nil
		}, "", ""},
		{"without a position: what was before", func(_ *testing.T, s *story) []Violation {
			s.history.Reads[7].Mark = a
			return nil
		}, WrongRead, "not from entry 3 to 4"},
		{"without a position: what came after", func(_ *testing.T, s *story) []Violation {
			s.blind("worker", 3, "y", d)
			return nil
		}, WrongRead, "not from entry 2 to 3"},
		{"without a position: the writer's last word is not there", func(_ *testing.T, s *story) []Violation {
			s.blind("writer", 8, "y", 0)
			return nil
		}, WrongRead, "not from entry 5 to 5"},
		{"without a position: at the time of a setback, what never was", func(_ *testing.T, s *story) []Violation {
			s.history.setback(Setback{"worker", s.at(5).Add(time.Millisecond), "emptied"})
			s.history.Reads[7].Mark = never
			return nil
		}, WrongRead, "never was"},

		// processes
		{"a process ended by itself", func(_ *testing.T, s *story) []Violation {
			s.history.death(Death{"worker", s.at(5), "SIGBUS"})
			return nil
		}, Died, "SIGBUS"},

		// at rest
		{"a node is behind", func(_ *testing.T, s *story) []Violation {
			s.rests[1].Pos = s.pos[3]
			return nil
		}, NoRest, ""},
		{"a node is elsewhere", func(_ *testing.T, s *story) []Violation {
			s.rests[1].Pos.Hash = txlog.Hash{1}
			return nil
		}, NoRest, ""},
		{"a pair is missing", func(_ *testing.T, s *story) []Violation {
			delete(s.rests[1].Pairs, "y")
			return nil
		}, WrongState, "1 pairs are missing, 0 are others, 0 should"},
		{"a pair is another", func(_ *testing.T, s *story) []Violation {
			s.rests[1].Pairs["x"] = a
			return nil
		}, WrongState, "0 pairs are missing, 1 are others, 0 should"},
		{"a pair too many", func(_ *testing.T, s *story) []Violation {
			s.rests[1].Pairs["z"] = a
			return nil
		}, WrongState, "0 pairs are missing, 0 are others, 1 should"},
		{"a pair that nobody wrote", func(_ *testing.T, s *story) []Violation {
			s.rests[1].Garbled = []string{"x"}
			return nil
		}, WrongState, "nobody wrote"},
		{"digests differ", func(_ *testing.T, s *story) []Violation {
			s.rests[1].Digest = "d2"
			return nil
		}, WrongState, "digests differ"},
		{"a node without a digest", func(_ *testing.T, s *story) []Violation {
			s.rests[1].Digest = ""
			return nil
		}, "", ""},
		{"snapshots of one position differ", func(_ *testing.T, s *story) []Violation {
			s.rests[1].Snapshots[3] = "other"
			return nil
		}, Snapshots, "entry 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory(t)
			var wrong []Violation
			if c.spoil != nil {
				wrong = c.spoil(t, s)
			}
			checker := NewChecker(s.truth, "writer")
			wrong = append(wrong, checker.Check(s.history.take())...)
			wrong = append(wrong, checker.CheckRest(s.rests)...)
			switch {
			case c.want == "" && len(wrong) > 0:
				t.Errorf("found %v", wrong)
			case c.want != "" && len(wrong) != 1:
				t.Errorf("found %d violations, want one: %v", len(wrong), wrong)
			case c.want != "" && (wrong[0].Rule != c.want || !strings.Contains(wrong[0].Text, c.text)):
				t.Errorf("found %v, want %s: …%s…", wrong[0], c.want, c.text)
			}
		})
	}
}

// TestCheckerRemembers checks that histories are held to what was in the ones before.
func TestCheckerRemembers(t *testing.T) {
	for _, c := range []struct {
		name string
		next func(s *story)
		want Rule
	}{
		{"nothing happened", func(*story) {}, ""},
		{"a node goes on", func(s *story) { s.read("worker", 20, "x", b, 5) }, ""},
		{"a node went back", func(s *story) { s.read("worker", 20, "x", b, 4) }, WentBack},
		{"a node was emptied first", func(s *story) { s.setback(19); s.read("worker", 20, "x", b, 4) }, ""},
		{"the writer forgot", func(s *story) { s.read("writer", 20, "x", b, 4) }, StaleRead},
		{"a write got in front", func(s *story) {
			s.history.write(Write{Client: "c", Ops: []Op{{"x", a}}, Began: s.at(20), Ended: s.half(20), Outcome: Acked, Pos: s.pos[1]})
		}, Reordered},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory(t)
			checker := NewChecker(s.truth, "writer")
			if wrong := checker.Check(s.history.take()); len(wrong) > 0 {
				t.Fatal(wrong)
			}
			c.next(s)
			wrong := checker.Check(s.history.take())
			if c.want == "" && len(wrong) > 0 || c.want != "" && (len(wrong) != 1 || wrong[0].Rule != c.want) {
				t.Errorf("found %v, want %q", wrong, c.want)
			}
		})
	}
	t.Run("a node was emptied, and nobody read there until the next time", func(t *testing.T) {
		s := newStory(t)
		checker := NewChecker(s.truth, "writer")
		checker.Check(s.history.take())
		s.setback(20)
		checker.Check(s.history.take())
		s.read("worker", 21, "x", b, 4)
		if wrong := checker.Check(s.history.take()); len(wrong) > 0 {
			t.Error(wrong)
		}
	})
}

// TestMarks checks that a value tells whose it is, and any other bytes do not.
func TestMarks(t *testing.T) {
	for n := range 300 {
		for _, m := range []Mark{Mark(n + 1), Mark(n+1)<<40 | 7, bulk | Mark(n)} {
			v := m.Value()
			if got, ok := ParseMark(v); !ok || got != m {
				t.Fatalf("%x: got %x, %t", uint64(m), uint64(got), ok)
			}
			for _, damaged := range []struct {
				name string
				v    []byte
			}{
				{"a bit", flipped(v, n%len(v), 1<<(n%8))}, {"zeros", append(v[:len(v)/2:len(v)/2], make([]byte, len(v)-len(v)/2)...)},
				{"cut", v[:len(v)-1]}, {"grown", append(v[:len(v):len(v)], 'a')}, {"another's end", append(v[:digits:digits], Mark(m + 1).Value()[digits:]...)},
			} {
				if got, ok := ParseMark(damaged.v); ok && (damaged.name != "another's end" || len(v) > digits) {
					t.Errorf("%x, %s: passed as %x", uint64(m), damaged.name, uint64(got))
				}
			}
		}
	}
}

func flipped(v []byte, at int, bit byte) []byte {
	v = append([]byte(nil), v...)
	v[at] ^= bit
	return v
}

// TestSchedules checks that a schedule is a function of its seed, has as many faults as
// asked for, no node twice at a time, and every stage.
func TestSchedules(t *testing.T) {
	for name, schedule := range schedules {
		t.Run(name, func(t *testing.T) {
			one, same, other := draw(schedule, 1), draw(schedule, 1), draw(schedule, 2)
			if one != same {
				t.Error("two schedules of one seed differ")
			}
			if one == other {
				t.Error("two seeds have one schedule")
			}
		})
	}
	kinds := map[string]int{}
	n := 0
	for _, wave := range killSchedule(newRNG(3), 3, 1000) {
		nodes := map[int]bool{}
		for _, f := range wave {
			k := f.(*kill)
			kinds[k.kind()]++
			if n++; nodes[k.node] {
				t.Errorf("node %d is killed twice at a time", k.node)
			}
			nodes[k.node] = true
		}
	}
	if n != 1000 {
		t.Errorf("%d kills, want 1000", n)
	}
	parts, moments, ruins := map[part]int{}, map[moment]int{}, 0
	for _, wave := range damageSchedule(newRNG(3), 3, 1000) {
		for _, f := range wave {
			if d, ok := f.(*damage); ok {
				parts[d.part]++
				moments[d.when]++
			} else {
				ruins++
			}
		}
	}
	for _, w := range damageWeights {
		if parts[w.part] < 12*w.weight {
			t.Errorf("%d damages to %s", parts[w.part], w.part)
		}
	}
	if len(moments) != 3 || ruins < 30 {
		t.Errorf("damages come at %v, and %d times to the writer", moments, ruins)
	}
	disturbed := map[netKind]int{}
	for _, wave := range netSchedule(newRNG(3), 3, 200) {
		disturbed[wave[0].(*disturbance).what]++
	}
	for _, kind := range netKinds {
		if disturbed[kind] < 10 {
			t.Errorf("%d disturbances are a %s", disturbed[kind], kind)
		}
	}
	for _, c := range killChoices {
		if kinds[string(c.stage)] < 20 {
			t.Errorf("%d kills at %s", kinds[string(c.stage)], c.stage)
		}
	}
}

func draw(schedule scheduler, seed uint64) string {
	var s strings.Builder
	for _, wave := range schedule(newRNG(seed), 3, 50) {
		fmt.Fprintln(&s, wave)
	}
	return s.String()
}
