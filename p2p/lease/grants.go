package lease

import "time"

const (
	// A piece that is being sent is refused to others for holdFactor times as
	// long as sending one took of late, at least holdMin and at most holdMax.
	holdFactor = 4
	holdMin    = 2 * time.Second
	holdMax    = 30 * time.Second
	// spreadFor is how long the worker that got a piece has to pass it on.
	spreadFor = 10 * time.Second
)

// Grants is what a source remembers of whom it gave the pieces of one snapshot, so
// that each leaves it once per colo. It is not safe for concurrent use. Times
// are durations since some moment, the same for all calls. Its memory is bounded by colos × pieces.
type Grants struct {
	colos map[string][]grant // by piece
	home  map[string]string  // colo of who was granted something
	usual time.Duration      // average time that sending a piece took
}

// grant says who got a piece; the zero one, that nobody did.
type grant struct {
	who     string
	at      time.Duration // when it was granted, or sent
	sending bool
}

// NewGrants remembers nothing yet.
func NewGrants() *Grants {
	return &Grants{colos: make(map[string][]grant), home: make(map[string]string)}
}

// Ask says whether a worker of a colo may be sent a piece now. If so, Done must
// follow. If not, it says who is getting it, and when to ask again.
func (g *Grants) Ask(colo, who string, piece int, now time.Duration) (ok bool, holder string, retry time.Duration) {
	pieces := g.colos[colo]
	if piece >= len(pieces) {
		pieces = append(pieces, make([]grant, piece+1-len(pieces))...)
		g.colos[colo] = pieces
	}
	old := &pieces[piece]
	if old.who != "" && old.who != who {
		until := old.at + spreadFor
		if old.sending {
			until = old.at + min(max(holdFactor*g.usual, holdMin), holdMax)
		}
		if now < until {
			return false, old.who, until - now
		}
	}
	*old = grant{who, now, true}
	g.home[who] = colo
	return true, "", 0
}

// Done says that sending a piece ended, with success or not.
func (g *Grants) Done(colo, who string, piece int, sent bool, now time.Duration) {
	if piece >= len(g.colos[colo]) {
		return
	}
	old := &g.colos[colo][piece]
	if old.who != who || !old.sending {
		return // given to another meanwhile, or to nobody any more
	}
	if !sent {
		*old = grant{}
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
	pieces := g.colos[g.home[who]]
	for i := range pieces {
		if pieces[i].who == who {
			pieces[i] = grant{}
		}
	}
	delete(g.home, who)
}
