package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/internal/fleet"
)

// lookEvery is how often a worker is asked how far it is.
const lookEvery = 220 * time.Millisecond

// errKilled ends the watch of a node that was killed on purpose.
var errKilled = errors.New("killed on purpose")

// swarmNode is a process that takes part in a run.
type swarmNode struct {
	role, name, colo string
	number           int
	host             *lab.Host
	fleet            *fleet.Fleet

	mu       sync.Mutex // guards what follows
	node     *fleet.Node
	dead     bool // killed on purpose
	began    time.Time
	used     time.Duration // processor time, of a killed node in all
	usedAt   time.Duration // and when the run began
	mem      memory        // the most of each
	progress fetchProgress
	curve    []look
	lastSent int64 // payload, as the node said last
}

// look is what a worker answered at some time.
type look struct {
	at   time.Time
	done int64
}

// fetchProgress is GET /v1/progress, as far as we need it.
type fetchProgress struct {
	Total  int64 `json:"total"`
	Done   int64 `json:"done"`
	Pieces int   `json:"pieces"`
	From   struct {
		Managers   payload `json:"managers"`
		OwnColo    payload `json:"own_colo"`
		OtherColos payload `json:"other_colos"`
	} `json:"from"`
	Wasted  int64      `json:"wasted"`
	Fetched *time.Time `json:"fetched"`
	Serving *time.Time `json:"serving"`
}

type payload struct {
	Bytes int64 `json:"bytes"`
}

// start runs the node's process and waits until it listens.
func (n *swarmNode) start(ctx context.Context, flags ...string) error {
	n.mu.Lock()
	n.began = time.Now()
	n.mu.Unlock()
	node, err := n.fleet.StartAt(ctx, n.host, n.role, n.name, append([]string{"--colo", n.colo}, flags...)...)
	n.mu.Lock()
	n.node = node
	n.mu.Unlock()
	return err
}

// count makes the node's usage count from now on.
func (n *swarmNode) count() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mem = memory{}
	var err error
	n.usedAt, err = processTime(n.node.PID())
	return errors.Join(err, forgetPeak(n.node.PID()))
}

// weigh notes what memory the node's process holds. The caller holds mu.
func (n *swarmNode) weigh() {
	m := processMemory(n.node.PID())
	n.mem.anon, n.mem.peak = max(n.mem.anon, m.anon), max(n.mem.peak, m.peak)
}

// kill ends the node's process on purpose.
func (n *swarmNode) kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.weigh()
	n.dead = true
	n.node.Kill()
	n.used = n.node.Usage()
}

// cost returns the processor time that the node used since count, or since it
// started.
func (n *swarmNode) cost() (time.Duration, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.weigh()
	if n.dead {
		return n.used - n.usedAt, nil
	}
	used, err := processTime(n.node.PID())
	return used - n.usedAt, err
}

// watch asks a worker how far it is until it serves, and calls changed after
// each look. It returns errKilled when the worker is killed on purpose.
func (n *swarmNode) watch(ctx context.Context, changed func()) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		var p fetchProgress
		err := n.node.Call(ctx, http.MethodGet, "/v1/progress", nil, &p)
		n.mu.Lock()
		if n.dead {
			n.mu.Unlock()
			return errKilled
		}
		n.weigh()
		if err == nil {
			n.progress = p
			n.curve = append(n.curve, look{time.Now(), p.Done})
		}
		n.mu.Unlock()
		changed()
		if err == nil && p.Serving != nil {
			return nil
		}
		if refused := (*fleet.StatusError)(nil); errors.As(err, &refused) && refused.Code != http.StatusNotFound {
			return err
		}
		select {
		case <-tick.C:
		case <-n.node.Exited():
			n.mu.Lock()
			dead := n.dead
			n.mu.Unlock()
			if dead {
				return errKilled
			}
			return fmt.Errorf("it ended by itself; the end of its log:\n%s", n.node.Tail(12))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// state returns the latest progress, and whether the node was killed.
func (n *swarmNode) state() (p fetchProgress, dead bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.progress, n.dead
}
