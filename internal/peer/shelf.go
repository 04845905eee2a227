package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// shelf is what this node has to offer: the snapshots that are complete and
// verified on its disk, and seeded. Beside them it may hold some that lack
// signatures: they are neither offered nor opened, and not deleted either, because
// signatures can still come, and what could not be read. It is safe for concurrent use.
type shelf struct {
	repo    *snapshot.Repo
	swarm   *p2p.Swarm
	sigs    *signatures
	logger  *slog.Logger
	changed *signal       // told when the list changes
	broken  *signal       // told when there is something to mend
	stocked chan struct{} // closed once restock is done

	mu    sync.Mutex           // guards what follows
	snaps []*snapshot.Snapshot // newest first
	aside []*snapshot.Snapshot // lack signatures, or are put off; their files were not read
	later []*putOff            // what failed and is tried again
}

// list returns what is offered, newest first.
func (s *shelf) list() []*snapshot.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.snaps)
}

// all returns what is held, offered or not, newest first.
func (s *shelf) all() []*snapshot.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sorted(slices.Concat(s.snaps, s.aside))
}

func sorted(snaps []*snapshot.Snapshot) []*snapshot.Snapshot {
	slices.SortFunc(snaps, func(a, b *snapshot.Snapshot) int { return cmp.Compare(b.Manifest.Pos.Seq, a.Manifest.Pos.Seq) })
	return snaps
}

// find returns a snapshot that is held, offered or not.
func (s *shelf) find(h chunker.InfoHash) (*snapshot.Snapshot, bool) {
	return first(s.all(), func(snap *snapshot.Snapshot) bool { return snap.Manifest.InfoHash == h })
}

// at returns the snapshot that is offered and has its file at path.
func (s *shelf) at(path string) (*snapshot.Snapshot, bool) {
	return first(s.list(), func(snap *snapshot.Snapshot) bool { return snap.Path == path })
}

func first(snaps []*snapshot.Snapshot, match func(*snapshot.Snapshot) bool) (*snapshot.Snapshot, bool) {
	if i := slices.IndexFunc(snaps, match); i >= 0 {
		return snaps[i], true
	}
	return nil, false
}

// get returns a snapshot that is offered.
func (s *shelf) get(h chunker.InfoHash) (*snapshot.Snapshot, bool) {
	return first(s.list(), func(snap *snapshot.Snapshot) bool { return snap.Manifest.InfoHash == h })
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
	return snap.Note, snap.Torrent.Metainfo(), true
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
	return snap, s.offer(ctx, snap)
}

// offer offers a snapshot of the repo, if it has the signatures for that.
func (s *shelf) offer(ctx context.Context, snap *snapshot.Snapshot) error {
	_, offered := s.get(snap.Manifest.InfoHash)
	_, held := s.find(snap.Manifest.InfoHash)
	switch {
	case offered || held && !s.mayOffer(snap):
		s.replace(snap)
		return nil
	case held: // its file was not read yet
		whole, reason, err := s.examine(ctx, snap)
		if err == nil && reason != "" {
			err = errors.Join(fmt.Errorf("snapshot %s on this node's disk: %s", snap.Manifest.Pos, reason), s.discard(snap, reason))
		}
		if err != nil || !whole {
			return err
		}
	}
	if err := s.seed(snap); !errors.Is(err, p2p.ErrHeld) {
		return err
	}
	// The very same bytes are being fetched; they are offered once that is done.
	return nil
}

// seed offers a verified snapshot.
func (s *shelf) seed(snap *snapshot.Snapshot) error {
	if err := s.swarm.Seed(snap.Torrent, snap.Path); err != nil {
		return fmt.Errorf("seed snapshot %s: %w", snap.Manifest.Pos, err)
	}
	s.add(snap)
	return nil
}

// add lists a snapshot that is seeded already.
func (s *shelf) add(snap *snapshot.Snapshot) {
	same := sameAs(snap)
	s.mu.Lock()
	s.snaps = sorted(append(slices.DeleteFunc(s.snaps, same), snap))
	s.aside = slices.DeleteFunc(s.aside, same)
	s.mu.Unlock()
	s.logger.Info("snapshot offered", "pos", snap.Manifest.Pos, "infohash", snap.Manifest.InfoHash, "bytes", snap.Manifest.Size)
	s.changed.notify()
}

