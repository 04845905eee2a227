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
	segments, stale, err := listSegments(l.o.FS, l.dir)
	if err != nil {
		return err
	}
	if len(segments) > 0 {
		if err := checkSealed(l.o.FS, segments); err != nil {
			return err
		}
	}
	// Only now that the log is known to be sound is anything changed.
	for _, path := range stale {
		l.o.Logger.Info("removing what a crash left of a log segment", "path", path)
		if err := l.o.FS.Remove(path); err != nil {
			return err
		}
	}
	// Names, too, count only once they are on stable storage.
	if err := l.o.FS.SyncDir(l.dir); err != nil {
		return err
	}
	if len(segments) == 0 {
		return nil
	}
	return l.recoverTail(segments)
}

// listSegments reads the headers of all segments. It returns those of the
// highest generation in order, and the paths of files to remove.
func listSegments(fsys durable.FS, dir string) (live []*segment, stale []string, err error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		stem := strings.TrimSuffix(strings.TrimSuffix(entry.Name(), ".tmp"), stagedSuffix)
		first, ok := parseSegmentName(stem)
		if !ok {
			continue
		}
		if stem != entry.Name() {
			stale = append(stale, path)
			continue
		}
		s, err := readSegment(fsys, dir, first)
		if err != nil {
			return nil, nil, err
		}
		if len(live) > 0 && s.generation > live[0].generation {
			for _, old := range live {
				stale = append(stale, old.path)
			}
			live = live[:0]
		}
		if len(live) > 0 && s.generation < live[0].generation {
			stale = append(stale, s.path)
			continue
		}
		live = append(live, s)
	}
	return live, stale, nil
}

// readSegment reads a segment's header and size.
func readSegment(fsys durable.FS, dir string, first uint64) (*segment, error) {
	name := segmentName(first)
	f, err := fsys.OpenFile(filepath.Join(dir, name), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(size, segmentHeader))
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read log segment %s: %w", name, err)
	}
	h, err := parseHeader(b)
	if errors.Is(err, ErrNewerFormat) {
		return nil, fmt.Errorf("log segment %s: %w", name, err)
	}
	if err == nil && h.first != first {
		err = fmt.Errorf("the header says that it begins with entry %d", h.first)
	}
	if err != nil {
		return nil, &CorruptError{Segment: name, Seq: first, Reason: err.Error()}
	}
	return newSegment(dir, h, size), nil
}

// checkSealed verifies that each segment continues the one before: its header
// must carry the hash that the one before ends with.
func checkSealed(fsys durable.FS, segments []*segment) error {
	for i, s := range segments[:len(segments)-1] {
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
	if err == nil {
		if torn := tail.size - end.off; torn > 0 {
			l.o.Logger.Warn("truncating a torn write that was never acknowledged",
				"segment", tail.name(), "offset", end.off, "bytes", torn, "head", end.pos.Seq)
		}
		err = settle(f, end.mark, end.off, tail.size)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	tail.size = end.off
	l.file, l.marked = f, end.marked()
	l.state = state{
		dataset:    tail.dataset,
		generation: tail.generation,
		segments:   segments,
		head:       end.pos,
		headNanos:  end.nanos,
	}
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
