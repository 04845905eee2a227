package sim

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"github.com/qs-peer/qs-peer/bench"
	"github.com/qs-peer/qs-peer/bench/lab"
)

// Options describe a fleet and its network. The zero value of what is not
// Workers, Colos, Managers, Rate, ManagerRate or Size is its default.
type Options struct {
	Workers  int // that start at once with nothing
	Colos    int // that they are dealt out to
	Managers int // that have everything, outside of all colos
	Late     int // workers that start when the others hold half
	Slow     int // of the workers: so many have a tenth of Rate

	Rate        lab.Rate // of each worker's link, each way
	ManagerRate lab.Rate // of each manager's
	Between     lab.Rate // of each colo's link to the others and the managers, each way; 0 is no limit

	Size    int64         // of the snapshot, in bytes
	Latency time.Duration // one way, in a colo; default 200 µs
	Far     time.Duration // one way, otherwise; default Latency

	KillFraction float64 // of the workers die once they hold half together
	KillManager  bool    // all managers die once the workers hold a copy together
	LoseManager  bool    // the first manager dies once they hold half of one

	Isolated bool          // colos ask only managers
	Poll     time.Duration // how often a worker hears what those of other colos that it asks hold; default 500 ms
	Gossip   time.Duration // until a join or a death is known to all; default 1 s
	Sending  int           // pieces that a source sends at once; default no limit
	Startup  time.Duration // from a worker's start until it asks for anything

	Overhead float64 // bytes on the link per byte of payload; default bench.FrameOverhead
	Seed     uint64
	Limit    time.Duration // of simulated time; default an hour
}

// The model's own constants; docs/bench/sim.md says where they come from.
const (
	quantum = 64 << 10 // bytes that a flow sends in its turn
	window  = 4        // quanta of a flow under way
	tick    = 100 * time.Millisecond
	// verifyRate is how fast pieces are hashed and written, in bytes per second.
	verifyRate = 500e6

	maxWorkers = 20_000
	maxPieces  = 8192
)

// validate also fills in the defaults.
func (o *Options) validate() error {
	wrong := func(flag, format string, args ...any) error {
		return &bench.OptionError{Flag: flag, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case o.Workers < 1 || o.Workers+o.Late > maxWorkers:
		return wrong("workers", "%d: want 1 to %d, with those that join late", o.Workers, maxWorkers)
	case o.Colos < 1 || o.Colos > o.Workers:
		return wrong("colos", "%d: want 1 to as many as there are workers", o.Colos)
	case o.Managers < 1 || o.Managers > 100:
		return wrong("managers", "%d: want 1 to 100", o.Managers)
	case o.Late < 0:
		return wrong("join-late", "%d: want 0 or more", o.Late)
	case o.Slow < 0 || o.Slow >= o.Workers:
		return wrong("slow", "%d: want 0 to less than there are workers", o.Slow)
	case o.Rate <= 0:
		return wrong("rate", "%v: want more than 0", o.Rate)
	case o.ManagerRate <= 0:
		return wrong("manager-rate", "%v: want more than 0", o.ManagerRate)
	case o.Between < 0:
		return wrong("intercolo-rate", "%v: want 0 or more", o.Between)
	case o.Size < 1 || o.Size > maxPieces<<23:
		return wrong("size", "%d bytes: want 1 to %d", o.Size, int64(maxPieces<<23))
	case o.KillFraction < 0 || o.KillFraction >= 1:
		return wrong("kill-fraction", "%v: want 0 to less than 1", o.KillFraction)
	case o.LoseManager && o.Managers < 2:
		return wrong("lose-manager", "there is %d: want at least 2", o.Managers)
	case o.Latency < 0 || o.Far < 0 || o.Latency > time.Second || o.Far > time.Second:
		return wrong("latency", "%v: want 0 to 1s", max(o.Latency, o.Far))
	}
	o.Latency = cmp.Or(o.Latency, 200*time.Microsecond)
	o.Far = max(o.Far, o.Latency)
	o.Poll = cmp.Or(o.Poll, 500*time.Millisecond)
	o.Gossip = cmp.Or(o.Gossip, time.Second)
	o.Limit = cmp.Or(o.Limit, time.Hour)
	o.Overhead = cmp.Or(o.Overhead, bench.FrameOverhead)
	o.Sending = cmp.Or(o.Sending, maxWorkers)
	return nil
}

// dies says whether a worker is among those that are killed: as in bench swarm,
// the first ones.
func (o *Options) dies(worker int) bool {
	if o.KillFraction == 0 {
		return false
	}
	return worker < max(1, int(math.Round(o.KillFraction*float64(o.Workers))))
}

func (o *Options) slow(worker int) bool { return worker < o.Workers && worker >= o.Workers-o.Slow }

// rate returns the rate of a worker's link.
func (o *Options) rate(worker int) lab.Rate {
	if o.slow(worker) {
		return o.Rate / 10
	}
	return o.Rate
}

// counts says whether the times are about a worker: it is there from the start,
// lives to the end and is not slow.
func (o *Options) counts(worker int) bool {
	return worker < o.Workers && !o.dies(worker) && !o.slow(worker)
}

// least returns T* of those.
func (o *Options) least() bench.Bound {
	problem := bench.Fluid{Size: o.Size, Between: o.Between, Colos: make([][]lab.Link, o.Colos)}
	for range o.Managers {
		problem.Managers = append(problem.Managers, o.ManagerRate)
	}
	for w := range o.Workers {
		if o.counts(w) {
			c := &problem.Colos[w%o.Colos]
			*c = append(*c, lab.Link{Up: o.Rate, Down: o.Rate})
		}
	}
	return problem.Least()
}
