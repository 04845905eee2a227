package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
)

const (
	// keepGap is how long the keeper rests between two looks at the fleet.
	keepGap = 250 * time.Millisecond
	// mirrorRetry is how long a following manager rests after a failed fetch.
	mirrorRetry = 5 * time.Second
	// futureGrace is how long an offer may be ahead of what is known of the heads.
	futureGrace = 5 * time.Second
)

// errWithdrawn ends the fetch of a snapshot that nobody offers any more.
var errWithdrawn = errors.New("the snapshot was withdrawn")

// keeper decides which snapshots the node keeps, and how far back its log has
// to reach:
//
//   - a manager keeps its newest ones, and the newest that enough managers signed;
//     one that follows fetches what the others announce and is new enough to be kept;
//   - a worker keeps a snapshot until the managers announce a newer one and no
//     live manager announces it any more;
//   - the log reaches back to the oldest snapshot that anybody alive offers, so
//     that whoever fetched one can catch up. No snapshot, no trimming; nor while
//     all of them may lack signatures: nobody could begin with one of those.
type keeper struct {
	storage *storage
	fleet   *fleet
	network *network
	shelf   *shelf
	manager bool
	keep    int
	logger  *slog.Logger

	sigs      *signatures
	disputed  *doubts // came out otherwise when this node replayed the log
	conflicts prometheus.Gauge

	mu       sync.Mutex      // guards what follows, and makes retain one at a time
	warned   map[string]bool // of the conflicts that there are now
	warnings *rate.Limiter
	future   map[chunker.InfoHash]time.Time // since when offers are beyond all heads
	trimmed  uint64
	lastFail string
}

func newConflictsGauge(reg prometheus.Registerer) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "qs_snapshot_conflicts",
		Help: "Snapshots that are announced though others, or this node, hold other bytes at the same position: a replica diverged or is damaged.",
	})
	reg.MustRegister(g)
	return g
}

// run keeps house until ctx ends.
func (k *keeper) run(ctx context.Context) {
	for {
		changed := k.fleet.Changed()
		k.retain()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		if !pause(ctx, keepGap) {
			return
		}
	}
}

// retain withdraws what need not be kept and trims the log.
func (k *keeper) retain() {
	k.mu.Lock()
	defer k.mu.Unlock()
	offers := k.offers()
	k.checkConflicts(offers)
	k.checkFuture(time.Now())
	drop := obsolete(k.shelf.all(), offers)
	if k.manager {
		drop = surplus(k.shelf.all(), k.keep, k.enough)
	}
	var errs []error
	for _, s := range drop {
		errs = append(errs, k.shelf.withdraw(s))
	}
	errs = append(errs, k.trim(offers))
	k.report(errors.Join(errs...))
}

// enough reports whether anybody may open a snapshot.
func (k *keeper) enough(s *snapshot.Snapshot) bool { return k.sigs.enough(s.Note) }

// surplus returns those of a manager's snapshots, newest first, that are more than
// it keeps.
func surplus(own []*snapshot.Snapshot, keep int, enough func(*snapshot.Snapshot) bool) []*snapshot.Snapshot {
	last, some := first(own, enough)
	drop := own[min(keep, len(own)):]
	return slices.DeleteFunc(drop, func(s *snapshot.Snapshot) bool { return some && s == last })
}

// report logs a failure once, not at each look.
func (k *keeper) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != k.lastFail {
		k.logger.Error("keeping snapshots failed", "err", err)
	}
	k.lastFail = text
}

// offers returns what the others offer of this node's dataset.
func (k *keeper) offers() []replica.Offer {
	dataset := k.storage.log.Dataset()
	return slices.DeleteFunc(k.fleet.Offers(), func(o replica.Offer) bool { return o.Dataset != dataset })
}

// obsolete returns those of a worker's snapshots that every live manager gave
// up for newer ones. Managers that announce nothing (they just started) prove
// nothing.
func obsolete(own []*snapshot.Snapshot, offers []replica.Offer) []*snapshot.Snapshot {
	var newest uint64
	announced := map[[20]byte]bool{}
	for _, o := range offers {
		if o.Manager {
			announced[o.InfoHash] = true
			newest = max(newest, o.Pos.Seq)
		}
	}
	return slices.DeleteFunc(own, func(s *snapshot.Snapshot) bool {
		return announced[s.Manifest.InfoHash] || s.Manifest.Pos.Seq >= newest
	})
}

func (k *keeper) trim(offers []replica.Offer) error {
	own := k.shelf.all()
	if !k.sigs.mayTrim(own, offers) {
		return nil
	}
	floor, ok := trimFloor(own, offers)
	floor = min(floor, k.storage.store.State().Pos.Seq)
	if !ok || floor <= k.trimmed {
		return nil
	}
	first, err := k.storage.log.Trim(floor)
	if err != nil {
		return err
	}
	k.trimmed = floor
	return k.storage.proof.trim(first)
}

// trimFloor returns the seq up to which nobody needs the log any more.
func trimFloor(own []*snapshot.Snapshot, offers []replica.Offer) (seq uint64, ok bool) {
	var seqs []uint64
	for _, s := range own {
		seqs = append(seqs, s.Manifest.Pos.Seq)
	}
	for _, o := range offers {
		seqs = append(seqs, o.Pos.Seq)
	}
	if len(seqs) == 0 {
		return 0, false
	}
	return slices.Min(seqs), true
}

