// Package gossip moves small facts between all nodes: who is there, where, in
// what state, at which position, with which snapshots.
//
// Each node owns one record, its Facts, versioned by (incarnation, counter).
// A newer version supersedes an older one wherever they meet: in broadcasts and
// in the periodic push-pull exchange of full state, so partitions heal by
// themselves. A node that hears a version of its own record that is newer than
// its own (its clock went back before a restart) raises its incarnation above it.
//
// Liveness comes from memberlist: a node that died is kept as failed, one that
// said so as left, until ForgetAfter.
package gossip

import (
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/txlog"
)

// MaxFacts is the largest encoded record, in bytes: it must fit a datagram.
const MaxFacts = 1200

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
	Head        txlog.Pos // the end of the node's own log
	HeadTime    time.Time
	LogFirst    uint64 // the first seq that the node can stream
	Snapshots   []Announcement

	Progress          float64 // of the bootstrap, 0 to 1
	BytesFromManagers int64   // snapshot payload received since start
	BytesFromWorkers  int64
}

// Liveness is what memberlist believes of a node.
type Liveness int

const (
	Alive  Liveness = iota
	Failed          // stopped answering
	Left            // said that it leaves
)

// Member is a node as this node sees it.
type Member struct {
	Facts
	Liveness Liveness
	Addr     string    // host:port of its gossip listener
	Since    time.Time // this node's clock when Liveness last changed
}

// Options configure a node's gossip.
type Options struct {
	// Facts are the node's first facts. Name and Role are required and stay.
	Facts Facts
	// Addr is the host:port to listen on, TCP and UDP. Port 0 takes a free one.
	Addr string
	// Join are the host:port of members to join. Unreachable ones are retried
	// with back-off as long as no other member is known.
	Join []string
	// Transport replaces TCP and UDP, for tests and for TLS.
	Transport memberlist.Transport
	// ForgetAfter is how long failed and left members stay listed. Default 24 h.
	ForgetAfter time.Duration
	// Logger also gets memberlist's messages, at debug level. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_gossip_* metrics. Default: none.
	Registerer prometheus.Registerer
}

// Gossip is this node's part in the gossip. Its methods may be called concurrently.
type Gossip struct{}

// Start begins to listen and to join. A taken port is an error; members that
// cannot be reached are not.
func Start(o Options) (*Gossip, error) { panic("unwritten") }

// Addr returns the address that the node listens on and advertises.
func (g *Gossip) Addr() net.Addr { panic("unwritten") }

// Update changes the node's own facts and lets the others know. Updates in quick
// succession are gathered. Announcements over MaxSnapshots are dropped, oldest
// first; strings that are too long for a record are an error.
func (g *Gossip) Update(change func(*Facts)) error { panic("unwritten") }

// Members returns everybody, this node first, then by name.
func (g *Gossip) Members() []Member { panic("unwritten") }

// Changed returns a channel that is closed at the next change of any member's
// facts or liveness.
func (g *Gossip) Changed() <-chan struct{} { panic("unwritten") }

// Leave tells the others that the node goes, waits until that is sent or the
// time is over, and closes.
func (g *Gossip) Leave(timeout time.Duration) error { panic("unwritten") }

// Close stops without a word, as a crash would look. It may be called twice,
// and after Leave.
func (g *Gossip) Close() error { panic("unwritten") }
