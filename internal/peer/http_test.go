package peer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/txlog"
)

func TestHTTPKeys(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	for _, key := range []string{
		"plain", "a/b", "a//b", "/", "//", "..", "../..", ".", "a/../b", "a b", "a+b", "a%b", "%2F", "?q=1#f",
		"\x00", "\xff\xfe", "é", "\n", strings.Repeat("k", txlog.MaxKey),
	} {
		t.Run(fmt.Sprintf("%.20q", key), func(t *testing.T) {
			n := *m
			n.t = t
			value := "value of " + key
			// Every byte encoded, the worst that a client may do.
			var path strings.Builder
			path.WriteString(kvPrefix)
			for _, b := range []byte(key) {
				fmt.Fprintf(&path, "%%%02x", b)
			}
			seq := n.put(key, value)
			for _, p := range []string{path.String(), kvPath(key)} {
				a := n.get(p)
				if a.code != 200 || a.body != value {
					t.Errorf("GET %s: %d %q", p, a.code, a.body)
				}
				if pos, err := txlog.ParsePos(a.header.Get(posHeader)); err != nil || pos.Seq < seq {
					t.Errorf("position %q, %v; written at %d", a.header.Get(posHeader), err, seq)
				}
			}
			if a := n.do(http.MethodDelete, path.String(), nil); a.code != 200 {
				t.Errorf("DELETE: %d %s", a.code, a.body)
			}
			if a := n.get(kvPath(key)); a.code != 404 || !json.Valid([]byte(a.body)) || a.header.Get(posHeader) == "" {
				t.Errorf("GET after DELETE: %d %q", a.code, a.body)
			}
		})
	}
}

