package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// Damage alters files of nodes, while they run and while they are stopped.
func Damage(ctx context.Context, o Options) (*Report, error) {
	// Segments that are sealed every second or two, and a scrub of everything in the
	// background.
	c := &campaign{name: "damage", schedule: damageSchedule, flags: []string{"--segment-size", "128KiB", "--scrub-every", "20s", "--scrub-rate", "0"}}
	return c.run(ctx, o)
}

// damage is done to one file of a node.
type damage struct {
	node  int
	part  part
	harm  harm
	when  moment
	which uint64 // of the files, and where in it
}

// moment is what the node does when it is damaged.
type moment string

const (
	live    moment = "live"          // it runs
	stopped moment = "at rest"       // it ended in order
	crashed moment = "after a crash" // it was killed
)

func (d *damage) kind() string {
	if d.when == live {
		return string(d.part) + ", live"
	}
	return string(d.part) + ", at rest"
}

func (d *damage) String() string {
	return fmt.Sprintf("%s of %s of node %d %s (%x)", d.harm, d.part, d.node, d.when, d.which)
}

// damageWeights say how often which part is damaged.
var damageWeights = []struct {
	part   part
	weight int
}{
	{storeFile, 8}, {logFile, 3}, {sealedFile, 4}, {snapshotFile, 6}, {partialFile, 3}, {torrentFile, 2}, {manifestFile, 2}, {storeCurrent, 2}, {headsFile, 2},
	{cleanFile, 1}, {openCase, 2}, {closedCase, 1}, {nodeFile, 1}, {scrubFile, 1}, {otherFile, 2},
}

// damageSchedule damages one node at a time, or two: the others have what it needs. Now
// and then it is the writer, alone.
func damageSchedule(rng *rand.Rand, workers, count int) [][]fault {
	var total int
	for _, w := range damageWeights {
		total += w.weight
	}
	var waves [][]fault
	for count > 0 {
		if rng.IntN(12) == 0 {
			waves = append(waves, []fault{newRuin(rng)})
			count--
			continue
		}
		n := min(count, 1+rng.IntN(2))
		var wave []fault
		for _, node := range rng.Perm(1 + workers)[:n] {
			d := &damage{node: 1 + node, harm: harms[rng.IntN(len(harms))], which: rng.Uint64(), when: []moment{live, live, stopped, crashed}[rng.IntN(4)]}
			at := rng.IntN(total)
			for _, w := range damageWeights {
				if at -= w.weight; at < 0 {
					d.part = w.part
					break
				}
			}
			if d.part == cleanFile { // a node that runs, or ended otherwise, has none
				d.when = stopped
			}
			wave = append(wave, d)
		}
		waves = append(waves, wave)
		count -= n
	}
	return waves
}

// mendLimit is how long a node may take to repair itself.
const mendLimit = 60 * time.Second

// inflict does the damage, and waits until the node is as it should be again.
func (d *damage) inflict(ctx context.Context, r *rig) (hit bool, err error) {
	n := r.nodes[d.node]
	if err := n.settle(ctx, d); err != nil {
		return false, err
	}
	n.count(ctx)
	reached, err := d.approach(ctx, n)
	if err != nil {
		return false, err
	}
	cost := newCost(ctx, n, d)
	switch d.when {
	case stopped:
		n.doomed.Store(true)
		if err := n.proc.Stop(); err != nil {
			r.violate(Violation{Died, n.name, time.Now(), fmt.Sprintf("before %v: %v", d, err)})
		}
	case crashed:
		n.kill()
	}
	rng := rand.New(rand.NewPCG(d.which, 1))
	if files := d.part.files(n.data()); reached && len(files) > 0 {
		file := files[rng.IntN(len(files))]
		cost.before(file)
		changed, err := d.harm.do(file, rng)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // what was under way is over
		}
		if err != nil {
			return false, err
		}
		hit = changed > 0
		cost.after()
		r.say("%s: %v: %s, %d bytes", n.name, d, strings.TrimPrefix(file, n.data()), changed)
	}
	n.look()
	if d.when != live {
		n.counted = nil
		if err := n.launch(); err != nil {
			return hit, err
		}
		err := n.up(ctx)
		if died := (*fleet.ExitError)(nil); errors.As(err, &died) {
			r.violate(Violation{Died, n.name, time.Now(), fmt.Sprintf("it did not start after %v:\n%s", d, died.Tail)})
			// So that the campaign goes on: what nobody should have to do.
			if err := n.wipe(); err != nil {
				return hit, err
			}
			if err := n.launch(); err != nil {
				return hit, err
			}
			err = n.up(ctx)
		}
		if err != nil {
			return hit, err
		}
	}
	if err := n.settle(ctx, d); err != nil {
		return hit, err
	}
	return hit, cost.check(ctx)
}

