package lease

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var manager = Source{Name: "m0", Cost: 2, Complete: true}

// take asks for the next piece and receives it at once.
func take(p *Plan, source string, now time.Duration) (int, Reason, bool) {
	i, why, ok := p.Next(source, now)
	if ok {
		p.Have(i, now)
		p.Finish(source, i, Received, 0, now)
	}
	return i, why, ok
}

// TestAlone: one worker gets everything from the managers, about the same from each.
func TestAlone(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{1}, 400)
	p.SetSources([]Source{manager, {Name: "m1", Cost: 2, Complete: true}})
	got := map[string]int{}
	for now := time.Duration(0); p.Missing() > 0; now += time.Millisecond {
		for _, m := range []string{"m0", "m1"} {
			if _, why, ok := take(p, m, now); ok {
				got[m]++
				if why != Own {
					t.Fatalf("asked as %v", why)
				}
			}
		}
		p.check(t)
	}
	if got["m0"]+got["m1"] != 400 || got["m0"] < 180 || got["m1"] < 180 {
		t.Errorf("received %v", got)
	}
}

// TestFastSourceHelps: a source with nothing left of its part does another's.
func TestFastSourceHelps(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{1}, 100)
	p.SetSources([]Source{manager, {Name: "slow", Cost: 2, Complete: true}})
	for now := time.Duration(0); p.Missing() > 0; now += time.Millisecond {
		if _, _, ok := take(p, "m0", now); !ok && now > settleWithin {
			t.Fatalf("%d pieces left that nobody is asked for", p.Missing())
		}
	}
}

// TestWindows: requests to a source are bounded, and follow its pace.
func TestWindows(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{1}, 1000)
	p.SetSources([]Source{manager})
	now := time.Duration(0)
	fill := func() (pieces []int) {
		for {
			i, _, ok := p.Next("m0", now)
			if !ok {
				return pieces
			}
			pieces = append(pieces, i)
		}
	}
	flying := fill()
	if len(flying) != WindowMin {
		t.Fatalf("%d requests at first, want %d", len(flying), WindowMin)
	}
	for range 60 {
		now += time.Millisecond
		p.Have(flying[0], now)
		p.Finish("m0", flying[0], Received, 0, now)
		flying = append(flying[1:], fill()...)
	}
	if len(flying) != WindowMax {
		t.Fatalf("%d requests to a source that answers in 1 ms, want %d", len(flying), WindowMax)
	}
	p.Finish("m0", flying[0], Failed, 0, now)
	if more := fill(); len(more) > 0 || p.Window("m0") != WindowMin {
		t.Fatalf("%d requests after a failure, window %d", len(more), p.Window("m0"))
	}
}

// TestTakeover: when its own leases are used up, a worker takes over others', from
// the far end of the order of the one with most left to do.
func TestTakeover(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{1}, 300)
	p.SetFetchers(names("w", 3), nil)
	p.SetSources([]Source{manager})
	own := len(p.table.fetchers[p.table.me].pieces)
	for range own {
		i, why, ok := take(p, "m0", 0)
		if !ok || why != Own {
			t.Fatalf("own leases first: %v %v", why, ok)
		}
		p.Seen(i, 1, 0)
	}
	// w1 was slow, and has the most left; the colo has most of w2's.
	slow, quick := hashName("qs-fetcher-v1", "w1"), hashName("qs-fetcher-v1", "w2")
	held := holders(p)
	for i, h := range held {
		if h == quick && i%4 != 0 {
			p.Seen(i, 1, 0)
		}
	}
	i, why, ok := p.Next("m0", time.Second)
	if !ok || why != Takeover || held[i] != slow {
		t.Fatalf("Next: piece %d as %v %v", i, why, ok)
	}
	list := p.table.fetchers[p.pieces[i].holder].pieces
	for place, piece := range list {
		if int(piece) == i && place < len(list)/2 {
			t.Errorf("took over number %d of %d", place, len(list))
		}
	}
	// Refused in a row, takeovers become rare.
	p.Finish("m0", i, Leased, 0, time.Second)
	asked := 0
	for now := time.Second; now < 11*time.Second; now += 10 * time.Millisecond {
		if i, _, ok := p.Next("m0", now); ok {
			asked++
			p.Finish("m0", i, Leased, 0, now)
		}
	}
	if asked < 5 || asked > 15 {
		t.Errorf("%d takeovers were tried in 10 s while all were refused", asked)
	}
	p.check(t)
}

