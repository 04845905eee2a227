package sim

import "time"

// kind says what happens.
type kind uint8

const (
	uplinkFree kind = iota // a: node, b: flow whose quantum has left
	hop                    // a: flow; b: link that the quantum reaches
	delivered              // a: flow: a quantum has passed all links
	request                // a: flow, b: piece: a neighbour's request reaches its sender
	ask                    // a: flow, b: piece: a request to a source reaches it
	answered               // a: flow, b: piece, c: retry hint in ms <<4 | result: the answer, if it is not the piece
	verified               // a: flow, b: piece
	announced              // a: node, b: piece: the neighbours hear of it
	look                   // a: node: it looks for something to ask
	gossip                 // everybody hears of who lives
	polled                 // a: node: it hears what its incomplete sources have
	start                  // a: node
	closed                 // a: node that died: others see their connections end
)

type event struct {
	at   time.Duration
	seq  uint64 // of two events at the same time the one that was scheduled first
	a, b int32
	c    int32
	kind kind
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// agenda is a heap with four children per node: it is half as deep as a binary
// one, and siblings share a cache line or two.
type agenda struct {
	heap []event
	seq  uint64
}

func (q *agenda) add(at time.Duration, k kind, a, b int32) {
	q.put(event{at: at, kind: k, a: a, b: b})
}

func (q *agenda) put(e event) {
	q.seq++
	e.seq = q.seq
	q.heap = append(q.heap, e)
	i := len(q.heap) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if !e.before(&q.heap[parent]) {
			break
		}
		q.heap[i] = q.heap[parent]
		i = parent
	}
	q.heap[i] = e
}

func (q *agenda) next() (event, bool) {
	if len(q.heap) == 0 {
		return event{}, false
	}
	first := q.heap[0]
	last := q.heap[len(q.heap)-1]
	q.heap = q.heap[:len(q.heap)-1]
	n := len(q.heap)
	if n == 0 {
		return first, true
	}
	i := 0
	for {
		child := 4*i + 1
		if child >= n {
			break
		}
		least := child
		for c := child + 1; c < min(child+4, n); c++ {
			if q.heap[c].before(&q.heap[least]) {
				least = c
			}
		}
		if !q.heap[least].before(&last) {
			break
		}
		q.heap[i] = q.heap[least]
		i = least
	}
	q.heap[i] = last
	return first, true
}
