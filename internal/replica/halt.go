package replica

import "context"

// halt returns what says why nothing may be applied any more, and a channel that
// is closed when it does.
func (r *Replica) halt() (why func() error, halted <-chan struct{}) {
	if r.c.Heads == nil {
		return func() error { return nil }, nil
	}
	return r.c.Heads.Halt, r.c.Heads.Halted()
}

// stand serves what there is until ctx ends, and applies nothing: an operator has
// to decide what is right.
func (r *Replica) stand(ctx context.Context, halt error, ready bool) {
	_, pos := r.c.Store.Position()
	r.board.fail(following, halt)
	r.board.update(func(s *Status) { s.Applied, s.State, s.Ready = pos, Quarantined, ready })
	r.board.release()
	r.log.Error("nothing is applied any more", "applied", pos.Seq, "ready", ready, "err", halt)
	if ready {
		select {
		case <-r.c.Quarantine.Imposed():
			reason := r.c.Quarantine.Reason()
			r.board.fail(applying, reason)
			r.board.update(func(s *Status) { s.Ready = false })
			r.log.Error("nothing is served any more", "err", reason)
		case <-ctx.Done():
		}
	}
	<-ctx.Done()
}
