package torture

import (
	"fmt"
	"sort"
	"sync"

	"github.com/qs-peer/qs-peer/txlog"
)

// Truth is what the writer's log says, from entry 1 on. Its methods may be called
// concurrently.
type Truth struct {
	mu       sync.Mutex
	entries  []entry
	versions map[string][]version // of each key, in order
	seqs     map[Mark]uint64      // where each mark was put first
}

type entry struct {
	hash txlog.Hash
	ops  uint64 // their sum
	n    int    // how many
}

// version is what a key has from an entry on; mark 0 is nothing.
type version struct {
	seq  uint64
	mark Mark
}

// NewTruth returns the truth before entry 1.
func NewTruth() *Truth {
	return &Truth{versions: map[string][]version{}, seqs: map[Mark]uint64{}}
}

// Append adds the next entry, and returns what is wrong with it.
func (t *Truth) Append(e *txlog.Entry) (wrong []Violation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	say := func(what Rule, format string, args ...any) {
		wrong = append(wrong, Violation{Rule: what, Text: fmt.Sprintf("entry %d ", e.Seq) + fmt.Sprintf(format, args...)})
	}
	head := t.headLocked()
	if e.Seq != head.Seq+1 || e.Prev != head.Hash {
		say(BrokenChain, "follows %s, and the log's last one was %v", e.Prev, head)
		return wrong
	}
	next := entry{hash: e.Hash, n: len(e.Ops)}
	for i, op := range e.Ops {
		if op.Kind == txlog.Init {
			next.n--
			continue
		}
		var mark Mark
		if op.Kind == txlog.Put {
			var ok bool
			if mark, ok = ParseMark(op.Value); !ok {
				say(WrongEntry, "puts under %q what nobody wrote: %.60q", op.Key, op.Value)
				continue
			}
			if first, twice := t.seqs[mark]; twice {
				say(Twice, "puts %x, which entry %d has put", uint64(mark), first)
			} else {
				t.seqs[mark] = e.Seq
			}
		}
		key := string(op.Key)
		next.ops += sumOp(i, key, mark)
		t.versions[key] = append(t.versions[key], version{e.Seq, mark})
	}
	t.entries = append(t.entries, next)
	return wrong
}

// sumOps identifies operations, in order.
func sumOps(ops []Op) (sum uint64) {
	for i, op := range ops {
		sum += sumOp(i, op.Key, op.Mark)
	}
	return sum
}

func sumOp(i int, key string, mark Mark) uint64 {
	h := uint64(14695981039346656037) ^ uint64(i)
	for _, c := range []byte(key) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h = (h ^ uint64(mark)) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

// Head returns the last entry's position.
func (t *Truth) Head() txlog.Pos {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.headLocked()
}

func (t *Truth) headLocked() (p txlog.Pos) {
	if n := len(t.entries); n > 0 {
		p = txlog.Pos{Seq: uint64(n), Hash: t.entries[n-1].hash}
	}
	return p
}

// has reports whether pos is one of the log's.
func (t *Truth) has(pos txlog.Pos) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pos.Seq == 0 {
		return pos.IsZero()
	}
	return pos.Seq <= uint64(len(t.entries)) && t.entries[pos.Seq-1].hash == pos.Hash
}

// is reports whether an entry consists of these operations.
func (t *Truth) is(seq uint64, ops []Op) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if seq < 1 || seq > uint64(len(t.entries)) {
		return false
	}
	e := t.entries[seq-1]
	return e.n == len(ops) && e.ops == sumOps(ops)
}

// hash returns an entry's hash, zero if there is none.
func (t *Truth) hash(seq uint64) (h txlog.Hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if seq >= 1 && seq <= uint64(len(t.entries)) {
		h = t.entries[seq-1].hash
	}
	return h
}

// where returns which entry put a mark.
func (t *Truth) where(m Mark) (seq uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	seq, ok = t.seqs[m]
	return seq, ok
}

// at returns what a key had at an entry.
func (t *Truth) at(key string, seq uint64) Mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.versions[key]
	if i := t.lastLocked(all, seq); i >= 0 {
		return all[i].mark
	}
	return 0
}

// between reports whether a key had a mark at some entry from lo to hi.
func (t *Truth) between(key string, m Mark, lo, hi uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.versions[key]
	i := t.lastLocked(all, lo)
	if i < 0 {
		if m == 0 {
			return true
		}
		i = 0
	}
	for ; i < len(all) && all[i].seq <= hi; i++ {
		if all[i].mark == m {
			return true
		}
	}
	return false
}

// lastLocked returns the index of the last version that is not after seq, -1 for none.
func (*Truth) lastLocked(all []version, seq uint64) int {
	return sort.Search(len(all), func(i int) bool { return all[i].seq > seq }) - 1
}

// state returns all that there was at an entry.
func (t *Truth) state(seq uint64) map[string]Mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[string]Mark, len(t.versions))
	for key, versions := range t.versions {
		if i := t.lastLocked(versions, seq); i >= 0 && versions[i].mark != 0 {
			all[key] = versions[i].mark
		}
	}
	return all
}
