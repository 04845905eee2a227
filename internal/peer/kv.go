package peer

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	kvPrefix  = "/v1/kv/"
	posHeader = "Qs-Pos"
)

// written answers a write.
type written struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// pathKey returns the key in a request's path: the bytes after the prefix, with
// percent-encoding undone.
func pathKey(r *http.Request) ([]byte, error) {
	key := strings.TrimPrefix(r.URL.Path, kvPrefix)
	return []byte(key), checkKey(key)
}

func (a *api) getKey(w *response, r *http.Request) {
	key, err := pathKey(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	var (
		value []byte
		found bool
		pos   txlog.Pos
	)
	err = w.lease.whileShort(r.Context(), func() error {
		return a.reads.view(func(tx *lmdbstore.Tx) error {
			state, err := tx.State()
			if err != nil {
				return err
			}
			pos = state.Pos
			size, ok, err := tx.Size(key)
			if err != nil || !ok {
				found = ok
				return err
			}
			if err := w.lease.reserve(int64(size)); err != nil {
				return err
			}
			value, found, err = tx.Get(key)
			return err
		})
	})
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set(posHeader, pos.String())
	if !found {
		writeError(w, http.StatusNotFound, fmt.Errorf("no value under key %q", key))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(value)))
	_, _ = w.Write(value)
}

func (a *api) putKey(w *response, r *http.Request) {
	key, err := pathKey(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if err := a.writer.check(); err != nil {
		a.fail(w, r, err) // before the body is read
		return
	}
	value, err := readValue(w, r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.write(w, r, []txlog.Op{{Kind: txlog.Put, Key: key, Value: value}})
}

func (a *api) deleteKey(w *response, r *http.Request) {
	key, err := pathKey(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.write(w, r, []txlog.Op{{Kind: txlog.Delete, Key: key}})
}

func (a *api) write(w *response, r *http.Request, ops []txlog.Op) {
	pos, err := a.writer.write(r.Context(), ops)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSONBody(w, http.StatusOK, written{pos.Seq, pos.Hash.String()})
}

// readValue reads a body that is a value.
func readValue(w *response, r *http.Request) ([]byte, error) {
	tooLong := &txlog.LimitError{What: "value", Got: r.ContentLength, Min: 0, Max: txlog.MaxValue}
	switch {
	case r.ContentLength > txlog.MaxValue:
		return nil, tooLong
	case r.ContentLength >= 0:
		value, err := gather(r.Context(), r.Body, r.ContentLength, &w.lease)
		return value, bodyError(err)
	}
	value, err := gather(r.Context(), r.Body, txlog.MaxValue+1, &w.lease)
	switch {
	case err == nil:
		tooLong.Got = txlog.MaxValue + 1 // at least
		return nil, tooLong
	case errors.Is(err, io.EOF):
		return value, nil
	}
	return nil, bodyError(err)
}

// bodyError explains why a body could not be read to its end.
func bodyError(err error) error {
	if err == nil || is[*http.MaxBytesError](err) || is[*busyError](err) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return badRequest("the request's body ended early")
	}
	return badRequest("read the request's body: %v", err)
}
