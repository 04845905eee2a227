package p2p

import (
	"context"
	"log/slog"
	"net"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
)

// DialFunc opens a connection to a peer; mutual TLS goes in here.
type DialFunc func(ctx context.Context, addr string) (net.Conn, error)

// Peer is a node that may have pieces.
type Peer struct {
	Name    string
	Addr    string // host:port of its swarm listener
	Colo    string
	Manager bool
}

// SwarmOptions configure a swarm.
type SwarmOptions struct {
	// Name is this node's name, unique in the fleet. Required.
	Name string
	// Listener accepts the connections of other peers. The swarm owns and
	// closes it. Required.
	Listener net.Listener
	// Dial connects to other peers. Default: TCP.
	Dial DialFunc
	// UploadRate and DownloadRate limit payload, in bytes per second. 0: no limit.
	UploadRate, DownloadRate int64
	// Logger also gets the torrent client's messages, at debug level. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the qs_swarm_* metrics. Default: none.
	Registerer prometheus.Registerer
}

// Swarm is this node's part in the swarm of each snapshot it holds or fetches.
// Its methods may be called concurrently.
type Swarm struct{}

// NewSwarm starts listening.
func NewSwarm(o SwarmOptions) (*Swarm, error) { panic("unwritten") }

// SetPeers replaces the list of peers that may be connected to. Peers that are
// no longer listed are not dialled any more; peers that are new are, for every
// torrent that needs them.
func (s *Swarm) SetPeers(peers []Peer) { panic("unwritten") }

// Seed offers a complete, verified file. The file stays open until Drop or
// Close and may be renamed meanwhile.
func (s *Swarm) Seed(t *chunker.Torrent, path string) error { panic("unwritten") }

// Progress is the state of a fetch, in bytes of payload.
type Progress struct {
	Total        int64
	Done         int64 // verified pieces, those found on disk included
	FromManagers int64 // received and useful, by sender
	FromWorkers  int64
	Wasted       int64 // received twice, or part of a bad piece
	Peers        int   // connected
}

// Fetch downloads the file to path and returns when every piece is verified and
// the file fsynced. What path holds already is hashed and kept where it is
// good. After success the file is seeded as after Seed; after an error (ctx
// ended, the disk is full) the torrent is dropped and what was fetched stays
// for the next Fetch. progress, if not nil, is called about four times a second.
func (s *Swarm) Fetch(ctx context.Context, t *chunker.Torrent, path string, progress func(Progress)) error {
	panic("unwritten")
}

// Drop stops offering a torrent and closes its file. It does not remove it.
func (s *Swarm) Drop(h chunker.InfoHash) { panic("unwritten") }

// Totals returns the payload received since the start, over all torrents.
func (s *Swarm) Totals() (fromManagers, fromWorkers int64) { panic("unwritten") }

// Close leaves all swarms and waits. It may be called twice.
func (s *Swarm) Close() error { panic("unwritten") }
