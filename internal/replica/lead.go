package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// lead is the writer's life: its log is the truth, and the store follows it.
func (r *Replica) lead(ctx context.Context) error {
	if err := r.checkLog(); err != nil {
		return err
	}
	halt, halted := r.halt()
	if halt() == nil && r.c.Quarantine.Reason() == nil {
		applying := start(ctx, r.leadOn)
		defer applying.stop()
		defer start(ctx, r.serveStuck).stop()
		select {
		case <-applying.ended():
			if !errors.Is(applying.err, ErrDamaged) {
				return applying.err
			}
			r.c.Quarantine.Impose(applying.err)
		case <-halted:
		case <-r.c.Quarantine.Imposed():
		}
		applying.stop()
	}
	// Nobody but an operator mends a writer: what it wrote may be nowhere else.
	_, pos := r.c.Store.Position()
	reason := r.c.Quarantine.Reason()
	r.stand(ctx, cmp.Or(reason, halt()), reason == nil && !pos.IsZero())
	return nil
}

// serveStuck has a writer that was restarted serve what it has applied though it
// can not apply the rest of its log for now: that holds all that it acknowledged.
func (r *Replica) serveStuck(ctx context.Context) error {
	for sleep(ctx, time.Second, nil) == nil {
		_, pos := r.c.Store.Position()
		if st := r.Status(); r.Stuck() != nil && !st.Ready && !pos.IsZero() {
			r.board.update(func(s *Status) { s.Applied, s.Ready = pos, true })
		}
	}
	return nil
}

// leadOn applies the log, for ever.
func (r *Replica) leadOn(ctx context.Context) error {
	goal := r.c.Log.Head().Seq
	return r.apply(ctx, r.c.Store, func(pos txlog.Pos) {
		top, at := r.c.Log.Head(), r.c.Log.HeadTime()
		ready := r.Status().Ready
		r.board.update(func(s *Status) {
			s.Applied, s.Head, s.HeadTime = pos, top, at
			s.State, s.Ready = CatchingUp, ready || pos.Seq >= goal
			if s.Ready {
				s.State = Serving
			}
		})
		if !ready && pos.Seq >= goal {
			r.log.Info("serving", "applied", pos.Seq)
		}
	})
}

// checkLog makes sure that the writer's log continues the store.
func (r *Replica) checkLog() error {
	id, pos := r.c.Store.Position()
	if own := r.c.Log.Dataset(); !pos.IsZero() && own != id {
		return fmt.Errorf("the store holds dataset %v and the log dataset %v: they do not belong together", id, own)
	}
	entries, err := r.c.Log.Read(pos)
	if err == nil {
		return entries.Close()
	}
	var diverged *txlog.DivergedError
	var trimmed *txlog.TrimmedError
	switch {
	case errors.As(err, &diverged) && diverged.Have.IsZero():
		return fmt.Errorf("acknowledged entries are missing from the log: the log ends at %v, but %v was applied; "+
			"restore the log, or let this node follow another manager", r.c.Log.Head(), pos)
	case errors.As(err, &diverged):
		return fmt.Errorf("the store does not fit the log: %w", err)
	case errors.As(err, &trimmed):
		return fmt.Errorf("the store lags too far behind the log: %w; rebuild it from a snapshot", err)
	}
	return fmt.Errorf("read the log: %w", err)
}
