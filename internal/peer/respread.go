package peer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/qs-peer/qs-peer/txlog"
)

// Limits of a RESP request.
const (
	maxInline  = 64 << 10       // bytes of an inline command
	maxArgs    = 1 << 20        // arguments of a command
	maxBulk    = 512 << 20      // bytes of an argument that is skipped and refused politely
	maxRequest = txlog.MaxEntry // bytes of all arguments that are kept
	bulkAhead  = 64 << 10       // bytes allocated before any arrived
	argCost    = 32             // bytes that an argument takes besides its own
)

// protocolError is a request after which nothing can be understood any more.
type protocolError struct{ reason string }

func (e *protocolError) Error() string { return "Protocol error: " + e.reason }

// respRequest is one command and its arguments.
type respRequest struct {
	args [][]byte
	// tooLong is set, and args incomplete, when a limit was passed; what was too
	// long has been read and dropped.
	tooLong error
}

// readRESP reads the next request: an array of bulk strings, or an inline
// command. No memory is taken for what is only announced.
func readRESP(r *bufio.Reader) (*respRequest, error) {
	for {
		line, err := readLine(r, maxInline)
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			continue
		}
		if line[0] != '*' {
			return readInline(line)
		}
		n, err := parseLength("array", line[1:], maxArgs)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			return readArray(r, n)
		}
	}
}

func readInline(line []byte) (*respRequest, error) {
	if bytes.ContainsAny(line, `"'`) {
		return nil, &protocolError{"quotes are not understood in inline commands"}
	}
	req := &respRequest{}
	for _, arg := range bytes.Fields(line) {
		req.args = append(req.args, bytes.Clone(arg))
	}
	if len(req.args) == 0 {
		return nil, &protocolError{"an empty inline command"}
	}
	return req, nil
}

func readArray(r *bufio.Reader, n int) (*respRequest, error) {
	req := &respRequest{args: make([][]byte, 0, min(n, 64))}
	total := 0
	for range n {
		line, err := readLine(r, maxInline)
		if err != nil {
			return nil, inFrame(err)
		}
		if len(line) == 0 || line[0] != '$' {
			return nil, &protocolError{fmt.Sprintf("expected '$' and a length, got %.32q", line)}
		}
		size, err := parseLength("bulk", line[1:], maxBulk)
		if err != nil {
			return nil, err
		}
		total += size + argCost
		switch {
		case req.tooLong != nil:
		case size > txlog.MaxValue:
			req.tooLong = &txlog.LimitError{What: "value", Got: int64(size), Min: 0, Max: txlog.MaxValue}
		case total > maxRequest:
			req.tooLong = &txlog.LimitError{What: "command", Got: int64(total), Min: 1, Max: maxRequest}
		}
		if req.tooLong != nil {
			req.args = req.args[:min(len(req.args), 1)] // the command's name is all that is needed
			if _, err := io.CopyN(io.Discard, r, int64(size)); err != nil {
				return nil, inFrame(err)
			}
		} else {
			arg, err := readBulk(r, size)
			if err != nil {
				return nil, inFrame(err)
			}
			req.args = append(req.args, arg)
		}
		var end [2]byte
		if _, err := io.ReadFull(r, end[:]); err != nil {
			return nil, inFrame(err)
		}
		if end != [2]byte{'\r', '\n'} {
			return nil, &protocolError{"an argument is longer than it said"}
		}
	}
	return req, nil
}

// readBulk reads size bytes, and allocates as they arrive rather than as
// announced.
func readBulk(r io.Reader, size int) ([]byte, error) {
	if size <= bulkAhead {
		arg := make([]byte, size)
		_, err := io.ReadFull(r, arg)
		return arg, err
	}
	var buf bytes.Buffer
	buf.Grow(bulkAhead)
	_, err := io.CopyN(&buf, r, int64(size))
	return buf.Bytes(), err
}

// readLine reads up to a line's end, which it cuts off. The line is valid until
// the next read.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, &protocolError{fmt.Sprintf("a line is longer than %d bytes", limit)}
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
