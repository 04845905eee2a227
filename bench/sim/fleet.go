package sim

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/p2p/graph"
	"github.com/qs-peer/qs-peer/p2p/lease"
)

// noConn is no neighbour.
const noConn = -1

// fleet is the state of a run.
type fleet struct {
	o        Options
	rand     *rand.Rand
	now      time.Duration
	agenda   agenda
	nodes    []node // managers, then workers
	flows    []flow
	colos    []colo
	hash     [20]byte
	piece    int64 // bytes
	pieces   int
	verify   time.Duration // of a piece
	perPiece int32         // quanta
	left     int           // workers that are to finish
	held     int64         // pieces that workers hold
	union    []uint64      // pieces that any of them held
	covered  int           // how many these are
	stale    bool          // gossip has something to tell

	requests int64
	refused  int64
	reasons  [3]int64
	killed   bool
	events   int64
}

type colo struct {
	name    string
	workers []int32
	out, in link
}

type node struct {
	name  string
	id    graph.ID
	colo  int32 // -1: a manager
	alive bool
	taste uint64 // of its own, for ties
	up    turns
	down  link

	// Sets of pieces: verified; announced to the neighbours; arrived; asked from
	// sources; not to be requested from neighbours.
	have, told, got, asked, busy []uint64

	missing int
	avail   []uint8 // neighbours that announced the piece
	by      []int8  // place of the neighbour that is asked for it
	conns   []conn
	plan    *lease.Plan // nil: a manager, or not started
	sources []source
	gates   []int32
	grants  *lease.Grants
	waiting []waiter // granted, as a source
	sending int      // pieces, as a source
	began   time.Duration
	done    time.Duration
	from    [3]int64 // pieces, by origin
	sent    int64    // pieces, as a source
	wasted  int64
}

// origins of a piece.
const (
	fromManagers = iota
	fromOwnColo
	fromOtherColos
)

func in(set []uint64, i int32) bool { return set[i>>6]>>(i&63)&1 != 0 }
func put(set []uint64, i int32)     { set[i>>6] |= 1 << (i & 63) }
func drop(set []uint64, i int32)    { set[i>>6] &^= 1 << (i & 63) }

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func newFleet(o Options) *fleet {
	f := &fleet{
		o:     o,
		rand:  rand.New(rand.NewPCG(o.Seed, 0)),
		piece: chunker.PieceLength(o.Size),
	}
	f.pieces = int((o.Size + f.piece - 1) / f.piece)
	f.perPiece = int32(f.piece / quantum)
	f.verify = time.Duration(float64(f.piece) / verifyRate * 1e9)
	between := f.perByte(o.Between)
	sum := sha256.Sum256(fmt.Appendf(nil, "simulated snapshot %d", o.Seed))
	copy(f.hash[:], sum[:])
	f.colos = make([]colo, o.Colos)
	for c := range f.colos {
		f.colos[c] = colo{name: fmt.Sprintf("colo-%d", c+1), out: link{perByte: between}, in: link{perByte: between}}
	}
	all := o.Workers + o.Late
	words := (f.pieces + 63) / 64
	f.union = make([]uint64, words)
	f.nodes = make([]node, o.Managers+all)
	for i := range f.nodes {
		n := &f.nodes[i]
		n.taste = f.rand.Uint64()
		n.up.first, n.up.last = -1, -1
		rate := o.ManagerRate
		if n.colo = -1; i >= o.Managers {
			w := i - o.Managers
			n.name = fmt.Sprintf("worker-%d", w+1)
			n.colo = int32(w % o.Colos)
			rate = o.rate(w)
		} else {
			n.name = fmt.Sprintf("manager-%d", i+1)
		}
		n.up.perByte, n.down.perByte = f.perByte(rate), f.perByte(rate)
		sum := sha256.Sum256([]byte(n.name))
		copy(n.id[:], sum[:])
		sets := make([]uint64, 5*words)
		for _, set := range []*[]uint64{&n.have, &n.told, &n.got, &n.asked, &n.busy} {
			*set, sets = sets[:words:words], sets[words:]
		}
		if n.colo < 0 {
			n.alive = true
			for p := range int32(f.pieces) {
				put(n.have, p)
			}
			continue
		}
		n.missing = f.pieces
		n.avail = make([]uint8, f.pieces)
		n.by = make([]int8, f.pieces)
		for p := range n.by {
			n.by[p] = noConn
		}
	}
	return f
}

// perByte returns the nanoseconds that a byte of payload takes.
func (f *fleet) perByte(rate lab.Rate) float64 {
	if rate == 0 {
		return 0
	}
	return 1e9 * f.o.Overhead / float64(rate)
}

