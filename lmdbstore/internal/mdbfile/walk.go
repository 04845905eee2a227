package mdbfile

import (
	"errors"
	"sync"
)

const (
	// windowPages is how many leaf pages are read by one goroutine in a row.
	windowPages = 32
	// windows bounds how many are read ahead, each by its own goroutine. In a
	// file that LMDB has been writing to for long, neighbours in key order are
	// far apart: one read after the other would leave a disk idle most of the
	// time, and is bound by the system call even when all is cached.
	windows = 8
)

// leafWalk reads a tree's leaf pages in key order, ahead of its consumer.
type leafWalk struct {
	f       *File
	ordered chan *window // in key order; closed at the tree's end
	work    chan *window // the same, to whoever reads next
	free    chan *window
	stop    chan struct{}
	running sync.WaitGroup
}

// window is some leaf pages in key order.
type window struct {
	pgnos []uint64
	buf   []byte
	ended error         // what ended the walk behind these pages
	ready chan struct{} // one token once the pages were read
	err   error         // set by then
}

// page returns page i.
func (w *window) page(i int) []byte {
	size := len(w.buf) / cap(w.pgnos)
	return w.buf[i*size : (i+1)*size : (i+1)*size]
}

// newLeafWalk begins at the first leaf of the tree at r, which was checked and
// is not empty. The caller ends it with close.
func newLeafWalk(f *File, r *record) *leafWalk {
	// The record may lie, but reading less at once is harmless.
	pages := min(windows*windowPages, f.pages, max(1, r.LeafPages))
	n := int((pages + windowPages - 1) / windowPages)
	w := &leafWalk{
		f:       f,
		ordered: make(chan *window, n),
		work:    make(chan *window, n),
		free:    make(chan *window, n),
		stop:    make(chan struct{}),
	}
	each := min(windowPages, pages)
	for range n {
		w.free <- &window{
			pgnos: make([]uint64, 0, each),
			buf:   make([]byte, int(each)*f.pageSize),
			ready: make(chan struct{}, 1),
		}
		w.running.Go(w.read)
	}
	root, depth := r.root, r.Depth
	w.running.Go(func() { w.walk(root, depth) })
	return w
}

// close ends the walk and waits for what is being read.
func (w *leafWalk) close() {
	close(w.stop)
	w.running.Wait()
}

// next returns the window after last, which is not used any more. It returns
// nil at the end of the tree. An error comes behind the pages before it.
func (w *leafWalk) next(last *window) (*window, error) {
	if last != nil {
		if last.ended != nil {
			return nil, last.ended
		}
		w.free <- last
	}
	next, ok := <-w.ordered
	if !ok {
		return nil, nil
	}
	<-next.ready
	if next.err == nil && len(next.pgnos) == 0 {
		return nil, next.ended
	}
	return next, next.err
}

// read reads windows until there are no more.
func (w *leafWalk) read() {
	for win := range w.work {
		win.err = w.readWindow(win)
		win.ready <- struct{}{}
	}
}

func (w *leafWalk) readWindow(win *window) error {
	for i := 0; i < len(win.pgnos); {
		run := 1 // of neighbours in the file too
		for i+run < len(win.pgnos) && win.pgnos[i+run] == win.pgnos[i]+uint64(run) {
			run++
		}
		size := w.f.pageSize
		if err := w.f.readPages(win.buf[i*size:(i+run)*size], win.pgnos[i]); err != nil {
			return err
		}
		i += run
	}
	return nil
}

// walk hands out windows until the tree ends.
func (w *leafWalk) walk(root uint64, depth int) {
	defer close(w.ordered)
	defer close(w.work)
	f := filler{leafWalk: w, bufs: make([][]byte, depth-1)}
	err := f.visit(root, 0)
	if err == errStopped {
		return
	}
	if f.win == nil && err != nil && !f.take() {
		return
	}
	if f.win != nil {
		f.win.ended = err
		f.hand()
	}
}

// errStopped means that nobody wants the rest.
var errStopped = errors.New("walk was closed")

// filler fills windows with the numbers of leaf pages.
type filler struct {
	*leafWalk
	bufs [][]byte // a branch page a level
	win  *window
}

// visit adds the leaf pages at and below page pgno, which is at level.
func (f *filler) visit(pgno uint64, level int) error {
	if level == len(f.bufs) {
		return f.add(pgno)
	}
	if f.bufs[level] == nil {
		f.bufs[level] = make([]byte, f.f.pageSize)
	}
	p, err := f.f.readPage(f.bufs[level], pgno, flagBranch)
	if err != nil {
		return err
	}
	for i := range p.n {
		child, _, err := p.child(i)
		if err != nil {
			return err
		}
		if err := f.visit(child, level+1); err != nil {
			return err
		}
	}
	return nil
}

func (f *filler) add(pgno uint64) error {
	if f.win == nil && !f.take() {
		return errStopped
	}
	f.win.pgnos = append(f.win.pgnos, pgno)
	if len(f.win.pgnos) == cap(f.win.pgnos) {
		f.hand()
	}
	return nil
}

// take waits for a free window. It returns false when the walk was closed.
func (f *filler) take() bool {
	select {
	case f.win = <-f.free:
		f.win.pgnos = f.win.pgnos[:0]
		return true
	case <-f.stop:
		return false
	}
}

// hand passes the window on. There is room for all of them.
func (f *filler) hand() {
	f.work <- f.win
	f.ordered <- f.win
	f.win = nil
}
