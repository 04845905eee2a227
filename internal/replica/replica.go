package replica

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/txlog"
)

// State is a word of the replica's life, as status and metrics say it.
type State string

const (
	Joining       State = "joining"       // looking for the fleet
	Bootstrapping State = "bootstrapping" // fetching and opening a snapshot
	CatchingUp    State = "catching-up"   // applying the log, to what does not serve yet
	Serving       State = "serving"
	Quarantined   State = "quarantined" // diverged or damaged: out of service
	Repairing     State = "repairing"   // quarantined, and being rebuilt
)

// Log is the node's own log. *txlog.Log is one, but for Read.
type Log interface {
	Dataset() txlog.DatasetID
	Head() txlog.Pos
	HeadTime() time.Time
	First() uint64
	AppendEntries([]txlog.Entry) (txlog.Pos, error)
	Reset(txlog.DatasetID, txlog.Pos) error
	// Read returns the entries after pos, as (*txlog.Log).Reader does.
	Read(pos txlog.Pos) (Entries, error)
}

// Entries reads the own log; *txlog.Reader is one.
type Entries interface {
	Next(ctx context.Context, maxBytes int) ([]txlog.Entry, error)
	Close() error
}

// Target takes entries: a store, or a generation that is being prepared.
type Target interface {
	Position() (txlog.DatasetID, txlog.Pos)
	Apply([]txlog.Entry) error
}

// Store is where the data is served from.
type Store interface {
	Target
	// Install makes a new generation from a fetched, verified snapshot file.
	Install(ctx context.Context, file string) (Generation, error)
}

// Generation is a copy that is not serving yet.
type Generation interface {
	Target
	Activate() error
	Discard() error
}

// Upstream is a node whose log can be followed.
type Upstream struct {
	Name     string
	Addr     string
	Dataset  txlog.DatasetID
	First    uint64    // first seq it can stream; 0: its log is empty
	Head     txlog.Pos // as last heard
	HeadTime time.Time // the writer's clock in that entry
	Writer   bool
	Manager  bool
	Near     bool // same colo
}

// Offer is a snapshot that some live nodes seed.
type Offer struct {
	Dataset  txlog.DatasetID
	Pos      txlog.Pos
	InfoHash chunker.InfoHash
	Size     int64
	Holders  []Holder // for the manifest and the metainfo; managers first
	Manager  bool     // a manager offers it
}

// Claim is what an offer says. Who says something false of a snapshot must not get
// those into discredit who say the truth of it.
type Claim struct {
	Dataset  txlog.DatasetID
	Pos      txlog.Pos
	InfoHash chunker.InfoHash
	Size     int64
}

// Claim returns what o says.
func (o Offer) Claim() Claim { return Claim{o.Dataset, o.Pos, o.InfoHash, o.Size} }

// Holder is a node that offers a snapshot.
type Holder struct {
	Name    string
	Addr    string // where it speaks the peer protocol
	Manager bool
}

func (h Holder) String() string { return h.Name + " at " + h.Addr }

