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

// ErrDamaged is wrapped by a Target's errors about what it holds: trying again is
// vain, and nothing it holds may be served.
var ErrDamaged = errors.New("the copy is damaged")

// Rung is a way to mend a copy, cheapest first.
type Rung string

// The ladder. Each is tried a few times, but the last, which is tried for ever.
const (
	// Local installs a snapshot that is on this node's disk, and applies the own log.
	Local Rung = "store_local"
	// Salvaged fetches of a snapshot what the quarantined copy does not hold.
	Salvaged Rung = "store_mint"
	// Fetched fetches a snapshot.
	Fetched Rung = "store_bootstrap"
)

var ladder = []Rung{Local, Salvaged, Fetched}

// Quarantine is where it is written down that what the store holds must not be
// served, so that a restart does not serve it either. Its methods may be called
// concurrently.
type Quarantine interface {
	// Reason returns why, nil if nothing is known against it.
	Reason() error
	// Imposed returns a channel that is closed when there is a reason.
	Imposed() <-chan struct{}
	// Impose writes down a reason that the replica found itself.
	Impose(reason error)
	// Tried writes down how mending it by a rung went. After a nil error the store
	// holds another copy, which nothing is known against. With no rung nothing was to
	// be mended, but the store holds another copy now: the reason is gone if it was
	// about the one before.
	Tried(by Rung, err error)
}

// Held is a snapshot on this node's own disk, whole, verified and signed by enough
// managers.
type Held struct {
	Dataset  txlog.DatasetID
	Pos      txlog.Pos
	InfoHash chunker.InfoHash
	Size     int64
	File     string
}

func (h Held) offer() Offer {
	return Offer{Dataset: h.Dataset, Pos: h.Pos, InfoHash: h.InfoHash, Size: h.Size}
}

// DivergenceError is the reason of a quarantine that the own log is no help against:
// it is of another history than the fleet's.
type DivergenceError struct{ Err error }

func (e *DivergenceError) Error() string { return e.Err.Error() }
func (e *DivergenceError) Unwrap() error { return e.Err }

// noQuarantine is of a replica that is told of no damage.
type noQuarantine struct{}

func (noQuarantine) Reason() error            { return nil }
func (noQuarantine) Imposed() <-chan struct{} { return nil }
func (noQuarantine) Impose(error)             {}
func (noQuarantine) Tried(Rung, error)        {}

const (
	heldTries = 3 // of each snapshot on the disk
	heldBase  = 250 * time.Millisecond
	heldMax   = 2 * time.Second
	// relapseWithin is how soon after a repair a divergence, or the second damage, means
	// that the same rung would not help. The first is the disk's as likely as not.
	relapseWithin = 10 * time.Minute
)

// imposed is nil while the replica is in quarantine already.
func (l *life) imposed() <-chan struct{} {
	if l.quarantined {
		return nil
	}
	return l.c.Quarantine.Imposed()
}

// quarantine takes the copy that is served out of service.
func (l *life) quarantine(ctx context.Context, reason error) error {
	var diverged *DivergenceError
	l.quarantined, l.ready = true, false
	l.diverged = errors.As(reason, &diverged)
	l.show()
	l.log.Error("out of service until this replica is repaired", "applied", l.Status().Applied, "err", reason)
	if l.prepared != nil { // the next copy is there already
		l.stopApply()
		if err := l.activate(ctx); err != nil {
			return err
		}
		l.startApply(ctx)
		return nil
	}
	l.board.fail(applying, reason)
	l.stopApply()
	l.working.stop() // a fetch is continued where it was
	out := l.out
	l.out = outcome{}
	if out.prepared != nil {
		return l.take(ctx, out)
	}
	l.startRepair(ctx)
	return nil
}

func (l *life) repairedLately() bool {
	return l.repaired.by != "" && time.Since(l.repaired.at) < relapseWithin
}

// startRepair goes up the ladder, from beyond where repairs did not last.
func (l *life) startRepair(ctx context.Context) {
	from := Local
	if l.repairedLately() && (l.diverged || l.repaired.again) {
		i := slices.Index(ladder, l.repaired.by)
		from = ladder[min(i+1, len(ladder)-1)]
	}
	l.rebuilding = true
	own := l.c.Log
	if l.diverged {
		own = nil
	}
	l.working = start(ctx, func(ctx context.Context) (err error) {
		l.out, err = l.repair(ctx, from, own)
		return err
	})
}

