package peer

import (
	"context"
	"log/slog"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
)

// Options configure a node. Data, Name and Role are required. Listen addresses
// are host:port; port 0 takes a free one.
type Options struct {
	Data string // the data directory
	Name string
	Role gossip.Role
	Colo string

	GossipAddr string
	SwarmAddr  string
	PeerAddr   string
	HTTPAddr   string
	RESPAddr   string // empty: no RESP over TCP
	RESPUnix   string // path of a Unix socket; empty: none

	// Join are gossip addresses of members. A manager with an empty data
	// directory creates a dataset if it joins nobody or Init is set, and
	// otherwise waits for the dataset of those it joins and follows it.
	Join []string
	Init bool
	// Insecure allows listening on other than loopback addresses without TLS.
	Insecure bool

	// SnapshotEvery is how often a manager publishes when there are new
	// entries. 0: only when asked.
	SnapshotEvery time.Duration
	// KeepSnapshots is how many snapshots a manager keeps and seeds. Default 2.
	// The log reaches back to the oldest of them.
	KeepSnapshots int
	// UploadRate, DownloadRate and MintRate are in bytes per second. 0: no limit.
	UploadRate, DownloadRate, MintRate int64

	Version string
	Logger  *slog.Logger
}

// Addrs are the addresses a running node listens on, as in addrs.json.
type Addrs struct {
	PID    int    `json:"pid"`
	Gossip string `json:"gossip"`
	Swarm  string `json:"swarm"`
	Peer   string `json:"peer"`
	HTTP   string `json:"http"`
	RESP   string `json:"resp,omitempty"`
}

// Peer is a running node.
type Peer struct{}

// Start opens the data directory, listens, joins and begins to live. What makes
// a start impossible (a directory of another dataset or of a newer format, in
// use or read-only; a taken port; a damaged log) is an error that names it.
// ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Peer, error) { panic("unwritten") }

// Addrs returns where the node listens.
func (p *Peer) Addrs() Addrs { panic("unwritten") }

// Done is closed when the node can not go on; Err then says why.
func (p *Peer) Done() <-chan struct{} { panic("unwritten") }

// Err returns why the node stopped by itself, nil otherwise.
func (p *Peer) Err() error { panic("unwritten") }

// Close leaves the fleet, finishes what is in flight until ctx ends, and frees
// everything. It may be called twice.
func (p *Peer) Close(ctx context.Context) error { panic("unwritten") }
