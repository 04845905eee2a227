package txlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// chunkSize is how much a cursor reads at a time, in bytes. Entries point into
// the chunk they came from.
const chunkSize = 256 << 10

// cursor steps through the frames of a segment. Whatever does not belong where
// it stands is a *CorruptError, and the cursor stays before it.
type cursor struct {
	segment string // file name
	salt    salt
	file    io.ReaderAt
	off     int64  // of the next frame or mark
	pos     Pos    // of the entry before off
	mark    int64  // offset of the last mark that was passed, or of the first frame
	ahead   []byte // what was read from off on
	reuse   bool   // nobody keeps what the cursor returned
	anySalt bool   // marks are passed unverified
	buf     []byte // when reuse
}

// newCursor stands at the segment's first entry.
func newCursor(s *segment, file io.ReaderAt) cursor {
	return cursor{segment: s.name(), salt: s.salt, file: file, off: segmentHeader, mark: segmentHeader, pos: s.base()}
}

func (c *cursor) corrupt(format string, args ...any) error {
	return &CorruptError{Segment: c.segment, Offset: c.off, Seq: c.pos.Seq + 1, Reason: fmt.Sprintf(format, args...)}
}

// fill makes n bytes from off on available; the file's valid part ends at limit.
func (c *cursor) fill(n int, limit int64) error {
	if n <= len(c.ahead) {
		return nil
	}
	if int64(n) > limit-c.off {
		return c.corrupt("%d bytes are left of at least %d", limit-c.off, n)
	}
	size := max(n, int(min(chunkSize, limit-c.off)))
	buf := c.buf
	if !c.reuse || cap(buf) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	have := copy(buf, c.ahead)
	got, err := c.file.ReadAt(buf[have:], c.off+int64(have))
	if got < len(buf)-have {
		if errors.Is(err, io.EOF) {
			return c.corrupt("the file ends at offset %d, %d bytes too early", c.off+int64(have+got), limit-c.off-int64(have+got))
		}
		return &unreadError{c.segment, c.off, c.pos.Seq + 1, fmt.Errorf("read log segment %s at offset %d: %w", c.segment, c.off, err)}
	}
	c.ahead = buf
	if c.reuse {
		c.buf = buf
	}
	return nil
}

func (c *cursor) skip(n int) {
	c.off += int64(n)
	c.ahead = c.ahead[min(n, len(c.ahead)):]
}

// frameSize passes marks and returns the size of the frame that follows, io.EOF
// if none does.
func (c *cursor) frameSize(limit int64) (int, error) {
	for c.off < limit {
		if err := c.fill(4, limit); err != nil {
			return 0, err
		}
		n := binary.LittleEndian.Uint32(c.ahead)
		if n != markWord {
			size, err := frameLength(n)
			if err != nil {
				return 0, c.corrupt("%v", err)
			}
			return size, nil
		}
		if err := c.fill(markSize, limit); err != nil {
			return 0, err
		}
		if !c.anySalt && !isMark(c.ahead, c.salt, c.off) {
			return 0, c.corrupt("a sync mark has the wrong content")
		}
		c.mark = c.off
		c.skip(markSize)
	}
	return 0, io.EOF
}

// peek returns the next frame, unverified, io.EOF at limit.
func (c *cursor) peek(limit int64) ([]byte, error) {
	size, err := c.frameSize(limit)
	if err != nil {
		return nil, err
	}
	if err := c.fill(size, limit); err != nil {
		return nil, err
	}
	return c.ahead[:size:size], nil
}

// take verifies the frame that peek returned, and that it links, and passes it.
func (c *cursor) take(frame []byte) (Entry, error) {
	e, err := Decode(frame)
	if err != nil {
		return Entry{}, c.corrupt("%v", err)
	}
	if e.Seq != c.pos.Seq+1 {
		return Entry{}, c.corrupt("entry %d stands there", e.Seq)
	}
	if e.Prev != c.pos.Hash {
		return Entry{}, c.corrupt("it follows %s, but the entry before has %s", e.Prev, c.pos.Hash)
	}
	c.pos = e.Pos()
	c.skip(len(frame))
	return e, nil
}

// next is peek and take.
func (c *cursor) next(limit int64) (Entry, error) {
	frame, err := c.peek(limit)
	if err != nil {
		return Entry{}, err
	}
	return c.take(frame)
}

// seek moves the cursor behind the entry at pos.Seq, which the segment holds
// before limit, and returns it. On the way there it looks at the frames' headers
// only; the entry itself is verified.
func (c *cursor) seek(s *segment, seq uint64, limit int64) (Entry, error) {
	at := s.nearest(seq)
	c.off, c.ahead = at.off, nil
	for c.pos.Seq = at.seq - 1; ; c.pos.Seq++ {
		size, err := c.frameSize(limit)
		if err == nil {
			err = c.fill(frameHeader, limit)
		}
		if errors.Is(err, io.EOF) {
			return Entry{}, c.corrupt("the segment ends there")
		}
		if err != nil {
			return Entry{}, err
		}
		if got := frameSeq(c.ahead); got != c.pos.Seq+1 {
			return Entry{}, c.corrupt("entry %d stands there", got)
		}
		s.note(c.pos.Seq+1, c.off)
		if c.pos.Seq+1 == seq {
			c.pos.Hash = Hash(c.ahead[4:]) // proved by the hash of the entry itself
			return c.next(limit)
		}
		if int64(size) > limit-c.off {
			return Entry{}, c.corrupt("%d bytes are left of %d", limit-c.off, size)
		}
		c.skip(size)
	}
}
