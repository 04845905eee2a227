package p2p

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// TestFraming follows a stream that is read in portions of any size.
func TestFraming(t *testing.T) {
	stream := make([]byte, handshakeSize)
	var ends []int64 // where a message begins
	for _, n := range []int{0, 1, 5, 13, 1 << 18, 0, 0, 3, 1 << 14} {
		ends = append(ends, int64(len(stream)))
		stream = binary.BigEndian.AppendUint32(stream, uint32(n))
		stream = append(stream, make([]byte, n)...)
	}
	for _, seed := range []uint64{1, 2, 3, 4} {
		r := rand.New(rand.NewPCG(seed, 0))
		f := newFraming()
		for at := 0; at < len(stream); {
			n := 1 + r.IntN(min(len(stream)-at, 1<<(2*seed)))
			f.advance(stream[at : at+n])
			at += n
			for _, end := range ends {
				if int64(at) == end && (f.rest != 0 || f.n != 0) {
					t.Fatalf("seed %d: at %d, between messages, %d bytes are expected", seed, at, f.rest)
				}
			}
		}
		if f.rest != 0 || f.n != 0 {
			t.Errorf("seed %d: %d bytes are expected after the end", seed, f.rest)
		}
	}
}
