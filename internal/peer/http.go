package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	// stallTimeout cuts a client off that neither sends nor takes anything.
	stallTimeout = 30 * time.Second
	// writeChunk is how much a client has to take within stallTimeout.
	writeChunk = 64 << 10
)

// api answers HTTP.
type api struct {
	reads     *reads
	writer    *writer
	shelf     *shelf
	publisher *publisher
	members   func() []gossip.Member
	status    func() replica.Status
	progress  func() (FetchProgress, bool)
	health    func() error // why the node can not go on, nil while it can
	scans     chan struct{}
	logger    *slog.Logger
}

// handler returns all endpoints.
func (a *api) handler(reg *prometheus.Registry) http.Handler {
	m := newHTTPMetrics(reg)
	mux := http.NewServeMux()
	handle := func(pattern, route string, h http.Handler) {
		mux.Handle(pattern, a.instrument(m, route, h))
	}
	handle("/v1/txn", "/v1/txn", methods{http.MethodPost: a.postTxn})
	handle("/v1/scan", "/v1/scan", methods{http.MethodGet: a.getScan})
	handle("/v1/snapshots", "/v1/snapshots", methods{http.MethodGet: a.getSnapshots, http.MethodPost: a.postSnapshot})
	handle("/v1/snapshots/{infohash}/torrent", "/v1/snapshots/torrent", methods{http.MethodGet: a.getTorrent})
	handle("/v1/snapshots/{infohash}/manifest", "/v1/snapshots/manifest", methods{http.MethodGet: a.getManifest})
	handle("/v1/status", "/v1/status", methods{http.MethodGet: a.getStatus})
	handle("/v1/progress", "/v1/progress", methods{http.MethodGet: a.getProgress})
	handle("/healthz", "/healthz", methods{http.MethodGet: a.getHealth})
	handle("/readyz", "/readyz", methods{http.MethodGet: a.getReady})
	handle("/metrics", "/metrics", methods{http.MethodGet: promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelWarn),
	}).ServeHTTP})
	handle("/{$}", "/", methods{http.MethodGet: a.getIndex})
	handle("/", "other", http.HandlerFunc(a.notFound))

	kv := a.instrument(m, "/v1/kv", methods{http.MethodGet: a.getKey, http.MethodPut: a.putKey, http.MethodDelete: a.deleteKey})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Not through the mux, which would clean a//b and .. out of keys.
		if strings.HasPrefix(r.URL.Path, kvPrefix) {
			kv.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// methods is a resource: what each method does.
type methods map[string]http.HandlerFunc

func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if h, ok := m[method]; ok {
		h(w, r)
		return
	}
	var allowed []string
	for name := range m {
		allowed = append(allowed, name)
	}
	slices.Sort(allowed)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	writeError(w, http.StatusMethodNotAllowed, fmt.Errorf("%s is not for %s: use %s", r.URL.Path, r.Method, strings.Join(allowed, " or ")))
}

func (a *api) instrument(m *httpMetrics, route string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		rec := &response{ResponseWriter: w, control: http.NewResponseController(w), code: http.StatusOK}
		defer func() {
			m.observe(route, methodLabel(r.Method), rec.code, time.Since(begin))
		}()
		if r.ContentLength != 0 {
			body := &stallReader{ReadCloser: r.Body, control: rec.control}
			body.extend()
			r.Body = body
		}
		h.ServeHTTP(rec, r)
	})
}

// methodLabel keeps what clients make up out of the metrics.
func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete:
		return method
	}
	return "other"
}

// response remembers the status, and gives the client stallTimeout to take each
// chunk of the answer.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	code    int
}

func (w *response) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		chunk := p[:min(len(p), writeChunk)]
		w.extend()
		var m int
		m, err = w.ResponseWriter.Write(chunk)
		n += m
		p = p[m:]
	}
	return n, err
}

// FlushError sends what is buffered; http.ResponseController finds it.
func (w *response) FlushError() error {
	w.extend()
	return w.control.Flush()
}

func (w *response) extend() {
	// A transport without deadlines has none to extend.
	_ = w.control.SetWriteDeadline(time.Now().Add(stallTimeout))
}