// approach brings about that there is a file to damage, where that takes a fetch or a
// repair under way. reached says that it came to be.
func (d *damage) approach(ctx context.Context, n *node) (reached bool, err error) {
	var during Stage
	switch d.part {
	case partialFile:
		during = Fetching
		n.kill()
		if err := n.wipe(); err != nil {
			return false, err
		}
	case openCase:
		during = Repairing
		n.kill()
		for _, file := range storeFile.files(n.data()) {
			if err := zeroTail(file); err != nil {
				return false, err
			}
		}
	default:
		return true, nil
	}
	n.counted = nil
	if err := n.launch(); err != nil {
		return false, err
	}
	if _, seen := n.await(ctx, during, footprint{}); seen {
		if d.part == partialFile { // some of it is to be there
			rest(ctx, time.Duration(d.which%100)*time.Millisecond)
		}
		return true, ctx.Err()
	}
	return false, n.up(ctx)
}

// settle waits until a node has looked at all it holds, found nothing wrong, and serves. One
// that does not is a violation.
func (n *node) settle(ctx context.Context, d *damage) error {
	began := time.Now()
	err := fleet.Until(ctx, mendLimit, func() error {
		if !n.alive() {
			return fleet.Stop(errors.New("its process ended"))
		}
		if err := n.scrub(ctx); err != nil {
			return err
		}
		if err := n.ready(ctx); err != nil {
			return err
		}
		_, err := n.pairs(ctx)
		return err
	})
	n.rig.figures.most("longest repair, seconds", time.Since(began).Seconds())
	if err != nil && ctx.Err() == nil {
		n.rig.violate(Violation{NoRest, n.name, time.Now(), fmt.Sprintf("around %v: %v", d, err)})
		if !n.alive() {
			if err := n.launch(); err != nil {
				return err
			}
			return n.up(ctx)
		}
		return nil
	}
	return ctx.Err()
}

// scrub has a node look at all it holds; what is damaged is an error.
func (n *node) scrub(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a, err := n.ask(ctx, n.asOperator, http.MethodPost, "/v1/scrub?rate=0", "")
	if err != nil {
		return err
	}
	var report struct{ Sound bool }
	if err := json.Unmarshal(a.body, &report); err != nil || a.code != http.StatusOK || !report.Sound {
		return fmt.Errorf("scrub on %s: %d %.300s", n.name, a.code, a.body)
	}
	return nil
}

// count adds what a node's present process has repaired since the last time to the
// figures.
func (n *node) count(ctx context.Context) {
	all, err := n.metrics(ctx)
	if err != nil {
		return
	}
	if n.counted == nil {
		n.counted = map[string]float64{}
	}
	for name, v := range all {
		if !strings.HasPrefix(name, "qs_repair") && !strings.HasPrefix(name, "qs_damage_findings") || v == n.counted[name] {
			continue
		}
		n.rig.figures.add(name, int(v-n.counted[name]))
		n.counted[name] = v
	}
}
