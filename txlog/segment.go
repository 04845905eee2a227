package txlog

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/qs-peer/qs-peer/internal/durable"
)

// Segment file (little-endian):
//
//	offset  size  field
//	     0     8  magic "qs-txlog"
//	     8     4  format version, 1
//	    12    16  dataset id
//	    28     8  generation: every Reset begins the next one, see below
//	    36     8  first: the seq of the first entry, which the file's name repeats
//	    44    32  prev: hash of the entry before the first
//	    76     8  time of the entry before the first, ns since 1970; 0 when it is not known
//	    84     8  salt: random, of this file
//	    92     4  CRC-32C of bytes 0 … 92
//	    96     …  frames and sync marks
//
// The header keeps this form in every later version, so that a newer file
// (ErrNewerFormat) can be told from a damaged one (CorruptError).
//
// A segment is written under a temporary name, fsynced and then renamed, so
// that a file with a segment's name has a whole header. There is no half-made
// segment to be recognised.
//
// Sync mark:
//
//	     0     4  "MARK", which as a frame length is over MaxEntry
//	     4     8  the file's salt
//	    12     8  offset of the mark in the file
//
// A batch of frames that share an fsync begins with a mark, and Close ends the
// file with one. So a mark at offset X proves that everything before X was
// fsynced before the mark was written. When the tail holds invalid bytes at some
// offset and a mark behind it, acknowledged bytes are damaged; when it holds
// none, the bytes are a write that a crash tore. All bytes of a mark are
// determined by its place, and nobody outside can know the salt, so no value can
// pass for a mark. A mark is left out where it would prove nothing new: right
// after the header or another mark.
//
// What cannot be told from a torn write is damage to the last batch before a
// crash, and a tail that was cut at a frame boundary afterwards. Whoever keeps a
// position elsewhere (the store does) finds the log's Head behind it.
//
// Generations:
//
// The live log is the segments of the highest generation. Reset writes one new
// segment of the next generation; the rename that gives it its name is the
// commit point, even when it replaces an old segment of that name. Older
// generations are removed then, or at the next Open.

// ErrNewerFormat is wrapped by errors about a log that a newer version wrote.
var ErrNewerFormat = errors.New("log has a newer format")

const (
	segmentMagic   = "qs-txlog"
	segmentVersion = 1
	segmentHeader  = 96
	segmentSuffix  = ".log"

	markMagic = "MARK"
	markSize  = 20

	// indexStep is the distance between points of a segment's index, in bytes.
	indexStep = 256 << 10
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	markWord   = binary.LittleEndian.Uint32([]byte(markMagic))
)

type salt [8]byte

// header is what a segment file begins with.
type header struct {
	dataset    DatasetID
	generation uint64
	first      uint64
	prev       Hash
	prevNanos  int64
	salt       salt
}

func newHeader(dataset DatasetID, generation uint64, base Pos, baseNanos int64) header {
	h := header{dataset: dataset, generation: generation, first: base.Seq + 1, prev: base.Hash, prevNanos: baseNanos}
	rand.Read(h.salt[:]) // never fails
	return h
}

// base returns the position before the segment's first entry.
func (h *header) base() Pos { return Pos{Seq: h.first - 1, Hash: h.prev} }

func (h *header) name() string { return segmentName(h.first) }

func (h *header) encode() []byte {
	b := make([]byte, 0, segmentHeader)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, segmentVersion)
	b = append(b, h.dataset[:]...)
	b = binary.LittleEndian.AppendUint64(b, h.generation)
	b = binary.LittleEndian.AppendUint64(b, h.first)
	b = append(b, h.prev[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.prevNanos))
	b = append(b, h.salt[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseHeader returns ErrNewerFormat, or an error that says what is damaged.
func parseHeader(b []byte) (header, error) {
	if len(b) < segmentHeader {
		return header{}, fmt.Errorf("the file is %d bytes long, shorter than a segment's header", len(b))
	}
	if !bytes.HasPrefix(b, []byte(segmentMagic)) {
		return header{}, errors.New("not a log segment: it does not begin with " + strconv.Quote(segmentMagic))
	}
	if crc32.Checksum(b[:92], castagnoli) != binary.LittleEndian.Uint32(b[92:]) {
		return header{}, errors.New("the header's checksum does not match")
	}
	switch v := binary.LittleEndian.Uint32(b[8:]); {
	case v > segmentVersion:
		return header{}, fmt.Errorf("%w: %d, this version reads up to %d", ErrNewerFormat, v, segmentVersion)
	case v == 0:
		return header{}, errors.New("format version 0 does not exist")
	}
	h := header{
		dataset:    DatasetID(b[12:]),
		generation: binary.LittleEndian.Uint64(b[28:]),
		first:      binary.LittleEndian.Uint64(b[36:]),
		prev:       Hash(b[44:]),
		prevNanos:  int64(binary.LittleEndian.Uint64(b[76:])),
		salt:       salt(b[84:]),
	}
	if h.first == 0 || h.dataset.IsZero() {
		return header{}, errors.New("the header lacks a first seq or a dataset")
	}
	return h, nil
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

// parseSegmentName is the inverse of segmentName.
func parseSegmentName(name string) (first uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, err == nil && name == segmentName(first)
}

func appendMark(b []byte, s salt, off int64) []byte {
	b = append(b, markMagic...)
	b = append(b, s[:]...)
	return binary.LittleEndian.AppendUint64(b, uint64(off))
}

// isMark reports whether b begins with the mark that belongs at offset off.
func isMark(b []byte, s salt, off int64) bool {
	var want [markSize]byte
	return bytes.HasPrefix(b, appendMark(want[:0], s, off))
}

// segment is a file of the log.
type segment struct {
	header
	path string
	size int64 // bytes on stable storage; the log's mu guards it
	gap  *gap  // the hole behind the segment, nil if there is none; changed with the log's writing and mu

	mu    sync.Mutex // guards index
	index []point    // ascending, at least indexStep apart
}

// point says where in a segment an entry begins.
type point struct {
	seq uint64
	off int64
}

func newSegment(dir string, h header, size int64) *segment {
	return &segment{
		header: h,
		path:   filepath.Join(dir, h.name()),
		size:   size,
		index:  []point{{h.first, segmentHeader}},
	}
}

// note remembers where entry seq begins, if that is far enough from what is
// known. Callers note in order.
func (s *segment) note(seq uint64, off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.index[len(s.index)-1]; off >= last.off+indexStep {
		s.index = append(s.index, point{seq, off})
	}
}

// nearest returns the last known point at or before entry seq.
func (s *segment) nearest(seq uint64) point {
	s.mu.Lock()
	defer s.mu.Unlock()
	lo, hi := 0, len(s.index)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; s.index[mid].seq <= seq {
			lo = mid
		} else {
			hi = mid
		}
	}
	return s.index[lo]
}

// forget drops points that a failed write noted.
func (s *segment) forget(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.index) > 1 && s.index[len(s.index)-1].off >= size {
		s.index = s.index[:len(s.index)-1]
	}
}

// createSegment makes a segment without entries durable under its name. An
// error can leave it there.
func createSegment(fsys durable.FS, dir string, h header) (*segment, durable.File, error) {
	s := newSegment(dir, h, segmentHeader)
	if err := durable.WriteFile(fsys, s.path, h.encode(), filePerm); err != nil {
		return nil, nil, fmt.Errorf("create log segment %s: %w", h.name(), err)
	}
	f, err := fsys.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("create log segment %s: %w", h.name(), err)
	}
	return s, f, nil
}
