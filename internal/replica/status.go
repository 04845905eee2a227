package replica

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
	"time"
)

// tellInterval is the least time between two reports of mere progress.
const tellInterval = 100 * time.Millisecond

// board is what others see of a replica: its status, who waits for a position,
// and what OnChange was not told yet.
type board struct {
	signal chan struct{} // full when there is something to tell

	mu      sync.Mutex // guards what follows
	status  Status
	errs    [activities]string
	stuck   error // why nothing can be applied for now
	changed bool  // since the last telling
	urgent  bool
	stopped chan struct{} // closed when nothing is applied any more
	waiting waiters
}

// activity is a source of errors that are over when it goes on.
type activity int

const (
	applying activity = iota
	logging
	rebuilding
	following
	activities
)

func newBoard(s Status) *board {
	return &board{status: s, signal: make(chan struct{}, 1), stopped: make(chan struct{})}
}

func (b *board) get() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

func (b *board) update(change func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.updateLocked(change)
}

func (b *board) updateLocked(change func(*Status)) {
	old := b.status
	change(&b.status)
	if b.status == old {
		return
	}
	b.changed = true
	b.urgent = b.urgent || b.status.State != old.State || b.status.Ready != old.Ready
	for len(b.waiting) > 0 && b.waiting[0].seq <= b.status.Applied.Seq {
		close(heap.Pop(&b.waiting).(*waiter).done)
	}
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

// fail says what is wrong with an activity; nil: it goes on.
func (b *board) fail(a activity, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failLocked(a, err)
}

func (b *board) failLocked(a activity, err error) {
	b.errs[a] = ""
	if err != nil {
		b.errs[a] = err.Error()
	}
	b.updateLocked(func(s *Status) {
		s.Err = ""
		for _, text := range b.errs {
			if s.Err == "" {
				s.Err = text
			}
		}
	})
}

// stick is fail for what waits for the disk. Nobody waits meanwhile for what is to
// be applied: that may take days.
func (b *board) stick(a activity, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failLocked(a, err)
	if a != applying {
		return
	}
	b.stuck = nil
	if err == nil {
		return
	}
	b.stuck = fmt.Errorf("%w: %w", ErrStuck, err)
	for len(b.waiting) > 0 {
		w := heap.Pop(&b.waiting).(*waiter)
		w.err = b.stuck
		close(w.done)
	}
}

// hindrance returns why nothing can be applied for now, nil if all is well.
func (b *board) hindrance() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stuck
}

// tell reports changes until ctx ends, and then the last one.
func (b *board) tell(ctx context.Context, onChange func(Status)) {
	if onChange == nil {
		return
	}
	for {
		select {
		case <-b.signal:
		case <-ctx.Done():
		}
		s, changed, urgent := b.take()
		if changed {
			onChange(s)
		}
		if ctx.Err() != nil {
			return
		}
		if !urgent {
			b.pause(ctx)
		}
	}
}

// take returns the status and marks it as told.
func (b *board) take() (s Status, changed, urgent bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed, urgent = b.changed, b.urgent
	b.changed, b.urgent = false, false
	return b.status, changed, urgent
}

// pause gathers mere progress for a while; an urgent change ends it.
func (b *board) pause(ctx context.Context) {
	timer := time.NewTimer(tellInterval)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			b.resignal()
			return
		case <-ctx.Done():
			return
		case <-b.signal:
			b.mu.Lock()
			urgent := b.urgent
			b.mu.Unlock()
			if urgent {
				b.resignal()
				return
			}
		}
	}
}

// resignal restores a signal that pause swallowed.
func (b *board) resignal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed {
		select {
		case b.signal <- struct{}{}:
		default:
		}
	}
}

// release lets everybody go who waits, from now on. It may be called twice.
func (b *board) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.stopped:
	default:
		close(b.stopped)
	}
}

func (b *board) wait(ctx context.Context, seq uint64) error {
	b.mu.Lock()
	if b.status.Applied.Seq >= seq {
		b.mu.Unlock()
		return nil
	}
	if err := b.stuck; err != nil {
		b.mu.Unlock()
		return err
	}
	w := &waiter{seq: seq, done: make(chan struct{})}
	heap.Push(&b.waiting, w)
	b.mu.Unlock()
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		b.forget(w)
		return ctx.Err()
	case <-b.stopped:
		b.forget(w)
		return ErrStopped
	}
}

func (b *board) forget(w *waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.index >= 0 {
		heap.Remove(&b.waiting, w.index)
	}
}

// waiter waits for a seq to be applied.
type waiter struct {
	seq   uint64
	done  chan struct{}
	err   error // once done is closed
	index int   // in the heap; -1 once popped
}

// waiters is a heap, the least seq first.
type waiters []*waiter

func (w waiters) Len() int           { return len(w) }
func (w waiters) Less(i, j int) bool { return w[i].seq < w[j].seq }
func (w waiters) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].index, w[j].index = i, j
}

func (w *waiters) Push(x any) {
	x.(*waiter).index = len(*w)
	*w = append(*w, x.(*waiter))
}

func (w *waiters) Pop() any {
	last := len(*w) - 1
	x := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	x.index = -1
	return x
}
