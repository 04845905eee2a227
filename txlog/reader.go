package txlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"sync"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// Reader returns the entries after a position, in order, and waits for more at
// the head. One goroutine may use it at a time. It holds a file open: Close it.
//
// Every entry it returns was verified: its hash, and that it follows the one
// before. Damage on the disk is a *CorruptError.
type Reader struct {
	log        *Log
	generation uint64
	segment    *segment // nil until there is one to read
	cursor     cursor
	latest     int // how many entries Next returned: the next call will return about as many

	mu     sync.Mutex // guards what follows, for a Close while Next waits
	file   durable.File
	closed chan struct{}
}

// maxLatest bounds what Next allocates before it has read anything.
const maxLatest = 4096

// Reader starts reading after pos (the zero Pos: from entry 1). If the log no
// longer holds the next entry the error is a *TrimmedError; if it holds another
// entry at pos.Seq, or ends before it, a *DivergedError.
func (l *Log) Reader(pos Pos) (*Reader, error) {
	r := &Reader{log: l, closed: make(chan struct{})}
	if err := r.seek(pos); err != nil {
		return nil, errors.Join(l.met(err), r.Close())
	}
	return r, nil
}

func (r *Reader) seek(pos Pos) error {
	r.log.mu.Lock()
	st := r.log.state
	if st.closed {
		r.log.mu.Unlock()
		return ErrClosed
	}
	r.generation = st.generation
	if pos.Seq > st.head.Seq {
		r.log.mu.Unlock()
		return &DivergedError{Seq: pos.Seq, Want: pos.Hash}
	}
	if len(st.segments) == 0 {
		r.log.mu.Unlock()
		return r.check(pos, Pos{})
	}
	if pos.Seq+1 < st.first() {
		r.log.mu.Unlock()
		return &TrimmedError{Asked: pos.Seq, First: st.first()}
	}
	s := st.find(pos.Seq + 1)
	limit := s.size
	err := r.attach(s)
	r.log.mu.Unlock()
	if err != nil {
		return err
	}
	switch {
	case pos.Seq == st.head.Seq:
		r.cursor.pos, r.cursor.off = st.head, limit
		return r.check(pos, st.head)
	case pos.Seq+1 == s.first:
		return r.check(pos, s.base())
	}
	e, err := r.cursor.seek(s, pos.Seq, limit)
	if err != nil {
		return err
	}
	return r.check(pos, e.Pos())
}

// find returns the segment that holds entry seq, or will.
func (s *state) find(seq uint64) *segment {
	i := sort.Search(len(s.segments), func(i int) bool { return s.segments[i].first > seq })
	return s.segments[i-1]
}

func (r *Reader) check(asked, have Pos) error {
	if asked.Hash != have.Hash {
		return &DivergedError{Seq: asked.Seq, Have: have.Hash, Want: asked.Hash}
	}
	return nil
}

// attach opens s and stands at its first entry. The caller holds the log's mu,
// so that s is still part of the log.
func (r *Reader) attach(s *segment) error {
	f, err := r.log.o.FS.OpenFile(s.path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody else removed it, since Trim would have done so first in the list.
		return &CorruptError{Segment: s.name(), Seq: s.first, Reason: "the file is gone"}
	}
	if err != nil {
		return &unreadError{s.name(), 0, s.first, fmt.Errorf("open log segment %s: %w", s.name(), err)}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isClosed() {
		return errors.Join(ErrClosed, f.Close())
	}
	if r.file != nil {
		r.file.Close() // it was only read
	}
	r.file, r.segment, r.cursor = f, s, newCursor(s, f)
	return nil
}

func (r *Reader) isClosed() bool {
	select {
	case <-r.closed:
		return true
	default:
		return false
	}
}

// Next returns at least one entry, and then as many as are there without
// waiting, up to about maxBytes of frames. It waits while the reader is at the
// head; it returns ctx's error when ctx ends, ErrClosed when the log or the
// reader is closed, a *TrimmedError when it was overtaken by Trim or Reset.
//
// Entries point into memory that they share: one that is kept for long keeps
// some hundred KiB.
func (r *Reader) Next(ctx context.Context, maxBytes int) ([]Entry, error) {
	var entries []Entry
	defer func() { r.latest = min(len(entries), maxLatest) }()
	size := 0
	for {
		limit, change, err := r.advance()
		for err == nil {
			var frame []byte
			if frame, err = r.cursor.peek(limit); err != nil {
				break
			}
			if len(entries) > 0 && size+len(frame) > maxBytes {
				return entries, nil
			}
			var e Entry
			if e, err = r.cursor.take(frame); err == nil {
				if entries == nil {
					entries = make([]Entry, 0, r.latest)
				}
				entries, size = append(entries, e), size+len(frame)
			}
		}
		switch {
		case errors.Is(err, io.EOF) && change == nil: // of a sealed segment
			continue
		case len(entries) > 0: // an error comes again
			return entries, nil
		case r.isClosed(): // whatever reading a closed file said
			return nil, ErrClosed
		case !errors.Is(err, io.EOF):
			return nil, r.log.met(err)
		}
		select {
		case <-change:
		case <-r.closed:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// advance moves to the next segment if the reader is at the end of one, and
// returns up to where to read. If that is the end of the log, change is closed
// when there may be more.
func (r *Reader) advance() (limit int64, change <-chan struct{}, err error) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	st := &l.state
	if st.closed || r.isClosed() {
		return 0, nil, ErrClosed
	}
	if len(st.segments) == 0 {
		return 0, l.change, io.EOF
	}
	next := r.cursor.pos.Seq + 1
	switch {
	case r.segment == nil:
		// The log was empty. Whatever began it is the generation to follow.
		r.generation = st.generation
	case r.generation != st.generation:
		return 0, nil, &TrimmedError{Asked: next - 1, First: st.first()}
	}
	if r.segment == nil || r.segment != st.tail() && r.cursor.off >= r.segment.size {
		if next < st.first() {
			return 0, nil, &TrimmedError{Asked: next - 1, First: st.first()}
		}
		before := r.cursor.pos
		if err := r.attach(st.find(next)); err != nil {
			return 0, nil, err
		}
		if r.cursor.pos != before {
			return 0, nil, r.cursor.corrupt("the segment follows %s, but the one before ends at %s", r.cursor.pos, before)
		}
	}
	if r.segment == st.tail() {
		change = l.change
	}
	return r.segment.size, change, nil
}

// Close releases the reader. It may be called twice.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isClosed() {
		return nil
	}
	close(r.closed)
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}
