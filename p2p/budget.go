package p2p

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Class is how urgent bytes are. While bytes of one class wait for a budget,
// less urgent ones get a twentieth of it each.
type Class int

const (
	// Urgent is what is small, and what readers wait for: log streams,
	// manifests, metainfo, the torrent protocol's short messages.
	Urgent Class = iota
	// Repair is pieces for a node whose replica is out of service.
	Repair
	// Rebuild is all other pieces.
	Rebuild

	numClasses = 3
)

func (c Class) String() string { return [numClasses]string{"urgent", "repair", "rebuild"}[c] }

const (
	// burstTime is how much a budget saves up while nobody uses it: enough that
	// a process which is woken late makes up for it, and little beside the 5 s
	// over which a limit is exact to 3%.
	burstTime = 50 * time.Millisecond
	minBurst  = 4 << 10
	// maxChunk bounds what is granted at once, so that something more urgent
	// does not wait long.
	maxChunk = 128 << 10

	// floor is the share that each less urgent class gets in any case. Without
	// it connections would be given up as stalled, and leases that such a node
	// holds would hold up its whole colo; a twentieth delays what is urgent by
	// as little.
	floor = 0.05
)

// Budget limits bytes in one direction, for a whole node, and exports
// qs_budget_limit_bytes_per_second, qs_budget_bytes_total and
// qs_budget_wait_seconds_total. In any time t it grants at most rate × (t + 50 ms)
// bytes (or 4 KiB more than rate × t, if that is more); while somebody always
// waits it grants rate × t. Within a class it is first come, first served.
//
// Its methods may be called concurrently. A nil Budget has no limit and counts
// nothing.
type Budget struct {
	rate   float64 // bytes per second; 0: no limit
	burst  float64 // bytes
	within *Budget // may be nil
	own    atomic.Int32

	bytes, waited [numClasses]prometheus.Counter

	mu     sync.Mutex // guards what follows
	tokens float64    // bytes that may be granted now …
	filled time.Time  // … as of then
	queues [numClasses][]*budgetWaiter
	credit [numClasses]float64 // of the floor: bytes that a class may be granted before more urgent ones
	timer  *time.Timer         // calls dispatch when there will be enough tokens
}

type budgetWaiter struct {
	n       float64
	granted bool          // guarded by Budget.mu
	ready   chan struct{} // closed when granted
}

// BudgetOptions configure a Budget.
type BudgetOptions struct {
	// Direction is what the metrics call it, such as "upload".
	Direction string
	// Rate is in bytes per second. 0: no limit.
	Rate int64
	// Within is a budget that these bytes count towards as well. Default: none.
	Within     *Budget
	Registerer prometheus.Registerer
}

// NewBudget returns a budget, of which a burst can be used at once.
func NewBudget(o BudgetOptions) *Budget {
	b := &Budget{rate: float64(o.Rate), within: o.Within, filled: time.Now()}
	b.burst = max(b.rate*burstTime.Seconds(), minBurst)
	b.tokens = b.burst
	b.SetOwn(Rebuild)

	limit := register(o.Registerer, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "qs_budget_limit_bytes_per_second", Help: "The limit, by direction. 0: none."}, []string{"direction"}))
	bytes := register(o.Registerer, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "qs_budget_bytes_total", Help: "Bytes that were granted, by direction and class."}, []string{"direction", "class"}))
	waited := register(o.Registerer, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "qs_budget_wait_seconds_total", Help: "Time that bytes waited for a budget, by direction and class."}, []string{"direction", "class"}))
	limit.WithLabelValues(o.Direction).Set(b.rate)
	for c := range Class(numClasses) {
		b.bytes[c] = bytes.WithLabelValues(o.Direction, c.String())
		b.waited[c] = waited.WithLabelValues(o.Direction, c.String())
	}
	return b
}

// SetOwn says of which class the pieces are that this node fetches for itself:
// Repair while its replica is out of service, otherwise Rebuild.
func (b *Budget) SetOwn(c Class) {
	if b != nil {
		b.own.Store(int32(c))
	}
}

// ownClass is what SetOwn said last.
func (b *Budget) ownClass() Class {
	if b == nil {
		return Rebuild
	}
	return Class(b.own.Load())
}

// chunk is the most bytes to ask for at once and then to move at once.
func (b *Budget) chunk() int {
	if b == nil {
		return math.MaxInt
	}
	n := b.within.chunk()
	if b.rate > 0 {
		n = min(n, int(b.burst), maxChunk)
	}
	return n
}

// Wait waits until n bytes of a class may be moved, or ctx ends.
func (b *Budget) Wait(ctx context.Context, c Class, n int) error {
	if b == nil {
		return nil
	}
	for n > 0 {
		some := min(n, b.chunk())
		if err := b.wait(ctx, c, some); err != nil {
			return err
		}
		if err := b.within.Wait(ctx, c, some); err != nil {
			return err
		}
		n -= some
	}
	return nil
}

func (b *Budget) wait(ctx context.Context, c Class, n int) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if b.rate == 0 {
		b.bytes[c].Add(float64(n))
		return nil
	}
	w := &budgetWaiter{n: float64(n), ready: make(chan struct{})}
	b.mu.Lock()
	b.queues[c] = append(b.queues[c], w)
	b.dispatch()
	if w.granted {
		b.mu.Unlock()
		return nil
	}
	b.mu.Unlock()

	start := time.Now()
	defer func() { b.waited[c].Add(time.Since(start).Seconds()) }()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.granted { // just now, as ctx ended
		return nil
	}
	b.queues[c] = slices.DeleteFunc(b.queues[c], func(o *budgetWaiter) bool { return o == w })
	b.dispatch()
	return context.Cause(ctx)
}

// dispatch grants what can be granted and has itself called when more can. b.mu
// is held.
func (b *Budget) dispatch() {
	now := time.Now()
	b.tokens = min(b.tokens+now.Sub(b.filled).Seconds()*b.rate, b.burst)
	b.filled = now
	for {
		c, waiting := b.next()
		if !waiting {
			return
		}
		w := b.queues[c][0]
		if w.n > b.tokens {
			b.wakeIn(time.Duration(math.Ceil((w.n - b.tokens) / b.rate * float64(time.Second))))
			return
		}
		b.tokens -= w.n
		b.queues[c] = b.queues[c][1:]
		b.settle(c, w.n)
		b.bytes[c].Add(w.n)
		w.granted = true
		close(w.ready)
	}
}

// next returns the class to be granted something next: the most urgent, unless
// another has saved up enough of its floor.
func (b *Budget) next() (c Class, waiting bool) {
	for c := Class(numClasses - 1); c >= 0; c-- {
		if q := b.queues[c]; len(q) > 0 && b.credit[c] >= q[0].n {
			return c, true
		}
	}
	for c := range Class(numClasses) {
		if len(b.queues[c]) > 0 {
			return c, true
		}
	}
	return 0, false
}

// settle notes that n bytes were granted to a class: less urgent ones that wait
// gain their share of it.
func (b *Budget) settle(c Class, n float64) {
	b.credit[c] = max(b.credit[c]-n, 0)
	for d := c + 1; d < numClasses; d++ {
		if len(b.queues[d]) > 0 {
			b.credit[d] += n * floor
		} else {
			b.credit[d] = 0
		}
	}
}

func (b *Budget) wakeIn(d time.Duration) {
	if b.timer != nil {
		b.timer.Reset(d)
		return
	}
	b.timer = time.AfterFunc(d, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.dispatch()
	})
}