func TestHTTPAnswers(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	m.put("a", "1")
	m.put("bin", "\xff")
	big := strings.Repeat("v", txlog.MaxValue)
	for _, tt := range []struct {
		name, method, path, body string
		code                     int
		want                     string // part of the body
	}{
		{"get", "GET", "/v1/kv/a", "", 200, "1"},
		{"get absent", "GET", "/v1/kv/nope", "", 404, `no value under key \"nope\"`},
		{"get without key", "GET", "/v1/kv/", "", 413, `"limit":{"what":"key","got":0,"min":1,"max":511}`},
		{"get long key", "GET", "/v1/kv/" + strings.Repeat("k", 512), "", 413, `"got":512`},
		{"empty value", "PUT", "/v1/kv/empty", "", 200, `"seq":`},
		{"empty value back", "GET", "/v1/kv/empty", "", 200, ""},
		{"longest value", "PUT", "/v1/kv/big", big, 200, `"hash":"`},
		{"value too long", "PUT", "/v1/kv/big", big + "v", 413, `"what":"value","got":16777217`},
		{"longest value still there", "GET", "/v1/kv/big", "", 200, big},
		{"post to a key", "POST", "/v1/kv/a", "", 405, "DELETE or GET or PUT"},
		{"transaction", "POST", "/v1/txn", `{"ops":[{"op":"put","key":"t1","value":"x"},{"op":"delete","key":"a"}]}`, 200, `"seq":`},
		{"its put", "GET", "/v1/kv/t1", "", 200, "x"},
		{"its delete", "GET", "/v1/kv/a", "", 404, ""},
		{"transaction in base64", "POST", "/v1/txn?base64=true", `{"ops":[{"op":"put","key":"/w==","value":"AA=="}]}`, 200, `"seq":`},
		{"its put in base64", "GET", "/v1/kv/%FF", "", 200, "\x00"},
		{"empty transaction", "POST", "/v1/txn", `{"ops":[]}`, 400, "no operations"},
		{"half a transaction", "POST", "/v1/txn", `{"ops":[{"op":"put","key":"half","value":"x"},{"op":"nope","key":"a"}]}`, 400, "operation 2"},
		{"is not applied", "GET", "/v1/kv/half", "", 404, ""},
		{"transaction with a bad switch", "POST", "/v1/txn?base64=yes", `{"ops":[]}`, 400, "true or false"},
		{"get a transaction", "GET", "/v1/txn", "", 405, "POST"},
		{"scan", "GET", "/v1/scan?prefix=t", "", 200, `{"key":"t1","value":"x"}` + "\n"},
		{"scan of bytes", "GET", "/v1/scan?prefix=bin", "", 422, `base64=true`},
		{"scan of bytes in base64", "GET", "/v1/scan?prefix=bin&base64=true", "", 200, `{"key":"Ymlu","value":"/w=="}` + "\n"},
		{"scan of an empty value", "GET", "/v1/scan?prefix=empty&base64=true", "", 200, `{"key":"ZW1wdHk=","value":""}` + "\n"},
		{"scan of nothing", "GET", "/v1/scan?prefix=nope", "", 200, ""},
		{"scan with an unknown parameter", "GET", "/v1/scan?perfix=a", "", 400, `unknown query parameter \"perfix\"`},
		{"scan with a parameter twice", "GET", "/v1/scan?limit=1&limit=2", "", 400, "2 times"},
		{"scan with a bad limit", "GET", "/v1/scan?limit=0", "", 400, "number from 1"},
		{"scan with bad bounds", "GET", "/v1/scan?start=b&end=a", "", 400, "after end"},
		{"scan with a bad query", "GET", "/v1/scan?prefix=%zz", "", 400, "query"},
		{"snapshots", "GET", "/v1/snapshots", "", 200, `{"snapshots":[]}`},
		{"torrent of nothing", "GET", "/v1/snapshots/x/torrent", "", 400, "40 hexadecimal digits"},
		{"torrent of another", "GET", "/v1/snapshots/" + strings.Repeat("a", 40) + "/torrent", "", 404, "/v1/snapshots"},
		{"manifest of another", "GET", "/v1/snapshots/" + strings.Repeat("a", 40) + "/manifest", "", 404, "/v1/snapshots"},
		{"healthz", "GET", "/healthz", "", 200, "true"},
		{"readyz", "GET", "/readyz", "", 200, `"serving"`},
		{"status", "GET", "/v1/status", "", 200, `"self":"m1"`},
		{"index", "GET", "/", "", 200, "/v1/scan"},
		{"elsewhere", "GET", "/v2", "", 404, "nothing at /v2"},
		{"put elsewhere", "PUT", "/v1/status", "", 405, "use GET"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := *m
			n.t = t
			a := n.do(tt.method, tt.path, strings.NewReader(tt.body))
			if a.code != tt.code || !strings.Contains(a.body, tt.want) {
				t.Errorf("%s %.100s: %d %.200q, want %d with %.100q", tt.method, tt.path, a.code, a.body, tt.code, tt.want)
			}
			if a.code >= 400 {
				var e errorBody
				a.json(t, &e)
				if e.Error == "" || a.header.Get("Content-Type") != "application/json" {
					t.Errorf("the error is %+v, %s", e, a.header)
				}
			}
		})
	}
}

func TestHTTPScan(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	var all []string
	for i := range 100 {
		k := fmt.Sprintf("k%02d", i)
		all = append(all, k)
	}
	m.do(http.MethodPost, "/v1/txn", strings.NewReader(txnOf(all)))
	m.put("a/b?&=", "<html>&\u2028")
	for _, tt := range []struct {
		query string
		want  []string
	}{
		{"prefix=k", all},
		{"prefix=k&limit=2", all[:2]},
		{"prefix=k&reverse=true&limit=2", []string{"k99", "k98"}},
		{"start=k10&end=k13", all[10:13]},
		{"start=k10&end=k13&reverse=1", []string{"k12", "k11", "k10"}},
		{"prefix=k5&start=k57", all[57:60]},
		{"prefix=" + url.QueryEscape("a/b?&="), []string{"a/b?&="}},
	} {
		t.Run(tt.query, func(t *testing.T) {
			n := *m
			n.t = t
			a := n.get("/v1/scan?" + tt.query)
			var keys []string
			for line := range strings.Lines(a.body) {
				var p struct{ Key string }
				if err := json.Unmarshal([]byte(line), &p); err != nil {
					t.Fatal(err)
				}
				keys = append(keys, p.Key)
			}
			if a.code != 200 || fmt.Sprint(keys) != fmt.Sprint(tt.want) {
				t.Errorf("%d: got %v, want %v", a.code, keys, tt.want)
			}
			if _, err := txlog.ParsePos(a.header.Get(posHeader)); err != nil {
				t.Error(err)
			}
		})
	}
	if a := m.get("/v1/scan?prefix=a"); !strings.Contains(a.body, `<html>&`) {
		t.Errorf("markup was escaped: %s", a.body)
	}
}

