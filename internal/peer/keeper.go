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
//   - a worker keeps a snapshot until no live manager announces it and it holds a
//     newer one, or can be sure of one that is cheaper (superseded);
//   - the log reaches back to the oldest snapshot that this node, a manager or enough
//     others hold (holds), so that whoever fetched one can catch up. No snapshot, no
//     trimming; nor while all of them may lack signatures: nobody could begin with
//     one of those;
//   - beyond the disk budget evidence of damage goes, and then the oldest snapshots and
//     entries, whoever needs them.
type keeper struct {
	storage *storage
	fleet   *fleet
	network *network
	shelf   *shelf
	manager bool
	keep    int
	seeds   int // that make a snapshot hold the log
	disk    *diskBudget
	logger  *slog.Logger

	sigs      *signatures
	disputed  *doubts // came out otherwise when this node replayed the log
	conflicts prometheus.Gauge

	mu       sync.Mutex      // guards what follows, and makes retain one at a time
	warned   map[string]bool // of the conflicts that there are now
	warnings *rate.Limiter
	future   map[chunker.InfoHash]time.Time // since when offers are beyond all heads
	proved   map[chunker.InfoHash]bool      // enough signatures were seen
	asked    time.Time                      // when they were last asked for
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
	again := time.NewTicker(measureEvery)
	defer again.Stop()
	for {
		changed := k.fleet.Changed()
		k.prove(ctx)
		k.retain()
		select {
		case <-changed:
		case <-again.C:
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
	drop := superseded(k.shelf.all(), offers, k.storage.log.Bytes(), k.enough, func(o replica.Offer) bool { return k.proved[o.InfoHash] })
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

// prove looks for the signatures of what managers announce and is newer than what this
// worker holds, once that has become dear to keep.
func (k *keeper) prove(ctx context.Context) {
	if k.manager || time.Since(k.asked) < mirrorRetry {
		return
	}
	offers, proved, size := k.offers(), map[chunker.InfoHash]bool{}, int64(cheapLog)
	own := k.shelf.all()
	if len(own) > 0 {
		size = max(size, own[0].Manifest.Size)
	}
	for _, o := range offers {
		switch ok, err := k.storage.linked(o.Pos); {
		case !o.Manager || err != nil || !ok:
		case k.proved[o.InfoHash]:
			proved[o.InfoHash] = true
		case len(own) > 0 && k.storage.log.Bytes() > size && len(proved) == 0:
			k.asked = time.Now()
			_, err := k.network.manifest(ctx, o, nil)
			proved[o.InfoHash] = err == nil
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.proved = proved
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

// trim lets go of what nobody needs of the log, and of what the disk budget does not allow.
func (k *keeper) trim(offers []replica.Offer) error {
	log := k.storage.log
	own, base := k.shelf.all(), log.Base().Seq
	seqs := holds(own, offers, k.seeds, len(k.fleet.others()), base, func(o replica.Offer) bool {
		ok, err := k.storage.linked(o.Pos)
		return err != nil || ok
	})
	if len(seqs) == 0 || !k.sigs.mayTrim(own, offers) {
		return k.disk.keep(k.forget)
	}
	err := k.trimTo(seqs[0])
	return errors.Join(err, k.disk.keep(func() []func() (string, error) { return append(k.forget(), k.oldest(own, seqs)...) }))
}

// trimTo trims the log up to a seq, but not beyond what is applied.
func (k *keeper) trimTo(floor uint64) error {
	floor = min(floor, k.storage.store.State().Pos.Seq)
	if floor <= k.trimmed {
		return nil
	}
	first, err := k.storage.log.Trim(floor)
	if err != nil {
		return err
	}
	k.trimmed = floor
	return k.storage.proof.trim(first)
}

// oldest returns how to let go of one thing after the other, the oldest first: a
// snapshot of this node, and the log before the next one that anybody holds. The newest
// that this node may open, or else the newest at all, stays, and all after it.
func (k *keeper) oldest(own []*snapshot.Snapshot, seqs []uint64) (free []func() (string, error)) {
	last := seqs[len(seqs)-1]
	if s, ok := first(own, k.enough); ok {
		last = s.Manifest.Pos.Seq
	}
	for i, s := range slices.Backward(own) {
		if seq := s.Manifest.Pos.Seq; i > 0 && seq < last {
			free = append(free, func() (string, error) {
				k.logger.Warn("a snapshot goes because the disk budget is used up", "pos", s.Manifest.Pos, "bytes", s.Manifest.Size)
				return "snapshot", k.shelf.withdraw(s)
			})
		}
		free = append(free, k.freeLog(last, s.Manifest.Pos.Seq))
	}
	for _, seq := range seqs {
		free = append(free, k.freeLog(last, seq))
	}
	return free
}

// freeLog returns how to let go of the log up to a seq, if that is not beyond last.
func (k *keeper) freeLog(last, seq uint64) func() (string, error) {
	return func() (string, error) {
		before := k.storage.log.First()
		if err := k.trimTo(min(seq, last)); err != nil || k.storage.log.First() == before {
			return "", err
		}
		k.logger.Warn("the log's oldest entries go because the disk budget is used up; who needs them has to fetch a snapshot",
			"from", before, "to", k.storage.log.First()-1)
		return "log", nil
	}
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
			offers = slices.DeleteFunc(offers, func(o replica.Offer) bool { return now.Before(failed[o.Claim()]) || k.shelf.mending(o) })
			if o, ok := missing(k.shelf.list(), offers, k.room()); ok {
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

// room returns how many snapshots to mirror: what the disk budget would take away again
// is not fetched.
func (k *keeper) room() int {
	if k.disk.ratio() >= alarmAt {
		return 1
	}
	return k.keep
}

// fetch fetches a snapshot to mirror it, as long as it is offered: pieces that
// nobody holds any more are not waited for. It has to be of this log's history, and
// what its manifest says.
func (k *keeper) fetch(ctx context.Context, o replica.Offer) error {
	if ok, err := k.storage.linked(o.Pos); err != nil || !ok {
		return errors.Join(err, errors.New("it is not of this log's history"))
	}
	ctx, stop := k.fleet.whileOffered(ctx, o.InfoHash)
	defer stop()
	path, err := k.network.Fetch(ctx, o, nil)
	if err != nil && context.Cause(ctx) == errWithdrawn {
		err = errWithdrawn
	}
	if snap, ok := k.shelf.at(path); err == nil && ok {
		if err = snap.VerifyStatement(ctx); err != nil && ctx.Err() == nil {
			err = k.network.judge(ctx, snap, err)
		}
	}
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
