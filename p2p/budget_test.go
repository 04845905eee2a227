package p2p

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func limit(rate int64) *Budget { return NewBudget(BudgetOptions{Rate: rate}) }

// grants is what a budget granted, and when.
type grants struct {
	at []time.Duration
	n  []int
}

// exact checks every window of 5 s, and every burst.
func (g grants) exact(t *testing.T, rate float64) {
	t.Helper()
	const window = 5 * time.Second
	end := g.at[len(g.at)-1]
	burst := max(rate*0.05, 4<<10)
	var most, excess float64
	least := rate * 10
	sum, j := 0, 0
	level := 0.0 // of a leaky bucket: how much more came than the rate allows
	for i, at := range g.at {
		for j < len(g.at) && g.at[j] < at+window {
			sum += g.n[j]
			j++
		}
		most = max(most, float64(sum)/window.Seconds())
		if at+window <= end {
			least = min(least, float64(sum)/window.Seconds())
		}
		sum -= g.n[i]
		if i > 0 {
			level = max(level-(at-g.at[i-1]).Seconds()*rate, 0)
		}
		level += float64(g.n[i])
		excess = max(excess, level)
	}
	t.Logf("over 5 s: %.4f to %.4f of the limit; the largest burst is %.0f bytes of %.0f", least/rate, most/rate, excess, burst)
	if least < 0.97*rate || most > 1.03*rate {
		t.Errorf("over 5 s, between %.0f and %.0f bytes/s were granted: want %.0f within 3%%", least, most, rate)
	}
	if excess > burst+1 {
		t.Errorf("a burst of %.0f bytes: want at most %.0f", excess, burst)
	}
}

func TestBudgetIsExact(t *testing.T) {
	for _, rate := range []int64{64_000, 1_250_000, 12_500_000, 125_000_000} {
		for _, within := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d within=%t", rate, within), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					o := BudgetOptions{Direction: "upload", Rate: rate}
					if within {
						o.Within = NewBudget(BudgetOptions{Direction: "all", Rate: rate * 2})
					}
					b := NewBudget(o)
					start := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
					defer cancel()
					granted := make(chan int)
					const users = 5
					ended := make(chan struct{})
					for u := range users {
						seed := [32]byte{byte(u)}
						go func() {
							r := rand.New(rand.NewChaCha8(seed))
							for {
								n := 1 + r.IntN(b.chunk())
								if b.Wait(ctx, Class(u%numClasses), n) != nil {
									ended <- struct{}{}
									return
								}
								granted <- n
							}
						}()
					}
					var g grants
					for left := users; left > 0; {
						select {
						case n := <-granted:
							g.at, g.n = append(g.at, time.Since(start)), append(g.n, n)
						case <-ended:
							left--
						}
					}
					g.exact(t, float64(rate))
				})
			})
		}
	}
}

// TestBudgetPrecedence: who waits, and what each class is granted of a second's
// worth while all of them always ask for more.
func TestBudgetPrecedence(t *testing.T) {
	const all = 1 / (1 + 2*floor)
	for _, test := range []struct {
		classes []Class
		share   [numClasses]float64
	}{
		{[]Class{Urgent}, [numClasses]float64{1, 0, 0}},
		{[]Class{Rebuild}, [numClasses]float64{0, 0, 1}},
		{[]Class{Repair, Rebuild}, [numClasses]float64{0, 1 / (1 + floor), floor / (1 + floor)}},
		{[]Class{Urgent, Repair, Rebuild}, [numClasses]float64{all, floor * all, floor * all}},
		// How many ask does not matter.
		{[]Class{Repair, Rebuild, Rebuild, Rebuild, Rebuild, Rebuild}, [numClasses]float64{0, 1 / (1 + floor), floor / (1 + floor)}},
	} {
		t.Run(fmt.Sprint(test.classes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const rate = 10_000_000
				reg := prometheus.NewPedanticRegistry()
				b := NewBudget(BudgetOptions{Direction: "upload", Rate: rate, Registerer: reg})
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				ended := make(chan struct{})
				for _, c := range test.classes {
					for range 2 { // so that one waits while another is served
						go func() {
							for b.Wait(ctx, c, 100_000) == nil {
							}
							ended <- struct{}{}
						}()
					}
				}
				for range 2 * len(test.classes) {
					<-ended
				}
				for c, want := range test.share {
					got := testutil.ToFloat64(b.bytes[c]) / (20 * rate)
					if got < want-0.02 || got > want+0.02 {
						t.Errorf("%v got %.3f of the budget, want %.3f", Class(c), got, want)
					}
				}
				if len(test.classes) > 1 && testutil.ToFloat64(b.waited[Rebuild]) < 15 {
					t.Errorf("what is least urgent waited %v s", testutil.ToFloat64(b.waited[Rebuild]))
				}
			})
		})
	}
}

// TestBudgetGivesWay: what is urgent waits for one chunk of something else at most.
func TestBudgetGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1_000_000
		b := NewBudget(BudgetOptions{Direction: "upload", Rate: rate})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		for range 10 {
			go func() {
				for b.Wait(ctx, Rebuild, b.chunk()) == nil {
				}
				ended <- struct{}{}
			}()
		}
		time.Sleep(time.Second)
		start := time.Now()
		if err := b.Wait(ctx, Urgent, 1000); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited > time.Duration(float64(b.chunk())/rate*float64(time.Second)) {
			t.Errorf("a kilobyte of a log stream waited %v", waited)
		}
		cancel()
		for range 10 {
			<-ended
		}
	})
}

// TestBudgetCancel: who gives up takes nothing.
func TestBudgetCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(BudgetOptions{Direction: "upload", Rate: 10_000})
		if err := b.Wait(t.Context(), Rebuild, minBurst); err != nil { // the burst
			t.Fatal(err)
		}
		errGone := errors.New("gone")
		for range 100 {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Millisecond, func() { cancel(errGone) })
			if err := b.Wait(ctx, Urgent, minBurst); !errors.Is(err, errGone) {
				t.Fatalf("got %v", err)
			}
		}
		// A tenth of a second has passed: 1000 bytes are there.
		start := time.Now()
		if err := b.Wait(t.Context(), Rebuild, 1000); err != nil || time.Since(start) > time.Millisecond {
			t.Errorf("waited %v: %v", time.Since(start), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Wait(ctx, Urgent, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestBudgetWithoutLimit: bytes are counted, in every budget that they are in.
func TestBudgetWithoutLimit(t *testing.T) {
	var none *Budget
	if err := none.Wait(t.Context(), Rebuild, 1<<40); err != nil {
		t.Error(err)
	}
	reg := prometheus.NewPedanticRegistry()
	all := NewBudget(BudgetOptions{Direction: "upload", Registerer: reg})
	some := NewBudget(BudgetOptions{Direction: "egress", Within: all, Registerer: reg})
	if err := errors.Join(some.Wait(t.Context(), Repair, 3), all.Wait(t.Context(), Repair, 4)); err != nil {
		t.Error(err)
	}
	if a, b := testutil.ToFloat64(all.bytes[Repair]), testutil.ToFloat64(some.bytes[Repair]); a != 7 || b != 3 {
		t.Errorf("counted %v and %v, want 7 and 3", a, b)
	}
}

func BenchmarkBudget(b *testing.B) {
	for _, rate := range []int64{0, 1 << 50} {
		b.Run(fmt.Sprint(rate), func(b *testing.B) {
			budget := NewBudget(BudgetOptions{Rate: rate})
			b.ReportAllocs()
			for b.Loop() {
				budget.Wait(b.Context(), Rebuild, 1000)
			}
		})
	}
}
