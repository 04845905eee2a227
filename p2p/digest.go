package p2p

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// Applied is what a peer's store had made of the log at a position: the digest of
// all pairs there. It is what the peer says.
type Applied struct {
	Pos    txlog.Pos
	Digest [32]byte
}

// Digests are those of a server's store. Implementations are safe for concurrent use.
type Digests interface {
	// Newest returns the one of what is applied now, zero if nothing is.
	Newest() Applied
	// At returns the one after an entry; ok is false if it is not known any more, or
	// not yet.
	At(seq uint64) (a Applied, ok bool)
}

// ErrNoDigest means that the peer does not know the digest after that entry any
// more, or not yet.
var ErrNoDigest = errors.New("peer does not know the digest after that entry")

const (
	digestPath = "/p2p/v1/digest"
	seqQuery   = "seq"

	// Digests in a log stream are asked for, so that peers of an older version are not
	// sent messages that they do not know.
	digestsQuery = "digests"
	digestsSent  = "applied"

	digestTimeout = 5 * time.Second
	maxDigest     = 1 << 10 // bytes of an answer
)

// digestBody is the answer's body.
type digestBody struct {
	Pos    string `json:"pos"`
	Digest string `json:"digest"`
}

// digest serves the digest after one entry.
func (s *Server) digest(w http.ResponseWriter, r *http.Request) {
	a, err := s.digestAt(r)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(datasetHeader, s.o.Log.Dataset().String())
	json.NewEncoder(w).Encode(digestBody{Pos: a.Pos.String(), Digest: hex.EncodeToString(a.Digest[:])})
}

func (s *Server) digestAt(r *http.Request) (Applied, error) {
	text := r.URL.Query().Get(seqQuery)
	seq, err := strconv.ParseUint(text, 10, 64)
	if err != nil || text != strconv.FormatUint(seq, 10) {
		return Applied{}, fmt.Errorf("%w: seq %.30q is not a decimal number", ErrProtocol, text)
	}
	if err := s.checkDataset(r); err != nil {
		return Applied{}, err
	}
	if s.o.Digests != nil {
		if a, ok := s.o.Digests.At(seq); ok {
			return a, nil
		}
	}
	return Applied{}, fmt.Errorf("%w: %d", ErrNoDigest, seq)
}

// Digest asks a peer for the digest of what it had after an entry. One that does
// not know it is ErrNoDigest. It waits 5 s at most.
func (c *Client) Digest(ctx context.Context, from Target, dataset txlog.DatasetID, seq uint64) (Applied, error) {
	a, err := c.digest(ctx, from, dataset, seq)
	if err != nil {
		return Applied{}, fmt.Errorf("ask %s for its digest after entry %d: %w", from, seq, err)
	}
	return a, nil
}

func (c *Client) digest(ctx context.Context, from Target, dataset txlog.DatasetID, seq uint64) (Applied, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, digestTimeout, errTimeout)
	defer cancel()
	resp, err := c.get(ctx, c.http, from, digestPath, url.Values{seqQuery: {strconv.FormatUint(seq, 10)}}, dataset)
	if errors.Is(err, ErrNotHeld) {
		return Applied{}, ErrNoDigest
	}
	if err != nil {
		return Applied{}, err
	}
	defer resp.Body.Close()
	b, err := readLimited(resp.Body, maxDigest)
	if err != nil {
		return Applied{}, because(ctx, err)
	}
	a, err := parseDigest(b)
	if err == nil && a.Pos.Seq != seq {
		err = fmt.Errorf("asked for the digest after entry %d, the peer sent that after %d", seq, a.Pos.Seq)
	}
	if err != nil {
		return Applied{}, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return a, nil
}

// parseDigest reads an answer's body.
func parseDigest(b []byte) (a Applied, err error) {
	var body digestBody
	if err := json.Unmarshal(b, &body); err != nil {
		return Applied{}, err
	}
	if a.Pos, err = txlog.ParsePos(body.Pos); err != nil {
		return Applied{}, err
	}
	if len(body.Digest) != hex.EncodedLen(len(a.Digest)) {
		return Applied{}, fmt.Errorf("a digest of %d characters; want %d", len(body.Digest), hex.EncodedLen(len(a.Digest)))
	}
	_, err = hex.Decode(a.Digest[:], []byte(body.Digest))
	return a, err
}
