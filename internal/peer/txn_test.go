package peer

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/txlog"
)

func TestDecodeTxn(t *testing.T) {
	long := strings.Repeat("k", txlog.MaxKey+1)
	for _, tt := range []struct {
		name   string
		base64 bool
		in     string
		want   string // kinds, keys and values; or what the error says
		bad    bool
	}{
		{"one put", false, `{"ops":[{"op":"put","key":"a","value":"1"}]}`, `1"a"="1"`, false},
		{"both kinds", false, ` {"ops":[{"op":"put","key":"a","value":""},{"op":"delete","key":"b"}]} `, `1"a"="" 2"b"=""`, false},
		{"none", false, `{"ops":[]}`, ``, false},
		{"escapes", false, `{"ops":[{"op":"put","key":"\u00e9\ud83d\ude00\\ud800","value":"\ufffd"}]}`, `1"é😀\\ud800"="�"`, false},
		{"escapes of one character", false, `{"ops":[{"op":"put","key":"\"\\\/\n\t","value":"\b\f\r\n"}]}`, `1"\"\\/\n\t"="\b\f\r\n"`, false},
		{"base64", true, `{"ops":[{"op":"put","key":"/wA=","value":""}]}`, `1"\xff\x00"=""`, false},
		{"half a surrogate pair", false, `{"ops":[{"op":"put","key":"\ud83d","value":"1"}]}`, `operation 1: "key" is not valid UTF-8`, true},
		{"halves in the wrong order", false, `{"ops":[{"op":"put","key":"a","value":"\ude00\ud83d"}]}`, `"value" is not valid UTF-8`, true},
		{"invalid UTF-8", false, "{\"ops\":[{\"op\":\"put\",\"key\":\"a\",\"value\":\"\xff\"}]}", `base64=true`, true},
		{"not base64", true, `{"ops":[{"op":"put","key":"a","value":"-"}]}`, `operation 1: "key" is not standard base64`, true},
		{"empty key", false, `{"ops":[{"op":"put","key":"","value":"1"}]}`, `key is 0 bytes long; allowed are 1 to 511`, true},
		{"long key", false, `{"ops":[{"op":"delete","key":"` + long + `"}]}`, `key is 512 bytes long`, true},
		{"no key", false, `{"ops":[{"op":"delete"}]}`, `"key" must be a string`, true},
		{"no value", false, `{"ops":[{"op":"put","key":"a"}]}`, `"value" must be a string`, true},
		{"value is a number", false, `{"ops":[{"op":"put","key":"a","value":1}]}`, `"value" must be a string`, true},
		{"value is null", false, `{"ops":[{"op":"put","key":"a","value":null}]}`, `"value" must be a string`, true},
		{"delete with a value", false, `{"ops":[{"op":"put","key":"a","value":"1"},{"op":"delete","key":"a","value":"1"}]}`, `operation 2: a delete takes no "value"`, true},
		{"unknown operation", false, `{"ops":[{"op":"incr","key":"a"}]}`, `"op" is "incr"`, true},
		{"unknown field", false, `{"ops":[{"op":"put","key":"a","valeu":"1"}]}`, `valeu`, true},
		{"not an object", false, `[]`, `{"ops":[…]}`, true},
		{"another field", false, `{"op":[]}`, `{"ops":[…]}`, true},
		{"more fields", false, `{"ops":[],"x":1}`, `found x`, true},
		{"more after it", false, `{"ops":[]}{}`, `something follows`, true},
		{"cut short", false, `{"ops":[{"op":"put","key":"a","value":"1"}`, `ends early`, true},
		{"empty", false, ``, `ends early`, true},
		{"not JSON", false, `{"ops":[{]}`, `invalid JSON`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ops, err := decodeFrom(strings.NewReader(tt.in), tt.base64)
			if tt.bad {
				wantError(t, err, tt.want)
				if code := statusCode(err); code != 400 && code != 413 {
					t.Errorf("answered with %d", code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, op := range ops {
				got = append(got, fmt.Sprintf("%d%q=%q", op.Kind, op.Key, op.Value))
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got %s, want %s", s, tt.want)
			}
		})
	}
}

// TestDecodeTxnBounded decodes a body that is far longer than an entry: it must
// give up after about an entry.
func TestDecodeTxnBounded(t *testing.T) {
	t.Parallel()
	value := strings.Repeat("v", 1<<20)
	r := &counter{r: io.MultiReader(strings.NewReader(`{"ops":[`), endless(`{"op":"put","key":"a","value":"`+value+`"},`))}
	_, err := decodeFrom(r, false)
	if !is[*txlog.LimitError](err) {
		t.Fatalf("got %v", err)
	}
	if r.n > maxRequest+4<<20 {
		t.Errorf("read %d bytes", r.n)
	}
}

// TestDecodeTxnTooManyOperations gives up before small operations take much memory.
func TestDecodeTxnTooManyOperations(t *testing.T) {
	r := &counter{r: io.MultiReader(strings.NewReader(`{"ops":[`), endless(`{"op":"delete","key":"a"},`))}
	_, err := decodeFrom(r, false)
	limit, ok := errors.AsType[*txlog.LimitError](err)
	if !ok || limit.What != "transaction" || limit.Max != maxRequest || r.n > maxRequest {
		t.Fatalf("got %v after %d bytes", err, r.n)
	}
}

// decodeFrom decodes with all the memory that one caller may have.
func decodeFrom(body io.Reader, inBase64 bool) ([]txlog.Op, error) {
	l := testLease()
	return decodeTxn(context.Background(), body, inBase64, l)
}

type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// endless returns s again and again.
func endless(s string) io.Reader { return &repeater{s: s} }

type repeater struct {
	s   string
	off int
}

func (r *repeater) Read(p []byte) (int, error) {
	n := copy(p, r.s[r.off:])
	r.off = (r.off + n) % len(r.s)
	return n, nil
}

// FuzzDecodeTxn holds what is understood against encoding/json.
func FuzzDecodeTxn(f *testing.F) {
	f.Add(`{"ops":[{"op":"put","key":"a","value":"1"},{"op":"delete","key":"b"}]}`, false)
	f.Add(`{"ops":[{"op":"put","key":"\ud83d\ude00","value":"\\ud800"}]}`, false)
	f.Add(`{"ops":[{"op":"put","key":"/wA=","value":""}]}`, true)
	f.Add(`{"ops":[{"op":"put","key":"/w\nA=","value":"/wA=/wA="}]}`, true)
	f.Fuzz(func(t *testing.T, in string, b64 bool) {
		lease := testLease()
		ops, err := decodeTxn(context.Background(), strings.NewReader(in), b64, lease)
		lease.close()
		if n := lease.quota.used(); n != 0 {
			t.Errorf("%d bytes of memory were not given back", n)
		}
		if err != nil {
			return
		}
		var want struct {
			Ops []struct {
				Op         string
				Key, Value string
			}
		}
		if err := json.Unmarshal([]byte(in), &want); err != nil || len(want.Ops) != len(ops) {
			t.Fatalf("encoding/json says %v, and %d operations; got %d", err, len(want.Ops), len(ops))
		}
		for i, op := range ops {
			key, value := []byte(want.Ops[i].Key), []byte(want.Ops[i].Value)
			if b64 {
				key, _ = base64.StdEncoding.DecodeString(string(key))
				value, _ = base64.StdEncoding.DecodeString(string(value))
			}
			kind := map[string]txlog.Kind{"put": txlog.Put, "delete": txlog.Delete}[want.Ops[i].Op]
			if op.Kind != kind || !bytes.Equal(op.Key, key) || !bytes.Equal(op.Value, value) {
				t.Errorf("got %d %q=%q, want %d %q=%q", op.Kind, op.Key, op.Value, kind, key, value)
			}
			if len(op.Key) < 1 || len(op.Key) > txlog.MaxKey || len(op.Value) > txlog.MaxValue {
				t.Errorf("passed a limit: %d, %d", len(op.Key), len(op.Value))
			}
		}
	})
}
