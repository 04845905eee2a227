package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/qs-peer/qs-peer/internal/heads"
	"github.com/qs-peer/qs-peer/txlog"
)

const (
	batchBytes = 4 << 20 // of frames, received or applied at a time

	connectTimeout = 10 * time.Second
	silence        = 5 * time.Second  // without a message: the upstream hangs
	staleAfter     = 5 * time.Second  // without entries though there are some: it is stale
	settle         = time.Second      // for gossip to bring offers, before a log is followed from entry 1
	healthyAfter   = 10 * time.Second // a stream that lasts so long is good even without entries
	strangersAfter = 10 * time.Second // among managers of another dataset only
	pauseBase      = 10 * time.Millisecond
	pauseMax       = 2 * time.Second
)

// outcome is why an activity ended by itself.
type outcome struct {
	halted   bool            // nothing may be applied any more
	begin    txlog.DatasetID // the own log must begin at entry 1 of this dataset
	rebuild  error           // following is impossible, because
	diverged bool            // and our own data is wrong
	prepared Generation      // a rebuild's result; nil: follow again
	source   Offer           // what it was made from
	rung     Rung            // and how
}

// localError is an error of this node, which another upstream would not mend.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// Reasons to leave an upstream.
var (
	errSilent    = errors.New("upstream says nothing")
	errStale     = errors.New("upstream is stale: others have newer entries")
	errWithholds = errors.New("upstream does not send the entries it claims to have")
	errBetter    = errors.New("a better upstream is back")
	errStranger  = errors.New("upstream streams another dataset")
)

// refusal is what an upstream answered instead of a stream.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

// follow appends an upstream's log to the own one until that is impossible.
func (r *Replica) follow(ctx context.Context) (outcome, error) {
	began := time.Now()
	var strangers time.Time // since when there are none but strangers
	var pause backoff       // between attempts, whoever is asked
	for ctx.Err() == nil {
		changed := r.c.Fleet.Changed()
		now := time.Now()
		all, err := r.mine()
		var other *otherDatasetError
		if !errors.As(err, &other) {
			strangers = time.Time{}
		} else if strangers.IsZero() {
			strangers = now
		} else if now.Sub(strangers) >= strangersAfter {
			return outcome{}, err
		}
		r.ups.forget(all)
		head := r.c.Log.Head()
		r.survey(all)
		if out, ok := r.impossible(all, head, now); ok {
			return out, nil
		}
		ranked := r.ups.rank(all, head)
		if head.IsZero() && len(ranked) > 0 {
			if wait := settle - now.Sub(began); wait > 0 {
				sleep(ctx, wait, changed)
				continue
			}
			if d := ranked[0].Dataset; r.c.Log.First() == 0 || r.c.Log.Dataset() != d {
				return outcome{begin: d}, nil
			}
		}
		u, ok, again := r.ups.choose(ranked, now)
		if !ok || pause.until.After(now) {
			if !ok && err == nil && len(ranked) == 0 {
				err = errors.New("no upstream holds the entries needed next")
			}
			if err != nil {
				r.board.fail(following, err)
			}
			wait := time.Second
			if ok {
				wait, changed = pause.until.Sub(now), nil
			} else if !again.IsZero() {
				wait = again.Sub(now)
			}
			sleep(ctx, wait, changed)
			continue
		}
		progress, err := r.stream(ctx, u)
		if progress {
			pause = backoff{}
		}
		if ctx.Err() != nil {
			break
		}
		var local localError
		if errors.As(err, &local) {
			return outcome{}, local.error
		}
		if out, ok := r.left(u, err, progress); ok {
			return out, nil
		}
		if !errors.Is(err, errBetter) {
			pause.fail(time.Now(), pauseBase, pauseMax)
		}
	}
	return outcome{}, nil
}

// impossible says whether a snapshot is needed.
func (r *Replica) impossible(all []Upstream, head txlog.Pos, now time.Time) (outcome, bool) {
	if head.IsZero() && r.offers.hopeful(r.offered(txlog.Pos{}), now) {
		return outcome{rebuild: errors.New("this node holds nothing yet")}, true
	}
	if r.ups.exhausted(all, head, now) {
		return outcome{rebuild: fmt.Errorf("no log in reach holds what follows entry %d any more", head.Seq)}, true
	}
	return outcome{}, false
}

// survey returns what gossip knows of the head, and puts what is known on the
// board.
func (r *Replica) survey(all []Upstream) head {
	best := head{r.c.Log.Head(), r.c.Log.HeadTime()}
	if u := reference(all); u.Name != "" {
		best = further(best, head{u.Head, u.HeadTime})
	}
	r.tell(best)
	return best
}

