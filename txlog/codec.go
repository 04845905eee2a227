package txlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync"
	"time"
)

const (
	frameHeader = 64 // n, prev, seq, epoch, time, number of operations
	opHeader    = 7  // kind, key length, value length
	minFrame    = frameHeader + opHeader + 1 + len(Hash{})
)

// Seal makes the entry that follows prev: it checks the limits, encodes and
// hashes. A transaction without operations is ErrEmptyTransaction. The entry
// holds copies of keys and values.
func Seal(prev Pos, epoch uint64, at time.Time, ops []Op) (Entry, error) {
	seq := prev.Seq + 1
	if err := checkShape(seq, prev.Hash, ops); err != nil {
		return Entry{}, err
	}
	size, err := frameSize(ops)
	if err != nil {
		return Entry{}, err
	}
	frame := encode(size, ops)
	finish(frame, prev, epoch, at.UnixNano())
	return decode(frame)
}

// checkShape enforces what depends on an entry's place: the first entry of a
// dataset is one Init operation, no other has any.
func checkShape(seq uint64, prev Hash, ops []Op) error {
	if seq == 0 {
		return errors.New("entry has seq 0; entries are numbered from 1")
	}
	if seq == 1 {
		if len(ops) != 1 || ops[0].Kind != Init {
			return errors.New("entry 1 must hold one init operation and nothing else")
		}
		if !prev.IsZero() {
			return fmt.Errorf("entry 1 follows nothing, but says that it follows %s", prev)
		}
		return nil
	}
	for i := range ops {
		if ops[i].Kind == Init {
			return fmt.Errorf("operation %d: init is only allowed in entry 1", i)
		}
	}
	return nil
}

// frameSize checks ops against the limits and returns the length of their frame.
func frameSize(ops []Op) (int, error) {
	if len(ops) == 0 {
		return 0, ErrEmptyTransaction
	}
	if err := CheckOps(len(ops)); err != nil {
		return 0, err
	}
	size := int64(frameHeader + len(Hash{}))
	for i := range ops {
		if err := ops[i].check(); err != nil {
			return 0, fmt.Errorf("operation %d: %w", i, err)
		}
		size += int64(opHeader + len(ops[i].Key) + len(ops[i].Value))
	}
	if size > MaxEntry {
		return 0, &LimitError{What: "entry", Got: size, Min: int64(minFrame), Max: MaxEntry}
	}
	return int(size), nil
}

// CheckOps returns a *LimitError if an entry cannot have n operations.
func CheckOps(n int) error {
	if n > MaxOps {
		return &LimitError{What: LimitOps, Got: int64(n), Min: 1, Max: MaxOps}
	}
	return nil
}

func (op *Op) check() error {
	minKey, maxKey := 1, MaxKey
	switch op.Kind {
	case Put:
	case Delete:
		if len(op.Value) != 0 {
			return fmt.Errorf("a delete carries no value, this one has %d bytes", len(op.Value))
		}
	case Init:
		minKey, maxKey = 0, 0
		if len(op.Value) != len(DatasetID{}) {
			return fmt.Errorf("init carries a dataset id of %d bytes, this one has %d", len(DatasetID{}), len(op.Value))
		}
	default:
		return fmt.Errorf("unknown kind %d", op.Kind)
	}
	if n := len(op.Key); n < minKey || n > maxKey {
		return &LimitError{What: "key", Got: int64(n), Min: int64(minKey), Max: int64(maxKey)}
	}
	if n := len(op.Value); n > MaxValue {
		return &LimitError{What: "value", Got: int64(n), Max: MaxValue}
	}
	return nil
}

// encode lays out a frame of checked operations; finish fills in the rest once
// the entry's place in the chain is known.
func encode(size int, ops []Op) []byte {
	frame := make([]byte, frameHeader, size)
	binary.LittleEndian.PutUint32(frame, uint32(size-4))
	binary.LittleEndian.PutUint32(frame[60:], uint32(len(ops)))
	for i := range ops {
		op := &ops[i]
		frame = append(frame, byte(op.Kind))
		frame = binary.LittleEndian.AppendUint16(frame, uint16(len(op.Key)))
		frame = binary.LittleEndian.AppendUint32(frame, uint32(len(op.Value)))
		frame = append(frame, op.Key...)
		frame = append(frame, op.Value...)
	}
	return frame[:size]
}

func finish(frame []byte, prev Pos, epoch uint64, nanos int64) Pos {
	copy(frame[4:], prev.Hash[:])
	binary.LittleEndian.PutUint64(frame[36:], prev.Seq+1)
	binary.LittleEndian.PutUint64(frame[44:], epoch)
	binary.LittleEndian.PutUint64(frame[52:], uint64(nanos))
	h := hashFrame(frame)
	copy(frame[len(frame)-len(h):], h[:])
	return Pos{Seq: prev.Seq + 1, Hash: h}
}

// hasher keeps what hashing would allocate.
type hasher struct {
	hash.Hash
	sum Hash
}

