package edge

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

var errDown = errors.New("down")

func TestBreakerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bs := newBreakers()
		most := backoffBase
		for i := range 12 {
			began := time.Now()
			if err := bs.allow("a", began); err != nil {
				t.Fatalf("attempt %d: %v", i, err)
			}
			time.Sleep(time.Millisecond)
			bs.fail("a", began, time.Now(), errDown)

			var held *BreakerError
			if err := bs.allow("a", time.Now()); !errors.As(err, &held) || !errors.Is(err, errDown) {
				t.Fatalf("at once after attempt %d: %v", i, err)
			}
			if held.Failures != i+1 || held.Addr != "a" {
				t.Errorf("attempt %d: %+v", i, held)
			}
			if wait := time.Until(held.Until); wait < most/2 || wait > most {
				t.Errorf("after %d failures: %v, want %v to %v", i+1, wait, most/2, most)
			}
			if err := bs.allow("b", time.Now()); err != nil {
				t.Errorf("another address: %v", err)
			}
			time.Sleep(time.Until(held.Until))
			most = min(2*most, backoffMax)
		}
	})
}

func TestBreakerHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bs := newBreakers()
		began := time.Now()
		time.Sleep(time.Millisecond)
		for range 20 { // side by side
			bs.fail("a", began, time.Now(), errDown)
		}
		var held *BreakerError
		if errors.As(bs.allow("a", time.Now()), &held); held == nil || held.Failures != 1 {
			t.Fatalf("20 attempts side by side that failed: %+v", held)
		}
		time.Sleep(backoffBase)
		if err := bs.allow("a", time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := bs.allow("a", time.Now()); err == nil {
			t.Error("a second attempt, while nobody knows what becomes of the first")
		}
		bs.succeed("a")
		for range 3 {
			if err := bs.allow("a", time.Now()); err != nil {
				t.Error(err)
			}
		}
		if got := bs.count(); got != 0 {
			t.Errorf("%v addresses are remembered", got)
		}
	})
}

// TestRetryBudget: four minutes of a caller who does not wait, with 200 addresses that
// fail, and then one more minute in which they do not.
func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bs := newBreakers()
		attempts, addrs := make([]int, 200), make([]string, 200)
		for i := range addrs {
			addrs[i] = fmt.Sprint("n", i)
		}
		perSecond := make(map[int]int)
		start := time.Now()
		each := func(till time.Duration, do func(i int, addr string, began time.Time)) {
			for time.Since(start) < till {
				for i := range attempts {
					if now := time.Now(); bs.allow(addrs[i], now) == nil {
						do(i, addrs[i], now)
					}
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		each(4*time.Minute, func(i int, addr string, began time.Time) {
			attempts[i]++
			perSecond[int(time.Since(start)/time.Second)]++
			bs.fail(addr, began, time.Now().Add(1), errDown)
		})
		worst, total, least := 0, 0, attempts[0]
		for s, n := range perSecond {
			if total += n; s > 0 {
				worst = max(worst, n)
			}
		}
		for _, n := range attempts {
			least = min(least, n)
		}
		t.Logf("in the first second %d attempts, later at most %d, on average %.1f; the address that was tried least: %d times",
			perSecond[0], worst, float64(total)/240, least)
		if perSecond[0] > 200+2*retriesPerSecond || worst > 2*retriesPerSecond {
			t.Errorf("a storm")
		}
		if least < 10 {
			t.Error("an address was starved")
		}

		recovered := make(map[int]time.Duration)
		each(5*time.Minute, func(i int, addr string, _ time.Time) {
			bs.succeed(addr)
			if recovered[i] == 0 {
				recovered[i] = time.Since(start) - 4*time.Minute
			}
		})
		var last time.Duration
		for _, d := range recovered {
			last = max(last, d)
		}
		t.Logf("all %d are back after %v", len(recovered), last)
		if len(recovered) != len(attempts) || last > backoffMax+time.Second {
			t.Error("it took too long to recover")
		}
	})
}

func TestBreakersAreBounded(t *testing.T) {
	bs := newBreakers()
	now := time.Now()
	for i := range 3 * maxFailing {
		bs.fail(fmt.Sprint("n", i), now, now, errDown)
	}
	if got := bs.count(); got > maxFailing || got < maxFailing/2 {
		t.Errorf("%v addresses are remembered, want at most %d", got, maxFailing)
	}
}
