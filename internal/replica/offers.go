package replica

import (
	"cmp"
	"slices"
	"time"
)

const (
	offerBase    = 250 * time.Millisecond
	offerMax     = 30 * time.Second
	earlyMax     = 2 * time.Second  // for one that is not to be had yet
	unfetchable  = 15 * time.Second // of failures make a log worth following from entry 1
	distrustBase = 10 * time.Minute // full jitter: about half of it
)

// offers remembers how the fetches of each offered snapshot went.
type offers struct {
	failed map[Claim]*backoff
}

func newOffers() *offers {
	return &offers{failed: make(map[Claim]*backoff)}
}

func (s *offers) of(o Offer) *backoff {
	b := s.failed[o.Claim()]
	if b == nil {
		b = new(backoff)
		s.failed[o.Claim()] = b
	}
	return b
}

// distrust records that what o led to diverged from the fleet.
func (s *offers) distrust(o Offer) {
	b := s.of(o)
	b.failures, b.since = hopelessTries, time.Now().Add(-unfetchable)
	b.fail(time.Now(), distrustBase, distrustBase)
}

// early records that o is not to be had yet: it is asked for again soon, and does
// not keep from following a log meanwhile.
func (s *offers) early(o Offer, now time.Time) {
	b := s.of(o)
	b.failures, b.since = hopelessTries, now.Add(-unfetchable)
	b.fail(now, earlyMax, earlyMax)
}

// hopeful reports whether one of the offers is worth another try.
func (s *offers) hopeful(all []Offer, now time.Time) bool {
	return slices.ContainsFunc(all, func(o Offer) bool { return !s.of(o).hopeless(now, unfetchable) })
}

// rank orders offers, the best first: the managers', then the newest. Workers only
// pass on what managers published; one that lies must not keep us busy.
func (s *offers) rank(all []Offer) {
	slices.SortStableFunc(all, func(a, b Offer) int {
		return cmp.Or(boolRank(a.Manager)-boolRank(b.Manager), cmp.Compare(b.Pos.Seq, a.Pos.Seq), cmp.Compare(len(b.Holders), len(a.Holders)))
	})
}

func boolRank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// choose returns the best offer that is not backing off, or when to ask again.
func (s *offers) choose(ranked []Offer, now time.Time) (o Offer, ok bool, again time.Time) {
	for _, o := range ranked {
		until := s.of(o).until
		if !until.After(now) {
			return o, true, time.Time{}
		}
		if again.IsZero() || until.Before(again) {
			again = until
		}
	}
	return Offer{}, false, again
}

// forget drops what is remembered of offers that are gone.
func (s *offers) forget(present []Offer) {
	there := make(map[Claim]bool, len(present))
	for _, o := range present {
		there[o.Claim()] = true
	}
	for c := range s.failed {
		if !there[c] {
			delete(s.failed, c)
		}
	}
}
