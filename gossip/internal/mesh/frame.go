package mesh

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// What a connection carries: its first byte. After kindPackets comes the port of the
// gossip address of who made it, u16: packets to that address may go back over it.
const (
	kindPackets = 'P'
	kindStream  = 'S'
)

// appendPackets appends what a connection for packets begins with, made by who listens
// at a port.
func appendPackets(b []byte, port int) []byte {
	return binary.LittleEndian.AppendUint16(append(b, kindPackets), uint16(port))
}

// Limits of a frame's payload, in bytes.
const (
	// MaxPacket is more than what memberlist puts into a packet.
	MaxPacket = 32 << 10
	// MaxState is for the state of about 5,000 members.
	MaxState = 8 << 20
)

const (
	frameHeader = 4
	firstChunk  = 16 << 10
)

// appendFrame appends a frame to b.
func appendFrame(b, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// readFrame returns the payload of the next frame. Memory follows what arrives, not
// what the length promises; grow, if not nil, is asked for all of it.
func readFrame(r io.Reader, limit int, grow func(n int) error) ([]byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size == 0 || uint64(size) > uint64(limit) {
		return nil, malformed("a frame of %d bytes; 1 to %d are allowed", size, limit)
	}
	n := int(size)
	var b []byte
	for len(b) < n {
		have := len(b)
		more := min(n-have, max(have, firstChunk))
		if grow != nil {
			if err := grow(more); err != nil {
				return nil, err
			}
		}
		b = slices.Grow(b, more)[:have+more]
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			return nil, fmt.Errorf("frame of %d bytes: %w", n, noEOF(err))
		}
	}
	return b, nil
}

// noEOF makes an end inside of something unexpected.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
