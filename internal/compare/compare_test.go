package compare

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qs-peer/qs-peer/txlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeCopy is right up to an entry, and then wrong in content or in history.
type fakeCopy struct {
	applied   uint64
	wrongFrom uint64 // 0: never
	forkFrom  uint64
	oldest    uint64 // what is before is not remembered
	flavour   byte   // of what is wrong
}

func (f fakeCopy) point(seq uint64) Point {
	p := Point{Pos: txlog.Pos{Seq: seq, Hash: txlog.Hash{byte(seq), byte(seq >> 8)}}, Digest: [32]byte{byte(seq), byte(seq >> 8)}}
	if f.wrongFrom > 0 && seq >= f.wrongFrom {
		p.Digest[31] = 1 + f.flavour
	}
	if f.forkFrom > 0 && seq >= f.forkFrom {
		p.Pos.Hash[31] = 1
	}
	return p
}

type member struct {
	fakeCopy
	manager, writer bool
	says            *fakeCopy // nil: the truth
	mute            bool      // does not answer questions
}

// world is a fleet of fakes around the node under test.
type world struct {
	mu        sync.Mutex
	own       fakeCopy
	members   map[string]*member
	signed    *fakeCopy // what the writer signed
	out       bool
	convicted []*DivergedError
	questions int
	asked     func() // called with mu held
	changed   chan struct{}
}

func (w *world) Newest() Point {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.own.point(w.own.applied)
}

func (w *world) At(seq uint64) (Point, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.own.point(seq), seq >= w.own.oldest && seq <= w.own.applied
}

func (w *world) Said() (said []Statement) {
	w.mu.Lock()
	defer w.mu.Unlock()
	writer := ""
	for name, m := range w.members {
		if m.writer {
			writer = name
		}
		says := m.fakeCopy
		if m.says != nil {
			says = *m.says
		}
		said = append(said, Statement{Who: name, Manager: m.manager, Writer: m.writer, Alive: true, Point: says.point(says.applied)})
	}
	if w.signed != nil {
		said = append(said, Statement{Who: writer, Manager: true, Writer: true, Signed: true, Alive: true, Point: w.signed.point(w.signed.applied)})
	}
	return said
}

func (w *world) Ask(ctx context.Context, who string, seq uint64) (Point, error) {
	w.mu.Lock()
	m := w.members[who]
	w.questions++
	if w.asked != nil {
		w.asked()
	}
	w.mu.Unlock()
	if m.mute {
		<-ctx.Done()
		return Point{}, ctx.Err()
	}
	if seq > m.applied || seq < m.oldest {
		return Point{}, fmt.Errorf("entry %d: %w", seq, ErrUnknown)
	}
	says := m.fakeCopy
	if m.says != nil {
		says = *m.says
	}
	return says.point(seq), nil
}

func (w *world) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// change changes the world, and lets the node have a look at it.
func (w *world) change(do func()) {
	w.mu.Lock()
	do()
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	time.Sleep(2 * lookEvery) // of the bubble's clock
	synctest.Wait()
}

// in runs a test with a Comparer in a world.
func in(t *testing.T, w *world, o Options, test func(t *testing.T, c *Comparer, reg *prometheus.Registry)) {
	synctest.Test(t, func(t *testing.T) {
		w.changed = make(chan struct{})
		reg := prometheus.NewRegistry()
		o.Copy, o.Fleet, o.Registerer = w, w, reg
		o.Out = func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.out }
		o.Convict = func(e *DivergedError) { w.convicted = append(w.convicted, e) }
		c, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { c.Run(ctx) })
		defer running.Wait()
		defer cancel()
		w.change(func() {})
		time.Sleep(4 * patience) // of the bubble's clock: for those who do not answer
		synctest.Wait()
		test(t, c, reg)
	})
}

