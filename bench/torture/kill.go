package torture

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Kill ends processes with SIGKILL, in the middle of what they do, and starts them again
// at once.
func Kill(ctx context.Context, o Options) (*Report, error) {
	c := &campaign{name: "kill", schedule: killSchedule}
	return c.run(ctx, o)
}

// kill is the end of one process.
type kill struct {
	node  int // of the rig's
	stage Stage
	empty bool          // the node begins with nothing
	delay time.Duration // after the stage was seen to begin
}

func (k *kill) kind() string { return string(k.stage) }

func (k *kill) String() string {
	return fmt.Sprintf("kill of node %d at %s after %s", k.node, k.stage, k.delay)
}

// killChoices are at which stages nodes are killed, and how long after one was seen to
// begin at most.
var killChoices = []struct {
	stage           Stage
	most            time.Duration
	writer, manager bool // who goes through it, besides workers
	worker          bool
}{
	{Serving, 1200 * time.Millisecond, true, true, true},
	{Starting, 12 * time.Millisecond, true, true, true},
	{Importing, 40 * time.Millisecond, true, false, false},
	{Minting, 60 * time.Millisecond, true, true, false},
	{Fetching, 250 * time.Millisecond, false, true, true},
	{Opening, 15 * time.Millisecond, false, true, true},
	{Switching, 8 * time.Millisecond, false, true, true},
	{CatchUp, 8 * time.Millisecond, false, true, true},
	{Repairing, 120 * time.Millisecond, false, true, true},
}

// killSchedule has one to three nodes killed at a time.
func killSchedule(rng *rand.Rand, workers, count int) [][]fault {
	var waves [][]fault
	for count > 0 {
		n := min(count, 1+rng.IntN(3))
		var wave []fault
		for _, node := range rng.Perm(2 + workers)[:n] {
			var choices []int
			for i, c := range killChoices {
				if node == 0 && c.writer || node == 1 && c.manager || node > 1 && c.worker {
					choices = append(choices, i)
				}
			}
			c := killChoices[choices[rng.IntN(len(choices))]]
			k := &kill{node: node, stage: c.stage, delay: time.Duration(rng.Int64N(int64(c.most)))}
			switch c.stage {
			case Fetching, Opening, Switching:
				k.empty = true
			case CatchUp, Starting:
				k.empty = node > 0 && rng.IntN(2) == 0
			}
			wave = append(wave, k)
		}
		waves = append(waves, wave)
		count -= n
	}
	return waves
}

// stageLimit is how long a stage is waited for.
const stageLimit = 8 * time.Second

// inflict brings the stage about, kills, and starts the node again.
func (k *kill) inflict(ctx context.Context, r *rig) (hit bool, err error) {
	n := r.nodes[k.node]
	before := footprintOf(n.data())
	switch k.stage {
	case Importing:
		select {
		case r.load.importNow <- struct{}{}:
		default:
		}
	case Minting:
		go func() { _ = n.publish(ctx) }() // what comes of it is seen in the end
	case Serving:
	case Repairing:
		n.kill()
		// The second half, which holds most of the pairs.
		for _, file := range storeFile.files(n.data()) {
			if err := zeroTail(file); err != nil {
				return false, err
			}
		}
		if err := n.launch(); err != nil {
			return false, err
		}
	default:
		n.kill()
		var flags []string
		switch {
		case k.empty:
			if err := n.wipe(); err != nil {
				return false, err
			}
		case k.stage == CatchUp:
			// So that there is something to catch up with, and time to see it.
			flags = []string{"--download-rate", "200kB/s"}
			select {
			case r.load.importNow <- struct{}{}:
			default:
			}
			rest(ctx, 700*time.Millisecond)
		}
		if err := n.launch(flags...); err != nil {
			return false, err
		}
		before = footprint{current: 1}
	}
	from, seen := n.await(ctx, k.stage, before)
	rest(ctx, k.delay)
	hit = seen && n.still(ctx, k.stage, from)
	n.kill()
	n.look()
	// What the killed process left behind is the better witness.
	if after := footprintOf(n.data()); after.shows(k.stage, before) {
		hit = true
	}
	if err := n.launch(); err != nil {
		return hit, err
	}
	return hit, n.up(ctx)
}

// provenWithin is how long a node has to show, before it is killed, that it gets on with
// what it is at.
const provenWithin = 300 * time.Millisecond

// still reports whether a node is, just before it is killed, at a stage that leaves no mark
// behind: by what it says of itself, in which its position has moved since it was at from.
func (n *node) still(ctx context.Context, stage Stage, from uint64) bool {
	switch stage {
	case Starting:
		return n.starting()
	case Importing:
		return n.rig.load.importing.Load() > 0
	case Serving, CatchUp:
		ctx, cancel := context.WithTimeout(ctx, provenWithin)
		defer cancel()
		for ctx.Err() == nil {
			s, err := n.status(ctx)
			if err != nil || s.State != map[Stage]string{Serving: "serving", CatchUp: "catching-up"}[stage] {
				return false
			}
			if s.AppliedSeq > from {
				return true
			}
			rest(ctx, time.Millisecond)
		}
	}
	return false
}

// starting reports whether a node's present process has begun its work, which is when it
// holds its directory's lock, and does not listen yet.
func (n *node) starting() bool {
	text, err := os.ReadFile(filepath.Join(n.data(), "LOCK"))
	if err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(n.proc.PID()) || !n.alive() {
		return false
	}
	_, err = os.Stat(filepath.Join(n.data(), "addrs.json")) // launch removed that of the process before
	return errors.Is(err, fs.ErrNotExist)
}

// await waits until a node is at a stage, and reports whether it came to be, and the
// position that it said it was at.
func (n *node) await(ctx context.Context, stage Stage, before footprint) (at uint64, seen bool) {
	ctx, cancel := context.WithTimeout(ctx, stageLimit)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		switch stage {
		case Starting:
			if n.starting() {
				return 0, true
			}
		case Importing:
			if n.rig.load.importing.Load() > 0 {
				return 0, true
			}
		case Serving, CatchUp:
			if s, err := n.status(ctx); err == nil {
				switch {
				case s.State == "serving" && stage == Serving, s.State == "catching-up" && stage == CatchUp:
					return s.AppliedSeq, true
				case s.State == "serving":
					return 0, false // it was too quick
				}
			}
		default:
			if footprintOf(n.data()).shows(stage, before) {
				return 0, true
			}
		}
		select {
		case <-tick.C:
		case <-n.proc.Exited():
			return 0, false
		case <-ctx.Done():
			return 0, false
		}
	}
}
