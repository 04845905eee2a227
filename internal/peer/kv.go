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

func (a *api) getKey(w http.ResponseWriter, r *http.Request) {
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
	err = a.reads.view(func(tx *lmdbstore.Tx) error {
		state, err := tx.State()
		if err != nil {
			return err
		}
		pos = state.Pos
		v, ok, err := tx.Get(key)
		// A copy: the client may take its time.
		value, found = append(value[:0], v...), ok
		return err
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

func (a *api) putKey(w http.ResponseWriter, r *http.Request) {
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

func (a *api) deleteKey(w http.ResponseWriter, r *http.Request) {
	key, err := pathKey(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.write(w, r, []txlog.Op{{Kind: txlog.Delete, Key: key}})
}

func (a *api) write(w http.ResponseWriter, r *http.Request, ops []txlog.Op) {
	pos, err := a.writer.write(r.Context(), ops)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSONBody(w, http.StatusOK, written{pos.Seq, pos.Hash.String()})
}

// readValue reads a body that is a value.
func readValue(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLong := &txlog.LimitError{What: "value", Got: r.ContentLength, Min: 0, Max: txlog.MaxValue}
	if r.ContentLength > txlog.MaxValue {
		return nil, tooLong
	}
	value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, txlog.MaxValue))
	if is[*http.MaxBytesError](err) {
		tooLong.Got = txlog.MaxValue + 1 // at least
		return nil, tooLong
	}
	return value, bodyError(err)
}

// bodyError explains why a body could not be read to its end.
func bodyError(err error) error {
	if err == nil || is[*http.MaxBytesError](err) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return badRequest("the request's body ended early")
	}
	return badRequest("read the request's body: %v", err)
}
