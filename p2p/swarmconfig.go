package p2p

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/anacrolix/torrent/storage"
	"golang.org/x/time/rate"
)

// The reasons for these are in docs/decisions/0003-swarm-configuration.md.
const (
	// blockSize is what this node requests at a time, in bytes. Requests of any
	// size are served, so clients that ask for 16 KiB can download from here.
	blockSize = 256 << 10
	// maxConns bounds the connections of one torrent.
	maxConns = 64
	// maxBuffered bounds what is read ahead of a slow peer, in bytes.
	maxBuffered = 4 * blockSize

	peerDialTimeout      = 5 * time.Second
	peerHandshakeTimeout = 10 * time.Second
	peerKeepAlive        = time.Second
)

// peerID derives the BitTorrent peer id from a node's name: "-QS0001-" and the
// first 12 bytes of SHA-256("qs-peer-id-v1\x00" ‖ name).
func peerID(name string) (id torrent.PeerID) {
	n := copy(id[:], "-QS0001-")
	sum := sha256.Sum256([]byte("qs-peer-id-v1\x00" + name))
	copy(id[n:], sum[:])
	return id
}

// clientConfig closes the swarm: the client has no way to a peer but the
// network's, and speaks nothing but the base protocol (BEP 3) and the fast
// extension (BEP 6).
func (s *Swarm) clientConfig() *torrent.ClientConfig {
	c := torrent.NewDefaultClientConfig()
	c.PeerID = string(s.self[:])
	c.NoDHT = true
	c.PeriodicallyAnnounceTorrentsToDht = false
	c.DisableTrackers = true
	c.DisablePEX = true
	c.DisableUTP = true
	c.DisableTCP = true
	c.DisableWebtorrent = true
	c.DisableWebseeds = true
	c.NoDefaultPortForwarding = true
	c.Extensions = pp.NewPeerExtensionBytes(pp.ExtensionBitFast)
	c.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{Preferred: false, RequirePreferred: true}

	c.DefaultStorage = noStorage{}
	c.Seed = true
	c.DropDuplicatePeerIds = true
	c.DialRateLimiter = rate.NewLimiter(rate.Inf, 1)
	c.NominalDialTimeout = peerDialTimeout
	c.MinDialTimeout = peerDialTimeout
	c.HandshakesTimeout = peerHandshakeTimeout
	c.KeepAliveTimeout = peerKeepAlive
	c.EstablishedConnsPerTorrent = maxConns
	c.MaxAllocPeerRequestDataPerConn = maxBuffered
	// No window over the first missing pieces: with one, peers that are equally
	// far fetch the same pieces.
	c.MaxUnverifiedBytes = 0
	c.Slogger = slog.New(debugHandler{s.o.Logger.Handler()})

	c.Callbacks.PeerConnAdded = append(c.Callbacks.PeerConnAdded, s.connAdded)
	c.Callbacks.PeerConnClosed = s.connClosed
	c.Callbacks.ReadMessage = s.messageRead
	c.Callbacks.SentRequest = append(c.Callbacks.SentRequest, s.requested)
	c.Callbacks.ReceivedUsefulData = append(c.Callbacks.ReceivedUsefulData, s.usefulRead)
	return c
}

// noStorage is for torrents that bring no storage of their own, of which there
// are none here. The client's default would make a database in the process's
// working directory.
type noStorage struct{}

func (noStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{}, errors.New("torrent was added without storage")
}

// debugHandler passes the torrent client's messages on at debug level.
type debugHandler struct{ slog.Handler }

func (h debugHandler) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

func (h debugHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return h.Handler.Handle(ctx, r)
}

func (h debugHandler) WithAttrs(as []slog.Attr) slog.Handler {
	return debugHandler{h.Handler.WithAttrs(as)}
}

func (h debugHandler) WithGroup(name string) slog.Handler {
	return debugHandler{h.Handler.WithGroup(name)}
}
