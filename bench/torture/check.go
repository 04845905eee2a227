package torture

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// Rule is what must hold.
type Rule string

// The rules, by how they are broken.
const (
	BrokenChain Rule = "broken chain" // an entry does not follow the one before
	WrongEntry  Rule = "wrong entry"  // an entry says what nobody wrote, or is another than was acknowledged
	Lost        Rule = "lost write"   // acknowledged, and not in the log
	Twice       Rule = "write twice"
	Undead      Rule = "refused write" // is in the log
	Reordered   Rule = "wrong order"   // began after another was acknowledged, and is before it
	WrongRead   Rule = "wrong read"    // never was so at the position that it is of
	NoPosition  Rule = "no position"   // of the log's: another history was served
	StaleRead   Rule = "stale read"    // on the writer, from before what was acknowledged
	WentBack    Rule = "went back"     // without a setback that was declared
	Died        Rule = "died"          // a process ended by itself
	NoRest      Rule = "no rest"       // nodes do not come to one position by themselves
	WrongState  Rule = "wrong state"   // what a node holds at rest is not what the log says
	Snapshots   Rule = "snapshots"     // two of one position differ
	Costly      Rule = "costly repair" // more was fetched than was damaged, and one piece
)

// Violation is a rule that was broken.
type Violation struct {
	Rule Rule      `json:"rule"`
	Node string    `json:"node,omitempty"`
	At   time.Time `json:"at,omitzero"`
	Text string    `json:"text"`
}

func (v Violation) String() string {
	s := string(v.Rule)
	if v.Node != "" {
		s += " on " + v.Node
	}
	if !v.At.IsZero() {
		s += " at " + v.At.Format("15:04:05.000")
	}
	return s + ": " + v.Text
}

// Checker checks histories that follow each other against the truth.
type Checker struct {
	truth  *Truth
	writer string
	floor  map[string]uint64 // per node, the furthest position seen in earlier histories
	acked  uint64            // the furthest write acknowledged in them
}

// NewChecker returns a checker; writer is the node that takes writes.
func NewChecker(truth *Truth, writer string) *Checker {
	return &Checker{truth: truth, writer: writer, floor: map[string]uint64{}}
}

// Check returns what is wrong. Everything that was acknowledged in h must be in the truth
// by now.
func (c *Checker) Check(h *History) []Violation {
	acks := c.acks(h.Writes)
	wrong := c.writes(h.Writes, acks)
	nodes := map[string][]Read{}
	for _, r := range h.Reads {
		nodes[r.Node] = append(nodes[r.Node], r)
	}
	for node, reads := range nodes {
		wrong = append(wrong, c.reads(node, reads, setbacks(h.Setbacks, node), acks)...)
	}
	// A node that was not read must not be held to what it was before.
	for _, s := range h.Setbacks {
		if nodes[s.Node] == nil {
			delete(c.floor, s.Node)
		}
	}
	for _, d := range h.Deaths {
		wrong = append(wrong, Violation{Died, d.Node, d.At, d.Why})
	}
	if n := len(acks); n > 0 {
		c.acked = max(c.acked, acks[n-1].seq)
	}
	slices.SortStableFunc(wrong, func(a, b Violation) int { return a.At.Compare(b.At) })
	return wrong
}

// milestone says that from a time on the furthest seq was known to be at least this.
type milestone struct {
	at  time.Time
	seq uint64
}

// atLeast returns the furthest seq known before a time.
func atLeast(all []milestone, before time.Time, otherwise uint64) uint64 {
	i := sort.Search(len(all), func(i int) bool { return !all[i].at.Before(before) })
	if i == 0 {
		return otherwise
	}
	return max(otherwise, all[i-1].seq)
}

// rising sorts milestones and makes each the furthest so far.
func rising(all []milestone) []milestone {
	slices.SortFunc(all, func(a, b milestone) int { return a.at.Compare(b.at) })
	var most uint64
	for i := range all {
		most = max(most, all[i].seq)
		all[i].seq = most
	}
	return all
}

func (c *Checker) acks(writes []Write) []milestone {
	var all []milestone
	for _, w := range writes {
		if w.Outcome == Acked {
			all = append(all, milestone{w.Ended, w.Pos.Seq})
		}
	}
	return rising(all)
}