// checkConflicts raises the alarm when nodes hold different bytes for one
// position, or different histories.
func (k *keeper) checkConflicts(offers []replica.Offer) {
	found := conflicts(k.shelf.list(), offers)
	there := map[string]bool{}
	for _, c := range found {
		a, b := c[0], c[1]
		key := a.InfoHash.String() + b.InfoHash.String()
		there[key] = true
		// Anybody may claim what they like, again and again: the metric counts it all.
		if !k.warned[key] && k.warnings.Allow() {
			k.warned[key] = true
			k.logger.Error("snapshots differ at one position: a replica diverged or is damaged; verify the holders",
				"pos", a.Pos, "infohash", a.InfoHash, "holders", a.Holders,
				"other_pos", b.Pos, "other_infohash", b.InfoHash, "other_holders", b.Holders)
		}
	}
	maps.DeleteFunc(k.warned, func(key string, _ bool) bool { return !there[key] })
	k.conflicts.Set(float64(len(found) + k.network.refuted.among(offers) + k.disputed.among(offers)))
}

// checkFuture counts offers that are beyond the managers' heads for longer than
// gossip takes to tell of new ones.
func (k *keeper) checkFuture(now time.Time) {
	since := map[chunker.InfoHash]time.Time{}
	for _, o := range k.fleet.beyond() {
		begin, ok := k.future[o.InfoHash]
		switch {
		case !ok:
			begin = now
		case !begin.IsZero() && now.Sub(begin) > futureGrace:
			k.sigs.refused(o.InfoHash.String(), fmt.Sprint(o.Holders), &manifestError{"beyond_head",
				fmt.Errorf("a snapshot at entry %s is offered, and no manager's log is that long", o.Pos)})
			begin = time.Time{} // told
		}
		since[o.InfoHash] = begin
	}
	k.future = since
}

// conflicts returns each snapshot that is not the first one known of its seq,
// with that one. The own come first.
func conflicts(own []*snapshot.Snapshot, offers []replica.Offer) (pairs [][2]replica.Offer) {
	first := map[uint64]replica.Offer{}
	for _, s := range own {
		m := &s.Manifest
		first[m.Pos.Seq] = replica.Offer{Pos: m.Pos, InfoHash: m.InfoHash, Holders: []replica.Holder{{Name: "this node"}}}
	}
	for _, o := range offers {
		switch a, ok := first[o.Pos.Seq]; {
		case !ok:
			first[o.Pos.Seq] = o
		case a.InfoHash != o.InfoHash:
			pairs = append(pairs, [2]replica.Offer{a, o})
		}
	}
	return pairs
}

// mirror makes a following manager fetch what the others announce.
func (k *keeper) mirror(ctx context.Context, status func() replica.Status) {
	failed := map[replica.Claim]time.Time{} // when to try those again
	for {
		changed := k.fleet.Changed()
		// A replica that is being rebuilt fetches for itself what it needs.
		if status().Ready {
			offers := k.offers()
			maps.DeleteFunc(failed, func(c replica.Claim, _ time.Time) bool {
				return !slices.ContainsFunc(offers, func(o replica.Offer) bool { return o.Claim() == c })
			})
			now := time.Now()
			// One that can not be had does not keep from others.
			offers = slices.DeleteFunc(offers, func(o replica.Offer) bool { return now.Before(failed[o.Claim()]) })
			if o, ok := missing(k.shelf.list(), offers, k.keep); ok {
				err := k.fetch(ctx, o)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					if !errors.Is(err, replica.ErrTooEarly) {
						k.logger.Warn("mirroring a snapshot failed", "pos", o.Pos, "err", err)
					}
					failed[o.Claim()] = time.Now().Add(mirrorRetry)
				}
				continue
			}
		}
		var again <-chan time.Time
		if len(failed) > 0 {
			again = time.After(mirrorRetry)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// fetch fetches a snapshot to mirror it, as long as it is offered: pieces that
// nobody holds any more are not waited for. It has to be of this log's history, and
// what its manifest says.
func (k *keeper) fetch(ctx context.Context, o replica.Offer) error {
	if ok, err := k.storage.linked(o.Pos); err != nil || !ok {
		return errors.Join(err, errors.New("it is not of this log's history"))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			changed := k.fleet.Changed()
			same := func(other replica.Offer) bool { return other.InfoHash == o.InfoHash }
			if !slices.ContainsFunc(k.fleet.Offers(), same) {
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
	path, err := k.network.Fetch(ctx, o, nil)
	if err != nil && context.Cause(ctx) == errWithdrawn {
		err = errWithdrawn
	}
	if snap, ok := k.shelf.at(path); err == nil && ok {
		if err = snap.VerifyStatement(ctx); err != nil && ctx.Err() == nil {
			err = k.network.judge(ctx, snap, err)
		}
	}
	cancel(nil)
	watch.Wait()
	return err
}

// missing returns the newest snapshot of another manager that would be among
// the keep newest here.
func missing(own []*snapshot.Snapshot, offers []replica.Offer, keep int) (replica.Offer, bool) {
	for _, o := range offers {
		newer, have := 0, false
		for _, s := range own {
			have = have || s.Manifest.Pos == o.Pos
			if s.Manifest.Pos.Seq > o.Pos.Seq {
				newer++
			}
		}
		if o.Manager && !have && newer < keep {
			return o, true
		}
	}
	return replica.Offer{}, false
}

// pause waits, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
