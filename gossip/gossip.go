// Package gossip moves small facts between all nodes: who is there, where, in
// what state, at which position, with which snapshots.
//
// Each node owns one record, its Facts, versioned by (incarnation, counter).
// A newer version supersedes an older one wherever they meet: in broadcasts and
// in the periodic push-pull exchange of full state, so partitions heal by
// themselves. A node that hears a version of its own record that is newer than
// its own (its clock went back before a restart) raises its incarnation above it.
//
// A record belongs to a name at a gossip address. Of two processes that claim
// one name the fleet keeps the first, until that fails; the other learns it from
// Conflict, and claims the name again in case its predecessor just died.
//
// Liveness comes from memberlist: a node that died is kept as failed, one that
// said so as left, until ForgetAfter. A crash is noticed within about eight
// seconds. Failed members are tried again every 15 s or so, because memberlist
// forgets them within a minute and would not notice a partition's end.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/gossip/internal/mesh"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/txlog"
)

// MaxFacts is the largest encoded record, in bytes: it must fit a datagram.
const MaxFacts = 1232

// MaxSnapshots is how many announcements a record carries, the newest first.
const MaxSnapshots = 3

// Role says what a node is for.
type Role string

const (
	Manager Role = "manager" // holds the log, publishes snapshots
	Worker  Role = "worker"  // holds a replica, serves reads
)

// Announcement is what gossip says of a snapshot that a node holds and seeds.
type Announcement struct {
	Pos      txlog.Pos
	InfoHash [20]byte
	Size     int64 // bytes
}

// Facts is what a node says of itself.
type Facts struct {
	Name    string
	Role    Role
	Colo    string
	Version string // of the software
	Writer  bool   // the manager that takes writes

	SwarmAddr, PeerAddr, HTTPAddr string // host:port; an empty or unspecified host is replaced by the gossip host

	Dataset     txlog.DatasetID
	State       string    // of the replica: joining, bootstrapping, catching-up, serving, …
	Applied     txlog.Pos // what reads see
	AppliedTime time.Time // the writer's clock in the entry at Applied
	// AppliedDigest is of the pairs at Applied; zero also if the node's software
	// says nothing of it.
	AppliedDigest [32]byte
	Head          txlog.Pos // the end of the node's own log
	HeadTime      time.Time
	LogFirst      uint64 // the first seq that the node can stream
	Snapshots     []Announcement

	Progress   float64  // of the bootstrap, 0 to 1
	Fetching   [20]byte // infohash of the snapshot being fetched; zero: none
	FetchDone  int64    // bytes of it that are verified
	FetchTotal int64    // its bytes
	FetchRate  int64    // bytes per second, over the last few

	// Snapshot payload received since the start, by who sent it: managers, workers
	// of the node's own colo, workers of other colos.
	FromManagers, FromOwnColo, FromOtherColos Payload
}

// Payload counts what was received in verified pieces of snapshots.
type Payload struct {
	Bytes  int64
	Pieces uint32
}

// Liveness is what memberlist believes of a node.
type Liveness int

const (
	Alive  Liveness = iota
	Failed          // stopped answering
	Left            // said that it leaves
)

// String returns the word for l: alive, failed or left.
func (l Liveness) String() string {
	switch l {
	case Alive:
		return "alive"
	case Failed:
		return "failed"
	case Left:
		return "left"
	default:
		return fmt.Sprintf("liveness %d", int(l))
	}
}

// Member is a node as this node sees it.
type Member struct {
	Facts
	Liveness Liveness
	Addr     string    // host:port of its gossip listener
	Since    time.Time // this node's clock when Liveness last changed
	// Incarnation rises with each start of the node; 0 until it was heard.
	Incarnation uint64
}

// Options configure a node's gossip.
type Options struct {
	// Facts are the node's first facts. Name and Role are required and stay.
	Facts Facts
	// Addr is the host:port to listen on, TCP and UDP, without TLS. Port 0 takes a
	// free one.
	Addr string
	// Join are the host:port of members to join. Unreachable ones are retried
	// with back-off as long as no other member is known.
	Join []string
	// TLS replaces TCP and UDP by connections that say who is at their other end, and
	// has records signed. The name, the role and the colo of the facts must be those
	// of the certificate, and stay. Start takes the listener over, and closes it also
	// when it fails.
	TLS *TLS
	// Transport replaces TCP and UDP, for tests.
	Transport memberlist.Transport
	// ForgetAfter is how long failed and left members stay listed. Default 24 h.
	ForgetAfter time.Duration
	// Logger also gets memberlist's messages, at debug level. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_gossip_* metrics. Default: none.
	Registerer prometheus.Registerer
}

