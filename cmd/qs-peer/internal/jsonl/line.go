// Package jsonl is the commands' text form of pairs: JSON Lines, one pair a
// line, and the streaming of such lines into the writer.
//
//	{"key":"a","value":"b"}     sets a to b
//	{"key":"a","delete":true}   removes a
//
// Keys and values are text, or, with base64, standard base64 of any bytes.
package jsonl

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/txlog"
)

// MaxLine is the longest line that is read, in bytes: JSON may spend six bytes
// ("\u0000") on one.
const MaxLine = 6*(txlog.MaxKey+txlog.MaxValue) + 1024

var (
	putHead   = []byte(`{"op":"put","key":`)
	valueHead = []byte(`,"value":`)
	delHead   = []byte(`{"op":"delete","key":`)
)

// appendOp appends to dst the operation that line asks for, in the form of
// /v1/txn. The line is checked in full, so that what is wrong with it can be
// told with its number.
func appendOp(dst, line []byte, b64 bool) ([]byte, error) {
	key, value, ok := plain(line)
	if !ok {
		var del bool
		var err error
		if key, value, del, err = parse(line); err != nil {
			return dst, err
		}
		if del {
			if err := check("key", key, b64, 1, txlog.MaxKey); err != nil {
				return dst, err
			}
			dst = append(append(dst, delHead...), key...)
			return append(dst, '}'), nil
		}
	}
	if err := check("key", key, b64, 1, txlog.MaxKey); err != nil {
		return dst, err
	}
	if err := check("value", value, b64, 0, txlog.MaxValue); err != nil {
		return dst, err
	}
	dst = append(append(dst, putHead...), key...)
	dst = append(append(dst, valueHead...), value...)
	return append(dst, '}'), nil
}

// plain splits a line of the form that export writes, {"key":"…","value":"…"}
// without spaces and with no escapes but those of one character, and returns the
// two strings with their quotes. Nearly every line of a large import is such a
// line, and this costs a tenth of a full decoder.
func plain(line []byte) (key, value []byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"key":`))
	if !ok {
		return nil, nil, false
	}
	if key, rest, ok = plainString(rest); !ok {
		return nil, nil, false
	}
	if rest, ok = bytes.CutPrefix(rest, valueHead); !ok {
		return nil, nil, false
	}
	if value, rest, ok = plainString(rest); !ok || len(rest) != 1 || rest[0] != '}' {
		return nil, nil, false
	}
	return key, value, true
}

// plainString cuts a JSON string without \u escapes off s.
func plainString(s []byte) (quoted, rest []byte, ok bool) {
	if len(s) < 2 || s[0] != '"' {
		return nil, nil, false
	}
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted, rest = s[:i+1], s[i+1:]
			return quoted, rest, utf8.Valid(quoted)
		case c < ' ':
			return nil, nil, false
		case c == '\\':
			if i++; i == len(s) || strings.IndexByte(`"\/bfnrt`, s[i]) < 0 {
				return nil, nil, false
			}
		}
	}
	return nil, nil, false
}

// plainLen returns how many bytes a valid JSON string stands for, unless it has
// \u escapes.
func plainLen(quoted []byte) (n int, ok bool) {
	n = len(quoted) - 2
	for {
		i := bytes.IndexByte(quoted, '\\')
		if i < 0 {
			return n, true
		}
		if quoted[i+1] == 'u' {
			return 0, false
		}
		n--
		quoted = quoted[i+2:]
	}
}

// parse decodes any line, and returns the strings quoted and without the
// optional spaces.
func parse(line []byte) (key, value []byte, del bool, err error) {
	if !utf8.Valid(line) {
		return nil, nil, false, errors.New("not valid UTF-8; encode keys and values as base64 and use --base64")
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	var l struct {
		Key    *json.RawMessage `json:"key"`
		Value  *json.RawMessage `json:"value"`
		Delete bool             `json:"delete"`
	}
	if err := dec.Decode(&l); err != nil {
		return nil, nil, false, fmt.Errorf("not a pair: %s", reason(err))
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, nil, false, errors.New("not a pair: something follows the object; put one pair on a line")
	}
	isString := func(m *json.RawMessage) bool { return m != nil && (*m)[0] == '"' }
	switch {
	case l.Key == nil:
		return nil, nil, false, errors.New(`"key" is missing; want {"key":"…","value":"…"}`)
	case !isString(l.Key):
		return nil, nil, false, errors.New(`"key" is not a string`)
	case l.Delete && l.Value != nil:
		return nil, nil, false, errors.New(`"delete" and "value" exclude each other`)
	case l.Delete:
		return *l.Key, nil, true, nil
	case l.Value == nil:
		return nil, nil, false, errors.New(`"value" is missing; want {"key":"…","value":"…"}`)
	case !isString(l.Value):
		return nil, nil, false, errors.New(`"value" is not a string`)
	}
	return *l.Key, *l.Value, false, nil
}

// reason words a decoder's error for somebody who looks at the line.
func reason(err error) string {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "the line ends within the object"
	case errors.As(err, &syntax):
		return fmt.Sprintf("%v (column %d)", syntax, syntax.Offset)
	case errors.As(err, &typ) && typ.Field == "":
		return fmt.Sprintf(`it is %s; want {"key":"…","value":"…"}`, article(typ.Value))
	case errors.As(err, &typ):
		return fmt.Sprintf("%q can not be %s", typ.Field, article(typ.Value))
	}
	return string(bytes.TrimPrefix([]byte(err.Error()), []byte("json: ")))
}

// article says what kind of JSON value stands there.
func article(kind string) string {
	switch kind {
	case "array", "object":
		return "an " + kind
	}
	return "a " + kind
}

// check holds a quoted string against the log's limits, in bytes of content.
func check(what string, quoted []byte, b64 bool, least, most int) error {
	n, ok := plainLen(quoted)
	if !ok || b64 {
		var s string
		if err := json.Unmarshal(quoted, &s); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if strings.Count(s, "\ufffd") != strings.Count(strings.ToLower(string(quoted)), `\ufffd`)+bytes.Count(quoted, []byte("\ufffd")) {
			return fmt.Errorf("%s holds half of a surrogate pair (\\ud8xx…), which is no character; use --base64 for bytes", what)
		}
		n = len(s)
		if b64 {
			b, err := base64.StdEncoding.DecodeString(s)
			if err != nil {
				return fmt.Errorf("%s is not standard base64: %w", what, err)
			}
			n = len(b)
		}
	}
	if n < least || n > most {
		return &txlog.LimitError{What: what, Got: int64(n), Min: int64(least), Max: int64(most)}
	}
	return nil
}
