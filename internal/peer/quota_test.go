package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

func TestQuota(t *testing.T) {
	q := newQuota("places", 10, 6)
	for _, step := range []struct {
		name, holder string
		n            int64 // taken; given back if negative
		want         bool
	}{
		{"more than a share", "a", 7, false},
		{"a share", "a", 6, true},
		{"more than that", "a", 1, false},
		{"more than there is", "b", 5, false},
		{"the rest", "b", 4, true},
		{"nothing is left", "c", 1, false},
		{"some comes back", "a", -3, true},
		{"for others", "c", 3, true},
		{"b gives all", "b", -4, true},
		{"without a name there is no share", "", 4, true},
		{"but what there is", "", 1, false},
	} {
		if step.n < 0 {
			q.give(step.holder, -step.n)
			continue
		}
		if got := q.try(step.holder, step.n); got != step.want {
			t.Errorf("%s: %v", step.name, got)
		}
	}
	if n := q.used(); n != 10 {
		t.Errorf("%d are used", n)
	}
}

func TestQuotaWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuota("places", 1, 1)
		q.try("a", 1)
		begin := time.Now()
		if err := q.take(t.Context(), "b", 1, time.Second); !is[*busyError](err) || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := q.take(ctx, "b", 1, time.Second); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		time.AfterFunc(time.Second/2, func() { q.give("a", 1) })
		begin = time.Now()
		if err := q.take(t.Context(), "b", 1, time.Second); err != nil || time.Since(begin) != time.Second/2 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// TestLease takes and gives at random: the quota never counts more than is there, and in
// the end nothing.
func TestLease(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	q := newQuota("memory", 1<<20, 1<<19)
	var wg sync.WaitGroup
	for i := range 8 {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			l := &lease{quota: q, holder: fmt.Sprint(i % 3), patience: time.Millisecond}
			for range 500 {
				if n := rnd.Int64N(64 << 10); rnd.IntN(2) == 0 {
					l.give(min(n, l.n))
				} else {
					_ = l.take(t.Context(), n)
				}
				if used := q.used(); used < 0 || used > 1<<20 {
					t.Errorf("%d are used", used)
				}
			}
			l.close()
		})
	}
	wg.Wait()
	if n := q.used(); n != 0 || len(q.by) != 0 {
		t.Errorf("%d are used at the end, by %v", n, q.by)
	}
}

// TestLeaseIsFreeAtFirst lets small requests through when others hold everything.
func TestLeaseIsFreeAtFirst(t *testing.T) {
	q := newQuota("memory", 1<<20, 1<<20)
	q.try("greedy", 1<<20)
	l := &lease{quota: q, holder: "modest"}
	if !l.try(freeMemory) {
		t.Error("refused what is free")
	}
	if l.try(1) {
		t.Error("got what is not there")
	}
	l.close()
}

func TestLeaseWhileShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuota("memory", 1<<20, 1<<20)
		q.try("greedy", 1<<20)
		time.AfterFunc(time.Second, func() { q.give("greedy", 1<<19) })
		l := &lease{quota: q, holder: "modest", patience: memoryPatience}
		runs := 0
		err := l.whileShort(t.Context(), func() error {
			runs++
			if err := l.reserve(100_000); err != nil {
				return err
			}
			return l.reserve(10_000)
		})
		if err != nil || l.n != 110_000 {
			t.Errorf("%v, holds %d after %d runs", err, l.n, runs)
		}
		why := errors.New("why")
		if err := l.whileShort(t.Context(), func() error { return errors.Join(l.reserve(1000), why) }); !errors.Is(err, why) || l.n != 110_000 {
			t.Errorf("%v, holds %d", err, l.n)
		}
		l.close()
		if n := q.used(); n != 1<<19 {
			t.Errorf("%d are used", n)
		}
	})
}

func TestGather(t *testing.T) {
	text := strings.Repeat("0123456789", 10_000)
	for _, tt := range []struct {
		name string
		r    io.Reader
		size int64
		want int
		err  error
	}{
		{"all", strings.NewReader(text), 100_000, 100_000, nil},
		{"in halves", iotest.HalfReader(strings.NewReader(text)), 100_000, 100_000, nil},
		{"with its end", iotest.DataErrReader(strings.NewReader(text)), 100_000, 100_000, nil},
		{"a part", strings.NewReader(text), 10, 10, nil},
		{"nothing", strings.NewReader(text), 0, 0, nil},
		{"ends early", strings.NewReader(text), 200_000, 100_000, io.EOF},
		{"more than there is memory for", strings.NewReader(text), 1 << 30, 65536, &busyError{"memory"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &lease{quota: newQuota("memory", 300_000, 300_000), holder: "a"}
			got, err := gather(t.Context(), tt.r, tt.size, l)
			if fmt.Sprint(err) != fmt.Sprint(tt.err) || string(got) != text[:tt.want] {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if l.n != int64(cap(got)) {
				t.Errorf("holds %d for %d", l.n, cap(got))
			}
		})
	}
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRates(100)
		who := func(name string) caller { return caller{id: trusttest.Identity(trust.RoleClientRead, name)} }
		begin := time.Now()
		for range 200 {
			if err := r.wait(t.Context(), who("a")); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin).Round(10 * time.Millisecond); took != time.Second {
			t.Errorf("200 requests at 100 a second, 100 of them at once, took %v", took)
		}
		begin = time.Now()
		for _, c := range []caller{who("b"), {local: true}, {}} {
			if err := r.wait(t.Context(), c); err != nil || time.Since(begin) != 0 {
				t.Errorf("%v waits for a: %v", c, err)
			}
		}
		// More at a time than a second's worth: some are refused.
		var wg sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for range 300 {
			wg.Go(func() {
				if err := r.wait(t.Context(), who("a")); is[*rateError](err) {
					mu.Lock()
					refused++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if refused < 150 || refused > 220 {
			t.Errorf("%d of 300 were refused", refused)
		}
	})
}

// TestRatesForget has more callers than rates are kept for.
func TestRatesForget(t *testing.T) {
	r := newRates(10)
	for i := range maxRates + 100 {
		if err := r.wait(t.Context(), caller{id: trusttest.Identity(trust.RoleClientRead, fmt.Sprint(i))}); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.by) != maxRates || r.recent.Len() != maxRates {
		t.Errorf("%d and %d are remembered", len(r.by), r.recent.Len())
	}
	free := newRates(NoLimit)
	for range 1000 {
		if err := free.wait(t.Context(), caller{id: trusttest.Identity(trust.RoleClientRead, "a")}); err != nil {
			t.Fatal(err)
		}
	}
}
