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
	hashing sync.WaitGroup

	// What hashes the stream, each on its own goroutine.
	whole, sha1s, sha256s *summer
}

// block is a part of the file that every summer has to see.
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
		name:    name,
		size:    size,
		free:    make(chan *block, n),
		whole:   newSummer(sha256.New(), size, size, n),
		sha1s:   newSummer(sha1.New(), PieceLength(size), size, n),
		sha256s: newSummer(sha256.New(), PieceLength(size), size, n),
	}
	for range n {
		h.free <- &block{data: make([]byte, 0, min(hashBuffer, size))}
	}
	for _, s := range h.summers() {
		h.hashing.Go(func() { s.run(h.release) })
	}
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

func (h *Hasher) summers() [3]*summer { return [...]*summer{h.whole, h.sha1s, h.sha256s} }

// flush hands the block being filled to every summer.
func (h *Hasher) flush() {
	b := h.fill
	h.fill = nil
	summers := h.summers()
	b.readers.Store(int32(len(summers)))
	for _, s := range summers {
		s.blocks <- b
	}
}

func (h *Hasher) release(b *block) {
	if b.readers.Add(-1) == 0 {
		b.data = b.data[:0]
		h.free <- b
	}
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
	for _, s := range h.summers() {
		close(s.blocks)
	}
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
	return newTorrent(h.name, h.size, h.sha1s.sums, h.sha256s.sums), [32]byte(h.whole.sums), nil
}

// Abort releases a hasher that is not finished. It may be called twice, and
// after Finish.
func (h *Hasher) Abort() { h.stop() }

// summer cuts a stream into pieces and appends the hash of each to sums, which
// is complete when run returns.
type summer struct {
	blocks chan *block
	hash   hash.Hash
	length int64 // of a piece
	filled int64 // bytes of the piece being hashed
	sums   []byte
}

func newSummer(h hash.Hash, length, size int64, queue int) *summer {
	pieces := (size-1)/length + 1
	return &summer{blocks: make(chan *block, queue), hash: h, length: length, sums: make([]byte, 0, pieces*int64(h.Size()))}
}

func (s *summer) run(release func(*block)) {
	for b := range s.blocks {
		s.write(b.data)
		release(b)
	}
	if s.filled > 0 { // the last piece is shorter
		s.cut()
	}
}

func (s *summer) write(p []byte) {
	for len(p) > 0 {
		n := min(s.length-s.filled, int64(len(p)))
		s.hash.Write(p[:n])
		p = p[n:]
		if s.filled += n; s.filled == s.length {
			s.cut()
		}
	}
}

func (s *summer) cut() {
	s.sums = s.hash.Sum(s.sums)
	s.hash.Reset()
	s.filled = 0
}