func (c *Checker) writes(writes []Write, acks []milestone) (wrong []Violation) {
	head := c.truth.Head()
	for _, w := range writes {
		say := func(rule Rule, format string, args ...any) {
			wrong = append(wrong, Violation{rule, c.writer, w.Began, "write " + fmt.Sprintf("%x of %s ", uint64(w.Ops[0].Mark), w.Client) + fmt.Sprintf(format, args...)})
		}
		seq, there := c.truth.where(w.Ops[0].Mark)
		switch w.Outcome {
		case Refused:
			if there {
				say(Undead, "was refused, and is entry %d", seq)
			}
			continue
		case Acked:
			switch {
			case !there && w.Pos.Seq > head.Seq:
				say(Lost, "was acknowledged as entry %d, and the log ends at %d", w.Pos.Seq, head.Seq)
			case !there:
				say(Lost, "was acknowledged as entry %d, which is another", w.Pos.Seq)
			case seq != w.Pos.Seq:
				say(WrongEntry, "was acknowledged as entry %d, and is entry %d", w.Pos.Seq, seq)
			case w.Pos.Hash != txlog.Hash{} && w.Pos.Hash != c.truth.hash(seq):
				say(WrongEntry, "was acknowledged as %v, and the entry's hash is %s", w.Pos, c.truth.hash(seq))
			}
		}
		if !there {
			continue
		}
		if !c.truth.is(seq, w.Ops) {
			say(WrongEntry, "is not what entry %d does", seq)
		}
		if before := atLeast(acks, w.Began, c.acked); seq <= before {
			say(Reordered, "is entry %d, and began after entry %d was acknowledged", seq, before)
		}
	}
	return wrong
}

// setbacks returns when a node was set back, in order.
func setbacks(all []Setback, node string) (at []time.Time) {
	for _, s := range all {
		if s.Node == node {
			at = append(at, s.At)
		}
	}
	return at
}

// epoch returns how many setbacks were before a read; a read in whose time one was
// belongs to none.
func epoch(setbacks []time.Time, r *Read) (n int, ok bool) {
	n = sort.Search(len(setbacks), func(i int) bool { return setbacks[i].After(r.Began) })
	return n, n == len(setbacks) || setbacks[n].After(r.Ended)
}

// reads checks what one node said.
func (c *Checker) reads(node string, reads []Read, setbacks []time.Time, acks []milestone) (wrong []Violation) {
	say := func(rule Rule, r *Read, format string, args ...any) {
		wrong = append(wrong, Violation{rule, node, r.Began, fmt.Sprintf("%q ", r.Key) + fmt.Sprintf(format, args...)})
	}
	slices.SortFunc(reads, func(a, b Read) int { return a.Began.Compare(b.Began) })
	epochs := make([][]Read, len(setbacks)+1)
	for _, r := range reads {
		if r.Garbled != "" {
			say(WrongRead, &r, "at %d is what nobody wrote: %.60q", r.Pos.Seq, r.Garbled)
			continue
		}
		if !r.Blind {
			if !c.truth.has(r.Pos) {
				say(NoPosition, &r, "is of %v, which the log never was at", r.Pos)
				continue
			}
			if want := c.truth.at(r.Key, r.Pos.Seq); want != r.Mark {
				say(WrongRead, &r, "at %d is %s and was %s", r.Pos.Seq, c.describe(r.Mark), c.describe(want))
			}
		}
		if n, ok := epoch(setbacks, &r); ok {
			epochs[n] = append(epochs[n], r)
		} else if r.Blind && !c.truth.between(r.Key, r.Mark, 0, c.truth.Head().Seq) {
			say(WrongRead, &r, "is %s, which it never was", c.describe(r.Mark))
		}
	}
	floor := c.floor[node]
	for n, epoch := range epochs {
		if n > 0 {
			floor = 0
		}
		var seen []milestone
		for _, r := range epoch {
			if !r.Blind {
				seen = append(seen, milestone{r.Ended, r.Pos.Seq})
			}
		}
		seen = rising(seen)
		ceilings := c.ceilings(epoch)
		for i := range epoch {
			r := &epoch[i]
			before := atLeast(seen, r.Began, floor)
			if node == c.writer {
				acked := atLeast(acks, r.Began, c.acked)
				if !r.Blind && r.Pos.Seq < acked {
					say(StaleRead, r, "is of entry %d, after entry %d was acknowledged", r.Pos.Seq, acked)
					continue
				}
				before = max(before, acked)
			}
			if !r.Blind {
				if r.Pos.Seq < before {
					say(WentBack, r, "is of entry %d, after entry %d was seen", r.Pos.Seq, before)
				}
				continue
			}
			if hi := ceilings[i]; !c.truth.between(r.Key, r.Mark, before, hi) {
				say(WrongRead, r, "is %s, which it was not from entry %d to %d", c.describe(r.Mark), before, hi)
			}
		}
		floor = atLeast(seen, time.Unix(1<<40, 0), floor)
	}
	c.floor[node] = floor
	return wrong
}

