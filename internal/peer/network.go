package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
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
	// changed tells the others at once that a fetch began or ended: whom they ask
	// for what depends on who fetches.
	changed *signal

	mu       sync.Mutex                         // guards fetching
	fetching map[chunker.InfoHash]chan struct{} // closed when that fetch is over
}

var _ replica.Network = (*network)(nil)

// Stream implements replica.Network.
func (n *network) Stream(ctx context.Context, u replica.Upstream, dataset txlog.DatasetID, after txlog.Pos) (replica.Stream, error) {
	s, err := n.client.Stream(ctx, p2p.Target{Name: u.Name, Addr: u.Addr}, dataset, after)
	if err != nil {
		return nil, err
	}
	return replicaStream{s}, nil
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
	if snap, ok := n.shelf.get(o.InfoHash); ok {
		return snap.Path, nil
	}
	m, t, err := n.describe(ctx, o)
	if err != nil {
		return "", err
	}
	snap, err := n.fetch(ctx, o, m, t, progress)
	if err != nil {
		return "", fmt.Errorf("fetch snapshot %s: %w", o.Pos, err)
	}
	n.shelf.add(snap)
	return snap.Path, nil
}

func (n *network) fetch(ctx context.Context, o replica.Offer, m *snapshot.Manifest, t *chunker.Torrent, progress func(done, total int64)) (*snapshot.Snapshot, error) {
	begun := sync.OnceFunc(n.changed.notify)
	err := n.swarm.Fetch(ctx, t, n.shelf.repo.Partial(m), func(p p2p.Progress) {
		begun()
		if progress != nil {
			progress(p.Done, p.Total)
		}
	})
	n.changed.notify()
	if err != nil {
		return nil, err
	}
	snap, err := n.shelf.repo.Adopt(ctx, m, t)
	if err != nil {
		n.swarm.Drop(o.InfoHash)
		if ctx.Err() == nil {
			// Every piece was right, so what the manifest says is wrong: nothing to resume.
			err = errors.Join(err, n.shelf.repo.Remove(m.Pos))
		}
		return nil, err
	}
	return snap, nil
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

// describe asks the holders, one after the other, what the snapshot is.
func (n *network) describe(ctx context.Context, o replica.Offer) (*snapshot.Manifest, *chunker.Torrent, error) {
	errs := []error{fmt.Errorf("no holder could describe snapshot %s", o.Pos)}
	for _, addr := range o.Holders {
		m, t, err := n.describeFrom(ctx, addr, o)
		if err == nil {
			return m, t, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, nil, errors.Join(errs...)
}

func (n *network) describeFrom(ctx context.Context, addr string, o replica.Offer) (*snapshot.Manifest, *chunker.Torrent, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	text, err := n.client.Manifest(ctx, p2p.Target{Addr: addr}, o.InfoHash)
	if err != nil {
		return nil, nil, err
	}
	m, err := snapshot.ParseManifest(text)
	if err != nil {
		return nil, nil, err
	}
	t, err := n.client.Torrent(ctx, p2p.Target{Addr: addr}, o.InfoHash)
	if err != nil {
		return nil, nil, err
	}
	return m, t, matches(o, m, t)
}

// matches compares what gossip, the manifest and the metainfo say of one
// snapshot.
func matches(o replica.Offer, m *snapshot.Manifest, t *chunker.Torrent) error {
	announced := snapshot.Manifest{Dataset: o.Dataset, Pos: o.Pos, InfoHash: o.InfoHash, Size: o.Size}
	described := snapshot.Manifest{Dataset: m.Dataset, Pos: m.Pos, InfoHash: m.InfoHash, Size: m.Size}
	if announced != described {
		return fmt.Errorf("the manifest is of dataset %s at %s, infohash %s, %d bytes; announced was dataset %s at %s, infohash %s, %d bytes",
			m.Dataset, m.Pos, m.InfoHash, m.Size, o.Dataset, o.Pos, o.InfoHash, o.Size)
	}
	return m.Matches(t)
}
