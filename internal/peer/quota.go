package peer

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// quota is something of which all callers together hold at most max, and none of
// them more than share.
type quota struct {
	what       string // for errors
	max, share int64

	mu    sync.Mutex // guards what follows
	held  int64
	by    map[string]int64 // holders that hold some
	freed chan struct{}    // closed, and made anew, when somebody gave some back
}

func newQuota(what string, max, share int64) *quota {
	return &quota{what: what, max: max, share: min(share, max), by: map[string]int64{}, freed: make(chan struct{})}
}

// try takes n for a holder if that is there. The holder "" stands for many, and may
// take everything.
func (q *quota) try(holder string, n int64) bool {
	ok, _ := q.attempt(holder, n)
	return ok
}

func (q *quota) attempt(holder string, n int64) (ok bool, freed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.held+n > q.max || holder != "" && q.by[holder]+n > q.share {
		return false, q.freed
	}
	q.held += n
	q.by[holder] += n
	return true, nil
}

// take is try that waits, as long as patience. It returns a *busyError, or ctx's error.
func (q *quota) take(ctx context.Context, holder string, n int64, patience time.Duration) error {
	ok, freed := q.attempt(holder, n)
	if ok {
		return nil
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	for {
		select {
		case <-freed:
		case <-t.C:
			return &busyError{q.what}
		case <-ctx.Done():
			return ctx.Err()
		}
		if ok, freed = q.attempt(holder, n); ok {
			return nil
		}
	}
}

func (q *quota) give(holder string, n int64) {
	if n == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held -= n
	if q.by[holder] -= n; q.by[holder] == 0 {
		delete(q.by, holder)
	}
	close(q.freed)
	q.freed = make(chan struct{})
}

// used returns what is held, for the metric.
func (q *quota) used() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.held
}

// busyError refuses what there was no room for.
type busyError struct{ what string }

func (e *busyError) Error() string {
	return fmt.Sprintf("%s are all in use: try again", e.what)
}
