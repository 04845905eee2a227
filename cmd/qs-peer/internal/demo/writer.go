package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
)

// writeInterval is the pace of the writes that arrive during the demo.
const writeInterval = 10 * time.Millisecond

// writer puts one pair after another until it is told to finish. While the
// manager is away it tries again, as any client would.
type writer struct {
	cancel context.CancelFunc
	moved  chan *client.Client
	ask    chan struct{} // closed: finish
	done   chan struct{}

	result Writes // valid once done is closed
	err    error
}

func startWriter(ctx context.Context, c *client.Client) *writer {
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{cancel: cancel, moved: make(chan *client.Client), ask: make(chan struct{}), done: make(chan struct{})}
	go w.run(ctx, c)
	return w
}

func (w *writer) run(ctx context.Context, c *client.Client) {
	defer close(w.done)
	defer func() { c.Close() }()
	tick := time.NewTicker(writeInterval)
	defer tick.Stop()
	finish := w.ask
	for n := 1; ; {
		key := fmt.Sprintf("live/%06d", n)
		_, err := c.Put(ctx, []byte(key), []byte(time.Now().Format(time.RFC3339Nano)))
		w.err = err
		if err == nil {
			w.result.Acknowledged++
			n++
			if finish == nil {
				return
			}
		} else {
			w.result.Retries++
		}
		select {
		case <-tick.C:
		case moved := <-w.moved:
			c.Close()
			c = moved
		case <-finish:
			finish = nil // one more, which must succeed
		case <-ctx.Done():
			w.err = ctx.Err()
			return
		}
	}
}

// moveTo has the writer go on at another address.
func (w *writer) moveTo(c *client.Client) {
	select {
	case w.moved <- c:
	case <-w.done:
		c.Close()
	}
}

// finish ends the writes, the last of which is acknowledged, and says how many
// there were.
func (w *writer) finish(ctx context.Context) (Writes, error) {
	defer w.stop()
	close(w.ask)
	select {
	case <-w.done:
		return w.result, w.err
	case <-ctx.Done():
		return Writes{}, ctx.Err()
	case <-time.After(stepLimit):
		w.stop()
		return Writes{}, fmt.Errorf("the manager takes no writes: %w", w.err)
	}
}

// stop ends the writes at once. It may be called twice.
func (w *writer) stop() {
	w.cancel()
	<-w.done
}
