package mdbfile

import (
	"bytes"
	"fmt"
)

// Cursor steps through the pairs of a database in key order. Use it like a
// bufio.Scanner:
//
//	for c.Next() {
//		… c.Key(), c.ValueLen() …
//		value, err := c.Value()
//	}
//	if err := c.Err(); err != nil …
//
// It checks what it reads as it goes (bounds, order, and at the end the count):
// damage is an error that wraps ErrDamaged. It is not safe for concurrent use.
type Cursor struct {
	f       *File
	db      string
	entries uint64 // as recorded
	seen    uint64

	branches []branchPos // root first
	leaves   *leafReader
	ahead    int // pages that leaves holds, from child first on
	first    int
	leaf     page
	next     int    // node of leaf
	prev     []byte // last key of the leaf before

	pair leaf
	big  []byte // the latest value from overflow pages, after its page header
	err  error
}

// branchPos is a branch page on the way to the current leaf.
type branchPos struct {
	page
	next int // child
	buf  []byte
}

// newCursor returns a cursor over the tree at r, which was checked.
func newCursor(f *File, db string, r record) (*Cursor, error) {
	c := &Cursor{f: f, db: db, entries: r.Entries}
	if r.Depth == 0 {
		return c, nil
	}
	c.leaves = newLeafReader(f, &r)
	c.branches = make([]branchPos, r.Depth-1)
	for i := range c.branches {
		c.branches[i].buf = make([]byte, f.pageSize)
	}
	var err error
	if r.Depth > 1 {
		err = c.descend(0, r.root)
	} else {
		err = c.leaves.read(1, func(int) (uint64, error) { return r.root, nil })
		if err == nil {
			err = c.setLeaf(0, r.root)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("database %q: %w", db, err)
	}
	return c, nil
}

// Next steps to the next pair. It returns false at the end and after an error.
func (c *Cursor) Next() bool {
	for c.next == c.leaf.n {
		if !c.nextLeaf() {
			return false
		}
	}
	l, err := c.leaf.leaf(c.next)
	if err != nil {
		return c.fail(err)
	}
	last := c.pair.key
	if c.next == 0 {
		last = c.prev
	}
	if bytes.Compare(last, l.key) >= 0 {
		return c.fail(damaged(c.leaf.pgno, "node %d is out of order", c.next))
	}
	if l.flags == nodeSub {
		return c.fail(damaged(c.leaf.pgno, "node %d holds a database", c.next))
	}
	c.pair = l
	c.next++
	c.seen++
	return true
}

// Key returns the pair's key, which is valid until the next call of Next.
func (c *Cursor) Key() []byte { return c.pair.key }

// ValueLen returns the length of the pair's value, and reads nothing.
func (c *Cursor) ValueLen() int { return c.pair.valueLen }

// Value returns the pair's value, which is valid until the next call of Next.
// A value in overflow pages is read here, not before. An error also ends the
// iteration and is what Err returns.
func (c *Cursor) Value() ([]byte, error) {
	if c.pair.flags == 0 {
		return c.pair.data, nil
	}
	run, err := c.f.readOverflow(c.big, le.Uint64(c.pair.data), c.pair.valueLen)
	if err != nil {
		c.fail(err)
		return nil, c.err
	}
	c.big = run
	return run[headerSize:], nil
}

// Err returns the error that ended the iteration, or nil.
func (c *Cursor) Err() error { return c.err }

// nextLeaf moves to the next leaf. It ends: each leaf must begin above where
// the last one ended, so none is visited twice.
func (c *Cursor) nextLeaf() bool {
	if c.err != nil {
		return false
	}
	c.prev = append(c.prev[:0], c.pair.key...)
	level := len(c.branches) - 1
	for level >= 0 && c.branches[level].next == c.branches[level].n {
		level--
	}
	if level < 0 {
		if c.seen != c.entries {
			return c.fail(fmt.Errorf("%d pairs, the record says %d: %w", c.seen, c.entries, ErrDamaged))
		}
		return false
	}
	if err := c.step(level); err != nil {
		return c.fail(err)
	}
	return true
}

// step goes to the next child of the branch page at level, and from there down
// to the first leaf.
func (c *Cursor) step(level int) error {
	b := &c.branches[level]
	child := b.next
	pgno, _, err := b.child(child)
	if err != nil {
		return err
	}
	b.next++
	if level+1 < len(c.branches) {
		return c.descend(level+1, pgno)
	}
	if child == 0 || child == c.first+c.ahead {
		c.first, c.ahead = child, min(b.n-child, c.leaves.max())
		err := c.leaves.read(c.ahead, func(i int) (uint64, error) {
			pgno, _, err := b.child(child + i)
			return pgno, err
		})
		if err != nil {
			return err
		}
	}
	return c.setLeaf(child-c.first, pgno)
}

// descend reads the branch page pgno, which is at level, and goes down from its
// first child.
func (c *Cursor) descend(level int, pgno uint64) error {
	b := &c.branches[level]
	p, err := c.f.readPage(b.buf, pgno, flagBranch)
	if err != nil {
		return err
	}
	b.page, b.next = p, 0
	return c.step(level)
}

// setLeaf makes page i of those read ahead the current leaf.
func (c *Cursor) setLeaf(i int, pgno uint64) error {
	p, err := parsePage(c.leaves.page(i), pgno, flagLeaf)
	c.leaf, c.next = p, 0
	return err
}

func (c *Cursor) fail(err error) bool {
	if c.err == nil {
		c.err = fmt.Errorf("database %q: %w", c.db, err)
	}
	c.leaf, c.next, c.pair = page{}, 0, leaf{}
	return false
}
