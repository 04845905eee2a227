package txlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// A damaged segment, sealed, of a log with Options.Repair: what is sound at its
// front and at its back is written anew, as segments of their own, and what is
// between is a hole. The front is proved by the segment's base, the back by the
// base of the segment that follows: its entries are found behind a sync mark, and
// have to lead there. So one damaged place costs the entries of one batch.
//
// A front is written even if it has no entries, under the damaged file's name.
// So holes follow from the files that are there: wherever a segment does not end
// where the next one begins. Nothing else remembers them.

const (
	fillSuffix     = ".fill"    // what fills a hole
	evidenceSuffix = ".damaged" // a copy of a damaged file
	// maxEvidence is how many of those are kept.
	maxEvidence = 4
)

// endless is where a segment leads to when nobody knows.
var endless = Pos{Seq: math.MaxUint64}

// stretch is a run of sound entries in a segment's file.
type stretch struct {
	base, end Pos
	from, to  int64 // offsets of the first frame, and behind the last
}

func (s *stretch) empty() bool { return s.base == s.end }

// run returns the sound entries that c finds up to end.
func run(c *cursor, size int64, end Pos) (stretch, error) {
	st := stretch{base: c.pos, end: c.pos, from: c.off, to: c.off}
	for c.pos.Seq < end.Seq {
		if _, err := c.next(size); err != nil {
			return st, err
		}
		st.end, st.to = c.pos, c.off
	}
	if c.pos != end {
		err := c.corrupt("it leads to %s, but what follows it follows %s", c.pos, end)
		return stretch{base: st.base, end: st.base, from: st.from, to: st.from}, err
	}
	return st, nil
}

// salvage finds what is sound in the file of a segment that should lead from its
// base to end. A nil error means that all is; io.EOF that it is sound and ends
// too early; otherwise the error says what is damaged.
func salvage(s *segment, baseKnown bool, f io.ReaderAt, size int64, end Pos) (front, back stretch, damage error) {
	c := newCursor(s, f)
	c.reuse = true
	from := c.off
	if baseKnown {
		if front, damage = run(&c, size, end); damage == nil {
			if _, err := c.frameSize(size); !errors.Is(err, io.EOF) {
				damage = c.corrupt("bytes follow the last entry")
			}
		}
		if damage == nil || errors.Is(damage, io.EOF) || front.end == end {
			return front, back, damage
		}
		from = c.off + markSize // if it is a mark that is damaged
	} else {
		damage = c.corrupt("its header is damaged, and nothing before says what it follows")
	}
	for from < size {
		b := newCursor(s, f)
		b.reuse, b.off = true, from
		if err := b.join(size); err == nil && b.pos.Seq >= front.end.Seq && b.pos.Seq < end.Seq {
			if back, err := run(&b, size, end); err == nil {
				return front, back, damage
			}
		}
		from = nextMark(s.salt, f, max(b.off, from)+1, size)
	}
	return front, stretch{}, damage
}

// join makes the cursor believe the frame at its offset as to what that follows.
func (c *cursor) join(limit int64) error {
	frame, err := c.peek(limit)
	if err != nil {
		return err
	}
	e, err := Decode(frame)
	if err != nil {
		return err
	}
	c.pos = Pos{Seq: e.Seq - 1, Hash: e.Prev}
	return nil
}

// nextMark returns the offset of the next sync mark from an offset on, size if
// there is none. It passes what can not be read.
func nextMark(salt salt, f io.ReaderAt, from, size int64) int64 {
	for ; from < size; from += chunkSize {
		if at, err := findMark(salt, f, from, min(from+chunkSize+markSize-1, size)); err == nil && at >= 0 {
			return at
		}
	}
	return size
}

// findSalt returns the salt of a file whose header is damaged, as its first sync
// mark tells it.
func findSalt(f io.ReaderAt, size int64) (salt salt) {
	buf := make([]byte, chunkSize)
	for from := int64(0); from < size; from += chunkSize - markSize {
		n, err := f.ReadAt(buf[:min(chunkSize, size-from)], from)
		if err != nil && !errors.Is(err, io.EOF) {
			continue
		}
		for at := 0; at+markSize <= n; at++ {
			copy(salt[:], buf[at+len(markMagic):])
			if isMark(buf[at:n], salt, from+int64(at)) {
				return salt
			}
		}
	}
	return salt
}

// circumstances are what is known of a segment that is to be mended.
type circumstances struct {
	opening  bool          // it only ends too early if there was a hole behind it, or a file is missing
	header   *CorruptError // its header is damaged, and was made up
	baseless bool          // and nothing says what it follows
}

