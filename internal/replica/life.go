package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	// staleReady is how long a restarted or rebuilt node that can not catch up waits before
	// it serves what it has, if others claim to have more.
	staleReady = 10 * time.Second
	// mendEvery is the least time between two new beginnings of a damaged log.
	mendEvery = time.Minute
)

// life is a follower's: the one goroutine that starts and stops the activities,
// and the only one that resets the log and switches generations.
type life struct {
	*Replica
	applying *task // own log → store or prepared; nil while the log is empty
	working  *task // follow or rebuild
	out      outcome

	prepared    Generation // catching up; nil: the store is
	source      Offer      // what prepared, or the store if it was rebuilt, was made from
	rung        Rung       // and how
	progress    txlog.Pos  // what the target of applying holds
	advanced    chan txlog.Pos
	ready       bool
	quarantined bool // nothing of the store's copy may be served
	diverged    bool // nor of the own log
	rebuilding  bool
	repaired    struct {
		by    Rung
		at    time.Time
		again bool // soon after another repair
	}
	hadData bool // at start
	moved   time.Time
	mended  time.Time
}

func (r *Replica) live(ctx context.Context) error {
	_, pos := r.c.Store.Position()
	l := &life{Replica: r, hadData: !pos.IsZero(), moved: time.Now(), advanced: make(chan txlog.Pos)}
	defer l.end()
	halt, halted := r.halt()
	reason := r.c.Quarantine.Reason()
	if reason == nil { // otherwise the log may be all there is
		if err := l.reconcile(ctx); err != nil {
			return err
		}
	}
	switch {
	case halt() != nil:
		l.quarantined = reason != nil
		return l.stand(ctx, halt())
	case reason != nil:
		if err := l.quarantine(ctx, reason); err != nil {
			return err
		}
	default:
		l.startApply(ctx)
		l.startFollow(ctx)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		l.show()
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-halted:
			return l.stand(ctx, halt())
		case <-l.imposed():
			err = l.quarantine(ctx, r.c.Quarantine.Reason())
		case <-l.applying.ended():
			err = l.applyEnded(ctx)
		case <-l.working.ended():
			err = l.workEnded(ctx)
		case pos := <-l.advanced:
			l.advance(pos)
		case <-r.wake:
		case <-tick.C:
		}
		if err == nil {
			err = l.judge(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// stand stops everything.
func (l *life) stand(ctx context.Context, halt error) error {
	l.working.stop()
	l.stopApply()
	l.board.update(func(s *Status) { s.Done, s.Total = 0, 0 })
	l.Replica.stand(ctx, halt, l.ready || l.whole() && !l.quarantined)
	return nil
}

// reconcile applies the first rule of the package comment.
func (l *life) reconcile(ctx context.Context) error {
	id, pos := l.c.Store.Position()
	if pos.IsZero() {
		if l.c.Log.First() > 1 {
			// What follows a snapshot that was not kept.
			return l.reset(ctx, l.c.Log.Dataset(), txlog.Pos{})
		}
		return nil
	}
	if l.c.Log.Dataset() == id {
		entries, err := l.c.Log.Read(pos)
		if err == nil {
			return entries.Close()
		}
		var diverged *txlog.DivergedError
		var trimmed *txlog.TrimmedError
		var corrupt *txlog.CorruptError
		if !errors.As(err, &diverged) && !errors.As(err, &trimmed) && !errors.As(err, &corrupt) {
			return fmt.Errorf("read the log: %w", err)
		}
		l.log.Warn("the log does not fit the store; beginning it anew", "applied", pos.Seq, "err", err)
	}
	return l.reset(ctx, id, pos)
}

// reset begins the log anew. Nothing may follow or apply meanwhile.
func (l *life) reset(ctx context.Context, id txlog.DatasetID, pos txlog.Pos) error {
	err := l.persist(ctx, logging, obstacle, func() error {
		err := l.c.Log.Reset(id, pos)
		if obstacle(err) != "" {
			l.ready = l.ready || l.whole() && !l.quarantined // as long as it takes
			l.show()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("begin the log anew at entry %d: %w", pos.Seq, err)
	}
	return nil
}

func (l *life) target() Target {
	if l.prepared != nil {
		return l.prepared
	}
	return l.c.Store
}

func (l *life) startApply(ctx context.Context) {
	t := l.target()
	_, l.progress = t.Position()
	if l.c.Log.First() == 0 {
		return
	}
	toStore := l.prepared == nil
	l.applying = start(ctx, func(ctx context.Context) error {
		return l.apply(ctx, t, func(pos txlog.Pos) {
			if toStore {
				l.board.update(func(s *Status) { s.Applied = pos })
			}
			select {
			case l.advanced <- pos:
			case <-ctx.Done():
			}
		})
	})
}

func (l *life) stopApply() {
	l.applying.stop()
	l.applying = nil
}

func (l *life) advance(pos txlog.Pos) {
	if pos != l.progress {
		l.progress, l.moved = pos, time.Now()
	}
}

func (l *life) startFollow(ctx context.Context) {
	l.rebuilding = false
	l.working = start(ctx, func(ctx context.Context) (err error) {
		l.out, err = l.follow(ctx)
		return err
	})
}

func (l *life) startRebuild(ctx context.Context) {
	l.rebuilding = true
	after := l.c.Log.Head()
	l.working = start(ctx, func(ctx context.Context) (err error) {
		l.out, err = l.rebuild(ctx, after, "")
		return err
	})
}

// end stops everything. A generation that is not current is of no use to
// anybody any more.
func (l *life) end() {
	l.working.stop()
	l.stopApply()
	l.discard(l.out.prepared)
	l.discard(l.prepared)
}

func (l *life) discard(g Generation) {
	if g == nil {
		return
	}
	if err := g.Discard(); err != nil {
		l.log.Warn("could not remove a generation; it is removed at the next start", "err", err)
	}
}

// workEnded goes on after follow or rebuild ended.
func (l *life) workEnded(ctx context.Context) error {
	if l.working.err != nil || ctx.Err() != nil {
		return l.working.err
	}
	out := l.out
	l.out = outcome{}
	switch {
	case out.halted:
		l.working = nil // the channel that says so is closed, too
	case !out.begin.IsZero():
		l.stopApply()
		if err := l.reset(ctx, out.begin, txlog.Pos{}); err != nil {
			return err
		}
		l.startApply(ctx)
		l.startFollow(ctx)
	case out.prepared != nil:
		return l.take(ctx, out)
	case out.rebuild != nil:
		return l.needRebuild(ctx, out)
	default:
		return l.resume(ctx)
	}
	return nil
}

// resume follows again after a rebuild that turned out to be unnecessary.
func (l *life) resume(ctx context.Context) error {
	if l.applying == nil {
		if err := l.reconcile(ctx); err != nil {
			return err
		}
		l.startApply(ctx)
	}
	l.board.fail(rebuilding, nil)
	l.startFollow(ctx)
	return nil
}

// needRebuild begins a rebuild; the old copy serves on unless it is wrong.
func (l *life) needRebuild(ctx context.Context, out outcome) error {
	if out.diverged && l.source.InfoHash != (chunker.InfoHash{}) {
		l.offers.distrust(l.source)
	}
	if l.prepared != nil {
		// What diverged is the copy being prepared, not the one that serves.
		out.diverged = false
		l.stopApply()
		l.discard(l.prepared)
		l.prepared = nil
	}
	if out.diverged {
		l.metrics.diverged.Inc()
		l.log.Error("this replica diverged", "applied", l.Status().Applied, "err", out.rebuild)
		reason := &DivergenceError{out.rebuild}
		l.c.Quarantine.Impose(reason)
		return l.quarantine(ctx, reason)
	}
	// An old copy that can not catch up is better than none.
	l.ready = l.ready || l.hadData
	l.log.Info("rebuilding from a snapshot", "reason", out.rebuild)
	l.board.fail(following, out.rebuild)
	l.startRebuild(ctx)
	return nil
}

// take continues with a new generation: the log begins anew at its position, unless
// it holds that.
func (l *life) take(ctx context.Context, out outcome) error {
	l.prepared, l.source, l.rung = out.prepared, out.source, out.rung
	l.moved = time.Now() // from here on it is to catch up
	l.stopApply()
	id, pos := l.prepared.Position()
	if l.diverged || !holds(l.c.Log, pos) {
		if err := l.reset(ctx, id, pos); err != nil {
			return err
		}
	}
	l.board.fail(following, nil)
	l.board.update(func(s *Status) { s.Done, s.Total = 0, 0 })
	if !l.ready {
		if err := l.activate(ctx); err != nil {
			return err
		}
	}
	l.startApply(ctx)
	l.startFollow(ctx)
	return nil
}

// activate makes the prepared generation the one that is served. Nothing may be
// applied meanwhile.
func (l *life) activate(ctx context.Context) error {
	_, pos := l.prepared.Position()
	if err := l.persist(ctx, applying, obstacle, l.prepared.Activate); err != nil {
		return fmt.Errorf("switch to the new generation at entry %d: %w", pos.Seq, err)
	}
	l.prepared = nil
	if l.quarantined {
		l.quarantined, l.diverged = false, false
		l.repaired.again = l.repairedLately()
		l.repaired.by, l.repaired.at = l.rung, time.Now()
		l.c.Quarantine.Tried(l.rung, nil)
		l.board.fail(applying, nil)
	} else if l.c.Quarantine.Reason() != nil {
		l.c.Quarantine.Tried("", nil) // damage of the old copy, that nobody here took notice of yet
	}
	l.log.Info("switched to a new generation", "seq", pos.Seq)
	l.board.update(func(s *Status) { s.Applied = pos })
	return nil
}

// applyEnded decides whether a log that can not be read is begun anew.
func (l *life) applyEnded(ctx context.Context) error {
	err := l.applying.err
	if errors.Is(err, ErrDamaged) && ctx.Err() == nil {
		return l.damaged(ctx, err)
	}
	var unreadable logError
	if ctx.Err() != nil || !errors.As(err, &unreadable) || errors.Is(err, txlog.ErrClosed) ||
		!l.mended.IsZero() && time.Since(l.mended) < mendEvery {
		return err
	}
	l.mended = time.Now()
	l.log.Error("the own log is unreadable; beginning it anew", "err", err)
	if !l.rebuilding {
		l.working.stop()
		l.out = outcome{}
	}
	l.stopApply()
	id, pos := l.target().Position()
	if err := l.reset(ctx, id, pos); err != nil {
		return err
	}
	l.startApply(ctx)
	if !l.rebuilding {
		l.startFollow(ctx)
	}
	return nil
}

// judge decides whether to serve, and whether to switch.
func (l *life) judge(ctx context.Context) error {
	if l.quarantined || l.rebuilding {
		return nil
	}
	caughtUp := l.link.caughtUp(l.progress.Seq) && !l.progress.IsZero()
	if l.prepared != nil && caughtUp {
		l.stopApply()
		if err := l.activate(ctx); err != nil {
			return err
		}
		l.startApply(ctx)
	}
	if l.prepared == nil && !l.ready {
		// It may have to wait for the disk to apply what its log holds.
		stale := l.whole() && (l.progress == l.c.Log.Head() && l.level() || time.Since(l.moved) > staleReady)
		l.ready = caughtUp || stale
	}
	return nil
}

// level reports whether this copy, which was made of a snapshot, is as far as everybody
// in reach claims to be. Where the log is signed nobody but the writer can prove more,
// and it may have died meanwhile. A copy from before a restart is not asked so: it may
// not know everybody yet.
func (l *life) level() bool {
	all, err := l.mine()
	if err != nil || len(all) == 0 || l.source.Pos.IsZero() {
		return false
	}
	return !slices.ContainsFunc(all, func(u Upstream) bool { return u.Head.Seq > l.progress.Seq })
}

// whole reports whether what is served was a state that somebody served before,
// however old: what was here at the start, or what a snapshot was made of.
func (l *life) whole() bool {
	return l.hadData || !l.source.Pos.IsZero() && l.prepared == nil
}

// show puts the state on the board.
func (l *life) show() {
	state := Serving
	switch {
	case l.quarantined && l.Status().Total > 0:
		state = Repairing
	case l.quarantined:
		state = Quarantined
	case l.rebuilding:
		state = Bootstrapping
	case !l.ready && !l.link.contacted() && l.source.Pos.IsZero(): // a rebuilt copy found the fleet
		state = Joining
	case !l.ready || l.prepared != nil:
		state = CatchingUp
	}
	var before State
	l.board.update(func(s *Status) {
		before = s.State
		s.State, s.Ready = state, l.ready && l.c.Quarantine.Reason() == nil
	})
	if before != state {
		l.log.Info("state changed", "state", state, "before", before, "ready", l.ready)
	}
}
