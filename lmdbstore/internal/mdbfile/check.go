package mdbfile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/bits"
)

// Report is what Check found.
type Report struct {
	Txnid     uint64 // of the newest snapshot, which was checked
	Pages     uint64 // up to the last one in use, with the meta pages
	FreePages uint64 // listed as reusable
	Tail      int64  // bytes of the file after the last page in use; a snapshot has none
	DBs       map[string]Stat
}

// Visit is called with each pair of each database, in order, databases first by
// name. Key and value are valid during the call only.
type Visit func(db string, key, value []byte) error

// Check verifies the newest snapshot in a file of size bytes that nobody writes
// to: both meta pages, and what File.Check does.
func Check(ctx context.Context, r io.ReaderAt, size int64, visit Visit) (Report, error) {
	metas, err := readMetas(r, size)
	if err != nil {
		return Report{}, err
	}
	current := newest(&metas)
	f := newFile(r, size, metas[current])
	if f.pages < metaPages {
		return Report{}, damaged(1, "cut off: the file has %d bytes", size)
	}
	if err := checkMetas(&metas, current); err != nil {
		return Report{}, err
	}
	rep, err := f.Check(ctx, visit)
	rep.Tail = max(0, size-int64(min(f.pages, f.meta.lastPage+1))*int64(f.pageSize))
	return rep, err
}

// Check verifies the structure: every page in use exactly once or in the free
// list, every node in bounds, keys in order within and across pages and
// consistent with the branch pages above, and all counts as recorded. It reads
// every page except the insides of overflow runs, and those too if visit, which
// may be nil, is to see the values. Damage is an error that wraps ErrDamaged; what
// visit returns is passed on.
func (f *File) Check(ctx context.Context, visit Visit) (Report, error) {
	c := &checker{ctx: ctx, f: f, visit: visit, used: newPageSet(min(f.pages, f.meta.lastPage+1))}
	rep := Report{
		Txnid: f.meta.txnid,
		Pages: f.meta.lastPage + 1,
		DBs:   make(map[string]Stat),
	}
	c.used.addRange(0, metaPages)
	if err := c.checkFreeList(); err != nil {
		return Report{}, fmt.Errorf("free list: %w", err)
	}
	rep.FreePages = c.free
	if err := c.checkMain(rep.DBs); err != nil {
		return Report{}, err
	}
	if n := c.used.len() + uint64(len(c.beyond)); n != rep.Pages {
		return Report{}, fmt.Errorf("%d pages are neither in use nor free, the first is %d: %w",
			rep.Pages-n, c.used.firstMissing(), ErrDamaged)
	}
	return rep, nil
}

// checkMetas checks what is known of the meta pages beyond what LMDB checks.
func checkMetas(metas *[metaPages]meta, current int) error {
	for i, m := range metas {
		pgno := uint64(i)
		switch pristine := m.main.root == invalidPage && m.free.root == invalidPage && m.lastPage == metaPages-1; {
		case m.address != 0:
			return damaged(pgno, "map address %#x, want none", m.address)
		case m.free.flags&^envNoSubdir != envIntegerKey:
			return damaged(pgno, "environment flags %#x", m.free.flags)
		case m.txnid != 0 && m.txnid%metaPages != pgno:
			return damaged(pgno, "transaction %d belongs in the other meta page", m.txnid)
		case pristine != (m.txnid == 0):
			return damaged(pgno, "transaction %d with last page %d", m.txnid, m.lastPage)
		}
	}
	m, other := &metas[current], &metas[1-current]
	pgno := uint64(current)
	switch {
	case m.lastPage < metaPages-1:
		return damaged(pgno, "last page %d", m.lastPage)
	case m.txnid-other.txnid > 1:
		return damaged(pgno, "transaction %d, in page %d %d: want successive ones", m.txnid, 1-current, other.txnid)
	case m.mapSize > 1<<62 || m.lastPage >= m.mapSize/uint64(m.pageSize()):
		return damaged(pgno, "last page %d of a map of %d bytes", m.lastPage, m.mapSize)
	}
	return nil
}

