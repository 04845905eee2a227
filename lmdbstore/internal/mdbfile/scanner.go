package mdbfile

import "io"

// Scanner steps through the pairs of a file that a Writer wrote, front to back, so
// that each page is read once and in order. Use it like a Cursor; it reads nothing
// ahead, and does not check the order of the keys.
type Scanner struct {
	r         io.ReaderAt
	next, end uint64 // pages
	buf       []byte
	page      page
	node      int // of page, that is next
	pair      leaf
	big       []byte // the latest value from overflow pages, after its page header
	err       error
}

// NewScanner returns a Scanner of the pairs on the leaf pages from page from up to but
// without page end.
func NewScanner(r io.ReaderAt, from, end uint64) *Scanner {
	return &Scanner{r: r, next: from, end: end, buf: make([]byte, pageSize)}
}

// Next steps to the next pair. It returns false at the end, where the names of the
// databases stand at the latest, and after an error.
func (s *Scanner) Next() bool {
	for s.err == nil && s.node == s.page.n {
		if s.next >= s.end {
			return false
		}
		s.err = s.leaf()
	}
	if s.err != nil {
		return false
	}
	if s.pair, s.err = s.page.leaf(s.node); s.err != nil {
		return false
	}
	if s.pair.flags == nodeSub {
		s.next, s.node = s.end, s.page.n
		return false
	}
	s.node++
	return true
}

// leaf takes the page that is next, if it is a leaf, and goes on behind it.
func (s *Scanner) leaf() (err error) {
	pgno := s.next
	if err := readFull(s.r, s.buf, int64(pgno)*pageSize, pgno); err != nil {
		return err
	}
	s.next++
	if le.Uint64(s.buf) != pgno {
		return nil // inside an overflow run
	}
	switch le.Uint16(s.buf[10:]) {
	case flagOverflow:
		s.next = pgno + max(1, uint64(le.Uint32(s.buf[12:])))
	case flagLeaf:
		s.page, err = parsePage(s.buf, pgno, flagLeaf)
		s.node = 0
	}
	return err
}

// Key returns the pair's key, which is valid until the next call of Next.
func (s *Scanner) Key() []byte { return s.pair.key }

// ValueLen returns the length of the pair's value.
func (s *Scanner) ValueLen() int { return s.pair.valueLen }

// Inline returns the pair's value if it is on the leaf, otherwise nil.
func (s *Scanner) Inline() []byte {
	if s.pair.flags == nodeBig {
		return nil
	}
	return s.pair.data
}

// Value returns the pair's value, which is valid until the next call of Next. One in
// overflow pages is read here, not before.
func (s *Scanner) Value() ([]byte, error) {
	if s.pair.flags != nodeBig {
		return s.pair.data, nil
	}
	n := headerSize + s.pair.valueLen
	if cap(s.big) < n {
		s.big = make([]byte, n)
	}
	pgno, _ := s.Overflow()
	if err := readFull(s.r, s.big[:n], int64(pgno)*pageSize, pgno); err != nil {
		return nil, err
	}
	return s.big[headerSize:n], nil
}

// Page returns the number of the pair's leaf page.
func (s *Scanner) Page() uint64 { return s.page.pgno }

// Overflow returns where the pair's value is if it is in overflow pages; otherwise n
// is 0.
func (s *Scanner) Overflow() (first, n uint64) {
	if s.pair.flags != nodeBig {
		return 0, 0
	}
	return le.Uint64(s.pair.data), overflowPages(uint64(s.pair.valueLen), pageSize)
}

// Err returns the error that ended the iteration, or nil.
func (s *Scanner) Err() error { return s.err }
