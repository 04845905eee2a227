package peer

import (
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

	"github.com/qs-peer/qs-peer/internal/trust"
)

// listenerHTTP names the HTTP listener in metrics and logs.
const listenerHTTP = "http"

// route is a resource and what the methods do with it.
type route struct {
	pattern string // of http.ServeMux
	label   string // in metrics
	methods methods
}

// methods are the endpoints of a resource; HEAD is GET, and "" is any method.
type methods map[string]endpoint

// endpoint is written without field names, so that one that does not say what right it
// takes does not compile.
type endpoint struct {
	verb  trust.Verb
	serve func(*response, *http.Request)
}

const anyMethod = ""

// routes is everything there is.
func (a *api) routes(reg *prometheus.Registry) []route {
	metrics := promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelWarn),
	})
	return []route{
		{kvPrefix, "/v1/kv", methods{
			http.MethodGet:    {trust.VerbRead, a.getKey},
			http.MethodPut:    {trust.VerbWrite, a.putKey},
			http.MethodDelete: {trust.VerbWrite, a.deleteKey},
		}},
		{"/v1/txn", "/v1/txn", methods{http.MethodPost: {trust.VerbWrite, a.postTxn}}},
		{"/v1/scan", "/v1/scan", methods{http.MethodGet: {trust.VerbRead, a.getScan}}},
		{"/v1/snapshots", "/v1/snapshots", methods{
			http.MethodGet:  {trust.VerbStatus, a.getSnapshots},
			http.MethodPost: {trust.VerbSnapshot, a.postSnapshot},
		}},
		{"/v1/scrub", "/v1/scrub", methods{http.MethodPost: {trust.VerbScrub, a.postScrub}}},
		{"/v1/snapshots/{infohash}/torrent", "/v1/snapshots/torrent", methods{http.MethodGet: {trust.VerbStatus, a.getTorrent}}},
		{"/v1/snapshots/{infohash}/manifest", "/v1/snapshots/manifest", methods{http.MethodGet: {trust.VerbStatus, a.getManifest}}},
		{"/v1/status", "/v1/status", methods{http.MethodGet: {trust.VerbStatus, a.reporting(a.getStatus)}}},
		{"/v1/progress", "/v1/progress", methods{http.MethodGet: {trust.VerbStatus, a.getProgress}}},
		{"/healthz", "/healthz", methods{http.MethodGet: {trust.VerbStatus, a.getHealth}}},
		{"/readyz", "/readyz", methods{http.MethodGet: {trust.VerbStatus, a.getReady}}},
		{"/metrics", "/metrics", methods{http.MethodGet: {trust.VerbStatus, a.reporting(func(w *response, r *http.Request) {
			metrics.ServeHTTP(w, r)
		})}}},
		{"/{$}", "/", methods{http.MethodGet: {trust.VerbStatus, a.getIndex}}},
		{"/", "other", methods{anyMethod: {trust.VerbStatus, a.notFound}}},
	}
}

// handler serves all routes.
func (a *api) handler(reg *prometheus.Registry) http.Handler {
	m := newHTTPMetrics(reg)
	mux := http.NewServeMux()
	var keys http.Handler
	for _, r := range a.routes(reg) {
		h := a.instrument(m, r.label, a.authorized(r.methods))
		if r.pattern == kvPrefix {
			keys = h
		} else {
			mux.Handle(r.pattern, h)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Not through the mux, which would clean a//b and .. out of keys.
		if strings.HasPrefix(r.URL.Path, kvPrefix) {
			keys.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// authorized answers requests of callers who may send them, and not too many of them.
func (a *api) authorized(m methods) func(*response, *http.Request) {
	return func(w *response, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		e, ok := m[method]
		if !ok {
			e, ok = m[anyMethod]
		}
		if !ok {
			e = endpoint{trust.VerbStatus, m.refuse}
		}
		err := a.access.rates.wait(r.Context(), w.caller)
		if err == nil {
			err = a.access.check(w.caller, e.verb)
		}
		if err != nil {
			a.fail(w, r, err)
			return
		}
		e.serve(w, r)
	}
}

// refuse answers a method that the resource does not have.
func (m methods) refuse(w *response, r *http.Request) {
	var allowed []string
	for name := range m {
		allowed = append(allowed, name)
	}
	slices.Sort(allowed)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	writeError(w, http.StatusMethodNotAllowed, fmt.Errorf("%s is not for %s: use %s", r.URL.Path, r.Method, strings.Join(allowed, " or ")))
}

// reporting bounds how many long reports are made, and wait to be taken, at once.
func (a *api) reporting(serve func(*response, *http.Request)) func(*response, *http.Request) {
	return func(w *response, r *http.Request) {
		holder := w.caller.holder()
		if err := a.access.reports.take(r.Context(), holder, 1, placePatience); err != nil {
			a.fail(w, r, err)
			return
		}
		defer a.access.reports.give(holder, 1)
		serve(w, r)
	}
}

func (a *api) instrument(m *httpMetrics, route string, serve func(*response, *http.Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		rec := &response{ResponseWriter: w, control: http.NewResponseController(w), code: http.StatusOK, access: a.access, caller: callerOfRequest(r)}
		rec.lease = a.access.lease(rec.caller)
		defer func() {
			rec.lease.close()
			m.observe(route, methodLabel(r.Method), rec.code, time.Since(begin))
		}()
		if r.ContentLength != 0 {
			body := &pacedBody{ReadCloser: r.Body, response: rec}
			body.begin()
			r.Body = body
		}
		serve(rec, r)
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

// response is one request's answer: it knows who is to get it, what memory that takes
// and its status, and gives the client no more time than pace does to take it.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	code    int
	access  *access
	caller  caller
	lease   lease
	pace    pace
}

func (w *response) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		chunk := p[:min(len(p), writeChunk)]
		var m int
		m, err = w.pace.move(w.setDeadline, func() (int, error) { return w.ResponseWriter.Write(chunk) })
		n += m
		p = p[m:]
	}
	w.tell(err)
	return n, err
}

// tell counts what is a refusal.
func (w *response) tell(err error) { w.access.tell(listenerHTTP, w.caller, err) }

// FlushError sends what is buffered; http.ResponseController finds it.
func (w *response) FlushError() error {
	_, err := w.pace.move(w.setDeadline, func() (int, error) { return 0, w.control.Flush() })
	return err
}

func (w *response) setDeadline(t time.Time) error {
	// A transport without deadlines has none to set.
	_ = w.control.SetWriteDeadline(t)
	return nil
}

// Unwrap lets http.ResponseController find the rest.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// pacedBody gives the client no more time than pace does for the body, and the
// handler as long as it takes once the body is there. The deadline stays when
// the handler does not read to the end: the server does then, before it answers.
type pacedBody struct {
	io.ReadCloser
	response *response
	pace     pace
	over     bool
}

// begin sets the deadline for a body that the handler does not look at.
func (b *pacedBody) begin() { _ = b.setDeadline(time.Now().Add(stallTimeout)) }

func (b *pacedBody) Read(p []byte) (int, error) {
	if b.over {
		return b.ReadCloser.Read(p)
	}
	n, err := b.pace.move(b.setDeadline, func() (int, error) { return b.ReadCloser.Read(p) })
	if errors.Is(err, io.EOF) {
		b.over = true
		_ = b.setDeadline(time.Time{})
	}
	b.response.tell(err)
	return n, err
}

func (b *pacedBody) setDeadline(t time.Time) error {
	_ = b.response.control.SetReadDeadline(t)
	return nil
}