func txnOf(keys []string) string {
	var ops []string
	for _, k := range keys {
		ops = append(ops, fmt.Sprintf(`{"op":"put","key":%q,"value":"v"}`, k))
	}
	return `{"ops":[` + strings.Join(ops, ",") + `]}`
}

// TestHTTPScanCutOff meets a value that is not text after much was sent: the
// client must notice, and be told why.
func TestHTTPScanCutOff(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	m.putMany("k", 2000)
	m.put("z", "\xff")
	a := m.get("/v1/scan")
	if a.err == nil || !errors.Is(a.err, io.ErrUnexpectedEOF) {
		t.Errorf("the body ended with %v", a.err)
	}
	last := a.body[strings.LastIndex(strings.TrimSuffix(a.body, "\n"), "\n")+1:]
	var e errorBody
	if err := json.Unmarshal([]byte(last), &e); err != nil || !strings.Contains(e.Error, "base64=true") {
		t.Errorf("the last line is %.200q, %v", last, err)
	}
	if n := strings.Count(a.body, "\n"); n != 2001 {
		t.Errorf("got %d lines", n)
	}
}

// TestHTTPScanGivesUp leaves in the middle of a scan: the read transaction must
// end.
func TestHTTPScanGivesUp(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	for i := range 8 {
		m.put(fmt.Sprint("big", i), strings.Repeat("v", 8<<20))
	}
	conn, err := net.Dial("tcp", m.p.Addrs().HTTP)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v1/scan HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	m.stop() // waits for the scan; would exceed its time if that went on
}

// TestHTTPBodyStops sends half a body and leaves: nothing may be written.
func TestHTTPBodyStops(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	before := m.self().AppliedSeq
	conn, err := net.Dial("tcp", m.p.Addrs().HTTP)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
	conn.(*net.TCPConn).CloseWrite()
	text, _ := io.ReadAll(conn)
	conn.Close()
	if !bytes.Contains(text, []byte("400 Bad Request")) || !bytes.Contains(text, []byte("ended early")) {
		t.Errorf("answered %q", text)
	}
	if a := m.get("/v1/kv/a"); a.code != 404 {
		t.Errorf("half a value was written: %d %q", a.code, a.body)
	}
	if after := m.self().AppliedSeq; after != before {
		t.Errorf("at %d, was at %d", after, before)
	}
}

func TestHTTPMetrics(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	m.put("a", "1")
	m.get("/v1/kv/a")
	a := m.get("/metrics")
	if a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	for _, want := range []string{
		"go_goroutines ", "process_open_fds ", `qs_build_info{colo="test",`, `version="test"`,
		`qs_http_requests_total{code="200",method="GET",route="/v1/kv"} 1`,
		`qs_http_request_duration_seconds_count{route="/v1/kv"} 2`,
		"qs_replica_applied_seq 2", "qs_replica_lag_entries 0", "qs_replica_lag_seconds 0", `qs_replica_state{state="serving"} 1`, "qs_log_", "qs_store_", "qs_gossip_", "qs_swarm_", "qs_snapshot_",
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the metrics lack %q", want)
		}
	}
	lintMetrics(t, a.body)
}

// lintMetrics checks the conventions that promtool does: help, base units, and
// _total on counters and on nothing else.
func lintMetrics(t *testing.T, text string) {
	t.Helper()
	help := map[string]bool{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "#" || !strings.HasPrefix(f[2], "qs_") {
			continue
		}
		name := f[2]
		switch f[1] {
		case "HELP":
			help[name] = true
		case "TYPE":
			if !help[name] {
				t.Errorf("%s has no help", name)
			}
			if counter := f[3] == "counter"; counter != strings.HasSuffix(name, "_total") {
				t.Errorf("%s is a %s", name, f[3])
			}
			for _, unit := range []string{"_ms", "_milliseconds", "_minutes", "_kilobytes", "_megabytes", "_percent"} {
				if strings.Contains(name, unit) {
					t.Errorf("%s is not in base units", name)
				}
			}
		}
	}
	if len(help) == 0 {
		t.Error("no metrics")
	}
}

