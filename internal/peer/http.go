package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/compare"
	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/txlog"
)

// api answers HTTP.
type api struct {
	reads     *reads
	writer    *writer
	shelf     *shelf
	publisher *publisher
	scrubber  *scrubber
	members   func() []gossip.Member
	status    func() replica.Status
	compare   comparison
	disk      *diskBudget
	progress  func() (FetchProgress, bool)
	health    func() error // why the node can not go on, nil while it can
	access    *access
	logger    *slog.Logger
}

// errorBody is the answer to every request that failed.
type errorBody struct {
	Error  string     `json:"error"`
	Limit  *limitBody `json:"limit,omitempty"`
	Writer string     `json:"writer,omitempty"` // base URL of the node to ask instead
	State  string     `json:"state,omitempty"`  // of this node's replica
	Role   string     `json:"role,omitempty"`   // of whom sent the request, on 403
	Roles  []string   `json:"roles,omitempty"`  // that may do it
}

// limitBody says which limit was passed, in bytes.
type limitBody struct {
	What string `json:"what"`
	Got  int64  `json:"got"`
	Min  int64  `json:"min"`
	Max  int64  `json:"max"`
}

// fail answers a request with err.
func (a *api) fail(w *response, r *http.Request, err error) {
	w.tell(err)
	code := statusCode(err)
	if code == http.StatusInternalServerError || noRoom(err) || diskFails(err) {
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
	case is[*forbiddenError](err):
		return http.StatusForbidden
	case is[*rateError](err):
		return http.StatusTooManyRequests
	case noRoom(err):
		return http.StatusInsufficientStorage
	case is[*busyError](err), is[*notReadyError](err), is[*quarantinedError](err), is[*damagedLogError](err), is[*unappliedError](err), is[*compare.StoppedError](err), is[*heads.ForkError](err), is[*heads.LostError](err), diskFails(err), errors.Is(err, txlog.ErrClosed), errors.Is(err, replica.ErrStopped), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func writeError(w http.ResponseWriter, code int, err error) {
	if is[*busyError](err) || is[*rateError](err) {
		w.Header().Set("Retry-After", "1")
	}
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
	if is[*quarantinedError](err) {
		body.State = string(replica.Quarantined)
	}
	if e, ok := errors.AsType[*forbiddenError](err); ok {
		body.Role, body.Roles = string(e.id.Role), e.allowed()
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
POST   /v1/scrub           read and verify what this node holds now; ?part=&rate=
GET    /healthz  /readyz  /metrics
`

func (a *api) getIndex(w *response, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, index)
}

func (a *api) notFound(w *response, r *http.Request) {
	writeError(w, http.StatusNotFound, fmt.Errorf("there is nothing at %s: see / for what there is", r.URL.Path))
}

func (a *api) getStatus(w *response, _ *http.Request) {
	s := statusOf(a.members(), a.status(), a.compare)
	if me := &s.Members[0]; a.disk.limit > 0 {
		me.DiskUsed, me.DiskBudget = a.disk.used.Load(), a.disk.limit
	}
	writeJSONBody(w, http.StatusOK, s)
}

func (a *api) getHealth(w *response, _ *http.Request) {
	if err := a.health(); err != nil {
		writeError(w, http.StatusServiceUnavailable, err)
		return
	}
	writeJSONBody(w, http.StatusOK, map[string]bool{"healthy": true})
}

func (a *api) getReady(w *response, _ *http.Request) {
	if err := a.reads.check(); err != nil {
		writeError(w, http.StatusServiceUnavailable, err)
		return
	}
	writeJSONBody(w, http.StatusOK, map[string]any{"ready": true, "state": a.status().State})
}