// withdraw stops offering a snapshot and deletes it.
func (s *shelf) withdraw(snap *snapshot.Snapshot) error {
	s.mu.Lock()
	s.snaps = slices.DeleteFunc(s.snaps, sameAs(snap))
	s.aside = slices.DeleteFunc(s.aside, sameAs(snap))
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

// sameAs matches a snapshot, with whatever signatures.
func sameAs(snap *snapshot.Snapshot) func(*snapshot.Snapshot) bool {
	return func(o *snapshot.Snapshot) bool { return o.Manifest.InfoHash == snap.Manifest.InfoHash }
}

// settle adds a note's signatures, which were verified, to a snapshot that is held,
// and offers it if it has enough now.
func (s *shelf) settle(ctx context.Context, snap *snapshot.Snapshot, note []byte) (*snapshot.Snapshot, error) {
	snap, err := s.repo.Countersign(snap.Manifest.Pos, note)
	if err != nil {
		return nil, err
	}
	return snap, s.offer(ctx, snap)
}

// rejudge looks again at who signed what, after keys changed. What this node signed
// and offers it signs with its new key, too.
func (s *shelf) rejudge(ctx context.Context) error {
	var errs []error
	for _, snap := range s.all() {
		_, offered := s.get(snap.Manifest.InfoHash)
		if offered && s.sigs.ours(snap.Note) {
			note, err := s.sigs.signer.Sign(snap.Manifest.Encode())
			if err == nil {
				snap, err = s.settle(ctx, snap, note)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
		}
		switch may := s.mayOffer(snap); {
		case may && !offered:
			errs = append(errs, s.offer(ctx, snap))
		case offered && !may:
			_, err := s.sigs.open(snap.Note, s.sigs.need)
			s.putAside(snap, err)
			s.swarm.Drop(snap.Manifest.InfoHash)
			s.changed.notify()
		}
	}
	return errors.Join(errs...)
}

// replace takes snap in place of the same with other signatures.
func (s *shelf) replace(snap *snapshot.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range [][]*snapshot.Snapshot{s.snaps, s.aside} {
		if i := slices.IndexFunc(list, sameAs(snap)); i >= 0 {
			list[i] = snap
		}
	}
}

// mayOffer reports whether a snapshot has the signatures that it takes to offer
// it: enough, or this node's own. What a manager minted it offers at once, so that
// others hear of it and can add theirs; nobody opens it before.
func (s *shelf) mayOffer(snap *snapshot.Snapshot) bool {
	return s.sigs.enough(snap.Note) || s.sigs.ours(snap.Note)
}

// examine reads a snapshot's file whole. A damaged one is made ready to be mended,
// one that can not be read now is put off: then whole is false. reason is what is wrong with what was signed.
func (s *shelf) examine(ctx context.Context, snap *snapshot.Snapshot) (whole bool, reason string, err error) {
	err = snap.Verify(ctx)
	if altered, ok := errors.AsType[*snapshot.AlteredError](err); ok {
		return false, "", s.breakUp(snap, altered)
	}
	unread := err != nil
	if err == nil {
		err = snap.VerifyStatement(ctx)
		_, unread = errors.AsType[syscall.Errno](err)
	}
	switch {
	case ctx.Err() != nil:
		return false, "", ctx.Err()
	case unread: // which says nothing of the file
		s.postpone(snap, nil)
		return false, "", err
	case err != nil:
		return true, err.Error(), nil
	}
	return true, "", nil
}

func (s *shelf) discard(snap *snapshot.Snapshot, reason string) error {
	s.logger.Error("snapshot removed", "pos", snap.Manifest.Pos, "path", snap.Path, "reason", reason)
	s.mu.Lock()
	s.aside = slices.DeleteFunc(s.aside, sameAs(snap))
	s.mu.Unlock()
	return s.repo.Remove(snap.Manifest.Pos)
}

// putAside holds a snapshot back.
func (s *shelf) putAside(snap *snapshot.Snapshot, why error) {
	s.sigs.refused(snap.Manifest.InfoHash.String(), "this node's disk", why)
	s.logger.Error("a snapshot on this node's disk lacks signatures: it is neither offered nor opened until managers' signatures are found elsewhere",
		"pos", snap.Manifest.Pos, "path", snap.Path, "reason", why)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snaps = slices.DeleteFunc(s.snaps, sameAs(snap))
	s.aside = append(slices.DeleteFunc(s.aside, sameAs(snap)), snap)
}

// restock offers what an earlier process left on disk, each after reading it
// whole, puts aside what lacks signatures, leaves what is damaged to be mended, and
// removes what is not of this node's history. It is called once.
func (s *shelf) restock(ctx context.Context, dataset txlog.DatasetID, linked func(txlog.Pos) (bool, error)) error {
	defer close(s.stocked)
	var errs []error
	for _, snap := range s.repo.List() {
		m := &snap.Manifest
		reason, whole := "", true
		ours := dataset.IsZero() || m.Dataset == dataset
		if ok, err := linked(m.Pos); err != nil {
			errs = append(errs, fmt.Errorf("check snapshot %s against the log: %w", m.Pos, err))
			continue
		} else if !ok {
			reason = "it is not of this log's history"
		} else if err := snap.CheckInfo(); errors.Is(err, lmdbstore.ErrUnexpected) && len(s.sigs.by(snap.Note)) == 0 {
			errs = append(errs, s.breakManifest(snap, err))
			continue
		} else if !ours {
			reason = "it is not of this log's dataset"
		} else if !s.mayOffer(snap) {
			_, err := s.sigs.open(snap.Note, s.sigs.need)
			s.putAside(snap, err)
			continue
		} else if whole, reason, err = s.examine(ctx, snap); ctx.Err() != nil {
			return nil // the node stops
		} else if err != nil || !whole {
			errs = append(errs, err)
			continue
		} else if reason != "" && len(s.sigs.by(snap.Note)) == 0 {
			errs = append(errs, s.breakManifest(snap, errors.New(reason)))
			continue
		}
		if reason != "" {
			errs = append(errs, s.discard(snap, reason))
			continue
		}
		errs = append(errs, s.seed(snap))
	}
	return errors.Join(errs...)
}
