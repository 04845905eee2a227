package p2p

import (
	"context"
	"errors"
	"time"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"
	infohash "github.com/anacrolix/torrent/types/infohash"

	"github.com/qs-peer/qs-peer/chunker"
)

// holding is this node's part in one torrent's swarm.
type holding struct {
	torrent *chunker.Torrent
	swarm   *Swarm
	lib     *torrent.Torrent // set by attach

	ctx      context.Context // of the Seed or Fetch that made it
	fail     context.CancelCauseFunc
	released chan struct{} // closed when the file is closed

	// Guarded by Swarm.mu.
	store        *store // set by attach
	busy         bool   // a Seed or Fetch is running and will release it if need be
	fetching     bool
	damaged      bool // the store lost pieces, which the client does not know yet
	began        time.Time
	fetched      time.Time
	received     [numSources]Received
	rate         meter
	wasted       int64
	contributors map[int]map[torrent.PeerID]int64 // bytes of unverified pieces
	sourcing     *sourcing                        // nil unless fetched
	seen         []int                            // how many connected peers have each piece, if fetched
	pending      map[int]pending                  // what the client asked peers for, if fetched
	offers       *offers                          // what the client knows to be missing, if fetched
	coming       map[int]time.Time                // what sources were asked for, since when, if fetched
	dials        map[torrent.PeerID]*dial
	lastData     time.Time // when useful payload last came
	stalls       int       // how often in a row the watchdog intervened
}

// link is one connection for one torrent.
type link struct {
	peer    torrent.PeerID
	holding *holding
	since   time.Time
	conn    *conn // nil: closed already

	// Guarded by Swarm.mu.
	unclaimed int64            // bytes of the last block, until it is known to be useful
	has       []bool           // which pieces the peer has; nil if it did not say, or nothing is missing here
	count     int              // how many of them
	offers    [offerStates]int // how many of them in each state
	hidden    map[int]struct{} // those of which the client does not know
}

// hold reserves a torrent for a Seed or a Fetch, which must settle it.
func (s *Swarm) hold(ctx context.Context, t *chunker.Torrent) (*holding, error) {
	h := &holding{
		torrent:      t,
		swarm:        s,
		released:     make(chan struct{}),
		busy:         true,
		contributors: make(map[int]map[torrent.PeerID]int64),
		dials:        make(map[torrent.PeerID]*dial),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrSwarmClosed
	}
	if _, held := s.holdings[t.InfoHash()]; held {
		return nil, ErrHeld
	}
	s.holdings[t.InfoHash()] = h
	h.ctx, h.fail = context.WithCancelCause(ctx)
	return h, nil
}

// attach joins the swarm with a store, which it owns from here on.
func (s *Swarm) attach(h *holding, st *store) error {
	s.mu.Lock()
	h.store = st
	h.lastData = time.Now()
	s.mu.Unlock()
	lib, isNew := s.client.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash:                 infohash.T(h.torrent.InfoHash()),
		InfoBytes:                h.torrent.InfoBytes(),
		Storage:                  st,
		ChunkSize:                pp.Integer(min(blockSize, h.torrent.PieceLength())),
		DisableInitialPieceCheck: true, // the store knows
	})
	h.lib = lib
	if !isNew || lib.Info() == nil {
		return errors.New("the torrent client refuses the torrent")
	}
	// Storage that fails ends the fetch (storeFailed). What the client would do, to
	// want no more while pieces are wanted, lets it panic (see Swarm.fetch).
	lib.SetOnWriteChunkError(func(error) {})
	return nil
}

// settle ends a Seed or Fetch: on success the torrent stays, otherwise it goes.
func (s *Swarm) settle(h *holding, err error) error {
	s.mu.Lock()
	if err == nil {
		err = context.Cause(h.ctx)
	}
	h.busy = err != nil // who removes it: this call, or a later release
	s.mu.Unlock()
	if err != nil {
		s.remove(h)
	}
	return err
}

// release makes a torrent go, and returns when it is gone.
func (s *Swarm) release(h *holding, why error) {
	s.mu.Lock()
	h.fail(why)
	busy := h.busy
	h.busy = true // it is removed once
	s.mu.Unlock()
	if !busy {
		s.remove(h)
	}
	<-h.released
}

// remove leaves the torrent's swarm and closes the file.
func (s *Swarm) remove(h *holding) {
	if h.lib != nil {
		h.lib.Drop()
	}
	s.mu.Lock()
	st := h.store
	delete(s.holdings, h.torrent.InfoHash())
	s.mu.Unlock()
	if st != nil {
		st.close()
	}
	h.fail(ErrDropped) // frees the context
	close(h.released)
}

// The torrent client calls the following with its lock held.