// TestHedge: what the colo has is not asked from a source, until it is late.
func TestHedge(t *testing.T) {
	fetch := func(seen int) *Plan {
		p := NewPlan("w0", "c", [20]byte{1}, 320)
		p.SetFetchers(names("w", 4), nil)
		p.SetSources([]Source{manager})
		for i := range 320 {
			p.Seen(i, seen, 0)
		}
		return p
	}
	next := func(p *Plan, now time.Duration) bool { _, _, ok := p.Next("m0", now); return ok }

	p := fetch(3)
	p.Active(time.Second)
	if next(p, 4*time.Second) {
		t.Error("hedged while data comes")
	}
	if !next(p, 6*time.Second) {
		t.Error("not hedged though nothing comes at all")
	}
	p = fetch(3)
	for i := range 310 { // 1 ms each: the rest will take 10 ms
		p.Have(i, time.Duration(i)*time.Millisecond)
	}
	if next(p, 312*time.Millisecond) {
		t.Error("hedged though the tail comes at once")
	}
	p.Active(4 * time.Second)
	if next(p, 4*time.Second) {
		t.Error("hedged what many have, with ten pieces to come")
	}
	p.Seen(315, 1, 4*time.Second)
	if i, why, ok := p.Next("m0", 4*time.Second); !ok || i != 315 || why != Hedge {
		t.Errorf("Next: %d %v %v, want the piece that one worker has", i, why, ok)
	}
	p = fetch(3)
	for i := range 317 {
		p.Have(i, time.Duration(i)*time.Millisecond)
	}
	p.Active(4 * time.Second)
	if !next(p, 4*time.Second) {
		t.Error("not hedged though three pieces are late")
	}
}

// TestHedgeOfAMend: who had most pieces from the beginning waits longer for the rest.
func TestHedgeOfAMend(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{1}, 100)
	for i := range 97 {
		p.Held(i)
	}
	p.SetFetchers(names("w", 1), nil)
	p.SetSources([]Source{manager})
	for i := 97; i < 100; i++ {
		p.Seen(i, 3, 0)
	}
	for _, now := range []time.Duration{0, lateAfter, 2 * stuckAfter, mendAfter - 1} {
		if i, why, ok := p.Next("m0", now); ok {
			t.Errorf("piece %d was asked for after %v: %v", i, now, why)
		}
	}
	if _, why, ok := p.Next("m0", mendAfter); !ok || why != Hedge {
		t.Errorf("%v: not hedged at all", mendAfter)
	}
}

// TestLame: a worker whose link is slow leaves its leases to the others, as long as
// they bring something in.
func TestLame(t *testing.T) {
	fetch := func() (*Plan, []uint64) {
		p := NewPlan("w0", "c", [20]byte{1}, 400)
		p.SetFetchers(names("w", 4), nil)
		p.SetSources([]Source{manager})
		return p, holders(p)
	}
	mine := hashName("qs-fetcher-v1", "w0")
	next := func(p *Plan, now time.Duration) bool { _, _, ok := p.Next("m0", now); return ok }

	p, held := fetch()
	for i, h := range held { // its downlink is slow: the others have a quarter of theirs
		if h != mine && i%4 == 0 {
			p.Seen(i, 1, time.Second)
		}
	}
	if next(p, time.Second) {
		t.Error("a worker that is behind asks")
	}
	if !next(p, 3*time.Second) {
		t.Error("a worker that is behind does not ask though nobody brings anything in")
	}

	p, held = fetch()
	first, _, _ := take(p, "m0", 0) // its uplink is slow: nobody gets this from there
	for i, h := range held {
		if h != mine && i%20 == 0 {
			p.Seen(i, 1, 1500*time.Millisecond)
		}
	}
	if next(p, 1600*time.Millisecond) {
		t.Error("a worker that shares nothing asks")
	}
	p.Seen(first, 1, 1700*time.Millisecond)
	if !next(p, 1700*time.Millisecond) {
		t.Error("a worker that has shared what it had does not ask")
	}
}