// ceilings returns for each read, which are in the order of their beginnings, the lowest
// position that was seen by one that began after it had ended.
func (c *Checker) ceilings(reads []Read) []uint64 {
	lowest := make([]uint64, len(reads)+1) // from each on
	lowest[len(reads)] = c.truth.Head().Seq
	for i := len(reads) - 1; i >= 0; i-- {
		lowest[i] = lowest[i+1]
		if !reads[i].Blind {
			lowest[i] = min(lowest[i], reads[i].Pos.Seq)
		}
	}
	all := make([]uint64, len(reads))
	for i := range reads {
		next, _ := slices.BinarySearchFunc(reads, reads[i].Ended, func(r Read, t time.Time) int { return cmp.Or(r.Began.Compare(t), -1) })
		all[i] = lowest[next]
	}
	return all
}

// describe says what a mark is.
func (c *Checker) describe(m Mark) string {
	if m == 0 {
		return "absent"
	}
	if seq, ok := c.truth.where(m); ok {
		return fmt.Sprintf("%x of entry %d", uint64(m), seq)
	}
	return fmt.Sprintf("%x, which is in no entry", uint64(m))
}

// Rest is what a node holds when all is quiet.
type Rest struct {
	Node      string
	Pos       txlog.Pos
	Digest    string // of all pairs; empty if the node told none
	Pairs     map[string]Mark
	Garbled   []string          // keys whose values nobody wrote
	Snapshots map[uint64]string // infohashes by seq
}

// CheckRest compares what nodes hold with the truth, and with each other.
func (c *Checker) CheckRest(nodes []Rest) (wrong []Violation) {
	say := func(rule Rule, node, format string, args ...any) {
		wrong = append(wrong, Violation{Rule: rule, Node: node, Text: fmt.Sprintf(format, args...)})
	}
	head := c.truth.Head()
	want := c.truth.state(head.Seq)
	digests, infohashes := map[string]string{}, map[uint64]Rest{}
	for _, n := range nodes {
		if n.Pos != head {
			say(NoRest, n.Node, "is at %v, and the log ends at %v", n.Pos, head)
			continue
		}
		for _, key := range n.Garbled {
			say(WrongState, n.Node, "%q holds what nobody wrote", key)
		}
		missing, other := 0, 0
		var example string
		for key, mark := range want {
			switch got, ok := n.Pairs[key]; {
			case !ok:
				missing++
				example = key
			case got != mark:
				other++
				example = key
			}
		}
		if extra := len(n.Pairs) - (len(want) - missing); missing+other+extra > 0 {
			say(WrongState, n.Node, "at %d %d pairs are missing, %d are others, %d should not be there, like %q: it is %s, and the log says %s",
				n.Pos.Seq, missing, other, extra, example, c.describe(n.Pairs[example]), c.describe(want[example]))
		}
		if n.Digest != "" {
			digests[n.Digest] = n.Node
		}
		for seq, infohash := range n.Snapshots {
			if first, ok := infohashes[seq]; ok && first.Snapshots[seq] != infohash {
				say(Snapshots, n.Node, "has %s for entry %d, and %s has %s", infohash, seq, first.Node, first.Snapshots[seq])
			} else {
				infohashes[seq] = n
			}
		}
	}
	if len(digests) > 1 {
		say(WrongState, "", "digests differ at one position: %v", digests)
	}
	return wrong
}
