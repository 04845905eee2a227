package heads

import (
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

const (
	// coverWithin is how long an upstream may make us wait for a signed head that
	// covers its entries. The writer signs much more often.
	coverWithin = 2 * time.Second
	// slowest is the rate, in bytes per second, at which entries may come in: what
	// is held back may take so much longer.
	slowest = 128 << 10
	// maxPending is how many bytes of entries are held back, or one entry. The
	// writer signs several times in the time that takes any disk.
	maxPending = 32 << 20
)

// Stream hands on what a signed head covers of an upstream's log. One goroutine
// may use it.
type Stream struct {
	g    *Guard
	src  Source
	from string
	id   uint64 // of this stream

	buf     []txlog.Entry // not handed on yet
	ready   int           // so many of them are covered
	covered txlog.Pos     // that is up to here
	last    txlog.Pos     // buf ends here
	size    int64         // bytes of what is not covered
	met     bool          // a signed head came
	waited  time.Duration // for a signed head, while there was something to cover
	refused *FaultError   // why the last one did not count
}

func newStream(g *Guard, src Source, from string, after txlog.Pos) *Stream {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.streams++
	return &Stream{g: g, src: src, from: from, id: g.streams, covered: after, last: after}
}

// Dataset returns the upstream's dataset.
func (s *Stream) Dataset() txlog.DatasetID { return s.src.Dataset() }

// Close ends the stream. It may be called twice, and while Next waits.
func (s *Stream) Close() error { return s.src.Close() }

// Next returns entries that a signed head covers, about maxBytes at most, or
// none as a sign of life, and the furthest head that was ever verified. It
// returns nothing before the upstream has shown a signed head. An upstream that
// is not to be believed is a *FaultError; see Guard.Follow for the others.
func (s *Stream) Next(maxBytes int) ([]txlog.Entry, Head, error) {
	for {
		if entries := s.take(maxBytes); len(entries) > 0 {
			return entries, s.g.Furthest().Head, nil
		}
		if err := s.receive(maxBytes); err != nil {
			return nil, s.g.Furthest().Head, err
		}
		if s.met && s.ready == 0 {
			return nil, s.g.Furthest().Head, nil
		}
	}
}

func (s *Stream) take(maxBytes int) []txlog.Entry {
	n, size := 0, 0
	for n < s.ready && (n == 0 || size+len(s.buf[n].Frame()) <= maxBytes) {
		size += len(s.buf[n].Frame())
		n++
	}
	entries := s.buf[:n:n]
	s.buf, s.ready = s.buf[n:], s.ready-n
	return entries
}

// pending returns what is not covered yet.
func (s *Stream) pending() []txlog.Entry { return s.buf[s.ready:] }

// receive takes in what comes next.
func (s *Stream) receive(maxBytes int) error {
	waiting, began := s.waiting(), time.Now()
	entries, notes, err := s.src.Next(maxBytes)
	if err != nil {
		return err
	}
	if waiting {
		s.waited += time.Since(began)
	}
	for i := range entries {
		s.size += int64(len(entries[i].Frame()))
		s.last = entries[i].Pos()
	}
	if len(s.buf) == 0 {
		s.buf = entries // without copying them
	} else {
		s.buf = append(s.buf, entries...)
	}
	if err := s.reach(); err != nil {
		return err
	}
	for _, note := range notes {
		if err := s.hear(note); err != nil {
			return err
		}
	}
	switch {
	case !s.waiting():
		s.waited, s.refused = 0, nil
	case s.waited > coverWithin+time.Duration(s.size)*time.Second/slowest:
		return s.uncovered("for %v", s.waited.Round(time.Millisecond))
	case s.size > maxPending && len(s.pending()) > 1:
		return s.uncovered("in %d bytes", s.size)
	}
	return nil
}

// waiting reports whether a signed head has to come.
func (s *Stream) waiting() bool { return !s.met || len(s.pending()) > 0 }

func (s *Stream) uncovered(format string, args ...any) error {
	if s.refused != nil {
		return s.refused
	}
	f := faultf(Uncovered, "no signed head came that covers what follows entry %d, "+format, append([]any{s.covered.Seq}, args...)...)
	s.g.metrics.refused.WithLabelValues(string(f.Reason)).Inc()
	return f
}

// reach holds what is pending against heads that came before their entries.
func (s *Stream) reach() error {
	for _, p := range s.g.pledged(s.covered.Seq, s.last.Seq) {
		if p.Pos.Seq <= s.covered.Seq {
			continue
		}
		have := s.pending()[p.Pos.Seq-s.covered.Seq-1].Pos()
		switch {
		case have == p.Pos:
			if err := s.cover(p.Signed); err != nil {
				return err
			}
		case p.by == s.id:
			return s.altered(p.Pos, have)
		}
		// Otherwise one of the two upstreams is wrong, or there is a fork. It is one
		// if a signed head covers the entry that is here.
	}
	return nil
}

func (s *Stream) altered(want, have txlog.Pos) error {
	f := faultf(Altered, "entry %d came as %s; a signed head says that it is %s", want.Seq, have.Hash, want.Hash)
	s.g.metrics.refused.WithLabelValues(string(f.Reason)).Inc()
	return f
}

// hear takes in a signed head. One that does not count now may later, as when
// keys are replaced; one that is forged or of something else never.
func (s *Stream) hear(note []byte) error {
	h, fault := s.g.verify(note, s.src.Dataset())
	switch {
	case fault == nil:
	case fault.Reason == UnknownKey || fault.Reason == Unsigned:
		s.refused = fault
		return nil
	default:
		return fault
	}
	s.met = true
	switch {
	case h.Pos.Seq > s.last.Seq:
		s.g.pledge(h, s.id)
	case h.Pos.Seq > s.covered.Seq:
		if have := s.pending()[h.Pos.Seq-s.covered.Seq-1].Pos(); have != h.Pos {
			s.g.pledge(h, s.id)
			return s.altered(h.Pos, have)
		}
		return s.cover(h)
	case h.Pos == s.covered:
		s.g.redeem(h, 0)
	default:
		return s.g.check(h, s.from)
	}
	return nil
}

// cover makes ready what h, a verified head of a pending entry, covers.
func (s *Stream) cover(h Signed) error {
	n := int(h.Pos.Seq - s.covered.Seq)
	entries := s.pending()[:n]
	for _, p := range s.g.pledged(s.covered.Seq, h.Pos.Seq) {
		theirs := entries[p.Pos.Seq-s.covered.Seq-1:]
		if theirs[0].Pos() != p.Pos {
			// Neither is on our disk yet.
			return s.g.forked(s.from, p.Pos.Seq, newSide(p.Pos.Hash, p.Signed, nil), newSide(theirs[0].Hash, h, theirs))
		}
	}
	var size int64
	for i := range entries {
		size += int64(len(entries[i].Frame()))
	}
	s.ready, s.covered, s.size = s.ready+n, h.Pos, s.size-size
	s.g.redeem(h, size)
	return nil
}