// TestFull: a worker brings in no more than the colo passes on.
func TestFull(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{1}, 400)
	p.SetFetchers(names("w", 24), nil)
	p.SetSources([]Source{manager})
	other := slices.IndexFunc(holders(p), func(h uint64) bool { return h != p.self })
	p.Seen(other, 4, 0) // four of them are neighbours
	var got []int
	for {
		i, _, ok := take(p, "m0", time.Second)
		if !ok {
			break
		}
		got = append(got, i)
	}
	if len(got) != spreadMost {
		t.Fatalf("%d pieces were brought in that nobody has, want %d", len(got), spreadMost)
	}
	p.Seen(got[3], 1, time.Second)
	if _, _, ok := take(p, "m0", time.Second); ok {
		t.Error("a piece that a quarter of the neighbours have counts as passed on")
	}
	p.Seen(got[3], 2, time.Second)
	if _, _, ok := take(p, "m0", time.Second); !ok {
		t.Error("a piece was passed on, and no other is brought in")
	}
	if _, _, ok := take(p, "m0", time.Second+spreadWithin); !ok {
		t.Error("nothing is brought in any more when nobody takes it")
	}
}

// TestLost: a piece whose copy is gone is fetched again.
func TestLost(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{1}, 50)
	p.SetSources([]Source{manager})
	for p.Missing() > 0 {
		take(p, "m0", 0)
	}
	p.Lost(7)
	p.Lost(7)
	if i, _, ok := take(p, "m0", time.Second); !ok || i != 7 || p.Missing() != 0 {
		t.Errorf("Next after a loss: %d %v", i, ok)
	}
	p.check(t)
}

// TestSourcesComeAndGo: what was asked from a source that is gone is asked again.
func TestSourcesComeAndGo(t *testing.T) {
	p := NewPlan("w0", "c", [20]byte{1}, 2)
	p.SetSources([]Source{manager})
	i, _, _ := p.Next("m0", 0)
	j, _, _ := p.Next("m0", 0)
	p.SetSources([]Source{{Name: "m1", Cost: 2, Complete: true}})
	p.Finish("m0", i, Failed, 0, 0)
	got := map[int]bool{}
	for range 2 {
		i, _, ok := take(p, "m1", 0)
		got[i] = ok
	}
	if !got[i] || !got[j] {
		t.Errorf("asked again: %v", got)
	}
}

// TestEveryPieceArrives runs workers, sources and grants against each other in random
// order, with failures, lies and deaths. Whatever happens, every worker that lives gets
// every piece in bounded time from the one source that is honest.
func TestEveryPieceArrives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{
			t:      t,
			rand:   rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)),
			pieces: rapid.IntRange(1, 60).Draw(t, "pieces"),
			chaos:  rapid.IntRange(0, 40).Draw(t, "chaos"),
			rude:   rapid.SampledFrom([]string{"", "lies", "fails", "busy", "hangs"}).Draw(t, "rude"),
			lazy:   rapid.Bool().Draw(t, "lazy"),
		}
		w.run(rapid.IntRange(1, 6).Draw(t, "workers"), rapid.IntRange(1, 3).Draw(t, "colos"))
	})
}

// TestOneCopy: when nothing goes wrong, each piece leaves the managers once.
func TestOneCopy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, rand: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), pieces: 100}
		w.run(rapid.IntRange(1, 8).Draw(t, "workers"), 1)
		if w.sent != w.pieces {
			t.Fatalf("%d pieces were sent for a file of %d", w.sent, w.pieces)
		}
	})
}

