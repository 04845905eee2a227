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
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.Addrs.HTTP+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	resp, err := n.http().Do(req)
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