// checker walks an environment and accounts for every page.
type checker struct {
	ctx    context.Context
	f      *File
	visit  Visit               // nil: the values are not read
	big    []byte              // the latest value from overflow pages, after its page header
	used   pageSet             // of the pages in the file
	beyond map[uint64]struct{} // free pages past its end, which LMDB need not write
	free   uint64
}

// checkMain checks the main database and those it names.
func (c *checker) checkMain(stats map[string]Stat) error {
	var names []string
	var records []record
	err := c.checkTree(&c.f.meta.main, bytes.Compare, func(l leaf) error {
		if l.flags == nodeSub {
			names = append(names, string(l.key))
			records = append(records, parseRecord(l.data))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("main database: %w", err)
	}
	for i, name := range names {
		err := c.checkTree(&records[i], bytes.Compare, func(l leaf) error {
			if l.flags == nodeSub {
				return fmt.Errorf("key %q holds a database: %w", l.key, ErrDamaged)
			}
			return c.visitPair(name, l)
		})
		if err != nil {
			return fmt.Errorf("database %q: %w", name, err)
		}
		stats[name] = records[i].Stat
	}
	return nil
}

// visitPair hands a pair on.
func (c *checker) visitPair(db string, l leaf) error {
	if c.visit == nil {
		return nil
	}
	value := l.data
	if l.flags == nodeBig {
		value = c.big[headerSize:] // which overflow has read
	}
	return c.visit(db, l.key, value)
}

// checkFreeList checks the free-list database and marks its pages.
func (c *checker) checkFreeList() error {
	r := c.f.meta.free
	r.flags = 0 // the environment's
	var buf []byte
	return c.checkTree(&r, compareTxnids, func(l leaf) (err error) {
		if len(l.key) != pgnoSize {
			return fmt.Errorf("key of %d bytes: %w", len(l.key), ErrDamaged)
		}
		txnid := le.Uint64(l.key)
		if txnid == 0 || txnid > c.f.meta.txnid {
			return fmt.Errorf("transaction %d is to come: %w", txnid, ErrDamaged)
		}
		list := l.data
		switch l.flags {
		case nodeSub:
			return fmt.Errorf("transaction %d holds a database: %w", txnid, ErrDamaged)
		case nodeBig:
			if buf, err = c.f.readOverflow(buf, le.Uint64(l.data), l.valueLen); err != nil {
				return err
			}
			list = buf[headerSize:]
		}
		if err := c.addFree(list); err != nil {
			return fmt.Errorf("transaction %d: %w", txnid, err)
		}
		return nil
	})
}

// compareTxnids orders the free list's keys, which are integers.
func compareTxnids(a, b []byte) int {
	if len(a) != pgnoSize || len(b) != pgnoSize {
		return len(a) - len(b) // an empty bound, or damage that is found later
	}
	switch x, y := le.Uint64(a), le.Uint64(b); {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// addFree marks the pages of one free list: a count, and that many page numbers
// in descending order. LMDB may have reserved more room than it used.
func (c *checker) addFree(list []byte) error {
	if len(list) < pgnoSize || len(list)%pgnoSize != 0 {
		return fmt.Errorf("%d bytes of page numbers: %w", len(list), ErrDamaged)
	}
	n := le.Uint64(list)
	if n > uint64(len(list)/pgnoSize-1) {
		return fmt.Errorf("%d page numbers in %d bytes: %w", n, len(list), ErrDamaged)
	}
	last := c.f.meta.lastPage + 1
	for i := range n {
		pgno := le.Uint64(list[pgnoSize*(i+1):])
		if pgno < firstPage || pgno >= last {
			return damaged(pgno, "free, but not below %d", last)
		}
		last = pgno
		if pgno < c.used.n {
			if !c.used.add(pgno) {
				return damaged(pgno, "free and in use, or free twice")
			}
		} else if _, ok := c.beyond[pgno]; ok {
			return damaged(pgno, "free twice")
		} else {
			if c.beyond == nil {
				c.beyond = make(map[uint64]struct{})
			}
			c.beyond[pgno] = struct{}{}
		}
	}
	c.free += n
	return nil
}

// treeCheck is the walk of one tree.
type treeCheck struct {
	*checker
	compare func(a, b []byte) int
	visit   func(leaf) error
	bufs    [][]byte // a page for each level of branches, root first
	leaves  *leafReader
	stat    Stat
	nodes   nodeMap
}

// checkTree walks a tree, calls visit with its leaf nodes in order, and
// compares the counts with the record.
func (c *checker) checkTree(r *record, compare func(a, b []byte) int, visit func(leaf) error) error {
	if err := r.check(); err != nil {
		return err
	}
	t := treeCheck{checker: c, compare: compare, visit: visit, stat: Stat{Depth: r.Depth}}
	if r.Depth > 0 {
		t.nodes = make(nodeMap, c.f.pageSize/2)
		for range r.Depth - 1 {
			t.bufs = append(t.bufs, make([]byte, c.f.pageSize))
		}
		t.leaves = newLeafReader(c.f, r)
		root := childNode{pgno: r.root}
		var err error
		if r.Depth > 1 {
			err = t.branch(0, root, nil)
		} else {
			err = t.readLeaves([]childNode{root}, nil)
		}
		if err != nil {
			return err
		}
	}
	if t.stat != r.Stat {
		return fmt.Errorf("found %+v, the record says %+v: %w", t.stat, r.Stat, ErrDamaged)
	}
	return nil
}

// childNode is a node of a branch page: a page and the least key that may be
// below it. nil is no bound.
type childNode struct {
	pgno uint64
	key  []byte
}

// branch checks a branch page and what is below it, where all keys are less
// than high; nil is no bound. It ends, whatever the pages point to, because no
// page is entered twice.
func (t *treeCheck) branch(level int, node childNode, high []byte) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	p, err := t.f.readPage(t.bufs[level], node.pgno, flagBranch)
	if err != nil {
		return err
	}
	if err := t.enter(node.pgno); err != nil {
		return err
	}
	t.stat.BranchPages++
	if err := t.nodes.check(&p, flagBranch); err != nil {
		return err
	}
	children := make([]childNode, p.n)
	for i := range children {
		c := &children[i]
		if c.pgno, c.key, err = p.child(i); err != nil {
			return err
		}
		if i == 0 {
			c.key = node.key
		} else if t.compare(children[i-1].key, c.key) >= 0 {
			return damaged(node.pgno, "node %d is out of order", i)
		}
	}
	if high != nil && t.compare(children[p.n-1].key, high) >= 0 {
		return damaged(node.pgno, "node %d belongs to a later page", p.n-1)
	}
	if level+1 == len(t.bufs) {
		return t.readLeaves(children, high)
	}
	for i, c := range children {
		if err := t.branch(level+1, c, upperBound(children, i, high)); err != nil {
			return err
		}
	}
	return nil
}

// upperBound returns what all keys below children[i] are less than.
func upperBound(children []childNode, i int, high []byte) []byte {
	if i+1 < len(children) {
		return children[i+1].key
	}
	return high
}

// readLeaves reads and checks the leaf pages below a branch page.
func (t *treeCheck) readLeaves(children []childNode, high []byte) error {
	for first := 0; first < len(children); {
		n := min(len(children)-first, t.leaves.max())
		err := t.leaves.read(n, func(i int) (uint64, error) { return children[first+i].pgno, nil })
		if err != nil {
			return err
		}
		for i := range n {
			if err := t.leaf(t.leaves.page(i), children[first+i], upperBound(children, first+i, high)); err != nil {
				return err
			}
		}
		first += n
	}
	return nil
}

// leaf checks a leaf page.
func (t *treeCheck) leaf(b []byte, node childNode, high []byte) error {
	pgno := node.pgno
	p, err := parsePage(b, pgno, flagLeaf)
	if err != nil {
		return err
	}
	if err := t.enter(pgno); err != nil {
		return err
	}
	t.stat.LeafPages++
	if err := t.nodes.check(&p, flagLeaf); err != nil {
		return err
	}
	var prev []byte
	for i := range p.n {
		l, err := p.leaf(i)
		if err != nil {
			return err
		}
		switch {
		case i == 0 && node.key != nil && t.compare(l.key, node.key) < 0:
			return damaged(pgno, "node 0 belongs to an earlier page")
		case i > 0 && t.compare(prev, l.key) >= 0:
			return damaged(pgno, "node %d is out of order", i)
		}
		prev = l.key
		if l.flags == nodeBig {
			if err := t.overflow(le.Uint64(l.data), l.valueLen); err != nil {
				return fmt.Errorf("value of node %d of page %d: %w", i, pgno, err)
			}
		}
		if err := t.visit(l); err != nil {
			return fmt.Errorf("page %d: %w", pgno, err)
		}
		t.stat.Entries++
	}
	if high != nil && t.compare(prev, high) >= 0 {
		return damaged(pgno, "node %d belongs to a later page", p.n-1)
	}
	return nil
}

// overflow checks the header of an overflow run and marks its pages. If the values
// are to be seen it reads the whole run, for visitPair, too.
func (t *treeCheck) overflow(pgno uint64, valueLen int) (err error) {
	header := make([]byte, headerSize)
	if t.checker.visit == nil {
		err = t.f.readPages(header, pgno)
	} else if t.big, err = t.f.readOverflow(t.big, pgno, valueLen); err == nil {
		header = t.big[:headerSize]
	}
	if err != nil {
		return err
	}
	run, err := t.f.overflowRun(header, pgno, valueLen)
	if err != nil {
		return err
	}
	t.stat.OverflowPages += run
	if !t.used.addRange(pgno, run) {
		return damaged(pgno, "in use twice, or free and in use")
	}
	return nil
}

// enter marks a page, which is known to be in the file.
func (c *checker) enter(pgno uint64) error {
	if !c.used.add(pgno) {
		return damaged(pgno, "in use twice, or free and in use")
	}
	return nil
}

// nodeMap holds the length of the node that begins at each even offset of a
// page. It is all zeros between checks.
type nodeMap []uint16

// check verifies that the nodes fill the page from upper to its end, without
// gaps and without sharing bytes: LMDB relies on that when it deletes one.
func (m nodeMap) check(p *page, flags uint16) error {
	defer clear(m[p.upper/2:])
	for i := range p.n {
		var size int
		if flags == flagBranch {
			_, key, err := p.child(i)
			if err != nil {
				return err
			}
			size = nodeHeader + len(key)
		} else {
			l, err := p.leaf(i)
			if err != nil {
				return err
			}
			size = nodeHeader + len(l.key) + len(l.data)
		}
		off := le.Uint16(p.b[headerSize+offsetSize*i:])
		if m[off/2] != 0 {
			return damaged(p.pgno, "node %d begins where another does", i)
		}
		m[off/2] = uint16(even(size))
	}
	n := 0
	at := p.upper
	for ; at < len(p.b); n++ {
		if m[at/2] == 0 {
			return damaged(p.pgno, "no node begins at %d", at)
		}
		at += int(m[at/2])
	}
	if n != p.n || at != len(p.b) {
		return damaged(p.pgno, "nodes overlap")
	}
	return nil
}

// pageSet is a set of the page numbers below n.
type pageSet struct {
	n     uint64
	words []uint64
}

func newPageSet(n uint64) pageSet { return pageSet{n, make([]uint64, (n+63)/64)} }

// add adds a page; it returns false if it was there.
func (s *pageSet) add(pgno uint64) bool {
	w, bit := &s.words[pgno/64], uint64(1)<<(pgno%64)
	if *w&bit != 0 {
		return false
	}
	*w |= bit
	return true
}

// addRange adds n pages; it returns false if one of them was there.
func (s *pageSet) addRange(pgno, n uint64) bool {
	for i := range n {
		if !s.add(pgno + i) {
			return false
		}
	}
	return true
}

func (s *pageSet) len() (n uint64) {
	for _, w := range s.words {
		n += uint64(bits.OnesCount64(w))
	}
	return n
}

// firstMissing returns the least page that is not in the set, n if there is none.
func (s *pageSet) firstMissing() uint64 {
	for i, w := range s.words {
		if w != 1<<64-1 {
			return min(s.n, uint64(i*64+bits.TrailingZeros64(^w)))
		}
	}
	return s.n
}
