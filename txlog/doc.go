// Package txlog is the append-only, hash-chained transaction log.
//
// It owns the entry's one encoding, which is the same on disk and on the wire,
// and the segment files that hold it. An entry is one transaction: one or more
// operations that are applied together or not at all. Entries are numbered from
// 1 without gaps, and each carries the hash of the entry before it, so a reader
// that holds one position can prove the order and the content of everything
// after it.
//
// # Entry frame (disk and wire, little-endian)
//
//	offset  size  field
//	     0     4  n: length of the rest of the frame in bytes (everything after this field)
//	     4    32  prev: hash of the entry before; zeros for the first entry of a dataset
//	    36     8  seq: from 1, gapless
//	    44     8  epoch: fences an old writer out; 1 in this version
//	    52     8  time: the writer's clock, nanoseconds since 1970, never less than the entry before
//	    60     4  number of operations, 1 to MaxOps
//	    64     …  operations, each: kind u8, key length u16, value length u32, key, value
//	   n-28   32  hash = SHA-256("qs-entry-v1\x00" ‖ bytes 4 … n-28)
//
// The whole frame is at most MaxEntry bytes. The encoding is canonical: the
// operations must fill the body exactly and a delete carries no value, so one
// entry has one encoding.
//
// The first entry of a dataset (seq 1) holds a single Init operation whose
// value is the 16-byte dataset id.
//
// # Segments
//
// The log is a directory of files named by their first seq, in 20 decimal
// digits: 00000000000000000001.log. The last one is the tail; the others are
// sealed. segment.go has the byte diagram of the segment header and of the sync
// marks, which tell a torn tail (never acknowledged: truncated at open) from
// damage to acknowledged bytes (CorruptError: refused), and says how Reset swaps
// one log for another. A directory belongs to one Log at a time; the caller
// holds a lock on it.
//
// # Guarantees
//
// Append returns only after the entry is on stable storage, together with every
// entry before it; concurrent calls share one fsync. Readers see only entries
// that are on stable storage, and verify each: a damaged entry is a
// CorruptError, never served. After a failed fsync the log refuses to append
// until it could be opened again, because nobody knows what the disk kept; while
// it is asked to append it tries that once a second. A full disk
// fails the appends that met it and no others. Create, Reset and Trim leave the
// old log or the new one, whenever the power goes.
//
// # Not guaranteed
//
// An entry whose Append returned an error may still be kept: the caller's ctx
// ended first, or an fsync failed, or the power did. Nothing is written after
// it that denies it.
//
// Open verifies every entry of the tail, but of sealed segments only that each
// follows the one before; Verify reads everything. Bytes that were never proved
// by a later sync mark, which is the last batch of a process that did not Close,
// are cut off when they are damaged, because they look like a torn write; so is
// a tail that somebody shortened at a frame's end. Both leave Head behind the
// position that the store holds, which is where to notice it.
package txlog
