package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/compare"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/p2p"
	"github.com/qs-peer/qs-peer/txlog"
)

// describeTimeout bounds asking one holder for a snapshot's small files.
const describeTimeout = 15 * time.Second

// network reaches the others: logs over the peer protocol, snapshots through
// the swarm.
type network struct {
	fleet  *fleet
	client *p2p.Client
	swarm  *p2p.Swarm
	shelf  *shelf
	sigs   *signatures
	proof  *proof
	// infirmary knows where what is in quarantine is, and log what came after that.
	infirmary *infirmary
	log       *txlog.Log
	// compare hears what those who are followed say of their copies.
	compare *compare.Comparer
	// changed tells the others at once that a fetch began or ended: whom they ask
	// for what depends on who fetches.
	changed *signal

	// refuted are snapshots that are signed and not what their manifests say.
	refuted *doubts

	mu       sync.Mutex                         // guards fetching
	fetching map[chunker.InfoHash]chan struct{} // closed when that fetch is over
}

var _ replica.Network = (*network)(nil)

// Stream implements replica.Network.
func (n *network) Stream(ctx context.Context, u replica.Upstream, dataset txlog.DatasetID, after txlog.Pos) (replica.Stream, error) {
	open := func(ctx context.Context, after txlog.Pos) (*p2p.Stream, error) {
		return n.client.Stream(ctx, p2p.Target{Name: u.Name, Addr: u.Addr}, dataset, after)
	}
	if n.proof != nil {
		return n.proof.stream(ctx, u, after, open)
	}
	s, err := open(ctx, after)
	if err != nil {
		return nil, err
	}
	return replicaStream{s, func(a p2p.Applied) { n.compare.Hear(u.Name, compare.Point(a)) }}, nil
}

// Fetch implements replica.Network. The snapshot is offered by this node, too,
// from then on. Two callers who want one snapshot share one fetch.
func (n *network) Fetch(ctx context.Context, o replica.Offer, progress func(done, total int64)) (string, error) {
	if err := n.shelf.wait(ctx); err != nil {
		return "", err
	}
	finish, err := n.begin(ctx, o.InfoHash)
	if err != nil {
		return "", err
	}
	defer finish()
	if err := n.refuted.why(o.InfoHash); err != nil {
		return "", fmt.Errorf("snapshot %s is false: %w", o.Pos, err)
	}
	if snap, ok := n.shelf.get(o.InfoHash); ok && n.sigs.enough(snap.Note) {
		return snap.Path, nil
	}
	d, err := n.describe(ctx, o)
	if err != nil {
		return "", err
	}
	if snap, ok := n.shelf.find(o.InfoHash); ok {
		// It is here, and lacked signatures only, or nobody signs what it says.
		if d.sameManifest(snap) {
			_, err = n.shelf.settle(ctx, snap, d.note)
		} else {
			err = n.shelf.withdraw(snap)
		}
		if err != nil {
			return "", err
		}
		if snap, ok := n.shelf.get(o.InfoHash); ok {
			return snap.Path, nil
		}
	}
	snap, err := n.fetch(ctx, d, func(p p2p.Progress) {
		if progress != nil {
			progress(p.Done, p.Total)
		}
	})
	if err != nil {
		return "", fmt.Errorf("fetch snapshot %s: %w", o.Pos, err)
	}
	n.shelf.add(snap)
	return snap.Path, nil
}

func (n *network) fetch(ctx context.Context, d described, progress func(p2p.Progress)) (*snapshot.Snapshot, error) {
	m := d.manifest
	begun := sync.OnceFunc(n.changed.notify)
	err := n.swarm.Fetch(ctx, d.torrent, n.shelf.repo.Partial(m), func(p p2p.Progress) {
		begun()
		progress(p)
	})
	n.changed.notify()
	if err != nil {
		return nil, err
	}
	snap, err := n.shelf.repo.Adopt(ctx, d.note, d.torrent)
	if err != nil {
		n.swarm.Drop(m.InfoHash)
		if ctx.Err() == nil {
			// Every piece was right, so what the manifest says is wrong: nothing to resume.
			err = errors.Join(err, n.shelf.repo.Remove(m.Pos))
		}
		return nil, err
	}
	return snap, nil
}

// install makes a generation of a snapshot's file, if that is what its manifest
// says: of what is signed, the pieces prove all but this.
func (n *network) install(ctx context.Context, store *lmdbstore.Store, file string) (*lmdbstore.Generation, error) {
	snap, ok := n.shelf.at(file)
	if !ok {
		return nil, fmt.Errorf("nothing is known of %s any more", file)
	}
	g, err := store.Install(ctx, file, snap.Manifest.Expected(), nil)
	if errors.Is(err, lmdbstore.ErrUnexpected) {
		return nil, n.judge(ctx, snap, err)
	}
	return g, err
}

// judge withdraws a snapshot that is not what its manifest says, and finds out
// who is to blame: the disk, then it is mended, or those who signed.
func (n *network) judge(ctx context.Context, snap *snapshot.Snapshot, err error) error {
	damage := snap.Verify(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if altered, ok := errors.AsType[*snapshot.AlteredError](damage); ok {
		return errors.Join(err, n.shelf.breakUp(snap, altered))
	}
	if damage != nil { // nothing is known of the file: nobody is to blame yet
		n.shelf.postpone(snap, nil)
		return errors.Join(err, damage)
	}
	err = n.refute(snap, err)
	return errors.Join(err, n.shelf.withdraw(snap))
}

// begin waits until nobody else fetches h.
func (n *network) begin(ctx context.Context, h chunker.InfoHash) (finish func(), err error) {
	for {
		n.mu.Lock()
		busy, ok := n.fetching[h]
		if !ok {
			done := make(chan struct{})
			n.fetching[h] = done
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				delete(n.fetching, h)
				n.mu.Unlock()
				close(done)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
