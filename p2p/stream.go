package p2p

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/txlog"
)

// Errors that callers branch on.
var (
	// ErrOtherDataset means that the peer holds another dataset.
	ErrOtherDataset = errors.New("peer holds another dataset")
	// ErrNotHeld means that the peer does not have that snapshot.
	ErrNotHeld = errors.New("peer does not hold that snapshot")
	// ErrProtocol is wrapped by errors about what a peer sent.
	ErrProtocol = errors.New("peer protocol error")
)

// HeartbeatInterval is the longest silence of a healthy log stream. A client
// gives a stream up after three of them.
const HeartbeatInterval = time.Second

// Head is where a peer's log ends.
type Head struct {
	Pos  txlog.Pos
	Time time.Time // the writer's clock in that entry; zero if unknown
}

// ServerOptions configure the peer protocol's server side.
type ServerOptions struct {
	// Log is what is streamed. Required.
	Log *txlog.Log
	// Snapshot returns the manifest and the metainfo of a snapshot that this
	// node holds. Required.
	Snapshot func(chunker.InfoHash) (manifest, metainfo []byte, ok bool)
	// MaxStreams bounds concurrent log streams. Default 1024.
	MaxStreams int
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// NewServer returns the handler of the peer protocol. Its streams end when the
// log or the request ends.
func NewServer(o ServerOptions) http.Handler { panic("unwritten") }

// Client is the client side of the peer protocol.
type Client struct{}

// ClientOptions configure a Client. The zero value is ready to use.
type ClientOptions struct {
	// Dial connects to other peers. Default: TCP.
	Dial       DialFunc
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// NewClient returns a client of the peer protocol.
func NewClient(o ClientOptions) *Client { panic("unwritten") }

// Stream asks the peer at addr for the entries after pos, forever. A zero
// dataset accepts any (a node that holds nothing yet); Stream.Dataset then
// tells which it is.
func (c *Client) Stream(ctx context.Context, addr string, dataset txlog.DatasetID, after txlog.Pos) (*Stream, error) {
	panic("unwritten")
}

// Manifest fetches a snapshot's manifest: at most 64 KiB, unverified.
func (c *Client) Manifest(ctx context.Context, addr string, h chunker.InfoHash) ([]byte, error) {
	panic("unwritten")
}

// Torrent fetches a snapshot's metainfo and checks that it has that infohash.
func (c *Client) Torrent(ctx context.Context, addr string, h chunker.InfoHash) (*chunker.Torrent, error) {
	panic("unwritten")
}

// Close ends idle connections. Streams end with their context.
func (c *Client) Close() { panic("unwritten") }

// Stream is a running log stream. One goroutine may use it.
type Stream struct{}

// Dataset returns the sender's dataset.
func (s *Stream) Dataset() txlog.DatasetID { panic("unwritten") }

// Next returns entries that arrived, verified one by one and linked to those
// before, about maxBytes at most, and where the sender's log ends. It waits for
// at least one message; entries may be empty when that was a heartbeat. A
// silent, garbled or unlinked stream is an error, and the stream is over.
func (s *Stream) Next(maxBytes int) ([]txlog.Entry, Head, error) { panic("unwritten") }

// Close ends the stream. It may be called twice, and while Next waits.
func (s *Stream) Close() error { panic("unwritten") }
