package peer

import (
	"context"
	"time"

	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// The replica declares small interfaces; these make the real things fit where
// the method sets differ.

type replicaLog struct{ *txlog.Log }

func (l replicaLog) Read(pos txlog.Pos) (replica.Entries, error) { return l.Reader(pos) }

type replicaStore struct {
	store   *lmdbstore.Store
	network *network
}

func (s replicaStore) Position() (txlog.DatasetID, txlog.Pos) {
	state := s.store.State()
	return state.Dataset, state.Pos
}

func (s replicaStore) Apply(entries []txlog.Entry) error { return s.store.Apply(entries) }

func (s replicaStore) Install(ctx context.Context, file string) (replica.Generation, error) {
	g, err := s.network.install(ctx, s.store, file)
	if err != nil {
		return nil, err
	}
	return replicaGeneration{g}, nil
}

type replicaGeneration struct{ *lmdbstore.Generation }

func (g replicaGeneration) Position() (txlog.DatasetID, txlog.Pos) {
	state := g.State()
	return state.Dataset, state.Pos
}

type replicaStream struct{ *p2p.Stream }

func (s replicaStream) Next(maxBytes int) ([]txlog.Entry, txlog.Pos, time.Time, error) {
	p, err := s.Stream.Next(maxBytes)
	return p.Entries, p.Head.Pos, p.Head.Time, err
}
