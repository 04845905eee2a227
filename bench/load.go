package bench

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/http"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

const (
	// Four pairs of these sizes fill a page of LMDB (4096 bytes, 16 of header;
	// a pair takes 8 bytes of its own, 2 in the page's index and 5 of ours).
	loadKey   = 22
	loadValue = 4080/4 - loadKey - 8 - 2 - 5
	// branches is the share of a snapshot's pages that hold keys only.
	branches = 0.009
	// perEntry is how many pairs are put at a time.
	perEntry = 4000
)

// load fills a manager so that its snapshot has about size bytes. The values are
// random, so that nothing on the way can make them shorter.
func load(ctx context.Context, m *fleet.Node, size int64, progress func(done int64)) error {
	type op struct {
		Op    string `json:"op"`
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
	}
	rng := rand.NewChaCha8([32]byte{1})
	pairs := int(float64(size) / 4096 * 4 * (1 - branches))
	for done := 0; done < pairs; {
		ops := make([]op, min(perEntry, pairs-done))
		for i := range ops {
			pair := make([]byte, loadKey+loadValue)
			rng.Read(pair)
			// In key order: the manager's own pages fill up, and applying is cheap.
			binary.BigEndian.PutUint64(pair, uint64(done+i))
			ops[i] = op{"put", pair[:loadKey], pair[loadKey:]}
		}
		if err := m.Call(ctx, http.MethodPost, "/v1/txn?base64=true", map[string]any{"ops": ops}, nil); err != nil {
			return err
		}
		done += len(ops)
		progress(int64(done) * (loadKey + loadValue))
	}
	return nil
}
