package txlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// stagedSuffix and ".tmp", which durable.WriteFile appends, end the names of
// files that are not part of the log yet.
const stagedSuffix = ".new"

// load finds the log in the directory and recovers its tail.
func (l *Log) load() error {
	if err := durable.MkdirAll(l.o.FS, l.dir, dirPerm); err != nil {
		return err
	}
	found, err := listSegments(l.o.FS, l.dir)
	if err != nil {
		return err
	}
	if !l.o.Repair {
		if err := found.damage(); err != nil {
			return err
		}
		if err := checkSealed(l.o.FS, found.live); err != nil {
			return err
		}
	}
	// Only now that the log is known to be sound is anything changed.
	for _, path := range found.stale {
		l.o.Logger.Info("removing what a crash left of a log segment", "path", path)
		if err := l.o.FS.Remove(path); err != nil {
			return err
		}
	}
	if l.o.Repair {
		if err := l.mendAll(&found); err != nil {
			return err
		}
	}
	// Names, too, count only once they are on stable storage.
	if err := l.o.FS.SyncDir(l.dir); err != nil {
		return err
	}
	if len(found.live) == 0 {
		return nil
	}
	return l.recoverTail(found.live)
}

// listing is what is found in a log's directory.
type listing struct {
	live   []*segment      // of the highest generation, in order
	stale  []string        // paths of files to remove
	broken []brokenSegment // in order
	fills  []string        // paths of what fills holes
}

// brokenSegment is a segment file with a damaged header.
type brokenSegment struct {
	first uint64
	size  int64
	err   *CorruptError
}

// damage returns an error if a header is damaged.
func (f *listing) damage() error {
	if len(f.broken) == 0 {
		return nil
	}
	return f.broken[0].err
}

// listSegments reads the headers of all segments.
func listSegments(fsys durable.FS, dir string) (found listing, err error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return found, err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		stem := strings.TrimSuffix(strings.TrimSuffix(entry.Name(), ".tmp"), stagedSuffix)
		fill := strings.TrimSuffix(stem, fillSuffix)
		first, ok := parseSegmentName(fill)
		if !ok {
			continue
		}
		if stem != entry.Name() {
			found.stale = append(found.stale, path)
			continue
		}
		if fill != stem {
			found.fills = append(found.fills, path)
			continue
		}
		s, size, err := readSegment(fsys, path, first)
		if corrupt, ok := errors.AsType[*CorruptError](err); ok {
			found.broken = append(found.broken, brokenSegment{first, size, corrupt})
			continue
		}
		if err != nil {
			return listing{}, err
		}
		if len(found.live) > 0 && s.generation > found.live[0].generation {
			for _, old := range found.live {
				found.stale = append(found.stale, old.path)
			}
			found.live = found.live[:0]
		}
		if len(found.live) > 0 && s.generation < found.live[0].generation {
			found.stale = append(found.stale, s.path)
			continue
		}
		found.live = append(found.live, s)
	}
	return found, nil
}

// readSegment reads the header and the size of the segment at path that should
// begin with entry first. A damaged header is a *CorruptError.
func readSegment(fsys durable.FS, path string, first uint64) (s *segment, size int64, err error) {
	name := filepath.Base(path)
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close() // it was only read
	if size, err = f.Size(); err != nil {
		return nil, 0, err
	}
	b := make([]byte, min(size, segmentHeader))
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, size, fmt.Errorf("read log segment %s: %w", name, err)
	}
	h, err := parseHeader(b)
	if errors.Is(err, ErrNewerFormat) {
		return nil, size, fmt.Errorf("log segment %s: %w", name, err)
	}
	if err == nil && h.first != first {
		err = fmt.Errorf("the header says that it begins with entry %d", h.first)
	}
	if err != nil {
		return nil, size, &CorruptError{Segment: name, Seq: first, Reason: err.Error()}
	}
	s = newSegment(filepath.Dir(path), h, size)
	s.path = path
	return s, size, nil
}

// checkSealed verifies that each segment continues the one before: its header
// must carry the hash that the one before ends with.
func checkSealed(fsys durable.FS, segments []*segment) error {
	for i, s := range segments[:max(len(segments), 1)-1] {
		next := segments[i+1]
		if next.dataset != s.dataset {
			return &CorruptError{Segment: next.name(), Seq: next.first,
				Reason: fmt.Sprintf("it is of dataset %s, the segment before of %s", next.dataset, s.dataset)}
		}
		last, err := lastHash(fsys, s)
		if err != nil {
			return err
		}
		if last != next.prev {
			return &CorruptError{Segment: s.name(), Offset: s.size, Seq: next.base().Seq,
				Reason: fmt.Sprintf("it ends with hash %s, but segment %s follows %s", last, next.name(), next.base())}
		}
	}
	return nil
}

