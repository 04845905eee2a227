package p2p

import (
	"errors"

	"github.com/qs-peer/qs-peer/chunker"
)

// errBadPieces is why pieces are withdrawn.
var errBadPieces = errors.New("pieces of it are not what was verified any more")

// Withdraw stops offering pieces of a torrent, which turned out to be damaged: from
// its return on nobody who asks gets one of them. Peers are told. If the torrent is
// being fetched so are they. A torrent that is not held is none of its business.
func (s *Swarm) Withdraw(ih chunker.InfoHash, pieces []int) {
	s.mu.Lock()
	h := s.holdings[ih]
	held := h != nil && h.store != nil
	s.mu.Unlock()
	if !held || len(pieces) == 0 {
		return
	}
	for _, i := range pieces {
		if i >= 0 && i < h.torrent.Pieces() {
			h.store.mark(i, false)
		}
	}
	h.storeDamaged(errBadPieces)
}
