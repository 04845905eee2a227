package replica

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

const (
	fanOut       = 8               // followers of one node in the tree of a colo
	laggard      = 4096            // entries behind the best head that make an upstream a bad choice
	unreachable  = 3 * time.Second // of failures make an upstream count as unreachable
	upstreamBase = 100 * time.Millisecond
	upstreamMax  = 5 * time.Second
	staleBase    = 10 * time.Second // for one that held us up
	staleMax     = time.Minute
	liarBase     = time.Minute // for one that contradicted us
	liarMax      = 10 * time.Minute
)

// upstreams remembers how each upstream behaved, and orders them.
type upstreams struct {
	self    Upstream
	memory  map[string]*memory
	accused map[string]bool // upstreams that contradict us, nobody having agreed since
	ahead   txlog.Hash      // our entry that the writer did not have, once that was logged
}

// memory is what is remembered of one upstream.
type memory struct {
	backoff
	first  uint64 // it refused us because its log starts there
	blamed bool   // that it holds another history was logged
	fault  string // what it was not believed for last, which was logged
}

func newUpstreams(name string, manager bool) *upstreams {
	return &upstreams{
		self:    Upstream{Name: name, Manager: manager},
		memory:  make(map[string]*memory),
		accused: make(map[string]bool),
	}
}

func (s *upstreams) of(name string) *memory {
	m := s.memory[name]
	if m == nil {
		m = new(memory)
		s.memory[name] = m
	}
	return m
}

// forget drops what is remembered of those who are gone.
func (s *upstreams) forget(present []Upstream) {
	names := make(map[string]bool, len(present))
	for _, u := range present {
		names[u.Name] = true
	}
	for name := range s.memory {
		if !names[name] {
			delete(s.memory, name)
		}
	}
}

// good records that u moved us forward.
func (s *upstreams) good(u Upstream) {
	m := s.of(u.Name)
	m.failures, m.first = 0, 0
}

// pardon lets upstreams that failed be asked again.
func (s *upstreams) pardon(all []Upstream) {
	for _, u := range all {
		s.of(u.Name).failures = 0
	}
}

// trimmed reports whether u's log starts after what we need: it says so in
// gossip, or it told us often enough that gossip must be late.
func (s *upstreams) trimmed(u Upstream, head txlog.Pos, now time.Time) bool {
	m := s.of(u.Name)
	return u.First > head.Seq+1 || m.first > head.Seq+1 && m.hopeless(now, unreachable)
}

// hopeless reports whether waiting for u to help is vain for now.
func (s *upstreams) hopeless(u Upstream, head txlog.Pos, now time.Time) bool {
	return s.trimmed(u, head, now) || s.of(u.Name).hopeless(now, unreachable)
}

// exhausted reports whether no upstream can carry us on from head: at least one
// says that it no longer reaches back, and the others do too or fail.
func (s *upstreams) exhausted(all []Upstream, head txlog.Pos, now time.Time) bool {
	trimmed := false
	for _, u := range all {
		if u.First == 0 {
			continue
		}
		if !s.hopeless(u, head, now) {
			return false
		}
		trimmed = trimmed || s.trimmed(u, head, now)
	}
	return trimmed
}

// rank orders those whose log may reach back to head, the best first.
func (s *upstreams) rank(all []Upstream, head txlog.Pos) []Upstream {
	best := reference(all).Head.Seq
	var near, far []Upstream
	for _, u := range all {
		switch {
		case u.First == 0 || u.First > head.Seq+1:
		case u.Near:
			near = append(near, u)
		default:
			far = append(far, u)
		}
	}
	slices.SortFunc(near, seniority)
	slices.SortFunc(far, func(a, b Upstream) int {
		return cmp.Or(seniorityClass(a)-seniorityClass(b), cmp.Compare(s.spread(a), s.spread(b)))
	})
	// The nodes before us in the colo's order, our place in the tree first; then
	// other colos; then those behind us, who may follow us.
	mine, _ := slices.BinarySearchFunc(near, s.self, seniority)
	var ranked []Upstream
	if mine > 0 {
		parent := (mine - 1) / fanOut
		ranked = append(ranked, near[parent:mine]...)
		ranked = append(ranked, near[:parent]...)
	}
	ranked = append(ranked, far...)
	ranked = append(ranked, near[mine:]...)
	slices.SortStableFunc(ranked, func(a, b Upstream) int {
		return s.reluctance(a, best) - s.reluctance(b, best)
	})
	return ranked
}

// reluctance overrides the order of the tree.
func (s *upstreams) reluctance(u Upstream, best uint64) int {
	switch {
	case len(s.accused) > 0 && u.Writer:
		return 0 // its word settles the contradiction
	case u.Head.Seq+laggard < best:
		return 2
	}
	return 1
}

// choose returns the best upstream that is not backing off, or when to ask again.
func (s *upstreams) choose(ranked []Upstream, now time.Time) (u Upstream, ok bool, again time.Time) {
	for _, u := range ranked {
		until := s.of(u.Name).until
		if !until.After(now) {
			return u, true, time.Time{}
		}
		if again.IsZero() || until.Before(again) {
			again = until
		}
	}
	return Upstream{}, false, again
}

// reference returns who knows best where the log ends: the writer, or without
// one whoever claims most.
func reference(all []Upstream) (best Upstream) {
	for _, u := range all {
		if u.Writer == best.Writer && u.Head.Seq > best.Head.Seq || u.Writer && !best.Writer {
			best = u
		}
	}
	return best
}

// seniority orders the nodes of a colo, for all of them alike.
func seniority(a, b Upstream) int {
	return cmp.Or(
		seniorityClass(a)-seniorityClass(b),
		cmp.Compare(nameHash(a.Name), nameHash(b.Name)),
		cmp.Compare(a.Name, b.Name),
	)
}

func seniorityClass(u Upstream) int {
	switch {
	case u.Writer:
		return 0
	case u.Manager:
		return 1
	}
	return 2
}

// spread sends the followers of one colo to different nodes of others.
func (s *upstreams) spread(u Upstream) uint64 { return nameHash(s.self.Name + "\x00" + u.Name) }

func nameHash(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return h.Sum64()
}
