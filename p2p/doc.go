// Package p2p moves bulk bytes between peers: the pieces of snapshots through a
// BitTorrent swarm, and ranges of the log and small snapshot files over HTTP.
//
// # Swarm
//
// The swarm is closed: no tracker, DHT, PEX, LSD, uTP or WebTorrent. Peers come
// from SetPeers, which the caller feeds from gossip, and metadata is never
// taken from a peer: Seed and Fetch take a verified torrent. A node's peer id
// is derived from its name, so bytes can be accounted to the peer that sent them.
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
