package p2p

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/txlog"
)

// The protocol's words: see the package documentation.
const (
	protocolHeader  = "Qs-Protocol"
	protocolVersion = "1"
	datasetHeader   = "Qs-Dataset"

	// Signed heads are asked for in the query and promised in the answer, so that
	// a peer of an older version is understood, and understands.
	untilQuery  = "until"
	headsQuery  = "heads"
	headsHeader = "Qs-Heads"
	headsSigned = "signed"
	headHeader  = "Qs-Head" // a signed head that the asker knows, in base64

	logPath      = "/p2p/v1/log"
	snapshotPath = "/p2p/v1/snapshot/"
	manifestLeaf = "/manifest"
	torrentLeaf  = "/torrent"
)

// Limits of what is read from a peer, in bytes.
const (
	maxManifest  = 64 << 10
	maxMetainfo  = 16 << 20
	maxErrorBody = 64 << 10
)

// refusal is the body of every answer but 200. Fields that only one error uses
// are left out in the others.
type refusal struct {
	Error string `json:"error"`
	Asked uint64 `json:"asked,omitempty"`
	First uint64 `json:"first,omitempty"`
	Seq   uint64 `json:"seq,omitempty"`
	Have  string `json:"have,omitempty"`
	Want  string `json:"want,omitempty"`

	Holder string `json:"holder,omitempty"`
	Retry  int64  `json:"retry_ms,omitempty"`
}

// refuse answers with err, in the form that accept turns back into it.
func refuse(w http.ResponseWriter, err error) {
	status, body := http.StatusInternalServerError, refusal{Error: err.Error()}
	var trimmed *txlog.TrimmedError
	var diverged *txlog.DivergedError
	var leased *LeasedError
	var busy *BusyError
	var refused *trust.RefusedError
	switch {
	case errors.As(err, &refused):
		status = http.StatusForbidden
	case errors.As(err, &trimmed):
		status = http.StatusGone
		body.Asked, body.First = trimmed.Asked, trimmed.First
	case errors.As(err, &diverged):
		status = http.StatusConflict
		body.Seq, body.Have, body.Want = diverged.Seq, diverged.Have.String(), diverged.Want.String()
	case errors.Is(err, ErrOtherDataset):
		status = http.StatusMisdirectedRequest
	case errors.Is(err, ErrNotHeld), errors.Is(err, ErrNoDigest):
		status = http.StatusNotFound
	case errors.Is(err, ErrProtocol):
		status = http.StatusBadRequest
	case errors.As(err, &leased):
		status = http.StatusConflict
		body.Holder, body.Retry = leased.Holder, leased.Retry.Milliseconds()
	case errors.As(err, &busy):
		status = http.StatusServiceUnavailable
		body.Retry = busy.Retry.Milliseconds()
		w.Header().Set("Retry-After", strconv.Itoa(int((busy.Retry+time.Second-1)/time.Second)))
	case errors.Is(err, txlog.ErrClosed):
		status = http.StatusServiceUnavailable
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// accept returns nil for a 200 of this protocol, and otherwise the error that
// the peer gave to refuse.
func accept(resp *http.Response) error {
	if got := resp.Header.Get(protocolHeader); got != protocolVersion {
		return fmt.Errorf("%w: the answer (%s) has %s %q, want %q: is that the address of a peer?",
			ErrProtocol, resp.Status, protocolHeader, got, protocolVersion)
	}
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	b, err := readLimited(resp.Body, maxErrorBody)
	if err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	var body refusal
	if err := json.Unmarshal(b, &body); err != nil {
		return fmt.Errorf("%w: answer %s with an unreadable body: %w", ErrProtocol, resp.Status, err)
	}
	// Peers that mean well do not say more.
	retry := min(max(time.Duration(body.Retry), 0), maxRetry/time.Millisecond) * time.Millisecond
	switch resp.StatusCode {
	case http.StatusGone:
		return &txlog.TrimmedError{Asked: body.Asked, First: body.First}
	case http.StatusConflict:
		if body.Holder != "" {
			if err := checkNode(body.Holder); err != nil {
				return err
			}
			return &LeasedError{Holder: body.Holder, Retry: retry}
		}
		have, err1 := txlog.ParseHash(body.Have)
		want, err2 := txlog.ParseHash(body.Want)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("%w: answer %s: %w", ErrProtocol, resp.Status, err)
		}
		return &txlog.DivergedError{Seq: body.Seq, Have: have, Want: want}
	case http.StatusMisdirectedRequest:
		return fmt.Errorf("%w: %s", ErrOtherDataset, strings.TrimPrefix(body.Error, ErrOtherDataset.Error()+": "))
	case http.StatusForbidden:
		return fmt.Errorf("%w: %s", ErrForbidden, body.Error)
	case http.StatusNotFound:
		return ErrNotHeld
	case http.StatusBadRequest:
		return fmt.Errorf("%w: the peer refused the request: %s", ErrProtocol, strings.TrimPrefix(body.Error, ErrProtocol.Error()+": "))
	default:
		return &BusyError{Reason: fmt.Sprintf("the peer answered %s: %s", resp.Status, body.Error), Retry: retry}
	}
}

// readLimited reads all of r, which is too long if it is over limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrProtocol, limit)
	}
	return b, nil
}

// register returns c, or the collector of the same name that reg has already:
// several clients of one process share their counters.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	var twice prometheus.AlreadyRegisteredError
	if err := reg.Register(c); errors.As(err, &twice) {
		if old, ok := twice.ExistingCollector.(C); ok {
			return old
		}
	}
	return c
}
