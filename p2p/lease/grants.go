package lease

import "time"

const (
	// A piece that is being sent is refused to others for holdFactor times as
	// long as sending one took of late, at least holdMin and at most holdMax.
	holdFactor = 4
	holdMin    = 2 * time.Second
	holdMax    = 30 * time.Second
	// spreadFor is how long the worker that got a piece has to pass it on.
	spreadFor = 2 * time.Second
)

// Grants is what a source remembers of whom it gave the pieces of one snapshot, so
// that each leaves it once per colo. It is not safe for concurrent use. Times
// are durations since some moment, the same for all calls. Its memory is bounded by colos × pieces.
type Grants struct {
	granted map[colonised]*grant
	usual   time.Duration // average time that sending a piece took
}

type colonised struct {
	colo  string
	piece int
}

type grant struct {
	who     string
	at      time.Duration // when it was granted, or sent
	sending bool
}

// NewGrants remembers nothing yet.
func NewGrants() *Grants { return &Grants{granted: make(map[colonised]*grant)} }

// Ask says whether a worker of a colo may be sent a piece now. If so, Done must
// follow. If not, it says who is getting it, and when to ask again.
func (g *Grants) Ask(colo, who string, piece int, now time.Duration) (ok bool, holder string, retry time.Duration) {
	k := colonised{colo, piece}
	if old := g.granted[k]; old != nil && old.who != who {
		until := old.at + spreadFor
		if old.sending {
			until = old.at + min(max(holdFactor*g.usual, holdMin), holdMax)
		}
		if now < until {
			return false, old.who, until - now
		}
	}
	g.granted[k] = &grant{who, now, true}
	return true, "", 0
}

// Done says that sending a piece ended, with success or not.
func (g *Grants) Done(colo, who string, piece int, sent bool, now time.Duration) {
	k := colonised{colo, piece}
	old := g.granted[k]
	if old == nil || old.who != who || !old.sending {
		return // given to another meanwhile
	}
	if !sent {
		delete(g.granted, k)
		return
	}
	took := now - old.at
	if g.usual == 0 {
		g.usual = took
	} else {
		g.usual = (7*g.usual + took) / 8
	}
	old.at, old.sending = now, false
}

// Gone says that a worker is no longer connected: what it got and may not have
// passed on can be asked by others at once.
func (g *Grants) Gone(who string) {
	for k, old := range g.granted {
		if old.who == who {
			delete(g.granted, k)
		}
	}
}
