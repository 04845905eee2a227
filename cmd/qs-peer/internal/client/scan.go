package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// errorLine begins the line with which a node ends a scan that it cannot
// complete; the lines of pairs begin otherwise.
var errorLine = []byte("\n{\"error\":")

// scanBody passes a scan's lines on, all but a last one that is an error, which
// becomes the error of Read.
type scanBody struct {
	io.Closer
	src  io.Reader
	buf  []byte // what was read and not passed on yet is buf[r:w]
	r, w int
	safe int   // buf[r:safe] may be passed on
	err  error // of src, once it has ended
}

func newScanBody(body io.ReadCloser) *scanBody {
	return &scanBody{Closer: body, src: body, buf: make([]byte, 256<<10)}
}

func (b *scanBody) Read(p []byte) (int, error) {
	for b.r == b.safe {
		if b.err != nil {
			return 0, b.err
		}
		b.fill()
	}
	n := copy(p, b.buf[b.r:b.safe])
	b.r += n
	return n, nil
}

// fill reads on, and finds out how much of what is there may be passed on.
func (b *scanBody) fill() {
	b.w = copy(b.buf, b.buf[b.r:b.w])
	b.r, b.safe = 0, 0
	n, err := b.src.Read(b.buf[b.w:])
	b.w += n
	b.err = err
	if i := bytes.Index(b.buf[:b.w], errorLine); i >= 0 {
		b.safe = i + 1 // with the newline before
		b.err = b.reason(b.buf[b.safe:b.w], err)
		return
	}
	b.safe = b.w
	if err == nil {
		b.safe -= overlap(b.buf[:b.w], errorLine)
	}
}

// reason reads the rest of an error line and decodes it.
func (b *scanBody) reason(begun []byte, err error) error {
	line := bytes.Clone(begun)
	if err == nil {
		rest, _ := io.ReadAll(io.LimitReader(b.src, maxErrorBody))
		line = append(line, rest...)
	}
	var e struct{ Error string }
	if json.NewDecoder(bytes.NewReader(line)).Decode(&e) != nil || e.Error == "" {
		return ErrCutOff
	}
	return fmt.Errorf("%w: %s", ErrCutOff, e.Error)
}

// overlap returns how many bytes at the end of text begin mark.
func overlap(text, mark []byte) int {
	for n := min(len(text), len(mark)-1); n > 0; n-- {
		if bytes.HasSuffix(text, mark[:n]) {
			return n
		}
	}
	return 0
}
