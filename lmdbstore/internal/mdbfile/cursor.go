package mdbfile

import (
	"bytes"
	"fmt"
)

// Cursor steps through the pairs of a database in key order. Use it like a
// bufio.Scanner:
//
//	defer c.Close()
//	for c.Next() {
//		… c.Key(), c.ValueLen() …
//		value, err := c.Value()
//	}
//	if err := c.Err(); err != nil …
//
// It checks what it reads as it goes (bounds, order, and at the end the count):
// damage is an error that wraps ErrDamaged. It reads ahead, so it holds about
// 1 MiB and goroutines until it came to an end or is closed. It is not safe for
// concurrent use.
type Cursor struct {
	f       *File
	db      string
	entries uint64 // as recorded
	seen    uint64

	walk *leafWalk // nil when there is nothing to read
	done bool
	win  *window
	at   int // page of win that is leaf
	leaf page
	next int    // node of leaf
	prev []byte // last key of the leaf before

	pair leaf
	big  []byte // the latest value from overflow pages, after its page header
	err  error
}

// newCursor returns a cursor over the tree at r, which was checked.
func newCursor(f *File, db string, r record) *Cursor {
	c := &Cursor{f: f, db: db, entries: r.Entries}
	if r.Depth > 0 {
		c.walk = newLeafWalk(f, &r)
	}
	return c
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
	if c.done {
		return false
	}
	c.prev = append(c.prev[:0], c.pair.key...)
	if c.walk == nil {
		return c.end()
	}
	if c.at++; c.win == nil || c.at == len(c.win.pgnos) {
		var err error
		if c.win, err = c.walk.next(c.win); err != nil {
			return c.fail(err)
		}
		if c.win == nil {
			return c.end()
		}
		c.at = 0
	}
	p, err := parsePage(c.win.page(c.at), c.win.pgnos[c.at], flagLeaf)
	if err != nil {
		return c.fail(err)
	}
	c.leaf, c.next = p, 0
	return true
}

// end compares the count once there are no more leaves.
func (c *Cursor) end() bool {
	c.Close()
	if c.seen != c.entries {
		return c.fail(fmt.Errorf("%d pairs, the record says %d: %w", c.seen, c.entries, ErrDamaged))
	}
	return false
}

// Close ends the iteration, also an unfinished one. It waits until the file is
// not read any more. It may be called twice.
func (c *Cursor) Close() {
	c.done = true
	if c.walk != nil {
		c.walk.close()
		c.walk, c.win = nil, nil
	}
	c.leaf, c.next, c.pair = page{}, 0, leaf{}
}

func (c *Cursor) fail(err error) bool {
	if c.err == nil {
		c.err = fmt.Errorf("database %q: %w", c.db, err)
	}
	c.Close()
	return false
}
