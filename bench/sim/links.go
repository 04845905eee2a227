package sim

import "time"

// A flow is a connection that carries pieces one way, over the sender's uplink, the
// two colos' links if they are limited, and the receiver's downlink. The uplink is
// shared out in turns of a quantum; the other links take quanta in order of arrival.
// window quanta of a flow are under way at a time, so that a receiver that is
// busy holds its senders back, as TCP does.
type flow struct {
	src, dst int32
	slot     int32   // the connection's place at the receiver: conns, or ^place among its sources
	queue    []int32 // pieces to be sent, and those under way
	sent     int32   // quanta of the queue that have left
	came     int32   // quanta of queue[0] that have arrived
	flying   int32   // quanta that have left and not arrived
	next     int32   // in the turns of the uplink, -1 at the end
	queued   bool    // is in them
	closed   bool
}

// link is one that serves in order of arrival.
type link struct {
	perByte float64 // nanoseconds; 0: no limit
	free    time.Duration
	bytes   int64
}

func (l *link) pass(now time.Duration, bytes int64) time.Duration {
	l.free = max(l.free, now) + time.Duration(float64(bytes)*l.perByte)
	l.bytes += bytes
	return l.free
}

// turns is a node's uplink.
type turns struct {
	perByte     float64
	first, last int32 // flows that have something to send, -1: none
	busy        bool
	bytes       int64
}

// size returns how long the n-th quantum of a queue that starts with whole pieces is.
func (f *fleet) quantumSize(fl *flow, n int32) int64 {
	piece := int64(fl.queue[n/f.perPiece])
	from := piece*f.piece + int64(n%f.perPiece)*quantum
	return max(0, min(quantum, min((piece+1)*f.piece, f.o.Size)-from))
}

// activate lets a flow take its turn if it can send.
func (f *fleet) activate(id int32) {
	fl := &f.flows[id]
	if fl.queued || fl.closed || fl.flying >= window || fl.sent >= int32(len(fl.queue))*f.perPiece {
		return
	}
	up := &f.nodes[fl.src].up
	fl.queued, fl.next = true, -1
	if up.first < 0 {
		up.first = id
	} else {
		f.flows[up.last].next = id
	}
	up.last = id
	if !up.busy {
		f.send(fl.src)
	}
}

// send starts the next quantum on a node's uplink, which is free.
func (f *fleet) send(n int32) {
	up := &f.nodes[n].up
	for up.first >= 0 {
		id := up.first
		fl := &f.flows[id]
		up.first = fl.next
		fl.queued = false
		if fl.closed || fl.sent >= int32(len(fl.queue))*f.perPiece {
			continue // what it was to send was cancelled
		}
		size := f.quantumSize(fl, fl.sent)
		fl.sent++
		fl.flying++
		up.busy = true
		up.bytes += size
		f.agenda.add(f.now+time.Duration(float64(size)*up.perByte), uplinkFree, n, id)
		return
	}
	up.busy = false
}

// departed moves a quantum on that has passed the uplink.
func (f *fleet) departed(n, id int32) {
	fl := &f.flows[id]
	src := &f.nodes[n]
	if src.alive && !fl.closed {
		from, to := src.colo, f.nodes[fl.dst].colo
		switch {
		case from == to:
			f.toDownlink(id, f.quantumSize(fl, fl.sent-1), f.now+f.o.Latency)
		case from >= 0 && f.o.Between > 0:
			f.agenda.add(f.now, hop, id, from<<1)
		default:
			f.agenda.add(f.now+f.o.Far, hop, id, to<<1|1)
		}
		if fl.sent%f.perPiece == 0 && fl.slot < 0 {
			f.sentToAsker(id, fl.queue[fl.sent/f.perPiece-1])
		}
		f.activate(id)
	}
	f.send(n)
}

// reach takes a quantum over a colo's link: out of it, or into it.
func (f *fleet) reach(id, where int32) {
	fl := &f.flows[id]
	const size = int64(quantum) // but for the last one of the file
	if where == toNode {
		f.toDownlink(id, size, f.now)
		return
	}
	colo := &f.colos[where>>1]
	if where&1 == 0 {
		f.agenda.add(colo.out.pass(f.now, size)+f.o.Far, hop, id, f.nodes[fl.dst].colo<<1|1)
		return
	}
	f.agenda.add(colo.in.pass(f.now, size), hop, id, toNode)
}

// toNode is where a quantum goes that has passed all links but the receiver's.
const toNode = -1

// toDownlink reserves the receiver's downlink for a quantum that gets there at a time.
func (f *fleet) toDownlink(id int32, size int64, at time.Duration) {
	f.agenda.add(f.nodes[f.flows[id].dst].down.pass(at, size), delivered, id, 0)
}

// arrived takes a quantum in.
func (f *fleet) arrived(id int32) {
	fl := &f.flows[id]
	if fl.closed {
		return
	}
	fl.flying--
	fl.came++
	piece := int32(-1)
	if fl.came == f.perPiece {
		piece = fl.queue[0]
		fl.queue = append(fl.queue[:0], fl.queue[1:]...)
		fl.came = 0
		fl.sent -= f.perPiece
	}
	f.activate(id)
	if piece >= 0 && f.nodes[fl.dst].alive {
		f.received(id, piece)
	}
}

// cancel takes a piece out of a flow's queue, unless it is being sent.
func (f *fleet) cancel(id, piece int32) {
	fl := &f.flows[id]
	for k := (fl.sent + f.perPiece - 1) / f.perPiece; k < int32(len(fl.queue)); k++ {
		if fl.queue[k] == piece {
			fl.queue = append(fl.queue[:k], fl.queue[k+1:]...)
			return
		}
	}
}
