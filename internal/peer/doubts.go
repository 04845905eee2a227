package peer

import (
	"sync"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/replica"
)

// doubts remembers what is wrong with snapshots, as long as anybody offers them. It
// is safe for concurrent use.
type doubts struct {
	mu      sync.Mutex // guards reasons
	reasons map[chunker.InfoHash]error
}

func newDoubts() *doubts { return &doubts{reasons: map[chunker.InfoHash]error{}} }

func (d *doubts) add(h chunker.InfoHash, reason error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reasons[h] = reason
}

// why returns what is wrong with a snapshot, nil if nothing is known.
func (d *doubts) why(h chunker.InfoHash) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reasons[h]
}

// among forgets what is not offered any more, and returns how many of the offers
// are doubted.
func (d *doubts) among(offers []replica.Offer) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	still := map[chunker.InfoHash]error{}
	for _, o := range offers {
		if err, ok := d.reasons[o.InfoHash]; ok {
			still[o.InfoHash] = err
		}
	}
	d.reasons = still
	return len(still)
}
