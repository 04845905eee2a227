package peer

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// ratePatience is how long a request waits for its turn.
	ratePatience = time.Second
	// maxRates bounds for how many holders rates are kept: the ones seen last.
	maxRates = 4096
)

// rates holds each caller to so many requests per second.
type rates struct {
	perSecond int // or NoLimit

	mu     sync.Mutex // guards what follows
	by     map[string]*list.Element
	recent *list.List // of *holderRate, the one seen last in front
}

type holderRate struct {
	holder  string
	limiter *rate.Limiter
}

func newRates(perSecond int) *rates {
	return &rates{perSecond: perSecond, by: map[string]*list.Element{}, recent: list.New()}
}

// wait returns when the caller may go on: at once, or later if it asks for too much, or
// a *rateError if that would be later than ratePatience. A second's worth may come at
// once. Callers on this machine and those whom nobody knows are not held up.
func (r *rates) wait(ctx context.Context, c caller) error {
	if r.perSecond == NoLimit || c.id.IsZero() {
		return nil
	}
	turn := r.limiter(c.holder()).Reserve()
	delay := turn.Delay()
	if delay > ratePatience {
		turn.Cancel()
		return &rateError{c.id.Name, r.perSecond}
	}
	if delay > 0 && !pause(ctx, delay) {
		return ctx.Err()
	}
	return nil
}

func (r *rates) limiter(holder string) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.by[holder]; ok {
		r.recent.MoveToFront(e)
		return e.Value.(*holderRate).limiter
	}
	if r.recent.Len() == maxRates {
		last := r.recent.Back()
		delete(r.by, r.recent.Remove(last).(*holderRate).holder)
	}
	h := &holderRate{holder, rate.NewLimiter(rate.Limit(r.perSecond), r.perSecond)}
	r.by[holder] = r.recent.PushFront(h)
	return h.limiter
}

// rateError refuses what comes too fast.
type rateError struct {
	name      string
	perSecond int
}

func (e *rateError) Error() string {
	return fmt.Sprintf("%s sends more than %d requests per second (--client-rate): slow down, and try again", e.name, e.perSecond)
}
