package txlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// ScrubReport is what Scrub read and found.
type ScrubReport struct {
	Segments int
	Entries  uint64
	Bytes    int64
	Damaged  []*CorruptError
}

// Scrub reads and verifies every entry that is kept, from the disk as far as the
// file system lets it, at most bytesPerSecond (0: as fast as it goes). What is
// damaged is in the report, and set aside if Options.Repair says so; an error
// says why not everything was read: what could not be, for want of descriptors,
// memory or permission, say, is neither damaged nor sound.
func (l *Log) Scrub(ctx context.Context, bytesPerSecond int64) (ScrubReport, error) {
	limit := rate.Inf
	if bytesPerSecond > 0 {
		limit = rate.Limit(bytesPerSecond)
	}
	pace := rate.NewLimiter(limit, chunkSize)
	var rep ScrubReport
	st := l.snapshot()
	var unread error // the first one
	for _, s := range st.all() {
		err := l.scrubSegment(ctx, s, pace, &rep)
		if err != nil && unread == nil {
			unread = fmt.Errorf("scrub log segment %s: %w", s.name(), err)
		}
		if ctx.Err() != nil || errors.Is(err, ErrClosed) {
			break
		}
	}
	return rep, unread
}

// scrubSegment reads a segment, which should lead to where the next one begins now: what
// was the tail when the scrub began may have been sealed since.
func (l *Log) scrubSegment(ctx context.Context, s *segment, pace *rate.Limiter, rep *ScrubReport) error {
	now, ok := l.locate(s)
	if !ok {
		return nil // trimmed meanwhile, or replaced
	}
	if now.closed {
		return ErrClosed
	}
	err := l.checkFile(ctx, s, now, pace, rep)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		rep.Segments++
		return nil
	}
	if still, ok := l.locate(s); !ok || still.closed {
		return nil
	}
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return err // this says nothing of the disk, and a writer that is told of damage stays stopped
	}
	rep.Damaged = append(rep.Damaged, corrupt)
	l.met(corrupt)
	return nil
}

// spot is a segment's place in the log at a moment.
type spot struct {
	size   int64
	end    Pos // where the next one or the hole behind it begins, of the tail the head
	isTail bool
	closed bool
}

func (l *Log) locate(s *segment) (spot, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.state.all()
	i := slices.Index(all, s)
	if i < 0 {
		return spot{}, l.state.closed
	}
	at := spot{size: s.size, end: l.state.head, isTail: i == len(all)-1, closed: l.state.closed}
	switch {
	case s.gap != nil:
		at.end = s.gap.start
	case !at.isTail:
		at.end = all[i+1].base()
	}
	return at, true
}

// checkFile reads a segment's file, header included. What the disk does not have,
// or does not return, is a *CorruptError, too.
func (l *Log) checkFile(ctx context.Context, s *segment, at spot, pace *rate.Limiter, rep *ScrubReport) error {
	f, err := l.o.FS.OpenFile(s.path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &CorruptError{Segment: s.name(), Seq: s.first, Reason: err.Error()}
	}
	if err != nil {
		return lost(s, validEnd{pos: s.base()}, err)
	}
	defer f.Close() // it was only read
	durable.Uncache(f)
	paced := pacedReader{ctx, f, pace}
	b := make([]byte, segmentHeader)
	if _, err := paced.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return lost(s, validEnd{pos: s.base()}, err)
	}
	h, err := parseHeader(b)
	if err == nil && h != s.header {
		err = errors.New("the header is another one")
	}
	if err != nil {
		return &CorruptError{Segment: s.name(), Seq: s.first, Reason: err.Error()}
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	if size < at.size || size > at.size && !at.isTail {
		return &CorruptError{Segment: s.name(), Offset: min(size, at.size), Seq: s.first,
			Reason: fmt.Sprintf("the file is %d bytes long instead of %d", size, at.size)}
	}
	found, err := scan(s, paced, at.size, false, nil)
	rep.Entries += found.entries
	rep.Bytes += found.off
	if err != nil {
		return lost(s, found, err)
	}
	if found.pos != at.end {
		return &CorruptError{Segment: s.name(), Offset: found.off, Seq: found.pos.Seq, Reason: fmt.Sprintf("it leads to %s instead of %s", found.pos, at.end)}
	}
	return nil
}

// lost returns the error of opening or reading s behind what was found sound: a disk that
// does not return what it was given has lost it, anything else is as it was.
func lost(s *segment, found validEnd, err error) error {
	if !isLost(err) {
		return err
	}
	return &CorruptError{Segment: s.name(), Offset: found.off, Seq: found.pos.Seq + 1, Reason: err.Error()}
}

// isLost reports whether an error says that the disk lost what was to be read.
func isLost(err error) bool {
	return slices.ContainsFunc(lostErrnos, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// pacedReader reads at a limited rate, until ctx ends.
type pacedReader struct {
	ctx  context.Context
	from io.ReaderAt
	pace *rate.Limiter
}

func (r pacedReader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		part := p[n:min(len(p), n+r.pace.Burst())]
		if r.pace.Limit() != rate.Inf {
			err = r.pace.WaitN(r.ctx, len(part))
		} else {
			err = r.ctx.Err()
		}
		if err == nil {
			var got int
			got, err = r.from.ReadAt(part, off+int64(n))
			n += got
		}
	}
	return n, err
}
