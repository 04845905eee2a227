package mdbfile

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
)

// Sample checks some of the newest snapshot in a file of size bytes that nobody
// writes to: both meta pages, the free list, and up to n leaf pages of a
// database, each reached from the root by a random path whose pages it checks
// too. visit is called with the pairs on those leaves. Damage is an error that
// wraps ErrDamaged.
func Sample(r io.ReaderAt, size int64, db string, n int, random *rand.Rand, visit func(key, value []byte) error) error {
	metas, err := readMetas(r, size)
	if err != nil {
		return err
	}
	current := newest(&metas)
	if err := checkMetas(&metas, current); err != nil {
		return err
	}
	f := newFile(r, size, metas[current])
	c := &checker{ctx: context.Background(), f: f, used: newPageSet(min(f.pages, f.meta.lastPage+1))}
	if err := c.checkFreeList(); err != nil {
		return err
	}
	record, err := f.record(db)
	if err != nil {
		return err
	}
	if record.Depth == 0 {
		return nil
	}
	s := sampler{f: f, free: &c.used, random: random, visit: visit, nodes: make(nodeMap, f.pageSize/2), page: make([]byte, f.pageSize)}
	for range min(uint64(n), record.LeafPages) {
		if err := s.descend(&record); err != nil {
			return err
		}
	}
	return nil
}

type sampler struct {
	f      *File
	free   *pageSet
	random *rand.Rand
	visit  func(key, value []byte) error
	nodes  nodeMap
	page   []byte
	big    []byte
}

// descend checks the pages of one random path.
func (s *sampler) descend(r *record) error {
	pgno := r.root
	var low, high []byte // bounds of the keys below; nil: none
	for range r.Depth - 1 {
		p, err := s.read(pgno, flagBranch)
		if err != nil {
			return err
		}
		i := s.random.IntN(p.n)
		for j, prev := 1, low; j < p.n; j++ {
			_, key, err := p.child(j)
			if err != nil {
				return err
			}
			if prev != nil && bytes.Compare(prev, key) >= 0 || high != nil && bytes.Compare(key, high) >= 0 {
				return damaged(pgno, "node %d is out of order", j)
			}
			prev = key
		}
		child, key, err := p.child(i)
		if err != nil {
			return err
		}
		if i+1 < p.n {
			_, next, err := p.child(i + 1)
			if err != nil {
				return err
			}
			high = bytes.Clone(next)
		}
		if i > 0 {
			low = bytes.Clone(key)
		}
		pgno = child
	}
	p, err := s.read(pgno, flagLeaf)
	if err != nil {
		return err
	}
	return s.leaf(&p, low, high)
}

func (s *sampler) read(pgno uint64, flags uint16) (page, error) {
	p, err := s.f.readPage(s.page, pgno, flags)
	if err != nil {
		return page{}, err
	}
	if s.free.has(pgno) {
		return page{}, damaged(pgno, "free and in use")
	}
	return p, s.nodes.check(&p, flags)
}

func (s *sampler) leaf(p *page, low, high []byte) error {
	for i := range p.n {
		l, err := p.leaf(i)
		if err != nil {
			return err
		}
		if i == 0 && low != nil && bytes.Compare(l.key, low) < 0 ||
			i > 0 && bytes.Compare(low, l.key) >= 0 || high != nil && bytes.Compare(l.key, high) >= 0 {
			return damaged(p.pgno, "node %d is out of order", i)
		}
		low = l.key
		value := l.data
		switch l.flags {
		case nodeSub:
			return damaged(p.pgno, "node %d holds a database", i)
		case nodeBig:
			if s.big, err = s.f.readOverflow(s.big, le.Uint64(l.data), l.valueLen); err != nil {
				return err
			}
			value = s.big[headerSize:]
		}
		if err := s.visit(l.key, value); err != nil {
			return err
		}
	}
	return nil
}

func (s *pageSet) has(pgno uint64) bool {
	return pgno < s.n && s.words[pgno/64]&(1<<(pgno%64)) != 0
}
