package peer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/internal/snapshot"
)

const (
	// Between two tries to find signatures for one snapshot, or to give one.
	notaryBase = 500 * time.Millisecond
	notaryMax  = 30 * time.Second
)

// notary sees to signatures:
//
//   - a snapshot that lacks some, of those held here, gets what the other holders
//     have of them;
//   - where more than one is required, a manager adds its own to what another one
//     published, after it replayed the log up to there, minted, and got the same
//     bytes. If it did not, that is an alarm.
type notary struct {
	storage  *storage
	fleet    *fleet
	network  *network
	shelf    *shelf
	sigs     *signatures
	replayer *replayer // nil: this node signs nothing of others'
	keeper   *keeper
	disputed *doubts
	stopped  func() error // as the publisher's
	logger   *slog.Logger

	tries    map[chunker.InfoHash]*attempt
	verdicts *prometheus.CounterVec
}

// attempt is how often something failed, and when it is tried again.
type attempt struct {
	failures int
	next     time.Time
	read     bool // a snapshot's file, for want of anybody who has it
}

func (a *attempt) failed(now time.Time) {
	a.next = now.Add(min(notaryMax, notaryBase<<min(a.failures, 10)))
	a.failures++
}

func newNotaryMetric(reg prometheus.Registerer) *prometheus.CounterVec {
	return promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "qs_signing_replays_total",
		Help: "Snapshots of other managers that were minted again from the log, to add a signature, by result: signed, mismatch (an alarm: a manager diverged, is damaged, or lies), failed.",
	}, []string{"result"})
}

// run gathers and gives signatures until ctx ends.
func (n *notary) run(ctx context.Context) {
	if n.sigs.trusted == nil || n.shelf.wait(ctx) != nil {
		return
	}
	tick := time.NewTicker(notaryBase)
	defer tick.Stop()
	for ctx.Err() == nil {
		changed := n.fleet.Changed()
		offers := n.fleet.Offers()
		n.forget(offers)
		busy := n.gather(ctx, offers)
		if n.replayer != nil && n.stopped() == nil {
			busy = n.countersign(ctx, offers) || busy
		}
		again := tick.C
		if !busy {
			again = nil // nothing is to be tried again
		}
		select {
		case <-changed:
		case <-n.sigs.changed.c:
			if err := n.shelf.rejudge(ctx); err != nil && ctx.Err() == nil {
				n.logger.Error("looking at signatures again failed", "err", err)
			}
		case <-again:
		case <-ctx.Done():
		}
		pause(ctx, keepGap)
	}
}

// forget drops what is remembered of snapshots that are gone.
func (n *notary) forget(offers []replica.Offer) {
	there := map[chunker.InfoHash]bool{}
	for _, o := range offers {
		there[o.InfoHash] = true
	}
	for h := range n.tries {
		if !there[h] {
			delete(n.tries, h)
		}
	}
}

// due returns the attempts at a snapshot if it is time for one.
func (n *notary) due(h chunker.InfoHash) (*attempt, bool) {
	a := n.tries[h]
	if a == nil {
		a = &attempt{}
		n.tries[h] = a
	}
	return a, !time.Now().Before(a.next)
}

// gather asks other holders for signatures that snapshots here lack, and reports
// whether some still do.
func (n *notary) gather(ctx context.Context, offers []replica.Offer) (lacking bool) {
	for _, o := range offers {
		snap, ok := n.shelf.find(o.InfoHash)
		if !ok || snap.Manifest.Pos != o.Pos || n.sigs.enough(snap.Note) {
			continue
		}
		lacking = true
		a, due := n.due(o.InfoHash)
		if !due {
			continue
		}
		a.failed(time.Now())
		d, err := n.network.manifest(ctx, o, snap.Note)
		if d.note == nil || !d.sameManifest(snap) {
			n.logger.Debug("no signatures were found for a snapshot", "pos", o.Pos, "err", err)
			continue
		}
		if _, err := n.shelf.settle(ctx, snap, d.note); err != nil && ctx.Err() == nil {
			n.logger.Error("a snapshot could not be offered with new signatures", "pos", o.Pos, "err", err)
		}
	}
	return lacking
}

// countersign adds this manager's signature to the newest snapshots of others that
// lack one, and reports whether there is something left to do.
func (n *notary) countersign(ctx context.Context, offers []replica.Offer) (left bool) {
	for _, o := range offers {
		if !n.wanted(o) {
			continue
		}
		left = true
		if o.Pos.Seq > n.storage.log.Head().Seq || ctx.Err() != nil {
			continue // the log is still coming
		}
		a, due := n.due(o.InfoHash)
		if !due {
			continue
		}
		a.failed(time.Now())
		d, err := n.network.manifest(ctx, o, nil)
		if err == nil || d.note == nil || n.sigs.ours(d.note) {
			continue // it has enough, or nobody is to be believed, or it is fetched
		}
		n.witness(ctx, o, d)
	}
	return left
}

// wanted reports whether a snapshot might lack this manager's signature, and is
// worth it.
func (n *notary) wanted(o replica.Offer) bool {
	if !o.Manager || o.Dataset != n.storage.log.Dataset() || n.disputed.why(o.InfoHash) != nil || n.network.refuted.why(o.InfoHash) != nil {
		return false
	}
	newer := 0
	for _, s := range n.shelf.all() {
		if s.Manifest.InfoHash == o.InfoHash && (n.sigs.enough(s.Note) || n.sigs.ours(s.Note)) {
			return false
		}
		if s.Manifest.Pos.Seq > o.Pos.Seq && n.sigs.enough(s.Note) {
			newer++
		}
	}
	return newer < n.keeper.keep
}

// witness replays the log up to a snapshot, and signs if the same comes out.
func (n *notary) witness(ctx context.Context, o replica.Offer, d described) {
	finish, err := n.network.begin(ctx, o.InfoHash)
	if err != nil {
		return
	}
	defer n.keeper.retain() // there is one more, or a conflict
	defer finish()
	began := time.Now()
	snap, err := n.replayer.replay(ctx, d)
	if err == nil {
		err = n.shelf.offer(ctx, snap)
	}
	switch {
	case err == nil:
		n.verdicts.WithLabelValues("signed").Inc()
		n.logger.Info("replayed the log up to a snapshot of another manager, and signed it",
			"pos", o.Pos, "infohash", o.InfoHash, "signed_by", n.sigs.by(snap.Note), "took", time.Since(began))
	case ctx.Err() != nil:
	case errors.Is(err, snapshot.ErrConflict):
		n.verdicts.WithLabelValues("mismatch").Inc()
		n.disputed.add(o.InfoHash, err)
		n.logger.Error("replaying the log gives another snapshot than the one that was signed: a manager diverged, is damaged, or lies; not signed",
			"pos", o.Pos, "infohash", o.InfoHash, "signed_by", n.sigs.by(d.note), "holders", o.Holders, "err", err)
	default:
		n.verdicts.WithLabelValues("failed").Inc()
		n.logger.Warn("could not replay the log up to a snapshot of another manager", "pos", o.Pos, "err", err)
	}
}
