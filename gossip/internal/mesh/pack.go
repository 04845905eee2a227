package mesh

import "encoding/binary"

// maxFields is more than any of memberlist's messages has.
const maxFields = 16

// unpack splits b after the MessagePack value that it begins with, which must be what
// memberlist sends: a map or an array of few numbers and strings, each of them within
// b. The decoder that memberlist uses believes a length before it has seen the bytes,
// and allocates up to 4 GiB for a message of twenty.
// https://github.com/msgpack/msgpack/blob/master/spec.md
func unpack(b []byte) (value, rest []byte, err error) {
	cut := func() ([]byte, []byte, error) { return nil, nil, malformed("a message is cut short") }
	if len(b) == 0 {
		return cut()
	}
	var elements, at int
	switch c := b[0]; {
	case c&0xf0 == 0x80: // fixmap
		elements, at = 2*int(c&0x0f), 1
	case c&0xf0 == 0x90: // fixarray
		elements, at = int(c&0x0f), 1
	case (c == 0xdc || c == 0xde) && len(b) >= 3: // array 16, map 16
		elements, at = int(binary.BigEndian.Uint16(b[1:])), 3
		if c == 0xde {
			elements *= 2
		}
	default:
		return nil, nil, malformed("a message begins with %#x", c)
	}
	if elements > 2*maxFields {
		return nil, nil, malformed("a message of %d elements", elements)
	}
	for range elements {
		if at >= len(b) {
			return cut()
		}
		size, lengthBytes := 0, 0
		switch c := b[at]; {
		case c <= 0x7f, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3: // small numbers, nil, booleans
		case c&0xe0 == 0xa0: // fixstr
			size = int(c & 0x1f)
		case c == 0xc4, c == 0xd9: // bin 8, str 8
			lengthBytes = 1
		case c == 0xc5, c == 0xda: // bin 16, str 16
			lengthBytes = 2
		case c == 0xca: // float 32
			size = 4
		case c == 0xcb: // float 64
			size = 8
		case c >= 0xcc && c <= 0xcf: // uint 8 to 64
			size = 1 << (c - 0xcc)
		case c >= 0xd0 && c <= 0xd3: // int 8 to 64
			size = 1 << (c - 0xd0)
		default:
			return nil, nil, malformed("a message with an element of type %#x", c)
		}
		at++
		if lengthBytes > len(b)-at {
			return cut()
		}
		for _, c := range b[at : at+lengthBytes] {
			size = size<<8 | int(c)
		}
		at += lengthBytes
		if size > len(b)-at {
			return cut()
		}
		at += size
	}
	return b[:at], b[at:], nil
}
