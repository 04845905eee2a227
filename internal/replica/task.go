package replica

import "context"

// task is a goroutine with an owner: it ends when it is stopped or by itself.
type task struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done is closed
}

func start(ctx context.Context, run func(context.Context) error) *task {
	ctx, cancel := context.WithCancel(ctx)
	t := &task{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		t.err = run(ctx)
	}()
	return t
}

// ended returns a channel that is closed when the task ended; a nil task never
// ends.
func (t *task) ended() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.done
}

// stop ends the task and waits for it.
func (t *task) stop() {
	if t != nil {
		t.cancel()
		<-t.done
	}
}
