package mdbfile

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// What ScanLeaves's page numbers are of.
const (
	PageSize  = pageSize  // of a file that a Writer wrote, in bytes
	FirstPage = firstPage // that is not a meta page
)

// OpenDamaged is Open of a file of which some may be damaged. It needs one sound meta
// page that leads to the database db. With the older of the two the snapshot is the one
// before the last, which is whole as long as nobody wrote to the file since.
func OpenDamaged(r io.ReaderAt, size int64, db string) (*File, error) {
	var found []*File // the newest first
	var errs []error
	for i := range uint64(metaPages) {
		// Where page 1 is follows from page 0; if that is damaged, from what is usual.
		at := int64(i) * pageSize
		if i > 0 && len(found) > 0 {
			at = int64(found[0].pageSize)
		}
		var b [headerSize + metaSize]byte
		if _, err := r.ReadAt(b[:], at); err != nil {
			errs = append(errs, fmt.Errorf("read page %d: %w", i, err))
			continue
		}
		m, err := parseMeta(b[:], i)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, newFile(r, size, m))
	}
	slices.SortFunc(found, func(a, b *File) int { return cmp.Compare(b.meta.txnid, a.meta.txnid) })
	for _, f := range found {
		if _, err := f.record(db); err != nil {
			errs = append(errs, err)
			continue
		}
		return f, nil
	}
	return nil, errors.Join(errs...)
}

// Remains are what Remains finds, in key order.
type Remains interface {
	// Pair is a pair that looks sound: the page that holds it has the structure that
	// LMDB gives it. Nobody checked its bytes. value reads what there is of the value,
	// valueLen bytes; what cannot be read is zero. Key and value are valid until the
	// call returns.
	Pair(key []byte, valueLen int, value func() []byte) error
	// Lost are keys of which nothing is known: from from on, which is nil for the
	// first of all, up to but without to, which is nil for the end of the database.
	Lost(from, to []byte) error
}

// Remains visits what can be read of a damaged database. Its errors are ctx's, the
// visitor's, and ErrDamaged if not even its root is known.
func (f *File) Remains(ctx context.Context, db string, v Remains) error {
	r, err := f.record(db)
	if err != nil {
		return err
	}
	if r.Depth == 0 {
		return nil
	}
	s := salvage{f: f, ctx: ctx, v: v, bufs: make([][]byte, r.Depth)}
	return s.visit(r.root, 0, nil, nil)
}

type salvage struct {
	f    *File
	ctx  context.Context
	v    Remains
	bufs [][]byte // a page a level
	big  []byte   // the latest value from overflow pages
}

// visit goes through the page pgno at a level, 0 for the root, whose keys are from
// low on and below high.
func (s *salvage) visit(pgno uint64, level int, low, high []byte) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if s.bufs[level] == nil {
		s.bufs[level] = make([]byte, s.f.pageSize)
	}
	b := s.bufs[level]
	if level == len(s.bufs)-1 {
		p, err := s.f.readPage(b, pgno, flagLeaf)
		if err == nil {
			err = p.soundLeaf(low, high)
		}
		if err != nil {
			return s.v.Lost(low, high)
		}
		return s.leaf(&p)
	}
	p, err := s.f.readPage(b, pgno, flagBranch)
	if err == nil {
		err = p.soundBranch(low, high)
	}
	if err != nil {
		return s.v.Lost(low, high)
	}
	for i := range p.n {
		child, from, _ := p.child(i) // soundBranch looked at all
		if i == 0 {
			from = low
		}
		to := high
		if i+1 < p.n {
			_, to, _ = p.child(i + 1)
		}
		if err := s.visit(child, level+1, from, to); err != nil {
			return err
		}
	}
	return nil
}

func (s *salvage) leaf(p *page) error {
	for i := range p.n {
		l, _ := p.leaf(i) // soundLeaf looked at all
		if err := s.v.Pair(l.key, l.valueLen, func() []byte { return s.value(l) }); err != nil {
			return err
		}
	}
	return nil
}

// value reads a value as well as it can be.
func (s *salvage) value(l leaf) []byte {
	if l.flags == 0 {
		return l.data
	}
	n := headerSize + l.valueLen
	if cap(s.big) < n {
		s.big = make([]byte, n)
	}
	b := s.big[:n]
	clear(b)
	at := int64(le.Uint64(l.data)) * int64(s.f.pageSize)
	for off := 0; off < n; off += s.f.pageSize { // page by page: one that fails is one
		s.f.r.ReadAt(b[off:min(n, off+s.f.pageSize)], at+int64(off))
	}
	return b[headerSize:]
}

// soundLeaf tells whether the nodes of a leaf page tile it, their keys ascend, and
// all are from low on and below high.
func (p *page) soundLeaf(low, high []byte) error {
	size := 0
	var last []byte
	for i := range p.n {
		l, err := p.leaf(i)
		switch {
		case err != nil:
			return err
		case l.flags == nodeSub:
			return damaged(p.pgno, "node %d holds a database", i)
		case len(l.key) > MaxKey:
			return damaged(p.pgno, "node %d has a key of %d bytes", i, len(l.key))
		case i > 0 && bytes.Compare(last, l.key) >= 0, bytes.Compare(l.key, low) < 0, high != nil && bytes.Compare(l.key, high) >= 0:
			return damaged(p.pgno, "node %d is out of order", i)
		}
		last = l.key
		size += even(nodeHeader + len(l.key) + len(l.data))
	}
	return p.tiled(size)
}

// soundBranch is soundLeaf of a branch page.
func (p *page) soundBranch(low, high []byte) error {
	size := 0
	var last []byte
	for i := range p.n {
		child, key, err := p.child(i)
		switch {
		case err != nil:
			return err
		case child < firstPage:
			return damaged(p.pgno, "node %d leads to a meta page", i)
		case i > 0 && (bytes.Compare(last, key) >= 0 || bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) >= 0):
			return damaged(p.pgno, "node %d is out of order", i)
		}
		if i > 0 {
			last = key
		}
		size += even(nodeHeader + len(key))
	}
	return p.tiled(size)
}

// tiled tells whether nodes of so many bytes leave no gap up to the page's end.
func (p *page) tiled(size int) error {
	if want := len(p.b) - p.upper; size != want {
		return damaged(p.pgno, "its nodes have %d bytes of %d", size, want)
	}
	return nil
}

// NextPage returns about where the leaf page that gets the next pair of the first
// database stands in the planned file: not behind it, and with rare exceptions, of a
// page or two, nothing that was not added yet stands before it.
func (p *Planner) NextPage() uint64 {
	t := &p.tree
	n := firstPage + t.stat.OverflowPages
	if t.stat.LeafPages > 0 {
		n += t.stat.LeafPages - 1 // the latest is not full
	}
	for i := range t.levels {
		if pages := t.levels[i].pages; pages > 0 {
			n += pages - 1
		}
	}
	return n
}

// ScanLeaves calls pair with the pairs of the leaf pages from page from up to but
// without page end of a file that a Writer wrote, in key order, until it returns
// false. A value that is in overflow pages is nil, and not read.
func ScanLeaves(r io.ReaderAt, from, end uint64, pair func(key, value []byte, valueLen int) (more bool)) error {
	s := NewScanner(r, from, end)
	for s.Next() {
		if !pair(s.Key(), s.Inline(), s.ValueLen()) {
			return nil
		}
	}
	return s.Err()
}