// world is a few colos whose time goes in steps.
type world struct {
	t      *rapid.T
	rand   *rand.Rand
	pieces int
	chaos  int    // percentage of requests in the first half minute that go wrong
	rude   string // what a second manager does all the time
	lazy   bool   // the last worker passes nothing on
	now    time.Duration
	nodes  []*member
	sent   int // by the honest manager
}

type member struct {
	name, colo string
	plan       *Plan
	has        []bool
	flying     []flight
	lazy, dead bool
	grants     *Grants // as a source
}

type flight struct {
	source string
	piece  int
	result Result
	until  time.Duration
	retry  time.Duration
}

func (w *world) run(workers, colos int) {
	honest := NewGrants()
	for i := range workers {
		m := &member{name: fmt.Sprint("w", i), colo: fmt.Sprint("c", i%colos), has: make([]bool, w.pieces), grants: NewGrants()}
		m.plan = NewPlan(m.name, m.colo, [20]byte{9}, w.pieces)
		m.lazy = w.lazy && i == workers-1
		w.nodes = append(w.nodes, m)
	}
	w.gossip()
	const step = 20 * time.Millisecond
	for ; ; w.now += step {
		if w.now > 10*time.Minute {
			for _, m := range w.nodes {
				w.t.Logf("%s of %s: dead %v, missing %d, asking %+v", m.name, m.colo, m.dead, m.plan.Missing(), m.flying)
				for _, s := range m.plan.sources {
					w.t.Logf("  %+v", *s)
				}
				for i, pc := range m.plan.pieces {
					if !pc.have {
						w.t.Logf("  %d: %+v", i, pc)
					}
				}
			}
			w.t.Fatalf("not finished after %v", w.now)
		}
		if w.now%time.Second == 0 {
			w.gossip()
		}
		if w.chaos > 0 && w.now == 300*time.Millisecond && workers > 1 {
			w.nodes[0].dead = true
			honest.Gone("w0")
		}
		done := true
		for _, k := range w.rand.Perm(len(w.nodes)) {
			if m := w.nodes[k]; !m.dead {
				w.act(m, honest)
				done = done && m.plan.Missing() == 0
			}
		}
		if done {
			return
		}
	}
}

// gossip tells everybody of who lives and what they have.
func (w *world) gossip() {
	for _, m := range w.nodes {
		var fetchers, colos []string
		sources := []Source{{Name: "honest", Cost: 2, Complete: true}}
		if w.rude != "" {
			sources = append(sources, Source{Name: "rude", Cost: 2, Complete: true})
		}
		for _, o := range w.nodes {
			if o.dead {
				continue
			}
			if colos = append(colos, o.colo); o.colo == m.colo {
				fetchers = append(fetchers, o.name)
			} else {
				sources = append(sources, Source{Name: o.name, Cost: 1})
			}
		}
		m.plan.SetFetchers(fetchers, colos)
		m.plan.SetSources(sources)
		for _, o := range w.nodes {
			m.plan.Holds(o.name, o.has)
		}
	}
}

