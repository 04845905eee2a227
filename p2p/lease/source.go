package lease

import (
	"slices"
	"time"
)

const (
	// A source that fails is left alone for pauseMin, doubled each time up to pauseMax.
	pauseMin = 250 * time.Millisecond
	pauseMax = 8 * time.Second
	// downAfter is how many failures in a row make others do a source's part.
	downAfter = 2
	// deniedFor is how long a source that says that it is complete is not asked
	// for a piece that it did not have.
	deniedFor = 10 * time.Second

	// queueAhead is how much a source should have to do for a worker: requests
	// for so much time at the pace at which pieces come.
	queueAhead = 500 * time.Millisecond
	// WindowMin and WindowMax bound the requests to one source at a time. Two, so that
	// the source always has a next one.
	WindowMin = 2
	WindowMax = 16
)

// Source is a node outside the colo's swarm that can be asked for pieces.
type Source struct {
	Name string
	// Cost orders sources: a piece is asked from the cheapest that has it.
	Cost int
	// Complete says that it has every piece. Otherwise Plan.Holds tells what it has.
	Complete bool
}

type source struct {
	Source
	hash     uint64
	holds    []bool                // unless Complete
	denied   map[int]time.Duration // pieces that a complete one did not have: until when that is believed
	inFlight int
	failures int           // in a row
	pause    time.Duration // not to be asked before
	idle     time.Duration // nobody's lease can be taken over from here before
	window   int
	took     time.Duration // average time between two pieces, 0 if unknown
	last     time.Duration // when the last piece came or, if later, the source had nothing to do
}

// has says whether a source is thought to have a piece. While workers that begin
// together may not know of each other, only complete sources count, about which
// they agree.
func (p *Plan) has(s *source, i int, now time.Duration) bool {
	if !s.Complete {
		return s.holds[i] && now-p.since >= settleWithin
	}
	return len(s.denied) == 0 || now >= s.denied[i]
}

// deny notes that the source did not have a piece.
func (s *source) deny(i int, now time.Duration) {
	if !s.Complete {
		s.holds[i] = false
		return
	}
	if s.denied == nil {
		s.denied = make(map[int]time.Duration)
	}
	s.denied[i] = now + deniedFor
}

func (s *source) up() bool { return s.failures < downAfter }

// free says whether the source can be asked for something now.
func (s *source) free(now time.Duration) bool { return now >= s.pause && s.inFlight < s.window }

// pace adapts the window to how fast pieces come.
func (s *source) pace(now time.Duration) {
	took := max(now-s.last, time.Microsecond)
	s.last = now
	if s.took == 0 {
		s.took = took
	} else {
		s.took = (7*s.took + took) / 8
	}
	s.window = int(min(max(queueAhead/s.took, WindowMin), WindowMax))
}

// dearer says whether there is a source that costs more than s.
func (p *Plan) dearer(s *source) bool {
	return slices.ContainsFunc(p.sources, func(o *source) bool { return o.Cost > s.Cost })
}

// cheaper says whether there is a source that works and costs less than s.
func (p *Plan) cheaper(s *source) bool {
	return slices.ContainsFunc(p.sources, func(o *source) bool { return o.Cost < s.Cost && o.up() })
}

// part says whether s should be asked for a piece: no cheaper source has it,
// and first, whether of the equal ones that have it, s is the first in rank. Those
// that fail or are left alone just now do not count.
func (p *Plan) part(i int, s *source, now time.Duration) (cheapest, first bool) {
	first = true
	hash := hashPiece(p.snapshot, i)
	for _, o := range p.sources {
		if o == s || o.Cost > s.Cost || !o.up() || now < o.pause || !p.has(o, i, now) {
			continue
		}
		if o.Cost < s.Cost {
			return false, false
		}
		if !s.up() || score(o.hash, hash) > score(s.hash, hash) {
			first = false
		}
	}
	return true, first
}
