// Package replica is the life of one copy of the dataset:
//
//	joining → bootstrapping → catching-up → serving
//	             ↑________________|____________|   when no log reaches back any more
//
// Three activities, which this package starts, stops and restarts:
//
//	follow   upstream's log → own log       (a worker, a following manager)
//	apply    own log → store                (everybody; the writer has only this)
//	rebuild  a snapshot → a new generation  (when following is impossible)
//
// The own log is always ahead of or level with the store: an entry is on stable
// storage in the log before it is applied. While a new generation is prepared
// the old one, if it holds anything and did not diverge, keeps serving.
//
// The package has no sockets, no files and no cgo: it acts through the small
// interfaces below, and takes time from package time, so that its tests run
// whole lives in testing/synctest.
package replica

import (
	"context"
	"log/slog"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/txlog"
)

// State is a word of the replica's life, as status and metrics say it.
type State string

const (
	Joining       State = "joining"       // looking for the fleet
	Bootstrapping State = "bootstrapping" // fetching and opening a snapshot
	CatchingUp    State = "catching-up"   // applying the log, not serving yet
	Serving       State = "serving"
	Quarantined   State = "quarantined" // diverged or damaged: out of service
	Repairing     State = "repairing"   // quarantined, and being rebuilt
)

// Log is the node's own log. *txlog.Log is one, but for Read.
type Log interface {
	Dataset() txlog.DatasetID
	Head() txlog.Pos
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
	Name    string
	Addr    string
	Dataset txlog.DatasetID
	First   uint64    // first seq it can stream
	Head    txlog.Pos // as last heard
	Writer  bool
	Near    bool // same colo
}

// Offer is a snapshot that some live nodes seed.
type Offer struct {
	Dataset  txlog.DatasetID
	Pos      txlog.Pos
	InfoHash chunker.InfoHash
	Size     int64
	Holders  []string // peer addresses, for the manifest and the metainfo; managers first
	Manager  bool     // a manager offers it
}

// Fleet is the node's view of the others, from gossip, without itself.
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

// Network reaches the others.
type Network interface {
	// Stream follows an upstream's log after pos.
	Stream(ctx context.Context, u Upstream, dataset txlog.DatasetID, after txlog.Pos) (Stream, error)
	// Fetch gets a snapshot and returns its file, complete and verified.
	Fetch(ctx context.Context, o Offer, progress func(done, total int64)) (file string, err error)
}

// Config is what a replica needs. All but Logger and OnChange is required.
type Config struct {
	Name  string
	Log   Log
	Store Store
	// Fleet and Network are nil on the writer, which follows nobody.
	Fleet   Fleet
	Network Network
	Logger  *slog.Logger
	// OnChange is called after each change of Status worth telling, from the
	// replica's goroutine.
	OnChange func(Status)
}

// Status is a replica as others should see it.
type Status struct {
	State    State
	Ready    bool // reads may be served (the old copy's, while a new one is prepared)
	Applied  txlog.Pos
	Head     txlog.Pos // the furthest position known to exist
	HeadTime time.Time
	Upstream string // whom it follows
	Done     int64  // bytes of the snapshot being fetched
	Total    int64
	Rebuilds int    // bootstraps begun since start
	Err      string // the last thing that went wrong, empty once it is over
}

// Replica is one copy's life.
type Replica struct{}

// New checks the configuration.
func New(c Config) (*Replica, error) { panic("unwritten") }

// Run lives until ctx ends, which returns nil, or until something happens that
// no retry can mend (the node's own disk fails, the fleet holds another
// dataset), which is returned.
func (r *Replica) Run(ctx context.Context) error { panic("unwritten") }

// Status returns the present state.
func (r *Replica) Status() Status { panic("unwritten") }

// WaitApplied returns once the store has applied seq, or with ctx's error.
func (r *Replica) WaitApplied(ctx context.Context, seq uint64) error { panic("unwritten") }
