package lmdbstore

import (
	"sync"

	"github.com/qs-peer/qs-peer/txlog"
)

// digestsKept is how many entries back DigestAt answers: nodes whose applied
// positions are further apart cannot be compared before one catches up.
const digestsKept = 16384

// stand is a position and the digest of the pairs there.
type stand struct {
	pos    txlog.Pos
	digest Digest
}

// stands are the latest, one for each entry.
type stands struct {
	mu             sync.RWMutex // guards the rest
	ring           []stand      // that of seq n is at n modulo its length
	oldest, newest uint64       // seqs; 0: none
}

// add notes stands whose seqs follow each other and the newest.
func (s *stands) add(next ...stand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ring == nil {
		s.ring = make([]stand, digestsKept)
	}
	for _, n := range next {
		s.newest = n.pos.Seq
		if s.oldest == 0 {
			s.oldest = s.newest
		}
		s.ring[s.newest%digestsKept] = n
	}
	if s.newest >= digestsKept {
		s.oldest = max(s.oldest, s.newest-digestsKept+1)
	}
}

func (s *stands) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oldest, s.newest = 0, 0
}

func (s *stands) at(seq uint64) (stand, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if seq == 0 || seq < s.oldest || seq > s.newest {
		return stand{}, false
	}
	return s.ring[seq%digestsKept], true
}

// DigestAt returns the position at seq and the digest of the pairs there. ok is
// false unless seq is one of the 16,384 entries that were applied last, since
// the generation was opened, or the position at which it was opened.
func (s *Store) DigestAt(seq uint64) (pos txlog.Pos, d Digest, ok bool) {
	at, ok := s.current.Load().stands.at(seq)
	return at.pos, at.digest, ok
}
