package p2p

import (
	"testing"
	"time"

	"github.com/anacrolix/torrent"
	"pgregory.net/rapid"

	"github.com/qs-peer/qs-peer/p2p/lease"
)

// TestOffers has peers come and go, pieces arrive and go bad, at random, and checks
// after each step what is counted and that nobody has nothing to be asked for.
func TestOffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pieces := rapid.IntRange(1, 300).Draw(t, "pieces")
		good := make([]bool, pieces)
		for i := range good {
			good[i] = rapid.Bool().Draw(t, "good")
		}
		s := &Swarm{links: make(map[*torrent.PeerConn]*link)}
		h := &holding{swarm: s, sourcing: &sourcing{plan: lease.NewPlan("w", "c", [20]byte{1}, pieces)}, seen: make([]int, pieces), pending: make(map[int]pending), coming: make(map[int]time.Time), store: &store{good: good}}
		h.store.conceal()
		h.offers = newOffers(good)
		h.offerAny()
		told := func() { // what tell does, without a client
			for _, i := range h.offers.queue {
				h.store.tell(i)
			}
			h.offers.queue = nil
		}
		piece := rapid.IntRange(0, pieces-1)
		t.Repeat(map[string]func(*rapid.T){
			"peer comes": func(t *rapid.T) {
				l := &link{holding: h, has: make([]bool, pieces)}
				s.links[new(torrent.PeerConn)] = l
			},
			"peer gets pieces": func(t *rapid.T) {
				for _, l := range s.links {
					from := piece.Draw(t, "from")
					for i := from; i < min(pieces, from+rapid.IntRange(0, 100).Draw(t, "n")); i++ {
						l.set(i, true)
					}
					h.offerSome(l)
				}
			},
			"a source is asked": func(t *rapid.T) { s.expect(h, piece.Draw(t, "piece"), true) },
			"a source does not answer": func(t *rapid.T) {
				for i := range h.coming {
					h.coming[i] = time.Now().Add(-hideFor)
				}
				for _, l := range s.links {
					h.offerSome(l) // as the keeper does
				}
			},
			"peer goes": func(t *rapid.T) {
				for c, l := range s.links {
					for i := range l.has {
						l.set(i, false)
					}
					delete(s.links, c)
					return
				}
			},
			"piece arrives": func(t *rapid.T) {
				i := piece.Draw(t, "piece")
				good[i] = true
				h.settlePiece(i)
			},
			"piece goes bad": func(t *rapid.T) {
				if i := piece.Draw(t, "piece"); good[i] {
					good[i] = false
					h.missAgain(i)
				}
			},
			"": func(t *rapid.T) {
				told()
				missing, known := 0, 0
				for i, ok := range good {
					if ok {
						continue
					}
					missing++
					if h.store.told[i] {
						known++
					}
				}
				if known < min(missing, offeredAlways) {
					t.Fatalf("the client knows of %d of %d missing pieces", known, missing)
				}
				for _, l := range s.links {
					var count [offerStates]int
					could, can := 0, 0
					for i, has := range l.has {
						if !has {
							continue
						}
						count[h.offers.state[i]]++
						_, coming := h.coming[i]
						switch {
						case good[i]:
						case h.store.told[i]:
							could++
							can++
						case !coming || time.Since(h.coming[i]) >= hideFor:
							could++
						}
					}
					if count != l.offers {
						t.Fatalf("counted %v, are %v", l.offers, count)
					}
					if can < min(could, offeredPerLink) {
						t.Fatalf("a peer can be asked for %d of %d pieces", can, could)
					}
				}
			},
		})
	})
}