// mend sets a segment aside that should lead from its base to end, and returns the
// segments that take its place, none if nothing is to be saved of it. A segment in
// which nothing is damaged is returned as it is. tell says what was damaged, once
// the pieces are in place.
func (l *Log) mend(s *segment, end Pos, known circumstances) (pieces []*segment, tell func(), err error) {
	f, err := l.o.FS.OpenFile(s.path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var size int64
	front, back := stretch{base: s.base(), end: s.base()}, stretch{}
	damage := error(&CorruptError{Segment: s.name(), Seq: s.first, Reason: "the file is gone"})
	if f != nil {
		defer f.Close() // it was only read
		if size, err = f.Size(); err != nil {
			return nil, nil, err
		}
		front, back, damage = salvage(s, !known.baseless, f, size, end)
	}
	switch {
	case known.header != nil:
		damage = known.header
	case damage == nil:
		return []*segment{s}, func() {}, nil
	case errors.Is(damage, io.EOF) && known.opening:
		s.gap = &gap{start: front.end, until: end}
		return []*segment{s}, func() {}, nil
	case errors.Is(damage, io.EOF):
		damage = errors.New("the file is cut short")
	}
	d := Damage{Kind: DamagedSegment, Lost: max(0, size-max(front.to, segmentHeader))}
	if !errors.As(damage, &d.Err) {
		d.Err = &CorruptError{Segment: s.name(), Offset: front.to, Seq: front.end.Seq + 1, Reason: damage.Error()}
	}
	if f != nil {
		d.Evidence = l.keepEvidence(s.name(), f, size)
	}
	switch {
	case !back.empty():
		d.Lost = back.from - max(front.to, segmentHeader)
	case end == endless:
		d.Kind = DamagedTail
	}
	if pieces, err = l.rewrite(s, !known.baseless, f, front, back, end); err != nil {
		return nil, nil, fmt.Errorf("set damage in log segment %s aside: %w", s.name(), err)
	}
	for _, p := range pieces {
		if p.gap != nil {
			d.Hole = p.gap.hole()
		}
	}
	l.o.Logger.Error("a damaged log segment was set aside", "segment", s.name(), "offset", d.Err.Offset, "seq", d.Err.Seq, "bytes", d.Lost,
		"hole_after", d.Hole.Start.Seq, "hole_until", d.Hole.Until.Seq, "evidence", d.Evidence, "err", d.Err)
	return pieces, func() { l.o.Damaged(d) }, nil
}

// rewrite makes the segments that take the place of s durable. The back comes
// first: a front alone would be all that is left.
func (l *Log) rewrite(s *segment, baseKnown bool, f durable.File, front, back stretch, end Pos) (pieces []*segment, err error) {
	put := func(nanos int64, parts ...stretch) error {
		h := newHeader(s.dataset, s.generation, parts[0].base, nanos)
		p, err := l.copyFrames(h, f, parts)
		if err == nil {
			pieces = append(pieces, p)
		}
		return err
	}
	switch {
	case !baseKnown && back.empty():
		return nil, durable.Remove(l.o.FS, s.path)
	case !baseKnown:
		if err := put(0, back); err != nil || pieces[0].path == s.path {
			return pieces, err
		}
		return pieces, durable.Remove(l.o.FS, s.path)
	case !back.empty() && back.base == front.end:
		return pieces, put(s.prevNanos, front, back)
	}
	until := end
	if !back.empty() {
		if err := put(0, back); err != nil {
			return nil, err
		}
		until = back.base
	}
	if err := put(s.prevNanos, front); err != nil {
		return nil, err
	}
	slices.Reverse(pieces)
	if front.end != until && until != endless {
		pieces[0].gap = &gap{start: front.end, until: until}
	}
	return pieces, nil
}

// copyFrames makes a segment of the entries in parts of another one's file
// durable under its name.
func (l *Log) copyFrames(h header, f durable.File, parts []stretch) (*segment, error) {
	s := newSegment(l.dir, h, segmentHeader)
	staged := s.path + ".tmp"
	to, err := l.o.FS.OpenFile(staged, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return nil, err
	}
	if _, err = to.WriteAt(h.encode(), 0); err == nil {
		for _, part := range parts {
			// Marks stay behind: they are of another file, and of other offsets.
			c := cursor{segment: s.name(), file: f, off: part.from, pos: part.base, reuse: true, anySalt: true}
			for err == nil && c.pos.Seq < part.end.Seq {
				var e Entry
				if e, err = c.next(part.to); err == nil {
					_, err = to.WriteAt(e.frame, s.size)
					s.size += int64(len(e.frame))
				}
			}
		}
	}
	if err = errors.Join(err, to.Close()); err == nil {
		err = durable.Rename(l.o.FS, staged, s.path)
	}
	if err != nil {
		return nil, errors.Join(err, durable.Remove(l.o.FS, staged))
	}
	return s, nil
}

// keepEvidence copies a damaged file, as far as it can be read and there is room,
// and returns the copy's path. Of several the newest are kept.
func (l *Log) keepEvidence(name string, f io.ReaderAt, size int64) string {
	path := filepath.Join(l.dir, name+evidenceSuffix)
	err := l.makeRoom(name + evidenceSuffix)
	if err == nil {
		err = copyReadable(l.o.FS, path, f, size)
	}
	if err != nil {
		l.o.Logger.Warn("could not keep a damaged log segment as evidence", "segment", name, "err", err)
		durable.Remove(l.o.FS, path) // half of it is none
		return ""
	}
	return path
}

// makeRoom removes the evidence of the oldest entries when there is enough.
func (l *Log) makeRoom(name string) error {
	entries, err := l.o.FS.ReadDir(l.dir)
	if err != nil {
		return err
	}
	var kept []string
	for _, e := range entries {
		if stem, ok := strings.CutSuffix(e.Name(), evidenceSuffix); ok && e.Name() != name {
			if _, ok := parseSegmentName(stem); ok {
				kept = append(kept, e.Name())
			}
		}
	}
	slices.Sort(kept)
	for ; len(kept) >= maxEvidence; kept = kept[1:] {
		if err := durable.Remove(l.o.FS, filepath.Join(l.dir, kept[0])); err != nil {
			return err
		}
	}
	return nil
}

// copyReadable copies a file; what can not be read is zeros in the copy.
func copyReadable(fsys durable.FS, path string, f io.ReaderAt, size int64) error {
	to, err := fsys.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return err
	}
	buf := make([]byte, min(chunkSize, size))
	for off := int64(0); off < size && err == nil; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if _, err := f.ReadAt(buf, off); err != nil {
			clear(buf)
		}
		_, err = to.WriteAt(buf, off)
	}
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close())
}

