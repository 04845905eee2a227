package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	// maxMends bounds how often mending one snapshot may fail before it is given up.
	maxMends = 20
	// mendStall is how long a mend may get nothing.
	mendStall = 2 * time.Minute
)

var errMendStalled = fmt.Errorf("no piece came for %v", mendStall)

// mender looks after the snapshots on this node's disk: it reads them, takes bad
// pieces out of service at once, gets those and nothing else from whoever holds
// them, and offers the snapshot again. What nobody else has a manager mints again if
// it stands there still; otherwise the snapshot stays withdrawn until it is too old
// to be kept.
type mender struct {
	storage *storage
	fleet   *fleet
	network *network
	shelf   *shelf
	manager bool
	keep    int                   // snapshots that a manager keeps
	status  func() replica.Status // of the replica, whose store is minted
	logger  *slog.Logger

	infirmary *infirmary          // is told of damage, and of attempts to mend it
	tries     map[string]*attempt // by name
}

// snapshotScrub is what a scrub of the snapshots found.
type snapshotScrub struct {
	Snapshots int   // read
	Bytes     int64 // read
	Damaged   int   // snapshots with bad pieces, or that can not be read
	Bad       int   // pieces
	Small     int   // manifests and torrents that were written again
}

// scrub reads every snapshot that is offered, at most bytesPerSecond (0: no limit),
// from the disk and not from memory, and has what is bad mended. An error is one of ctx,
// or says which could not be read: of those nothing is known, and they stay offered.
func (m *mender) scrub(ctx context.Context, bytesPerSecond int64) (report snapshotScrub, err error) {
	limit := snapshot.NewScrubLimit(bytesPerSecond)
	var unread []error
	for _, snap := range m.shelf.list() {
		err := snap.Scrub(ctx, limit)
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
		if _, still := m.shelf.get(snap.Manifest.InfoHash); !still {
			continue // it was withdrawn meanwhile
		}
		altered, damaged := errors.AsType[*snapshot.AlteredError](err)
		if err != nil && !damaged {
			unread = append(unread, fmt.Errorf("snapshot %s: %w", snap.Manifest.Pos, err))
			continue
		}
		report.Snapshots++
		report.Bytes += snap.Manifest.Size
		if damaged {
			report.Damaged++
			report.Bad += len(altered.Bad)
			if err := m.withdraw(ctx, snap, altered); err != nil {
				return report, err
			}
			continue
		}
		n, err := m.shelf.repo.RewriteSmall(snap.Manifest.Pos)
		report.Small += n
		if n > 0 {
			m.infirmary.report(finding{Part: partSnapshot, Err: fmt.Errorf("snapshot %s: %d of manifest and torrent differed on the disk, and were written again", snap.Manifest.Pos, n)})
		}
		if err != nil {
			m.logger.Error("looking at the small files of a snapshot failed", "pos", snap.Manifest.Pos, "err", err)
		}
	}
	return report, errors.Join(unread...)
}

// withdraw takes the bad pieces of a snapshot out of service at once, then the
// snapshot, and has it mended. An error is one of ctx.
func (m *mender) withdraw(ctx context.Context, snap *snapshot.Snapshot, altered *snapshot.AlteredError) error {
	h := snap.Manifest.InfoHash
	m.network.swarm.Withdraw(h, altered.Bad)
	// Whoever misses the snapshot once it is not offered must not begin to fetch it
	// before its good pieces are where a fetch looks for them.
	over, err := m.network.begin(ctx, h)
	if err != nil {
		return context.Cause(ctx)
	}
	defer over()
	if err := m.shelf.breakUp(snap, altered); err != nil {
		m.logger.Error("a damaged snapshot could not be made ready to be mended yet", "pos", snap.Manifest.Pos, "err", err)
	}
	return nil
}

// mintComparison is what comparing the store with a snapshot showed.
type mintComparison struct {
	lmdbstore.Compared
	Snapshot txlog.Pos
	Skipped  string                 // why nothing of the store was compared
	Altered  *snapshot.AlteredError // the snapshot's file is damaged
}

func (c *mintComparison) String() string {
	if c.Snapshot.IsZero() {
		return "nothing"
	}
	return fmt.Sprintf("the snapshot at entry %d against the store at entry %d: of %d pieces %d whole and %d in part, the other %d changed since; %d pairs, not %d that changed since",
		c.Snapshot.Seq, c.Pos.Seq, c.Pieces, c.Live, c.Partly, c.File, c.Pairs, c.Since)
}