func (s *Swarm) connAdded(c *torrent.PeerConn) {
	// No extension is spoken, above all not hole punching, by which a peer can
	// make us dial an address of its choice.
	c.LocalLtepProtocolMap = new(torrent.LocalLtepProtocolMap)
	conn := s.network.identify(c.RemoteAddr, c.PeerID)
	ih := chunker.InfoHash(c.Torrent().InfoHash())
	now := time.Now()
	s.mu.Lock()
	if h := s.holdings[ih]; h != nil {
		s.links[c] = &link{peer: c.PeerID, holding: h, since: now, conn: conn}
		c.PeerMaxRequests = workerWindow
	}
	s.mu.Unlock()
	s.wakeKeeper()
}

func (s *Swarm) connClosed(c *torrent.PeerConn) {
	s.mu.Lock()
	l := s.links[c]
	if l != nil {
		s.waste(l.holding, l.unclaimed)
		l.forget()
		delete(s.links, c)
	}
	s.mu.Unlock()
	s.wakeKeeper()
}

// messageRead sees every message before the client handles it.
func (s *Swarm) messageRead(c *torrent.PeerConn, m *pp.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.links[c]
	if l == nil {
		return
	}
	switch {
	case m.Keepalive:
	case m.Type == pp.Piece:
		s.waste(l.holding, l.unclaimed) // nobody had a use for the block before
		l.unclaimed = int64(len(m.Piece))
	case m.Type == pp.Have, m.Type == pp.HaveAll, m.Type == pp.HaveNone, m.Type == pp.Bitfield:
		s.announced(l, m)
	}
	if m.Keepalive && len(l.hidden) > 0 {
		s.reveal(l, m)
	}
}

// usefulRead follows messageRead when the block is one that was missing.
func (s *Swarm) usefulRead(e torrent.ReceivedUsefulDataEvent) {
	c, ok := e.Peer.TryAsPeerConn()
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.links[c]
	if l == nil {
		return
	}
	h, piece := l.holding, int(e.Message.Index)
	if h.contributors[piece] == nil {
		h.contributors[piece] = make(map[torrent.PeerID]int64, 1)
	}
	h.contributors[piece][l.peer] += int64(len(e.Message.Piece))
	l.unclaimed = 0
	if h.sourcing != nil {
		h.sourcing.active()
	}
	h.lastData = time.Now()
	h.stalls = 0
	if d := h.dials[l.peer]; d != nil {
		d.failures = 0
	}
}

// The store calls the following without the client's lock.

func (h *holding) pieceChecked(piece int, good bool) {
	s := h.swarm
	s.mu.Lock()
	defer s.mu.Unlock()
	contributors := h.contributors[piece]
	delete(h.contributors, piece)
	delete(h.pending, piece)
	s.metrics.pieces.WithLabelValues(verdict(good)).Inc()
	var sent [numSources]int64
	for id, n := range contributors {
		if !good {
			s.waste(h, n)
			s.blame(id, len(contributors) == 1)
			continue
		}
		sent[s.source(s.roster[id])] += n
		s.thank(id)
	}
	s.credit(h, sent)
	switch {
	case !good:
		s.wakeKeeper()
	case h.sourcing != nil:
		h.sourcing.have(piece)
		h.settlePiece(piece)
	}
}

func (h *holding) pieceArrived(piece int, from torrent.PeerID, good, missing bool) {
	s := h.swarm
	size := h.torrent.PieceSize(piece)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics.pieces.WithLabelValues(verdict(good)).Inc()
	if !good {
		s.waste(h, size)
		s.blame(from, true)
		s.wakeKeeper()
		return
	}
	for _, n := range h.contributors[piece] {
		s.waste(h, n)
	}
	delete(h.contributors, piece)
	if !missing {
		s.waste(h, size)
		return
	}
	var sent [numSources]int64
	sent[s.source(s.roster[from])] = size
	s.credit(h, sent)
	s.thank(from)
	h.sourcing.have(piece)
	h.settlePiece(piece)
	h.lastData = time.Now()
	h.stalls = 0
}

// thank forgives a peer for a good piece. s.mu is held.
func (s *Swarm) thank(id torrent.PeerID) {
	if sh := s.shunned[id]; sh != nil {
		sh.praise()
	}
}

// waste counts payload that was of no use. s.mu is held.
func (s *Swarm) waste(h *holding, n int64) {
	h.wasted += n
	s.metrics.wasted.Add(float64(n))
}

// storeFailed ends a fetch whose file can not be written or read back.
func (h *holding) storeFailed(err error) { h.fail(err) }

// storeDamaged has the keeper tell the client and the peers.
func (h *holding) storeDamaged(err error) {
	s := h.swarm
	s.mu.Lock()
	h.damaged = true
	s.mu.Unlock()
	s.o.Logger.Error("file of a torrent is damaged: what can not be read is no longer offered", "torrent", h.torrent.Name(), "err", err)
	s.wakeKeeper()
}
