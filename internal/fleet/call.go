package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// callLimit is how long a node may take to answer, minting aside.
const callLimit = 10 * time.Second

// caller is how a node is talked to.
type caller struct {
	scheme          string
	reads, operates *http.Client // the same without TLS
}

func newCaller(at Place, s *security, name string) *caller {
	if s == nil {
		c := &http.Client{Transport: transport(at, nil, name)}
		return &caller{"http", c, c}
	}
	return &caller{"https", &http.Client{Transport: transport(at, s.reads, name)}, &http.Client{Transport: transport(at, s.operates, name)}}
}

// client returns who may make a call: to have a snapshot published, or a node scrubbed,
// is an operator's.
func (c *caller) client(method, path string) *http.Client {
	if method == http.MethodPost && (path == "/v1/snapshots" || strings.HasPrefix(path, "/v1/scrub")) {
		return c.operates
	}
	return c.reads
}

func (c *caller) close() {
	c.reads.CloseIdleConnections()
	c.operates.CloseIdleConnections()
}

var loopbackCaller = newCaller(Loopback, nil, "")

// calls returns how the node is talked to. A Node that was not started, such as one
// in this process, is on loopback and without TLS.
func (n *Node) calls() *caller {
	if n.caller == nil {
		return loopbackCaller
	}
	return n.caller
}

// StatusError is an answer other than 200.
type StatusError struct {
	Code int
	text string
}

func (e *StatusError) Error() string { return e.text }

// Call sends a request to the node's HTTP interface, body as JSON unless it is
// nil. The answer goes into answer: as it is if that is a *string, otherwise
// decoded from JSON; nowhere if it is nil. An answer other than 200 is a *StatusError.
func (n *Node) Call(ctx context.Context, method, path string, body, answer any) error {
	if method == http.MethodGet {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callLimit)
		defer cancel()
	}
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	calls := n.calls()
	req, err := http.NewRequestWithContext(ctx, method, calls.scheme+"://"+n.Addrs.HTTP+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	resp, err := calls.client(method, path).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return &StatusError{resp.StatusCode, fmt.Sprintf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(why)))}
	}
	if answer == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if text, ok := answer.(*string); ok {
		all, err := io.ReadAll(resp.Body)
		*text = string(all)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}
