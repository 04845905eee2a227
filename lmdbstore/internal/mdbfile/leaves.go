package mdbfile

import (
	"sync"
	"sync/atomic"
)

const (
	// readAhead bounds how many leaf pages are read at once.
	readAhead = 64
	// readers bounds how many reads are under way at once. In a file that LMDB
	// has been writing to for long, neighbours in key order are far apart:
	// reading them one after the other would leave a disk idle most of the time,
	// and is bound by the system call even when they are cached.
	readers = 8
)

// leafReader reads the leaf pages below a branch page, many at once.
type leafReader struct {
	f     *File
	buf   []byte
	runs  []leafRun
	batch []Read
}

// Read is one read of a batch: what it wants, and what ReadAt would have returned.
type Read struct {
	Buf []byte
	Off int64
	N   int
	Err error
}

// BatchReader is what the io.ReaderAt of a file may be, too.
type BatchReader interface {
	// ReadBatch does all reads at once. It returns false, and did nothing, if that
	// is not to be had.
	ReadBatch(reads []Read) bool
}

// leafRun is some leaf pages that are neighbours in key order and in the file.
type leafRun struct {
	pgno uint64
	buf  []byte
}

// newLeafReader returns a reader of the leaves of the tree at r.
func newLeafReader(f *File, r *record) *leafReader {
	// The record may lie, but reading less at once is harmless.
	n := min(readAhead, f.pages, max(1, r.LeafPages))
	return &leafReader{f: f, buf: make([]byte, f.pageSize*int(n))}
}

// max returns how many pages can be read at once.
func (l *leafReader) max() int { return len(l.buf) / l.f.pageSize }

// page returns page i of those that were read.
func (l *leafReader) page(i int) []byte {
	at := i * l.f.pageSize
	return l.buf[at : at+l.f.pageSize : at+l.f.pageSize]
}

// read reads n leaf pages, at most max, with the numbers that pgno returns for
// 0 … n-1.
func (l *leafReader) read(n int, pgno func(int) (uint64, error)) error {
	l.runs = l.runs[:0]
	for i := range n {
		p, err := pgno(i)
		if err != nil {
			return err
		}
		if last := len(l.runs) - 1; last >= 0 {
			r := &l.runs[last]
			if have := len(r.buf); r.pgno+uint64(have/l.f.pageSize) == p {
				r.buf = r.buf[:have+l.f.pageSize]
				continue
			}
		}
		at := i * l.f.pageSize
		l.runs = append(l.runs, leafRun{p, l.buf[at : at+l.f.pageSize]})
	}
	if batch, ok := l.f.r.(BatchReader); ok {
		if done, err := l.readBatch(batch); done {
			return err
		}
	}
	if len(l.runs) == 1 {
		return l.f.readPages(l.runs[0].buf, l.runs[0].pgno)
	}
	return l.readRuns()
}

// readBatch reads the runs in one batch, if r does that.
func (l *leafReader) readBatch(r BatchReader) (done bool, err error) {
	l.batch = l.batch[:0]
	size := uint64(l.f.pageSize)
	for _, run := range l.runs {
		if err := l.f.inFile(run.pgno, uint64(len(run.buf))/size); err != nil {
			return true, err
		}
		l.batch = append(l.batch, Read{Buf: run.buf, Off: int64(run.pgno * size)})
	}
	if !r.ReadBatch(l.batch) {
		return false, nil
	}
	for i := range l.batch {
		b := &l.batch[i]
		if err := whole(b.N, len(b.Buf), b.Err, l.runs[i].pgno); err != nil {
			return true, err
		}
	}
	return true, nil
}

// readRuns reads the runs concurrently and waits for all of them.
func (l *leafReader) readRuns() error {
	var (
		wg     sync.WaitGroup
		next   atomic.Int64
		failed atomic.Pointer[error]
	)
	for range min(readers, len(l.runs)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(l.runs) || failed.Load() != nil {
					return
				}
				if err := l.f.readPages(l.runs[i].buf, l.runs[i].pgno); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}
