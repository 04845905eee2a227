package lease

import (
	"cmp"
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
	// mendAfter is both for a worker that had most pieces from the beginning: it mends a
	// file, for which a piece that comes twice is dearer than one that comes late.
	mendAfter = 10 * time.Second
	// yieldFor is how long nothing may come from cheaper sources before the colo that is next
	// in rank asks a dearer one for a piece that another colo was to bring in, and the one
	// after it waits as long again, up to yieldMost times.
	yieldFor  = 2 * time.Second
	yieldMost = 6
	// idleFor is how long nobody's leases are looked through again for a source after there was
	// nothing to take over.
	idleFor = 200 * time.Millisecond
	// ripenFor is how long a piece that other colos begin to have is left to its holder, who
	// may hear of it later.
	ripenFor = 6 * time.Second
	// settleWithin is how long workers that begin together may take to hear of
	// each other.
	settleWithin = 2 * time.Second

	// A worker is lame if it has had a piece for shareWithin without any other getting it from
	// there, or if it has done less than 1/behindBy of what the others have done of
	// their shares, in proportion, once they have done 1/behindFrom.
	shareWithin = time.Second
	behindBy    = 4
	behindFrom  = 8
	// A worker brings in nothing more while spreadMost pieces that it brought in during the
	// last spreadWithin have not been seen with 1/spreadPart of its neighbours.
	spreadMost   = 8
	spreadPart   = 2
	spreadWithin = 2 * time.Second
	// progressWithin is how lately others must have brought something in for a lame worker to
	// leave everything to them.
	progressWithin = time.Second
)

// askable says whether a missing piece can be asked from s now.
func (p *Plan) askable(i int, s *source, now time.Duration) bool {
	pc := &p.pieces[i]
	return !pc.have && pc.asked == nil && now >= pc.retry && p.has(s, i, now)
}

// own chooses among the pieces that this worker leases: first those that its
// colo is to bring in, and of these first those that are the source's part.
func (p *Plan) own(s *source, now time.Duration) (int, bool) {
	const none = 4
	best, bestClass := 0, none
	turn := p.turn(s, now)
	for _, i := range p.lacking(&p.table.fetchers[p.table.me]) {
		pc := &p.pieces[i]
		if pc.seen > 0 || pc.colo > turn || !p.askable(int(i), s, now) {
			continue
		}
		cheapest, first := p.part(int(i), s, now)
		if !cheapest {
			continue
		}
		class := 0
		if !first {
			// Sources do not know of each other's grants, and a young fetch does not know
			// its fellows: they may be getting the piece where it should be asked.
			if pc.given || now-p.since < settleWithin {
				continue
			}
			class++
		}
		if pc.colo > 0 {
			class += 2
		}
		if class < bestClass {
			best, bestClass = int(i), class
			if class == 0 {
				break
			}
		}
	}
	return best, bestClass < none
}

// turn returns up to which rank of this colo a piece may be asked from s. There is
// no limit if s is among the cheapest that work.
func (p *Plan) turn(s *source, now time.Duration) int8 {
	if !p.cheaper(s) {
		return yieldMost
	}
	return int8(min(max(now-p.cheap, 0)/yieldFor, yieldMost))
}

// lame says whether this worker's link is slow while others' are not: what it gets
// first, the colo gets late, so it leaves its leases to them.
func (p *Plan) lame(now time.Duration) bool {
	if len(p.table.fetchers) == 1 || now-p.progress > progressWithin {
		return false
	}
	for len(p.unshared) > 0 {
		if pc := &p.pieces[p.unshared[0].piece]; pc.have && pc.seen == 0 {
			break
		}
		p.unshared = p.unshared[1:]
	}
	return len(p.unshared) > 0 && now-p.unshared[0].at > shareWithin || p.behind(now)
}

// full says whether this worker has brought in so much that the colo has not passed
// on that bringing in more would only make a queue at its uplink: those who have
// less of one do it.
func (p *Plan) full(now time.Duration) bool {
	if len(p.table.fetchers) == 1 {
		return false
	}
	spread := max(1, p.neighbours/spreadPart)
	kept := p.unspread[:0]
	for _, r := range p.unspread {
		if pc := &p.pieces[r.piece]; pc.have && pc.seen < spread && now-r.at < spreadWithin {
			kept = append(kept, r)
		}
	}
	p.unspread = kept
	return len(kept) >= spreadMost
}

// behind compares what this worker has of its share with what the colo has of the
// others'.
func (p *Plan) behind(now time.Duration) bool {
	if now < p.judge {
		return p.isBehind
	}
	p.judge = now + retryMin
	t := &p.table
	done, all, mine := 0, 0, 0
	for j := range t.fetchers {
		if f := &t.fetchers[j]; j != t.me {
			done, all = done+len(f.pieces)-f.left, all+len(f.pieces)
		}
	}
	share := t.fetchers[t.me].pieces
	for _, i := range share {
		if p.pieces[i].have {
			mine++
		}
	}
	p.isBehind = done*behindFrom > all && mine*behindBy*all < done*len(share)
	return p.isBehind
}

// busy says whether this worker has leases left that it could ask somebody for.
func (p *Plan) busy(now time.Duration) bool {
	for _, s := range p.sources {
		if !s.up() || !s.free(now) {
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
// which this worker's score is best.
func (p *Plan) takeover(s *source, now time.Duration) (int, bool) {
	if now < s.idle {
		return 0, false
	}
	t, turn := &p.table, p.turn(s, now)
	var victims []*fetcher
	for j := range t.fetchers {
		if f := &t.fetchers[j]; j != t.me && f.from < len(f.pieces) {
			victims = append(victims, f)
		}
	}
	// Among equals, different workers choose different victims.
	slices.SortFunc(victims, func(a, b *fetcher) int {
		if c := cmp.Compare(b.left, a.left); c != 0 {
			return c
		}
		return cmp.Compare(score(p.self, b.hash), score(p.self, a.hash))
	})
	var candidates []int
	for _, f := range victims {
		for _, i := range slices.Backward(p.lacking(f)) {
			if pc := &p.pieces[i]; pc.seen > 0 || pc.colo > turn || now < pc.ripe || !p.askable(int(i), s, now) {
				continue
			}
			if cheapest, first := p.part(int(i), s, now); cheapest && first {
				candidates = append(candidates, int(i))
			}
		}
		if len(candidates) > 0 {
			return slices.MaxFunc(candidates[:(len(candidates)+1)/2], func(a, b int) int {
				return cmp.Compare(score(p.self, hashPiece(p.snapshot, a)), score(p.self, hashPiece(p.snapshot, b)))
			}), true
		}
	}
	s.idle = now + idleFor
	return 0, false
}

// hedge chooses a piece that the colo has but does not deliver.
func (p *Plan) hedge(s *source, now time.Duration) (int, bool) {
	lateAfter, stuckAfter := lateAfter, stuckAfter
	if p.mends() {
		lateAfter, stuckAfter = mendAfter, mendAfter
	}
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
		if cheapest, first := p.part(i, s, now); !cheapest || !first {
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

// left estimates how long so many pieces will take: as long as so many took of
// late, at least as long as nothing came.
func (a *arrivals) left(pieces int, now time.Duration) time.Duration {
	n := min(a.n, len(a.times))
	if n == 0 {
		return 1 << 62
	}
	oldest, newest := a.times[(a.n-n)%len(a.times)], a.times[(a.n-1)%len(a.times)]
	return max(time.Duration(pieces)*(now-oldest)/time.Duration(n), now-newest)
}