func (f *fleet) newFlow(src, dst, slot int32) int32 {
	f.flows = append(f.flows, flow{src: src, dst: dst, slot: slot, next: -1})
	return int32(len(f.flows) - 1)
}

func (f *fleet) latency(a, b int32) time.Duration {
	if f.nodes[a].colo == f.nodes[b].colo {
		return f.o.Latency
	}
	return f.o.Far
}

// origin returns the kind of node that sends a flow.
func (f *fleet) origin(fl *flow) int {
	switch f.nodes[fl.src].colo {
	case -1:
		return fromManagers
	case f.nodes[fl.dst].colo:
		return fromOwnColo
	}
	return fromOtherColos
}

// run goes through the events until all workers that live have every piece.
func (f *fleet) run() error {
	f.now = f.o.Startup
	for w := f.o.Managers; w < f.o.Managers+f.o.Workers; w++ {
		f.join(int32(w))
	}
	f.hearOfAll()
	f.agenda.add(f.now+f.o.Gossip, gossip, 0, 0)
	for f.left > 0 {
		e, ok := f.agenda.next()
		if !ok || e.at > f.o.Limit {
			return fmt.Errorf("after %v of simulated time %d workers still lack pieces", f.now.Round(time.Second), f.left)
		}
		f.now = e.at
		f.events++
		switch e.kind {
		case uplinkFree:
			f.departed(e.a, e.b)
		case hop:
			f.reach(e.a, e.b)
		case delivered:
			f.arrived(e.a)
		case request:
			f.requested(e.a, e.b)
		case ask:
			f.askedFor(e.a, e.b)
		case answered:
			f.finish(e.a, e.b, lease.Result(e.c&15), time.Duration(e.c>>4)*time.Millisecond)
		case verified:
			f.verified(e.a, e.b)
		case announced:
			f.announced(e.a, e.b)
		case look:
			if n := &f.nodes[e.a]; n.alive && n.missing > 0 {
				f.look(e.a)
				f.agenda.add(f.now+tick, look, e.a, 0)
			}
		case polled:
			f.polled(e.a)
		case gossip:
			if f.stale {
				f.stale = false
				f.hearOfAll()
			}
			f.agenda.add(f.now+f.o.Gossip, gossip, 0, 0)
		case start:
			f.left--
			f.join(e.a)
		case closed:
			f.connectionsEnd(e.a)
		}
	}
	return nil
}

// join starts a worker.
func (f *fleet) join(w int32) {
	n := &f.nodes[w]
	n.alive, n.began = true, f.now
	n.plan = lease.NewPlan(n.name, f.colos[n.colo].name, f.hash, f.pieces)
	f.colos[n.colo].workers = append(f.colos[n.colo].workers, w)
	f.left++
	f.stale = true
	f.agenda.add(f.now+time.Duration(f.rand.Int64N(int64(tick)))+f.o.Far, look, w, 0)
	if f.o.Colos > 1 && !f.o.Isolated {
		f.agenda.add(f.now+time.Duration(f.rand.Int64N(int64(f.o.Poll))), polled, w, 0)
	}
}

// hearOfAll tells everybody who lives.
func (f *fleet) hearOfAll() {
	var colos []string
	for c := range f.colos {
		live := f.colos[c].workers[:0]
		for _, w := range f.colos[c].workers {
			if f.nodes[w].alive {
				live = append(live, w)
			}
		}
		if f.colos[c].workers = live; len(live) > 0 {
			colos = append(colos, f.colos[c].name)
		}
	}
	named := make(map[string]int32)
	for c := range f.colos {
		for _, w := range f.colos[c].workers {
			named[f.nodes[w].name] = w
		}
	}
	for c := range f.colos {
		workers := f.colos[c].workers
		var fetchers []string
		ids := make([]graph.ID, 0, len(workers))
		at := make(map[graph.ID]int32, len(workers))
		for _, w := range workers {
			n := &f.nodes[w]
			if n.missing > 0 {
				fetchers = append(fetchers, n.name)
			}
			ids = append(ids, n.id)
			at[n.id] = w
		}
		if len(fetchers) == 0 {
			continue
		}
		gates := f.gateways(int32(c), named)
		for k, w := range workers {
			n := &f.nodes[w]
			if n.missing == 0 {
				continue
			}
			n.plan.SetFetchers(fetchers, colos)
			n.gates = gates
			f.setSources(w)
			others := append(append([]graph.ID{}, ids[:k]...), ids[k+1:]...)
			order, want := graph.Order(f.hash, n.id, others)
			for _, id := range order[:want] {
				f.connect(w, at[id])
			}
			f.look(w)
		}
	}
}

