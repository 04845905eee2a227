package txlog

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// mendAll makes a chain with holes of what was found, however damaged. What
// comes later is believed: it is what the log goes on from.
func (l *Log) mendAll(found *listing) error {
	for _, b := range found.broken {
		if err := l.mendHeader(found, b); err != nil {
			return err
		}
	}
	all := found.live
	if len(all) == 0 {
		return l.dropFills(found.fills, nil)
	}
	dataset := all[len(all)-1].dataset
	for i := len(all) - 2; i >= 0; i-- {
		s, next := all[i], all[i+1]
		if s.dataset != dataset {
			if err := l.setFileAside(s.path, s.size, &CorruptError{Segment: s.name(), Seq: s.first, Reason: "it is of another dataset"}); err != nil {
				return err
			}
			all = slices.Delete(all, i, i+1)
			continue
		}
		if last, err := lastHash(l.o.FS, s); err == nil && last == next.prev {
			continue
		}
		if next.gap != nil && next.size == segmentHeader {
			// Nothing was to be saved of it, and nothing proves where it begins.
			if end, err := verifySegment(l.o.FS, s, false, nil); err == nil && end.pos != next.base() && i+2 < len(all) {
				if err := durable.Remove(l.o.FS, next.path); err != nil {
					return err
				}
				all = slices.Delete(all, i+1, i+2)
				next = all[i+1]
			}
		}
		pieces, tell, err := l.mend(s, next.base(), circumstances{opening: true})
		if err != nil {
			return err
		}
		tell()
		all = slices.Replace(all, i, i+1, pieces...)
	}
	found.live = all
	return l.resumeFills(found)
}

// mendHeader saves what is to be saved of a segment whose header is damaged: what
// it is follows from its neighbours.
func (l *Log) mendHeader(found *listing, b brokenSegment) error {
	path := filepath.Join(l.dir, segmentName(b.first))
	if len(found.live) == 0 {
		return l.setFileAside(path, b.size, b.err)
	}
	i, _ := slices.BinarySearchFunc(found.live, b.first, func(s *segment, first uint64) int {
		if s.first < first {
			return -1
		}
		return 1
	})
	h := header{dataset: found.live[0].dataset, generation: found.live[0].generation, first: b.first}
	known := b.first == 1
	if i > 0 {
		before, err := verifySegment(l.o.FS, found.live[i-1], false, nil)
		if known = err == nil && before.pos.Seq == b.first-1; known {
			h.prev, h.prevNanos = before.pos.Hash, before.nanos
		}
	}
	end := endless
	if i < len(found.live) {
		end = found.live[i].base()
	}
	if !known && end == endless {
		return l.setFileAside(path, b.size, b.err)
	}
	f, err := l.o.FS.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	h.salt = findSalt(f, b.size)
	f.Close() // it was only read
	pieces, tell, err := l.mend(newSegment(l.dir, h, b.size), end, circumstances{header: b.err, baseless: !known})
	if err != nil {
		return err
	}
	tell()
	found.live = slices.Insert(found.live, i, pieces...)
	return nil
}

// setFileAside makes a file evidence of which nothing is to be saved.
func (l *Log) setFileAside(path string, size int64, why *CorruptError) error {
	if err := l.makeRoom(why.Segment + evidenceSuffix); err != nil {
		return err
	}
	if err := durable.Rename(l.o.FS, path, path+evidenceSuffix); err != nil {
		return err
	}
	l.o.Logger.Error("a damaged log segment was set aside", "segment", why.Segment, "bytes", size, "evidence", path+evidenceSuffix, "err", why)
	l.o.Damaged(Damage{Kind: DamagedSegment, Err: why, Lost: size, Evidence: path + evidenceSuffix})
	return nil
}

// resumeFills finds what was filled of holes before a restart.
func (l *Log) resumeFills(found *listing) error {
	kept := map[string]bool{}
	for i := 0; i < len(found.live); i++ {
		s := found.live[i]
		if s.gap == nil {
			continue
		}
		path := filepath.Join(l.dir, segmentName(s.gap.start.Seq+1)+fillSuffix)
		if !slices.Contains(found.fills, path) {
			continue
		}
		g, err := l.resumeFill(s, path)
		if err != nil {
			return err
		}
		if g.fill == nil {
			continue
		}
		kept[path] = true
		if g.filled != g.until {
			s.gap = g
			continue
		}
		seg := newSegment(l.dir, g.fill.header, g.fill.size)
		if err := durable.Rename(l.o.FS, path, seg.path); err != nil {
			return err
		}
		s.gap = nil
		if s.path == seg.path { // it was empty
			found.live[i] = seg
		} else {
			found.live = slices.Insert(found.live, i+1, seg)
		}
	}
	return l.dropFills(found.fills, kept)
}

// resumeFill makes what is sound of a part of the hole behind s durable.
func (l *Log) resumeFill(s *segment, path string) (*gap, error) {
	g := &gap{start: s.gap.start, until: s.gap.until}
	fill, size, err := readSegment(l.o.FS, path, g.start.Seq+1)
	if _, ok := errors.AsType[*CorruptError](err); ok {
		return g, nil
	}
	if err != nil {
		return nil, err
	}
	if fill.base() != g.start || fill.dataset != s.dataset || fill.generation != s.generation {
		return g, nil
	}
	f, err := l.o.FS.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	end, err := scan(fill, f, size, true, nil)
	ahead := end.pos.Seq > g.until.Seq || end.pos.Seq == g.until.Seq && end.pos != g.until
	if _, ok := errors.AsType[*CorruptError](err); ok || end.entries == 0 || ahead {
		return g, f.Close()
	}
	if err == nil {
		err = settle(f, segmentHeader, end.off, size)
	}
	fill.size = end.off
	g.fill, g.filled = fill, end.pos
	return g, errors.Join(err, f.Close())
}

func (l *Log) dropFills(fills []string, kept map[string]bool) error {
	var errs []error
	for _, path := range fills {
		if !kept[path] {
			errs = append(errs, durable.Remove(l.o.FS, path))
		}
	}
	return errors.Join(errs...)
}
