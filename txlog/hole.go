package txlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// Hole is a range of entries that were damaged, and that others still have. What
// is before it stays on the disk, but the log begins (First) behind the newest
// hole until that is filled.
type Hole struct {
	Start Pos // the last sound position before it
	After Pos // up to here it was filled, not proved before the rest is there
	Until Pos // the last position that is missing
	// Filled is how many bytes the entries up to After have.
	Filled int64
}

// Damage is something that was cut off, or set aside because others have it, or that
// stays as it is.
type Damage struct {
	Kind DamageKind
	// Err says what is damaged. Of a torn tail it is nil: nothing is.
	Err *CorruptError
	// Lost is how many bytes of the file are not part of the log any more.
	Lost int64
	// Hole is what has to be filled, zero if nothing has: a tail comes back by
	// following, and sometimes every entry was saved.
	Hole Hole
	// Evidence is the path of a copy of the damaged file, empty if there is none.
	Evidence string
}

// DamageKind says what was damaged.
type DamageKind string

// Kinds of damage.
const (
	TornTail       DamageKind = "torn tail"       // a write that a crash tore and nobody was promised
	DamagedTail    DamageKind = "damaged tail"    // entries at the end of the log, found when it was opened
	DamagedSegment DamageKind = "damaged segment" // entries anywhere else
	// RefusedSegment is damage that was met and stays: without Options.Repair, or
	// because the disk takes nothing for now.
	RefusedSegment DamageKind = "refused segment"
)

// gap is a hole as the log keeps it, behind the segment that ends at start. It is
// never changed, only replaced.
type gap struct {
	start, until Pos
	fill         *segment // its first part, which is not proved yet; nil if there is none
	filled       Pos      // the end of that
}

func (g *gap) hole() Hole {
	h := Hole{Start: g.start, After: g.start, Until: g.until}
	if g.fill != nil {
		h.After, h.Filled = g.filled, g.fill.size-segmentHeader
	}
	return h
}

// Holes returns what is missing between entries that are kept, oldest first.
func (l *Log) Holes() []Hole {
	l.mu.Lock()
	defer l.mu.Unlock()
	var holes []Hole
	for _, s := range l.state.old {
		if s.gap != nil {
			holes = append(holes, s.gap.hole())
		}
	}
	return holes
}

// arrange makes all the segments of the log.
func (s *state) arrange(all []*segment) {
	n := len(all) - 1
	for n > 0 && all[n-1].gap == nil {
		n--
	}
	n = max(n, 0)
	s.old, s.segments = all[:n:n], all[n:]
}

// Skip continues the log after base, which is ahead of Head, and leaves a hole
// between the two. It is for a log that lost its end when whoever holds the state
// at base vouches for that. A crash in the middle leaves the log with the hole or
// without.
func (l *Log) Skip(base Pos) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	st := l.snapshot()
	if err := st.usable(); err != nil {
		return err
	}
	if len(st.segments) == 0 {
		return fmt.Errorf("skip to entry %d: %w", base.Seq, ErrEmpty)
	}
	if base.Seq <= st.head.Seq {
		return fmt.Errorf("skip to entry %d: the log holds that, up to entry %d", base.Seq, st.head.Seq)
	}
	seg, f, err := createSegment(l.o.FS, l.dir, newHeader(st.dataset, st.generation, base, st.headNanos))
	if err != nil {
		return err
	}
	if err := l.closeFile(); err != nil {
		l.o.Logger.Warn("closing a sealed log segment failed", "err", err)
	}
	l.file, l.marked = f, seg.size
	l.update(func(s *state) {
		s.tail().gap = &gap{start: s.head, until: base}
		s.arrange(append(s.all(), seg))
		s.head = base
	})
	l.o.Logger.Warn("the log continues behind a hole", "after", st.head.Seq, "base", base)
	return nil
}

