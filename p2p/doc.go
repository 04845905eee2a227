// Package p2p moves bulk bytes between peers: the pieces of snapshots through a
// BitTorrent swarm, and ranges of the log and small snapshot files over HTTP.
//
// # Swarm
//
// The swarm is closed: no tracker, DHT, PEX, LSD, uTP or WebTorrent, and no
// extension of the protocol but BEP 6. Peers come from SetPeers, which the
// caller feeds from gossip, and metadata is never taken from a peer: Seed and
// Fetch take a verified torrent.
//
// A node's peer id is derived from its name ("-QS0001-" and the first 12 bytes
// of SHA-256("qs-peer-id-v1\x00" ‖ name)), so bytes are accounted to the peer
// that sent them, and a peer that sends damaged data is shunned for a while by
// name, not banned by IP address.
//
// Stock clients can download from a node; a node can not download from them,
// because it asks for blocks of up to 256 KiB.
//
// The torrent client connects the nodes of one colo that fetch or hold a
// snapshot. What the colo lacks enters it once: each worker asks managers and other
// colos' workers, by the peer protocol, for the pieces that it leases (package
// lease), puts them into the torrent's file, and the client announces them.
//
// Where things are: swarm.go the surface; holding.go one torrent's life and its
// accounting; progress.go how far a fetch is, and who sent what; store.go its
// file; network.go how the client reaches peers, and what it gets to know of them;
// announce.go when peers hear what came in; keeper.go whom to connect to, and when
// to start over; availability.go what the colo has, and offer.go what of that the
// client knows to be missing here; sourcing.go how what the colo lacks is asked for;
// pieces*.go the same over the peer protocol; budget.go how much may go; identity.go who
// is on the other end, target.go who is to be, and quota.go what one may ask for; framing.go,
// sendqueue.go and cork.go how the kernel is used; swarmconfig.go the client's settings.
//
// # Who is on the other end
//
// Listener and Dial, and the peer protocol's, may bring TLS connections whose
// handshakes are done and whose certificates are good (package internal/edge). Then
// the other end is who its certificate says: a node, which may fetch
// (trust.VerbFetch), by its name. A node that is dialled or asked has to be the one
// that gossip knows there. In the swarm the peer id in the BitTorrent handshake has to be
// the one of that name, whoever connected, so that nobody has another shunned; who is
// shunned is not let in, from whatever address or process. The peer protocol's
// server takes the asker's name and colo from the certificate, whatever the request says, and
// answers other roles with 403 (ErrForbidden). RefusedFunc hears of all this.
//
// Without TLS names are what is said.
//
// # Peer protocol
//
// HTTP/1.1 on the peer address; every request carries the protocol version
// (Qs-Protocol: 1) and, where a dataset is concerned, its id (Qs-Dataset):
//
//	GET /p2p/v1/log?after=SEQ/HASH     a stream that never ends: zstd of frames (below)
//	GET /p2p/v1/digest?seq=N           the digest of all pairs after entry N: {"pos":"SEQ/HASH","digest":"64 hexadecimal digits"}
//	GET /p2p/v1/snapshot/INFOHASH/manifest
//	GET /p2p/v1/snapshot/INFOHASH/torrent
//	GET /p2p/v1/snapshot/INFOHASH/have          which pieces the peer holds
//	GET /p2p/v1/snapshot/INFOHASH/piece/INDEX   one of them
//
// The log stream is a sequence of messages, each a type byte and its body:
//
//	'E'  one entry frame, as txlog encodes it
//	'H'  head: seq u64, hash 32 bytes, time i64 (little-endian): where the
//	     sender's log ends; sent first, whenever the sender has nothing more to
//	     send, and at least every HeartbeatInterval
//	'S'  signed head: length u16, that many bytes (at most 4,096): a note that
//	     this package does not read; only to who asks for it with &heads=signed,
//	     which the answer confirms with Qs-Heads: signed. It is sent behind the
//	     entry that it is of, or, to say how long the log is, before the entries
//	'D'  digest: seq u64, hash 32 bytes, digest 32 bytes: what the sender's store
//	     holds now; behind each 'H', only to who asks for it with &digests=applied
//
// Who asks for the log may show a signed head that it knows (Qs-Head, base64), by
// which the sender notices when its own log is not what was signed.
//
// A position that the sender no longer holds is 410 Gone with a JSON body that
// becomes a *txlog.TrimmedError again; a diverged one 409 and a
// *txlog.DivergedError; another dataset 421 and ErrOtherDataset; a snapshot that
// is not held 404 and ErrNotHeld, a digest that is not known 404 and ErrNoDigest; a malformed request, or one with a body, 400 and
// ErrProtocol; one by somebody who may not fetch 403 and ErrForbidden; a
// peer without a dataset, or with too many streams or requests, 503 with
// Retry-After and a *BusyError.
//
// # First copies
//
// A piece is asked for by name (the certificate's, or without TLS Qs-Node: NAME, at
// most 128 bytes) and
// comes as it is in the file: 200 with its exact Content-Length, uncompressed.
// INDEX is decimal, from 0, without sign or leading zeros. Each piece is handed
// to one node of a colo at a time, by the colo that the certificate or else gossip
// tells of the asker, not what the request says: another gets 409 with {"holder": NAME,
// "retry_ms": N}, a *LeasedError. A piece that is not there, not good or can
// not be read is 404. The pieces that are there come as a bitmap of
// ceil(pieces/8) bytes, the first piece in the highest bit of the first byte,
// spare bits zero (as BEP 3 has it).
//
// A source sends an asker one piece at a time: its further requests wait, so
// that the first piece can be passed on soon. An asker keeps at most 16
// connections to a source, and gives it up when no byte came for 10 s on any of
// them; a piece has no other limit of time, so that one of 8 MiB may take a
// minute at 1 Mbit/s. The asker verifies each piece by its hash.
//
// A source bounds what askers can keep it busy with: 32 requests and connections
// of an asker, 2,048 requests of all, beyond which the answer is 503; and 4,096
// connections. A receiver that does not take 256 KiB within 30 s is given up, in the
// swarm, too.
//
// Of one certificate's name a server takes 8 log streams, 72 requests at a time, and
// 1,000 a second after 4,096 at once, where one for a log stream, a manifest or a
// metainfo counts as 50 and one for a piece that is sent not at all; then it answers 503. A request's headers are at most 8 KiB and
// arrive within 10 s, and a connection is closed when none came for 2 min. The BitTorrent
// handshake takes 10 s at most, and a connection on which nothing comes
// for 150 s is closed.
//
// # Budgets
//
// A Budget limits what a node sends, or receives, over all these connections:
// exactly over seconds, and what is urgent first (Class). The torrent client's
// own limiters are not used: they know neither classes nor the other traffic.
//
// # What both sides hold each other to
//
// The receiver trusts nothing. It accepts a zstd window of 256 KiB at most and
// entries of txlog.MaxEntry; memory grows with what arrives, not with what is
// announced. Each entry's hash is verified, and that it follows the one before.
// A peer that cannot be dialled within 5 s, does not answer within 10 s, or
// sends no whole message for three intervals (longer by 1 s for each 128 KiB of
// an entry) is given up. The sender gives up a client that takes no bytes for
// 30 s.
package p2p
