package mdbfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
)

// Limits of what can be written.
const (
	// MaxKey is the longest key, in bytes.
	MaxKey = 511
	// MaxValue is the longest value, in bytes.
	MaxValue = 1<<31 - 1
)

// Errors that callers branch on.
var (
	// ErrDamaged is wrapped by errors about a file that is not a sound
	// environment. The text names the page and what is wrong with it.
	ErrDamaged = errors.New("file is damaged")
	// ErrNoSuchTxn means that neither meta page is of the wanted transaction:
	// it is not committed yet, or two more were committed since.
	ErrNoSuchTxn = errors.New("no meta page of this transaction")
	// ErrNoSuchDB means that the environment has no database of that name.
	ErrNoSuchDB = errors.New("no database of this name")
)

// File is one snapshot of an environment file: what one transaction committed.
// It is read through an io.ReaderAt that stays the caller's, must not be
// truncated meanwhile, and is read concurrently if the File and its cursors
// are; a File itself is immutable.
type File struct {
	r        io.ReaderAt
	pageSize int
	pages    uint64 // that the file holds in full
	meta     meta
}

// Open returns the newest snapshot in a file of size bytes. In a file that LMDB
// writes to meanwhile use OpenTxn.
func Open(r io.ReaderAt, size int64) (*File, error) {
	metas, err := readMetas(r, size)
	if err != nil {
		return nil, err
	}
	return newFile(r, size, metas[newest(&metas)]), nil
}

// OpenTxn returns the snapshot that transaction txnid committed, or
// ErrNoSuchTxn. LMDB may go on writing to the file as long as one of its read
// transactions of that id is open: the snapshot's pages then stay as they are.
// size may be taken at any time after that read transaction began.
func OpenTxn(r io.ReaderAt, size int64, txnid uint64) (*File, error) {
	metas, err := readMetas(r, size)
	if err != nil {
		return nil, err
	}
	for _, m := range metas {
		if m.txnid == txnid {
			return newFile(r, size, m), nil
		}
	}
	return nil, fmt.Errorf("transaction %d (the file has %d and %d): %w",
		txnid, metas[0].txnid, metas[1].txnid, ErrNoSuchTxn)
}

func newFile(r io.ReaderAt, size int64, m meta) *File {
	return &File{r: r, pageSize: int(m.pageSize()), pages: uint64(size / m.pageSize()), meta: m}
}

// newest returns the index of the meta page that LMDB would use.
func newest(metas *[metaPages]meta) int {
	if metas[0].txnid < metas[1].txnid {
		return 1
	}
	return 0
}

// readMetas reads both meta pages. LMDB overwrites them in place, so a read may
// see half of an update: they are read until two reads agree.
func readMetas(r io.ReaderAt, size int64) ([metaPages]meta, error) {
	const attempts = 100
	last, err := readMetasOnce(r, size)
	for i := 0; err == nil && i < attempts; i++ {
		again, err := readMetasOnce(r, size)
		if err != nil || again == last {
			return again, err
		}
		last = again
	}
	if err == nil {
		err = errors.New("read meta pages: they keep changing")
	}
	return last, err
}

func readMetasOnce(r io.ReaderAt, size int64) (metas [metaPages]meta, err error) {
	var b [headerSize + metaSize]byte
	var at int64
	for i := range metas {
		if at+int64(len(b)) > size {
			return metas, damaged(uint64(i), "past the end of the file (%d bytes)", size)
		}
		if err := readFull(r, b[:], at, uint64(i)); err != nil {
			return metas, err
		}
		if metas[i], err = parseMeta(b[:], uint64(i)); err != nil {
			return metas, err
		}
		at = metas[0].pageSize()
	}
	if a, b := metas[0].pageSize(), metas[1].pageSize(); a != b {
		return metas, damaged(1, "page size %d, in page 0 %d", b, a)
	}
	return metas, nil
}

// readFull reads len(b) bytes that are known to be in the file, from page pgno.
func readFull(r io.ReaderAt, b []byte, at int64, pgno uint64) error {
	n, err := r.ReadAt(b, at)
	return whole(n, len(b), err, pgno)
}

// whole makes an error of a read of want bytes of page pgno that returned n and err,
// unless it returned all.
func whole(n, want int, err error, pgno uint64) error {
	switch {
	case n == want:
		return nil
	case err == io.EOF:
		return damaged(pgno, "cut off: the file got shorter while it was read")
	default:
		return fmt.Errorf("read page %d: %w", pgno, err)
	}
}

// Txnid returns the id of the transaction that committed this snapshot.
func (f *File) Txnid() uint64 { return f.meta.txnid }

// Size returns the bytes up to the end of the last page in use.
func (f *File) Size() int64 { return int64(f.meta.lastPage+1) * int64(f.pageSize) }

// Whole reports whether the file holds every page up to the last one in use. A
// sound file may lack some at its end: LMDB never writes pages that one
// transaction both took and freed.
func (f *File) Whole() bool { return f.pages > f.meta.lastPage }

// Stat returns the counts that are recorded of a database, or ErrNoSuchDB.
func (f *File) Stat(db string) (Stat, error) {
	r, err := f.record(db)
	return r.Stat, err
}

// Get returns a copy of the value of key. ok is false when db has no such key;
// a db that does not exist is ErrNoSuchDB.
func (f *File) Get(db string, key []byte) (value []byte, ok bool, err error) {
	r, err := f.record(db)
	if err != nil {
		return nil, false, err
	}
	l, ok, err := f.search(&r, key)
	if err != nil || !ok {
		return nil, false, err
	}
	switch l.flags {
	case 0:
		return l.data, true, nil
	case nodeBig:
		run, err := f.readOverflow(nil, le.Uint64(l.data), l.valueLen)
		if err != nil {
			return nil, false, err
		}
		return run[headerSize:], true, nil
	}
	return nil, false, fmt.Errorf("database %q: key %q holds a database: %w", db, key, ErrDamaged)
}