// met takes an error of reading, whoever reads, and returns it. Damage is set aside if
// others have the log, too; what stays is told.
func (l *Log) met(err error) error {
	var corrupt *CorruptError
	var unread *unreadError
	if errors.As(err, &unread) && isLost(err) {
		corrupt = &CorruptError{Segment: unread.segment, Offset: unread.off, Seq: unread.seq, Reason: unread.err.Error()}
	} else if !errors.As(err, &corrupt) {
		return err
	}
	if l.o.Repair {
		failed := l.setAside(corrupt)
		if failed == nil || errors.Is(failed, ErrClosed) {
			return err
		}
		l.o.Logger.Error("setting a damaged log segment aside failed", "segment", corrupt.Segment, "err", failed)
	}
	l.o.Damaged(Damage{Kind: RefusedSegment, Err: corrupt})
	return err
}

// unreadError is about a place in the log that could not be read.
type unreadError struct {
	segment string
	off     int64
	seq     uint64 // of the entry that should stand there
	err     error
}

func (e *unreadError) Error() string { return e.err.Error() }

func (e *unreadError) Unwrap() error { return e.err }

// setAside mends the segment in which damage was met, unless it turns out to be
// sound, or not to be part of the log any more.
func (l *Log) setAside(d *CorruptError) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	st := l.snapshot()
	if err := st.usable(); err != nil {
		return err
	}
	all := st.all()
	i := slices.IndexFunc(all, func(s *segment) bool { return s.name() == d.Segment })
	if i < 0 {
		return nil
	}
	s := all[i]
	if s == st.tail() {
		if err := l.rotate(&st); err != nil {
			return err
		}
		all = st.all()
		if s.base() == st.head { // it had no entries, and the new one has its name
			l.update(func(st *state) { st.arrange(slices.Concat(all[:i], all[i+1:])) })
			l.o.Damaged(Damage{Kind: DamagedSegment, Err: d})
			return nil
		}
	}
	end := all[i+1].base()
	if s.gap != nil {
		end = s.gap.start
	}
	pieces, tell, err := l.mend(s, end, circumstances{})
	if err != nil {
		return err
	}
	if pieces[0] == s {
		l.o.Logger.Warn("a log segment was damaged when it was read, and is not: suspect the memory, or the disk", "segment", d.Segment, "err", d)
		return nil
	}
	l.update(func(st *state) {
		if last := pieces[len(pieces)-1]; s.gap != nil {
			if last.gap == nil {
				last.gap = s.gap
			} else {
				last.gap = &gap{start: last.gap.start, until: s.gap.until}
				l.dropFill(s.gap)
			}
		}
		st.arrange(slices.Concat(all[:i], pieces, all[i+1:]))
	})
	tell()
	return nil
}
