package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/txlog"
)

// Limits of a RESP request.
const (
	maxInline = 8 << 10   // bytes of an inline command, and of a connection's read buffer
	maxArgs   = 1 << 20   // arguments of a command
	maxBulk   = 512 << 20 // bytes of an argument that is skipped and refused politely
	argCost   = 64        // bytes that an argument takes besides its own
	// skipRate is how many bytes of refused requests a node reads in a second, all
	// connections together: nothing comes of it but the work for who sends on and on.
	skipRate  = 64 << 20
	skipStep  = 64 << 10
	maxQuoted = 64 // bytes of a command's name that an answer quotes
)

// protocolError is a request after which nothing can be understood any more.
type protocolError struct{ reason string }

func (e *protocolError) Error() string { return "Protocol error: " + e.reason }

// respRequest is one command and its arguments.
type respRequest struct {
	args [][]byte
	// refused is set, and args is only the command's name, when a limit was passed or
	// there was no memory; what was too much has been read and dropped.
	refused error
	held    int64 // of the lease
}

// respReader reads requests. No memory is taken for what is only announced.
type respReader struct {
	*bufio.Reader
	ctx   context.Context
	lease *lease
	skips *rate.Limiter // of all connections
}

// next reads the next request: an array of bulk strings, or an inline command. The
// caller gives what it holds of the lease back.
func (r *respReader) next() (*respRequest, error) {
	for {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			continue
		}
		if line[0] != '*' {
			return r.inline(line)
		}
		n, err := parseLength("array", line[1:], maxArgs)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			return r.array(n)
		}
	}
}

// inline reads a command that is one line of words.
func (r *respReader) inline(line []byte) (*respRequest, error) {
	if bytes.ContainsAny(line, `"'`) {
		return nil, &protocolError{"quotes are not understood in inline commands"}
	}
	words := bytes.Fields(line)
	if len(words) == 0 {
		return nil, &protocolError{"an empty inline command"}
	}
	req := &respRequest{args: make([][]byte, 0, len(words))}
	for _, word := range words {
		req.held += int64(len(word)) + argCost
	}
	if err := r.lease.take(r.ctx, req.held); err != nil {
		if !is[*busyError](err) {
			return nil, err
		}
		req.held, req.refused, words = 0, err, words[:1]
	}
	for _, word := range words {
		req.args = append(req.args, bytes.Clone(word))
	}
	if req.refused != nil {
		req.keepName()
	}
	return req, nil
}

func (r *respReader) array(n int) (*respRequest, error) {
	req := &respRequest{args: make([][]byte, 0, min(n, 16))}
	before, total := r.lease.n, int64(0)
	for range n {
		line, err := r.line()
		if err != nil {
			return nil, inFrame(err)
		}
		if len(line) == 0 || line[0] != '$' {
			return nil, &protocolError{fmt.Sprintf("expected '$' and a length, got %.32q", line)}
		}
		length, err := parseLength("bulk", line[1:], maxBulk)
		if err != nil {
			return nil, err
		}
		size := int64(length)
		total += size + argCost
		switch {
		case req.refused != nil:
		case size > txlog.MaxValue:
			req.refused = &txlog.LimitError{What: "value", Got: size, Min: 0, Max: txlog.MaxValue}
		case total > maxRequest:
			req.refused = &txlog.LimitError{What: "command", Got: total, Min: 1, Max: maxRequest}
		default:
			var arg []byte
			arg, err = r.argument(size)
			size -= int64(len(arg))
			req.args = append(req.args, arg)
			if is[*busyError](err) {
				req.refused, err = err, nil
			}
		}
		if err == nil && req.refused != nil {
			req.keepName()
			r.lease.give(r.lease.n - before)
			err = r.skip(size)
		}
		if err != nil {
			return nil, errors.Join(inFrame(err), req.refused)
		}
		var end [2]byte
		if _, err := io.ReadFull(r, end[:]); err != nil {
			return nil, inFrame(err)
		}
		if end != [2]byte{'\r', '\n'} {
			return nil, &protocolError{"an argument is longer than it said"}
		}
	}
	req.held = r.lease.n - before
	return req, nil
}

// argument reads size bytes into memory of the lease. After an error it returns how far
// it came.
func (r *respReader) argument(size int64) ([]byte, error) {
	if err := r.lease.take(r.ctx, argCost); err != nil {
		return nil, err
	}
	return gather(r.ctx, r, size, r.lease)
}

// skip reads size bytes that nobody wants.
func (r *respReader) skip(size int64) error {
	for size > 0 {
		n, err := io.CopyN(io.Discard, r, min(size, skipStep))
		if err != nil {
			return err
		}
		if err := r.skips.WaitN(r.ctx, int(n)); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

// keepName drops what an answer does not need.
func (req *respRequest) keepName() {
	if len(req.args) > 0 {
		name := req.args[0]
		req.args = [][]byte{bytes.Clone(name[:min(len(name), maxQuoted)])}
	} else {
		req.args = [][]byte{{}}
	}
}

// line reads up to a line's end, which it cuts off. The line is valid until the next
// read.
func (r *respReader) line() ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, &protocolError{fmt.Sprintf("a line is longer than %d bytes", maxInline)}
	}
	if err != nil {
		if len(line) > 0 {
			return nil, inFrame(err)
		}
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte{'\r'}), nil
}

func parseLength(what string, text []byte, limit int) (int, error) {
	n, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil || int(n) > limit {
		return 0, &protocolError{fmt.Sprintf("%s length %.32q: want a number up to %d", what, text, limit)}
	}
	return int(n), nil
}

// inFrame turns an end in the middle of a request into what it is.
func inFrame(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
