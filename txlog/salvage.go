package txlog

import (
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// salvageBatch is about how many bytes of entries Salvage hands on at once.
const salvageBatch = 1 << 20

// Salvaged is how far Salvage got.
type Salvaged struct {
	End Pos // the last position that was handed on
	// Told is the last entry that the files tell of. One behind End could not be
	// handed on: what it follows is nowhere.
	Told uint64
	// Unread are the errors of files that could not be read and may hold what
	// follows End.
	Unread []error
}

// Salvage finds the entries that continue after a position in the files of a log,
// however damaged they are, evidence included, and hands them to each in order.
// Every entry is proved by the one before, so damage ends it where nothing else
// holds the next one. A file that can not be read does not keep it from the others.
// It changes nothing. An error is of the directory, or of each.
func Salvage(dir string, after Pos, each func([]Entry) error) (Salvaged, error) {
	return salvageAll(durable.OS, dir, after, each)
}

func salvageAll(fsys durable.FS, dir string, after Pos, each func([]Entry) error) (Salvaged, error) {
	s := Salvaged{End: after, Told: after.Seq}
	found, err := fsys.ReadDir(dir)
	if err != nil {
		return s, err
	}
	type candidate struct {
		name   string
		first  uint64
		unread error
	}
	var files []*candidate
	for _, e := range found {
		if first, ok := parseSegmentName(strings.TrimSuffix(e.Name(), evidenceSuffix)); ok && first > 0 {
			files = append(files, &candidate{name: e.Name(), first: first})
			s.Told = max(s.Told, first-1)
		}
	}
	slices.Reverse(files) // what holds the next entry is likely to be the last that may
	read := func(f *candidate) (more bool, err error) {
		file, err := fsys.OpenFile(filepath.Join(dir, f.name), os.O_RDONLY, 0)
		if err != nil {
			f.unread = err
			return false, nil
		}
		defer file.Close() // it was only read
		size, err := file.Size()
		if err != nil {
			f.unread = err
			return false, nil
		}
		before := s.End
		err = s.file(f.name, file, size, each)
		return s.End != before, err
	}
	for more := true; more; {
		more = false
		for _, f := range files {
			if f.unread != nil || f.first > s.End.Seq+1 {
				continue
			}
			if more, err = read(f); more || err != nil {
				break
			}
		}
		if err != nil {
			return s, err
		}
	}
	next := uint64(math.MaxUint64) // where the segment behind begins
	for _, f := range files {
		if f.first > s.End.Seq+1 {
			if _, err := read(f); err != nil { // how far it goes
				return s, err
			}
		}
		if f.unread != nil && next > s.End.Seq+1 {
			s.Unread = append(s.Unread, f.unread)
		}
		if f.name == segmentName(f.first) {
			next = f.first
		}
	}
	return s, nil
}

// file hands on what continues in a file, and notes what it tells of.
func (s *Salvaged) file(name string, f io.ReaderAt, size int64, each func([]Entry) error) error {
	salt := findSalt(f, size)
	for from := int64(segmentHeader); from < size; {
		c := cursor{segment: name, file: f, off: from, anySalt: true}
		if err := c.join(size); err != nil {
			from = nextMark(salt, f, max(c.off, from)+1, size)
			continue
		}
		var batch []Entry
		bytes, end := 0, s.End
		hand := func() error {
			if len(batch) == 0 {
				return nil
			}
			if err := each(batch); err != nil {
				return err
			}
			s.End, batch, bytes = end, nil, 0
			return nil
		}
		for {
			continues := c.pos == end
			e, err := c.next(size)
			if err != nil {
				break
			}
			s.Told = max(s.Told, e.Seq)
			if !continues {
				continue
			}
			end = e.Pos()
			batch, bytes = append(batch, e), bytes+len(e.frame)
			if bytes >= salvageBatch {
				if err := hand(); err != nil {
					return err
				}
			}
		}
		if err := hand(); err != nil {
			return err
		}
		from = nextMark(salt, f, max(c.off, from)+1, size)
	}
	return nil
}
