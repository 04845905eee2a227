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
// *txlog.DivergedError; another dataset 421 and ErrOtherDataset.
package p2p