// tell puts the head on the board: what was signed, or else what is said.
func (r *Replica) tell(said head) {
	var signed time.Time
	if r.c.Heads != nil {
		var pos txlog.Pos
		pos, signed = r.c.Heads.Furthest()
		said = further(head{r.c.Log.Head(), r.c.Log.HeadTime()}, head{pos, signed})
	}
	r.board.update(func(s *Status) { s.Head, s.HeadTime, s.Signed = said.pos, said.time, signed })
}

// batch is what a stream brought.
type batch struct {
	entries []txlog.Entry
	head    head
	err     error
}

// stream follows u until something is wrong with it, and reports whether that
// brought us forward.
func (r *Replica) stream(ctx context.Context, u Upstream) (progress bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.metrics.attempts.Inc()
	after := r.c.Log.Head()
	timeout := time.AfterFunc(connectTimeout, func() { cancel(errSilent) })
	s, err := r.c.Network.Stream(ctx, u, u.Dataset, after)
	if !timeout.Stop() && err != nil {
		return false, errSilent
	}
	if err != nil {
		return false, refusal{err}
	}
	batches := make(chan batch, 1) // the next is received while one is appended
	receiving := start(ctx, func(ctx context.Context) error {
		for {
			var b batch
			b.entries, b.head.pos, b.head.time, b.err = s.Next(batchBytes)
			select {
			case batches <- b:
			case <-ctx.Done():
				return nil
			}
			if b.err != nil {
				return nil
			}
		}
	})
	defer receiving.stop()
	defer s.Close()
	if s.Dataset() != u.Dataset {
		return false, fmt.Errorf("%w: %v instead of %v", errStranger, s.Dataset(), u.Dataset)
	}
	r.log.Debug("following", "upstream", u.Name, "after", after.Seq)
	r.board.update(func(s *Status) { s.Upstream = u.Name })
	defer func() {
		r.link.lose()
		r.board.update(func(s *Status) { s.Upstream = "" })
		r.poke()
	}()
	r.link.begin()
	r.agreed(u)

	now := time.Now()
	all, _ := r.mine()
	gossiped := r.survey(all)
	w := watch{began: now, heard: now, moved: now, review: now.Add(reviewAfter()), best: u.Name}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return progress, ctx.Err()
		case b := <-batches:
			if len(b.entries) > 0 {
				if err := r.append(ctx, b.entries); err != nil {
					return progress, err
				}
				progress = true
				r.ups.good(u)
				w.moved = time.Now()
			}
			if b.err != nil {
				return progress, b.err
			}
			w.spoke, w.heard, w.head = true, time.Now(), b.head
			r.board.fail(following, nil)
		case <-tick.C:
			all, _ = r.mine()
			gossiped = r.survey(all)
			if v, ok, _ := r.ups.choose(r.ups.rank(all, r.c.Log.Head()), time.Now()); ok {
				w.prefer(v.Name, time.Now())
			}
		}
		// Gossip knows whether u is behind, u whether gossip is.
		best := further(further(head{r.c.Log.Head(), r.c.Log.HeadTime()}, gossiped), w.head)
		if w.spoke {
			r.tell(best)
			r.link.hear(best.pos)
			r.poke()
		}
		now = time.Now()
		if err := w.check(now, r.c.Log.Head(), best.pos); err != nil {
			return progress, err
		}
		if now.Sub(w.began) >= healthyAfter {
			r.ups.good(u)
			progress = true
		}
		if now.After(w.review) {
			w.review = now.Add(reviewAfter())
			if v, ok, _ := r.ups.choose(r.ups.rank(all, r.c.Log.Head()), now); ok && v.Name != u.Name {
				return progress, errBetter
			}
		}
	}
}

// reviewAfter is how long to stay with an upstream that is not the first choice.
func reviewAfter() time.Duration { return 30*time.Second + rand.N(30*time.Second) }

// prefer notes who would be the first choice now. When that has just changed, as
// when the writer is back, there is no reason to wait; the jitter keeps a fleet
// from changing over at one moment.
func (w *watch) prefer(name string, now time.Time) {
	if name == w.best {
		return
	}
	w.best = name
	if soon := now.Add(rand.N(time.Second)); soon.Before(w.review) {
		w.review = soon
	}
}

// watch tells a healthy stream from one that hangs, is stale, or withholds.
type watch struct {
	began  time.Time
	spoke  bool
	heard  time.Time // the last message
	moved  time.Time // the last entries, or when we were level with all that is known
	head   head      // as the upstream said
	review time.Time
	best   string // who was the first choice when last looked
}

