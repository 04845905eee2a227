package torture

import (
	"slices"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// Op is one operation of a write.
type Op struct {
	Key  string
	Mark Mark // 0: the key is deleted
}

// Outcome is what a client knows of its write.
type Outcome uint8

// The outcomes.
const (
	Unknown Outcome = iota // no answer, or one that leaves it open
	Acked
	Refused // it was not done
)

// Write is one transaction. Its first operation is a put.
type Write struct {
	Client       string
	Ops          []Op
	Began, Ended time.Time
	Outcome      Outcome
	Pos          txlog.Pos // of an acknowledged one; Hash is zero if the answer had none
}

// Read is one answer to a read of one key.
type Read struct {
	Node         string
	Key          string
	Mark         Mark   // 0: absent
	Garbled      string // what came instead of any value that was ever written
	Pos          txlog.Pos
	Blind        bool // the answer had no position
	Began, Ended time.Time
}

// Setback is a moment from which on a node's positions may be lower than before: it was
// emptied by the campaign, or declared its own replica wrong.
type Setback struct {
	Node string
	At   time.Time
	Why  string
}

// Death is the end of a process that nobody had asked for.
type Death struct {
	Node string
	At   time.Time
	Why  string
}

// History is what clients saw, and what befell the nodes. Its methods may be called
// concurrently; the fields are read when nobody adds any more.
type History struct {
	mu       sync.Mutex // guards what follows while it grows
	Writes   []Write
	Reads    []Read
	Setbacks []Setback
	Deaths   []Death
}

func (h *History) write(w Write) { h.mu.Lock(); h.Writes = append(h.Writes, w); h.mu.Unlock() }

func (h *History) read(r Read) { h.mu.Lock(); h.Reads = append(h.Reads, r); h.mu.Unlock() }

func (h *History) setback(s Setback) {
	h.mu.Lock()
	h.Setbacks = append(h.Setbacks, s)
	h.mu.Unlock()
}

func (h *History) death(d Death) { h.mu.Lock(); h.Deaths = append(h.Deaths, d); h.mu.Unlock() }

// take returns what there is, and begins anew.
func (h *History) take() *History {
	h.mu.Lock()
	defer h.mu.Unlock()
	taken := &History{Writes: h.Writes, Reads: h.Reads, Setbacks: h.Setbacks, Deaths: h.Deaths}
	h.Writes, h.Reads, h.Setbacks, h.Deaths = nil, nil, nil, nil
	slices.SortFunc(taken.Setbacks, func(a, b Setback) int { return a.At.Compare(b.At) })
	return taken
}
