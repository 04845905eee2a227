package mdbfile

import (
	"encoding/binary"
	"fmt"
	"math"
)

const (
	magic       = 0xBEEFC0DE
	dataVersion = 1

	// pageSize is that of the files written here; files of other sizes can be read.
	pageSize    = 4096
	minPageSize = 512
	maxPageSize = 32768

	metaPages   = 2
	firstPage   = metaPages // the first page that is not a meta page
	headerSize  = 16
	nodeHeader  = 8
	offsetSize  = 2
	pgnoSize    = 8
	metaSize    = 136 // after the page header
	recordSize  = 48
	invalidPage = math.MaxUint64

	// maxDepth is the deepest tree that LMDB's cursors can walk.
	maxDepth = 32

	pageRoom = pageSize - headerSize
	// maxNode is the longest leaf node that keeps its value, so that two fit a page.
	maxNode = pageRoom/2&^1 - offsetSize
)

// Page flags.
const (
	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagOverflow = 0x04
	flagMeta     = 0x08
)

// Flags of leaf nodes.
const (
	nodeBig = 0x01 // the value is in overflow pages
	nodeSub = 0x02 // the value is a database record
)

// Flags of the environment, which LMDB keeps in the free-list database's record.
const (
	envIntegerKey = 0x08   // the free list's keys: always set
	envNoSubdir   = 0x4000 // harmless: how the environment was opened first
)

var le = binary.LittleEndian

func even(n int) int { return (n + 1) &^ 1 }

// leafCost returns what a pair takes of a leaf page's room, and how many
// overflow pages besides.
func leafCost(keyLen, valueLen int) (cost int, overflow uint64) {
	n := nodeHeader + keyLen + valueLen
	if n > maxNode {
		n = nodeHeader + keyLen + pgnoSize
		overflow = overflowPages(uint64(valueLen), pageSize)
	}
	return even(n) + offsetSize, overflow
}

// branchCost returns what a child takes of a branch page's room.
func branchCost(keyLen int) int { return even(nodeHeader+keyLen) + offsetSize }

// overflowPages returns the length of the run that holds a value.
func overflowPages(valueLen, pageSize uint64) uint64 {
	return (headerSize-1+valueLen)/pageSize + 1
}

// leafHead and branchHead are the first 8 bytes of a node.
func leafHead(keyLen, valueLen int, flags uint16) uint64 {
	return uint64(uint32(valueLen)) | uint64(flags)<<32 | uint64(keyLen)<<48
}

func branchHead(keyLen int, child uint64) uint64 { return child | uint64(keyLen)<<48 }

func splitLeafHead(h uint64) (keyLen, valueLen int, flags uint16) {
	return int(h >> 48), int(uint32(h)), uint16(h >> 32)
}

func branchChild(h uint64) uint64 { return h & (1<<48 - 1) }

// record describes a database.
type record struct {
	pad   uint32
	flags uint16
	Stat
	root uint64
}

func (r *record) put(b []byte) {
	le.PutUint32(b[0:], r.pad)
	le.PutUint16(b[4:], r.flags)
	le.PutUint16(b[6:], uint16(r.Depth))
	le.PutUint64(b[8:], r.BranchPages)
	le.PutUint64(b[16:], r.LeafPages)
	le.PutUint64(b[24:], r.OverflowPages)
	le.PutUint64(b[32:], r.Entries)
	le.PutUint64(b[40:], r.root)
}

func parseRecord(b []byte) record {
	return record{
		pad:   le.Uint32(b[0:]),
		flags: le.Uint16(b[4:]),
		Stat: Stat{
			BranchPages:   le.Uint64(b[8:]),
			LeafPages:     le.Uint64(b[16:]),
			OverflowPages: le.Uint64(b[24:]),
			Entries:       le.Uint64(b[32:]),
			Depth:         int(le.Uint16(b[6:])),
		},
		root: le.Uint64(b[40:]),
	}
}

// meta is the content of a meta page.
type meta struct {
	address  uint64
	mapSize  uint64
	free     record
	main     record
	lastPage uint64
	txnid    uint64
}

func (m *meta) pageSize() int64 { return int64(m.free.pad) }

// put writes the meta page with number pgno, which b is zeroed for.
func (m *meta) put(b []byte, pgno uint64) {
	putHeader(b, pgno, flagMeta)
	b = b[headerSize:]
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[4:], dataVersion)
	le.PutUint64(b[8:], m.address)
	le.PutUint64(b[16:], m.mapSize)
	m.free.put(b[24:])
	m.main.put(b[72:])
	le.PutUint64(b[120:], m.lastPage)
	le.PutUint64(b[128:], m.txnid)
}

// parseMeta checks what LMDB checks when it opens a file, and the page size.
func parseMeta(b []byte, pgno uint64) (meta, error) {
	if f := le.Uint16(b[10:]); f != flagMeta {
		return meta{}, damaged(pgno, "flags %#x, want a meta page", f)
	}
	if n := le.Uint64(b); n != pgno {
		return meta{}, damaged(pgno, "says that it is page %d", n)
	}
	b = b[headerSize:]
	if m := le.Uint32(b); m != magic {
		return meta{}, damaged(pgno, "not LMDB's magic: %#x", m)
	}
	if v := le.Uint32(b[4:]); v != dataVersion {
		return meta{}, damaged(pgno, "LMDB data version %d, want %d", v, dataVersion)
	}
	m := meta{
		address:  le.Uint64(b[8:]),
		mapSize:  le.Uint64(b[16:]),
		free:     parseRecord(b[24:]),
		main:     parseRecord(b[72:]),
		lastPage: le.Uint64(b[120:]),
		txnid:    le.Uint64(b[128:]),
	}
	if s := m.free.pad; s < minPageSize || s > maxPageSize || s&(s-1) != 0 {
		return meta{}, damaged(pgno, "page size %d", s)
	}
	return m, nil
}

func putHeader(b []byte, pgno uint64, flags uint16) {
	le.PutUint64(b, pgno)
	le.PutUint16(b[10:], flags)
}

// damaged returns an error about a page.
func damaged(pgno uint64, format string, args ...any) error {
	return fmt.Errorf("page %d: %s: %w", pgno, fmt.Sprintf(format, args...), ErrDamaged)
}
