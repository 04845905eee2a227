// Package chunker describes one immutable file as verifiable pieces.
//
// It computes BitTorrent v1 metainfo (BEP 3: SHA-1 of fixed-size pieces) and
// the SHA-256 of the whole while the file is being written, so that nothing is
// read twice, and tells which pieces of a local file are good. The metainfo is
// canonical: one file, one name, one info dictionary, hence one infohash; it
// holds no creation date, no tracker and no comment.
package chunker

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
)

// InfoHash is the SHA-1 of a torrent's info dictionary.
type InfoHash [20]byte

// String returns the hash as 40 hexadecimal digits.
func (h InfoHash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is unset.
func (h InfoHash) IsZero() bool { return h == InfoHash{} }

// ParseInfoHash is the inverse of InfoHash.String.
func ParseInfoHash(s string) (InfoHash, error) {
	var h InfoHash
	if len(s) != 2*len(h) {
		return InfoHash{}, fmt.Errorf("infohash %q: want %d hexadecimal digits, got %d characters", s, 2*len(h), len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return InfoHash{}, fmt.Errorf("infohash %q: %w", s, err)
	}
	return h, nil
}

// PieceLength returns the piece length in bytes for a file of size bytes: a
// power of two from 64 KiB to 8 MiB. A function of the size alone, because it
// is part of the infohash.
func PieceLength(size int64) int64 { panic("unwritten") }

// Torrent describes one immutable file. It is immutable itself.
type Torrent struct{}

// Name returns the file's name: one path element.
func (t *Torrent) Name() string { panic("unwritten") }

// Size returns the file's length in bytes, at least 1.
func (t *Torrent) Size() int64 { panic("unwritten") }

// PieceLength returns the length of every piece but the last, in bytes.
func (t *Torrent) PieceLength() int64 { panic("unwritten") }

// Pieces returns the number of pieces.
func (t *Torrent) Pieces() int { panic("unwritten") }

// PieceSize returns the length of piece i, in bytes.
func (t *Torrent) PieceSize(i int) int64 { panic("unwritten") }

// PieceHash returns the SHA-1 of piece i.
func (t *Torrent) PieceHash(i int) [20]byte { panic("unwritten") }

// InfoHash returns the SHA-1 of InfoBytes.
func (t *Torrent) InfoHash() InfoHash { panic("unwritten") }

// InfoBytes returns the bencoded info dictionary. Do not modify.
func (t *Torrent) InfoBytes() []byte { panic("unwritten") }

// Metainfo returns the .torrent file, which stock clients open.
func (t *Torrent) Metainfo() []byte { panic("unwritten") }

// Parse reads a .torrent file that Metainfo made: single file, v1, and of the
// canonical form. Anything else, and anything over the limits (16 MiB of
// metainfo), is an error that says what was wrong.
func Parse(metainfo []byte) (*Torrent, error) { panic("unwritten") }

// Hasher hashes a file while it is written. Hashing runs beside the writer, on
// goroutines that end with Finish or Abort.
type Hasher struct{}

// NewHasher prepares for a file of exactly size bytes.
func NewHasher(name string, size int64) (*Hasher, error) { panic("unwritten") }

// Write takes the next bytes of the file. p may be reused when it returns. More
// bytes than announced are an error.
func (h *Hasher) Write(p []byte) (int, error) { panic("unwritten") }

// Finish returns the torrent and the file's SHA-256. Fewer bytes than announced
// are an error.
func (h *Hasher) Finish() (*Torrent, [32]byte, error) { panic("unwritten") }

// Abort releases a hasher that is not finished. It may be called twice, and
// after Finish.
func (h *Hasher) Abort() { panic("unwritten") }

var _ io.Writer = (*Hasher)(nil)

// Check reads the file and returns, for each piece, whether it is good. A file
// that is too short has bad pieces; a longer one is not noticed here (compare
// sizes first). An error is one of reading or of ctx. progress, if not nil, is
// called with the bytes read so far.
func (t *Torrent) Check(ctx context.Context, r io.ReaderAt, progress func(done int64)) ([]bool, error) {
	panic("unwritten")
}
