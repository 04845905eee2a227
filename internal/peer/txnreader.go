package peer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/txlog"
)

// opCost is what an operation takes of the lease besides its key and value.
const opCost = 96

// txnReader reads the JSON of a transaction straight into keys and values. (encoding/json
// holds a value four times, as text and as bytes, and puts U+FFFD in place of what is not
// text: that would be another key, or another value.)
type txnReader struct {
	in     *bufio.Reader
	ctx    context.Context
	lease  *lease
	base64 bool
	at     int64         // bytes read
	short  [4 << 10]byte // where strings begin that may turn out long
	group  [1 << 10]byte // of base64 characters
	plain  [768]byte     // that they stand for
}

// transaction reads {"ops":[…]}, one operation at a time, and no more of them than fit.
func (r *txnReader) transaction() ([]txlog.Op, error) {
	for _, want := range []string{`{`, `"`} {
		if err := r.expect(want[0]); err != nil {
			return nil, r.notTxn(err)
		}
	}
	if name, err := r.name(); err != nil || name != "ops" {
		return nil, r.notTxn(err)
	}
	for _, want := range []string{`:`, `[`} {
		if err := r.expect(want[0]); err != nil {
			return nil, r.notTxn(err)
		}
	}
	ops, err := r.operations()
	if err != nil {
		return nil, err
	}
	switch c, err := r.next(); {
	case err != nil:
		return nil, err
	case c == ',':
		name := "more"
		if r.expect('"') == nil {
			name, _ = r.name()
		}
		return nil, badRequest("found %s after the operations where } should be", name)
	case c != '}':
		return nil, r.invalid("found %q after the operations where } should be", c)
	}
	_, err = r.next()
	switch {
	case err == nil:
		return nil, badRequest("something follows after the transaction")
	case !errors.Is(err, errEndsEarly): // which is where it should end
		return nil, err
	}
	return ops, nil
}

func (r *txnReader) operations() ([]txlog.Op, error) {
	var ops []txlog.Op
	var size int64
	c, err := r.next()
	if err != nil || c == ']' {
		return nil, err
	}
	for {
		op, err := r.operation(c)
		if err != nil {
			if bad, ok := errors.AsType[*badRequestError](err); ok {
				return nil, badRequest("operation %d: %s", len(ops)+1, bad.reason)
			}
			return nil, err
		}
		if size += int64(len(op.Key)+len(op.Value)) + opCost; size > maxRequest {
			return nil, &txlog.LimitError{What: "transaction", Got: size, Min: 1, Max: maxRequest}
		}
		if err := r.lease.take(r.ctx, opCost); err != nil {
			return nil, err
		}
		ops = append(ops, op)
		if c, err = r.next(); err != nil {
			return nil, err
		}
		switch c {
		case ']':
			return ops, nil
		case ',':
			if c, err = r.next(); err != nil {
				return nil, err
			}
		default:
			return nil, r.invalid("found %q after an operation where , or ] should be", c)
		}
	}
}

// operation reads one, whose first byte is c.
func (r *txnReader) operation(c byte) (op txlog.Op, err error) {
	if c != '{' {
		return op, r.invalid("found %q where an operation should begin with {", c)
	}
	seen := map[string]bool{}
	if c, err = r.next(); err != nil {
		return op, err
	}
	for c != '}' {
		if c != '"' {
			return op, r.invalid("found %q where a field's name should begin", c)
		}
		field, err := r.name()
		if err != nil {
			return op, err
		}
		if seen[field] {
			return op, badRequest("%q is there twice", field)
		}
		seen[field] = true
		if err := r.expect(':'); err != nil {
			return op, err
		}
		if err := r.field(&op, field); err != nil {
			return op, err
		}
		if c, err = r.next(); err != nil {
			return op, err
		}
		if c == ',' {
			if c, err = r.next(); err != nil {
				return op, err
			}
			if c == '}' {
				return op, r.invalid("found a comma before }")
			}
		} else if c != '}' {
			return op, r.invalid("found %q after a field where , or } should be", c)
		}
	}
	switch {
	case !seen["op"]:
		return op, badRequest(`"op" is missing: want "put" or "delete"`)
	case !seen["key"]:
		return op, badRequest(`"key" must be a string, and is missing`)
	case op.Kind == txlog.Put && !seen["value"]:
		return op, badRequest(`"value" must be a string, and is missing`)
	case op.Kind == txlog.Delete && seen["value"]:
		return op, badRequest(`a delete takes no "value"`)
	}
	return op, checkKey(op.Key)
}

