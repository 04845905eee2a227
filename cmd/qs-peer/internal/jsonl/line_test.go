package jsonl

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/txlog"
)

// decodeOp is what the node makes of an operation.
func decodeOp(t *testing.T, op []byte) (kind, key, value string) {
	t.Helper()
	var o struct {
		Op, Key string
		Value   *string
	}
	if err := json.Unmarshal(op, &o); err != nil {
		t.Fatalf("operation %q: %v", op, err)
	}
	if o.Value == nil {
		return o.Op, o.Key, ""
	}
	return o.Op, o.Key, *o.Value
}

func TestLinesThatAreRight(t *testing.T) {
	key511 := strings.Repeat("k", txlog.MaxKey)
	for _, c := range []struct {
		line             string
		b64              bool
		kind, key, value string
	}{
		{line: `{"key":"a","value":"b"}`, kind: "put", key: "a", value: "b"},
		{line: `{"key":"a","value":""}`, kind: "put", key: "a"},
		{line: `{"value":"b","key":"a"}`, kind: "put", key: "a", value: "b"},
		{line: ` { "key" : "a" , "value" : "b" } `, kind: "put", key: "a", value: "b"},
		{line: `{"key":"zürich","value":"\u00e9\n\"\ud83d\ude00"}`, kind: "put", key: "zürich", value: "é\n\"😀"},
		{line: `{"key":"\"\\\/","value":"a\n\tb\r\f\b"}`, kind: "put", key: `"\/`, value: "a\n\tb\r\f\b"},
		{line: `{"key":"` + strings.Repeat(`\n`, txlog.MaxKey) + `","value":"b"}`, kind: "put", key: strings.Repeat("\n", txlog.MaxKey), value: "b"},
		{line: `{"key":"a","value":"\ufffd �"}`, kind: "put", key: "a", value: "� �"},
		{line: `{"key":"a","delete":true}`, kind: "delete", key: "a"},
		{line: `{"key":"a","delete":false,"value":"b"}`, kind: "put", key: "a", value: "b"},
		{line: `{"key":"` + key511 + `","value":"b"}`, kind: "put", key: key511, value: "b"},
		{line: `{"key":"AAE=","value":""}`, b64: true, kind: "put", key: "AAE="},
		{line: `{"key":"` + base64.StdEncoding.EncodeToString([]byte(key511)) + `","value":"/w=="}`, b64: true,
			kind: "put", key: base64.StdEncoding.EncodeToString([]byte(key511)), value: "/w=="},
	} {
		op, err := appendOp(nil, []byte(c.line), c.b64)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		if kind, key, value := decodeOp(t, op); kind != c.kind || key != c.key || value != c.value {
			t.Errorf("%s: became %s", c.line, op)
		}
	}
}

func TestLinesThatAreWrong(t *testing.T) {
	for _, c := range []struct {
		line string
		b64  bool
		want string // part of the message
	}{
		{line: `nonsense`, want: "not a pair: invalid character"},
		{line: `{"key":"a","value":"b"`, want: "ends within the object"},
		{line: `{"key":"a","value":"b"} {}`, want: "one pair on a line"},
		{line: `[]`, want: "it is an array"},
		{line: `"text"`, want: "it is a string"},
		{line: `null`, want: `"key" is missing`},
		{line: `{}`, want: `"key" is missing`},
		{line: `{"key":null,"value":"b"}`, want: `"key" is`},
		{line: `{"key":1,"value":"b"}`, want: `"key" is not a string`},
		{line: `{"key":"a"}`, want: `"value" is missing`},
		{line: `{"key":"a","value":{"b":1}}`, want: `"value" is not a string`},
		{line: `{"key":"a","value":"b","ttl":3}`, want: `unknown field "ttl"`},
		{line: `{"key":"a","value":"b","delete":true}`, want: "exclude each other"},
		{line: `{"key":"a","delete":"yes"}`, want: `"delete" can not be a string`},
		{line: `{"key":"","value":"b"}`, want: "key is 0 bytes long; allowed are 1 to 511"},
		{line: `{"key":"` + strings.Repeat("k", 512) + `","value":"b"}`, want: "key is 512 bytes long"},
		{line: `{"key":"a","value":"` + strings.Repeat("v", txlog.MaxValue+1) + `"}`, want: "value is 16777217 bytes long"},
		{line: "{\"key\":\"a\xff\",\"value\":\"b\"}", want: "not valid UTF-8"},
		{line: "{\"key\":\"a\tb\",\"value\":\"b\"}", want: "invalid character"},
		{line: `{"key":"a","value":"\ud800"}`, want: "half of a surrogate pair"},
		{line: `{"key":"a","value":"b!"}`, b64: true, want: "key is not standard base64"},
		{line: `{"key":"AA==","value":"b!"}`, b64: true, want: "value is not standard base64"},
		{line: `{"key":"","value":""}`, b64: true, want: "key is 0 bytes long"},
	} {
		dst := []byte("before")
		got, err := appendOp(dst, []byte(c.line), c.b64)
		name := c.line[:min(60, len(c.line))]
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", name, err, c.want)
		}
		if string(got) != "before" {
			t.Errorf("%s: left %q behind", name, got)
		}
	}
}

// FuzzLine holds the shortcut for plain lines against the full decoder.
func FuzzLine(f *testing.F) {
	for _, s := range []string{
		`{"key":"a","value":"b"}`, `{"key":"a","value":"\u00e9"}`, `{"key":"a","value":"b"}}`, `{"key":"a\"","value":"b"}`,
		`{"key":"a","delete":true}`, "{\"key\":\"\xff\",\"value\":\"\"}", `{"key":"","value":"`, `{"key":"\ud800","value":""}`,
		`{"key":"\n\"\\","value":"\t\u000a"}`, `{"key":"\x","value":"\`,
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, line []byte, b64 bool) {
		op, err := appendOp(nil, line, b64)
		key, value, plainly := plain(line)
		slowKey, slowValue, del, slowErr := parse(line)
		if plainly {
			if slowErr != nil || del || string(key) != string(slowKey) || string(value) != string(slowValue) {
				t.Fatalf("%q: shortcut gives %q %q; decoder %q %q %v %v", line, key, value, slowKey, slowValue, del, slowErr)
			}
		}
		if err == nil && !json.Valid(op) {
			t.Fatalf("%q became %q", line, op)
		}
	})
}

func BenchmarkLine(b *testing.B) {
	line := []byte(`{"key":"zone/example-000123.net/settings","value":"origin=192.0.2.1; ttl=300; cache=on; rules=0123456789abcdef"}`)
	buf := make([]byte, 0, 1024)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := appendOp(buf, line, false); err != nil {
			b.Fatal(err)
		}
	}
}
