package sim

import (
	"time"

	"github.com/qs-peer/qs-peer/p2p/lease"
)

// This file drives p2p/lease as a node's engine does: what is asked from whom
// is a Plan's decision, what is granted a Grants'.

// The costs of sources, as the product orders them.
const (
	costOtherColos = 1
	costManagers   = 2
)

// source is one at a worker: a node that it may ask for pieces.
type source struct {
	node int32
	name string
	flow int32
}

// setSources gives a worker the nodes that it may ask.
func (f *fleet) setSources(w int32) {
	n := &f.nodes[w]
	old := n.sources
	n.sources = nil
	var list []lease.Source
	add := func(s int32, cost int, complete bool) {
		name := f.nodes[s].name
		known := source{node: s, name: name, flow: -1}
		for _, o := range old {
			if o.node == s && !f.flows[o.flow].closed {
				known = o
			}
		}
		slot := ^int32(len(n.sources))
		if known.flow < 0 {
			known.flow = f.newFlow(s, w, slot)
		}
		f.flows[known.flow].slot = slot
		n.sources = append(n.sources, known)
		list = append(list, lease.Source{Name: name, Cost: cost, Complete: complete})
	}
	for m := range int32(f.o.Managers) {
		if f.nodes[m].alive {
			add(m, costManagers, true)
		}
	}
	for _, g := range n.gates {
		add(g, costOtherColos, f.nodes[g].missing == 0)
	}
	n.plan.SetSources(list)
}

// look asks for whatever a worker's plan wants asked now.
func (f *fleet) look(w int32) {
	n := &f.nodes[w]
	for k := range n.sources {
		s := &n.sources[k]
		for {
			i, why, ok := n.plan.Next(s.name, f.now)
			if !ok {
				break
			}
			f.reasons[why]++
			f.requests++
			put(n.asked, int32(i))
			put(n.busy, int32(i))
			f.agenda.add(f.now+f.latency(s.node, w), ask, s.flow, int32(i))
		}
	}
}

// askedFor takes a request at a source.
func (f *fleet) askedFor(id, piece int32) {
	fl := &f.flows[id]
	s, w := &f.nodes[fl.src], &f.nodes[fl.dst]
	result := lease.Received
	retry := time.Duration(0)
	switch {
	case !s.alive || fl.closed:
		result = lease.Failed
	case !in(s.have, piece):
		result = lease.NotHeld
	default:
		if s.grants == nil {
			s.grants = lease.NewGrants()
		}
		var ok bool
		if ok, _, retry = s.grants.Ask(f.colos[w.colo].name, w.name, int(piece), f.now); !ok {
			result = lease.Leased
			f.refused++
		}
	}
	if result == lease.Received {
		s.waiting = append(s.waiting, waiter{id, piece})
		f.serve(s)
		return
	}
	f.answer(id, piece, result, retry)
}

// waiter is a granted request whose turn has not come.
type waiter struct{ flow, piece int32 }

// serve sends as many pieces at once as a source does.
func (f *fleet) serve(s *node) {
	for len(s.waiting) > 0 && s.sending < f.o.Sending {
		w := s.waiting[0]
		s.waiting = s.waiting[1:]
		fl := &f.flows[w.flow]
		if fl.closed {
			continue
		}
		s.sending++
		fl.queue = append(fl.queue, w.piece)
		f.activate(w.flow)
	}
}

func (f *fleet) answer(id, piece int32, r lease.Result, retry time.Duration) {
	fl := &f.flows[id]
	f.agenda.put(event{at: f.now + f.latency(fl.src, fl.dst), kind: answered, a: id, b: piece,
		c: int32(retry.Milliseconds())<<4 | int32(r)})
}

// sentToAsker notes at a source that a piece has left it.
func (f *fleet) sentToAsker(id, piece int32) {
	fl := &f.flows[id]
	s, w := &f.nodes[fl.src], &f.nodes[fl.dst]
	s.sent++
	s.sending--
	f.serve(s)
	s.grants.Done(f.colos[w.colo].name, w.name, int(piece), true, f.now)
}

// finish tells a worker's plan how a request to a source ended.
func (f *fleet) finish(id, piece int32, r lease.Result, retry time.Duration) {
	fl := &f.flows[id]
	n := &f.nodes[fl.dst]
	if !n.alive {
		return
	}
	drop(n.asked, piece)
	if n.by[piece] == noConn && !in(n.got, piece) {
		drop(n.busy, piece)
	}
	n.plan.Finish(f.nodes[fl.src].name, int(piece), r, retry, f.now)
	f.look(fl.dst)
}
