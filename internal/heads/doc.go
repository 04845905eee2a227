// Package heads proves where a dataset's log stands, to nodes that got it from
// somebody they need not believe.
//
// The writer signs the position of its last durable entry (Signer). Because each
// entry carries the hash of the one before, a signed head vouches for every
// entry up to it: it covers them. Heads travel with the log, verbatim, from node
// to node; each follower verifies them (Guard) and hands on only entries that
// one covers, so that nobody but the writer can add an entry, or change one.
//
// # Signed head
//
// A signed note (package signing) of this text, nothing else:
//
//	qs-peer head v1
//	dataset 32 hexadecimal digits
//	pos SEQ/HASH
//	time RFC 3339, UTC, nanoseconds: the writer's clock when it signed
//
// A head of version 2 (qs-peer head v2) has one line more, of the pairs that the
// log made up to an entry at or before pos, as the writer's store has them:
//
//	applied SEQ/HASH 64 hexadecimal digits
//
// The writer signs when its head advanced, at most every SignGap, and at least
// every SignInterval.
//
// # Book
//
// A node keeps the newest head, and one for about every Spacing bytes of log, so
// that those who are far behind need not wait for the newest to be sure of the
// first entry. Two files of the data directory:
//
//	heads/kept     magic "qs-heads", version u32 (1); then records
//	heads/newest   two slots of 8 + 4,096 bytes, each with a record; written in turn
//
//	record         length u32, CRC-32C of the note u32, the note    (little-endian)
//
// Nothing in the book has to be believed: a head proves itself. So it is not
// worth a place in the order of the log's fsyncs. kept is fsynced once a second
// at most, newest never: a crash of the process loses nothing, a power cut some
// of the last ones, and the next head covers what those covered. Damage is cut
// off, with what is behind it. The writer signs what its book lacks when it
// starts.
//
// # Forks
//
// Two signed heads that vouch for different entries at one seq prove that the
// key was used for two histories: the writer was restored from an old copy, or
// there are two, or the key was stolen. No node can tell which history is
// right. One that finds out keeps the evidence (Evidence, in evidence/ of the
// data directory) and applies nothing from then on, restarts included, until an
// operator has decided and removed it; it serves on what it has.
//
// An upstream that contradicts us without such proof is at fault itself, and
// another one is followed. If our own entries are not covered (a tail from
// before heads were signed) and a signed head contradicts them, they are wrong.
package heads