// Who is wrong, and who is not taken out of service whatever others say.
func TestJudgement(t *testing.T) {
	right, wrong := fakeCopy{applied: 1000}, fakeCopy{applied: 1000, wrongFrom: 700}
	liar := func() *member { return &member{fakeCopy: right, says: &wrong} }
	honest := func() *member { return &member{fakeCopy: right} }
	damaged := func() *member { return &member{fakeCopy: wrong} }
	writer := func(c fakeCopy) *member { return &member{fakeCopy: c, manager: true, writer: true} }
	for _, tt := range []struct {
		name     string
		own      fakeCopy
		o        Options
		signed   *fakeCopy
		members  map[string]*member
		want     bool // this node is wrong
		partings int
	}{
		{"signed: all is well", right, Options{Signed: true}, &right, map[string]*member{"m": writer(right), "w": honest()}, false, 0},
		{"signed: the signature contradicts", wrong, Options{Signed: true}, &right, map[string]*member{"m": writer(right), "w": honest()}, true, 3},
		{"signed: nobody else is there", wrong, Options{Signed: true}, &right, map[string]*member{"m": writer(right)}, true, 2},
		{"signed: nobody answers", wrong, Options{Signed: true}, &right, map[string]*member{"m": {fakeCopy: right, manager: true, writer: true, mute: true}}, true, 2},
		{"signed: workers lie", right, Options{Signed: true}, &right, map[string]*member{"m": writer(right), "w1": liar(), "w2": liar(), "w3": liar()}, false, 3},
		{"signed: another manager lies", right, Options{Signed: true}, &right, map[string]*member{"m": writer(right), "m2": {fakeCopy: right, manager: true, says: &wrong}}, false, 1},
		{"signed: a liar stands by the damaged", wrong, Options{Signed: true}, &right, map[string]*member{"m": writer(right), "w1": damaged(), "w2": honest()}, true, 3},
		{"signed: the writer stands alone", right, Options{Signed: true}, &wrong, map[string]*member{"m": writer(wrong), "w1": honest(), "w2": honest()}, false, 2},
		{"signed: one to one against the writer", right, Options{Signed: true}, &wrong, map[string]*member{"m": writer(wrong), "w1": honest()}, true, 2},
		{"unsigned: the writer contradicts", wrong, Options{}, nil, map[string]*member{"m": writer(right)}, true, 1},
		{"unsigned: the writer stands alone", right, Options{}, nil, map[string]*member{"m": writer(wrong), "w1": honest(), "w2": honest()}, false, 1},
		{"unsigned: one worker lies", right, Options{}, nil, map[string]*member{"w1": liar()}, false, 1},
		{"unsigned: one worker lies, another one does not", right, Options{}, nil, map[string]*member{"w1": liar(), "w2": honest()}, false, 1},
		{"unsigned: two liars, and the writer", right, Options{}, nil, map[string]*member{"m": writer(right), "w1": liar(), "w2": liar()}, false, 2},
		{"unsigned: two against one, the writer away", wrong, Options{}, nil, map[string]*member{"w1": honest(), "w2": honest()}, true, 2},
		{"the writer is not judged", wrong, Options{Signed: true, Writer: true, Manager: true}, &wrong, map[string]*member{"w1": honest(), "w2": honest()}, false, 2},
		{"another history is the chain's affair", fakeCopy{applied: 1000, forkFrom: 600}, Options{Signed: true}, &right, map[string]*member{"m": writer(right)}, false, 2},
		{"too old to be known", fakeCopy{applied: 9000, wrongFrom: 700, oldest: 5000}, Options{Signed: true}, &right, map[string]*member{"m": writer(right)}, false, 0},
		{"ahead of this node", fakeCopy{applied: 900, wrongFrom: 700}, Options{Signed: true}, &right, map[string]*member{"m": writer(right)}, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &world{own: tt.own, members: tt.members, signed: tt.signed}
			in(t, w, tt.o, func(t *testing.T, c *Comparer, reg *prometheus.Registry) {
				if got := len(w.convicted) > 0; got != tt.want {
					t.Errorf("convicted: %v", w.convicted)
				}
				if got := c.Partings(); len(got) != tt.partings {
					t.Errorf("%d partings %+v, want %d", len(got), got, tt.partings)
				}
			})
		})
	}
}

