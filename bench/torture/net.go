package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
	"github.com/qs-peer/qs-peer/internal/fleet"
)

// Net cuts, breaks, slows and resets what joins nodes: their gossip, log streams, swarm
// and all else that they say to each other. Each node is a host of a lab's network, and
// what is done is done there, by the kernel. Clients talk to nodes beside that. It returns
// lab.ErrNotPermitted if it may not make networks.
func Net(ctx context.Context, o Options) (*Report, error) {
	if err := lab.Permitted(); err != nil {
		return nil, err
	}
	c := &campaign{name: "net", schedule: netSchedule, site: newNetSite}
	return c.run(ctx, o)
}

// netSite is a fleet's network.
type netSite struct {
	network *lab.Network
	hosts   []*lab.Host
	probes  *probes
}

func newNetSite(ctx context.Context, nodes int) (_ site, err error) {
	s := &netSite{}
	if s.network, err = lab.New(); err != nil {
		return nil, err
	}
	for range nodes {
		h, err := s.network.AddHost("", lab.Link{})
		if err != nil {
			return nil, errors.Join(err, s.network.Close())
		}
		s.hosts = append(s.hosts, h)
	}
	if s.probes, err = newProbes(ctx, s.hosts); err != nil {
		return nil, errors.Join(err, s.network.Close())
	}
	return s, nil
}

func (s *netSite) place(i int) fleet.Place { return s.hosts[i] }

func (s *netSite) close() error {
	s.probes.close()
	return s.network.Close()
}

// netKind is what is done to a network.
type netKind string

const (
	partition netKind = "partition"           // some nodes and the others do not reach each other
	isolation netKind = "isolation"           // one node and all others
	oneWay    netKind = "one-way link"        // what one sends to another is lost, not what it gets
	delay     netKind = "delay"               // what a node sends waits in a queue
	resets    netKind = "reset"               // all connections between two break off
	halfOpen  netKind = "half-open"           // a node dies and starts again, and the others never hear of it
	flapping  netKind = "flapping"            // a link goes and comes, many times
	allResets netKind = "reset of all a node" // all that a node has with anybody
)

var netKinds = []netKind{partition, isolation, oneWay, delay, resets, halfOpen, flapping, allResets}

// disturbance is one fault of the network.
type disturbance struct {
	what  netKind
	nodes []int // whom it is about; for a partition one side, for a one-way link from and to
	lasts time.Duration
}

func (d *disturbance) kind() string { return string(d.what) }

func (d *disturbance) String() string {
	return fmt.Sprintf("%s of %v for %s", d.what, d.nodes, d.lasts)
}

// netSchedule has one disturbance at a time: two could undo each other. A third of them
// last until gossip takes those who are cut off for dead.
func netSchedule(rng *rand.Rand, workers, count int) [][]fault {
	var waves [][]fault
	n := 2 + workers
	for range count {
		d := &disturbance{what: netKinds[rng.IntN(len(netKinds))], lasts: 300*time.Millisecond + time.Duration(rng.Int64N(int64(2500*time.Millisecond)))}
		if rng.IntN(3) == 0 {
			d.lasts += 5 * time.Second
		}
		order := rng.Perm(n)
		switch d.what {
		case partition:
			d.nodes = order[:2+rng.IntN(max(1, n-3))]
			slices.Sort(d.nodes)
		case oneWay, resets, flapping:
			d.nodes = order[:2]
		case halfOpen:
			d.nodes = order[:1]
			d.lasts = 500 * time.Millisecond
		default:
			d.nodes = order[:1]
		}
		waves = append(waves, []fault{d})
	}
	return waves
}

// pair is a direction.
type pair struct{ from, to int }

// cuts returns which directions are cut.
func (d *disturbance) cuts(n int) (cut []pair) {
	if d.what == oneWay {
		return []pair{{d.nodes[0], d.nodes[1]}}
	}
	if d.what == flapping {
		return []pair{{d.nodes[0], d.nodes[1]}, {d.nodes[1], d.nodes[0]}}
	}
	for a := range n {
		for b := range n {
			if slices.Contains(d.nodes, a) != slices.Contains(d.nodes, b) {
				cut = append(cut, pair{a, b})
			}
		}
	}
	return cut
}