func (w *watch) check(now time.Time, own, best txlog.Pos) error {
	if own.Seq >= best.Seq {
		w.moved = now
	}
	switch {
	case now.Sub(w.heard) > silence:
		return errSilent
	case now.Sub(w.moved) <= staleAfter:
		return nil
	case w.head.pos.Seq > own.Seq:
		return errWithholds
	}
	return errStale
}

// append appends to the own log. An error is local or, if the entries do not
// link, the upstream's.
func (r *Replica) append(ctx context.Context, entries []txlog.Entry) error {
	refused := false // by the disk, which may have kept a prefix
	err := r.persist(ctx, logging, obstacle, func() error {
		_, err := r.c.Log.AppendEntries(entries)
		if rest := after(entries, r.c.Log.Head()); err != nil && refused && len(rest) < len(entries) {
			_, err = r.c.Log.AppendEntries(rest)
		}
		refused = true
		return err
	})
	var diverged *txlog.DivergedError
	var limit *txlog.LimitError
	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case errors.As(err, &diverged) || errors.As(err, &limit):
		return fmt.Errorf("upstream sent entries that do not fit: %w", err)
	}
	return localError{fmt.Errorf("append to the log: %w", err)}
}

// agreed records that u holds our position.
func (r *Replica) agreed(u Upstream) {
	for name := range r.ups.accused {
		if m := r.ups.of(name); !m.blamed {
			m.blamed = true
			r.log.Error("an upstream holds another history than the others; verify or rebuild it",
				"upstream", name, "contradicted_by", u.Name)
		}
	}
	clear(r.ups.accused)
}

// left draws the consequences of why a stream of u ended.
func (r *Replica) left(u Upstream, err error, progress bool) (outcome, bool) {
	if errors.Is(err, errBetter) {
		r.log.Debug("changing over", "from", u.Name, "reason", err)
		r.metrics.failures.WithLabelValues("better").Inc()
		if !progress && r.c.Log.Head().Seq < r.Status().Head.Seq {
			// It had nothing for us. Unless that counts, going back and forth between
			// such ones and those that do not answer never ends in a rebuild.
			r.ups.of(u.Name).fail(time.Now(), upstreamBase, upstreamMax)
		}
		return outcome{}, false
	}
	m := r.ups.of(u.Name)
	var (
		fork     *heads.ForkError
		wrong    *heads.ContradictedError
		fault    *heads.FaultError
		refused  refusal
		trimmed  *txlog.TrimmedError
		diverged *txlog.DivergedError
		reason   = "broken"
		base     = upstreamBase
		most     = upstreamMax
	)
	switch {
	case errors.As(err, &fork):
		r.metrics.failures.WithLabelValues("fork").Inc()
		return outcome{halted: true}, true
	case errors.As(err, &wrong):
		r.metrics.failures.WithLabelValues("contradiction").Inc()
		r.metrics.contradictions.Inc()
		return outcome{rebuild: fmt.Errorf("%s proves: %w", u.Name, wrong), diverged: true}, true
	case errors.As(err, &fault):
		reason, base, most = string(fault.Reason), staleBase, staleMax
		if m.fault != reason {
			m.fault = reason
			r.log.Warn("an upstream sends what can not be believed; following another one", "upstream", u.Name, "reason", reason, "err", fault.Err)
		}
	case errors.Is(err, errSilent) || errors.Is(err, errStale) || errors.Is(err, errWithholds):
		reason, base, most = "stale", staleBase, staleMax
	case !errors.As(err, &refused):
	case errors.As(err, &trimmed):
		reason, m.first = "trimmed", trimmed.First
	case errors.As(err, &diverged) && diverged.Have.IsZero():
		reason = "behind"
		if u.Writer && r.ups.ahead != diverged.Want {
			r.ups.ahead = diverged.Want
			r.log.Error("the writer's log ends before this node's: acknowledged entries may be missing there", "err", err)
		}
	case errors.As(err, &diverged):
		reason, base, most = "contradiction", liarBase, liarMax
	default:
		reason = "refused"
	}
	m.fail(time.Now(), base, most)
	r.metrics.failures.WithLabelValues(reason).Inc()
	r.log.Debug("left upstream", "upstream", u.Name, "reason", reason, "err", err, "progress", progress)
	r.board.fail(following, fmt.Errorf("follow %s: %w", u.Name, err))
	if reason != "contradiction" {
		return outcome{}, false
	}
	m.failures = max(m.failures, hopelessTries)
	r.metrics.contradictions.Inc()
	r.ups.accused[u.Name] = true
	if !u.Writer && len(r.ups.accused) < 2 {
		return outcome{}, false
	}
	clear(r.ups.accused)
	return outcome{rebuild: fmt.Errorf("%s says: %w", u.Name, err), diverged: true}, true
}