// The entry at which two copies part is named, as far as it can be.
func TestEntry(t *testing.T) {
	for _, tt := range []struct {
		name        string
		own, theirs fakeCopy
		entry       uint64
		exact       bool
	}{
		{"in the middle", fakeCopy{applied: 1000, wrongFrom: 700}, fakeCopy{applied: 1000}, 700, true},
		{"the last", fakeCopy{applied: 1000, wrongFrom: 1000}, fakeCopy{applied: 1000}, 1000, true},
		{"the first", fakeCopy{applied: 1000, wrongFrom: 1}, fakeCopy{applied: 1000}, 1, true},
		{"theirs", fakeCopy{applied: 1000}, fakeCopy{applied: 1000, wrongFrom: 31}, 31, true},
		{"another history", fakeCopy{applied: 1000, forkFrom: 12}, fakeCopy{applied: 1000}, 12, true},
		{"before what we remember", fakeCopy{applied: 1000, wrongFrom: 300, oldest: 500}, fakeCopy{applied: 1000}, 500, false},
		{"before what they remember", fakeCopy{applied: 1000, wrongFrom: 300}, fakeCopy{applied: 1000, oldest: 640}, 640, false},
		{"long ago", fakeCopy{applied: 50_000, wrongFrom: 3}, fakeCopy{applied: 50_000}, 50_000 - searched + 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &world{own: tt.own, members: map[string]*member{"m": {fakeCopy: tt.theirs, manager: true, writer: true}}}
			in(t, w, Options{}, func(t *testing.T, c *Comparer, _ *prometheus.Registry) {
				p := c.Partings()
				if len(p) != 1 || p[0].Entry != tt.entry || p[0].Exact != tt.exact {
					t.Fatalf("got %+v, want entry %d, exact %v", p, tt.entry, tt.exact)
				}
				if w.questions > 20 {
					t.Errorf("%d questions", w.questions)
				}
			})
		})
	}
}

// Managers that differ publish nothing until they agree again.
func TestPublicationStops(t *testing.T) {
	other := &member{fakeCopy: fakeCopy{applied: 100, wrongFrom: 50}, manager: true}
	w := &world{own: fakeCopy{applied: 100}, members: map[string]*member{"m2": other, "w1": {fakeCopy: fakeCopy{applied: 100, wrongFrom: 70}}}}
	in(t, w, Options{Manager: true, Writer: true, Signed: true}, func(t *testing.T, c *Comparer, reg *prometheus.Registry) {
		var stopped *StoppedError
		if err := c.Stopped(); !errors.As(err, &stopped) || len(stopped.Partings) != 1 || !strings.Contains(err.Error(), "m2 differs from this node: the contents part at entry 50") {
			t.Fatalf("stopped: %v", err)
		}
		if n, err := testutil.GatherAndCount(reg, "qs_publish_stopped"); n != 1 || err != nil {
			t.Error(n, err)
		}
		w.change(func() { other.fakeCopy = fakeCopy{applied: 120, wrongFrom: 50} })
		if c.Stopped() == nil {
			t.Error("goes on before this node can compare")
		}
		w.change(func() { w.own.applied = 130 })
		if c.Stopped() == nil {
			t.Error("goes on though they still differ")
		}
		w.change(func() { other.fakeCopy = fakeCopy{applied: 10} }) // it is being made anew
		w.change(func() { other.fakeCopy = fakeCopy{applied: 130} })
		if err := c.Stopped(); err != nil {
			t.Errorf("still stopped: %v", err)
		}
		w.change(func() { other.fakeCopy = fakeCopy{applied: 131, forkFrom: 20} })
		w.change(func() { w.own.applied = 131 })
		if err := c.Stopped(); err == nil || !strings.Contains(err.Error(), "m2 differs from this node: entry 20 is another one") {
			t.Errorf("another history: %v", err)
		}
		w.change(func() { delete(w.members, "m2") })
		if err := c.Stopped(); err != nil {
			t.Errorf("it left, and still: %v", err)
		}
	})
}

