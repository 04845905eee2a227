package peer

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
)

// publisher mints at a manager.
type publisher struct {
	role   gossip.Role
	writer *writer
	store  *lmdbstore.Store
	shelf  *shelf
	keeper *keeper
	status func() replica.Status
	// stopped returns why nothing may be published: another manager holds something
	// else than this one.
	stopped func() error
	logger  *slog.Logger
}

// publish mints a snapshot of what is applied now and offers it.
func (p *publisher) publish(ctx context.Context) (*snapshot.Snapshot, error) {
	if p.role != gossip.Manager {
		return nil, p.writer.elsewhere("snapshots are minted by managers, and " + p.writer.self + " is a worker")
	}
	if st := p.status(); !st.Ready {
		return nil, &notReadyError{st.State}
	}
	if err := p.stopped(); err != nil {
		return nil, err
	}
	snap, err := p.shelf.mint(ctx, p.store)
	if err != nil {
		return nil, err
	}
	p.keeper.retain()
	return snap, nil
}

// run publishes at every interval in which entries arrived.
func (p *publisher) run(ctx context.Context, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if !p.due() {
			continue
		}
		if _, err := p.publish(ctx); err != nil && ctx.Err() == nil {
			p.logger.Error("publishing a snapshot failed", "err", err)
		}
	}
}

func (p *publisher) due() bool {
	if !p.status().Ready || p.stopped() != nil {
		return false
	}
	applied := p.store.State().Pos
	return !applied.IsZero() &&
		!slices.ContainsFunc(p.shelf.list(), func(s *snapshot.Snapshot) bool { return s.Manifest.Pos == applied })
}
