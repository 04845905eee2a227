package fleet

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCall(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /json":
			w.Write([]byte(`{"n":7}`))
		case "GET /text":
			w.Write([]byte("a 1\n"))
		case "POST /echo":
			io.Copy(w, r.Body)
		default:
			http.Error(w, "there is nothing", http.StatusNotFound)
		}
	}))
	defer server.Close()
	defer loopbackCaller.close()
	n := &Node{Addrs: Addrs{HTTP: strings.TrimPrefix(server.URL, "http://")}}
	var object struct{ N int }
	if err := n.Call(t.Context(), http.MethodGet, "/json", nil, &object); err != nil || object.N != 7 {
		t.Errorf("JSON: %+v, %v", object, err)
	}
	var text string
	if err := n.Call(t.Context(), http.MethodGet, "/text", nil, &text); err != nil || text != "a 1\n" {
		t.Errorf("text: %q, %v", text, err)
	}
	if err := n.Call(t.Context(), http.MethodPost, "/echo", map[string]int{"n": 9}, &object); err != nil || object.N != 9 {
		t.Errorf("a body: %+v, %v", object, err)
	}
	if err := n.Call(t.Context(), http.MethodPost, "/echo", object, nil); err != nil {
		t.Errorf("no answer wanted: %v", err)
	}
	var refused *StatusError
	if err := n.Call(t.Context(), http.MethodGet, "/", nil, nil); !errors.As(err, &refused) || refused.Code != http.StatusNotFound || !strings.Contains(err.Error(), "there is nothing") {
		t.Errorf("a refusal: %v", err)
	}
	if err := n.Call(t.Context(), http.MethodGet, "/text", nil, &object); err == nil {
		t.Errorf("an answer that is no JSON: %v", err)
	}
}