func (d *disturbance) inflict(ctx context.Context, r *rig) (hit bool, err error) {
	s := r.site.(*netSite)
	switch d.what {
	case resets:
		return d.reset(ctx, r, s, d.nodes[1:])
	case allResets:
		var others []int
		for i := range r.nodes {
			if i != d.nodes[0] {
				others = append(others, i)
			}
		}
		return d.reset(ctx, r, s, others)
	case delay:
		return d.slow(ctx, r, s)
	}
	cut := d.cuts(len(r.nodes))
	if d.what == flapping {
		for range 6 {
			if hit, err = s.while(cut, func() error { rest(ctx, d.lasts/12); return nil }); err != nil {
				return hit, err
			}
			rest(ctx, d.lasts/12)
		}
		return hit, nil
	}
	return s.while(cut, func() error {
		if d.what != halfOpen {
			d.watch(ctx, r)
			return nil
		}
		return d.restart(ctx, r, s)
	})
}

// while cuts directions, does something, and mends them. It reports whether they were
// really cut throughout, and those that were not cut were not.
func (s *netSite) while(cut []pair, do func() error) (hit bool, err error) {
	for _, c := range cut {
		if err := s.hosts[c.from].Cut(s.hosts[c.to]); err != nil {
			return false, err
		}
	}
	defer func() {
		for _, c := range cut {
			err = errors.Join(err, s.hosts[c.from].Mend(s.hosts[c.to]))
		}
		if err != nil {
			return
		}
		came, probeErr := s.probes.comes(cut[0].from, cut[0].to)
		if err = probeErr; err == nil && !came {
			err = fmt.Errorf("what was mended from node %d to %d is still cut", cut[0].from, cut[0].to)
		}
	}()
	before, err := s.inForce(cut)
	if err != nil {
		return false, err
	}
	if err := do(); err != nil {
		return false, err
	}
	after, err := s.inForce(cut)
	return before && after, err
}

// inForce measures it.
func (s *netSite) inForce(cut []pair) (bool, error) {
	first, last := cut[0], cut[len(cut)-1]
	for _, c := range []pair{first, last} {
		if lost, err := s.probes.lost(c.from, c.to); !lost || err != nil {
			return false, err
		}
	}
	if back := (pair{first.to, first.from}); !slices.Contains(cut, back) {
		return s.probes.comes(back.from, back.to)
	}
	return true, nil
}

// watch waits until the disturbance is over, and notes whom nodes take for dead.
func (d *disturbance) watch(ctx context.Context, r *rig) {
	end := time.Now().Add(d.lasts)
	for time.Now().Before(end) && ctx.Err() == nil {
		for _, n := range r.nodes {
			s, err := n.status(ctx)
			if err != nil {
				continue
			}
			for _, other := range s.Seen {
				if other.state == "failed" {
					r.figures.set("disturbances in which gossip took a node for dead", d)
				}
			}
		}
		rest(ctx, min(250*time.Millisecond, time.Until(end)))
	}
}

// restart kills a node that the others do not reach, and starts it again, while they go on
// with connections to the process that was.
func (d *disturbance) restart(ctx context.Context, r *rig, s *netSite) error {
	n := r.nodes[d.nodes[0]]
	n.kill()
	for _, other := range r.nodes {
		if other == n {
			continue
		}
		open, err := connections(other.proc.PID(), s.hosts[d.nodes[0]].Addr())
		if err != nil {
			return err
		}
		r.figures.add("half-open connections", open)
	}
	if err := n.launch(); err != nil {
		return err
	}
	if err := n.up(ctx); err != nil {
		return err
	}
	rest(ctx, d.lasts)
	return nil
}

// reset breaks the connections of a node with others, a few times.
func (d *disturbance) reset(ctx context.Context, r *rig, s *netSite, others []int) (hit bool, err error) {
	n := r.nodes[d.nodes[0]]
	for range 3 {
		for _, other := range others {
			broken, err := reset(n.proc.PID(), s.hosts[other].Addr())
			if err != nil {
				return hit, err
			}
			r.figures.add("connections reset", broken)
			hit = hit || broken > 0
		}
		rest(ctx, min(d.lasts, time.Second)/3)
	}
	return hit, nil
}

// squeezed is what a delayed node may send: a heartbeat and a few entries a second.
const squeezed = lab.Rate(24 << 10)

// slow has what a node sends wait.
func (d *disturbance) slow(ctx context.Context, r *rig, s *netSite) (hit bool, err error) {
	from := d.nodes[0]
	if err := s.hosts[from].Squeeze(squeezed); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.hosts[from].Squeeze(0)) }()
	var worst time.Duration
	end := time.Now().Add(d.lasts + time.Second)
	for time.Now().Before(end) && ctx.Err() == nil {
		took, came, err := s.probes.travel(from, (from+1)%len(s.hosts), time.Until(end)+time.Millisecond)
		if err != nil {
			return false, err
		}
		if !came {
			took = d.lasts
		}
		worst = max(worst, took)
		rest(ctx, 50*time.Millisecond)
	}
	r.figures.most("longest delay, seconds", worst.Seconds())
	return worst > 20*time.Millisecond, nil
}