// repair makes a new copy. The own log is nil if it is not to be believed.
func (r *Replica) repair(ctx context.Context, from Rung, own Log) (outcome, error) {
	if from == Local {
		if out := r.repairLocally(ctx, own); out.prepared != nil || ctx.Err() != nil {
			return out, nil
		}
		from = Salvaged
	}
	return r.rebuild(ctx, txlog.Pos{}, from)
}

// repairLocally makes it of what is on this node's disk, if that will do.
func (r *Replica) repairLocally(ctx context.Context, own Log) outcome {
	for try := 0; ; try++ {
		held, err := r.c.Network.Held(ctx)
		held = slices.DeleteFunc(held, func(h Held) bool { return !r.continues(own, h) })
		if err == nil && len(held) == 0 {
			err = errors.New("no snapshot on this node's disk that a log in reach continues")
			try = heldTries
		}
		for _, h := range held {
			var g Generation
			if g, err = r.reinstall(ctx, h); err == nil {
				return outcome{prepared: g, source: h.offer(), rung: Local}
			}
			if ctx.Err() != nil {
				return outcome{}
			}
			r.log.Warn("could not repair from a snapshot on the disk", "seq", h.Pos.Seq, "err", err)
		}
		if ctx.Err() != nil {
			return outcome{}
		}
		r.c.Quarantine.Tried(Local, err)
		if try+1 >= heldTries {
			return outcome{}
		}
		var b backoff
		b.failures = try
		b.fail(time.Now(), heldBase, heldMax)
		if sleep(ctx, time.Until(b.until), nil) != nil {
			return outcome{}
		}
	}
}

// continues reports whether the own log, or else one in reach, continues a snapshot
// that did not lead astray before.
func (r *Replica) continues(own Log, h Held) bool {
	if id := r.dataset(); !id.IsZero() && id != h.Dataset || r.offers.of(h.offer()).until.After(time.Now()) {
		return false
	}
	if own != nil && holds(own, h.Pos) {
		return true
	}
	ups, _ := r.mine()
	return slices.ContainsFunc(ups, func(u Upstream) bool {
		return u.Dataset == h.Dataset && u.First > 0 && u.First <= h.Pos.Seq+1
	})
}

// holds reports whether a log has what follows pos.
func holds(log Log, pos txlog.Pos) bool {
	entries, err := log.Read(pos)
	return err == nil && entries.Close() == nil
}

func (r *Replica) reinstall(ctx context.Context, h Held) (Generation, error) {
	r.log.Info("repairing from a snapshot on the disk", "seq", h.Pos.Seq, "infohash", h.InfoHash, "bytes", h.Size)
	r.board.update(func(s *Status) { s.Rebuilds++; s.Done, s.Total = 0, h.Size })
	r.poke()
	g, err := r.install(ctx, h.File, h.Dataset, h.Pos)
	if err != nil {
		r.board.update(func(s *Status) { s.Done, s.Total = 0, 0 })
		r.poke()
	}
	return g, err
}

// install makes a generation of a snapshot's file, which must be what it is said
// to be.
func (r *Replica) install(ctx context.Context, file string, id txlog.DatasetID, pos txlog.Pos) (Generation, error) {
	g, err := r.c.Store.Install(ctx, file)
	if err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	if gotID, got := g.Position(); gotID != id || got != pos {
		err := fmt.Errorf("the snapshot is of dataset %v at %v instead of %v at %v", gotID, got, id, pos)
		return nil, errors.Join(err, g.Discard())
	}
	return g, nil
}

// damaged draws the consequences of a copy that takes no entries any more.
func (l *life) damaged(ctx context.Context, err error) error {
	if l.prepared == nil {
		l.c.Quarantine.Impose(err)
		return l.quarantine(ctx, err)
	}
	l.log.Error("the copy being prepared is damaged; making another one", "err", err)
	l.working.stop()
	l.out = outcome{}
	l.offers.of(l.source).fail(time.Now(), offerBase, offerMax)
	return l.needRebuild(ctx, outcome{rebuild: err})
}
