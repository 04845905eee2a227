package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewRefusesAddresses(t *testing.T) {
	for _, addr := range []string{"", "host", "host:", ":7948", "ftp://host:1", "http://host:1/path", "http://u@host:1", "https://host:1", "a b:1", "host:port"} {
		if _, err := New(Options{Addr: addr}); err == nil {
			t.Errorf("%q: no error", addr)
		}
	}
	for _, addr := range []string{"127.0.0.1:7948", "http://localhost:80", "http://[::1]:80/", "[::1]:80"} {
		if _, err := New(Options{Addr: addr}); err != nil {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

// serve returns a client of a node that answers with h.
func serve(t *testing.T, silence time.Duration, h http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	c, err := New(Options{Addr: server.URL, Silence: silence})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestErrorsSayWhatToDo(t *testing.T) {
	ctx := context.Background()
	for _, step := range []struct {
		name string
		h    http.HandlerFunc
		want []string
	}{
		{"a refusal", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			io.WriteString(w, `{"error":"key is 512 bytes long"}`)
		}, []string{"key is 512 bytes long"}},
		{"not the writer", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusMisdirectedRequest)
			io.WriteString(w, `{"error":"this node takes no writes","writer":"http://10.0.0.1:7948"}`)
		}, []string{"takes no writes", "--addr 10.0.0.1:7948"}},
		{"something else answers", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "teapot", http.StatusTeapot)
		}, []string{"418", "teapot"}},
		{"garbage", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `<html>`)
		}, []string{"cannot be read"}},
		{"a hang-up", func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}, []string{"closed the connection"}},
		{"silence", func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, []string{"said nothing for 200ms", "--timeout"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			_, err := serve(t, 200*time.Millisecond, step.h).Put(ctx, []byte("k"), []byte("v"))
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range step.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	c, _ := New(Options{Addr: addr, Silence: time.Second})
	_, _, err = c.Get(context.Background(), []byte("k"))
	if err == nil || !strings.Contains(err.Error(), "nothing listens at "+addr) {
		t.Errorf("error %v", err)
	}
}

func TestKeysReachTheNodeByteForByte(t *testing.T) {
	for _, key := range []string{"a", "a/b//c", ".", "..", "../x", "a b%20+?#&=;", "\x00\xff\n", "zürich"} {
		var got string
		c := serve(t, time.Second, func(w http.ResponseWriter, r *http.Request) {
			got = strings.TrimPrefix(r.URL.Path, "/v1/kv/")
			w.WriteHeader(http.StatusNotFound)
		})
		if _, ok, err := c.Get(context.Background(), []byte(key)); ok || err != nil {
			t.Errorf("%q: %v %v", key, ok, err)
		}
		if got != key {
			t.Errorf("%q arrived as %q", key, got)
		}
	}
}

func TestScanThatIsCutOff(t *testing.T) {
	const pairs = "{\"key\":\"a\",\"value\":\"\\n{\\\"error\\\":\"}\n{\"key\":\"b\",\"value\":\"\"}\n"
	for _, step := range []struct {
		name, body string
		abort      bool
		want       string // of the error; empty: none
	}{
		{"complete", pairs, false, ""},
		{"empty", "", false, ""},
		{"cut off", pairs, true, ErrCutOff.Error()},
		{"with a reason", pairs + `{"error":"value of \"c\" is not text"}` + "\n", true, `value of "c" is not text`},
	} {
		t.Run(step.name, func(t *testing.T) {
			c := serve(t, 5*time.Second, func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, step.body)
				w.(http.Flusher).Flush()
				if step.abort {
					panic(http.ErrAbortHandler)
				}
			})
			body, err := c.Scan(context.Background(), Range{})
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			if (err == nil) != (step.want == "") || err != nil && (!errors.Is(err, ErrCutOff) || !strings.Contains(err.Error(), step.want)) {
				t.Errorf("error %v, want %q", err, step.want)
			}
			want := pairs
			if step.body == "" {
				want = ""
			}
			if string(got) != want {
				t.Errorf("passed on %q", got)
			}
		})
	}
}

// The error line may arrive in any pieces.
func TestScanBodyInPieces(t *testing.T) {
	pairs := bytes.Repeat([]byte("{\"key\":\"a\",\"value\":\"b\"}\n"), 50_000)
	for _, tail := range []string{"", `{"error":"why"}` + "\n"} {
		text := append(bytes.Clone(pairs), tail...)
		for name, r := range map[string]io.Reader{
			"one byte": iotest.OneByteReader(bytes.NewReader(text[len(text)-5_000:])),
			"half":     iotest.HalfReader(bytes.NewReader(text)),
			"with EOF": iotest.DataErrReader(bytes.NewReader(text)),
		} {
			got, err := io.ReadAll(newScanBody(io.NopCloser(r)))
			if (tail == "") != (err == nil) || err != nil && !strings.HasSuffix(err.Error(), ": why") {
				t.Errorf("%s: error %v", name, err)
			}
			if bytes.Contains(got, []byte("error")) || !bytes.HasSuffix(got, []byte("}\n")) || name != "one byte" && len(got) != len(pairs) {
				t.Errorf("%s: passed on %d bytes of %d", name, len(got), len(pairs))
			}
		}
	}
}
