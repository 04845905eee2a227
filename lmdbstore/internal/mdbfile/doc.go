// Package mdbfile reads and writes LMDB's data file without LMDB: no cgo, no
// memory map, every offset checked before it is followed.
//
// It covers what this project stores: the on-disk format of LMDB 0.9 (data
// version 1) on 64-bit little-endian machines, with named databases that have
// no flags (no DUPSORT, REVERSEKEY or INTEGERKEY). The format's source is
// mdb.c of LMDB 0.9.35; tests hold this package and LMDB against each other.
//
// # Writing
//
// The file that is written is canonical: a function of the databases' names and
// pairs, and of nothing else. It is the compacted environment that LMDB would
// hold had every pair been inserted once, in key order, into pages filled to
// the brim; mdb_copy -c reproduces it page by page. Unused bytes are zero.
//
// The meta pages come first and depend on what follows, and a consumer that
// hashes front to back needs the exact size beforehand. So it takes two passes
// over the same pairs: a Planner is fed keys and value lengths and makes a
// Plan, which knows the size; a Writer is fed keys and values and emits each
// page once, in order. Memory is a page a level and a buffer, whatever the size.
//
// # File
//
// All numbers are little-endian. Page n is at byte n × page size.
//
//	page header        0  8  page number
//	                   8  2  (LEAF2 pages only; ignored)
//	                  10  2  flags: 1 branch, 2 leaf, 4 overflow, 8 meta
//	                  12  2  lower: end of the node offsets, which start at 16, 2 bytes a node
//	                  14  2  upper: start of the nodes, which end with the page
//	                         (overflow: 12, 4 bytes: pages in this run)
//
//	meta page 0, 1    16  4  0xBEEFC0DE
//	                  20  4  data version, 1
//	                  24  8  address of a fixed map, 0
//	                  32  8  map size
//	                  40 48  free-list database; its pad is the page size, its flags
//	                         the environment's
//	                  88 48  main database: names of databases → their records
//	                 136  8  last page in use
//	                 144  8  transaction id; transaction n writes meta page n mod 2
//
//	database record    0  4  pad
//	                   4  2  flags
//	                   6  2  depth: levels, 0 when empty
//	                   8  8  branch pages
//	                  16  8  leaf pages
//	                  24  8  overflow pages
//	                  32  8  entries
//	                  40  8  root page, 2⁶⁴−1 when empty
//
//	leaf node          0  4  value length
//	                   4  2  flags: 1 value in overflow pages, 2 database record
//	                   6  2  key length
//	                   8     key, value (overflow: first page, 8 bytes)
//
//	branch node        0  6  child page
//	                   6  2  key length (ignored in the first node)
//	                   8     key: no key below the child is less
//
// Nodes are packed against the end of the page without gaps, each rounded up to
// an even length. A leaf node of more than half a page keeps its value in
// overflow pages: a run whose first page alone has a header. The free list maps
// transaction ids to lists of page numbers (count, then descending).
package mdbfile
