package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Pos is where a write stands in the log.
type Pos struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// Snapshot is a published snapshot.
type Snapshot struct {
	Seq      uint64 `json:"seq"`
	Hash     string `json:"hash"`
	InfoHash string `json:"infohash"`
	SHA256   string `json:"sha256"`
	Size     int64  `json:"size"` // bytes
	Pairs    uint64 `json:"pairs"`
}

// Member is one node, as the node that was asked sees it.
type Member struct {
	Name             string  `json:"name"`
	Role             string  `json:"role"`
	Writer           bool    `json:"writer"`
	Colo             string  `json:"colo"`
	State            string  `json:"state"`
	AppliedSeq       uint64  `json:"applied_seq"`
	AppliedHash      string  `json:"applied_hash"`
	HeadSeq          uint64  `json:"head_seq"`
	LagEntries       uint64  `json:"lag_entries"`
	LagSeconds       float64 `json:"lag_seconds"`
	SnapshotSeq      uint64  `json:"snapshot_seq"`
	SnapshotInfoHash string  `json:"snapshot_infohash"`
	Progress         float64 `json:"progress"` // of a bootstrap, 0 to 1

	Fetching    string   `json:"fetching"` // infohash; empty: nothing
	FetchDone   int64    `json:"fetch_done"`
	FetchTotal  int64    `json:"fetch_total"`
	Rate        int64    `json:"rate"`         // bytes per second
	SecondsLeft *float64 `json:"seconds_left"` // nil: unknown

	BytesFromManagers    int64  `json:"bytes_from_managers"`
	BytesFromWorkers     int64  `json:"bytes_from_workers"` // own and other colos
	BytesFromOwnColo     int64  `json:"bytes_from_own_colo"`
	BytesFromOtherColos  int64  `json:"bytes_from_other_colos"`
	PiecesFromManagers   uint64 `json:"pieces_from_managers"`
	PiecesFromOwnColo    uint64 `json:"pieces_from_own_colo"`
	PiecesFromOtherColos uint64 `json:"pieces_from_other_colos"`

	Version string `json:"version"`
	Error   string `json:"error"` // what last went wrong; known only of the node that was asked
	// PublishStopped is why the manager that was asked publishes nothing, and PartsAt the
	// first entry after which the node differs from the one that was asked; 0: none is known.
	PublishStopped string `json:"publish_stopped"`
	PartsAt        uint64 `json:"parts_at"`
}

// Status is the fleet as one node sees it.
type Status struct {
	Self    string   `json:"self"`
	Members []Member `json:"members"`
}

// Me returns the row of the node that was asked.
func (s *Status) Me() (Member, bool) {
	for _, m := range s.Members {
		if m.Name == s.Self {
			return m, true
		}
	}
	return Member{}, false
}

// keyPath returns the path of a key. Every byte that is not a letter, a digit,
// '-' or '_' is encoded, dots too, so that nothing on the way sees "." or ".."
// or a slash and tidies it up.
func keyPath(key []byte) string {
	var b strings.Builder
	b.WriteString("/v1/kv/")
	for _, c := range key {
		if c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// Get returns key's value; ok is false when there is no such key.
func (c *Client) Get(ctx context.Context, key []byte) (value []byte, ok bool, err error) {
	resp, err := c.do(ctx, request{method: http.MethodGet, path: keyPath(key)})
	if e := (*Error)(nil); errors.As(err, &e) && e.Status == http.StatusNotFound {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	value, err = io.ReadAll(resp.Body)
	return value, err == nil, err
}

// Put sets key to value.
func (c *Client) Put(ctx context.Context, key, value []byte) (Pos, error) {
	return call[Pos](ctx, c, request{
		method: http.MethodPut, path: keyPath(key), body: value, typ: "application/octet-stream",
	})
}

// Delete removes keys in one transaction. Absent keys are no error.
func (c *Client) Delete(ctx context.Context, keys ...[]byte) (Pos, error) {
	type op struct {
		Op  string `json:"op"`
		Key []byte `json:"key"` // encoded as base64
	}
	ops := make([]op, len(keys))
	for i, k := range keys {
		ops[i] = op{"delete", k}
	}
	body, err := json.Marshal(map[string]any{"ops": ops})
	if err != nil {
		return Pos{}, err
	}
	return c.Txn(ctx, body, true)
}

// Txn posts a transaction, the JSON body of /v1/txn.
func (c *Client) Txn(ctx context.Context, body []byte, base64 bool) (Pos, error) {
	r := request{method: http.MethodPost, path: "/v1/txn", body: body, typ: "application/json"}
	if base64 {
		r.query = url.Values{"base64": {"true"}}
	}
	return call[Pos](ctx, c, r)
}

// Range selects pairs by key.
type Range struct {
	Prefix, Start, End []byte // as lmdbstore.Range; nil: unset
	Reverse            bool
	Limit              int // 0: no limit
	Base64             bool
}

// Scan streams the pairs of r as JSON Lines, in key order, all from one state.
// Reading the body fails when the node could not complete it: with the node's
// reason, or with ErrCutOff when it gave none. The caller closes it.
func (c *Client) Scan(ctx context.Context, r Range) (io.ReadCloser, error) {
	q := url.Values{}
	for name, bound := range map[string][]byte{"prefix": r.Prefix, "start": r.Start, "end": r.End} {
		if bound != nil {
			q.Set(name, string(bound)) // percent-encoded bytes, with base64 too
		}
	}
	if r.Base64 {
		q.Set("base64", "true")
	}
	if r.Reverse {
		q.Set("reverse", "true")
	}
	if r.Limit > 0 {
		q.Set("limit", strconv.Itoa(r.Limit))
	}
	resp, err := c.do(ctx, request{method: http.MethodGet, path: "/v1/scan", query: q})
	if err != nil {
		return nil, err
	}
	return newScanBody(resp.Body), nil
}

// Snapshot mints and publishes a snapshot now.
func (c *Client) Snapshot(ctx context.Context) (Snapshot, error) {
	return call[Snapshot](ctx, c, request{method: http.MethodPost, path: "/v1/snapshots"})
}

// Status returns the fleet, and the JSON text that said so.
func (c *Client) Status(ctx context.Context) (*Status, json.RawMessage, error) {
	raw, err := call[json.RawMessage](ctx, c, request{method: http.MethodGet, path: "/v1/status"})
	if err != nil {
		return nil, nil, err
	}
	var s Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, nil, fmt.Errorf("the node at %s sent a status that cannot be read: %w", c.Addr(), err)
	}
	return &s, raw, nil
}

// Ready reports whether the node serves reads.
func (c *Client) Ready(ctx context.Context) error {
	resp, err := c.do(ctx, request{method: http.MethodGet, path: "/readyz"})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// call sends r and decodes its answer.
func call[T any](ctx context.Context, c *Client, r request) (T, error) {
	var v T
	resp, err := c.do(ctx, r)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(bufio.NewReader(resp.Body)).Decode(&v); err != nil {
		return v, fmt.Errorf("the node at %s sent an answer that cannot be read: %w", c.Addr(), err)
	}
	io.Copy(io.Discard, resp.Body) // to the end, so that the connection is kept
	return v, nil
}
