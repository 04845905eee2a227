package mdbfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Stat counts what a database consists of.
type Stat struct {
	Entries       uint64
	Depth         int // levels; 0 when empty
	BranchPages   uint64
	LeafPages     uint64
	OverflowPages uint64
}

func (s *Stat) pages() uint64 { return s.BranchPages + s.LeafPages + s.OverflowPages }

// Plan is the layout of an environment file. It may be used for any number of
// Writers.
type Plan struct {
	dbs   []treePlan
	pages uint64
}

// treePlan is what a Writer must know of a tree before it has seen all of it.
type treePlan struct {
	name string
	Stat
	// breakBefore holds for each level the child that must begin a new page
	// although the page has room, so that the level's last page does not end
	// up with a single child: LMDB aborts on those. 0: none. Leaves (level 0)
	// have none.
	breakBefore []uint64
}

// Size returns the file's exact length in bytes.
func (p *Plan) Size() int64 { return int64(p.pages) * pageSize }

// Stat returns the counts of a database; ok is false when there is none of
// that name.
func (p *Plan) Stat(name string) (stat Stat, ok bool) {
	for i := range p.dbs {
		if p.dbs[i].name == name {
			return p.dbs[i].Stat, true
		}
	}
	return Stat{}, false
}

// Planner lays out an environment file from keys and value lengths. The zero
// value is ready to use. After an error it only returns that error.
type Planner struct {
	dbs  []treePlan
	main int // room that the databases' records take of the main database's page
	tree planTree
	err  error
}

// planTree is the tree being laid out.
type planTree struct {
	stat   Stat
	prev   []byte // key
	used   int    // of the current leaf's room
	levels [maxDepth]planLevel
}

// planLevel is a level of branch pages.
type planLevel struct {
	pages    uint64
	children uint64
	n, used  int    // children in the current page, and the room they take
	last     []byte // key of the latest child
	before   []byte // key of the child before it
}

// DB begins the next database. Names are 1 to MaxKey bytes and ascend.
func (p *Planner) DB(name string) error {
	if p.err != nil {
		return p.err
	}
	cost, _ := leafCost(len(name), recordSize)
	switch {
	case len(name) < 1 || len(name) > MaxKey || strings.IndexByte(name, 0) >= 0:
		return p.fail(fmt.Errorf("database name %q: want 1 to %d bytes and no NUL", name, MaxKey))
	case len(p.dbs) > 0 && p.dbs[len(p.dbs)-1].name >= name:
		return p.fail(fmt.Errorf("database name %q: not after %q", name, p.dbs[len(p.dbs)-1].name))
	case p.main+cost > pageRoom:
		// One page for the names keeps the main database a single leaf.
		return p.fail(fmt.Errorf("database name %q: too many databases for one page", name))
	}
	p.endDB()
	p.main += cost
	p.dbs = append(p.dbs, treePlan{name: name})
	return nil
}

// Add adds the next pair of the current database: keys are 1 to MaxKey bytes
// and ascend strictly, values are at most MaxValue bytes. The key is not kept.
func (p *Planner) Add(key []byte, valueLen int) error {
	if p.err != nil {
		return p.err
	}
	t := &p.tree
	switch {
	case len(p.dbs) == 0:
		return p.fail(errors.New("pair before the first database"))
	case len(key) < 1 || len(key) > MaxKey:
		return p.fail(fmt.Errorf("key of %d bytes: want 1 to %d", len(key), MaxKey))
	case valueLen < 0 || valueLen > MaxValue:
		return p.fail(fmt.Errorf("value of %d bytes: want at most %d", valueLen, MaxValue))
	case t.stat.Entries > 0 && bytes.Compare(t.prev, key) >= 0:
		return p.fail(fmt.Errorf("key %q: not after %q", key, t.prev))
	}
	t.prev = append(t.prev[:0], key...)
	t.stat.Entries++
	cost, overflow := leafCost(len(key), valueLen)
	t.stat.OverflowPages += overflow
	if t.stat.LeafPages == 0 || t.used+cost > pageRoom {
		t.stat.LeafPages++
		t.used = 0
		t.addChild(1, key)
	}
	t.used += cost
	return nil
}

// addChild adds a page that begins with key to the branch pages at level.
//
// A branch page is handed to the level above when its second child arrives,
// because until then its first child may be the last of all, and then the page
// begins one child earlier (see finish).
func (t *planTree) addChild(level int, key []byte) {
	l := &t.levels[level]
	cost := branchCost(len(key))
	if l.pages == 0 || l.used+cost > pageRoom {
		l.pages++
		l.n, l.used = 0, 0
		cost = branchCost(0) // the first key of a branch page is left empty
	}
	l.children++
	l.n++
	l.used += cost
	l.before, l.last = l.last, append(l.before[:0], key...)
	if l.n == 2 {
		t.addChild(level+1, l.before)
	}
}

// finish completes the levels bottom-up and returns the tree's plan.
func (t *planTree) finish(name string) treePlan {
	plan := treePlan{name: name, Stat: t.stat, breakBefore: make([]uint64, 1)}
	if t.stat.LeafPages == 0 {
		return plan
	}
	plan.Depth = 1
	for level := 1; ; level++ {
		l := &t.levels[level]
		if l.children == 1 {
			return plan // the only page below is the root
		}
		plan.Depth++
		plan.BranchPages += l.pages
		var breakBefore uint64
		if l.n == 1 {
			breakBefore = l.children - 2
			t.addChild(level+1, l.before)
		}
		plan.breakBefore = append(plan.breakBefore, breakBefore)
	}
}

func (p *Planner) endDB() {
	if n := len(p.dbs); n > 0 {
		p.dbs[n-1] = p.tree.finish(p.dbs[n-1].name)
	}
	p.tree = planTree{}
}

// Plan ends the pass. There must be a database.
func (p *Planner) Plan() (*Plan, error) {
	if p.err == nil && len(p.dbs) == 0 {
		p.fail(errors.New("no database to write"))
	}
	if p.err != nil {
		return nil, p.err
	}
	p.endDB()
	plan := &Plan{dbs: p.dbs, pages: metaPages + 1}
	for i := range p.dbs {
		plan.pages += p.dbs[i].pages()
	}
	p.fail(errors.New("planner was used up"))
	return plan, nil
}

func (p *Planner) fail(err error) error {
	p.err = fmt.Errorf("plan environment: %w", err)
	return p.err
}
