// Package chunker describes one immutable file as verifiable pieces.
//
// It computes BitTorrent v1 metainfo (BEP 3: SHA-1 of fixed-size pieces), the
// SHA-256 of each piece and that of the whole while the file is being written,
// so that nothing is read twice, and tells which pieces of a local file are good.
//
// # Metainfo
//
// The metainfo is canonical: one file, one name, one info dictionary, hence one
// infohash. It is the bencoding of these keys, in this order, and nothing else
// (no creation date, tracker, comment or private flag):
//
//	d 4:info
//	  d 6:length        i SIZE e
//	    4:name          NAME                one path element, UTF-8, at most 255 bytes
//	    12:piece length i PIECE-LENGTH e    what PieceLength(SIZE) returns
//	    6:pieces        20 bytes a piece: the SHA-1 of each
//	  e
//	  15:qs-piece-sha256  32 bytes a piece: the SHA-256 of each
//	e
//
// Parse accepts what this package would have written, to the byte, and nothing
// else. Stock clients open it; they ignore the key that is not theirs.
//
// # What is trusted
//
// A piece is good if its SHA-256 is the one in the list: SHA-1 serves stock
// clients and the infohash, and has been broken. The infohash does not cover
// the list. What does is the piece root,
//
//	SHA-256("qs-piece-root-v1\x00" ‖ SIZE, u64 ‖ PIECE-LENGTH, u64 ‖ the list)
//
// with big-endian integers, which has to come from somebody who is trusted
// (here: in a snapshot's manifest). It does what BEP 52's "pieces root" does,
// without its tree: the list always travels whole. So a file of the right size
// whose pieces are all good is the file that was described, whoever sent them.
package chunker

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/bits"
)

// Limits of a torrent.
const (
	// MaxMetainfo is the size of the largest metainfo, in bytes.
	MaxMetainfo = 16 << 20
	// MaxName is the length of the longest file name, in bytes.
	MaxName = 255
	// MaxSize is the length of the longest file, in bytes (about 2.4 TiB): the
	// most pieces that fit into MaxMetainfo, of the greatest length.
	MaxSize = (MaxMetainfo - 512) / (sha1.Size + sha256.Size) * maxPieceLength
)

const (
	minPieceLength = 64 << 10
	maxPieceLength = 8 << 20
	// Few pieces make workers wait for each other (a piece is passed on once it
	// is whole); many cost messages and requests. See docs/decisions/0003.
	maxUsualPieces = 1024
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

// PieceLength returns the piece length in bytes for a file of size bytes: the
// least power of two from 64 KiB to 8 MiB that makes at most 1024 pieces (from
// 8 GiB on there are more). A function of the size alone, because it is part of
// the infohash.
func PieceLength(size int64) int64 {
	if size <= maxUsualPieces*minPieceLength {
		return minPieceLength
	}
	least := (size-1)/maxUsualPieces + 1 // rounded up
	return min(int64(1)<<bits.Len64(uint64(least-1)), maxPieceLength)
}

// Torrent describes one immutable file. It is immutable itself.
type Torrent struct {
	name        string
	size        int64
	pieceLength int64
	infoHash    InfoHash
	metainfo    []byte
	info        []byte // within metainfo
	sha1s       []byte // within metainfo
	sha256s     []byte // within metainfo
	root        [sha256.Size]byte
}

// Name returns the file's name: one path element.
func (t *Torrent) Name() string { return t.name }

// Size returns the file's length in bytes, at least 1.
func (t *Torrent) Size() int64 { return t.size }

// PieceLength returns the length of every piece but the last, in bytes.
func (t *Torrent) PieceLength() int64 { return t.pieceLength }

// Pieces returns the number of pieces.
func (t *Torrent) Pieces() int { return len(t.sha1s) / sha1.Size }

// PieceSize returns the length of piece i, in bytes.
func (t *Torrent) PieceSize(i int) int64 {
	return min(t.pieceLength, t.size-int64(i)*t.pieceLength)
}

// PieceSHA1 returns the SHA-1 of piece i, for stock clients.
func (t *Torrent) PieceSHA1(i int) [20]byte { return [20]byte(t.sha1s[i*sha1.Size:]) }

// PieceSHA256 returns the SHA-256 of piece i, by which it is verified.
func (t *Torrent) PieceSHA256(i int) [32]byte { return [32]byte(t.sha256s[i*sha256.Size:]) }

// PieceRoot returns the hash over size, piece length and all PieceSHA256. A
// torrent is to be trusted if its root is the one that was promised.
func (t *Torrent) PieceRoot() [32]byte { return t.root }

// VerifyPiece reports whether data is piece i, whole.
func (t *Torrent) VerifyPiece(i int, data []byte) bool {
	return int64(len(data)) == t.PieceSize(i) && sha256.Sum256(data) == t.PieceSHA256(i)
}

// InfoHash returns the SHA-1 of InfoBytes.
func (t *Torrent) InfoHash() InfoHash { return t.infoHash }

// InfoBytes returns the bencoded info dictionary. Do not modify.
func (t *Torrent) InfoBytes() []byte { return t.info }

// Metainfo returns the .torrent file, which stock clients open. Do not modify.
func (t *Torrent) Metainfo() []byte { return t.metainfo }
