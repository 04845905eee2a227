package peer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/internal/snapshot"
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// replayBatch is about how many bytes of the log are replayed at a time.
const replayBatch = 4 << 20

// errOtherHistory is about a snapshot at an entry that this node's log does not hold.
var errOtherHistory = fmt.Errorf("%w: this node's log holds another entry there", snapshot.ErrConflict)

// replayer mints what another manager published from this node's own log: it
// applies the entries up to there, in an environment of its own, to the newest
// earlier snapshot that can be believed, or to nothing. One replay runs at a time.
type replayer struct {
	storage *storage
	shelf   *shelf
	sigs    *signatures
	rate    int64 // bytes per second of the log; 0: no limit
}

// replay returns the snapshot with this node's signature added. It wraps
// snapshot.ErrConflict if something else came out.
func (r *replayer) replay(ctx context.Context, d described) (_ *snapshot.Snapshot, err error) {
	target := d.manifest.Pos
	if got := d.manifest.Format; got != lmdbstore.Format {
		return nil, fmt.Errorf("a snapshot of format %d is confirmed by nodes of that version: this one mints format %d", got, lmdbstore.Format)
	}
	dir := filepath.Join(r.storage.dir, replayDir)
	// A copy of the snapshot before, what the entries add, and the new snapshot.
	if free, need := durable.FreeSpace(r.storage.dir), 3*d.manifest.Size; free < need {
		return nil, fmt.Errorf("%s has %d bytes free; replaying needs about %d", r.storage.dir, free, need)
	}
	if err := durable.RemoveAll(durable.OS, dir); err != nil {
		return nil, err
	}
	store, err := lmdbstore.Open(dir, lmdbstore.Options{})
	if err != nil {
		return nil, fmt.Errorf("prepare a replay: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close(), durable.RemoveAll(durable.OS, dir)) }()
	if err := r.begin(ctx, store, target); err != nil {
		return nil, fmt.Errorf("begin a replay: %w", err)
	}
	if err := r.apply(ctx, store, target); err != nil {
		return nil, fmt.Errorf("replay the log up to entry %d: %w", target.Seq, err)
	}
	return r.storage.repo.Confirm(ctx, store, d.note)
}

// begin puts the newest earlier snapshot into the store that the log reaches back
// to. Without one the log has to begin at entry 1.
func (r *replayer) begin(ctx context.Context, store *lmdbstore.Store, target txlog.Pos) error {
	first := r.storage.log.First()
	for _, s := range r.shelf.list() {
		m := &s.Manifest
		if m.Pos.Seq >= target.Seq || m.Pos.Seq+1 < first || !r.sigs.enough(s.Note) && !r.sigs.ours(s.Note) {
			continue
		}
		g, err := store.Install(ctx, s.Path, m.Expected(), nil)
		if err != nil {
			return err
		}
		return g.Activate()
	}
	if first != 1 {
		return fmt.Errorf("the log begins at entry %d, and there is no snapshot between that and entry %d", first, target.Seq)
	}
	return nil
}

// apply applies the log up to target.
func (r *replayer) apply(ctx context.Context, store *lmdbstore.Store, target txlog.Pos) error {
	entries, err := r.storage.log.Reader(store.State().Pos)
	if err != nil {
		return err
	}
	defer entries.Close()
	limit := rate.NewLimiter(rate.Inf, replayBatch)
	if r.rate > 0 {
		limit.SetLimit(rate.Limit(r.rate))
	}
	for {
		at := store.State().Pos
		switch {
		case at == target:
			return nil
		case at.Seq >= target.Seq:
			return errOtherHistory
		}
		batch, err := entries.Next(ctx, replayBatch)
		if err != nil {
			return err
		}
		if wanted := target.Seq - at.Seq; uint64(len(batch)) > wanted {
			batch = batch[:wanted]
		}
		if err := limit.WaitN(ctx, min(replayBatch, sizeOf(batch))); err != nil {
			return err
		}
		if err := store.Apply(batch); err != nil {
			return err
		}
	}
}

// sizeOf returns about how many bytes entries hold.
func sizeOf(entries []txlog.Entry) (n int) {
	for _, e := range entries {
		for _, op := range e.Ops {
			n += len(op.Key) + len(op.Value)
		}
	}
	return n
}