// Cursor returns a cursor before the first pair of a database, or ErrNoSuchDB.
// The caller closes it.
func (f *File) Cursor(db string) (*Cursor, error) {
	r, err := f.record(db)
	if err != nil {
		return nil, err
	}
	return newCursor(f, db, r), nil
}

// record looks a database up.
func (f *File) record(db string) (record, error) {
	l, ok, err := f.search(&f.meta.main, []byte(db))
	switch {
	case err != nil:
		return record{}, fmt.Errorf("find database %q: %w", db, err)
	case !ok || l.flags != nodeSub:
		return record{}, fmt.Errorf("find database %q: %w", db, ErrNoSuchDB)
	}
	r := parseRecord(l.data)
	if err := r.check(); err != nil {
		return record{}, fmt.Errorf("database %q: %w", db, err)
	}
	return r, nil
}

// check tells whether the record is of a database that can be walked.
func (r *record) check() error {
	switch {
	case r.flags != 0:
		return fmt.Errorf("flags %#x, want none: %w", r.flags, ErrDamaged)
	case r.Depth > maxDepth:
		return fmt.Errorf("depth %d, want at most %d: %w", r.Depth, maxDepth, ErrDamaged)
	case (r.Depth == 0) != (r.root == invalidPage):
		return fmt.Errorf("depth %d with root page %d: %w", r.Depth, int64(r.root), ErrDamaged)
	}
	return nil
}

// search finds key in a tree. The leaf's slices are the caller's.
func (f *File) search(r *record, key []byte) (leaf, bool, error) {
	if err := r.check(); err != nil {
		return leaf{}, false, err
	}
	if r.Depth == 0 {
		return leaf{}, false, nil
	}
	b := make([]byte, f.pageSize)
	pgno := r.root
	for level := r.Depth - 1; level > 0; level-- {
		p, err := f.readPage(b, pgno, flagBranch)
		if err != nil {
			return leaf{}, false, err
		}
		// The child before the first one whose key is greater. Node 0 stands for all keys.
		i := 1 + sort.Search(p.n-1, func(i int) bool {
			_, k, e := p.child(i + 1)
			err = errors.Join(err, e)
			return bytes.Compare(k, key) > 0
		})
		if err == nil {
			pgno, _, err = p.child(i - 1)
		}
		if err != nil {
			return leaf{}, false, err
		}
	}
	p, err := f.readPage(b, pgno, flagLeaf)
	if err != nil {
		return leaf{}, false, err
	}
	i := sort.Search(p.n, func(i int) bool {
		l, e := p.leaf(i)
		err = errors.Join(err, e)
		return bytes.Compare(l.key, key) >= 0
	})
	if err != nil || i == p.n {
		return leaf{}, false, err
	}
	l, err := p.leaf(i)
	return l, err == nil && bytes.Equal(l.key, key), err
}

// readPage reads a branch or leaf page into b, which has the size of a page.
func (f *File) readPage(b []byte, pgno uint64, flags uint16) (page, error) {
	if err := f.readPages(b, pgno); err != nil {
		return page{}, err
	}
	return parsePage(b, pgno, flags)
}

// readPages reads len(b) bytes from the start of page pgno.
func (f *File) readPages(b []byte, pgno uint64) error {
	n := uint64(len(b)+f.pageSize-1) / uint64(f.pageSize)
	if err := f.inFile(pgno, n); err != nil {
		return err
	}
	return readFull(f.r, b, int64(pgno)*int64(f.pageSize), pgno)
}

// inFile tells whether n pages from pgno on can be part of the snapshot.
func (f *File) inFile(pgno, n uint64) error {
	switch last := f.meta.lastPage; {
	case pgno < firstPage:
		return damaged(pgno, "a meta page is used as another")
	case pgno > last || n > last-pgno+1:
		return damaged(pgno, "in use with %d more, but page %d is the last", n-1, last)
	case pgno >= f.pages || n > f.pages-pgno:
		return damaged(pgno, "in use with %d more, but the file ends after %d pages", n-1, f.pages)
	}
	return nil
}

// overflowRun checks the header of an overflow run that holds valueLen bytes,
// and returns the run's length.
func (f *File) overflowRun(header []byte, pgno uint64, valueLen int) (uint64, error) {
	if n := le.Uint64(header); n != pgno {
		return 0, damaged(pgno, "says that it is page %d", n)
	}
	if fl := le.Uint16(header[10:]); fl != flagOverflow {
		return 0, damaged(pgno, "flags %#x, want an overflow page", fl)
	}
	run := uint64(le.Uint32(header[12:]))
	// LMDB overwrites a value in place when the new one is shorter.
	if need := overflowPages(uint64(valueLen), uint64(f.pageSize)); run < need {
		return 0, damaged(pgno, "%d overflow pages, %d bytes need %d", run, valueLen, need)
	}
	return run, f.inFile(pgno, run)
}

// readOverflow reads an overflow run up to the end of its value: headerSize
// bytes and the value. It uses b if that is large enough.
func (f *File) readOverflow(b []byte, pgno uint64, valueLen int) ([]byte, error) {
	need := overflowPages(uint64(valueLen), uint64(f.pageSize))
	if err := f.inFile(pgno, need); err != nil {
		return nil, err
	}
	if n := headerSize + valueLen; cap(b) < n {
		b = make([]byte, n)
	} else {
		b = b[:n]
	}
	if err := f.readPages(b, pgno); err != nil {
		return nil, err
	}
	if _, err := f.overflowRun(b, pgno, valueLen); err != nil {
		return nil, err
	}
	return b, nil
}
