package peer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/txlog"
)

// maxTxnBody bounds the body of a transaction: an entry of the greatest size in
// base64, and then some.
const maxTxnBody = 2 * txlog.MaxEntry

func (a *api) postTxn(w *response, r *http.Request) {
	if err := a.writer.check(); err != nil {
		a.fail(w, r, err)
		return
	}
	inBase64, err := boolParam(r.URL.Query(), "base64")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	ops, err := decodeTxn(http.MaxBytesReader(w, r.Body, maxTxnBody), inBase64)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.write(w, r, ops)
}

// decodeTxn reads {"ops":[…]} one operation at a time, so that it holds the
// operations and not the text, and no more of them than fit an entry.
func decodeTxn(body io.Reader, inBase64 bool) ([]txlog.Op, error) {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	for _, want := range []json.Token{json.Delim('{'), "ops", json.Delim('[')} {
		got, err := d.Token()
		if err != nil {
			return nil, jsonError(err)
		}
		if got != want {
			return nil, badRequest(`the body is not {"ops":[…]}: found %v where %v should be`, got, want)
		}
	}
	var ops []txlog.Op
	var size int64
	for d.More() {
		op, err := decodeOp(d, inBase64)
		if err != nil {
			if bad, ok := errors.AsType[*badRequestError](err); ok {
				return nil, badRequest("operation %d: %s", len(ops)+1, bad.reason)
			}
			return nil, err
		}
		if err := txlog.CheckOps(len(ops) + 1); err != nil {
			return nil, err
		}
		if size += int64(len(op.Key) + len(op.Value)); size > txlog.MaxEntry {
			return nil, &txlog.LimitError{What: "entry", Got: size, Min: 1, Max: txlog.MaxEntry}
		}
		ops = append(ops, op)
	}
	for _, want := range []json.Token{json.Delim(']'), json.Delim('}')} {
		got, err := d.Token()
		if err != nil {
			return nil, jsonError(err)
		}
		if got != want {
			return nil, badRequest("found %v after the operations where %v should be", got, want)
		}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, badRequest("something follows after the transaction")
	}
	return ops, nil
}

func decodeOp(d *json.Decoder, inBase64 bool) (txlog.Op, error) {
	var in struct {
		Op    string          `json:"op"`
		Key   json.RawMessage `json:"key"`
		Value json.RawMessage `json:"value"`
	}
	if err := d.Decode(&in); err != nil {
		return txlog.Op{}, jsonError(err)
	}
	var op txlog.Op
	switch in.Op {
	case "put":
		op.Kind = txlog.Put
	case "delete":
		op.Kind = txlog.Delete
	default:
		return op, badRequest(`"op" is %q: want "put" or "delete"`, in.Op)
	}
	var err error
	if op.Key, err = decodeBytes("key", in.Key, inBase64); err != nil {
		return op, err
	}
	if err := checkKey(op.Key); err != nil {
		return op, err
	}
	if op.Kind == txlog.Delete {
		if in.Value != nil {
			return op, badRequest(`a delete takes no "value"`)
		}
		return op, nil
	}
	if op.Value, err = decodeBytes("value", in.Value, inBase64); err != nil {
		return op, err
	}
	if n := len(op.Value); n > txlog.MaxValue {
		return op, &txlog.LimitError{What: "value", Got: int64(n), Min: 0, Max: txlog.MaxValue}
	}
	return op, nil
}

// decodeBytes reads a JSON string as bytes. encoding/json would put U+FFFD in
// place of what is not text: that would be another key, or another value.
func decodeBytes(field string, raw json.RawMessage, inBase64 bool) ([]byte, error) {
	if raw == nil || raw[0] != '"' {
		return nil, badRequest("%q must be a string", field)
	}
	if !isText(raw) {
		return nil, badRequest("%q is not valid UTF-8: send bytes with base64=true", field)
	}
	text, err := unquote(raw)
	if err != nil || !inBase64 {
		return text, err
	}
	b, err := base64.StdEncoding.Strict().AppendDecode([]byte{}, text)
	if err != nil {
		return nil, badRequest("%q is not standard base64: %v", field, err)
	}
	return b, nil
}

// unquote returns what a valid JSON string stands for. Long texts have a line
// break here and there and no other escapes, and encoding/json takes several
// times as long.
func unquote(raw []byte) ([]byte, error) {
	rest := raw[1 : len(raw)-1]
	text := make([]byte, 0, len(rest))
	for {
		i := bytes.IndexByte(rest, '\\')
		if i < 0 {
			return append(text, rest...), nil
		}
		text = append(text, rest[:i]...)
		switch c := rest[i+1]; c {
		case 'n':
			text = append(text, '\n')
		case 't':
			text = append(text, '\t')
		case '"', '\\', '/':
			text = append(text, c)
		default:
			var s string
			if err := json.Unmarshal(raw, &s); err != nil {
				return nil, jsonError(err)
			}
			return []byte(s), nil
		}
		rest = rest[i+2:]
	}
}

// isText reports whether a JSON string stands for valid UTF-8: the bytes are,
// and no escape names half of a surrogate pair.
func isText(raw []byte) bool {
	if !utf8.Valid(raw) {
		return false
	}
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return true
		}
		raw = raw[i+1:] // the string was parsed, so an escaped character follows
		r, ok := unicodeEscape(raw)
		raw = raw[1:]
		if !ok {
			continue
		}
		raw = raw[4:]
		if !utf16.IsSurrogate(r) {
			continue
		}
		if len(raw) == 0 || raw[0] != '\\' {
			return false
		}
		low, ok := unicodeEscape(raw[1:])
		if !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
			return false
		}
		raw = raw[6:]
	}
}

// unicodeEscape reads the uXXXX that raw begins with.
func unicodeEscape(raw []byte) (rune, bool) {
	if len(raw) < 5 || raw[0] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(raw[1:5]), 16, 16)
	return rune(n), err == nil
}

func jsonError(err error) error {
	if is[*http.MaxBytesError](err) {
		return &txlog.LimitError{What: "transaction's text", Got: maxTxnBody + 1, Min: 1, Max: maxTxnBody}
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return badRequest("invalid JSON at byte %d: %v", e.Offset, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return badRequest("invalid JSON: it ends early")
	}
	return badRequest("invalid JSON: %v", err)
}
