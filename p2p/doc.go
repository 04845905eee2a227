// Package p2p moves bulk bytes between peers: the pieces of snapshots through a
// BitTorrent swarm, and ranges of the log and small snapshot files over HTTP.
//
// # Swarm
//
// The swarm is closed: no tracker, DHT, PEX, LSD, uTP or WebTorrent, and no
// extension of the protocol but BEP 6. Peers come from SetPeers, which the
// caller feeds from gossip, and metadata is never taken from a peer: Seed and
// Fetch take a verified torrent. Who may connect is decided by the Listener and
// by Dial (mutual TLS goes in there), not here.
//
// A node's peer id is derived from its name ("-QS0001-" and the first 12 bytes
// of SHA-256("qs-peer-id-v1\x00" ‖ name)), so bytes are accounted to the peer
// that sent them, and a peer that sends damaged data is shunned for a while by
// name, not banned by IP address.
//
// Stock clients can download from a node; a node can not download from them,
// because it asks for blocks of up to 256 KiB.
//
// Where things are: swarm.go the surface; holding.go one torrent's life and its
// accounting; store.go its file; network.go how the client reaches peers, and
// what it gets to know of them; keeper.go whom to connect to, and when to start
// over; sourcing.go whom to ask for how much; swarmconfig.go the client's settings.
//
// # Peer protocol
//
// HTTP/1.1 on the peer address; every request carries the protocol version
// (Qs-Protocol: 1) and, where a dataset is concerned, its id (Qs-Dataset):
//
//	GET /p2p/v1/log?after=SEQ/HASH     a stream that never ends: zstd of frames (below)
//	GET /p2p/v1/snapshot/INFOHASH/manifest
//	GET /p2p/v1/snapshot/INFOHASH/torrent
//
// The log stream is a sequence of messages, each a type byte and its body:
//
//	'E'  one entry frame, as txlog encodes it
//	'H'  head: seq u64, hash 32 bytes, time i64 (little-endian): where the
//	     sender's log ends; sent first, whenever the sender has nothing more to
//	     send, and at least every HeartbeatInterval
//
// A position that the sender no longer holds is 410 Gone with a JSON body that
// becomes a *txlog.TrimmedError again; a diverged one 409 and a
// *txlog.DivergedError; another dataset 421 and ErrOtherDataset; a snapshot that
// is not held 404 and ErrNotHeld; a malformed request 400 and ErrProtocol; a
// peer without a dataset, or with too many streams, 503 with Retry-After.
//
// The receiver trusts nothing. It accepts a zstd window of 256 KiB at most and
// entries of txlog.MaxEntry; memory grows with what arrives, not with what is
// announced. Each entry's hash is verified, and that it follows the one before.
// A peer that cannot be dialled within 5 s, does not answer within 10 s, or
// sends no whole message for three intervals (longer by 1 s for each 128 KiB of
// an entry) is given up. The sender gives up a client that takes no bytes for
// 30 s.
package p2p
