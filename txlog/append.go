package txlog

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/qs-peer/qs-peer/internal/durable"
)

const (
	// maxQueue bounds the frames that wait for the disk, in bytes.
	maxQueue = 2 * MaxEntry
	// maxBatch is the size from which a batch takes no further frames, in bytes.
	maxBatch = 8 << 20
	// writeSize is how much is gathered for one write, in bytes.
	writeSize = 1 << 20
)

// ErrEmpty is returned when entries are appended to a log that has no dataset.
var ErrEmpty = errors.New("log is empty: begin it with Create or Reset")

// Append makes ops the next entry and returns its position once it is on
// stable storage. It may be called from many goroutines, whose entries then
// share an fsync. When ctx ends first the entry may still be kept.
//
// Keys and values over a limit are a *LimitError. A full disk is an error of
// this call only. A failed fsync is ErrFailed from then on, until the log could
// be read again from the disk; it tries that when it is asked to append.
func (l *Log) Append(ctx context.Context, ops []Op) (Pos, error) {
	size, err := frameSize(ops)
	if err != nil {
		return Pos{}, err
	}
	for i := range ops {
		if ops[i].Kind == Init {
			return Pos{}, fmt.Errorf("operation %d: init is not for callers; see Create", i)
		}
	}
	if err := l.queue.room.Acquire(ctx, int64(size)); err != nil {
		return Pos{}, err
	}
	r := &request{size: int64(size), frame: encode(size, ops), done: make(chan struct{})}
	return l.submit(ctx, r)
}

// AppendEntries appends entries that another log made, all or (after an error)
// a prefix of them, and returns once they are on stable storage. The first must
// link to Head: if it does not the error is a *DivergedError and nothing was
// written. An empty log takes its dataset from entry 1.
func (l *Log) AppendEntries(entries []Entry) (Pos, error) {
	if err := l.checkEntries(entries); err != nil {
		return l.Head(), err
	}
	for len(entries) > 0 {
		r := &request{done: make(chan struct{})}
		for len(entries) > len(r.entries) && (r.size == 0 || r.size+int64(len(entries[len(r.entries)].frame)) <= maxBatch) {
			r.size += int64(len(entries[len(r.entries)].frame))
			r.entries = entries[:len(r.entries)+1]
		}
		entries = entries[len(r.entries):]
		if err := l.queue.room.Acquire(context.Background(), r.size); err != nil {
			return l.Head(), err
		}
		if _, err := l.submit(context.Background(), r); err != nil {
			return l.Head(), err
		}
	}
	return l.Head(), nil
}

// checkLinked verifies that entries follow each other.
func checkLinked(entries []Entry) error {
	for i := range entries {
		e := &entries[i]
		if len(e.frame) == 0 {
			return fmt.Errorf("append entry %d: it was not made by Seal, Decode or a Reader", e.Seq)
		}
		if i == 0 {
			continue
		}
		if before := &entries[i-1]; e.Seq != before.Seq+1 || e.Prev != before.Hash {
			return fmt.Errorf("append entry %d, which follows %s: %w", e.Seq, e.Prev,
				&DivergedError{Seq: before.Seq, Have: before.Hash, Want: e.Prev})
		}
	}
	return nil
}

// checkEntries verifies what can be known before the entries' turn comes.
func (l *Log) checkEntries(entries []Entry) error {
	if err := checkLinked(entries); err != nil {
		return err
	}
	if len(entries) == 0 || entries[0].Seq != 1 {
		return nil
	}
	id := DatasetID(entries[0].Ops[0].Value)
	l.writing.Lock()
	defer l.writing.Unlock()
	switch have := l.Dataset(); {
	case have.IsZero():
		return l.reset(id, Pos{})
	case have != id:
		return fmt.Errorf("append entry 1 of dataset %s: this log is of dataset %s", id, have)
	}
	return nil
}

// request is one call that waits for its entries to be on stable storage.
type request struct {
	frame   []byte  // of one entry, to be finished when its place is known
	entries []Entry // or entries of another log
	size    int64   // bytes of all frames
	pos     Pos     // of the last entry
	err     error
	done    chan struct{} // closed when pos and err are set
}

