package bench

import (
	"context"
	"io"
	"math/bits"
	"net/http"
	"time"
)

// oneCopyOut says whether every piece is with some worker that lives, so that
// the managers are not needed any more. It asks the workers which pieces they
// hold, over the peer protocol (see p2p) and their own loopback.
func (r *round) oneCopyOut(ctx context.Context, infohash string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var all []byte
	pieces := 0
	for _, w := range r.workers[:r.o.Workers] {
		p, dead := w.state()
		if dead || p.Total == 0 {
			continue
		}
		have := w.have(ctx, infohash)
		if all == nil {
			all = make([]byte, len(have))
		}
		if len(have) == len(all) {
			for i := range have {
				all[i] |= have[i]
			}
		}
		pieces = max(pieces, p.Pieces)
	}
	held := 0
	for _, b := range all {
		held += bits.OnesCount8(b)
	}
	return pieces > 0 && held == pieces
}

// have returns the bitmap of the pieces that a worker offers, none if it does not
// answer.
func (n *swarmNode) have(ctx context.Context, infohash string) []byte {
	url := "http://" + n.node.Addrs.Peer + "/p2p/v1/snapshot/" + infohash + "/have"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil
	}
	client := &http.Client{Transport: &http.Transport{DialContext: n.host.Dial, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	have, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	return have
}
