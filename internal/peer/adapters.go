package peer

import (
	"context"
	"errors"
	"fmt"
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

func (s replicaStore) Apply(entries []txlog.Entry) error { return damage(s.store.Apply(entries)) }

func (s replicaStore) Install(ctx context.Context, file string) (replica.Generation, error) {
	g, err := s.network.install(ctx, s.store, file)
	if err != nil {
		return nil, err
	}
	return replicaGeneration{g}, nil
}

// damage says it in the replica's words.
func damage(err error) error {
	if errors.Is(err, lmdbstore.ErrDamaged) {
		return fmt.Errorf("%w: %w", replica.ErrDamaged, err)
	}
	return err
}

type replicaGeneration struct{ *lmdbstore.Generation }

func (g replicaGeneration) Apply(entries []txlog.Entry) error {
	return damage(g.Generation.Apply(entries))
}

func (g replicaGeneration) Position() (txlog.DatasetID, txlog.Pos) {
	state := g.State()
	return state.Dataset, state.Pos
}

type replicaStream struct {
	*p2p.Stream
	hear func(p2p.Applied) // what the upstream says of its copy
}

func (s replicaStream) Next(maxBytes int) ([]txlog.Entry, txlog.Pos, time.Time, error) {
	p, err := s.Stream.Next(maxBytes)
	if !p.Applied.Pos.IsZero() {
		s.hear(p.Applied)
	}
	return p.Entries, p.Head.Pos, p.Head.Time, err
}
