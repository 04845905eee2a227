package edge

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// backoffBase and backoffMax bound the time between two attempts at an address
	// that fails: it doubles. Of each, between half and all is waited, by chance.
	backoffBase = 250 * time.Millisecond
	backoffMax  = 10 * time.Second
	// retriesPerSecond bounds the attempts at all failing addresses together, so that
	// a node that everybody refuses does not storm them. After a pause as many may be
	// made at once.
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
// (Nygard, Release It!), with capped exponential back-off and jitter. Only
// addresses that fail take room.
//
// closed: not in the map; any number of attempts. open: until a time, none.
// half-open: after that, one attempt per back-off, until one succeeds.
//
// Besides, each retry takes its turn, turns being a tenth of a second apart, whatever
// the address. A success ends that: things get better, and the others are to be
// found soon.
type breakers struct {
	mu      sync.Mutex // guards what follows
	failing map[string]*breaker
	last    time.Time // the last turn that was given
	era     int       // turns of former ones need not be waited for
}

type breaker struct {
	failures int
	failed   time.Time // the last time
	until    time.Time // no attempts before
	turn     time.Time // nor before this, in the same era
	era      int
	err      error
}

func newBreakers() *breakers { return &breakers{failing: make(map[string]*breaker)} }

// allow returns a *BreakerError if there must be no attempt now.
func (bs *breakers) allow(addr string, now time.Time) error {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.failing[addr]
	if b == nil {
		return nil
	}
	until := b.until
	if b.era == bs.era && b.turn.After(until) {
		until = b.turn
	}
	if now.Before(until) {
		return &BreakerError{Addr: addr, Failures: b.failures, Until: until, Err: b.err}
	}
	b.until = now.Add(b.pause()) // others wait for what becomes of this one
	bs.giveTurn(b, now)
	return nil
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
		bs.giveTurn(b, now)
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
		if len(bs.failing) < maxFailing*3/4 { // so that it is not done each time
			return
		}
		delete(bs.failing, addr)
	}
}

// giveTurn says when b may be tried again with regard to others. bs.mu is held.
func (bs *breakers) giveTurn(b *breaker, now time.Time) {
	if unused := now.Add(-time.Second); bs.last.Before(unused) {
		bs.last = unused
	}
	bs.last = bs.last.Add(time.Second / retriesPerSecond)
	b.turn, b.era = bs.last, bs.era
}

// succeed closes an address's breaker.
func (bs *breakers) succeed(addr string) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if bs.failing[addr] == nil {
		return
	}
	delete(bs.failing, addr)
	bs.era++
	bs.last = time.Time{}
}

// forgive lets an address be tried at once, before its turn, with the back-off as
// after one failure.
func (bs *breakers) forgive(addr string, now time.Time) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if b := bs.failing[addr]; b != nil {
		b.failures, b.until, b.turn = 1, now, now
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
