package txlog

import (
	"errors"
	"fmt"
	"time"
)

// reviveEvery is the least time between two attempts to open a failed log again:
// each reads the tail.
const reviveEvery = time.Second

// usable returns the state if something can be written, or else why not. A log
// that failed is first read again from the disk, as Open would, now and then.
// The caller holds writing.
func (l *Log) usable() (state, error) {
	if st := l.snapshot(); st.failed != nil && !st.closed && time.Since(l.revived) >= reviveEvery {
		if err := l.revive(); err != nil {
			l.o.Logger.Debug("the log can still not be opened again", "err", err)
		}
		l.revived = time.Now() // it may have taken long
	}
	st := l.snapshot()
	return st, st.usable()
}

// revive opens a failed log again. What its readers were promised has to be
// there; of what was written since, whatever the disk kept is now part of it.
func (l *Log) revive() error {
	st := l.snapshot()
	found := &Log{dir: l.dir, o: l.o}
	if err := found.load(); err != nil {
		return errors.Join(err, found.closeFile())
	}
	now := found.state
	if now.generation == st.generation && now.head != st.head {
		// Only entries that the disk was not known to hold may come in addition.
		if now.head.Seq <= st.head.Seq || !found.holds(st.head) {
			err := fmt.Errorf("the log ends at %s, and entries up to %s had been acknowledged", now.head, st.head)
			return errors.Join(err, found.closeFile())
		}
	}
	if err := l.closeFile(); err != nil {
		l.o.Logger.Debug("closing the segment of a failed log failed", "err", err)
	}
	l.file, l.marked = found.file, found.marked
	l.update(func(s *state) {
		now.keep(s.segments)
		*s = now
	})
	l.o.Logger.Info("log opened again after it had failed", "head", now.head.Seq, "acknowledged", st.head.Seq)
	return nil
}

// holds reports whether there is an entry at pos.
func (l *Log) holds(pos Pos) bool {
	r, err := l.Reader(pos)
	return err == nil && r.Close() == nil
}

// keep replaces segments by what readers know them as.
func (s *state) keep(known []*segment) {
	for i, seg := range s.segments {
		for _, old := range known {
			if old.path == seg.path && old.salt == seg.salt {
				old.size = seg.size
				old.forget(seg.size)
				s.segments[i] = old
			}
		}
	}
}
