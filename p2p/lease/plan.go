package lease

import (
	"fmt"
	"slices"
	"time"
)

const (
	// tailFraction is the part of the pieces, and tailLeast the number, with
	// which a fetch is in its tail, where late pieces may be hedged.
	tailFraction = 32
	tailLeast    = 4
	// lateAfter is how long the colo may have a piece without delivering it, and
	// how long the rest may take at the present pace, before the tail is hedged.
	lateAfter = 2 * time.Second
	// stuckAfter is how long nothing may come from the colo while it has what is
	// missing.
	stuckAfter = 4 * time.Second
	// yieldFor is how long a worker waits, after data came from a cheaper source,
	// before it asks a dearer one for pieces that are other colos' to bring in.
	yieldFor = time.Second

	// A piece that was refused is asked again after the source's hint, within these.
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
	// A source that fails is left alone for pauseMin, doubled each time up to pauseMax.
	pauseMin = 250 * time.Millisecond
	pauseMax = 8 * time.Second
	// downAfter is how many failures in a row make others do a source's part.
	downAfter = 2

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

// Result is how a request to a source ended.
type Result int

const (
	Received Result = iota // whole and good; Plan.Have was or will be called
	Leased                 // another worker of the colo is getting it
	NotHeld                // the source does not have it
	Busy                   // the source has too much to do
	Failed                 // it was not reached, broke off, or sent something else
)

// Reason says why a piece is asked from a source.
type Reason int

const (
	Own      Reason = iota // this worker leases it
	Takeover               // its holder has not got to it, and this worker is free
	Hedge                  // the colo has it, but it does not come
)

// String returns own, takeover or hedge.
func (r Reason) String() string { return [...]string{"own", "takeover", "hedge"}[r] }

// Plan is one worker's view of one fetch. It is not safe for concurrent use.
// Times are durations since some moment, the same for all calls.
type Plan struct {
	self     uint64
	colo     string
	snapshot uint64

	pieces   []piece
	missing  int
	fetchers []fetcher
	sources  []*source

	since    time.Duration // of the first call that told the time
	started  bool
	cheap    time.Duration // when a source that is not the dearest last delivered a piece
	arrivals arrivals      // pieces that came from the colo
	active   time.Duration // when data last came from the colo
}

// piece is what is known of one.
type piece struct {
	have   bool
	home   bool  // this colo is the one to bring it in
	rank   int32 // of this worker among the fetchers; 0: it leases the piece
	holder int32 // index of the first in rank among the fetchers
	seen   int32 // connected workers of the colo that have it
	asked  *source
	seenAt time.Duration // since when seen is not 0
	retry  time.Duration // not to be asked before
}

type fetcher struct {
	hash uint64
	left int // pieces it leases that the colo has not seen, set by takeover
}

type source struct {
	Source
	hash     uint64
	holds    []bool // unless Complete
	inFlight int
	failures int
	pause    time.Duration // not to be asked before
	window   int
	took     time.Duration // average time between two pieces, 0 if unknown
	last     time.Duration // when the last piece came or, if later, the source had nothing to do
}

// NewPlan starts a fetch of a snapshot of so many pieces by a worker, of which
// it has none.
func NewPlan(worker, colo string, infoHash [20]byte, pieces int) *Plan {
	p := &Plan{
		self: hashName("qs-fetcher-v1", worker), colo: colo,
		snapshot: hashName("qs-snapshot-v1", string(infoHash[:])),
		pieces:   make([]piece, pieces), missing: pieces,
	}
	p.SetFetchers(nil, nil)
	return p
}

// Missing returns how many pieces this worker lacks.
func (p *Plan) Missing() int { return p.missing }

// SetFetchers says which live workers of the colo fetch the snapshot (this one
// is always counted) and which colos do so.
func (p *Plan) SetFetchers(workers, colos []string) {
	hashes := []uint64{p.self}
	for _, w := range workers {
		hashes = append(hashes, hashName("qs-fetcher-v1", w))
	}
	slices.Sort(hashes)
	hashes = slices.Compact(hashes)
	p.fetchers = p.fetchers[:0]
	for _, h := range hashes {
		p.fetchers = append(p.fetchers, fetcher{hash: h})
	}
	own := hashName("qs-colo-v1", p.colo)
	others := make([]uint64, 0, len(colos))
	for _, c := range colos {
		if h := hashName("qs-colo-v1", c); h != own {
			others = append(others, h)
		}
	}
	for i := range p.pieces {
		pc := &p.pieces[i]
		hash := hashPiece(p.snapshot, i)
		mine := score(p.self, hash)
		pc.rank, pc.holder = 0, 0
		var most uint64
		for j, f := range p.fetchers {
			s := score(f.hash, hash)
			if s > mine {
				pc.rank++
			}
			if s >= most {
				most, pc.holder = s, int32(j)
			}
		}
		pc.home = true
		for _, c := range others {
			if score(c, hash) > score(own, hash) {
				pc.home = false
				break
			}
		}
	}
}

// SetSources replaces the list of sources. What is known of those that stay is
// kept.
func (p *Plan) SetSources(list []Source) {
	sources := make([]*source, 0, len(list))
	for _, s := range list {
		old := p.source(s.Name)
		if old == nil {
			old = &source{hash: hashName("qs-source-v1", s.Name), window: WindowMin}
		}
		old.Source = s
		if old.holds == nil && !s.Complete {
			old.holds = make([]bool, len(p.pieces))
		}
		sources = append(sources, old)
	}
	for i := range p.pieces {
		if a := p.pieces[i].asked; a != nil && !slices.Contains(sources, a) {
			p.pieces[i].asked = nil
		}
	}
	p.sources = sources
}

func (p *Plan) source(name string) *source {
	for _, s := range p.sources {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Holds says which pieces a source that is not complete has.
func (p *Plan) Holds(sourceName string, pieces []bool) {
	if s := p.source(sourceName); s != nil && len(pieces) == len(p.pieces) {
		s.holds = slices.Clone(pieces)
	}
}

// Have says that this worker has a piece, from wherever it came.
func (p *Plan) Have(i int, now time.Duration) {
	p.tick(now)
	pc := &p.pieces[i]
	if pc.have {
		return
	}
	pc.have = true
	p.missing--
	if pc.asked == nil {
		p.arrivals.add(now)
		p.active = now
	}
}

// Active says that data came from the colo.
func (p *Plan) Active(now time.Duration) { p.active = now }

// Lost says that this worker's copy of a piece is gone.
func (p *Plan) Lost(i int) {
	if pc := &p.pieces[i]; pc.have {
		pc.have = false
		p.missing++
	}
}

// Seen says how many of the colo's workers that are connected have a piece.
func (p *Plan) Seen(i, workers int, now time.Duration) {
	p.tick(now)
	pc := &p.pieces[i]
	if pc.seen == 0 && workers > 0 {
		pc.seenAt = now
	}
	pc.seen = int32(workers)
}

func (p *Plan) tick(now time.Duration) {
	if !p.started {
		p.started, p.since, p.cheap = true, now, now
	}
}

// Window returns how many requests a source should be sent at a time.
func (p *Plan) Window(sourceName string) int {
	if s := p.source(sourceName); s != nil {
		return s.window
	}
	return 0
}

// Next returns the piece to ask a source for now, which counts as asked until
// Finish. If there is none, it is worth asking again after any other call, or a
// moment later.
func (p *Plan) Next(sourceName string, now time.Duration) (piece int, why Reason, ok bool) {
	p.tick(now)
	s := p.source(sourceName)
	if s == nil || now < s.pause || s.inFlight >= s.window || p.missing == 0 {
		return 0, 0, false
	}
	i, ok := p.own(s, now)
	if !ok && !p.busy(now) {
		if i, ok = p.takeover(s, now); ok {
			why = Takeover
		} else if i, ok = p.hedge(s, now); ok {
			why = Hedge
		}
	}
	if !ok {
		return 0, 0, false
	}
	if s.inFlight == 0 {
		s.last = now
	}
	s.inFlight++
	p.pieces[i].asked = s
	return i, why, true
}

// Finish says how a request to a source ended. retry is the source's hint after
// Leased and Busy.
func (p *Plan) Finish(sourceName string, i int, r Result, retry, now time.Duration) {
	p.tick(now)
	s := p.source(sourceName)
	pc := &p.pieces[i]
	if s == nil {
		return // no longer listed
	}
	s.inFlight = max(0, s.inFlight-1)
	if pc.asked == s {
		pc.asked = nil
	}
	switch r {
	case Received:
		s.failures = 0
		s.pace(now)
		if p.dearer(s) {
			p.cheap = now
		}
	case Leased:
		s.failures = 0
		pc.retry = now + min(max(retry, retryMin), retryMax)
	case NotHeld:
		if s.Complete {
			pc.retry = now + retryMax // it says that it has all
		} else {
			s.holds[i] = false
		}
	case Busy:
		s.pause = now + min(max(retry, retryMin), retryMax)
	case Failed:
		s.failures++
		s.pause = now + min(pauseMin<<min(s.failures-1, 8), pauseMax)
		s.window = WindowMin
	default:
		panic(fmt.Sprintf("lease: result %d", r))
	}
}

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

// askable says whether a missing piece can be asked from s now.
func (p *Plan) askable(i int, s *source, now time.Duration) bool {
	pc := &p.pieces[i]
	return !pc.have && pc.asked == nil && now >= pc.retry && s.has(i)
}

func (s *source) has(i int) bool { return s.Complete || s.holds[i] }

func (s *source) up() bool { return s.failures < downAfter }

// dearer says whether there is a source that costs more than s.
func (p *Plan) dearer(s *source) bool {
	return slices.ContainsFunc(p.sources, func(o *source) bool { return o.Cost > s.Cost })
}

// cheaper says whether there is a source that works and costs less than s.
func (p *Plan) cheaper(s *source) bool {
	return slices.ContainsFunc(p.sources, func(o *source) bool { return o.Cost < s.Cost && o.up() })
}

// part says whether s should be asked for a piece: no cheaper source has it,
// and first, whether of the equal ones that have it, s is the first in rank.
func (p *Plan) part(i int, s *source) (cheapest, first bool) {
	first = s.up()
	hash := hashPiece(p.snapshot, i)
	for _, o := range p.sources {
		if o == s || !o.up() || !o.has(i) {
			continue
		}
		if o.Cost < s.Cost {
			return false, false
		}
		if o.Cost == s.Cost && score(o.hash, hash) > score(s.hash, hash) {
			first = false
		}
	}
	return true, first
}

// own chooses among the pieces that this worker leases: first those that its
// colo is to bring in, and of these first those that are the source's part.
func (p *Plan) own(s *source, now time.Duration) (int, bool) {
	best, bestKey, bestClass := 0, uint64(0), 4
	yield := p.cheaper(s) && now-p.cheap < yieldFor
	for i := range p.pieces {
		pc := &p.pieces[i]
		if pc.rank != 0 || pc.seen > 0 || !p.askable(i, s, now) {
			continue
		}
		cheapest, first := p.part(i, s)
		if !cheapest {
			continue
		}
		class := 0
		if !first {
			class++
		}
		if !pc.home {
			if yield {
				continue
			}
			class += 2
		}
		if key := p.order(p.self, i); class < bestClass || class == bestClass && key < bestKey {
			best, bestKey, bestClass = i, key, class
		}
	}
	return best, bestClass < 4
}

// order is a piece's place in the order in which a fetcher goes through its
// leases.
func (p *Plan) order(fetcher uint64, i int) uint64 {
	return mix(score(fetcher, hashPiece(p.snapshot, i)))
}

// busy says whether this worker has leases left that it could ask somebody for.
func (p *Plan) busy(now time.Duration) bool {
	for _, s := range p.sources {
		if !s.up() || s.inFlight >= s.window || now < s.pause {
			continue
		}
		if _, ok := p.own(s, now); ok {
			return true
		}
	}
	return false
}

// takeover chooses a piece that the colo has not seen and somebody else leases:
// of the one that has most left to do, in the farther half of its order, the one for
// which this worker ranks best.
func (p *Plan) takeover(s *source, now time.Duration) (int, bool) {
	for j := range p.fetchers {
		p.fetchers[j].left = 0
	}
	for i := range p.pieces {
		if pc := &p.pieces[i]; !pc.have && pc.seen == 0 && pc.rank != 0 {
			p.fetchers[pc.holder].left++
		}
	}
	best, bestLeft := -1, 0
	var candidates []int
	for i := range p.pieces {
		pc := &p.pieces[i]
		if pc.rank == 0 || pc.seen > 0 || !p.askable(i, s, now) {
			continue
		}
		if cheapest, first := p.part(i, s); !cheapest || !first {
			continue
		}
		left := p.fetchers[pc.holder].left
		if left > bestLeft || left == bestLeft && best >= 0 && pc.holder < int32(best) {
			best, bestLeft = int(pc.holder), left
			candidates = candidates[:0]
		}
		if int(pc.holder) == best {
			candidates = append(candidates, i)
		}
	}
	if len(candidates) == 0 {
		return 0, false
	}
	holder := p.fetchers[best].hash
	slices.SortFunc(candidates, func(a, b int) int {
		if p.order(holder, a) > p.order(holder, b) {
			return -1
		}
		return 1
	})
	candidates = candidates[:(len(candidates)+1)/2]
	return slices.MinFunc(candidates, func(a, b int) int { return int(p.pieces[a].rank) - int(p.pieces[b].rank) }), true
}

// hedge chooses a piece that the colo has but does not deliver.
func (p *Plan) hedge(s *source, now time.Duration) (int, bool) {
	late := p.arrivals.left(p.missing, now) > lateAfter
	few := late && p.missing <= tailLeast
	tail := late && p.missing <= len(p.pieces)/tailFraction
	stuck := now-max(p.active, p.since) > stuckAfter
	if !few && !tail && !stuck {
		return 0, false
	}
	best := -1
	for i := range p.pieces {
		pc := &p.pieces[i]
		if pc.seen == 0 || now-pc.seenAt < lateAfter || !p.askable(i, s, now) {
			continue
		}
		// Where many have it, it is this worker's own link that is slow.
		if !few && !stuck && pc.seen > 1 {
			continue
		}
		if cheapest, first := p.part(i, s); !cheapest || !first {
			continue
		}
		// What few have is what will be late; ties as in a worker's own order,
		// so that all do not ask for the same.
		if best < 0 || pc.seen < p.pieces[best].seen ||
			pc.seen == p.pieces[best].seen && p.order(p.self, i) < p.order(p.self, best) {
			best = i
		}
	}
	return max(best, 0), best >= 0
}

// arrivals is when the last pieces came.
type arrivals struct {
	times [16]time.Duration
	n     int // ever
}

func (a *arrivals) add(now time.Duration) {
	a.times[a.n%len(a.times)] = now
	a.n++
}

// left estimates how long so many pieces will take.
func (a *arrivals) left(pieces int, now time.Duration) time.Duration {
	n := min(a.n, len(a.times))
	if n == 0 {
		return 1 << 62
	}
	oldest := a.times[a.n%len(a.times)]
	if n < len(a.times) {
		oldest = a.times[0]
	}
	return time.Duration(pieces) * (now - oldest) / time.Duration(n)
}
