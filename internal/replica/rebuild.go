package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

const (
	vanishedAfter = 5 * time.Second  // without a holder: a fetch is vain
	retryFollow   = 30 * time.Second // without a snapshot: upstreams that failed are asked again
	stalledAfter  = 2 * time.Minute  // without progress: a newer offer is taken
	salvageTries  = 2                // of each snapshot
)

var (
	errVanished = errors.New("nobody offers the snapshot any more")
	errStalled  = errors.New("the fetch makes no progress, and there is another snapshot")
)

// rebuild fetches the best snapshot beyond after and installs it. It retries until
// it succeeds or, if nothing is offered, until the own log can be continued after
// all, which does not help in quarantine: there the rung is where to begin.
func (r *Replica) rebuild(ctx context.Context, after txlog.Pos, from Rung) (outcome, error) {
	tried := map[Claim]int{} // salvages
	began := time.Now()
	first := true
	for ctx.Err() == nil {
		changed := r.c.Fleet.Changed()
		now := time.Now()
		all := r.offered(after)
		r.offers.forget(all)
		r.offers.rank(all)
		if from == "" && !r.offers.hopeful(all, now) {
			// Perhaps an upstream reaches back after all.
			ups, _ := r.mine()
			r.survey(ups)
			head := r.c.Log.Head()
			reach := r.ups.rank(ups, head)
			if now.Sub(began) > retryFollow {
				r.ups.pardon(reach)
			}
			if len(reach) > 0 && !r.ups.exhausted(ups, head, now) {
				return outcome{}, nil
			}
		}
		o, ok, again := r.offers.choose(all, now)
		if !ok {
			wait := time.Second
			if again.IsZero() {
				r.board.fail(rebuilding, fmt.Errorf("no snapshot after entry %d is offered", after.Seq))
			} else {
				wait = again.Sub(now)
			}
			sleep(ctx, wait, changed)
			continue
		}
		if first {
			first = false
			r.board.update(func(s *Status) { s.Rebuilds++ })
		}
		r.board.update(func(s *Status) { s.Done, s.Total = 0, o.Size })
		r.poke()
		by := Fetched
		if from == Salvaged && tried[o.Claim()] < salvageTries {
			tried[o.Claim()]++
			if r.salvage(ctx, o) {
				by = Salvaged
			}
		}
		gen, err := r.obtain(ctx, o)
		if from != "" && err != nil && ctx.Err() == nil {
			r.c.Quarantine.Tried(by, err)
		}
		if err != nil {
			r.board.update(func(s *Status) { s.Done, s.Total = 0, 0 })
			r.poke()
		}
		switch {
		case ctx.Err() != nil:
			if err == nil {
				return outcome{prepared: gen, source: o, rung: by}, nil // its owner discards it
			}
		case errors.Is(err, ErrTooEarly):
			r.metrics.fetches.WithLabelValues("early").Inc()
			r.offers.early(o, time.Now())
			r.board.fail(rebuilding, fmt.Errorf("get snapshot at entry %d: %w", o.Pos.Seq, err))
		case err != nil:
			r.metrics.fetches.WithLabelValues("failed").Inc()
			r.offers.of(o).fail(time.Now(), offerBase, offerMax)
			r.log.Warn("could not get a snapshot; trying again", "seq", o.Pos.Seq, "infohash", o.InfoHash, "err", err)
			r.board.fail(rebuilding, fmt.Errorf("get snapshot at entry %d: %w", o.Pos.Seq, err))
		default:
			r.metrics.fetches.WithLabelValues("ok").Inc()
			r.board.fail(rebuilding, nil)
			return outcome{prepared: gen, source: o, rung: by}, nil
		}
	}
	return outcome{}, nil
}

// obtain fetches and installs one snapshot.
func (r *Replica) obtain(ctx context.Context, o Offer) (Generation, error) {
	r.log.Info("fetching a snapshot", "seq", o.Pos.Seq, "infohash", o.InfoHash, "bytes", o.Size, "holders", len(o.Holders))
	file, err := r.fetch(ctx, o)
	if err != nil {
		return nil, err
	}
	return r.install(ctx, file, o.Dataset, o.Pos)
}

// salvage makes the fetch of o cheaper, if that works.
func (r *Replica) salvage(ctx context.Context, o Offer) bool {
	err := r.c.Network.Salvage(ctx, o)
	if err != nil && ctx.Err() == nil {
		r.c.Quarantine.Tried(Salvaged, err)
		r.log.Info("nothing to be salvaged of the copy in quarantine; fetching the whole snapshot", "seq", o.Pos.Seq, "reason", err)
	}
	return err == nil
}

// fetch gets a snapshot's file, as long as that makes sense.
func (r *Replica) fetch(ctx context.Context, o Offer) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var done atomic.Int64
	var file string
	fetching := start(ctx, func(ctx context.Context) (err error) {
		file, err = r.c.Network.Fetch(ctx, o, func(n, total int64) {
			done.Store(n)
			r.board.update(func(s *Status) { s.Done, s.Total = n, total })
		})
		return err
	})
	defer fetching.stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var (
		offeredLast = time.Now()
		movedLast   = time.Now()
		last        int64
	)
	for {
		select {
		case <-fetching.ended():
			if cause := context.Cause(ctx); fetching.err != nil && cause != nil {
				return "", cause
			}
			return file, fetching.err
		case now := <-tick.C:
			ups, _ := r.mine()
			r.survey(ups)
			all := r.offered(txlog.Pos{})
			if slices.ContainsFunc(all, func(other Offer) bool { return other.Claim() == o.Claim() }) {
				offeredLast = now
			}
			if n := done.Load(); n != last {
				last, movedLast = n, now
			}
			if now.Sub(offeredLast) > vanishedAfter {
				cancel(errVanished)
			}
			newer := func(other Offer) bool { return other.Pos.Seq > o.Pos.Seq && (other.Manager || !o.Manager) }
			if now.Sub(movedLast) > stalledAfter && slices.ContainsFunc(all, newer) {
				cancel(errStalled)
			}
		}
	}
}
