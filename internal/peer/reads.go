package peer

import (
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// reads gives access to the data while it may be served: never to what a node
// that is still being built holds.
type reads struct {
	store  *lmdbstore.Store
	status func() replica.Status
}

func (r *reads) view(fn func(*lmdbstore.Tx) error) error {
	if st := r.status(); !st.Ready {
		return &notReadyError{st.State}
	}
	return r.store.View(fn)
}

// checkKey refuses keys that no entry can hold.
func checkKey[K ~string | ~[]byte](key K) error {
	if len(key) < 1 || len(key) > txlog.MaxKey {
		return &txlog.LimitError{What: "key", Got: int64(len(key)), Min: 1, Max: txlog.MaxKey}
	}
	return nil
}