var (
	hashers = sync.Pool{New: func() any { return &hasher{Hash: sha256.New()} }}
	domain  = []byte("qs-entry-v1\x00")
)

func hashFrame(frame []byte) Hash {
	h := hashers.Get().(*hasher)
	defer hashers.Put(h)
	h.Reset()
	h.Write(domain) // hashes do not fail
	h.Write(frame[4 : len(frame)-len(h.sum)])
	h.Sum(h.sum[:0])
	return h.sum
}

// Decode parses one whole frame and verifies its hash. The entry points into
// frame, which must not change afterwards. A frame over a limit is a
// *LimitError; what else is wrong the error says.
func Decode(frame []byte) (Entry, error) {
	if err := checkLength(frame); err != nil {
		return Entry{}, err
	}
	n := len(frame) - len(Hash{})
	if h := hashFrame(frame); !bytes.Equal(h[:], frame[n:]) {
		return Entry{}, fmt.Errorf("entry hash is %x, its content has %s", frame[n:], h)
	}
	return decode(frame)
}

func checkLength(frame []byte) error {
	if len(frame) < 4 {
		return fmt.Errorf("entry frame is cut short after %d bytes", len(frame))
	}
	size, err := frameLength(binary.LittleEndian.Uint32(frame))
	if err != nil {
		return err
	}
	if len(frame) != size {
		return fmt.Errorf("entry frame says that it is %d bytes long, but is %d", size, len(frame))
	}
	return nil
}

// frameLength turns the length field, which counts what follows it, into the
// length of the whole frame.
func frameLength(n uint32) (int, error) {
	size := int64(n) + 4
	if size < int64(minFrame) || size > MaxEntry {
		return 0, &LimitError{What: "entry", Got: size, Min: int64(minFrame), Max: MaxEntry}
	}
	return int(size), nil
}

// decode parses a frame whose length and hash are known to be right.
func decode(frame []byte) (Entry, error) {
	e := Entry{
		Prev:  Hash(frame[4:]),
		Seq:   binary.LittleEndian.Uint64(frame[36:]),
		Epoch: binary.LittleEndian.Uint64(frame[44:]),
		Time:  frameTime(frame),
		Hash:  Hash(frame[len(frame)-len(Hash{}):]),
		frame: frame,
	}
	body := frame[frameHeader : len(frame)-len(Hash{})]
	count := binary.LittleEndian.Uint32(frame[60:])
	if count == 0 {
		return Entry{}, ErrEmptyTransaction
	}
	if err := CheckOps(int(count)); err != nil {
		return Entry{}, err
	}
	if int(count)*opHeader > len(body) {
		return Entry{}, fmt.Errorf("entry says that it has %d operations, which %d bytes cannot hold", count, len(body))
	}
	e.Ops = make([]Op, count)
	for i := range e.Ops {
		op := &e.Ops[i]
		if len(body) < opHeader {
			return Entry{}, fmt.Errorf("operation %d: entry ends within it", i)
		}
		op.Kind = Kind(body[0])
		k := int(binary.LittleEndian.Uint16(body[1:]))
		v := int(binary.LittleEndian.Uint32(body[3:]))
		body = body[opHeader:]
		if k+v > len(body) {
			return Entry{}, fmt.Errorf("operation %d: entry ends within it", i)
		}
		op.Key, op.Value, body = body[:k:k], body[k:k+v:k+v], body[k+v:]
		if err := op.check(); err != nil {
			return Entry{}, fmt.Errorf("operation %d: %w", i, err)
		}
	}
	if len(body) != 0 {
		return Entry{}, fmt.Errorf("entry has %d bytes after its last operation", len(body))
	}
	if err := checkShape(e.Seq, e.Prev, e.Ops); err != nil {
		return Entry{}, err
	}
	return e, nil
}

func frameSeq(frame []byte) uint64 { return binary.LittleEndian.Uint64(frame[36:]) }

func frameNanos(frame []byte) int64 { return int64(binary.LittleEndian.Uint64(frame[52:])) }

func frameTime(frame []byte) time.Time { return time.Unix(0, frameNanos(frame)).UTC() }

// readStep is what ReadFrame allocates at first: a sender must have sent half
// of what it makes us allocate.
const readStep = 64 << 10

// ReadFrame reads one frame from r, checking its length before it allocates: a
// frame over the limit is a *LimitError. At the end of r, between frames, it
// returns io.EOF; within one, io.ErrUnexpectedEOF.
func ReadFrame(r io.Reader) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size, err := frameLength(binary.LittleEndian.Uint32(n[:]))
	if err != nil {
		return nil, err
	}
	frame := append(make([]byte, 0, min(size, readStep)), n[:]...)
	for len(frame) < size {
		if len(frame) == cap(frame) {
			frame = slices.Grow(frame, min(len(frame), size-len(frame)))
		}
		got, err := io.ReadFull(r, frame[len(frame):min(cap(frame), size)])
		frame = frame[:len(frame)+got]
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return frame, nil
}