func (o *Options) validate() error {
	if o.Facts.Name == "" {
		return errors.New("the node needs a name")
	}
	if o.Facts.Role != Manager && o.Facts.Role != Worker {
		return fmt.Errorf("role %q: want %q or %q", o.Facts.Role, Manager, Worker)
	}
	if o.TLS != nil {
		if err := o.TLS.validate(&o.Facts); err != nil {
			return err
		}
	}
	if o.ForgetAfter <= 0 {
		o.ForgetAfter = 24 * time.Hour
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Gossip is this node's part in the gossip. Its methods may be called concurrently.
type Gossip struct {
	log       *slog.Logger
	join      []string
	view      *view
	notary    *notary         // nil: no TLS
	mesh      *mesh.Transport // nil: no TLS
	refused   func(reason trust.Reason, who string, err error)
	metrics   *metrics
	list      *memberlist.Memberlist
	queue     *memberlist.TransmitLimitedQueue
	conflicts conflicts
	addr      net.Addr
	bridge    *logBridge

	dirty     chan struct{} // the own record is to be broadcast
	contested chan struct{} // another process claims the own name
	wanted    chan string   // by whom: a record without its certificates

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	closing  sync.Mutex // serialises Leave and Close
	closed   bool
	closeErr error
}

// Start begins to listen and to join. A taken port is an error; members that
// cannot be reached are not.
func Start(o Options) (_ *Gossip, err error) {
	defer func() {
		if err != nil && o.TLS != nil && o.TLS.Listener != nil {
			o.TLS.Listener.Close()
		}
	}()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	g := &Gossip{
		log:   o.Logger,
		join:  slices.Clone(o.Join),
		dirty: make(chan struct{}, 1), contested: make(chan struct{}, 1), wanted: make(chan string, 1),
	}
	if o.TLS != nil {
		g.notary, g.refused = newNotary(o.TLS.Credentials), o.TLS.Refused
	}
	g.view = newView(o.ForgetAfter, g.notary)
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.queue = &memberlist.TransmitLimitedQueue{NumNodes: g.view.alive, RetransmitMult: retransmits}
	g.view.self.key.name = o.Facts.Name
	g.view.self.facts.Name, g.view.self.facts.Role, g.view.self.facts.Colo = o.Facts.Name, o.Facts.Role, o.Facts.Colo
	g.view.self.incarnation = uint64(min(max(time.Now().UnixNano(), 1), maxIncarnation-1))
	if _, err := g.view.update(func(f *Facts) { *f = o.Facts }, false); err != nil {
		g.cancel()
		return nil, fmt.Errorf("gossip: facts of %s: %w", o.Facts.Name, err)
	}
	if _, err := g.view.signedSelf(time.Now()); err != nil {
		g.cancel()
		return nil, fmt.Errorf("gossip: %w", err)
	}
	if g.metrics, err = newMetrics(o.Registerer, g); err != nil {
		g.cancel()
		return nil, fmt.Errorf("gossip: %w", err)
	}
	if err := g.listen(o); err != nil {
		g.cancel()
		g.metrics.unregister()
		return nil, err
	}
	g.wg.Add(2)
	go g.publish()
	go g.keepJoined()
	g.publishSoon()
	return g, nil
}

// Addr returns the address that the node listens on and advertises.
func (g *Gossip) Addr() net.Addr { return g.addr }

// Update changes the node's own facts and lets the others know. Updates in quick
// succession are gathered. Announcements over MaxSnapshots are dropped, oldest
// first; strings that are too long for a record are an error, and then nothing
// is changed. change must not call g.
func (g *Gossip) Update(change func(*Facts)) error {
	changed, err := g.view.update(change, false)
	if err != nil {
		return fmt.Errorf("update facts: %w", err)
	}
	if changed {
		g.publishSoon()
	}
	return nil
}

// Members returns everybody, this node first, then by name. A member that was
// not heard yet has a name only. The list is the same for all callers until something
// changes: they do not write to it.
func (g *Gossip) Members() []Member { return g.view.list() }

// Changed returns a channel that is closed at the next change of any member's
// facts or liveness.
func (g *Gossip) Changed() <-chan struct{} { return g.view.wait() }

// Conflict returns a *ConflictError as long as another process, which was there
// first, lives under this node's name at another address. The fleet then
// ignores this node. A predecessor that just died is no conflict: it takes
// about half a minute of both being alive.
func (g *Gossip) Conflict() error { return g.conflicts.current(time.Now()) }

// Leave tells the others that the node goes, waits until that is sent or the
// time is over, and closes.
func (g *Gossip) Leave(timeout time.Duration) error {
	g.closing.Lock()
	defer g.closing.Unlock()
	if g.closed {
		return nil
	}
	var err error
	if _, err = g.view.update(func(*Facts) {}, true); err == nil {
		g.broadcastSelf()
		err = g.list.Leave(max(timeout, time.Millisecond))
	}
	return errors.Join(err, g.close())
}

// Close stops without a word, as a crash would look. It may be called twice,
// and after Leave. A probe of memberlist's that is under way ends by itself,
// silently, a few seconds later at most.
func (g *Gossip) Close() error {
	g.closing.Lock()
	defer g.closing.Unlock()
	return g.close()
}

func (g *Gossip) close() error {
	if g.closed {
		return g.closeErr
	}
	g.closed = true
	g.cancel()
	g.closeErr = g.list.Shutdown()
	g.wg.Wait()
	g.bridge.stop()
	g.metrics.unregister()
	return g.closeErr
}

// publishInterval is the least time between two broadcasts of the own record.
// In a fleet of more than publishNodes it grows in proportion: what the gossip
// can carry does not grow with the number of those who talk.
const (
	publishInterval = 200 * time.Millisecond
	publishNodes    = 50
)

// publishSoon lets publish know that the own record changed.
func (g *Gossip) publishSoon() {
	select {
	case g.dirty <- struct{}{}:
	default: // it knows
	}
}

// publish broadcasts the own record after changes, always its newest state, and
// no more often than it should.
func (g *Gossip) publish() {
	defer g.wg.Done()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-g.dirty:
			g.broadcastSelf()
			g.metrics.published.Inc()
		}
		select {
		case <-g.ctx.Done():
			return
		case <-time.After(publishInterval * time.Duration(max(publishNodes, g.view.alive())) / publishNodes):
		}
	}
}
