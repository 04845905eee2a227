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
//	    60     4  number of operations, at least 1
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
// sealed. See segment.go for the byte diagram of the segment header and of the
// sync marks, which tell a torn tail (never acknowledged: truncated at open)
// from damage to acknowledged bytes (CorruptError: refused).
//
// # Guarantees
//
// Append returns only after the entry is on stable storage, together with every
// entry before it; concurrent calls share one fsync. Readers see only entries
// that are on stable storage. After a failed fsync the log refuses to append
// until it is opened again, because nobody knows what the disk kept.
package txlog
