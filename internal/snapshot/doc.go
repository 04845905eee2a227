// Package snapshot owns a node's snapshots directory and the manifest format.
//
// A snapshot is three files that appear together, the manifest last:
//
//	NAME.mdb        the canonical LMDB file, immutable, seeded as it is
//	NAME.torrent    its metainfo
//	NAME.manifest   what is known about it, signed: a signed note (package signing), or its bare text
//
// with NAME = snapshot-SEQ-HASH: the seq in 20 decimal digits and the first 16
// digits of the entry's hash. Beside them there may be
//
//	NAME.part       the file while it is being fetched: kept, so that the fetch resumes
//	NAME.mint       the file while it is being minted: removed at open
//	NAME.*.damaged  what is damaged of a snapshot, set aside as evidence (of the file some bad pieces,
//	                NAME.piece-N.damaged); of the newest two
//
// # Crashes
//
// The file's content is on stable storage before it is called NAME.mdb, and
// that name is before NAME.manifest exists; removing goes the other way. So a
// NAME.mdb with a manifest is complete, and a NAME.mdb or NAME.torrent without one
// is what a crash left of making or removing it: Open deletes it. A manifest whose
// files are missing, do not agree with it or have another size is damage: the
// snapshot is Broken, its file is NAME.part again, and the manifest beside it says
// what is to be mended.
//
// Signatures are added later, too: NAME.manifest is then replaced at once.
//
// # Manifest
//
// Text, one "name value" pair a line in this order, which is what managers sign:
//
//	qs-snapshot-v1
//	dataset 32 hexadecimal digits
//	pos SEQ/HASH
//	time RFC 3339 with nanoseconds, UTC: the writer's clock in the entry at pos
//	format 1
//	pairs N
//	size BYTES
//	sha256 64 hexadecimal digits
//	infohash 40 hexadecimal digits
//	piece-length BYTES
//	piece-root 64 hexadecimal digits: over the SHA-256 of every piece (see package chunker)
//
// Every field follows from the log up to pos, so two managers at one position
// write the same manifest, to the byte. Numbers have no leading zeros, digits
// above 9 are lower case, trailing zeros of the nanoseconds are dropped: one
// manifest has one text, and ParseManifest accepts no other.
package snapshot
