package chunker

import (
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

// A hasher holds at most hashBuffers × hashBuffer bytes of the file.
const (
	hashBuffer  = 256 << 10
	hashBuffers = 8
)

var errHasherDone = errors.New("hasher is finished")

// Hasher hashes a file while it is written. Hashing runs beside the writer, on
// goroutines that end with Finish or Abort. One goroutine may use a Hasher.
type Hasher struct {
	name    string
	size    int64
	written int64
	done    bool

	fill    *block      // being filled, or nil
	free    chan *block // to be filled
	whole   chan *block // to the SHA-256
	pieces  chan *block // to the SHA-1s
	hashing sync.WaitGroup

	sum    [sha256.Size]byte // set when hashing is done
	hashes []byte            // likewise
}

// block is a part of the file that both hashes have to see.
type block struct {
	data    []byte
	readers atomic.Int32
}

var _ io.Writer = (*Hasher)(nil)

// NewHasher prepares for a file of exactly size bytes.
func NewHasher(name string, size int64) (*Hasher, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("hash file: %w", err)
	}
	if err := checkSize(size); err != nil {
		return nil, fmt.Errorf("hash file %s: %w", name, err)
	}
	n := int(min(hashBuffers, (size-1)/hashBuffer+1))
	h := &Hasher{
		name:   name,
		size:   size,
		free:   make(chan *block, n),
		whole:  make(chan *block, n),
		pieces: make(chan *block, n),
	}
	for range n {
		h.free <- &block{data: make([]byte, 0, min(hashBuffer, size))}
	}
	h.hashing.Go(h.hashWhole)
	h.hashing.Go(h.hashPieces)
	return h, nil
}

// Write takes the next bytes of the file. p may be reused when it returns. More
// bytes than announced are an error, and none of p is taken.
func (h *Hasher) Write(p []byte) (int, error) {
	if h.done {
		return 0, errHasherDone
	}
	if left := h.size - h.written; int64(len(p)) > left {
		return 0, fmt.Errorf("hash file %s: %d bytes written at offset %d, but only %d are left of the %d announced",
			h.name, len(p), h.written, left, h.size)
	}
	n := len(p)
	for len(p) > 0 {
		if h.fill == nil {
			h.fill = <-h.free
		}
		b := h.fill
		took := copy(b.data[len(b.data):cap(b.data)], p)
		b.data = b.data[:len(b.data)+took]
		p = p[took:]
		if len(b.data) == cap(b.data) {
			h.flush()
		}
	}
	h.written += int64(n)
	return n, nil
}

// flush hands the block being filled to both hashes.
func (h *Hasher) flush() {
	b := h.fill
	h.fill = nil
	b.readers.Store(2)
	h.whole <- b
	h.pieces <- b
}

func (h *Hasher) release(b *block) {
	if b.readers.Add(-1) == 0 {
		b.data = b.data[:0]
		h.free <- b
	}
}

func (h *Hasher) hashWhole() {
	sum := sha256.New()
	for b := range h.whole {
		sum.Write(b.data)
		h.release(b)
	}
	sum.Sum(h.sum[:0])
}

func (h *Hasher) hashPieces() {
	p := pieceSummer{
		hash:   sha1.New(),
		length: PieceLength(h.size),
		sums:   make([]byte, 0, pieceCount(h.size)*hashSize),
	}
	for b := range h.pieces {
		p.write(b.data)
		h.release(b)
	}
	h.hashes = p.finish()
}

// stop ends the hashing of what has been written and waits for it.
func (h *Hasher) stop() {
	if h.done {
		return
	}
	h.done = true
	if h.fill != nil {
		h.flush()
	}
	close(h.whole)
	close(h.pieces)
	h.hashing.Wait()
}

// Finish returns the torrent and the file's SHA-256. Fewer bytes than announced
// are an error. It is called once.
func (h *Hasher) Finish() (*Torrent, [32]byte, error) {
	if h.done {
		return nil, [32]byte{}, errHasherDone
	}
	h.stop()
	if h.written != h.size {
		return nil, [32]byte{}, fmt.Errorf("hash file %s: %d bytes written of the %d announced", h.name, h.written, h.size)
	}
	return newTorrent(h.name, h.size, h.hashes), h.sum, nil
}

// Abort releases a hasher that is not finished. It may be called twice, and
// after Finish.
func (h *Hasher) Abort() { h.stop() }

// pieceSummer cuts a stream into pieces and appends the SHA-1 of each to sums.
type pieceSummer struct {
	hash   hash.Hash
	length int64
	filled int64 // bytes of the piece being hashed
	sums   []byte
}

func (s *pieceSummer) write(p []byte) {
	for len(p) > 0 {
		n := min(s.length-s.filled, int64(len(p)))
		s.hash.Write(p[:n])
		p = p[n:]
		if s.filled += n; s.filled == s.length {
			s.cut()
		}
	}
}

func (s *pieceSummer) cut() {
	s.sums = s.hash.Sum(s.sums)
	s.hash.Reset()
	s.filled = 0
}

// finish ends the last, shorter piece.
func (s *pieceSummer) finish() []byte {
	if s.filled > 0 {
		s.cut()
	}
	return s.sums
}
