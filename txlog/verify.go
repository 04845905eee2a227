package txlog

import (
	"fmt"
	"os"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// Report is what Verify found.
type Report struct {
	Dataset  DatasetID
	Base     Pos // the position before the first entry held
	Head     Pos
	Entries  uint64
	Segments int
	Bytes    int64
	TornTail int64 // bytes after the last whole entry, which Open would truncate
}

// Verify reads every entry of the log in dir, which no process has open for
// writing, and changes nothing. Damage is a *CorruptError, beside the report of
// what was sound before it.
func Verify(dir string) (Report, error) { return verify(durable.OS, dir) }

// VerifyEach is Verify, and calls each with the position of every sound entry,
// in order.
func VerifyEach(dir string, each func(Pos)) (Report, error) { return verifyEach(durable.OS, dir, each) }

func verify(fsys durable.FS, dir string) (Report, error) { return verifyEach(fsys, dir, nil) }

func verifyEach(fsys durable.FS, dir string, each func(Pos)) (Report, error) {
	found, err := listSegments(fsys, dir)
	if err == nil {
		err = found.damage()
	}
	if err != nil {
		return Report{}, fmt.Errorf("verify log %s: %w", dir, err)
	}
	segments := found.live
	if len(segments) == 0 {
		return Report{}, nil
	}
	rep := Report{
		Dataset:  segments[0].dataset,
		Base:     segments[0].base(),
		Head:     segments[0].base(),
		Segments: len(segments),
	}
	for i, s := range segments {
		rep.Bytes += s.size
		if s.base() != rep.Head || s.dataset != rep.Dataset {
			return rep, &CorruptError{Segment: s.name(), Seq: s.first, Reason: fmt.Sprintf(
				"it follows %s of dataset %s, but the segments before end at %s of %s", s.base(), s.dataset, rep.Head, rep.Dataset)}
		}
		end, err := verifySegment(fsys, s, i == len(segments)-1, each)
		rep.Head = end.pos
		rep.Entries += end.entries
		if err != nil {
			return rep, err
		}
		rep.TornTail = s.size - end.off
	}
	return rep, nil
}

func verifySegment(fsys durable.FS, s *segment, isTail bool, each func(Pos)) (validEnd, error) {
	f, err := fsys.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return validEnd{pos: s.base()}, err
	}
	defer f.Close() // it was only read
	return scan(s, f, s.size, isTail, each)
}