// compare compares the store with the newest snapshot that is held here and that it has
// passed, of whatever was not changed since. What differs says that the store is
// damaged or diverged: the snapshot is verified as it is read.
func (m *mender) compare(ctx context.Context, bytesPerSecond int64) (c mintComparison, err error) {
	if err := m.shelf.wait(ctx); err != nil {
		return c, err
	}
	held, at := m.shelf.list(), m.storage.store.State().Pos
	snap, ok := first(held, func(s *snapshot.Snapshot) bool {
		return s.Manifest.Pos.Seq <= at.Seq && m.network.refuted.why(s.Manifest.InfoHash) == nil
	})
	switch {
	case at.IsZero():
		c.Skipped = "the store is empty"
		return c, nil
	case !ok && len(held) > 0:
		c.Skipped = fmt.Sprintf("no snapshot is held that may be compared with the store at entry %d", at.Seq)
		return c, nil
	case !ok:
		c.Skipped = "no snapshot is held"
		return c, nil
	}
	c.Compared, err = m.shelf.repo.Compare(ctx, m.storage.store, snap, m.storage.log, snapshot.NewScrubLimit(bytesPerSecond))
	switch altered, damaged := errors.AsType[*snapshot.AlteredError](err); {
	case damaged:
		c.Skipped = fmt.Sprintf("the file of snapshot %s is damaged", snap.Manifest.Pos)
		if _, still := m.shelf.get(snap.Manifest.InfoHash); still { // or it is known
			c.Altered = altered
			return c, m.withdraw(ctx, snap, altered)
		}
		return c, nil
	case errors.Is(err, lmdbstore.ErrIncomparable):
		c.Skipped = err.Error()
		return c, nil
	case err != nil:
		return c, err
	}
	if c.Snapshot = snap.Manifest.Pos; c.Pairs == 0 && c.Since > 0 {
		c.Skipped = fmt.Sprintf("every pair of the snapshot at entry %d changed since", c.Snapshot.Seq)
	}
	return c, nil
}

// run mends what is damaged, also what an earlier process left so, until ctx ends.
func (m *mender) run(ctx context.Context) {
	if m.shelf.wait(ctx) != nil {
		return
	}
	for ctx.Err() == nil {
		changed := m.fleet.Changed()
		var again <-chan time.Time
		if m.mendAll(ctx) {
			again = time.After(notaryBase)
		}
		select {
		case <-changed:
		case <-m.shelf.broken.c:
		case <-again:
		case <-ctx.Done():
		}
		pause(ctx, keepGap)
	}
}

// mendAll tries to mend what is due, and reports whether something is left.
func (m *mender) mendAll(ctx context.Context) (left bool) {
	offers := slices.DeleteFunc(m.fleet.Offers(), func(o replica.Offer) bool { return o.Dataset != m.storage.log.Dataset() })
	left = m.shelf.resume(ctx, time.Now())
	for _, b := range m.shelf.repo.Broken() {
		if m.tries[b.Name] == nil {
			m.tries[b.Name] = &attempt{}
			m.infirmary.report(finding{Part: partSnapshot, Err: fmt.Errorf("snapshot %s: %w", b.Name, b.Err), Evidence: m.shelf.repo.Evidence(b), Bytes: b.Damaged})
		}
		a := m.tries[b.Name]
		if a.failures >= maxMends || m.tooOld(b, offers) {
			m.discard(b, a)
			continue
		}
		left = true
		if ctx.Err() != nil || time.Now().Before(a.next) {
			continue
		}
		switch done, err := m.mend(ctx, b, offers); {
		case ctx.Err() != nil:
		case err != nil:
			a.failed(time.Now())
			m.infirmary.repaired(kindSnapshotPieces, 0, 0, fmt.Errorf("%s, try %d: %w", b.Name, a.failures, err))
		case done:
			delete(m.tries, b.Name)
		}
	}
	return left
}

func (m *mender) discard(b *snapshot.Broken, a *attempt) {
	m.logger.Error("a damaged snapshot is given up", "snapshot", b.Name, "tries", a.failures, "err", b.Err)
	if err := m.shelf.repo.Discard(b); err != nil {
		m.logger.Error("a damaged snapshot could not be removed", "snapshot", b.Name, "err", err)
	}
	delete(m.tries, b.Name)
}

// tooOld reports whether a snapshot would not be kept if it was whole.
func (m *mender) tooOld(b *snapshot.Broken, offers []replica.Offer) bool {
	if m.manager {
		newer := 0
		for _, s := range m.shelf.all() {
			if s.Manifest.Pos.Seq > b.Seq {
				newer++
			}
		}
		return newer >= m.keep
	}
	newest := uint64(0)
	for _, o := range offers {
		if o.Manager && snapshot.Name(o.Pos) == b.Name {
			return false
		}
		if o.Manager {
			newest = max(newest, o.Pos.Seq)
		}
	}
	return newest > b.Seq
}