// Unwrap lets http.ResponseController find the rest.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// stallReader gives the client stallTimeout for each piece of the body, and the
// handler as long as it takes once the body is there. The deadline stays when
// the handler does not read to the end: the server does then, before it answers.
type stallReader struct {
	io.ReadCloser
	control *http.ResponseController
	over    bool
}

func (r *stallReader) Read(p []byte) (int, error) {
	if !r.over {
		r.extend()
	}
	n, err := r.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		r.over = true
		_ = r.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (r *stallReader) extend() {
	_ = r.control.SetReadDeadline(time.Now().Add(stallTimeout))
}

// errorBody is the answer to every request that failed.
type errorBody struct {
	Error  string     `json:"error"`
	Limit  *limitBody `json:"limit,omitempty"`
	Writer string     `json:"writer,omitempty"` // base URL of the node to ask instead
	State  string     `json:"state,omitempty"`  // of this node's replica
}

// limitBody says which limit was passed, in bytes.
type limitBody struct {
	What string `json:"what"`
	Got  int64  `json:"got"`
	Min  int64  `json:"min"`
	Max  int64  `json:"max"`
}

// fail answers a request with err.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	code := statusCode(err)
	if code == http.StatusInternalServerError {
		a.logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	writeError(w, code, err)
}

func statusCode(err error) int {
	switch {
	case is[*badRequestError](err), errors.Is(err, txlog.ErrEmptyTransaction):
		return http.StatusBadRequest
	case is[*txlog.LimitError](err), is[*http.MaxBytesError](err):
		return http.StatusRequestEntityTooLarge
	case is[*notTextError](err):
		return http.StatusUnprocessableEntity
	case is[*notWriterError](err):
		return http.StatusMisdirectedRequest
	case is[*notReadyError](err), errors.Is(err, txlog.ErrClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func writeError(w http.ResponseWriter, code int, err error) {
	writeJSONBody(w, code, newErrorBody(err))
}

func newErrorBody(err error) errorBody {
	body := errorBody{Error: err.Error()}
	if e, ok := errors.AsType[*txlog.LimitError](err); ok {
		body.Limit = &limitBody{e.What, e.Got, e.Min, e.Max}
	}
	if e, ok := errors.AsType[*notWriterError](err); ok {
		body.Writer = e.url
	}
	if e, ok := errors.AsType[*notReadyError](err); ok {
		body.State = string(e.state)
	}
	return body
}

func writeJSONBody(w http.ResponseWriter, code int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode answer: %v", err)) // a type of ours that has no JSON
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// The client may be gone; nobody is left to tell.
	_, _ = w.Write(append(text, '\n'))
}

const index = `qs-peer: one node of a fleet that replicates key-value data.

GET    /v1/kv/{key}        the value's bytes
PUT    /v1/kv/{key}        set it; answered when on stable storage (writer only)
DELETE /v1/kv/{key}
POST   /v1/txn             several operations at once (writer only)
GET    /v1/scan            ?prefix=&start=&end=&reverse=true&limit=N&base64=true
GET    /v1/snapshots       what this node seeds; .../{infohash}/torrent, .../manifest
POST   /v1/snapshots       mint and publish now (managers)
GET    /v1/status          the fleet as this node sees it
GET    /v1/progress        this node's fetch of a snapshot, present or last
GET    /healthz  /readyz  /metrics
`

func (a *api) getIndex(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, index)
}

func (a *api) notFound(w http.ResponseWriter, r *http.Request) {
	writeError(w, http.StatusNotFound, fmt.Errorf("there is nothing at %s: see / for what there is", r.URL.Path))
}

func (a *api) getStatus(w http.ResponseWriter, _ *http.Request) {
	writeJSONBody(w, http.StatusOK, statusOf(a.members(), a.status()))
}

func (a *api) getHealth(w http.ResponseWriter, _ *http.Request) {
	if err := a.health(); err != nil {
		writeError(w, http.StatusServiceUnavailable, err)
		return
	}
	writeJSONBody(w, http.StatusOK, map[string]bool{"healthy": true})
}

func (a *api) getReady(w http.ResponseWriter, _ *http.Request) {
	st := a.status()
	if !st.Ready {
		writeError(w, http.StatusServiceUnavailable, &notReadyError{st.State})
		return
	}
	writeJSONBody(w, http.StatusOK, map[string]any{"ready": true, "state": st.State})
}