func TestHTTPOnWorker(t *testing.T) {
	t.Parallel()
	m := startNode(t, "m1", gossip.Manager)
	seq := m.put("a", "1")
	w := startNode(t, "w1", gossip.Worker, m)
	w.caughtUp(seq)
	writer := "http://" + m.p.Addrs().HTTP
	for _, tt := range []struct{ method, path, body string }{
		{"PUT", "/v1/kv/a", "2"},
		{"DELETE", "/v1/kv/a", ""},
		{"POST", "/v1/txn", `{"ops":[{"op":"put","key":"a","value":"2"}]}`},
		{"POST", "/v1/snapshots", ""},
	} {
		a := w.do(tt.method, tt.path, strings.NewReader(tt.body))
		var e errorBody
		a.json(t, &e)
		if a.code != http.StatusMisdirectedRequest || e.Writer != writer || !strings.Contains(e.Error, writer) {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, a.code, a.body)
		}
	}
	if a := w.get("/v1/kv/a"); a.code != 200 || a.body != "1" {
		t.Errorf("read: %d %q", a.code, a.body)
	}
}

// TestHTTPNotReady asks a worker that has nothing yet.
func TestHTTPNotReady(t *testing.T) {
	w := startNode(t, "w1", gossip.Worker)
	for _, path := range []string{"/v1/kv/a", "/v1/scan", "/readyz"} {
		a := w.get(path)
		var e errorBody
		a.json(t, &e)
		if a.code != http.StatusServiceUnavailable || e.State != "joining" || e.Error == "" {
			t.Errorf("%s: %d %s", path, a.code, a.body)
		}
	}
	if a := w.get("/healthz"); a.code != 200 {
		t.Errorf("health: %d %s", a.code, a.body)
	}
	if a := w.do(http.MethodPut, "/v1/kv/a", strings.NewReader("1")); a.code != 421 || !strings.Contains(a.body, "no live node") {
		t.Errorf("write: %d %s", a.code, a.body)
	}
	if a := w.get("/v1/status"); a.code != 200 || !strings.Contains(a.body, `"state":"joining"`) {
		t.Errorf("status: %d %s", a.code, a.body)
	}
}

// FuzzScanLine holds lines of a scan against encoding/json.
func FuzzScanLine(f *testing.F) {
	f.Add([]byte("a"), []byte("1"), false)
	f.Add([]byte("\"\\/\b\f\n\r\t\x00\x1f\x7f"), []byte("é\u2028😀<&>"), false)
	f.Add([]byte("\xff"), []byte("\xff\x00"), true)
	f.Fuzz(func(t *testing.T, key, value []byte, inBase64 bool) {
		var text bytes.Buffer
		l := &lineWriter{base64: inBase64, buf: bufio.NewWriter(&text)}
		if err := l.pair(key, value); err != nil {
			if inBase64 || utf8.Valid(key) && utf8.Valid(value) {
				t.Error(err)
			}
			return
		}
		_ = l.buf.Flush()
		if !bytes.HasSuffix(text.Bytes(), []byte("}\n")) {
			t.Errorf("the line is %q", text.Bytes())
		}
		var b struct{ Key, Value []byte }
		var s struct{ Key, Value string }
		into := any(&s)
		if inBase64 {
			into = &b
		}
		if err := json.Unmarshal(text.Bytes(), into); err != nil {
			t.Fatalf("%q: %v", text.Bytes(), err)
		}
		if string(b.Key)+s.Key != string(key) || string(b.Value)+s.Value != string(value) {
			t.Errorf("%q came back as %q%q, %q as %q%q", key, b.Key, s.Key, value, b.Value, s.Value)
		}
	})
}