// mend tries the cheapest way there is: what is on the disk, then the others, then
// minting again. done is false, without an error, if there is no way now.
func (m *mender) mend(ctx context.Context, b *snapshot.Broken, offers []replica.Offer) (done bool, err error) {
	if b.Manifest != nil && b.Torrent == nil {
		if snap, err := m.shelf.repo.Redescribe(ctx, b); err == nil {
			return true, m.finish(ctx, b, snap)
		}
	}
	of := slices.IndexFunc(offers, func(o replica.Offer) bool {
		return snapshot.Name(o.Pos) == b.Name && (b.Manifest == nil || o.InfoHash == b.Manifest.InfoHash) && m.network.refuted.why(o.InfoHash) == nil
	})
	if of < 0 { // who damaged the manifest may have changed the infohash in it
		of = slices.IndexFunc(offers, func(o replica.Offer) bool { return snapshot.Name(o.Pos) == b.Name && o.Manager })
	}
	if of >= 0 {
		return true, m.refetch(ctx, b, offers[of])
	}
	if a := m.tries[b.Name]; b.Manifest != nil && !a.read { // all of it may be there, and more
		a.read = true
		if snap, err := m.shelf.repo.Redescribe(ctx, b); err == nil {
			return true, m.finish(ctx, b, snap)
		}
	}
	if st := m.storage.store.State(); m.manager && m.status().Ready && snapshot.Name(st.Pos) == b.Name {
		return true, m.mintAgain(ctx, b)
	}
	return false, nil
}

// refetch gets what is bad from the others.
func (m *mender) refetch(ctx context.Context, b *snapshot.Broken, o replica.Offer) error {
	over, err := m.network.begin(ctx, o.InfoHash)
	if err != nil {
		return err
	}
	defer over()
	if _, whole := m.shelf.find(o.InfoHash); whole {
		return nil // somebody needed it
	}
	ctx, stop := m.fleet.whileOffered(ctx, o.InfoHash)
	defer stop()
	d := described{note: b.Note, manifest: b.Manifest, torrent: b.Torrent}
	if b.Torrent == nil || b.Manifest.InfoHash != o.InfoHash || !m.network.sigs.enough(b.Note) {
		if d, err = m.network.describe(ctx, o); err != nil {
			return errors.Join(err, causeOf(ctx))
		}
	}
	fetched, damaged := int64(-1), b.Damaged
	snap, err := m.fetch(ctx, d, func(p p2p.Progress) {
		first := fetched < 0
		fetched = 0
		for _, from := range p.From {
			fetched += from.Bytes
		}
		if first { // the file was read whole: what is lacking was bad
			damaged = max(damaged, min(p.Total, p.Total-p.Done+fetched))
		}
	})
	if err != nil {
		return errors.Join(fmt.Errorf("get what is bad of snapshot %s: %w", o.Pos, err), causeOf(ctx))
	}
	if b.Manifest == nil || b.Manifest.InfoHash != o.InfoHash {
		// What it says of the file was not compared with the file yet.
		if err := snap.VerifyStatement(ctx); err != nil {
			m.network.swarm.Drop(o.InfoHash)
			return m.network.judge(ctx, snap, err)
		}
	}
	m.shelf.add(snap)
	m.infirmary.repaired(kindSnapshotPieces, max(0, fetched), damaged, nil)
	return nil
}

// fetch is network.fetch, which it ends if nothing comes for too long.
func (m *mender) fetch(ctx context.Context, d described, progress func(p2p.Progress)) (*snapshot.Snapshot, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(mendStall, func() { cancel(errMendStalled) })
	defer stalled.Stop()
	done := int64(-1)
	snap, err := m.network.fetch(ctx, d, func(p p2p.Progress) {
		if p.Done > done {
			done = p.Done
			stalled.Reset(mendStall)
		}
		progress(p)
	})
	if err != nil {
		return nil, errors.Join(err, causeOf(ctx))
	}
	return snap, nil
}

// causeOf returns why a context ended, if there is more to say than that it did.
func causeOf(ctx context.Context) error {
	if err := context.Cause(ctx); err != ctx.Err() {
		return err
	}
	return nil
}

// mintAgain makes a snapshot that nobody else has anew.
func (m *mender) mintAgain(ctx context.Context, b *snapshot.Broken) error {
	var snap *snapshot.Snapshot
	var err error
	if b.Note != nil {
		snap, err = m.shelf.repo.Confirm(ctx, m.storage.store, b.Note)
	} else {
		snap, err = m.shelf.repo.Mint(ctx, m.storage.store, nil)
	}
	if err != nil {
		return err
	}
	return m.finish(ctx, b, snap)
}

// finish offers a snapshot that is whole again without the others.
func (m *mender) finish(ctx context.Context, b *snapshot.Broken, snap *snapshot.Snapshot) error {
	if err := m.shelf.offer(ctx, snap); err != nil {
		return err
	}
	m.infirmary.repaired(kindSnapshotPieces, 0, b.Damaged, nil)
	return nil
}

