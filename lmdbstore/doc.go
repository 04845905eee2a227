// Package lmdbstore keeps the dataset in LMDB.
//
// It applies log entries together with the position they lead to, in one LMDB
// transaction; serves reads; mints canonical snapshots; and replaces the whole
// environment by generations behind one atomic switch. It is the only package
// that touches the LMDB binding (binding.go) and, through
// internal/mdbfile, the LMDB file format.
//
// # Directory
//
//	CURRENT          the name of the generation in use and a newline
//	gen-000001/      one LMDB environment: data.mdb, lock.mdb, and CLEAN if it was closed
//	gen-000001.damaged/   evidence: a generation that was found damaged, or wrong; one is kept
//
// A generation is made in a fresh directory, fsynced, opened and caught up
// before CURRENT is renamed over. What CURRENT does not name is left over from
// a crash and removed at open. The owner holds a flock on the directory itself.
//
// # Damage
//
// LMDB has no page checksums, and believes what it reads. So a file is looked at
// with internal/mdbfile before LMDB maps it: as a whole if it was not closed, and
// otherwise as far as Options.Verify says; a snapshot's digest is verified before
// Install. What goes bad later is an error of the call that comes across it
// (internal/guard), and the pages that a write is based on are checked before it
// (pages.go). An environment in which damage was found is not read and not written
// to any more: Damage says what it was. See docs/decisions/0012.
//
// The binding's faults, and LMDB's own rules, are kept out in fence.go.
//
// # Environment
//
//	database  key              value
//	kv        the user's key   0x02 ‖ CRC-32C of key and value, u32 little-endian ‖ the user's value
//	                           (so no value is empty in LMDB, which bindings mistreat)
//	meta      "dataset"        16 bytes
//	          "digest"         32 bytes: a Digest of all pairs in kv
//	          "format"         u32 little-endian, 2
//	          "pos"            seq u64 little-endian ‖ hash 32 bytes
//	          "time"           i64 little-endian: the writer's clock in the entry at pos, ns since 1970
//
// Every value in meta is a function of the log up to pos, so two environments
// at one position hold the same pairs. A new environment's meta is empty.
//
// Format 1 had no digest, and 0x01 in front of values instead of 0x02 and a
// checksum. Open and Install write an environment of it anew.
//
// The map grows by doubling, preferably at a moment without readers; when it is
// full before that, new readers wait for the running ones to end.
//
// # Canonical snapshots
//
// Mint writes the file that LMDB would hold if every pair had been inserted once,
// in order, into pages filled to the brim. Two passes over one read
// transaction: the first measures, so that the meta pages at the front and the
// exact size are known before the first byte; the second writes each page once,
// front to back. See internal/mdbfile for the layout and docs/decisions for why
// it is not done with MDB_APPEND.
package lmdbstore