func (r *txnReader) field(op *txlog.Op, field string) (err error) {
	switch field {
	case "op", "key", "value":
	default:
		return badRequest(`unknown field %q: an operation has "op", "key" and "value"`, field)
	}
	c, err := r.next()
	if err != nil {
		return err
	}
	if c != '"' {
		return badRequest("%q must be a string", field)
	}
	switch field {
	case "op":
		name, err := r.name()
		if err != nil {
			return err
		}
		switch name {
		case "put":
			op.Kind = txlog.Put
		case "delete":
			op.Kind = txlog.Delete
		default:
			return badRequest(`"op" is %q: want "put" or "delete"`, name)
		}
		return nil
	case "key":
		op.Key, err = r.bytes(field, 1, txlog.MaxKey)
	case "value":
		op.Value, err = r.bytes(field, 0, txlog.MaxValue)
	}
	return err
}

// name reads the rest of a string that is one of a few words.
func (r *txnReader) name() (string, error) {
	s := stringBuffer{r: r, b: r.short[:0:64], short: true, what: "field name", max: 64}
	if _, err := r.text(s.put); err != nil {
		if is[*txlog.LimitError](err) {
			return "", badRequest("unknown field or operation %q…", s.b)
		}
		return "", err
	}
	return string(s.b), nil
}

// bytes reads the rest of a string that stands for bytes.
func (r *txnReader) bytes(field string, least, most int) ([]byte, error) {
	s := stringBuffer{r: r, b: r.short[:0], short: true, what: field, min: least, max: most}
	if r.base64 {
		d := base64Decoder{r: r, put: s.put}
		if _, err := r.text(d.put64); err != nil {
			return nil, d.explain(field, err)
		}
		if err := d.end(); err != nil {
			return nil, d.explain(field, err)
		}
		return s.bytes()
	}
	whole, err := r.text(s.put)
	if err != nil {
		return nil, err
	}
	if !whole || !utf8.Valid(s.b) {
		return nil, badRequest("%q is not valid UTF-8: send bytes with base64=true", field)
	}
	return s.bytes()
}

// text reads the rest of a string and passes it to put with escapes undone, a part at
// a time. whole is false if an escape is half of a surrogate pair.
func (r *txnReader) text(put func([]byte) error) (whole bool, err error) {
	whole = true
	for {
		if _, err := r.in.Peek(1); err != nil {
			return whole, r.ended(err)
		}
		part, _ := r.in.Peek(r.in.Buffered())
		n := 0
		for n < len(part) && part[n] != '"' && part[n] != '\\' && part[n] >= ' ' {
			n++
		}
		if err := put(part[:n]); err != nil {
			return whole, err
		}
		r.discard(n)
		if n == len(part) {
			continue
		}
		switch c, err := r.byte(); {
		case err != nil:
			return whole, err
		case c == '"':
			return whole, nil
		case c != '\\':
			return whole, r.invalid("a control character in a string")
		}
		char, ok, err := r.escape()
		if err != nil {
			return whole, err
		}
		whole = whole && ok
		var b [utf8.UTFMax]byte
		if err := put(utf8.AppendRune(b[:0], char)); err != nil {
			return whole, err
		}
	}
}

// escape reads what follows a backslash.
func (r *txnReader) escape() (char rune, ok bool, err error) {
	c, err := r.byte()
	if err != nil {
		return 0, false, err
	}
	if i := bytes.IndexByte([]byte(`"\/bfnrt`), c); i >= 0 {
		return rune("\"\\/\b\f\n\r\t"[i]), true, nil
	}
	if c != 'u' {
		return 0, false, r.invalid("there is no escape \\%c", c)
	}
	if char, err = r.hex(); err != nil || !utf16.IsSurrogate(char) {
		return char, true, err
	}
	if next, _ := r.in.Peek(2); string(next) != `\u` {
		return utf8.RuneError, false, nil
	}
	r.discard(2)
	low, err := r.hex()
	char = utf16.DecodeRune(char, low)
	return char, char != utf8.RuneError, err
}

// hex reads four hexadecimal digits.
func (r *txnReader) hex() (rune, error) {
	digits, err := r.in.Peek(4)
	if err != nil {
		return 0, r.ended(err)
	}
	n, err := strconv.ParseUint(string(digits), 16, 16)
	if err != nil {
		return 0, r.invalid("%q are no four hexadecimal digits", digits)
	}
	r.discard(4)
	return rune(n), nil
}

