package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// Scrubbed is what a node found when it read everything that it holds.
type Scrubbed struct {
	Sound bool `json:"sound"`
	Parts []struct {
		Part    string   `json:"part"`
		Bytes   int64    `json:"bytes"`
		Seconds float64  `json:"seconds"`
		Read    string   `json:"read"`
		Damage  []string `json:"damage"`
		Error   string   `json:"error"`
		Skipped string   `json:"skipped"`
	} `json:"parts"`
}

// Scrub has a node read and verify the parts, or all of them if none is named, and
// returns what it found with the JSON text that said so. rate is in bytes per second:
// 0 is no limit, less than 0 the node's own.
func (c *Client) Scrub(ctx context.Context, parts []string, rate int64) (*Scrubbed, json.RawMessage, error) {
	q := url.Values{"part": parts}
	if rate >= 0 {
		q.Set("rate", strconv.FormatInt(rate, 10))
	}
	raw, err := call[json.RawMessage](ctx, c, request{method: http.MethodPost, path: "/v1/scrub", query: q})
	if err != nil {
		return nil, nil, err
	}
	var s Scrubbed
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, nil, fmt.Errorf("the node at %s sent a report that cannot be read: %w", c.Addr(), err)
	}
	return &s, raw, nil
}
