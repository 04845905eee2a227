package lmdbstore

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
)

// Digest is of the user's pairs, whatever the order in which they came to be:
// the sum, modulo 2^256, of each pair's element. Two environments at one
// position have the same one, or one of them is wrong. It is AdHash, of Bellare
// and Micciancio, "A New Paradigm for Collision-Free Hashing: Incrementality at
// Reduced Cost" (EUROCRYPT '97), over SHA-256: an element is
//
//	SHA-256("qs-pair-v1\0" ‖ key length u16 ‖ key ‖ value)
//
// as a little-endian number. An operation changes it by the element of the pair
// that was and of the pair that is. No pairs have the zero Digest.
//
// It finds accidents, not attacks: whoever may choose the pairs can make two sets
// of one digest with some 2^32 work (Wagner, "A Generalized Birthday Problem",
// CRYPTO 2002). What protects from those is the log's hash chain and its
// signatures, which say what the pairs have to be.
type Digest [sha256.Size]byte

const elementDomain = "qs-pair-v1\x00"

// String returns the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d is the digest of no pairs.
func (d Digest) IsZero() bool { return d == Digest{} }

// ParseDigest parses what String returns.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) {
		return Digest{}, fmt.Errorf("digest %.80q: want %d hexadecimal digits", s, 2*len(d))
	}
	copy(d[:], b)
	return d, nil
}

// hasher computes elements.
type hasher struct{ buf []byte }

// element returns the digest of one pair.
func (h *hasher) element(key, value []byte) (d Digest) {
	const large = 64 << 10 // from here on copying costs more than the indirection
	h.buf = binary.LittleEndian.AppendUint16(append(h.buf[:0], elementDomain...), uint16(len(key)))
	h.buf = append(h.buf, key...)
	if len(value) < large {
		h.buf = append(h.buf, value...)
		return sha256.Sum256(h.buf)
	}
	stream := sha256.New()
	stream.Write(h.buf)
	stream.Write(value)
	stream.Sum(d[:0])
	return d
}

// sum is the digest of pairs that are added one by one.
type sum struct {
	Digest
	hasher hasher
}

func (s *sum) add(key, value []byte) { s.Digest = s.plus(s.hasher.element(key, value)) }

// matches compares the sum of an environment's pairs with what it says of them.
func (s *sum) matches(state State) error {
	if s.Digest != state.Digest {
		return fmt.Errorf("%w: the digest of its pairs is %s, and is recorded as %s at %s", ErrDamaged, s.Digest, state.Digest, state.Pos)
	}
	return nil
}

// plus adds the pairs of e.
func (d Digest) plus(e Digest) Digest { return d.with(e, bits.Add64) }

// minus takes the pairs of e away.
func (d Digest) minus(e Digest) Digest { return d.with(e, bits.Sub64) }

// with puts e to d, word by word.
func (d Digest) with(e Digest, put func(x, y, carry uint64) (word, carryOut uint64)) (result Digest) {
	var carry uint64
	for i := 0; i < len(d); i += 8 {
		var word uint64
		word, carry = put(binary.LittleEndian.Uint64(d[i:]), binary.LittleEndian.Uint64(e[i:]), carry)
		binary.LittleEndian.PutUint64(result[i:], word)
	}
	return result
}
