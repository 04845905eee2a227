package p2p

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// Message types of a log stream.
const (
	entryMessage  = 'E'
	headMessage   = 'H'
	signedMessage = 'S'
	digestMessage = 'D'
)

// MaxSignedHead is the length of the longest signed head, in bytes.
const MaxSignedHead = 4 << 10

const (
	frameHeader = 4           // an entry frame's length field
	headSize    = 8 + 32 + 8  // a head message without its type
	digestSize  = 8 + 32 + 32 // a digest message without its type
	arenaSize   = 64 << 10
)

// appendHead appends a head message.
func appendHead(b []byte, h Head) []byte {
	b = append(b, headMessage)
	b = binary.LittleEndian.AppendUint64(b, h.Pos.Seq)
	b = append(b, h.Pos.Hash[:]...)
	var t int64
	if !h.Time.IsZero() {
		t = h.Time.UnixNano()
	}
	return binary.LittleEndian.AppendUint64(b, uint64(t))
}

// appendSigned appends a signed head's message.
func appendSigned(b, note []byte) []byte {
	b = append(b, signedMessage)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(note)))
	return append(b, note...)
}

// appendDigest appends a digest's message.
func appendDigest(b []byte, a Applied) []byte {
	b = append(b, digestMessage)
	b = binary.LittleEndian.AppendUint64(b, a.Pos.Seq)
	b = append(b, a.Pos.Hash[:]...)
	return append(b, a.Digest[:]...)
}

// messageReader reads the messages of an unpacked log stream. It trusts no
// length: memory grows with what arrives.
type messageReader struct {
	r     *bufio.Reader
	arena []byte // small frames are cut from it: they live and die together
	// expect, if not nil, is called with the size of an entry that begins.
	expect func(size int64)
}

// message is an entry, a head, a signed head, or a digest.
type message struct {
	kind    byte
	entry   txlog.Entry // entryMessage: decoded and its hash verified
	head    Head        // headMessage
	note    []byte      // signedMessage: as it came, nobody looked at it
	applied Applied     // digestMessage
}

// next returns the next message. Errors about what was sent wrap ErrProtocol;
// the end of the stream is io.EOF between messages and io.ErrUnexpectedEOF
// within one.
func (m *messageReader) next() (message, error) {
	kind, err := m.r.ReadByte()
	if err != nil {
		return message{}, err
	}
	switch kind {
	case entryMessage:
		frame, err := m.frame()
		if err != nil {
			return message{}, err
		}
		e, err := txlog.Decode(frame)
		if err != nil {
			return message{}, fmt.Errorf("%w: entry: %w", ErrProtocol, err)
		}
		return message{kind: kind, entry: e}, nil
	case headMessage:
		var b [headSize]byte
		if _, err := io.ReadFull(m.r, b[:]); err != nil {
			return message{}, within(err)
		}
		var h Head
		h.Pos.Seq = binary.LittleEndian.Uint64(b[:])
		copy(h.Pos.Hash[:], b[8:])
		if t := int64(binary.LittleEndian.Uint64(b[40:])); t != 0 {
			h.Time = time.Unix(0, t)
		}
		return message{kind: kind, head: h}, nil
	case signedMessage:
		note, err := m.note()
		return message{kind: kind, note: note}, err
	case digestMessage:
		var b [digestSize]byte
		if _, err := io.ReadFull(m.r, b[:]); err != nil {
			return message{}, within(err)
		}
		var a Applied
		a.Pos.Seq = binary.LittleEndian.Uint64(b[:])
		copy(a.Pos.Hash[:], b[8:])
		copy(a.Digest[:], b[40:])
		return message{kind: kind, applied: a}, nil
	default:
		return message{}, fmt.Errorf("%w: unknown message type %#x", ErrProtocol, kind)
	}
}

// note reads a signed head.
func (m *messageReader) note() ([]byte, error) {
	var b [2]byte
	if _, err := io.ReadFull(m.r, b[:]); err != nil {
		return nil, within(err)
	}
	n := binary.LittleEndian.Uint16(b[:])
	if n == 0 || n > MaxSignedHead {
		return nil, fmt.Errorf("%w: a signed head of %d bytes; at most %d are allowed", ErrProtocol, n, MaxSignedHead)
	}
	note := make([]byte, n)
	if _, err := io.ReadFull(m.r, note); err != nil {
		return nil, within(err)
	}
	return note, nil
}

// frame reads one entry frame.
func (m *messageReader) frame() ([]byte, error) {
	length, err := m.r.Peek(frameHeader)
	if err != nil {
		return nil, within(err)
	}
	size := int64(binary.LittleEndian.Uint32(length)) + frameHeader
	if m.expect != nil {
		m.expect(min(size, txlog.MaxEntry))
	}
	if size > arenaSize/4 {
		frame, err := txlog.ReadFrame(m.r)
		var limit *txlog.LimitError
		if errors.As(err, &limit) {
			return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		return frame, err
	}
	if int64(len(m.arena)) < size {
		m.arena = make([]byte, arenaSize)
	}
	frame := m.arena[:size:size]
	if _, err := io.ReadFull(m.r, frame); err != nil {
		return nil, within(err)
	}
	m.arena = m.arena[size:]
	return frame, nil
}

// within turns the end of the stream into one that came too early.
func within(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
