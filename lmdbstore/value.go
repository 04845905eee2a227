package lmdbstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"runtime"
	"sync"
)

// What a value begins with in the environment.
const (
	tagPlain   = 1 // format 1: the user's value follows
	tagChecked = 2 // format 2: CRC-32C, and the user's value

	plainLen   = 1 // bytes before the user's value, in format 1
	checkedLen = 1 + crc32.Size
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is of the key too, so that a value under another key is found.
func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// appendValue appends what LMDB holds of a pair.
func appendValue(dst, key, value []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(append(dst, tagChecked), checksum(key, value))
	return append(dst, value...)
}

// encoding is how to take the values of an environment.
type encoding struct {
	plain     bool // it may hold values of format 1, which have no checksum
	unchecked bool // checksums are not looked at
}

// open returns the user's value in what LMDB holds of a pair.
func (e encoding) open(key, raw []byte) ([]byte, error) {
	switch {
	case len(raw) >= checkedLen && raw[0] == tagChecked:
		value := raw[checkedLen:len(raw):len(raw)]
		if !e.unchecked {
			if want, got := binary.LittleEndian.Uint32(raw[1:]), checksum(key, value); got != want {
				return nil, fmt.Errorf("%w: the CRC-32C of a pair is %08x, and is recorded as %08x", ErrDamaged, got, want)
			}
		}
		return value, nil
	case len(raw) > 0 && raw[0] == tagPlain && e.plain:
		return raw[1:len(raw):len(raw)], nil
	}
	return nil, fmt.Errorf("%w: a value does not begin with the tag 0x%02x and its checksum", ErrDamaged, tagChecked)
}

// parts are buffers that values are checked in. Clients may have hundreds of scans of
// keys begin at a long value, again and again: one of its own for each would cost more
// memory than all that they are charged for. No more than turns are in use at a time,
// which is enough for several to wait for the disk: between hundreds that compute for
// milliseconds each nobody else would get a processor for long.
var (
	parts = sync.Pool{New: func() any { return new([16 << 10]byte) }}
	turns = make(chan struct{}, 4*runtime.GOMAXPROCS(0))
)

// check is open of a value that is read in parts of a cursor's: part copies what stands
// from off on.
func (e encoding) check(key []byte, part func(off int, to []byte) (int, error)) error {
	turns <- struct{}{}
	defer func() { <-turns }()
	own := parts.Get().(*[16 << 10]byte)
	defer parts.Put(own)
	buf := own[:]
	n, err := part(0, buf)
	if err != nil {
		return err
	}
	if n < checkedLen || buf[0] != tagChecked {
		_, err := e.open(key, buf[:n]) // of format 1, or none
		return err
	}
	want, got := binary.LittleEndian.Uint32(buf[1:]), checksum(key, buf[checkedLen:n])
	for off := n; n > 0; off += n {
		if n, err = part(off, buf); err != nil {
			return err
		}
		got = crc32.Update(got, castagnoli, buf[:n])
	}
	if !e.unchecked && got != want {
		return fmt.Errorf("%w: the CRC-32C of a pair is %08x, and is recorded as %08x", ErrDamaged, got, want)
	}
	return nil
}
