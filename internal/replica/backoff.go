package replica

import (
	"context"
	"math/rand/v2"
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
