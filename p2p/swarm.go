package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
)

// Errors of a swarm that callers branch on.
var (
	// ErrSwarmClosed is returned by every call after Close.
	ErrSwarmClosed = errors.New("swarm is closed")
	// ErrHeld refuses a torrent that is already seeded or being fetched.
	ErrHeld = errors.New("torrent is already seeded or being fetched")
	// ErrDropped ends a Fetch whose torrent was dropped.
	ErrDropped = errors.New("torrent was dropped")
)

// progressInterval is how often a Fetch reports.
const progressInterval = 250 * time.Millisecond

// Peer is a node that may have pieces.
type Peer struct {
	Name     string
	Addr     string // host:port of its swarm listener
	PeerAddr string // host:port where it speaks the peer protocol
	Colo     string
	Manager  bool

	Holds     []chunker.InfoHash // complete snapshots that it offers
	Fetching  chunker.InfoHash   // what it is fetching; zero: nothing
	Repairing bool               // its replica is out of service: it goes before those that are rebuilt
}

// SwarmOptions configure a swarm.
type SwarmOptions struct {
	// Name is this node's name, unique in the fleet. Required.
	Name string
	// Colo is where this node is: inside it, nodes exchange pieces as a swarm.
	Colo string
	// Pieces asks nodes outside the colo's swarm for what the colo lacks. nil:
	// nobody is asked.
	Pieces PieceClient
	// Sources says who is asked, the cheapest first: FromManagers,
	// FromOtherColos or both. Default: other colos, then managers.
	Sources []Source
	// Listener accepts the connections of other peers. The swarm owns and
	// closes it. If they are TLS connections, their handshakes are done. Required.
	Listener net.Listener
	// Dial connects to other peers. Default: TCP, without TLS.
	Dial DialFunc
	// Refused hears of peers that were refused, and why. Default: they are logged.
	Refused RefusedFunc
	// Upload and Download limit what goes over connections. Default: no limit.
	Upload, Download *Budget
	// FS is where files are seeded from and fetched to. Default durable.OS.
	FS durable.FS
	// Logger also gets the torrent client's messages, at debug level. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_swarm_* metrics. Default: none.
	Registerer prometheus.Registerer
}

