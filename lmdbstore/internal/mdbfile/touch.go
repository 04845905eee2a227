package mdbfile

import (
	"bytes"
	"fmt"
	"io"
	"sort"
)

// Touch checks the pages that a write transaction of LMDB is about to take as the
// base of its own. LMDB copies such a page into its memory and moves bytes in the
// copy by the offsets that it finds there: a damaged one overwrites memory of the
// process. After it is copied the page in the file does not matter any more.
//
// A Touch is of one transaction, and not safe for concurrent use.
type Touch struct {
	f      *File
	dbs    map[string]record
	copied map[uint64]struct{} // pages that LMDB has taken
	nodes  nodeMap
	levels [maxDepth][]byte
	side   []byte
}

// maxFreeLeaves bounds how much of the free list is read, from where LMDB begins.
const maxFreeLeaves = 256

// NewTouch checks what every transaction touches: the meta pages, the records of
// the databases, the free list, and all of the databases that are named. size is
// the file's.
func NewTouch(r io.ReaderAt, size int64, whole ...string) (*Touch, error) {
	metas, err := readMetas(r, size)
	if err != nil {
		return nil, err
	}
	current := newest(&metas)
	if err := checkMetas(&metas, current); err != nil {
		return nil, err
	}
	f := newFile(r, size, metas[current])
	t := &Touch{f: f, dbs: make(map[string]record), copied: make(map[uint64]struct{}), nodes: make(nodeMap, f.pageSize/2)}
	if err := t.freeList(); err != nil {
		return nil, fmt.Errorf("free list: %w", err)
	}
	err = t.walk(&f.meta.main, f.meta.main.pages(), func(l leaf) error {
		if l.flags == nodeSub {
			r := parseRecord(l.data)
			t.dbs[string(l.key)] = r
			return r.check()
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("main database: %w", err)
	}
	for _, db := range whole {
		r := t.dbs[db]
		if err := t.walk(&r, r.pages(), func(leaf) error { return nil }); err != nil {
			return nil, fmt.Errorf("database %q: %w", db, err)
		}
	}
	return t, nil
}

func (r *record) pages() uint64 { return r.BranchPages + r.LeafPages }

// Txnid returns the number of the transaction that the file is at.
func (t *Touch) Txnid() uint64 { return t.f.Txnid() }

// Put checks what storing key in db touches.
func (t *Touch) Put(db string, key []byte) error { return t.path(db, key, false) }

// Del checks what deleting key from db touches: the pages beside those on the way
// to it too, which may be joined with them.
func (t *Touch) Del(db string, key []byte) error { return t.path(db, key, true) }

func (t *Touch) path(db string, key []byte, beside bool) error {
	r := t.dbs[db]
	if r.Depth == 0 {
		return nil
	}
	pgno := r.root
	for level := range r.Depth - 1 {
		p, err := t.take(t.level(level), pgno, flagBranch)
		if err != nil {
			return err
		}
		// The child before the first one whose key is greater, as in search.
		i := sort.Search(p.n-1, func(i int) bool {
			_, k, e := p.child(i + 1)
			if e != nil {
				err = e
			}
			return bytes.Compare(k, key) > 0
		})
		if err == nil {
			pgno, _, err = p.child(i)
		}
		if err != nil {
			return err
		}
		if beside {
			if err := t.siblings(&p, i, level+2 == r.Depth); err != nil {
				return err
			}
		}
	}
	p, err := t.take(t.level(r.Depth-1), pgno, flagLeaf)
	if err != nil {
		return err
	}
	return t.value(&p, key)
}

// value checks the overflow pages of key's value on its leaf, if it has some: LMDB
// frees as many as their header says.
func (t *Touch) value(p *page, key []byte) (err error) {
	i := sort.Search(p.n, func(i int) bool {
		l, e := p.leaf(i)
		if e != nil {
			err = e
		}
		return bytes.Compare(l.key, key) >= 0
	})
	if err != nil || i == p.n {
		return err
	}
	l, err := p.leaf(i)
	if err != nil || l.flags != nodeBig || !bytes.Equal(l.key, key) {
		return err
	}
	var header [headerSize]byte
	pgno := le.Uint64(l.data)
	if err := t.f.readPages(header[:], pgno); err != nil {
		return err
	}
	_, err = t.f.overflowRun(header[:], pgno, l.valueLen)
	return err
}

// siblings checks the children beside the one at i.
func (t *Touch) siblings(p *page, i int, leaves bool) error {
	flags := uint16(flagBranch)
	if leaves {
		flags = flagLeaf
	}
	if t.side == nil {
		t.side = make([]byte, t.f.pageSize)
	}
	for _, j := range [2]int{i - 1, i + 1} {
		if j < 0 || j >= p.n {
			continue
		}
		pgno, _, err := p.child(j)
		if err != nil {
			return err
		}
		if _, err := t.check(t.side, pgno, flags); err != nil {
			return err
		}
	}
	return nil
}

// take checks a page that LMDB copies next, once.
func (t *Touch) take(b []byte, pgno uint64, flags uint16) (page, error) {
	if _, ok := t.copied[pgno]; ok {
		return t.f.readPage(b, pgno, flags)
	}
	p, err := t.check(b, pgno, flags)
	if err == nil {
		t.copied[pgno] = struct{}{}
	}
	return p, err
}

func (t *Touch) check(b []byte, pgno uint64, flags uint16) (page, error) {
	p, err := t.f.readPage(b, pgno, flags)
	if err == nil {
		err = t.nodes.check(&p, flags)
	}
	return p, err
}

func (t *Touch) level(i int) []byte {
	if t.levels[i] == nil {
		t.levels[i] = make([]byte, t.f.pageSize)
	}
	return t.levels[i]
}

// walk checks up to budget pages of a tree, in order, and calls visit with its leaf nodes.
func (t *Touch) walk(r *record, budget uint64, visit func(leaf) error) error {
	if r.Depth == 0 {
		return nil
	}
	if r.Depth > maxDepth {
		return fmt.Errorf("depth %d, want at most %d: %w", r.Depth, maxDepth, ErrDamaged)
	}
	return t.walkPage(r, r.root, 0, &budget, visit)
}

func (t *Touch) walkPage(r *record, pgno uint64, level int, budget *uint64, visit func(leaf) error) error {
	if *budget == 0 {
		return nil
	}
	*budget--
	if level+1 == r.Depth {
		p, err := t.check(t.level(level), pgno, flagLeaf)
		for i := 0; err == nil && i < p.n; i++ {
			var l leaf
			if l, err = p.leaf(i); err == nil {
				err = visit(l)
			}
		}
		return err
	}
	p, err := t.check(t.level(level), pgno, flagBranch)
	for i := 0; err == nil && i < p.n; i++ {
		var child uint64
		if child, _, err = p.child(i); err == nil {
			err = t.walkPage(r, child, level+1, budget, visit)
		}
	}
	return err
}

// freeList checks what LMDB takes its next pages from.
func (t *Touch) freeList() error {
	r := t.f.meta.free
	r.flags = 0 // the environment's
	if err := r.check(); err != nil {
		return err
	}
	var buf []byte
	return t.walk(&r, min(r.pages(), maxFreeLeaves), func(l leaf) (err error) {
		if len(l.key) != pgnoSize || l.flags == nodeSub {
			return fmt.Errorf("an entry that is no list of pages: %w", ErrDamaged)
		}
		list := l.data
		if l.flags == nodeBig {
			if buf, err = t.f.readOverflow(buf, le.Uint64(l.data), l.valueLen); err != nil {
				return err
			}
			list = buf[headerSize:]
		}
		return t.f.checkPageList(list)
	})
}

// checkPageList checks one list of free pages: a count, and that many page numbers
// in descending order.
func (f *File) checkPageList(list []byte) error {
	if len(list) < pgnoSize || len(list)%pgnoSize != 0 {
		return fmt.Errorf("%d bytes of page numbers: %w", len(list), ErrDamaged)
	}
	n := le.Uint64(list)
	if n > uint64(len(list)/pgnoSize-1) {
		return fmt.Errorf("%d page numbers in %d bytes: %w", n, len(list), ErrDamaged)
	}
	last := f.meta.lastPage + 1
	for i := range n {
		pgno := le.Uint64(list[pgnoSize*(i+1):])
		if pgno < firstPage || pgno >= last {
			return damaged(pgno, "free, but not below %d", last)
		}
		last = pgno
	}
	return nil
}
