package replica

import (
	"errors"
	"fmt"
	"slices"

	"github.com/qs-peer/qs-peer/txlog"
)

// otherDatasetError means that the managers in reach hold another dataset.
type otherDatasetError struct{ own, theirs txlog.DatasetID }

func (e *otherDatasetError) Error() string {
	return fmt.Sprintf("this node holds dataset %v, but all managers in reach hold %v: "+
		"join the right fleet, or start with an empty data directory", e.own, e.theirs)
}

var errAmbiguous = errors.New("the fleet holds several datasets: join members of one")

// dataset returns which dataset this node holds entries of, zero if none.
func (r *Replica) dataset() txlog.DatasetID {
	if id, pos := r.c.Store.Position(); !pos.IsZero() {
		return id
	}
	if !r.c.Log.Head().IsZero() {
		return r.c.Log.Dataset()
	}
	return txlog.DatasetID{}
}

// mine returns the upstreams of our dataset; a node that holds nothing takes
// the fleet's.
func (r *Replica) mine() ([]Upstream, error) {
	all := slices.Clone(r.c.Fleet.Upstreams())
	id, err := r.pick(all)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(u Upstream) bool { return id.IsZero() || u.Dataset != id }), nil
}

// offered returns the offers of our dataset after pos that somebody holds.
func (r *Replica) offered(pos txlog.Pos) []Offer {
	id, err := r.pick(slices.Clone(r.c.Fleet.Upstreams()))
	if err != nil || id.IsZero() {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(r.c.Fleet.Offers()), func(o Offer) bool {
		return o.Dataset != id || o.Pos.Seq <= pos.Seq || len(o.Holders) == 0
	})
}

// pick returns our dataset, or the fleet's if we hold nothing. It sorts all.
func (r *Replica) pick(all []Upstream) (txlog.DatasetID, error) {
	if own := r.dataset(); !own.IsZero() {
		return own, strangers(all, own)
	}
	// The writers decide; without one the managers; without them anybody.
	slices.SortStableFunc(all, func(a, b Upstream) int { return seniorityClass(a) - seniorityClass(b) })
	var id txlog.DatasetID
	class := 0
	for _, u := range all {
		switch {
		case u.Dataset.IsZero():
		case id.IsZero():
			id, class = u.Dataset, seniorityClass(u)
		case u.Dataset != id && seniorityClass(u) == class:
			return id, errAmbiguous
		}
	}
	return id, nil
}

// strangers returns an error if there are managers and no node of our dataset.
func strangers(all []Upstream, own txlog.DatasetID) error {
	var other *otherDatasetError
	for _, u := range all {
		switch {
		case u.Dataset == own:
			return nil
		case (u.Manager || u.Writer) && !u.Dataset.IsZero():
			other = &otherDatasetError{own, u.Dataset}
		}
	}
	if other == nil {
		return nil
	}
	return other
}
