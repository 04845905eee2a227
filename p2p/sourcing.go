package p2p

// Whom a fetch asks for how much. What a manager sends should leave it once and
// be passed on among the workers, so requests to managers are few at a time and
// thus decided late: by then, a worker may have the piece. The client breaks
// ties in rarity at random, so that nodes rarely ask for the same piece at the
// same time. Leasing pieces to workers would go here.
const (
	// soleWindow is how many blocks are requested at a time from the managers
	// by a node that has no worker to ask; the more workers it has, the fewer,
	// down to managerWindow.
	soleWindow    = 16
	managerWindow = 2
	workerWindow  = 16
)

// setWindows adapts the number of requests to each of a torrent's peers. The
// client's lock and s.mu are held.
func (s *Swarm) setWindows(h *holding) {
	workers := 0
	for _, l := range s.links {
		if l.holding == h && !s.roster[l.peer].Manager {
			workers++
		}
	}
	for c, l := range s.links {
		switch {
		case l.holding != h:
		case !s.roster[l.peer].Manager:
			c.PeerMaxRequests = workerWindow
		default:
			c.PeerMaxRequests = max(managerWindow, soleWindow/(workers+1))
		}
	}
}