// Fill adds entries to the hole that they belong to, from Hole.After on or from
// Hole.Start anew, and reports whether it is filled. Only entries that lead from
// Start to Until are kept for good: until the last of them is there they are
// kept aside, through restarts, too. Those behind Until are left out.
//
// Entries that do not link are a *DivergedError; if that shows at the end, what
// was filled is dropped.
//
// If the last step fails, making what is complete a part of the log, After is
// Until and the hole stays: without entries Fill tries that again, of every such
// hole, and reports whether there was one.
func (l *Log) Fill(entries []Entry) (filled bool, err error) {
	if len(entries) == 0 {
		return l.adoptComplete()
	}
	if err := checkLinked(entries); err != nil {
		return false, err
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	st := l.snapshot()
	if st.closed {
		return false, ErrClosed
	}
	first := &entries[0]
	before := Pos{Seq: first.Seq - 1, Hash: first.Prev}
	at := slices.IndexFunc(st.old, func(s *segment) bool {
		return s.gap != nil && s.gap.start.Seq < first.Seq && first.Seq <= s.gap.until.Seq
	})
	if at < 0 {
		return false, fmt.Errorf("fill entry %d: no hole of the log is there", first.Seq)
	}
	s := st.old[at]
	g := *s.gap
	h := g.hole()
	switch {
	case before == h.After:
	case before == h.Start:
		g.fill = nil
	case before.Seq == h.Start.Seq:
		return false, fmt.Errorf("fill entry %d: %w", first.Seq, &DivergedError{Seq: before.Seq, Have: h.Start.Hash, Want: before.Hash})
	case before.Seq == h.After.Seq:
		return false, fmt.Errorf("fill entry %d: %w", first.Seq, &DivergedError{Seq: before.Seq, Have: h.After.Hash, Want: before.Hash})
	default:
		return false, fmt.Errorf("fill entry %d: the hole is filled up to entry %d", first.Seq, h.After.Seq)
	}
	if last := g.until.Seq - first.Seq; last < uint64(len(entries)) {
		entries = entries[:last+1]
	}
	if err := l.fill(&st, &g, entries); err != nil {
		return false, fmt.Errorf("fill the log from entry %d: %w", first.Seq, err)
	}
	switch {
	case g.filled.Seq < g.until.Seq:
		l.update(func(*state) { s.gap = &g })
		return false, nil
	case g.filled != g.until:
		l.dropFill(&g)
		l.update(func(*state) { s.gap = &gap{start: g.start, until: g.until} })
		return false, fmt.Errorf("fill the log after entry %d: %w", g.start.Seq, &DivergedError{Seq: g.until.Seq, Have: g.until.Hash, Want: g.filled.Hash})
	}
	if err := l.adopt(s, &g); err != nil {
		l.update(func(*state) { s.gap = &g })
		return false, fmt.Errorf("fill the log up to entry %d: %w", g.until.Seq, err)
	}
	return true, nil
}

// adoptComplete makes what fills a hole wholly a part of the log, which failed
// before. It was fsynced when it was written, and only lacks its name.
func (l *Log) adoptComplete() (filled bool, err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	st := l.snapshot()
	if st.closed {
		return false, ErrClosed
	}
	for _, s := range st.old {
		if s.gap == nil || s.gap.fill == nil || s.gap.filled != s.gap.until {
			continue
		}
		g := *s.gap
		if err := l.adopt(s, &g); err != nil {
			l.update(func(*state) { s.gap = &g })
			return false, fmt.Errorf("fill the log up to entry %d: %w", g.until.Seq, err)
		}
		filled = true
	}
	return filled, nil
}

// fill writes entries to the end of what fills g. After an error that is what it
// was, or nothing.
func (l *Log) fill(st *state, g *gap, entries []Entry) error {
	var frames []byte
	for i := range entries {
		frames = append(frames, entries[i].frame...)
	}
	end := entries[len(entries)-1].Pos()
	if g.fill == nil {
		h := newHeader(st.dataset, st.generation, g.start, 0)
		seg := newSegment(l.dir, h, int64(segmentHeader+len(frames)))
		seg.path += fillSuffix
		if err := durable.WriteFile(l.o.FS, seg.path, append(h.encode(), frames...), filePerm); err != nil {
			return err
		}
		g.fill, g.filled = seg, end
		return nil
	}
	f, err := l.o.FS.OpenFile(g.fill.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()                                 // it was fsynced
	if err := f.Truncate(g.fill.size); err != nil { // what a failed call left
		return err
	}
	if _, err := f.WriteAt(frames, g.fill.size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	grown := newSegment(l.dir, g.fill.header, g.fill.size+int64(len(frames)))
	grown.path = g.fill.path
	g.fill, g.filled = grown, end
	return nil
}

// adopt makes what fills g a part of the log. s is the segment before it. After an
// error g says what there is still.
func (l *Log) adopt(s *segment, g *gap) error {
	seg := newSegment(l.dir, g.fill.header, g.fill.size)
	if err := durable.Rename(l.o.FS, g.fill.path, seg.path); err != nil {
		if _, left := l.o.FS.Stat(g.fill.path); !errors.Is(left, fs.ErrNotExist) {
			return err // it may be there still; that nobody can tell does not mean that it was renamed
		}
		switch info, named := l.o.FS.Stat(seg.path); {
		case named != nil && !errors.Is(named, fs.ErrNotExist):
			return err
		case named != nil || info.Size() != seg.size:
			g.fill = nil // somebody took it away: it has to come again
			return err
		}
		// It has its name; that may be lost, and then is a hole again.
		l.o.Logger.Warn("fsyncing the log's directory failed", "err", err)
	}
	l.update(func(st *state) {
		s.gap = nil
		all := st.all()
		i := slices.Index(all, s)
		with := []*segment{s, seg}
		if s.path == seg.path { // it was empty
			with = with[1:]
		}
		st.arrange(slices.Concat(all[:i], with, all[i+1:]))
	})
	l.o.Logger.Info("a hole of the log is filled", "after", g.start.Seq, "until", g.until.Seq)
	return nil
}

// dropFill removes what was filled of a hole, which may be nil.
func (l *Log) dropFill(g *gap) {
	if g == nil || g.fill == nil {
		return
	}
	if err := durable.Remove(l.o.FS, g.fill.path); err != nil {
		l.o.Logger.Warn("removing a part of a log segment failed", "path", g.fill.path, "err", err)
	}
}
