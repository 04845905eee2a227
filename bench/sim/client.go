package sim

import "math/bits"

// This file models the torrent client: how a worker chooses what to request from
// its neighbours (requesting.go of anacrolix/torrent v1.61.0). It follows it in
// what it does:
//   - A connection's requests are made when the neighbour announces a piece that is missing,
//     and when the last of them is answered or lost.
//   - There are at most PeerMaxRequests, and at most twice as many as were new
//     the last time.
//   - What is not requested yet goes first, the rarest first, ties in an order that each worker
//     draws; then requests are taken from the connection with most of them, if
//     this one has fewer.
//   - A request that was taken from a connection is cancelled there, unless it is
//     being answered.
//
// It does not model blocks that are shorter than a piece, messages' bytes, nor the
// order in which the client's lock is taken.

// maxRequests is the product's workerWindow.
const maxRequests = 4

// conn is one end of a connection between two workers of a colo.
type conn struct {
	peer     int32
	back     int32 // its place among the peer's
	in, out  int32 // flows
	requests int32
	peak     int32
	useful   int64 // nanoseconds: when it last delivered a piece that was missing
	open     bool
}

// refill requests what a connection should be asked for. Cancelled says that it lost its
// last request to another: then it takes none.
func (f *fleet) refill(n *node, at int, cancelled bool) {
	c := &n.conns[at]
	if !c.open || n.missing == 0 {
		return
	}
	most := max(1, min(maxRequests, 2*c.peak))
	before := c.requests
	for c.requests < most {
		i := f.rarest(n, &f.nodes[c.peer])
		if i < 0 && !cancelled {
			i = f.steal(n, at)
		}
		if i < 0 {
			break
		}
		n.by[i] = int8(at)
		put(n.busy, i)
		c.requests++
		f.agenda.add(f.now+f.o.Latency, request, c.in, i)
	}
	c.peak = c.requests - before
}

// rarest returns the piece to be requested from a peer that nobody is asked for, or -1.
func (f *fleet) rarest(n, peer *node) int32 {
	best, least := int32(-1), ^uint64(0)
	for k, have := range peer.told {
		for set := have &^ n.have[k] &^ n.busy[k]; set != 0; set &= set - 1 {
			i := int32(k<<6 + bits.TrailingZeros64(set))
			if key := uint64(n.avail[i])<<56 | mix(n.taste^uint64(i))>>8; key < least {
				best, least = i, key
			}
		}
	}
	return best
}

// steal takes a request from the connection that has most of them, and returns its
// piece, or -1.
func (f *fleet) steal(n *node, at int) int32 {
	c := &n.conns[at]
	best, most := int32(-1), int32(0)
	for k, have := range f.nodes[c.peer].told {
		for set := have & n.busy[k] &^ n.have[k]; set != 0; set &= set - 1 {
			i := int32(k<<6 + bits.TrailingZeros64(set))
			if by := n.by[i]; by >= 0 && int(by) != at && n.conns[by].requests > most {
				best, most = i, n.conns[by].requests
			}
		}
	}
	if best < 0 {
		return -1
	}
	from := int(n.by[best])
	victim := &n.conns[from]
	if d := c.requests - victim.requests + 2; d > 1 || d == 1 && c.useful <= victim.useful {
		return -1
	}
	f.withdraw(n, from, best)
	if n.by[best] != noConn { // it lost its last one, and asked for the same again
		return -1
	}
	return best
}

// withdraw takes back a request.
func (f *fleet) withdraw(n *node, at int, piece int32) {
	c := &n.conns[at]
	f.free(n, piece)
	c.requests--
	c.peak = max(0, c.peak-1)
	f.cancel(c.in, piece)
	if c.requests == 0 {
		f.refill(n, at, true)
	}
}

// free makes a piece one that no neighbour is asked for.
func (f *fleet) free(n *node, piece int32) {
	n.by[piece] = noConn
	if !in(n.asked, piece) {
		drop(n.busy, piece)
	}
}

// received takes a whole piece in, which is still to be verified.
func (f *fleet) received(id, piece int32) {
	fl := &f.flows[id]
	n := &f.nodes[fl.dst]
	at := int(fl.slot)
	refill := false
	if at >= 0 {
		c := &n.conns[at]
		if int(n.by[piece]) == at {
			n.by[piece] = noConn
			c.requests--
		}
		refill = c.requests == 0
	}
	if in(n.got, piece) {
		n.wasted++
	} else {
		if at >= 0 {
			n.conns[at].useful = int64(f.now)
		}
		if by := n.by[piece]; by >= 0 {
			f.withdraw(n, int(by), piece)
		}
		put(n.busy, piece)
		put(n.got, piece)
		n.from[f.origin(fl)]++
	}
	f.agenda.add(f.now+f.verify, verified, id, piece)
	if refill {
		f.refill(n, at, false)
	}
}

// hear tells a worker that a neighbour has a piece.
func (f *fleet) hear(n *node, at int, piece int32) {
	n.avail[piece]++
	if n.plan == nil {
		return
	}
	n.plan.Seen(int(piece), int(n.avail[piece]), f.now)
	if !in(n.have, piece) {
		f.refill(n, at, false)
	}
}

// connect joins two workers.
func (f *fleet) connect(a, b int32) {
	x, y := &f.nodes[a], &f.nodes[b]
	for _, c := range x.conns {
		if c.open && c.peer == b {
			return
		}
	}
	i, j := len(x.conns), len(y.conns)
	toX, toY := f.newFlow(b, a, int32(i)), f.newFlow(a, b, int32(j))
	x.conns = append(x.conns, conn{peer: b, back: int32(j), in: toX, out: toY, open: true})
	y.conns = append(y.conns, conn{peer: a, back: int32(i), in: toY, out: toX, open: true})
	for i := range int32(f.pieces) {
		if in(y.told, i) {
			f.hear(x, len(x.conns)-1, i)
		}
		if in(x.told, i) {
			f.hear(y, len(y.conns)-1, i)
		}
	}
}

// disconnect ends a connection at the end of a worker whose peer has died.
func (f *fleet) disconnect(n *node, at int) {
	c := &n.conns[at]
	if !c.open {
		return
	}
	c.open = false
	f.flows[c.in].closed, f.flows[c.out].closed = true, true
	peer := &f.nodes[c.peer]
	for i := range int32(f.pieces) {
		if int(n.by[i]) == at {
			f.free(n, i)
		}
		if in(peer.told, i) {
			n.avail[i]--
			n.plan.Seen(int(i), int(n.avail[i]), f.now)
		}
	}
	c.requests = 0
	for k := range n.conns {
		if n.conns[k].requests == 0 {
			f.refill(n, k, false)
		}
	}
}
