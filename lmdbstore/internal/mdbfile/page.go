package mdbfile

// page is a branch or leaf page whose header was checked.
type page struct {
	b     []byte
	pgno  uint64
	upper int
	n     int // nodes
}

// parsePage checks the header of page pgno, which must be of the kind flags.
func parsePage(b []byte, pgno uint64, flags uint16) (page, error) {
	if n := le.Uint64(b); n != pgno {
		return page{}, damaged(pgno, "says that it is page %d", n)
	}
	if f := le.Uint16(b[10:]); f != flags {
		return page{}, damaged(pgno, "flags %#x, want %#x", f, flags)
	}
	lower, upper := int(le.Uint16(b[12:])), int(le.Uint16(b[14:]))
	if lower < headerSize || lower > upper || upper > len(b) || (lower|upper)&1 != 0 {
		return page{}, damaged(pgno, "free space from %d to %d", lower, upper)
	}
	p := page{b: b, pgno: pgno, upper: upper, n: (lower - headerSize) / offsetSize}
	switch {
	case p.n == 0:
		return page{}, damaged(pgno, "no nodes")
	case flags == flagBranch && p.n == 1:
		return page{}, damaged(pgno, "branch page with one child")
	}
	return p, nil
}

// node returns the head of node i and what follows it: from its key up to the
// end of the page.
func (p *page) node(i int) (head uint64, rest []byte, err error) {
	off := int(le.Uint16(p.b[headerSize+offsetSize*i:]))
	if off < p.upper || off > len(p.b)-nodeHeader || off&1 != 0 {
		return 0, nil, damaged(p.pgno, "node %d begins at %d", i, off)
	}
	return le.Uint64(p.b[off:]), p.b[off+nodeHeader:], nil
}

// leaf is a node of a leaf page.
type leaf struct {
	key      []byte
	data     []byte // as it is in the page: the value, or what leads to it
	valueLen int
	flags    uint16
}

// leaf returns node i of a leaf page.
func (p *page) leaf(i int) (leaf, error) {
	head, rest, err := p.node(i)
	if err != nil {
		return leaf{}, err
	}
	keyLen, valueLen, flags := splitLeafHead(head)
	dataLen := valueLen
	if flags == nodeBig {
		dataLen = pgnoSize
	}
	if keyLen+dataLen > len(rest) {
		return leaf{}, damaged(p.pgno, "node %d ends past the page", i)
	}
	if keyLen == 0 {
		return leaf{}, damaged(p.pgno, "node %d has no key", i)
	}
	if flags > nodeSub || flags == nodeSub && valueLen != recordSize {
		return leaf{}, damaged(p.pgno, "node %d has flags %#x and %d bytes", i, flags, valueLen)
	}
	return leaf{rest[:keyLen:keyLen], rest[keyLen : keyLen+dataLen : keyLen+dataLen], valueLen, flags}, nil
}

// child returns node i of a branch page. The key of the first one means nothing.
func (p *page) child(i int) (pgno uint64, key []byte, err error) {
	head, rest, err := p.node(i)
	if err != nil {
		return 0, nil, err
	}
	keyLen := int(head >> 48)
	if keyLen > len(rest) {
		return 0, nil, damaged(p.pgno, "node %d ends past the page", i)
	}
	if i > 0 && keyLen == 0 {
		return 0, nil, damaged(p.pgno, "node %d has no key", i)
	}
	return branchChild(head), rest[:keyLen:keyLen], nil
}