// A copy that is made anew is judged anew; one that is wrong time and again is
// perhaps not the one that is wrong.
func TestMadeAnew(t *testing.T) {
	w := &world{own: fakeCopy{applied: 100, wrongFrom: 50}, signed: &fakeCopy{applied: 100}, members: map[string]*member{"m": {fakeCopy: fakeCopy{applied: 100}, manager: true, writer: true}}}
	in(t, w, Options{Signed: true}, func(t *testing.T, c *Comparer, _ *prometheus.Registry) {
		if len(w.convicted) != 1 {
			t.Fatalf("convicted %v", w.convicted)
		}
		anew := func(own fakeCopy) {
			w.change(func() { w.out = true })
			w.change(func() { w.own, w.out = own, false })
		}
		before := len(w.convicted)
		w.change(func() { w.out = true })
		time.Sleep(3 * judgeAgain)
		if len(w.convicted) != before {
			t.Errorf("convicted while out of service: %v", w.convicted[before:])
		}
		anew(fakeCopy{applied: 100, wrongFrom: 60})
		if len(w.convicted) != before+1 || w.convicted[before].Entry != 60 {
			t.Fatalf("wrong again: %v", w.convicted[before:])
		}
		anew(fakeCopy{applied: 100})
		if p := c.Partings(); len(p) != 0 {
			t.Fatalf("right, and still %+v", p)
		}
		before = len(w.convicted)
		for range 2 * maxConvictions {
			anew(fakeCopy{applied: 100, wrongFrom: 60})
		}
		if got := len(w.convicted) - before; got != maxConvictions {
			t.Errorf("convicted %d times in a row, want %d", got, maxConvictions)
		}
	})
}

// A copy that is made anew while others are asked about the one before is judged for
// itself.
func TestMadeAnewMeanwhile(t *testing.T) {
	for _, right := range []bool{true, false} {
		w := &world{own: fakeCopy{applied: 100, wrongFrom: 50}, members: map[string]*member{"m": {fakeCopy: fakeCopy{applied: 100}, manager: true, writer: true}}}
		w.asked = func() {
			if w.asked = nil; right {
				w.own = fakeCopy{applied: 100}
			} else {
				w.own = fakeCopy{applied: 100, wrongFrom: 60, flavour: 1}
			}
		}
		in(t, w, Options{}, func(t *testing.T, c *Comparer, _ *prometheus.Registry) {
			w.change(func() { w.own.applied, w.members["m"].applied = 120, 120 })
			if right && (len(w.convicted) > 0 || len(c.Partings()) > 0) {
				t.Errorf("convicted %v, partings %+v", w.convicted, c.Partings())
			}
			if !right && (len(w.convicted) != 1 || w.convicted[0].Ours.Digest[31] != 2) {
				t.Errorf("convicted %v", w.convicted)
			}
		})
	}
}

// A node that is always a little behind compares all the same.
func TestAlwaysBehind(t *testing.T) {
	writer := &member{fakeCopy: fakeCopy{applied: 100}, manager: true, writer: true}
	w := &world{own: fakeCopy{applied: 90, wrongFrom: 95}, members: map[string]*member{"m": writer}}
	in(t, w, Options{}, func(t *testing.T, c *Comparer, _ *prometheus.Registry) {
		for range 5 {
			w.change(func() { writer.applied += 20; w.own.applied = writer.applied - 10 })
		}
		if len(w.convicted) == 0 || w.convicted[0].Entry != 95 {
			t.Errorf("convicted %v", w.convicted)
		}
	})
}

// What comes in a log stream counts if gossip is behind.
func TestHear(t *testing.T) {
	writer := &member{fakeCopy: fakeCopy{applied: 50}, manager: true, writer: true}
	w := &world{own: fakeCopy{applied: 100, wrongFrom: 60}, members: map[string]*member{"m": writer}}
	in(t, w, Options{}, func(t *testing.T, c *Comparer, _ *prometheus.Registry) {
		if len(w.convicted) > 0 {
			t.Fatal(w.convicted)
		}
		writer.applied = 80
		writer.says = &fakeCopy{applied: 50}
		c.Hear("m", fakeCopy{}.point(80))
		c.Hear("nobody", fakeCopy{wrongFrom: 1}.point(80))
		w.change(func() {})
		if len(w.convicted) != 1 {
			t.Errorf("convicted %v", w.convicted)
		}
	})
}
