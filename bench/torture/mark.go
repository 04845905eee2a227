package torture

import (
	"math/rand/v2"
	"strconv"
)

// Mark names one value that was written; no two are the same. 0 is no value.
type Mark uint64

// bulk is set in the marks of large values.
const bulk Mark = 1 << 63

const digits = 16 // of a mark, in front of its value

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"

// size returns how long the mark's value is, in bytes.
func (m Mark) size() int {
	if m&bulk != 0 {
		return 900 + int(m%300)
	}
	return digits + int(m*2654435761>>7%200)
}

// Value returns the mark's value: text that can not be compressed, and that has the
// mark in front.
func (m Mark) Value() []byte {
	v := make([]byte, 0, m.size()+8)
	hex := strconv.FormatUint(uint64(m), 16)
	for range digits - len(hex) {
		v = append(v, '0')
	}
	v = append(v, hex...)
	rng := rand.NewPCG(uint64(m), 0x746f7274757265)
	for len(v) < m.size() {
		for bits, n := rng.Uint64(), 0; n < 8; n++ {
			v = append(v, alphabet[bits&63])
			bits >>= 8
		}
	}
	return v[:m.size()]
}

// ParseMark returns whose value v is. One that is not, to the last byte, what some
// mark's value is, is not ok.
func ParseMark(v []byte) (m Mark, ok bool) {
	if len(v) < digits {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v[:digits]), 16, 64)
	m = Mark(n)
	return m, err == nil && m != 0 && len(v) == m.size() && string(m.Value()) == string(v)
}
