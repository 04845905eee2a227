package lease

import (
	"crypto/sha256"
	"encoding/binary"
)

// hashName gives a name 64 bits of its own: the first 8 bytes of
// SHA-256(domain ‖ 0 ‖ name).
func hashName(domain, name string) uint64 {
	sum := sha256.Sum256([]byte(domain + "\x00" + name))
	return binary.LittleEndian.Uint64(sum[:])
}

// hashPiece gives a piece of a snapshot 64 bits of its own.
func hashPiece(snapshot uint64, piece int) uint64 { return mix(snapshot + uint64(piece)) }

// score is a name's weight for a piece: the greatest of several is the first in
// rank.
func score(name, piece uint64) uint64 { return mix(name ^ piece) }

// mix is the finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", 2014): a bijection in which each bit of the
// input changes each bit of the output about half of the time.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