func (w *world) act(m *member, honest *Grants) {
	if w.chaos > 0 && w.now < 20*time.Second && w.rand.IntN(200) == 0 { // a disk forgets
		i := w.rand.IntN(w.pieces)
		m.has[i] = false
		m.plan.Lost(i)
	}
	keep := m.flying[:0]
	for _, f := range m.flying {
		if w.now < f.until {
			keep = append(keep, f)
			continue
		}
		if f.source == "honest" && (f.result == Received || f.result == Failed) {
			honest.Done(m.colo, m.name, f.piece, f.result == Received, w.now)
		}
		if f.result == Received {
			m.has[f.piece] = true
			m.plan.Have(f.piece, w.now)
			if f.source == "honest" {
				w.sent++
			}
		}
		m.plan.Finish(f.source, f.piece, f.result, f.retry, w.now)
	}
	m.flying = keep
	// A neighbour of the colo passes one piece on.
	for _, o := range w.nodes {
		if o == m || o.dead || o.lazy || o.colo != m.colo {
			continue
		}
		from := w.rand.IntN(w.pieces)
		for k := range w.pieces {
			if i := (from + k) % w.pieces; o.has[i] && !m.has[i] {
				m.has[i] = true
				m.plan.Have(i, w.now)
				break
			}
		}
	}
	for i := range w.pieces {
		n := 0
		for _, o := range w.nodes {
			if o != m && !o.dead && o.colo == m.colo && o.has[i] {
				n++
			}
		}
		m.plan.Seen(i, n, w.now)
	}
	for _, s := range m.plan.sources {
		for {
			i, _, ok := m.plan.Next(s.Name, w.now)
			if !ok {
				break
			}
			if m.has[i] {
				w.t.Fatalf("%s asks for piece %d, which it has", m.name, i)
			}
			m.flying = append(m.flying, w.request(m, s.Name, i, honest))
		}
	}
	m.plan.check(w.t)
}

func (w *world) request(m *member, source string, i int, honest *Grants) flight {
	f := flight{source: source, piece: i, result: Received, until: w.now + 20*time.Millisecond}
	if w.now < 30*time.Second && w.rand.IntN(100) < w.chaos {
		f.result = []Result{NotHeld, Busy, Failed}[w.rand.IntN(3)]
	}
	switch {
	case source == "rude":
		f.result = map[string]Result{"lies": NotHeld, "fails": Failed, "busy": Busy, "hangs": Failed}[w.rude]
		if w.rude == "hangs" {
			f.until += 5 * time.Second
		}
	case source == "honest" && f.result != Received: // refused before it was granted
	case source == "honest":
		ok, holder, retry := honest.Ask(m.colo, m.name, i, w.now)
		if !ok {
			if holder == m.name {
				w.t.Fatalf("%s is refused what is granted to itself", holder)
			}
			f.result, f.retry = Leased, retry
		}
	default:
		for _, o := range w.nodes {
			if o.name == source && (o.dead || o.lazy) {
				f.result = Failed
			} else if o.name == source && !o.has[i] {
				f.result = NotHeld
			}
		}
	}
	return f
}

func BenchmarkNext(b *testing.B) {
	for _, c := range []struct{ pieces, fetchers int }{{1024, 32}, {8192, 500}} {
		fresh := func(seen bool) *Plan {
			p := NewPlan("w0", "c", [20]byte{1}, c.pieces)
			p.SetFetchers(names("w", c.fetchers), nil)
			p.SetSources([]Source{manager, {Name: "m1", Cost: 2, Complete: true}})
			for i := range c.pieces {
				if int(p.pieces[i].holder) == p.table.me {
					p.Have(i, 0)
				} else if seen {
					p.Seen(i, 1, 0)
				}
			}
			return p
		}
		b.Run(fmt.Sprintf("%dx%d/takeover", c.pieces, c.fetchers), func(b *testing.B) {
			p := fresh(false)
			for now := time.Duration(0); b.Loop(); now += time.Millisecond {
				if p.Missing() == 0 {
					b.StopTimer()
					p = fresh(false)
					b.StartTimer()
				}
				take(p, "m0", now)
			}
		})
		b.Run(fmt.Sprintf("%dx%d/nothing", c.pieces, c.fetchers), func(b *testing.B) {
			p := fresh(true)
			for now := time.Duration(0); b.Loop(); now += 10 * time.Microsecond {
				p.Active(now)
				p.Next("m0", now)
			}
		})
	}
	b.Run("8192 alone", func(b *testing.B) {
		p := NewPlan("w0", "c", [20]byte{1}, 8192)
		p.SetSources([]Source{manager})
		for now := time.Duration(0); b.Loop(); now += time.Millisecond {
			if i, _, ok := take(p, "m0", now); !ok {
				for i := range 8192 {
					p.Lost(i)
				}
			} else if i < 0 {
				b.Fatal("no piece")
			}
		}
	})
}