// whileOffered returns a context that ends with errWithdrawn when nobody offers a
// snapshot any more: pieces that nobody holds are not waited for. stop frees it.
func (f *fleet) whileOffered(ctx context.Context, h chunker.InfoHash) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			changed := f.Changed()
			if !slices.ContainsFunc(f.Offers(), func(o replica.Offer) bool { return o.InfoHash == h }) {
				cancel(errWithdrawn)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, func() {
		cancel(nil)
		watch.Wait()
	}
}

// breakUp stops offering a snapshot whose file is damaged, and makes it one of the
// repo's broken ones.
func (s *shelf) breakUp(snap *snapshot.Snapshot, altered *snapshot.AlteredError) error {
	s.mu.Lock()
	s.snaps = slices.DeleteFunc(s.snaps, sameAs(snap))
	s.aside = slices.DeleteFunc(s.aside, sameAs(snap))
	s.mu.Unlock()
	s.changed.notify()
	s.swarm.Drop(snap.Manifest.InfoHash)
	return s.tryBreak(snap, func() error {
		_, err := s.repo.Break(snap.Manifest.Pos, altered)
		return err
	})
}

// tryBreak makes a snapshot that is not offered one of the repo's broken ones, at once
// or, if that fails, later.
func (s *shelf) tryBreak(snap *snapshot.Snapshot, breakIt func() error) error {
	err := breakIt()
	if err != nil {
		s.postpone(snap, breakIt)
	}
	s.broken.notify()
	return err
}

// mending reports whether what is offered is broken here: the mender gets what is bad.
func (s *shelf) mending(o replica.Offer) bool {
	return slices.ContainsFunc(s.repo.Broken(), func(b *snapshot.Broken) bool { return b.Name == snapshot.Name(o.Pos) })
}

// putOff is a snapshot of the repo that is not offered, because something failed
// that says nothing of its file. The mender tries that again.
type putOff struct {
	attempt
	snap    *snapshot.Snapshot
	breakIt func() error // makes it ready to be mended; nil: it is to be read
}

// postpone stops offering a snapshot until it could be read, or, if it is known to be
// damaged, made ready to be mended by breakIt. What is to be read is aside meanwhile.
func (s *shelf) postpone(snap *snapshot.Snapshot, breakIt func() error) {
	s.swarm.Drop(snap.Manifest.InfoHash)
	s.mu.Lock()
	s.snaps = slices.DeleteFunc(s.snaps, sameAs(snap))
	s.aside = slices.DeleteFunc(s.aside, sameAs(snap))
	if breakIt == nil {
		s.aside = append(s.aside, snap)
	}
	if i := slices.IndexFunc(s.later, func(p *putOff) bool { return sameAs(snap)(p.snap) }); i >= 0 {
		s.later[i].breakIt = breakIt
	} else {
		p := &putOff{snap: snap, breakIt: breakIt}
		p.failed(time.Now())
		s.later = append(s.later, p)
	}
	s.mu.Unlock()
	s.changed.notify()
	s.broken.notify()
}

// resume tries again what is put off and due, and reports whether something is left.
func (s *shelf) resume(ctx context.Context, now time.Time) (left bool) {
	s.mu.Lock()
	later := slices.Clone(s.later)
	s.mu.Unlock()
	for _, p := range later {
		if ctx.Err() != nil || now.Before(p.next) {
			left = true
			continue
		}
		if err := s.again(ctx, p); err != nil {
			p.failed(now)
			s.logger.Warn("a snapshot can still not be read, or made ready to be mended", "pos", p.snap.Manifest.Pos, "tries", p.failures, "err", err)
			left = true
			continue
		}
		s.mu.Lock()
		s.later = slices.DeleteFunc(s.later, func(o *putOff) bool { return o == p })
		s.mu.Unlock()
	}
	return left
}

// again tries what is put off. What was removed or offered meanwhile is done.
func (s *shelf) again(ctx context.Context, p *putOff) error {
	h := p.snap.Manifest.InfoHash
	s.mu.Lock()
	breakIt := p.breakIt
	s.mu.Unlock()
	snap, held := s.repo.Get(h)
	if _, offered := s.get(h); offered || !held {
		return nil
	}
	if breakIt == nil {
		return s.offer(ctx, snap)
	}
	return breakIt()
}

// breakManifest has the manifest of a snapshot fetched again, which nobody signed
// and which says something else than its file.
func (s *shelf) breakManifest(snap *snapshot.Snapshot, why error) error {
	return s.tryBreak(snap, func() error { return s.repo.BreakManifest(snap.Manifest.Pos, why) })
}