// lastHash returns the hash at the end of a sealed segment, that is, in the last
// bytes of its last entry.
func lastHash(fsys durable.FS, s *segment) (h Hash, err error) {
	f, err := fsys.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return h, err
	}
	defer f.Close() // it was only read
	b := make([]byte, len(h)+markSize)
	off := s.size - int64(len(b))
	if off < segmentHeader {
		return h, &CorruptError{Segment: s.name(), Offset: s.size, Seq: s.first, Reason: "the file is cut short"}
	}
	if _, err := f.ReadAt(b, off); err != nil {
		return h, fmt.Errorf("read log segment %s at offset %d: %w", s.name(), off, err)
	}
	if isMark(b[len(h):], s.salt, s.size-markSize) {
		return Hash(b), nil
	}
	return Hash(b[markSize:]), nil
}

// recoverTail verifies the last segment, cuts off what a crash tore, and makes
// what it keeps durable.
func (l *Log) recoverTail(segments []*segment) error {
	tail := segments[len(segments)-1]
	f, err := l.o.FS.OpenFile(tail.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	end, err := scan(tail, f, tail.size, true, nil)
	cut := Damage{Kind: TornTail, Lost: tail.size - end.off}
	if l.o.Repair && errors.As(err, &cut.Err) {
		cut.Kind, cut.Evidence = DamagedTail, l.keepEvidence(tail.name(), f, tail.size)
		tail.forget(end.off)
		err = nil
	}
	if err == nil {
		err = settle(f, end.mark, end.off, tail.size)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	switch {
	case cut.Err != nil:
		l.o.Logger.Error("the end of the log was damaged and is cut off: it has to come from others",
			"head", end.pos.Seq, "bytes", cut.Lost, "evidence", cut.Evidence, "err", cut.Err)
	case cut.Lost > 0:
		l.o.Logger.Warn("a torn write that was never acknowledged was cut off",
			"segment", tail.name(), "offset", end.off, "bytes", cut.Lost, "head", end.pos.Seq)
	}
	if cut.Lost > 0 {
		l.o.Damaged(cut)
	}
	tail.size = end.off
	l.file, l.marked = f, end.marked()
	l.state = state{
		dataset:    tail.dataset,
		generation: tail.generation,
		head:       end.pos,
		headNanos:  end.nanos,
	}
	l.state.arrange(segments)
	return nil
}

// validEnd is where the valid part of a segment ends.
type validEnd struct {
	off     int64
	pos     Pos
	nanos   int64  // time of the entry at pos
	mark    int64  // everything before was fsynced
	entries uint64 // in the segment
}

// marked returns up to where the segment needs no further mark.
func (e *validEnd) marked() int64 {
	if e.off == segmentHeader || e.off == e.mark+markSize {
		return e.off
	}
	return e.mark
}

// scan verifies the entries of a segment that is size bytes long. Bytes that do
// not fit are a *CorruptError, except at the end of the tail if no sync mark
// behind them proves that they had been acknowledged. each, if not nil, is called
// with the position of every entry that fits.
func scan(s *segment, file io.ReaderAt, size int64, isTail bool, each func(Pos)) (validEnd, error) {
	c := newCursor(s, file)
	c.reuse = true
	end := validEnd{nanos: s.prevNanos}
	var err error
	for {
		var e Entry
		if e, err = c.next(size); err != nil {
			break
		}
		s.note(e.Seq, c.off-int64(len(e.frame)))
		end.nanos = frameNanos(e.frame)
		end.entries++
		if each != nil {
			each(e.Pos())
		}
	}
	end.off, end.pos, end.mark = c.off, c.pos, c.mark
	if errors.Is(err, io.EOF) {
		return end, nil
	}
	var corrupt *CorruptError
	if !isTail || !errors.As(err, &corrupt) {
		return end, err
	}
	mark, err := findMark(s.salt, file, c.off+1, size)
	if err != nil {
		return end, fmt.Errorf("read log segment %s: %w", s.name(), err)
	}
	if mark >= 0 {
		corrupt.Reason += fmt.Sprintf("; the sync mark at offset %d proves that these bytes had been acknowledged", mark)
		return end, corrupt
	}
	return end, nil
}

// findMark returns the offset of the first sync mark between from and size, -1
// if there is none.
func findMark(salt salt, file io.ReaderAt, from, size int64) (int64, error) {
	start := append([]byte(markMagic), salt[:]...)
	buf := make([]byte, chunkSize)
	for size-from >= markSize {
		b := buf[:min(chunkSize, size-from)]
		if _, err := file.ReadAt(b, from); err != nil {
			return 0, err
		}
		for at := 0; ; at++ {
			i := bytes.Index(b[at:], start)
			if i < 0 {
				break
			}
			at += i
			off := from + int64(at)
			if len(b)-at >= markSize && binary.LittleEndian.Uint64(b[at+len(start):]) == uint64(off) {
				return off, nil
			}
		}
		from += int64(len(b)) - markSize + 1 // a mark may lie across the chunks
	}
	return -1, nil
}

// settle makes bytes mark … end of a file durable and drops those after end. The
// bytes are there to be read, but a crash that followed a failed fsync may have
// left them in the page cache, marked as written; so they are written again.
func settle(f durable.File, mark, end, size int64) error {
	buf := make([]byte, min(chunkSize, end-mark))
	for off := mark; off < end; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), end-off)]
		if _, err := f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			return err
		}
	}
	if size > end {
		if err := f.Truncate(end); err != nil {
			return err
		}
	}
	return f.Sync()
}
