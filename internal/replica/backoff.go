package replica

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"time"
)

// backoff says how long to wait after failures: exponential, with full jitter.
type backoff struct {
	failures int
	since    time.Time // the first of them
	until    time.Time
}

func (b *backoff) fail(now time.Time, base, most time.Duration) {
	d := most
	if b.failures < 16 {
		d = min(most, base<<b.failures)
	}
	if b.failures == 0 {
		b.since = now
	}
	b.failures++
	b.until = now.Add(rand.N(d) + 1)
}

// hopeless reports whether it failed several times in a row and for a while, so
// that something else should be tried.
func (b *backoff) hopeless(now time.Time, after time.Duration) bool {
	return b.failures >= hopelessTries && now.Sub(b.since) >= after
}

const hopelessTries = 3

// sleep waits for d, for the channel, or for the end of ctx, which it reports.
func sleep(ctx context.Context, d time.Duration, changed <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// Waiting for room on the disk.
const (
	diskBase = 250 * time.Millisecond
	diskMax  = 10 * time.Second
)

// whenRoom runs do until its error is another than a full disk.
func (r *Replica) whenRoom(ctx context.Context, a activity, do func() error) error {
	var b backoff
	for {
		err := do()
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			if err == nil && b.failures > 0 {
				r.log.Info("there is room on the disk again")
				r.board.fail(a, nil)
			}
			return err
		}
		if b.failures == 0 {
			r.log.Error("the disk is full; waiting for room", "err", err)
			r.board.fail(a, err)
		}
		b.fail(time.Now(), diskBase, diskMax)
		if err := sleep(ctx, time.Until(b.until), nil); err != nil {
			return err
		}
	}
}
