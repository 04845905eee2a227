package lease

import (
	"fmt"
	"slices"
	"time"
)

const (
	// A source that is busy is asked again after its hint, within these. Takeovers and
	// hedges that are refused in a row are tried ever more rarely, within these too.
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
	// givenMax is the longest that a worker trusts another to pass a piece on.
	givenMax = 30 * time.Second
)

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
	snapshot uint64
	self     uint64 // hash of the worker's name
	colo     uint64 // and of its colo's

	pieces  []piece
	missing int
	held    int // had from the beginning
	table   table
	sources []*source

	now        time.Duration // as last told
	since      time.Duration // of the first call that told the time
	started    bool
	cheap      time.Duration // when the colo last got a piece that another colo was to bring in
	arrivals   arrivals      // pieces that came from the colo
	active     time.Duration // when data last came from the colo
	neighbours int32         // the most that any piece was seen with
	unspread   []received    // pieces from sources, the latest
	unshared   []received    // pieces from sources that no other worker was seen to have, and maybe others
	progress   time.Duration // when the colo last got a piece that this worker did not bring in
	judge      time.Duration // isBehind holds until then
	isBehind   bool
	refused    int           // takeovers and hedges, in a row
	patience   time.Duration // none of either before
}

// piece is what is known of one.
type piece struct {
	have   bool
	colo   int8          // rank of this colo among those that fetch, at most yieldMost; 0: it is to bring the piece in
	given  bool          // a source said that it gave it to another worker of the colo
	why    int8          // the Reason of the last request
	holder int32         // index in table.fetchers of the first in rank
	seen   int32         // connected workers of the colo that have it
	top    uint64        // the holder's score
	asked  *source       // nil if no source is being asked
	seenAt time.Duration // since when seen is not 0
	retry  time.Duration // not to be asked before
	ripe   time.Duration // nobody else takes it over before
}

// received is a piece that came from a source.
type received struct {
	piece int
	at    time.Duration
}

// open says whether, as far as this worker knows, nobody in the colo has the
// piece or is about to.
func (pc *piece) open() bool { return !pc.have && pc.seen == 0 && !pc.given }

// NewPlan starts a fetch of a snapshot of so many pieces by a worker, of which
// it has none.
func NewPlan(worker, colo string, infoHash [20]byte, pieces int) *Plan {
	p := &Plan{
		snapshot: hashName("qs-snapshot-v1", string(infoHash[:])),
		self:     hashName("qs-fetcher-v1", worker),
		colo:     hashName("qs-colo-v1", colo),
		pieces:   make([]piece, pieces), missing: pieces,
	}
	p.SetFetchers(nil, nil)
	return p
}

// Missing returns how many pieces this worker lacks.
func (p *Plan) Missing() int { return p.missing }

// Held says that this worker had a piece from the beginning.
func (p *Plan) Held(i int) {
	pc := &p.pieces[i]
	if pc.have {
		return
	}
	open := pc.open()
	pc.have = true
	p.recount(pc, open)
	p.missing--
	p.held++
}

// mends says whether the file was mostly there.
func (p *Plan) mends() bool { return 2*p.held > len(p.pieces) }

// Have says that this worker has a piece now, from wherever it came.
func (p *Plan) Have(i int, now time.Duration) {
	p.tick(now)
	pc := &p.pieces[i]
	if pc.have {
		return
	}
	open := pc.open()
	pc.have = true
	p.recount(pc, open)
	p.missing--
	if pc.asked == nil {
		p.arrivals.add(now)
		p.active = now
		return
	}
	p.unspread = append(p.unspread, received{i, now})
	if pc.seen == 0 {
		p.unshared = append(p.unshared, received{i, now})
	}
}

// Active says that data came from the colo.
func (p *Plan) Active(now time.Duration) { p.active = now }

// Lost says that this worker's copy of a piece is gone.
func (p *Plan) Lost(i int) {
	pc := &p.pieces[i]
	if !pc.have {
		return
	}
	open := pc.open()
	pc.have = false
	p.recount(pc, open)
	p.missing++
	p.table.fetchers[pc.holder].from = 0
}

// Seen says how many of the colo's workers that are connected have a piece.
func (p *Plan) Seen(i, workers int, now time.Duration) {
	p.tick(now)
	pc := &p.pieces[i]
	open := pc.open()
	if pc.seen == 0 && workers > 0 {
		pc.seenAt = now
		if !pc.have {
			p.progress = now
			if pc.colo > 0 {
				p.cheap = now
			}
		}
	}
	pc.seen = int32(workers)
	p.neighbours = max(p.neighbours, pc.seen)
	p.recount(pc, open)
}

func (p *Plan) tick(now time.Duration) {
	p.now = now
	if !p.started {
		p.started, p.since, p.cheap = true, now, now+settleWithin
	}
}

// Next returns the piece to ask a source for now, which counts as asked until
// Finish. If there is none, it is worth asking again after any other call, or a
// moment later.
func (p *Plan) Next(sourceName string, now time.Duration) (piece int, why Reason, ok bool) {
	p.tick(now)
	s := p.source(sourceName)
	if s == nil || p.missing == 0 || !s.free(now) {
		return 0, 0, false
	}
	yields := p.lame(now) || p.full(now)
	i := 0
	if !yields {
		i, ok = p.own(s, now)
	}
	if !ok && now >= p.patience && (yields || !p.busy(now)) {
		if !yields {
			i, ok = p.takeover(s, now)
			why = Takeover
		}
		if !ok {
			i, ok = p.hedge(s, now)
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
	pc := &p.pieces[i]
	open := pc.open()
	pc.asked, pc.why, pc.given = s, int8(why), false
	p.recount(pc, open)
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
		if pc.why != int8(Own) {
			p.refused = 0
		}
	case Leased:
		s.failures = 0
		pc.retry = now + min(max(retry, retryMin), givenMax)
		open := pc.open()
		pc.given = true
		p.recount(pc, open)
		if pc.why != int8(Own) {
			p.patience = now + min(retryMin<<min(p.refused, 8), retryMax)
			p.refused++
		}
	case NotHeld:
		s.failures = 0
		s.deny(i, now)
	case Busy:
		s.failures = 0
		s.pause = now + min(max(retry, retryMin), retryMax)
	case Failed:
		s.failures++
		s.pause = now + min(pauseMin<<min(s.failures-1, 8), pauseMax)
		s.window = WindowMin
	default:
		panic(fmt.Sprintf("lease: result %d", r))
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

// Holds says which pieces a source that is not complete has.
func (p *Plan) Holds(sourceName string, pieces []bool) {
	s := p.source(sourceName)
	if s == nil || len(pieces) != len(p.pieces) {
		return
	}
	for i, holds := range pieces {
		if pc := &p.pieces[i]; holds && !s.Complete && pc.ripe == 0 {
			pc.ripe = p.now + ripenFor
		}
	}
	s.holds = append(s.holds[:0], pieces...)
}

// Window returns how many requests a source should be sent at a time.
func (p *Plan) Window(sourceName string) int {
	if s := p.source(sourceName); s != nil {
		return s.window
	}
	return 0
}

func (p *Plan) source(name string) *source {
	for _, s := range p.sources {
		if s.Name == name {
			return s
		}
	}
	return nil
}
