package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// shelf is what this node has to offer: the snapshots that are complete and
// verified on its disk, and seeded. It is safe for concurrent use.
type shelf struct {
	repo    *snapshot.Repo
	swarm   *p2p.Swarm
	logger  *slog.Logger
	changed *signal       // told when the list changes
	stocked chan struct{} // closed once restock is done

	mu    sync.Mutex           // guards snaps
	snaps []*snapshot.Snapshot // newest first
}

// list returns what is offered, newest first.
func (s *shelf) list() []*snapshot.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.snaps)
}

func (s *shelf) get(h chunker.InfoHash) (*snapshot.Snapshot, bool) {
	for _, snap := range s.list() {
		if snap.Manifest.InfoHash == h {
			return snap, true
		}
	}
	return nil, false
}

// announcements returns the list in the words of gossip.
func (s *shelf) announcements() []gossip.Announcement {
	var as []gossip.Announcement
	for _, snap := range s.list() {
		m := &snap.Manifest
		as = append(as, gossip.Announcement{Pos: m.Pos, InfoHash: m.InfoHash, Size: m.Size})
	}
	return as
}

// describe returns the small files of a snapshot, for the peer protocol.
func (s *shelf) describe(h chunker.InfoHash) (manifest, metainfo []byte, ok bool) {
	snap, ok := s.get(h)
	if !ok {
		return nil, nil, false
	}
	return snap.Manifest.Encode(), snap.Torrent.Metainfo(), true
}

// mint makes a snapshot of the store as it is, and offers it.
func (s *shelf) mint(ctx context.Context, store snapshot.Minter) (*snapshot.Snapshot, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	snap, err := s.repo.Mint(ctx, store, nil)
	if err != nil {
		return nil, err
	}
	if err := s.seed(snap); !errors.Is(err, p2p.ErrHeld) {
		return snap, err
	}
	// The very same bytes are being fetched; they are offered once that is done.
	return snap, nil
}

// seed offers a verified snapshot.
func (s *shelf) seed(snap *snapshot.Snapshot) error {
	if _, ok := s.get(snap.Manifest.InfoHash); ok {
		return nil
	}
	if err := s.swarm.Seed(snap.Torrent, snap.Path); err != nil {
		return fmt.Errorf("seed snapshot %s: %w", snap.Manifest.Pos, err)
	}
	s.add(snap)
	return nil
}

// add lists a snapshot that is seeded already.
func (s *shelf) add(snap *snapshot.Snapshot) {
	s.mu.Lock()
	if !slices.ContainsFunc(s.snaps, func(o *snapshot.Snapshot) bool { return o.Manifest.InfoHash == snap.Manifest.InfoHash }) {
		s.snaps = append(s.snaps, snap)
		slices.SortFunc(s.snaps, func(a, b *snapshot.Snapshot) int { return cmp.Compare(b.Manifest.Pos.Seq, a.Manifest.Pos.Seq) })
	}
	s.mu.Unlock()
	s.logger.Info("snapshot offered", "pos", snap.Manifest.Pos, "infohash", snap.Manifest.InfoHash, "bytes", snap.Manifest.Size)
	s.changed.notify()
}

// withdraw stops offering a snapshot and deletes it.
func (s *shelf) withdraw(snap *snapshot.Snapshot) error {
	s.mu.Lock()
	s.snaps = slices.DeleteFunc(s.snaps, func(o *snapshot.Snapshot) bool { return o.Manifest.InfoHash == snap.Manifest.InfoHash })
	s.mu.Unlock()
	s.changed.notify()
	s.swarm.Drop(snap.Manifest.InfoHash)
	s.logger.Info("snapshot withdrawn", "pos", snap.Manifest.Pos, "infohash", snap.Manifest.InfoHash)
	if err := s.repo.Remove(snap.Manifest.Pos); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", snap.Manifest.Pos, err)
	}
	return nil
}

// wait waits until what is on disk has been looked at: before that nobody knows
// what need not be minted or fetched.
func (s *shelf) wait(ctx context.Context) error {
	select {
	case <-s.stocked:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// restock offers what an earlier process left on disk, each after reading it
// whole, and removes what is damaged or is not of this node's history. It is
// called once.
func (s *shelf) restock(ctx context.Context, dataset txlog.DatasetID, linked func(txlog.Pos) (bool, error)) error {
	defer close(s.stocked)
	var errs []error
	for _, snap := range s.repo.List() {
		m := &snap.Manifest
		reason := ""
		if ok, err := linked(m.Pos); err != nil {
			errs = append(errs, fmt.Errorf("check snapshot %s against the log: %w", m.Pos, err))
			continue
		} else if !ok || (!dataset.IsZero() && m.Dataset != dataset) {
			reason = "it is not of this log's history"
		} else if err := snap.Verify(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			reason = err.Error()
		}
		if reason == "" {
			errs = append(errs, s.seed(snap))
			continue
		}
		s.logger.Error("snapshot removed", "pos", m.Pos, "path", snap.Path, "reason", reason)
		errs = append(errs, s.repo.Remove(m.Pos))
	}
	return errors.Join(errs...)
}