// next returns the next byte that is no white space.
func (r *txnReader) next() (byte, error) {
	for {
		c, err := r.byte()
		if err != nil || c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			return c, err
		}
	}
}

func (r *txnReader) expect(want byte) error {
	c, err := r.next()
	if err == nil && c != want {
		err = r.invalid("found %q where %c should be", c, want)
	}
	return err
}

func (r *txnReader) byte() (byte, error) {
	c, err := r.in.ReadByte()
	if err != nil {
		return 0, r.ended(err)
	}
	r.at++
	return c, nil
}

func (r *txnReader) discard(n int) {
	_, _ = r.in.Discard(n) // of what was peeked at
	r.at += int64(n)
}

var errEndsEarly = badRequest("invalid JSON: it ends early")

// ended explains an error of the body.
func (r *txnReader) ended(err error) error {
	switch {
	case is[*http.MaxBytesError](err):
		return &txlog.LimitError{What: "transaction's text", Got: maxTxnBody + 1, Min: 1, Max: maxTxnBody}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errEndsEarly
	}
	return badRequest("read the request's body: %v", err)
}

func (r *txnReader) invalid(format string, args ...any) error {
	return badRequest("invalid JSON at byte %d: "+format, append([]any{r.at}, args...)...)
}

// notTxn says what a body should look like that does not begin so.
func (r *txnReader) notTxn(err error) error {
	if bad, ok := errors.AsType[*badRequestError](err); ok && bad != errEndsEarly {
		return badRequest(`the body is not {"ops":[…]}: %s`, bad.reason)
	}
	if err == nil {
		return badRequest(`the body is not {"ops":[…]}: found another field`)
	}
	return err
}

// stringBuffer gathers a string. It begins in memory of the reader's, and is moved into
// memory of the lease when it is complete, or before that when it turns out long.
type stringBuffer struct {
	r        *txnReader
	b        []byte
	short    bool // b is not of the lease
	what     string
	min, max int
}

func (s *stringBuffer) put(p []byte) error {
	n := len(s.b) + len(p)
	if n > s.max {
		return &txlog.LimitError{What: s.what, Got: int64(n), Min: int64(s.min), Max: int64(s.max)}
	}
	if n > cap(s.b) {
		if err := s.move(min(max(n, 4*cap(s.b)), s.max)); err != nil {
			return err
		}
	}
	s.b = append(s.b, p...)
	return nil
}

// move moves the string to another place with room for so many bytes.
func (s *stringBuffer) move(room int) error {
	if err := s.r.lease.take(s.r.ctx, int64(room)); err != nil {
		return err
	}
	b := append(make([]byte, 0, room), s.b...)
	if !s.short {
		s.r.lease.give(int64(cap(s.b)))
	}
	s.b, s.short = b, false
	return nil
}

// bytes returns the string, to be kept.
func (s *stringBuffer) bytes() ([]byte, error) {
	if s.short || cap(s.b) > 2*len(s.b) {
		if err := s.move(len(s.b)); err != nil {
			return nil, err
		}
	}
	return slices.Clip(s.b), nil
}

// base64Decoder decodes a text that comes in parts. Line ends in it do not count.
type base64Decoder struct {
	r      *txnReader
	put    func([]byte) error
	n      int  // characters in r.group
	padded bool // nothing may follow
}

var errNotBase64 = errors.New("not base64")

func (d *base64Decoder) put64(p []byte) error {
	for _, c := range p {
		if c == '\n' || c == '\r' {
			continue
		}
		if d.padded {
			return errNotBase64
		}
		d.r.group[d.n] = c
		if d.n++; d.n == len(d.r.group) {
			d.padded = c == '='
			if err := d.end(); err != nil {
				return err
			}
		}
	}
	return nil
}

// end decodes what has come together.
func (d *base64Decoder) end() error {
	n, err := base64.StdEncoding.Strict().Decode(d.r.plain[:], d.r.group[:d.n])
	if err != nil {
		return errNotBase64
	}
	d.n = 0
	return d.put(d.r.plain[:n])
}

func (d *base64Decoder) explain(field string, err error) error {
	if errors.Is(err, errNotBase64) {
		return badRequest("%q is not standard base64", field)
	}
	return err
}