// queue holds the requests that the next batches take.
type queue struct {
	room *semaphore.Weighted // bytes; a request holds its size from before it is queued until it is done
	wake chan struct{}       // has a token when there is something to do

	mu     sync.Mutex // guards what follows
	list   []*request
	closed bool
}

func (q *queue) put(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.list = append(q.list, r)
	q.signal()
	return true
}

// gather lets goroutines that are about to queue a request do so: those whose
// entries were just acknowledged often come back at once, and would otherwise
// miss the fsync that the first of them starts.
func (q *queue) gather() {
	for before := -1; ; {
		n := q.len()
		if n == before {
			return
		}
		before = n
		runtime.Gosched()
	}
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list)
}

// take returns the requests of the next batch: at least one, if there is any.
func (q *queue) take(limit int64) (batch []*request, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var size int64
	n := 0
	for n < len(q.list) && (n == 0 || size+q.list[n].size <= limit) {
		size += q.list[n].size
		n++
	}
	batch, q.list = q.list[:n:n], q.list[n:]
	return batch, q.closed
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (l *Log) submit(ctx context.Context, r *request) (Pos, error) {
	if !l.queue.put(r) {
		l.queue.room.Release(r.size)
		return Pos{}, ErrClosed
	}
	select {
	case <-r.done:
		return r.pos, r.err
	case <-ctx.Done():
		return Pos{}, ctx.Err()
	}
}

// run is the writer goroutine: it commits batches until the queue is closed.
func (l *Log) run() {
	defer close(l.stopped)
	for range l.queue.wake {
		for {
			l.queue.gather()
			batch, closed := l.queue.take(min(maxBatch, l.o.SegmentBytes))
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			if closed {
				finishAll(batch, ErrClosed)
			} else {
				l.writing.Lock()
				l.commit(batch)
				l.writing.Unlock()
			}
			for _, r := range batch {
				l.queue.room.Release(r.size)
				close(r.done)
			}
		}
	}
}

// finishAll gives err to the requests that have none of their own.
func finishAll(batch []*request, err error) {
	for _, r := range batch {
		if r.err == nil {
			r.pos, r.err = Pos{}, err
		}
	}
}

// commit writes a batch with one fsync and settles each request in it.
func (l *Log) commit(batch []*request) {
	st, err := l.usable()
	if err != nil {
		finishAll(batch, err)
		return
	}
	if len(st.segments) == 0 {
		finishAll(batch, ErrEmpty)
		return
	}
	if st.tail().size >= l.o.SegmentBytes {
		if err := l.rotate(&st); err != nil {
			finishAll(batch, err)
			return
		}
	}
	tail := st.tail()
	w := batchWriter{file: l.file, segment: tail, off: tail.size, head: st.head, nanos: max(st.headNanos, l.o.Now().UnixNano())}
	if tail.size != l.marked {
		w.mark()
	}
	for _, r := range batch {
		w.add(r)
	}
	if w.entries == 0 {
		return
	}
	if err := w.flush(); err != nil {
		finishAll(batch, l.undo(tail, fmt.Errorf("write log segment %s: %w", tail.name(), err)))
		return
	}
	start := time.Now()
	if err := l.file.Sync(); err != nil {
		// What the disk kept of the batch is unknown, and the page cache will
		// claim all of it: drop it there, as far as possible.
		err = errors.Join(fmt.Errorf("fsync log segment %s: %w", tail.name(), err), l.file.Truncate(tail.size))
		finishAll(batch, l.fail(err))
		return
	}
	l.metrics.fsyncSeconds.Observe(time.Since(start).Seconds())
	l.metrics.entriesPerFsync.Observe(float64(w.entries))
	l.metrics.entries.Add(float64(w.entries))
	l.metrics.bytes.Add(float64(w.off - tail.size))
	if w.marked {
		l.marked = tail.size + markSize
	}
	l.update(func(s *state) {
		s.head, s.headNanos = w.head, w.lastNanos
		tail.size = w.off
	})
}

// undo takes a failed write back, so that the next one finds the file as it was
// acknowledged, and returns cause. A log for which that fails has failed.
func (l *Log) undo(tail *segment, cause error) error {
	tail.forget(tail.size)
	err := l.file.Truncate(tail.size)
	if err == nil {
		// Otherwise a power cut could bring entries back that were refused: of
		// those that were written before the one that failed, all bytes.
		err = l.file.Sync()
	}
	if err != nil {
		return l.fail(errors.Join(cause, fmt.Errorf("take the write back: %w", err)))
	}
	return cause
}

// rotate seals the tail and begins the next segment.
func (l *Log) rotate(st *state) error {
	h := newHeader(st.dataset, st.generation, st.head, st.headNanos)
	seg, f, err := createSegment(l.o.FS, l.dir, h)
	if err != nil {
		return err
	}
	if err := l.closeFile(); err != nil {
		l.o.Logger.Warn("closing a sealed log segment failed", "err", err)
	}
	l.file, l.marked = f, seg.size
	l.update(func(s *state) {
		// Not in place: snapshots share the old list.
		s.segments = append(s.segments[:len(s.segments):len(s.segments)], seg)
		*st = *s
	})
	l.o.Logger.Debug("log segment begun", "segment", seg.name())
	return nil
}

// batchWriter lays a batch out behind the tail's last byte. An error is kept
// until flush.
type batchWriter struct {
	file    durable.File
	segment *segment
	off     int64  // where the next frame goes
	buf     []byte // what ends at off and is not written yet
	err     error

	head      Pos
	nanos     int64 // for entries that are finished here
	lastNanos int64 // of the entry at head
	entries   int
	marked    bool
}

func (w *batchWriter) mark() {
	w.buf = appendMark(w.buf, w.segment.salt, w.off)
	w.off += markSize
	w.marked = true
}

// add lays out a request's entries, or sets its error if they do not link.
func (w *batchWriter) add(r *request) {
	if r.frame != nil {
		w.addFrame(r.frame, finish(r.frame, w.head, writerEpoch, w.nanos))
	} else if first := &r.entries[0]; first.Seq != w.head.Seq+1 || first.Prev != w.head.Hash {
		r.err = diverged(w.head, r.entries)
		return
	}
	for i := range r.entries {
		w.addFrame(r.entries[i].frame, r.entries[i].Pos())
	}
	r.pos = w.head
}

func (w *batchWriter) addFrame(frame []byte, pos Pos) {
	w.segment.note(pos.Seq, w.off)
	w.head, w.lastNanos = pos, frameNanos(frame)
	w.nanos = max(w.nanos, w.lastNanos)
	w.entries++
	if len(w.buf)+len(frame) > writeSize {
		w.flush()
	}
	w.off += int64(len(frame))
	if len(frame) > writeSize {
		w.write(frame)
	} else {
		w.buf = append(w.buf, frame...)
	}
}

func (w *batchWriter) flush() error {
	w.write(w.buf)
	w.buf = w.buf[:0]
	return w.err
}

// write writes the bytes that end at off.
func (w *batchWriter) write(b []byte) {
	if w.err == nil && len(b) > 0 {
		_, w.err = w.file.WriteAt(b, w.off-int64(len(b)))
	}
}

// diverged says how entries fail to link to head.
func diverged(head Pos, entries []Entry) error {
	first := &entries[0]
	d := &DivergedError{Seq: head.Seq, Have: head.Hash}
	switch {
	case first.Seq > head.Seq+1:
		d = &DivergedError{Seq: first.Seq - 1, Want: first.Prev}
	case first.Seq == head.Seq+1:
		d.Want = first.Prev
	case head.Seq-first.Seq < uint64(len(entries)):
		d.Want = entries[head.Seq-first.Seq].Hash
	}
	return fmt.Errorf("append entries %d to %d after entry %d: %w",
		first.Seq, entries[len(entries)-1].Seq, head.Seq, d)
}