// gateways returns which workers of other colos a colo asks.
func (f *fleet) gateways(own int32, named map[string]int32) (gates []int32) {
	if f.o.Isolated {
		return nil
	}
	var others []lease.Candidate
	for c := range f.colos {
		if int32(c) == own {
			continue
		}
		for _, w := range f.colos[c].workers {
			n := &f.nodes[w]
			others = append(others, lease.Candidate{Name: n.name, Colo: f.colos[c].name, Complete: n.missing == 0})
		}
	}
	for _, name := range lease.Gateways(f.colos[own].name, others) {
		gates = append(gates, named[name])
	}
	return gates
}

// requested takes a neighbour's request.
func (f *fleet) requested(id, piece int32) {
	fl := &f.flows[id]
	if fl.closed || int32(f.nodes[fl.dst].by[piece]) != fl.slot {
		return // it was withdrawn meanwhile
	}
	fl.queue = append(fl.queue, piece)
	f.activate(id)
}

// verified gives a worker a piece.
func (f *fleet) verified(id, piece int32) {
	fl := &f.flows[id]
	n := &f.nodes[fl.dst]
	if !n.alive {
		return
	}
	if !in(n.have, piece) {
		put(n.have, piece)
		n.missing--
		f.held++
		if !in(f.union, piece) {
			put(f.union, piece)
			f.covered++
		}
		n.plan.Have(int(piece), f.now)
		f.agenda.add(f.now+f.o.Latency, announced, fl.dst, piece)
		if n.missing == 0 {
			n.done = f.now
			f.left--
			f.stale = true
		}
		f.milestones()
	}
	if fl.slot < 0 {
		f.finish(id, piece, lease.Received, 0)
	}
}

// announced tells the neighbours of a piece.
func (f *fleet) announced(w, piece int32) {
	n := &f.nodes[w]
	if !n.alive {
		return
	}
	put(n.told, piece)
	for k := range n.conns {
		if c := &n.conns[k]; c.open {
			f.hear(&f.nodes[c.peer], int(c.back), piece)
		}
	}
}

// milestones does what happens when so much is held.
func (f *fleet) milestones() {
	half := int64(f.o.Workers) * int64(f.pieces) / 2
	if !f.killed && f.held >= half && (f.o.KillFraction > 0 || f.o.Late > 0) {
		f.killed = true
		for k := range f.o.Workers {
			if f.o.dies(k) {
				f.die(int32(f.o.Managers + k))
			}
		}
		for k := range f.o.Late {
			f.agenda.add(f.now+f.o.Startup, start, int32(f.o.Managers+f.o.Workers+k), 0)
			f.left++
		}
	}
	if n := f.nodes[:f.o.Managers]; f.o.KillManager && f.covered == f.pieces && n[0].alive {
		for m := range n {
			f.die(int32(m))
		}
	}
	if f.o.LoseManager && f.covered >= f.pieces/2 && f.nodes[0].alive {
		f.die(0)
	}
}

// die ends a node's process. Its connections end at once, gossip needs longer.
func (f *fleet) die(id int32) {
	n := &f.nodes[id]
	n.alive = false
	if n.colo >= 0 && n.missing > 0 {
		f.left--
	}
	f.agenda.add(f.now+f.o.Latency, closed, id, 0)
	f.stale = true
}

// connectionsEnd is when the others notice.
func (f *fleet) connectionsEnd(id int32) {
	dead := &f.nodes[id]
	for k := range dead.conns {
		if c := &dead.conns[k]; c.open {
			f.disconnect(&f.nodes[c.peer], int(c.back))
		}
	}
	for k := range f.flows {
		fl := &f.flows[k]
		if fl.slot >= 0 || fl.closed {
			continue
		}
		if fl.src == id {
			fl.closed = true
			for _, piece := range fl.queue {
				f.answer(int32(k), piece, lease.Failed, 0)
			}
		} else if fl.dst == id {
			fl.closed = true
			if g := f.nodes[fl.src].grants; g != nil {
				g.Gone(dead.name)
			}
			s := &f.nodes[fl.src]
			s.sending -= len(fl.queue) - int(fl.sent/f.perPiece)
			f.serve(s)
		}
	}
}

// polled tells a worker what its incomplete sources have.
func (f *fleet) polled(w int32) {
	n := &f.nodes[w]
	if !n.alive || n.missing == 0 {
		return
	}
	holds := make([]bool, f.pieces)
	for _, s := range n.sources {
		if o := &f.nodes[s.node]; o.colo >= 0 {
			for i := range holds {
				holds[i] = in(o.have, int32(i))
			}
			n.plan.Holds(s.name, holds)
		}
	}
	f.look(w)
	f.agenda.add(f.now+f.o.Poll, polled, w, 0)
}
