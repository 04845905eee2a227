package peer

import (
	"cmp"
	"errors"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// reads gives access to the data while it may be served: never to what a node
// that is still being built holds.
type reads struct {
	store     *lmdbstore.Store
	status    func() replica.Status
	infirmary *infirmary
}

// check returns why reads are not served.
func (r *reads) check() error {
	if err := r.infirmary.reason(); err != nil {
		return err
	}
	if st := r.status(); !st.Ready {
		return &notReadyError{st.State}
	}
	return nil
}

func (r *reads) view(fn func(*lmdbstore.Tx) error) error {
	if err := r.check(); err != nil {
		return err
	}
	err := r.store.View(fn)
	if errors.Is(err, lmdbstore.ErrDamaged) {
		if generation, damage := r.store.DamageIn(); damage != nil {
			r.infirmary.report(finding{Part: partStore, Err: damage, Generation: generation})
		} else { // of a copy that was replaced meanwhile
			err = &notReadyError{replica.Repairing}
		}
	}
	// Also what was read before somebody else found damage is not let out.
	return cmp.Or(r.infirmary.reason(), err)
}

// checkKey refuses keys that no entry can hold.
func checkKey[K ~string | ~[]byte](key K) error {
	if len(key) < 1 || len(key) > txlog.MaxKey {
		return &txlog.LimitError{What: "key", Got: int64(len(key)), Min: 1, Max: txlog.MaxKey}
	}
	return nil
}