// Fleet is the node's view of the others that live, from gossip, without itself.
type Fleet interface {
	Upstreams() []Upstream
	Offers() []Offer
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// Stream is an upstream's log being streamed; *p2p.Stream is one, but for Head.
type Stream interface {
	Dataset() txlog.DatasetID
	// Next returns entries and where the upstream's log ends.
	Next(maxBytes int) (entries []txlog.Entry, head txlog.Pos, headTime time.Time, err error)
	Close() error
}

// ErrTooEarly is wrapped by Fetch's errors about a snapshot that is not to be had
// yet, though nothing is wrong with it: not enough managers signed it so far.
var ErrTooEarly = errors.New("not enough managers signed it yet")

// Heads are what is known of where the log ends because the writer signed it.
type Heads interface {
	// Furthest returns the furthest head that was verified, zero if none was.
	Furthest() (pos txlog.Pos, signed time.Time)
	// Halt returns why nothing may be applied, nil if all is well, and Halted a
	// channel that is closed when it does.
	Halt() error
	Halted() <-chan struct{}
}

// Network reaches the others.
type Network interface {
	// Stream follows an upstream's log after pos. A refusal is a
	// *txlog.TrimmedError or a *txlog.DivergedError. With Heads it, and the
	// stream, may also end in an error of package heads.
	Stream(ctx context.Context, u Upstream, dataset txlog.DatasetID, after txlog.Pos) (Stream, error)
	// Fetch gets a snapshot and returns its file, complete and verified. One that
	// is on this node's disk already is returned at once.
	Fetch(ctx context.Context, o Offer, progress func(done, total int64)) (file string, err error)
	// Held returns the snapshots on this node's disk, newest first.
	Held(ctx context.Context) ([]Held, error)
	// Salvage puts what the store holds of a snapshot, though it is in quarantine, in
	// place for Fetch to continue with.
	Salvage(ctx context.Context, o Offer) error
}

// Config is what a replica needs.
type Config struct {
	Name    string
	Manager bool // it may be followed before any worker
	Log     Log
	Store   Store
	// Fleet and Network are nil on the writer, which follows nobody.
	Fleet   Fleet
	Network Network
	// Heads, if not nil, says that the Network hands on only what a signed head
	// covers. Then the head that a follower's Status tells is one that was signed.
	Heads Heads
	// Quarantine keeps why the store's copy is out of service. Default: nobody tells
	// of damage, and divergence is forgotten at a restart.
	Quarantine Quarantine
	// OnChange, if not nil, is called after each change of Status worth telling,
	// one call at a time: at once when State or Ready change, otherwise at most
	// ten times a second. A State that is over by then is left out; the last Status is
	// always told.
	OnChange func(Status)
	// Logger gets state changes, alarms, and per-upstream events at debug level.
	// Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_replica_* metrics. Default: none.
	Registerer prometheus.Registerer
}

func (c *Config) validate() error {
	switch {
	case c.Name == "":
		return errors.New("replica: no name")
	case c.Log == nil || c.Store == nil:
		return errors.New("replica: a log and a store are required")
	case (c.Fleet == nil) != (c.Network == nil):
		return errors.New("replica: a follower needs both a fleet and a network, the writer neither")
	}
	if c.Quarantine == nil {
		c.Quarantine = noQuarantine{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Status is a replica as others should see it.
type Status struct {
	State    State
	Ready    bool // reads may be served (the old copy's, while a new one is prepared)
	Applied  txlog.Pos
	Head     txlog.Pos // the furthest position known to exist
	HeadTime time.Time // the writer's clock in the entry at Head, zero if unknown
	Signed   time.Time // the writer's clock when it signed the furthest head that was verified
	Upstream string    // whom it follows
	Done     int64     // bytes of the snapshot being fetched
	Total    int64
	Rebuilds int    // bootstraps begun since start
	Err      string // the last thing that went wrong, empty once it is over
}

// ErrStopped is returned by WaitApplied when Run has ended or halted.
var ErrStopped = errors.New("replica stopped")

// Replica is one copy's life.
type Replica struct {
	c       Config
	log     *slog.Logger
	metrics *metrics
	board   *board
	wake    chan struct{} // full when the life should look around
	started atomic.Bool

	// These belong to whichever activity runs: follow or rebuild.
	ups    *upstreams
	offers *offers

	link link
}

// New checks the configuration.
func New(c Config) (*Replica, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	r := &Replica{
		c: c, log: c.Logger, metrics: newMetrics(c.Registerer),
		wake: make(chan struct{}, 1), ups: newUpstreams(c.Name, c.Manager), offers: newOffers(),
	}
	_, applied := c.Store.Position()
	r.board = newBoard(Status{State: Joining, Applied: applied, Head: c.Log.Head(), HeadTime: c.Log.HeadTime()})
	return r, nil
}

// Run lives until ctx ends, which returns nil, or until something happens that
// no retry can mend (the node's own disk fails, the fleet holds another
// dataset), which is returned. It can be called once.
func (r *Replica) Run(ctx context.Context) error {
	if !r.started.CompareAndSwap(false, true) {
		return errors.New("replica: Run was called before")
	}
	defer r.board.release()
	telling := start(context.WithoutCancel(ctx), func(ctx context.Context) error {
		r.board.tell(ctx, r.c.OnChange)
		return nil
	})
	defer telling.stop()
	var err error
	if r.c.Fleet == nil {
		err = r.lead(ctx)
	} else {
		err = r.live(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Status returns the present state.
func (r *Replica) Status() Status { return r.board.get() }

// Stuck returns why nothing can be applied for now (ErrStuck), nil if all is well.
func (r *Replica) Stuck() error { return r.board.hindrance() }

// WaitApplied returns once the store has applied seq, or with ctx's error, or
// with ErrStopped or ErrStuck.
func (r *Replica) WaitApplied(ctx context.Context, seq uint64) error {
	return r.board.wait(ctx, seq)
}

// poke makes the life look around.
func (r *Replica) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}
