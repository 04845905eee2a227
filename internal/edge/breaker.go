package edge

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// backoffBase and backoffMax bound the time between two attempts at an address
	// that fails: it doubles. Of each, between half and all is waited, by chance.
	backoffBase = 250 * time.Millisecond
	backoffMax  = 10 * time.Second
	// retriesPerSecond bounds the attempts at all failing addresses together, so that
	// a node that everybody refuses does not storm them.
	retriesPerSecond = 10
	// maxFailing bounds the addresses that are remembered.
	maxFailing = 4096
)

// A BreakerError says that no attempt was made, because earlier ones failed.
type BreakerError struct {
	Addr     string
	Failures int       // in a row
	Until    time.Time // when it will be tried again, at the earliest
	Err      error     // of the last attempt
}

func (e *BreakerError) Error() string {
	return fmt.Sprintf("not tried for another %s, after %d failures: %v",
		max(0, time.Until(e.Until)).Round(time.Millisecond), e.Failures, e.Err)
}

// Unwrap returns the last attempt's error.
func (e *BreakerError) Unwrap() error { return e.Err }

// breakers keep a caller from storming addresses that fail: a circuit-breaker for each
// (Nygard, Release It!), with capped exponential back-off and jitter, and one
// budget of retries for all. Only addresses that fail take room.
//
// closed: not in the map; any number of attempts. open: until a time, none.
// half-open: after that, one attempt per back-off, until one succeeds.
type breakers struct {
	mu      sync.Mutex // guards what follows
	failing map[string]*breaker
	budget  *rate.Limiter
}

type breaker struct {
	failures int
	failed   time.Time // the last time
	until    time.Time // no attempts before
	err      error
}

func newBreakers() *breakers {
	return &breakers{failing: make(map[string]*breaker), budget: rate.NewLimiter(retriesPerSecond, retriesPerSecond)}
}

// allow returns a *BreakerError if there must be no attempt now.
func (bs *breakers) allow(addr string, now time.Time) error {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.failing[addr]
	if b == nil {
		return nil
	}
	if !now.Before(b.until) {
		if bs.budget.AllowN(now, 1) {
			b.until = now.Add(b.pause()) // others wait for what becomes of this one
			return nil
		}
		b.until = now.Add(jitter(time.Second))
	}
	return &BreakerError{Addr: addr, Failures: b.failures, Until: b.until, Err: b.err}
}

// fail notes that the attempt that began then failed now. Of attempts that ran side by
// side only one counts.
func (bs *breakers) fail(addr string, began, now time.Time, err error) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.failing[addr]
	if b == nil {
		bs.makeRoom(now)
		b = &breaker{}
		bs.failing[addr] = b
	}
	b.err = err
	if b.failures > 0 && !began.After(b.failed) {
		return
	}
	b.failures++
	b.failed = now
	b.until = now.Add(b.pause())
}

// makeRoom forgets addresses that may be tried again, or else any. bs.mu is held.
func (bs *breakers) makeRoom(now time.Time) {
	if len(bs.failing) < maxFailing {
		return
	}
	for addr, b := range bs.failing {
		if now.Sub(b.until) > backoffMax {
			delete(bs.failing, addr)
		}
	}
	for addr := range bs.failing {
		if len(bs.failing) < maxFailing {
			return
		}
		delete(bs.failing, addr)
	}
}

// succeed closes an address's breaker.
func (bs *breakers) succeed(addr string) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	delete(bs.failing, addr)
}

// forgive lets an address be tried at once, with the back-off as after one failure.
func (bs *breakers) forgive(addr string, now time.Time) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if b := bs.failing[addr]; b != nil {
		b.failures, b.until = 1, now
	}
}

func (bs *breakers) count() float64 {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	return float64(len(bs.failing))
}

func (b *breaker) pause() time.Duration {
	d := backoffMax
	if n := b.failures - 1; n < 16 {
		d = min(d, backoffBase<<max(0, n))
	}
	return jitter(d)
}

// jitter returns between half and all of d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
