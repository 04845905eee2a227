package p2p

import (
	"fmt"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
)

// Source says which peers payload came from.
type Source int

const (
	FromManagers   Source = iota // of whatever colo
	FromOwnColo                  // workers of this node's colo, and peers that SetPeers does not list
	FromOtherColos               // workers of other colos
	numSources
)

// String returns the word for s in metrics and JSON: managers, own_colo or
// other_colos.
func (s Source) String() string {
	switch s {
	case FromManagers:
		return "managers"
	case FromOwnColo:
		return "own_colo"
	case FromOtherColos:
		return "other_colos"
	default:
		return fmt.Sprintf("source %d", int(s))
	}
}

// Received is payload in verified pieces. A piece counts for the source that
// sent most of it.
type Received struct {
	Bytes  int64
	Pieces int
}

// Progress is how far a fetch is, in payload.
type Progress struct {
	InfoHash    chunker.InfoHash
	Total, Done int64 // bytes; done: verified, what was found on disk included
	Pieces      int
	PiecesDone  int
	From        [numSources]Received // without what was found on disk
	Wasted      int64                // bytes received twice, or in a bad piece
	Rate        int64                // bytes per second received, over the last 5 s; 0 once the fetch is over
	Peers       int                  // connected
	Began       time.Time            // when what was found on disk had been looked at
	Fetched     time.Time            // when the last piece was verified, zero before
	Running     bool
}

// Left estimates how long the fetch will take at the present rate; ok is false
// while there is none.
func (p Progress) Left() (left time.Duration, ok bool) {
	if p.Done >= p.Total {
		return 0, true
	}
	if p.Rate <= 0 {
		return 0, false
	}
	return time.Duration(float64(p.Total-p.Done) / float64(p.Rate) * float64(time.Second)), true
}

// Progress returns the state of the fetch that began last, of those that run or
// else of all. ok is false when there has been none since the start.
func (s *Swarm) Progress() (p Progress, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var latest *holding
	for _, h := range s.holdings {
		if h.fetching && (latest == nil || h.began.After(latest.began)) {
			latest = h
		}
	}
	if latest != nil {
		return s.progress(latest), true
	}
	return s.lastFetch, !s.lastFetch.Began.IsZero()
}

// Totals returns the payload received since the start, by Source, over all torrents.
func (s *Swarm) Totals() [numSources]Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received
}

// progress is called with s.mu held, after attach.
func (s *Swarm) progress(h *holding) Progress {
	now := time.Now()
	p := Progress{
		InfoHash: h.torrent.InfoHash(),
		Total:    h.torrent.Size(),
		Pieces:   h.torrent.Pieces(),
		From:     h.received,
		Wasted:   h.wasted,
		Began:    h.began,
		Fetched:  h.fetched,
		Running:  h.fetching,
	}
	p.Done, p.PiecesDone = h.store.verified()
	if h.fetching && h.fetched.IsZero() {
		p.Rate = h.rate.perSecond(now)
	}
	for _, l := range s.links {
		if l.holding == h {
			p.Peers++
		}
	}
	return p
}

// setFetching begins or ends what Progress shows of a fetch.
func (s *Swarm) setFetching(h *holding, fetching bool) {
	s.mu.Lock()
	h.fetching = fetching
	if fetching {
		h.began = time.Now()
		h.rate = newMeter(h.began)
	} else {
		s.lastFetch = s.progress(h)
	}
	s.mu.Unlock()
	s.wakeKeeper()
}

// setFetched notes when a fetch had its last piece.
func (s *Swarm) setFetched(h *holding) {
	s.mu.Lock()
	h.fetched = time.Now()
	p := s.progress(h)
	s.mu.Unlock()
	s.o.Logger.Info("snapshot fetched", "infohash", p.InfoHash, "bytes", p.Total, "took", p.Fetched.Sub(p.Began).Round(time.Millisecond),
		"from_managers", p.From[FromManagers].Bytes, "from_own_colo", p.From[FromOwnColo].Bytes, "from_other_colos", p.From[FromOtherColos].Bytes,
		"wasted", p.Wasted)
}

// source tells as whose payload a peer's counts. s.mu is held.
func (s *Swarm) source(p Peer) Source {
	switch {
	case p.Manager:
		return FromManagers
	case p.Name == "" || p.Colo == s.o.Colo:
		return FromOwnColo
	default:
		return FromOtherColos
	}
}

// credit accounts a verified piece to those who sent it. s.mu is held.
func (s *Swarm) credit(h *holding, sent [numSources]int64) {
	most := FromManagers
	for from, n := range sent {
		if n == 0 {
			continue
		}
		h.received[from].Bytes += n
		s.received[from].Bytes += n
		s.metrics.receivedBytes.WithLabelValues(Source(from).String()).Add(float64(n))
		h.rate.add(time.Now(), n)
		if n > sent[most] {
			most = Source(from)
		}
	}
	if sent[most] == 0 {
		return // found on disk
	}
	h.received[most].Pieces++
	s.received[most].Pieces++
	s.metrics.receivedPieces.WithLabelValues(most.String()).Inc()
}

// A meter measures a rate over the last rateSlots × rateSlot.
type meter struct {
	began time.Time
	slots [rateSlots]int64 // bytes, by number of the slot since began, modulo rateSlots
	last  int64            // number of the newest slot in use
}

const (
	rateSlot  = 500 * time.Millisecond
	rateSlots = 10
)

func newMeter(now time.Time) meter { return meter{began: now} }

// advance empties the slots between the last one and now's.
func (m *meter) advance(now time.Time) {
	slot := int64(now.Sub(m.began) / rateSlot)
	for i := max(m.last+1, slot-rateSlots+1); i <= slot; i++ {
		m.slots[i%rateSlots] = 0
	}
	m.last = max(m.last, slot)
}

func (m *meter) add(now time.Time, n int64) {
	m.advance(now)
	m.slots[m.last%rateSlots] += n
}

// perSecond returns 0 within the first slot: too little to tell.
func (m *meter) perSecond(now time.Time) int64 {
	m.advance(now)
	first := max(0, m.last-rateSlots+1)
	span := now.Sub(m.began) - time.Duration(first)*rateSlot
	if m.last == 0 {
		return 0
	}
	var sum int64
	for _, n := range m.slots {
		sum += n
	}
	return int64(float64(sum) / span.Seconds())
}