func (o *SwarmOptions) validate() error {
	if o.Name == "" {
		return errors.New("start swarm: Name is required")
	}
	if o.Listener == nil {
		return errors.New("start swarm: Listener is required")
	}
	if o.Dial == nil {
		o.Dial = dialPlain
	}
	if len(o.Sources) == 0 {
		o.Sources = []Source{FromOtherColos, FromManagers}
	}
	if o.FS == nil {
		o.FS = durable.OS
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Refused == nil {
		o.Refused = logRefused(o.Logger)
	}
	return nil
}

// Swarm is this node's part in the swarm of each snapshot it holds or fetches.
// Its methods may be called concurrently.
type Swarm struct {
	o        SwarmOptions
	self     torrent.PeerID
	client   *torrent.Client
	network  *network
	metrics  *swarmMetrics
	wake     chan struct{} // tells the keeper that something changed
	stop     context.CancelFunc
	keeping  sync.WaitGroup
	closing  sync.Once
	closeErr error

	// mu guards what follows and all that hangs on it. It is a leaf: the
	// torrent client calls back with its own lock held, so the client must not
	// be called while mu is.
	mu        sync.Mutex
	closed    bool
	roster    map[torrent.PeerID]Peer
	grown     time.Time // when somebody new was put on it
	holdings  map[chunker.InfoHash]*holding
	links     map[*torrent.PeerConn]*link
	shunned   map[torrent.PeerID]*shun
	received  [numSources]Received // of all torrents ever held
	lastFetch Progress             // when it ended
}

// NewSwarm starts listening.
func NewSwarm(o SwarmOptions) (*Swarm, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := &Swarm{
		o:        o,
		self:     peerID(o.Name),
		wake:     make(chan struct{}, 1),
		roster:   make(map[torrent.PeerID]Peer),
		holdings: make(map[chunker.InfoHash]*holding),
		links:    make(map[*torrent.PeerConn]*link),
		shunned:  make(map[torrent.PeerID]*shun),
	}
	client, err := torrent.NewClient(s.clientConfig())
	if err != nil {
		return nil, fmt.Errorf("start swarm: %w", err)
	}
	s.client = client
	s.metrics, err = newSwarmMetrics(s, o.Registerer)
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("start swarm: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.network = newNetwork(ctx, s)
	client.AddDialer(s.network)
	client.AddListener(s.network)
	s.keeping.Go(func() { s.keep(ctx) })
	return s, nil
}

// SetPeers replaces the list of peers that may be connected to. Peers that are
// no longer listed are not dialled any more; peers that are new are, for every
// torrent that needs them.
func (s *Swarm) SetPeers(peers []Peer) {
	roster := make(map[torrent.PeerID]Peer, len(peers))
	for _, p := range peers {
		if id := peerID(p.Name); id != s.self {
			roster[id] = p
		}
	}
	s.mu.Lock()
	for id := range roster {
		if _, old := s.roster[id]; !old {
			s.grown = time.Now()
			break
		}
	}
	s.roster = roster
	s.mu.Unlock()
	s.wakeKeeper()
}

// Seed offers a complete, verified file. The file stays open until Drop or
// Close and may be renamed meanwhile. A torrent that is held already is ErrHeld.
func (s *Swarm) Seed(t *chunker.Torrent, path string) error {
	h, err := s.hold(context.Background(), t)
	if err == nil {
		err = s.settle(h, s.seed(h, path))
	}
	if err != nil {
		return fmt.Errorf("seed %s: %w", path, err)
	}
	return nil
}

func (s *Swarm) seed(h *holding, path string) error {
	f, err := s.o.FS.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err == nil && size != h.torrent.Size() {
		err = fmt.Errorf("file is %d bytes long: the torrent describes %d", size, h.torrent.Size())
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	good := make([]bool, h.torrent.Pieces())
	for i := range good {
		good[i] = true
	}
	return s.attach(h, newStore(h.torrent, f, good, h))
}

// Fetch downloads the file to path and returns when every piece is verified and
// the file fsynced. What path holds already is hashed and kept where it is
// good. After success the file is seeded as after Seed; after an error (ctx
// ended, the disk is full) the torrent is dropped and what was fetched stays
// for the next Fetch. progress, if not nil, is called about four times a second.
func (s *Swarm) Fetch(ctx context.Context, t *chunker.Torrent, path string, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	h, err := s.hold(ctx, t)
	if err == nil {
		err = s.settle(h, s.fetch(h, path, progress))
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w", path, err)
	}
	return nil
}

func (s *Swarm) fetch(h *holding, path string, progress func(Progress)) error {
	f, good, err := openPartial(h.ctx, s.o.FS, path, h.torrent)
	if err != nil {
		return err
	}
	store := newStore(h.torrent, f, good, h)
	store.conceal()
	h.source(good)
	if err := s.attach(h, store); err != nil {
		return err
	}
	s.setFetching(h, true)
	defer s.setFetching(h, false)
	h.lib.DownloadAll()
	defer h.sourcing.start()()
	defer h.offers.start(h)()
	report := func() {
		s.mu.Lock()
		p := s.progress(h)
		s.mu.Unlock()
		progress(p)
	}

	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for complete := false; !complete; {
		report()
		select {
		case <-h.ctx.Done():
			return context.Cause(h.ctx)
		case <-store.complete:
			complete = true
			s.setFetched(h)
			report()
		case <-ticker.C:
		}
	}
	// A seeded file is immutable: should it be damaged later, nothing is to be
	// written into it. The client panics if it still wants a piece when it may
	// no longer (checkPendingPiecesMatchesRequestOrder), which it does while it
	// was not told of the last ones.
	h.lib.CancelPieces(0, h.torrent.Pieces())
	h.lib.DisallowDataDownload()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if err := s.o.FS.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// Drop stops offering a torrent and closes its file. It does not remove it. A
// Seed or Fetch of it that is running ends with ErrDropped.
func (s *Swarm) Drop(ih chunker.InfoHash) {
	s.mu.Lock()
	h := s.holdings[ih]
	s.mu.Unlock()
	if h != nil {
		s.release(h, ErrDropped)
	}
}

// Close leaves all swarms and waits. It may be called twice.
func (s *Swarm) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		held := slices.Collect(maps.Values(s.holdings))
		s.mu.Unlock()
		for _, h := range held {
			s.release(h, ErrSwarmClosed)
		}
		s.stop()
		s.keeping.Wait()
		s.closeErr = errors.Join(s.client.Close()...)
		s.closeErr = errors.Join(s.closeErr, s.network.close())
		s.metrics.unregister()
	})
	return s.closeErr
}

func (s *Swarm) wakeKeeper() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
